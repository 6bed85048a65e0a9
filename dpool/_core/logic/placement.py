"""Which machine a task goes to when its own cannot run it soon.

```
 heartbeats ─► Cluster.heard ─► what each machine has, how long its queue is, how fast it is
                                  │        ▲ what was sent there since (a heartbeat that counts it takes it out again)
 a task that spills over ──► Cluster.choose ─► the machine, or None: nowhere is what it asks for
```

Every machine decides for its own tasks, over its own view; there is no scheduler process. A decision compares at most
`CHOICES` machines besides its own and those that have the inputs: half of them drawn from all that are known to have
room, half from all that could ever run it. So it costs the same with 10 machines and with 10,000, and many deciding
machines do not all run to the same one. The cost of a machine is

    cost = (waiting tasks / slots) × mean task time  +  input bytes that are not there / mean bandwidth

in seconds, with both means exponential, so a machine that is slow or has become so gets less, without a name for it.
What this machine has sent since the last heartbeat counts as waiting there; otherwise all that spills within one
heartbeat would go to the one machine that was the least loaded. Draws and ties are hashes of the task's key, so the
same question to the same view has the same answer.

Pure: no clock, no random; one thread. Invariants (`check`): what is counted as sent is never negative, and is 0 for
all that the last heartbeat has counted; `left` is what is free without it; those with room are exactly in `_open`.

Source: Ray (OSDI 2018) §4.2.2, whose formula this is; the count of what was sent and `slots` are ours. That a few
drawn machines do nearly as well as all is Mitzenmacher's "power of two choices".
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic.resources import CPUS, UNIT, Shape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

UNKNOWN_TASK_S = 0.001
"""The mean task time of a cluster in which no task has ended."""
UNKNOWN_BYTES_PER_S = 100e6
"""The mean bandwidth of a cluster that has moved nothing: a 1 Gbit link's, roughly."""
REMOTE_S = 0.0005
"""What it costs to run a task elsewhere at all: without it, equals would swap tasks."""
CHOICES = 16
"""Machines drawn for one decision; in a cluster that is not larger all are compared."""
MOST_SHAPES = 64
"""Shapes for which it is remembered who could run them."""
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
    """A machine as seen from here.

    Attributes:
        sent: tasks sent there in all.
        shapes: of those not seen there yet, in order.
        left: what is free there without them.
    """

    __slots__ = ("left", "load", "sent", "shapes")

    def __init__(self, load: Load) -> None:
        self.load = load
        self.sent = 0
        self.shapes: list[Shape] = []
        self.left: dict[str, int] = dict(load.free)

    def take(self, shape: Shape) -> None:
        for resource, amount in shape:
            self.left[resource] = self.left.get(resource, 0) - amount

    def has_room(self) -> bool:
        """Whether something could begin at once."""
        return not self.load.waiting and not self.load.draining and self.left.get(CPUS, 0) > 0


class _Names:
    """A set of machines from which one can be drawn by number."""

    __slots__ = ("at", "names")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.at: dict[bytes, int] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self.at

    def add(self, name: bytes) -> None:
        if name not in self.at:
            self.at[name] = len(self.names)
            self.names.append(name)

    def discard(self, name: bytes) -> None:
        at = self.at.pop(name, None)
        if at is None:
            return
        last = self.names.pop()
        if last != name:
            self.names[at] = last
            self.at[last] = at


