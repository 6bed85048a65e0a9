"""Simulated actors: the real `Actors` machine in the node, processes that construct, run calls and die, and callers.

```
 SimUser (a process that makes, calls, hands on and drops proxies)
   SimLink: held calls, Dependencies, Lane (Dispatcher) ═══ ActorSocket ═══ SimActorWorker (one frame at a time)
        ║ Connect, kill, hold, drop                                               ║ constructed, failed
        ╚══════════ node: SimNodeActors (Actors, names; its pools in the scheduler; References) ══╝
```

`SimNodeActors` does what `dpool/_core/node_actors.py` does, `SimLink` what `actor_pool.py` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._core.logic import actors as a
from dpool._core.logic import dependency, references, scheduler
from dpool._core.logic.dispatch import Slot
from dpool._core.logic.resources import Shape, shape
from tests.sim.lane import Lane, Settled
from tests.sim.messages import Frame, Reply
from tests.sim.worker import SimWorker
from tests.sim.world import Link, World

if TYPE_CHECKING:
    from tests.sim.node import SimNode

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
        self.last: dict[SimLink, int] = {}

    def __repr__(self) -> str:
        return f"actor {self.id[-2:].hex()}"


class SimCall:
    """One call. `raises`, `crashes`: what it does to itself, or to the process."""

    def __init__(self, world: World, link: SimLink, sequence: int) -> None:
        rng = world.rng
        self.number = next(world.numbers)
        self.link = link
        self.sequence = sequence
        self.duration_s = rng.choice((0.0, 0.0001, 0.001, 0.02))
        self.raises = rng.random() < 0.1
        self.crashes = int(rng.random() < 0.05)
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
TO_USER = (Linked, Lost, Gone, Answered)


class Built(NamedTuple):
    """Actor's process to node: its constructor has run."""

    actor: bytes
    failed: bool


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


# -- the node


