"""The life of actors: made, called by many, restarted, ended.

```
 Create ─► WAITING ─Granted─► STARTING ─Constructed─► ALIVE ─┬─ Freed, Leave ─► LEAVING ─┐
             ▲  (resources)      │ Failed: DEAD              │                           │ WorkerDied
             └──── WorkerDied, restarts left ◄───────────────┴─ WorkerDied, none left ───┴─► DEAD ─ Freed ─► forgotten
```

A *caller* is the connection of a process that has asked for a link to the actor; it gets one whenever the actor is
alive, hears when that process dies, and hears once that the actor is dead for good. A dead actor is remembered as long
as somebody can still call it, so that the cause is known. One whose processes die one after the other before the object
is there comes back more and more slowly.

One thread. Invariants (`check`): an actor has a worker exactly while it is STARTING, ALIVE or LEAVING; callers are
linked only to a living one; a name belongs to one actor that is neither leaving nor dead.

Source: Ray (OSDI 2018) §3; restarts as Ray's `max_restarts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic import IllegalMove

if TYPE_CHECKING:
    from collections.abc import Callable


class Create(NamedTuple):
    """`restarts`: how often it comes back when its process dies; -1: always. `name`: empty, or not taken. `owner`: the
    connection of the program that it ends with; 0: none, it is detached.
    """

    actor: bytes
    name: str
    restarts: int
    owner: int


class Granted(NamedTuple):
    """It has resources and a process, which is about to construct the object."""

    actor: bytes
    worker: int


class Constructed(NamedTuple):
    """The object is there."""

    actor: bytes


class Failed(NamedTuple):
    """The constructor raised; `cause` is what callers get."""

    actor: bytes
    cause: bytes


class WorkerDied(NamedTuple):
    """Its process is gone. `cause`: what callers get if it does not come back."""

    actor: bytes
    cause: bytes


class Connect(NamedTuple):
    """A process wants to call it. `caller` is the caller's number of the link, unique."""

    actor: bytes
    caller: int


class Disconnect(NamedTuple):
    """It will not call it any more, or has ended."""

    actor: bytes
    caller: int


class Kill(NamedTuple):
    """End the process now. `restart`: as if it had crashed."""

    actor: bytes
    restart: bool
    cause: bytes


class Left(NamedTuple):
    """It ends by itself, and does not come back."""

    actor: bytes
    cause: bytes


class Freed(NamedTuple):
    """Nobody can call it any more: it leaves when it has done what it was asked to."""

    actor: bytes


class OwnerLeft(NamedTuple):
    """The program has ended: its actors end, but for detached ones."""

    owner: int
    cause: bytes = b"owner"


Event = (
    Create | Granted | Constructed | Failed | WorkerDied | Connect | Disconnect | Kill | Left | Freed | OwnerLeft
)  # fmt: skip


class Lease(NamedTuple):
    """Get resources and a process for it, in `after_s` seconds if it still waits then; answer with Granted."""

    actor: bytes
    after_s: float = 0.0


class GiveUp(NamedTuple):
    """It is dead: no process will be needed any more."""

    actor: bytes


class Link(NamedTuple):
    """Connect the caller and the process."""

    actor: bytes
    caller: int


class TellLost(NamedTuple):
    """Tell the caller that the process is gone; `again`: another will take its place."""

    actor: bytes
    caller: int
    again: bool


class TellDead(NamedTuple):
    """Tell the caller that the actor is dead for good, and why."""

    actor: bytes
    caller: int
    cause: bytes


class KillWorker(NamedTuple):
    """Kill its process; answer with WorkerDied."""

    actor: bytes


class Leave(NamedTuple):
    """Tell its process to end when it has done what it was asked to; answer with WorkerDied."""

    actor: bytes


class Forget(NamedTuple):
    """It is dead and nobody can ask for it."""

    actor: bytes


Instruction = Lease | GiveUp | Link | TellLost | TellDead | KillWorker | Leave | Forget

WAITING = "waiting"
STARTING = "starting"
ALIVE = "alive"
LEAVING = "leaving"
DEAD = "dead"
ABSENT = "absent"

FIRST_PAUSE_S = 0.1
MOST_PAUSE_S = 10.0

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, Create): WAITING,
    (WAITING, Granted): STARTING,
    (STARTING, Constructed): ALIVE,
    # Its process dies; it comes back, or (GiveUp stands for that) does not.
    (STARTING, WorkerDied): WAITING,
    (ALIVE, WorkerDied): WAITING,
    (LEAVING, WorkerDied): DEAD,
    (STARTING, Failed): LEAVING,
    (WAITING, GiveUp): DEAD,
    # Nobody needs it, or it is killed.
    (STARTING, Freed): LEAVING,
    (ALIVE, Freed): LEAVING,
    (LEAVING, Freed): LEAVING,
    (STARTING, Kill): LEAVING,
    (ALIVE, Kill): LEAVING,
    (LEAVING, Kill): LEAVING,
    (DEAD, Kill): DEAD,
    (ALIVE, Left): LEAVING,
    (LEAVING, Left): LEAVING,
    (DEAD, Forget): ABSENT,
    # Messages that crossed.
    (LEAVING, Constructed): LEAVING,
    (LEAVING, Failed): LEAVING,
}


