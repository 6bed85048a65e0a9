"""Sorted sets of byte intervals, with an index by length that several sets share.

```
 Intervals:  [0, 8192)   [20480, 24576)  …      starts and ends in two sorted lists
 sizes:      (4096, segment 1, 20480), (8192, segment 1, 0), …      for best fit: one bisect
```

Invariants: intervals are disjoint, not empty, and never touch (neighbours merge); each stands once in `sizes`.
Every change is a few bisects and list insertions; a list of 65,000 entries moves in about 10 µs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

Sizes = list[tuple[int, int, int]]
"""(length, number of the set, start), sorted: the first entry not below (n,) is the best fit for n bytes."""


class Intervals:
    """A set of integers kept as maximal half-open intervals."""

    __slots__ = ("_ends", "_number", "_sizes", "_starts", "total")

    def __init__(self, number: int = 0, sizes: Sizes | None = None) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._number = number
        self._sizes: Sizes = [] if sizes is None else sizes
        self.total = 0
        """How many integers are in the set."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)

    def contains(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is in the set."""
        at = bisect_right(self._starts, start) - 1
        return start < end and at >= 0 and end <= self._ends[at]

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of [start, end) is in the set."""
        at = bisect_right(self._ends, start)
        return at < len(self._starts) and self._starts[at] < end

    def parts(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is in the set."""
        found = []
        at = bisect_right(self._ends, start)
        while at < len(self._starts) and self._starts[at] < end:
            found.append((max(start, self._starts[at]), min(end, self._ends[at])))
            at += 1
        return found

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is not in the set."""
        found = []
        for low, high in [*self.parts(start, end), (end, end)]:
            if start < low:
                found.append((start, low))
            start = high
        return found

    def add(self, start: int, end: int) -> None:
        """Put [start, end) in; none of it may be there.

        Raises:
            ValueError: empty, or some of it is in the set; nothing has changed.
        """
        if start >= end or self.overlaps(start, end):
            raise ValueError(f"[{start}, {end}) is empty or overlaps what is in the set")
        low = bisect_left(self._ends, start)
        high = low
        new_start, new_end = start, end
        if high < len(self._ends) and self._ends[high] == start:
            new_start = self._starts[high]
            high += 1
        if high < len(self._starts) and self._starts[high] == end:
            new_end = self._ends[high]
            high += 1
        self._replace(low, high, [(new_start, new_end)])
        self.total += end - start

    def remove(self, start: int, end: int) -> None:
        """Take [start, end) out; all of it must be there.

        Raises:
            ValueError: some of it is not in the set; nothing has changed.
        """
        if not self.contains(start, end):
            raise ValueError(f"[{start}, {end}) is not wholly in the set")
        at = bisect_right(self._starts, start) - 1
        left, right = (self._starts[at], start), (end, self._ends[at])
        self._replace(at, at + 1, [piece for piece in (left, right) if piece[0] < piece[1]])
        self.total -= end - start

    def index_in(self, sizes: Sizes) -> None:
        """From now on be indexed there."""
        self._index(self._starts, self._ends, False)
        self._sizes = sizes
        self._index(self._starts, self._ends, True)

    def _replace(self, low: int, high: int, pieces: list[tuple[int, int]]) -> None:
        starts, ends = [piece[0] for piece in pieces], [piece[1] for piece in pieces]
        self._index(self._starts[low:high], self._ends[low:high], False)
        self._starts[low:high] = starts
        self._ends[low:high] = ends
        self._index(starts, ends, True)

    def _index(self, starts: list[int], ends: list[int], there: bool) -> None:
        for start, end in zip(starts, ends, strict=True):
            entry = (end - start, self._number, start)
            if there:
                insort(self._sizes, entry)
            else:
                del self._sizes[bisect_left(self._sizes, entry)]

    def check(self) -> None:
        """Validate the invariants of the module."""
        edge = -1
        for start, end in self:
            assert edge < start < end, "intervals are empty, overlap, touch or are not sorted"
            edge = end
            entry = (end - start, self._number, start)
            at = bisect_left(self._sizes, entry)
            assert self._sizes[at : at + 2].count(entry) == 1, f"{entry} is not indexed once"
        assert self.total == sum(end - start for start, end in self)
