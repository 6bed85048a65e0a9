"""Who holds an object: when nobody does, its memory is free.

```
 Acquire(obj, process) ─► HELD ◄──── Acquire ────┐
                           └─ last holder gone ─► UNHELD ── no container lives ──► Freed(obj)
 Contains(outer, inner): inner lives at least as long as outer
```

A process (driver, worker, or the node itself) holds an object as often as it acquired it and did not release it; its
death releases all that it held. Whoever passes a reference on keeps its own until the receiver has acquired one, so a
count never touches zero in between. Say nothing for a process after its `ProcessDied`.

One thread. Invariants: an object is known exactly while it has a holder or a known container; containment has no
cycle; counts are positive. Everything is a loop: chains of containers may be 10,000 deep.
"""

from __future__ import annotations

from typing import NamedTuple

from dpool._core.ids import ObjectID
from dpool._core.logic import IllegalMove


class Acquire(NamedTuple):
    """`process` holds the object `n` more times."""

    obj: ObjectID
    process: int
    n: int = 1


class Release(NamedTuple):
    """`process` holds the object `n` fewer times."""

    obj: ObjectID
    process: int
    n: int = 1


class ProcessDied(NamedTuple):
    """It holds nothing any more. May be said twice."""

    process: int


class Contains(NamedTuple):
    """References to `inner` are stored in `outer`; both are known. May be said twice."""

    outer: ObjectID
    inner: ObjectID


Event = Acquire | Release | ProcessDied | Contains


class Unheld(NamedTuple):
    """Inner step: the object's last holder released it or died."""

    obj: ObjectID


class Freed(NamedTuple):
    """Nobody can reach the object: recycle its memory. Once in its life."""

    obj: ObjectID


Instruction = Freed

ABSENT = "absent"
HELD = "held"
UNHELD = "unheld"

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, Acquire): HELD,
    (HELD, Acquire): HELD,
    (UNHELD, Acquire): HELD,
    (HELD, Release): HELD,
    (HELD, Contains): HELD,
    (UNHELD, Contains): UNHELD,
    (HELD, Unheld): UNHELD,
    (UNHELD, Freed): ABSENT,
}


class _Object:
    """`holders`: process -> count. `inside`: the objects that contain it. `contents`: the objects in it."""

    __slots__ = ("contents", "holders", "inside", "state")

    def __init__(self) -> None:
        self.state = HELD
        self.holders: dict[int, int] = {}
        self.inside: set[ObjectID] = set()
        self.contents: dict[ObjectID, None] = {}


