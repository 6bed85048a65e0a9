"""Pure: what becomes of a lease that waits here, in a cluster: it begins here, goes to another machine, or waits on.

```
 no wishes   it waits here for resources: another machine that has them free; else it waits, for whoever is first,
             unless waiting there is shorter by SPILL_S; what this machine has not at all waits where it is
 @spread     the machine with room that has the fewest of ours
 @prefer     that machine, while there is such a one (it may wait there); else as without wishes
 @near       the least cost, the time to move its inputs included
 @fixed      where there is room, here first; if there is none anywhere, at once and bare, where the fewest are per CPU
```

A machine is never asked for more leases than it could run at a time, unless it says that it has room: what is left
waits at home, where it can still go to whoever is free first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic.placement import Cluster, Input, Task
from dpool._core.logic.places import needs, wishes
from dpool._core.logic.resources import CPUS, UNIT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dpool._core.logic.places import Wishes
    from dpool._core.logic.resources import Shape

SPILL_S = 0.1
"""Waiting elsewhere must be so much shorter than waiting here."""


class Asked:
    """What other machines were asked for, for each group of pools whose leases are placed with a view to each other."""

    def __init__(self) -> None:
        self._groups: dict[int, dict[bytes, list[Shape]]] = {}

    def add(self, group: int, node: bytes, shape: Shape) -> None:
        """One lease more."""
        self._groups.setdefault(group, {}).setdefault(node, []).append(shape)

    def remove(self, group: int, node: bytes, shape: Shape) -> None:
        """One less."""
        there = self._groups[group]
        there[node].remove(shape)
        if not there[node]:
            del there[node]
            if not there:
                del self._groups[group]

    def of(self, group: int) -> dict[bytes, list[Shape]]:
        """Machine → what it has been asked for and not given back."""
        return dict(self._groups.get(group, ()))

    def at(self, group: int, node: bytes) -> list[Shape]:
        """The same of one machine, which has been asked for something."""
        return self._groups[group][node]

    def __len__(self) -> int:
        """How many groups have asked for anything."""
        return len(self._groups)


class Decision(NamedTuple):
    """It goes to `node`; `bare`: and holds nothing there."""

    node: bytes
    bare: bool = False


def decide(
    cluster: Cluster,
    key: bytes,
    shape: Shape,
    usable: Collection[bytes],
    ours: Mapping[bytes, list[Shape]],
    homes: Mapping[str, bytes],
) -> Decision | None:
    """Where a waiting lease may begin now; None: it waits on.

    Args:
        cluster: the view of this machine, in which its own load is of this moment.
        key: breaks ties.
        shape: with its wishes.
        usable: the machines that may be asked, this one included.
        ours: machine → what we have asked of it and not given back, without wishes.
        homes: the names that wishes use → machine.
    """
    wish = wishes(shape)
    task = Task(key, needs(shape))
    if wish is None:
        return _plain(cluster, task, usable, ours)
    if wish.fixed:
        return _fixed(cluster, task, usable, ours)
    if wish.spread:
        return _spread(cluster, task, usable, ours)
    if wish.prefer:
        preferred = homes.get(wish.prefer)
        if preferred is not None and preferred in usable and preferred in cluster.feasible(task.shape):
            return _if_room(cluster, task.shape, preferred, ours)
        return _anywhere(cluster, task, usable, ours)
    return _near(cluster, task, wish, usable, ours, homes)


def _plain(
    cluster: Cluster, task: Task, usable: Collection[bytes], ours: Mapping[bytes, list[Shape]]
) -> Decision | None:
    """It waits in the queue here, because it cannot begin here."""
    here = cluster.here
    chosen = cluster.choose(task, usable)
    if chosen is None or chosen == here:
        return None
    if cluster.begins_at_once(chosen, task.shape):
        return Decision(chosen)
    if here in cluster.feasible(task.shape) and cluster.cost_s(here, task) - cluster.cost_s(chosen, task) < SPILL_S:
        return None  # it can as well wait here, and go to whoever is free first
    return _if_room(cluster, task.shape, chosen, ours)


def _anywhere(
    cluster: Cluster, task: Task, usable: Collection[bytes], ours: Mapping[bytes, list[Shape]]
) -> Decision | None:
    """As without wishes, but that nothing has tried here yet."""
    if cluster.here in cluster.feasible(task.shape) and cluster.begins_at_once(cluster.here, task.shape):
        return Decision(cluster.here)
    return _plain(cluster, task, usable, ours)


def _if_room(cluster: Cluster, shape: Shape, node: bytes, ours: Mapping[bytes, list[Shape]]) -> Decision | None:
    if node == cluster.here or cluster.begins_at_once(node, shape):
        return Decision(node)
    total = cluster.nodes[node].load.total
    held: dict[str, int] = {}
    for one in (*ours.get(node, ()), shape):
        for name, amount in one:
            held[name] = held.get(name, 0) + amount
    return Decision(node) if all(total.get(name, 0) >= amount for name, amount in held.items()) else None


def _spread(
    cluster: Cluster, task: Task, usable: Collection[bytes], ours: Mapping[bytes, list[Shape]]
) -> Decision | None:
    able = [name for name in cluster.feasible(task.shape) if name in usable]
    free = [name for name in able if cluster.begins_at_once(name, task.shape)]
    if free:
        return Decision(min(free, key=lambda name: (len(ours.get(name, ())), name)))
    if len(able) == 1:
        return _if_room(cluster, task.shape, able[0], ours)
    return None


def _near(
    cluster: Cluster,
    task: Task,
    wish: Wishes,
    usable: Collection[bytes],
    ours: Mapping[bytes, list[Shape]],
    homes: Mapping[str, bytes],
) -> Decision | None:
    inputs = tuple(Input(size, frozenset((homes[home],))) for home, size in wish.near if home in homes)
    chosen = cluster.choose(task._replace(inputs=inputs), usable)
    return None if chosen is None else _if_room(cluster, task.shape, chosen, ours)


def _fixed(
    cluster: Cluster, task: Task, usable: Collection[bytes], ours: Mapping[bytes, list[Shape]]
) -> Decision | None:
    able = [name for name in cluster.feasible(task.shape) if name in usable]
    for name in sorted(able, key=lambda name: (name != cluster.here, len(ours.get(name, ())), name)):
        if cluster.begins_at_once(name, task.shape):
            return Decision(name)
    if not able:
        return None

    def crowd(name: bytes) -> float:
        cpus = cluster.nodes[name].load.total.get(CPUS, 0) / UNIT
        return (len(ours.get(name, ())) + 1) / max(cpus, 0.01)

    return Decision(min(able, key=lambda name: (crowd(name), name)), bare=True)
