"""`dpool.put`, `get`, `wait` and `store_stats`: what they take, what they refuse, what they tell."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpool
from dpool import errors
from tests.executor.storing import LARGE, MB, becomes_empty, counted, holds, zeros
from tests.executor.support import LONG_S, Gate, fail, noop, same
from tests.fixtures import the_runtime as the_runtime
from tests.helpers import run_script, wait_until


@pytest.fixture
def ex() -> Iterator[dpool.Executor]:
    """Two workers; afterwards the store is empty."""
    with dpool.Executor(2) as executor:
        yield executor
    with dpool.Executor(1):
        becomes_empty()


# --- put and get ---


@pytest.mark.parametrize("count", [5, LARGE], ids=["inline", "stored"])
def test_put_copies(ex: dpool.Executor, count: int) -> None:
    array = counted(count)
    ref = dpool.put(array)
    array[0] = 77.0
    assert dpool.get(ref)[0] == 0.0
    values = [counted(count), "text", None, b"bytes" * count, {"a": [1]}]
    assert dpool.get([dpool.put(one) for one in values[1:]]) == values[1:]
    assert dpool.get(()) == []
    assert dpool.get([]) == []


def test_put_refuses_a_reference_and_what_does_not_pickle(ex: dpool.Executor) -> None:
    for value in (1, counted()):
        with pytest.raises(TypeError, match="put it into a list"):
            dpool.put(dpool.put(value))
        assert isinstance(dpool.get(dpool.put([dpool.put(value)]))[0], dpool.ObjectRef)
    with pytest.raises((TypeError, pickle.PicklingError)):
        dpool.put(threading.Lock())
    with pytest.raises((TypeError, pickle.PicklingError)):
        dpool.put([zeros(), (n for n in range(3))])


@pytest.mark.parametrize("wrong", [1, "text", None, {"a": 1}, concurrent.futures.Future(), iter(())])
def test_get_and_wait_refuse_what_is_neither_reference_nor_future(ex: dpool.Executor, wrong: Any) -> None:
    ref = dpool.put(1)
    for bad in (wrong, [ref, wrong]):
        with pytest.raises(TypeError, match="ObjectRefs and Futures"):
            dpool.get(bad)
    with pytest.raises(TypeError, match="ObjectRefs and Futures"):
        dpool.wait([ref, wrong])


def test_get_of_futures(ex: dpool.Executor, gate: Gate) -> None:
    future: Any = ex.submit(counted)
    ref = dpool.put(5)
    array, five, again = dpool.get([future, ref, future], timeout=LONG_S)
    assert (array is again, five) == (True, 5)
    assert array.sum() == counted().sum()
    slow = ex.submit(gate.enter, "task", "done")
    for refs in (slow, [ref, slow], [slow, slow]):
        with pytest.raises(TimeoutError):
            dpool.get(refs, timeout=0.01)
    with pytest.raises(TimeoutError):
        dpool.get(slow, timeout=0)
    assert dpool.get([ref], timeout=0) == [5]
    gate.open()
    assert dpool.get([slow], timeout=LONG_S) == ["done"]
    with pytest.raises(ZeroDivisionError):
        dpool.get([ref, ex.submit(fail, ZeroDivisionError("x"))])
    future = array = again = None


def test_a_value_that_is_gone(ex: dpool.Executor) -> None:
    from dpool._core import storage

    kept = pickle.dumps(dpool.put(counted()))
    storage.client().escaped.clear()
    holds(0)
    lost = pickle.loads(kept)
    with pytest.raises(errors.ObjectLost, match="is lost"):
        dpool.get(lost)
    with pytest.raises(errors.ObjectLost, match="is lost"):
        ex.submit(same, lost).result(LONG_S)
    assert dpool.get(dpool.put(3)) == 3


def test_threads_put_and_get_at_once(ex: dpool.Executor) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(30):
            count = LARGE if turn % 3 else 10
            ref = dpool.put(counted(count, number * turn))
            value = dpool.get(ref)
            if value[0] != number * turn or value.sum() != counted(count, number * turn).sum():
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_any_executor() -> None:
    result = run_script(
        """
