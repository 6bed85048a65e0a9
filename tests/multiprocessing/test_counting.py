"""Semaphore, BoundedSemaphore, Event and Barrier: in this process, and wherever else they may be used."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

import dpool.multiprocessing as mp
from tests.helpers import run_script, wait_until
from tests.multiprocessing.conftest import WAIT_S, Elsewhere


def _acquire(semaphore: Any) -> bool:
    return bool(semaphore.acquire(False))


def _release(semaphore: Any) -> int:
    semaphore.release()
    return int(semaphore.get_value())


@pytest.mark.parametrize("make", [mp.Semaphore, mp.BoundedSemaphore])
def test_permits_are_counted_everywhere(make: Any, elsewhere: Elsewhere) -> None:
    semaphore = make(2)
    assert semaphore.acquire()
    assert elsewhere(_acquire, semaphore)
    assert not semaphore.acquire(False)
    assert semaphore.get_value() == 0
    assert elsewhere(_release, semaphore) == 1
    semaphore.release()
    assert repr(semaphore).startswith(f"<{type(semaphore).__name__}(value=2")


def test_a_semaphore() -> None:
    semaphore = mp.Semaphore(0)
    assert not semaphore.acquire(False)
    assert not semaphore.acquire(timeout=0.01)
    assert not semaphore.acquire(True, -1)
    for _ in range(3):
        semaphore.release()
    assert repr(semaphore) == "<Semaphore(value=3)>"
    with semaphore as entered:
        assert entered is True
        assert semaphore.get_value() == 2
    assert semaphore.get_value() == 3


def test_a_bounded_semaphore() -> None:
    semaphore = mp.BoundedSemaphore(1)
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release()
    assert repr(semaphore) == "<BoundedSemaphore(value=1, maxvalue=1)>"
    for wrong in (-1, 2**31):
        with pytest.raises(ValueError, match="initial value"):
            mp.Semaphore(wrong)


def test_permits_go_to_those_who_wait(pool: Any) -> None:
    semaphore, queue = mp.Semaphore(0), mp.Queue()
    results = [pool.apply_async(_acquire_and_tell, (semaphore, queue)) for _ in range(2)]
    for _ in results:
        semaphore.release()
    assert sorted(queue.get(timeout=WAIT_S) for _ in results) == [True, True]
    assert [one.get(WAIT_S) for one in results] == [None, None]
    assert semaphore.get_value() == 0


def _acquire_and_tell(semaphore: Any, queue: Any) -> None:
    queue.put(semaphore.acquire(timeout=WAIT_S))


# --- Event ---


def _wait(event: Any) -> bool:
    return bool(event.wait(WAIT_S))


def _set(event: Any) -> bool:
    event.set()
    return bool(event.is_set())


def test_an_event() -> None:
    event = mp.Event()
    assert not event.is_set()
    assert not event.wait(0)
    assert not event.wait(0.01)
    assert repr(event) == f"<Event at {id(event):#x} unset>"
    event.set()
    assert event.is_set()
    assert event.wait()
    assert repr(event) == f"<Event at {id(event):#x} set>"
    event.clear()
    assert not event.is_set()


def test_an_event_is_set_elsewhere(elsewhere: Elsewhere) -> None:
    event = mp.Event()
    assert elsewhere(_set, event) is True
    assert event.is_set()
    assert elsewhere(_wait, event) is True


def test_an_event_wakes_all_who_wait(pool: Any) -> None:
    """Also when it is cleared at once."""
    event, semaphore = mp.Event(), mp.Semaphore(0)
    results = [pool.apply_async(_tell_and_wait, (semaphore, event)) for _ in range(2)]
    for _ in results:
        assert semaphore.acquire(timeout=WAIT_S)
    while not all(one.ready() for one in results):  # they tell shortly before they wait
        event.set()
        event.clear()
    assert [one.get(WAIT_S) for one in results] == [True, True]


def _tell_and_wait(semaphore: Any, event: Any) -> bool:
    semaphore.release()
    return bool(event.wait(WAIT_S))


# --- Barrier ---


def _pass(barrier: Any, times: int) -> list[int]:
    return [barrier.wait(WAIT_S) for _ in range(times)]


def test_a_barrier_across_workers(pool: Any) -> None:
    barrier = mp.Barrier(3)
    results = [pool.apply_async(_pass, (barrier, 10)) for _ in range(2)]
    places = [_pass(barrier, 10), *(one.get(WAIT_S) for one in results)]
    assert [sorted(turn) for turn in zip(*places, strict=True)] == [[0, 1, 2]] * 10
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)


def test_a_barrier_elsewhere(elsewhere: Elsewhere) -> None:
    barrier = mp.Barrier(2)
    places: list[int] = []
    thread = threading.Thread(target=lambda: places.append(barrier.wait(WAIT_S)))
    thread.start()
    places += elsewhere(_pass, barrier, 1)
    thread.join(WAIT_S)
    assert sorted(places) == [0, 1]


def _add(value: Any) -> None:
    value.value += 1


def test_the_action_runs_once_before_anybody_goes_on(pool: Any) -> None:
    value = mp.Value("i", 0)
    barrier = mp.Barrier(2, functools.partial(_add, value))
    result = pool.apply_async(_pass_and_look, (barrier, value))
    assert _pass_and_look(barrier, value) == [1, 1, 3, 3, 5, 5]
    assert result.get(WAIT_S) == [1, 1, 3, 3, 5, 5]


def _pass_and_look(barrier: Any, value: Any) -> list[int]:
    """What is seen before the other one can have come to the next turn; every second turn is for that."""
    seen = []
    for _ in range(3):
        barrier.wait(WAIT_S)
        seen += [value.value, value.value]
        barrier.wait(WAIT_S)
    return seen


def test_an_action_that_raises_breaks_it(pool: Any) -> None:
    barrier = mp.Barrier(2, _fail)
    result = pool.apply_async(_pass, (barrier, 1))
    errors = []
    for wait in (lambda: barrier.wait(WAIT_S), lambda: result.get(WAIT_S)):
        try:
            wait()
        except Exception as error:
            errors.append(type(error).__name__)
    assert sorted(errors) == ["BrokenBarrierError", "ZeroDivisionError"]
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


def _fail() -> None:
    raise ZeroDivisionError


def test_a_barrier_that_breaks() -> None:
    barrier = mp.Barrier(2, timeout=0.01)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    assert barrier.broken
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(WAIT_S)
    barrier.reset()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            barrier.wait(WAIT_S)
        except threading.BrokenBarrierError as error:
            errors.append(error)

    for end in (barrier.reset, barrier.abort):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: barrier.n_waiting == 1, WAIT_S, "it waits")
        assert "waiters=1/2" in repr(barrier)
        end()
        thread.join(WAIT_S)
    assert len(errors) == 2
    assert "broken" in repr(barrier)
    with pytest.raises(ValueError, match="parties"):
        mp.Barrier(0)


def test_a_task_that_waits_lets_others_have_its_cpus() -> None:
    """Or the second party could never begin."""
    script = """
import dpool
import dpool.multiprocessing as mp
barrier = mp.Barrier(2, timeout=30)
with dpool.Executor(2) as executor:
    futures = [executor.options(num_cpus=1).submit(barrier.wait) for _ in range(2)]
    print(sorted(future.result() for future in futures))
"""
    assert run_script(script, env={"DPOOL_NUM_CPUS": "1"}).check().stdout == "[0, 1]\n"
