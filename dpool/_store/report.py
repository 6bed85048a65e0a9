"""What the store tells of itself: figures, its objects, and whether its books are in order."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from dpool._store import events as e
from dpool._store.books import Books
from dpool._store.waiting import Queue

IN_MEMORY = frozenset((e.SEALED, e.SPILLING, e.LEAVING))
IN_FILE_ONLY = frozenset((e.SPILLED, e.RESTORING))


class Stats(NamedTuple):
    """Of the whole store; all sizes in bytes.

    Attributes:
        used: leased, sealed, being restored, or kept for a reader.
        resident: that, and free memory that still has pages.
        objects: known, wherever they are.
        sealed_bytes: memory of objects that can be read in place.
        pinned_bytes: memory of objects that readers map, zombies included.
        zombie_bytes: memory of objects that are free but for a reader that maps them (retired ones not counted).
        retired_bytes: memory that can never be used again, or once its object is freed.
        spilled_objects: only in files, with `spilled_bytes`; `files_bytes` are those of all files.
        spills, restores: carried out. located: answers that named a place in memory. on_disk_writes: by makers.
    """

    capacity: int
    used: int
    resident: int
    objects: int
    sealed_bytes: int
    leased_bytes: int
    pinned_bytes: int
    zombie_bytes: int
    retired_bytes: int
    spilled_objects: int
    spilled_bytes: int
    files_bytes: int
    spills: int
    restores: int
    located: int
    on_disk_writes: int


class ObjectInfo(NamedTuple):
    """One object, as `Store.listing` tells it."""

    obj: bytes
    size: int
    pid: int
    state: str
    pinned: bool
    last_used_s: float


def pinned_bytes(books: Books) -> int:
    """Memory that readers map: of live objects, and of freed ones that they keep from being free."""
    return sum(r.length for _, r in books.places.values() if books.room.pinned(r)) + books.room.zombie_bytes()


def stats(books: Books, spills: int, restores: int, on_disk_writes: int) -> Stats:
    """See `Stats`. Looks at every object."""
    arena, entries = books.room.arena, books.objects.values()
    spilled = [entry.size for entry in entries if entry.state in IN_FILE_ONLY]
    return Stats(
        capacity=arena.capacity,
        used=arena.used,
        resident=arena.resident,
        objects=len(entries),
        sealed_bytes=sum(one.memory.length for one in entries if one.state in IN_MEMORY)
        + sum(r.length for one in entries for r, _ in one.copies),
        leased_bytes=sum(r.length for r in books.room.leased()),
        pinned_bytes=pinned_bytes(books),
        zombie_bytes=books.room.zombie_bytes(),
        retired_bytes=sum(books.room.retired.values()),
        spilled_objects=len(spilled),
        spilled_bytes=sum(spilled),
        files_bytes=sum(entry.size for entry in entries if entry.path),
        spills=spills,
        restores=restores,
        located=books.located,
        on_disk_writes=on_disk_writes,
    )


def listing(books: Books) -> list[ObjectInfo]:
    """Every object, the longest known first."""
    return [
        ObjectInfo(
            obj,
            entry.size,
            entry.pid,
            entry.state,
            entry.range is not None and books.room.pinned(entry.range),
            entry.last_used_s,
        )
        for obj, entry in books.objects.items()
    ]


def check(books: Books, queue: Queue) -> None:
    """Validate the invariants of objects.py."""
    books.room.arena.check()
    _check_bytes(books)
    for obj, entry in books.objects.items():
        _check_entry(books, queue, obj, entry.state)
    leaving = [one.memory.length for one in books.objects.values() if one.state in (e.SPILLING, e.LEAVING)]
    assert books.on_its_way == sum(leaving)
    order = books.ages.entries()
    assert order == sorted(order)
    assert order == sorted(
        (one.last_used_s, not one.path, obj) for obj, one in books.objects.items() if one.state == e.SEALED
    )
    assert set(books.room.leases) <= books.room.clients.keys()
    _check_queue(books, queue)


def _check_bytes(books: Books) -> None:
    """Every used byte belongs to exactly one lease, object, copy, restore or zombie."""
    room, arena = books.room, books.room.arena
    owned = [*room.leased(), *room.zombies.values()]
    owned += [one.range for one in books.objects.values() if one.range]
    owned += [r for one in books.objects.values() for r, _ in one.copies]
    owned.sort()
    assert sum(r.length for r in owned) == arena.used
    assert all(arena.is_used(r) for r in owned)
    for before, after in pairwise(owned):
        assert before.segment < after.segment or before.end <= after.offset, f"{before} and {after} overlap"
    assert arena.resident <= arena.capacity or not arena.warm
    at = {r[:2]: (obj, r) for obj, one in books.objects.items() for r in [one.range] if r}
    at |= {r[:2]: (obj, r) for obj, one in books.objects.items() for r, _ in one.copies}
    assert books.places == at
    assert room.retired.keys() <= at.keys() | room.zombies.keys()


def _check_entry(books: Books, queue: Queue, obj: bytes, state: str) -> None:
    entry = books.objects[obj]
    assert (entry.range is None) == (state in (e.SPILLED, e.LOST))
    assert entry.path or state not in (e.SPILLED, e.RESTORING, e.LEAVING)
    assert not entry.waiters or state in (e.LEAVING, e.RESTORING, e.SPILLED)
    assert (obj in queue) == (state == e.SPILLED and bool(entry.waiters))
    assert not entry.freed or (state, e.Free) not in e.MOVES
    assert not entry.freed or not entry.waiters
    assert entry.range is None or entry.size + e.HEADER_BYTES <= entry.range.length


def _check_queue(books: Books, queue: Queue) -> None:
    """The oldest cannot be served now, but by what is under way; all who wait are there to be answered."""
    arena = books.room.arena
    waiting = queue.items()
    if waiting:
        assert not arena.fits(waiting[0][1])
        assert arena.used - books.on_its_way + waiting[0][1] <= arena.capacity
    assert all(ticket[0] in books.room.clients for ticket, _ in waiting if isinstance(ticket, tuple))
    assert all(waiter[0] in books.room.clients for one in books.objects.values() for waiter in one.waiters)
