"""A simulated worker process: runs what its client sends, one task after the other, until it dies."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dpool._core.logic.scheduler import Blocked, Unblocked
from tests.sim.messages import Frame, Result, Seal
from tests.sim.program import SimTask
from tests.sim.runtime import SimRuntime
from tests.sim.world import Link, World

if TYPE_CHECKING:
    from tests.sim.node import SimNode


class SimWorker:
    """Attributes:
    frames: the socket that its client pushes into; it exists before the process is up.
    results: the socket back to the client, set when the client first uses the worker.
    started: the number of the last task begun, in memory shared with the client, which reads it after a death.
    completed: how many tasks it has answered.
    """

    def __init__(self, world: World, node: SimNode, number: int) -> None:
        self.world = world
        self.node = node
        self.number = number
        self.frames = Link(world, self._receive)
        self.results: Link | None = None
        self.to_node = Link(world, lambda message: node.hear_worker(self, message))
        self.started = 0
        self.completed = 0
        self.alive = True
        self._up = False
        self._retiring = False
        self._inbox: deque[tuple[int, SimTask]] = deque()
        self._current: tuple[int, SimTask] | None = None
        self._nested: SimRuntime | None = None

    def __repr__(self) -> str:
        return f"worker {self.number}"

    # -- what the node does to it

    def come_up(self) -> None:
        if self.alive:
            self._up = True
            self._next()

    def retire(self) -> None:
        self._retiring = True
        self.world.soon(self._exit_when_idle)

    def die(self) -> None:
        """Whatever the reason: it answers nothing more; what it has sent arrives."""
        if not self.alive:
            return
        self.world.note(str(self), "dies")
        self.alive = False
        self.frames.cut()
        if self._nested is not None:
            self._nested.crash()
        self.world.soon(self.node.reap, self)

    def _exit_when_idle(self) -> None:
        if self._current is None and not self._inbox:
            self.die()

    # -- running tasks

    def _receive(self, frame: Frame) -> None:
        self._inbox.extend(enumerate(frame.tasks, frame.first))
        self._next()

    def _next(self) -> None:
        if not (self.alive and self._up) or self._current is not None:
            return
        if not self._inbox:
            if self._retiring:
                self.die()
            return
        self._current = self._inbox.popleft()
        number, task = self._current
        self.started = number
        task.starts += 1
        self.world.note(str(self), f"starts {task}, start {task.starts}")
        assert task.starts <= 1 + task.retries, f"{task} was begun {task.starts} times, with {task.retries} retries"
        assert task.outcome is None, f"{task} was begun after it had ended: {task.outcome}"
        self.node.check_arguments(task)
        self.world.after(task.duration_s / 2, self._half_way, number)

    def _half_way(self, number: int) -> None:
        if not self._runs(number):
            return
        _, task = self._task()
        if task.starts <= task.crashes:
            self.die()
        elif task.children is not None and task.starts == 1:
            self.to_node.send(Blocked(self.number))
            self._nested = SimRuntime(
                self.world, f"in task {task.number}", task.children, lambda: self._goes_on(number)
            )
            self._nested.join(self.node)
        elif task.blocks:
            self.to_node.send(Blocked(self.number))
            self.world.after(task.duration_s, self._goes_on, number)
        else:
            self.world.after(task.duration_s / 2, self._compute_ends, number)

    def _goes_on(self, number: int) -> None:
        self._nested = None
        if self._runs(number):
            self.to_node.send(Unblocked(self.number))
            self.world.after(self._task()[1].duration_s / 2, self._compute_ends, number)

    def _compute_ends(self, number: int) -> None:
        if not self._runs(number):
            return
        _, task = self._task()
        if task.big and not task.raises:
            self.to_node.send(Seal(task, tuple(need.number for need in task.needs if need.big)))
        else:
            self.answer()

    def answer(self) -> None:
        """The task in hand is done, its output sealed if it has to be."""
        if not self.alive:
            return
        number, task = self._task()
        self._current = None
        self.completed += 1
        assert self.results is not None
        self.results.send(Result(number, task.raises))
        self._next()

    def _runs(self, number: int) -> bool:
        return self.alive and self._current is not None and self._current[0] == number

    def _task(self) -> tuple[int, SimTask]:
        assert self._current is not None
        return self._current
