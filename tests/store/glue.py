"""A model of what surrounds the store's machine: memory, files and threads that a test can look into and break.

Memory orders, and what needs them, are carried out one list after the other, as late as the test likes; the rest of a
list at once; spills, restores and looks end in any order. Whatever would be a wrong byte in earnest is an
AssertionError here.
"""

from __future__ import annotations

from collections import deque

from dpool._store import events as e
from dpool._store.arena import PAGE
from dpool._store.objects import Store

ORDERED = (e.Punch, e.MakeSegment, e.Allocate, e.DropSegment, e.Leased, e.StartRestore)


class Glue:
    """Carries out instructions."""

    def __init__(self, capacity, segment):
        self.pins: set[tuple[int, int]] = set()
        self.retired = set()
        self.store = Store(capacity * PAGE, lambda r: r[:2] in self.pins, segment_bytes=segment * PAGE)
        self.now = 0.0
        self.pages = {}  # (segment, page) that exist -> number of the write whose bytes are there, 0: none
        self.writes = {}  # place -> number of the last write that began there
        self.segments = {}
        self.unmade = set()
        self.headers = {}  # place -> (object, sealed)
        self.files = set()
        self.lists: deque[list] = deque()  # instructions that wait for the memory thread
        self.jobs = []  # spills, restores and looks that have not ended
        self.leases = {}  # client -> ranges
        self.asked = {}  # (client, request) -> answers
        self.wakes = []
        self.pressed = False
        self.over = False
        self.log = []

    # -- the machine is told something

    def tell(self, event):
        orders = self.store.handle(event)
        self.store.check()
        self.log += orders
        if orders and isinstance(orders[0], e.Adopted):
            self.adopt(event, orders.pop(0))
        for one in orders:
            if not isinstance(one, ORDERED):
                self.perform(one)
        ordered = [one for one in orders if isinstance(one, ORDERED)]
        if ordered:
            self.lists.append(ordered)
        return orders

    def work(self, fails=False):
        """The memory thread carries out one list; `fails`: it gets no new memory."""
        failed = False
        for one in self.lists.popleft():
            if isinstance(one, (e.MakeSegment, e.Allocate)):
                failed |= fails or (isinstance(one, e.Allocate) and one.range.segment in self.unmade)
                if fails and isinstance(one, e.MakeSegment):
                    self.unmade.add(one.segment)
                elif not failed:
                    self.perform(one)
            elif isinstance(one, (e.Leased, e.StartRestore)) and failed:
                failed = False
                asker = (one.client, one.request) if isinstance(one, e.Leased) else (0, 0)
                self.tell(e.MemoryRefused(*asker, one.range))
            else:
                self.perform(one)

    def finish(self, job, outcome=True):
        """A spill, a restore or a look ends; `outcome`: True, False, or for a spill "full"."""
        self.jobs.remove(job)
        if isinstance(job, e.MarkLeaving):
            self.tell(e.Looked(job.obj, self.now))
        elif isinstance(job, e.StartSpill) and outcome is True:
            path = f"/spill/{len(self.log)}"
            self.files.add(path)
            self.tell(e.SpillDone(job.obj, path, 7, self.now))
        elif isinstance(job, e.StartSpill):
            self.tell(e.SpillFailed(job.obj, "no", outcome == "full", self.now))
        elif outcome is True:
            assert job.path in self.files
            self.write(job.range, job.obj)
            self.tell(e.RestoreDone(job.obj, self.now))
        else:
            self.tell(e.RestoreFailed(job.obj, "corrupt", self.now))

    def settle(self):
        """Everything that is under way ends well."""
        while self.lists or self.jobs:
            if self.lists:
                self.work()
            else:
                self.finish(self.jobs[0])

    def adopt(self, event, adopted):
        """The segment was there before."""
        assert event.segment in (0, adopted.segment)
        self.over = True
        self.segments[adopted.segment] = event.segment_size
        for obj, offset, length, _ in event.objects:
            r = e.Range(adopted.segment, offset, length)
            self.fill(r, obj)

    # -- instructions

    def perform(self, one):
        getattr(self, type(one).__name__)(one)

    def numbers(self, r):
        assert r.offset % PAGE == r.length % PAGE == 0
        return [(r.segment, page) for page in range(r.offset // PAGE, r.end // PAGE)]

    def unmapped(self, r):
        """Whether nobody maps any of it."""
        mapped = {self.writes[place] for place in self.pins | self.retired}
        return mapped.isdisjoint(self.pages.get(key, 0) for key in self.numbers(r))

    def may_write(self, r):
        """Its pages exist, and nobody maps them."""
        assert all(key in self.pages for key in self.numbers(r)), "a write would be a SIGBUS"
        assert self.unmapped(r), "a reader's bytes would change"

    def write(self, r, obj):
        self.may_write(r)
        self.fill(r, obj)

    def fill(self, r, obj):
        self.headers[r[:2]] = (obj, True)
        self.writes[r[:2]] = 1 + len(self.writes) + max(self.writes.values(), default=0)
        self.pages |= dict.fromkeys(self.numbers(r), self.writes[r[:2]])

    def Punch(self, one):
        assert self.unmapped(one.range), "a reader's bytes would vanish"
        for key in self.numbers(one.range):
            self.pages.pop(key, None)
            self.headers.pop((key[0], key[1] * PAGE), None)

    def MakeSegment(self, one):
        assert one.segment not in self.segments
        self.segments[one.segment] = one.size

    def Allocate(self, one):
        assert one.range.end <= self.segments[one.range.segment]
        for key in self.numbers(one.range):
            self.pages.setdefault(key, 0)
        assert self.over or len(self.pages) * PAGE <= self.store.stats().capacity

    def DropSegment(self, one):
        assert not any(segment == one.segment for segment, _ in self.pages)
        self.segments.pop(one.segment, None)

    def answer(self, one):
        self.asked[one.client, one.request] += 1

    def Leased(self, one):
        if one.client not in self.leases:
            return
        self.may_write(one.range)
        self.answer(one)
        self.leases[one.client].append(one.range)

    def Located(self, one):
        self.answer(one)
        assert self.headers[one.range[:2]] == (one.obj, True)

    def InFile(self, one):
        self.answer(one)
        assert one.path in self.files

    OnDisk = Unknown = answer

    def StartSpill(self, one):
        self.jobs.append(one)

    def StartRestore(self, one):
        self.may_write(one.range)
        self.jobs.append(one)

    def MarkLeaving(self, one):
        assert self.headers[one.range[:2]] == (one.obj, True)
        self.headers[one.range[:2]] = (one.obj, False)
        self.jobs.append(one)

    def MarkSealed(self, one):
        assert self.headers[one.range[:2]][0] == one.obj
        self.headers[one.range[:2]] = (one.obj, True)

    def DeleteFile(self, one):
        self.files.remove(one.path)

    def Pressure(self, one):
        assert one.on != self.pressed
        self.pressed = one.on

    def WakeAt(self, one):
        self.wakes.append(one.at_s)
