"""Pulls and Serving together: machines, links that keep the order of each pair, losses, drops; every survivor ends."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from dpool._core.logic import IllegalMove
from dpool._core.logic import pulls as p
from dpool._core.logic import serving as v

THING = b"thing"
FOREVER = 200_000


class Machine:
    """One machine: both halves, as a role would join them."""

    def __init__(self, world: World, name: bytes) -> None:
        self.world = world
        self.name = name
        self.pulls = p.Pulls()
        self.serving = v.Serving()
        self.asked: list[int] = []
        self.sent = 0
        self.outcome = ""

    def pull(self, event: Any) -> None:
        for order in self.pulls.handle(event):
            self.act(order)
        self.pulls.check()

    def serve(self, event: Any) -> None:
        for order in self.serving.handle(event):
            if isinstance(order, v.Send):
                self.sent += 1
                self.world.post(self.name, order.node, p.Piece(THING, self.name, order.piece))
            elif isinstance(order, v.Redirect):
                self.world.post(self.name, order.node, p.Redirected(THING, self.name, order.to))
            else:
                self.world.post(self.name, order.node, p.Missing(THING, self.name))
        self.serving.check()

    def act(self, order: Any) -> None:
        if isinstance(order, p.MakeRoom):
            self.world.post(self.name, self.name, p.Ready(THING))
        elif isinstance(order, p.Ask):
            self.asked.append(order.piece)
            self.world.post(self.name, order.node, v.Asked(THING, self.name, order.piece, order.join, order.insist))
        elif isinstance(order, p.Leave):
            self.world.post(self.name, order.node, v.Left(THING, self.name, order.whole))
        elif isinstance(order, p.Locate):
            self.world.post(self.name, self.name, p.Locate(THING))
        elif isinstance(order, p.Complete):
            self.outcome = "complete"
            self.world.whole.add(self.name)
            self.serve(v.Whole(THING))
        else:
            self.outcome = type(order).__name__.lower()
            self.serve(v.Gone(THING))

    def receive(self, message: Any) -> None:
        if isinstance(message, p.Ready):
            self.serve(v.Coming(THING))
            if THING in self.pulls.pulls:
                self.pull(message)
        elif isinstance(message, p.Locate):
            self.pull(p.Copies(THING, tuple(self.world.whole)))
        elif isinstance(message, p.Piece):
            known = THING in self.pulls.pulls
            self.pull(message)
            if known and THING in self.pulls.pulls:
                self.serve(v.Here(THING, message.piece))
        elif isinstance(message, (p.Redirected, p.Missing)):
            self.pull(message)
        else:
            self.serve(message)

    def want(self, size: int, nodes: tuple[bytes, ...]) -> None:
        self.outcome = ""
        self.pull(p.Want(THING, size, nodes))

    def drop(self) -> None:
        """The whole copy is given up."""
        self.world.whole.discard(self.name)
        self.outcome = "dropped"
        self.serve(v.Gone(THING))


class World:
    def __init__(self, seed: int, machines: int) -> None:
        self.random = random.Random(seed)
        self.links: dict[tuple[bytes, bytes], deque[Any]] = {}
        self.machines = {name: Machine(self, name) for name in (b"%d" % i for i in range(machines))}
        self.whole: set[bytes] = set()
        """What the control store knows."""

    def post(self, sender: bytes, to: bytes, message: Any) -> None:
        if to in self.machines:
            self.links.setdefault((sender, to), deque()).append(message)
        else:
            self.links.setdefault((sender, sender), deque()).append(p.NodeLost(to))

    def step(self) -> bool:
        ready = [link for link, messages in self.links.items() if messages]
        if not ready:
            return False
        link = self.random.choice(ready)
        message = self.links[link].popleft()
        machine = self.machines.get(link[1])
        if machine is None:
            return True
        if isinstance(message, p.NodeLost):
            machine.pull(message)
            machine.serve(v.NodeLost(message.node))
        else:
            machine.receive(message)
        return True

    def kill(self, name: bytes) -> None:
        del self.machines[name]
        self.whole.discard(name)
        for link in list(self.links):
            if name in link:
                del self.links[link]
        for other in self.machines:
            self.post(other, other, p.NodeLost(name))

    def run(self) -> None:
        for _ in range(FOREVER):
            if not self.step() and not self.unstall():
                return
        raise AssertionError("it does not end")

    def unstall(self) -> bool:
        """What a role's timer says to those who still wait when no message is under way."""
        waiting = [machine for machine in self.machines.values() if THING in machine.pulls.pulls]
        for machine in waiting:
            machine.pull(p.Stalled(THING))
        return bool(waiting)


