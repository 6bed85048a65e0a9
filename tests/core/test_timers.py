"""What the io thread does later: also in many years."""

from __future__ import annotations

import threading
from time import monotonic

import dpool
from dpool._core import driver
from tests.executor.support import LONG_S, noop
from tests.fixtures import the_runtime

__all__ = ["the_runtime"]


def test_a_timer_for_the_next_century_harms_nobody() -> None:
    """One wait of the kernel's takes 24 days at the most."""
    ended = threading.Event()
    with dpool.Executor(1) as ex:
        ex.submit(noop).result(LONG_S)
        runtime = driver.runtime()
        runtime.at(monotonic() + 1e-3, lambda: None)
        with runtime._send_lock:
            others, runtime._timers[:] = runtime._timers[:], []  # so that it is the first
        runtime.at(monotonic() + 3e9, ended.clear)
        for _ in range(3):  # read by the io thread, since nobody else does
            ended.clear()
            ex.submit(noop).add_done_callback(lambda _: ended.set())
            assert ended.wait(LONG_S)
        with runtime._send_lock:
            runtime._timers[:] = others
