"""`close`, `join`, `terminate`, `with`, and pools that nobody closes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, noop, square
from tests.helpers import is_running, run_script, wait_until


def everything(pool: dpool.Pool) -> list[Any]:
    """Every way to ask for a call."""
    return [
        lambda: pool.apply(noop),
        lambda: pool.apply_async(noop),
        lambda: pool.map(square, [1]),
        lambda: pool.map_async(square, [1]),
        lambda: pool.starmap(square, [(1,)]),
        lambda: pool.starmap_async(square, [(1,)]),
        lambda: pool.imap(square, [1]),
        lambda: pool.imap_unordered(square, [1], 2),
        pool.__enter__,
    ]


def test_a_pool_that_runs_cannot_be_joined(pool: dpool.Pool) -> None:
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()


def test_close_finishes_what_was_asked_for(gate: Gate) -> None:
    pool = dpool.Pool(2)
    held = pool.apply_async(gate.enter, ("task", 5))
    queued = [pool.apply_async(square, (i,)) for i in range(20)]
    pool.close()
    pool.close()
    for ask in everything(pool):
        with pytest.raises(ValueError, match="Pool not running"):
            ask()
    gate.open()
    pool.join()
    pool.join()
    assert held.get(0) == 5
    assert [result.get(0) for result in queued] == [i * i for i in range(20)]
    assert pool._pool == []
    assert repr(pool) == "<dpool.pool.Pool state=CLOSE pool_size=0>"


def test_a_pool_can_be_closed_before_its_workers_are_up(gate: Gate) -> None:
    pool = dpool.Pool(2)
    pool.close()
    pool.join()
    pool = dpool.Pool(2, gate.note, ("init",))
    pool.close()
    pool.join()
    assert len(gate.pids("init")) == 2  # they had been started when it was made, as in the standard library


def test_with_terminates(gate: Gate) -> None:
    with dpool.Pool(2) as pool:
        running = pool.apply_async(gate.enter)
        pid = gate.entered()
        queued = pool.map_async(gate.enter, ["x"] * 10, 1)
    assert not is_running(pid)
    for result in (running, queued):
        with pytest.raises(dpool.errors.ExecutorBroken, match="terminated"):
            result.get(LONG_S)
    for ask in everything(pool):
        with pytest.raises(ValueError, match="Pool not running"):
            ask()
    pool.join()
    pool.terminate()
    pool.close()
    assert pool._state == "TERMINATE"


def test_terminate_calls_no_callbacks(gate: Gate) -> None:
    called: list[Any] = []
    pool = dpool.Pool(1)
    results = [pool.apply_async(gate.enter, callback=called.append, error_callback=called.append) for _ in range(3)]
    results.append(pool.map_async(square, range(5), callback=called.append, error_callback=called.append))
    gate.entered()
    pool.terminate()
    for result in results:
        with pytest.raises(dpool.errors.ExecutorBroken):
            result.get(LONG_S)
    assert not called


def ignore_and_enter(gate: Gate) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gate.enter()


def note_and_leave(gate: Gate) -> None:
    def leave(number: int, frame: Any) -> None:
        gate.note("terminated")
        os._exit(3)

    signal.signal(signal.SIGTERM, leave)
    gate.enter()


def test_terminate_sends_sigterm_and_then_kills(gate: Gate) -> None:
    pool = dpool.Pool(1)
    pool.apply_async(note_and_leave, (gate,))
    pid = gate.entered()
    pool.terminate()
    assert gate.pids("terminated") == [pid]
    pool = dpool.Pool(1)
    pool.apply_async(ignore_and_enter, (gate,))
    wait_until(lambda: len(gate.pids("task")) == 2, LONG_S)
    pid = gate.entered()
    pool.terminate()
    assert not is_running(pid)


def test_an_exception_in_the_block_is_not_hidden(gate: Gate) -> None:
    def block() -> None:
        with dpool.Pool(1) as pool:
            pool.apply_async(gate.enter)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


def test_waiting_for_a_result_while_another_thread_terminates(gate: Gate) -> None:
    pool = dpool.Pool(1)
    result = pool.apply_async(gate.enter)
    gate.entered()
    thread = threading.Thread(target=pool.terminate)
    thread.start()
    with pytest.raises(dpool.errors.ExecutorBroken):
        result.get(LONG_S)
    thread.join(LONG_S)


def test_a_pool_is_not_picklable(pool: dpool.Pool) -> None:
    text = "pool objects cannot be passed between processes or pickled"
    with pytest.raises(NotImplementedError, match=text):
        pickle.dumps(pool)
    with pytest.raises(NotImplementedError, match=text):
        pool.apply(print, (pool,))


def test_a_pool_that_nobody_closed_warns_and_goes() -> None:
    pools = [dpool.Pool(1)]
    pids = [worker.pid for worker in pools[0]._pool]
    gone = weakref.ref(pools[0])
    with pytest.warns(ResourceWarning, match=r"unclosed running multiprocessing pool <dpool.pool.Pool state=RUN"):
        pools.clear()
    assert gone() is None
    wait_until(lambda: not any(map(is_running, pids)), LONG_S)


@pytest.mark.parametrize("count", [0, -1])
def test_arguments_that_cannot_be(count: int) -> None:
    with pytest.raises(ValueError, match="Number of processes must be at least 1"):
        dpool.Pool(count)
    for tasks in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="maxtasksperchild must be a positive int or None"):
            dpool.Pool(1, maxtasksperchild=tasks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initializer must be a callable"):
        dpool.Pool(1, initializer=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_retries"):
        dpool.Pool(1, max_retries=-1)
    with pytest.raises(ValueError, match="address"):
        dpool.Pool(1, address="elsewhere:1")


def test_the_default_number_of_workers() -> None:
    with dpool.Pool() as pool:
        assert pool._processes == getattr(os, "process_cpu_count", os.cpu_count)()


def test_the_context_is_accepted() -> None:
    with dpool.Pool(1, context=multiprocessing.get_context("spawn")) as pool:
        assert pool.apply(square, (3,)) == 9


SCRIPTS = {
    "left open": "pool = dpool.Pool(2); print(pool.apply(abs, (-1,)))",
    "left open in a cycle": "class A: pass\na = A(); a.a = a; a.pool = dpool.Pool(2); print(a.pool.apply(abs, (-1,)))",
    "with a task that never ends": (
        "pool = dpool.Pool(1); print(pool.apply(abs, (-1,))); pool.apply_async(time.sleep, (1000,))"
    ),
    "with an endless iterable": "pool = dpool.Pool(1); it = pool.imap(abs, itertools.count(1)); print(next(it))",
    "closed and not joined": "pool = dpool.Pool(1); print(pool.apply(abs, (-1,))); pool.close()",
}


@pytest.mark.parametrize("how", SCRIPTS)
def test_the_program_ends_and_nothing_is_left(how: str) -> None:
    done = run_script("import dpool, itertools, time\n" + SCRIPTS[how]).check()
    assert done.stdout == "1\n"
    assert done.stderr == ""


def test_a_forked_child_makes_a_pool_of_its_own(pool: dpool.Pool) -> None:
    assert pool.map(square, range(3)) == [0, 1, 4]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with dpool.Pool(1) as own:
                code = 0 if own.map(square, range(3)) == [0, 1, 4] else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.map(square, range(3)) == [0, 1, 4]


SIGNALLED = """
import itertools, os, signal, sys, threading, time
import dpool

