"""Objects on their way from this machine: who is served, and who is sent to somebody else for it.

```
 Asked ─► the piece is there: Send        (FANOUT machines at a time per object)
       ─► the piece is on its way here: kept until it comes
       ─► enough others are served: Redirect to one of those (it hands pieces on as they come): a tree
       ─► it is not here: Deny
```

A machine that asks for one object is served until it says that it has all, goes away, or the object does. The ones that
come later are sent to those that are served, in turn, and so on down: broadcasting to n machines takes the time of one
transfer plus a piece's per level of a tree with `FANOUT` branches, and no machine sends more than `FANOUT` copies.

Pure; one thread. Invariants (`check`): at most FANOUT are served without having insisted; what is kept is kept for
somebody who is served, and is not here.

Source: see pulls.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

FANOUT = 2
"""Machines served at a time with one object. With one, a broadcast would be a chain: as fast for large objects, and as
long as there are machines.
"""
MAX_WHOLE = 32
"""Machines remembered as having got all of an object."""


# ------------------------------------------------------------------------------------------------ events


class Coming(NamedTuple):
    """The object is on its way here: its pieces can be handed on."""

    object_id: bytes


class Here(NamedTuple):
    """A piece of an object that is Coming is in its place."""

    object_id: bytes
    piece: int


class Whole(NamedTuple):
    """All of it is here."""

    object_id: bytes


class Gone(NamedTuple):
    """It is not here any more, nor on its way."""

    object_id: bytes


class Asked(NamedTuple):
    """A machine asks for a piece; see `Ask` in pulls.py."""

    object_id: bytes
    node: bytes
    piece: int
    join: bool
    insist: bool


class Left(NamedTuple):
    """A machine asks for nothing more of it. `whole`: it has all of it."""

    object_id: bytes
    node: bytes
    whole: bool


class NodeLost(NamedTuple):
    """That machine is gone."""

    node: bytes


Event = Coming | Here | Whole | Gone | Asked | Left | NodeLost


# ------------------------------------------------------------------------------------------------ instructions


class Send(NamedTuple):
    """Send that machine the piece."""

    object_id: bytes
    node: bytes
    piece: int


class Redirect(NamedTuple):
    """Tell that machine to ask `to`."""

    object_id: bytes
    node: bytes
    to: bytes


class Deny(NamedTuple):
    """Tell that machine that it is not here."""

    object_id: bytes
    node: bytes


Instruction = Send | Redirect | Deny


class _Object:
    """One object that is here, or on its way.

    Attributes:
        here: its pieces; None: all.
        served: machine → pieces that it waits for.
        insisted: of those, the ones that are served beyond FANOUT.
        whole: machines that got all of it, the latest last.
        turn: counts redirections.
    """

    __slots__ = ("here", "insisted", "served", "turn", "whole")

    def __init__(self) -> None:
        self.here: set[int] | None = set()
        self.served: dict[bytes, set[int]] = {}
        self.insisted: set[bytes] = set()
        self.whole: dict[bytes, None] = {}
        self.turn = 0


class Serving:
    """What one machine gives to others; see the module."""

    def __init__(self) -> None:
        self.objects: dict[bytes, _Object] = {}
        self._handlers: dict[type[tuple[object, ...]], Callable[..., None]] = {
            Coming: self._coming,
            Here: self._here,
            Whole: self._whole,
            Gone: self._gone,
            Asked: self._asked,
            Left: self._left,
            NodeLost: self._node_lost,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; returns what the role must do, in this order."""
        out: list[Instruction] = []
        self._handlers[type(event)](event, out)
        return out

    # -- what happens here

    def _coming(self, event: Coming, out: list[Instruction]) -> None:
        self.objects.setdefault(event.object_id, _Object())

    def _here(self, event: Here, out: list[Instruction]) -> None:
        known = self.objects.get(event.object_id)
        if known is None or known.here is None:
            return
        known.here.add(event.piece)
        for node, waiting in known.served.items():
            if event.piece in waiting:
                waiting.remove(event.piece)
                out.append(Send(event.object_id, node, event.piece))

    def _whole(self, event: Whole, out: list[Instruction]) -> None:
        known = self.objects.setdefault(event.object_id, _Object())
        known.here = None
        for node, waiting in known.served.items():
            for index in sorted(waiting):
                out.append(Send(event.object_id, node, index))
            waiting.clear()

    def _gone(self, event: Gone, out: list[Instruction]) -> None:
        known = self.objects.pop(event.object_id, None)
        if known is not None:
            out.extend(Deny(event.object_id, node) for node in known.served)

    # -- what other machines say

    def _asked(self, event: Asked, out: list[Instruction]) -> None:
        known = self.objects.get(event.object_id)
        if known is None:
            out.append(Deny(event.object_id, event.node))
            return
        if event.node not in known.served and not (event.join and self._admit(known, event, out)):
            return
        if known.here is None or event.piece in known.here:
            out.append(Send(event.object_id, event.node, event.piece))
        else:
            known.served[event.node].add(event.piece)

    def _admit(self, known: _Object, event: Asked, out: list[Instruction]) -> bool:
        """Serve one more machine, or send it elsewhere."""
        if len(known.served) - len(known.insisted) >= FANOUT:
            if not event.insist:
                others = [node for node in (*known.served, *known.whole) if node != event.node]
                if others:
                    known.turn += 1
                    out.append(Redirect(event.object_id, event.node, others[known.turn % len(others)]))
                    return False
            known.insisted.add(event.node)
        known.whole.pop(event.node, None)
        known.served[event.node] = set()
        return True

    def _left(self, event: Left, out: list[Instruction]) -> None:
        known = self.objects.get(event.object_id)
        if known is None:
            return
        known.served.pop(event.node, None)
        known.insisted.discard(event.node)
        if event.whole:
            known.whole[event.node] = None
            while len(known.whole) > MAX_WHOLE:
                del known.whole[next(iter(known.whole))]

    def _node_lost(self, event: NodeLost, out: list[Instruction]) -> None:
        for known in self.objects.values():
            known.served.pop(event.node, None)
            known.insisted.discard(event.node)
            known.whole.pop(event.node, None)

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        for object_id, known in self.objects.items():
            assert len(known.served) - len(known.insisted) <= FANOUT, object_id.hex()
            assert known.insisted <= set(known.served)
            assert not set(known.whole) & set(known.served)
            assert len(known.whole) <= MAX_WHOLE
            for waiting in known.served.values():
                assert not waiting or known.here is not None, "all of it is here and somebody waits"
                assert not waiting & (known.here or set()), "a piece is here and somebody waits for it"
