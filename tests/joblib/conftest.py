"""joblib's backend, and no workers that stay for the next test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dpool

pytest.importorskip("joblib")

from dpool.joblib import close_executors, register_joblib


@pytest.fixture(scope="session", autouse=True)
def the_runtime() -> None:
    """It is made once in a process and keeps three descriptors; the first test must not be blamed for them."""
    register_joblib()
    dpool.Executor(1).shutdown()


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    yield
    close_executors()
