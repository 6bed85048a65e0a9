"""Who waits for memory: first come, first served; only for what certainly ends.

```
 Want ───────┐                        grant: Leased / StartRestore
 restore ────┴─► oldest … newest ──►  start spills for what is missing
                                      refuse the oldest: OnDisk / InFile
```

While room is short, some is made ahead, so that the next ones need not wait for a file to be written (`ahead`).

Freed bytes are the oldest's: nobody overtakes. Spills are started for all who wait, in their order, and no more than
they need. If the spills under way and what else can be spilled do not suffice for the oldest, it is refused at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from dpool._store import events as e
from dpool._store.arena import NOBODY
from dpool._store.books import Books
from dpool._store.events import Instruction
from dpool._store.eviction import Candidate, choose_victims

Ticket = tuple[int, int] | bytes
"""Who waits: (client, request) of a Want, or the object to restore."""

AHEAD_S = 1.0
"""Room is made ahead for so long after somebody had to wait for it, …"""
AHEAD = 16
"""… a 16th of the store, or as much as was waited for, …"""
MOST_AHEAD = 4
"""… up to a quarter of the store."""
LONG_SEARCH = 1000
"""A vain search that passed over so many mapped objects is not repeated for `LOOK_S` each."""
LOOK_S = 0.0002
"""Looking for one object's pins may take some 10 µs: so often that it stays a twentieth of the time."""


class Queue:
    """See the module."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._room = books.room
        self._arena = books.room.arena
        self._waiting: OrderedDict[Ticket, int] = OrderedDict()
        self.disk_full_until = 0.0
        """No spill is started before; what has a file may leave."""
        self._search_again_at = 0.0
        self._short_until = 0.0
        self._waited_for = 0
        """Bytes that were lately waited for at once."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._waiting

    def items(self) -> list[tuple[Ticket, int]]:
        """Who waits and for how many bytes, the oldest first."""
        return list(self._waiting.items())

    def add(self, ticket: Ticket, length: int, out: list[Instruction]) -> None:
        """Wait for `length` bytes, in whole pages; refused at once if that could never be."""
        self._waiting[ticket] = length
        if length > self._arena.capacity:
            self._refuse(ticket, out)

    def remove(self, ticket: Ticket) -> None:
        """It waits no more, if it did."""
        self._waiting.pop(ticket, None)

    def serve(self, now_s: float, out: list[Instruction]) -> None:
        """Give the oldest what there is, and make room for the others, or answer that there is none."""
        self._grant(out)
        if self._waiting:
            self._room.rescan()
        while self._waiting:
            self._grant(out)
            if not self._refused_oldest(now_s, out):
                return

    def ahead(self, now_s: float, out: list[Instruction]) -> None:
        """Nobody waits: see to it that nobody will have to, if lately somebody did."""
        if now_s >= self._short_until:
            return
        capacity = self._arena.capacity
        wanted = min(max(capacity // AHEAD, self._waited_for), capacity // MOST_AHEAD)
        missing = wanted - (capacity - self._arena.used + self._books.on_its_way)
        if missing > 0:
            for obj in self._victims(missing, now_s):
                self._books.start_leaving(obj, out)

    def _grant(self, out: list[Instruction]) -> None:
        while self._waiting:
            ticket, length = next(iter(self._waiting.items()))
            owner = ticket[0] if isinstance(ticket, tuple) else NOBODY
            r = self._room.allocate(length, owner, out)
            if r is None:
                return
            del self._waiting[ticket]
            if isinstance(ticket, tuple):
                self._room.lease(owner, r)
                out.append(e.Leased(*ticket, r))
            else:
                self._books.start_restore(ticket, r, out)

    def _refused_oldest(self, now_s: float, out: list[Instruction]) -> bool:
        """Start the spills that those who wait need; whether the oldest had to be refused instead."""
        coming = self._arena.capacity - self._arena.used + self._books.on_its_way
        need = 0
        for ticket, length in self.items():
            need += length
            missing = need - coming
            if missing <= 0:
                continue
            self._short_until, self._waited_for = now_s + AHEAD_S, length
            victims = self._victims(missing, now_s)
            if sum(self._books.objects[obj].length for obj in victims) >= missing:
                coming += sum(self._books.start_leaving(obj, out) for obj in victims)
            elif need == length:
                self._refuse(ticket, out)
                return True
            else:
                break
        return False

    def _refuse(self, ticket: Ticket, out: list[Instruction]) -> None:
        del self._waiting[ticket]
        if isinstance(ticket, tuple):
            out.append(e.OnDisk(*ticket))
        else:
            self._books.tell_file(ticket, out)

    def _victims(self, need: int, now_s: float) -> list[bytes]:
        if now_s < self._search_again_at:
            return []
        mapped: list[bytes] = []
        victims = choose_victims(self._candidates(now_s, mapped), need)
        for obj in mapped:  # whoever maps it uses it; and the next search shall not meet it first
            self._books.use(obj, now_s)
        if len(mapped) >= LONG_SEARCH and sum(self._books.objects[obj].length for obj in victims) < need:
            self._search_again_at = now_s + len(mapped) * LOOK_S
        return victims

    def _candidates(self, now_s: float, mapped: list[bytes]) -> Iterator[Candidate]:
        """What may leave, the least recently used first; `mapped` gets those that were passed over for a reader."""
        for obj in self._books.ages:
            entry = self._books.objects[obj]
            if entry.retry_at > now_s or (not entry.path and self.disk_full_until > now_s):
                continue
            if self._room.held(entry.memory):
                mapped.append(obj)
                continue
            yield Candidate(obj, entry.memory.length, entry.last_used_s, bool(entry.path))
