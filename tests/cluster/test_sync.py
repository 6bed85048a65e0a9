"""Locks, queues, shared values, pipes and managers in tasks on another machine (two gateways with their nodes here)."""

from __future__ import annotations

import ctypes
import queue
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dpool
import dpool.multiprocessing as mp
from dpool._core import driver
from tests.cluster.test_loopback import DEADLINE_S, Cluster, cluster

__all__ = ["cluster"]


@pytest.fixture(scope="module")
def standing() -> Iterator[Cluster]:
    made = Cluster()
    made.add()
    made.add(resources=(("lamp", 1.0),))
    yield made
    for member in list(made.members):
        made.stop(member)


@pytest.fixture
def machines(standing: Cluster) -> Iterator[Cluster]:
    """Two machines that outlive the test; what it has there is gone after it."""
    driver.configure(address=standing.members[0].address)
    try:
        yield standing
    finally:
        dpool.shutdown()
        driver.configure(address="")


@dpool.remote(resources={"lamp": 0.1}, max_retries=0)
def over_there(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


def there(fn: Callable[..., Any], *args: Any) -> Any:
    return dpool.get(over_there.remote(fn, *args), timeout=DEADLINE_S)


def _is_far(face: Any) -> bool:
    return bool(face._core.link.far)


# --- every kind ---


def _lock(lock: Any) -> list[Any]:
    assert _is_far(lock)
    seen = [lock.acquire(), lock.acquire(False), lock.acquire(timeout=0.01), repr(lock)]
    lock.release()
    with pytest.raises(ValueError, match="too many"):
        lock.release()
    with lock:
        seen.append(repr(lock))
    return seen


def use_lock() -> None:
    lock = mp.Lock()
    *got, first, again = there(_lock, lock)
    assert got == [True, False, False]
    assert first == again
    assert "owner=DpoolWorker" in first
    assert lock.acquire(False), "and it is free"
    lock.release()


def _rlock(lock: Any) -> str:
    assert _is_far(lock)
    with lock, lock:
        told = repr(lock)
    with pytest.raises(AssertionError, match="not owned"):
        lock.release()
    return told


def use_rlock() -> None:
    assert there(_rlock, mp.RLock()).endswith(", 2)>")


def _release(lock: Any) -> None:
    lock.release()


def use_lock_that_another_machine_releases() -> None:
    lock = mp.Lock()
    lock.acquire()
    there(_release, lock)
    assert lock.acquire(False)
    lock.release()


def _acquire(lock: Any) -> bool:
    return bool(lock.acquire(False))


def use_lock_that_is_taken_here() -> None:
    lock = mp.Lock()
    with lock:
        assert not there(_acquire, lock)
        assert "MainProcess" in repr(lock)
    waiting = over_there.remote(_with, lock, 1)
    assert dpool.get(waiting, timeout=DEADLINE_S) == 1


def _with(lock: Any, value: Any) -> Any:
    with lock:
        return value


def _semaphore(semaphore: Any) -> list[Any]:
    assert _is_far(semaphore)
    seen: list[Any] = [semaphore.acquire(), semaphore.acquire(False), semaphore.get_value()]
    semaphore.release()
    with semaphore:
        seen.append(semaphore.get_value())
    return [*seen, repr(semaphore)]


def use_semaphore() -> None:
    assert there(_semaphore, mp.Semaphore(1)) == [True, False, 0, 0, "<Semaphore(value=1)>"]


def _too_many(semaphore: Any) -> None:
    with pytest.raises(ValueError, match="too many"):
        semaphore.release()


def use_bounded_semaphore() -> None:
    there(_too_many, mp.BoundedSemaphore(2))


def _event(mine: Any, theirs: Any) -> list[Any]:
    seen = [mine.is_set(), mine.wait(0), "unset" in repr(mine)]
    mine.set()
    seen += [mine.is_set(), theirs.wait(DEADLINE_S)]
    mine.clear()
    return [*seen, mine.is_set()]


def use_event() -> None:
    mine, theirs = mp.Event(), mp.Event()
    task = over_there.remote(_event, mine, theirs)
    assert mine.wait(DEADLINE_S)
    theirs.set()
    assert dpool.get(task, timeout=DEADLINE_S) == [False, False, True, True, True, False]


def _wait_for(condition: Any, value: Any, wanted: int) -> int:
    with condition:
        assert condition.wait_for(lambda: value.value == wanted, DEADLINE_S)
        value.value += 1
        condition.notify_all()
    return wanted


def use_condition() -> None:
    condition, value = mp.Condition(), mp.Value("i", 0)
    task = over_there.remote(_wait_for, condition, value, 1)
    with condition:
        value.value = 1
        condition.notify_all()
    with condition:
        assert condition.wait_for(lambda: value.value == 2, DEADLINE_S)
    assert dpool.get(task, timeout=DEADLINE_S) == 1


def _arrive(barrier: Any) -> int:
    return int(barrier.wait(DEADLINE_S))


def use_barrier() -> None:
    barrier = mp.Barrier(3)
    tasks = [over_there.remote(_arrive, barrier) for _ in range(2)]
    numbers = [barrier.wait(DEADLINE_S), *dpool.get(tasks, timeout=DEADLINE_S)]
    assert sorted(numbers) == [0, 1, 2]


def _put(target: Any, items: list[Any]) -> None:
    for item in items:
        target.put(item)


def _get(source: Any, count: int) -> list[Any]:
    return [source.get() for _ in range(count)]


class Thing:
    def __init__(self, number: int) -> None:
        self.number = number


def _queue(back: Any, forth: Any) -> Any:
    with pytest.raises(queue.Empty):
        forth.get_nowait()
    _put(back, list(range(20)))
    return forth.get().number


def _use_queue(kind: str) -> None:
    back, forth = getattr(mp, kind)(), mp.Queue()
    task = over_there.remote(_queue, back, forth)
    assert [back.get() for _ in range(20)] == list(range(20))
    forth.put(Thing(7))
    assert dpool.get(task, timeout=DEADLINE_S) == 7
    there(_put, back, ["what a task has put is there when it is done"])
    assert not back.empty()


def use_queue() -> None:
    _use_queue("Queue")


def use_simple_queue() -> None:
    _use_queue("SimpleQueue")


def _deal_with(source: Any, count: int) -> None:
    for _ in range(count):
        source.get()
        source.task_done()


def use_joinable_queue() -> None:
    source = mp.JoinableQueue()
    _put(source, [1, 2, 3])
    task = over_there.remote(_deal_with, source, 3)
    source.join()
    dpool.get(task, timeout=DEADLINE_S)


def use_queue_that_is_full() -> None:
    source = mp.Queue(2)
    task = over_there.remote(_put, source, list(range(10)))
    assert _get(source, 10) == list(range(10))
    dpool.get(task, timeout=DEADLINE_S)
    with pytest.raises(queue.Full):
        there(_fill, source)
    assert source.full()


def _fill(source: Any) -> None:
    for item in range(3):
        source.put_nowait(item)


def _sums(source: Any, target: Any, count: int) -> None:
    for _ in range(count):
        target.put(source.get() * 2)


def use_queue_with_large_items() -> None:
    forth, back = mp.Queue(), mp.Queue()
    forth.put(np.arange(300_000))
    there(_sums, forth, back, 1)
    assert np.array_equal(back.get(), np.arange(300_000) * 2)


def _value(value: Any, double: Any, raw: Any) -> list[Any]:
    with value.get_lock():
        value.value += 5
    double.value = 0.25
    raw.value += 1
    return [value.value, double.value, raw.value]


def use_value() -> None:
    value, double, raw = mp.Value("i", 7), mp.Value("d"), mp.RawValue("q", 2**40)
    assert there(_value, value, double, raw) == [12, 0.25, 2**40 + 1]
    assert (value.value, double.value, raw.value) == (12, 0.25, 2**40 + 1)


def _array(array: Any, text: Any, raw: Any) -> list[Any]:
    array[0], array[-1] = 10, 30
    array[1:3] = [11, 12]
    text.value = b"changed"
    raw[2] = 0.5
    seen = [len(array), array[:], array[::-2], list(raw), text.value, text[0]]
    with pytest.raises(IndexError):
        array[5]
    with pytest.raises(TypeError):
        np.frombuffer(array.get_obj(), "i")
    return seen


def use_array() -> None:
    array, text, raw = mp.Array("i", range(5)), mp.Array("c", 20), mp.RawArray("d", 3)
    now = [10, 11, 12, 3, 30]
    assert there(_array, array, text, raw) == [5, now, now[::-2], [0, 0, 0.5], b"changed", b"c"]
    assert (array[:], text.value, list(raw)) == (now, b"changed", [0, 0, 0.5])


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_double), ("pair", ctypes.c_int * 2), ("bits", ctypes.c_uint, 3))