import dpool, numpy as np
ref, small = dpool.put(np.ones(100_000)), dpool.put("text")
assert dpool.get(ref).sum() == 100_000 and dpool.get(small) == "text"
stats = dpool.store_stats(listing=True)
assert stats.objects == 1 and stats.listing[0].size == ref.size
view = dpool.get(ref)
del ref
print(view.sum(), dpool.store_stats().objects)
"""
    ).check()
    assert (result.stdout, result.stderr) == ("100000.0 0\n", "")


# --- wait ---


def test_wait(ex: dpool.Executor, gate: Gate) -> None:
    slow: Any = [ex.submit(gate.enter, name, name) for name in "ab"]
    gate.entered("a")
    gate.entered("b")
    ref, other = dpool.put(1), dpool.put(counted())
    assert dpool.wait([slow[0], ref, slow[1], other]) == ([ref], [slow[0], slow[1], other])
    assert dpool.wait([slow[0], ref, slow[1], other], num_returns=2) == ([ref, other], slow)
    assert dpool.wait([slow[0], ref, slow[1], other], num_returns=3, timeout=0) == ([ref, other], slow)
    assert dpool.wait([slow[0], ref], num_returns=2, timeout=0.01) == ([ref], [slow[0]])
    gate.open("b")
    assert dpool.wait(slow, timeout=LONG_S) == ([slow[1]], [slow[0]])
    assert dpool.wait((one for one in (*slow, ref)), num_returns=2) == ([slow[1], ref], [slow[0]])
    gate.open("a")
    assert dpool.wait(slow, num_returns=2) == (slow, [])


def test_wait_without_a_limit_returns_as_soon_as_a_large_result_is_there(ex: dpool.Executor) -> None:
    for turn in range(20):
        future = ex.submit(counted if turn % 2 else noop)
        assert dpool.wait([future]) == ([future], [])
        assert future.done()


def test_what_failed_or_was_cancelled_is_ready(ex: dpool.Executor, gate: Gate) -> None:
    running = [ex.submit(gate.enter, "task", None) for _ in range(2)]
    gate.entered()
    cancelled = ex.submit(noop)
    cancelled.cancel()
    assert dpool.wait([*running, cancelled], timeout=LONG_S)[0] == [cancelled]
    gate.open()
    failed = ex.submit(fail, ValueError("x"))
    assert dpool.wait([failed], timeout=LONG_S) == ([failed], [])
    assert len(dpool.wait(running, num_returns=2, timeout=LONG_S)[0]) == 2


def test_wait_refuses(ex: dpool.Executor) -> None:
    ref = dpool.put(1)
    for number in (0, -1, 2):
        with pytest.raises(ValueError, match="num_returns"):
            dpool.wait([ref], num_returns=number)
    with pytest.raises(ValueError, match="once"):
        dpool.wait([ref, ref])


class Counting(dpool.Future[Any]):
    """Counts how often somebody wants to be called."""

    __slots__ = ("asked",)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        self.asked = getattr(self, "asked", 0) + 1
        super().add_done_callback(fn)


def test_a_loop_of_waits_asks_each_future_once_however_long_it_takes() -> None:
    futures = [Counting() for _ in range(2000)]

    def end() -> None:
        for one in futures[:1000]:
            one.set_result(1)

    ender = threading.Thread(target=end)
    ender.start()
    ready, rest = dpool.wait(futures, num_returns=1000, timeout=LONG_S)
    ender.join()
    assert (ready, rest) == (futures[:1000], futures[1000:])
    for future in reversed(futures[1000:]):
        future.set_result(2)
        ready, rest = dpool.wait(rest)
        assert ready == [future]
    assert rest == []
    assert max(getattr(one, "asked", 0) for one in futures) <= 1


def test_a_wait_that_is_over_leaves_nothing_at_its_futures(ex: dpool.Executor, gate: Gate) -> None:
    future: Any = ex.submit(gate.enter, "task", None)
    for _ in range(5):
        assert dpool.wait([future], timeout=0.001) == ([], [future])
    assert not future._done_callbacks
    gate.open()
    assert future.result(LONG_S) is None


# --- store_stats ---


def test_stats_name_owner_and_size(ex: dpool.Executor) -> None:
    assert dpool.store_stats() == dpool.store_stats()._replace(listing=[])
    mine = dpool.put(counted())
    theirs: Any = ex.submit(dpool.put, counted()).result(LONG_S)
    worker = ex.submit(os.getpid).result(LONG_S)
    stats = dpool.store_stats(listing=True)
    assert stats.objects == len(stats.listing) == 2
    by_owner = {one.owner: one for one in stats.listing}
    assert os.getpid() in by_owner
    assert worker in by_owner or len(by_owner) == 2
    assert all(one.size == mine.size == theirs.size and one.state == "sealed" for one in stats.listing)
    assert {one.id for one in stats.listing} == {repr(ref).split()[1].rstrip(",") for ref in (mine, theirs)}
    assert not any(one.pinned for one in stats.listing)
    view = dpool.get(mine)
    stats = dpool.store_stats(listing=True)
    assert [one.pinned for one in stats.listing if one.owner == os.getpid()] == [True]
    assert mine.size <= stats.pinned <= stats.used <= stats.resident <= stats.capacity
    assert stats.hit_rate == 1.0
    assert (stats.spills, stats.restores, stats.spilled) == (0, 0, 0)
    del view, mine, theirs


def test_reads_are_counted(ex: dpool.Executor) -> None:
    ref = dpool.put(counted())
    before = dpool.store_stats().reads
    for _ in range(3):
        dpool.get(ref)
    assert ex.submit(np.sum, ref).result(LONG_S) == counted().sum()
    assert dpool.store_stats().reads == before + 4


def test_a_small_store_spills_and_restores(tmp_path: Path) -> None:
    result = run_script(
        """
