"""Streams, on the side of whoever takes the items that a generator yields in its task.

```
 task: generator ─ item ─► frame ─► Lane ─► Flow.put ─► Stream.next() ─► Future
   ▲ waits while the window is full                        │
   └────────────── pipe: how many were taken, close ◄──────┘
```

The generator's side (`yielding.py`) makes the pipe when it begins and sends us its writing end. So a generator is never
further ahead than its window, and one whose stream is closed, or belongs to a process that has died, ends.

Threads: `put`, `opened` and `ended` come from the reading role, the rest from anywhere, also from finalizers. A forked
child has what had come before, and no pipe: the stream is its parent's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from dpool._core.future import Future

WINDOW = 1000
"""Items that a generator may be ahead of who takes them."""
WINDOW_BYTES = 64 << 20
"""Bytes of items that it may be ahead; always one item."""
CLOSE, NO_LIMIT = 0, 0xFFFFFFFF
"""Through the pipe: the stream is closed; the window is lifted; any other number: so many more items were taken."""
CREDIT = Struct("<I")
AGAIN_S = 0.01
"""After so long it is tried again to write into a pipe that is full."""


class Flow:
    """Items that have come and have not been taken, and the pipe to their generator."""

    __slots__ = (
        "__weakref__", "_fd", "_lifting", "_lock", "_owed", "_unlimited", "closed", "items", "taken", "watchers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._fd = -1
        self._owed = 0
        """Items that were taken, which the generator does not know yet."""
        self._unlimited = self._lifting = False
        """The window is lifted; and the generator does not know yet."""
        self.items: dict[int, Future[Any]] = {}
        self.taken = 0
        self.closed = False
        self.watchers: list[Callable[[], None]] = []
        """Called, once, when something has come, or nothing will come any more."""
        _flows.add(self)

    def opened(self, fd: int) -> None:
        """A generator has begun: the first one, or the one of a task that runs again, which yields all items again."""
        with self._lock:
            self._drop()
            self._fd = fd
            self._owed = self.taken
            self._lifting = self._unlimited
            if self.closed and not self._unlimited:
                self.close()
            else:
                self.tell()

    def put(self, index: int, item: Future[Any]) -> None:
        """The task has yielded once more. After a retry some come again."""
        with self._lock:
            if index >= self.taken and not self.closed:
                self.items.setdefault(index, item)
            watchers, self.watchers = self.watchers, []
        for watcher in watchers:
            watcher()

    def take(self) -> Future[Any] | None:
        """The next item, if it is there."""
        with self._lock:
            item = self.items.pop(self.taken, None)
            if item is not None:
                self.taken += 1
                self._owed += 1
                self.tell()
            return item

    def tell(self) -> bool:
        """Say what the generator does not know; False if the pipe is full: it has enough to read for now."""
        with self._lock:
            if self._lifting and self._write(NO_LIMIT):
                self._lifting = False
            if self._owed and self._write(self._owed):
                self._owed = 0
            return not (self._owed or self._lifting) or self._fd < 0

    def tell_all(self, runtime: Any) -> None:
        """The same, now or soon: somebody waits for what the generator yields when it has heard."""
        if not self.tell():
            runtime.at(monotonic() + AGAIN_S, partial(self.tell_all, runtime))

    def unlimit(self) -> None:
        """The generator runs on to its end, whether or not anybody takes its items."""
        with self._lock:
            if not self._unlimited:
                self._unlimited = self._lifting = True
                self.tell()

    def abandon(self) -> bool:
        """Nobody will take any more; False if the generator goes on nevertheless, as its end is waited for."""
        with self._lock:
            if self._unlimited:
                self.closed = True
                self.items.clear()
            else:
                self.close()
            return not self._unlimited

    def close(self) -> None:
        """Nothing more is wanted: the generator is closed where it has yielded."""
        with self._lock:
            self.closed, self._unlimited, self._lifting = True, False, False
            self.items.clear()
            self._write(CLOSE)
            self._drop()

    def ended(self, _: Any = None) -> None:
        """The task has ended."""
        with self._lock:
            self._drop()
            watchers, self.watchers = self.watchers, []
        for watcher in watchers:
            watcher()

    def _write(self, number: int) -> bool:
        if self._fd < 0:
            return False
        try:
            os.write(self._fd, CREDIT.pack(number))
        except BlockingIOError:
            return False
        except OSError:  # the generator has ended
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def forked(self) -> None:
        """In a forked child: the pipe is the parent's. A thread that is not here may have held the lock."""
        self._lock = threading.RLock()
        self._drop()

    def __del__(self) -> None:
        self._drop()


