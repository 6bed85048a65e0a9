"""Who holds a result: the future alone; and `map`, which has the futures, lets each result go when it is yielded."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import dpool

WAIT_S = 60.0
_loads = [0]


class Thing:
    """Can be referred to weakly."""


def _make(_: int) -> Thing:
    return Thing()


def _second_time(value: str) -> str:
    _loads[0] += 1
    if _loads[0] == 1:
        raise RuntimeError("not yet")
    return value


class Reluctant:
    """Unpickles, as a string, at the second attempt."""

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return _second_time, ("here",)


@pytest.fixture(scope="module", autouse=True)
def the_runtime() -> None:
    """It keeps three descriptors of a process; no test is to be blamed for them."""
    dpool.Executor(1).shutdown()


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Whoever reads loses the interpreter's lock in the middle of anything."""
    interval, over = sys.getswitchinterval(), threading.Event()

    def spin() -> None:
        while not over.is_set():
            sum(range(50))

    threads = [threading.Thread(target=spin) for _ in range(2)]
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy_threads")
def test_map_keeps_no_result() -> None:
    kept = 0
    with dpool.Executor(2) as executor:
        for _ in range(100):
            for thing in executor.map(_make, range(20)):
                alive = weakref.ref(thing)
                del thing
                kept += alive() is not None
    assert not kept


def test_a_result_that_unpickles_at_the_second_attempt() -> None:
    """The first error may have come from a signal handler of the main thread; in another thread it is nobody's."""
    done, seen = threading.Event(), []

    def note(future: dpool.Future[Any]) -> None:
        seen.append(future.result())
        done.set()

    with dpool.Executor(1) as executor:
        executor.submit(Reluctant).add_done_callback(note)
        assert done.wait(WAIT_S)
        assert executor.submit(partial(abs, -1)).result(WAIT_S) == 1
    assert seen == ["here"]
    assert _loads == [2]
