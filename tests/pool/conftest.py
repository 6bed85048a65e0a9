"""A pool of two workers, and a gate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dpool
from tests.fixtures import the_runtime

__all__ = ["the_runtime"]


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