class SimNodeActors:
    """What the node does about actors."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.world = node.world
        self.machine = a.Actors()
        self.actors: dict[bytes, SimActor] = {}
        self.pools: dict[int, bytes] = {}
        self._pool_of: dict[bytes, int] = {}
        self._procs: dict[bytes, SimActorWorker] = {}
        self._callers: dict[int, tuple[int, SimLink]] = {}
        self._numbers: dict[SimLink, int] = {}
        self._sockets: dict[int, ActorSocket] = {}
        self._joined = False

    # -- what processes say

    def hear(self, client: int, message: Any) -> None:
        if isinstance(message, Make):
            self._make(client, message)
        elif isinstance(message, Find):
            named = self.machine.names.get(message.name)
            self._found(client, message.found, self.actors[named] if named else None)
        elif isinstance(message, Hold):
            if message.actor.id in self.actors:
                self.node._refer(references.Acquire(message.actor.id, client))
            message.done()
        elif isinstance(message, Drop):
            if client in self.node.references.holders(message.actor.id):
                self.node._refer(references.Release(message.actor.id, client))
        elif isinstance(message, KillActor):
            if message.actor.id in self.actors:
                self._do(a.Kill(message.actor.id, message.restart, b"killed"))
        elif message.connect:
            self._connect(client, message.link)
        else:
            self._disconnect(message.link)

    def _make(self, client: int, message: Make) -> None:
        actor = message.actor
        taken = self.machine.names.get(actor.name) if actor.name else None
        if taken is not None:
            self._found(client, message.found, self.actors[taken])
            return
        if not self._joined:
            self._joined = True
            self.node._schedule(scheduler.ClientJoined(0))
        pool = next(self.world.numbers)
        self.actors[actor.id] = actor
        self.pools[pool] = actor.id
        self._pool_of[actor.id] = pool
        self.node._schedule(scheduler.OpenPool(0, pool, 1))
        self._found(client, message.found, actor)
        self._do(a.Create(actor.id, actor.name, actor.restarts, 0 if actor.detached else message.owner))

    def _found(self, client: int, tell: Callable[[SimActor | None], None], actor: SimActor | None) -> None:
        """The process holds what it is told of."""
        if actor is not None:
            self.node._refer(references.Acquire(actor.id, client))
        self._tell(client, Answered(tell, actor))

    def _tell(self, client: int, message: Any) -> None:
        if client in self.node.down:
            self.node.down[client].send(message)

    def _connect(self, client: int, link: SimLink) -> None:
        if link.actor.id not in self.actors:
            self._tell(client, Gone(link))
            return
        number = next(self.world.numbers)
        self._callers[number] = client, link
        self._numbers[link] = number
        self._do(a.Connect(link.actor.id, number))

    def _disconnect(self, link: SimLink) -> None:
        number = self._numbers.pop(link, None)
        if number is not None:
            del self._callers[number]
            self._do(a.Disconnect(link.actor.id, number))

    def client_left(self, client: int) -> None:
        for link in [link for number, (owner, link) in self._callers.items() if owner == client]:
            self._disconnect(link)
        self._do(a.OwnerLeft(client))
        left = [actor.state for actor in self.machine.actors.values() if actor.owner == client]
        assert set(left) <= {a.LEAVING, a.DEAD}, f"actors of a program that has ended are {left}"

    def freed(self, obj: bytes) -> None:
        """Nobody holds it any more."""
        if not self.actors[obj].detached or self.machine.actors[obj].state == a.DEAD:
            self._do(a.Freed(obj))

    # -- what the scheduler says

    def hear_scheduler(self, said: scheduler.Grant | scheduler.TellDied | scheduler.WarnInfeasible) -> None:
        if isinstance(said, scheduler.Grant):
            self._granted(said)
        elif isinstance(said, scheduler.TellDied):
            self._died(said)

    def _granted(self, grant: scheduler.Grant) -> None:
        actor = self.pools[grant.pool]
        if not self._wanted(actor):
            return
        worker = self.node.processes[grant.worker]
        assert isinstance(worker, SimActorWorker)
        self._procs[actor] = worker
        self._do(a.Granted(actor, grant.worker))
        self.world.soon(worker.construct, self.actors[actor])

    def _died(self, told: scheduler.TellDied) -> None:
        actor = self.pools[told.pool]
        if not self._wanted(actor):
            return
        if actor not in self._procs:
            self._procs[actor] = self.node.processes[told.worker]  # type: ignore[assignment]
            self._do(a.Granted(actor, told.worker))
        self._do(a.WorkerDied(actor, b"died"))
        self._procs.pop(actor, None)

    def _wanted(self, actor: bytes) -> bool:
        return actor in self.actors and self.machine.actors[actor].state != a.DEAD

    def pool_gone(self, pool: int) -> None:
        del self.pools[pool]

    def hear_worker(self, worker: SimWorker, message: Built) -> None:
        if self._procs.get(message.actor) is worker:
            self._do(a.Failed(message.actor, b"raised") if message.failed else a.Constructed(message.actor))

    # -- what the machine decides

    def _do(self, event: a.Event) -> None:
        self.world.note(str(self.node), event)
        out = self.machine.handle(event)
        self.machine.check()
        for order in out:
            self.world.note(str(self.node), f"  → {order}")
            self._act(order)

    def _act(self, order: a.Instruction) -> None:
        actor = order.actor
        if isinstance(order, a.Lease):
            self._ask_for(scheduler.RequestLeases(self._pool_of[actor], self.actors[actor].shape, 1))
        elif isinstance(order, a.GiveUp):
            self._ask_for(scheduler.ClosePool(self._pool_of[actor], True))
            if self.actors[actor].detached:
                self.world.after(0.0, self._unheld, actor)
        elif isinstance(order, a.Link):
            self._link(order.caller, self._procs[actor])
        elif isinstance(order, a.TellLost):
            client, link = self._callers[order.caller]
            self._tell(client, Lost(link, self._sockets.pop(order.caller), order.again))
        elif isinstance(order, a.TellDead):
            client, link = self._callers.pop(order.caller)
            self._numbers.pop(link, None)
            self._tell(client, Gone(link))
        elif isinstance(order, a.KillWorker):
            worker = self._procs[actor]
            self._ask_for(scheduler.KillRequested(self._pool_of[actor], worker.number))
        elif isinstance(order, a.Leave):
            self._procs[actor].home.send(None)
        else:
            del self.actors[actor], self._pool_of[actor]

    def _unheld(self, actor: bytes) -> None:
        if actor in self.actors and not self._wanted(actor) and not self.node.references.holders(actor):
            self._do(a.Freed(actor))

    def _ask_for(self, event: scheduler.Event) -> None:
        """From the loop: the scheduler may be in the middle of its own instructions."""
        self.world.after(0.0, self.node._schedule, event)

    def _link(self, caller: int, worker: SimActorWorker) -> None:
        client, link = self._callers[caller]
        leaves = self.machine.actors[link.actor.id].state == a.LEAVING
        assert worker.built or not worker.alive or leaves, f"{link} is linked to what is not constructed"
        socket = self._sockets[caller] = ActorSocket(worker)
        self._tell(client, Linked(link, socket))
        worker.home.send(socket)

    def check_left(self) -> None:
        """Long after nobody could call them any more."""
        left = [actor for actor in self.actors.values() if self.machine.actors[actor.id].freed]
        assert not left, f"{left} should have left"

    def end_detached(self) -> None:
        """Those that nobody has a proxy of."""
        for actor in list(self.actors.values()):
            if actor.detached:
                self._do(a.Kill(actor.id, False, b"killed"))

    def check_at_rest(self) -> None:
        self.machine.check()
        assert not self.machine.actors, f"actors are left: {list(self.actors.values())}"
        assert not self.machine.names
        assert not self.actors
        assert not self.pools, f"pools of actors are left: {self.pools}"
        assert not self._callers, f"links are left: {self._callers}"
        assert not self._numbers


# -- processes that use actors


class SimLink:
    """A process's link to one actor."""

    def __init__(self, user: SimUser, actor: SimActor) -> None:
        self.user = user
        self.world = user.world
        self.actor = actor
        self.lane = Lane(user.world, shape(), lambda tasks: None, False, None)
        self.held: deque[SimCall] = deque()
        self.dependencies = dependency.Dependencies()
        self.calls: list[SimCall] = []
        self.broken = False
        self.slot: Slot | None = None

    def __repr__(self) -> str:
        return f"{self.user}→{self.actor}"

    def call(self, need: SimCall | None) -> SimCall:
        one = SimCall(self.world, self, len(self.calls))
        self.calls.append(one)
        if self.broken:
            self.end(one, DIED)
            return one
        if need is not None and need.outcome not in (None, VALUE):
            self.end(one, FAILED)
        elif need is not None and need.outcome is None:
            need.wanted_by.append(one)
            one.need = need
            self.held.append(one)
            self._wait(dependency.Add(one.number, [need.number]))
        elif self.held:
            self.held.append(one)
        else:
            self.lane.queue.append(one)  # type: ignore[arg-type]
            self.lane.push()
        return one

    def _wait(self, event: dependency.Event) -> None:
        out = self.dependencies.handle(event)
        self.dependencies.check()
        for order in out:
            one = next(call for call in self.calls if call.number == order.task)
            one.need = None
            if isinstance(order, dependency.Fail):
                self.end(one, FAILED)
        self._release()

    def need_ended(self, need: SimCall) -> None:
        if not self.broken:
            self._wait(dependency.Resolved(need.number) if need.outcome == VALUE else dependency.Failed(need.number))

    def cancel(self, call: SimCall) -> None:
        """One that waits."""
        if call in self.held:
            if self.dependencies.waits(call.number):
                call.need = None
                self.dependencies.handle(dependency.Cancelled(call.number))
            self.end(call, CANCELLED)
            self._release()
        elif call in self.lane.queue:
            self.lane.queue.remove(call)  # type: ignore[arg-type]
            self.end(call, CANCELLED)

    def _release(self) -> None:
        """Those behind one that waited may go, up to the next that waits."""
        while self.held and self.held[0].need is None:
            one = self.held.popleft()
            if one.outcome is None:
                self.lane.queue.append(one)  # type: ignore[arg-type]
        self.lane.push()

    def end(self, call: SimCall, outcome: str) -> None:
        assert call.outcome is None, f"{call} ended twice: {call.outcome}, then {outcome}"
        call.outcome = outcome
        self.world.note(str(self.user), f"{call} ends: {outcome}")
        for other in call.wanted_by:
            self.world.after(0.0, other.link.need_ended, call)
        self.world.after(0.0, self.user.look)

    # -- what the node says

    def linked(self, socket: ActorSocket) -> None:
        self.slot = Slot(socket.worker.number, socket)
        socket.results = Link(self.world, partial(self._answered, self.slot))
        self.lane.leased(self.slot)
        self.lane.push()

    def _answered(self, slot: Slot, reply: Reply) -> None:
        if self.user.alive and slot is self.slot:
            self._settle(self.lane.answered(slot, reply))
            self.lane.push()

    def _settle(self, settled: Settled) -> None:
        for call, raised in settled:
            self.end(call, RAISED if raised else VALUE)  # type: ignore[arg-type]

    def lost(self, socket: ActorSocket, again: bool) -> None:
        slot = self.slot
        assert slot is not None, f"{self} heard twice that its process is gone"
        assert slot.link is socket
        socket.results.drain()  # type: ignore[union-attr]
        socket.results.cut()  # type: ignore[union-attr]
        settled, lost = self.lane.died(slot)
        self.slot = None
        self._settle(settled)
        for call in reversed(lost):
            if again and call.starts <= self.actor.retries:
                self.lane.queue.appendleft(call)
            else:
                self.end(call, DIED)  # type: ignore[arg-type]

    def gone(self) -> None:
        assert not self.broken, f"{self} heard twice that the actor is dead"
        assert self.slot is None, f"{self} heard that the actor is dead, but not that its process is"
        self.broken = True
        pending = [call for call in self.calls if call.outcome is None]
        assert set(pending) == {*self.lane.queue, *(one for one in self.held if one.outcome is None)}
        self.lane.queue.clear()
        self.held.clear()
        for call in pending:
            self.end(call, DIED)

    def pending(self) -> bool:
        return any(call.outcome is None for call in self.calls)


