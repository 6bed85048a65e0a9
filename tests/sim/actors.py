"""Simulated actors: what is called, what is said about them, and their processes.

```
 SimUser (users.py: makes, calls, hands on and drops proxies)
   SimLink: held calls, Dependencies, Lane (Dispatcher) ═══ ActorSocket ═══ SimActorWorker (one frame at a time)
        ║ Ask, KillActor, Hold, Drop                                             ║ Built, EndsItself
        ╚════ node: SimNodeActors (node_actors.py: Actors; its pools in the scheduler; References) ═╝
```
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic.resources import Shape, shape
from tests.sim.messages import Frame, Reply
from tests.sim.worker import SimWorker
from tests.sim.world import Link, World

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.users import SimLink

VALUE, RAISED, DIED, FAILED, CANCELLED = "value", "raised", "actor died", "failed", "cancelled"
SHAPES = (shape(), shape(), shape(), shape(num_cpus=1), shape(num_gpus=1), shape(num_cpus=99))


def actor_name(number: int) -> bytes:
    """The object id that stands for an actor."""
    return b"A" + number.to_bytes(20, "big")


class SimActor:
    """What is known of an actor outside of the machine.

    Attributes:
        fails: its constructor raises.
        constructed: how often its constructor was run.
        ended: it has ended itself.
        last: caller -> the sequence number of the last call that was begun.
    """

    def __init__(self, world: World, number: int, name: str) -> None:
        rng = world.rng
        self.id = actor_name(number)
        self.name = name
        self.shape: Shape = rng.choice(SHAPES)
        self.restarts = rng.choice((0, 0, 1, 2, -1))
        self.retries = rng.choice((0, 0, 1))
        self.detached = rng.random() < 0.15
        self.fails = rng.random() < 0.1
        self.constructed = 0
        self.ended = False
        self.last: dict[SimLink, int] = {}

    def __repr__(self) -> str:
        return f"actor {self.id[-2:].hex()}"


class SimCall:
    """One call. `raises`, `crashes`, `leaves`: what it does to itself, or to the process (which ends in order)."""

    def __init__(self, world: World, link: SimLink, sequence: int) -> None:
        rng = world.rng
        self.number = next(world.numbers)
        self.link = link
        self.sequence = sequence
        self.duration_s = rng.choice((0.0, 0.0001, 0.001, 0.02))
        self.raises = rng.random() < 0.1
        self.crashes = int(rng.random() < 0.05)
        self.leaves = rng.random() < 0.03
        self.need: SimCall | None = None
        self.wanted_by: list[SimCall] = []
        self.starts = 0
        self.outcome: str | None = None

    def __repr__(self) -> str:
        return f"call {self.number} ({self.link.actor}, {self.sequence})"


# -- what is said


class Make(NamedTuple):
    """Process to node. `found` is told the actor that it got; `owner`: the program that it belongs to."""

    actor: SimActor
    owner: int
    found: Callable[[SimActor | None], None]


class Find(NamedTuple):
    name: str
    found: Callable[[SimActor | None], None]


class Hold(NamedTuple):
    """Process to node: it holds the actor as well. `done`: whoever gave it away need not hold it any longer."""

    actor: SimActor
    done: Callable[[], None]


class Drop(NamedTuple):
    actor: SimActor


class Ask(NamedTuple):
    """Process to node: connect the link, or let it go."""

    link: SimLink
    connect: bool


class KillActor(NamedTuple):
    actor: SimActor
    restart: bool


class Linked(NamedTuple):
    """Node to process: the socket to the actor's process."""

    link: SimLink
    socket: ActorSocket


class Lost(NamedTuple):
    link: SimLink
    socket: ActorSocket
    again: bool


class Gone(NamedTuple):
    link: SimLink


class Answered(NamedTuple):
    """Node to process: what it asked for; the function is called in the process."""

    found: Callable[[SimActor | None], None]
    actor: SimActor | None


FROM_USER = (Make, Find, Hold, Drop, Ask, KillActor)


class Built(NamedTuple):
    """Actor's process to node: its constructor has run."""

    actor: bytes
    failed: bool


class EndsItself(NamedTuple):
    """Actor's process to node: a call has told it to leave. It runs nothing more, and soon it is gone."""

    actor: bytes


# -- the actor's process


