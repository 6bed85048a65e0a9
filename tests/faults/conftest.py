"""What every fault test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures import the_runtime

__all__ = ["the_runtime"]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that blocked tasks wait for."""
    return tmp_path / "gate"
