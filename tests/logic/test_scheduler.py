"""The local scheduler, rule by rule; tests/logic/test_scheduler_properties.py lets Hypothesis drive it."""

from __future__ import annotations

import pytest

from dpool._core.logic import IllegalMove
from dpool._core.logic.resources import CPUS, Account, shape
from dpool._core.logic.scheduler import (
    MAX_OVERTAKEN,
    Blocked,
    CancelRequests,
    ClientJoined,
    ClientLeft,
    ClosePool,
    Grant,
    KillRequested,
    KillWorker,
    LocalScheduler,
    OpenPool,
    PoolGone,
    RequestLeases,
    ResizePool,
    RetireWorker,
    ReturnLease,
    Scarce,
    StartFailed,
    StartWorker,
    TellDied,
    Tick,
    Unblocked,
    WakeAt,
    WarnInfeasible,
    WorkerDied,
)

NOTHING = shape()
CPU = shape(num_cpus=1)
CLIENT, POOL = 7, 70


class Scheduler(LocalScheduler):
    """Checks its invariants after every event."""

    def handle(self, event):
        out = super().handle(event)
        self.check()
        return out

    def granted(self, event):
        """The workers that the event's answer grants."""
        return [instruction.worker for instruction in self.handle(event) if isinstance(instruction, Grant)]


def scheduler(max_workers=4, **total):
    made = Scheduler(Account(shape(**(total or {"num_cpus": 2}))))
    made.handle(ClientJoined(CLIENT))
    made.handle(OpenPool(CLIENT, POOL, max_workers))
    return made


def test_a_worker_is_started_and_granted_in_one_step():
    assert scheduler().handle(RequestLeases(POOL, CPU, 1)) == [StartWorker(1, POOL), Grant(CLIENT, POOL, 1, CPU, ())]


def test_no_more_workers_than_are_asked_for_than_the_pool_may_have_and_than_there_are_cpus():
    assert scheduler().granted(RequestLeases(POOL, CPU, 1)) == [1]
    assert scheduler(max_workers=3).granted(RequestLeases(POOL, NOTHING, 9)) == [1, 2, 3]
    assert scheduler().granted(RequestLeases(POOL, CPU, 9)) == [1, 2]


def test_a_returned_worker_serves_the_next_request_the_last_returned_first():
    s = scheduler()
    s.handle(RequestLeases(POOL, NOTHING, 3))
    for worker in (2, 3, 1):
        s.handle(ReturnLease(POOL, worker, retire=False))
    assert s.handle(RequestLeases(POOL, NOTHING, 2)) == [
        Grant(CLIENT, POOL, 1, NOTHING, ()),
        Grant(CLIENT, POOL, 3, NOTHING, ()),
    ]


def test_a_retired_worker_is_not_used_again_but_counts_until_it_is_gone():
    s = scheduler(max_workers=1)
    s.handle(RequestLeases(POOL, CPU, 2))
    assert s.handle(ReturnLease(POOL, 1, retire=True)) == [RetireWorker(1)]
    assert s.account.free == s.account.total, "it runs nothing"
    assert s.handle(WorkerDied(1, 1.0, early=False)) == [
        TellDied(CLIENT, POOL, 1),
        StartWorker(2, POOL),
        Grant(CLIENT, POOL, 2, CPU, ()),
    ]


def test_a_dying_worker_holds_its_resources_until_it_is_gone():
    s = scheduler(num_cpus=1)
    s.handle(RequestLeases(POOL, CPU, 2))
    assert s.handle(KillRequested(POOL, 1)) == [KillWorker(1)]
    assert s.handle(KillRequested(POOL, 1)) == [], "once is enough"
    assert s.handle(ReturnLease(POOL, 1, retire=False)) == []
    assert s.granted(WorkerDied(1, 1.0, early=True)) == [2], "a death on purpose is no reason to back off"