def _struct(point: Any, points: Any) -> list[Any]:
    point.x = 1.5
    point.pair[1] = 9
    point.bits = 5
    points[1].x = 2.5
    points[2] = Point(3.5)
    with pytest.raises(AttributeError, match="'y'"):
        point.get_obj().y = 1
    return [point.x, list(point.pair), point.bits, [one.x for one in points]]


def use_struct() -> None:
    point, points = mp.Value(Point), mp.RawArray(Point, 3)
    assert there(_struct, point, points) == [1.5, [0, 9], 5, [0, 2.5, 3.5]]
    assert (point.x, point.pair[1], point.bits) == (1.5, 9, 5)
    assert [one.x for one in points] == [0, 2.5, 3.5]


def _talk(end: Any) -> Any:
    got = []
    while (said := end.recv()) is not None:
        got.append(said)
        end.send(("heard", len(said)))
    end.close()
    return sum(map(len, got))


def use_pipe() -> None:
    ours, theirs = mp.Pipe()
    task = over_there.remote(_talk, theirs)
    for said in ("a", "x" * 3_000_000, b"b"):
        ours.send(said)
        assert ours.recv() == ("heard", len(said))
    ours.send(None)
    assert dpool.get(task, timeout=DEADLINE_S) == 3_000_002
    theirs.close()
    with pytest.raises(EOFError):
        ours.recv()
    ours.close()


