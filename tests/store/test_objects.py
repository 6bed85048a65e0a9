"""Each rule of the store's machine, alone."""

from __future__ import annotations

import pytest

from dpool._store import events as e
from dpool._store.arena import PAGE
from dpool._store.eviction import Candidate, choose_victims
from tests.store.glue import Glue

A, B, C, D = (letter * 20 for letter in (b"a", b"b", b"c", b"d"))


class World(Glue):
    """A store of 8 pages with clients 1 and 2, and what a test says often."""

    def __init__(self, capacity=8, segment=8):
        super().__init__(capacity, segment)
        self.requests = 0
        for client in (1, 2):
            self.leases[client] = []
            self.tell(e.Joined(client, 100 + client))

    def want(self, length, client=1):
        """What the machine answers at once, without orders to make memory."""
        self.requests += 1
        self.asked[client, self.requests] = 0
        orders = self.tell(e.Want(client, self.requests, length * PAGE, self.now))
        while self.lists:
            self.work()
        return [one for one in orders if not isinstance(one, (e.MakeSegment, e.Allocate, e.WakeAt))]

    def locate(self, obj, client=1):
        self.requests += 1
        self.asked[client, self.requests] = 0
        return self.tell(e.Locate(client, self.requests, obj, self.now))

    def put(self, obj, length, client=1):
        """Lease and seal; the object's range."""
        [leased] = self.want(length, client)
        self.seal(obj, leased.range, client)
        return leased.range

    def seal(self, obj, r, client=1):
        self.write(r, obj)
        return self.tell(e.Seal(client, obj, r, r.length - 64, 100 + client, self.now))

    def spill(self, obj):
        """The object leaves memory, as others want all of it."""
        self.want(self.store.stats().capacity // PAGE)
        self.settle()
        [lease] = self.leases[1][-1:]
        self.leases[1].clear()
        self.tell(e.Return(1, lease))
        assert self.state(obj) == e.SPILLED

    def state(self, obj):
        return {one.obj: one.state for one in self.store.listing()}.get(obj, e.ABSENT)


def kinds(orders):
    return [type(one) for one in orders]


# -- leases


def test_a_want_is_answered_with_memory_that_is_made_first():
    w = World()
    orders = w.store.handle(e.Want(1, 7, 100, 0.0))
    r = e.Range(1, 0, PAGE)
    assert orders == [e.MakeSegment(1, 8 * PAGE), e.Allocate(r), e.Leased(1, 7, r)]


def test_a_want_above_the_capacity_goes_to_disk():
    assert kinds(World().want(9)) == [e.OnDisk]


def test_refused_memory_is_undone_and_the_answer_is_on_disk():
    w = World()
    w.asked[1, 7] = 0
    w.tell(e.Want(1, 7, PAGE, 0.0))
    w.work(fails=True)
    w.settle()
    assert w.asked[1, 7] == 1
    assert isinstance(w.log[-2], e.OnDisk)
    assert w.log[-1] == e.DropSegment(1)
    assert (w.store.stats().used, w.pages) == (0, {})
    assert w.put(A, 2) == e.Range(2, 0, 2 * PAGE)


def test_a_seal_outside_of_the_leases_is_refused_and_changes_nothing():
    w = World()
    r = w.want(4)[0].range
    other = w.want(2, client=2)[0].range
    for wrong in (r._replace(length=5 * PAGE), r._replace(offset=64), other, r._replace(segment=9)):
        with pytest.raises(e.IllegalMove, match="Seal is not allowed"):
            w.tell(e.Seal(1, A, wrong, 8, 101, 0.0))
        with pytest.raises(e.IllegalMove, match="Return is not allowed"):
            w.tell(e.Return(1, wrong))
    with pytest.raises(ValueError, match="do not fit"):
        w.tell(e.Seal(1, A, r, 4 * PAGE - 63, 101, 0.0))
    w.seal(A, r._replace(length=PAGE))
    with pytest.raises(e.IllegalMove):
        w.tell(e.Seal(1, A, r, 8, 101, 0.0))
    assert w.store.stats().leased_bytes == 5 * PAGE


@pytest.mark.parametrize(
    "event",
    [
        e.Joined(1, 5),
        e.Want(3, 1, 5, 0.0),
        e.Want(1, 1, 0, 0.0),
        e.Locate(3, 1, A, 0.0),
        e.SpillDone(A, "/f", 1, 0.0),
        e.SpillFailed(A, "", False, 0.0),
        e.Looked(A, 0.0),
        e.RestoreDone(A, 0.0),
        e.RestoreFailed(A, "", 0.0),
        e.SealFile(1, A, 5, "", 0, 1, 0.0),
        e.Adopt(8 * PAGE, [(A, 0, 9 * PAGE, 5)], 1, 1, 0.0),
    ],
)
def test_what_cannot_be_is_refused(event):
    w = World()
    with pytest.raises(ValueError):
        w.tell(event)
    w.store.check()
    assert w.store.stats().used == 0


def test_the_leases_and_questions_of_a_dead_client_vanish():
    w = World()
    w.put(A, 6)
    w.want(2, client=2)
    [spill] = w.want(3, client=2)
    assert kinds(w.tell(e.Left(2))) == [e.Punch, e.WakeAt]
    assert w.tell(e.Left(2)) == []
    w.finish(spill)
    assert kinds(w.log[-1:]) == [e.MarkLeaving]
    w.settle()
    assert (w.store.stats().used, w.asked[2, 3]) == (0, 0)
    assert w.tell(e.Return(2, e.Range(1, 0, PAGE))) == []


def test_memory_that_a_dead_client_had_asked_for_is_not_taken_for_there():
    w = World()
    w.tell(e.Want(2, 1, 3 * PAGE, 0.0))
    w.tell(e.Left(2))
    r = e.Range(1, 0, 3 * PAGE)
    assert w.tell(e.Want(1, 1, 3 * PAGE, 0.0)) == [e.Allocate(r), e.Leased(1, 1, r)]
    assert w.tell(e.MemoryRefused(2, 1, r)) == []


# -- locating and freeing


def test_an_object_is_found_where_it_was_sealed_and_is_free_when_nobody_holds_it():
    w = World()
    r = w.put(A, 2)
    assert w.locate(A) == [e.Located(1, 2, A, r, 2 * PAGE - 64)]
    w.tell(e.Free(A))
    assert kinds(w.locate(A)) == [e.Unknown]
    assert w.store.stats().used == 0


def test_what_a_reader_maps_becomes_a_zombie_until_a_rescan():
    w = World()
    r = w.put(A, 2)
    w.pins.add(r[:2])
    w.tell(e.Free(A))
    assert w.store.stats().zombie_bytes == w.store.stats().pinned_bytes == 2 * PAGE
    w.pins.clear()
    w.tell(e.Rescan(0.0))
    assert w.store.stats().used == 0


def test_zombies_are_looked_at_when_memory_is_wanted():
    w = World()
    w.pins.add(w.put(A, 5)[:2])
    w.tell(e.Free(A))
    assert kinds(w.want(8)) == [e.OnDisk]
    w.pins.clear()
    assert kinds(w.want(8)) == [e.Leased]


def test_what_is_freed_before_its_seal_is_free_at_its_seal():
    w = World()
    w.tell(e.Free(A))
    w.put(A, 2)
    assert (w.state(A), w.store.stats().used) == (e.ABSENT, 0)
    w.put(A, 2)
    assert w.state(A) == e.SEALED
    w.tell(e.Free(B))
    w.files.add("/b")
    assert w.tell(e.SealFile(1, B, 5, "/b", 0, 1, 0.0)) == [e.DeleteFile("/b")]


def test_the_memory_of_early_frees_is_bounded():
    w = World()
    for n in range(10_001):
        w.store.handle(e.Free(n.to_bytes(20, "big")))
    w.store.check()
    w.put((0).to_bytes(20, "big"), 1)
    assert w.store.stats().objects == 1


def test_a_retired_range_is_never_used_again():
    w = World()
    r = w.put(A, 2)
    w.tell(e.Retire(*r[:2]))
    w.tell(e.Retire(77, 0))
    assert kinds(w.want(7)) == [e.OnDisk]
    w.tell(e.Free(A))
    w.tell(e.Rescan(0.0))
    stats = w.store.stats()
    assert (stats.used, stats.retired_bytes, stats.zombie_bytes) == (2 * PAGE, 2 * PAGE, 0)


def test_an_object_made_again_keeps_both_places_until_it_is_freed():
    w = World()
    first, second = w.put(A, 2), w.put(A, 2)
    assert w.locate(A)[0].range == first
    assert second != first
    assert w.store.stats().sealed_bytes == 4 * PAGE
    w.tell(e.Free(A))
    assert w.store.stats().used == 0


# -- spilling


def test_the_least_recently_used_leave_and_no_more_than_needed():
    w = World()
    for at, obj in enumerate((A, B, C, D)):
        w.now = at
        w.put(obj, 2)
    w.tell(e.Used([(1, 0, 9.0)]))
    w.now = 10.0
    assert [one.obj for one in w.want(3)] == [B, C]
    w.settle()
    assert [w.state(obj) for obj in (A, B, C)] == [e.SEALED, e.SPILLED, e.SPILLED]
    assert w.asked[1, 5] == 1


def test_choosing_victims():
    small, large = Candidate(A, 1, 0.0, True), Candidate(B, 9, 1.0, False)
    assert choose_victims([small, large], 1) == [A]
    assert choose_victims([small, large], 10) == [A, B]
    assert choose_victims([small, large], 5) == [B]
    assert choose_victims([small], 5) == [A]
    assert choose_victims([], 5) == []


def test_a_pinned_object_stays_and_a_want_does_not_wait_for_its_reader():
    w = World()
    w.pins.add(w.put(A, 5)[:2])
    assert kinds(w.want(4)) == [e.OnDisk]


def test_a_reader_who_came_in_the_middle_of_a_spill_keeps_the_object_and_the_file_stays():
    w = World()
    r = w.put(A, 5)
    [spill] = w.want(4)
    assert spill == e.StartSpill(A, r, 5 * PAGE - 64)
    w.finish(spill)
    w.pins.add(r[:2])
    orders = w.tell(e.Looked(A, 0.0))
    assert kinds(orders) == [e.MarkSealed, e.OnDisk]
    w.jobs.clear()
    w.pins.clear()
    assert kinds(w.want(4)) == [e.MarkLeaving], "a clean object needs no second write"
    w.settle()
    assert w.state(A) == e.SPILLED


def test_who_asks_for_an_object_that_is_leaving_gets_it():
    w = World()
    w.put(A, 5)
    w.finish(w.want(4)[0])
    assert w.locate(A) == []
    assert kinds(w.tell(e.Looked(A, 0.0))) == [e.MarkSealed, e.Located, e.OnDisk]


def test_nothing_is_spilled_for_a_second_after_the_disk_was_full():
    w = World()
    w.put(A, 5)
    w.finish(w.want(4)[0], "full")
    assert w.state(A) == e.SEALED
    assert isinstance(w.log[-1], e.OnDisk)
    assert kinds(w.want(4)) == [e.OnDisk]
    w.now = 1.5
    assert kinds(w.want(4)) == [e.StartSpill]


def test_after_another_failure_only_that_object_is_left_alone():
    w = World()
    w.put(A, 4)
    w.now = 0.5
    w.put(B, 4)
    w.finish(w.want(4)[0], False)
    assert w.log[-1] == e.StartSpill(B, e.Range(1, 4 * PAGE, 4 * PAGE), 4 * PAGE - 64)


@pytest.mark.parametrize("ends", [True, False])
def test_a_free_in_the_middle_of_a_spill_is_carried_out_at_its_end(ends):
    w = World()
    w.put(A, 5)
    [spill] = w.want(4)
    assert w.tell(e.Free(A)) == []
    w.finish(spill, ends)
    assert w.state(A) == e.ABSENT
    w.settle()
    assert w.files == set()
    assert w.asked[1, 2] == 1


def test_an_object_that_is_made_again_while_it_goes_stays():
    w = World()
    w.put(A, 5)
    r = w.want(3)[0].range
    [spill] = w.want(2)
    w.tell(e.Free(A))
    w.seal(A, r)
    w.finish(spill)
    w.settle()
    assert w.state(A) == e.SPILLED
    assert w.asked[1, 3] == 1


# -- restoring


def test_a_spilled_object_comes_back_for_all_who_ask():
    w = World()
    w.put(A, 5)
    w.spill(A)
    [restore] = w.locate(A)
    assert w.locate(A, client=2) == []
    w.settle()
    assert kinds(w.log[-3:]) == [e.MarkSealed, e.Located, e.Located]
    assert (w.state(A), w.store.stats().restores) == (e.SEALED, 1)
    assert w.store.stats().files_bytes == restore.size, "its file stays: it is clean"


def test_without_room_a_reader_is_told_of_the_file():
    w = World()
    w.put(A, 5)
    w.spill(A)
    w.pins.add(w.put(B, 5)[:2])
    assert kinds(w.locate(A)) == [e.InFile]


def test_an_object_larger_than_the_store_is_always_in_its_file():
    w = World()
    w.files.add("/a")
    w.tell(e.SealFile(1, A, 8 * PAGE, "/a", 9, 101, 0.0))
    assert w.locate(A) == [e.InFile(1, 1, A, "/a", 8 * PAGE, 9)]
    assert w.store.stats().on_disk_writes == 1
    assert w.tell(e.Free(A)) == [e.DeleteFile("/a")]


def test_a_lost_file_loses_the_object_until_it_is_made_again():
    w = World()
    w.put(A, 5)
    w.spill(A)
    w.locate(A)
    w.work()
    w.finish(w.jobs[0], False)
    assert e.Unknown in kinds(w.log[-3:])
    assert w.locate(A) == [e.Unknown(1, w.requests, A, "corrupt")]
    w.settle()
    w.put(A, 5)
    assert (w.state(A), w.files) == (e.SEALED, set())


def test_the_second_place_of_an_object_saves_it_when_its_file_is_lost():
    w = World()
    w.put(A, 2)
    w.spill(A)
    second = w.put(A, 2)
    w.locate(A)
    w.work()
    w.finish(w.jobs[0], False)
    assert w.locate(A)[0].range == second


def test_refused_memory_for_a_restore_names_the_file():
    w = World()
    w.put(A, 5)
    w.spill(A)
    w.tell(e.Tick(w.wakes[0] + 100))
    w.now = w.wakes[-1] + 100
    w.tell(e.Tick(w.now))
    w.settle()
    w.locate(A)
    w.work(fails=True)
    w.settle()
    assert [one for one in kinds(w.log) if one in (e.InFile, e.Located)] == [e.InFile]
    assert (w.state(A), w.pages) == (e.SPILLED, {})


# -- who waits


def test_first_come_first_served_though_a_later_one_would_fit():
    w = World()
    w.put(A, 6)
    assert kinds(w.want(5)) == [e.StartSpill]
    assert w.want(1, client=2) == []
    w.settle()
    assert [one.client for one in w.log if isinstance(one, e.Leased)] == [1, 1, 2]


def test_nobody_waits_when_those_before_cannot_be_served():
    w = World()
    w.want(4)
    assert kinds(w.want(5)) == [e.OnDisk]
    assert kinds(w.want(4)) == [e.Leased]


def test_a_return_serves_those_who_wait():
    w = World()
    r = w.want(4)[0].range
    w.put(A, 4)
    [spill] = w.want(4)
    assert kinds(w.tell(e.Return(1, r))) == [e.Leased]
    w.finish(spill)


# -- memory given back, pressure, adoption


def test_memory_that_is_not_used_for_half_a_minute_is_given_back_and_then_nothing_wakes():
    w = World()
    w.put(A, 2)
    w.put(B, 3)
    w.tell(e.Free(A))
    assert w.tell(e.Rescan(1.0)) == []
    assert w.tell(e.Tick(30.0)) == [e.WakeAt(60.0)], "a Free does not tell the time"
    w.tell(e.Free(B))
    assert w.tell(e.Tick(59.9)) == [e.WakeAt(60.0)]
    assert kinds(w.tell(e.Tick(60.0))) == [e.Punch, e.WakeAt]
    assert w.store.stats().resident == 3 * PAGE, "not what came only now"
    assert kinds(w.tell(e.Tick(90.0))) == [e.Punch, e.DropSegment]
    w.settle()
    assert w.pages == {}
    assert w.tell(e.Tick(120.0)) == []


def test_pressure_rises_at_half_and_falls_below_two_fifths():
    w = World(capacity=10, segment=10)
    places = [w.put(obj, length)[:2] for obj, length in ((A, 5), (B, 1), (C, 2))]
    w.pins |= set(places[:2])
    assert w.tell(e.Rescan(1.0)) == [e.Pressure(True)]
    w.pins -= {places[1]}
    assert w.tell(e.Rescan(2.0)) == []
    w.pins -= {places[0]}
    assert w.tell(e.Rescan(2.01)) == []
    assert w.tell(e.Rescan(3.0)) == [e.Pressure(False)]


def test_an_adopted_segment_counts_and_above_the_capacity_nothing_is_granted():
    w = World()
    w.tell(e.Adopt(16 * PAGE, [(A, 0, 6 * PAGE, 5), (B, 6 * PAGE, 4 * PAGE, 5)], 1, 9, 0.0, 77))
    assert w.log[-1] == e.Adopted(77)
    assert w.locate(A)[0].range == e.Range(77, 0, 6 * PAGE)
    assert [one.obj for one in w.want(2) if isinstance(one, e.StartSpill)] == [A]
    w.settle()
    assert w.asked[1, 2] == 1
    assert w.store.stats().resident <= 8 * PAGE


def test_a_search_among_many_mapped_objects_is_not_repeated_at_once():
    w = World(capacity=1000, segment=1000)
    for n in range(1000):
        [leased] = [one for one in w.store.handle(e.Want(1, n, PAGE, 0.0)) if isinstance(one, e.Leased)]
        w.store.handle(e.Seal(1, n.to_bytes(20, "big"), leased.range, 8, 1, 0.0))
        w.pins.add(leased.range[:2])
    assert e.OnDisk in kinds(w.store.handle(e.Want(1, 1000, PAGE, 0.0)))
    w.pins.clear()
    assert e.OnDisk in kinds(w.store.handle(e.Want(1, 1001, PAGE, 0.1)))
    assert e.StartSpill in kinds(w.store.handle(e.Want(1, 1002, PAGE, 0.3)))
