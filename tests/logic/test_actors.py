"""The life of actors, case by case and at random, with processes that die whenever they like."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dpool._core.logic import IllegalMove
from dpool._core.logic import actors as a

A, B = b"a", b"b"


def made(restarts: int = 0, name: str = "") -> a.Actors:
    machine = a.Actors()
    assert machine.handle(a.Create(A, name, restarts, 1)) == [a.Lease(A)]
    return machine


def alive(restarts: int = 0) -> a.Actors:
    machine = made(restarts)
    assert machine.handle(a.Granted(A, 5)) == []
    assert machine.handle(a.Constructed(A)) == []
    return machine


def test_callers_are_linked_when_it_is_there():
    machine = made()
    assert machine.handle(a.Connect(A, 1)) == []
    machine.handle(a.Granted(A, 5))
    assert machine.handle(a.Connect(A, 2)) == []
    assert machine.handle(a.Constructed(A)) == [a.Link(A, 1), a.Link(A, 2)]
    assert machine.handle(a.Connect(A, 3)) == [a.Link(A, 3)]
    with pytest.raises(IllegalMove):
        machine.handle(a.Connect(A, 3))


def test_a_death_is_told_and_links_are_made_again():
    machine = alive(restarts=1)
    machine.handle(a.Connect(A, 1))
    assert machine.handle(a.WorkerDied(A, b"why")) == [a.TellLost(A, 1, True), a.Lease(A)]
    machine.handle(a.Granted(A, 6))
    assert machine.handle(a.Constructed(A)) == [a.Link(A, 1)]
    assert machine.handle(a.WorkerDied(A, b"why")) == [
        a.TellLost(A, 1, False),
        a.GiveUp(A),
        a.TellDead(A, 1, b"why"),
    ]
    assert machine.handle(a.Connect(A, 2)) == [a.TellDead(A, 2, b"why")]
    assert machine.handle(a.Freed(A)) == [a.Forget(A)]


def test_a_constructor_that_fails_is_not_tried_again():
    machine = made(restarts=-1)
    machine.handle(a.Connect(A, 1))
    machine.handle(a.Granted(A, 5))
    assert machine.handle(a.Failed(A, b"raised")) == [a.KillWorker(A)]
    assert machine.handle(a.WorkerDied(A, b"killed")) == [a.GiveUp(A), a.TellDead(A, 1, b"raised")]


def test_one_that_dies_in_its_constructor_again_and_again_comes_back_more_and_more_slowly():
    machine = made(restarts=-1)
    pauses = []
    for _ in range(10):
        machine.handle(a.Granted(A, 5))
        (lease,) = machine.handle(a.WorkerDied(A, b"why"))
        assert isinstance(lease, a.Lease)
        pauses.append(lease.after_s)
    assert pauses == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    machine.actors[A].unbuilt = 10**6
    machine.handle(a.Granted(A, 5))
    assert machine.handle(a.WorkerDied(A, b"why")) == [a.Lease(A, 10)]
    machine.handle(a.Granted(A, 5))
    machine.handle(a.Constructed(A))
    assert machine.handle(a.WorkerDied(A, b"why")) == [a.Lease(A)]


def test_names_are_free_again_after_death():
    machine = made(name="n")
    with pytest.raises(IllegalMove):
        machine.handle(a.Create(B, "n", 0, 1))
    assert machine.handle(a.Kill(A, False, b"killed")) == [a.GiveUp(A)]
    assert machine.handle(a.Create(B, "n", 0, 1)) == [a.Lease(B)]


@pytest.mark.parametrize("event", [a.Kill(A, False, b"killed"), a.Freed(A)])
def test_names_are_free_as_soon_as_their_actors_leave(event: a.Event):
    machine = made(name="n")
    machine.handle(a.Granted(A, 5))
    machine.handle(a.Constructed(A))
    machine.handle(event)
    assert machine.actors[A].state == a.LEAVING
    assert machine.handle(a.Create(B, "n", 0, 1)) == [a.Lease(B)]
    machine.check()
    machine.handle(a.WorkerDied(A, b""))
    assert machine.names == {"n": B}


def test_one_that_nobody_holds_leaves_and_does_not_come_back():
    machine = alive(restarts=-1)
    assert machine.handle(a.Freed(A)) == [a.Leave(A)]
    assert machine.handle(a.WorkerDied(A, b"")) == [a.GiveUp(A), a.Forget(A)]
    assert machine.living() == 0


def test_a_program_takes_its_actors_along():
    machine = alive()
    machine.handle(a.Create(B, "", 0, 0))
    assert machine.handle(a.OwnerLeft(1)) == [a.KillWorker(A)]
    assert machine.actors[B].state == a.WAITING


class Machine(RuleBasedStateMachine):
    """A world of processes that follows the instructions."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = a.Actors()
        self.made = 0
        self.callers = 0
        self.leases: list[bytes] = []
        self.running: dict[bytes, bool] = {}
        """Actors with a process → it has constructed."""
        self.linked: dict[int, bytes] = {}
        self.told_dead: set[int] = set()
        self.freed: set[bytes] = set()

    def do(self, event: a.Event) -> None:
        for order in self.machine.handle(event):
            if isinstance(order, a.Lease):
                self.leases.append(order.actor)
            elif isinstance(order, a.GiveUp):
                self.leases = [one for one in self.leases if one != order.actor]
                assert order.actor not in self.running, "given up while its process lives"
            elif isinstance(order, a.Link):
                assert self.running[order.actor], "linked to what is not constructed"
                assert order.caller not in self.linked
                self.linked[order.caller] = order.actor
            elif isinstance(order, a.TellLost):
                assert self.linked.pop(order.caller) == order.actor
            elif isinstance(order, a.TellDead):
                assert order.caller not in self.told_dead, "told twice"
                self.told_dead.add(order.caller)
            elif isinstance(order, (a.KillWorker, a.Leave)):
                assert order.actor in self.running
            else:
                assert order.actor in self.freed

    @rule(restarts=st.integers(-1, 2), name=st.sampled_from(["", "x", "y"]))
    def create(self, restarts: int, name: str) -> None:
        if name not in self.machine.names:
            self.made += 1
            self.do(a.Create(b"%d" % self.made, name, restarts, 1))

    def some(self, data: st.DataObject, names: list[bytes]) -> bytes | None:
        return data.draw(st.sampled_from(sorted(names))) if names else None

    @rule()
    @precondition(lambda self: self.leases)
    def grant(self) -> None:
        actor = self.leases.pop(0)
        self.running[actor] = False
        self.do(a.Granted(actor, 1))

    @rule(data=st.data(), fails=st.booleans())
    def construct(self, data: st.DataObject, fails: bool) -> None:
        actor = self.some(data, [one for one, done in self.running.items() if not done])
        if actor is not None:
            self.running[actor] = not fails
            self.do(a.Failed(actor, b"failed") if fails else a.Constructed(actor))

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        actor = self.some(data, list(self.running))
        if actor is not None:
            del self.running[actor]
            self.do(a.WorkerDied(actor, b"died"))

    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        actor = self.some(data, [one for one in self.machine.actors if one not in self.freed])
        if actor is not None:
            self.callers += 1
            self.do(a.Connect(actor, self.callers))

    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        known = [(caller, name) for name, one in self.machine.actors.items() for caller in one.callers]
        if known:
            caller, actor = data.draw(st.sampled_from(sorted(known)))
            self.linked.pop(caller, None)
            self.do(a.Disconnect(actor, caller))

    @rule(data=st.data(), restart=st.booleans())
    def kill(self, data: st.DataObject, restart: bool) -> None:
        actor = self.some(data, list(self.machine.actors))
        if actor is not None:
            self.do(a.Kill(actor, restart, b"killed"))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        actor = self.some(data, [one for one, done in self.running.items() if done])
        if actor is not None:
            self.do(a.Left(actor, b"left"))

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        actor = self.some(data, [one for one in self.machine.actors if one not in self.freed])
        if actor is not None:
            self.freed.add(actor)
            self.do(a.Freed(actor))

    @invariant()
    def holds(self) -> None:
        self.machine.check()
        for name, actor in self.machine.actors.items():
            waits = actor.state == a.WAITING
            assert (name in self.leases) == waits, "one that waits has asked for a process"
            assert (name in self.running) == (actor.state in (a.STARTING, a.ALIVE, a.LEAVING))

    def teardown(self) -> None:
        """Whatever happened: when all are freed and all processes end, nothing is left."""
        for actor in [one for one in self.machine.actors if one not in self.freed]:
            self.freed.add(actor)
            self.do(a.Freed(actor))
        for actor in list(self.running):
            del self.running[actor]
            self.do(a.WorkerDied(actor, b"end"))
        assert not self.machine.actors
        assert not self.machine.names


TestActors = Machine.TestCase
TestActors.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
