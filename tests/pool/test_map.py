"""`map`, `starmap` and their asynchronous forms: chunks, order, errors, callbacks, large arguments."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, noop, same, square
from tests.helpers import wait_until


def add(a: int, b: int = 100) -> int:
    return a + b


def size(value: Any) -> str:
    """What a worker got: a number as it is, the length of text, what a list has in it."""
    if isinstance(value, list):
        return f"list of {type(value[0]).__name__}"
    return str(value if isinstance(value, int) else len(value))


def sizes(*values: Any) -> tuple[str, ...]:
    return tuple(map(size, values))


def test_the_number_of_chunks_left(pool: dpool.Pool, gate: Gate) -> None:
    result = pool.map_async(gate.enter, ["a", "b"], chunksize=1)
    gate.entered("a")
    gate.entered("b")
    assert result._number_left == 2
    gate.open("a")
    wait_until(lambda: result._number_left == 1, LONG_S)
    gate.open("b")
    wait_until(lambda: result._number_left == 0, LONG_S)
    assert result.ready()


def reciprocal(x: float) -> float:
    return 1 / x


@pytest.mark.parametrize("chunksize", [None, 1, 2, 7, 1000])
@pytest.mark.parametrize("make", [list, tuple, range, set, dict.fromkeys, iter], ids=lambda make: make.__name__)
def test_results_in_order(pool: dpool.Pool, make: Any, chunksize: int | None) -> None:
    for count in (0, 1, 2, 50):
        items = range(count) if make is range else make(range(count))
        assert pool.map(square, items, chunksize) == [i * i for i in range(count)]


def test_odd_ranges_strings_and_bytes(pool: dpool.Pool) -> None:
    assert pool.map(same, range(20, 0, -3), 2) == list(range(20, 0, -3))
    assert pool.map(ord, "hello", 2) == list(b"hello")
    assert pool.map(chr, b"hello", 3) == list("hello")


def test_lambdas_and_closures(pool: dpool.Pool) -> None:
    def times(factor: int) -> list[int]:
        return pool.map(lambda x: factor * x, range(20))

    for factor in (2, 3):
        assert times(factor) == [factor * i for i in range(20)]


def test_starmap(pool: dpool.Pool) -> None:
    pairs = [(i, -i + 1) for i in range(30)]
    assert pool.starmap(add, pairs) == [1] * 30
    assert pool.starmap(add, ([i] for i in range(5)), chunksize=1) == [100, 101, 102, 103, 104]
    assert pool.starmap(add, zip(range(9), range(9), strict=True), chunksize=4) == [2 * i for i in range(9)]
    assert pool.starmap_async(add, iter(pairs), 7).get(LONG_S) == [1] * 30
    assert pool.starmap(noop, [()] * 3) == [None] * 3
    with pytest.raises(TypeError):
        pool.starmap(add, [1, 2])  # type: ignore[list-item]


class Sized:
    """Says how many items it has, whether that is true or not."""

    def __init__(self, items: Iterator[Any], count: int) -> None:
        self.items = items
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return self.items

    def __len__(self) -> int:
        return self.count


def named_chunk(x: int) -> int:
    """The number of the task in its worker that runs this item."""
    worker = dpool.current_worker()
    assert worker is not None
    return worker.id


def test_the_default_chunk_is_a_fourth_of_a_workers_share() -> None:
    with dpool.Pool(2, maxtasksperchild=1) as pool:  # so each chunk has a worker of its own
        ids = pool.map(named_chunk, range(17))
        assert [len(list(group)) for _, group in itertools.groupby(ids)] == [3, 3, 3, 3, 3, 2]
        ids = pool.map(named_chunk, range(10), chunksize=5)
        assert [len(list(group)) for _, group in itertools.groupby(ids)] == [5, 5]


@pytest.mark.parametrize("size", [0, -1])
def test_chunk_sizes_that_cannot_be(pool: dpool.Pool, size: int) -> None:
    items: list[Any] = [1, 2]
    for method in (pool.map, pool.map_async, pool.starmap, pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match=f"Chunksize must be 1\\+, not {size}"):
            method(square, items, chunksize=size)


def failing_at(*where: int) -> Any:
    def check(x: int) -> int:
        if x in where:
            raise LookupError(x)
        return x

    return check


def test_the_exception_of_a_call(pool: dpool.Pool) -> None:
    for chunksize in (1, 3, 100):
        with pytest.raises(LookupError) as caught:
            pool.map(failing_at(7), range(10), chunksize)
        assert caught.value.args == (7,)
    assert pool.map(square, range(3)) == [0, 1, 4]


def wait_and_fail(gate: Gate, name: str) -> None:
    gate.enter(name)
    raise LookupError(name)


def test_the_first_exception_is_kept_but_all_chunks_are_waited_for(pool: dpool.Pool, gate: Gate) -> None:
    result = pool.starmap_async(wait_and_fail, [(gate, "a"), (gate, "b")], chunksize=1)
    gate.entered("a")
    gate.open("b")
    wait_until(lambda: result._futures[1].done(), LONG_S)
    assert not result.ready()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    gate.open("a")
    with pytest.raises(LookupError, match="b"):  # not the one of the first item: the one that came first
        result.get(LONG_S)
    assert not result.successful()


def broken(count: int) -> Iterator[int]:
    yield from range(count)
    raise EOFError("the iterable")


def test_errors_of_the_iterable(pool: dpool.Pool) -> None:
    with pytest.raises(EOFError):
        pool.map_async(square, broken(3))  # without a length it is read at once, here
    result = pool.map_async(square, Sized(broken(3), 5), chunksize=1)
    with pytest.raises(EOFError, match="the iterable") as caught:
        result.get(LONG_S)
    assert caught.value.__cause__ is None
    with pytest.raises(TypeError):
        pool.map(square, 5)  # type: ignore[arg-type]


def test_items_that_do_not_pickle(pool: dpool.Pool) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pool.map(same, [1, threading.Lock(), 2], chunksize=2)
    with pytest.raises(TypeError, match="pickle"):
        pool.map(same, [threading.Lock()] * 3, chunksize=1)


@pytest.mark.parametrize("chunksize", [1, 4])
def test_callbacks(pool: dpool.Pool, chunksize: int) -> None:
    good: list[Any] = []
    bad: list[Any] = []
    result = pool.map_async(square, range(10), chunksize, callback=good.append, error_callback=bad.append)
    assert result.get(LONG_S) == [i * i for i in range(10)]
    assert good == [result.get()]
    result = pool.map_async(reciprocal, range(10), chunksize, callback=good.append, error_callback=bad.append)
    with pytest.raises(ZeroDivisionError):
        result.get(LONG_S)
    assert len(good) == len(bad) == 1
    assert isinstance(bad[0], ZeroDivisionError)


def test_nothing_to_do_is_done_at_once_and_calls_nobody(pool: dpool.Pool) -> None:
    called: list[Any] = []
    result = pool.map_async(square, [], callback=called.append, error_callback=called.append)
    assert result.ready()
    assert result.successful()
    assert result.get() == []
    assert not called  # as in the standard library


def test_arrays_travel_in_slices(pool: dpool.Pool) -> None:
    numpy = pytest.importorskip("numpy")
    numbers = numpy.arange(1000, dtype="f4")
    found = pool.map(same, numbers)
    assert [type(value) for value in found[:3]] == [numpy.float32] * 3
    assert found == list(numbers)
    rows = numpy.arange(60.0).reshape(20, 3)
    assert [list(row) for row in pool.map(same, rows, 7)] == rows.tolist()
    assert pool.map(len, rows, 1) == [3] * 20
    assert [list(row) for row in pool.imap(same, rows, 6)] == rows.tolist()
    with pytest.raises(TypeError):
        pool.map(same, numpy.array(5))


def size_of(data: Any) -> tuple[int, int]:
    return len(data), os.getpid()


@pytest.mark.parametrize("callback", [False, True])
def test_large_items_travel_in_small_chunks(pool: dpool.Pool, callback: bool) -> None:
    items = [bytes(4 << 20) for _ in range(20)]
    called: list[Any] = []
    result = pool.map_async(size_of, items, callback=called.append if callback else None)
    found = result.get(LONG_S)
    assert [size for size, _ in found] == [4 << 20] * 20
    assert called == ([found] if callback else [])


def test_only_a_few_large_items_are_under_way(pool: dpool.Pool, gate: Gate) -> None:
    items = [bytes(4 << 20) for _ in range(30)]
    result = pool.map_async(lambda item: (gate.enter("all"), len(item))[1], items, chunksize=1)
    wait_until(lambda: len(gate.pids("all")) == 2, LONG_S)
    wait_until(lambda: len(result._futures) >= 6, LONG_S)
    assert dpool.store_stats().used <= 7 * (4 << 20) + (1 << 20)
    assert not result._complete
    assert not result.ready()
    gate.open("all")
    assert result.get(LONG_S) == [4 << 20] * 30


def test_errors_among_large_items(pool: dpool.Pool) -> None:
    items: list[Any] = [bytes(4 << 20) for _ in range(30)]
    items[11] = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        pool.map(size_of, items, 1)
    result = pool.map_async(size_of, Sized(broken(3), 3))
    with pytest.raises(EOFError):
        result.get(LONG_S)


def test_the_pool_may_be_closed_while_large_items_are_under_way() -> None:
    pool = dpool.Pool(2)
    result = pool.map_async(size_of, [bytes(4 << 20) for _ in range(30)])
    pool.close()
    pool.join()
    assert [size for size, _ in result.get(0)] == [4 << 20] * 30


@pytest.mark.parametrize("chunksize", [1, 2, 50])
def test_futures_arrive_as_their_results(pool: dpool.Pool, gate: Gate, chunksize: int) -> None:
    with dpool.Executor(1) as other, ThreadPoolExecutor(1) as threads:
        late = other.submit(gate.enter, "task", 1)
        soon = threads.submit(square, 2)
        stored = dpool.put(bytes(300_000))
        found = pool.map_async(size, [late, "ab", soon, late, stored, [late]], chunksize)
        pairs = pool.starmap_async(sizes, [(late, soon), [stored, late], iter("xy"), ([late], b"")], chunksize)
        lazily = pool.imap(size, [late, soon, stored], chunksize)
        gate.open()
        assert found.get(LONG_S) == ["1", "2", "4", "1", "300000", "list of Future"]
        assert pairs.get(LONG_S) == [("1", "4"), ("300000", "1"), ("1", "1"), ("list of Future", "0")]
        assert list(lazily) == ["1", "4", "300000"]


@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_future_that_failed_fails_its_chunk(pool: dpool.Pool, chunksize: int) -> None:
    with dpool.Executor(1) as other:
        bad = other.submit(reciprocal, 0)
        with pytest.raises(ZeroDivisionError):
            pool.map(size, [1, bad, 2, 3, 4, 5], chunksize)
        others = pool.imap(size, [1, 2, 3, bad, 5, 6, 7, 8, 9], chunksize)
        assert [next(others) for _ in range(3)] == ["1", "2", "3"]
        with pytest.raises(ZeroDivisionError):
            next(others)


def test_references_arrive_as_their_values(pool: dpool.Pool) -> None:
    references = [dpool.put(bytes(300_000)), dpool.put("small"), dpool.put(bytes(200_000))]
    for chunksize in (1, 2, 3):
        assert pool.map(len, references, chunksize) == [300_000, 5, 200_000]
    assert list(pool.imap(len, references, 2)) == [300_000, 5, 200_000]


def test_one_large_item_many_times_is_stored_once(pool: dpool.Pool) -> None:
    data = bytearray(1 << 20)
    before = dpool.store_stats().objects
    result = pool.map_async(size_of, [data] * 40, chunksize=1)
    assert dpool.store_stats().objects <= before + 1
    assert {size for size, _ in result.get(LONG_S)} == {1 << 20}


def test_large_results(pool: dpool.Pool) -> None:
    assert list(map(len, pool.map(bytes, [300_000] * 6, 2))) == [300_000] * 6
    assert pool.map(same, range(200_000)) == list(range(200_000))


def test_results_and_arguments_are_not_kept(pool: dpool.Pool) -> None:
    import gc
    import weakref

    class Thing:
        pass

    things = [Thing() for _ in range(10)]
    alive = [weakref.ref(thing) for thing in things]
    found = pool.map(lambda thing: None, things)
    assert found == [None] * 10
    del things
    wait_until(lambda: gc.collect() >= 0 and not any(one() for one in alive), LONG_S)


def test_progress_changes_no_result(pool: dpool.Pool, capsys: pytest.CaptureFixture[str]) -> None:
    assert pool.map(square, range(30), progress=True) == [i * i for i in range(30)]
    assert pool.starmap(add, [(1, 2)] * 5, progress=True) == [3] * 5
    assert list(pool.imap(square, range(30), progress=True)) == [i * i for i in range(30)]
    assert sorted(pool.imap_unordered(square, iter(range(9)), progress=True)) == [i * i for i in range(9)]
    with pytest.raises(ZeroDivisionError):
        pool.map(reciprocal, range(30), progress=True)
