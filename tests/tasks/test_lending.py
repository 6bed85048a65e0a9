"""Blocking inside a task, or an actor that holds a CPU, gives the CPU back: with one CPU nothing hangs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from concurrent.futures import wait as futures_wait
from itertools import count as count_up
from typing import Any

import pytest

import dpool
from dpool._core import driver
from dpool._core.context import here
from dpool._core.messages import Blocked
from tests.executor.support import LONG_S
from tests.helpers import wait_until


@pytest.fixture(autouse=True)
def one_cpu(cluster: None) -> None:
    """One CPU to give away."""
    dpool.shutdown()
    dpool.init(num_cpus=1)


class Doubler:
    """Holds the CPU as long as it lives, if asked to."""

    def double(self, x: int) -> int:
        return 2 * x

    def run(self, waits: Callable[[Any], Any], other: Any) -> Any:
        return waits(other)

    @dpool.method(num_returns="streaming", stream_window=1)
    def numbers(self) -> Iterator[int]:
        yield from range(5)


@dpool.remote
def double(x: int) -> int:
    return 2 * x


def child(x: int) -> Any:
    """A task that its parent cannot run itself, as it may be killed."""
    return double.options(timeout=LONG_S).remote(x)


@dpool.remote(num_returns="streaming", stream_window=1)
def count() -> Iterator[int]:
    yield from range(5)


def with_get(actor: Any) -> Any:
    return dpool.get([child(1), child(2)])


def with_timeout(actor: Any) -> Any:
    return dpool.get(child(1), timeout=LONG_S)


def with_wait(actor: Any) -> Any:
    rest: list[Any] = [child(1), child(2)]
    found = []
    while rest:
        ready, rest = dpool.wait(rest)
        found += dpool.get(ready)
    return sorted(found)


def with_wait_and_timeout(actor: Any) -> Any:
    ready, _ = dpool.wait([child(1), child(2)], num_returns=2, timeout=LONG_S)
    return dpool.get(ready)


def with_result(actor: Any) -> Any:
    return child(1).result()


def with_exception(actor: Any) -> Any:
    return child(1).exception()


def with_as_completed(actor: Any) -> Any:
    return sorted(future.result() for future in as_completed([child(1), child(2)], timeout=LONG_S))


def with_standard_wait(actor: Any) -> Any:
    return sorted(future.result() for future in futures_wait([child(1), child(2)], timeout=LONG_S).done)


def with_an_actor(actor: Any) -> Any:
    """The call blocks; the actor is made by it and holds the CPU."""
    other = dpool.remote(num_cpus=1)(Doubler).remote()
    return other.double(4)


def with_a_stream(actor: Any) -> Any:
    return [dpool.get(item) for item in count.remote()]


def with_a_stream_of_an_actor(actor: Any) -> Any:
    other = dpool.remote(num_cpus=1)(Doubler).remote()
    return list(other.numbers())


def with_an_executor(actor: Any) -> Any:
    with dpool.Executor(1) as ex:
        return list(ex.options(num_cpus=1).map(abs, [-1, -2]))


WAITS = [
    (with_get, [2, 4]),
    (with_timeout, 2),
    (with_wait, [2, 4]),
    (with_wait_and_timeout, [2, 4]),
    (with_result, 2),
    (with_exception, None),
    (with_as_completed, [2, 4]),
    (with_standard_wait, [2, 4]),
    (with_an_actor, 8),
    (with_a_stream, [0, 1, 2, 3, 4]),
    (with_a_stream_of_an_actor, [0, 1, 2, 3, 4]),
    (with_an_executor, [1, 2]),
]


def test_in_a_task() -> None:
    for waits, expected in WAITS:
        assert dpool.get(dpool.remote(waits).remote(None), timeout=LONG_S) == expected, waits
    wait_until(lambda: dpool.available_resources()["CPU"] == 1, LONG_S)


def test_in_an_actor_that_holds_the_cpu() -> None:
    actor = dpool.remote(num_cpus=1)(Doubler).remote()
    for waits, expected in WAITS:
        assert actor.run.submit(waits, None).result(LONG_S) == expected, waits
    assert dpool.available_resources()["CPU"] <= 0
    actor.kill()
    wait_until(lambda: dpool.available_resources()["CPU"] == 1, LONG_S)


def test_in_threads_of_an_actor_that_holds_the_cpu() -> None:
    actor = dpool.remote(num_cpus=1)(Doubler).options(max_concurrency=2).remote()
    for waits, expected in WAITS:
        assert actor.run.submit(waits, None).result(LONG_S) == expected, waits


def interrupted_at(step: int, action: Callable[[], Any]) -> bool:
    """Do something with a KeyboardInterrupt at that line which `lend` runs with its lock; False if it runs fewer."""
    code = driver.NativeRuntime.lend.__code__
    locked_at = min(line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno)
    steps = count_up()

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line" and frame.f_lineno > locked_at and next(steps) == step:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("how", ["reading", "in a block"])
def test_whenever_a_wait_is_interrupted_nothing_stays_lent(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = driver.runtime()
    runtime.start_now()
    told: list[bool] = []
    tell = runtime.tell

    def note(what: Any, *fds: Any) -> None:
        if type(what) is Blocked:
            told.append(what.blocked)
            runtime.poke_reader()
        else:
            tell(what, *fds)

    monkeypatch.setattr(here, "holds_cpus", True)
    monkeypatch.setattr(runtime, "tell", note)

    def wait() -> None:
        if how == "reading":
            runtime.wait_until(lambda: bool(told), LONG_S)
        else:
            with runtime.blocking():
                pass

    for step in count_up():
        told.clear()
        interrupted = interrupted_at(step, wait)
        assert told.count(True) <= 1, "it says twice that it waits"
        assert not told or told[-1] is False, "it never says that it goes on"
        assert not runtime._waiting
        assert not runtime._lends
        if not interrupted:
            break
    assert step >= 4
    assert told == [True, False]
