"""Simulated processes that make and call actors: with `SimLink` as `dpool/_core/actor_pool.py` is in the runtime."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dpool._core.logic import dependency
from dpool._core.logic.dispatch import Slot
from dpool._core.logic.resources import shape
from tests.sim.actors import (
    CANCELLED,
    DIED,
    FAILED,
    RAISED,
    SHAPES,
    VALUE,
    ActorSocket,
    Answered,
    Ask,
    Drop,
    Find,
    Gone,
    Hold,
    KillActor,
    Linked,
    Lost,
    Make,
    SimActor,
    SimCall,
)
from tests.sim.lane import Lane, Settled
from tests.sim.messages import Reply
from tests.sim.world import Link, World

if TYPE_CHECKING:
    from tests.sim.node import SimNode


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
        waiting: deque[Any] = self.lane.queue
        if call in self.held:
            if self.dependencies.waits(call.number):
                call.need = None
                self.dependencies.handle(dependency.Cancelled(call.number))
            self.end(call, CANCELLED)
            self._release()
        elif call in waiting:
            waiting.remove(call)
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
        assert socket.results is not None
        socket.results.drain()
        socket.results.cut()
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

    def give_up(self, actor: SimActor) -> None:
        """Its caller kills it at the very moment at which it ends by itself."""
        if self.alive and not self.left:
            self.say(KillActor(actor, False))

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
            link: SimLink = message.link
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