class SimUser:
    """A process that makes actors and calls them. The first one is the program, which owns them and leaves last.

    Attributes:
        proxies: what its program has.
        given: proxies on their way to others, which it holds until they do.
    """

    def __init__(self, world: World, name: str, others: list[SimUser]) -> None:
        self.world = world
        self.name = name
        self.others = others
        self.alive = True
        self.left = False
        self.closing = False
        self.node: SimNode | None = None
        self.client = 0
        self.proxies: dict[SimActor, int] = {}
        self.given = 0
        self.asked = 0
        self.links: dict[SimActor, SimLink] = {}
        self.calls: list[SimCall] = []
        self._up: Link | None = None

    def __repr__(self) -> str:
        return self.name

    def join(self, node: SimNode) -> None:
        """Connect, and draw what to do when."""
        owner = self.others[0]
        if not self.alive or (owner is not self and owner.node is not node):
            self.left = True
            return
        self.node = node
        self.client = next(self.world.numbers)
        self._up = node.accept(self.client, self)  # type: ignore[arg-type]
        rng = self.world.rng
        until_s = rng.choice((0.01, 0.1, 0.4))
        steps = [self._make, self._make, *(self._call,) * 8, self._burst, self._give, self._drop, self._kill]
        steps += [self._find, self._cancel]
        self._make()
        for _ in range(rng.randint(2, 25)):
            self.world.after(rng.uniform(0.0, until_s), self._step, rng.choice(steps))
        self.world.after(until_s, self._finish)

    def say(self, message: Any) -> None:
        assert self._up is not None
        self._up.send(message)

    def _step(self, step: Callable[[], None]) -> None:
        if self.alive and not self.left and not self.closing:
            step()

    # -- what its program does

    def _make(self) -> None:
        rng = self.world.rng
        name = rng.choice(("", "", "x", "y"))
        self.asked += 1
        actor = SimActor(self.world, next(self.world.numbers), name)
        self.say(Make(actor, self.others[0].client, self._found))

    def _find(self) -> None:
        self.asked += 1
        self.say(Find(self.world.rng.choice(("x", "y")), self._found))

    def _found(self, actor: SimActor | None) -> None:
        self.asked -= 1
        if actor is not None:
            self.proxies[actor] = self.proxies.get(actor, 0)
        self.look()

    def _some(self) -> SimActor | None:
        return self.world.rng.choice(list(self.proxies)) if self.proxies else None

    def _call(self) -> None:
        actor = self._some()
        if actor is not None:
            link = self.links.get(actor)
            if link is None:
                link = self.links[actor] = SimLink(self, actor)
                self.say(Ask(link, True))
            # Only of actors that need nothing: else two would wait for what the other holds.
            needs = [call for call in self.calls if not call.link.actor.shape]
            need = self.world.rng.choice(needs) if needs and self.world.chance(0.3) else None
            self.calls.append(link.call(need))

    def _burst(self) -> None:
        for _ in range(self.world.rng.randint(5, 15)):
            self._call()

    def _cancel(self) -> None:
        waiting = [call for call in self.calls if call.outcome is None]
        if waiting:
            call = self.world.rng.choice(waiting)
            call.link.cancel(call)

    def _kill(self) -> None:
        actor = self._some()
        if actor is not None:
            self.say(KillActor(actor, self.world.chance(0.5)))

    def _give(self) -> None:
        """Pass a proxy on: it is held here until the other one holds it."""
        actor = self._some()
        other = self.world.rng.choice(self.others)
        if actor is not None and other is not self and other.alive and other.node is self.node and not other.closing:
            self.proxies[actor] += 1
            self.given += 1
            self.world.soon(other.receive, actor, self)

    def receive(self, actor: SimActor, giver: SimUser) -> None:
        if self.alive and not self.left and self.node is giver.node:
            self.say(Hold(actor, lambda: self.world.soon(giver.given_away, actor)))
            self.proxies[actor] = self.proxies.get(actor, 0)
        else:
            giver.given_away(actor)

    def given_away(self, actor: SimActor) -> None:
        if self.alive and not self.left and actor in self.proxies:
            self.proxies[actor] -= 1
            self.given -= 1
            self.look()

    def _drop(self) -> None:
        """A proxy goes; the actor is held until all that it was asked to is answered."""
        actor = self._some()
        if actor is not None:
            self._let_go(actor)

    def _let_go(self, actor: SimActor) -> bool:
        link = self.links.get(actor)
        if self.asked or self.proxies[actor] or (link is not None and link.pending()):
            return False
        del self.proxies[actor]
        if link is not None:
            del self.links[actor]
            if not link.broken:
                self.say(Ask(link, False))
        self.say(Drop(actor))
        return True

    def _finish(self) -> None:
        self.closing = True
        self.look()

    def look(self) -> None:
        """Whether it can leave: it lets go of what has been answered, first."""
        if not self.alive or self.left or not self.closing or self.asked or self.given:
            return
        for actor in list(self.proxies):
            if self.node is not None and actor.detached:
                self.say(KillActor(actor, False))
            self._let_go(actor)
        if not self.proxies:
            if self is not self.others[0]:
                self._leave()
            elif all(one.left or not one.alive for one in self.others[1:]):
                self.asked = 1  # it does nothing else any more
                self.world.after(1.0, self._leave)
        elif self._impossible():
            for link in self.links.values():
                if link.actor.shape == SHAPES[-1]:
                    self.say(KillActor(link.actor, False))

    def _leave(self) -> None:
        """What nobody has had a proxy of is gone by now, if this is the program."""
        if not self.alive or self.left or self._up is None or self.node is None:
            return
        if self is self.others[0]:
            self.node.actors.check_left()
        self.left = True
        self.world.note(self.name, "leaves")
        self._up.end()
        self.world.soon(self.others[0].look)

    def _impossible(self) -> bool:
        """What it waits for is an actor that no machine can run, or one that it must kill."""
        waiting = [link.actor for link in self.links.values() if link.pending()]
        return bool(waiting) and all(actor.shape == SHAPES[-1] for actor in waiting)

    # -- what it hears

    def hear_node(self, node: SimNode, message: Any) -> None:
        if not self.alive or self.left or node is not self.node:
            return
        if isinstance(message, Answered):
            message.found(message.actor)
        elif isinstance(message, (Linked, Lost, Gone)):
            link = message.link
            if self.links.get(link.actor) is not link:
                return  # it has let go of it
            if isinstance(message, Linked):
                link.linked(message.socket)
            elif isinstance(message, Lost):
                link.lost(message.socket, message.again)
            else:
                link.gone()
        self.look()

    def node_lost(self, node: SimNode) -> None:
        """The node is dead, and all actors with it."""
        if not self.alive or self.left:
            return
        for link in list(self.links.values()):
            if link.slot is not None:
                link.lost(link.slot.link, False)
            if not link.broken:
                link.gone()
        self.left = True

    def crash(self) -> None:
        if self.alive and not self.left and self._up is not None:
            self.world.note(self.name, "dies")
            self.alive = False
            self._up.end()
            self.world.soon(self.others[0].look)

    def check_at_rest(self) -> None:
        if self.alive:
            waiting = [call for call in self.calls if call.outcome is None]
            assert not waiting, f"{self} still waits for {waiting}"
            assert self.left, f"{self} still has {self.proxies}"


def draw_users(world: World) -> list[SimUser]:
    """The processes of one run that use actors."""
    users: list[SimUser] = []
    users += [SimUser(world, f"user {n}", users) for n in range(world.rng.choice((1, 2, 3)))]
    return users
