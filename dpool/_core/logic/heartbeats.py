"""Whom a machine tells how it is, and when: a few others with each beat, in turn, until all have heard the latest.

```
 something has changed ─ news() ─► everybody is owed it ─ due(), once per beat ─► the next AUDIENCE of them
```

If every machine told all others with every beat, a machine of a cluster of n would read n heartbeats per beat: with
1,000 machines and 100 ms that is more than a core does. Told in turn, a machine reads about AUDIENCE per beat whatever
n is; what it knows of any one other is n / AUDIENCE beats old at most, what it knows of AUDIENCE of them is fresh, and
comparing a few is nearly as good as comparing all (see placement.py). A machine where nothing changes says nothing.

Pure; one thread. Invariants (`check`): each peer stands in the order once; no more are owed than there are.

Source: the fan-out of gossip protocols (Demers and others, 1987), with turns instead of dice.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b

AUDIENCE = 32
"""Machines told per beat; in a cluster that is not larger, all."""


class Heartbeats:
    """The turns of one machine; see the module.

    Args:
        here: the machine. It tells the others in an order of its own, or all would tell the same one at a time.
    """

    def __init__(self, here: bytes) -> None:
        self._here = here
        self._order: list[tuple[bytes, bytes]] = []
        """(hash, peer), sorted."""
        self._next = 0
        self.owed = 0
        """How many in turn have not heard the latest."""

    def peer_up(self, peer: bytes) -> None:
        """It is told by whoever says so; from now on it has its turn."""
        entry = self._entry(peer)
        at = bisect_left(self._order, entry)
        if self._order[at : at + 1] == [entry]:
            return
        self._order.insert(at, entry)
        if at < self._next:
            self._next += 1
        if (at - self._next) % len(self._order) < self.owed:
            self.owed += 1  # between those that are owed: it hears it twice

    def peer_down(self, peer: bytes) -> None:
        """It hears nothing any more."""
        entry = self._entry(peer)
        at = bisect_left(self._order, entry)
        if self._order[at : at + 1] != [entry]:
            return
        if (at - self._next) % len(self._order) < self.owed:
            self.owed -= 1
        del self._order[at]
        if at < self._next:
            self._next -= 1
        self._next = self._next % len(self._order) if self._order else 0

    def news(self) -> None:
        """Something has changed: everybody is to hear it."""
        self.owed = len(self._order)

    def due(self) -> list[bytes]:
        """Who is told now."""
        count = min(self.owed, AUDIENCE)
        told = [self._order[(self._next + at) % len(self._order)][1] for at in range(count)]
        if told:
            self._next = (self._next + count) % len(self._order)
            self.owed -= count
        return told

    def _entry(self, peer: bytes) -> tuple[bytes, bytes]:
        return blake2b(self._here + peer, digest_size=8).digest(), peer

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        assert self._order == sorted(set(self._order))
        assert 0 <= self.owed <= len(self._order)
        assert 0 <= self._next < max(1, len(self._order))
