"""The runtime of the test's own process is made before the first test looks at descriptors."""

from __future__ import annotations

import pytest

import dpool


@pytest.fixture(scope="session", autouse=True)
def the_runtime() -> None:
    """It is made once in a process and keeps three descriptors; the first test must not be blamed for them."""
    dpool.Executor(1).shutdown()