@pytest.mark.parametrize("blocks", [False, True])
def test_a_worker_that_used_a_gpu_retires_and_holds_that_but_not_its_cpus_until_it_is_gone(blocks):
    s = scheduler(num_gpus=1, num_cpus=1)
    gpu = shape(num_cpus=1, num_gpus=1)
    assert s.handle(RequestLeases(POOL, gpu, 1))[1] == Grant(CLIENT, POOL, 1, gpu, (0,))
    if blocks:
        s.handle(Blocked(1))
    assert s.handle(ReturnLease(POOL, 1, retire=False)) == [RetireWorker(1)]
    assert s.granted(RequestLeases(POOL, shape(num_gpus=0.1), 1)) == []
    assert s.granted(RequestLeases(POOL, CPU, 1)) == [2]
    assert s.granted(WorkerDied(1, 1.0, early=False)) == [3]


def test_a_blocked_worker_lends_its_cpus_but_nothing_else():
    s = scheduler(num_cpus=1, memory=10)
    s.handle(RequestLeases(POOL, shape(num_cpus=1, memory=10), 1))
    assert s.granted(RequestLeases(POOL, CPU, 1)) == []
    assert s.granted(Blocked(1)) == [2]
    assert s.granted(RequestLeases(POOL, shape(memory=1), 1)) == []
    s.handle(Unblocked(1))
    assert s.account.free[CPUS] == -10_000
    assert s.granted(RequestLeases(POOL, CPU, 1)) == []
    assert s.granted(ReturnLease(POOL, 2, retire=False)) == []
    assert sorted(s.granted(ReturnLease(POOL, 1, retire=False))) == [1, 2]


@pytest.mark.parametrize("end", [ReturnLease(POOL, 1, False), WorkerDied(1, 1.0, False), ClientLeft(CLIENT)])
def test_a_lease_that_ends_while_it_is_blocked_comes_back_whole(end):
    s = scheduler()
    s.handle(RequestLeases(POOL, CPU, 1))
    s.handle(Blocked(1))
    s.handle(end)
    s.handle(WorkerDied(1, 2.0, False))
    assert s.account.free == s.account.total


def test_blocked_and_unblocked_may_arrive_after_the_lease_or_the_worker_has_ended():
    s = scheduler()
    s.handle(RequestLeases(POOL, CPU, 1))
    s.handle(ReturnLease(POOL, 1, retire=False))
    for late in (Blocked(1), Unblocked(1)):
        assert s.handle(late) == []
    assert s.granted(RequestLeases(POOL, CPU, 1)) == [1]
    assert s.handle(Unblocked(1)) == []
    assert s.account.free[CPUS] == 10_000
    s.handle(WorkerDied(1, 1.0, False))
    for later in (
        Blocked(1),
        Unblocked(1),
        KillRequested(POOL, 1),
        ReturnLease(POOL, 1, False),
        WorkerDied(1, 2.0, True),
    ):
        assert s.handle(later) == []


def test_every_death_is_told_once():
    s = scheduler()
    s.handle(RequestLeases(POOL, NOTHING, 2))
    s.handle(ReturnLease(POOL, 2, retire=False))
    assert s.handle(WorkerDied(1, 1.0, True)) == [TellDied(CLIENT, POOL, 1)]
    assert s.handle(WorkerDied(1, 1.0, True)) == []
    assert s.handle(WorkerDied(2, 1.0, False)) == [TellDied(CLIENT, POOL, 2)], "an idle one too"
    s.handle(RequestLeases(POOL, NOTHING, 1))
    assert s.handle(StartFailed(3, 1.0)) == [TellDied(CLIENT, POOL, 3)]


def test_infeasible_is_warned_about_once_and_waits_in_nobodys_way():
    s = scheduler()
    big = shape(num_cpus=3, num_gpus=1)
    warning = WarnInfeasible(CLIENT, POOL, big, shape(num_cpus=1, num_gpus=1))
    assert s.handle(RequestLeases(POOL, big, 1)) == [warning]
    assert s.handle(RequestLeases(POOL, big, 1)) == []
    for _ in range(MAX_OVERTAKEN + 1):
        (worker,) = s.granted(RequestLeases(POOL, CPU, 1))
        s.handle(ReturnLease(POOL, worker, retire=False))


