"""Queue, JoinableQueue and SimpleQueue: order, limits, what they carry, and wherever they may be used."""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np
import pytest

import dpool
import dpool.multiprocessing as mp
from tests.helpers import run_script, wait_until
from tests.multiprocessing.conftest import WAIT_S, Elsewhere


def _double(source: Any, target: Any) -> None:
    while (item := source.get()) is not None:
        target.put(item * 2)


def _put_all(target: Any, items: list[Any]) -> None:
    for item in items:
        target.put(item)


@pytest.mark.parametrize("make", [mp.Queue, mp.JoinableQueue, mp.SimpleQueue])
def test_items_keep_their_order(make: Any, elsewhere: Elsewhere) -> None:
    source, target = make(), make()
    _put_all(source, [*range(100), None])
    elsewhere(_double, source, target)
    assert [target.get() for _ in range(100)] == [2 * x for x in range(100)]
    assert target.empty()
    assert source.empty()


def test_a_queue_in_this_process() -> None:
    one: Any = mp.Queue(2)
    one.put(1)
    one.put_nowait(2)
    assert one.full()
    assert one.qsize() == 2
    for put in (lambda: one.put_nowait(3), lambda: one.put(3, timeout=0.01), lambda: one.put(3, True, -1)):
        with pytest.raises(queue.Full):
            put()
    assert (one.get(), one.get_nowait()) == (1, 2)
    assert one.empty()
    assert not one.full()
    for get in (one.get_nowait, lambda: one.get(timeout=0.01), lambda: one.get(False)):
        with pytest.raises(queue.Empty):
            get()
    with pytest.raises(AssertionError, match="not closed"):
        one.join_thread()
    one.close()
    one.join_thread()
    one.cancel_join_thread()
    for use in (lambda: one.put(1), one.get):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_a_simple_queue_that_is_closed() -> None:
    one = mp.SimpleQueue()
    one.close()
    one.close()
    for use in (lambda: one.put(1), one.get, one.empty):
        with pytest.raises(OSError, match="is closed"):
            use()


def test_who_waits_for_room_gets_it(pool: Any) -> None:
    one = mp.Queue(1)
    result = pool.apply_async(_put_all, (one, list(range(50))))
    assert [one.get(timeout=WAIT_S) for _ in range(50)] == list(range(50))
    result.get(WAIT_S)


def test_threads_of_a_process_are_heard_in_order() -> None:
    """One puts after the other, on connections of their own."""
    one, first = mp.Queue(), mp.Event()
    held: Any = mp.Semaphore(0)
    waiting = threading.Thread(target=held.acquire)  # it keeps a connection busy
    waiting.start()
    for turn in range(100):
        thread = threading.Thread(target=one.put, args=(turn,))
        thread.start()
        thread.join(WAIT_S)
        assert one.get_nowait() == turn
    held.release()
    waiting.join(WAIT_S)
    assert not first.is_set()


class Point:
    """Of a module."""

    def __init__(self, x: int) -> None:
        self.x = x


def _square(source: Any) -> Any:
    item = source.get(timeout=WAIT_S)
    return item(7) if callable(item) else item.x


def test_it_carries_functions_and_classes(pool: Any) -> None:
    one, base = mp.Queue(), 3
    one.put(lambda x: x * x + base)
    assert pool.apply(_square, (one,)) == 52
    one.put(Point(4))
    assert pool.apply(_square, (one,)) == 4


def test_it_carries_what_main_defines() -> None:
    """In both directions, and into a worker that was sent nothing of that."""
    script = """
import dpool.multiprocessing as mp
OFFSET = 100
class Point:
    def __init__(self, x):
        self.x = x
    def moved(self):
        return Point(self.x + OFFSET)
def take(q):
    return q.get(timeout=30)
def answer(q, r):
    r.put(q.get(timeout=30).moved())
if __name__ == "__main__":
    q, r = mp.Queue(), mp.Queue()
    with mp.Pool(1) as pool:
        q.put(Point(1))
        pool.apply(exec, ("import pickle; global_q = None",))
        pool.apply(answer, (q, r))
        point = r.get(timeout=30)
        print(type(point) is Point, point.x)
    with mp.Pool(1) as pool:
        q.put([Point(2), len])
        print(pool.apply(max, ([3, 4],)), pool.apply(getattr, (q, "get"))(timeout=30)[0].moved().x)
    for method in ("fork", "spawn"):
        process = mp.get_context(method).Process(target=answer, args=(q, r))
        process.start()
        q.put(Point(5))
        print(r.get(timeout=30).x)
        process.join()
"""
    assert run_script(script).check().stdout == "True 101\n4 102\n105\n105\n"


def test_what_does_not_pickle_raises_where_it_is_put() -> None:
    one = mp.Queue()
    with pytest.raises(TypeError, match="cannot pickle"):
        one.put(threading.Lock())
    one.put(1)
    assert one.get() == 1


class Bad:
    """It pickles."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ArithmeticError("bad item")


def test_an_item_that_does_not_load_is_gone() -> None:
    one = mp.Queue()
    one.put(Bad())
    one.put(2)
    with pytest.raises(ArithmeticError, match="bad item"):
        one.get()
    assert one.get() == 2


@pytest.mark.leaks("the store's memory files stay open in a process that has read from them")
@pytest.mark.parametrize("size", [1_000, 20_000])
def test_arrays(elsewhere: Elsewhere, size: int) -> None:
    source, target = mp.Queue(), mp.Queue()
    array = np.arange(size)
    source.put(array)
    source.put(None)
    elsewhere(_double, source, target)
    doubled = target.get(timeout=WAIT_S)
    assert (doubled == 2 * array).all()
    doubled[0] = 5  # it is writable
    assert doubled[0] == 5


def test_a_large_item_lies_in_the_object_store_once() -> None:
    one = mp.Queue()
    before = dpool.store_stats().objects
    one.put(np.zeros(20_000))
    assert dpool.store_stats().objects == before + 1
    array = one.get()
    assert array.sum() == 0
    del array
    wait_until(lambda: dpool.store_stats().objects == before, WAIT_S, "it is let go")


def test_an_item_may_hold_other_objects(pool: Any) -> None:
    """They live as long as the item does."""
    one = mp.Queue()
    inner = mp.Queue()
    inner.put("inside")
    one.put((inner, dpool.put("stored"), mp.Lock()))
    del inner
    found, ref, lock = one.get()
    assert found.get(timeout=WAIT_S) == "inside"
    assert dpool.get(ref) == "stored"
    with lock:
        assert True
    one.put((found, ref))
    del found, ref
    assert pool.apply(_look_inside, (one,)) == "stored"


def _look_inside(one: Any) -> Any:
    inner, ref = one.get(timeout=WAIT_S)
    assert inner.empty()
    return dpool.get(ref)


# --- JoinableQueue ---


def _work(one: Any, n: int) -> None:
    for _ in range(n):
        one.get(timeout=WAIT_S)
        one.task_done()


def test_join_waits_for_all_that_was_put(pool: Any) -> None:
    one = mp.JoinableQueue()
    one.join()
    for x in range(20):
        one.put(x)
    results = [pool.apply_async(_work, (one, 10)) for _ in range(2)]
    one.join()
    assert one.empty()
    for result in results:
        result.get(WAIT_S)
    with pytest.raises(ValueError, match="called too many times"):
        one.task_done()
