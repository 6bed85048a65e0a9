"""The tasks of one pool with one resource shape, on their way to leased workers: the runtime's `Dispatcher`, driven.

The dispatcher decides which tasks travel in which frame to whom, and whose they are when something happens. The lane
does what the real one does with sockets and shared memory: takes unread frames out of a worker's socket, limits the
frame that is being run, and reads the results that a worker noted and did not send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dpool._core.logic.dispatch import Dispatcher, Slot
from dpool._core.logic.resources import Shape
from tests.sim.messages import Frame, Reply
from tests.sim.program import SimTask
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.worker import SimWorker

STALL_S = 0.004
Settled = list[tuple[SimTask, bool]]
"""Tasks and whether they raised."""


class Lane:
    """Attributes:
    queue: tasks that no worker has.
    outstanding: leases asked for and neither granted nor cancelled, at most.
    """

    def __init__(
        self,
        world: World,
        shape: Shape,
        on_sent: Callable[[list[SimTask]], None],
        single: bool,
        lifetime: int | None,
    ) -> None:
        self.world = world
        self.shape = shape
        self.queue: deque[SimTask] = deque()
        self.outstanding = 0
        self.dispatcher = Dispatcher(frame_s=0.002, max_batch=8, single=single, lifetime=lifetime)
        self._on_sent = on_sent

    # -- sending

    def push(self) -> None:
        """Send what can be sent; an idle worker takes over what waits behind another's frame."""
        self._fill()
        for idle in self.idle():
            while not self.queue and not self.dispatcher.slots[idle].frames:
                victim = self.dispatcher.victim()
                if victim is None or not self._take_unread(victim):
                    break
            self._fill()
        self.dispatcher.check()

    def _fill(self) -> None:
        dispatcher = self.dispatcher
        while self.queue and (slot := dispatcher.next_slot()) is not None:
            count = min(dispatcher.choose(slot, len(self.queue)), len(self.queue))
            tasks = [self.queue.popleft() for _ in range(count)]
            first = slot.next_seq
            dispatcher.sent(slot, dispatcher.prepared(slot, tasks, self.world.now_s))
            self._on_sent(tasks)
            slot.link.push(Frame(first, tuple(tasks)))

    def _requeue(self, tasks: list[SimTask]) -> None:
        self.queue.extendleft(reversed(tasks))

    def _take_unread(self, slot: Slot) -> bool:
        frame = slot.link.take_unread()
        if frame is None:
            return False
        self._requeue(self.dispatcher.taken_back(slot, frame.first))
        return True

    # -- answers

    def answered(self, slot: Slot, reply: Reply) -> Settled:
        """A worker's answer: the tasks that it settles."""
        elapsed_s = self.world.rng.choice((0.0001, 0.001, 0.02)) * len(reply.raised)
        tasks, back = self.dispatcher.replied(slot, reply.first, len(reply.raised), reply.end, elapsed_s)
        if reply.end:
            slot.link.limit = None
            self._requeue(back)
        return _settled(tasks, reply.raised)

    def rescue(self) -> Settled:
        """Take apart frames that take longer than they should, and read what their workers have noted meanwhile."""
        settled: Settled = []
        for slot in self.dispatcher.stalled(self.world.now_s, STALL_S):
            frame = slot.frames[0]
            worker: SimWorker = slot.link
            if frame.limit == 0:
                if worker.started < frame.base:
                    continue  # not even read; nothing runs
                if len(slot.frames) > 1 and not self._take_unread(slot):
                    continue  # the worker is done with this one
                # This thread may sleep between reading what has been started and writing the limit.
                started = worker.started_at(self.world.now_s - self.world.rng.choice((0.0, 0.0, 0.0003, 0.003)))
                worker.limit = self.dispatcher.limit(slot, started, self.world.now_s)
            elif self.world.now_s - frame.limited_at > 0.001:
                self._requeue(self.dispatcher.shortened(slot, worker.started))
                settled += self._harvest(slot)
        self.dispatcher.check()
        return settled

    def wants_rescue(self) -> bool:
        """Whether a frame of several tasks is under way."""
        return any(slot.frames and len(slot.frames[0].tasks) > 1 for slot in self.dispatcher.slots.values())

    def _harvest(self, slot: Slot) -> Settled:
        first, raised = slot.link.journal()
        return _settled(self.dispatcher.harvested(slot, first, len(raised)), raised) if raised else []

    # -- workers

    def leased(self, slot: Slot) -> None:
        slot.retiring = False
        self.dispatcher.slots[slot.worker] = slot

    def idle(self) -> list[int]:
        """Leased workers that have nothing to do."""
        return [number for number, slot in self.dispatcher.slots.items() if not slot.frames]

    def returned(self, worker: int) -> bool:
        """Its lease is given back; whether it must retire."""
        return self.dispatcher.slots.pop(worker).retiring

    def died(self, slot: Slot) -> tuple[Settled, list[SimTask]]:
        """The worker is dead and its answers have been read: (what it had noted, tasks lost); the rest waits again."""
        if slot.worker not in self.dispatcher.slots:
            return [], []
        settled = self._harvest(slot)
        death = self.dispatcher.died(slot, slot.link.started)
        self._requeue(death.unstarted)
        return settled, death.lost

    def holder_of(self, task: SimTask) -> int | None:
        """The worker that has `task`."""
        slots = self.dispatcher.slots.items()
        return next((n for n, slot in slots for frame in slot.frames if task in frame.tasks[frame.done :]), None)


def _settled(tasks: list[SimTask], raised: tuple[bool, ...]) -> Settled:
    """The tasks are those of the last of the results; the results before have been known already."""
    assert len(tasks) <= len(raised), f"{len(raised)} results for {tasks}"
    return list(zip(tasks, raised[len(raised) - len(tasks) :], strict=True))
