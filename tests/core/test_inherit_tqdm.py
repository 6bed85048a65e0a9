"""The lock of tqdm's bars in `initargs`: workers and this process take turns, and those who had it go on having it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import dpool
from dpool._core.inherit_tqdm import is_of_tqdm, with_a_name
from dpool.errors import InitializerFailed
from tests.executor.support import Gate
from tests.fixtures import the_runtime as the_runtime

tqdm = pytest.importorskip("tqdm.std")
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def lock() -> Iterator[Any]:
    """tqdm's default one, which otherwise would be made once and live as long as the process."""
    made = tqdm.TqdmDefaultWriteLock()
    yield made
    del tqdm.TqdmDefaultWriteLock.mp_lock
    if "_lock" in vars(tqdm.tqdm):
        del tqdm.tqdm._lock


def take_and_hold(gate: Gate) -> None:
    with tqdm.tqdm.get_lock():
        gate.enter()


def others_must_wait(lock: Any) -> bool:
    if lock.acquire(block=False):
        lock.release()
        return False
    return True


@pytest.mark.parametrize("of_processes_only", [False, True])
@pytest.mark.parametrize("kind", [dpool.Executor, dpool.Pool])
def test_workers_and_this_process_take_turns(kind: Any, of_processes_only: bool, lock: Any, gate: Gate) -> None:
    given = lock.mp_lock if of_processes_only else lock
    with kind(2, initializer=tqdm.tqdm.set_lock, initargs=(given,)) as workers, ThreadPoolExecutor(1) as threads:
        call = workers.apply if kind is dpool.Pool else lambda fn, args: workers.submit(fn, *args).result(WAIT_S)
        held = threads.submit(call, take_and_hold, (gate,))
        gate.entered()
        assert others_must_wait(lock.mp_lock)
        gate.open()
        held.result(WAIT_S)
        with lock.mp_lock, lock.mp_lock:  # it may be taken again by who has it
            assert threads.submit(others_must_wait, lock.mp_lock).result(WAIT_S)
        assert not others_must_wait(lock.mp_lock)


def test_a_lock_that_is_held_stays_held(lock: Any) -> None:
    with lock.mp_lock:
        named = with_a_name(lock.mp_lock)
        assert not named.acquire.__self__._is_mine()
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(others_must_wait, lock.mp_lock).result(WAIT_S)
    assert not others_must_wait(lock.mp_lock)
    assert with_a_name(lock.mp_lock) is named
    with lock.mp_lock, ThreadPoolExecutor(1) as threads:
        assert threads.submit(others_must_wait, named).result(WAIT_S)


def test_who_waits_for_the_second_semaphore_in_vain_gives_back_the_first(lock: Any) -> None:
    own = lock.mp_lock._semlock
    named = with_a_name(lock.mp_lock)
    with named, ThreadPoolExecutor(1) as threads:
        assert threads.submit(lock.mp_lock.acquire, False).result(WAIT_S) is False
        assert threads.submit(lock.mp_lock.acquire, True, 0.01).result(WAIT_S) is False
    assert own._is_zero() is False


def test_a_fork_of_this_process_takes_turns_too(lock: Any) -> None:
    with_a_name(lock.mp_lock)
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(others_must_wait(lock.mp_lock)))
    with lock.mp_lock:
        child.start()
        child.join(WAIT_S)
    assert child.exitcode == 1
    child.close()


def test_the_user_s_lock_of_bars(lock: Any) -> None:
    own = multiprocessing.get_context("fork").RLock()
    assert not is_of_tqdm(own)
    tqdm.tqdm.set_lock(own)
    assert is_of_tqdm(own)
    with dpool.Pool(1, initializer=tqdm.tqdm.set_lock, initargs=(tqdm.tqdm.get_lock(),)) as pool:
        assert pool.apply(type, (1,)) is int


def test_other_locks_are_refused_as_ever() -> None:
    other = multiprocessing.get_context("fork").RLock()
    with (
        dpool.Executor(1, initializer=tqdm.tqdm.set_lock, initargs=(other,)) as executor,
        pytest.raises(InitializerFailed, match="made with the 'fork' start method"),
    ):
        executor.submit(threading.get_ident).result(WAIT_S)
