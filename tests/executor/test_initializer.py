"""The initializer: once per worker, before its first task; one that fails breaks the executor, and starts no loop."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, generator, kill_self, noop, same, square
from tests.helpers import run_script, wait_until

STATE: dict[str, object] = {}


def init(gate: Gate, value: object = None) -> None:
    STATE["value"] = value
    gate.note("init")


def state() -> tuple[int, object]:
    return os.getpid(), STATE.get("value")


def held_state(gate: Gate, name: str) -> tuple[int, object]:
    gate.enter(name)
    return state()


def test_once_in_each_worker_before_its_first_task(gate: Gate) -> None:
    with dpool.Executor(3, None, init, (gate, "set")) as ex:
        futures = [ex.submit(held_state, gate, str(i)) for i in range(3)]
        for i in range(3):
            gate.entered(str(i))
        gate.open("0", "1", "2")
        found = [future.result(LONG_S) for future in futures]
        assert {value for _, value in found} == {"set"}
        assert len({pid for pid, _ in found}) == 3
        assert all(value == "set" for _, value in ex.map(lambda _: state(), range(100)))
    assert sorted(gate.pids("init")) == sorted(pid for pid, _ in found)
    assert "value" not in STATE


def test_tasks_of_every_option_find_it_done(gate: Gate) -> None:
    """They may have workers of their own, and take over each other's: the initializer has run in all of them."""
    with dpool.Executor(2, None, init, (gate, "set")) as ex:
        views: list[Any] = [
            ex,
            ex.options(timeout=LONG_S),
            ex.options(num_cpus=0.5),
            ex.options(name="n", max_retries=1),
            ex.options(num_cpus=1, timeout=LONG_S),
        ]
        for _ in range(5):
            futures = [view.submit(state) for view in views for _ in range(4)]
            assert {future.result(LONG_S)[1] for future in futures} == {"set"}
        pids = {future.result(LONG_S)[0] for future in futures}
    assert len(gate.pids("init")) == len(set(gate.pids("init")))
    assert pids <= set(gate.pids("init"))


def test_a_replacement_is_initialized_too(gate: Gate) -> None:
    with dpool.Executor(1, initializer=init, initargs=(gate, 7)) as ex:
        first, value = ex.submit(state).result(LONG_S)
        assert isinstance(ex.submit(kill_self).exception(LONG_S), dpool.errors.WorkerCrashed)
        second, again = ex.submit(state).result(LONG_S)
        assert (value, again) == (7, 7)
        assert first != second
    assert gate.pids("init") == [first, second]


def test_with_max_tasks_per_child(gate: Gate) -> None:
    with dpool.Executor(1, initializer=init, initargs=(gate, 7), max_tasks_per_child=2) as ex:
        found = [future.result(LONG_S) for future in [ex.submit(state) for _ in range(6)]]
    assert [value for _, value in found] == [7] * 6
    assert sorted(gate.pids("init")) == sorted({pid for pid, _ in found})


def test_lambdas_and_keyword_names(gate: Gate) -> None:
    with dpool.Executor(initializer=lambda g, v: init(g, v), initargs=[gate, 3], max_workers=1) as ex:  # type: ignore[arg-type]
        assert ex.submit(state).result(LONG_S)[1] == 3


def raise_it(gate: Gate) -> None:
    gate.note("init")
    raise ZeroDivisionError("in the initializer")


def die(gate: Gate, how: str) -> None:
    gate.note("init")
    if how == "exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(4)
    kill_self()


def broken(ex: dpool.Executor) -> list[BaseException]:
    """Submit, and what comes of it: everything pending and everything later is a BrokenProcessPool."""
    futures = []
    try:
        for _ in range(10):
            futures.append(ex.submit(noop))
    except BrokenProcessPool:
        pass
    futures.append(futures[0])
    assert wait(futures, LONG_S).not_done == set()
    found = [future.exception() for future in futures]
    with pytest.raises(BrokenProcessPool):
        ex.submit(noop)
    with pytest.raises(BrokenProcessPool):
        ex.map(noop, [1])
    return found  # type: ignore[return-value]


def test_one_that_raises_breaks_the_executor(gate: Gate) -> None:
    with dpool.Executor(2, initializer=raise_it, initargs=(gate,)) as ex:
        errors = broken(ex)
        ex.shutdown()
    for error in errors:
        assert isinstance(error, dpool.errors.InitializerFailed)
        assert isinstance(error, BrokenProcessPool)
        assert "in the initializer" in str(error)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert "raise_it" in str(error.__cause__.__cause__)
    assert 1 <= len(gate.pids("init")) <= 2


