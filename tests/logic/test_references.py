"""Who holds an object, and when it is free."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dpool._core.logic import IllegalMove
from dpool._core.logic.references import Acquire, Contains, Freed, ProcessDied, References, Release

A, B, C = b"a" * 20, b"b" * 20, b"c" * 20


def holding(*pairs):
    made = References()
    for obj, process in pairs:
        made.handle(Acquire(obj, process))
    return made


def test_the_last_release_frees_the_object_once():
    r = References()
    r.handle(Acquire(A, 1, 2))
    r.handle(Acquire(A, 2))
    assert r.handle(Release(A, 1)) == []
    assert r.handle(Release(A, 2)) == []
    assert r.handle(Release(A, 1)) == [Freed(A)]
    assert A not in r
    with pytest.raises(IllegalMove, match="Release is not allowed while object 6161"):
        r.handle(Release(A, 1))


def test_a_release_below_zero_is_refused_and_changes_nothing():
    r = holding((A, 1), (A, 2))
    with pytest.raises(
        IllegalMove, match=r"Release of 2 is not allowed while object 61.* is held 1 times by process 1"
    ):
        r.handle(Release(A, 1, 2))
    with pytest.raises(IllegalMove, match="held 0 times by process 3"):
        r.handle(Release(A, 3))
    assert r.holders(A) == {1: 1, 2: 1}


@pytest.mark.parametrize("event", [Acquire(A, 1, 0), Release(A, 1, -1)])
def test_a_count_below_one_is_refused(event):
    with pytest.raises(ValueError, match="at least once"):
        holding((A, 1)).handle(event)


def test_a_death_releases_everything_and_may_be_said_twice():
    r = holding((A, 1), (A, 1), (B, 1), (B, 2))
    assert r.handle(ProcessDied(1)) == [Freed(A)]
    assert r.handle(ProcessDied(1)) == []
    assert r.holders(B) == {2: 1}


def test_what_is_inside_lives_as_long_as_what_is_outside():
    r = holding((A, 1), (B, 1))
    r.handle(Contains(A, B))
    r.handle(Contains(A, B))
    assert r.handle(Release(B, 1)) == []
    assert B in r
    r.handle(Acquire(B, 2))
    assert r.handle(Release(A, 1)) == [Freed(A)]
    assert r.handle(Release(B, 2)) == [Freed(B)]


def test_an_object_in_two_containers_waits_for_both():
    r = holding((A, 1), (B, 1), (C, 1))
    r.handle(Contains(A, C))
    r.handle(Contains(B, C))
    r.handle(Release(C, 1))
    assert r.handle(Release(A, 1)) == [Freed(A)]
    assert r.handle(Release(B, 1)) == [Freed(B), Freed(C)]


def test_an_object_reached_by_two_ways_is_freed_once():
    r = holding((A, 1), (B, 1), (C, 1))
    for outer, inner in [(A, B), (B, C), (A, C)]:
        r.handle(Contains(outer, inner))
    assert r.handle(ProcessDied(1)) == [Freed(A), Freed(B), Freed(C)]


def test_an_edge_needs_two_known_objects_and_makes_no_cycle():
    r = holding((A, 1), (B, 1), (C, 1))
    with pytest.raises(IllegalMove, match=r"Contains is not allowed while object 64.* is absent"):
        r.handle(Contains(A, b"d" * 20))
    r.handle(Contains(A, B))
    r.handle(Contains(B, C))
    for outer, inner in [(A, A), (C, A), (B, A)]:
        with pytest.raises(ValueError, match="contain itself"):
            r.handle(Contains(outer, inner))
    r.check()


def test_a_chain_of_ten_thousand_containers_is_freed_without_recursion():
    r = References()
    names = [n.to_bytes(20, "big") for n in range(10_000)]
    for name in names:
        r.handle(Acquire(name, 1))
    for inner, outer in pairwise(names):
        r.handle(Contains(outer, inner))
    for name in names[:-1]:
        assert r.handle(Release(name, 1)) == []
    assert r.handle(ProcessDied(1)) == [Freed(name) for name in reversed(names)]
    r.check()
    assert len(r) == 0


objects = st.integers(0, 7).map(lambda n: bytes([n]) * 20)
processes = st.integers(1, 3)


class ReferenceMachine(RuleBasedStateMachine):
    """Against the obvious model: what can be reached from a holder lives, nothing else does."""

    def __init__(self):
        super().__init__()
        self.machine = References()
        self.counts = {}
        self.edges = set()
        self.alive = set()

    def reachable(self, roots):
        seen = set()
        ends = set(roots)
        while ends:
            seen |= ends
            ends = {inner for outer, inner in self.edges if outer in seen} - seen
        return seen

    def apply(self, event):
        """Whatever the model says can no longer be reached must have been freed, each once."""
        out = self.machine.handle(event)
        still = self.reachable(obj for obj, _ in self.counts)
        freed = [instruction.obj for instruction in out]
        assert len(freed) == len(set(freed))
        assert set(freed) == self.alive - still
        self.alive = still
        self.edges = {edge for edge in self.edges if edge[0] in still}

    @rule(obj=objects, process=processes, n=st.integers(1, 3))
    def acquire(self, obj, process, n):
        self.counts[obj, process] = self.counts.get((obj, process), 0) + n
        self.alive.add(obj)
        self.apply(Acquire(obj, process, n))

    @rule(obj=objects, process=processes, n=st.integers(1, 3))
    def release(self, obj, process, n):
        held = self.counts.get((obj, process), 0)
        if held < n:
            with pytest.raises(IllegalMove):
                self.machine.handle(Release(obj, process, n))
            return
        self.counts[obj, process] -= n
        if held == n:
            del self.counts[obj, process]
        self.apply(Release(obj, process, n))

    @rule(process=processes)
    def die(self, process):
        self.counts = {key: count for key, count in self.counts.items() if key[1] != process}
        self.apply(ProcessDied(process))

    @rule(outer=objects, inner=objects)
    def contain(self, outer, inner):
        if not {outer, inner} <= self.alive:
            with pytest.raises(IllegalMove):
                self.machine.handle(Contains(outer, inner))
        elif outer in self.reachable([inner]):
            with pytest.raises(ValueError, match="contain itself"):
                self.machine.handle(Contains(outer, inner))
        else:
            self.edges.add((outer, inner))
            self.apply(Contains(outer, inner))

    @invariant()
    def holds(self):
        self.machine.check()
        assert len(self.machine) == len(self.alive)

    def teardown(self):
        for process in (1, 2, 3):
            self.die(process)
        assert len(self.machine) == 0


def test_what_can_be_reached_lives_and_nothing_else():
    run_state_machine_as_test(
        ReferenceMachine, settings=settings(max_examples=50, stateful_step_count=40, deadline=None)
    )
