"""Pure: which tasks go to which worker in which frame, and whose they are when something happens.

```
 queue ──choose()──► sent() ──► Slot.frames: [being run][waiting, unread] ──replied()──► results
   ▲                                 │ taken_back() (unread frame), shortened() (tail of the frame being run)
   └─────────────────────────────────┘ died()
```

One dispatcher serves one lane: the tasks of one executor with one resource shape. A task is in the queue (held by the
caller) or in exactly one frame of exactly one slot. A worker runs its frames, and the tasks of a frame, in order, so
the first frame is the one being run. A slot has at most `depth` frames: one being run and one waiting behind it,
which can be taken back.

How many tasks a frame carries follows the measured time of a task: about `frame_s` of work, and never more than a
fair share of the queue. Time arrives in the arguments; nothing here reads a clock.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

Task = Any
"""The caller's; never looked into."""


class Frame:
    """Tasks sent together; `tasks[done:]` are not answered yet, `base + i` is the number of `tasks[i]`."""

    __slots__ = ("assigned", "base", "done", "limit", "limited_at", "recorded", "sent_at", "ship", "tasks")

    def __init__(self, base: int, tasks: list[Task], sent_at: float, ship: Any, assigned: int) -> None:
        self.base = base
        self.tasks = tasks
        self.done = 0
        self.sent_at = sent_at
        self.ship = ship
        self.limit = 0
        """0, or the number from which on tasks are being taken back."""
        self.limited_at = 0.0
        self.recorded = False
        """Its lineage has been handed on."""
        self.assigned = assigned
        """What its slot has been assigned with it."""

    @property
    def end(self) -> int:
        return self.base + len(self.tasks)


class Slot:
    """A leased worker as its submitter sees it."""

    __slots__ = ("assigned", "frames", "held", "link", "next_seq", "retiring", "returned", "worker")

    def __init__(self, worker: int, link: Any = None) -> None:
        self.worker = worker
        self.link = link
        """The caller's: socket, page, what has been shipped."""
        self.frames: deque[Frame] = deque()
        self.next_seq = 1
        self.assigned = 0
        """Tasks given to it that count towards `max_tasks_per_child`."""
        self.held = False
        """No frames now: its initializer has not answered, or its socket is full."""
        self.retiring = False
        """It gets nothing more."""
        self.returned = False
        """Its lease has been given back for good."""


class Answer(NamedTuple):
    """What an answer of a worker means: the tasks that it ends, and those that the worker gave back."""

    frame: Frame
    new: list[Task]
    upto: int
    end: bool
    back: list[Task]


class Death(NamedTuple):
    """What a dead worker leaves: tasks that it began and did not answer, and those that it had not started."""

    lost: list[Task]
    unstarted: list[Task]


