"""Lock, RLock and Condition: in this process, and wherever else they may be used."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import dpool.multiprocessing as mp
from dpool.errors import ObjectLost
from tests.helpers import run_script, wait_until
from tests.multiprocessing.conftest import WAIT_S, Elsewhere


def _try(lock: Any) -> bool:
    return bool(lock.acquire(False))


def _take_if_free(lock: Any) -> bool:
    taken = _try(lock)
    if taken:
        lock.release()
    return taken


def _take_and_give(lock: Any) -> bool:
    taken = lock.acquire(timeout=WAIT_S)
    lock.release()
    return bool(taken)


def _release(lock: Any) -> None:
    lock.release()


def _owner(lock: Any) -> str:
    return repr(lock)


@pytest.mark.parametrize("make", [mp.Lock, mp.RLock])
def test_it_is_taken_everywhere(make: Any, elsewhere: Elsewhere) -> None:
    lock = make()
    with lock:
        assert elsewhere(_try, lock) is False
        assert "SomeOtherProcess" in elsewhere(_owner, lock)
    assert elsewhere(_take_and_give, lock) is True
    assert lock.acquire(timeout=WAIT_S)
    lock.release()


def test_a_lock_in_this_process() -> None:
    lock = mp.Lock()
    assert lock.acquire() is True
    assert repr(lock) == "<Lock(owner=MainProcess)>"
    assert lock.acquire(False) is False
    assert lock.acquire(timeout=0.01) is False
    assert lock.acquire(True, -1) is False
    lock.release()
    assert repr(lock) == "<Lock(owner=None)>"
    with pytest.raises(ValueError, match="released too many times"):
        lock.release()
    with lock as entered:
        assert entered is True


def test_a_lock_among_threads() -> None:
    lock, counts = mp.Lock(), [0]

    def add() -> None:
        for _ in range(200):
            with lock:
                counts[0] = counts[0] + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(WAIT_S)
    assert counts == [800]


def test_a_lock_is_released_by_another_process(elsewhere: Elsewhere) -> None:
    lock = mp.Lock()
    for _ in range(3):
        lock.acquire()
        elsewhere(_release, lock)
        assert repr(lock) == "<Lock(owner=None)>"
    assert elsewhere(_take_and_give, lock)
    with pytest.raises(ValueError, match="released too many times"):
        lock.release()


def test_a_thread_waits_for_what_another_process_releases(pool: Any) -> None:
    lock, got = mp.Lock(), []
    lock.acquire()
    thread = threading.Thread(target=lambda: got.append(lock.acquire(timeout=WAIT_S)))
    thread.start()
    pool.apply(_release, (lock,))
    thread.join(WAIT_S)
    assert got == [True]
    lock.release()


def test_a_recursive_lock() -> None:
    lock = mp.RLock()
    assert lock.acquire()
    assert lock.acquire(False)
    assert repr(lock) == "<RLock(MainProcess, 2)>"
    lock.release()
    lock.release()
    assert repr(lock) == "<RLock(None, 0)>"
    with pytest.raises(AssertionError, match="not owned by thread"):
        lock.release()
    with lock:
        errors: list[BaseException] = []

        def other() -> None:
            assert repr(lock) == "<RLock(SomeOtherThread, nonzero)>"
            assert not lock.acquire(False)
            try:
                lock.release()
            except AssertionError as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(WAIT_S)
        assert len(errors) == 1


def _count(lock: Any, value: Any, n: int) -> None:
    for _ in range(n):
        with lock:
            seen = value.value
            value.value = seen + 1


def test_nobody_is_let_in_twice(pool: Any) -> None:
    lock, value = mp.Lock(), mp.RawValue("i", 0)
    processes = [mp.get_context("fork").Process(target=_count, args=(lock, value, 500)) for _ in range(2)]
    for one in processes:
        one.start()
    results = [pool.apply_async(_count, (lock, value, 500)) for _ in range(2)]
    _count(lock, value, 500)
    for one in processes:
        one.join(WAIT_S)
        one.close()
    for result in results:
        result.get(WAIT_S)
    assert value.value == 2500


def test_who_waits_long_is_not_overtaken_for_ever(pool: Any) -> None:
    """Another process takes it again and again, and hardly ever lets it go."""
    lock, stop = mp.Lock(), mp.Event()
    result = pool.apply_async(_hog, (lock, stop))
    wait_until(lambda: not _take_if_free(lock), WAIT_S, "the other one is at it")
    for _ in range(20):
        assert lock.acquire(timeout=WAIT_S)
        lock.release()
    stop.set()
    result.get(WAIT_S)


def _hog(lock: Any, stop: Any) -> None:
    while not stop.is_set():
        with lock:
            sum(range(2000))


def test_it_is_the_same_object_when_it_comes_back(pool: Any) -> None:
    lock = mp.Lock()
    again = pool.apply(_same, (lock,))
    with lock:
        assert not again.acquire(False)


def test_anybody_may_pickle_it() -> None:
    """It is held to the end of the program then, for nobody knows when that is unpickled."""
    script = """
