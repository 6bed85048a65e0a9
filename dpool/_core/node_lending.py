"""The node's side of objects that are held across machines.

```
 home of the object                                     a machine that borrowed it
 gateway ─ StoreLend(peer) ─► Acquire(obj, holder)      process ─ StoreLocate ─► ObjectWanted ─► gateway: fetches it
 gateway ─ StoreLendEnd ────► Release(obj, holder)      process ─ StoreWatch ──► FutureWanted ─► gateway: asks its home
                                                        last holder here gone ─► ObjectsFreed ─► gateway: gives it back
```

An object's id begins with the tag of its home (`ids.home_of`), whose references count each other machine that holds it
as one holder, below the numbers of processes and connections. A machine that leaves has its heir serve its tags, too.
Part of `NodeStore`; there only in a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpool._core import ids
from dpool._core import messages as m
from dpool._core.logic import references as r
from dpool._core.logic import scheduler as s
from dpool._core.logic.places import HOME

if TYPE_CHECKING:
    from dpool._core.node import Node
    from dpool._core.node_store import NodeStore, Side

FIRST_PEER = -(1 << 32)
"""Holders from here downwards are other machines."""
LOST = 0
"""What becomes of a future whose owner is gone; see node_store.py."""


class NodeLending:
    """See the module."""

    def __init__(self, node: Node, store: NodeStore) -> None:
        self._node = node
        self._store = store
        self._tag = ids.tag_of(node.session)
        self._tags = {self._tag}
        """Of the machines that this one is home of the objects of: itself, and those that have left them to it."""
        self._waiting: dict[bytes, list[tuple[int, int]]] = {}
        """Object of another machine → who has asked for it: the connection and its request."""
        self._freed: list[bytes] = []
        self._holds = 0
        """StoreHolds of the gateway's so far."""

    def foreign(self, obj: bytes) -> bool:
        """Whether its home is another machine."""
        return ids.home_of(obj) not in self._tags

    def made_elsewhere(self, obj: bytes) -> bool:
        """Whether it may be that nothing but its id is here."""
        return ids.home_of(obj) != self._tag

    # -- what is borrowed

    def locate(self, side: Side, message: m.StoreLocate) -> bool:
        """Have an object fetched that a process asks for; False if it is none of other machines, or is here."""
        obj = message.obj
        if not self.foreign(obj) or self._store.store.knows(obj) or obj not in self._store.references:
            return False
        if side.pid == self._node.gateway_pid():
            return False  # it is who would have to fetch it
        waiting = self._waiting.setdefault(obj, [])
        waiting.append((side.number, message.request))
        if len(waiting) == 1:
            self._node.tell_gateway(m.ObjectWanted(obj))
        return True

    def came(self, obj: bytes) -> None:
        """It is in the store now: whoever asked for it is told where."""
        for number, request in self._waiting.pop(obj, ()):
            self._store.locate_again(number, request, obj)

    def away(self, message: m.StoreAway) -> None:
        """It cannot be had."""
        for number, request in self._waiting.pop(message.obj, ()):
            self._store.answer(number, m.StoreUnknown(request, message.obj, message.why))

    def watch(self, obj: bytes) -> bool:
        """Have it found out what becomes of a future; False if it is none of other machines."""
        if not self.foreign(obj) or obj not in self._store.references:
            return False
        self._node.tell_gateway(m.FutureWanted(obj))
        return True

    def freed(self, obj: bytes) -> bool:
        """Nobody here holds it any more; False if its home is here."""
        if not self.foreign(obj):
            return False
        if not self._freed:
            self._node.call_soon(self._tell_freed)
        self._freed.append(obj)
        self.away(m.StoreAway(obj, "nobody on this machine holds it any more"))
        return True

    def _tell_freed(self) -> None:
        """`seen` may be too high by what was read since, which named none of these: else they would not be free."""
        freed, self._freed = self._freed, []
        self._node.tell_gateway(
            m.ObjectsFreed([obj for obj in freed if obj not in self._store.references], self._holds)
        )

    # -- what is lent

    def held(self, side: Side) -> None:
        """A StoreHold has been dealt with."""
        self._holds += side.pid == self._node.gateway_pid()

    def lend(self, side: Side, message: m.StoreLend) -> None:
        """Held at once, so that what the gateway says next finds it so; whether it is there is seen when all is known
        that has been said before.
        """
        for obj in message.objs:
            self._store.follow(r.Acquire(obj, FIRST_PEER - message.peer))

    def lent(self, side: Side, message: m.StoreLend) -> None:
        """Answer: what nobody else holds, and is not in the store, is not there any more."""
        holder = FIRST_PEER - message.peer
        refused = [obj for obj in message.objs if not self._is_there(obj, holder)]
        for obj in refused:
            self._store.follow(r.Release(obj, holder))
        self._store.answer(side.number, m.StoreLent(message.request, refused))

    def _is_there(self, obj: bytes, holder: int) -> bool:
        if self._store.store.knows(obj) or self._store.promised(obj) or self._node.actor_lives(obj):
            return True
        return self._store.references.contained(obj) or set(self._store.references.holders(obj)) != {holder}

    def lend_end(self, side: Side, message: m.StoreLendEnd) -> None:
        """A machine gives objects back."""
        self._store.let_go(message.objs, FIRST_PEER - message.peer)

    def peer_gone(self, side: Side, message: m.StorePeerGone) -> None:
        """A machine is gone."""
        self._store.let_go_all(FIRST_PEER - message.peer)

    def inside(self, side: Side, message: m.StoreInside) -> None:
        """What an object contains: a machine that takes a copy must hold that, too."""
        contents = self._store.references.contents(message.obj)
        self._store.answer(side.number, m.StoreContents(message.request, contents))

    # -- machines that leave

    def estate(self, side: Side, message: m.StoreEstate) -> None:
        """What is ours, and held by other machines or in the gateway's name, and what that contains."""
        references, gateway = self._store.references, self._node.gateway_pid()
        found = {obj: None for obj, holders in references.held() if gateway in holders or min(holders) <= FIRST_PEER}
        unseen = list(found)
        while unseen:
            new = [inner for inner in references.contents(unseen.pop()) if inner not in found]
            found.update(dict.fromkeys(new))
            unseen += new
        ours = [obj for obj in found if not self.foreign(obj)]
        futures = [(obj, *self._outcome(obj), references.contents(obj)) for obj in ours if self._store.promised(obj)]
        sizes = [(obj, self._store.store.size_of(obj)) for obj in ours if self._store.store.knows(obj)]
        self._store.answer(side.number, m.StoreEstateTold(message.request, sizes, futures))

    def _outcome(self, obj: bytes) -> tuple[int, bytes]:
        """Of a future of ours, as it will be when this machine has left."""
        known = self._store.outcome(obj)
        if known is not None:
            return known.kind, known.data
        return LOST, f"its process was on {self._node.host()}, which has left the cluster".encode()

    def serve(self, side: Side, message: m.StoreServe) -> None:
        """This machine is home of the objects with these tags, too."""
        if message.left:
            for obj in self._store.store.names():
                if ids.home_of(obj) in message.tags:
                    self._store.record(obj)
            return
        self._tags.update(message.tags)
        for tag in message.tags:
            self._node._do(s.Offer(f"{HOME}{tag.hex()}"))

    # -- the gateway's words

    def said(self, side: Side, message: Any) -> None:
        """Only the gateway may say these."""
        if side.pid != self._node.gateway_pid():
            raise m.ProtocolError(f"{type(message).__name__} is the gateway's to say")
        handler = self._MESSAGES.get(type(message))
        if handler is not None:
            handler(self, side, message)

    def asked(self, side: Side, message: Any) -> None:
        """A question of the gateway's, now that all is known which was said before it."""
        self._QUESTIONS[type(message)](self, side, message)

    _QUESTIONS: dict[type[Any], Callable[[Any, Any, Any], None]] = {  # noqa: RUF012
        m.StoreLend: lent,
        m.StoreInside: inside,
        m.StoreEstate: estate,
    }
    _MESSAGES: dict[type[Any], Callable[[Any, Any, Any], None]] = {  # noqa: RUF012
        m.StoreLend: lend,
        m.StoreLendEnd: lend_end,
        m.StorePeerGone: peer_gone,
        m.StoreServe: serve,
        m.StoreAway: lambda self, side, message: self.away(message),
    }