import dpool, numpy as np, os
MB = 1 << 20
with dpool.Executor(1) as ex:
    refs = [dpool.put(np.full(MB, n)) for n in range(8)]          # 64 MB in a store of 32 MB
    stats = dpool.store_stats(listing=True)
    assert stats.capacity == 32 * MB, stats
    assert stats.objects == 8 and stats.spills >= 4 and stats.spilled_objects >= 4, stats
    assert stats.resident <= stats.capacity and stats.spilled >= 4 * 8 * MB, stats
    assert {one.state for one in stats.listing} >= {"sealed", "spilled"}, stats
    for n, ref in enumerate(refs):
        assert (dpool.get(ref) == n).all()
    for n, ref in enumerate(refs):
        assert ex.submit(np.sum, ref).result() == n * MB
    stats = dpool.store_stats()
    assert stats.restores >= 4 and 0 <= stats.hit_rate < 1, stats
    futures = [ex.submit(np.full, MB, n) for n in range(8)]       # unread results spill too
    assert [int(future.result()[-1]) for future in futures] == list(range(8))
    large = dpool.put(np.arange(5 * MB))                          # larger than the store
    assert (dpool.get(large) == np.arange(5 * MB)).all()
    assert ex.submit(np.sum, large).result() == np.arange(5 * MB).sum()
    spilled = os.environ["DPOOL_SPILL_DIR"]
    assert any(files for _, _, files in os.walk(spilled))
    del refs, ref, futures, large
    import gc, time
    gc.collect()
    until = time.monotonic() + 20
    while dpool.store_stats().objects or any(files for _, _, files in os.walk(spilled)):
        assert time.monotonic() < until, dpool.store_stats(True)
print("done")
""",
        env={"DPOOL_OBJECT_STORE_MEMORY": str(32 * MB), "DPOOL_SPILL_DIR": str(tmp_path)},
    ).check()
    assert (result.stdout, result.stderr) == ("done\n", "")
    wait_until(lambda: not list(tmp_path.iterdir()), 10.0, "nothing stays on the disk")


# --- Programs ---


def test_objects_of_main_and_references_in_its_globals() -> None:
    result = run_script(
        """
import dataclasses, gc, dpool, numpy as np
@dataclasses.dataclass
class Box:
    array: object
    ref: object = None
    def total(self): return float(self.array.sum())
class Trouble(Exception):
    def __init__(self, box): super().__init__(box); self.box = box
