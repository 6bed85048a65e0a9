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
PROBE_FIRST = 32
PROBE_EVERY = 500
"""Short waits between two trials of the other way."""
PROBE_WAITS = 6
POLITE_S = 6e-6
"""From then on the processor is offered to others between two looks."""


class Choice:
    """Poll or sleep: whichever has lately given the shorter waits on this machine, as it is loaded now.

    On an idle machine a sleeping core takes tens of microseconds to wake; where two processes share a core, waking the
    other one is a mere switch, and polling only keeps it from running. So both are tried now and then.
    """

    __slots__ = ("_left", "_means_s", "_probing", "_skip", "polling")

    def __init__(self) -> None:
        self.polling = True
        self._means_s = {True: 0.0, False: 0.0}
        self._probing = False
        self._left = PROBE_FIRST
        self._skip = 0

    def note(self, waited_s: float) -> None:
        """A short wait took so long."""
        if self._skip:
            self._skip -= 1
            return
        mean_s = self._means_s[self.polling]
        self._means_s[self.polling] = waited_s if mean_s == 0.0 else mean_s + 0.2 * (waited_s - mean_s)
        self._left -= 1
        if self._left:
            return
        if self._probing:
            self._probing = False
            self.polling = self._means_s[True] <= self._means_s[False]
            self._left = PROBE_EVERY
        else:
            self._probing = True
            self.polling = not self.polling
            self._means_s[self.polling] = 0.0
            self._left = PROBE_WAITS
        self._skip = 2  # the other side has to notice


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
