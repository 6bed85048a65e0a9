"""A machine leaves the cluster: another one, its heir, gets what it is home of, and is home of it from then on.

```
 the leaver (Leaving)                                               the heir (Estates)
 Begin ─► LISTING ── Listed: what others hold ── Offer ───────────► Fetch each, as any machine does
            ▲  │                                                      │
            │  │            MOVING ◄──────────────────── Had ◄────────┘ all that was offered is here, or cannot be
            └──┼───────────────┘ (what is new since then?)
               └─ nothing new ─► GIVING ─ Give (no Borrow is answered any more) ─► TakeOver: it is home of it now
 Leave ◄──────────────────────── Taken ◄────────────────────────────┘ and keeps all of it …
                                                                     … until every borrower has Rebound: asked it anew
```

Who borrows what is not handed over: each borrower asks the new home itself (`Moved` in borrowing.py) and then says that
it has. The heir keeps everything until all have, so nothing that is on its way at that time can be missed or counted
twice. The leaver, which answers no Borrow after Give, names those who borrow from it.

If an heir is gone, or cannot take all, the next one is tried; in the end the one that can take most. What nobody takes
is lost, and named.

Pure; one thread. Invariants (`check`): there is an heir exactly while MOVING and GIVING or while its round is listed;
an estate is never empty; all that is fetched for it has been offered.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic import IllegalMove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

AT_ONCE = 16
"""Objects that are fetched at a time."""

# ------------------------------------------------------------------------------------------------ the leaver's events


class Begin(NamedTuple):
    """Nothing runs here any more. `heirs`: machines that could take over, the best first."""

    heirs: tuple[bytes, ...]


class Listed(NamedTuple):
    """What others hold of ours: (object, bytes) each."""

    objs: tuple[tuple[bytes, int], ...]


class Had(NamedTuple):
    """The heir has fetched what it was offered up to this round, but for `lost`. (Also the heir's instruction.)"""

    node: bytes
    round: int
    lost: tuple[bytes, ...]


class Without(NamedTuple):
    """That machine is gone, takes nothing, or does not get on."""

    node: bytes


class Unneeded(NamedTuple):
    """Nobody but the heir holds these any more."""

    objs: tuple[bytes, ...]


class Taken(NamedTuple):
    """The heir has taken over."""

    node: bytes


# ------------------------------------------------------------------------------------------------ its instructions


class List(NamedTuple):
    """Find out what others hold of ours; answer with Listed."""


class Offer(NamedTuple):
    """Tell that machine to fetch these. (Also the heir's event, with the leaver's name.)"""

    node: bytes
    round: int
    objs: tuple[bytes, ...]


class Drop(NamedTuple):
    """Tell it that these are not to be fetched, or kept. (The same.)"""

    node: bytes
    objs: tuple[bytes, ...]


class Give(NamedTuple):
    """From now on answer no Borrow; tell it to take over."""

    node: bytes


class Leave(NamedTuple):
    """It is over. `lost`: what could not be moved: (object, bytes) each."""

    lost: tuple[tuple[bytes, int], ...]


ToLeave = Begin | Listed | Had | Without | Unneeded | Taken
LeaverDoes = List | Offer | Drop | Give | Leave

HERE = "here"
LISTING = "listing"
MOVING = "moving"
GIVING = "giving"
LEFT = "left"

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (HERE, Begin): LISTING,
    (LISTING, Offer): MOVING,
    (MOVING, List): LISTING,
    (LISTING, List): LISTING,
    (LISTING, Give): GIVING,
    (LISTING, Leave): LEFT,
    (MOVING, Leave): LEFT,
    (GIVING, Leave): LEFT,
}


