"""What is known of each object, and the steps that several events have in common. See objects.py for the picture.

Each step changes an object's state by the table `MOVES` and keeps in tune what depends on it: the places, the order of
leaving, the bytes that are on their way out.
"""

from __future__ import annotations

from dpool._store import events as e
from dpool._store.arena import Range, round_up
from dpool._store.events import MOVES, Instruction
from dpool._store.eviction import Ages
from dpool._store.room import Place, Room


class Entry:
    """What is known of one object."""

    __slots__ = (
        "copies",
        "crc",
        "freed",
        "last_used_s",
        "path",
        "pid",
        "range",
        "reason",
        "retry_at",
        "size",
        "state",
        "waiters",
    )

    def __init__(self, size: int, pid: int, now_s: float) -> None:
        self.state = e.ABSENT
        self.size = size
        self.pid = pid
        self.last_used_s = now_s
        self.range: Range | None = None
        """Its memory; None exactly while it is SPILLED or LOST."""
        self.path = ""
        """Its file, if any; with its `crc`."""
        self.crc = 0
        self.copies: list[tuple[Range, int]] = []
        """Where it was sealed again (range, size) while it was known: kept for those who were told of that place."""
        self.waiters: list[tuple[int, int]] = []
        """(client, request) that asked where it is while that was not certain."""
        self.freed = False
        """Nobody holds it; it goes when what is under way has ended."""
        self.retry_at = 0.0
        """It is not chosen to leave before."""
        self.reason = ""
        """Why it is LOST."""

    @property
    def memory(self) -> Range:
        """Its range, in a state that has one."""
        assert self.range is not None
        return self.range

    @property
    def length(self) -> int:
        """Bytes of memory that it has or would take."""
        return self.range.length if self.range else round_up(e.HEADER_BYTES + self.size)


class Books:
    """The objects of one store, and its room."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.objects: dict[bytes, Entry] = {}
        self.places: dict[Place, tuple[bytes, Range]] = {}
        """Where an object, a copy or a restore begins."""
        self.ages = Ages()
        """The SEALED objects in the order in which they should leave."""
        self.on_its_way = 0
        """Bytes of objects that are SPILLING or LEAVING."""
        self.located = 0

    def known(self, obj: bytes, cause: type[tuple[object, ...]]) -> Entry:
        """The object, if `cause` may happen to it now; else IllegalMove."""
        entry = self.objects.get(obj)
        state = entry.state if entry else e.ABSENT
        if entry is None or (state, cause) not in MOVES:
            raise e.IllegalMove(state, cause.__name__, f"object {obj.hex()}")
        return entry

    # -- memory comes and goes

    def settle(self, obj: bytes, entry: Entry) -> None:
        """It has become SEALED: it may leave from now on."""
        self.ages.add(obj, entry.last_used_s, bool(entry.path))

    def use(self, obj: bytes, at_s: float) -> None:
        """Somebody used it then."""
        entry = self.objects[obj]
        if at_s <= entry.last_used_s:
            return
        if entry.state == e.SEALED:
            self.ages.remove(obj, entry.last_used_s, bool(entry.path))
            self.ages.add(obj, at_s, bool(entry.path))
        entry.last_used_s = at_s

    def start_leaving(self, obj: bytes, out: list[Instruction]) -> int:
        """Take a sealed object out of memory; how many bytes that will give."""
        entry = self.objects[obj]
        r = entry.memory
        self.ages.remove(obj, entry.last_used_s, bool(entry.path))
        first = e.MarkLeaving(obj, r) if entry.path else e.StartSpill(obj, r, entry.size)
        entry.state = MOVES[entry.state, type(first)]
        out.append(first)
        self.on_its_way += r.length
        return r.length

    def stay(self, obj: bytes, cause: type[tuple[object, ...]], out: list[Instruction]) -> None:
        """It does not leave memory after all, unless it has been freed meanwhile."""
        entry = self.objects[obj]
        entry.state = MOVES[entry.state, cause]
        self.on_its_way -= entry.memory.length
        if entry.freed:
            self.forget(obj, out)
        else:
            self.settle(obj, entry)
            self.tell(obj, out)

    def leave(self, obj: bytes) -> None:
        """It is only in its file from now on."""
        entry = self.objects[obj]
        entry.state = MOVES[entry.state, e.Looked]
        self.on_its_way -= entry.memory.length
        self.room.arena.free(self._vacate(entry))

    def start_restore(self, obj: bytes, r: Range, out: list[Instruction]) -> None:
        """Bring it back, into `r`, which is used and nobody's yet."""
        entry = self.objects[obj]
        entry.state = MOVES[entry.state, e.StartRestore]
        entry.range = r
        self.places[r[:2]] = (obj, r)
        out.append(e.StartRestore(obj, r, entry.path, entry.size, entry.crc))

    def stop_restore(self, obj: bytes, cause: type[tuple[object, ...]], out: list[Instruction]) -> None:
        """It did not come back; its range is cold, since it may never have got its pages."""
        entry = self.objects[obj]
        entry.state = MOVES[entry.state, cause]
        r = self._vacate(entry)
        self.room.arena.make_cold(r)
        out.append(e.Punch(r))

    def _vacate(self, entry: Entry) -> Range:
        r = entry.memory
        entry.range = None
        del self.places[r[:2]]
        return r

    def forget(self, obj: bytes, out: list[Instruction]) -> None:
        """A freed object, with nothing under way (and not among `ages`): give up all that it has."""
        entry = self.objects.pop(obj)
        entry.state = MOVES[entry.state, e.Free]
        ranges = [r for r, _ in entry.copies]
        if entry.range:
            ranges.append(entry.range)
        for r in ranges:
            del self.places[r[:2]]
            self.room.release(r)
        if entry.path:
            out.append(e.DeleteFile(entry.path))

    # -- answers to those who asked where it is

    def tell(self, obj: bytes, out: list[Instruction]) -> None:
        """The object is in memory."""
        entry = self.objects[obj]
        out.extend(e.Located(*waiter, obj, entry.memory, entry.size) for waiter in entry.waiters)
        self.located += len(entry.waiters)
        entry.waiters = []

    def tell_file(self, obj: bytes, out: list[Instruction]) -> None:
        """There is no room for the object: they read the file themselves."""
        entry = self.objects[obj]
        out.extend(e.InFile(*waiter, obj, entry.path, entry.size, entry.crc) for waiter in entry.waiters)
        entry.waiters = []

    def tell_nothing(self, obj: bytes, why: str, out: list[Instruction]) -> None:
        """The object is nowhere."""
        entry = self.objects[obj]
        out.extend(e.Unknown(*waiter, obj, why) for waiter in entry.waiters)
        entry.waiters = []