def broadcast(seed: int, machines: int, size: int) -> World:
    world = World(seed, machines)
    root = world.machines[b"0"]
    root.outcome = "complete"
    world.whole.add(b"0")
    root.serve(v.Whole(THING))
    for name, machine in world.machines.items():
        if name != b"0":
            machine.want(size, (b"0",))
    return world


@pytest.mark.parametrize("size", [0, 1, p.PIECE_BYTES, p.PIECE_BYTES + 1, 20 * p.PIECE_BYTES])
def test_one_transfer(size: int) -> None:
    world = broadcast(1, 2, size)
    world.machines[b"1"].pull(p.Want(THING, size, (b"0",)))
    world.run()
    receiver = world.machines[b"1"]
    assert receiver.outcome == "complete"
    assert sorted(receiver.asked) == list(range(max(1, -(-size // p.PIECE_BYTES)))), "each piece once, for both"
    assert not receiver.pulls.pulls


@pytest.mark.parametrize("seed", range(20))
def test_a_broadcast_forms_a_tree(seed: int) -> None:
    pieces, machines = 12, 16
    world = broadcast(seed, machines, pieces * p.PIECE_BYTES)
    world.run()
    assert all(machine.outcome == "complete" for machine in world.machines.values())
    assert sum(machine.sent for machine in world.machines.values()) == pieces * (machines - 1), "nothing is sent twice"
    assert world.machines[b"0"].sent <= pieces * machines / 2, "others hand on what they have"


@pytest.mark.parametrize("seed", range(100))
def test_machines_die_and_drop_their_copies(seed: int) -> None:
    world = broadcast(seed, 8, 10 * p.PIECE_BYTES)
    draw = world.random
    for _ in range(draw.randrange(400)):
        world.step()
        event = draw.random()
        names = list(world.machines)
        if event < 0.01 and len(names) > 2:
            world.kill(draw.choice(names))
        elif event < 0.02:
            machine = world.machines[draw.choice(names)]
            if machine.outcome == "complete" and len(world.whole) > 1:
                machine.drop()
                machine.want(10 * p.PIECE_BYTES, tuple(world.whole))
        elif event < 0.025:
            machine = world.machines[draw.choice(names)]
            if THING in machine.pulls.pulls:
                machine.pull(p.Unwant(THING))
        elif event < 0.03:
            machine = world.machines[draw.choice(names)]
            if THING in machine.pulls.pulls:
                machine.pull(p.Stalled(THING))
    world.run()
    for machine in world.machines.values():
        assert machine.outcome in ("complete", "lost", "abandon"), machine.outcome
        assert machine.outcome != "lost" or not world.whole
        assert not machine.pulls.pulls


def test_a_source_dies_and_the_rest_comes_from_another_copy() -> None:
    world = broadcast(3, 3, 20 * p.PIECE_BYTES)
    second = world.machines[b"1"]
    while second.outcome != "complete":
        world.step()
    third = world.machines[b"2"]
    while THING in third.pulls.pulls and len(third.pulls.pulls[THING].missing) > 10:
        world.step()
    world.kill(b"0")
    world.run()
    assert third.outcome == "complete"
    assert len(third.asked) <= 20 + 2 * p.WINDOW, "what had come was not asked for again"


def test_nobody_has_it() -> None:
    world = World(0, 2)
    world.machines[b"1"].want(10, (b"0",))
    world.run()
    assert world.machines[b"1"].outcome == "lost"


def test_two_sizes_of_one_object() -> None:
    machine = World(0, 1).machines[b"0"]
    machine.want(10, ())
    with pytest.raises(IllegalMove, match="10 bytes"):
        machine.pulls.handle(p.Want(THING, 11, ()))
    with pytest.raises(IllegalMove):
        machine.pulls.handle(p.Unwant(b"other"))
