"""Placement groups, the node's side: bundles of resources, set aside on machines all together or not at all.

```
 program ─ GroupCreate ─► its node ─ plan ─┬─ SetAside here
                            │              └─ BundleWanted ─► other nodes ─ BundleAnswer ─► all there, or given back:
                            ◄── a heartbeat, resources come free ── once more                GroupEnded
 program ─ GroupRemove, or it leaves ─► Dissolve here, GroupEnded ─► everywhere
```

The node of the program that made a group owns it. Nobody has to be told when the bundles are there: what they offer are
resources with the group's name, for which its tasks wait like for others (see places.py).

Runs in the node's loop. Invariant: a bundle is set aside at one machine at most, and what is set aside belongs to a
group of its owner's, or GroupEnded is on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core.logic import scheduler as s
from dpool._core.logic.places import STRATEGIES, STRICT_PACK, STRICT_SPREAD, groups_of, plan
from dpool._core.logic.resources import check_shape

if TYPE_CHECKING:
    from dpool._core.node import Node

HERE = b""
AGAIN_S = 0.1
"""A group that could not be placed is tried again so often, at most."""
MOST_REMOVED = 10_000
"""So many groups are known to have been removed; who asks for an older one waits."""


class _Group:
    """One of ours. `where`: number → machine, of the bundles that are set aside or asked for."""

    __slots__ = ("answers", "bundles", "client", "failed", "name", "strategy", "where")

    def __init__(self, client: int, message: m.GroupCreate) -> None:
        self.client = client
        self.name = message.group
        self.bundles = message.bundles
        self.strategy = message.strategy
        self.where: dict[int, bytes] = {}
        self.answers: set[int] = set()
        """Bundles that have been asked for, and nobody has answered."""
        self.failed = False
        """One of them was refused."""


class NodeGroups:
    """See the module."""

    def __init__(self, node: Node, log: Callable[..., None]) -> None:
        self._node = node
        self._log = log
        self._groups: dict[str, _Group] = {}
        self._guests: dict[str, bytes] = {}
        """Groups of other machines that have something here → their owner."""
        self._removed: dict[str, None] = {}
        self._next_look_s = 0.0
        self._armed = False

    # -- what programs say

    def create(self, client: int, message: m.GroupCreate) -> None:
        """A new group; ValueError for what cannot be."""
        if message.strategy not in STRATEGIES or not message.bundles or message.group in self._groups:
            raise ValueError(f"no group is like {message!r}")
        for bundle in message.bundles:
            check_shape(bundle)
        self._node.resources()
        self._groups[message.group] = _Group(client, message)
        self._place(self._groups[message.group])

    def remove(self, name: str) -> None:
        """It is over; if it is another node's, that hears of it."""
        group = self._groups.pop(name, None)
        if group is not None:
            self._end(name, True)
        elif self._node._abroad is not None:
            self._node._abroad.to_all_peers(m.GroupRemove(name))

    def client_left(self, client: int) -> None:
        """Its groups go with it."""
        for group in [one for one in self._groups.values() if one.client == client]:
            self.remove(group.name)

    def _end(self, name: str, for_good: bool) -> None:
        if self._node._abroad is not None:
            self._node._abroad.to_all_peers(m.GroupEnded(name, for_good))
        self._ended(name, for_good)

    def _ended(self, name: str, for_good: bool) -> None:
        self._guests.pop(name, None)
        if for_good:
            self._removed[name] = None
            while len(self._removed) > MOST_REMOVED:
                del self._removed[next(iter(self._removed))]
        self._node._do(s.Dissolve(name))
        if for_good:
            for request in list(self._node.scheduler.queue):
                if name in groups_of(request.shape):
                    self._refuse(request.pool.number, request.shape)

    def wanted(self, order: s.WarnInfeasible) -> None:
        """Somebody asks for a group that is not here: it may come, unless it is known to be over."""
        if groups_of(order.shape) & self._removed.keys():
            self._refuse(order.pool, order.shape)

    def _refuse(self, number: int, shape: m.Shape) -> None:
        pool = self._node._pools.get(number)
        if pool is None or number not in self._node.scheduler.pools:
            return
        text = "a task asks for a placement group that has been removed"
        if pool.actors is None:
            self._node._send(pool.client, m.Infeasible(pool.number, shape, text, True))
            self._node._do(s.CancelRequests(number, shape))
        else:
            self._node._soon.append(partial(pool.actors.infeasible, number, text))

    # -- placing

    def look(self) -> None:
        """Something has changed, here or elsewhere: try those that wait."""
        waiting = [group for group in self._groups.values() if len(group.where) < len(group.bundles)]
        if not waiting:
            return
        if monotonic() < self._next_look_s:
            if not self._armed:
                self._armed = True
                self._node._at(self._next_look_s, self._look_again)
            return
        for group in waiting:
            self._place(group)

    def _look_again(self) -> None:
        self._armed = False
        self.look()

    def _place(self, group: _Group) -> None:
        """Ask for the bundles that it has not; all of them, if they are to be on one machine."""
        self._next_look_s = monotonic() + AGAIN_S
        if group.answers:
            return
        missing = [number for number in range(len(group.bundles)) if number not in group.where]
        if group.strategy == STRICT_PACK and group.where and missing:
            self._give_up(group)
            missing = list(range(len(group.bundles)))
        frees = self._frees()
        if group.strategy == STRICT_SPREAD:
            frees = {node: free for node, free in frees.items() if node not in group.where.values()}
        names = {node.hex(): node for node in frees}
        found = plan([group.bundles[number] for number in missing], group.strategy, {
            name: frees[node] for name, node in names.items()
        })  # fmt: skip
        if found is None:
            self._later()
            return
        for number, name in zip(missing, found, strict=True):
            self._ask(group, number, names[name])
        self._settled(group)

    def _frees(self) -> dict[bytes, dict[str, int]]:
        if self._node._abroad is not None:
            known: dict[bytes, dict[str, int]] = self._node._abroad.frees()
            return known
        return {HERE: {name: free for name, (_, free) in self._node.resources().items()}}

    def _later(self) -> None:
        if not self._armed:
            self._armed = True
            self._node._at(monotonic() + AGAIN_S, self._look_again)

    def _ask(self, group: _Group, number: int, node: bytes) -> None:
        group.where[number] = node
        if node != HERE:
            group.answers.add(number)
            self._node._abroad.to_peer(node, m.BundleWanted(group.name, number, group.bundles[number]))
        elif not self._set_aside(group.name, number, group.bundles[number]):
            group.failed = True

    def _set_aside(self, name: str, number: int, bundle: m.Shape) -> bool:
        scheduler = self._node.scheduler
        if name in scheduler.dissolving or scheduler.draining or not scheduler.account.fits(bundle):
            return False
        self._node._do(s.SetAside(name, number, bundle))
        return True

    def _settled(self, group: _Group) -> None:
        """All that were asked have answered?"""
        if group.answers:
            return
        if group.failed:
            self._give_up(group)
            self._later()
        else:
            self._log("group.placed", group=group.name)

    def _give_up(self, group: _Group) -> None:
        """What it has is given back: it is tried anew."""
        group.where.clear()
        group.answers.clear()
        group.failed = False
        self._end(group.name, False)

    # -- what other nodes say

    def peer_said(self, node: bytes, message: Any) -> None:
        """The node of another machine."""
        if isinstance(message, m.BundleWanted):
            done = self._set_aside(message.group, message.number, message.bundle)
            if done:
                self._guests[message.group] = node
            self._node._abroad.to_peer(node, m.BundleAnswer(message.group, message.number, done))
        elif isinstance(message, m.BundleAnswer):
            self._answered(node, message)
        elif isinstance(message, m.GroupEnded):
            if message.for_good or self._guests.get(message.group) == node:
                self._ended(message.group, message.for_good)
        elif isinstance(message, m.GroupRemove) and message.group in self._groups:
            self.remove(message.group)

    def _answered(self, node: bytes, message: m.BundleAnswer) -> None:
        group = self._groups.get(message.group)
        if group is None or group.where.get(message.number) != node or message.number not in group.answers:
            return  # it has ended meanwhile, and the other side hears that
        group.answers.discard(message.number)
        group.failed |= not message.done
        self._settled(group)

    def peer_down(self, node: bytes) -> None:
        """A machine is gone: its groups end, and bundles that ours had there are looked for elsewhere."""
        for name in [name for name, owner in self._guests.items() if owner == node]:
            self._ended(name, True)
        for group in self._groups.values():
            lost = [number for number, where in group.where.items() if where == node]
            for number in lost:
                del group.where[number]
                group.answers.discard(number)
            if lost:
                self._later()