def test_cancelled_requests_are_not_granted():
    s = scheduler()
    s.handle(RequestLeases(POOL, CPU, 5))
    s.handle(RequestLeases(POOL, shape(num_cpus=2), 1))
    s.handle(CancelRequests(POOL, CPU))
    assert s.granted(ReturnLease(POOL, 1, retire=False)) == []
    assert s.granted(ReturnLease(POOL, 2, retire=False)) == [2], "the other shape still waits"


# ------------------------------------------------------------------------------------------------ order


def test_requests_for_the_same_resource_are_served_in_order():
    s = scheduler()
    s.handle(OpenPool(CLIENT, 71, 4))
    s.handle(RequestLeases(POOL, CPU, 2))
    s.handle(RequestLeases(71, CPU, 1))
    s.handle(RequestLeases(POOL, CPU, 1))
    assert s.handle(ReturnLease(POOL, 1, False)) == [StartWorker(3, 71), Grant(CLIENT, 71, 3, CPU, ())]
    assert s.granted(ReturnLease(71, 3, False)) == [1]


def test_a_small_request_overtakes_a_big_one_that_does_not_fit_but_not_for_ever():
    s = scheduler(max_workers=9)
    big = shape(num_cpus=2)
    s.handle(RequestLeases(POOL, CPU, 1))
    s.handle(RequestLeases(POOL, big, 1))
    for n in range(MAX_OVERTAKEN):
        assert len(s.granted(RequestLeases(POOL, CPU, 1))) == 1, f"{n} overtakings"
        s.handle(ReturnLease(POOL, 2, retire=False))
    assert s.granted(RequestLeases(POOL, CPU, 1)) == [], "now the CPUs are kept for the big one"
    assert s.granted(RequestLeases(POOL, NOTHING, 1)) == [2], "who needs none of them may pass"
    assert s.granted(ReturnLease(POOL, 1, retire=False)) == [1]
    assert s.queue[0].shape == CPU
    assert s.granted(ReturnLease(POOL, 1, retire=False)) == [1]


def test_a_request_for_another_resource_overtakes_nobody():
    s = scheduler(max_workers=400, num_cpus=1, tape=1)
    s.handle(RequestLeases(POOL, CPU, 2))
    tape = shape(tape=1)
    for _ in range(MAX_OVERTAKEN + 5):
        (worker,) = s.granted(RequestLeases(POOL, tape, 1))
        s.handle(ReturnLease(POOL, worker, retire=False))
    assert s.queue[0].overtaken == 0


def test_a_request_that_waits_for_its_pool_blocks_no_other_pool():
    s = scheduler(max_workers=1)
    s.handle(RequestLeases(POOL, CPU, 5))
    s.handle(OpenPool(CLIENT, 71, 4))
    for _ in range(MAX_OVERTAKEN + 5):
        (worker,) = s.granted(RequestLeases(71, CPU, 1))
        s.handle(ReturnLease(71, worker, retire=False))


# ------------------------------------------------------------------------------------------------ pools and clients


def test_closing_gracefully_retires_idle_workers_now_and_leased_ones_when_they_return():
    s = scheduler(max_workers=2)
    s.handle(RequestLeases(POOL, NOTHING, 3))
    s.handle(ReturnLease(POOL, 2, retire=False))
    s.handle(ReturnLease(POOL, 2, retire=False))
    assert s.handle(ClosePool(POOL, kill=False)) == [RetireWorker(2)]
    assert s.handle(ReturnLease(POOL, 1, retire=False)) == [RetireWorker(1)]
    s.handle(WorkerDied(1, 1.0, False))
    assert s.handle(WorkerDied(2, 1.0, False)) == [TellDied(CLIENT, POOL, 2), PoolGone(CLIENT, POOL)]
    assert s.handle(ClosePool(POOL, kill=True)) == [], "said while the last worker died"
    assert s.handle(OpenPool(CLIENT, POOL, 1)) == [], "the number is free again"


