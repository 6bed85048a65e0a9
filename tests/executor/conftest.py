"""An executor of two workers, and a gate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dpool
from tests.executor.storing import becomes_empty


@pytest.fixture(scope="session", autouse=True)
def the_runtime() -> None:
    """It is made once in a process and keeps three descriptors; the first test must not be blamed for them."""
    dpool.Executor(1).shutdown()


@pytest.fixture
def ex() -> Iterator[dpool.Executor]:
    """Two workers."""
    with dpool.Executor(2) as executor:
        yield executor


@pytest.fixture
def one() -> Iterator[dpool.Executor]:
    """One worker."""
    with dpool.Executor(1) as executor:
        yield executor


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    """After the test, which may have dropped references when its executor was closed, the object store is empty."""
    yield
    with dpool.Executor(1):
        becomes_empty()