class _Actor:
    """One actor.

    Attributes:
        linked: callers that have a link to the present process; the others in `callers` wait for one.
        freed: nobody can call it.
        unbuilt: how many of its processes, one after the other, have died before the object was there.
    """

    __slots__ = (
        "callers", "cause", "freed", "linked", "name", "owner", "restarts", "restarts_done", "state", "unbuilt",
        "worker",
    )  # fmt: skip

    def __init__(self, event: Create) -> None:
        self.state = MOVES[ABSENT, Create]
        self.name = event.name
        self.restarts = event.restarts
        self.restarts_done = 0
        self.owner = event.owner
        self.worker = 0
        self.callers: dict[int, None] = {}
        self.linked: set[int] = set()
        self.cause = b""
        self.freed = False
        self.unbuilt = 0

    def may_start(self) -> bool:
        """Whether what it is constructed from is still needed."""
        if self.state in (WAITING, STARTING):
            return True
        return self.state == ALIVE and not self.freed and (self.restarts < 0 or self.restarts_done < self.restarts)

    def pause_s(self) -> float:
        """Before its next process: none after the first that died in the constructor, then twice as long each time."""
        return min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.unbuilt - 2, 20)) if self.unbuilt > 1 else 0.0


class Actors:
    """All actors of a node; see the module.

    Attributes:
        actors: those that are not forgotten.
        names: of those that are neither leaving nor dead.
        moved: those whose state has changed, or that are gone, for whoever tells it to others and empties this.
    """

    def __init__(self) -> None:
        self.actors: dict[bytes, _Actor] = {}
        self.names: dict[str, bytes] = {}
        self.moved: dict[bytes, None] = {}
        self._handlers: dict[type[tuple[object, ...]], Callable[..., None]] = {
            Create: self._create,
            Granted: self._granted,
            Constructed: self._constructed,
            Failed: self._failed,
            WorkerDied: self._worker_died,
            Connect: self._connect,
            Disconnect: self._disconnect,
            Kill: self._kill,
            Left: self._left,
            Freed: self._freed,
            OwnerLeft: self._owner_left,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; returns what the role must do, in this order.

        Raises:
            IllegalMove: the event is not allowed now; nothing has changed.
        """
        out: list[Instruction] = []
        self._handlers[type(event)](event, out)
        return out

    def living(self) -> int:
        """How many are not dead."""
        return sum(actor.state != DEAD for actor in self.actors.values())

    # -- what happens

    def _create(self, event: Create, out: list[Instruction]) -> None:
        if event.actor in self.actors:
            raise IllegalMove(self.actors[event.actor].state, "Create", f"actor {event.actor.hex()}")
        if event.name in self.names:
            raise IllegalMove(ALIVE, "Create", f"the name {event.name!r}")
        self.actors[event.actor] = _Actor(event)
        self.moved[event.actor] = None
        if event.name:
            self.names[event.name] = event.actor
        out.append(Lease(event.actor))

    def _granted(self, event: Granted, out: list[Instruction]) -> None:
        actor = self._moved(event.actor, Granted)
        actor.worker = event.worker

    def _constructed(self, event: Constructed, out: list[Instruction]) -> None:
        actor = self._moved(event.actor, Constructed)
        actor.unbuilt = 0
        if actor.state == ALIVE:
            for caller in actor.callers:
                self._link(event.actor, actor, caller, out)

    def _failed(self, event: Failed, out: list[Instruction]) -> None:
        actor = self._moved(event.actor, Failed)
        actor.restarts = 0
        actor.cause = actor.cause or event.cause
        out.append(KillWorker(event.actor))

    def _worker_died(self, event: WorkerDied, out: list[Instruction]) -> None:
        known = self._known(event.actor)
        known.unbuilt += known.state == STARTING
        actor = self._moved(event.actor, WorkerDied)
        actor.worker = 0
        again = actor.state == WAITING and (actor.restarts < 0 or actor.restarts_done < actor.restarts)
        again = again and not actor.freed
        for caller in list(actor.callers):
            if caller in actor.linked:
                out.append(TellLost(event.actor, caller, again))
        actor.linked.clear()
        if again:
            actor.restarts_done += 1
            out.append(Lease(event.actor, actor.pause_s()))
        else:
            actor.cause = actor.cause or event.cause
            self._die(event.actor, actor, out)

    def _connect(self, event: Connect, out: list[Instruction]) -> None:
        actor = self._known(event.actor)
        if event.caller in actor.callers:
            raise IllegalMove(actor.state, "Connect", f"caller {event.caller}")
        if actor.state == DEAD:
            out.append(TellDead(event.actor, event.caller, actor.cause))
            return
        actor.callers[event.caller] = None
        if actor.state in (ALIVE, LEAVING) and actor.worker and not actor.cause:
            self._link(event.actor, actor, event.caller, out)

    def _disconnect(self, event: Disconnect, out: list[Instruction]) -> None:
        actor = self.actors.get(event.actor)
        if actor is not None:
            actor.callers.pop(event.caller, None)
            actor.linked.discard(event.caller)

    def _kill(self, event: Kill, out: list[Instruction]) -> None:
        actor = self._known(event.actor)
        if actor.state == WAITING:
            if not event.restart:
                actor.cause = event.cause
                self._give_up(event.actor, actor, out)
            return
        if event.restart:  # it dies as if by itself
            if actor.worker:
                out.append(KillWorker(event.actor))
            return
        actor = self._moved(event.actor, Kill)
        if actor.state == LEAVING:
            actor.cause = actor.cause or event.cause
            out.append(KillWorker(event.actor))

    def _left(self, event: Left, out: list[Instruction]) -> None:
        actor = self._moved(event.actor, Left)
        actor.cause = actor.cause or event.cause

    def _freed(self, event: Freed, out: list[Instruction]) -> None:
        actor = self._known(event.actor)
        actor.freed = True
        if actor.state == WAITING:
            self._give_up(event.actor, actor, out)
        elif actor.state == DEAD:
            self._forget(event.actor, out)
        else:
            leaving = actor.state == LEAVING
            actor = self._moved(event.actor, Freed)
            if not leaving:
                out.append(Leave(event.actor))

    def _owner_left(self, event: OwnerLeft, out: list[Instruction]) -> None:
        for name, actor in list(self.actors.items()):
            if actor.owner == event.owner and actor.state != DEAD:
                self._kill(Kill(name, False, event.cause), out)

    # -- what follows

    def _link(self, name: bytes, actor: _Actor, caller: int, out: list[Instruction]) -> None:
        actor.linked.add(caller)
        out.append(Link(name, caller))

    def _release_name(self, actor: _Actor) -> None:
        """It cannot be found any more, and another actor may have its name."""
        if actor.name:
            del self.names[actor.name]
            actor.name = ""

    def _give_up(self, name: bytes, actor: _Actor, out: list[Instruction]) -> None:
        self._moved(name, GiveUp)
        self._buried(name, actor, out)

    def _die(self, name: bytes, actor: _Actor, out: list[Instruction]) -> None:
        if actor.state == WAITING:
            self._moved(name, GiveUp)
        self._buried(name, actor, out)

    def _buried(self, name: bytes, actor: _Actor, out: list[Instruction]) -> None:
        out.append(GiveUp(name))
        self._release_name(actor)
        for caller in actor.callers:
            out.append(TellDead(name, caller, actor.cause))
        actor.callers.clear()
        if actor.freed:
            self._forget(name, out)

    def _forget(self, name: bytes, out: list[Instruction]) -> None:
        self._moved(name, Forget)
        del self.actors[name]
        out.append(Forget(name))

    # -- look-ups

    def _known(self, name: bytes) -> _Actor:
        actor = self.actors.get(name)
        if actor is None:
            raise IllegalMove(ABSENT, "anything", f"actor {name.hex()}")
        return actor

    def _moved(self, name: bytes, cause: type[tuple[object, ...]]) -> _Actor:
        actor = self._known(name)
        state = MOVES.get((actor.state, cause))
        if state is None:
            raise IllegalMove(actor.state, cause.__name__, f"actor {name.hex()}")
        if state == LEAVING:
            self._release_name(actor)
        actor.state = state
        self.moved[name] = None
        return actor

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        for name, actor in self.actors.items():
            assert (actor.worker != 0) == (actor.state in (STARTING, ALIVE, LEAVING)), f"{name.hex()} {actor.state}"
            assert actor.linked <= set(actor.callers), "a link without a caller"
            assert not actor.linked or actor.state in (ALIVE, LEAVING), f"links to one that is {actor.state}"
            assert actor.state != DEAD or not actor.callers, "a dead actor has callers"
            assert actor.state != ALIVE or len(actor.linked) == len(actor.callers), "somebody waits for a living actor"
            assert not actor.name or self.names.get(actor.name) == name, f"{name.hex()} {actor.name!r}"
            assert not actor.name or actor.state not in (LEAVING, DEAD), f"{name.hex()} {actor.name!r}"
        assert set(self.names.values()) <= set(self.actors)
