"""`dpool.Future`: a `concurrent.futures.Future` that costs a fifth of one until somebody waits on it.

The standard Future makes a Condition, and with it a lock and a deque, at once. Here a Future is six slots; the
Condition, the list of callbacks and the list of waiters live in `_Extra`, made when first needed. The standard
functions (`wait`, `as_completed`, `asyncio.wrap_future`) find the names that they touch (`_condition`, `_waiters`,
`_state`, …) as properties.

Invariant: a state changes under `_mutex`, and under the future's Condition too if it has one; a Condition is made
under `_mutex`. So whoever makes one either sees the final state or is notified of it.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import _base
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dpool._core import storage
from dpool._core.context import here

if TYPE_CHECKING:
    from dpool._core.lane import Route
    from dpool._core.serialize import Export

_T = TypeVar("_T")

PENDING = _base.PENDING
RUNNING = _base.RUNNING
CANCELLED = _base.CANCELLED
CANCELLED_AND_NOTIFIED = _base.CANCELLED_AND_NOTIFIED
FINISHED = _base.FINISHED
DONE = frozenset((CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED))

IN_PLACE: Any = object()
"""For `_settle`: `_result` has been set, so that nobody but the future ever held it."""

_mutex = threading.RLock()
"""Reentrant, because an allocation under it may collect garbage, whose finalizers may use futures."""
_failures = itertools.count(1)
_log = logging.getLogger("concurrent.futures")


class _Extra:
    """What only some futures need."""

    __slots__ = (
        "attempts", "callbacks", "condition", "exception", "failed", "group", "interrupted", "lends", "parent",
        "promise", "stream", "waiters", "whole",
    )  # fmt: skip

    def __init__(self) -> None:
        self.condition: threading.Condition | None = None
        self.callbacks: list[Callable[[Any], object]] = []
        self.waiters: list[Any] = []
        self.exception: BaseException | None = None
        self.failed = 0
        """When it ended with an exception: tasks that failed later have larger numbers."""
        self.lends = False
        """A task waits for it without reading: the CPUs of its lease are lent until it is done."""
        self.attempts = 0
        """How often the task was started and lost."""
        self.promise: Any = None
        """The Handle by which other processes know it."""
        self.interrupted = False
        """It was cancelled while it ran: the KeyboardInterrupt that it ends with is ours."""
        self.parent = 0
        """The task of this worker that submitted it; 0: not known."""
        self.stream: Any = None
        """What the task yields goes there: see `stream.Flow`."""
        self.whole: Any = None
        """The future of the task of which this is one of several results."""
        self.group: Any = None
        """The number of the task among those that wait for other futures."""


class InStore:
    """A result that lies in the object store until somebody asks for it."""

    __slots__ = ("alone", "handle", "label", "place")

    def __init__(self, place: Any, label: str, handle: Any = None, alone: bool = False) -> None:
        self.alone = alone
        """Any process can load it, without anything of `__main__`."""
        self.place = place
        self.label = label
        self.handle = handle
        if handle is not None:
            return
        try:
            self.handle = storage.client().received(place)
        except storage.StoreGone:  # whoever asks for it hears of it
            return

    def load(self) -> Any:
        """The value; each call another copy of it."""
        from dpool._core.serialize_results import load_value  # imported by now, but not before a node is started

        return load_value(lambda: storage.load(self.place), self.label)


class Future(_base.Future[_T]):
    """The result of a task that may not have run yet.

    A `concurrent.futures.Future` (and usable wherever one is), that can also be awaited in a coroutine and passed as
    an argument of another task. Source of the contract: the standard library's `concurrent.futures`.
    """

    __slots__ = ("_call", "_export", "_extra", "_result", "_route", "_state")

    def __init__(self, route: Route | None = None, export: Export | None = None, call: Any = None) -> None:
        self._state = PENDING
        self._route = route
        self._export = export
        self._call = call
        self._result: Any = None
        self._extra: _Extra | None = None

    # -- what the standard functions touch

    def _more(self) -> _Extra:
        """The extra part: one, however many threads ask for it at a time."""
        extra = self._extra
        if extra is None:
            with _mutex:
                extra = self._extra
                if extra is None:
                    extra = self._extra = _Extra()
        return extra

    def _make_condition(self) -> threading.Condition:
        with _mutex:
            extra = self._more()
            if extra.condition is None:
                extra.condition = threading.Condition()
                made = self._state not in DONE
            else:
                made = False
        if made and self._route is not None:
            self._route.attend()
            if here.holds_cpus:
                self._lend(extra)
        assert extra.condition is not None
        return extra.condition

    def _lend(self, extra: _Extra) -> None:
        """In a worker: somebody sleeps until this is done, so let others have the CPUs."""
        assert self._route is not None
        with _mutex:
            extra.lends = self._state not in DONE
        try:
            if extra.lends:
                self._route.lend(extra, True)
        finally:
            if self._state in DONE:  # whoever ended it may have been faster
                self._route.lend(extra, False)

    def _get_waiters(self) -> list[Any]:
        with _mutex:
            waiters = self._more().waiters
        return waiters if self._route is None else self._route.waiters(self, waiters)

    def _get_callbacks(self) -> list[Callable[[Any], object]]:
        with _mutex:
            return self._more().callbacks

    if not TYPE_CHECKING:  # for type checkers they stay the attributes that `as_completed` asks for
        _condition = property(_make_condition)
        _waiters = property(_get_waiters)
        _done_callbacks = property(_get_callbacks)

    @property
    def _exception(self) -> BaseException | None:
        extra = self._extra
        return None if extra is None else extra.exception

    @_exception.setter
    def _exception(self, exception: BaseException | None) -> None:
        with _mutex:
            self._more().exception = exception

    # -- asking

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """Whether the task has begun and not ended; one that only waits in a worker's socket has not begun."""
        if self._state != RUNNING:
            return False
        extra = self._extra
        if extra is not None and extra.whole is not None:
            return bool(extra.whole.running())
        return self._route is None or self._route.started(self)

    def done(self) -> bool:
        """Whether the task has ended: with a value, with an exception or cancelled."""
        return self._state in DONE

    def result(self, timeout: float | None = None) -> _T:
        """The task's value; waits for it up to `timeout` seconds (None: without limit).

        Raises the task's own exception, `CancelledError`, `TimeoutError` when the time is over, or an error of
        `dpool.errors`.
        """
        if self._state is not FINISHED:
            self._await_end(timeout)
        if self._result.__class__ is InStore:
            self._fetch()
        extra = self._extra
        if extra is not None and extra.exception is not None:
            try:
                raise extra.exception
            finally:
                del self, extra  # else the traceback and the future hold each other
        return self._result  # type: ignore[no-any-return]

    def _take(self, timeout: float | None = None) -> _T:
        """`result`, of which nothing is kept here: for the only one who will ask."""
        try:
            return self.result(timeout)
        finally:
            self._result = None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception the task raised, or None; waits like `result`."""
        if self._state is not FINISHED:
            self._await_end(timeout)
        if self._result.__class__ is InStore:
            self._fetch()
        return self._exception

    def _fetch(self) -> None:
        """Take the result out of the object store; if that cannot be, that is what the task raises."""
        stored: Any = self._result
        value = failure = None
        try:
            value = stored.load()
        except (KeyboardInterrupt, OSError):  # of this moment, not of the result: it can be asked for again
            raise
        except BaseException as error:
            failure = error.with_traceback(None)
        with _mutex:
            if self._result is stored:  # else another thread was faster
                if failure is not None:
                    self._more().exception = failure
                self._result = value
        del failure

    def _failed(self) -> bool:
        """Of one that is done: whether `result` raises, as far as that is known without fetching a value."""
        return self._state is not FINISHED or self._exception is not None

    def _await_end(self, timeout: float | None) -> None:
        if self._state not in DONE:
            if self._route is not None:
                self._route.wait(self, timeout)
            else:
                with self._condition:
                    if self._state not in DONE:
                        self._condition.wait(timeout)
        if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
            raise _base.CancelledError
        if self._state != FINISHED:
            raise _timed_out()

    def __await__(self) -> Generator[Any, None, _T]:
        """`await future` in a coroutine: waits without blocking the event loop."""
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def future(self) -> Future[_T]:
        """Itself, for programs that have an ObjectRef of Ray's and want a `concurrent.futures.Future`."""
        return self

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(future)` when the task has ended, or now if it has; what it raises is logged, not propagated."""
        with _mutex:
            pending = self._state not in DONE
            if pending:
                self._more().callbacks.append(fn)
        if not pending:
            self._run_callback(fn)
        elif self._route is not None:
            self._route.attend()

    def _drop_callback(self, fn: Callable[[Any], object]) -> None:
        """Whoever asked to be called no longer cares."""
        with _mutex:
            extra = self._extra
            if extra is not None and fn in extra.callbacks:
                extra.callbacks.remove(fn)

    def cancel(self, force: bool = False) -> bool:
        """Cancel the task unless it has begun; with `force=True` also then: its worker is killed.

        True if the future is cancelled; False in a forked child, whose future it is not. Other tasks are not
        affected by `force`: the worker is replaced. Of a task with several results all are cancelled.
        """
        if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
            return True
        if self._state in DONE:
            return False
        if self._extra is not None and self._extra.whole is not None:
            if self._extra.whole.cancel(force):
                self._settle(CANCELLED_AND_NOTIFIED)  # which its callback does to the others, perhaps a moment later
            return self.cancelled()
        if self._route is not None and _mutex._is_owned():  # type: ignore[attr-defined]
            # garbage is being collected in the middle of something of ours: no lock may be taken here
            self._route.later(partial(self.cancel, force))
            return False
        if self._route is not None:
            if not self._route.ours():
                return False
            if self._state == RUNNING:
                return self._route.cancel(self, force)
        # waiters of a task of ours are told at once; a bare future is told by whoever runs it
        state = CANCELLED if self._route is None else CANCELLED_AND_NOTIFIED
        if not self._settle(state, only_from=PENDING):
            return self.cancelled() or (self._route is not None and not self.done() and self._route.cancel(self, force))
        if self._route is not None:
            self._route.cancelled(self)
        return True

    # -- ending

    def set_running_or_notify_cancel(self) -> bool:
        """See `concurrent.futures.Future`; the runtime itself does not need it."""
        with self._condition:
            if self._state == PENDING:
                self._state = RUNNING
                return True
            if self._state == CANCELLED:
                self._state = CANCELLED_AND_NOTIFIED
                self._notify()
                return False
        _log.critical("Future %s in unexpected state: %s", id(self), self._state)
        raise RuntimeError("Future in unexpected state")

    def set_result(self, result: _T) -> None:
        """End with a value. For executors; InvalidStateError if it has ended."""
        if not self._settle(FINISHED, result):
            raise _base.InvalidStateError(f"{self._state}: {self!r}")

    def set_exception(self, exception: BaseException | None) -> None:
        """End with an exception. For executors; InvalidStateError if it has ended."""
        if not self._settle(FINISHED, None, exception):
            raise _base.InvalidStateError(f"{self._state}: {self!r}")

    def _settle(
        self,
        state: str,
        result: Any = None,
        exception: BaseException | None = None,
        only_from: str | None = None,
        elsewhere: bool = False,
    ) -> bool:
        """Move to a final state, once: False if it has one (or is not in `only_from`). Wakes waiters, runs
        callbacks: in this thread or, if `elsewhere`, in the io thread, as the standard library's executors do.
        """
        while True:
            with _mutex:
                if self._state in DONE or (only_from is not None and self._state != only_from):
                    return False
                condition = None if self._extra is None else self._extra.condition
                if condition is None:
                    self._end(state, result, exception)
                    break
            with condition:
                with _mutex:
                    if self._state in DONE or (only_from is not None and self._state != only_from):
                        return False
                    self._end(state, result, exception)
                self._notify()
            break
        extra, route = self._extra, self._route
        if route is None:
            self._run_callbacks()
            return True
        if extra is not None and extra.lends:
            extra.lends = False
            route.lend(extra, False)
        route.ended(self, elsewhere)
        return True

    def _end(self, state: str, result: Any, exception: BaseException | None) -> None:
        """Under `_mutex`."""
        if exception is not None:
            extra = self._more()
            extra.exception = exception
            extra.failed = next(_failures)
        if result is not IN_PLACE:
            self._result = result
        self._call = self._export = None
        self._state = state

    def _notify(self) -> None:
        """Under the Condition: tell the standard waiters."""
        extra = self._extra
        assert extra is not None
        assert extra.condition is not None
        for waiter in extra.waiters if self._state != CANCELLED else ():
            if self._state == CANCELLED_AND_NOTIFIED:
                waiter.add_cancelled(self)
            elif extra.exception is not None:
                waiter.add_exception(self)
            else:
                waiter.add_result(self)
        extra.condition.notify_all()

    def _run_callbacks(self) -> None:
        extra = self._extra
        if extra is None:
            return
        callbacks, extra.callbacks = extra.callbacks, []
        for fn in callbacks:
            self._run_callback(fn)

    def _invoke_callbacks(self) -> None:
        self._run_callbacks()

    def _run_callback(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except Exception:
            _log.exception("exception calling callback for %r", self)

    def __reduce__(self) -> Any:
        raise TypeError("a dpool.Future can be pickled only by dpool itself: pass it to a task, or return it from one")


def _timed_out() -> BaseException:
    """Both of Python 3.10's two exceptions of this name."""
    if sys.version_info >= (3, 11):
        return TimeoutError()
    from dpool.errors import _TimeoutBase

    return _TimeoutBase()


def finish(future: Future[Any], result: Any = None, exception: BaseException | None = None) -> bool:
    """End a task of ours with what its worker answered; its callbacks run in the io thread."""
    return future._settle(FINISHED, result, exception, elsewhere=True)


def settle_plain(futures: list[Future[Any]], values: list[Any]) -> list[tuple[Future[Any], Any]]:
    """End many futures with plain values at once; returns those that need more: pickled values, waiters, callbacks."""
    rest = []
    finished, running = FINISHED, RUNNING
    with _mutex:
        for future, value in zip(futures, values, strict=False):
            if value.__class__ is tuple or future._extra is not None or future._state is not running:
                rest.append((future, value))
            else:
                future._result = value
                future._call = future._export = None
                future._state = finished
    return rest


def to_pending(futures: list[Future[Any]]) -> list[Future[Any]]:
    """Tasks that came back unstarted wait again; returns those that have not ended meanwhile."""
    with _mutex:
        back = [future for future in futures if future._state is RUNNING]
        for future in back:
            future._state = PENDING
    return back
