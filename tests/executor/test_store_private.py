"""What is read is writable and private to whoever reads it, and is not copied before it is written to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dpool
from tests.executor.storing import (
    LARGE,
    MB,
    address_of,
    anonymous_bytes,
    becomes_empty,
    counted,
    holds,
    mapped_from_store,
    objects,
    overwrite,
    stored_bytes,
    total,
    zeros,
)
from tests.executor.support import LONG_S, Gate, same

pytestmark = pytest.mark.usefixtures("nothing_stays")
BIG = 8 * MB
"""Eight-byte numbers of which a copy cannot be overlooked: 64 MB."""
SMALL_CHANGE = 8 * MB
"""Bytes by which a process's memory may grow for other reasons."""


@pytest.mark.parametrize("count", [50, LARGE])
def test_what_a_task_writes_nobody_else_sees(ex: dpool.Executor, count: int) -> None:
    array = counted(count)
    expected = array.sum()
    ref = dpool.put(array)
    assert [ex.submit(overwrite, one).result(LONG_S) for one in (array, ref, array, ref)] == [expected] * 4
    assert list(ex.map(overwrite, [ref] * 20)) == [expected] * 20
    assert array.sum() == dpool.get(ref).sum() == expected
    array[...] = 9.0  # and what the caller writes later is not stored
    assert dpool.get(ref).sum() == expected


def both_ways(a: Any, b: Any, c: Any) -> tuple[bool, float, float]:
    a[...] = 1.0
    return a is b, float(b.sum()), float(c.sum())


def test_the_same_argument_twice_is_one_array_and_an_equal_one_is_another(one: dpool.Executor) -> None:
    array = zeros()
    twin = array.copy()
    assert one.submit(both_ways, array, array, twin).result(LONG_S) == (True, float(LARGE), 0.0)
    ref = dpool.put(array)
    assert one.submit(both_ways, ref, ref, twin).result(LONG_S) == (True, float(LARGE), 0.0)


def test_results_are_writable_and_two_gets_are_two_arrays(ex: dpool.Executor) -> None:
    result: Any = ex.submit(zeros).result(LONG_S)
    result[5] = 1.0
    ref = dpool.put(result)
    first, second = dpool.get(ref), dpool.get([ref])[0]
    assert not np.shares_memory(first, second)
    first[:] = 2.0
    assert (second.sum(), dpool.get(ref).sum(), result.sum()) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("count", [50, LARGE])
def test_readonly(count: int) -> None:
    with dpool.Executor(1):
        ref = dpool.put({"a": counted(count), "b": bytearray(8 * count)})
        frozen = dpool.get(ref, readonly=True)
        if count == LARGE:  # a small one is a copy of its own anyway
            with pytest.raises(ValueError, match="read-only"):
                frozen["a"][0] = 1.0
            again = dpool.get(ref, readonly=True)
            assert np.shares_memory(frozen["a"], again["a"])
        free = dpool.get(ref)
        free["a"][0] = 7.0
        free["b"][0] = 7
        assert frozen["a"][0] == 0.0
        assert (frozen["a"] == counted(count)).all()


def test_a_copy_lets_the_store_free_the_memory() -> None:
    with dpool.Executor(1):
        ref = dpool.put(counted())
        view = dpool.get(ref)
        assert dpool.store_stats().pinned > 0
        del view
        copied = dpool.get(ref, copy=True)
        assert dpool.store_stats().pinned == 0
        assert not mapped_from_store(address_of(copied))
        copied[0] = 3.0
        del ref
        holds(0)
        assert copied[1:].sum() == counted()[1:].sum()
        frozen = dpool.get(dpool.put(counted()), copy=True, readonly=True)
        becomes_empty()
        with pytest.raises(ValueError, match="read-only"):
            frozen[0] = 1.0


def test_a_view_outlives_reference_executor_and_runtime() -> None:
    with dpool.Executor(1) as ex:
        result: Any = ex.submit(counted).result(LONG_S)
        view = dpool.get(dpool.put(counted()))
        holds(0)
        for _ in range(20):  # whatever comes later lies elsewhere
            ex.submit(zeros).result(LONG_S)
            dpool.put(zeros())
        assert (view == counted()).all()
    assert (view == counted()).all()
    assert (result == counted()).all()
    with dpool.Executor(1) as ex:
        dpool.put(zeros())
        ex.submit(zeros).result(LONG_S)
        view[0] = 5.0
        assert view[1:].sum() == result[1:].sum() == counted()[1:].sum()


# --- Not copied ---


def growth_while_read(array: Any) -> tuple[float, int, bool]:
    """How much memory of its own the worker needs to sum an argument up."""
    before = anonymous_bytes()
    summed = float(array.sum())
    return summed, anonymous_bytes() - before, mapped_from_store(address_of(array))


def own_memory(array: Any = None) -> int:
    return anonymous_bytes()


def test_a_task_reads_its_argument_in_place(one: dpool.Executor) -> None:
    ref = dpool.put(np.ones(BIG))
    before = one.submit(own_memory).result(LONG_S)
    assert one.submit(own_memory, ref).result(LONG_S) - before < SMALL_CHANGE
    summed, grown, mapped = one.submit(growth_while_read, ref).result(LONG_S)
    assert (summed, mapped) == (BIG, True)
    assert grown < SMALL_CHANGE