import copy, pickle
import dpool.multiprocessing as mp
lock = mp.Lock()
data = pickle.dumps(lock)
del lock
lock = pickle.loads(data)
with lock:
    print(pickle.loads(data).acquire(False), copy.copy(lock).acquire(False))
"""
    assert run_script(script).check().stdout == "False False\n"


def _same(value: Any) -> Any:
    return value


def _make_lock() -> Any:
    return mp.Lock()


def test_made_in_a_worker(pool: Any) -> None:
    lock = pool.apply(_make_lock)
    with lock:
        assert pool.apply(_try, (lock,)) is False


def test_a_pickle_that_comes_too_late(pool: Any) -> None:
    lock = mp.Lock()
    reduced = lock._rebuilt()
    del lock
    other = mp.Lock()
    wait_until(lambda: _refused(reduced), WAIT_S, "the lock is gone")
    assert other.acquire()
    other.release()


def _refused(reduced: Any) -> bool:
    make, args = reduced
    lock = make(*args)
    try:
        lock.release()
    except ObjectLost:
        return True
    except ValueError:
        return False
    return False


# --- Condition ---


def _wait_and_say(condition: Any, queue: Any) -> bool:
    with condition:
        queue.put(os.getpid())
        return bool(condition.wait(WAIT_S))


@pytest.mark.parametrize("lock", [None, mp.Lock, mp.RLock])
def test_a_condition_across_workers(pool: Any, lock: Any) -> None:
    condition, queue = mp.Condition(lock and lock()), mp.Queue()
    results = [pool.apply_async(_wait_and_say, (condition, queue)) for _ in range(2)]
    for _ in results:
        queue.get(timeout=WAIT_S)
    with condition:
        condition.notify()
    wait_until(lambda: any(one.ready() for one in results), WAIT_S, "one was woken")
    with condition:
        assert repr(condition).endswith(", 1)>")
        condition.notify_all()
    assert [one.get(WAIT_S) for one in results] == [True, True]


def test_a_condition_in_this_process() -> None:
    condition = mp.Condition()
    with pytest.raises(AssertionError, match="must acquire"):
        condition.wait(0)
    with pytest.raises(AssertionError, match="not owned"):
        condition.notify()
    with pytest.raises(TypeError, match=r"takes a Lock or RLock of dpool\.multiprocessing, not a lock"):
        mp.Condition(threading.Lock())
    with condition:
        condition.acquire()
        assert condition.wait(0.01) is False
        assert repr(condition) == "<Condition(<RLock(MainProcess, 2)>, 0)>"
        condition.release()
        assert condition.wait_for(lambda: 5) == 5
        assert condition.wait_for(lambda: 0, 0.01) == 0


def _set_and_notify(condition: Any, value: Any) -> None:
    for _ in range(3):
        with condition:
            value.value += 1
            condition.notify()


def test_wait_for_what_another_process_does(elsewhere: Elsewhere) -> None:
    condition = mp.Condition()
    value = mp.Value("i", 0, lock=False)
    seen: list[bool] = []

    def wait() -> None:
        with condition:
            seen.append(condition.wait_for(lambda: value.value == 3, WAIT_S))

    thread = threading.Thread(target=wait)
    thread.start()
    elsewhere(_set_and_notify, condition, value)
    thread.join(WAIT_S)
    assert seen == [True]
