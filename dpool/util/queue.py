"""`Queue`: a first-in, first-out queue that lives in an actor, for whoever has it. Source: Ray's `ray.util.queue`."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable, Mapping
from typing import Any

import dpool.actor


class Empty(queue.Empty):
    """Nothing is in the queue, or nothing came in time."""


class Full(queue.Full):
    """The queue has no room, or none in time."""


class Queue:
    """A queue in a process of its own; it can be passed to tasks and actors.

    Args:
        maxsize: how many items it has room for; 0: any number.
        actor_options: of the actor, as for `dpool.remote`; its attribute `actor` is the proxy.
    """

    def __init__(self, maxsize: int = 0, actor_options: Mapping[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        self.actor = dpool.actor.ActorClass(_Items, actor_options or {}).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items it has."""
        return int(self.actor.size())

    qsize = size

    def empty(self) -> bool:
        """Whether it has none."""
        return self.size() == 0

    def full(self) -> bool:
        """Whether it has room for none."""
        return bool(self.actor.full())

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item; waits for room up to `timeout` seconds (not `block`: not at all), then `Full`."""
        self.actor.put(item, _patience(block, timeout))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the first item; waits for one up to `timeout` seconds (not `block`: not at all), then `Empty`."""
        return self.actor.get(_patience(block, timeout))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """`put`, in a coroutine."""
        await self.actor.put.remote(item, _patience(block, timeout))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """`get`, in a coroutine."""
        return await self.actor.get.remote(_patience(block, timeout))

    def put_nowait(self, item: Any) -> None:
        """`put`, without waiting."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """`get`, without waiting."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all, or none and `Full`."""
        self.actor.put_all(list(items))

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take the first `num_items`, or none and `Empty`."""
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items must be a number, not {num_items!r}")
        if num_items < 0:
            raise ValueError(f"num_items must not be negative, it is {num_items}")
        return list(self.actor.get_all(num_items))

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End its process, after what it was asked to (`force`: now): whoever uses the queue gets `ActorDied`."""
        if not force:
            dpool.wait([self.actor.close.remote()], timeout=grace_period_s)
        self.actor.kill()


def _patience(block: bool, timeout: float | None) -> float | None:
    """How many seconds to wait; None: without limit."""
    if not block:
        return 0
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative, it is {timeout}")
    return timeout


class _Items:
    """What is in the queue."""

    def __init__(self, maxsize: int) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def size(self) -> int:
        return self._items.qsize()

    async def full(self) -> bool:
        return self._items.full()

    async def close(self) -> None:
        """All calls before this one have begun."""

    async def put(self, item: Any, patience_s: float | None) -> None:
        try:
            if patience_s == 0:
                self._items.put_nowait(item)
            else:
                await asyncio.wait_for(self._items.put(item), patience_s)
        except (asyncio.QueueFull, asyncio.TimeoutError):
            raise Full from None

    async def get(self, patience_s: float | None) -> Any:
        try:
            if patience_s == 0:
                return self._items.get_nowait()
            return await asyncio.wait_for(self._items.get(), patience_s)
        except (asyncio.QueueEmpty, asyncio.TimeoutError):
            raise Empty from None

    async def put_all(self, items: list[Any]) -> None:
        if self._items.maxsize and self._items.qsize() + len(items) > self._items.maxsize:
            raise Full(f"room for {self._items.maxsize} items, {self._items.qsize()} in use, {len(items)} to add")
        for item in items:
            self._items.put_nowait(item)

    async def get_all(self, count: int) -> list[Any]:
        if count > self._items.qsize():
            raise Empty(f"{count} items wanted, {self._items.qsize()} there")
        return [self._items.get_nowait() for _ in range(count)]
