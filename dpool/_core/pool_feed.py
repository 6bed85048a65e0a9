"""How an iterable becomes tasks: in slices that pickle well, and for `imap` a window at a time.

```
 iterable ─► calls ─► Feed: outstanding futures ─► ready values ─► IMapIterator ─► the user
               │        ▲                                              │
               └────────┴──── room: what has not been yielded ◄────────┘
```

What lies in memory anyway (a list, a range, …) is fed by whoever takes results. Any other iterable may wait for
something, and has a thread that asks it. A feed whose iterator is dropped goes on, its results thrown away.

Invariants: futures and values that have not been yielded are never more than the window, unless somebody joins the
pool; one thread at a time submits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core.future import DONE, FINISHED, Future, InStore, finish
from dpool._core.iterables import is_array
from dpool._core.pool_results import error_of, left_until, time_over, wait_for
from dpool._core.serialize import size_of

if TYPE_CHECKING:
    from dpool._core.runtime import Pool as Inner

WINDOW_S = 0.010
"""Work for each worker that a window should hold: some frames of it (see `Config.frame_s`)."""
LEAST, MOST = 4, 2048
"""Tasks for each worker in a window, at least and at most."""
UNLIMITED = 1 << 60
BULK = 16 << 20
"""Bytes of arguments from which on a task is large: then only a few are under way, and their memory is used again."""


def bulk_of(items: Any) -> int:
    """Bytes of an item, judging by the first one; 0 if they are not known to be large."""
    if not len(items):
        return 0
    if is_array(items):
        return int(items.nbytes) // len(items)
    return size_of(items[0]) if type(items) in (list, tuple) else 0


def failed(route: Any, error: BaseException) -> Future[Any]:
    """A task that has ended with the iterable's own exception."""
    future: Future[Any] = Future(route)
    finish(future, None, error)
    return future


def submitting(
    submit: Callable[..., Future[Any]], route: Any, fn: Any, calls: Iterable[Any], kwargs: Any
) -> Iterator[Future[Any]]:
    """The futures of calls, submitted as they are asked for; last, if the iterable raises, one with its exception."""
    try:
        for args in calls:
            yield submit(route, fn, args, kwargs)
    except Exception as error:
        yield failed(route, error.with_traceback(None))