def wait(path):
    while not os.path.exists(path):
        time.sleep(0.01)

def stop(number, frame):
    pool.terminate()
    print("terminated")

directory = sys.argv[1]

def started(_):
    open(os.path.join(directory, "started"), "w").close()
    time.sleep(1000)

def send():
    wait(os.path.join(directory, "started"))
    os.kill(os.getpid(), NUMBER)

signal.signal(signal.SIGUSR1, stop)
threading.Thread(target=send).start()
with dpool.Pool(2) as pool:
    try:
        CALL
    except BaseException as error:
        print(type(error).__name__)
print("end")
"""
CALLS = {
    "apply": "pool.apply(started, (1,))",
    "map": "pool.map(started, range(10), 1)",
    "get": "pool.map_async(started, range(10)).get()",
    "imap": "next(pool.imap(started, itertools.count()))",
    "imap_unordered": "next(pool.imap_unordered(started, range(10)))",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_signal_handler_may_terminate(tmp_path: Path, call: str) -> None:
    script = SIGNALLED.replace("NUMBER", "signal.SIGUSR1").replace("CALL", CALLS[call])
    done = run_script(script, str(tmp_path)).check()
    assert done.stdout.split() == ["terminated", "ExecutorBroken", "end"]


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_the_wait_and_the_pool(tmp_path: Path, call: str) -> None:
    script = SIGNALLED.replace("NUMBER", "signal.SIGINT").replace("CALL", CALLS[call])
    done = run_script(script, str(tmp_path)).check()
    assert done.stdout.split() == ["KeyboardInterrupt", "end"]


def test_the_pool_outlives_its_node(pool: dpool.Pool, gate: Gate) -> None:
    from dpool._core import driver

    running = [pool.apply_async(gate.enter, (name,)) for name in "ab"]
    gate.entered("a")
    gate.entered("b")
    queued = pool.map_async(square, range(100), 1)
    welcome = driver.runtime().welcome
    assert welcome is not None
    os.kill(welcome.pid, signal.SIGKILL)
    for result in running:
        with pytest.raises(dpool.errors.NodeLost):
            result.get(LONG_S)
    assert queued.get(LONG_S) == [i * i for i in range(100)]
    assert list(pool.imap(square, range(50))) == [i * i for i in range(50)]
    assert len(pool._pool) == 2
