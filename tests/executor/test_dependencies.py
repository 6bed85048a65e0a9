"""Futures as arguments: a task runs when they are ready, and receives their values."""

from __future__ import annotations

import concurrent.futures
import gc
import weakref
from concurrent.futures import CancelledError

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, fail, generator, same, square


def add(a: int, b: int, *, c: int = 0) -> int:
    return a + b + c


def test_values_take_the_place_of_futures(ex: dpool.Executor) -> None:
    a, b = ex.submit(square, 2), ex.submit(square, 3)
    assert ex.submit(add, a, b).result(LONG_S) == 13
    assert ex.submit(add, a, 1, c=b).result(LONG_S) == 14  # both are done by now
    assert ex.submit(add, a, a, c=a).result(LONG_S) == 12
    assert list(ex.map(add, [a, b], [1, b])) == [5, 18]


def test_a_task_waits_for_what_it_needs(ex: dpool.Executor, gate: Gate) -> None:
    slow = ex.submit(gate.enter, "slow", 5)
    waiting = ex.submit(square, slow)
    others = [ex.submit(square, i) for i in range(20)]
    assert [other.result(LONG_S) for other in others] == [i * i for i in range(20)]
    assert not waiting.done()
    assert not waiting.running()
    gate.open("slow")
    assert waiting.result(LONG_S) == 25


def test_a_chain_is_no_deadlock_with_one_worker(one: dpool.Executor) -> None:
    future = one.submit(same, 0)
    for _ in range(300):
        future = one.submit(add, future, 1)
    assert future.result(LONG_S) == 300


def test_a_diamond_and_a_tree(ex: dpool.Executor) -> None:
    top = ex.submit(square, 2)
    assert ex.submit(add, ex.submit(add, top, 1), ex.submit(add, top, 2)).result(LONG_S) == 11
    level = [ex.submit(square, i) for i in range(32)]
    while len(level) > 1:
        level = [ex.submit(add, a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    assert level[0].result(LONG_S) == sum(i * i for i in range(32))


def test_an_error_reaches_every_task_that_depends_on_it(ex: dpool.Executor, gate: Gate) -> None:
    bad = ex.submit(gate.enter, "bad", 1)
    broken = ex.submit(fail, ValueError("the first"))
    middle = ex.submit(add, broken, bad)
    last = ex.submit(square, middle)
    for future in (middle, last, ex.submit(square, broken)):
        with pytest.raises(ValueError, match="the first"):
            future.result(LONG_S)
    gate.open("bad")


def test_a_cancelled_future_fails_what_needs_it(one: dpool.Executor, gate: Gate) -> None:
    held = one.submit(gate.enter)
    gate.entered()
    first = one.submit(square, 2)
    second = one.submit(square, first)
    third = one.submit(square, second)
    assert first.cancel()
    assert isinstance(second.exception(LONG_S), CancelledError)
    assert isinstance(third.exception(LONG_S), CancelledError)
    gate.open()
    held.result(LONG_S)


def test_a_task_that_waits_can_be_cancelled(one: dpool.Executor, gate: Gate) -> None:
    held = one.submit(gate.enter, value=3)
    waiting = one.submit(gate.note, held)
    after = one.submit(same, waiting)
    assert waiting.cancel()
    assert waiting.cancelled()
    assert isinstance(after.exception(LONG_S), CancelledError)
    gate.open()
    assert held.result(LONG_S) == 3
    assert one.submit(square, 2).result(LONG_S) == 4
    assert not gate.pids("3")


def test_futures_of_other_executors(one: dpool.Executor) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as threads, dpool.Executor(1) as other:
        plain: concurrent.futures.Future[int] = concurrent.futures.Future()
        waiting = one.submit(add, threads.submit(square, 2), other.submit(square, 3), c=plain)
        assert not waiting.done()
        plain.set_result(100)
        assert waiting.result(LONG_S) == 113


def test_the_value_is_not_kept(one: dpool.Executor, gate: Gate) -> None:
    source: concurrent.futures.Future[Thing] = concurrent.futures.Future()
    waiting = one.submit(take, source)
    thing = Thing()
    seen = weakref.ref(thing)
    source.set_result(thing)
    assert waiting.result(LONG_S) == "Thing"
    del thing, source
    gc.collect()
    assert seen() is None


class Thing:
    pass


def take(thing: object) -> str:
    return type(thing).__name__


def test_a_value_that_does_not_pickle(one: dpool.Executor) -> None:
    source: concurrent.futures.Future[object] = concurrent.futures.Future()
    waiting = one.submit(take, source)
    source.set_result(generator())
    assert isinstance(waiting.exception(LONG_S), TypeError)
    assert one.submit(square, 3).result(LONG_S) == 9


def test_options_hold_for_a_task_that_waits(one: dpool.Executor, gate: Gate) -> None:
    source: concurrent.futures.Future[str] = concurrent.futures.Future()
    waiting = one.options(timeout=0.2, name="patience").submit(gate.enter, source)
    source.set_result("late")
    error = waiting.exception(LONG_S)
    assert isinstance(error, dpool.errors.TaskTimeout)
    assert "patience" in str(error)


def test_shutdown_waits_for_tasks_that_wait(gate: Gate) -> None:
    with dpool.Executor(1) as ex:
        first = ex.submit(gate.enter, value=2)
        second = ex.submit(square, first)
        third = ex.submit(square, second)
        gate.open()
    assert third.result(0) == 16
    ex = dpool.Executor(1)
    source: concurrent.futures.Future[int] = concurrent.futures.Future()
    waiting = ex.submit(square, source)
    ex.shutdown(wait=False)
    source.set_result(5)
    assert waiting.result(LONG_S) == 25
    ex.shutdown()


def test_shutdown_cancels_tasks_that_wait() -> None:
    ex = dpool.Executor(1)
    source: concurrent.futures.Future[int] = concurrent.futures.Future()
    waiting = ex.submit(square, source)
    last = ex.submit(square, waiting)
    ex.shutdown(cancel_futures=True)
    assert waiting.cancelled()
    assert last.cancelled()
    source.set_result(3)
    assert waiting.cancelled()