@pytest.mark.parametrize("how", ["exit", "os._exit", "kill"])
def test_one_that_dies_breaks_the_executor(gate: Gate, how: str) -> None:
    with dpool.Executor(1, initializer=die, initargs=(gate, how), max_retries=3) as ex:
        errors = broken(ex)
    assert all(isinstance(error, dpool.errors.InitializerFailed) for error in errors)
    assert len(gate.pids("init")) == 1


def test_one_that_fails_in_a_replacement(gate: Gate) -> None:
    gate.open("first")

    def once() -> None:
        gate.note("init")
        if len(gate.pids("init")) > 1:
            raise ValueError("the second time")

    with dpool.Executor(1, initializer=once) as ex:
        assert ex.submit(square, 3).result(LONG_S) == 9
        crashed, pending = ex.submit(kill_self), ex.submit(square, 4)
        assert isinstance(crashed.exception(LONG_S), BrokenProcessPool)
        assert isinstance(pending.exception(LONG_S), dpool.errors.InitializerFailed)
    assert len(gate.pids("init")) == 2


def test_with_options_one_that_fails_breaks_them_all(gate: Gate) -> None:
    with dpool.Executor(2, initializer=raise_it, initargs=(gate,)) as ex:
        try:
            futures = [ex.options(timeout=5).submit(noop), ex.options(num_cpus=1).submit(noop), ex.submit(noop)]
        except BrokenProcessPool:
            return
        assert all(isinstance(future.exception(LONG_S), BrokenProcessPool) for future in futures)


@pytest.mark.parametrize("initargs", [(threading.Lock(),), (generator(),)], ids=["lock", "generator"])
def test_arguments_that_do_not_pickle(initargs: tuple[object, ...]) -> None:
    with dpool.Executor(1, initializer=same, initargs=initargs) as ex:
        assert all(isinstance(error, BrokenProcessPool) for error in broken(ex))


def test_one_that_takes_long_holds_tasks_back_and_can_be_stopped(gate: Gate) -> None:
    ex = dpool.Executor(1, initializer=gate.enter, initargs=("init",))
    future = ex.submit(noop)
    gate.entered("init")
    assert not future.running()
    assert not future.done()
    cancelled = ex.submit(noop)
    assert cancelled.cancel()
    gate.open("init")
    assert future.result(LONG_S) is None
    ex.shutdown()
    stuck = dpool.Executor(1, initializer=gate.enter, initargs=("never",))
    pending = stuck.submit(noop)
    gate.entered("never")
    stuck.kill_workers()
    assert isinstance(
        pending.exception(LONG_S) if not pending.cancelled() else CancelledError(), (BrokenProcessPool, CancelledError)
    )
    stuck.shutdown()


def test_a_forced_cancel_does_not_blame_the_initializer(gate: Gate) -> None:
    with dpool.Executor(1, initializer=init, initargs=(gate, 1)) as ex:
        future = ex.submit(gate.enter)
        gate.entered()
        assert future.cancel(force=True)
        assert ex.submit(state).result(LONG_S)[1] == 1


def fill(queue: object, lock: object) -> None:
    STATE["queue"], STATE["lock"] = queue, lock


def put(value: int) -> None:
    with STATE["lock"]:  # type: ignore[attr-defined]
        STATE["queue"].put(value)  # type: ignore[attr-defined]


def test_objects_of_multiprocessing_as_arguments() -> None:
    context = multiprocessing.get_context("spawn")
    queue, lock = context.Queue(), context.Lock()
    with dpool.Executor(2, initializer=fill, initargs=(queue, lock)) as ex:
        list(ex.map(put, range(20)))
        assert sorted(queue.get(timeout=LONG_S) for _ in range(20)) == list(range(20))
    queue.close()
    queue.join_thread()


def test_the_log_has_the_traceback() -> None:
    script = """
import dpool, logging
def bad(): raise ZeroDivisionError("of the initializer")
if __name__ == "__main__":
    with dpool.Executor(1, initializer=bad) as ex:
        try:
            ex.submit(abs, 1).result()
        except dpool.errors.InitializerFailed as error:
            print(error)
"""
    result = run_script(script).check()
    assert "of the initializer" in result.stdout
    assert "worker-" in result.stdout  # the log file
    assert result.stderr.count("Exception in initializer") == 1
    assert "in bad" in result.stderr


def test_workers_that_have_failed_are_gone(gate: Gate) -> None:
    ex = dpool.Executor(1, initializer=raise_it, initargs=(gate,))
    assert isinstance(ex.submit(noop).exception(LONG_S), BrokenProcessPool)
    wait_until(lambda: not ex._processes, LONG_S)
    ex.shutdown()