def test_closing_may_be_repeated_with_kill():
    s = scheduler()
    s.handle(RequestLeases(POOL, NOTHING, 3))
    s.handle(ReturnLease(POOL, 2, retire=True))
    s.handle(ClosePool(POOL, kill=False))
    assert s.handle(ClosePool(POOL, kill=True)) == [KillWorker(1), KillWorker(2), KillWorker(3)]


def test_an_unused_pool_is_gone_at_once():
    assert scheduler().handle(ClosePool(POOL, kill=False)) == [PoolGone(CLIENT, POOL)]


def test_a_client_that_leaves_takes_its_pools_along_and_hears_nothing_more():
    s = scheduler()
    s.handle(ClientJoined(8))
    s.handle(OpenPool(8, 80, 4))
    s.handle(RequestLeases(POOL, CPU, 4))
    s.handle(RequestLeases(80, CPU, 1))
    assert s.handle(ClientLeft(CLIENT)) == [KillWorker(1), KillWorker(2)]
    s.handle(ClientJoined(CLIENT))
    assert s.handle(WorkerDied(1, 1.0, False)) == [StartWorker(3, 80), Grant(8, 80, 3, CPU, ()), Scarce(False)]
    assert s.handle(WorkerDied(2, 1.0, False)) == [PoolGone(CLIENT, POOL)]


def test_a_smaller_pool_retires_the_longest_idle_first_and_leased_ones_when_they_return():
    s = scheduler(max_workers=4)
    s.handle(RequestLeases(POOL, NOTHING, 4))
    for worker in (3, 4, 2):
        s.handle(ReturnLease(POOL, worker, retire=False))
    assert s.handle(ResizePool(POOL, 2)) == [RetireWorker(3), RetireWorker(4)]
    assert s.handle(ResizePool(POOL, 1)) == [RetireWorker(2)]
    assert s.granted(RequestLeases(POOL, NOTHING, 1)) == []
    assert s.granted(RequestLeases(POOL, NOTHING, 1)) == [], "dying workers count"
    assert s.granted(ReturnLease(POOL, 1, retire=False)) == [1], "one may stay"
    assert [s.granted(WorkerDied(worker, 0.0, False)) for worker in (2, 3, 4)] == [[], [], []]
    assert s.granted(ResizePool(POOL, 2)) == [5]


def test_a_smaller_pool_lets_a_surplus_leased_worker_go_when_it_is_returned():
    s = scheduler(max_workers=2)
    s.handle(RequestLeases(POOL, NOTHING, 2))
    s.handle(ResizePool(POOL, 1))
    assert s.handle(ReturnLease(POOL, 1, retire=False)) == [RetireWorker(1)]
    assert s.handle(ReturnLease(POOL, 2, retire=False)) == []


def test_a_larger_pool_serves_what_waited():
    s = scheduler(max_workers=1)
    s.handle(RequestLeases(POOL, NOTHING, 3))
    assert s.granted(ResizePool(POOL, 2)) == [2]


# ------------------------------------------------------------------------------------------------ back-off


def die_early(s, now_s):
    """The newest worker dies before it did anything: when the next one starts (now_s: at once)."""
    out = s.handle(WorkerDied(max(s.workers), now_s, early=True))
    wakes = [i.at_s for i in out if isinstance(i, WakeAt)]
    started = any(isinstance(i, StartWorker) for i in out)
    assert started != bool(wakes)
    return now_s if started else wakes[0]


def test_workers_that_die_at_once_are_replaced_ever_more_slowly():
    s = scheduler(max_workers=1)
    s.handle(RequestLeases(POOL, NOTHING, 50))
    delays = []
    now_s = 100.0
    for _ in range(10):
        wake_s = die_early(s, now_s)
        delays.append(round(wake_s - now_s, 6))
        if wake_s > now_s:
            assert s.handle(Tick(wake_s - 0.001)) == [WakeAt(wake_s)], "woken too early"
            assert len(s.granted(Tick(wake_s))) == 1
        now_s = wake_s
    assert delays == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_a_worker_that_did_something_ends_the_back_off():
    s = scheduler(max_workers=2)
    s.handle(RequestLeases(POOL, NOTHING, 50))
    for now_s in (0.0, 0.1):
        s.handle(WorkerDied(max(s.workers), now_s, early=True))
    assert len(s.workers) == 1
    assert len(s.granted(ReturnLease(POOL, 1, retire=False))) == 2
    assert die_early(s, 0.2) == 0.2


