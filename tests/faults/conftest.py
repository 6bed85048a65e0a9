"""What every fault test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

import dpool


@pytest.fixture(scope="session", autouse=True)
def the_runtime() -> None:
    """It is made once in a process and keeps three descriptors; the first test must not be blamed for them."""
    dpool.Executor(1).shutdown()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that blocked tasks wait for."""
    return tmp_path / "gate"
