"""Which machine a task goes to when its own cannot run it soon.

```
 heartbeats ─► Cluster.heard ─► what each machine has, how long its queue is, how fast it is
                                  │        ▲ what was sent there since (a heartbeat that counts it takes it out again)
 a task that spills over ──► Cluster.choose ─► the machine, or None: nowhere is what it asks for
```

Every machine decides for its own tasks, over its own view; there is no scheduler process. The cost of a machine is

    cost = (waiting tasks / slots) × mean task time  +  input bytes that are not there / mean bandwidth

in seconds, with both means exponential, so a machine that is slow or has become so gets less, without a name for it.
What this machine has sent since the last heartbeat counts as waiting there; otherwise all that spills within one
heartbeat would go to the one machine that was the least loaded. Ties are broken by rendezvous hashing of task and
machine: many deciding machines spread over equals, and the same question has the same answer.

Pure: no clock, no random; one thread. Invariants (`check`): what is counted as sent is never negative, and is 0 for
all that the last heartbeat has counted.

Source: Ray (OSDI 2018) §4.2.2, whose formula this is; the count of what was sent and `slots` are ours.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic.resources import CPUS, UNIT, Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNKNOWN_TASK_S = 0.001
"""The mean task time of a cluster in which no task has ended."""
UNKNOWN_BYTES_PER_S = 100e6
"""The mean bandwidth of a cluster that has moved nothing: a 1 Gbit link's, roughly."""
REMOTE_S = 0.0005
"""What it costs to run a task elsewhere at all: without it, equals would swap tasks."""
AVERAGE_WEIGHT = 0.1
"""Of the newest value in an exponential mean."""


class Load(NamedTuple):
    """One heartbeat: what a machine says of itself."""

    node: bytes
    number: int
    """Counts up with each heartbeat of the node."""
    total: Mapping[str, int]
    """Resource → units that there are."""
    free: Mapping[str, int]
    waiting: int
    """Tasks that wait for a worker."""
    task_s: float
    """Mean time of a task there; 0: none has ended."""
    bytes_per_s: float
    """Mean rate at which it received objects; 0: none yet."""
    seen: Mapping[bytes, int]
    """Sender → how many tasks of its it has been sent in all, so that the sender can stop counting those itself."""
    draining: bool = False
    """It takes no new tasks."""


class Input(NamedTuple):
    """An object that a task needs."""

    size: int
    nodes: frozenset[bytes]
    """Where copies are."""


class Task(NamedTuple):
    """What the decision depends on."""

    key: bytes
    """The task's id."""
    shape: Shape
    inputs: tuple[Input, ...] = ()


class _Node:
    """A machine as seen from here. `sent`: tasks sent there in all; `shapes`: of those not seen there yet, in order."""

    __slots__ = ("load", "sent", "shapes")

    def __init__(self, load: Load) -> None:
        self.load = load
        self.sent = 0
        self.shapes: list[Shape] = []


