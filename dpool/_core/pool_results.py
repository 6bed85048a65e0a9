"""What `dpool.Pool` hands out for `apply_async` and `map_async`: results of `multiprocessing.pool`'s kind, on futures.

```
 futures, one for each chunk ──► _advance: in the order of the chunks ──► value, or the exception that came first
        └ if there are callbacks: done callbacks ──► the callback thread: the user's callback, then `ready`
```

Without a callback nothing runs when a task ends; whoever asks looks at the futures. Threads: any. `_lock` belongs to
whoever takes in what has ended.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from time import monotonic
from types import GenericAlias
from typing import TYPE_CHECKING, Any

from dpool._core.future import DONE, Future
from dpool._core.serialize_results import SHOWN

if TYPE_CHECKING:
    from dpool._core.runtime import Pool as Inner

TERMINATE = "TERMINATE"
_log = logging.getLogger("dpool")


def left_until(until: float | None) -> float | None:
    """Seconds until a monotonic time, not below 0; None stays None."""
    return None if until is None else max(0.0, until - monotonic())


def time_over() -> BaseException:
    """What waiting raises when the time is over."""
    from multiprocessing import TimeoutError as Timeout

    return Timeout()


def error_of(future: Future[Any]) -> BaseException | None:
    """The exception of a task that has ended, as `multiprocessing.pool` gives it; None if it has a value."""
    try:
        error = future.exception()
    except CancelledError:
        from dpool.errors import ExecutorBroken

        return ExecutorBroken("the task was cancelled before it began, because the pool was interrupted")
    return None if error is None else as_multiprocessing(error)


def as_multiprocessing(error: BaseException) -> BaseException:
    """The same exception with a `multiprocessing.pool.RemoteTraceback`; a MaybeEncodingError for a result that does not
    pickle.
    """
    shown = getattr(error, SHOWN, None)
    if shown is not None:
        from multiprocessing import pool

        made: Any = pool.MaybeEncodingError(*shown)  # type: ignore[attr-defined]
        made.exc, made.value = shown  # its constructor takes the `repr` of what it is given
        encoding_error: BaseException = made
        return encoding_error
    cause = error.__cause__
    if type(cause).__name__ == "_RemoteTraceback":
        from multiprocessing import pool

        error.__cause__ = pool.RemoteTraceback(cause.tb)  # type: ignore[attr-defined,union-attr]
    return error


def wait_for(future: Future[Any], timeout: float | None) -> bool:
    """Wait until a task has ended; False if the time was over before."""
    if future._state not in DONE and future._route is not None:
        future._route.wait(future, timeout)
    return future._state in DONE


class AsyncResult:
    """The result of `Pool.apply_async`. Source: `multiprocessing.pool.AsyncResult`."""

    def __init__(
        self,
        owner: Any,
        inner: Inner,
        futures: Iterable[Future[Any]],
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._owner = owner
        """The Pool, which lives as long as somebody waits for its results."""
        self._inner = inner
        self._futures = deque(futures)
        """Those that have not been taken in."""
        self._complete = True
        """All futures that there will be are known."""
        self._success = True
        self._value: Any = None
        self._failed = 0
        """When the task failed whose exception `_value` is."""
        self._lock = threading.Lock()
        self._callback = callback
        self._error_callback = error_callback
        self._told: threading.Event | None = None
        """Set when the callback has been called, if there is one."""

    __class_getitem__: Any = classmethod(GenericAlias)

    def call_back(self) -> None:
        """Have the callbacks called, when all futures have ended."""
        if self._callback is None and self._error_callback is None:
            return
        self._told = threading.Event()
        futures = list(self._futures)
        ended = itertools.count(1)

        def one_ended(_: Any) -> None:
            if next(ended) == len(futures):
                self.tell_soon()

        for future in futures:
            future.add_done_callback(one_ended)

    def tell_soon(self) -> None:
        """Everything has ended: call the callback, in the thread for that."""
        self._inner.in_callback_thread(self._tell)

    def _tell(self) -> None:
        self._advance(None)
        call = self._callback if self._success else self._error_callback
        try:
            if call is not None and not self._terminated():
                call(self._value)
        except Exception:
            _log.exception("a callback of %r raised", self)
        finally:
            assert self._told is not None
            self._told.set()
            self._let_go()

    def _terminated(self) -> bool:
        """It ended because the pool was: then the standard library calls nothing."""
        from dpool.errors import ExecutorBroken

        return self._owner._state == TERMINATE and isinstance(self._value, ExecutorBroken)

    def _let_go(self) -> None:
        self._owner = self._callback = self._error_callback = None

    # -- asking

    def ready(self) -> bool:
        """Whether the call has ended, and its callback been called."""
        if self._told is not None:
            return self._told.is_set()
        return self._complete and all(future._state in DONE for future in list(self._futures))

    def successful(self) -> bool:
        """Whether it ended without an exception; ValueError if it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        self._advance(None)
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is ready, `timeout` seconds at most."""
        until = None if timeout is None else monotonic() + timeout
        if self._advance(until) and self._told is not None:
            self._told.wait(left_until(until))

    def get(self, timeout: float | None = None) -> Any:
        """The value, or the exception raised; `multiprocessing.TimeoutError` after `timeout` seconds."""
        self.wait(timeout)
        if not self.ready():
            raise time_over()
        if self._success:
            return self._value
        try:
            raise self._value
        finally:
            del self  # else the traceback and the result hold each other

    # -- taking in what has ended

    def _advance(self, until: float | None) -> bool:
        """Take in what has ended, waiting for it; False if the time was over before all had ended."""
        if self._complete and not self._futures:
            return True
        left = left_until(until)
        if not self._lock.acquire(timeout=-1 if left is None else left):
            return False
        try:
            while True:
                if not self._futures:
                    if self._complete:
                        break
                    if not self._more(until):
                        return False
                    continue
                future = self._futures[0]
                if not wait_for(future, left_until(until)):
                    return False
                self._take_in(future)
                self._futures.popleft()
        finally:
            self._lock.release()
        if self._told is None:
            self._let_go()
        return True

    def _more(self, until: float | None) -> bool:
        """Wait for another future; False if the time is over."""
        raise NotImplementedError

    def _take_in(self, future: Future[Any]) -> None:
        error = error_of(future)
        if error is None:
            self._add(future._take())
            return
        extra = future._extra
        when = extra.failed if extra is not None else 0
        if self._success or when < self._failed:
            self._success, self._value, self._failed = False, error, when

    def _add(self, value: Any) -> None:
        self._value = value


class MapResult(AsyncResult):
    """The result of `Pool.map_async`: a list. Source: `multiprocessing.pool.MapResult`."""

    def __init__(
        self,
        owner: Any,
        inner: Inner,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        chunked: bool,
    ) -> None:
        super().__init__(owner, inner, (), callback, error_callback)
        self._value = []
        self._chunked = chunked
        """Each future has a list."""
        self._fed = threading.Condition()

    @property
    def _number_left(self) -> int:
        """Chunks that have not ended: private in the standard library, but progress is shown with it."""
        left = sum(future._state not in DONE for future in list(self._futures))
        return left or int(not self._complete)

    def fill(self, futures: Iterable[Future[Any]]) -> None:
        """These are all the futures."""
        self._futures.extend(futures)

    def fill_slowly(self, futures: Iterator[Future[Any]], most: int, filled: Callable[[MapResult], None]) -> None:
        """Submit in a thread, so that no more than `most` tasks are under way: their arguments are large.

        `filled` is called when all have been submitted.
        """
        self._complete = False
        if self._callback is not None or self._error_callback is not None:
            self._told = threading.Event()
        target = partial(self._fill_slowly, futures, most, filled)
        threading.Thread(target=target, name="dpool-map", daemon=True).start()

    def _fill_slowly(self, futures: Iterator[Future[Any]], most: int, filled: Callable[[MapResult], None]) -> None:
        under_way: deque[Future[Any]] = deque()
        try:
            for future in futures:
                under_way.append(future)
                with self._fed:
                    self._futures.append(future)
                    self._fed.notify_all()
                if len(under_way) >= most:
                    wait_for(under_way.popleft(), None)
        finally:
            filled(self)
            with self._fed:
                self._complete = True
                self._fed.notify_all()
        if self._told is not None:
            self._advance(None)
            self.tell_soon()

    def finish(self) -> None:
        """Wait until all has been submitted."""
        with self._fed:
            self._fed.wait_for(lambda: self._complete)

    def stop(self) -> None:
        """The pool is about to end: what is not submitted yet will be refused, and that is what is raised."""

    def _more(self, until: float | None) -> bool:
        with self._fed:
            return bool(self._fed.wait_for(lambda: self._futures or self._complete, left_until(until)))

    def call_back(self) -> None:
        """See AsyncResult; the result of an empty iterable has ended without a call, as in the standard library."""
        if self._futures:
            super().call_back()

    def items_ended(self) -> Iterator[None]:
        """Something for each item that has been dealt with, while they are."""
        seen = 0
        while not self.ready() or self._futures:
            if not self._futures:
                self._more(None)
                continue
            future = self._futures[0]
            wait_for(future, None)
            with self._lock:
                if self._futures and self._futures[0] is future:
                    self._take_in(future)
                    self._futures.popleft()
            yield from itertools.repeat(None, len(self._value) - seen if self._success else 0)
            seen = len(self._value) if self._success else 0
        if self._told is None:
            self._let_go()

    def _add(self, value: Any) -> None:
        if not self._success:
            return
        if not self._chunked:
            self._value.append(value)
        elif self._value:
            self._value += value
        else:
            self._value = value