class Leaving:
    """A machine that leaves; see the module."""

    def __init__(self) -> None:
        self.state = HERE
        self.heir: bytes | None = None
        self.offered: dict[bytes, int] = {}
        """To the heir: object → bytes."""
        self.lost: set[bytes] = set()
        """Of these, what it could not get."""
        self.round = 0
        self._heirs: deque[bytes] = deque()
        self._could: dict[bytes, int] = {}
        """Machines that could not take all → bytes that they could not."""
        self._content = False
        """The heir is the best that there is."""
        self._handlers: dict[type[tuple[object, ...]], Callable[..., None]] = {
            Begin: self._begin,
            Listed: self._listed,
            Had: self._had,
            Without: self._without,
            Unneeded: self._unneeded,
            Taken: self._taken,
        }

    def handle(self, event: ToLeave) -> list[LeaverDoes]:
        """Apply one event; returns what the role must do, in this order.

        Raises:
            IllegalMove: the event is not allowed now; nothing has changed.
        """
        out: list[LeaverDoes] = []
        self._handlers[type(event)](event, out)
        return out

    def _begin(self, event: Begin, out: list[LeaverDoes]) -> None:
        if self.state != HERE:
            raise IllegalMove(self.state, "Begin", "this machine")
        self.state = MOVES[HERE, Begin]
        self._heirs = deque(event.heirs)
        self._next_heir()
        out.append(List())

    def _listed(self, event: Listed, out: list[LeaverDoes]) -> None:
        if self.state != LISTING:
            raise IllegalMove(self.state, "Listed", "this machine")
        alive = dict(event.objs)
        if not alive or self.heir is None:
            self._leave(alive, out)
            return
        new = tuple(obj for obj in alive if obj not in self.offered)
        self.lost &= alive.keys()
        if new:
            self.offered.update((obj, alive[obj]) for obj in new)
            self.round += 1
            self._do(Offer(self.heir, self.round, new), out)
        else:
            self._do(Give(self.heir), out)

    def _had(self, event: Had, out: list[LeaverDoes]) -> None:
        if self.state != MOVING or event.node != self.heir or event.round != self.round:
            return  # late
        self.lost |= set(event.lost) & self.offered.keys()
        if self.lost and not self._content:
            self._could[self.heir] = sum(self.offered[obj] for obj in self.lost)
            self._try_another(out)
        self._do(List(), out)

    def _without(self, event: Without, out: list[LeaverDoes]) -> None:
        self._could.pop(event.node, None)
        self._heirs = deque(node for node in self._heirs if node != event.node)
        if event.node != self.heir or self.state not in (LISTING, MOVING, GIVING):
            return
        if self.state == GIVING:  # it may have taken over; nobody else can any more
            self._leave(self.offered, out)
            return
        listed = self.state == LISTING
        self._next_heir()
        if not listed:
            self._do(List(), out)

    def _unneeded(self, event: Unneeded, out: list[LeaverDoes]) -> None:
        objs = tuple(obj for obj in event.objs if obj in self.offered)
        if objs and self.heir is not None and self.state in (LISTING, MOVING):
            for obj in objs:
                del self.offered[obj]
                self.lost.discard(obj)
            out.append(Drop(self.heir, objs))

    def _taken(self, event: Taken, out: list[LeaverDoes]) -> None:
        if self.state == GIVING and event.node == self.heir:
            self._leave({obj: self.offered[obj] for obj in self.lost}, out)

    def _try_another(self, out: list[LeaverDoes]) -> None:
        """The heir cannot take all; but for the case that it is the best, what it has got is for nothing."""
        assert self.heir is not None
        best = min(self._could, key=lambda node: self._could[node])
        if not self._heirs and best == self.heir:
            self._content = True
            return
        out.append(Drop(self.heir, tuple(self.offered)))
        self._next_heir()

    def _next_heir(self) -> None:
        self.offered, self.lost = {}, set()
        self._content = False
        if self._heirs:
            self.heir = self._heirs.popleft()
        elif self._could:
            self._content = True
            self.heir = min(self._could, key=lambda node: self._could[node])
        else:
            self.heir = None

    def _leave(self, lost: dict[bytes, int], out: list[LeaverDoes]) -> None:
        self._do(Leave(tuple(lost.items())), out)

    def _do(self, order: LeaverDoes, out: list[LeaverDoes]) -> None:
        self.state = MOVES[self.state, type(order)]
        out.append(order)

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        assert self.lost <= self.offered.keys()
        assert self.heir is not None or self.state in (HERE, LISTING, LEFT)
        assert self.heir not in self._heirs
        assert not self.offered or self.heir is not None


# ------------------------------------------------------------------------------------------------ the heir's events

Offered, Dropped = Offer, Drop

