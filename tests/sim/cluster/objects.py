"""The objects of a simulated machine: who holds them, and how they come from other machines.

A frame that comes with references is held (Borrowing, which asks their homes) and its objects are fetched (Pulls,
from whoever has them: Serving); it runs when both are done. Programs hold what their tasks need until all have ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dpool._core.logic import borrowing as b
from dpool._core.logic import pulls as p
from dpool._core.logic import references as r
from dpool._core.logic import serving as v

if TYPE_CHECKING:
    from tests.sim.cluster.machine import SimMachine

PROGRAM, GATEWAY = 1, 2
"""Holders; machine n is holder -1 - n."""
SHORT = 200
STALL_S = 2.0
HOME = 6
"""Bytes of an object's id that name its home."""


class _Frame:
    """A frame that waits for what its tasks need."""

    __slots__ = ("clear", "lacks", "lost", "ready")

    def __init__(self, ready: Callable[[bool], None]) -> None:
        self.ready = ready
        self.clear = False
        self.lacks: set[bytes] = set()
        self.lost = False


class SimObjects:
    """See the module.

    Attributes:
        sizes: of all objects that are here, or have been wanted here.
        whole: those that are here.
        received: object → pieces that came.
        fetched: object → how often it was fetched.
    """

    def __init__(self, machine: SimMachine) -> None:
        self._machine = machine
        self._engine = machine.engine
        self.references = r.References()
        self.borrowing = b.Borrowing(machine.name)
        self.pulls = p.Pulls()
        self.serving = v.Serving()
        self.sizes: dict[bytes, int] = {}
        self.whole: set[bytes] = set()
        self.received: Counter[bytes] = Counter()
        self.fetched: Counter[bytes] = Counter()
        self._frames: dict[int, _Frame] = {}
        self._tokens = 0
        self._made = 0

    # -- what happens here

    def put(self, size: int) -> bytes:
        """A new object whose home is here; whoever makes it must have it held before anything else happens."""
        self._made += 1
        obj = self._machine.name + self._made.to_bytes(8, "big")
        self.sizes[obj] = size
        self.whole.add(obj)
        self._serve(v.Whole(obj))
        return obj

    def program_holds(self, obj: bytes) -> None:
        self.references.handle(r.Acquire(obj, PROGRAM))

    def program_drops(self, obj: bytes) -> None:
        self._freed(self.references.handle(r.Release(obj, PROGRAM)))

    def frame_came(self, sender: bytes, refs: Sequence[bytes], ready: Callable[[bool], None]) -> int:
        """`ready` is called when all that it needs is here, or (False) is lost. Returns its token, for `frame_done`."""
        self._tokens += 1
        token = self._tokens
        frame = self._frames[token] = _Frame(ready)
        frame.lacks = {obj for obj in refs if obj not in self.whole}
        for obj in sorted(frame.lacks):
            home = self._machine.world[obj[:HOME]]
            size = self.sizes.setdefault(obj, home.objects.sizes[obj])
            self._pull(p.Want(obj, size, (sender,)))
        self._borrow(b.Arrived(token, tuple((obj, obj[:HOME]) for obj in refs)))
        self._perhaps_ready(token, frame)
        return token

    def frame_done(self, token: int) -> None:
        """It has been answered, or its worker is dead."""
        frame = self._frames.pop(token)
        for obj in sorted(frame.lacks):
            if obj in self.pulls.pulls:
                self._pull(p.Unwant(obj))
        self._borrow(b.Done(token))

    def check_there(self, refs: Sequence[bytes]) -> None:
        for obj in refs:
            assert obj in self.whole, f"a task began without {obj.hex()}"
            assert obj in self.references, f"a task began while nobody holds {obj.hex()}"

    def _perhaps_ready(self, token: int, frame: _Frame) -> None:
        if frame.lost or (frame.clear and not frame.lacks):
            ready, frame.ready = frame.ready, _said
            self._engine.after(0.0, self._ready, token, ready, not frame.lost)

    def _ready(self, token: int, ready: Callable[[bool], None], complete: bool) -> None:
        if token in self._frames and self._machine.alive:
            ready(complete)

    # -- references

    def _borrow(self, event: b.Event) -> None:
        machine = self._machine
        for order in self.borrowing.handle(event):
            if isinstance(order, b.Hold):
                self.references.handle(r.Acquire(order.obj, GATEWAY))
            elif isinstance(order, b.Release):
                self._freed(self.references.handle(r.Release(order.obj, GATEWAY)))
            elif isinstance(order, b.AskBorrow):
                if not machine.post(order.home, SHORT, _ask_borrow, order.obj):
                    self._engine.after(0.0, self._home_lost, order.home)
            elif isinstance(order, b.Return):
                machine.post(order.home, SHORT, _given_back, order.obj)
            elif order.token in self._frames:
                frame = self._frames[order.token]
                frame.clear = True
                self._perhaps_ready(order.token, frame)

    def _home_lost(self, home: bytes) -> None:
        if self._machine.alive:
            self._borrow(b.HomeLost(home))

    def asked_to_lend(self, sender: bytes, obj: bytes) -> None:
        if obj in self.references:
            self.references.handle(r.Acquire(obj, self._holder(sender)))
            self._machine.post(sender, SHORT, _borrowed, b.Borrowed(obj))
        else:
            self._machine.post(sender, SHORT, _borrowed, b.Refused(obj))

    def given_back(self, sender: bytes, obj: bytes) -> None:
        self._freed(self.references.handle(r.Release(obj, self._holder(sender))))

    def borrowed(self, sender: bytes, answer: b.Borrowed | b.Refused) -> None:
        self._borrow(answer)

    def _holder(self, peer: bytes) -> int:
        return -1 - int.from_bytes(peer, "big")

    def _freed(self, orders: Sequence[r.Freed]) -> None:
        for order in orders:
            self.whole.discard(order.obj)
            self._serve(v.Gone(order.obj))
            if order.obj[:HOME] == self._machine.name:
                self._check_nobody_has(order.obj)
            else:  # the store's word reaches the gateway a little later
                self._engine.after(self._engine.costs.hop_s, self._said_freed, order.obj)

    def _said_freed(self, obj: bytes) -> None:
        if self._machine.alive:
            self._borrow(b.Freed(obj))

    def _check_nobody_has(self, obj: bytes) -> None:
        if self._engine.careful:
            for peer in self._machine.world.values():
                holders = peer.objects.references.holders(obj) if peer.alive else {}
                assert PROGRAM not in holders or peer.name in self._machine.down, f"freed while {peer.name!r} has it"

    # -- transfer

    def _pull(self, event: p.Event) -> None:
        for order in self.pulls.handle(event):
            self._do_pull(order)

    def _do_pull(self, order: p.Instruction) -> None:
        machine, obj = self._machine, order.object_id
        if isinstance(order, p.MakeRoom):
            self._engine.after(0.0, self._room, obj)
            self._engine.after(STALL_S, self._look, obj, -1)
        elif isinstance(order, p.Ask):
            asked = v.Asked(obj, machine.name, order.piece, order.join, order.insist)
            if not machine.post(order.node, SHORT, _serve, asked):
                self._engine.after(0.0, self._unreachable, order.node)
        elif isinstance(order, p.Leave):
            machine.post(order.node, SHORT, _serve, v.Left(obj, machine.name, order.whole))
        elif isinstance(order, p.Locate):
            self._engine.gcs_commands(1, SHORT)
            self._engine.after(4 * self._engine.costs.latency_s, self._located, obj)
        elif isinstance(order, p.Complete):
            self._engine.gcs_commands(1, SHORT)
            self.fetched[obj] += 1
            self.whole.add(obj)
            self._serve(v.Whole(obj))
            self._settle(obj, False)
        else:
            self._serve(v.Gone(obj))
            if isinstance(order, p.Lost):
                self._settle(obj, True)

    def _settle(self, obj: bytes, lost: bool) -> None:
        for token, frame in list(self._frames.items()):
            if obj in frame.lacks:
                frame.lacks.discard(obj)
                frame.lost = frame.lost or lost
                self._perhaps_ready(token, frame)

    def _room(self, obj: bytes) -> None:
        if self._machine.alive and obj in self.pulls.pulls:
            self._serve(v.Coming(obj))
            self._pull(p.Ready(obj))

    def _look(self, obj: bytes, missing: int) -> None:
        pull = self.pulls.pulls.get(obj)
        if self._machine.alive and pull is not None:
            if len(pull.missing) == missing:
                self._pull(p.Stalled(obj))
            self._engine.after(STALL_S, self._look, obj, len(pull.missing))

    def _unreachable(self, node: bytes) -> None:
        if self._machine.alive:
            self._pull(p.NodeLost(node))

    def _located(self, obj: bytes) -> None:
        """The control store's answer: who has it, of those that are not known to be gone."""
        machine = self._machine
        if machine.alive and obj in self.pulls.pulls:
            found = [peer.name for peer in machine.world.values() if peer.alive and obj in peer.objects.whole]
            self._pull(p.Copies(obj, tuple(found[:32])))

    def _serve(self, event: v.Event) -> None:
        machine = self._machine
        for order in self.serving.handle(event):
            if isinstance(order, v.Send):
                size = min(p.PIECE_BYTES, self.sizes[order.object_id] - order.piece * p.PIECE_BYTES)
                self._engine.counts["pieces"] += 1
                piece = p.Piece(order.object_id, machine.name, order.piece)
                extra_s = self._engine.costs.piece_s * size / p.PIECE_BYTES
                machine.post(order.node, size + SHORT, _piece, piece, extra_s=extra_s)
            elif isinstance(order, v.Redirect):
                told = p.Redirected(order.object_id, machine.name, order.to)
                machine.post(order.node, SHORT, _told, told)
            else:
                machine.post(order.node, SHORT, _told, p.Missing(order.object_id, machine.name))

    def piece(self, sender: bytes, event: p.Piece) -> None:
        obj = event.object_id
        pull = self.pulls.pulls.get(obj)
        new = pull is not None and event.piece in pull.missing
        self.received[obj] += 1
        self._pull(event)
        if new and obj in self.pulls.pulls:
            self._serve(v.Here(obj, event.piece))

    def told(self, sender: bytes, event: p.Redirected | p.Missing) -> None:
        self._pull(event)

    def served(self, sender: bytes, event: v.Asked | v.Left) -> None:
        self._serve(event)

    # -- machines that go

    def peer_down(self, peer: bytes) -> None:
        self._pull(p.NodeLost(peer))
        self._serve(v.NodeLost(peer))
        self._borrow(b.HomeLost(peer))
        self._freed(self.references.handle(r.ProcessDied(self._holder(peer))))

    def check(self) -> None:
        self.references.check()
        self.borrowing.check()
        self.pulls.check()
        self.serving.check()

    def check_at_rest(self) -> None:
        assert not len(self.references), f"{len(self.references)} objects are held for ever"
        assert not self.borrowing.objects, "something is borrowed for ever"
        assert not self.borrowing.messages
        assert not self.pulls.pulls
        assert not self.serving.objects, "an object is kept that nobody holds"
        assert not self.whole
        assert not self._frames


def _said(complete: bool) -> None:
    """It has been said already."""


def _ask_borrow(machine: SimMachine, sender: bytes, obj: bytes) -> None:
    machine.objects.asked_to_lend(sender, obj)


def _given_back(machine: SimMachine, sender: bytes, obj: bytes) -> None:
    machine.objects.given_back(sender, obj)


def _borrowed(machine: SimMachine, sender: bytes, answer: Any) -> None:
    machine.objects.borrowed(sender, answer)


def _piece(machine: SimMachine, sender: bytes, event: p.Piece) -> None:
    machine.objects.piece(sender, event)


def _told(machine: SimMachine, sender: bytes, event: Any) -> None:
    machine.objects.told(sender, event)


def _serve(machine: SimMachine, sender: bytes, event: Any) -> None:
    machine.objects.served(sender, event)
