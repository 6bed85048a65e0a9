"""Queues, locks, … of multiprocessing, which an initializer may be given, and open files, which no call may."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

import pytest

import dpool
from dpool.errors import InitializerFailed

SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("fork")
UNNAMED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "SimpleQueue"), ()),
    "Queue": (1,),
    "JoinableQueue": (),
    "Barrier": (2,),
    "Value": ("i", 1),
    "Array": ("c", b"text"),
}
"""What has a semaphore inside, with arguments to make it."""
WAIT_S = 60.0
_given: tuple[Any, ...] = ()


@pytest.fixture(scope="module", autouse=True)
def the_runtime() -> None:
    """It keeps three descriptors of a process, and so does multiprocessing's shared heap; no test is to be blamed."""
    dpool.Executor(1).shutdown()
    SPAWN.Value("i", 0)


def _keep(*given: Any) -> None:
    global _given
    _given = given


def _put(at: int, value: object) -> None:
    _given[at].put(value)


def _through_all() -> object:
    lock, event, value, connection = _given
    with lock:
        value.value += 1
    connection.send("sent")
    return event.wait(WAIT_S)


def _opened() -> object:
    return open(__file__)


def test_an_initializer_inherits_what_a_spawned_process_would() -> None:
    ours, theirs = SPAWN.Pipe()
    lock, event, value = SPAWN.Lock(), SPAWN.Event(), SPAWN.Value("i", 41)
    with ours, theirs, dpool.Executor(1, initializer=_keep, initargs=(lock, event, value, theirs)) as executor:
        lock.acquire()
        future = executor.submit(_through_all)
        assert not ours.poll(), "the lock is not the same"
        lock.release()
        assert ours.recv() == "sent"
        event.set()
        assert future.result(WAIT_S) is True
        assert value.value == 42


def test_every_worker_inherits_many_queues() -> None:
    queues = [SPAWN.SimpleQueue() for _ in range(31)]
    with dpool.Executor(2, initializer=_keep, initargs=(*queues, bytes(200_000))) as executor:
        for at, queue in enumerate(queues):
            executor.submit(_put, at, at).result(WAIT_S)
            assert queue.get() == at
    for queue in queues:
        queue.close()


def test_more_descriptors_than_a_message_carries() -> None:
    queues = [SPAWN.SimpleQueue() for _ in range(32)]
    with (
        dpool.Executor(1, initializer=_keep, initargs=tuple(queues)) as executor,
        pytest.raises(InitializerFailed, match="more than 63 descriptors"),
    ):
        executor.submit(_put, 0, 0).result(WAIT_S)
    for queue in queues:
        queue.close()


@pytest.mark.parametrize("kind", UNNAMED)
def test_a_semaphore_without_a_name_is_refused(kind: str) -> None:
    held = getattr(FORK, kind)(*UNNAMED[kind])
    with (
        dpool.Executor(1, initializer=_keep, initargs=(held,)) as executor,
        pytest.raises(
            InitializerFailed, match=rf"a multiprocessing.{kind} .* 'fork' .* Use dpool.multiprocessing.{kind} instead"
        ),
    ):
        executor.submit(_put, 0, 0).result(WAIT_S)
    if kind.endswith("Queue"):
        held.close()


def test_a_lock_is_no_argument() -> None:
    with dpool.Executor(1) as executor, pytest.raises(RuntimeError, match="through inheritance"):
        executor.submit(repr, SPAWN.Lock()).result(WAIT_S)


def test_open_files_do_not_pickle() -> None:
    """As in the standard library; cloudpickle would send a copy of the contents."""
    with dpool.Executor(1) as executor:
        with open(__file__) as file, pytest.raises(TypeError, match=r"cannot pickle '.*TextIOWrapper'"):
            executor.submit(repr, file).result(WAIT_S)
        with pytest.raises(TypeError, match=r"cannot pickle '.*TextIOWrapper' .* the result of '_opened'"):
            executor.submit(_opened).result(WAIT_S)


def test_a_function_may_capture_standard_error() -> None:
    err = sys.stderr
    with dpool.Executor(1) as executor:
        assert executor.submit(lambda: err is sys.stderr).result(WAIT_S)
