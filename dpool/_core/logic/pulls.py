"""Objects on their way to this machine: where each piece comes from, until all are there.

```
 Want ─► ROOM ─Ready─► FETCHING ─Piece …, the last─► complete (Complete, forgotten)
          │              │  ▲
          │       no source │ Copies                   source lost: its pieces are asked for elsewhere,
          │              ▼  │                          those that came stay
          └─Unwant─►  LOCATING ─Copies: none─► Lost (forgotten)
```

One transfer per object, however many wait for it. An object is cut into pieces of `PIECE_BYTES`, so that no message is
large, a transfer is resumed where it broke off, and pieces are handed on before the object is whole (see serving.py:
broadcasts form trees). Pieces come from every machine that has the whole object, `WINDOW` asked for at a time from
each, or else from one machine that is still receiving it: following one such machine only, everybody hangs below a
whole copy and nobody in a circle.

Pure; one thread. Invariants (`check`): each piece is there, asked of one source, or still to be asked for; an object
that is FETCHING has a source; nothing is asked of more than one machine at a time.

Source: Ray (OSDI 2018) §4.2.3 (objects are replicated to the machine that needs them); the tree is Cornet's and
BitTorrent's idea in its simplest form.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic import IllegalMove

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_BYTES = 1 << 20
WINDOW = 8
"""Pieces asked for at a time from one source: what keeps a long link busy."""
MAX_SOURCES = 4


# ------------------------------------------------------------------------------------------------ events


class Want(NamedTuple):
    """Somebody here needs it. `nodes`: where whole copies were; may be empty. Once for each who needs it."""

    object_id: bytes
    size: int
    nodes: tuple[bytes, ...]


class Unwant(NamedTuple):
    """One of them does not need it any more."""

    object_id: bytes


class Ready(NamedTuple):
    """There is room for it."""

    object_id: bytes


class Piece(NamedTuple):
    """It came, and is in its place. May come twice, or late."""

    object_id: bytes
    node: bytes
    piece: int


class Redirected(NamedTuple):
    """That machine serves enough others: `to` is receiving it from there, or has it."""

    object_id: bytes
    node: bytes
    to: bytes


class Missing(NamedTuple):
    """That machine does not have it."""

    object_id: bytes
    node: bytes


class NodeLost(NamedTuple):
    """That machine is gone, or cannot be reached."""

    node: bytes


class Stalled(NamedTuple):
    """Nothing has come for too long, though its sources are alive (each may be waiting for the next)."""

    object_id: bytes


class Copies(NamedTuple):
    """The answer to Locate: machines that have it whole."""

    object_id: bytes
    nodes: tuple[bytes, ...]


Event = Want | Unwant | Ready | Piece | Redirected | Missing | NodeLost | Stalled | Copies


# ------------------------------------------------------------------------------------------------ instructions


class MakeRoom(NamedTuple):
    """Answer with Ready, or with Unwant for each who wants it."""

    object_id: bytes
    size: int


class Ask(NamedTuple):
    """Ask that machine for a piece.

    `join`: the first one; if we are sent elsewhere, those that follow on the link are void. `insist`: it must serve us.
    """

    object_id: bytes
    node: bytes
    piece: int
    join: bool
    insist: bool


class Leave(NamedTuple):
    """Tell that machine that nothing more is asked of it. `whole`: we have all of it now."""

    object_id: bytes
    node: bytes
    whole: bool


class Locate(NamedTuple):
    """Ask the control store where it is; answer with Copies."""

    object_id: bytes


class Complete(NamedTuple):
    """All of it is there."""

    object_id: bytes


class Abandon(NamedTuple):
    """Nobody wants it any more: its room is free."""

    object_id: bytes


class Lost(NamedTuple):
    """No machine has it. Its room is free."""

    object_id: bytes


Instruction = MakeRoom | Ask | Leave | Locate | Complete | Abandon | Lost


# ------------------------------------------------------------------------------------------------ moves

ABSENT = "absent"
ROOM = "room"
FETCHING = "fetching"
LOCATING = "locating"

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, Want): ROOM,
    (ROOM, Want): ROOM,
    (FETCHING, Want): FETCHING,
    (LOCATING, Want): LOCATING,
    (ROOM, Ready): FETCHING,
    (FETCHING, Locate): LOCATING,
    (LOCATING, Copies): FETCHING,
    # The end.
    (FETCHING, Complete): ABSENT,
    (LOCATING, Complete): ABSENT,  # the last piece was on its way
    (LOCATING, Lost): ABSENT,
    (ROOM, Abandon): ABSENT,
    (FETCHING, Abandon): ABSENT,
    (LOCATING, Abandon): ABSENT,
}


class _Pull:
    """One object.

    Attributes:
        wanted: how many need it.
        sources: machine → the pieces asked of it.
        following: the only source is still receiving it itself, or may be.
        left: pieces to be asked for, in order.
        there: how many pieces have come.
        denied: machines that did not have it when we were sent there; asked no more.
        joined: the sources that have been asked for something.
        insist: a machine we were sent to did not have it: whoever is asked next must serve.
    """

    __slots__ = (
        "copies", "denied", "following", "insist", "joined", "left", "missing", "pieces", "size", "sources", "state",
        "wanted",
    )  # fmt: skip

    def __init__(self, event: Want) -> None:
        self.state = MOVES[ABSENT, Want]
        self.size = event.size
        self.pieces = max(1, -(-event.size // PIECE_BYTES))
        self.missing = set(range(self.pieces))
        self.left = deque(range(self.pieces))
        self.wanted = 1
        self.copies = dict.fromkeys(event.nodes)
        self.sources: dict[bytes, set[int]] = {}
        self.following = False
        self.insist = False
        self.joined: set[bytes] = set()
        self.denied: set[bytes] = set()


class Pulls:
    """What is on its way to one machine; see the module."""

    def __init__(self) -> None:
        self.pulls: dict[bytes, _Pull] = {}
        self._handlers: dict[type[tuple[object, ...]], Callable[..., None]] = {
            Want: self._want,
            Unwant: self._unwant,
            Ready: self._ready,
            Piece: self._piece,
            Redirected: self._redirected,
            Missing: self._missing,
            NodeLost: self._node_lost,
            Stalled: self._stalled,
            Copies: self._copies,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; returns what the role must do, in this order.

        Raises:
            IllegalMove: the event is not allowed now; nothing has changed.
        """
        out: list[Instruction] = []
        self._handlers[type(event)](event, out)
        return out

    # -- what happens here

    def _want(self, event: Want, out: list[Instruction]) -> None:
        pull = self.pulls.get(event.object_id)
        if pull is None:
            self.pulls[event.object_id] = _Pull(event)
            out.append(MakeRoom(event.object_id, event.size))
            return
        if pull.size != event.size:
            raise IllegalMove(pull.state, "Want", f"object {event.object_id.hex()} of {pull.size} bytes")
        pull.wanted += 1
        pull.copies.update(dict.fromkeys(node for node in event.nodes if node not in pull.denied))
        if pull.state == FETCHING and not pull.following:
            self._ask(event.object_id, pull, out)

    def _unwant(self, event: Unwant, out: list[Instruction]) -> None:
        pull = self._known(event.object_id, "Unwant")
        pull.wanted -= 1
        if not pull.wanted:
            self._leave_all(event.object_id, pull, False, out)
            out.append(Abandon(event.object_id))
            self._end(event.object_id, pull, Abandon)

    def _ready(self, event: Ready, out: list[Instruction]) -> None:
        pull = self._known(event.object_id, "Ready")
        self._move(event.object_id, pull, Ready)
        self._ask(event.object_id, pull, out)

    # -- what other machines say

    def _piece(self, event: Piece, out: list[Instruction]) -> None:
        pull = self.pulls.get(event.object_id)
        if pull is None or pull.state == ROOM:
            return  # late, from an earlier transfer
        pull.sources.get(event.node, set()).discard(event.piece)
        if event.piece in pull.missing:
            pull.missing.remove(event.piece)
            if all(event.piece not in asked for asked in pull.sources.values()):
                try:
                    pull.left.remove(event.piece)
                except ValueError:
                    pass  # asked of the machine it came from, as always
            for asked in pull.sources.values():
                asked.discard(event.piece)
        if pull.missing:
            self._ask(event.object_id, pull, out)
        else:
            self._leave_all(event.object_id, pull, True, out)
            out.append(Complete(event.object_id))
            self._end(event.object_id, pull, Complete)

    def _redirected(self, event: Redirected, out: list[Instruction]) -> None:
        pull = self.pulls.get(event.object_id)
        if pull is None or event.node not in pull.sources:
            return
        self._drop_source(pull, event.node)
        pull.copies.pop(event.node, None)
        if not pull.sources and event.to not in pull.denied:
            pull.following = True
            pull.sources[event.to] = set()
        self._ask(event.object_id, pull, out)

    def _missing(self, event: Missing, out: list[Instruction]) -> None:
        pull = self.pulls.get(event.object_id)
        if pull is None:
            return
        pull.insist = pull.insist or pull.following
        pull.denied.add(event.node)
        self._without(event.object_id, pull, event.node, out)

    def _node_lost(self, event: NodeLost, out: list[Instruction]) -> None:
        for object_id, pull in list(self.pulls.items()):
            pull.denied.discard(event.node)
            self._without(object_id, pull, event.node, out)

    def _stalled(self, event: Stalled, out: list[Instruction]) -> None:
        pull = self.pulls.get(event.object_id)
        if pull is None or pull.state != FETCHING:
            return
        pull.insist = True
        self._leave_all(event.object_id, pull, False, out)
        pull.copies.clear()
        self._ask(event.object_id, pull, out)

    def _without(self, object_id: bytes, pull: _Pull, node: bytes, out: list[Instruction]) -> None:
        pull.copies.pop(node, None)
        if node in pull.sources:
            self._drop_source(pull, node)
            self._ask(object_id, pull, out)

    def _copies(self, event: Copies, out: list[Instruction]) -> None:
        pull = self.pulls.get(event.object_id)
        if pull is None or pull.state != LOCATING:
            return
        if not event.nodes:
            out.append(Lost(event.object_id))
            self._end(event.object_id, pull, Lost)
            return
        # What the control store says is newer than a refusal.
        pull.denied.clear()
        pull.copies = dict.fromkeys(event.nodes)
        self._move(event.object_id, pull, Copies)
        self._ask(event.object_id, pull, out)

    # -- what follows

    def _ask(self, object_id: bytes, pull: _Pull, out: list[Instruction]) -> None:
        """Ask for as many pieces as may be on their way at a time."""
        if pull.state != FETCHING:
            return
        if not pull.following:
            for node in pull.copies:
                if len(pull.sources) < MAX_SOURCES and node not in pull.sources:
                    pull.sources[node] = set()
        if not pull.sources:
            pull.following = False
            self._move(object_id, pull, Locate)
            out.append(Locate(object_id))
            return
        while pull.left:
            node = min(pull.sources, key=lambda name: len(pull.sources[name]))
            if len(pull.sources[node]) >= WINDOW:
                return
            index = pull.left.popleft()
            pull.sources[node].add(index)
            out.append(Ask(object_id, node, index, node not in pull.joined, pull.insist))
            pull.joined.add(node)

    def _drop_source(self, pull: _Pull, node: bytes) -> None:
        pull.left.extendleft(sorted(pull.sources.pop(node), reverse=True))
        pull.joined.discard(node)
        if not pull.sources:
            pull.following = False

    def _leave_all(self, object_id: bytes, pull: _Pull, whole: bool, out: list[Instruction]) -> None:
        for node in list(pull.sources):
            out.append(Leave(object_id, node, whole))
            self._drop_source(pull, node)

    # -- look-ups

    def _known(self, object_id: bytes, event: str) -> _Pull:
        pull = self.pulls.get(object_id)
        if pull is None:
            raise IllegalMove(ABSENT, event, f"object {object_id.hex()}")
        return pull

    def _move(self, object_id: bytes, pull: _Pull, cause: type[tuple[object, ...]]) -> None:
        state = MOVES.get((pull.state, cause))
        if state is None:
            raise IllegalMove(pull.state, cause.__name__, f"object {object_id.hex()}")
        pull.state = state

    def _end(self, object_id: bytes, pull: _Pull, cause: type[tuple[object, ...]]) -> None:
        self._move(object_id, pull, cause)
        del self.pulls[object_id]

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        for object_id, pull in self.pulls.items():
            asked = [index for pieces in pull.sources.values() for index in pieces]
            assert len(asked) == len(set(asked)), f"{object_id.hex()}: a piece is asked of two machines"
            assert set(asked) | set(pull.left) == pull.missing, f"{object_id.hex()}: a piece is forgotten"
            assert not set(asked) & set(pull.left), f"{object_id.hex()}: a piece is asked for and to be asked for"
            assert len(pull.left) == len(set(pull.left))
            assert all(len(pieces) <= WINDOW for pieces in pull.sources.values())
            assert not pull.following or len(pull.sources) == 1
            assert pull.wanted > 0
            assert pull.missing, "it is complete"
            assert bool(pull.sources) == (pull.state == FETCHING)
