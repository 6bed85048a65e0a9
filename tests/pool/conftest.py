"""A pool of two workers, and a gate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dpool


@pytest.fixture(scope="session", autouse=True)
def the_runtime() -> None:
    """It is made once in a process and keeps three descriptors; the first test must not be blamed for them."""
    dpool.Executor(1).shutdown()


@pytest.fixture
def pool() -> Iterator[dpool.Pool]:
    """Two workers."""
    with dpool.Pool(2) as made:
        yield made


@pytest.fixture
def one() -> Iterator[dpool.Pool]:
    """One worker."""
    with dpool.Pool(1) as made:
        yield made