def _say_all(end: Any, count: int) -> None:
    for number in range(count):
        end.send(number)
    end.close()


def use_pipe_of_one_direction() -> None:
    reader, writer = mp.Pipe(duplex=False)
    task = over_there.remote(_say_all, writer, 50)
    assert [reader.recv() for _ in range(50)] == list(range(50))
    dpool.get(task, timeout=DEADLINE_S)
    writer.close()
    with pytest.raises(EOFError):
        reader.recv()
    reader.close()


def _proxies(lock: Any, found: Any, nested: Any, items: Any) -> int:
    with lock:
        found["sum"] = found.get("sum", 0) + 1
    nested["list"].append(3)
    items.put("hello")
    return len(found)


def use_manager() -> None:
    with mp.Manager() as manager:
        lock, found, nested, items = manager.Lock(), manager.dict(), manager.dict(), manager.Queue()
        nested["list"] = manager.list([1, 2])
        assert there(_proxies, lock, found, nested, items) == 1
        assert dict(found) == {"sum": 1}
        assert list(nested["list"]) == [1, 2, 3]
        assert items.get(timeout=DEADLINE_S) == "hello"


USES = {name: use for name, use in list(globals().items()) if name.startswith("use_")}


@pytest.mark.parametrize("name", USES)
def test_every_kind(machines: Cluster, name: str) -> None:
    USES[name]()