_flows: WeakSet[Flow] = WeakSet()


def _forked() -> None:
    for flow in list(_flows):
        flow.forked()


os.register_at_fork(after_in_child=_forked)


class Stream:
    """The futures of what a generator yields in its task, as it yields: an iterator, also with `async for`.

    The generator waits when it is `stream_window` items, or `stream_window_bytes`, ahead. It is closed (GeneratorExit,
    where it has yielded) when the stream is: by `close`, at the end of a `with` block, or when nobody holds the stream
    any more. If it raises, the last future raises that.

    Source: Ray's ObjectRefGenerator.
    """

    def __init__(self, whole: Future[Any], flow: Flow) -> None:
        self._whole = whole
        self._flow = flow
        self._ended = False
        whole.add_done_callback(flow.ended)

    def __iter__(self) -> Iterator[Future[Any]]:
        return self

    def __next__(self) -> Future[Any]:
        return self.next()

    def next(self, timeout: float | None = None) -> Future[Any]:
        """The next future; StopIteration at the end, TimeoutError after `timeout` seconds."""
        if not self._ready():
            whole = self._whole
            assert whole._route is not None
            whole._route.check_wait(whole)
            self._flow.tell_all(whole._route.pool.runtime)
            whole._route.pool.wait_any(self._ready, timeout)
            if not self._ready():
                raise TimeoutError(f"the task has yielded nothing within {timeout} s")
        return self._take()

    def _take(self) -> Future[Any]:
        """What is ready; StopIteration at the end."""
        item = self._flow.take()
        if item is not None:
            return item
        whole = self._whole
        if not self._ended and not self._flow.closed and (whole.cancelled() or whole.exception() is not None):
            self._ended = True
            return whole
        raise StopIteration

    def _ready(self) -> bool:
        flow = self._flow
        return flow.taken in flow.items or flow.closed or self._whole.done()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Future[Any]:
        import asyncio

        loop = asyncio.get_running_loop()
        while not self._ready():
            there = asyncio.Event()
            self._flow.watchers.append(partial(_wake, loop, there))
            route = self._whole._route
            if route is not None:
                self._flow.tell_all(route.pool.runtime)
                route.attend()
            if not self._ready():  # else it came before we watched
                await there.wait()
        try:
            return self._take()
        except StopIteration:
            raise StopAsyncIteration from None

    def completed(self) -> Future[int]:
        """A future that ends with the generator: its value is how many it has yielded. Who asks for it may wait for it
        without taking the items, so from now on the generator does not wait for that, and runs on without the stream.
        """
        self._flow.unlimit()
        route = self._whole._route
        if route is not None:
            self._flow.tell_all(route.pool.runtime)
        return self._whole

    def close(self) -> None:
        """Take no more: a task that has not begun never will, and a generator is closed where it has yielded."""
        self._flow.close()
        if not self._whole.done():
            self._whole.cancel()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Stream stays in the process that made it, which tells the generator what was taken: pass the futures "
            "that it gives, or call the generator in the task that is to take its items"
        )

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        whole = self._whole
        if not whole.done() and whole._route is not None and whole._route.ours():
            whole._route.later(partial(_close, self._flow, whole))  # we may be in the middle of anything

    def __repr__(self) -> str:
        return f"<dpool Stream of {self._whole!r}: {self._flow.taken} taken>"


def _close(flow: Flow, whole: Future[Any]) -> None:
    """The stream is gone."""
    if flow.abandon() and not whole.done():
        whole.cancel()


def _wake(loop: Any, there: Any) -> None:
    """In whatever thread an item has come."""
    try:
        loop.call_soon_threadsafe(there.set)
    except RuntimeError:  # the loop has been closed: nobody waits any more
        return