class _Mean:
    """The mean of what machines say, of those that say anything (not 0)."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0

    def change(self, old: float, new: float) -> None:
        self.count += bool(new) - bool(old)
        self.total = self.total + new - old if self.count else 0.0

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


class Cluster:
    """The view of one machine; see the module.

    Attributes:
        here: the machine whose view it is.
        nodes: those that are alive.
    """

    def __init__(self, here: bytes, salt: bytes = b"") -> None:
        """`salt` differs between machines, so that the same key draws others."""
        self.here = here
        self.nodes: dict[bytes, _Node] = {}
        self._salt = salt
        self._turn = 0
        self._open = _Names()
        self._able: dict[Shape, list[bytes]] = {}
        """Shape → `feasible`, sorted; forgotten when a machine comes, goes or becomes another."""
        self._task_mean = _Mean()
        self._rate_mean = _Mean()

    # -- what happens

    def heard(self, load: Load) -> None:
        """A heartbeat. One that is older than the last is ignored."""
        node = self.nodes.get(load.node)
        if node is None:
            node = self.nodes[load.node] = _Node(load)
            node.sent = load.seen.get(self.here, 0)
            self._able.clear()
            self._averages(0.0, 0.0, load.task_s, load.bytes_per_s)
            self._review(load.node, node)
            return
        old = node.load
        if load.number <= old.number:
            return
        node.load = load
        if load.draining != old.draining or load.total != old.total:
            self._able.clear()
        self._averages(old.task_s, old.bytes_per_s, load.task_s, load.bytes_per_s)
        unseen = max(0, node.sent - load.seen.get(self.here, 0))
        del node.shapes[: len(node.shapes) - min(unseen, len(node.shapes))]
        node.left = dict(load.free)
        for shape in node.shapes:
            node.take(shape)
        self._review(load.node, node)

    def gone(self, node: bytes) -> None:
        """It has left or is declared dead."""
        known = self.nodes.pop(node, None)
        if known is not None:
            self._able.clear()
            self._open.discard(node)
            self._averages(known.load.task_s, known.load.bytes_per_s, 0.0, 0.0)

    def placed(self, node: bytes, shape: Shape) -> None:
        """A task was sent there."""
        view = self.nodes[node]
        view.sent += 1
        view.shapes.append(shape)
        view.take(shape)
        self._review(node, view)

    def _review(self, name: bytes, node: _Node) -> None:
        (self._open.add if node.has_room() else self._open.discard)(name)

    def _averages(self, old_task_s: float, old_rate: float, task_s: float, rate: float) -> None:
        self._task_mean.change(old_task_s, task_s)
        self._rate_mean.change(old_rate, rate)

    # -- what is asked

    def feasible(self, shape: Shape) -> list[bytes]:
        """The machines that have it in total and take tasks, sorted."""
        found = self._able.get(shape)
        if found is None:
            if len(self._able) >= MOST_SHAPES:
                self._able.clear()
            found = sorted(
                name for name, node in self.nodes.items() if not node.load.draining and _fits(shape, node.load.total)
            )
            self._able[shape] = found
        return found

    def feasible_at(self, name: bytes, shape: Shape) -> bool:
        """Whether the machine has that in total."""
        return _fits(shape, self.nodes[name].load.total)

    def choose(self, task: Task, among: Iterable[bytes] | None = None, without: Collection[bytes] = ()) -> bytes | None:
        """The machine where the task is expected to have its inputs and a worker first.

        Args:
            task: what is to be placed.
            among: only these are asked (a set costs least); by default all (of many, those that are drawn).
            without: these are not asked.

        Returns:
            The machine; `here` if no other is better; None if none of them has in total what the task asks for.
        """
        able = self.feasible(task.shape)
        allowed = among if among is None or isinstance(among, AbstractSet) else set(among)
        if len(able) > CHOICES and (allowed is None or len(allowed) > CHOICES):
            drawn = [name for name in self._draw(task, able, allowed) if name not in without]
            if drawn:
                return self._cheapest(drawn, task)
        ranks = [
            (self.cost_s(name, task), _tie(task.key, name), name)
            for name in (able if allowed is None or len(allowed) > CHOICES else allowed)
            if name not in without and (allowed is None or name in allowed) and self._able_at(name, task.shape)
        ]
        return min(ranks)[2] if ranks else None

    def _cheapest(self, drawn: list[bytes], task: Task) -> bytes:
        """The first of the cheapest; of those where it begins at once, the one with the most left, as others send there
        too.
        """
        if not task.inputs:
            if self.here in drawn and self.begins_at_once(self.here, task.shape):
                return self.here
            at_once = [name for name in drawn if self.begins_at_once(name, task.shape)]
            if at_once:
                return max(at_once, key=lambda name: self.nodes[name].left.get(CPUS, 0))
        return min(drawn, key=lambda name: self.cost_s(name, task))

    def _draw(self, task: Task, able: list[bytes], allowed: AbstractSet[bytes] | None) -> list[bytes]:
        """Whom to compare; of equals the first is taken, so they are in the order in which they were drawn."""
        digest = blake2b(self._salt + task.key, digest_size=4 * CHOICES).digest()
        numbers = [int.from_bytes(digest[at : at + 4], "big") for at in range(0, len(digest), 4)]
        room = self._open.names
        drawn = [room[number % len(room)] for number in numbers[: CHOICES // 2]] if room else []
        drawn += [able[number % len(able)] for number in numbers[len(drawn) :]]
        for one in task.inputs:
            drawn += sorted(one.nodes)[:CHOICES]
        drawn.append(self.here)
        return [
            name
            for name in dict.fromkeys(drawn)
            if self._able_at(name, task.shape) and (allowed is None or name in allowed)
        ]

    def _able_at(self, name: bytes, shape: Shape) -> bool:
        node = self.nodes.get(name)
        return node is not None and not node.load.draining and _fits(shape, node.load.total)

    def spread(self, task: Task) -> bytes | None:
        """For `SPREAD`: the machines in turn, those first (of the next CHOICES) where it can begin at once."""
        names = self.feasible(task.shape)
        if not names:
            return None
        self._turn += 1
        turns = [names[at % len(names)] for at in range(self._turn, self._turn + min(len(names), CHOICES))]
        return next((name for name in turns if self.begins_at_once(name, task.shape)), turns[0])

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
        return not node.load.waiting and _fits(shape, node.left)

    def _move_s(self, node: _Node, inputs: tuple[Input, ...]) -> float:
        missing = sum(one.size for one in inputs if node.load.node not in one.nodes)
        if not missing:
            return 0.0
        return missing / (node.load.bytes_per_s or self._rate_mean.value or UNKNOWN_BYTES_PER_S)

    def _task_s(self, node: _Node) -> float:
        return node.load.task_s or self._task_mean.value or UNKNOWN_TASK_S

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
            left = dict(node.load.free)
            for shape in node.shapes:
                for resource, amount in shape:
                    left[resource] = left.get(resource, 0) - amount
            assert left == node.left, f"{left} is left, not {node.left}"
            assert node.has_room() == (name in self._open)
        assert self._open.at == {name: at for at, name in enumerate(self._open.names)}
        assert self._open.at.keys() <= self.nodes.keys()
        for shape, able in self._able.items():
            assert able == sorted(name for name in self.nodes if self._able_at(name, shape))
        assert self._task_mean.count == sum(bool(node.load.task_s) for node in self.nodes.values())
        assert self._rate_mean.count == sum(bool(node.load.bytes_per_s) for node in self.nodes.values())


def average(old: float, new: float, weight: float = AVERAGE_WEIGHT) -> float:
    """The exponential mean after `new`; the first value stands for itself."""
    return new if not old else old + weight * (new - old)


def _fits(shape: Shape, there: Mapping[str, int]) -> bool:
    return all(there.get(resource, 0) >= amount for resource, amount in shape)


def _tie(task: bytes, node: bytes) -> bytes:
    return blake2b(task + node, digest_size=8).digest()
