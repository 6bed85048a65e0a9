"""`wait`: until some of many futures are done, at a cost that grows with those that end, not with those that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any
from weakref import ref

from dpool._core.future import Future


class _Waiter:
    """Counts futures down; called by them when they end."""

    def __init__(self, needed: int, runtime: Any) -> None:
        self.needed = needed
        self._runtime = runtime
        self.ready = threading.Event()
        self._lock = threading.Lock()

    def one_more(self, _: Any) -> None:
        with self._lock:
            self.needed -= 1
            if self.needed <= 0:
                self.ready.set()
        if self._runtime is not None and self.ready.is_set():
            self._runtime.poke_reader()  # who waits may have gone back to reading: callbacks run in another thread


def wait_for(refs: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
    """See `dpool.wait`; references are ready from the beginning."""
    pending = [one for one in refs if isinstance(one, Future) and not one.done()]
    needed = num_returns - (len(refs) - len(pending))
    if needed > 0 and (timeout is None or timeout > 0):
        _wait(pending, needed, timeout)
    ready: list[Any] = []
    rest: list[Any] = []
    for one in refs:
        is_ready = len(ready) < num_returns and (not isinstance(one, Future) or one.done())
        (ready if is_ready else rest).append(one)
    return ready, rest


def _wait(pending: list[Future[Any]], needed: int, timeout: float | None) -> None:
    runtime = next((f._route.pool.runtime for f in pending if f._route is not None), None)
    waiter = _Waiter(needed, runtime)
    callbacks = [_add(future, waiter) for future in pending]
    try:
        if runtime is not None:
            runtime.wait_until(waiter.ready.is_set, timeout)
        else:
            until = None if timeout is None else monotonic() + timeout
            waiter.ready.wait(None if until is None else max(0.0, until - monotonic()))
    finally:
        for future, callback in zip(pending, callbacks, strict=True):
            future._drop_callback(callback)


def _add(future: Future[Any], waiter: _Waiter) -> Callable[[Any], object]:
    callback = partial(_ended, ref(waiter))
    future.add_done_callback(callback)
    return callback


def _ended(waiter: Any, future: Any) -> None:
    """The future has ended; whoever waited may have gone."""
    there = waiter()
    if there is not None:
        there.one_more(future)