def test_a_volley_of_deaths_counts_once():
    s = scheduler(max_workers=8)
    s.handle(RequestLeases(POOL, NOTHING, 50))
    out = [i for worker in range(1, 9) for i in s.handle(WorkerDied(worker, 1.0, early=True))]
    assert sum(isinstance(i, StartWorker) for i in out) == 8
    assert not any(isinstance(i, WakeAt) for i in out)


def test_failed_starts_back_off_too_and_one_pool_does_not_slow_another():
    s = scheduler(max_workers=1)
    s.handle(OpenPool(CLIENT, 71, 1))
    s.handle(RequestLeases(POOL, NOTHING, 9))
    s.handle(StartFailed(1, 0.0))
    assert WakeAt(0.05) in s.handle(StartFailed(2, 0.0))
    assert s.granted(RequestLeases(71, NOTHING, 1)) == [3]


# ------------------------------------------------------------------------------------------------ what is refused


def refused(s, event, error=IllegalMove):
    """The event raises and changes nothing."""
    before = repr((s.account.free, s.account.devices, s.clients, list(s.pools), list(s.workers), len(s.queue)))
    with pytest.raises(error) as caught:
        s.handle(event)
    assert before == repr((s.account.free, s.account.devices, s.clients, list(s.pools), list(s.workers), len(s.queue)))
    s.check()
    return str(caught.value)


def test_an_illegal_move_names_the_state_and_the_event():
    s = scheduler()
    s.handle(RequestLeases(POOL, NOTHING, 1))
    s.handle(ReturnLease(POOL, 1, retire=False))
    assert refused(s, ReturnLease(POOL, 1, retire=False)) == "ReturnLease is not allowed while worker 1 is idle"


@pytest.mark.parametrize(
    "event",
    [
        ClientJoined(CLIENT),
        ClientLeft(8),
        OpenPool(8, 80, 1),
        OpenPool(CLIENT, POOL, 1),
        ResizePool(71, 1),
        RequestLeases(71, CPU, 1),
        CancelRequests(71, CPU),
        Blocked(9),
        Unblocked(9),
        WorkerDied(9, 0.0, False),
        StartFailed(9, 0.0),
        WorkerDied(0, 0.0, False),
        KillRequested(POOL, 9),
        KillRequested(71, 1),
        ReturnLease(71, 1, False),
    ],
)
def test_strangers_are_refused(event):
    s = scheduler()
    s.handle(OpenPool(CLIENT, 72, 1))
    s.handle(RequestLeases(POOL, CPU, 1))
    refused(s, event)


def test_a_task_cannot_block_twice():
    s = scheduler()
    s.handle(RequestLeases(POOL, CPU, 1))
    s.handle(Blocked(1))
    refused(s, Blocked(1))


def test_a_closing_pool_takes_no_requests():
    s = scheduler()
    s.handle(RequestLeases(POOL, CPU, 1))
    s.handle(ClosePool(POOL, kill=False))
    for event in (RequestLeases(POOL, CPU, 1), CancelRequests(POOL, CPU), ResizePool(POOL, 3)):
        assert s.handle(event) == []  # they crossed
    assert not s.queue
    refused(s, OpenPool(CLIENT, POOL, 1))


@pytest.mark.parametrize(
    "event",
    [
        OpenPool(CLIENT, 71, 0),
        ResizePool(POOL, 0),
        RequestLeases(POOL, CPU, 0),
        RequestLeases(POOL, ((CPUS, -5),), 1),
    ],
)
def test_numbers_that_make_no_sense_are_refused(event):
    refused(scheduler(), event, ValueError)
