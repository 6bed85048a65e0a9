"""Whether to poll before sleeping: worth about 20 µs per hop on an idle machine, and harmful on a busy one.

A poll that ends without an answer means that the other side does not get to run, or that the task is long; then the
next waits sleep at once, twice as many after each failure, and one poll tries again. After a moment the processor is
offered to others between two looks (`sched_yield`, which costs a look itself), so that a peer on the same core can
answer.
"""

from __future__ import annotations

from collections.abc import Callable
from os import sched_yield
from time import perf_counter
from typing import Any

MAX_SKIPPED = 64
"""Waits that sleep at once after many failed polls, before one polls again."""
POLITE_S = 6e-6
"""From then on the processor is offered to others between two looks."""


class Poller:
    """Polls one epoll for up to `limit_s`; remembers whether that was any use. Not thread-safe."""

    __slots__ = ("_limit_s", "_look", "_skip", "_skips")

    def __init__(self, look: Callable[[float], list[Any]], limit_s: float) -> None:
        self._look = look
        self._limit_s = limit_s
        self._skip = 0
        self._skips = 0

    def poll(self) -> list[Any]:
        """What is readable, or [] if nothing came in time (or polling has not paid lately)."""
        look = self._look
        events = look(0)
        if events:
            return events
        if self._skips:
            self._skips -= 1
            return events
        now = perf_counter()
        polite, until = now + POLITE_S, now + self._limit_s
        while now < until:
            events = look(0)
            if events:
                self._skip = 0
                return events
            now = perf_counter()
            if now > polite:
                sched_yield()
        self._skip = self._skips = min(2 * self._skip + 1, MAX_SKIPPED)
        return events
