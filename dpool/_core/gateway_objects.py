"""The gateway's part in objects: who holds what across machines, and what frames carry.

```
 frame of tasks with references ─► held here, their homes told (Borrowing) ─► what its tasks need is fetched ─► worker
 frame of results with references ─► the same here ─► held in the submitter's name ─► submitter; RefsTaken ─► sender
 node ─ ObjectWanted, FutureWanted, ObjectsFreed ─►   ◄─ StoreHold, StoreRelease, StoreLend …, on its own connection
```

What is said to the store here goes over one connection and is sent before anything that relies on it: a process that is
given a reference is counted before it can say that it has let go.

The node's ObjectsFreed may cross with a StoreHold of ours; it says how many of these it had read, so what is held since
is known not to be free.

Part of the gateway; its loop.
"""

from __future__ import annotations

import os
import pickle
import select
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from dpool._core import ids, launch, wire
from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.carried import Carried, in_journal, in_value
from dpool._core.config import PROTOCOL
from dpool._core.gateway_actors import with_carried
from dpool._core.logic import borrowing as b
from dpool._core.logic.heirs import Homes
from dpool._core.net import LEFT
from dpool._core.transfers import Transfers
from dpool._store.pins import make_page

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway, _Abroad, _Guest
    from dpool._core.net import Greeting
    from dpool._core.relay import Snapshot

MANY = 10_000
"""Objects named in one message."""
LINGER_S = 1.0
"""How long copies stay that a frame of tasks needed and nobody holds any more."""
MOST_LINGERING = 100
"""Frames for which they do."""
LOST = 0
"""What becomes of a future whose home is gone; see node_store.py."""


class _Step:
    """Something that is to be done in the order in which it came, once it is ready."""

    __slots__ = ("action", "ready")

    def __init__(self, action: Callable[[], None], ready: bool) -> None:
        self.action = action
        self.ready = ready


class Steps:
    """What happens on one lease, in order: a frame waits for its references, and what comes after it for the frame."""

    __slots__ = ("_running", "_steps")

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque()
        self._running = False

    def add(self, action: Callable[[], None], ready: bool = True) -> _Step:
        """To be done when it is ready and those before it are done."""
        step = _Step(action, ready)
        self._steps.append(step)
        self.go_on()
        return step

    def now(self, step: _Step) -> None:
        """It is ready."""
        step.ready = True
        self.go_on()

    def go_on(self) -> None:
        """Do what is ready."""
        if self._running:
            return
        self._running = True
        try:
            while self._steps and self._steps[0].ready:
                self._steps.popleft().action()
        finally:
            self._running = False


