"""Tasks that wait for other tasks' futures."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dpool._core.logic import IllegalMove
from dpool._core.logic.dependency import Add, Cancelled, Dependencies, Fail, Failed, Ready, Resolved


def test_a_task_is_ready_when_its_last_dependency_is_resolved():
    d = Dependencies()
    assert d.handle(Add(10, [1, 2, 1])) == []
    assert d.handle(Resolved(1)) == []
    assert d.handle(Resolved(1)) == [], "said twice"
    assert d.handle(Resolved(2)) == [Ready(10)]
    assert not d.waits(10)
    d.check()


def test_a_task_that_needs_nothing_is_ready_at_once():
    assert Dependencies().handle(Add(10, ())) == [Ready(10)]


def test_tasks_that_share_a_dependency_become_ready_in_order():
    d = Dependencies()
    for task in (12, 10, 11):
        d.handle(Add(task, [1]))
    assert d.handle(Resolved(1)) == [Ready(12), Ready(10), Ready(11)]


def test_the_first_failure_fails_the_task_and_its_other_dependencies_are_forgotten():
    d = Dependencies()
    d.handle(Add(10, [1, 2]))
    assert d.handle(Failed(2)) == [Fail(10, 2)]
    assert d.handle(Resolved(1)) == []
    assert d.handle(Failed(1)) == []
    d.check()
    assert len(d) == 0


def test_a_failure_reaches_each_dependent_once_and_after_its_cause():
    d = Dependencies()
    d.handle(Add(10, [1]))
    d.handle(Add(11, [1, 10]))
    d.handle(Add(12, [10, 11]))
    assert d.handle(Failed(1)) == [Fail(10, 1), Fail(11, 1), Fail(12, 10)]


def test_cancelling_a_waiting_task_fails_what_waits_for_it():
    d = Dependencies()
    d.handle(Add(10, [1]))
    d.handle(Add(11, [10]))
    assert d.handle(Cancelled(10)) == [Fail(11, 10)]
    assert d.handle(Resolved(1)) == []


def test_what_is_not_allowed_changes_nothing():
    d = Dependencies()
    d.handle(Add(10, [1]))
    with pytest.raises(IllegalMove, match="Add is not allowed while task 10 is waiting"):
        d.handle(Add(10, [2]))
    with pytest.raises(IllegalMove, match="Cancelled is not allowed while task 11 is absent"):
        d.handle(Cancelled(11))
    with pytest.raises(ValueError, match="wait for itself"):
        d.handle(Add(12, [1, 12]))
    d.check()
    assert len(d) == 1


@pytest.mark.parametrize("end", [Failed(0), Cancelled(1)])
def test_a_chain_of_ten_thousand_fails_without_recursion(end):
    d = Dependencies()
    for task in range(1, 10_001):
        d.handle(Add(task, [task - 1]))
    out = d.handle(end)
    first = 1 if isinstance(end, Failed) else 2
    assert out == [Fail(task, task - 1) for task in range(first, 10_001)]
    assert len(d) == 0
    d.check()


class DependencyMachine(RuleBasedStateMachine):
    """Against the obvious model: for each task the set of what it still needs."""

    def __init__(self):
        super().__init__()
        self.machine = Dependencies()
        self.needs = {}
        self.ended = {}
        self.count = 0

    def expect_failures(self, root):
        failed = {root}
        while True:
            more = {task for task, needs in self.needs.items() if needs & failed} - failed
            if not more:
                return failed - {root}
            failed |= more

    def take(self, out):
        for instruction in out:
            assert instruction.task not in self.ended, "ended twice"
            self.ended[instruction.task] = type(instruction)
            del self.needs[instruction.task]

    @rule(needs=st.sets(st.integers(-3, 30), max_size=4))
    def add(self, needs):
        self.count += 1
        task = self.count
        needs = {n for n in needs if n < task and n not in self.ended}
        self.needs[task] = set(needs)
        out = self.machine.handle(Add(task, needs))
        assert out == ([] if needs else [Ready(task)])
        self.take(out)

    @rule(dep=st.integers(-3, 30))
    def resolve(self, dep):
        if dep in self.needs:
            return
        for needs in self.needs.values():
            needs.discard(dep)
        ready = {task for task, needs in self.needs.items() if not needs}
        out = self.machine.handle(Resolved(dep))
        assert {i.task for i in out} == ready
        assert all(isinstance(i, Ready) for i in out)
        self.take(out)

    @rule(dep=st.integers(-3, 30))
    def fail(self, dep):
        if dep in self.needs:
            return
        expected = self.expect_failures(dep)
        out = self.machine.handle(Failed(dep))
        assert {i.task for i in out} == expected
        assert all(isinstance(i, Fail) for i in out)
        self.take(out)

    @rule(task=st.integers(1, 30))
    def cancel(self, task):
        if task not in self.needs:
            with pytest.raises(IllegalMove):
                self.machine.handle(Cancelled(task))
            return
        expected = self.expect_failures(task)
        del self.needs[task]
        self.ended[task] = Cancelled
        out = self.machine.handle(Cancelled(task))
        assert {i.task for i in out} == expected
        self.take(out)

    @invariant()
    def holds(self):
        self.machine.check()
        assert len(self.machine) == len(self.needs)
        assert all(self.machine.waits(task) for task in self.needs)


def test_every_task_ends_once_and_as_the_model_says():
    run_state_machine_as_test(
        DependencyMachine, settings=settings(max_examples=50, stateful_step_count=40, deadline=None)
    )
