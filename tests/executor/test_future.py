"""`dpool.Future`: a `concurrent.futures.Future` for whatever takes one in the standard library; forced cancelling."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import os
import pickle
import sys
import threading
import weakref
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, InvalidStateError, as_completed, wait
from typing import Any

import pytest

import dpool
from dpool._core import future as future_module
from tests.executor.support import LONG_S, Gate, fail, noop, same, square
from tests.helpers import is_running, wait_until


def test_states(one: dpool.Executor, gate: Gate) -> None:
    running, waiting = one.submit(gate.enter, value=5), one.submit(same, 6)
    gate.entered()
    assert (running.done(), running.running(), running.cancelled()) == (False, True, False)
    assert (waiting.done(), waiting.running(), waiting.cancelled()) == (False, False, False)
    gate.open()
    assert running.result(LONG_S) == 5
    assert waiting.result(LONG_S) == 6
    assert (running.done(), running.running(), running.cancelled()) == (True, False, False)
    assert running.exception() is None
    assert running.exception(timeout=0) is None
    assert "finished" in repr(running)


def test_results_that_do_not_come_in_time(one: dpool.Executor, gate: Gate) -> None:
    future = one.submit(gate.enter)
    for timeout in (0, 0.01, -1):
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(timeout)
        with pytest.raises(concurrent.futures.TimeoutError):
            future.exception(timeout)
    assert not future.done()
    gate.open()
    assert future.result(timeout=LONG_S) is None


def test_an_exception_is_the_same_each_time(one: dpool.Executor) -> None:
    future = one.submit(fail, ValueError(1))
    assert isinstance(future.exception(LONG_S), ValueError)
    for _ in range(2):
        with pytest.raises(ValueError, match="1") as info:
            future.result()
        assert info.value is future.exception()


# --- wait and as_completed ---


def test_wait_for_all(ex: dpool.Executor, gate: Gate) -> None:
    futures = [ex.submit(same, i) for i in range(20)]
    assert wait(futures, LONG_S) == (set(futures), set())
    held = ex.submit(gate.enter)
    assert wait([held, futures[0]], 0.01) == ({futures[0]}, {held})
    gate.open()
    assert wait([held], LONG_S).done == {held}


def test_wait_for_the_first(ex: dpool.Executor, gate: Gate) -> None:
    held, short = ex.submit(gate.enter), ex.submit(same, 2)
    assert wait([held, short], LONG_S, FIRST_COMPLETED).done == {short}
    failing = ex.submit(lambda: same(1 / 0))
    done, rest = wait([held, failing], LONG_S, FIRST_EXCEPTION)
    assert (done, rest) == ({failing}, {held})
    gate.open()
    assert wait([held], LONG_S, FIRST_EXCEPTION).not_done == set()


def test_wait_begins_before_anything_is_done(ex: dpool.Executor, gate: Gate) -> None:
    a, b = ex.submit(gate.enter, "a"), ex.submit(gate.enter, "b")
    gate.entered("a")
    timer = threading.Timer(0.01, gate.open, ("b",))
    timer.start()
    assert wait([a, b], LONG_S, FIRST_COMPLETED).done == {b}
    gate.open("a")
    assert wait([a, b], LONG_S).not_done == set()
    timer.join()


def test_as_completed(ex: dpool.Executor, gate: Gate) -> None:
    futures: dict[concurrent.futures.Future[Any], int] = {ex.submit(square, i): i for i in range(50)}
    assert {futures[future]: future.result() for future in as_completed(futures, LONG_S)} == {
        i: i * i for i in range(50)
    }
    held: dpool.Future[Any] = ex.submit(gate.enter)
    some = iter(as_completed([held, *futures], 0.05))
    assert all(next(some) in futures for _ in futures)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(some)
    gate.open()
    assert next(as_completed([held], LONG_S)) is held


def test_as_completed_while_tasks_are_submitted(ex: dpool.Executor) -> None:
    pending: set[concurrent.futures.Future[int]] = {ex.submit(square, 1)}
    total = 0
    for i in range(2, 60):
        done, pending = wait(pending, LONG_S, FIRST_COMPLETED)
        total += len(done)
        pending.add(ex.submit(square, i))
    assert total + len(wait(pending, LONG_S).done) == 59


def test_with_futures_of_other_executors(ex: dpool.Executor, gate: Gate) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as threads, dpool.Executor(1) as other:
        mixed = [threads.submit(square, 2), ex.submit(square, 3), other.submit(square, 4)]
        assert {future.result() for future in as_completed(mixed, LONG_S)} == {4, 9, 16}
        assert wait(mixed, LONG_S).not_done == set()


def test_many_threads_wait_for_one(one: dpool.Executor, gate: Gate) -> None:
    future = one.submit(gate.enter, value=3)
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(future.result(LONG_S))) for _ in range(10)]
    threads += [threading.Thread(target=lambda: seen.append(len(wait([future], LONG_S).done) + 2)) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.entered()
    gate.open()
    for thread in threads:
        thread.join(LONG_S)
    assert seen == [3] * 13


# --- Callbacks ---


def test_callbacks_run_in_order_and_their_errors_are_logged(
    one: dpool.Executor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []
    ended = threading.Event()
    future = one.submit(gate.enter, value=1)
    future.add_done_callback(lambda f: seen.append(("first", f.result(0))))
    future.add_done_callback(lambda f: seen.append(1 / 0))
    future.add_done_callback(lambda f: seen.append("third"))
    future.add_done_callback(lambda f: ended.set())
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        gate.open()
        assert ended.wait(LONG_S)
    assert seen == [("first", 1), "third"]
    assert "exception calling callback" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    future.add_done_callback(lambda f: seen.append("at once"))
    assert seen[-1] == "at once"


def test_a_callback_is_called_though_nobody_waits(one: dpool.Executor) -> None:
    called = threading.Event()
    one.submit(noop).add_done_callback(lambda f: called.set())
    assert called.wait(LONG_S)


def test_callbacks_of_failed_and_cancelled_tasks(one: dpool.Executor, gate: Gate) -> None:
    held = one.submit(gate.enter)
    seen: list[str] = []
    failing, cancelled = one.submit(fail, ValueError()), one.submit(noop)
    failing.add_done_callback(lambda f: seen.append(type(f.exception()).__name__))
    cancelled.add_done_callback(lambda f: seen.append(f"cancelled={f.cancelled()}"))
    assert cancelled.cancel()
    assert seen == ["cancelled=True"]
    gate.open()
    wait_until(lambda: len(seen) == 2, LONG_S)
    assert seen[1] == "ValueError"
    held.result(LONG_S)


# --- Cancelling ---


def test_what_has_not_begun_can_be_cancelled(one: dpool.Executor, gate: Gate) -> None:
    """Also what lies in the worker's socket already."""
    running = one.submit(gate.enter)
    gate.entered()
    waiting = [one.submit(gate.note, str(i)) for i in range(10)]
    assert [future.cancel() for future in waiting[1:]] == [True] * 9
    assert all(future.cancelled() and future.done() and not future.running() for future in waiting[1:])
    assert all(future.cancel() for future in waiting[1:])
    assert not running.cancel()
    gate.open()
    running.result(LONG_S)
    waiting[0].result(LONG_S)
    assert not running.cancel()
    assert one.submit(same, 2).result(LONG_S) == 2
    assert not any(gate.pids(str(i)) for i in range(1, 10))
    for future in waiting[1:]:
        with pytest.raises(CancelledError):
            future.result()
        with pytest.raises(CancelledError):
            future.exception()