class Dispatcher:
    """See the module; all methods are constant time but for the tasks they return."""

    __slots__ = ("depth", "frame_s", "lifetime", "loose", "max_batch", "slots", "task_s")

    def __init__(self, *, frame_s: float, max_batch: int, single: bool, lifetime: int | None) -> None:
        self.slots: dict[int, Slot] = {}
        self.frame_s = frame_s
        self.max_batch = 1 if single else max_batch
        self.depth = 1 if single else 2
        self.loose = False
        """See `make_loose`; nothing is taken back then."""
        self.task_s = 0.0
        """Mean time of a task, exponential, rising at once and falling slowly; 0: not known."""
        self.lifetime = lifetime

    def make_loose(self, depth: int) -> None:
        """The worker runs many tasks at a time: each travels alone, up to `depth` of them, and ends when it ends."""
        self.max_batch = 1
        self.depth = depth
        self.loose = True

    def alone(self, slot: Slot, number: int) -> Task | None:
        """The task of this number, which travelled alone; None if it is not known any more."""
        return next((frame.tasks[0] for frame in slot.frames if frame.base == number), None)

    def ended(self, slot: Slot, number: int) -> None:
        """It has ended."""
        for frame in list(slot.frames):
            if frame.base == number:
                slot.frames.remove(frame)

    # -- choosing

    def capacity(self, slot: Slot) -> int:
        """Frames that `slot` may still get."""
        if slot.held or slot.retiring:
            return 0
        if slot.frames and slot.frames[-1].ship and not self.loose:
            return 0  # a frame behind it would lack its definitions, were this one taken back
        if slot.frames and slot.frames[0].limit:
            return 0  # what is sent now would overtake the tail that comes back
        return self.depth - len(slot.frames)

    def next_slot(self) -> Slot | None:
        """The slot to fill next: an idle one first."""
        best = None
        for slot in self.slots.values():
            room = self.capacity(slot)
            if room == self.depth:
                return slot
            if room > 0 and best is None:
                best = slot
        return best

    def choose(self, slot: Slot, queued: int) -> int:
        """How many of `queued` tasks the next frame of `slot` should carry, at least 1."""
        if queued <= 1 or self.task_s <= 0.0:
            n = 1
        else:
            n = min(self.max_batch, int(self.frame_s / self.task_s), queued // (2 * len(self.slots)) + 1)
        if self.lifetime is not None:
            n = min(n, self.lifetime - slot.assigned)
        return max(n, 1)

    @staticmethod
    def prepared(slot: Slot, tasks: list[Task], now_s: float, ship: Any = None) -> Frame:
        """The frame in which `tasks` are about to travel to `slot`; nothing is recorded yet."""
        return Frame(slot.next_seq, tasks, now_s, ship, slot.assigned + len(tasks))

    def sent(self, slot: Slot, frame: Frame) -> None:
        """Record that the frame travels: the last one that was prepared. Done twice, it changes nothing more."""
        if not slot.frames or slot.frames[-1] is not frame:
            slot.frames.append(frame)
        slot.next_seq = frame.end
        slot.assigned = frame.assigned
        if self.lifetime is not None and slot.assigned >= self.lifetime:
            slot.retiring = True

    def last_of_life(self, slot: Slot, adding: int) -> bool:
        """Whether the worker must leave after a frame of `adding` more tasks."""
        return self.lifetime is not None and slot.assigned + adding >= self.lifetime

    def victim(self) -> Slot | None:
        """A busy slot with a frame waiting behind the one being run; an idle worker could have that."""
        if not self.loose:
            for slot in self.slots.values():
                if len(slot.frames) > 1:
                    return slot
        return None

    def stalled(self, now_s: float, stall_s: float) -> list[Slot]:
        """Slots whose frame being run holds several tasks and has not been answered for `stall_s`."""
        return [
            slot
            for slot in self.slots.values()
            if slot.frames
            and len(slot.frames[0].tasks) - slot.frames[0].done > 1
            and now_s - slot.frames[0].sent_at > stall_s
        ]

    # -- what happens

    def look(self, slot: Slot, first: int, count: int, end: bool) -> Answer:
        """What an answer with the results `first` … `first + count - 1` means; changes nothing.

        ValueError or IndexError if it does not fit what was sent.
        """
        frame = slot.frames[0]
        at = first - frame.base
        if at < 0 or at > frame.done or at + count > len(frame.tasks):
            raise ValueError(f"results {first}+{count} do not fit frame {frame.base}…{frame.end}, {frame.done} done")
        upto = max(frame.done, at + count)
        return Answer(frame, frame.tasks[frame.done : upto], upto, end, frame.tasks[upto:] if end else [])

    def accept(self, slot: Slot, answer: Answer) -> None:
        """Record the answer. Done twice, it changes nothing more."""
        frame = answer.frame
        frame.done = answer.upto
        if answer.end and slot.frames and slot.frames[0] is frame:
            slot.frames.popleft()
            slot.assigned -= len(answer.back)

    def replied(self, slot: Slot, first: int, count: int, end: bool, elapsed_s: float) -> tuple[list[Task], list[Task]]:
        """Results `first` … `first + count - 1` came: (the tasks they belong to, tasks that the worker gave back).

        Results that were known already (from the journal) are counted, not returned: the first list begins at the
        first new one.
        """
        answer = self.look(slot, first, count, end)
        self.accept(slot, answer)
        if count:
            self.measure(elapsed_s / count)
        return answer.new, answer.back

    def harvested(self, slot: Slot, first: int, count: int) -> list[Task]:
        """The journal holds results `first`…: the tasks among them that are not answered yet (they are the last
        ones).
        """
        if not slot.frames:
            return []
        frame = slot.frames[0]
        at = first - frame.base
        upto = at + count
        if at < 0 or at > frame.done or not frame.done < upto <= len(frame.tasks):
            return []  # of another frame, or an answer that is still in the socket comes before
        new = frame.tasks[frame.done : upto]
        frame.done = upto
        return new

    @staticmethod
    def frame(slot: Slot, base: int) -> Frame | None:
        """The frame `base` of the slot; None if it has none (or has it no more)."""
        for frame in slot.frames:
            if frame.base == base:
                return frame
        return None

    def taken_back(self, slot: Slot, base: int) -> list[Task]:
        """The unread frame `base` was taken out of the worker's socket: its tasks, to be queued again."""
        frame = self.frame(slot, base)
        if frame is None:
            raise ValueError(f"worker {slot.worker} has no frame {base}")
        slot.assigned -= len(frame.tasks)
        slot.frames.remove(frame)
        return frame.tasks

    def limit(self, slot: Slot, started: int, now_s: float) -> int:
        """Begin to take the tail of the frame being run back: the number from which on the worker must not start."""
        frame = slot.frames[0]
        frame.limit = max(started, frame.base + frame.done) + 1
        frame.limited_at = now_s
        return frame.limit

    def shortened(self, slot: Slot, started: int) -> list[Task]:
        """A tick after `limit`: the tasks taken back, none if the worker was faster."""
        frame = slot.frames[0]
        if started >= frame.limit:
            frame.limit = 0
            return []
        keep = frame.limit - frame.base
        back = frame.tasks[keep:]
        del frame.tasks[keep:]
        slot.assigned -= len(back)
        frame.limit = 0
        return back

    def died(self, slot: Slot, started: int) -> Death:
        """The worker is dead; `started` is the last task that it began. Its journal has been harvested before."""
        del self.slots[slot.worker]
        lost: list[Task] = []
        unstarted: list[Task] = []
        for frame in slot.frames:
            for number, task in enumerate(frame.tasks[frame.done :], frame.base + frame.done):
                (lost if number <= started else unstarted).append(task)
        slot.frames.clear()
        return Death(lost, unstarted)

    def measure(self, task_s: float) -> None:
        """A task took `task_s` seconds."""
        if task_s >= self.task_s:
            self.task_s = max(task_s, 1e-7)
        else:
            self.task_s += 0.25 * (task_s - self.task_s)

    def in_flight(self) -> int:
        """Tasks sent and not answered."""
        return sum(len(frame.tasks) - frame.done for slot in self.slots.values() for frame in slot.frames)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        seen: set[int] = set()
        for slot in self.slots.values():
            assert len(slot.frames) <= self.depth, f"{slot.worker} has {len(slot.frames)} frames"
            last = 0
            for frame in slot.frames:
                assert frame.base > last, "frames are out of order"
                last = frame.end - 1
                assert 0 <= frame.done <= len(frame.tasks)
                for task in frame.tasks:
                    assert id(task) not in seen, "a task is in two frames"
                    seen.add(id(task))
            assert slot.next_seq > last
