"""Which tasks go to which worker, and in which order."""

from __future__ import annotations

from collections import deque

import pytest

from dpool._core.logic.dispatch import Dispatcher, Slot


class Lane:
    """One worker and a queue, as much of a lane as the dispatcher needs; `wire` is what was sent, in order."""

    def __init__(self, tasks: int) -> None:
        self.dispatcher = Dispatcher(frame_s=1.0, max_batch=8, single=False, lifetime=None)
        self.dispatcher.task_s = 0.001
        self.slot = self.dispatcher.slots[1] = Slot(1)
        self.queue = deque(range(tasks))

    def push(self) -> None:
        while self.queue and (slot := self.dispatcher.next_slot()) is not None:
            count = min(self.dispatcher.choose(slot, len(self.queue)), len(self.queue))
            tasks = [self.queue.popleft() for _ in range(count)]
            self.dispatcher.sent(slot, self.dispatcher.prepared(slot, tasks, 0.0))
        self.dispatcher.check()

    def again(self, tasks: list[int]) -> None:
        self.queue.extendleft(reversed(tasks))

    def order(self) -> list[int]:
        """The tasks in the order in which the worker will begin with them."""
        return [task for frame in self.slot.frames for task in frame.tasks] + [*self.queue]


@pytest.mark.parametrize("faster", [False, True], ids=["taken back", "the worker was faster"])
def test_nothing_is_sent_behind_a_frame_whose_tail_comes_back(faster: bool) -> None:
    """It would overtake the tail."""
    lane = Lane(100)
    lane.push()
    running, behind = lane.slot.frames
    lane.again(lane.dispatcher.taken_back(lane.slot, behind.base))
    limit = lane.dispatcher.limit(lane.slot, running.base + 2, 0.0)
    lane.push()
    assert [*lane.slot.frames] == [running]
    lane.again(lane.dispatcher.shortened(lane.slot, limit if faster else limit - 1))
    lane.push()
    assert len(lane.slot.frames) == 2
    assert len(running.tasks) == (8 if faster else 3)
    assert lane.order() == [*range(100)]


def test_a_frame_that_ends_at_its_limit_gives_its_tail_back_first() -> None:
    lane = Lane(100)
    lane.push()
    running, behind = lane.slot.frames
    lane.again(lane.dispatcher.taken_back(lane.slot, behind.base))
    lane.dispatcher.limit(lane.slot, running.base + 2, 0.0)
    lane.push()
    tasks, back = lane.dispatcher.replied(lane.slot, running.base, 3, True, 0.003)
    lane.again(back)
    lane.push()
    assert tasks + lane.order() == [*range(100)]


def test_a_journal_is_not_read_over_a_gap() -> None:
    """The answer about the frame before is still on its way, so the noted results are not those of the first tasks."""
    lane = Lane(100)
    lane.push()
    running, behind = lane.slot.frames
    assert lane.dispatcher.harvested(lane.slot, behind.base, 2) == []
    assert lane.dispatcher.harvested(lane.slot, running.base + 2, 2) == []
    assert lane.dispatcher.harvested(lane.slot, running.base, 2) == [0, 1]
    assert lane.dispatcher.harvested(lane.slot, running.base + 1, 3) == [2, 3]
