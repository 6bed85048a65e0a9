"""What each kind of synchronisation object does; `sync.py` holds them and knows who asks.

```
 ask(who, request, op, n, item) ──► Answer now, or `waiting` ── … ──► Answer when it is somebody's turn
 withdraw(who): it no longer waits        undo(who, given): what its last answer gave goes to the next
```

Who waits is served in order of arrival. What an answer gives (a permit, an item, a turn, a wake-up) is kept by the
machine as *given* until its receiver has read it, so that what nobody read is given to somebody else.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

Who = int
"""A connection."""
Refs = tuple[bytes, ...]

# -- what is asked

ACQUIRE, RELEASE, VALUE = 1, 2, 3
SET, CLEAR, WAIT = 4, 5, 6
NOTIFY, WAITERS = 7, 8
LED, ABORT, RESET, BROKEN_NOW = 9, 10, 11, 12
PUT, GET, SIZE, TASK_DONE, JOIN = 13, 14, 15, 16, 17
LOCK, UNLOCKED, FORCE = 18, 19, 20
TAKEN, FETCH = 21, 22
FAR = 23
"""From here on: asked by processes of other machines only, and answered by the role."""
FAR_LOCK, FAR_UNLOCK, FAR_OWNED, FAR_READ, FAR_WRITE = range(FAR, FAR + 5)

BLOCK, SCOPED, FRONT, ACTION = 1, 2, 4, 8
"""Flags of a question: wait for it; what is got goes back when the process dies; at the head of the queue; the party
that comes last has something to do before the others go on.
"""

# -- what is answered

OK, NO, WITHDRAWN, REGISTERED, LEAD, BROKEN, GONE, TOO_MANY, NOT_HELD = range(9)

# -- words of the shared page

GENERATION, WAITING, OWNER, FLAG = range(4)
"""Of one slot: the lock's byte changes with GENERATION; whether somebody WAITs for it (2: since long, so nobody may
overtake); the OWNER's process id, written by itself; whether an event is set.
"""

ELSEWHERE = b"\xff"
"""Begins an item that the role keeps elsewhere; it is told when that has been Delivered."""
SEMAPHORE_MAX = 2**31 - 1
SEGMENT = 1 << 20
"""Bytes of a piece of memory that small shared values are cut from."""


class Answer(NamedTuple):
    """Tell `who` what became of its request."""

    who: Who
    request: int
    status: int
    n: int = 0
    data: bytes = b""
    refs: Refs = ()


class Mark(NamedTuple):
    """Write a word of the shared page."""

    slot: int
    word: int
    value: int


class Probe(NamedTuple):
    """Find out whether the lock's byte is free, and say so (`Probed`)."""

    obj: bytes
    slot: int
    generation: int
    who: Who = 0
    request: int = 0


class Hold(NamedTuple):
    """These objects are in an item that a queue keeps."""

    refs: Refs


class Drop(NamedTuple):
    """They no longer are, and whoever got the item holds them by now."""

    refs: Refs


class Delivered(NamedTuple):
    """This item of a queue has arrived, or nobody will ever ask for it."""

    data: bytes


Instruction = Answer | Mark | Probe | Hold | Drop | Delivered


class Item(NamedTuple):
    """What is put into a queue."""

    data: bytes
    refs: Refs


class Asked(NamedTuple):
    """A question that waits for its answer."""

    who: Who
    request: int
    pid: int
    n: int
    item: Item