def make(n): return Box(np.full(50_000, float(n)))
def total(box): return type(box) is Box and box.total()
def through(box): return dpool.get(box.ref).total()
def trouble(n): raise Trouble(make(n))
def uses_globals(): return dpool.get(shared).sum() + dpool.get(table["small"])[0] + dpool.get(boxed).total()
shared = dpool.put(np.ones(50_000))
table = {"small": dpool.put([5])}
boxed = dpool.put(Box(np.ones(50_000)))
small = dpool.put(Box(np.ones(3)))
with dpool.Executor(2) as ex:
    box = ex.submit(make, 3).result()
    assert type(box) is Box and box.total() == 150_000
    assert ex.submit(total, box).result() == 150_000
    assert type(dpool.get(boxed)) is Box and type(dpool.get(small)) is Box
    assert ex.submit(total, boxed).result() == 50_000 and ex.submit(total, small).result() == 3
    assert ex.submit(through, Box(None, boxed)).result() == 50_000
    assert ex.submit(through, Box(None, small)).result() == 3
    for _ in range(3):
        assert ex.submit(uses_globals).result() == 100_005
    made = ex.submit(lambda: dpool.put(make(2))).result()
    assert dpool.get(made).total() == 100_000 and type(dpool.get(made)) is Box
    assert ex.submit(total, made).result() == 100_000
    try: ex.submit(trouble, 4).result()
    except Trouble as error: assert error.box.total() == 200_000 and type(error.box) is Box
    else: raise AssertionError
    shared = dpool.put(np.zeros(50_000))        # another value of the global is seen
    assert ex.submit(uses_globals).result() == 50_005
    assert [one.total() for one in ex.map(make, range(4))] == [0, 50_000, 100_000, 150_000]
print("done")
"""
    ).check()
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_a_program_that_ends_with_references_and_views_ends() -> None:
    result = run_script(
        """
import dpool, numpy as np
ex = dpool.Executor(1)
ref = dpool.put(np.ones(50_000))
view = dpool.get(ref)
future = ex.submit(np.ones, 50_000)
unread = ex.submit(np.ones, 60_000)
print(future.result().sum() + view.sum())
"""
    ).check()
    assert (result.stdout, result.stderr) == ("100000.0\n", "")


def test_small_tasks_make_no_store() -> None:
    result = run_script(
        """
import os, sys
import dpool
def links(pid):
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try: found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError: continue
    return found
def loaded(*more):
    return [name for name in ("pyarrow", "numpy", "dpool._core.store_client", *more) if name in sys.modules]
def mine(): return loaded(), links("self")     # (a worker's zygote has loaded ctypes)
with dpool.Executor(2) as ex:
    assert list(ex.map(abs, range(-50, 0), chunksize=5)) == list(range(50, 0, -1))
    assert ex.submit(sorted, [3, 1, 2], key=lambda x: -x).result() == [3, 2, 1]
    assert ex.submit(len, b"x" * 100_000).result() == 100_000
    there, fds = ex.submit(mine).result()
    everywhere = [(loaded("ctypes"), links("self")), (there, fds)]
    for names, files in everywhere:
        assert not names, names
        assert not any("dpool-store" in one or "dpool-pins" in one for one in files), files
    for pid in [int(one) for one in os.listdir("/proc") if one.isdecimal()]:
        try:
            if "dpool" in open(f"/proc/{pid}/cmdline").read() and os.getsid(pid) == os.getsid(0):
                assert not any("dpool-store" in one for one in links(pid))
        except (OSError, ProcessLookupError):
            continue
    small = dpool.put([1, 2, 3])                # neither does a small put
    assert dpool.get(small) == [1, 2, 3] and ex.submit(sum, small).result() == 6
    assert not loaded("ctypes"), loaded("ctypes")
    assert len(ex.submit(bytes, 300_000).result()) == 300_000
    assert "dpool._core.store_client" in loaded()
print("done")
"""
    ).check()
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_arrays_that_live_at_the_end_of_a_with_block_stay_right() -> None:
    result = run_script(
        """
import dpool, numpy as np
views = []
for turn in range(5):
    with dpool.Executor(2) as ex:
        views += list(ex.map(np.full, [50_000] * 4, range(4 * turn, 4 * turn + 4)))
        views.append(dpool.get(dpool.put(np.full(50_000, 1000 + turn))))
expected = [n for turn in range(5) for n in (*range(4 * turn, 4 * turn + 4), 1000 + turn)]
assert [int(view[0]) for view in views] == expected
assert all((view == view[0]).all() for view in views)
print("done")
"""
    ).check()
    assert (result.stdout, result.stderr) == ("done\n", "")
