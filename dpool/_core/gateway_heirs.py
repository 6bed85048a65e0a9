"""The gateway's part in leaving: what `logic/heirs.py` decides is done here.

```
 node ─ Leave ─► Leaving ─ List ─► StoreEstate ─► the store's node        an heir
                    │ Heirlooms ─────────────────────────────────────────► Estates ─► Borrowing, Transfers
                    │ ◄──────────────────────────────────── HeirloomsHad ─ all is there
                    │ Bequeathed ────────────────────────────────────────► StoreServe ─► its node
                    │ ◄────────────────────────── HomeMoved, to everybody ─┤
 HomeMoved, to everybody, and the end                                     │
                        every other machine ─ BorrowAsked …, Rebound ─────► what nobody holds any more may go
```

A machine says HomeMoved on its own link before it leaves, so that all hear it before they hear that it is gone.

Part of the gateway; its loop.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.logic import borrowing as b
from dpool._core.logic import heirs as h

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway

LOOK_S = 1.0
STALL_S = 60.0
"""An heir that has asked for nothing for so long is given up."""
REBIND_S = 60.0
"""Borrowers that have not asked anew by then have no link to this machine, and get none."""
TOLD_S = 2.0
"""How long it can be seen what is lost, before the machine leaves."""
Future = tuple[bytes, int, bytes, list[bytes]]
"""The fields of StoreFulfil."""


class Heirs:
    """See the module."""

    def __init__(self, gateway: Gateway, log: Callable[..., None]) -> None:
        self._gateway = gateway
        self._log = log
        self.leaving = h.Leaving()
        self.estates = h.Estates()
        self._events: deque[tuple[bool, Any]] = deque()
        self._running = False
        # of a machine that leaves
        self._futures: dict[bytes, Future] = {}
        self._why = ""
        """What was last in the way."""
        self._progress_s = 0.0
        # of an heir
        self._kept: dict[tuple[bytes, bytes], int] = {}
        """(machine that leaves, object) → the token under which it is held."""
        self._outcomes: dict[tuple[bytes, bytes], Future] = {}
        """Of futures among these."""
        self._whys: dict[bytes, str] = {}
        self._bequeathed: dict[bytes, dict[bytes, int]] = {}
        self._leaves: dict[bytes, list[bytes]] = {}
        """Machine whose heir we are, and that has not left yet → its tags."""

    # -- a machine that leaves

    def leave(self, heirs: list[bytes]) -> None:
        """Nothing runs here any more."""
        if self.estates.moving():  # we are just being made an heir ourselves
            self._gateway._at(LOOK_S, partial(self.leave, heirs))
            return
        self._gateway.objects.no_lingering()
        self._why = "there is no other machine that could take them"
        self._leaver(h.Begin(tuple(peer for peer in heirs if peer in self._gateway.peers)))
        self._look()

    def _look(self) -> None:
        """Whether the heir gets on."""
        leaving = self.leaving
        if leaving.state == h.LEFT:
            return
        if leaving.heir is not None and leaving.state != h.LISTING and monotonic() - self._progress_s > STALL_S:
            self._why = f"{self._host(leaving.heir)} did not get on with it"
            self._leaver(h.Without(leaving.heir))
        self._gateway._at(LOOK_S, self._look)

    def gets_on(self, peer: bytes) -> None:
        """It has asked for a piece of something."""
        if peer == self.leaving.heir:
            self._progress_s = monotonic()

    def returned(self, objs: list[bytes]) -> None:
        """Another machine does not hold these any more."""
        heir = self.leaving.heir
        if heir is not None:
            unneeded = tuple(obj for obj in objs if self._gateway.objects.held_only_by(heir, obj))
            self._leaver(h.Unneeded(unneeded))

    def had(self, peer: bytes, message: pm.HeirloomsHad) -> None:
        """The heir answers."""
        if message.why:
            self._why = message.why
        if message.round:
            self._leaver(h.Had(peer, message.round, tuple(message.lost)))
        else:
            self._leaver(h.Without(peer))

    def _list(self, order: h.List) -> None:
        if self._gateway.objects.never_used():
            self._leaver(h.Listed(()))
        else:
            self._gateway.objects.estate(self._listed)

    def _listed(self, told: m.StoreEstateTold) -> None:
        self._futures = {future[0]: future for future in told.futures}
        self._leaver(h.Listed((*told.objs, *((obj, len(data)) for obj, _, data, _ in told.futures))))

    def _offer(self, order: h.Offer) -> None:
        self._progress_s = monotonic()
        self._log("leave.offers", objects=len(order.objs), heir=self._host(order.node))
        futures = [self._futures[obj] for obj in order.objs if obj in self._futures]
        message = pm.Heirlooms(order.round, list(order.objs))
        self._gateway._say_if_up(order.node, message, pickle.dumps(futures))

    def _drop(self, order: h.Drop) -> None:
        self._gateway._say_if_up(order.node, pm.HeirloomsDropped(list(order.objs)))

    def _give(self, order: h.Give) -> None:
        self._progress_s = monotonic()
        objects = self._gateway.objects
        objects.given = True
        borrowers = (objects.borrowers() | self.estates.awaited()) - {order.node, self._gateway.net.greeting.name}
        tags = {tag: step + 1 for tag, step in objects.tags.items()}
        self._gateway._say_if_up(order.node, pm.Bequeathed(tags, list(borrowers)))

    def _leave(self, order: h.Leave) -> None:
        text = ""
        if order.lost:
            count, size = len(order.lost), sum(size for _, size in order.lost)
            what = f"{count:,} object{'s' * (count > 1)} ({size:,} bytes) that others hold"
            text = f"{what} could not be moved: {self._why}"
            self._gateway._tell(m.Unmoved(text))
        self._log("leave.ends", lost=text or "nothing")
        end = partial(self._gateway.end, f"it was drained{'; ' * bool(text)}{text}")
        if text:
            self._gateway._at(TOLD_S, end)
        else:
            end()

    def _lost_why(self) -> str:
        """For whoever asks for something that is lost."""
        return f"the machine that had it, {self._gateway.host}, was drained, and it could not be moved: {self._why}"

    def _host(self, peer: bytes) -> str:
        known = self._gateway.peers.get(peer)
        return known.host if known is not None else "a machine that is gone"

    # -- the heir

    def offered(self, peer: bytes, message: pm.Heirlooms, data: bytes) -> None:
        """A machine is about to leave, and we are to have copies."""
        if self._gateway.draining and peer not in self.estates.estates:
            self._gateway._say_if_up(peer, pm.HeirloomsHad(0, [], f"{self._gateway.host} is being drained, too"))
            return
        self._outcomes.update(((peer, future[0]), future) for future in pickle.loads(data))
        self._heir(h.Offer(peer, message.round, tuple(message.objs)))

    def dropped(self, peer: bytes, message: pm.HeirloomsDropped) -> None:
        """Nobody needs these any more, or somebody else is to take them."""
        self._heir(h.Drop(peer, tuple(message.objs)))

    def bequeathed(self, peer: bytes, message: pm.Bequeathed) -> None:
        """We are home of its objects now."""
        self._bequeathed[peer] = message.tags
        own = self._gateway.net.greeting.name
        borrowers = tuple(name for name in message.borrowers if name != own)
        self._heir(h.Given(peer, tuple(message.tags), borrowers))

    def rebound(self, peer: bytes, message: pm.Rebound) -> None:
        """A borrower has asked us anew."""
        self._heir(h.Rebound(peer, tuple(message.tags)))

    def _fetch(self, order: h.Fetch) -> None:
        objects, key = self._gateway.objects, (order.node, order.obj)
        token = self._kept[key] = objects.new_token()
        contents = self._outcomes[key][3] if key in self._outcomes else []
        objects.arrived(token, [order.obj, *contents], partial(self._held, key, token))

    def _held(self, key: tuple[bytes, bytes], token: int) -> None:
        """It is held here, if it still was there."""
        if self._kept.get(key) != token:
            return
        objects = self._gateway.objects
        known = objects.borrowing.objects.get(key[1])
        future = self._outcomes.pop(key, None)
        if known is None or known.state != b.BORROWED:
            self._heir(h.Came(*key, h.FREED))
        elif future is not None:
            objects.keep_future(*future)
            self._heir(h.Came(*key, h.GOT))
        else:
            objects.transfers.fetch(key[1], partial(self._fetched, key, token))

    def _fetched(self, key: tuple[bytes, bytes], token: int, why: str) -> None:
        if self._kept.get(key) == token:
            if why:
                self._whys[key[0]] = why
            self._heir(h.Came(*key, h.MISSED if why else h.GOT))

    def _let_go(self, order: h.LetGo) -> None:
        self._outcomes.pop((order.node, order.obj), None)
        self._gateway.objects.let_go(self._kept.pop((order.node, order.obj)), order.obj)

    def _had(self, order: h.Had) -> None:
        message = pm.HeirloomsHad(order.round, list(order.lost), self._whys.pop(order.node, ""))
        self._gateway._say_if_up(order.node, message)

    def _take_over(self, order: h.TakeOver) -> None:
        tags = self._bequeathed.pop(order.node)
        self._log("leave.inherits", host=self._host(order.node), tags=[tag.hex() for tag in tags])
        self._gateway.objects.inherit(tags)
        self._leaves[order.node] = list(tags)
        for peer in self._gateway.peers:
            self._gateway._say_if_up(peer, pm.HomeMoved(tags, self._gateway.net.greeting.name, [], ""))
        greeting = self._gateway.net.greeting
        inherited = {tag: step for tag, step in self._gateway.objects.tags.items() if step}
        self._gateway.net.greeting = greeting._replace(about={**greeting.about, "inherited": inherited})
        self._gateway._at(REBIND_S, partial(self._heir, h.Late(order.node)))

    # -- everybody

    def home_moved(self, peer: bytes, message: pm.HomeMoved) -> None:
        """The heir of a machine, or that machine, says who is home of its objects."""
        objects, leaving = self._gateway.objects, self.leaving
        if message.heir == leaving.heir == peer and objects.tag in message.tags:
            moved = message._replace(lost=list(leaving.lost), why=self._lost_why() if leaving.lost else "")
            for other in self._gateway.peers:
                self._gateway._say_if_up(other, moved)
            self._leaver(h.Taken(peer))
            return
        objects.unmoved(message.lost, message.why)
        if message.heir not in self._gateway.peers:
            return  # it is us; or else, when there is a link, it says so itself
        tags = {tag: step for tag, step in message.tags.items() if tag not in objects.tags}
        objects.moved(objects.homes.moved(message.heir, tags))
        asked = [tag for tag in tags if objects.homes.nodes.get(tag) == message.heir]
        self._gateway._say_if_up(message.heir, pm.Rebound(asked))

    def peer_up(self, peer: bytes) -> None:
        """Who comes later hears whose home we are."""
        objects = self._gateway.objects
        inherited = {tag: step for tag, step in objects.tags.items() if step}
        if inherited and not objects.given:
            self._gateway._say_if_up(peer, pm.HomeMoved(inherited, self._gateway.net.greeting.name, [], ""))

    def peer_down(self, peer: bytes, host: str) -> None:
        """There is no link to it any more."""
        if peer == self.leaving.heir:
            self._why = f"{host} was to take them, and the link to it broke"
        self._leaver(h.Without(peer))
        self._heir(h.NodeLost(peer))
        for key in [key for key in self._outcomes if key[0] == peer]:
            del self._outcomes[key]
        self._whys.pop(peer, None)
        if peer in self._leaves:
            self._gateway.objects.giver_left(self._leaves.pop(peer))

    def _leaver(self, event: Any) -> None:
        self._handle(True, event)

    def _heir(self, event: Any) -> None:
        self._handle(False, event)

    def _handle(self, leaver: bool, event: Any) -> None:
        """Give an event to one of the two; those that follow from it come afterwards, in order."""
        self._events.append((leaver, event))
        if self._running:
            return
        self._running = True
        try:
            while self._events:
                leaver, event = self._events.popleft()
                orders: list[Any] = (self.leaving if leaver else self.estates).handle(event)
                for order in orders:
                    self._ORDERS[type(order)](self, order)
        finally:
            self._running = False

    _ORDERS: dict[type[Any], Callable[[Any, Any], None]] = {  # noqa: RUF012
        h.List: _list,
        h.Offer: _offer,
        h.Drop: _drop,
        h.Give: _give,
        h.Leave: _leave,
        h.Fetch: _fetch,
        h.LetGo: _let_go,
        h.Had: _had,
        h.TakeOver: _take_over,
    }
