"""The node is killed: whatever lived in it says so wherever it is used, and new objects are made in the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import dpool
import dpool.multiprocessing as mp
from dpool.errors import NodeLost
from tests.faults.support import DEADLINE_S, one_of_role, sigkill
from tests.helpers import wait_until

WAITS: dict[str, Callable[[], tuple[Any, Callable[[], Any]]]] = {
    "semaphore": lambda: _with(mp.Semaphore(0), "acquire"),
    "event": lambda: _with(mp.Event(), "wait"),
    "queue": lambda: _with(mp.Queue(), "get"),
    "barrier": lambda: _with(mp.Barrier(2), "wait"),
    "lock": lambda: _taken(mp.Lock()),
    "condition": lambda: _condition(),
}


def _with(one: Any, name: str) -> tuple[Any, Callable[[], Any]]:
    return one, getattr(one, name)


def _taken(lock: Any) -> tuple[Any, Callable[[], Any]]:
    lock.acquire()
    return lock, lambda: lock.acquire(timeout=DEADLINE_S)


def _condition() -> tuple[Any, Callable[[], Any]]:
    condition = mp.Condition()

    def wait() -> None:
        with condition:
            condition.wait()

    return condition, wait


@pytest.mark.parametrize("kind", WAITS)
def test_who_waits_is_told(kind: str) -> None:
    one, wait = WAITS[kind]()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            wait()
        except NodeLost as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    sigkill(one_of_role("dpool-node"))
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert f"the {kind} is lost" in str(errors[0]) or kind == "condition"
    assert "Make a new one" in str(errors[0])
    del one


USES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "semaphore": (lambda: mp.Semaphore(1), lambda one: one.acquire()),
    "event": (mp.Event, lambda one: one.set()),
    "queue": (mp.Queue, lambda one: [one.put(1), one.get()]),
    "bounded queue": (lambda: mp.Queue(1), lambda one: one.put(1)),
    "barrier": (lambda: mp.Barrier(1), lambda one: one.wait()),
    "condition": (mp.Condition, lambda one: [one.acquire(), one.notify()]),
}


@pytest.mark.parametrize("kind", USES)
def test_who_comes_later_is_told(kind: str) -> None:
    make, use = USES[kind]
    one = make()
    sigkill(one_of_role("dpool-node"))
    for _ in range(2):
        with pytest.raises(NodeLost, match="Make a new one"):
            use(one)
    again = make()
    use(again)
    del one, again


def test_an_event_is_not_asked_for_ever() -> None:
    event = mp.Event()
    sigkill(one_of_role("dpool-node"))

    def lost() -> bool:
        try:
            return event.is_set()
        except NodeLost:
            return True

    wait_until(lost, DEADLINE_S, "it says so")


def test_a_lock_of_the_dead_node_can_be_let_go() -> None:
    lock = mp.Lock()
    with lock:
        sigkill(one_of_role("dpool-node"))
    del lock


def test_a_child_is_told() -> None:
    queue = mp.Queue()
    receiver, sender = mp.Pipe(False)
    child = mp.get_context("fork").Process(target=_get_and_say, args=(queue, sender))
    child.start()
    sender.close()
    with receiver:
        assert receiver.recv() == "waits"
        sigkill(one_of_role("dpool-node"))
        assert receiver.recv() == "NodeLost"
    child.join(DEADLINE_S)
    child.close()
    del queue


def _get_and_say(queue: Any, sender: Any) -> None:
    sender.send("waits")
    try:
        queue.get()
    except NodeLost as error:
        sender.send(type(error).__name__)


def test_a_pool_goes_on_with_new_objects() -> None:
    with dpool.Executor(1) as executor:
        lock = mp.Lock()
        assert executor.submit(_try, lock).result(DEADLINE_S)
        sigkill(one_of_role("dpool-node"))
        wait_until(lambda: _runs(executor), DEADLINE_S, "the next node is there")
        lock = mp.Lock()
        assert executor.submit(_try, lock).result(DEADLINE_S)
        del lock


def _runs(executor: dpool.Executor) -> bool:
    try:
        return executor.submit(int).result(DEADLINE_S) == 0
    except NodeLost:
        return False


def _try(lock: Any) -> bool:
    with lock:
        return True
