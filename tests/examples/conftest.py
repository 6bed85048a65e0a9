"""For tests that use an example's functions in their own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dpool


@pytest.fixture(scope="session")
def runtime() -> None:
    """It is made once in a process and keeps three descriptors; no single test must be blamed for them."""
    dpool.Executor(1).shutdown()


@pytest.fixture
def cluster(runtime: None) -> Iterator[None]:
    """Four CPUs to give away, whatever this machine has."""
    dpool.init(num_cpus=4)
    yield
    dpool.shutdown()
