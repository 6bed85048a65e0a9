"""The store's memory and who has it: leases, zombies, retired ranges, warm memory that nobody used for a while.

```
 allocate ─► lease ──take (Seal)──► object ──release──► free, or while a reader maps it: zombie ──rescan──► free
                └── give back ──► free                                └ retired: for good
```

One thread. It asks `pinned(range)` whether a reader maps a range, the one thing here that is not in the arguments.
Invariant: a used byte of the arena is leased, a zombie's, or has been handed to the caller.
"""

from __future__ import annotations

from collections.abc import Callable

from dpool._store.arena import NOBODY, PAGE, Arena, Range
from dpool._store.events import Allocate, IllegalMove, Instruction, MakeSegment, Punch
from dpool._store.intervals import Intervals

Place = tuple[int, int]
"""Segment and offset: where a range begins."""

UNUSED_S = 30.0
"""Warm memory that was not used for so long is given back."""
EARLY_S = 0.5
"""A Tick so much too early is the one that was asked for."""


class Room:
    """See the module."""

    def __init__(self, capacity: int, segment_bytes: int, first_segment: int, pinned: Callable[[Range], bool]) -> None:
        self.arena = Arena(capacity, segment_bytes, first_segment)
        self.pinned = pinned
        self.clients: dict[int, int] = {}
        """Client → process id."""
        self.leases: dict[int, dict[int, Intervals]] = {}
        """Client → segment → what it may write to."""
        self.zombies: dict[Place, Range] = {}
        self.retired: dict[Place, int] = {}
        """Where → length."""
        self._unused = 0
        """The least warm memory that there was since the last trim."""
        self._trim_at: float | None = None
        self._vague = False
        """`_trim_at` was set when the time was not known: it counts from the next Tick."""
        self._timer_at: float | None = None
        """The Tick that has been asked for."""

    # -- leases

    def allocate(self, length: int, owner: int, out: list[Instruction]) -> Range | None:
        """A range, used from now on, and in `out` what must be done first; None: not now."""
        made = self.arena.allocate(length, owner)
        if made is None:
            return None
        out.extend(Punch(part) for part in made.punch)
        if made.new_segment:
            out.append(MakeSegment(made.range.segment, made.new_segment))
        out.extend(Allocate(part) for part in made.cold)
        return made.range

    def lease(self, client: int, r: Range) -> None:
        """`r`, just allocated, is the client's."""
        self.leases.setdefault(client, {}).setdefault(r.segment, Intervals()).add(r.offset, r.end)

    def leases_all(self, client: int, r: Range) -> bool:
        """Whether `r`, in whole pages, is in the client's leases."""
        held = self.leases.get(client, {}).get(r.segment)
        return held is not None and not (r.offset % PAGE or r.length % PAGE) and held.contains(r.offset, r.end)

    def check_leased(self, client: int, r: Range, event: str) -> None:
        """IllegalMove unless `leases_all`."""
        if not self.leases_all(client, r):
            raise IllegalMove("not leased", event, f"{r} for client {client}")

    def take(self, client: int, r: Range) -> None:
        """`r`, in its leases, is the client's no more; it stays used."""
        segments = self.leases[client]
        segments[r.segment].remove(r.offset, r.end)
        if not segments[r.segment]:
            del segments[r.segment]
        if not segments:
            del self.leases[client]

    def unknown_to(self, client: int, live: list[Range]) -> list[Range]:
        """What is leased to the client and not in `live`."""
        found = []
        for segment, held in self.leases.get(client, {}).items():
            spans = sorted((r.offset, r.end) for r in live if r.segment == segment)
            for start, end in held:
                at = start
                for first, behind in spans:
                    if first > at:
                        found.append(Range(segment, at, min(first, end) - at))
                    at = min(max(at, behind), end)
                    if at == end:
                        break
                if at < end:
                    found.append(Range(segment, at, end - at))
        return [r for r in found if r.length > 0]

    def left(self, client: int) -> list[Range]:
        """The client has ended: its leases are free, its segments nobody's. The ranges to punch.

        Nobody knows whether the memory that was asked for the leases has come yet, so they count as cold.
        """
        self.clients.pop(client, None)
        punched = []
        for segment, held in self.leases.pop(client, {}).items():
            for start, end in held:
                r = Range(segment, start, end - start)
                self.arena.make_cold(r)
                punched.append(r)
        if client != NOBODY:
            self.arena.orphan(client)
        return punched

    # -- what readers map

    def held(self, r: Range) -> bool:
        """Whether a process may look at `r` at any time."""
        return r[:2] in self.retired or self.pinned(r)

    def release(self, r: Range) -> None:
        """Its object is gone: free, or a zombie as long as a reader maps it."""
        if self.held(r):
            self.zombies[r[:2]] = r
        else:
            self.arena.free(r)

    def rescan(self) -> None:
        """Free the zombies that nobody maps any more."""
        for place, r in list(self.zombies.items()):
            if not self.held(r):
                del self.zombies[place]
                self.arena.free(r)

    def zombie_bytes(self) -> int:
        """Kept only for readers; what is retired is not counted."""
        return sum(r.length for place, r in self.zombies.items() if place not in self.retired)

    # -- giving memory back

    def note(self, now_s: float, timed: bool) -> float | None:
        """After every event: when a Tick is wanted, if that is news; `timed`: the event told the time."""
        self._unused = min(self._unused, self.arena.warm)
        if self._trim_at is None and self.arena.trimmable:
            self._unused = self.arena.warm
            self._trim_at = now_s + UNUSED_S
            self._vague = not timed
        if self._trim_at is None or self._timer_at is not None:
            return None
        self._timer_at = self._trim_at
        return self._timer_at

    def trim(self, now_s: float) -> tuple[list[Range], list[int]]:
        """A Tick: if it is time, give back what was not used for a while; ranges to punch, segments to drop."""
        if self._timer_at is not None and self._timer_at <= now_s + EARLY_S:
            self._timer_at = None
        if self._trim_at is not None and self._vague:
            self._trim_at, self._vague = now_s + UNUSED_S, False
        if self._trim_at is None or now_s < self._trim_at:
            return [], []
        self._trim_at = None
        return self.arena.trim(self.arena.warm - min(self._unused, self.arena.warm))

    def excess(self) -> list[Range]:
        """What to punch because resident bytes exceed the capacity (after a segment was adopted)."""
        arena = self.arena
        if arena.resident <= arena.capacity or not arena.warm:
            return []
        return arena.chill(arena.resident - arena.capacity, NOBODY)

    def leased(self) -> list[Range]:
        """Every leased range; those of one client that touch are one."""
        return [
            Range(segment, start, end - start)
            for segments in self.leases.values()
            for segment, held in segments.items()
            for start, end in held
        ]
