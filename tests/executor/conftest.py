"""An executor of two workers, and a gate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dpool
from tests.executor.storing import becomes_empty
from tests.fixtures import the_runtime

__all__ = ["the_runtime"]


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