class Cluster:
    """The view of one machine; see the module.

    Attributes:
        here: the machine whose view it is.
        nodes: those that are alive.
    """

    def __init__(self, here: bytes) -> None:
        self.here = here
        self.nodes: dict[bytes, _Node] = {}
        self._turn = 0

    # -- what happens

    def heard(self, load: Load) -> None:
        """A heartbeat. One that is older than the last is ignored."""
        node = self.nodes.get(load.node)
        if node is None:
            node = self.nodes[load.node] = _Node(load)
            node.sent = load.seen.get(self.here, 0)
            return
        if load.number <= node.load.number:
            return
        node.load = load
        unseen = max(0, node.sent - load.seen.get(self.here, 0))
        del node.shapes[: len(node.shapes) - min(unseen, len(node.shapes))]

    def gone(self, node: bytes) -> None:
        """It has left or is declared dead."""
        self.nodes.pop(node, None)

    def placed(self, node: bytes, shape: Shape) -> None:
        """A task was sent there."""
        view = self.nodes[node]
        view.sent += 1
        view.shapes.append(shape)

    # -- what is asked

    def feasible(self, shape: Shape) -> list[bytes]:
        """The machines that have it in total and take tasks, in no particular order."""
        return [name for name, node in self.nodes.items() if not node.load.draining and _fits(shape, node.load.total)]

    def feasible_at(self, name: bytes, shape: Shape) -> bool:
        """Whether the machine has that in total."""
        return _fits(shape, self.nodes[name].load.total)

    def choose(self, task: Task, among: Iterable[bytes] | None = None) -> bytes | None:
        """The machine where the task is expected to have its inputs and a worker first.

        Args:
            task: what is to be placed.
            among: only these are asked; by default all.

        Returns:
            The machine; `here` if no other is better; None if none of them has in total what the task asks for.
        """
        best: tuple[float, bytes] | None = None
        chosen = None
        allowed = None if among is None else set(among)
        for name in self.feasible(task.shape):
            if allowed is not None and name not in allowed:
                continue
            rank = (self.cost_s(name, task), _tie(task.key, name))
            if best is None or rank < best:
                best, chosen = rank, name
        return chosen

    def spread(self, task: Task) -> bytes | None:
        """For `SPREAD`: the machines in turn, those first where it can begin at once."""
        names = sorted(self.feasible(task.shape))
        if not names:
            return None
        self._turn += 1
        names = names[self._turn % len(names) :] + names[: self._turn % len(names)]
        return next((name for name in names if self.begins_at_once(name, task.shape)), names[0])

    def cost_s(self, name: bytes, task: Task) -> float:
        """The estimate, in seconds, until the task could begin on that machine."""
        node = self.nodes[name]
        elsewhere = 0.0 if name == self.here else REMOTE_S
        return elsewhere + self._wait_s(node, task.shape) + self._move_s(node, task.inputs)

    def _wait_s(self, node: _Node, shape: Shape) -> float:
        if self._begins_at_once(node, shape):
            return 0.0
        slots = max(1.0, node.load.total.get(CPUS, 0) / UNIT)
        return (node.load.waiting + len(node.shapes) + 1) / slots * self._task_s(node)

    def begins_at_once(self, name: bytes, shape: Shape) -> bool:
        """Whether the machine has that free, and nobody waiting."""
        return self._begins_at_once(self.nodes[name], shape)

    def _begins_at_once(self, node: _Node, shape: Shape) -> bool:
        if node.load.waiting:
            return False
        free = dict(node.load.free)
        for sent in node.shapes:
            for resource, amount in sent:
                free[resource] = free.get(resource, 0) - amount
        return _fits(shape, free)

    def _move_s(self, node: _Node, inputs: tuple[Input, ...]) -> float:
        missing = sum(one.size for one in inputs if node.load.node not in one.nodes)
        if not missing:
            return 0.0
        known = node.load.bytes_per_s or _mean(other.load.bytes_per_s for other in self.nodes.values())
        return missing / (known or UNKNOWN_BYTES_PER_S)

    def _task_s(self, node: _Node) -> float:
        return node.load.task_s or _mean(other.load.task_s for other in self.nodes.values()) or UNKNOWN_TASK_S

    def missing(self, shape: Shape) -> list[str]:
        """The names of `shape` of which no machine has enough; empty if each name alone is somewhere."""
        return [
            resource
            for resource, amount in shape
            if not any(node.load.total.get(resource, 0) >= amount for node in self.nodes.values())
        ]

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        for name, node in self.nodes.items():
            assert node.load.node == name
            unseen = node.sent - node.load.seen.get(self.here, 0)
            assert len(node.shapes) <= max(0, unseen), f"{len(node.shapes)} counted, {unseen} unseen"


def average(old: float, new: float, weight: float = AVERAGE_WEIGHT) -> float:
    """The exponential mean after `new`; the first value stands for itself."""
    return new if not old else old + weight * (new - old)


def _fits(shape: Shape, there: Mapping[str, int]) -> bool:
    return all(there.get(resource, 0) >= amount for resource, amount in shape)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if value]
    return sum(known) / len(known) if known else 0.0


def _tie(task: bytes, node: bytes) -> bytes:
    return blake2b(task + node, digest_size=8).digest()
