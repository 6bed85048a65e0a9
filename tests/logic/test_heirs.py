"""Machines leave, one after the other, while references wander: no live one without a home, nothing kept for ever."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest

from dpool._core.logic import IllegalMove
from dpool._core.logic import borrowing as b
from dpool._core.logic import heirs as h

GATEWAY, PROCESS = "gateway", "process"
Message = tuple[Any, ...]


class Machine:
    """Its store, which counts holders and has values, and its gateway's bookkeeping. Its tag is its name."""

    def __init__(self, world: World, name: bytes) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.draining = False
        self.given = False
        self.full = world.random.random() < 0.2
        """It has no room for copies, now and then."""
        self.peers: dict[bytes, None] = {}
        self.tags = {name: 0}
        self.homes = h.Homes()
        self.holders: dict[bytes, Counter[Any]] = {}
        self.values: set[bytes] = set()
        self.borrowing = b.Borrowing(name)
        self.leaving = h.Leaving()
        self.estates = h.Estates()
        self.clear: dict[int, Callable[[], None]] = {}
        self.sent: dict[int, tuple[bytes, tuple[bytes, ...]]] = {}
        self.kept: dict[tuple[bytes, bytes], int] = {}
        self.fetching: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self.bequeathed: dict[bytes, dict[bytes, int]] = {}
        self.tokens = 0

    # -- the store

    def ours(self, obj: bytes) -> bool:
        return self.world.tag[obj] in self.tags

    def acquire(self, obj: bytes, holder: Any) -> None:
        self.holders.setdefault(obj, Counter())[holder] += 1

    def release(self, obj: bytes, holder: Any) -> None:
        count = self.holders[obj]
        assert count[holder] > 0, "released what it did not hold"
        count[holder] -= 1
        count += Counter()
        if not count:
            del self.holders[obj]
            self.values.discard(obj)
            if self.ours(obj):
                self.world.freed(obj, self)
            else:  # the store's word reaches the gateway later
                self.post(self.name, ("freed", obj))

    def let_go_all(self, holder: Any) -> None:
        for obj, count in list(self.holders.items()):
            for _ in range(count[holder]):
                self.release(obj, holder)

    # -- references

    def post(self, to: bytes, message: Message) -> None:
        self.world.post(self.name, to, message)

    def new_token(self) -> int:
        self.tokens += 1
        return self.tokens

    def arrived(self, token: int, objs: tuple[bytes, ...], clear: Callable[[], None]) -> None:
        self.clear[token] = clear
        self.borrow(b.Arrived(token, tuple((obj, self.world.tag[obj]) for obj in objs)))

    def borrow(self, event: Any) -> None:
        for order in self.borrowing.handle(event):
            if isinstance(order, b.Hold):
                self.acquire(order.obj, GATEWAY)
            elif isinstance(order, b.Release):
                self.release(order.obj, GATEWAY)
            elif isinstance(order, b.Clear):
                self.post(self.name, ("clear", order.token))
            elif (home := self.homes.nodes.get(order.home)) is not None:
                self.post(home, ("borrow" if isinstance(order, b.AskBorrow) else "return", order.obj))
            elif isinstance(order, b.AskBorrow):
                self.post(self.name, ("answer", order.obj, False))
        self.borrowing.check()

    def pass_on(self, to: bytes, refs: tuple[bytes, ...]) -> None:
        number = self.new_token()
        self.sent[number] = to, refs
        for obj in refs:
            self.acquire(obj, ("transit", to))
        self.post(to, ("message", number, refs))

    # -- what arrives

    def receive(self, sender: bytes, message: Message) -> None:
        getattr(self, f"on_{message[0]}")(sender, *message[1:])

    def on_message(self, sender: bytes, number: int, refs: tuple[bytes, ...]) -> None:
        token = self.new_token()
        self.arrived(token, refs, lambda: self.taken(sender, number, token, refs))

    def taken(self, sender: bytes, number: int, token: int, refs: tuple[bytes, ...]) -> None:
        """A process here has them now; the sender may let go, and so may the gateway."""
        for obj in refs if not self.draining else ():
            self.acquire(obj, PROCESS)
        self.post(sender, ("got", number))
        self.borrow(b.Done(token))

    def on_got(self, sender: bytes, number: int) -> None:
        to, refs = self.sent.pop(number)
        for obj in refs:
            self.release(obj, ("transit", to))

    def on_clear(self, sender: bytes, token: int) -> None:
        self.clear.pop(token)()

    def on_freed(self, sender: bytes, obj: bytes) -> None:
        if obj not in self.holders:
            self.borrow(b.Freed(obj))

    def on_borrow(self, sender: bytes, obj: bytes) -> None:
        if self.given:
            return
        there = obj in self.holders
        if there:
            self.acquire(obj, sender)
        self.post(sender, ("answer", obj, there))

    def on_answer(self, sender: bytes, obj: bytes, there: bool) -> None:
        if sender in (self.homes.nodes.get(self.world.tag[obj]), self.name):
            known = self.borrowing.objects.get(obj)
            if known is not None and known.state in (b.ASKED, b.UNWANTED):
                self.borrow(b.Borrowed(obj) if there else b.Refused(obj))

    def on_return(self, sender: bytes, obj: bytes) -> None:
        self.release(obj, sender)
        heir = self.leaving.heir
        if heir is not None and self.holders.get(obj, Counter()).keys() == {heir}:
            self.leave(h.Unneeded((obj,)))

    # -- leaving

    def leave(self, event: Any) -> None:
        for order in self.leaving.handle(event):
            if isinstance(order, h.List):
                self.post(self.name, ("list",))
            elif isinstance(order, h.Offer):
                self.post(order.node, ("offer", order))
            elif isinstance(order, h.Drop):
                self.post(order.node, ("drop", order))
            elif isinstance(order, h.Give):
                self.given = True
                self.world.lost |= self.leaving.lost
                lent = {holder for count in self.holders.values() for holder in count if isinstance(holder, bytes)}
                borrowers = (lent | {to for to, _ in self.sent.values()} | self.estates.awaited()) - {order.node}
                tags = {tag: step + 1 for tag, step in self.tags.items()}
                self.post(order.node, ("given", tags, tuple(borrowers)))
            elif isinstance(order, h.Leave):
                self.world.lost.update(obj for obj, _ in order.lost)
                self.world.end(self)
        self.leaving.check()

    def on_list(self, sender: bytes) -> None:
        self.leave(h.Listed(tuple((obj, 1) for obj in self.holders if self.ours(obj))))

    def on_had(self, sender: bytes, order: h.Had) -> None:
        self.leave(order._replace(node=sender))

    # -- the heir

    def inherit(self, event: Any) -> None:
        for order in self.estates.handle(event):
            if isinstance(order, h.Fetch):
                key = order.node, order.obj
                token = self.kept[key] = self.new_token()
                self.arrived(token, (order.obj,), lambda key=key, token=token: self.held(key, token))  # type: ignore[misc]
            elif isinstance(order, h.LetGo):
                self.post(self.name, ("done", self.kept.pop((order.node, order.obj))))
            elif isinstance(order, h.Had):
                self.post(order.node, ("had", order))
            else:
                tags = self.bequeathed.pop(order.node)
                self.tags.update(tags)
                self.homes.taken(tags)
                for tag in tags:
                    self.borrow(b.Inherited(tag))
                for peer in self.peers:
                    self.post(peer, ("moved", tags, self.name))
        self.estates.check()

    def on_done(self, sender: bytes, token: int) -> None:
        self.borrow(b.Done(token))

    def on_offer(self, sender: bytes, order: h.Offer) -> None:
        if self.draining and sender not in self.estates.estates:
            self.post(sender, ("refused",))
        else:
            self.inherit(order._replace(node=sender))

    def on_refused(self, sender: bytes) -> None:
        self.leave(h.Without(sender))

    def on_drop(self, sender: bytes, order: h.Drop) -> None:
        self.inherit(order._replace(node=sender))

    def held(self, key: tuple[bytes, bytes], token: int) -> None:
        if self.kept.get(key) != token:
            return
        known = self.borrowing.objects.get(key[1])
        if known is None or known.state != b.BORROWED:
            self.post(self.name, ("came", key, token, h.FREED))
        elif key[1] in self.values:
            self.post(self.name, ("came", key, token, h.GOT))
        else:
            self.post(key[0], ("fetch", key, token))

    def on_fetch(self, sender: bytes, key: tuple[bytes, bytes], token: int) -> None:
        assert key[1] in self.values or key[1] in self.world.lost
        self.post(sender, ("value", key, token, key[1] in self.values))

    def on_value(self, sender: bytes, key: tuple[bytes, bytes], token: int, there: bool) -> None:
        there = there and not (self.full and self.world.random.random() < 0.3)
        if there and key[1] in self.holders:
            self.values.add(key[1])
        self.on_came(self.name, key, token, h.GOT if there else h.MISSED)

    def on_came(self, sender: bytes, key: tuple[bytes, bytes], token: int, how: str) -> None:
        if self.kept.get(key) == token:
            self.inherit(h.Came(*key, how))

    def on_given(self, sender: bytes, tags: dict[bytes, int], borrowers: tuple[bytes, ...]) -> None:
        self.bequeathed[sender] = tags
        self.inherit(h.Given(sender, tuple(tags), tuple(one for one in borrowers if one in self.peers)))

    # -- everybody

    def on_moved(self, sender: bytes, tags: dict[bytes, int], heir: bytes) -> None:
        if heir == self.leaving.heir == sender and self.name in tags:
            for peer in self.peers:
                self.post(peer, ("moved", tags, heir))
            self.leave(h.Taken(sender))
            return
        if heir not in self.peers:
            return
        theirs = {tag: step for tag, step in tags.items() if tag not in self.tags}
        for tag in self.homes.moved(heir, theirs):
            self.borrow(b.Moved(tag))
        self.post(heir, ("rebound", tuple(tag for tag in theirs if self.homes.nodes.get(tag) == heir)))

    def on_rebound(self, sender: bytes, tags: tuple[bytes, ...]) -> None:
        self.inherit(h.Rebound(sender, tags))

    def on_up(self, sender: bytes) -> None:
        """There is a link to a machine that has joined."""
        self.peers[sender] = None
        self.homes.up(sender, sender)
        inherited = {tag: step for tag, step in self.tags.items() if step}
        if inherited and not self.given:
            self.post(sender, ("moved", inherited, self.name))

    def on_down(self, sender: bytes) -> None:
        self.peers.pop(sender, None)
        for tag in self.homes.down(sender):
            self.borrow(b.HomeLost(tag))
            self.world.lost.update(obj for obj, one in self.world.tag.items() if one == tag)
        for number in [number for number, (to, _) in self.sent.items() if to == sender]:
            self.on_got(sender, number)
        self.let_go_all(sender)
        self.leave(h.Without(sender))
        self.inherit(h.NodeLost(sender))

    def drain(self) -> None:
        self.draining = True
        self.let_go_all(PROCESS)
        self.post(self.name, ("begin",))

    def on_begin(self, sender: bytes) -> None:
        if self.estates.moving():
            self.post(self.name, ("begin",))
        else:
            heirs = [peer for peer in self.peers if self.world.random.random() < 0.9]
            self.leave(h.Begin(tuple(self.world.random.sample(heirs, len(heirs)))))


