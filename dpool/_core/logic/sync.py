"""Locks, semaphores, events, conditions, barriers and queues of one node: who has them, who waits.

```
 Make ─► object ◄── Ask(who, …) ──► Answer at once, or later: the asker waits, and asks nothing else meanwhile
                    Withdraw(who): answered WITHDRAWN, unless the answer has gone out already
 Closed(who, unread): it no longer waits; was its last answer not read, what that gave goes to the next
 Died(pid): what the process held is given to the next        Free: nobody has the object any more
```

`who` is a connection of a process; it has at most one question open. A connection's next question says that it has read
the answer before. What several threads of one process say arrives in the order in which they said it; the role sees
to that.

One thread. Invariants: a connection waits in at most one object, and has not been given anything meanwhile that is not
settled; what was given is settled, or given to somebody else, but never both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dpool._core.logic import IllegalMove
from dpool._core.logic.sync_kinds import (
    GONE,
    SEMAPHORE_MAX,
    TAKEN,
    WITHDRAWN,
    Answer,
    Asked,
    Condition,
    Descriptor,
    Event,
    Instruction,
    Item,
    Kind,
    Memory,
    Mutex,
    Refs,
    Semaphore,
    Who,
)
from dpool._core.logic.sync_queues import Barrier, Queue

MUTEX, SEMAPHORE, EVENT, CONDITION, BARRIER, QUEUE, MEMORY, DESCRIPTOR = range(1, 9)


class Make(NamedTuple):
    """A new object. `slot`: its place in the shared page. `value`: permits, parties, or the most items in a queue;
    `bound`: the most permits, or 0.
    """

    obj: bytes
    kind: int
    slot: int = 0
    value: int = 0
    bound: int = 0


class Free(NamedTuple):
    """Nobody has it any more."""

    obj: bytes


class Ask(NamedTuple):
    """A question; `request` 0: no answer is wanted."""

    who: Who
    pid: int
    request: int
    obj: bytes
    op: int
    n: int = 0
    data: bytes = b""
    refs: Refs = ()


class Withdraw(NamedTuple):
    """It will not wait any longer for this one."""

    who: Who
    request: int


class Return(NamedTuple):
    """It has read its last answer, and gives back what that gave."""

    who: Who


class Closed(NamedTuple):
    """The connection is gone; `unread`: the last answer was not read."""

    who: Who
    unread: bool


class Died(NamedTuple):
    """The process has ended."""

    pid: int


class Probed(NamedTuple):
    """The answer to Probe."""

    obj: bytes
    free: bool
    who: Who = 0
    request: int = 0


Incoming = Make | Free | Ask | Withdraw | Return | Closed | Died | Probed


class Sync:
    """See the module."""

    def __init__(self) -> None:
        self._objects: dict[bytes, Kind] = {}
        self._waits: dict[Who, tuple[int, Kind]] = {}
        """Who → its open question, and the object that it asked."""
        self._given: dict[Who, tuple[Kind, Any]] = {}
        self._out: list[Instruction] = []
        self._generations: dict[int, int] = {}
        """Slot → the generation of the last lock there: the next one begins above it."""

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, obj: bytes) -> bool:
        return obj in self._objects

    def queued_bytes(self) -> int:
        """Of all items in all queues."""
        queues = (one for one in self._objects.values() if isinstance(one, Queue))
        return sum(len(item.data) for one in queues for item in one.items)

    def slot(self, obj: bytes) -> int:
        """Of an object that is known: its place in the shared page, or 0."""
        return int(getattr(self._objects[obj], "slot", 0))

    def handle(self, event: Incoming) -> list[Instruction]:
        """Apply one event.

        Raises:
            IllegalMove: a question while one is open, or that its object does not have; nothing has changed.
            ValueError: an object that exists already, or with values that cannot be; nothing has changed.
        """
        self._HANDLERS[type(event)](self, event)
        self._answered()
        out = self._out[:]
        self._out.clear()
        return out

    def _answered(self) -> None:
        """Whoever was answered waits no longer, but for a condition's first answer."""
        for one in self._out:
            if type(one) is Answer:
                found = self._waits.get(one.who)
                if found is not None and found[0] == one.request and not self._still_waits(one.who, found[1]):
                    del self._waits[one.who]

    @staticmethod
    def _still_waits(who: Who, kind: Kind) -> bool:
        return type(kind) is Condition and any(asked.who == who for asked in kind.waiting)

    def _make(self, event: Make) -> None:
        if event.obj in self._objects:
            raise ValueError(f"object {event.obj.hex()} exists")
        if event.value < 0 or event.bound < 0 or (event.kind == BARRIER and event.value < 1):
            raise ValueError(f"{event.value} cannot be")
        out, given = self._out, self._given
        made: Kind
        if event.kind == MUTEX:
            generation = self._generations.get(event.slot, 0) + 1
            self._generations[event.slot] = generation
            made = Mutex(event.obj, out, given, event.slot, generation)
        elif event.kind == SEMAPHORE:
            made = Semaphore(event.obj, out, given, event.value, event.bound or SEMAPHORE_MAX)
        elif event.kind == EVENT:
            made = Event(event.obj, out, given, event.slot)
        elif event.kind == BARRIER:
            made = Barrier(event.obj, out, given, event.value)
        elif event.kind == QUEUE:
            made = Queue(event.obj, out, given, event.value)
        else:
            made = {CONDITION: Condition, MEMORY: Memory, DESCRIPTOR: Descriptor}[event.kind](event.obj, out, given)
        self._objects[event.obj] = made

    def _free(self, event: Free) -> None:
        found = self._objects.pop(event.obj, None)
        if found is None:
            return
        if isinstance(found, Mutex):
            self._generations[found.slot] = found.generation
        found.close()
        for who in [who for who, (kind, _) in self._given.items() if kind is found]:
            found.settled(self._given.pop(who)[1])

    def _ask(self, event: Ask) -> None:
        if event.who in self._waits:
            raise IllegalMove("waiting", "Ask", f"connection {event.who}")
        self._settle(event.who)
        if event.op == TAKEN:
            return
        found = self._objects.get(event.obj)
        if found is None:
            if event.request:
                self._out.append(Answer(event.who, event.request, GONE))
            return
        asked = Asked(event.who, event.request, event.pid, event.n, Item(event.data, event.refs))
        if event.request:
            self._waits[event.who] = event.request, found
        if not found.ask(asked, event.op):
            self._waits.pop(event.who, None)
            raise IllegalMove(type(found).__name__, f"Ask {event.op}", f"object {event.obj.hex()}")

    def _settle(self, who: Who) -> None:
        """What it was given has arrived."""
        given = self._given.pop(who, None)
        if given is not None:
            given[0].settled(given[1])

    def _undo(self, who: Who) -> None:
        given = self._given.pop(who, None)
        if given is not None:
            kind, gave = given
            if self._objects.get(kind.obj) is kind:
                kind.undo(who, gave)
            else:
                kind.settled(gave)

    def _withdraw(self, event: Withdraw) -> None:
        waits = self._waits.get(event.who)
        if waits is not None and waits[0] == event.request and waits[1].withdraw(event.who) is not None:
            self._out.append(Answer(event.who, event.request, WITHDRAWN))

    def _return(self, event: Return) -> None:
        self._undo(event.who)

    def _closed(self, event: Closed) -> None:
        waits = self._waits.pop(event.who, None)
        if waits is not None:
            waits[1].left(event.who)
        for one in self._objects.values() if waits is None else ():
            if isinstance(one, Barrier) and one.leader == event.who:
                one.left(event.who)
        given = self._given.get(event.who)
        if event.unread or (given is not None and isinstance(given[0], Mutex)):  # a turn nobody took is the next one's
            self._undo(event.who)
        else:
            self._settle(event.who)

    def _died(self, event: Died) -> None:
        for one in list(self._objects.values()):
            one.died(event.pid)

    def _probed(self, event: Probed) -> None:
        found = self._objects.get(event.obj)
        if isinstance(found, Mutex):
            found.probed(event.free, event.who, event.request)

    _HANDLERS: dict[type[Any], Any] = {  # noqa: RUF012
        Make: _make,
        Free: _free,
        Ask: _ask,
        Withdraw: _withdraw,
        Return: _return,
        Closed: _closed,
        Died: _died,
        Probed: _probed,
    }

    def check(self) -> None:
        """Validate the invariants of the module."""
        for obj, kind in self._objects.items():
            assert kind.obj == obj
            kind.check()
        for who, (kind, _) in self._given.items():
            assert who not in self._waits, f"{who} waits, and has been given something by {kind.obj.hex()}"
