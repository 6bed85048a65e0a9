"""`imap` and `imap_unordered`: order, windows, time-outs, errors, iterators that are dropped or joined."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, same, square
from tests.helpers import wait_until
from tests.pool.test_map import broken, failing_at

BOTH = pytest.mark.parametrize("name", ["imap", "imap_unordered"])
CHUNKS = pytest.mark.parametrize("chunksize", [1, 2, 7, 1000])


class Counter:
    """Counts how many of its items were taken; from memory or, being an iterator, by a thread."""

    def __init__(self, stop: int | None = None) -> None:
        self.taken = 0
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        while self.stop is None or self.taken < self.stop:
            self.taken += 1
            yield self.taken - 1


def reached(items: Counter, taken: int) -> bool:
    return items.taken == taken


@CHUNKS
@pytest.mark.parametrize("make", [list, range, iter, Counter], ids=lambda make: make.__name__)
def test_every_result(pool: dpool.Pool, make: Any, chunksize: int) -> None:
    for count in (0, 1, 100):
        items = make(count) if make in (range, Counter) else make(range(count))
        assert list(pool.imap(square, items, chunksize)) == [i * i for i in range(count)]
        items = make(count) if make in (range, Counter) else make(range(count))
        assert sorted(pool.imap_unordered(square, items, chunksize)) == [i * i for i in range(count)]


@BOTH
def test_an_iterator_that_has_ended_stays_so(pool: dpool.Pool, name: str) -> None:
    results = getattr(pool, name)(square, range(3))
    assert iter(results) is results
    assert sorted(results) == [0, 1, 4]
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(results)
        with pytest.raises(StopIteration):
            results.next(timeout=0)


def enter(gate: Gate, name: Any) -> Any:
    return gate.enter(str(name), name)


def test_unordered_results_come_as_they_end(pool: dpool.Pool, gate: Gate) -> None:
    results = pool.imap_unordered(lambda name: enter(gate, name), ["a", "b"])
    gate.entered("a")
    gate.entered("b")
    gate.open("b")
    assert next(results) == "b"
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(0.01)
    gate.open("a")
    assert results.next(LONG_S) == "a"
    with pytest.raises(StopIteration):
        next(results)


def test_ordered_results_wait_for_their_turn_and_a_time_out_loses_none(pool: dpool.Pool, gate: Gate) -> None:
    results = pool.imap(lambda name: enter(gate, name), ["a", "b"])
    gate.entered("a")
    gate.open("b")
    gate.entered("b")
    for _ in range(3):
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout=0.01)
    gate.open("a")
    assert results.next(timeout=LONG_S) == "a"
    assert next(results) == "b"


@CHUNKS
@BOTH
def test_a_call_that_raises_raises_in_its_turn_and_the_rest_follows(
    pool: dpool.Pool, name: str, chunksize: int
) -> None:
    results = getattr(pool, name)(failing_at(3, 8), range(10), chunksize)
    found: list[Any] = []
    while True:
        try:
            found.append(next(results))
        except LookupError as error:
            found.append(repr(error))
        except StopIteration:
            break
    if chunksize == 1:
        expected: list[Any] = [0, 1, 2, "LookupError(3)", 4, 5, 6, 7, "LookupError(8)", 9]
    elif chunksize == 2:
        expected = [0, 1, "LookupError(3)", 4, 5, 6, 7, "LookupError(8)"]
    elif chunksize == 7:
        expected = ["LookupError(3)", "LookupError(8)"]
    else:
        expected = ["LookupError(3)"]
    assert (found if name == "imap" else sorted(found, key=str)) == (
        expected if name == "imap" else sorted(expected, key=str)
    )


@pytest.mark.parametrize("chunksize", [1, 3])
def test_an_error_of_the_iterable_comes_at_its_index(pool: dpool.Pool, chunksize: int) -> None:
    results = pool.imap(square, broken(7), chunksize)
    whole = 7 - 7 % chunksize  # an unfinished chunk is lost, as in the standard library
    assert list(itertools.islice(results, whole)) == [i * i for i in range(whole)]
    with pytest.raises(EOFError, match="the iterable") as caught:
        next(results)
    assert caught.value.__cause__ is None
    with pytest.raises(StopIteration):
        next(results)
    assert pool.apply(square, (2,)) == 4


@BOTH
def test_an_error_of_the_iterable_comes_though_all_else_has_been_taken(pool: dpool.Pool, name: str) -> None:
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield 3
        go_on.wait(LONG_S)
        raise EOFError

    results = getattr(pool, name)(square, items())
    assert next(results) == 9
    threading.Timer(0.05, go_on.set).start()
    with pytest.raises(EOFError):
        next(results)


@BOTH
def test_what_is_no_iterable_is_refused_at_once(pool: dpool.Pool, name: str) -> None:
    with pytest.raises(TypeError):
        getattr(pool, name)(square, 5)
    for size in (0, -1):
        with pytest.raises(ValueError, match="buffersize"):
            getattr(pool, name)(square, [1], buffersize=size)
    with pytest.raises(TypeError, match="buffersize"):
        getattr(pool, name)(square, [1], buffersize="1")
    assert list(getattr(pool, name)(square, [2])) == [4]


# --- Windows ---


@pytest.mark.parametrize("make", [range, Counter], ids=["range", "iterator"])
@BOTH
def test_calls_begin_before_anybody_asks(pool: dpool.Pool, gate: Gate, name: str, make: Any) -> None:
    results = getattr(pool, name)(lambda i: enter(gate, i), make(2))
    gate.entered("0")
    gate.entered("1")
    gate.open("0", "1")
    assert sorted(results) == [0, 1]


@BOTH
def test_an_endless_iterable_is_taken_a_window_at_a_time(pool: dpool.Pool, name: str) -> None:
    items = Counter()
    results = getattr(pool, name)(square, items, buffersize=5)
    wait_until(lambda: items.taken == 5, LONG_S)
    for i in range(1, 20):
        next(results)
        wait_until(partial(reached, items, 5 + i), LONG_S)
    pool.terminate()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "dpool-imap"], LONG_S)
    assert items.taken <= 26


@BOTH
def test_a_window_counts_chunks(pool: dpool.Pool, name: str) -> None:
    items = Counter()
    results = getattr(pool, name)(same, items, chunksize=10, buffersize=3)
    wait_until(lambda: items.taken == 30, LONG_S)
    seen = [next(results) for _ in range(11)]  # of a second chunk, so a first one is done with
    wait_until(lambda: items.taken == 40, LONG_S)
    assert len(set(seen)) == 11
    pool.terminate()


@BOTH
def test_the_window_is_small_by_default_while_tasks_are_long(pool: dpool.Pool, gate: Gate, name: str) -> None:
    items = Counter()
    results = getattr(pool, name)(lambda i: enter(gate, "all"), items)
    gate.entered("all")
    wait_until(lambda: items.taken >= 8, LONG_S)
    gate.open("all")
    assert list(itertools.islice(results, 2000)) == ["all"] * 2000
    assert items.taken < 2000 + 2 * 2048 + 10
    pool.terminate()


def test_a_list_is_submitted_a_window_at_a_time(one: dpool.Pool, gate: Gate) -> None:
    results = one.imap(lambda i: enter(gate, "all"), [0] * 1000, buffersize=3)
    gate.entered("all")
    assert len(results._feed.outstanding) == 3
    gate.open("all")
    for _ in range(10):
        next(results)
        assert len(results._feed.outstanding) + len(results._ready) == 3
    assert list(results) == ["all"] * 990


def test_an_iterable_that_waits_holds_nothing_up(pool: dpool.Pool) -> None:
    """Each result can be taken before the iterable gives its next item."""
    go_on = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for i in range(5):
            assert go_on.acquire(timeout=LONG_S)
            yield i

    ordered = pool.imap(square, items())
    for i in range(5):
        with pytest.raises(multiprocessing.TimeoutError):
            ordered.next(0)
        go_on.release()
        assert ordered.next(LONG_S) == i * i
        assert pool.apply(square, (3,)) == 9  # nor does it hold up other calls
    assert list(ordered) == []


def test_what_comes_out_may_go_in_again(pool: dpool.Pool) -> None:
    back: deque[int] = deque([2])

    def items() -> Iterator[int]:
        while back[-1] < 10_000:
            wait_until(lambda: back, LONG_S)
            yield back.popleft()
            wait_until(lambda: back, LONG_S)

    for result in pool.imap(square, items()):
        back.append(result)
    assert back == deque([65536])


# --- Who takes the results ---


@BOTH
def test_several_threads_may_take_results(pool: dpool.Pool, name: str) -> None:
    results = getattr(pool, name)(square, (i for i in range(3000)))
    found: list[int] = []

    def take() -> None:
        found.extend(results)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert sorted(found) == [i * i for i in range(3000)]


@BOTH
def test_two_iterators_at_the_same_time(pool: dpool.Pool, name: str) -> None:
    method = getattr(pool, name)
    pairs = list(zip(method(square, range(500)), method(square, iter(range(500))), strict=True))
    assert sorted(a for a, _ in pairs) == sorted(b for _, b in pairs) == [i * i for i in range(500)]


def note(directory: Path, i: int) -> None:
    (directory / str(i)).touch()


@pytest.mark.parametrize("make", [range, Counter], ids=["range", "iterator"])
@BOTH
def test_all_calls_run_though_nobody_takes_results(tmp_path: Path, name: str, make: Any) -> None:
    pool = dpool.Pool(2)
    kept = getattr(pool, name)(lambda i: note(tmp_path, i), make(300), buffersize=4)
    pool.close()
    pool.join()
    assert len(list(tmp_path.iterdir())) == 300
    assert list(kept) == [None] * 300


@pytest.mark.parametrize("make", [range, Counter], ids=["range", "iterator"])
def test_a_dropped_iterator_runs_on(pool: dpool.Pool, tmp_path: Path, make: Any) -> None:
    next(pool.imap(lambda i: note(tmp_path, i), make(300), buffersize=4))
    gc.collect()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 300, LONG_S)
    wait_until(lambda: not pool._feeds, LONG_S)


def test_the_rest_comes_after_close(pool: dpool.Pool) -> None:
    results = pool.imap(square, iter(range(100)), buffersize=3)
    more = pool.imap(square, range(100), buffersize=3)
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.imap(square, [1])
    assert list(results) == list(more) == [i * i for i in range(100)]
    pool.join()


@BOTH
def test_a_terminated_pool_ends_its_iterators(pool: dpool.Pool, gate: Gate, name: str) -> None:
    results = getattr(pool, name)(lambda i: enter(gate, "never"), itertools.count())
    gate.entered("never")
    pool.terminate()
    errors = 0
    while True:
        try:
            next(results)
        except dpool.errors.ExecutorBroken:
            errors += 1
        except StopIteration:
            break
    assert errors > 0


def test_large_results_are_fetched_one_by_one(pool: dpool.Pool) -> None:
    for i, data in enumerate(pool.imap(lambda i: bytes([i]) * 300_000, range(20))):
        assert data == bytes([i]) * 300_000
    chunks = pool.imap_unordered(lambda i: bytes([i]) * 300_000, range(9), 2)
    assert sorted(data[0] for data in chunks) == list(range(9))
