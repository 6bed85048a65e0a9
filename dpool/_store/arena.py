"""Which bytes of the store's segments are used, warm or cold: best fit, owners' own pages first.

```
 segment 1 (64 MiB)  ┌──────────┬────────┬──────────────┬───────────────┐
                     │   used   │  warm  │     used     │     cold      │      free = warm + cold
                     └──────────┴────────┴──────────────┴───────────────┘
                     └─────── resident: has pages ──────┘ └ no pages ───┘
```

A used byte always has pages. A free one is warm (it was used before; its pages are still there) or cold (never
allocated, or punched). The arena only keeps the books: whoever asks it makes segments, punches and fallocates.

Where an allocation goes: each writer has segments of its own (those it wrote last), because its mapping of their pages
is the expensive part of a write: 100 MB take it 5 ms into pages that it has mapped, 42 ms into pages that it has not,
63 ms into pages that do not exist. So, the first that fits:

1. warm ranges of its own segments, then of segments whose writer is gone;
2. cold room in those, or a new segment, as long as that keeps resident <= capacity without punching;
3. warm ranges of other writers' segments;
4. cold room after all, and as much as it takes is punched elsewhere.

Virtual room is never scarce, so an allocation fails only if used bytes would exceed the capacity.

One thread. Invariants: used + warm = resident <= capacity (above it only for what was adopted); the free ranges of a
segment are disjoint and merged; every number is a multiple of PAGE. All is O(log n) in the number of free ranges, but
for a change of a segment's owner, which moves its free ranges to another index.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from dpool._store.intervals import Intervals, Sizes

PAGE = 4096
NOBODY = 0
"""The owner of a segment whose writer is gone, and of what the node itself allocates."""


def round_up(length: int) -> int:
    """`length` bytes in whole pages, in bytes."""
    return -(-length // PAGE) * PAGE


class Range(NamedTuple):
    """`length` bytes of a segment; offset and length are multiples of PAGE."""

    segment: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class Allocation(NamedTuple):
    """A range that is used from now on, and what must be done before it may be written.

    Attributes:
        range: the bytes.
        cold: those parts of it that have no pages: to be fallocated.
        punch: free warm ranges elsewhere, to be punched first; the arena already counts them as cold.
        new_segment: 0, or the size in bytes of the segment `range.segment`, to be made first.
    """

    range: Range
    cold: tuple[Range, ...]
    punch: tuple[Range, ...]
    new_segment: int


class _Segment:
    """`free` contains `warm`; what is not in `free` is used."""

    __slots__ = ("free", "owner", "size", "warm")

    def __init__(self, number: int, size: int, shelf: _Shelf, owner: int) -> None:
        self.size = size
        self.owner = owner
        """Who wrote here last (the affinity), or NOBODY."""
        self.free = Intervals(number, shelf.free)
        self.warm = Intervals(number, shelf.warm)


class _Shelf:
    """The free ranges of all segments of one owner, by length."""

    __slots__ = ("free", "numbers", "warm")

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self.free: Sizes = []
        self.warm: Sizes = []


class Arena:
    """The books of all segments; see the module.

    Args:
        capacity: bytes that may be resident at once.
        segment_bytes: virtual size of a segment, but for a larger object, which gets one of exactly its size.
        first_segment: the number of the first segment; each later one has a higher number.
    """

    def __init__(self, capacity: int, segment_bytes: int = 64 << 20, first_segment: int = 1) -> None:
        if capacity < PAGE or segment_bytes < PAGE:
            raise ValueError(f"capacity {capacity} and segment_bytes {segment_bytes} must be at least a page")
        self.capacity = capacity // PAGE * PAGE
        self._segment_bytes = round_up(segment_bytes)
        self._segments: dict[int, _Segment] = {}
        self._shelves: dict[int, _Shelf] = {}
        self._empty: set[int] = set()
        self._used = 0
        self._warm = 0
        self._next_number = first_segment
        self._adopted: set[int] = set()
        self._ceiling = self.capacity

    @property
    def used(self) -> int:
        """Bytes allocated and not freed."""
        return self._used

    @property
    def warm(self) -> int:
        """Free bytes that have pages."""
        return self._warm

    @property
    def resident(self) -> int:
        """Bytes that have pages."""
        return self._used + self._warm

    @property
    def segments(self) -> dict[int, int]:
        """Number -> size in bytes."""
        return {number: segment.size for number, segment in self._segments.items()}

    @property
    def trimmable(self) -> bool:
        """Whether `trim(0)` would do anything."""
        return bool(self._warm or self._empty)

    def is_used(self, r: Range) -> bool:
        """Whether all of `r` is allocated."""
        segment = self._segments.get(r.segment)
        inside = segment is not None and r.length > 0 and r.offset >= 0 and r.end <= segment.size
        return inside and segment is not None and not segment.free.overlaps(r.offset, r.end)

    def fits(self, length: int) -> bool:
        """Whether `allocate` would succeed."""
        return self._used + round_up(length) <= self.capacity

    # -- allocating

    def allocate(self, length: int, owner: int) -> Allocation | None:
        """`length` bytes, in whole pages, for `owner` to write; None if used bytes would exceed the capacity.

        Raises:
            ValueError: length < 1.
        """
        if length < 1:
            raise ValueError(f"an allocation has at least one byte, not {length}")
        length = round_up(length)
        if not self.fits(length):
            return None
        place = self._choose(length, owner)
        new_segment = 0
        if place is None:
            new_segment = max(self._segment_bytes, length)
            place = (self._add_segment(self._new_number(), new_segment, owner), 0)
        r = Range(*place, length)
        cold = self._take(r)
        if owner != NOBODY:
            self._give_to(r.segment, owner)
        punch = self.chill(self.resident - self.capacity, spared=owner)
        return Allocation(r, tuple(cold), tuple(punch), new_segment)

    def _choose(self, length: int, owner: int) -> tuple[int, int] | None:
        """The segment and offset where it shall go, None: a new segment. The order is that of the module."""
        near = [shelf for key in dict.fromkeys((owner, NOBODY)) if (shelf := self._shelves.get(key))]
        far = [shelf for key, shelf in self._shelves.items() if key not in (owner, NOBODY)]
        place = _first([shelf.warm for shelf in near], length)
        if place is None and self.resident + length <= self.capacity:
            return _first([shelf.free for shelf in near], length)
        return (
            place
            or _first([shelf.warm for shelf in far], length)
            or _first([shelf.free for shelf in near], length)
            or _first([shelf.free for shelf in far], length)
        )

    def _take(self, r: Range) -> list[Range]:
        """Count `r` as used; the parts of it that were cold."""
        segment = self._segments[r.segment]
        segment.free.remove(r.offset, r.end)
        cold = [Range(r.segment, start, end - start) for start, end in segment.warm.gaps(r.offset, r.end)]
        for start, end in segment.warm.parts(r.offset, r.end):
            segment.warm.remove(start, end)
            self._warm -= end - start
        self._used += r.length
        self._empty.discard(r.segment)
        return cold

    def failed(self, allocation: Allocation) -> None:
        """It could not be made (no memory): free it; its cold parts are cold again.

        A segment that was to be made for it is empty now: `drop_empty` names it.
        """
        self.free(allocation.range)
        for part in allocation.cold:
            self._make_cold(part)

    def make_cold(self, r: Range) -> None:
        """`r`, all of it used, is free and cold: to be punched. ValueError as for `free`."""
        self.failed(Allocation(r, (r,), (), 0))

    def free(self, r: Range) -> None:
        """`r`, all of it used, is free; its pages stay warm.

        Raises:
            ValueError: some of it is not used, or it is not in whole pages; nothing has changed.
        """
        if not self.is_used(r) or r.offset % PAGE or r.length % PAGE:
            raise ValueError(f"{r} is not allocated")
        segment = self._segments[r.segment]
        segment.free.add(r.offset, r.end)
        segment.warm.add(r.offset, r.end)
        self._used -= r.length
        self._warm += r.length

    # -- segments and their owners

    def adopt(self, size: int, used: list[tuple[int, int]], owner: int, number: int = 0) -> int:
        """A segment that exists already: `used` (offset, length) has pages, the rest is cold; returns its number.

        Used bytes may exceed the capacity by this; then nothing is allocated until they are below it again.

        Args:
            number: the number that it shall have; 0: a new one.

        Raises:
            ValueError: ranges that overlap, lie outside or are not in whole pages, or the number was given before;
                nothing has changed.
        """
        if number in self._segments or number in self._adopted:
            raise ValueError(f"segment {number} is known")
        taken = Intervals()
        for offset, length in used:
            if offset < 0 or length < 1 or offset % PAGE or length % PAGE or offset + length > size:
                raise ValueError(f"[{offset}, {offset + length}) is no range of a segment of {size} bytes")
            taken.add(offset, offset + length)
        if size < PAGE or size % PAGE:
            raise ValueError(f"a segment cannot have {size} bytes")
        number = self._add_segment(number or self._new_number(), size, owner)
        self._adopted.add(number)
        for offset, length in used:
            self._take(Range(number, offset, length))
        self._ceiling = max(self._ceiling, self.resident)
        return number

    def orphan(self, owner: int) -> None:
        """`owner` is gone: its segments are nobody's."""
        shelf = self._shelves.get(owner)
        for number in sorted(shelf.numbers) if shelf else ():
            self._give_to(number, NOBODY)

    def _new_number(self) -> int:
        while self._next_number in self._adopted:
            self._next_number += 1
        self._next_number += 1
        return self._next_number - 1

    def _add_segment(self, number: int, size: int, owner: int) -> int:
        shelf = self._shelves.setdefault(owner, _Shelf())
        shelf.numbers.add(number)
        segment = self._segments[number] = _Segment(number, size, shelf, owner)
        segment.free.add(0, size)
        self._empty.add(number)
        return number

    def _give_to(self, number: int, owner: int) -> None:
        segment = self._segments[number]
        if segment.owner == owner:
            return
        shelf = self._shelves.setdefault(owner, _Shelf())
        segment.free.index_in(shelf.free)
        segment.warm.index_in(shelf.warm)
        shelf.numbers.add(number)
        self._leave_shelf(number, segment.owner)
        segment.owner = owner

    def _leave_shelf(self, number: int, owner: int) -> None:
        shelf = self._shelves[owner]
        shelf.numbers.remove(number)
        if not shelf.numbers:
            del self._shelves[owner]

    # -- giving memory back

    def trim(self, keep: int) -> tuple[list[Range], list[int]]:
        """Let go of warm memory until at most `keep` bytes of it are left.

        Returns:
            The ranges to punch, and the segments to drop after that: they are wholly free and cold.
        """
        return self.chill(self._warm - max(0, keep), spared=NOBODY), self.drop_empty()

    def drop_empty(self) -> list[int]:
        """Forget the segments that are wholly free and cold; their numbers."""
        dropped = sorted(self._empty)
        for number in dropped:
            segment = self._segments.pop(number)
            segment.free.remove(0, segment.size)
            self._leave_shelf(number, segment.owner)
        self._empty.clear()
        return dropped

    def chill(self, nbytes: int, spared: int) -> list[Range]:
        """Make `nbytes` of warm memory cold: nobody's first, `spared`'s last, large ranges first; those to punch."""
        punched: list[Range] = []
        if nbytes <= 0:
            return punched
        for owner in sorted(self._shelves, key=lambda key: (key == spared != NOBODY, key != NOBODY, key)):
            warm = self._shelves[owner].warm
            while nbytes > 0 and warm:
                length, number, start = warm[-1]
                part = Range(number, start + max(0, length - nbytes), min(length, nbytes))
                self._make_cold(part)
                punched.append(part)
                nbytes -= part.length
        return punched

    def _make_cold(self, r: Range) -> None:
        segment = self._segments[r.segment]
        segment.warm.remove(r.offset, r.end)
        self._warm -= r.length
        if segment.free.total == segment.size and not segment.warm.total:
            self._empty.add(r.segment)

    def check(self) -> None:
        """Validate the invariants of the module."""
        used = warm = 0
        for segment in self._segments.values():
            segment.free.check()
            segment.warm.check()
            used += segment.size - segment.free.total
            warm += segment.warm.total
            assert all(segment.free.contains(start, end) for start, end in segment.warm)
            assert all(not (start % PAGE or end % PAGE) for start, end in [*segment.free, *segment.warm])
            assert all(0 <= start < end <= segment.size for start, end in segment.free)
        assert (used, warm) == (self._used, self._warm)
        assert self.resident <= self._ceiling
        assert self._empty == {n for n, s in self._segments.items() if s.free.total == s.size and not s.warm.total}
        self._check_shelves()

    def _check_shelves(self) -> None:
        """Every segment is on its owner's shelf, which has its free ranges and no others, sorted."""
        assert {n: s.owner for n, s in self._segments.items()} == {
            number: owner for owner, shelf in self._shelves.items() for number in shelf.numbers
        }
        for shelf in self._shelves.values():
            assert shelf.numbers
            assert shelf.free == sorted(shelf.free)
            assert shelf.warm == sorted(shelf.warm)
            assert len(shelf.free) == sum(len(self._segments[number].free) for number in shelf.numbers)
            assert len(shelf.warm) == sum(len(self._segments[number].warm) for number in shelf.numbers)


def _first(indexes: list[Sizes], length: int) -> tuple[int, int] | None:
    """The best fit in the first index that has any: segment and offset."""
    for sizes in indexes:
        at = bisect_left(sizes, (length,))
        if at < len(sizes):
            return sizes[at][1:]
    return None