class World:
    def __init__(self, seed: int, machines: int) -> None:
        self.random = random.Random(seed)
        self.links: dict[tuple[bytes, bytes], deque[Message]] = {}
        self.tag: dict[bytes, bytes] = {}
        self.lost: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.machines: dict[bytes, Machine] = {}
        self.deaths = False
        for _ in range(machines):
            self.join()

    def join(self) -> None:
        name = b"%d" % len(self.machines)
        machine = self.machines[name] = Machine(self, name)
        for other in self.machines.values():
            if other.alive and other is not machine:
                self.post(name, other.name, ("up",))
                self.post(other.name, name, ("up",))
        self.run()  # it gets references when it knows everybody

    def post(self, sender: bytes, to: bytes, message: Message) -> None:
        if self.machines[to].alive:
            self.links.setdefault((sender, to), deque()).append(message)

    def end(self, machine: Machine, suddenly: bool = False) -> None:
        """It is gone; what it has said arrives, unless it died."""
        for other in [one.name for one in self.machines.values() if one.alive and one is not machine]:
            if suddenly:
                said = self.links.get((machine.name, other), deque())
                for _ in range(self.random.randint(0, len(said))):
                    said.pop()
            self.post(machine.name, other, ("down",))
        machine.alive = False
        for link in self.links:
            if link[1] == machine.name:
                self.links[link].clear()

    def freed(self, obj: bytes, home: Machine) -> None:
        assert obj not in self.gone or obj in self.lost or home.given or self.deaths, "freed twice"
        if home.given or home.draining or self.deaths or obj in self.lost:
            return
        for machine in self.machines.values():
            if machine.alive and machine is not home:
                count = machine.holders.get(obj, Counter())
                assert not count[PROCESS], f"freed while {machine.name!r} has it"
                assert not any(type(holder) is tuple for holder in count), f"freed while {machine.name!r} sends it"
        for messages in self.links.values():
            assert not any(message[0] == "message" and obj in message[2] for message in messages), "it is on its way"
        self.gone.add(obj)

    def step(self) -> bool:
        ready = [link for link, messages in self.links.items() if messages]
        if not ready:
            return False
        link = self.random.choice(ready)
        self.machines[link[1]].receive(link[0], self.links[link].popleft())
        return True

    def run(self) -> None:
        while self.step():
            pass

    def act(self, number: int) -> None:
        staying = [machine for machine in self.machines.values() if machine.alive and not machine.draining]
        machine = self.random.choice(staying)
        mine = [obj for obj, count in machine.holders.items() if count[PROCESS]]
        what = self.random.random()
        if what < 0.03 and len(staying) > 2:
            machine.drain()
        elif what < 0.05:
            self.join()
        elif what < 0.06 and self.deaths and len(staying) > 2:
            self.end(machine, suddenly=True)
        elif what < 0.3 or not mine:
            obj = b"o%d" % number
            self.tag[obj] = machine.name
            machine.values.add(obj)
            machine.acquire(obj, PROCESS)
        elif what < 0.7:
            refs = tuple(self.random.sample(mine, self.random.randint(1, min(3, len(mine)))))
            to = [one.name for one in staying if one is machine or one.name in machine.peers]
            machine.pass_on(self.random.choice(to), refs)
        else:
            machine.release(self.random.choice(mine), PROCESS)

    def check_homes(self) -> int:
        """At rest: whatever a process holds has a home with its value, which counts that machine. How many moved."""
        moved = 0
        alive = [machine for machine in self.machines.values() if machine.alive]
        for machine in alive:
            for obj, count in machine.holders.items():
                if not count[PROCESS] or obj in self.lost:
                    continue
                home = machine if machine.ours(obj) else self.machines[machine.homes.nodes[self.tag[obj]]]
                assert home.alive
                assert home.ours(obj)
                assert obj in home.values
                assert home is machine or home.holders[obj][machine.name] == 1
                moved += self.tag[obj] != home.name
        return moved


