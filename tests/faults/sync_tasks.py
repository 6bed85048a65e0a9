"""What workers and children do to locks, queues, … before something happens to them."""

from __future__ import annotations

import os
import signal
import time
import warnings
from typing import Any

WAIT_S = 60.0


def take_and_say(lock: Any, said: Any) -> None:
    """Take it for good."""
    lock.acquire()
    said.put(os.getpid())
    _stay()


def enter_and_say(lock: Any, said: Any) -> None:
    """Take it in a `with` block, for good."""
    with lock:
        said.put(os.getpid())
        _stay()


def say_and_take(lock: Any, said: Any) -> None:
    """Wait for it."""
    said.put(os.getpid())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the one before may have died
        lock.acquire()
    said.put("got it")


def say_and_get(queue: Any, said: Any) -> None:
    """Wait for an item."""
    said.put(os.getpid())
    said.put(("got", queue.get()))


def say_and_pass(barrier: Any, said: Any) -> int:
    """Wait at a barrier."""
    said.put(os.getpid())
    return int(barrier.wait(WAIT_S))


def say_and_wait(condition: Any, said: Any) -> bool:
    """Wait for a condition."""
    with condition:
        said.put(os.getpid())
        return bool(condition.wait(WAIT_S))


def put_and_die(queue: Any, n: int) -> None:
    """Put many items, and be killed at once."""
    for x in range(n):
        queue.put(x)
    os.kill(os.getpid(), signal.SIGKILL)


def put_numbered(queue: Any, size: int, count: int) -> None:
    """Put items of that size, each with its number."""
    for number in range(count):
        queue.put((b"%d " % number).ljust(size))


def loop_until_killed(lock: Any, value: Any, said: Any) -> None:
    """Take and give a lock again and again."""
    said.put(os.getpid())
    while True:
        with lock:
            value.value += 1


def _stay() -> None:
    while True:
        time.sleep(WAIT_S)  # it is killed
