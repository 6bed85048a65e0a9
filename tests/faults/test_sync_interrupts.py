"""Signal handlers raise at any moment of taking, waiting, putting and getting: no lock and no item is lost."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import dpool
import dpool.multiprocessing as mp
from tests.faults.support import DEADLINE_S
from tests.helpers import Script, wait_until

TURNS = 1500
pytestmark = pytest.mark.filterwarnings(
    # a connection whose making is cut short is closed by the garbage collector, which says so
    "ignore:unclosed <socket:ResourceWarning",
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
)


exact = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="Python 3.10 may run a signal handler between a function's return and the assignment of what it returned",
)


class Interrupted(Exception):
    """What the handler raises."""


@contextmanager
def interrupts(every_s: float) -> Iterator[list[int]]:
    """A signal again and again, whose handler raises if the list says so."""
    armed = [0]

    def handle(number: int, frame: Any) -> None:
        if armed[0]:
            armed[0] = 0
            raise Interrupted

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, every_s, every_s)
    try:
        yield armed
    finally:
        armed[0] = 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _try(lock: Any) -> bool:
    taken = bool(lock.acquire(False))
    if taken:
        lock.release()
    return taken


@exact
@pytest.mark.parametrize("every_s", [0.0003, 0.00051])
def test_taking_a_lock(every_s: float) -> None:
    lock, hits = mp.Lock(), 0
    with dpool.Executor(1) as executor:
        with interrupts(every_s) as armed:
            for _ in range(TURNS):
                got = False
                try:
                    armed[0] = 1
                    got = lock.acquire()
                    armed[0] = 0
                except Interrupted:
                    hits += 1
                    assert got or not lock._core.is_ours()
                if got:
                    lock.release()
        assert hits
        assert executor.submit(_try, lock).result(DEADLINE_S)


def _hold_now_and_then(lock: Any, stop: Any) -> None:
    while not stop.is_set():
        with lock:
            stop.wait(0.002)


@exact
def test_waiting_for_a_lock() -> None:
    lock, stop, hits = mp.Lock(), mp.Event(), 0
    with dpool.Executor(2) as executor:
        futures = [executor.submit(_hold_now_and_then, lock, stop) for _ in range(2)]
        wait_until(lambda: not _try(lock), DEADLINE_S, "they are at it")
        with interrupts(0.0011) as armed:
            for _ in range(TURNS // 10):
                got = False
                try:
                    armed[0] = 1
                    got = lock.acquire(timeout=DEADLINE_S)
                    armed[0] = 0
                except Interrupted:
                    hits += 1
                    assert got or not lock._core.is_ours()
                if got:
                    lock.release()
        stop.set()
        for future in futures:
            future.result(DEADLINE_S)
        assert hits
        assert executor.submit(_try, lock).result(DEADLINE_S)


@exact
def test_taking_a_permit() -> None:
    semaphore, hits = mp.Semaphore(1), 0
    with interrupts(0.0003) as armed:
        for _ in range(TURNS // 3):
            got = False
            try:
                armed[0] = 1
                got = semaphore.acquire()
                armed[0] = 0
            except Interrupted:
                hits += 1
            if got:
                semaphore.release()
    assert hits
    assert semaphore.get_value() == 1


def _put(target: Any, n: int) -> None:
    for x in range(n):
        target.put(x)


@exact
def test_getting_items() -> None:
    items, hits = mp.Queue(), 0
    got: list[int] = []
    with dpool.Executor(1) as executor:
        future = executor.submit(_put, items, TURNS)
        with interrupts(0.0004) as armed:
            while len(got) < TURNS:
                item = None
                try:
                    armed[0] = 1
                    item = items.get(timeout=DEADLINE_S)
                    armed[0] = 0
                except Interrupted:
                    hits += 1
                if item is not None:
                    got.append(item)
        future.result(DEADLINE_S)
    assert hits
    assert got == list(range(TURNS))
    with pytest.raises(queue.Empty):
        items.get_nowait()


def test_an_interrupted_wait_for_a_condition_has_the_lock() -> None:
    condition = mp.Condition()
    with interrupts(0.02) as armed:
        for _ in range(10):
            with condition:
                armed[0] = 1
                with pytest.raises(Interrupted):
                    condition.wait(DEADLINE_S)
                assert condition._lock._core.is_mine()
    assert repr(condition).endswith(", 0)>")


def test_an_interrupted_party_does_not_break_the_barrier() -> None:
    barrier, places = mp.Barrier(2), []
    with interrupts(0.02) as armed:
        armed[0] = 1
        with pytest.raises(Interrupted):
            barrier.wait(DEADLINE_S)
    wait_until(lambda: barrier.n_waiting == 0, DEADLINE_S, "it no longer waits")
    assert not barrier.broken
    thread = threading.Thread(target=lambda: places.append(barrier.wait(DEADLINE_S)))
    thread.start()
    places.append(barrier.wait(DEADLINE_S))
    thread.join(DEADLINE_S)
    assert sorted(places) == [0, 1]


def test_a_handler_may_use_what_it_interrupts() -> None:
    items: Any = mp.Queue()
    lock = mp.Lock()
    handled = [0]

    def handle(number: int, frame: Any) -> None:
        handled[0] += 1
        items.put("from the handler")
        if lock.acquire(False):
            lock.release()

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for x in range(TURNS):
            with lock:
                items.put(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled[0]
    found = [items.get(timeout=DEADLINE_S) for _ in range(TURNS + handled[0])]
    assert [x for x in found if x != "from the handler"] == list(range(TURNS))
    assert _try(lock)


WAITS = {
    "lock": "x = mp.Lock(); x.acquire(); wait = x.acquire",
    "semaphore": "x = mp.Semaphore(0); wait = x.acquire",
    "event": "x = mp.Event(); wait = x.wait",
    "get": "x = mp.Queue(); wait = x.get",
    "put": "x = mp.Queue(1); x.put(1); wait = lambda: x.put(2)",
    "join": "x = mp.JoinableQueue(); x.put(1); wait = x.join",
    "barrier": "x = mp.Barrier(2); wait = x.wait",
    "condition": "x = mp.Condition(); x.acquire(); wait = x.wait",
}


@pytest.mark.parametrize("kind", WAITS)
def test_ctrl_c_ends_every_wait(kind: str) -> None:
    text = f"""
import dpool.multiprocessing as mp
{WAITS[kind]}
print("waits", flush=True)
try:
    wait()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    with Script(text) as script:
        assert script.process.stdout is not None
        assert script.process.stdout.readline() == "waits\n"
        script.process.send_signal(signal.SIGINT)
        result = script.finish()
    assert (result.stdout, result.stderr) == ("interrupted\n", "") or "KeyboardInterrupt" in result.stderr
    assert "interrupted" in result.stdout or result.rc != 0