def at_rest(world: World) -> None:
    """All that processes hold is let go: nothing is left anywhere."""
    for machine in world.machines.values():
        if machine.alive:
            machine.let_go_all(PROCESS)
    world.run()
    for machine in world.machines.values():
        if machine.alive:
            assert not machine.draining
            assert not machine.holders
            assert not machine.values
            assert not machine.borrowing.objects
            assert not machine.borrowing.messages
            assert not machine.sent
            assert not machine.estates.estates
            assert not machine.kept
            assert not machine.bequeathed


def wander(seed: int, deaths: bool) -> int:
    world = World(seed, 4)
    world.deaths = deaths
    for number in range(300):
        world.act(number)
        for _ in range(world.random.randrange(8)):
            world.step()
    world.run()
    moved = world.check_homes() if not deaths else 0
    at_rest(world)
    return moved


def test_an_heir_that_cannot_take_all() -> None:
    """The next one is tried; when none is left, the one that could take most has to do."""
    machine = h.Leaving()
    both = ((b"x", 5), (b"y", 7))
    assert machine.handle(h.Begin((b"1", b"2", b"3"))) == [h.List()]
    assert machine.handle(h.Listed(both)) == [h.Offer(b"1", 1, (b"x", b"y"))]
    assert machine.handle(h.Had(b"1", 1, (b"x",))) == [h.Drop(b"1", (b"x", b"y")), h.List()]
    assert machine.handle(h.Listed(both)) == [h.Offer(b"2", 2, (b"x", b"y"))]
    assert machine.handle(h.Had(b"1", 1, ())) == [], "late"
    assert machine.handle(h.Without(b"2")) == [h.List()], "it is gone"
    assert machine.handle(h.Listed(both)) == [h.Offer(b"3", 3, (b"x", b"y"))]
    assert machine.handle(h.Had(b"3", 3, (b"y",))) == [h.Drop(b"3", (b"x", b"y")), h.List()]
    assert machine.handle(h.Listed(both)) == [h.Offer(b"1", 4, (b"x", b"y"))]
    assert machine.handle(h.Had(b"1", 4, (b"x",))) == [h.List()]
    assert machine.handle(h.Listed((*both, (b"z", 1)))) == [h.Offer(b"1", 5, (b"z",))], "somebody holds one more"
    assert machine.handle(h.Unneeded((b"z", b"other"))) == [h.Drop(b"1", (b"z",))]
    assert machine.handle(h.Had(b"1", 5, ())) == [h.List()]
    assert machine.handle(h.Listed(both)) == [h.Give(b"1")]
    assert machine.handle(h.Taken(b"3")) == []
    assert machine.handle(h.Taken(b"1")) == [h.Leave(((b"x", 5),))]
    machine.check()
    with pytest.raises(IllegalMove):
        machine.handle(h.Begin(()))


