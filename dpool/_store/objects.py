"""The object store's books: where each object is, who waits for room, what leaves memory for it.

```
                 Seal                  StartSpill              SpillDone
   (absent) ───────────────► SEALED ───────────────► SPILLING ───────────► LEAVING
      │                       ▲ ▲ ▲ ◄── SpillFailed ────┘                   │   │
      │ SealFile              │ │ └──────────── MarkSealed (pinned) ────────┘   │ Looked
      └─────────► SPILLED ◄───┼─┼───────────────────────────────────────────────┘
                   │  ▲       │ └─ Seal (made again) ── LOST ◄── RestoreFailed ─┐
                   │  └─ MemoryRefused ─┐   └ RestoreDone ──────────────────────┤
                   └──── StartRestore ──┴────────────────────────────────► RESTORING
```

A clean object (SEALED, with a file) goes from SEALED to LEAVING at once (MarkLeaving). A Free takes effect at the end
of SPILLING, LEAVING and RESTORING, at once in the other states; memory that a reader still maps then becomes a zombie.

Who waits: Wants, and restores, in one queue, first come, first served. They wait only for spills that are under way,
which certainly end, never for a reader or a holder: as soon as those and what else can be spilled do not suffice for
the oldest, it is answered OnDisk (a Want) or InFile (a restore).

One thread; `pinned(range)` is asked for what readers map, and may answer from a look taken since the event came in.
Invariants: a used byte belongs to exactly one lease, object, restore or zombie; resident <= capacity (but for adopted
segments); nobody waits who could be served; every SPILLED object has a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpool._store import events as e
from dpool._store import report
from dpool._store.arena import NOBODY, Range, round_up
from dpool._store.books import Books, Entry
from dpool._store.events import MOVES, Event, IllegalMove, Instruction
from dpool._store.room import Room
from dpool._store.waiting import LOOK_S, Queue

RETRY_S = 1.0
"""How long nothing is spilled after the disk was full, and an object not after its spill failed."""
MAX_FREED_EARLY = 10_000
PRESSURE_ON, PRESSURE_OFF = 0.5, 0.4
"""Parts of the capacity that readers map."""
PRESSURE_EVERY_S = 0.05


LOCATED_S = 0.02
"""An object stays in memory for so long after somebody was told that it is there, so that he can map it."""


class Store:
    """The books of one node's store; see the module.

    Args:
        capacity: bytes that may be resident.
        pinned: whether a reader maps what begins with this range.
        segment_bytes, first_segment: as for `Arena`.
    """

    def __init__(
        self,
        capacity: int,
        pinned: Callable[[Range], bool],
        *,
        segment_bytes: int = 64 << 20,
        first_segment: int = 1,
    ) -> None:
        self._room = Room(capacity, segment_bytes, first_segment, pinned)
        self._arena = self._room.arena
        self._books = Books(self._room)
        self._queue = Queue(self._books)
        self._freed_early: dict[bytes, None] = {}
        self._now = 0.0
        self._pressed = False
        self._pressure_at = 0.0
        self._spills = self._restores = self._on_disk_writes = 0

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event.

        Raises:
            IllegalMove: (a ValueError) what the state does not allow, such as a Seal outside of the client's leases.
            ValueError: numbers that cannot be. In both cases nothing has changed.
        """
        out: list[Instruction] = []
        self._now = max(self._now, getattr(event, "now_s", 0.0))
        _HANDLERS[type(event)](self, event, out)
        if self._queue:
            self._queue.serve(self._now, out)
        if not self._queue:
            self._queue.ahead(self._now, out)
        if isinstance(event, (e.Want, e.Free, e.Rescan, e.Tick)):
            self._measure_pressure(out)
        out.extend(e.Punch(r) for r in self._room.excess())
        wake_at = self._room.note(self._now, hasattr(event, "now_s"))
        if wake_at is not None:
            out.append(e.WakeAt(wake_at))
        return out

    @property
    def capacity(self) -> int:
        """Bytes that may be resident."""
        return self._arena.capacity

    @property
    def resident(self) -> int:
        """Bytes of memory that the store has from the system."""
        return self._arena.resident

    def knows(self, obj: bytes) -> bool:
        """Whether it is here, or was and is lost."""
        return obj in self._books.objects

    def names(self) -> list[bytes]:
        """Every object that it knows."""
        return list(self._books.objects)

    def size_of(self, obj: bytes) -> int:
        """The bytes of an object that it knows."""
        return self._books.objects[obj].size

    def places(self, obj: bytes) -> list[Range]:
        """Where in memory an object lies."""
        entry = self._books.objects.get(obj)
        if entry is None:
            return []
        return [r for r in (entry.range, *(copy for copy, _ in entry.copies)) if r is not None]

    def retired_segments(self) -> set[int]:
        """Segments with memory that may be looked at for as long as anybody has a mapping of it."""
        return {segment for segment, _ in self._room.retired}

    def short_of_room(self) -> bool:
        """Whether something may soon have to leave memory, so that it matters what was used lately."""
        return bool(self._queue) or self._arena.used > self._arena.capacity // 2

    # -- processes and their leases

    def _joined(self, event: e.Joined, out: list[Instruction]) -> None:
        if event.client in self._room.clients:
            raise IllegalMove("known", "Joined", f"client {event.client}")
        self._room.clients[event.client] = event.pid

    def _left(self, event: e.Left, out: list[Instruction]) -> None:
        out.extend(e.Punch(r) for r in self._room.left(event.client))
        for ticket, _ in self._queue.items():
            if isinstance(ticket, tuple) and ticket[0] == event.client:
                self._queue.remove(ticket)
        for obj, entry in self._books.objects.items():
            if entry.waiters:
                entry.waiters = [waiter for waiter in entry.waiters if waiter[0] != event.client]
                if not entry.waiters:
                    self._queue.remove(obj)
        self._room.rescan()

    def _want(self, event: e.Want, out: list[Instruction]) -> None:
        self._check_client(event.client, "Want")
        if event.length < 1:
            raise ValueError(f"a lease has at least one byte, not {event.length}")
        ticket = (event.client, event.request)
        if ticket in self._queue:
            raise IllegalMove("waiting", "Want", f"request {event.request} of client {event.client}")
        self._queue.add(ticket, round_up(event.length), out)

    def _memory_refused(self, event: e.MemoryRefused, out: list[Instruction]) -> None:
        obj, _ = self._books.places.get(event.range[:2], (b"", None))
        if obj and self._books.objects[obj].state == e.RESTORING:
            self._books.stop_restore(obj, e.MemoryRefused, out)
            self._books.tell_file(obj, out)
            if self._books.objects[obj].freed:
                self._books.forget(obj, out)
            self._drop_unmade(out)
        elif self._room.leases_all(event.client, event.range):
            self._room.take(event.client, event.range)
            self._arena.make_cold(event.range)
            out += [e.Punch(event.range), e.OnDisk(event.client, event.request)]
            self._drop_unmade(out)
        # else the client has left meanwhile: the range is free already, and cold

    def _drop_unmade(self, out: list[Instruction]) -> None:
        """It may be the segment that could not be made: nothing more may be placed in it."""
        out.extend(e.DropSegment(segment) for segment in self._arena.drop_empty())

    def _return(self, event: e.Return, out: list[Instruction]) -> None:
        if event.client not in self._room.clients:
            return  # its leases went when it left
        self._room.check_leased(event.client, event.range, "Return")
        self._room.take(event.client, event.range)
        self._arena.free(event.range)

    def _keep(self, event: e.Keep, out: list[Instruction]) -> None:
        for r in self._room.unknown_to(event.client, event.ranges):
            self._room.take(event.client, r)
            self._arena.free(r)

    def _check_client(self, client: int, event: str) -> None:
        if client not in self._room.clients:
            raise IllegalMove("unknown", event, f"client {client}")

    # -- objects come

    def _seal(self, event: e.Seal, out: list[Instruction]) -> None:
        self._room.check_leased(event.client, event.range, "Seal")
        _check_size(event.size, event.range.length)
        self._room.take(event.client, event.range)
        self._sealed(event.obj, event.range, event.size, event.pid, out)

    def _adopt(self, event: e.Adopt, out: list[Instruction]) -> None:
        for _, _, length, size in event.objects:
            _check_size(size, length)
        owner = event.client if event.client in self._room.clients else NOBODY
        used = [(offset, length) for _, offset, length, _ in event.objects]
        segment = self._arena.adopt(event.segment_size, used, owner, event.segment)
        out.append(e.Adopted(segment))
        for obj, offset, length, size in event.objects:
            self._sealed(obj, Range(segment, offset, length), size, event.pid, out)

    def _sealed(self, obj: bytes, r: Range, size: int, pid: int, out: list[Instruction]) -> None:
        """An object has come in memory; `r` is used and nobody's yet."""
        if obj in self._freed_early:
            del self._freed_early[obj]
            self._room.release(r)
            return
        entry = self._books.objects.get(obj)
        self._books.places[r[:2]] = (obj, r)
        if entry is not None and entry.state != e.LOST:
            entry.copies.append((r, size))
            entry.freed = False
            return
        entry = self._renew(obj, size, pid, out)
        entry.state = MOVES[entry.state, e.Seal]
        entry.range = r
        self._books.settle(obj, entry)

    def _seal_file(self, event: e.SealFile, out: list[Instruction]) -> None:
        if event.size < 0 or not event.path:
            raise ValueError(f"a file has a path and at least no bytes, not {event.size}")
        self._on_disk_writes += 1
        entry = self._books.objects.get(event.obj)
        if event.obj in self._freed_early:
            del self._freed_early[event.obj]
            out.append(e.DeleteFile(event.path))
        elif entry is not None and entry.state != e.LOST:
            entry.freed = False
            if entry.path != event.path:
                out.append(e.DeleteFile(event.path))
        else:
            entry = self._renew(event.obj, event.size, event.pid, out)
            entry.state = MOVES[entry.state, e.SealFile]
            entry.path, entry.crc = event.path, event.crc

    def _renew(self, obj: bytes, size: int, pid: int, out: list[Instruction]) -> Entry:
        """A new entry, in place of one that was LOST."""
        old = self._books.objects.get(obj)
        entry = self._books.objects[obj] = Entry(size, pid, self._now)
        if old is not None:
            entry.state = old.state
            if old.path:
                out.append(e.DeleteFile(old.path))
        return entry

    # -- objects are asked for, and go

    def _locate(self, event: e.Locate, out: list[Instruction]) -> None:
        self._check_client(event.client, "Locate")
        obj, waiter = event.obj, (event.client, event.request)
        entry = self._books.objects.get(obj)
        if entry is None or entry.freed:
            out.append(e.Unknown(*waiter, obj, "it is not in the store"))
            return
        entry.waiters.append(waiter)
        if entry.state == e.LOST:
            self._books.tell_nothing(obj, entry.reason, out)
        elif entry.state in (e.SEALED, e.SPILLING):
            entry.retry_at = max(entry.retry_at, self._now + LOCATED_S)
            self._books.use(obj, self._now)
            self._books.tell(obj, out)
        elif entry.state == e.SPILLED and obj not in self._queue:
            self._queue.add(obj, entry.length, out)

    def _used(self, event: e.Used, out: list[Instruction]) -> None:
        for segment, offset, at_s in event.uses:
            obj, _ = self._books.places.get((segment, offset), (b"", None))
            if obj:
                self._books.use(obj, at_s)

    def _free(self, event: e.Free, out: list[Instruction]) -> None:
        obj = event.obj
        entry = self._books.objects.get(obj)
        if entry is None:
            self._freed_early[obj] = None
            if len(self._freed_early) > MAX_FREED_EARLY:
                del self._freed_early[next(iter(self._freed_early))]
            return
        self._books.tell_nothing(obj, "it has been freed", out)
        self._queue.remove(obj)
        entry.freed = True
        if (entry.state, e.Free) in MOVES:
            if entry.state == e.SEALED:
                self._books.ages.remove(obj, entry.last_used_s, bool(entry.path))
            self._books.forget(obj, out)

    def _retire(self, event: e.Retire, out: list[Instruction]) -> None:
        place = (event.segment, event.offset)
        _, r = self._books.places.get(place, (b"", self._room.zombies.get(place)))
        if r is not None:
            self._room.retired[place] = r.length

    # -- spills and restores

    def _spill_done(self, event: e.SpillDone, out: list[Instruction]) -> None:
        entry = self._books.known(event.obj, e.SpillDone)
        entry.state = MOVES[entry.state, e.SpillDone]
        entry.path, entry.crc = event.path, event.crc
        self._spills += 1
        if entry.freed:  # nobody can ask for it: no need to look first
            self._books.stay(event.obj, e.MarkSealed, out)
        else:
            out.append(e.MarkLeaving(event.obj, entry.memory))

    def _spill_failed(self, event: e.SpillFailed, out: list[Instruction]) -> None:
        entry = self._books.known(event.obj, e.SpillFailed)
        if event.disk_full:
            self._queue.disk_full_until = self._now + RETRY_S
        else:
            entry.retry_at = self._now + RETRY_S
        self._books.stay(event.obj, e.SpillFailed, out)

    def _looked(self, event: e.Looked, out: list[Instruction]) -> None:
        entry = self._books.known(event.obj, e.Looked)
        if entry.freed:
            self._books.stay(event.obj, e.MarkSealed, out)
        elif entry.waiters or self._room.held(entry.memory):
            if entry.waiters:  # or they would chase it out again before they have mapped it
                entry.retry_at = self._now + RETRY_S
            entry.last_used_s = max(entry.last_used_s, self._now)
            out.append(e.MarkSealed(event.obj, entry.memory))
            self._books.stay(event.obj, e.MarkSealed, out)
        else:
            self._books.leave(event.obj)

    def _restore_done(self, event: e.RestoreDone, out: list[Instruction]) -> None:
        entry = self._books.known(event.obj, e.RestoreDone)
        entry.state = MOVES[entry.state, e.RestoreDone]
        entry.last_used_s = max(entry.last_used_s, self._now)
        self._restores += 1
        if entry.freed:
            self._books.forget(event.obj, out)
            return
        entry.retry_at = max(entry.retry_at, self._now + LOCATED_S)
        self._books.settle(event.obj, entry)
        out.append(e.MarkSealed(event.obj, entry.memory))
        self._books.tell(event.obj, out)

    def _restore_failed(self, event: e.RestoreFailed, out: list[Instruction]) -> None:
        entry = self._books.known(event.obj, e.RestoreFailed)
        self._books.stop_restore(event.obj, e.RestoreFailed, out)
        entry.reason = event.reason
        if entry.freed:
            self._books.forget(event.obj, out)
        elif entry.copies:
            self._promote(event.obj, entry, out)
        else:
            self._books.tell_nothing(event.obj, event.reason, out)

    def _promote(self, obj: bytes, entry: Entry, out: list[Instruction]) -> None:
        """The object was made again, so it is not lost with its file."""
        entry.range, entry.size = entry.copies.pop()
        entry.state = MOVES[entry.state, e.Seal]
        out.append(e.DeleteFile(entry.path))
        entry.path = ""
        self._books.settle(obj, entry)
        self._books.tell(obj, out)

    # -- looking around

    def _rescan(self, event: e.Rescan, out: list[Instruction]) -> None:
        self._room.rescan()

    def _tick(self, event: e.Tick, out: list[Instruction]) -> None:
        self._room.rescan()
        punched, dropped = self._room.trim(self._now)
        out.extend(e.Punch(r) for r in punched)
        out.extend(e.DropSegment(segment) for segment in dropped)

    def _measure_pressure(self, out: list[Instruction]) -> None:
        if self._now < self._pressure_at:
            return
        self._pressure_at = self._now + max(PRESSURE_EVERY_S, LOOK_S * len(self._books.places))
        capacity = self._arena.capacity
        # Readers cannot map more than is used, so a store with room is not searched.
        mapped = report.pinned_bytes(self._books) if self._arena.used > PRESSURE_OFF * capacity else 0
        pressed = mapped > PRESSURE_ON * capacity or (self._pressed and mapped >= PRESSURE_OFF * capacity)
        if pressed != self._pressed:
            self._pressed = pressed
            out.append(e.Pressure(pressed))

    def fill(self) -> tuple[int, int, int]:
        """Bytes that are used, that there are, and how many objects are known; looks at none of them."""
        return self._arena.used, self._arena.capacity, len(self._books.objects)

    def stats(self) -> report.Stats:
        """Figures of the whole store. Looks at every object."""
        return report.stats(self._books, self._spills, self._restores, self._on_disk_writes)

    def listing(self) -> list[report.ObjectInfo]:
        """Every object, the longest known first."""
        return report.listing(self._books)

    def check(self) -> None:
        """Validate the invariants of the module."""
        report.check(self._books, self._queue)
        assert not self._freed_early.keys() & self._books.objects.keys()
        assert len(self._freed_early) <= MAX_FREED_EARLY


def _check_size(size: int, length: int) -> None:
    """ValueError unless a header and `size` bytes fit in `length`."""
    if size < 0 or e.HEADER_BYTES + size > length:
        raise ValueError(f"{size} bytes and their header do not fit in {length} bytes")


_HANDLERS: dict[type[Any], Callable[[Store, Any, list[Instruction]], None]] = {
    e.Joined: Store._joined,
    e.Left: Store._left,
    e.Want: Store._want,
    e.MemoryRefused: Store._memory_refused,
    e.Return: Store._return,
    e.Keep: Store._keep,
    e.Seal: Store._seal,
    e.SealFile: Store._seal_file,
    e.Adopt: Store._adopt,
    e.Locate: Store._locate,
    e.Free: Store._free,
    e.Used: Store._used,
    e.Retire: Store._retire,
    e.SpillDone: Store._spill_done,
    e.SpillFailed: Store._spill_failed,
    e.Looked: Store._looked,
    e.RestoreDone: Store._restore_done,
    e.RestoreFailed: Store._restore_failed,
    e.Rescan: Store._rescan,
    e.Tick: Store._tick,
}