class ActorSocket:
    """A socket pair and a page: the caller pushes frames, the process reads them when it gets to it."""

    def __init__(self, worker: SimActorWorker) -> None:
        self.worker = worker
        self.unread: deque[Frame] = deque()
        self.results: Link | None = None
        self.started = 0
        self.limit: int | None = None
        self.noted: list[bool] = []
        self.first_noted = 0

    def push(self, frame: Frame) -> None:
        self.unread.append(frame)
        self.worker.world.soon(self.worker.serve)

    def take_unread(self) -> Frame | None:
        raise AssertionError("a frame of calls is taken back, although later ones may be on their way")

    def journal(self) -> tuple[int, tuple[bool, ...]]:
        return self.first_noted, tuple(self.noted)


class SimActorWorker(SimWorker):
    """The process of an actor: constructs, and then runs the frames of all that are linked to it, one by one."""

    def __init__(self, world: World, node: SimNode, number: int) -> None:
        super().__init__(world, node, number)
        self.actor: SimActor | None = None
        self.built = False
        self.leaving = False
        self.sockets: list[ActorSocket] = []
        self._busy: ActorSocket | None = None
        self._calls: deque[tuple[int, SimCall]] = deque()
        self.home = Link(world, self._told)

    def come_up(self) -> None:
        if self.alive:
            self._up = True
            self._construct()

    def construct(self, actor: SimActor) -> None:
        """The first frame from the node."""
        self.actor = actor
        self._construct()

    def _construct(self) -> None:
        if self._up and self.actor is not None and self.alive:
            self.actor.constructed += 1
            most = self.actor.restarts
            assert most < 0 or self.actor.constructed <= most + 1, f"{self.actor} comes back too often"
            assert not self.actor.ended, f"{self.actor} comes back although it has ended itself"
            self.world.after(self.world.rng.choice((0.0, 0.001, 0.02)), self._constructed)

    def _constructed(self) -> None:
        if self.alive and self.actor is not None:
            self.built = not self.actor.fails
            self.completed = 1
            self.to_node.send(Built(self.actor.id, self.actor.fails))
            self.serve()

    def _told(self, message: ActorSocket | None) -> None:
        """The node says: somebody is linked; or (None) leave."""
        if message is None:
            self.leaving = True
        elif not self.leaving:  # else it does not read what the node says any more
            self.sockets.append(message)
        self.serve()

    def serve(self) -> None:
        if not self.alive or not self.built or self._busy is not None:
            return
        ready = [socket for socket in self.sockets if socket.unread]
        if ready:
            socket = self._busy = self.world.rng.choice(ready)
            frame = socket.unread.popleft()
            self._calls.extend(enumerate(frame.tasks, frame.first))  # type: ignore[arg-type]
            socket.first_noted = frame.first
            self._begin()
        elif self.leaving:
            self.die()

    def _begin(self) -> None:
        assert self._busy is not None
        number, call = self._calls[0]
        self._busy.started = number
        call.starts += 1
        link = call.link
        assert self.actor is not None
        self.world.note(str(self), f"begins {call}, start {call.starts}")
        assert call.outcome is None, f"{call} was begun after it had ended: {call.outcome}"
        assert call.starts <= 1 + self.actor.retries, f"{call} was begun {call.starts} times"
        before = self.actor.last.get(link, -1)
        assert call.sequence >= before, f"{call} was begun after {before}"
        self.actor.last[link] = call.sequence
        self.world.after(call.duration_s, self._ends)

    def _ends(self) -> None:
        if not self.alive or self._busy is None:
            return
        _, call = self._calls.popleft()
        if call.starts <= call.crashes:
            self.die()
            return
        if call.leaves:
            assert self.actor is not None
            if self.world.chance(0.3):
                call.link.user.give_up(self.actor)
            self.actor.ended = True
            self.to_node.send(EndsItself(self.actor.id))
            self.world.after(self.world.rng.choice((0.0, 0.001, 0.02)), self.die)
            return
        socket = self._busy
        socket.noted.append(call.raises)
        if not self._calls or self.world.chance(0.2):
            assert socket.results is not None
            socket.results.send(Reply(socket.first_noted, tuple(socket.noted), not self._calls))
            socket.first_noted += len(socket.noted)
            socket.noted.clear()
        if self._calls:
            self._begin()
        else:
            self._busy = None
            self.serve()

    def retire(self) -> None:
        self.die()
