"""Which bytes of the segments are used, warm or cold."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from dpool._store.arena import NOBODY, PAGE, Allocation, Arena, Range
from dpool._store.intervals import Intervals


def pages(segment, offset, length):
    return Range(segment, offset * PAGE, length * PAGE)


def arena(capacity=64, segment=16):
    return Arena(capacity * PAGE, segment * PAGE)


def allocate(a, length, owner=1):
    made = a.allocate(length * PAGE, owner)
    a.check()
    return made


# -- intervals


def test_intervals_merge_and_split():
    s = Intervals()
    s.add(0, 10)
    s.add(20, 30)
    s.add(10, 20)
    assert list(s) == [(0, 30)]
    s.remove(5, 8)
    assert list(s) == [(0, 5), (8, 30)]
    assert s.parts(3, 9) == [(3, 5), (8, 9)]
    assert s.gaps(3, 40) == [(5, 8), (30, 40)]
    assert s.total == 27
    s.check()


@pytest.mark.parametrize("wrong", [(5, 5), (9, 11), (0, 30), (12, 25), (-5, 100)])
def test_intervals_refuse_what_is_there_already_and_the_removal_of_what_is_not(wrong):
    s = Intervals()
    s.add(0, 10)
    s.add(20, 30)
    with pytest.raises(ValueError, match="overlaps"):
        s.add(*wrong)
    with pytest.raises(ValueError, match="not wholly"):
        s.remove(*(wrong if wrong != (0, 30) else (0, 11)))
    assert list(s) == [(0, 10), (20, 30)]


# -- allocating


def test_the_first_allocation_makes_a_segment_and_is_cold():
    a = arena()
    assert a.allocate(PAGE + 1, 1) == Allocation(pages(1, 0, 2), (pages(1, 0, 2),), (), 16 * PAGE)
    assert (a.used, a.resident, a.segments) == (2 * PAGE, 2 * PAGE, {1: 16 * PAGE})


def test_freed_memory_is_warm_and_used_again_first():
    a = arena()
    first = allocate(a, 4).range
    allocate(a, 4)
    a.free(first)
    assert a.resident == 8 * PAGE
    assert allocate(a, 3) == Allocation(pages(1, 0, 3), (), (), 0)


def test_the_best_fit_is_taken_the_lowest_of_equal_ones():
    a = arena()
    made = [allocate(a, n).range for n in (5, 1, 3, 1, 3, 1)]
    for gone in made[::2]:
        a.free(gone)
    assert allocate(a, 3).range == made[2]
    assert allocate(a, 3).range == made[4]
    assert allocate(a, 2).range == pages(1, 0, 2)


def test_each_writer_gets_its_own_pages_again_then_those_of_nobody():
    a = arena()
    mine, other = allocate(a, 4, 1).range, allocate(a, 4, 2).range
    assert mine.segment != other.segment
    a.free(mine)
    a.free(other)
    assert allocate(a, 4, 2).range == other
    assert allocate(a, 4, 3).range.segment == 3
    a.orphan(1)
    assert allocate(a, 4, 3).range == mine


def test_the_pages_of_other_writers_are_taken_only_when_memory_is_short():
    a = arena(capacity=8)
    mine = allocate(a, 6, 1).range
    a.free(mine)
    assert allocate(a, 2, 2).range.segment == 2
    assert allocate(a, 5, 2) == Allocation(pages(1, 0, 5), (), (), 0)
    assert allocate(a, 1, 2).range == pages(1, 5, 1)


def test_what_is_punched_elsewhere_keeps_resident_within_the_capacity():
    a = arena(capacity=8, segment=16)
    small = [allocate(a, 2, 1).range for _ in range(4)]
    a.free(small[0])
    a.free(small[2])
    made = allocate(a, 4, 2)
    assert made.range == pages(1, 8, 4)
    assert sorted(made.punch) == [small[0], small[2]]
    assert a.resident == 8 * PAGE


def test_a_range_may_be_part_warm_and_part_cold():
    a = arena()
    a.free(allocate(a, 4).range)
    assert allocate(a, 6) == Allocation(pages(1, 0, 6), (pages(1, 4, 2),), (), 0)


def test_an_allocation_fails_exactly_when_used_bytes_would_exceed_the_capacity():
    a = arena(capacity=8, segment=4)
    first = allocate(a, 3).range
    allocate(a, 3)
    assert a.allocate(2 * PAGE + 1, 1) is None
    a.free(first)
    assert allocate(a, 5).range == pages(3, 0, 5)
    with pytest.raises(ValueError, match="at least one byte"):
        a.allocate(0, 1)


def test_a_large_object_gets_a_segment_of_its_size():
    a = arena(segment=4)
    assert allocate(a, 9).new_segment == 9 * PAGE


def test_a_failed_allocation_is_undone():
    a = arena()
    a.free(allocate(a, 4).range)
    made = allocate(a, 6)
    a.failed(made)
    a.check()
    assert (a.used, a.resident) == (0, 4 * PAGE)
    made = allocate(a, 20, 2)
    a.failed(made)
    assert made.range.segment in a.drop_empty()
    assert allocate(a, 20, 2).range.segment == made.range.segment + 1


def test_only_what_is_used_can_be_freed():
    a = arena()
    r = allocate(a, 4).range
    for wrong in (pages(1, 2, 4), pages(2, 0, 1), pages(1, -1, 2), Range(1, 0, 100), pages(1, 15, 2)):
        with pytest.raises(ValueError, match="not allocated"):
            a.free(wrong)
    a.free(pages(1, 1, 2))
    with pytest.raises(ValueError, match="not allocated"):
        a.free(r)
    assert a.used == 2 * PAGE


# -- giving back, adopting


def test_trim_punches_warm_memory_and_drops_empty_segments():
    a = arena(segment=4)
    made = [allocate(a, 4).range for _ in range(3)]
    a.free(made[0])
    a.free(pages(2, 0, 2))
    assert a.trim(6 * PAGE) == ([], [])
    assert a.trim(2 * PAGE) == ([made[0]], [1])
    assert a.trim(PAGE) == ([pages(2, 1, 1)], [])
    assert a.segments == {2: 4 * PAGE, 3: 4 * PAGE}
    assert a.trimmable
    a.trim(0)
    assert not a.trimmable


def test_an_adopted_segment_may_exceed_the_capacity():
    a = arena(capacity=8)
    assert a.adopt(16 * PAGE, [(0, 6 * PAGE), (8 * PAGE, 6 * PAGE)], NOBODY, 1) == 1
    a.check()
    assert a.allocate(PAGE, 1) is None
    a.free(pages(1, 0, 6))
    assert a.allocate(2 * PAGE, 1) == Allocation(pages(1, 0, 2), (), (pages(1, 2, 4),), 0)
    a.check()


def test_a_wrong_adoption_changes_nothing():
    a = arena()
    for used in ([(0, 100)], [(0, 2 * PAGE), (PAGE, PAGE)], [(15 * PAGE, 2 * PAGE)], [(-PAGE, PAGE)]):
        with pytest.raises(ValueError, match=r"range of a segment|overlaps"):
            a.adopt(16 * PAGE, used, NOBODY)
    a.adopt(16 * PAGE, [], NOBODY, 1)
    with pytest.raises(ValueError, match="is known"):
        a.adopt(16 * PAGE, [], NOBODY, 1)
    assert allocate(a, 17).range.segment == 2, "an adopted number is not given again"
    assert a.used == 17 * PAGE


class ArenaMachine(RuleBasedStateMachine):
    """Against a model that knows the state of every page."""

    def __init__(self):
        super().__init__()
        self.arena = Arena(24 * PAGE, 8 * PAGE)
        self.pages = {}  # (segment, page) -> "used", "warm" or "cold"
        self.held = []

    def mark(self, r, state, before):
        assert r.offset % PAGE == r.length % PAGE == 0
        assert r.length > 0
        for page in range(r.offset // PAGE, r.end // PAGE):
            assert self.pages[r.segment, page] in before
            self.pages[r.segment, page] = state

    def count(self, *states):
        return PAGE * sum(state in states for state in self.pages.values())

    @rule(length=st.integers(1, 12 * PAGE), owner=st.integers(0, 3), fails=st.booleans())
    def allocate(self, length, owner, fails):
        whole = -(-length // PAGE) * PAGE
        made = self.arena.allocate(length, owner)
        assert (made is None) == (self.count("used") + whole > 24 * PAGE)
        if made is None:
            return
        assert made.range.length == whole
        if made.new_segment:
            assert made.range.segment not in {segment for segment, _ in self.pages}
            for page in range(made.new_segment // PAGE):
                self.pages[made.range.segment, page] = "cold"
        for part in made.punch:
            self.mark(part, "cold", {"warm"})
        for part in made.cold:
            self.mark(part, "fresh", {"cold"})
        if fails:
            self.arena.failed(made)
            for part in made.cold:
                self.mark(part, "cold", {"fresh"})
        else:
            self.mark(made.range, "used", {"warm", "fresh"})
            self.held.append(made.range)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data):
        """A part in the middle, or all of it."""
        r = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        whole = r.length // PAGE
        low = data.draw(st.integers(0, whole - 1))
        high = data.draw(st.integers(low + 1, whole))
        part = Range(r.segment, r.offset + low * PAGE, (high - low) * PAGE)
        self.arena.free(part)
        self.mark(part, "warm", {"used"})
        self.held += [Range(r.segment, r.offset, low * PAGE)] if low else []
        self.held += [Range(r.segment, part.end, r.end - part.end)] if part.end < r.end else []

    @rule(keep=st.integers(0, 10))
    def trim(self, keep):
        punched, dropped = self.arena.trim(keep * PAGE)
        for part in punched:
            self.mark(part, "cold", {"warm"})
        assert self.count("warm") <= keep * PAGE
        for segment in dropped:
            assert all(state == "cold" for (number, _), state in self.pages.items() if number == segment)
        self.pages = {key: state for key, state in self.pages.items() if key[0] not in dropped}
        for segment in {segment for segment, _ in self.pages}:
            assert any(state != "cold" for (number, _), state in self.pages.items() if number == segment)

    @rule(owner=st.integers(1, 3))
    def orphan(self, owner):
        self.arena.orphan(owner)

    @invariant()
    def holds(self):
        self.arena.check()
        assert self.arena.used == self.count("used")
        assert self.arena.warm == self.count("warm")
        assert self.arena.resident <= self.arena.capacity
        assert set(self.arena.segments) == {segment for segment, _ in self.pages}


def test_every_page_is_in_one_state():
    run_state_machine_as_test(ArenaMachine, settings=settings(max_examples=60, stateful_step_count=50, deadline=None))
