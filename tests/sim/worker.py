"""A simulated worker process: runs what its client sends, one task after the other, until it dies."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dpool._core.logic.scheduler import Blocked, Unblocked
from tests.sim.messages import Frame, Reply, Seal
from tests.sim.program import SimTask
from tests.sim.runtime import SimRuntime
from tests.sim.world import Link, World

if TYPE_CHECKING:
    from tests.sim.node import SimNode


class SimWorker:
    """One process.

    Attributes:
        unread: frames in its socket, which exists before the process is up; its client can take them out again.
        results: the socket back to the client, set when the client first uses the worker.
        started, limit: shared memory. The number of the last task begun; the client reads it after a death. The number
            from which on the client takes tasks back; it is looked at after `started` has been written.
        completed: how many tasks it has done.
    """

    def __init__(self, world: World, node: SimNode, number: int) -> None:
        self.world = world
        self.node = node
        self.number = number
        self.unread: deque[Frame] = deque()
        self.results: Link | None = None
        self.to_node = Link(world, lambda message: node.hear_worker(self, message))
        self.started = 0
        self.limit: int | None = None
        self.completed = 0
        self.alive = True
        self._up = False
        self._retiring = False
        self._frame: deque[tuple[int, SimTask]] = deque()
        self._running = False
        self._starts: list[tuple[float, int]] = []
        self._noted: list[bool] = []
        self._first_noted = 0
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
        if self._nested is not None:
            self._nested.crash()
        self.world.soon(self.node.reap, self)

    def _exit_when_idle(self) -> None:
        if not self._frame and not self.unread:
            self.die()

    # -- what its client does to it

    def push(self, frame: Frame) -> None:
        """A frame into its socket; it reads it when it gets to it."""
        self.unread.append(frame)
        self.world.soon(self._next)

    def take_unread(self) -> Frame | None:
        """The oldest frame that it has not read, out of its socket."""
        return self.unread.popleft() if self.unread else None

    def started_at(self, then_s: float) -> int:
        """What `started` was at that time."""
        return next((number for since_s, number in reversed(self._starts) if since_s <= then_s), 0)

    def journal(self) -> tuple[int, tuple[bool, ...]]:
        """Results that it has noted and not sent: (the number of the first, whether they raised)."""
        return self._first_noted, tuple(self._noted)

    # -- running tasks

    def _next(self) -> None:
        if not (self.alive and self._up) or self._running:
            return
        if not self._frame:
            if not self.unread:
                if self._retiring:
                    self.die()
                return
            frame = self.unread.popleft()
            self._frame.extend(enumerate(frame.tasks, frame.first))
            self._first_noted = frame.first
        number, task = self._frame[0]
        self.started = number
        self._starts.append((self.world.now_s, number))
        if self.limit is not None and self.limit <= number:
            self.started = number - 1  # so that whoever reads it after our death knows that this one was not begun
            self._frame.clear()
            self._send(end=True)
            self._next()
            return
        self._running = True
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
        _, task = self._frame.popleft()
        self._running = False
        self.completed += 1
        self._noted.append(task.raises)
        if not self._frame or self.world.chance(0.2):
            self._send(end=not self._frame)
        self._next()

    def _send(self, end: bool) -> None:
        """Send the results noted since the last time."""
        assert self.results is not None
        self.results.send(Reply(self._first_noted, tuple(self._noted), end))
        self._first_noted += len(self._noted)
        self._noted.clear()

    def _runs(self, number: int) -> bool:
        return self.alive and self._running and self._frame[0][0] == number

    def _task(self) -> tuple[int, SimTask]:
        return self._frame[0]
