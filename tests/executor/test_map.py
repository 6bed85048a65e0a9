"""`map`: order, windows, time-outs, errors, dropped iterators, progress."""

from __future__ import annotations

import concurrent.futures
import fcntl
import gc
import itertools
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, same, square
from tests.helpers import MARK, run_script, script_environment, wait_until


def add(a: int, b: int, c: int = 0) -> int:
    return a + b + c


def reciprocal(x: int) -> float:
    return 1 / x


def test_results_in_order(ex: dpool.Executor) -> None:
    assert list(ex.map(square, range(200))) == [i * i for i in range(200)]
    assert list(ex.map(square, ())) == []
    assert list(ex.map(add, range(5), itertools.count(10), [1, 1, 1])) == [11, 13, 15]  # as long as the shortest
    assert list(ex.map(square, (i for i in range(10)))) == [i * i for i in range(10)]
    assert list(ex.options(name="a view").map(square, range(5))) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("chunksize", [1, 2, 7, 100])
@pytest.mark.parametrize("buffersize", [None, 1, 3])
def test_chunks_and_windows_change_no_result(ex: dpool.Executor, chunksize: int, buffersize: int | None) -> None:
    results = ex.map(add, range(50), range(50), chunksize=chunksize, buffersize=buffersize)
    assert list(results) == [2 * i for i in range(50)]


def test_sizes_that_cannot_be(ex: dpool.Executor) -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match="chunksize"):
            ex.map(square, [1], chunksize=size)
        with pytest.raises(ValueError, match="buffersize"):
            ex.map(square, [1], buffersize=size)
    with pytest.raises(TypeError, match="buffersize"):
        ex.map(square, [1], buffersize="1")  # type: ignore[arg-type]


class Counter:
    """Counts how many of its items were taken."""

    def __init__(self, stop: int | None = None) -> None:
        self.taken = 0
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        while self.stop is None or self.taken < self.stop:
            self.taken += 1
            yield self.taken - 1


def test_iterables_are_consumed_at_once(one: dpool.Executor, gate: Gate) -> None:
    held = one.submit(gate.enter)
    items = Counter(30)
    results = one.map(square, items)
    assert items.taken == 30
    assert not held.done()
    gate.open()
    assert list(results) == [i * i for i in range(30)]


def test_a_window_takes_no_more_than_it_holds(ex: dpool.Executor) -> None:
    items = Counter()
    results = ex.map(square, items, buffersize=4)
    assert items.taken == 4
    for i in range(10):
        assert next(results) == i * i
        assert items.taken == i + 5
    results.close()  # type: ignore[attr-defined]


def test_a_window_counts_chunks(ex: dpool.Executor) -> None:
    items = Counter()
    results = ex.map(square, items, chunksize=5, buffersize=2)
    assert items.taken == 10
    assert next(results) == 0
    assert items.taken == 15
    assert list(itertools.islice(results, 4)) == [1, 4, 9, 16]
    assert items.taken == 15
    results.close()  # type: ignore[attr-defined]


def test_several_iterables_with_a_window(ex: dpool.Executor) -> None:
    longer = Counter()
    assert list(ex.map(add, longer, [10, 20, 30], buffersize=2)) == [10, 21, 32]
    assert longer.taken == 4  # zip looks at the first one before it knows that the second has ended


def test_a_timeout_counts_from_the_call(one: dpool.Executor, gate: Gate) -> None:
    one.submit(square, 1).result(LONG_S)  # its worker is there
    gate.open("a")
    results = one.map(gate.enter, ["a", "b"], ["x", "y"], timeout=3)
    assert next(results) == "x"
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    gate.open("b")
    assert one.submit(square, 3).result(LONG_S) == 9


def test_a_timeout_that_is_over_still_yields_what_is_there(ex: dpool.Executor) -> None:
    results = ex.map(square, range(3), timeout=LONG_S)
    assert list(results) == [0, 1, 4]


def test_a_timeout_cancels_the_rest(one: dpool.Executor, gate: Gate) -> None:
    results = one.map(gate.enter, ["a", "b", "c"], timeout=0.1)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(results)
    gate.open("a", "b", "c")
    assert one.submit(square, 3).result(LONG_S) == 9
    assert not gate.pids("c")


def test_an_error_cancels_the_rest(one: dpool.Executor, gate: Gate) -> None:
    def task(x: int) -> int:
        gate.note(f"task {x}")
        if x == 1:
            raise ValueError(f"item {x}")
        if x > 1:
            gate.enter(str(x))
        return x

    results = one.map(task, range(6))
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1") as info:
        next(results)
    assert "in task" in str(info.value.__cause__)
    with pytest.raises(StopIteration):
        next(results)
    gate.open("2")  # it may have begun before the error was seen; nothing after it has
    assert one.submit(square, 3).result(LONG_S) == 9
    assert not any(gate.pids(f"task {x}") for x in (3, 4, 5))


@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_dropped_iterator_cancels_the_rest(one: dpool.Executor, gate: Gate, how: str, begun: bool) -> None:
    held = one.submit(gate.enter)
    gate.entered()
    results: Any = one.map(gate.note, map(str, range(20)))
    if begun:
        gate.open()
        next(results)
    if how == "close":
        results.close()
    del results
    gc.collect()
    before = sum(bool(gate.pids(str(i))) for i in range(20))
    gate.open()
    held.result(LONG_S)
    assert one.submit(square, 3).result(LONG_S) == 9
    if not begun:
        assert before == sum(bool(gate.pids(str(i))) for i in range(20)) == 0


