"""The clock, the dice and the network of one simulated run.

A `Link` is a socket: what is sent arrives in order, some time later; different links know nothing of each other, so
what is sent on two of them arrives in any order. Nothing is lost on a link unless an end of it is dead.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

MAX_STEPS = 100_000
TRACE_LINES = 60


class World:
    """Virtual time. `run` fires what is due until nothing is left to happen.

    Attributes:
        now_s: the virtual time.
        rng: the only source of chance.
        numbers: of tasks, clients and pools, each given once.
        trace: what happened, the last lines of it (all of it if `verbose`).
    """

    def __init__(self, seed: int, verbose: bool = False) -> None:
        self.now_s = 0.0
        self.rng = Random(seed)
        self.numbers = count(1)
        self.trace: deque[tuple[float, str, object]] = deque(maxlen=None if verbose else TRACE_LINES)
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when_s: float, do: Callable[..., None], *args: Any) -> None:
        """Call `do(*args)` at `when_s`, or now if that has passed."""
        self._count += 1
        heapq.heappush(self._due, (max(when_s, self.now_s), self._count, do, args))

    def after(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        self.at(self.now_s + delay_s, do, *args)

    def soon(self, do: Callable[..., None], *args: Any) -> None:
        """After a short while: mostly 0.1 ms, sometimes long enough to be overtaken by everything else."""
        self.after(self.short_s(), do, *args)

    def short_s(self) -> float:
        return self.rng.expovariate(1 / 0.0001) if self.rng.random() < 0.9 else self.rng.uniform(0.0, 0.05)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def note(self, who: str, what: object) -> None:
        """Add a line to the trace; formatted only if somebody reads it."""
        self.trace.append((self.now_s, who, what))

    def run(self) -> None:
        for _ in range(MAX_STEPS):
            if not self._due:
                return
            self.now_s, _, do, args = heapq.heappop(self._due)
            do(*args)
        raise AssertionError(f"no rest after {MAX_STEPS} steps: something goes round in circles")

    def story(self) -> str:
        """The trace as text."""
        return "\n".join(f"{now_s:9.4f}  {who:14} {what}" for now_s, who, what in self.trace)


class Link:
    """One direction of a socket.

    Args:
        receive: called with each message, in order.
        ended: called once after the last message when the sender has closed its end.
    """

    def __init__(self, world: World, receive: Callable[[Any], None], ended: Callable[[], None] | None = None) -> None:
        self._world = world
        self._receive = receive
        self._ended = ended
        self._pending: deque[tuple[int, Any]] = deque()
        self._last_arrival_s = 0.0
        self._sent = 0
        self._closed = False

    def send(self, message: Any) -> None:
        """Nothing happens if either end is gone, as with a process that does not know yet that its peer is dead."""
        if self._closed:
            return
        self._sent += 1
        self._last_arrival_s = max(self._last_arrival_s, self._world.now_s + self._world.short_s())
        self._pending.append((self._sent, message))
        self._world.at(self._last_arrival_s, self._arrive, self._sent)

    def drain(self) -> None:
        """The receiver reads everything that has been sent, now."""
        self._arrive(self._sent)

    def end(self) -> None:
        """The sender closes: what was sent still arrives, then `ended` is called."""
        self.send(_END)
        self._closed = True

    def cut(self) -> None:
        """The receiver is gone: nothing arrives any more."""
        self._closed = True
        self._ended = None
        self._pending.clear()

    def _arrive(self, number: int) -> None:
        while self._pending and self._pending[0][0] <= number:
            message = self._pending.popleft()[1]
            if message is not _END:
                self._receive(message)
            elif self._ended is not None:
                self._ended()


_END = object()