class References:
    """The holders and containers of every object of one node; see the module."""

    def __init__(self) -> None:
        self._objects: dict[ObjectID, _Object] = {}
        self._held_by: dict[int, dict[ObjectID, None]] = {}

    def __len__(self) -> int:
        """How many objects live."""
        return len(self._objects)

    def __contains__(self, obj: ObjectID) -> bool:
        return obj in self._objects

    def holders(self, obj: ObjectID) -> dict[int, int]:
        """Process -> how often it holds `obj`; empty for an object that lives only inside another, or not at all."""
        entry = self._objects.get(obj)
        return dict(entry.holders) if entry else {}

    def held(self) -> list[tuple[ObjectID, dict[int, int]]]:
        """Every object that has holders, and those; not to be changed."""
        return [(obj, entry.holders) for obj, entry in self._objects.items() if entry.holders]

    def contents(self, obj: ObjectID) -> list[ObjectID]:
        """The objects that it contains."""
        entry = self._objects.get(obj)
        return list(entry.contents) if entry else []

    def contained(self, obj: ObjectID) -> bool:
        """Whether it lies inside another one."""
        entry = self._objects.get(obj)
        return entry is not None and bool(entry.inside)

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event.

        Raises:
            IllegalMove: a release of what is not held (so often), an edge between unknown objects; nothing has changed.
            ValueError: n < 1, or an object would contain itself; nothing has changed.
        """
        if isinstance(event, Acquire):
            return self._acquire(event)
        if isinstance(event, Release):
            return self._release(event)
        if isinstance(event, ProcessDied):
            return self._process_died(event)
        return self._contains(event)

    def _acquire(self, event: Acquire) -> list[Instruction]:
        _check_count(event.n)
        entry = self._objects.get(event.obj)
        if entry is None:
            entry = self._objects[event.obj] = _Object()
        entry.state = MOVES[entry.state, Acquire]
        entry.holders[event.process] = entry.holders.get(event.process, 0) + event.n
        self._held_by.setdefault(event.process, {})[event.obj] = None
        return []

    def _release(self, event: Release) -> list[Instruction]:
        _check_count(event.n)
        entry = self._known(event.obj, Release)
        count = entry.holders.get(event.process, 0)
        if count < event.n:
            subject = f"object {event.obj.hex()}"
            raise IllegalMove(f"held {count} times by process {event.process}", f"Release of {event.n}", subject)
        if count > event.n:
            entry.holders[event.process] = count - event.n
            return []
        held = self._held_by[event.process]
        del held[event.obj]
        if not held:
            del self._held_by[event.process]
        return self._let_go(entry, event.obj, event.process)

    def _process_died(self, event: ProcessDied) -> list[Instruction]:
        out: list[Instruction] = []
        for obj in self._held_by.pop(event.process, ()):
            out += self._let_go(self._objects[obj], obj, event.process)
        return out

    def _let_go(self, entry: _Object, obj: ObjectID, process: int) -> list[Instruction]:
        """`process` holds `obj` no more; free it, and what lived only inside it, if it was the last."""
        out: list[Instruction] = []
        del entry.holders[process]
        if entry.holders:
            return out
        entry.state = MOVES[entry.state, Unheld]
        unreachable = [] if entry.inside else [obj]
        while unreachable:
            obj = unreachable.pop()
            entry = self._objects.pop(obj)
            entry.state = MOVES[entry.state, Freed]
            out.append(Freed(obj))
            for name in entry.contents:
                inner = self._objects[name]
                inner.inside.remove(obj)
                if not inner.inside and not inner.holders:
                    unreachable.append(name)
        return out

    def _contains(self, event: Contains) -> list[Instruction]:
        outer, inner = self._known(event.outer, Contains), self._known(event.inner, Contains)
        # The walk is rarely needed: an object is nearly always stored in a new one, which nothing contains.
        could_close = outer is inner or (outer.inside and inner.contents)
        if could_close and self._reaches(event.inner, event.outer):
            raise ValueError(f"object {event.outer.hex()} would contain itself")
        outer.contents[event.inner] = None
        inner.inside.add(event.outer)
        return []

    def _reaches(self, start: ObjectID, goal: ObjectID) -> bool:
        """Whether `goal` is `start` or lies anywhere inside it."""
        seen = {start}
        open_ends = [start]
        while open_ends:
            obj = open_ends.pop()
            if obj == goal:
                return True
            new = self._objects[obj].contents.keys() - seen
            seen |= new
            open_ends.extend(new)
        return False

    def _known(self, obj: ObjectID, cause: type[tuple[object, ...]]) -> _Object:
        entry = self._objects.get(obj)
        state = entry.state if entry else ABSENT
        if entry is None or (state, cause) not in MOVES:
            raise IllegalMove(state, cause.__name__, f"object {obj.hex()}")
        return entry

    def check(self) -> None:
        """Validate the invariants of the module."""
        held = {(process, obj) for process, objects in self._held_by.items() for obj in objects}
        assert held == {(process, obj) for obj, entry in self._objects.items() for process in entry.holders}
        assert all(self._held_by.values())
        for obj, entry in self._objects.items():
            assert entry.state == (HELD if entry.holders else UNHELD)
            assert entry.holders or entry.inside, f"{obj.hex()} should have been freed"
            assert all(count > 0 for count in entry.holders.values())
            assert all(obj in self._objects[outer].contents for outer in entry.inside)
            assert all(obj in self._objects[inner].inside for inner in entry.contents)
        self._check_no_cycle()

    def _check_no_cycle(self) -> None:
        """Take away objects that nothing contains, again and again: nothing may be left."""
        containers = {obj: len(entry.inside) for obj, entry in self._objects.items()}
        outermost = [obj for obj, count in containers.items() if not count]
        while outermost:
            obj = outermost.pop()
            del containers[obj]
            for inner in self._objects[obj].contents:
                containers[inner] -= 1
                if not containers[inner]:
                    outermost.append(inner)
        assert not containers, f"{len(containers)} objects contain themselves"


def _check_count(n: int) -> None:
    if n < 1:
        raise ValueError(f"an object is acquired or released at least once, not {n} times")
