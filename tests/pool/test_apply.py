"""`apply` and `apply_async`: values, errors, waiting, callbacks."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, fail, noop, same, square
from tests.helpers import wait_until


def arguments(*args: Any, **kwds: Any) -> Any:
    return args, kwds


def test_a_call_returns_its_value(pool: dpool.Pool) -> None:
    assert pool.apply(square, (5,)) == 25
    assert pool.apply(noop) is None
    assert pool.apply(arguments, [1, "two"], {"three": [3]}) == ((1, "two"), {"three": [3]})  # any iterable will do
    assert pool.apply(lambda x, y: x + y, (1,), {"y": 2}) == 3
    assert pool.apply(os.getpid) != os.getpid()
    wrong: Any
    for wrong in ((5, {}), ((1,), 1)):
        with pytest.raises(TypeError):
            pool.apply(square, *wrong)


def test_a_call_raises_what_it_raised(pool: dpool.Pool) -> None:
    with pytest.raises(KeyError) as caught:
        pool.apply(fail, (KeyError("k", 1),))
    assert caught.value.args == ("k", 1)
    assert pool.apply(square, (2,)) == 4


def test_asynchronous_calls(pool: dpool.Pool, gate: Gate) -> None:
    held = pool.apply_async(gate.enter, ("held", 7))
    gate.entered("held")
    assert not held.ready()
    with pytest.raises(ValueError, match="not ready"):
        held.successful()
    held.wait(0)
    with pytest.raises(multiprocessing.TimeoutError):
        held.get(timeout=0)
    with pytest.raises(multiprocessing.TimeoutError):
        held.get(timeout=0.05)
    assert pool.apply_async(square, (3,)).get(LONG_S) == 9  # by the other worker
    gate.open("held")
    held.wait()
    assert held.ready()
    assert held.successful()
    assert held.get() == held.get(0) == 7


def test_an_asynchronous_call_that_raises(pool: dpool.Pool) -> None:
    result = pool.apply_async(fail, (ValueError("no"),))
    result.wait(LONG_S)
    assert result.ready()
    assert not result.successful()
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            result.get()


def test_ready_comes_true_though_nobody_waits(pool: dpool.Pool) -> None:
    results = [pool.apply_async(square, (i,)) for i in range(50)]
    wait_until(lambda: all(result.ready() for result in results), LONG_S)
    assert [result.get() for result in results] == [i * i for i in range(50)]


def test_a_result_keeps_its_pool_until_it_is_ready(gate: Gate) -> None:
    result = dpool.Pool(1).apply_async(gate.enter, ("task", 1))
    gate.open()
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        assert result.get(LONG_S) == 1
    assert result._owner is None


class Calls:
    """Notes what it is called with, and in which thread."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, threading.Thread]] = []

    def __call__(self, value: Any) -> None:
        self.seen.append((value, threading.current_thread()))


def test_a_callback_is_called_once_before_get_returns_and_not_by_the_caller(pool: dpool.Pool) -> None:
    for i in range(200):  # some have ended before the callback is there, some not
        good, bad = Calls(), Calls()
        assert pool.apply_async(square, (i,), callback=good, error_callback=bad).get(LONG_S) == i * i
        assert [value for value, _ in good.seen] == [i * i]
        assert not bad.seen
        assert good.seen[0][1] is not threading.current_thread()


def test_an_error_callback_gets_the_exception_that_get_raises(pool: dpool.Pool) -> None:
    good, bad = Calls(), Calls()
    result = pool.apply_async(fail, (OSError(7, "x"),), callback=good, error_callback=bad)
    with pytest.raises(OSError, match="x") as caught:
        result.get(LONG_S)
    assert [error for error, _ in bad.seen] == [caught.value]
    assert not good.seen
    assert not result.successful()


def test_arguments_that_do_not_pickle_are_told_to_the_callback_too(pool: dpool.Pool) -> None:
    bad = Calls()
    result = pool.apply_async(same, (threading.Lock(),), error_callback=bad)
    with pytest.raises(TypeError, match="pickle"):
        result.get(LONG_S)
    assert isinstance(bad.seen[0][0], TypeError)
    assert bad.seen[0][1] is not threading.current_thread()


def test_a_callback_that_raises_does_no_harm(pool: dpool.Pool, caplog: pytest.LogCaptureFixture) -> None:
    def bad(value: Any) -> None:
        raise RuntimeError(f"callback of {value}")

    with caplog.at_level(logging.ERROR, "dpool"):
        assert pool.apply_async(square, (2,), callback=bad).get(LONG_S) == 4
    assert "callback of 4" in caplog.text
    after = Calls()
    assert pool.apply_async(square, (3,), callback=after).get(LONG_S) == 9
    assert [value for value, _ in after.seen] == [9]


def test_a_callback_may_use_the_pool(pool: dpool.Pool) -> None:
    made: list[Any] = []
    result = pool.apply_async(square, (2,), callback=lambda value: made.append(pool.apply_async(square, (value,))))
    assert result.get(LONG_S) == 4
    assert made[0].get(LONG_S) == 16


def test_ready_waits_for_the_callback(pool: dpool.Pool) -> None:
    go_on, called = threading.Event(), threading.Event()

    def slow(value: Any) -> None:
        called.set()
        go_on.wait(LONG_S)

    result = pool.apply_async(square, (2,), callback=slow)
    assert called.wait(LONG_S)
    assert not result.ready()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    assert pool.apply(square, (5,)) == 25  # others are served meanwhile
    go_on.set()
    assert result.get(LONG_S) == 4


def test_many_threads_may_wait_for_one_result(pool: dpool.Pool, gate: Gate) -> None:
    result = pool.map_async(gate.enter, ["a", "b"], chunksize=1)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(result.get(LONG_S))) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.entered("a")
    gate.open("a", "b")
    for thread in threads:
        thread.join(LONG_S)
    assert found == [[None, None]] * 4


def test_a_future_as_an_argument_is_waited_for(pool: dpool.Pool) -> None:
    with dpool.Executor(1) as ex:
        assert pool.apply(square, (ex.submit(square, 3),)) == 81
        assert pool.map(square, [ex.submit(square, 2), 5], chunksize=1) == [16, 25]
