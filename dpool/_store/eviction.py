"""Pure: which objects leave memory when room is needed: the least recently used, and no more than it takes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Candidate(NamedTuple):
    """A sealed object that nobody maps; `clean`: it has a file, so dropping it needs no write."""

    obj: bytes
    length: int
    last_used_s: float
    clean: bool


def choose_victims(candidates: Iterable[Candidate], need: int) -> list[bytes]:
    """The objects to take out of memory for `need` bytes; all candidates if they do not suffice.

    Args:
        candidates: least recently used first, among equals clean ones first (as `Ages` has them); read only as far
            as needed.
        need: bytes, at least 1.
    """
    chosen: list[Candidate] = []
    total = 0
    for candidate in candidates:
        chosen.append(candidate)
        total += candidate.length
        if total >= need:
            break
    # A large one at the end may make small ones before it unnecessary.
    kept: list[bytes] = []
    for candidate in reversed(chosen):
        if total - candidate.length >= need:
            total -= candidate.length
        else:
            kept.append(candidate.obj)
    return kept[::-1]


class Ages:
    """Sealed objects sorted by (last use, dirty, id): the first may leave first. Every change is a bisect."""

    __slots__ = ("_order",)

    def __init__(self) -> None:
        self._order: list[tuple[float, bool, bytes]] = []

    def __iter__(self) -> Iterator[bytes]:
        return (obj for _, _, obj in self._order)

    def __len__(self) -> int:
        return len(self._order)

    def add(self, obj: bytes, last_used_s: float, clean: bool) -> None:
        """It can leave from now on."""
        insort(self._order, (last_used_s, not clean, obj))

    def remove(self, obj: bytes, last_used_s: float, clean: bool) -> None:
        """The inverse, with the same arguments."""
        entry = (last_used_s, not clean, obj)
        at = bisect_left(self._order, entry)
        if self._order[at : at + 1] != [entry]:
            raise ValueError(f"object {obj.hex()} is not in the order")
        del self._order[at]

    def entries(self) -> list[tuple[float, bool, bytes]]:
        """(last use, dirty, id) in order."""
        return self._order.copy()
