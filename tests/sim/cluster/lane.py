"""A program's tasks on a simulated cluster: one lane (the real Dispatcher) over the leases that its node gives it.

Tasks are numbers; a frame carries a `range` of them, so a million empty tasks are a few thousand frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dpool._core.config import Config
from dpool._core.logic import scheduler as s
from dpool._core.logic.dispatch import Dispatcher, Slot
from dpool._core.logic.resources import shape
from tests.sim.cluster.engine import Core

if TYPE_CHECKING:
    from tests.sim.cluster.machine import SimMachine, Worker

ONE_CPU = shape(num_cpus=1)
CONFIG = Config()


class Job:
    """Some tasks of one program.

    Attributes:
        duration_s: how long the task of a number takes, beyond the worker's own part.
        refs: the objects that every task needs.
        done: one byte per task: it has ended.
        began_s: when each was begun, if `timed`.
    """

    def __init__(
        self,
        total: int,
        duration_s: Callable[[int], float] | float = 0.0,
        refs: Sequence[bytes] = (),
        timed: bool = False,
    ) -> None:
        self.total = total
        self.duration_s = duration_s
        self.refs = tuple(refs)
        self.done = bytearray(total)
        self.ended = 0
        self.failed = 0
        self.again = 0
        self.finished_s: float | None = None
        self.began_s: list[float] | None = [0.0] * total if timed else None

    def time_s(self, numbers: range) -> float:
        if callable(self.duration_s):
            return sum(map(self.duration_s, numbers))
        return self.duration_s * len(numbers)

    def end(self, numbers: range, failed: bool) -> None:
        assert not any(self.done[numbers.start : numbers.stop]), f"a task of {numbers} ended twice"
        self.done[numbers.start : numbers.stop] = b"\1" * len(numbers)
        self.ended += len(numbers)
        self.failed += failed * len(numbers)


class Lane:
    """The submitter of one job, a process of its own on `machine`."""

    def __init__(self, machine: SimMachine, pool: int, job: Job, max_workers: int, finished: Callable[[], None]):
        self.machine = machine
        self.pool = pool
        self.job = job
        self.max_workers = max_workers
        self.core = Core(machine.engine)
        self._finished = finished
        self._dispatcher = Dispatcher(frame_s=CONFIG.frame_s, max_batch=CONFIG.max_batch, single=False, lifetime=None)
        self._queue: deque[range] = deque()
        self._queued = 0
        self._asked = 0

    # -- what the program says

    def submit(self, numbers: range) -> None:
        self._queue.append(numbers)
        self._queued += len(numbers)
        for slot in list(self._dispatcher.slots.values()):
            self._fill(slot)
        self._ask()

    def _ask(self) -> None:
        """Ask for more workers, or for no more."""
        wanted = min(self._queued, self.max_workers - len(self._dispatcher.slots)) - self._asked
        if self._queued and wanted > 0:
            self._asked += wanted
            self.machine.node_event(s.RequestLeases(self.pool, ONE_CPU, wanted))
        elif not self._queued and self._asked:
            self._asked = 0
            self.machine.cancel_leases(self.pool, ONE_CPU)

    def _fill(self, slot: Slot) -> None:
        dispatcher = self._dispatcher
        # Long tasks do not wait behind others: it costs nothing to take them back, so they are not sent.
        depth = dispatcher.depth if 0 < dispatcher.task_s < CONFIG.frame_s else 1
        while self._queued and len(slot.frames) < depth:
            numbers = self._take(dispatcher.choose(slot, self._queued))
            tasks: Any = numbers
            frame = dispatcher.prepared(slot, tasks, self.machine.engine.now_s)
            dispatcher.sent(slot, frame)
            costs = self.machine.engine.costs
            # Half of the submitter's part of a task is before it is sent, half after.
            sent_s = self.core.charge(costs.frame_s + len(numbers) * costs.submit_s / 2)
            self.machine.send_frame(self, slot.link, numbers, sent_s + costs.hop_s)
        if not slot.frames:
            del dispatcher.slots[slot.worker]
            slot.returned = True
            self.machine.return_lease(self, slot.link)

    def _take(self, count: int) -> range:
        first = self._queue.popleft()
        if len(first) > count:
            self._queue.appendleft(first[count:])
            first = first[:count]
        self._queued -= len(first)
        return first

    # -- what its node and its workers say

    def granted(self, number: int, worker: Worker | None) -> None:
        """A lease; `worker`: of this machine, None: it is elsewhere."""
        self._asked = max(0, self._asked - 1)
        slot = Slot(number, (number, worker))
        self._dispatcher.slots[number] = slot
        self._fill(slot)
        self._ask()

    def answered(self, number: int, numbers: range, took_s: float, failed: bool) -> None:
        """The tasks of a frame have ended; it is the oldest of that worker."""
        slot = self._dispatcher.slots.get(number)
        if slot is None:
            return  # it was declared dead before
        costs = self.machine.engine.costs
        self.core.charge(costs.frame_s + len(numbers) * costs.submit_s / 2)
        frame = slot.frames[0]
        tasks: Any = frame.tasks
        assert tasks == numbers, "answers are out of order"
        self._dispatcher.replied(slot, frame.base, len(numbers), True, took_s)
        self.job.end(numbers, failed)
        if self.job.ended == self.job.total:
            self.job.finished_s = self.core.free_at_s
        self._fill(slot)
        self._ask()
        if self.job.ended == self.job.total:
            self._finished()

    def died(self, number: int) -> None:
        """A worker is gone; what it had is done again, elsewhere."""
        slot = self._dispatcher.slots.get(number)
        if slot is None:
            return
        frames: list[Any] = [frame.tasks for frame in slot.frames]
        del self._dispatcher.slots[number]
        for numbers in reversed(frames):
            self.job.again += len(numbers)
            self._queue.appendleft(numbers)
            self._queued += len(numbers)
        self._ask()