GOT, MISSED, FREED = "got", "missed", "freed"
"""What has become of an object that was to be fetched; FREED: nobody holds it any more."""


class Came(NamedTuple):
    """An object that was to be fetched: one of the three words above."""

    node: bytes
    obj: bytes
    how: str


class Given(NamedTuple):
    """That machine leaves. `tags`: what the ids of its objects begin with; `borrowers`: who is to ask us anew."""

    node: bytes
    tags: tuple[bytes, ...]
    borrowers: tuple[bytes, ...]


class Rebound(NamedTuple):
    """A borrower has asked us for all that it holds with these tags."""

    node: bytes
    tags: tuple[bytes, ...]


class NodeLost(NamedTuple):
    """That machine is gone."""

    node: bytes


class Late(NamedTuple):
    """Whoever has not asked by now for what that machine left does not know of it any more."""

    node: bytes


# ------------------------------------------------------------------------------------------------ its instructions


class Fetch(NamedTuple):
    """Hold the object, borrow it and get a copy; answer with Came."""

    node: bytes
    obj: bytes


class LetGo(NamedTuple):
    """It is not held on that account any more; no Came follows."""

    node: bytes
    obj: bytes


class TakeOver(NamedTuple):
    """Be home of the objects with these tags, and tell everybody."""

    node: bytes
    tags: tuple[bytes, ...]


ToInherit = Offer | Drop | Came | Given | Rebound | NodeLost | Late
HeirDoes = Fetch | LetGo | Had | TakeOver


class _Estate:
    """What one machine leaves to us.

    Attributes:
        objs: object → whether it is here.
        left: to be fetched, in order.
        coming: being fetched.
        round: of the latest offer; 0: it has been answered.
        tags: empty until it is ours.
    """

    __slots__ = ("borrowers", "coming", "left", "lost", "objs", "round", "tags")

    def __init__(self) -> None:
        self.objs: dict[bytes, bool] = {}
        self.left: deque[bytes] = deque()
        self.coming: set[bytes] = set()
        self.lost: list[bytes] = []
        self.round = 0
        self.tags: tuple[bytes, ...] = ()
        self.borrowers: set[bytes] = set()


