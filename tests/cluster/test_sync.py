"""Locks, queues, shared values, pipes and managers in tasks on another machine (two gateways with their nodes here)."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dpool
import dpool.multiprocessing as mp
from dpool._core import driver
from dpool.errors import NodeLost
from tests.cluster.test_loopback import DEADLINE_S, Cluster, cluster
from tests.helpers import wait_until

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


# --- what refers to other things ---


def _with_ref(source: Any, target: Any) -> int:
    lock, ref, array = source.get()
    with lock:
        target.put((dpool.put(np.full(200_000, 3)), mp.Event(), lock))
    return int(dpool.get(ref).sum() + array.sum())


def test_items_that_refer_to_objects(machines: Cluster) -> None:
    forth, back = mp.Queue(), mp.Queue()
    lock = mp.Lock()
    forth.put((lock, dpool.put(np.ones(300_000)), np.ones(200_000)))
    assert there(_with_ref, forth, back) == 500_000
    ref, event, same = back.get(timeout=DEADLINE_S)
    assert int(dpool.get(ref, timeout=DEADLINE_S).sum()) == 600_000
    assert same._core is lock._core
    assert _is_far(event)
    event.set()
    assert event.is_set()


def _make() -> tuple[Any, ...]:
    return mp.Lock(), mp.Queue(), mp.Value("i", 5), mp.Event(), mp.Barrier(2), mp.Semaphore(2)


def test_what_a_task_makes_over_there(machines: Cluster) -> None:
    lock, items, value, event, barrier, semaphore = there(_make)
    assert all(_is_far(one) for one in (lock, items, event, barrier, semaphore))
    with lock, value.get_lock():
        value.value += 1
    items.put("from here")
    task = over_there.remote(_get, items, 1)
    assert dpool.get(task, timeout=DEADLINE_S) == ["from here"]
    assert value.value == 6
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.01)
    assert semaphore.get_value() == 2


def _fork(lock: Any, items: Any) -> int | None:
    child = mp.get_context("fork").Process(target=_in_child, args=(lock, items))
    child.start()
    child.join()
    code: int | None = child.exitcode
    return code


def _in_child(lock: Any, items: Any) -> None:
    with lock:
        items.put(os.getppid())


def test_a_process_that_a_task_forks(machines: Cluster) -> None:
    lock, items = mp.Lock(), mp.Queue()
    assert there(_fork, lock, items) == 0
    assert items.get(timeout=DEADLINE_S) > 0
    assert lock.acquire(False)
    lock.release()


class Alarm(Exception):
    pass


def _with_alarm(wait: Callable[[], Any]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    wait()


def test_waiting_can_be_interrupted(machines: Cluster) -> None:
    lock, items, *_ = there(_make)

    def ring(number: int, frame: Any) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for wait in (items.get, lock.acquire):
            if wait == lock.acquire:
                lock.acquire()
            with pytest.raises(Alarm):
                _with_alarm(wait)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    lock.release()
    items.put("an item")
    assert items.get(timeout=DEADLINE_S) == "an item", "whoever was interrupted gets nothing any more"
    with lock:
        pass


def test_contention(machines: Cluster) -> None:
    """Threads here and tasks on both machines count together."""
    value, lock = mp.Value("i", 0, lock=False), mp.Lock()
    tasks = [over_there.remote(_count, lock, value, 25) for _ in range(2)]
    tasks += [anywhere.remote(_count, lock, value, 25) for _ in range(1)]
    _count(lock, value, 25)
    dpool.get(tasks, timeout=DEADLINE_S)
    assert value.value == 100


@dpool.remote
def anywhere(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


def _count(lock: Any, value: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            seen = value.value
            os.sched_yield()
            value.value = seen + 1


_initial: list[Any] = []


def _begin_with(*args: Any) -> None:
    _initial[:] = args


def _count_one(number: int) -> bool:
    lock, value, together = _initial
    together.wait(DEADLINE_S)
    with lock:
        value.value += number
    return _is_far(lock)


def test_initargs_of_a_pool(machines: Cluster) -> None:
    """Four at a time on two machines of two CPUs each."""
    lock, value, together = mp.Lock(), mp.Value("i", 0, lock=False), mp.Barrier(4)
    with mp.Pool(4, _begin_with, (lock, value, together)) as pool:
        far = pool.map_async(_count_one, range(4), 1).get(DEADLINE_S)
    assert value.value == 6
    assert set(far) == {False, True}


def _memory_of_this_node(array: Any = None) -> int:
    """How many large arrays this task's node has memory for."""
    directory = f"/proc/{os.getppid()}/fd"
    return sum("dpool-shared" in os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory))


def _make_array() -> Any:
    return mp.RawArray("B", 1 << 20)


def test_what_nobody_has_is_freed(machines: Cluster) -> None:
    here_first, there_first = dpool.get(anywhere.remote(_memory_of_this_node)), there(_memory_of_this_node)
    used = mp.RawArray("B", 1 << 20)
    made = there(_make_array)
    assert there(_memory_of_this_node, used) == there_first + 1, "that which it has made"
    assert dpool.get(anywhere.remote(_memory_of_this_node, made)) == here_first + 1
    del used, made
    wait_until(lambda: there(_memory_of_this_node) == there_first, DEADLINE_S)
    wait_until(lambda: dpool.get(anywhere.remote(_memory_of_this_node)) == here_first, DEADLINE_S)


