"""Streams, on the side of the generator: its items are sent as it yields them, no further ahead than its window.

```
 for item in generator ─► Worker.answer(-task, False, index, [item]) ─► the submitter's Flow
        ▲ Window.wait while too many, or too large ones, have not been taken ◄── pipe ◄─┘
```

The pipe's writing end goes to the submitter with index -1, before the first item; see `stream.py`. A generator that is
to end is closed: GeneratorExit is raised where it has yielded, and its `finally` blocks run.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import nullcontext
from select import POLLIN, poll
from typing import TYPE_CHECKING, Any

from dpool._core.context import here
from dpool._core.frames import STORED, STORED_ALONE
from dpool._core.stream import CLOSE, CREDIT, NO_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

OPENED = -1
"""In the place of an item's index: the pipe comes along."""
SMALL = 32
"""What a plain value counts for, in bytes."""


class Window:
    """How far ahead a generator is, and may be; limits below 0: there are none."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.closed = False
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._most, self._most_bytes = most, most_bytes
        self._sizes: deque[int] = deque()
        """Of the items that have been sent and not taken."""
        self._bytes = 0
        self._surplus = 0
        """Items that were taken from an earlier attempt, and that this one has not sent yet."""
        self._poll = poll()
        self._poll.register(self.reader, POLLIN)

    def sent(self, value: Any) -> None:
        """An item is on its way."""
        if self._surplus:
            self._surplus -= 1
            return
        size = _size(value)
        self._sizes.append(size)
        self._bytes += size

    def full(self) -> bool:
        ahead = len(self._sizes)
        return not self.closed and ahead > 0 and (0 <= self._most <= ahead or 0 <= self._most_bytes <= self._bytes)

    def hear(self) -> None:
        """Read what the other side has said."""
        if not self._poll.poll(0):
            return
        data = os.read(self.reader, 1 << 16)
        if not data:  # nobody is there any more
            self.closed = True
        for (number,) in CREDIT.iter_unpack(data):
            if number == CLOSE:
                self.closed = True
            elif number == NO_LIMIT:
                self._most = self._most_bytes = -1
            else:
                self._taken(number)

    def _taken(self, count: int) -> None:
        for _ in range(min(count, len(self._sizes))):
            self._bytes -= self._sizes.popleft()
            count -= 1
        self._surplus += count

    def wait(self) -> None:
        """Until something is taken; others may have the CPUs of this task meanwhile."""
        self.hear()
        if not self.full():
            return
        with _lending():
            while self.full():
                self._poll.poll()
                self.hear()

    def handed_over(self) -> None:
        """The writing end has gone to the other side."""
        os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        os.close(self.reader)
        if self.writer >= 0:
            os.close(self.writer)


def _size(value: Any) -> int:
    """Bytes of an item, as it travels."""
    if type(value) is not tuple:
        return len(value) if isinstance(value, (str, bytes)) else SMALL
    kind, data = value
    if kind in (STORED, STORED_ALONE):
        return int(data[4])
    return len(data[0]) if type(data) is tuple else len(data)


def _lending() -> AbstractContextManager[None]:
    if not here.holds_cpus:
        return nullcontext()
    from dpool._core.driver import runtime

    return runtime().blocking()


def send_items(items: Any, limits: tuple[int, int], send: Callable[..., Any]) -> int:
    """Send what a generator yields; returns how many there were.

    Args:
        limits: items, and bytes of them, that it may be ahead.
        send: `send(index, item, fd)` sends one, and returns what travels.
    """
    iterator = iter(items)
    window = Window(*limits)
    index = -1
    try:
        send(OPENED, None, window.writer)
        window.handed_over()
        while not window.closed:
            try:
                item = next(iterator)
            except StopIteration:
                break
            index += 1
            window.sent(send(index, item))
            del item
            window.wait()
    finally:
        window.close()
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
    return index + 1


async def send_items_async(items: Any, limits: tuple[int, int], send: Callable[..., Any]) -> int:
    """The same in an event loop; `items` may be an asynchronous generator."""
    import asyncio

    source = aiter(items) if hasattr(items, "__aiter__") else _as_async(items)
    window = Window(*limits)
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    index = -1

    def readable() -> None:
        window.hear()
        if window.closed:
            loop.remove_reader(window.reader)
        heard.set()

    try:
        send(OPENED, None, window.writer)
        window.handed_over()
        loop.add_reader(window.reader, readable)
        while not window.closed:
            try:
                item = await anext(source)
            except StopAsyncIteration:
                break
            index += 1
            window.sent(send(index, item))
            del item
            while window.full():
                heard.clear()
                await heard.wait()
    finally:
        loop.remove_reader(window.reader)
        window.close()
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
    return index + 1


async def _as_async(items: Any) -> Any:
    """What an ordinary generator yields; others run between its items."""
    import asyncio

    iterator = iter(items)
    try:
        for item in iterator:
            yield item
            await asyncio.sleep(0)
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