class Kind:
    """One object."""

    __slots__ = ("given", "obj", "out", "waiting")

    def __init__(self, obj: bytes, out: list[Instruction], given: dict[Who, tuple[Any, Any]]) -> None:
        self.obj = obj
        self.out = out
        """Instructions of the event at hand: the machine's."""
        self.given = given
        """Who → (object, what its last answer gave): the machine's."""
        self.waiting: deque[Asked] = deque()

    def ask(self, asked: Asked, op: int) -> bool:
        """Answer, or keep it in `waiting`; False if this kind has no such question."""
        raise NotImplementedError

    def withdraw(self, who: Who) -> Asked | None:
        """It no longer waits; None if it does not wait here."""
        found = next((one for one in self.waiting if one.who == who), None)
        if found is not None:
            self.waiting.remove(found)
        return found

    def left(self, who: Who) -> None:
        """The connection has closed."""
        self.withdraw(who)

    def undo(self, who: Who, gave: Any) -> None:
        """What `who` was given has not reached anybody."""

    def settled(self, gave: Any) -> None:
        """It has."""

    def died(self, pid: int) -> None:
        """A process has ended."""

    def close(self) -> None:
        """Nobody holds the object any more."""
        for asked in self.waiting:
            self.answer(asked, GONE)
        self.waiting.clear()

    def answer(self, asked: Asked, status: int, n: int = 0) -> None:
        if asked.request:
            self.out.append(Answer(asked.who, asked.request, status, n))

    def give(self, asked: Asked, gave: Any, n: int = 0) -> None:
        """An answer that gives something."""
        self.given[asked.who] = (self, gave)
        self.answer(asked, OK, n)

    def check(self) -> None:
        """Validate the invariants."""
        assert len({one.who for one in self.waiting}) == len(self.waiting)


class Semaphore(Kind):
    """`count` permits; of those got in a `with` block it is known which process has them."""

    __slots__ = ("bound", "count", "dead", "held")

    def __init__(self, obj: bytes, out: Any, given: Any, value: int, bound: int) -> None:
        super().__init__(obj, out, given)
        self.count = value
        self.bound = bound
        self.held: dict[int, int] = {}
        self.dead = 0
        """A process that died with a permit: the next owner is told."""

    def ask(self, asked: Asked, op: int) -> bool:
        if op == ACQUIRE:
            if self.count and not self.waiting:
                self._grant(asked)
            elif asked.n & BLOCK:
                self.waiting.append(asked)
            else:
                self.answer(asked, NO)
        elif op == RELEASE:
            self._release(asked)
        elif op == VALUE:
            self.answer(asked, OK, self.count)
        else:
            return False
        return True

    def _grant(self, asked: Asked) -> None:
        self.count -= 1
        holder = asked.pid if asked.n & SCOPED else 0
        if holder:
            self.held[holder] = self.held.get(holder, 0) + 1
        dead, self.dead = self.dead, 0
        self.give(asked, holder, dead)

    def _release(self, asked: Asked) -> None:
        if self.count >= self.bound:
            self.answer(asked, TOO_MANY)
            return
        self._unhold(asked.pid)
        self.answer(asked, OK)
        self._more(1)

    def _unhold(self, pid: int) -> None:
        count = self.held.get(pid, 0)
        if count > 1:
            self.held[pid] = count - 1
        elif count:
            del self.held[pid]

    def _more(self, n: int) -> None:
        self.count = min(self.bound, self.count + n)
        while self.count and self.waiting:
            self._grant(self.waiting.popleft())

    def undo(self, who: Who, gave: Any) -> None:
        if gave:
            if gave not in self.held:
                return  # its process has died: that gave it back
            self._unhold(gave)
        self._more(1)

    def died(self, pid: int) -> None:
        count = self.held.pop(pid, 0)
        if count:
            self.dead = pid
            self._more(count)

    def check(self) -> None:
        super().check()
        assert 0 <= self.count <= self.bound
        assert not (self.count and self.waiting)
        assert all(count > 0 for count in self.held.values())


class Event(Kind):
    """A flag, which stands in the shared page too."""

    __slots__ = ("flag", "slot")

    def __init__(self, obj: bytes, out: Any, given: Any, slot: int) -> None:
        super().__init__(obj, out, given)
        self.slot = slot
        self.flag = False
        out.append(Mark(slot, FLAG, 0))

    def ask(self, asked: Asked, op: int) -> bool:
        if op == WAIT:
            if self.flag:
                self.answer(asked, OK)
            else:
                self.waiting.append(asked)
        elif op in (SET, CLEAR):
            self.flag = op == SET
            self.out.append(Mark(self.slot, FLAG, int(self.flag)))
            if self.flag:
                for one in self.waiting:
                    self.answer(one, OK)
                self.waiting.clear()
            self.answer(asked, OK)
        elif op == VALUE:
            self.answer(asked, OK, int(self.flag))
        else:
            return False
        return True

    def check(self) -> None:
        super().check()
        assert not (self.flag and self.waiting)