# --- deaths ---


def _die_with(lock: Any, semaphore: Any, items: Any, ready: Any) -> None:
    with lock, semaphore:
        items.put("from a dying one")
        ready.set()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_dies_over_there(machines: Cluster) -> None:
    lock, semaphore, items, ready = mp.Lock(), mp.Semaphore(1), mp.Queue(), mp.Event()
    task = over_there.remote(_die_with, lock, semaphore, items, ready)
    assert ready.wait(DEADLINE_S)
    with pytest.warns(RuntimeWarning, match="of another machine ended while it had this lock"):
        assert lock.acquire(timeout=DEADLINE_S)
    with pytest.warns(RuntimeWarning, match="ended in a `with` block of this semaphore"):
        assert semaphore.acquire(timeout=DEADLINE_S)
    assert items.get(timeout=DEADLINE_S) == "from a dying one"
    with pytest.raises(dpool.errors.WorkerCrashed):
        dpool.get(task, timeout=DEADLINE_S)


def _hold(lock: Any, semaphore: Any, barrier: Any, items: Any, ready: Any) -> None:
    with lock, semaphore:
        thread = threading.Thread(target=barrier.wait)
        thread.start()
        wait_until(lambda: barrier.n_waiting == 1, DEADLINE_S)
        ready.set()
        items.get()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_machine_goes(cluster: Cluster, number: int) -> None:
    lock, semaphore, barrier, items, ready = mp.Lock(), mp.Semaphore(1), mp.Barrier(2), mp.Queue(), mp.Event()
    task = over_there.remote(_hold, lock, semaphore, barrier, items, ready)
    assert ready.wait(DEADLINE_S)
    assert not lock.acquire(False)
    cluster.stop(cluster.members[1], number)
    with pytest.warns(RuntimeWarning, match="of another machine ended while it had this lock"):
        assert lock.acquire(timeout=DEADLINE_S)
    with pytest.warns(RuntimeWarning, match="ended in a `with` block of this semaphore"):
        assert semaphore.acquire(timeout=DEADLINE_S)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(DEADLINE_S)
    items.put("for whoever lives")
    assert items.get(timeout=DEADLINE_S) == "for whoever lives"
    with pytest.raises(NodeLost, match="the link to"):
        dpool.get(task, timeout=DEADLINE_S)


def _get_at_last(items: Any, pids: Any) -> None:
    pids.put(os.getpid())
    items.get()
    wait_until(lambda: False, 1000)


@pytest.mark.parametrize("all_of_it", [False, True])
def test_an_item_that_nobody_has_read(cluster: Cluster, all_of_it: bool) -> None:
    items, pids = mp.Queue(), mp.Queue()
    task = over_there.remote(_get_at_last, items, pids)
    pid = pids.get(timeout=DEADLINE_S)
    os.kill(pid, signal.SIGSTOP)  # mostly it has asked by now; if not, the item just stays
    items.put("precious")
    if all_of_it:
        cluster.stop(cluster.members[1], signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
    assert items.get(timeout=DEADLINE_S) == "precious"
    with pytest.raises((NodeLost, dpool.errors.WorkerCrashed)):
        dpool.get(task, timeout=DEADLINE_S)


@dpool.remote(resources={"tower": 0.1}, max_retries=0)
def at_the_third(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


def _pass_on(lock: Any, items: Any, end: Any) -> Any:
    with lock:
        return at_the_third.remote(_talk_to_all, lock, items, end)


def _talk_to_all(lock: Any, items: Any, end: Any) -> str:
    assert _is_far(lock)
    with lock:
        items.put(np.ones(200_000))
        end.send("hello")
    end.close()
    return "done"


def test_three_machines(cluster: Cluster) -> None:
    cluster.add(resources=(("tower", 1.0),))
    lock, items, (reader, writer) = mp.Lock(), mp.Queue(), mp.Pipe()
    assert dpool.get(there(_pass_on, lock, items, writer), timeout=DEADLINE_S) == "done"
    assert items.get(timeout=DEADLINE_S).sum() == 200_000
    assert reader.recv() == "hello"
    reader.close()
    writer.close()


def test_the_home_goes(cluster: Cluster) -> None:
    """Whoever waits for something of a machine that goes, or uses it afterwards, is told."""
    lock, items, value, event, barrier, semaphore = there(_make)
    lock.acquire()
    told: list[BaseException] = []
    waiting = [items.get, lock.acquire, event.wait, barrier.wait]
    threads = [threading.Thread(target=_tell, args=(wait, told)) for wait in waiting]
    for thread in threads:
        thread.start()
    wait_until(lambda: barrier.n_waiting == 1, DEADLINE_S)
    cluster.stop(cluster.members[1], signal.SIGKILL)
    for thread in threads:
        thread.join(DEADLINE_S)
    for use in (lock.release, semaphore.acquire, event.is_set, items.qsize, lambda: items.put(1), lambda: value.value):
        _tell(use, told)
    assert [type(error) for error in told] == [NodeLost] * 10
    assert all("is lost: it lived on" in str(error) and "has left the cluster" in str(error) for error in told)


def _tell(use: Callable[[], Any], told: list[BaseException]) -> None:
    try:
        use()
    except BaseException as error:
        told.append(error)