class Objects:
    """See the module."""

    def __init__(self, gateway: Gateway, session: str, log: Callable[..., None]) -> None:
        self._gateway = gateway
        self._session = session
        self.tag = ids.tag_of(session)
        self._pid = os.getpid()
        self.tags = {self.tag: 0}
        """Of the objects whose home is here: our own, and those that machines which have left had; see heirs.py."""
        self.given = False
        """We leave, and our heir is their home now."""
        self.borrowing = b.Borrowing(self.tag)
        self.transfers = Transfers(gateway, self, session, log)
        self.homes = Homes()
        self._machines: dict[bytes, bytes] = {}
        """Tag → the gateway of the machine that it is the tag of."""
        self._tags: dict[bytes, bytes] = {}
        self._lost_homes: dict[bytes, str] = {}
        self._unmoved: dict[bytes, str] = {}
        """What is held here, and was lost when its home left: why."""
        self._numbers: dict[bytes, int] = {}
        """The gateway → the number under which our node's store knows its machine."""
        self._count = 0
        self._channel: wire.ControlChannel | None = None
        self._writing = False
        self._holds = 0
        """StoreHolds that have been sent."""
        self._held_at: dict[bytes, int] = {}
        """Object of another machine → that number when we last held it."""
        self._clear: dict[int, Callable[[], None]] = {}
        """Token → what is to be done when the homes know."""
        self._events: deque[Any] = deque()
        self._handling = False
        self._requests: dict[int, Callable[[Any], None]] = {}
        self._lent: dict[bytes, set[bytes]] = {}
        """Of ours: which machines hold it."""
        self._kept: dict[bytes, Counter[bytes]] = {}
        """Machine → what results carry that it has not taken yet, and how often it is held here for that."""
        self._for_copies: set[int] = set()
        """Tokens of frames that needed copies of other machines' objects."""
        self._lingering: deque[int] = deque()
        """Of these, the ones whose frames are done with, the oldest first."""
        self._watching: set[bytes] = set()
        self._watched: dict[bytes, set[bytes]] = {}

    # -- machines

    def peer_up(self, peer: bytes, greeting: Greeting) -> None:
        """There is a link to another machine's gateway."""
        tag = (greeting.about or {}).get("tag")
        if tag is None:
            return
        self._machines[tag], self._tags[peer] = peer, tag
        self.homes.up(peer, tag)
        self._count += 1
        self._numbers[peer] = self._count
        self.moved(self.homes.moved(peer, greeting.about.get("inherited", {})))

    def peer_down(self, peer: bytes, host: str, reason: str) -> None:
        """There is none any more: all that it holds here is let go, all that it is home of is lost."""
        own = self._tags.pop(peer, None)
        if own is None:
            return
        del self._machines[own]
        unreachable = "" if reason.startswith(LEFT) else f"or cannot be reached from {self._gateway.host}: "
        reason = unreachable + reason.removeprefix(f"{LEFT}: ")
        tags = self.homes.down(peer)
        for tag in {own, *tags}:
            self._lost_homes[tag] = f"the machine that has it, {host}, has left the cluster ({reason})"
        number = self._numbers.pop(peer)
        kept = self._kept.pop(peer, Counter())
        if kept:
            self.release(list(kept.elements()))
        if self._channel is not None:
            self._say(m.StorePeerGone(number))
        for obj in [obj for obj, peers in self._lent.items() if peer in peers]:
            self._returned(obj, peer)
        for peers in self._watched.values():
            peers.discard(peer)
        for obj in [obj for obj in self._watching if ids.home_of(obj) in tags]:
            self._watching.discard(obj)
            self._say(m.StoreFulfil(obj, LOST, self.why_away(obj).encode(), []))
        for tag in tags:
            self._handle(b.HomeLost(tag))
        self.transfers.peer_gone(peer)

    def peer_of(self, obj: bytes) -> bytes | None:
        """The gateway of the object's home, if there is a link to it."""
        return self.homes.nodes.get(ids.home_of(obj))

    def machine_of(self, obj: bytes) -> bytes | None:
        """The gateway of the machine on which it was made, if there is a link to it: no actor or lock has an heir."""
        return self._machines.get(ids.home_of(obj))

    def why_lost(self, obj: bytes) -> str:
        """Why the machine where it was made is not in the cluster any more; empty if it is, or has never been."""
        return self._lost_homes.get(ids.home_of(obj), "")

    def ours(self, obj: bytes) -> bool:
        """Whether this machine is its home."""
        return ids.home_of(obj) in self.tags

    def why_away(self, obj: bytes) -> str:
        """Why there is none."""
        known = self._lost_homes.get(ids.home_of(obj))
        return known or "the machine that has it is not in the cluster"

    def why_not_there(self, obj: bytes, why: str) -> str:
        """Why there is none, if its home, or whoever else was asked, says `why`."""
        home = ids.home_of(obj)
        peer = self.peer_of(obj)
        if peer is None or obj in self._unmoved:
            return self._unmoved.get(obj) or self.why_away(obj)
        again = home in self._lost_homes and self._machines.get(home) == peer
        meanwhile = ", and the link to that machine was down meanwhile" * again
        return f"{self._gateway.peers[peer].host} has it no more ({why}){meanwhile}"

    # -- our node's store

    def _say(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        """Say something to the store; it has been sent when this returns, if the node reads at all."""
        channel = self._channel
        if channel is None:
            channel = self._connect()
        try:
            channel.send(message, fds)
            while channel.pending:
                waiter = select.poll()
                waiter.register(channel.fileno(), select.POLLOUT)
                waiter.poll()
                channel.flush()
        except wire.Closed:
            self._gateway.end("the node has closed its store")

    def _connect(self) -> wire.ControlChannel:
        channel = self._channel = wire.ControlChannel(launch.connect_node(self._session))
        self._gateway._on(channel.fileno(), self._readable)
        page = make_page()
        try:
            self._say(m.StoreHello(PROTOCOL, *m.versions(), self._pid), (page,))
        finally:
            os.close(page)
        return channel

    def _readable(self, mask: int) -> None:
        assert self._channel is not None
        try:
            message, fds = self._channel.receive()
        except (BlockingIOError, InterruptedError):
            return
        except (wire.Closed, wire.DescriptorsLost, m.ProtocolError) as error:
            self._gateway.end(f"the node has closed its store ({error})")
            return
        for fd in fds:
            os.close(fd)
        if isinstance(message, (m.StoreLent, m.StoreContents, m.StoreEstateTold)):
            self._requests.pop(message.request)(message)
        elif isinstance(message, m.StoreResolved):
            self._resolved(message)
        elif isinstance(message, m.Refused):
            self._gateway.end(f"the node refuses: {message.reason}")

    def _ask(self, make: Callable[[int], Any], then: Callable[[Any], None]) -> None:
        self._count += 1
        self._requests[self._count] = then
        self._say(make(self._count))

    def hold(self, objs: list[bytes], pid: int) -> None:
        """A process of this machine holds these once more each; said before this returns."""
        self._say(m.StoreHold(objs, pid))
        self._holds += 1

    def release(self, objs: list[bytes]) -> None:
        """We hold these once less each."""
        for at in range(0, len(objs), MANY):
            self._say(m.StoreRelease(objs[at : at + MANY]))

    # -- references that arrive

    def new_token(self) -> int:
        """A name for a message with references."""
        self._count += 1
        return self._count

    def arrived(self, token: int, objs: Iterable[bytes], clear: Callable[[], None]) -> None:
        """Hold these until `done`; `clear` is called, perhaps at once, when their homes know that they are here."""
        self._clear[token] = clear
        self._handle(b.Arrived(token, tuple((obj, ids.home_of(obj)) for obj in dict.fromkeys(objs))))

    def done(self, token: int) -> None:
        """Whoever keeps what has arrived with it holds it by itself."""
        self._clear.pop(token, None)
        self._handle(b.Done(token))

    def _handle(self, event: Any) -> None:
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        clear: list[int] = []
        try:
            while self._events:
                self._perform(self.borrowing.handle(self._events.popleft()), clear)
        finally:
            self._handling = False
        for token in clear:
            action = self._clear.pop(token, None)
            if action is not None:
                action()

    def _perform(self, orders: list[b.Instruction], clear: list[int]) -> None:
        """What is to be held is held before any home is asked."""
        holds = [order.obj for order in orders if isinstance(order, b.Hold)]
        for at in range(0, len(holds), MANY):
            self.hold(holds[at : at + MANY], self._pid)
        self._held_at.update((obj, self._holds) for obj in holds if not self.ours(obj))
        self._to_homes(pm.BorrowAsked, [(order.home, order.obj) for order in orders if isinstance(order, b.AskBorrow)])
        self._to_homes(pm.BorrowEnded, [(order.home, order.obj) for order in orders if isinstance(order, b.Return)])
        releases = [order.obj for order in orders if isinstance(order, b.Release)]
        if releases:
            self.release(releases)
        clear += [order.token for order in orders if isinstance(order, b.Clear)]

    def _to_homes(self, kind: Any, named: list[tuple[bytes, bytes]]) -> None:
        by_home: dict[bytes, list[bytes]] = {}
        for home, obj in named:
            by_home.setdefault(home, []).append(obj)
        for home, objs in by_home.items():
            peer = self.homes.nodes.get(home)
            if peer is None:
                if kind is pm.BorrowAsked:
                    self._events.extend(b.Refused(obj) for obj in objs)
                continue
            for at in range(0, len(objs), MANY):
                self._gateway._say_if_up(peer, kind(objs[at : at + MANY]))

    def borrow_told(self, peer: bytes, message: pm.BorrowTold) -> None:
        """A home has answered; what has another one by now was asked there anew."""
        refused = set(message.refused)
        for obj in message.objs:
            if self.peer_of(obj) != peer:
                continue
            known = self.borrowing.objects.get(obj)
            if known is not None and known.state in (b.ASKED, b.UNWANTED):
                self._handle(b.Refused(obj) if obj in refused else b.Borrowed(obj))

    def freed(self, message: m.ObjectsFreed, fds: list[int]) -> None:
        """The node says that nobody here holds these any more."""
        for obj in message.objs:
            if self._held_at.get(obj, 0) > message.seen:
                continue
            self._held_at.pop(obj, None)
            self._unmoved.pop(obj, None)
            self._watching.discard(obj)
            self.transfers.freed(obj)
            self._handle(b.Freed(obj))

    # -- what is ours, and others hold

    def borrow_asked(self, peer: bytes, message: pm.BorrowAsked) -> None:
        """Another machine holds these."""
        if self.given:
            return  # it hears, if it has not already, whom to ask
        for obj in message.objs:
            self._lent.setdefault(obj, set()).add(peer)
        number = self._numbers[peer]
        self._ask(lambda request: m.StoreLend(request, message.objs, number), partial(self._told, peer, message.objs))

    def _told(self, peer: bytes, objs: list[bytes], answer: m.StoreLent) -> None:
        for obj in answer.refused:
            self._returned(obj, peer)
        self._gateway._say_if_up(peer, pm.BorrowTold(objs, answer.refused))

    def borrow_ended(self, peer: bytes, message: pm.BorrowEnded) -> None:
        """It does not any more."""
        for obj in message.objs:
            self._returned(obj, peer)
            if obj in self._watched:
                self._watched[obj].discard(peer)
                if not self._watched[obj]:
                    del self._watched[obj]
        self._say(m.StoreLendEnd(message.objs, self._numbers[peer]))
        if self._gateway.draining:
            self._gateway.heirs.returned(message.objs)

    def _returned(self, obj: bytes, peer: bytes) -> None:
        peers = self._lent.get(obj)
        if peers is not None:
            peers.discard(peer)
            if not peers:
                del self._lent[obj]
                self.transfers.not_lent(obj)

    def is_lent(self, obj: bytes, peer: bytes) -> bool:
        """Whether that machine holds it."""
        return peer in self._lent.get(obj, ())

    # -- machines that leave: see gateway_heirs.py

    def never_used(self) -> bool:
        """Whether nothing can be held here by anybody else."""
        return self._channel is None

    def no_lingering(self) -> None:
        """Nothing more will need the copies that were kept for that."""
        while self._lingering:
            self.done(self._lingering.popleft())

    def estate(self, then: Callable[[m.StoreEstateTold], None]) -> None:
        """Find out what others hold of what is ours."""
        self._ask(lambda request: m.StoreEstate(request), then)

    def borrowers(self) -> set[bytes]:
        """Machines that hold anything of ours, or are about to."""
        return {peer for peers in self._lent.values() for peer in peers} | self._kept.keys()

    def held_only_by(self, peer: bytes, obj: bytes) -> bool:
        """Whether no other machine does."""
        return self._lent.get(obj) == {peer} and not any(obj in kept for kept in self._kept.values())

    def unmoved(self, objs: list[bytes], why: str) -> None:
        """These are lost, as their home has left and nobody could take them."""
        self._unmoved.update((obj, why) for obj in objs if obj in self.borrowing.objects)

    def moved(self, tags: list[bytes]) -> None:
        """Another machine is home of these objects now: what we hold of them, it hears from us."""
        for tag in tags:
            self._handle(b.Moved(tag))
        for obj in [obj for obj in self._watching if ids.home_of(obj) in tags]:
            peer = self.peer_of(obj)
            assert peer is not None
            self._gateway._say_if_up(peer, pm.FutureAsked(obj))
        self.transfers.moved(tags)

    def inherit(self, tags: dict[bytes, int]) -> None:
        """We are."""
        self.tags.update(tags)
        self.homes.taken(tags)
        self._say(m.StoreServe(list(tags), False))
        self._held_at = {obj: held for obj, held in self._held_at.items() if not self.ours(obj)}
        self._watching = {obj for obj in self._watching if not self.ours(obj)}
        self.transfers.inherited()
        for tag in tags:
            self._handle(b.Inherited(tag))

    def giver_left(self, tags: list[bytes]) -> None:
        """The machine has left that was home of these."""
        self._say(m.StoreServe(tags, True))

    def keep_future(self, obj: bytes, kind: int, data: bytes, contains: list[bytes]) -> None:
        """What has become of a future whose home is about to leave; it, and what it contains, is held here."""
        self._say(m.StorePromise([obj]))
        self._say(m.StoreFulfil(obj, kind, data, contains))
        self.release([obj])

    def let_go(self, token: int, obj: bytes) -> None:
        """It was held because its home was about to leave."""
        self.done(token)
        if self.ours(obj) and obj not in self._lent:
            self.transfers.not_lent(obj)

    # -- frames of tasks, at the workers' side

    def task_frame(self, guest: _Guest, frame: bytes, fields: Any) -> None:
        """Give a frame to the worker, when what it carries is held and what its tasks need is here."""
        steps: Steps = guest.steps
        if fields is None:
            steps.add(partial(self._to_worker, guest, frame))
            return
        carried = Carried(*fields)
        token = self.new_token()
        if not all(map(self.ours, carried.wanted)):
            self._for_copies.add(token)
        if guest.process is None and not guest.actor:
            guest.tokens.append(token)
        else:
            guest.by_base[wire.loads(frame)[0]] = token
            frame = with_carried(guest, frame, fields)
        step = steps.add(partial(self._to_worker, guest, frame), ready=False)
        begin = partial(self._fetch_all, guest, carried.wanted, partial(steps.now, step))
        if carried.lasting:
            lasting = self.new_token()
            guest.lasting.append(lasting)
            begin = partial(self.arrived, lasting, carried.lasting, begin)
        self.arrived(token, carried.passing, begin)

    def _fetch_all(self, guest: _Guest, objs: list[bytes], then: Callable[[], None]) -> None:
        """What cannot be had, the task that needs it is told by the store."""
        left = {*objs}

        def came(obj: bytes, why: str) -> None:
            left.discard(obj)
            if not left:
                then()

        if not left:
            then()
        for obj in objs:
            self.transfers.fetch(obj, partial(came, obj))

    def _to_worker(self, guest: _Guest, frame: bytes) -> None:
        if guest.incoming is not None:
            guest.incoming.frame(frame)
            self._gateway._watch_writing(guest.incoming.fileno(), guest.incoming.wants_to_write())

    def result_frame(self, guest: _Guest, frame: bytes, pipe: int = 0) -> None:
        """Send back what a worker answered; `pipe`: number of the generator's pipe that came with it."""
        first, end, elapsed_ns, values = wire.loads(frame)
        if first > 0 and values:
            self._gateway.pace = (elapsed_ns * 1e-9 / len(values), self._gateway.pace[1])
        if end is None:
            return
        refs = []
        for number, value in enumerate(values, first):
            if first <= 0 or number > guest.told:
                refs += in_value(value)
        self._keep(guest.peer, refs)
        blob = pickle.dumps(refs) if refs else b""
        self._gateway._say_if_up(guest.peer, pm.ResultFrame(guest.lease, end, len(blob), pipe), blob + frame)
        if end and first >= 0:
            self._linger(guest.tokens)
        if end and guest.by_base:
            bases = [base for base in guest.by_base if (base <= first if first >= 0 else base == -first)]
            self._linger([guest.by_base.pop(base) for base in bases])

    def journal(self, guest: _Guest, snapshot: Snapshot) -> list[bytes]:
        """What a worker has noted and not answered: the objects that nobody has been told of."""
        refs = []
        for number, found in enumerate(in_journal(snapshot.journal, snapshot.noted), snapshot.first):
            if number > guest.told:
                guest.told = number
                refs += found
        self._keep(guest.peer, refs)
        return refs

    def _keep(self, peer: bytes, refs: list[bytes]) -> None:
        if refs:
            if peer in self._numbers:
                self._kept.setdefault(peer, Counter()).update(refs)
            else:
                self.release(refs)

    def refs_taken(self, peer: bytes, message: pm.RefsTaken) -> None:
        """They are held there now."""
        kept = self._kept.get(peer)
        if kept is not None:
            kept.subtract(message.objs)
            self._kept[peer] = +kept
            self.release(message.objs)

    def worker_died(self, pid: int) -> None:
        """What it made for us and did not get out, nobody will ask for."""
        self._say(m.StoreClaim(pid, [obj for kept in self._kept.values() for obj in kept]))

    def lease_ended(self, guest: _Guest) -> None:
        """Its tasks have ended."""
        self._gateway.streams.guest_ended(guest)
        self._all_done(guest.tokens)
        self._all_done(guest.lasting)
        self._all_done(list(guest.by_base.values()))
        guest.by_base.clear()

    def _linger(self, tokens: list[int]) -> None:
        """Copies that a frame needed stay for a moment: the next one may need the same."""
        while tokens:
            token = tokens.pop()
            if token in self._for_copies:
                self._for_copies.discard(token)
                self._lingering.append(token)
                self._gateway._at(LINGER_S, self._linger_less)
            else:
                self.done(token)
        while len(self._lingering) > MOST_LINGERING:
            self.done(self._lingering.popleft())

    def _linger_less(self) -> None:
        if self._lingering:
            self.done(self._lingering.popleft())

    def _all_done(self, tokens: list[int]) -> None:
        while tokens:
            token = tokens.pop()
            self._for_copies.discard(token)
            self.done(token)

    # -- frames of results, at the submitter's side

    def results_came(self, abroad: _Abroad, refs: list[bytes], action: Callable[[], None]) -> None:
        """Do something that tells the submitter of results, when what they refer to is held in its name."""
        steps: Steps = abroad.steps
        if not refs:
            steps.add(action)
            return
        token = self.new_token()
        step = steps.add(partial(self._give, abroad, token, refs, action), ready=False)
        self.arrived(token, refs, partial(steps.now, step))

    def _give(self, abroad: _Abroad, token: int, refs: list[bytes], action: Callable[[], None]) -> None:
        self.hold(refs, abroad.pid)
        action()
        self.done(token)
        self._gateway._say_if_up(abroad.peer, pm.RefsTaken(refs))

    # -- what processes here ask for

    def wanted(self, message: m.ObjectWanted, fds: list[int]) -> None:
        """A process here asks for an object of another machine."""
        obj = message.obj

        def then(why: str) -> None:
            if why:
                self._say(m.StoreAway(obj, why))

        self.transfers.fetch_again(obj, then)

    def future_wanted(self, message: m.FutureWanted, fds: list[int]) -> None:
        """A process here watches a future of another machine."""
        peer = self.peer_of(message.obj)
        if peer is None:
            self._say(m.StoreFulfil(message.obj, LOST, self.why_away(message.obj).encode(), []))
            return
        self._watching.add(message.obj)
        self._gateway._say_if_up(peer, pm.FutureAsked(message.obj))

    def future_told(self, peer: bytes, message: pm.FutureTold, data: bytes) -> None:
        """What became of it."""
        if message.obj not in self._watching or self.peer_of(message.obj) != peer:
            return
        self._watching.discard(message.obj)
        outcome, contains = pickle.loads(data)
        token = self.new_token()

        def clear() -> None:
            self._say(m.StoreFulfil(message.obj, message.kind, outcome, contains))
            self.done(token)

        self.arrived(token, contains, clear)

    # -- futures of ours that others watch

    def future_asked(self, peer: bytes, message: pm.FutureAsked) -> None:
        """Another machine watches one of ours."""
        if self.given:
            return  # as in borrow_asked
        peers = self._watched.setdefault(message.obj, set())
        peers.add(peer)
        self._say(m.StoreWatch(message.obj))

    def _resolved(self, message: m.StoreResolved) -> None:
        peers = self._watched.pop(message.obj, set())
        if peers:
            self._ask(lambda request: m.StoreInside(request, message.obj), partial(self._tell_future, peers, message))

    def _tell_future(self, peers: set[bytes], message: m.StoreResolved, answer: m.StoreContents) -> None:
        blob = pickle.dumps((message.data, answer.objs))
        for peer in peers:
            self._gateway._say_if_up(peer, pm.FutureTold(message.obj, message.kind), blob)

    def close(self) -> None:
        """The gateway ends."""
        self.transfers.close()
        if self._channel is not None:
            self._gateway._off(self._channel.fileno())
            self._channel.close()