class Condition(Kind):
    """Who waits to be notified; the lock is another object."""

    __slots__ = ()

    def ask(self, asked: Asked, op: int) -> bool:
        if op == WAIT:
            self.waiting.append(asked)
            self.answer(asked, REGISTERED)
        elif op == NOTIFY:
            self.answer(asked, OK, self._notify(asked.n))
        elif op == WAITERS:
            self.answer(asked, OK, len(self.waiting))
        else:
            return False
        return True

    def _notify(self, n: int) -> int:
        count = min(n, len(self.waiting))
        for _ in range(count):
            self.give(self.waiting.popleft(), True)
        return count

    def undo(self, who: Who, gave: Any) -> None:
        self._notify(1)


class Mutex(Kind):
    """Who waits for a lock whose state is a byte that the kernel locks; here are only those who did not get it at once.

    A waiter is given a *turn*: it tries to lock the byte. One that finds somebody was faster comes back to the FRONT,
    and from then on nobody may overtake.
    """

    __slots__ = ("generation", "slot", "strict")

    def __init__(self, obj: bytes, out: Any, given: Any, slot: int, generation: int) -> None:
        super().__init__(obj, out, given)
        self.slot = slot
        self.generation = generation
        self.strict = False
        """A turn has been given that nobody may overtake."""
        for word, value in ((GENERATION, generation), (WAITING, 0), (OWNER, 0)):
            out.append(Mark(slot, word, value))

    def ask(self, asked: Asked, op: int) -> bool:
        if op == LOCK:
            if asked.n & FRONT:
                self.waiting.appendleft(asked)
                self.strict = False
            else:
                self.waiting.append(asked)
            self._mark()
            self.out.append(Probe(self.obj, self.slot, self.generation))
        elif op == UNLOCKED:
            self.strict = False
            self._next()
            self.answer(asked, OK)
        elif op == FORCE:
            self.out.append(Probe(self.obj, self.slot, self.generation, asked.who, asked.request))
        else:
            return False
        return True

    def probed(self, free: bool, who: Who, request: int) -> None:
        """The byte has been looked at."""
        if not request:
            if free and not self.strict:
                self._next()
        elif free:
            self.out.append(Answer(who, request, NOT_HELD))
        else:  # another byte takes its place: what the owner has locked means nothing any more
            self.generation += 1
            self.out.append(Mark(self.slot, OWNER, 0))
            self.out.append(Mark(self.slot, GENERATION, self.generation))
            self.out.append(Answer(who, request, OK))
            self.strict = False
            self._next()

    def _next(self) -> None:
        if self.waiting:
            asked = self.waiting.popleft()
            self.strict = bool(asked.n & FRONT)
            self.give(asked, True)
        self._mark()

    def _mark(self) -> None:
        strict = self.strict or (self.waiting and self.waiting[0].n & FRONT)
        self.out.append(Mark(self.slot, WAITING, 2 if strict else int(bool(self.waiting))))

    def withdraw(self, who: Who) -> Asked | None:
        found = super().withdraw(who)
        if found is not None:
            self._mark()
        return found

    def undo(self, who: Who, gave: Any) -> None:
        self.strict = False
        self._next()

    def died(self, pid: int) -> None:
        if self.waiting or self.strict:
            self.strict = False
            self._mark()
            self.out.append(Probe(self.obj, self.slot, self.generation))


class Descriptor(Kind):
    """An open file that is handed over once; the role keeps it."""

    __slots__ = ()

    def ask(self, asked: Asked, op: int) -> bool:
        return False


class Memory(Kind):
    """A piece of shared memory; the role keeps it."""

    __slots__ = ()

    def ask(self, asked: Asked, op: int) -> bool:
        return False