def test_nothing_to_move_and_nobody_to_take_it() -> None:
    machine = h.Leaving()
    machine.handle(h.Begin((b"1",)))
    assert machine.handle(h.Listed(())) == [h.Leave(())]
    machine = h.Leaving()
    machine.handle(h.Begin(()))
    assert machine.handle(h.Listed(((b"x", 5),))) == [h.Leave(((b"x", 5),))]
    machine = h.Leaving()
    machine.handle(h.Begin((b"1",)))
    machine.handle(h.Listed(((b"x", 5),)))
    machine.handle(h.Had(b"1", 1, ()))
    assert machine.handle(h.Listed(((b"x", 5),))) == [h.Give(b"1")]
    assert machine.handle(h.Without(b"1")) == [h.Leave(((b"x", 5),))], "whether it has taken over is not known"


def test_not_all_is_fetched_at_once() -> None:
    heir = h.Estates()
    objs = tuple(b"%d" % number for number in range(h.AT_ONCE + 2))
    assert heir.handle(h.Offer(b"1", 1, objs)) == [h.Fetch(b"1", obj) for obj in objs[: h.AT_ONCE]]
    assert heir.handle(h.Came(b"1", objs[0], h.MISSED)) == [h.LetGo(b"1", objs[0]), h.Fetch(b"1", objs[-2])]
    assert heir.handle(h.Drop(b"1", (objs[1], objs[-1]))) == [h.LetGo(b"1", objs[1])], "the last one was not begun"
    assert heir.handle(h.Came(b"1", objs[1], h.GOT)) == [], "late"
    heir.check()
    rest = objs[2:-1]
    for obj in rest[:-1]:
        assert heir.handle(h.Came(b"1", obj, h.GOT)) == []
    assert heir.handle(h.Came(b"1", rest[-1], h.GOT)) == [h.Had(b"1", 1, (objs[0],))]
    assert heir.handle(h.Given(b"1", (b"tag",), (b"2", b"3"))) == [h.TakeOver(b"1", (b"tag",))]
    assert heir.handle(h.NodeLost(b"1")) == [], "it has left"
    assert heir.handle(h.Rebound(b"2", (b"tag", b"other"))) == []
    assert heir.awaited() == {b"3"}
    assert heir.handle(h.Rebound(b"3", (b"other",))) == []
    assert heir.handle(h.Late(b"1")) == [h.LetGo(b"1", obj) for obj in rest]
    assert not heir.estates


def test_what_is_heard_late() -> None:
    homes = h.Homes()
    homes.up(b"B", b"b")
    assert homes.moved(b"C", {b"b": 1}) == [b"b"]
    assert homes.moved(b"A", {b"b": 2, b"c": 1}) == [b"b", b"c"]
    assert homes.moved(b"C", {b"b": 1}) == []
    homes.up(b"B", b"b")
    assert homes.nodes == {b"b": b"A", b"c": b"A"}
    assert homes.down(b"B") == []
    assert homes.down(b"A") == [b"b", b"c"]
    assert homes.moved(b"A", {b"b": 2}) == [b"b"], "there is a link to it again"
    homes.taken({b"b": 3})
    assert not homes.nodes


MOVED: list[int] = []


@pytest.mark.parametrize("seed", range(60))
def test_machines_that_leave_while_references_wander(seed: int) -> None:
    MOVED.append(wander(seed, deaths=False))


def test_that_something_moved() -> None:
    assert not MOVED or sum(MOVED) > len(MOVED)


@pytest.mark.parametrize("seed", range(60))
def test_some_die_besides(seed: int) -> None:
    wander(seed, deaths=True)