class Raise:
    """Among values: an exception to be raised in its place."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Feed:
    """One call of `imap`; see the module."""

    def __init__(
        self, owner: Any, inner: Inner, futures: Iterator[Future[Any]], chunked: bool, window: int | None
    ) -> None:
        self.owner = owner
        self.inner = inner
        self.chunked = chunked
        """The value of a task is a list of results."""
        self.outstanding: deque[Future[Any]] = deque()
        self.ready: deque[Any] = deque()
        """Values that have come, and not been yielded."""
        self.exhausted = False
        self.batch = 1
        """Yields after which it is worth feeding."""
        self._futures = futures
        self._window = window
        self._cautious = LEAST * inner.max_workers
        """The window at first: tasks so far may have been much shorter than these will be."""
        self._unlimited = False
        self._stopped = False
        self._feeding = threading.Lock()
        self._changed = threading.Condition()
        self._starved = 0
        """Threads that wait until something is outstanding."""
        self._thread: threading.Thread | None = None

    def start(self, in_memory: bool) -> None:
        """Begin to submit."""
        if in_memory:
            self.feed()
        else:
            self._thread = threading.Thread(target=self._run, name="dpool-imap", daemon=True)
            self._thread.start()

    def room(self) -> int:
        """Tasks that may be submitted now."""
        if self._unlimited:
            return UNLIMITED
        window = self._window
        if window is None:
            task_s = self.inner.task_s()
            each = LEAST if task_s <= 0 else min(max(LEAST, int(WINDOW_S / task_s)), MOST)
            window = min(each * self.inner.max_workers, self._cautious)
        self.batch = max(1, window // 8)
        held = bool(self.ready) if self.chunked else len(self.ready)
        return window - len(self.outstanding) - held

    def feed(self) -> None:
        """Submit what there is room for, unless another thread is doing so."""
        if self.exhausted or not self._feeding.acquire(blocking=False):
            return
        try:
            room = self.room()
            if room <= 0:
                return
            self._cautious *= 2
            count = 0
            outstanding = self.outstanding
            for future in islice(self._futures, room):
                outstanding.append(future)
                count += 1
                self._tell_of()
                if self._stopped:
                    return
            if count < room:
                self._end()
        except BaseException as error:  # Ctrl-C, most likely: what is left of the iterable is lost, and that must show
            self.outstanding.append(failed(None, error.with_traceback(None)))
            self._end()
            raise
        finally:
            self._feeding.release()

    def _tell_of(self) -> None:
        """Whoever waits for the first task to be outstanding shall look."""
        if self._starved:
            with self._changed:
                self._changed.notify_all()

    def _end(self) -> None:
        self.exhausted = True
        with self._changed:
            self._changed.notify_all()
        self.owner._fed(self)

    def _run(self) -> None:
        while not self.exhausted:
            self.feed()
            with self._changed:
                self._changed.wait_for(lambda: self.exhausted or self.room() > 0)

    def more(self) -> None:
        """Results have been yielded: feed, or let the thread do it."""
        if self.exhausted:
            return
        if self._thread is None:
            self.feed()
        else:
            with self._changed:
                self._changed.notify_all()

    def wait_fed(self, until: float | None) -> bool:
        """Wait until something is outstanding, or nothing more will be; False if the time is over."""
        with self._changed:
            self._starved += 1
            try:
                return bool(self._changed.wait_for(lambda: self.outstanding or self.exhausted, left_until(until)))
            finally:
                self._starved -= 1

    def finish(self) -> None:
        """Submit all that is left, whoever takes the results. Waits for the iterable."""
        self._unlimited = True
        if self._thread is None:
            while not self.exhausted:
                self.feed()
        else:
            self.more()
            if self._thread is not threading.current_thread():
                self._thread.join()

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopped = True
        if not self.exhausted:
            self._end()

    def abandon(self) -> None:
        """Nobody will ask for results any more; the rest of the iterable is submitted all the same."""
        thread = threading.Thread(target=_throw_away, args=(self,), name="dpool-imap", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends
            self.stop()


def _throw_away(feed: Feed) -> None:
    results = _Thrower(feed)
    while not feed.exhausted:
        try:
            next(results)
        except StopIteration:
            return
        except BaseException:  # a task's: nobody wants to know
            continue


class IMapIterator:
    """The results of `Pool.imap`, in order. Source: `multiprocessing.pool.IMapIterator`."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._ready = feed.ready
        self._yielded = 0
        self._lock = threading.Lock()

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        try:
            value = self._ready.popleft()
        except IndexError:
            value = self._wait(None)
        self._yielded += 1
        if self._yielded >= self._feed.batch:
            self._yielded = 0
            self._feed.more()
        if value.__class__ is Raise:
            self._raise(value)
        return value.load() if value.__class__ is InStore else value

    def next(self, timeout: float | None = None) -> Any:
        """The next result; `multiprocessing.TimeoutError` after `timeout` seconds."""
        if timeout is not None and not self._ready:
            self._ready.appendleft(self._wait(monotonic() + timeout))
        return self.__next__()

    @staticmethod
    def _raise(value: Raise) -> None:
        try:
            raise value.error
        finally:
            del value  # else the traceback holds what holds the traceback

    def _wait(self, until: float | None) -> Any:
        """Wait for the next value, and take it."""
        left = left_until(until)
        if not self._lock.acquire(timeout=-1 if left is None else left):
            raise time_over()
        try:
            feed = self._feed
            while True:
                feed.more()
                self._collect()
                if self._ready:
                    return self._ready.popleft()
                if not feed.outstanding:
                    if feed.exhausted and not feed.outstanding:
                        feed.owner = None
                        raise StopIteration
                    if not feed.wait_fed(until):
                        raise time_over()
                elif not self._await(until):
                    raise time_over()
        finally:
            self._lock.release()

    def _collect(self) -> None:
        """Make values of what has ended, in order; of one chunk at a time."""
        outstanding = self._feed.outstanding
        while outstanding and outstanding[0]._state in DONE:
            self._put(outstanding.popleft())
            if self._feed.chunked:
                return

    def _await(self, until: float | None) -> bool:
        return wait_for(self._feed.outstanding[0], left_until(until))

    def _put(self, future: Future[Any]) -> None:
        extra = future._extra
        if future._state == FINISHED and (extra is None or extra.exception is None):
            if not self._feed.chunked:
                self._ready.append(future._result)
                return
            error = error_of(future)  # takes the chunk out of the object store
            if error is None:
                self._ready.extend(future._take())
                return
        else:
            error = error_of(future)
        assert error is not None
        self._ready.append(Raise(error))

    def __del__(self) -> None:
        feed = getattr(self, "_feed", None)
        if feed is not None and not feed.exhausted and type(self) is not _Thrower:
            feed.abandon()


class IMapUnorderedIterator(IMapIterator):
    """The results of `Pool.imap_unordered`, as they come. Source: `multiprocessing.pool.IMapUnorderedIterator`."""

    def _collect(self) -> None:
        outstanding = self._feed.outstanding
        for _ in range(len(outstanding)):
            future = outstanding.popleft()
            if future._state not in DONE:
                outstanding.append(future)
                continue
            self._put(future)
            if self._feed.chunked:
                return

    def _await(self, until: float | None) -> bool:
        outstanding = self._feed.outstanding

        def some() -> bool:
            return any(future._state in DONE for future in list(outstanding))

        self._feed.inner.wait_any(some, left_until(until))
        return some()


class _Thrower(IMapUnorderedIterator):
    """Takes results that nobody wants."""