def grow_by_writing(array: Any) -> tuple[int, int]:
    """The worker's growth after one number was written, and after all were."""
    before = anonymous_bytes()
    array[0] = 1.0
    first = anonymous_bytes() - before
    array[...] = 2.0
    return first, anonymous_bytes() - before


def test_pages_are_copied_when_they_are_written_to(one: dpool.Executor) -> None:
    first, all_of_it = one.submit(grow_by_writing, dpool.put(np.ones(BIG))).result(LONG_S)
    assert first < SMALL_CHANGE
    assert all_of_it > 8 * BIG - SMALL_CHANGE


def test_a_result_is_read_in_place(one: dpool.Executor) -> None:
    before = anonymous_bytes()
    result: Any = one.submit(zeros, BIG).result(LONG_S)
    assert mapped_from_store(address_of(result))
    assert result.sum() == 0.0
    views = [dpool.get(dpool.put(result)) for _ in range(2)]
    assert [view.sum() for view in views] == [0.0, 0.0]
    assert anonymous_bytes() - before < SMALL_CHANGE


def buffers_of(array: Any) -> list[int]:
    return [buffer.address for buffer in array.buffers() if buffer is not None and buffer.size >= 16 * 1024]


def read_arrow(table: Any) -> tuple[int, int, list[bool]]:
    """Of a table in a worker: rows, growth while it is read, which buffers lie in the store."""
    import pyarrow.compute as pc

    before = anonymous_bytes()
    summed = pc.sum(table["x"]).as_py()
    grown = anonymous_bytes() - before
    places = [place for column in table.columns for chunk in column.chunks for place in buffers_of(chunk)]
    return int(summed), grown, [mapped_from_store(place) for place in places]


@pytest.mark.needs("module:pyarrow")
def test_arrow_is_read_in_place(one: dpool.Executor) -> None:
    import pyarrow as pa

    numbers: Any = np.arange(BIG, dtype=np.int64)
    table = pa.table({"x": numbers, "text": pa.array(["some text", None] * (BIG // 16) + [""] * (BIG - BIG // 8))})
    expected = int(numbers.sum())
    ref = dpool.put(table)
    for argument in (ref, table):
        summed, grown, mapped = one.submit(read_arrow, argument).result(LONG_S)
        assert summed == expected
        assert mapped
        assert all(mapped)
        assert grown < SMALL_CHANGE
    before = anonymous_bytes()
    got = dpool.get(ref)
    result: Any = one.submit(same, ref).result(LONG_S)
    assert anonymous_bytes() - before < SMALL_CHANGE
    for arrived in (got, result):
        places = [place for column in arrived.columns for chunk in column.chunks for place in buffers_of(chunk)]
        assert places
        assert all(map(mapped_from_store, places))
    assert got.equals(table)
    part = one.submit(same, got["x"].chunk(0).slice(10, BIG // 2)).result(LONG_S)
    assert mapped_from_store(buffers_of(part)[0])


# --- Stored once ---


def test_a_reference_is_stored_once_for_a_hundred_tasks(ex: dpool.Executor, gate: Gate) -> None:
    array = np.ones(BIG // 8)
    ref = dpool.put(array)
    before = stored_bytes()
    used = dpool.store_stats().used
    waiting = [ex.submit(gate.enter, "task", None) for _ in range(2)]
    futures = [ex.submit(total, ref, ref, more=ref) for _ in range(100)]
    stats = dpool.store_stats()
    assert (stats.objects, stored_bytes()) == (1, before)
    assert stats.used <= used  # room that an earlier test took may have come free meanwhile
    gate.open()
    assert [future.result(LONG_S) for future in futures] == [3.0 * len(array)] * 100
    assert [one.result(LONG_S) for one in waiting] == [None, None]
    assert objects() == 1
    del ref
    becomes_empty()


def sums(a: Any, b: Any) -> tuple[bool, float, float]:
    return a is b, float(a.sum()), float(b.sum())


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_stores_an_item_that_occurs_again_once(ex: dpool.Executor, gate: Gate, chunksize: int) -> None:
    array, other = np.ones(LARGE), zeros()
    waiting = [ex.submit(gate.enter, "task", None) for _ in range(2)]
    gate.entered()
    results = ex.map(sums, [array, array, other, array, other] * 10, [array] * 50, chunksize=chunksize)
    assert objects() <= 2 + (50 // chunksize if chunksize > 1 else 0)
    assert stored_bytes() < 3 * array.nbytes
    gate.open()
    expected = [(True, LARGE, LARGE), (True, LARGE, LARGE), (False, 0, LARGE), (True, LARGE, LARGE), (False, 0, LARGE)]
    assert list(results) == expected * 10
    assert [one.result(LONG_S) for one in waiting] == [None, None]


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("count", [5, LARGE])
def test_map_gives_tasks_the_values_of_references_and_futures(ex: dpool.Executor, chunksize: int, count: int) -> None:
    array = counted(count)
    refs = [dpool.put(array), dpool.put(2 * array)]
    future = ex.submit(counted, count)
    items = [refs[0], refs[1], refs[0], future, array, future, refs[0]]
    totals = [array.sum() * factor for factor in (1, 2, 1, 1, 1, 1, 1)]
    assert list(ex.map(total, items, chunksize=chunksize)) == totals
    assert list(ex.map(total, items, items, chunksize=chunksize)) == [2 * one for one in totals]
    assert list(ex.map(total, iter(items), chunksize=chunksize, buffersize=2)) == totals