def test_who_waits_for_a_cancelled_task_is_told(one: dpool.Executor, gate: Gate) -> None:
    running = one.submit(gate.enter)
    gate.entered()
    futures = [one.submit(noop) for _ in range(3)]
    done: list[object] = []
    started = threading.Event()

    def client() -> None:
        started.set()
        done.append(wait(futures, LONG_S).not_done)

    def taker() -> None:
        with pytest.raises(CancelledError):
            futures[2].result(LONG_S)
        done.append("cancelled")

    threads = [threading.Thread(target=client), threading.Thread(target=taker)]
    for thread in threads:
        thread.start()
    assert started.wait(LONG_S)
    assert all(future.cancel() for future in futures)
    for thread in threads:
        thread.join(LONG_S)
    assert sorted(map(str, done)) == ["cancelled", "set()"]
    assert set(as_completed(futures, LONG_S)) == set(futures)
    gate.open()
    running.result(LONG_S)


def test_cancel_by_force_kills_that_worker_alone(ex: dpool.Executor, gate: Gate) -> None:
    a, b = ex.submit(gate.enter, "a"), ex.submit(gate.enter, "b", "b's value")
    behind = [ex.submit(square, i) for i in range(20)]
    pid, other = gate.entered("a"), gate.entered("b")
    assert not a.cancel()
    assert a.cancel(force=True)
    assert a.cancelled()
    with pytest.raises(CancelledError):
        a.result(0)
    wait_until(lambda: not is_running(pid), LONG_S)
    assert [future.result(LONG_S) for future in behind] == [i * i for i in range(20)]
    assert is_running(other)
    gate.open("b")
    assert b.result(LONG_S) == "b's value"
    assert b.cancel(force=True) is False
    assert b.result() == "b's value"


