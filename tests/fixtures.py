"""What the tests of several packages begin with; a conftest.py, or a module, that imports one of these has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dpool


@pytest.fixture(scope="session", autouse=True)
def the_runtime() -> None:
    """It is made once in a process and keeps three descriptors; the first test must not be blamed for them."""
    dpool.Executor(1).shutdown()


@pytest.fixture(autouse=True)
def cluster() -> Iterator[None]:
    """Two CPUs, whatever this machine has, one GPU and three licences; nothing is left after each test."""
    dpool.shutdown()  # what another file's tests still hold
    dpool.init(num_cpus=2, num_gpus=1, resources={"licence": 3})
    yield
    dpool.shutdown()
