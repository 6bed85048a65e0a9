"""The local scheduler with placement groups, wishes and other machines."""

from __future__ import annotations

import pytest

from dpool._core.logic import IllegalMove
from dpool._core.logic.places import SPREAD, in_group, with_names
from dpool._core.logic.resources import UNIT
from dpool._core.logic.scheduler import (
    Dissolve,
    Grant,
    KillWorker,
    Offer,
    RequestLeases,
    ReturnLease,
    SetAside,
    StaysHere,
    Tick,
    WarnInfeasible,
    WentAbroad,
    WorkerDied,
)
from tests.logic.test_scheduler import CPU, POOL, scheduler

INSIDE = in_group(CPU, "g", 0)
WISH = with_names(CPU, {SPREAD: UNIT})


def test_a_group_that_comes_after_its_tasks():
    s = scheduler(num_cpus=2)
    out = s.handle(RequestLeases(POOL, INSIDE, 1))
    assert [type(one) for one in out] == [WarnInfeasible]
    (worker,) = s.granted(SetAside("g", 0, CPU))
    assert s.account.free["num_cpus"] == UNIT
    assert s.granted(RequestLeases(POOL, INSIDE, 1)) == [], "its only CPU is in use"
    s.handle(ReturnLease(POOL, worker, False))


def test_a_group_ends_with_what_runs_in_it():
    s = scheduler(num_cpus=2)
    s.handle(SetAside("g", 0, CPU))
    s.handle(SetAside("g", 1, CPU))
    (worker,) = s.granted(RequestLeases(POOL, INSIDE, 1))
    assert KillWorker(worker) in s.handle(Dissolve("g"))
    assert s.account.free["num_cpus"] == UNIT, "the other bundle is free at once"
    assert s.granted(RequestLeases(POOL, INSIDE, 1)) == [], "nothing begins in it any more"
    with pytest.raises(IllegalMove):
        s.handle(SetAside("g", 1, CPU))
    s.handle(WorkerDied(worker, 1.0, False))
    assert not s.dissolving
    assert s.account.free == s.account.total == {"num_cpus": 2 * UNIT}
    assert s.handle(Dissolve("g")) == [], "it is gone"


def test_wishes_mean_nothing_on_one_machine():
    s = scheduler(num_cpus=1)
    (grant,) = [one for one in s.handle(RequestLeases(POOL, WISH, 1)) if isinstance(one, Grant)]
    assert grant.shape == WISH, "the lane knows its lease by its shape"


def test_wishes_wait_for_a_decision():
    s = scheduler(num_cpus=1)
    s.choosy = True
    assert s.granted(RequestLeases(POOL, WISH, 3)) == []
    assert s.could_go() == [(POOL, WISH, 3)]
    assert len(s.granted(StaysHere(POOL, WISH, False))) == 1
    assert s.granted(StaysHere(POOL, WISH, False)) == [], "decided, and waits for a CPU"
    assert s.waiting() == 1
    assert s.could_go() == [(POOL, WISH, 1)]
    s.handle(WentAbroad(POOL, WISH, s.new_worker()))
    assert s.could_go() == [], "the last one is for this machine"
    with pytest.raises(IllegalMove):
        s.handle(StaysHere(POOL, WISH, False))


def test_a_bare_one_begins_whatever_is_free():
    s = scheduler(num_cpus=1)
    s.choosy = True
    s.handle(RequestLeases(POOL, WISH, 3))
    assert [len(s.granted(StaysHere(POOL, WISH, bare))) for bare in (False, True, True)] == [1, 1, 1]
    assert s.account.free["num_cpus"] == 0


def test_the_other_machines_leave():
    s = scheduler(num_cpus=1)
    s.choosy = True
    s.handle(RequestLeases(POOL, WISH, 1))
    s.choosy = False
    assert len(s.granted(Tick(1.0))) == 1


def test_while_it_is_drained():
    s = scheduler(num_cpus=1)
    s.choosy = True
    s.drain()
    assert s.granted(RequestLeases(POOL, CPU, 1)) == []
    assert s.could_go() == [(POOL, CPU, 1)]
    assert len(s.granted(StaysHere(POOL, CPU, False))) == 1, "nobody else has it"


def test_its_own_name():
    s = scheduler(num_cpus=1)
    here = with_names(CPU, {"node|x": UNIT})
    s.handle(RequestLeases(POOL, here, 1))
    assert len(s.granted(Offer("node|x"))) == 1
