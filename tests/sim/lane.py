"""The tasks of one pool with one resource shape, on their way to leased workers.

This is the seam for the runtime's dispatcher: a lane decides which queued tasks travel to which leased worker and says
whose they are when something happens; the runtime around it sends, leases and ends tasks.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from dpool._core.logic.resources import Shape
from tests.sim.program import SimTask


class Push(NamedTuple):
    """Send these tasks to the worker; the first is number `first` of those that it was ever sent."""

    worker: int
    first: int
    tasks: tuple[SimTask, ...]


class Lane:
    """One task at a time to each worker.

    Attributes:
        queue: tasks that no worker has.
        outstanding: leases asked for and neither granted nor cancelled, at most.
        busy: worker -> (number, task) that it has.
        idle: leased workers that have nothing.

    Args:
        sent: how many tasks each worker of the pool was ever sent, by any of the pool's lanes.
    """

    def __init__(self, shape: Shape, sent: dict[int, int]) -> None:
        self.shape = shape
        self.queue: deque[SimTask] = deque()
        self.outstanding = 0
        self.busy: dict[int, tuple[int, SimTask]] = {}
        self.idle: list[int] = []
        self._sent = sent

    def leased(self, worker: int) -> None:
        self.idle.append(worker)
        self._sent.setdefault(worker, 0)

    def pushes(self) -> list[Push]:
        """What to send now."""
        out = []
        while self.queue and self.idle:
            worker, task = self.idle.pop(), self.queue.popleft()
            self._sent[worker] += 1
            self.busy[worker] = (self._sent[worker], task)
            out.append(Push(worker, self._sent[worker], (task,)))
        return out

    def answered(self, worker: int, number: int) -> SimTask:
        """The worker has answered task number `number`: which one that is."""
        expected, task = self.busy.pop(worker)
        assert expected == number, f"worker {worker} answered {number}, not {expected}"
        self.idle.append(worker)
        return task

    def died(self, worker: int, started: int) -> tuple[list[SimTask], list[SimTask]]:
        """The worker is dead and began nothing after number `started`: (tasks lost, tasks not begun)."""
        self._sent.pop(worker, None)
        if worker in self.idle:
            self.idle.remove(worker)
        number, task = self.busy.pop(worker, (0, None))
        if task is None:
            return [], []
        return ([task], []) if number <= started else ([], [task])

    def returned(self, worker: int) -> None:
        """Its lease is given back; the worker may come again, and goes on counting."""
        self.idle.remove(worker)

    def holder_of(self, task: SimTask) -> int | None:
        """The worker that has `task`."""
        return next((worker for worker, (_, held) in self.busy.items() if held is task), None)
