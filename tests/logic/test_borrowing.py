"""References that wander between machines: never freed while somebody has one, always freed in the end."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

import pytest

from dpool._core.logic import IllegalMove
from dpool._core.logic import borrowing as b

GATEWAY = "gateway"


class Machine:
    """A store that counts holders, and the gateway's bookkeeping."""

    def __init__(self, world: World, name: bytes) -> None:
        self.world = world
        self.name = name
        self.holders: dict[bytes, Counter[Any]] = {}
        self.borrowing = b.Borrowing(name)
        self.under_way: dict[int, tuple[bytes, int, tuple[bytes, ...]]] = {}
        """Our token → sender, its number, references."""
        self.sent: dict[int, tuple[bytes, ...]] = {}
        self.tokens = 0

    def acquire(self, obj: bytes, holder: Any) -> None:
        self.holders.setdefault(obj, Counter())[holder] += 1

    def release(self, obj: bytes, holder: Any) -> None:
        count = self.holders[obj]
        assert count[holder] > 0, "released what it did not hold"
        count[holder] -= 1
        count += Counter()
        if not count:
            del self.holders[obj]
            if self.world.home[obj] == self.name:
                self.world.freed(obj)
            else:  # the store's word reaches the gateway later
                self.world.post(self.name, self.name, b.Freed(obj))

    def do(self, event: Any) -> None:
        for order in self.borrowing.handle(event):
            if isinstance(order, b.Hold):
                self.acquire(order.obj, GATEWAY)
            elif isinstance(order, b.Release):
                self.release(order.obj, GATEWAY)
            elif isinstance(order, b.AskBorrow | b.Return):
                self.world.post(self.name, order.home, order)
            else:
                self.cleared(order.token)
        self.borrowing.check()

    def cleared(self, token: int) -> None:
        """A process here has them now; the sender may let go, and so may the gateway."""
        sender, number, refs = self.under_way.pop(token)
        for obj in refs:
            self.acquire(obj, "process")
        self.world.post(self.name, sender, ("got", number))
        self.world.post(self.name, self.name, b.Done(token))

    def pass_on(self, to: bytes, refs: tuple[bytes, ...]) -> None:
        self.tokens += 1
        self.sent[self.tokens] = refs
        for obj in refs:
            self.acquire(obj, "transit")
        self.world.post(self.name, to, ("message", self.tokens, refs))

    def receive(self, sender: bytes, message: Any) -> None:
        if isinstance(message, b.AskBorrow):
            if message.obj in self.holders:
                self.acquire(message.obj, sender)
                self.world.post(self.name, sender, b.Borrowed(message.obj))
            else:
                self.world.post(self.name, sender, b.Refused(message.obj))
        elif isinstance(message, b.Return):
            self.release(message.obj, sender)
        elif isinstance(message, tuple) and message[0] == "message":
            self.tokens += 1
            self.under_way[self.tokens] = (sender, message[1], message[2])
            self.do(b.Arrived(self.tokens, tuple((obj, self.world.home[obj]) for obj in message[2])))
        elif isinstance(message, tuple) and message[0] == "got":
            for obj in self.sent.pop(message[1]):
                self.release(obj, "transit")
        else:
            self.do(message)


class World:
    def __init__(self, seed: int, machines: int) -> None:
        self.random = random.Random(seed)
        self.links: dict[tuple[bytes, bytes], deque[Any]] = {}
        self.home: dict[bytes, bytes] = {}
        self.machines = {name: Machine(self, name) for name in (b"%d" % i for i in range(machines))}
        self.gone: set[bytes] = set()

    def post(self, sender: bytes, to: bytes, message: Any) -> None:
        self.links.setdefault((sender, to), deque()).append(message)

    def freed(self, obj: bytes) -> None:
        assert obj not in self.gone, "freed twice"
        for name, machine in self.machines.items():
            if name != self.home[obj]:
                count = machine.holders.get(obj, Counter())
                assert not count["process"], f"freed while {name!r} has it"
                assert not count["transit"]
        for messages in self.links.values():
            assert not any(isinstance(m, tuple) and m[0] == "message" and obj in m[2] for m in messages)
        self.gone.add(obj)

    def step(self) -> bool:
        ready = [link for link, messages in self.links.items() if messages]
        if not ready:
            return False
        link = self.random.choice(ready)
        self.machines[link[1]].receive(link[0], self.links[link].popleft())
        return True

    def act(self, number: int) -> None:
        machine = self.random.choice(list(self.machines.values()))
        mine = [obj for obj, count in machine.holders.items() if count["process"]]
        what = self.random.random()
        if what < 0.2 or not mine:
            obj = b"o%d" % number
            self.home[obj] = machine.name
            machine.acquire(obj, "process")
        elif what < 0.6:
            refs = tuple(self.random.sample(mine, self.random.randint(1, min(3, len(mine)))))
            machine.pass_on(self.random.choice(list(self.machines)), refs)
        else:
            machine.release(self.random.choice(mine), "process")


@pytest.mark.parametrize("seed", range(60))
def test_never_freed_too_early_and_always_in_the_end(seed: int) -> None:
    world = World(seed, 4)
    for number in range(200):
        world.act(number)
        for _ in range(world.random.randrange(6)):
            world.step()
    while world.step():
        pass
    for machine in world.machines.values():
        for obj, count in list(machine.holders.items()):
            for _ in range(count["process"]):
                machine.release(obj, "process")
    while world.step():
        pass
    assert world.gone == set(world.home)
    for machine in world.machines.values():
        assert not machine.holders
        assert not machine.borrowing.objects
        assert not machine.borrowing.messages
        assert not machine.sent


def test_a_lost_home_and_a_refusal() -> None:
    machine = b.Borrowing(b"here")
    first = machine.handle(b.Arrived(1, ((b"x", b"home"), (b"y", b"here"))))
    assert first == [b.Hold(b"x"), b.AskBorrow(b"home", b"x"), b.Hold(b"y")]
    assert machine.handle(b.HomeLost(b"home")) == [b.Clear(1)]
    assert machine.handle(b.Done(1)) == [b.Release(b"x"), b.Release(b"y")]
    assert machine.handle(b.Freed(b"x")) == []
    machine.handle(b.Arrived(2, ((b"x", b"other"),)))
    assert machine.handle(b.Refused(b"x")) == [b.Clear(2)]
    machine.handle(b.Done(2))
    assert machine.handle(b.Freed(b"x")) == []
    assert not machine.objects
    with pytest.raises(IllegalMove):
        machine.handle(b.Done(2))
    with pytest.raises(IllegalMove):
        machine.handle(b.Borrowed(b"x"))


def test_given_back_before_it_was_got() -> None:
    machine = b.Borrowing(b"here")
    machine.handle(b.Arrived(1, ((b"x", b"home"),)))
    machine.handle(b.Done(1))
    assert machine.handle(b.Freed(b"x")) == []
    assert machine.handle(b.Borrowed(b"x")) == [b.Return(b"home", b"x")]
    machine.handle(b.Arrived(2, ((b"x", b"home"),)))
    machine.handle(b.Done(2))
    machine.handle(b.Freed(b"x"))
    assert machine.handle(b.Arrived(3, ((b"x", b"home"),))) == [b.Hold(b"x")], "it is asked for already"
    assert machine.handle(b.Borrowed(b"x")) == [b.Clear(3)]
