"""The simulated node's side of actors: the real `Actors`, and what `dpool/_core/node_actors.py` does about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpool._core.logic import actors as a
from dpool._core.logic import references, scheduler
from tests.sim.actors import (
    ActorSocket,
    Answered,
    Built,
    Drop,
    EndsItself,
    Find,
    Gone,
    Hold,
    KillActor,
    Linked,
    Lost,
    Make,
    SimActor,
    SimActorWorker,
)
from tests.sim.worker import SimWorker

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.users import SimLink


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

    def hear_worker(self, worker: SimWorker, message: Built | EndsItself) -> None:
        if self._procs.get(message.actor) is not worker:
            return
        if isinstance(message, EndsItself):
            self._do(a.Left(message.actor, b"left"))
        else:
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
            self.world.after(order.after_s, self._lease, actor)
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

    def _lease(self, actor: bytes) -> None:
        if self._wanted(actor):
            self.node._schedule(scheduler.RequestLeases(self._pool_of[actor], self.actors[actor].shape, 1))

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