def test_an_error_inside_a_chunk(ex: dpool.Executor) -> None:
    results = ex.map(reciprocal, [1, 2, 0, 4, 5], chunksize=2)
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError) as info:
        next(results)
    assert "in reciprocal" in str(info.value.__cause__)


def test_an_iterable_that_raises(one: dpool.Executor, gate: Gate) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("no third item")

    held = one.submit(gate.enter)
    with pytest.raises(LookupError, match="no third"):
        one.map(square, items())
    gate.open()
    held.result(LONG_S)
    results = one.map(square, items(), buffersize=1)
    assert next(results) == 1
    with pytest.raises(LookupError, match="no third"):
        list(results)


def test_a_map_of_a_closed_executor_raises() -> None:
    ex = dpool.Executor(1)
    ex.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        ex.map(square, [1])
    assert list(ex.map(square, [])) == []


def test_an_item_that_does_not_pickle(ex: dpool.Executor) -> None:
    results = ex.map(same, [1, threading.Lock(), 3])
    assert next(results) == 1
    with pytest.raises(TypeError, match="lock"):
        next(results)


class Thing:
    """Can be referred to weakly."""


def make_thing(number: int) -> Thing:
    return Thing()


@pytest.mark.parametrize("chunksize", [1, 4])
def test_yielded_results_are_not_kept(ex: dpool.Executor, chunksize: int) -> None:
    results = ex.map(make_thing, range(10), chunksize=chunksize)
    for thing in results:
        seen = weakref.ref(thing)
        del thing
        wait_until(lambda: gc.collect() >= 0 and seen() is None, LONG_S, "it is gone")  # noqa: B023


def test_a_million_items_are_not_taken_at_once_by_a_window(ex: dpool.Executor) -> None:
    results = ex.map(square, itertools.count(), chunksize=100, buffersize=8)
    assert sum(itertools.islice(results, 20_000)) == sum(i * i for i in range(20_000))
    results.close()  # type: ignore[attr-defined]


# --- Progress ---

PROGRESS = """
import dpool, os
def task(x): return x + 1
if __name__ == "__main__":
    if os.environ.get("NO_TQDM"):
        import sys
        sys.modules["tqdm"] = sys.modules["tqdm.auto"] = None
    with dpool.Executor(2) as ex:
        assert list(ex.map(task, range(40), progress=True, chunksize=2)) == list(range(1, 41))
        assert list(ex.options(name="x").map(task, iter(range(40)), progress=True)) == list(range(1, 41))
    print("done")
"""


def test_no_bar_where_nobody_looks() -> None:
    result = run_script(PROGRESS).check()
    assert result.stdout == "done\n"
    assert result.stderr == ""


@pytest.mark.parametrize("tqdm", [False, pytest.param(True, marks=pytest.mark.needs("module:tqdm"))])
def test_a_bar_on_a_terminal(tqdm: bool) -> None:
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    environment = script_environment(os.environ[MARK], {"NO_TQDM": "" if tqdm else "1", "TERM": "xterm"})
    with subprocess.Popen(
        [sys.executable, "-c", PROGRESS], stderr=terminal, stdout=subprocess.PIPE, text=True, env=environment
    ) as script:
        os.close(terminal)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # the script has closed its end
            pass
        os.close(ours)
        assert script.stdout is not None
        assert script.stdout.read() == "done\n"
        assert script.wait(LONG_S) == 0
    assert b"40/40" in shown
    assert b"100%" in shown


def test_an_error_ends_the_bar_too(ex: dpool.Executor) -> None:
    with pytest.raises(ZeroDivisionError):
        list(ex.map(reciprocal, [1, 0, 2], progress=True))


# --- A `submit` that is not ours ---


class Counting(dpool.Executor):
    """Notes what is submitted, and what has ended."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.submitted = 0
        self.ended: list[int] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.submitted += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: self.ended.append(1))
        return future


@pytest.mark.parametrize(("chunksize", "tasks"), [(1, 30), (7, 5)])
def test_map_goes_through_the_submit_of_a_subclass(chunksize: int, tasks: int) -> None:
    with Counting(2) as ex:
        assert list(ex.map(square, range(30), chunksize=chunksize)) == [n * n for n in range(30)]
        assert ex.submitted == tasks
        assert len(ex.ended) == tasks, "the callbacks have run when the results are there"
        assert list(ex.map(add, range(30), range(30, 60), chunksize=chunksize)) == list(range(30, 90, 2))
        assert list(ex.map(add, [1, ex.submit(add, 1, 1)], [ex.submit(add, 2, 2), 3], chunksize=chunksize)) == [5, 5]


def test_map_goes_through_a_submit_that_was_put_in_place(ex: dpool.Executor) -> None:
    original = ex.submit
    calls: list[Any] = []

    def submit(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    ex.submit = submit  # type: ignore[method-assign]
    assert list(ex.map(square, [3], buffersize=1)) == [9]
    assert calls == [(square, 3)]
    with pytest.raises(ZeroDivisionError):
        list(ex.map(reciprocal, [1, 0, 2]))


def test_a_submit_in_place_keeps_the_time_out(ex: Any, gate: Gate) -> None:
    ex.submit = dpool.Executor.submit.__get__(ex)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(ex.map(gate.enter, ["task"], timeout=0.01))
    gate.open()


def test_map_in_a_callback_of_a_submit_in_place(ex: Any) -> None:
    ex.submit = dpool.Executor.submit.__get__(ex)
    found: list[Any] = []
    ex.submit(square, 2).add_done_callback(lambda _: found.append(list(ex.map(square, [5]))))
    wait_until(lambda: found == [[25]], LONG_S)
