"""The leak check of `tests`, two workers of each kind, and a way to see where a function ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dpool
from compat_tests.users.support import WORKERS, Noted
from tests.conftest import no_leaks, pytest_configure, pytest_unconfigure
from tests.fixtures import the_runtime

__all__ = ["no_leaks", "pytest_configure", "pytest_unconfigure", "the_runtime"]


@pytest.fixture(autouse=True)
def environment_kept() -> None:
    """Not of interest here, and the interpreter may come without `test.support`."""


@pytest.fixture
def executor() -> Iterator[dpool.Executor]:
    with dpool.Executor(WORKERS) as made:
        yield made


@pytest.fixture
def pool() -> Iterator[dpool.Pool]:
    with dpool.Pool(WORKERS) as made:
        yield made


@pytest.fixture(params=[dpool.Executor, dpool.Pool], ids=["Executor", "Pool"])
def either(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An Executor or a Pool: for whoever wants a `map`."""
    with request.param(WORKERS) as made:
        yield made


@pytest.fixture
def note(tmp_path: Path) -> Callable[[Callable[..., Any]], Noted]:
    """Makes a function note where it runs."""

    def noted(function: Callable[..., Any]) -> Noted:
        directory = tmp_path / f"pids-{function.__name__}"
        directory.mkdir()
        return Noted(function, directory)

    return noted
