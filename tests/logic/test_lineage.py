"""The lineage stash: what is written, what dies young, what is dropped."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dpool._core.logic import IllegalMove
from dpool._core.logic import lineage as ln
from dpool._core.logic.lineage import (
    Committed,
    Delivered,
    DropTasks,
    LineageStash,
    Lost,
    Remember,
    Tick,
    WakeAt,
    WriteBatch,
)


def record(task):
    return task, b"spec %d" % task


def stash(**limits):
    return LineageStash(**{"flush_s": 1.0, "batch_records": 4, "max_records": 8, **limits})


def remember(s, now_s, *tasks):
    return s.handle(Remember(now_s, [record(task) for task in tasks]))


def written(batch, *tasks):
    return WriteBatch(batch, tuple(record(task) for task in tasks))


def test_a_record_delivered_before_the_flush_is_never_written():
    s = stash()
    assert remember(s, 0.0, 1, 2) == [WakeAt(1.0)]
    assert s.handle(Delivered(0.5, [1])) == []
    assert s.handle(Tick(1.0)) == [written(1, 2)]
    assert s.handle(Committed(1)) == []
    assert len(s) == 1


def test_when_all_died_young_the_tick_finds_nothing():
    s = stash()
    remember(s, 0.0, 1)
    s.handle(Delivered(0.5, [1]))
    assert s.handle(Tick(1.0)) == []
    assert len(s) == 0


def test_at_the_deadline_of_the_oldest_whatever_is_half_as_old_goes_with_it():
    s = stash()
    remember(s, 0.0, 1)
    remember(s, 0.5, 2)
    remember(s, 0.75, 3)
    assert s.handle(Tick(0.9)) == [], "too early"
    assert s.handle(Tick(1.0)) == [written(1, 1, 2)]
    assert s.handle(Committed(1)) == [WakeAt(1.75)], "the rest asks for its own tick once nothing is in flight"


def test_a_full_batch_is_written_at_once_if_nothing_is_in_flight():
    s = stash()
    assert remember(s, 0.0, 1, 2, 3, 4, 5) == [written(1, 1, 2, 3, 4)]
    assert remember(s, 0.0, 6, 7, 8) == []
    assert s.handle(Committed(1)) == [written(2, 5, 6, 7, 8)]


def test_what_is_in_flight_holds_back_the_rest_up_to_the_limit():
    s = stash()
    remember(s, 0.0, *range(4))
    assert remember(s, 0.0, *range(10, 18)) == []
    assert s.handle(Tick(9.0)) == [], "a slow store is not asked for more"
    assert remember(s, 9.0, 18) == [written(2, 10, 11, 12, 13)]
    s.handle(Delivered(9.0, [14, 15]))
    assert s.handle(Committed(1)) == [], "one is still in flight"
    assert s.handle(Committed(2)) == [WakeAt(1.0)]
    assert s.handle(Tick(9.0)) == [written(3, 16, 17)]


def test_a_burst_beyond_the_limit_is_cut_into_batches():
    s = stash()
    out = remember(s, 0.0, *range(20))
    assert [len(i.records) for i in out if isinstance(i, WriteBatch)] == [4, 4, 4]
    assert [i.batch for i in out if isinstance(i, WriteBatch)] == [1, 2, 3]


def test_written_records_are_dropped_in_batches_when_they_are_delivered():
    s = stash()
    remember(s, 0.0, 1, 2, 3, 4)
    s.handle(Committed(1))
    assert s.handle(Delivered(2.0, [1, 2])) == [WakeAt(3.0)]
    assert s.handle(Tick(3.0)) == [DropTasks((1, 2))]
    s.handle(Delivered(4.0, [3]))
    assert s.handle(Tick(5.0)) == [DropTasks((3,))]
    assert len(s) == 1


def test_a_drop_waits_for_the_acknowledgement():
    s = stash()
    remember(s, 0.0, 1, 2, 3, 4)
    assert s.handle(Delivered(1.0, [1, 2, 3, 4])) == []
    assert s.handle(Committed(1)) == [DropTasks((1, 2, 3, 4))]
    assert len(s) == 0


def test_a_lost_batch_is_written_again_without_what_was_delivered_meanwhile():
    s = stash()
    remember(s, 0.0, 1, 2, 3, 4)
    s.handle(Delivered(1.0, [2]))
    assert s.handle(Lost(1)) == [written(1, 1, 3, 4)]
    s.handle(Delivered(1.0, [1, 3, 4]))
    assert s.handle(Lost(1)) == [written(1)], "an empty batch takes the place of what may be there"
    assert s.handle(Committed(1)) == [DropTasks((1, 2, 3, 4))], "it may have been there: drop all the same"
    assert s.handle(Committed(1)) == []
    assert s.handle(Lost(1)) == []


def test_a_retried_task_is_remembered_once():
    s = stash()
    remember(s, 0.0, 1)
    s.handle(Remember(0.1, [(1, b"again")]))
    assert s.handle(Tick(1.0)) == [written(1, 1)]
    s.handle(Remember(1.1, [(1, b"again")]))
    s.handle(Committed(1))
    s.handle(Remember(1.2, [(1, b"again")]))
    assert len(s) == 1
    assert s.state(1) == ln.COMMITTED


@pytest.mark.parametrize("answer", [Committed(1), Lost(1), Committed(0)])
def test_an_answer_to_a_batch_that_was_never_written_is_refused(answer):
    with pytest.raises(IllegalMove, match=r"is not allowed while batch \d is unwritten"):
        stash().handle(answer)


@pytest.mark.parametrize("limits", [{"flush_s": 0}, {"batch_records": 0}, {"max_records": 3}])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(ValueError, match="need flush_s > 0"):
        stash(**limits)


def test_a_store_that_never_answers_costs_no_more_than_what_is_undelivered():
    s = stash()
    for n in range(1000):
        remember(s, n / 10, n)
        s.handle(Tick(n / 10))
        s.handle(Delivered(n / 10, [n]))
    assert len(s) == 0
    remember(s, 200.0, *range(1000, 1004))
    for n in range(2000, 3000):
        remember(s, 200.0 + n, n)
        s.handle(Tick(200.0 + n))
        s.handle(Delivered(200.0 + n, [n]))
    s.check()
    assert len(s) == 4, "only the first batch, which is in flight"


def reachable(state, cause):
    """Where a record may be after an event (None: about others), then any instructions that the machine gave itself."""
    places = {state if cause is None else ln.MOVES[state, cause]}
    while True:
        more = {ln.MOVES[place, own] for place in places for own in (WriteBatch, DropTasks) if (place, own) in ln.MOVES}
        if more <= places:
            return places
        places |= more


class LineageMachine(RuleBasedStateMachine):
    """Against a store that takes, loses and acknowledges batches, and drops tasks."""

    def __init__(self):
        super().__init__()
        self.machine = stash()
        self.now_s = 0.0
        self.next_task = 0
        self.undelivered = set()
        self.wake_at_s = None
        self.under_way = {}  # batch -> records
        self.stored = {}  # batch -> tasks
        self.acknowledged = set()
        self.ever_acknowledged = set()

    def apply(self, event):
        before = {task: self.machine.state(task) for task in range(self.next_task)}
        subjects = self.subjects(event)
        for instruction in self.machine.handle(event):
            self.act(instruction)
        for task, state in before.items():
            cause = type(event) if task in subjects else None
            assert self.machine.state(task) in reachable(state, cause), f"task {task} {state} after {event}"

    def subjects(self, event):
        if isinstance(event, Remember):
            return {task for task, _ in event.records}
        if isinstance(event, Delivered):
            return set(event.tasks)
        return set() if isinstance(event, Tick) else self.in_batch(event.batch)

    def in_batch(self, batch):
        return {task for task in range(self.next_task) if self.machine._in_flight.get(task) == batch}

    def act(self, instruction):
        if isinstance(instruction, WriteBatch):
            assert all(data == record(task)[1] for task, data in instruction.records)
            assert all(task in self.undelivered for task, _ in instruction.records), "it should have died young"
            self.under_way[instruction.batch] = instruction.records
        elif isinstance(instruction, DropTasks):
            assert not set(instruction.tasks) & self.undelivered, "still needed"
            assert set(instruction.tasks) <= self.ever_acknowledged, "not written yet"
            for tasks in self.stored.values():
                tasks.difference_update(instruction.tasks)
        else:
            self.wake_at_s = instruction.at_s

    @rule(count=st.integers(1, 6), elapsed_s=st.sampled_from([0.0, 0.3, 2.0]))
    def remember(self, count, elapsed_s):
        self.now_s += elapsed_s
        new = range(self.next_task, self.next_task + count)
        self.next_task += count
        self.undelivered.update(new)
        self.apply(Remember(self.now_s, [record(task) for task in new]))

    @rule(data=st.data())
    def remember_again(self, data):
        if self.undelivered:
            task = data.draw(st.sampled_from(sorted(self.undelivered)))
            self.apply(Remember(self.now_s, [record(task)]))

    @rule(data=st.data())
    def deliver(self, data):
        if self.undelivered:
            tasks = data.draw(st.lists(st.sampled_from(sorted(self.undelivered)), min_size=1, max_size=4))
            self.undelivered.difference_update(tasks)
            self.apply(Delivered(self.now_s, tasks))

    @rule(elapsed_s=st.sampled_from([0.1, 1.0]))
    def tick(self, elapsed_s):
        self.now_s += elapsed_s
        self.apply(Tick(self.now_s))

    @rule(data=st.data(), applied=st.booleans(), acknowledged=st.booleans())
    def answer(self, data, applied, acknowledged):
        if not self.under_way:
            return
        batch = data.draw(st.sampled_from(sorted(self.under_way)))
        records = self.under_way.pop(batch)
        if applied or acknowledged:
            self.stored[batch] = {task for task, _ in records}
        if acknowledged:
            self.ever_acknowledged |= self.in_batch(batch)
        self.apply(Committed(batch) if acknowledged else Lost(batch))

    @rule(data=st.data())
    def acknowledge_again(self, data):
        done = sorted(set(self.stored) - set(self.under_way))
        if done:
            self.apply(Committed(data.draw(st.sampled_from(done))))

    @invariant()
    def holds(self):
        self.machine.check()

    def teardown(self):
        """Deliver and acknowledge everything, and tick: neither the stash nor the store keeps anything."""
        rest = sorted(self.undelivered)
        self.undelivered.clear()
        self.apply(Delivered(self.now_s, rest))
        for _ in range(3):
            for batch, records in list(self.under_way.items()):
                del self.under_way[batch]
                self.stored[batch] = {task for task, _ in records}
                self.ever_acknowledged |= self.in_batch(batch)
                self.apply(Committed(batch))
            self.now_s += 10.0
            self.apply(Tick(self.now_s))
        self.machine.check()
        assert len(self.machine) == 0
        assert not any(self.stored.values())


def test_records_move_as_the_table_says_and_nothing_is_left():
    run_state_machine_as_test(LineageMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
