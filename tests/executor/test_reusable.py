"""`dpool.get_reusable_executor`: loky's semantics."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import pytest

import dpool
from dpool import get_reusable_executor
from tests.executor.support import LONG_S, Gate, kill_self, noop, same, square
from tests.helpers import is_running, run_script, wait_until


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    yield
    get_reusable_executor(1, reuse=True).shutdown()


def pids_of(ex: dpool.Executor, gate: Gate, count: int, tag: str = "") -> set[int]:
    futures = [ex.submit(gate.enter, f"{tag}{i}") for i in range(count)]
    pids = {gate.entered(f"{tag}{i}") for i in range(count)}
    gate.open(*(f"{tag}{i}" for i in range(count)))
    for future in futures:
        future.result(LONG_S)
    return pids


def test_it_is_the_same_one() -> None:
    ex = get_reusable_executor(2)
    assert get_reusable_executor(2) is ex
    assert get_reusable_executor(max_workers=2, timeout=10) is ex
    pid = ex.submit(os.getpid).result(LONG_S)
    assert pid in get_reusable_executor(2)._processes


def test_a_default_number_of_workers() -> None:
    from loky import cpu_count

    ex = get_reusable_executor()
    assert ex._max_workers == cpu_count()
    assert get_reusable_executor() is ex
    other = get_reusable_executor(3)
    assert get_reusable_executor(reuse=True) is other
    assert other._max_workers == 3


@pytest.mark.parametrize("wrong", [0, -2])
def test_numbers_that_cannot_be(wrong: int) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        get_reusable_executor(wrong)


def test_it_grows_and_shrinks(gate: Gate) -> None:
    ex = get_reusable_executor(1)
    first = pids_of(ex, gate, 1, "a")
    assert get_reusable_executor(3) is ex
    three = pids_of(ex, gate, 3, "b")
    assert first < three
    assert len(three) == 3
    assert get_reusable_executor(2) is ex
    wait_until(lambda: sum(map(is_running, three)) == 2, LONG_S, "a surplus worker leaves")
    assert [ex.submit(square, i).result(LONG_S) for i in range(10)] == [i * i for i in range(10)]
    assert get_reusable_executor(1) is ex
    wait_until(lambda: sum(map(is_running, three)) == 1, LONG_S, "another one leaves")
    assert pids_of(ex, gate, 1, "c") < three


def test_it_shrinks_when_the_surplus_is_busy(gate: Gate) -> None:
    ex = get_reusable_executor(2)
    futures = [ex.submit(gate.enter, str(i), i) for i in range(2)]
    pids = [gate.entered(str(i)) for i in range(2)]
    assert get_reusable_executor(1) is ex
    assert all(map(is_running, pids))
    gate.open("0", "1")
    assert [future.result(LONG_S) for future in futures] == [0, 1]
    wait_until(lambda: sum(map(is_running, pids)) == 1, LONG_S)
    assert [ex.submit(square, i).result(LONG_S) for i in range(10)] == [i * i for i in range(10)]


def test_other_arguments_make_another_one(gate: Gate) -> None:
    ex = get_reusable_executor(1, timeout=100)
    future = ex.submit(gate.enter, value=3)
    threading.Timer(0.05, gate.open).start()
    other = get_reusable_executor(1, timeout=200)
    assert other is not ex
    assert future.result(0) == 3  # it was waited for
    with pytest.raises(RuntimeError):
        ex.submit(noop)
    initialized = get_reusable_executor(1, timeout=200, initializer=same, initargs=(1,))
    assert initialized is not other
    assert get_reusable_executor(1, timeout=200, initializer=same, initargs=(1,)) is initialized
    assert get_reusable_executor(1, timeout=200, initializer=same, initargs=(2,)) is not initialized


def test_reuse_true_ignores_other_arguments_and_false_makes_a_new_one() -> None:
    ex = get_reusable_executor(1, timeout=100)
    assert get_reusable_executor(1, timeout=200, reuse=True) is ex
    other = get_reusable_executor(1, timeout=100, reuse=False)
    assert other is not ex
    assert other.submit(square, 3).result(LONG_S) == 9


def test_kill_workers_does_not_wait(gate: Gate) -> None:
    ex = get_reusable_executor(1, timeout=100)
    future = ex.submit(gate.enter)
    pid = gate.entered()
    other = get_reusable_executor(1, timeout=200, kill_workers=True)
    assert other is not ex
    assert isinstance(future.exception(LONG_S), BrokenProcessPool)
    assert not is_running(pid)


def test_a_closed_or_broken_one_is_replaced() -> None:
    ex = get_reusable_executor(1)
    ex.shutdown()
    other = get_reusable_executor(1)
    assert other is not ex
    broken = get_reusable_executor(1, initializer=kill_self)
    assert isinstance(broken.submit(noop).exception(LONG_S), BrokenProcessPool)
    again = get_reusable_executor(1, initializer=kill_self, reuse=True)
    assert again is not broken
    assert isinstance(again.submit(noop).exception(LONG_S), BrokenProcessPool)
    assert get_reusable_executor(1).submit(square, 3).result(LONG_S) == 9


def test_a_crash_leaves_it_usable() -> None:
    ex = get_reusable_executor(1)
    assert isinstance(ex.submit(kill_self).exception(LONG_S), BrokenProcessPool)
    assert get_reusable_executor(1) is ex
    assert ex.submit(square, 3).result(LONG_S) == 9


def test_env_is_set_in_the_workers() -> None:
    ex = get_reusable_executor(1, env={"OF_THE_POOL": "x"})
    assert ex.submit(os.getenv, "OF_THE_POOL").result(LONG_S) == "x"
    assert get_reusable_executor(1, env={"OF_THE_POOL": "x"}) is ex
    other = get_reusable_executor(1, env={"OF_THE_POOL": "y"})
    assert other is not ex
    assert other.submit(os.getenv, "OF_THE_POOL").result(LONG_S) == "y"


def test_idle_workers_leave_and_come_back(gate: Gate) -> None:
    ex = get_reusable_executor(2, timeout=0.2)
    pids = pids_of(ex, gate, 2)
    wait_until(lambda: not any(map(is_running, pids)), LONG_S, "idle workers leave")
    assert ex.submit(square, 4).result(LONG_S) == 16
    assert get_reusable_executor(2, timeout=0.2) is ex


def test_idle_timeout_of_an_executor(gate: Gate) -> None:
    with dpool.Executor(2, idle_timeout=0.2) as ex:
        future = ex.submit(gate.enter, "busy")
        busy = gate.entered("busy")
        idle = ex.submit(os.getpid).result(LONG_S)
        wait_until(lambda: not is_running(idle), LONG_S)
        assert is_running(busy)
        gate.open("busy")
        future.result(LONG_S)
        wait_until(lambda: not is_running(busy), LONG_S)
        assert [future.result(LONG_S) for future in [ex.submit(square, i) for i in range(100)]] == [
            i * i for i in range(100)
        ]
    with dpool.Executor(1) as ex:
        view = ex.options(timeout=LONG_S)
        assert view.submit(square, 2).result(LONG_S) == 4


def test_many_threads_ask_for_it() -> None:
    found: list[object] = []

    def client(x: int) -> None:
        ex = get_reusable_executor(2)
        assert ex.submit(square, x).result(LONG_S) == x * x
        found.append(ex)

    threads = [threading.Thread(target=client, args=(x,)) for x in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_the_interpreter_exits_with_it_open() -> None:
    script = "import dpool\nex = dpool.get_reusable_executor(2)\nprint(ex.submit(abs, -2).result())\n"
    result = run_script(script).check()
    assert (result.stdout, result.stderr) == ("2\n", "")


def use_it(x: int) -> int:
    return get_reusable_executor(1).submit(square, x).result(LONG_S)


def test_inside_a_task(one: dpool.Executor) -> None:
    assert [one.submit(use_it, x).result(LONG_S) for x in range(3)] == [0, 1, 4]
    assert get_reusable_executor(1).submit(use_it, 4).result(LONG_S) == 16