def test_cancel_by_force_of_what_waits(one: dpool.Executor, gate: Gate) -> None:
    running, waiting = one.submit(gate.enter), one.submit(gate.note, "waiting")
    pid = gate.entered()
    assert waiting.cancel(force=True)
    assert is_running(pid)
    gate.open()
    running.result(LONG_S)
    assert one.submit(os.getpid).result(LONG_S) == pid
    assert not gate.pids("waiting")


def test_cancel_by_force_is_no_crash_that_is_retried(gate: Gate) -> None:
    with dpool.Executor(1, max_retries=5) as ex:
        future = ex.submit(gate.enter)
        gate.entered()
        assert future.cancel(force=True)
        assert ex.submit(square, 4).result(LONG_S) == 16
        assert len(gate.pids()) == 1


def test_cancel_by_force_in_a_strict_executor_breaks_nothing(gate: Gate) -> None:
    with dpool.Executor(1, strict=True) as ex:
        future = ex.submit(gate.enter)
        behind = ex.submit(square, 4)
        gate.entered()
        assert future.cancel(force=True)
        assert behind.result(LONG_S) == 16


# --- What executors call, and what a Future holds ---


def test_a_bare_future(one: dpool.Executor) -> None:
    future: dpool.Future[int] = dpool.Future()
    assert future.set_running_or_notify_cancel()
    assert future.running()
    future.set_result(3)
    assert future.result() == 3
    with pytest.raises(InvalidStateError):
        future.set_result(4)
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())
    other: dpool.Future[int] = dpool.Future()
    assert other.cancel()
    assert not other.set_running_or_notify_cancel()
    assert other.cancelled()
    failed: dpool.Future[int] = dpool.Future()
    failed.set_exception(KeyError(1))
    assert isinstance(failed.exception(), KeyError)
    waited: dpool.Future[int] = dpool.Future()
    timer = threading.Timer(0.01, waited.set_result, (7,))
    timer.start()
    assert waited.result(LONG_S) == 7
    timer.join()


def test_a_future_in_a_container_travels_as_a_future(one: dpool.Executor) -> None:
    future = one.submit(square, 2)
    with pytest.raises(TypeError, match="only by dpool itself"):
        pickle.dumps(future)
    assert one.submit(same, [future]).result(LONG_S) == [future]  # at home it is the very one
    assert one.submit(result_of, [future]).result(LONG_S) == 4


def result_of(futures: list[dpool.Future[int]]) -> int:
    return futures[0].result(LONG_S)


class Thing:
    pass


def make_thing(_: object = None) -> Thing:
    return Thing()


def test_results_and_arguments_go_with_their_future(one: dpool.Executor) -> None:
    thing = Thing()
    argument = weakref.ref(thing)
    future = one.submit(make_thing, thing)
    del thing
    result = weakref.ref(future.result(LONG_S))
    gc.collect()
    assert argument() is None
    assert result() is not None
    del future
    gc.collect()
    assert result() is None


def test_ten_thousand_futures_are_let_go(one: dpool.Executor) -> None:
    futures = [one.submit(same, i) for i in range(10_000)]
    refs = [weakref.ref(future) for future in futures]
    assert sum(future.result(LONG_S) for future in futures) == sum(range(10_000))  # type: ignore[misc]
    del futures
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= 1


def test_what_one_thread_notes_of_a_future_is_not_lost_when_another_one_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    future: dpool.Future[int] = dpool.Future()
    failure = ValueError("of the task")
    ends = threading.Thread(target=future.set_exception, args=(failure,))

    def waits_or_has_ended() -> bool:
        frame = sys._current_frames().get(ends.ident or 0)
        return not ends.is_alive() or (frame is not None and frame.f_code.co_name in ("_settle", "_end", "_more"))

    class Slow(future_module._Extra):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()
            if threading.current_thread() is threading.main_thread():
                ends.start()  # while this thread is about to note something
                wait_until(waits_or_has_ended, LONG_S)

    monkeypatch.setattr(future_module, "_Extra", Slow)
    extra = future._more()
    ends.join(LONG_S)
    assert future._extra is extra
    assert future.exception(LONG_S) is failure
