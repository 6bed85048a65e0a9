"""Tasks that use executors themselves, to any depth, with one worker, without deadlock."""

from __future__ import annotations

import concurrent.futures
import os

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, fail, kill_self, square
from tests.helpers import is_running, run_script, wait_until


def down(depth: int, workers: int = 1) -> list[int]:
    """The pids from here to the deepest worker."""
    if depth == 0:
        return [os.getpid()]
    with dpool.Executor(workers) as inner:
        return [os.getpid(), *inner.submit(down, depth - 1, workers).result(LONG_S)]


@pytest.mark.parametrize("workers", [1, 2])
def test_to_any_depth(workers: int) -> None:
    with dpool.Executor(workers) as ex:
        pids = ex.submit(down, 6, workers).result(LONG_S)
    assert len(set(pids)) == 7
    wait_until(lambda: not any(map(is_running, pids)), LONG_S)


def sum_of_squares(n: int) -> int:
    with dpool.Executor(1) as inner:
        return sum(inner.map(square, range(n)))


def test_many_tasks_each_with_an_executor(ex: dpool.Executor) -> None:
    assert [future.result(LONG_S) for future in [ex.submit(sum_of_squares, n) for n in range(8)]] == [
        sum(i * i for i in range(n)) for n in range(8)
    ]


def fib(n: int) -> int:
    if n < 2:
        return n
    with dpool.Executor(2) as inner:
        return sum(inner.map(fib, (n - 1, n - 2)))


def test_a_recursion_of_executors(one: dpool.Executor) -> None:
    assert one.submit(fib, 4).result(LONG_S) == 3


def every_way() -> list[object]:
    with dpool.Executor(1) as inner:
        futures = [inner.submit(square, i) for i in range(4)]
        done, rest = concurrent.futures.wait(futures, LONG_S)
        order = sorted(future.result() for future in concurrent.futures.as_completed(futures, LONG_S))
        mapped = list(inner.map(square, range(3), buffersize=1))
        chained = inner.submit(square, inner.submit(square, 2)).result(LONG_S)
    return [len(done), len(rest), order, mapped, chained]


def test_every_way_to_wait_works_inside_a_task(one: dpool.Executor) -> None:
    assert one.submit(every_way).result(LONG_S) == [4, 0, [0, 1, 4, 9], [0, 1, 4], 16]


_KEPT: list[dpool.Executor] = []


def with_kept(x: int) -> tuple[int, int]:
    """An executor that stays open between the tasks of a worker, and is never closed."""
    if not _KEPT:
        _KEPT.append(dpool.Executor(1))
    return _KEPT[0].submit(square, x).result(LONG_S), _KEPT[0].submit(os.getpid).result(LONG_S)


def test_an_executor_that_a_worker_keeps(one: dpool.Executor) -> None:
    found = [one.submit(with_kept, x).result(LONG_S) for x in range(3)]
    assert [value for value, _ in found] == [0, 1, 4]
    pid = found[0][1]
    assert {p for _, p in found} == {pid}
    assert is_running(pid)
    one.shutdown()
    assert not is_running(pid)


def test_errors_come_from_any_depth(one: dpool.Executor) -> None:
    error = one.submit(fail_below, 2).exception(LONG_S)
    assert isinstance(error, KeyError)
    assert error.args == ("deep",)
    assert str(error.__cause__).count("in fail_below") >= 1


def fail_below(depth: int) -> None:
    if depth == 0:
        fail(KeyError("deep"))
    with dpool.Executor(1) as inner:
        inner.submit(fail_below, depth - 1).result(LONG_S)


def crash_below() -> str:
    with dpool.Executor(1) as inner:
        error = inner.submit(kill_self).exception(LONG_S)
        return f"{type(error).__name__} {inner.submit(square, 3).result(LONG_S)}"


def test_a_crash_below_is_told_to_the_task(one: dpool.Executor) -> None:
    assert one.submit(crash_below).result(LONG_S) == "WorkerCrashed 9"


def hold_below(gate: Gate) -> None:
    with dpool.Executor(1) as inner:
        gate.note("outer")
        inner.submit(gate.enter, "inner").result(LONG_S)


def test_workers_of_a_worker_that_dies_die_with_it(one: dpool.Executor, gate: Gate) -> None:
    future = one.submit(hold_below, gate)
    pid = gate.entered("inner")
    assert future.cancel(force=True)
    wait_until(lambda: not is_running(pid), LONG_S)
    assert one.submit(square, 3).result(LONG_S) == 9


def test_workers_are_numbered_and_output_arrives_from_any_depth() -> None:
    script = """
import dpool, multiprocessing
def outer():
    with dpool.Executor(1) as inner:
        inner.submit(say, "inner").result()
    say("outer")
    return multiprocessing.parent_process().pid
def say(text): print(text, multiprocessing.current_process().name, flush=True)
if __name__ == "__main__":
    with dpool.Executor(1) as ex:
        ex.submit(outer).result()
"""
    result = run_script(script).check()
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["inner", "outer"]


def test_classes_and_globals_of_main_pass_through_every_depth() -> None:
    script = """
import dpool
class Thing:
    def __init__(self, x): self.x = x
factor = 3
def outer(n):
    with dpool.Executor(1) as inner:
        return [inner.submit(make, n).result(), inner.submit(lambda: factor * n).result()]
def make(n): return Thing(n * factor)
if __name__ == "__main__":
    with dpool.Executor(1) as ex:
        for factor in (3, 4):
            thing, number = ex.submit(outer, 2).result()
            assert type(thing) is Thing and thing.x == 2 * factor == number
    print("done")
"""
    assert run_script(script).check().stdout == "done\n"


def threads_inside() -> list[int]:
    with concurrent.futures.ThreadPoolExecutor(4) as threads, dpool.Executor(2) as inner:
        return list(threads.map(lambda x: inner.submit(square, x).result(LONG_S), range(20)))


def test_threads_of_a_task_share_an_executor(one: dpool.Executor) -> None:
    assert one.submit(threads_inside).result(LONG_S) == [x * x for x in range(20)]