class Estates:
    """What machines that leave have left, or will leave, to this one; see the module."""

    def __init__(self) -> None:
        self.estates: dict[bytes, _Estate] = {}
        self._handlers: dict[type[tuple[object, ...]], Callable[..., None]] = {
            Offered: self._offered,
            Dropped: self._dropped,
            Came: self._came,
            Given: self._given,
            Rebound: self._rebound,
            NodeLost: self._node_lost,
            Late: self._late,
        }

    def handle(self, event: ToInherit) -> list[HeirDoes]:
        """Apply one event; returns what the role must do, in this order."""
        out: list[HeirDoes] = []
        self._handlers[type(event)](event, out)
        return out

    def moving(self) -> bool:
        """Whether something is being fetched for an estate that is not ours yet."""
        return any(not estate.tags for estate in self.estates.values())

    def awaited(self) -> set[bytes]:
        """Borrowers that have not asked anew."""
        return {node for estate in self.estates.values() for node in estate.borrowers}

    def _offered(self, event: Offer, out: list[HeirDoes]) -> None:
        estate = self.estates.setdefault(event.node, _Estate())
        estate.round = event.round
        new = [obj for obj in event.objs if obj not in estate.objs]
        estate.objs.update(dict.fromkeys(new, False))
        estate.left.extend(new)
        self._go_on(event.node, estate, out)

    def _dropped(self, event: Drop, out: list[HeirDoes]) -> None:
        estate = self.estates.get(event.node)
        if estate is not None and not estate.tags:
            self._without(event.node, estate, event.objs, out)
            self._go_on(event.node, estate, out)

    def _came(self, event: Came, out: list[HeirDoes]) -> None:
        estate = self.estates.get(event.node)
        if estate is None or event.obj not in estate.coming:
            return  # it had been let go
        estate.coming.discard(event.obj)
        if event.how == GOT:
            estate.objs[event.obj] = True
        else:
            del estate.objs[event.obj]
            out.append(LetGo(event.node, event.obj))
            if event.how == MISSED:
                estate.lost.append(event.obj)
        self._go_on(event.node, estate, out)

    def _given(self, event: Given, out: list[HeirDoes]) -> None:
        estate = self.estates.setdefault(event.node, _Estate())
        estate.tags, estate.borrowers = event.tags, set(event.borrowers)
        out.append(TakeOver(event.node, event.tags))
        self._perhaps_settled(event.node, estate, out)

    def _rebound(self, event: Rebound, out: list[HeirDoes]) -> None:
        for node, estate in list(self.estates.items()):
            if estate.tags and set(estate.tags) <= set(event.tags):
                estate.borrowers.discard(event.node)
                self._perhaps_settled(node, estate, out)

    def _node_lost(self, event: NodeLost, out: list[HeirDoes]) -> None:
        estate = self.estates.get(event.node)
        if estate is not None and not estate.tags:  # else it has only left
            self._end(event.node, estate, out)
        for node, other in list(self.estates.items()):
            if other.tags:
                other.borrowers.discard(event.node)
                self._perhaps_settled(node, other, out)

    def _late(self, event: Late, out: list[HeirDoes]) -> None:
        estate = self.estates.get(event.node)
        if estate is not None and estate.tags:
            self._end(event.node, estate, out)

    def _go_on(self, node: bytes, estate: _Estate, out: list[HeirDoes]) -> None:
        while estate.left and len(estate.coming) < AT_ONCE:
            obj = estate.left.popleft()
            estate.coming.add(obj)
            out.append(Fetch(node, obj))
        if not estate.left and not estate.coming and estate.round:
            out.append(Had(node, estate.round, tuple(estate.lost)))
            estate.round, estate.lost = 0, []
        if not estate.objs and not estate.tags:
            del self.estates[node]

    def _without(self, node: bytes, estate: _Estate, objs: Iterable[bytes], out: list[HeirDoes]) -> None:
        gone = [obj for obj in objs if obj in estate.objs]
        for obj in gone:
            waited = not estate.objs.pop(obj) and obj not in estate.coming
            estate.coming.discard(obj)
            if not waited:
                out.append(LetGo(node, obj))
        if gone:
            estate.left = deque(obj for obj in estate.left if obj in estate.objs)

    def _perhaps_settled(self, node: bytes, estate: _Estate, out: list[HeirDoes]) -> None:
        if not estate.borrowers:
            self._end(node, estate, out)

    def _end(self, node: bytes, estate: _Estate, out: list[HeirDoes]) -> None:
        self._without(node, estate, list(estate.objs), out)
        del self.estates[node]

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        for estate in self.estates.values():
            assert estate.objs or estate.borrowers, "nothing is left of it"
            fetched = {obj for obj, here in estate.objs.items() if here}
            assert set(estate.left) | estate.coming | fetched == estate.objs.keys()
            assert not estate.coming & fetched
            assert not estate.tags or not (estate.left or estate.coming)
            assert len(estate.coming) <= AT_ONCE


# ------------------------------------------------------------------------------------------------ everybody


class Homes:
    """Which machine is home of the objects whose ids begin with a tag, as far as one machine knows.

    Each time a tag goes to an heir it has gone one step further; what is heard late, of an earlier step, is ignored.
    """

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        """Tag → the machine."""
        self._steps: dict[bytes, int] = {}

    def up(self, node: bytes, tag: bytes) -> None:
        """There is a link to the machine that has made the objects with this tag."""
        if not self._steps.get(tag):
            self.nodes[tag] = node

    def moved(self, node: bytes, tags: dict[bytes, int]) -> list[bytes]:
        """That machine, to which there is a link, is home now; returns for which tags that is news."""
        news = []
        for tag, step in tags.items():
            known = self._steps.get(tag, 0)
            if step > known or (step == known and tag not in self.nodes):
                self._steps[tag], self.nodes[tag] = step, node
                news.append(tag)
        return news

    def taken(self, tags: dict[bytes, int]) -> None:
        """We are."""
        for tag, step in tags.items():
            self._steps[tag] = step
            self.nodes.pop(tag, None)

    def down(self, node: bytes) -> list[bytes]:
        """There is no link to that machine any more; returns the tags that nobody is home of now."""
        tags = [tag for tag, home in self.nodes.items() if home == node]
        for tag in tags:
            del self.nodes[tag]
        return tags
