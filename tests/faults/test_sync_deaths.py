"""Processes are killed while they have, wait for, or have just been handed something."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import dpool
import dpool.multiprocessing as mp
from tests.faults import sync_tasks as work
from tests.faults.support import DEADLINE_S, one_of_role, resident_bytes, sigkill
from tests.helpers import wait_until

FORK = mp.get_context("fork")


@pytest.fixture(params=["worker", "child"])
def start(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Starts a function in a worker, or in a child process."""
    if request.param == "worker":
        with dpool.Executor(3) as executor:
            yield executor.submit
            executor.kill_workers()
        return
    children: list[Any] = []

    def begin(function: Any, *args: Any) -> None:
        children.append(FORK.Process(target=function, args=args))
        children[-1].start()

    yield begin
    for child in children:
        child.kill()
        child.join()
        child.close()


def _pid(said: Any) -> int:
    return int(said.get(timeout=DEADLINE_S))


@pytest.mark.parametrize("make", [mp.Lock, mp.RLock])
def test_the_holder_of_a_lock(start: Any, make: Any) -> None:
    lock, said = make(), mp.Queue()
    start(work.take_and_say, lock, said)
    pid = _pid(said)
    assert not lock.acquire(False)
    os.kill(pid, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match=f"process {pid} ended while it had this lock"):
        assert lock.acquire(timeout=DEADLINE_S)
    lock.release()
    assert lock.acquire(timeout=DEADLINE_S)
    lock.release()


def test_somebody_waits_when_the_holder_dies(start: Any) -> None:
    lock, said = mp.Lock(), mp.Queue()
    start(work.take_and_say, lock, said)
    pid = _pid(said)
    start(work.say_and_take, lock, said)
    _pid(said)
    os.kill(pid, signal.SIGKILL)
    assert said.get(timeout=DEADLINE_S) == "got it"


def test_one_who_waits_for_a_lock(start: Any) -> None:
    """The next one gets it."""
    lock, said = mp.Lock(), mp.Queue()
    lock.acquire()
    start(work.say_and_take, lock, said)
    first = _pid(said)
    start(work.say_and_take, lock, said)
    _pid(said)
    sigkill(first)
    lock.release()
    assert said.get(timeout=DEADLINE_S) == "got it"


def test_at_any_moment_of_taking_and_giving(start: Any) -> None:
    lock, value, said = mp.Lock(), mp.Value("q", 0, lock=False), mp.Queue()
    for _ in range(5):
        start(work.loop_until_killed, lock, value, said)
        pid = _pid(said)
        seen = value.value
        wait_until(lambda seen=seen: value.value > seen + 50, DEADLINE_S, "it is at work")  # type: ignore[misc]
        sigkill(pid)
        assert _acquired(lock)
        lock.release()


def _acquired(lock: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return bool(lock.acquire(timeout=DEADLINE_S))


def test_a_permit_that_was_got_by_with(start: Any) -> None:
    semaphore, said = mp.Semaphore(1), mp.Queue()
    start(work.enter_and_say, semaphore, said)
    pid = _pid(said)
    assert not semaphore.acquire(False)
    os.kill(pid, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match=f"process {pid} ended in a `with` block"):
        assert semaphore.acquire(timeout=DEADLINE_S)
    assert semaphore.get_value() == 0


def test_a_permit_that_was_counted(start: Any) -> None:
    """It may mean anything, so it stays taken."""
    semaphore, said = mp.Semaphore(1), mp.Queue()
    start(work.take_and_say, semaphore, said)
    sigkill(_pid(said))
    assert not semaphore.acquire(timeout=0.3)
    semaphore.release()
    assert semaphore.get_value() == 1


def test_a_party_of_a_barrier(start: Any) -> None:
    barrier, said = mp.Barrier(3), mp.Queue()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            barrier.wait(DEADLINE_S)
        except threading.BrokenBarrierError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    start(work.say_and_pass, barrier, said)
    pid = _pid(said)
    wait_until(lambda: barrier.n_waiting == 2, DEADLINE_S, "both wait")
    os.kill(pid, signal.SIGKILL)
    thread.join(DEADLINE_S)
    assert len(errors) == 1
    assert barrier.broken


def test_one_who_waits_for_a_condition(start: Any) -> None:
    """What would have woken it wakes another."""
    condition, said = mp.Condition(), mp.Queue()
    start(work.say_and_wait, condition, said)
    first = _pid(said)
    with condition:  # it waits
        pass
    woken: list[bool] = []

    def wait() -> None:
        with condition:
            said.put("waits")
            woken.append(condition.wait(DEADLINE_S))

    thread = threading.Thread(target=wait)
    thread.start()
    assert said.get(timeout=DEADLINE_S) == "waits"
    sigkill(first)
    wait_until(lambda: repr(condition).endswith(", 1)>"), DEADLINE_S, "it is known")
    with condition:
        condition.notify()
    thread.join(DEADLINE_S)
    assert woken == [True]


def test_a_getter(start: Any) -> None:
    """It is stopped, so that it cannot read what it is handed; then it dies, and the item is the first again."""
    queue, said = mp.Queue(), mp.Queue()
    start(work.say_and_get, queue, said)
    pid = _pid(said)
    for x in range(3):
        os.kill(pid, signal.SIGSTOP)
        queue.put(x)
    queue.qsize()  # all that was put has arrived
    os.kill(pid, signal.SIGKILL)
    got = sorted(queue.get(timeout=DEADLINE_S) for _ in range(2))
    wait_until(lambda: queue.qsize() == 1 or not said.empty(), DEADLINE_S, "the third")
    rest = queue.get(timeout=DEADLINE_S) if said.empty() else said.get()[1]
    assert sorted([*got, rest]) == [0, 1, 2]


def test_what_a_process_put_before_it_was_killed(start: Any) -> None:
    queue = mp.Queue()
    start(work.put_and_die, queue, 2000)
    assert [queue.get(timeout=DEADLINE_S) for _ in range(2000)] == list(range(2000))


def test_nothing_is_left_of_ten_thousand_objects() -> None:
    with dpool.Executor(1) as executor:
        keep = mp.Lock()
        before = _descriptors()
        for _ in range(10):
            made = [make() for make in (mp.Lock, mp.Event, mp.Queue, mp.Semaphore, _number) for _ in range(200)]
            executor.submit(len, made).result(DEADLINE_S)
            del made
        assert _descriptors() <= before + 4
        assert executor.submit(_try, keep).result(DEADLINE_S)
        del keep


def _number() -> Any:
    return mp.Value("i", 1)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _try(lock: Any) -> bool:
    with lock:
        return True


def test_a_queue_that_nobody_reads_does_not_fill_the_memory() -> None:
    """And nothing of it is lost, nor is its order."""
    queue, size, count = mp.Queue(), 60_000, 2500
    with dpool.Executor(1) as executor:
        node = one_of_role("dpool-node")
        before = resident_bytes(node)
        executor.submit(work.put_numbered, queue, size, count).result(DEADLINE_S)
        assert queue.qsize() == count
        assert resident_bytes(node) - before < 100 << 20
        for number in range(count):
            item = queue.get(timeout=DEADLINE_S)
            assert len(item) == size
            assert item.startswith(b"%d " % number)
        queue.put("again")
        assert queue.get(timeout=DEADLINE_S) == "again"
    del queue
