"""Hypothesis drives the local scheduler with anything that its clients and workers may say, in any order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dpool._core.logic import IllegalMove
from dpool._core.logic import scheduler as sc
from dpool._core.logic.places import SPREAD, in_group, with_names
from dpool._core.logic.resources import UNIT, Account, shape

TOTAL = shape(num_cpus=3, num_gpus=2, memory=5)
shapes = st.sampled_from(
    [
        shape(),
        shape(num_cpus=1),
        shape(num_cpus=0.5),
        shape(num_cpus=3),
        shape(num_gpus=0.5),
        shape(num_cpus=1, num_gpus=1),
        shape(num_gpus=2),
        shape(num_cpus=1, memory=3),
        shape(num_cpus=4),
        with_names(shape(num_cpus=1), {SPREAD: UNIT}),
        in_group(shape(num_cpus=1), "g", -1),
        in_group(shape(num_cpus=1, num_gpus=1), "g", 0),
    ]
)


class SchedulerMachine(RuleBasedStateMachine):
    """A role that does what it is told, and remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.scheduler = sc.LocalScheduler(Account(TOTAL))
        self.now_s = 0.0
        self.clients = set()
        self.pool_numbers = 0
        self.alive = {}  # worker -> pool: processes
        self.doomed = set()  # workers told to go
        self.leases = {}  # worker -> pool: as the clients know them
        self.told = set()
        self.late = []
        self.open = {}  # pool -> client
        self.abroad = {}  # worker -> pool: on other machines

    def send(self, event):
        """Apply an event; one that the scheduler refuses must be one that a broken peer sent."""
        out = self.scheduler.handle(event)
        for instruction in out:
            self.act(instruction)

    def act(self, instruction):
        if isinstance(instruction, sc.StartWorker):
            assert instruction.worker not in self.alive
            assert instruction.worker not in self.told
            self.alive[instruction.worker] = instruction.pool
        elif isinstance(instruction, sc.Grant):
            assert instruction.worker not in self.leases, "granted twice"
            assert self.alive[instruction.worker] == instruction.pool
            assert instruction.worker not in self.doomed
            assert self.open[instruction.pool] == instruction.client
            self.leases[instruction.worker] = instruction.pool
        elif isinstance(instruction, sc.KillWorker | sc.RetireWorker):
            assert instruction.worker in self.alive
            self.doomed.add(instruction.worker)
        elif isinstance(instruction, sc.TellDied):
            self.leases.pop(instruction.worker, None)
            assert instruction.client in self.clients
            assert instruction.worker not in self.told, "told twice"
            self.told.add(instruction.worker)
        elif isinstance(instruction, sc.PoolGone):
            assert instruction.pool not in self.alive.values()
            assert instruction.pool not in self.abroad.values()

    @initialize()
    def begin(self):
        """Two clients, the first with two pools; both may leave and come back."""
        for client in (1, 2):
            self.join(client)
        for client in (1, 1, 2):
            self.open_pool(client, 3)

    def join(self, client):
        self.clients.add(client)
        self.send(sc.ClientJoined(client))

    @rule(client=st.sampled_from([1, 1, 2]), sure=st.integers(0, 4))
    def leave_or_join(self, client, sure):
        if client not in self.clients:
            self.join(client)
        elif sure == 0:
            self.leave(client)

    def leave(self, client):
        self.clients.remove(client)
        gone = [pool for pool, owner in self.open.items() if owner == client]
        for pool in gone:
            del self.open[pool]
        self.leases = {worker: pool for worker, pool in self.leases.items() if pool not in gone}
        self.send(sc.ClientLeft(client))

    @rule(client=st.sampled_from([1, 1, 2]), max_workers=st.integers(1, 4))
    def open_pool(self, client, max_workers):
        if client in self.clients and len(self.open) < 4:
            self.pool_numbers += 1
            self.open[self.pool_numbers] = client
            self.send(sc.OpenPool(client, self.pool_numbers, max_workers))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 9), max_workers=st.integers(1, 4))
    def resize(self, which, max_workers):
        pool = sorted(self.open)[which % len(self.open)]
        self.send(sc.ResizePool(pool, max_workers))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 9), kill=st.booleans(), sure=st.integers(0, 3))
    def close(self, which, kill, sure):
        if sure == 0:
            pool = sorted(self.open)[which % len(self.open)]
            del self.open[pool]
            self.send(sc.ClosePool(pool, kill))

    @rule(pool=st.integers(1, 3))
    def close_again(self, pool):
        if pool not in self.open:
            self.send(sc.ClosePool(pool, kill=True))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 9), asked=shapes, count=st.integers(1, 4))
    def request(self, which, asked, count):
        pool = sorted(self.open)[which % len(self.open)]
        self.send(sc.RequestLeases(pool, asked, count))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 9), asked=shapes)
    def cancel(self, which, asked):
        pool = sorted(self.open)[which % len(self.open)]
        self.send(sc.CancelRequests(pool, asked))

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 9), retire=st.booleans())
    def return_lease(self, which, retire):
        worker = sorted(self.leases)[which % len(self.leases)]
        self.send(sc.ReturnLease(self.leases.pop(worker), worker, retire))

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 9), blocks=st.booleans())
    def block(self, which, blocks):
        worker = sorted(self.alive)[which % len(self.alive)]
        if not (blocks and self.scheduler.workers[worker].state == sc.BLOCKED):
            self.send(sc.Blocked(worker) if blocks else sc.Unblocked(worker))

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 9), early=st.booleans(), failed=st.booleans())
    def die(self, which, early, failed):
        worker = sorted(self.alive)[which % len(self.alive)]
        failed = failed and self.scheduler.workers[worker].state != sc.BLOCKED
        pool = self.alive.pop(worker)
        self.send(sc.StartFailed(worker, self.now_s) if failed else sc.WorkerDied(worker, self.now_s, early))
        self.send(sc.WorkerDied(worker, self.now_s, early))
        self.late = [
            sc.Blocked(worker),
            sc.Unblocked(worker),
            sc.KillRequested(pool, worker),
            sc.ReturnLease(pool, worker, early),
            sc.StartFailed(worker, self.now_s),
        ]

    @precondition(lambda self: self.scheduler.could_go(9))
    @rule(which=st.integers(0, 9))
    def go_abroad(self, which):
        could = self.scheduler.could_go(9)
        pool, asked, count = could[which % len(could)]
        assert count > 0
        worker = self.scheduler.new_worker()
        assert worker not in self.told | set(self.alive) | set(self.abroad)
        self.abroad[worker] = pool
        self.send(sc.WentAbroad(pool, asked, worker))

    @precondition(lambda self: self.abroad)
    @rule(which=st.integers(0, 9), refused=st.booleans())
    def come_back(self, which, refused):
        worker = sorted(self.abroad)[which % len(self.abroad)]
        self.send(sc.BackFromAbroad(self.abroad.pop(worker), worker, refused))

    @rule(there=st.booleans())
    def other_machines(self, there):
        self.scheduler.choosy = there
        self.send(sc.Tick(self.now_s))

    @rule(sure=st.integers(0, 9))
    def drain(self, sure):
        if sure == 0:
            self.scheduler.drain()

    @precondition(lambda self: any(not request.decided for request in self.scheduler.queue))
    @rule(which=st.integers(0, 9), bare=st.booleans())
    def stay(self, which, bare):
        undecided = [request for request in self.scheduler.queue if not request.decided]
        request = undecided[which % len(undecided)]
        self.send(sc.StaysHere(request.pool.number, request.shape, bare))

    @rule(
        group=st.sampled_from("gh"),
        number=st.integers(0, 1),
        bundle=st.sampled_from([shape(num_cpus=1), shape(num_cpus=1, num_gpus=1), shape(num_gpus=2)]),
    )
    def set_aside(self, group, number, bundle):
        account = self.scheduler.account
        if account.fits(bundle) and (group, number) not in account.bundles and group not in self.scheduler.dissolving:
            self.send(sc.SetAside(group, number, bundle))

    @rule(group=st.sampled_from("gh"))
    def dissolve(self, group):
        self.send(sc.Dissolve(group))

    @precondition(lambda self: self.late)
    @rule()
    def say_something_late(self):
        self.send(self.late.pop())

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 9))
    def kill(self, which):
        worker = sorted(self.leases)[which % len(self.leases)]
        self.send(sc.KillRequested(self.leases[worker], worker))

    @rule(elapsed_s=st.sampled_from([0.0, 0.04, 0.3, 3.0]))
    def tick(self, elapsed_s):
        self.now_s += elapsed_s
        self.send(sc.Tick(self.now_s))

    @rule(event=st.sampled_from([sc.ReturnLease(999, 1, False), sc.RequestLeases(999, (), 1), sc.Blocked(10**9)]))
    def nonsense(self, event):
        if 1 in self.alive or not isinstance(event, sc.ReturnLease):
            with pytest.raises(IllegalMove):
                self.scheduler.handle(event)

    @invariant()
    def holds(self):
        self.scheduler.check()
        assert set(self.scheduler.workers) == set(self.alive)
        leased = {n for n, w in self.scheduler.workers.items() if w.state in (sc.LEASED, sc.BLOCKED)}
        assert leased <= set(self.leases) | {n for n, pool in self.alive.items() if pool not in self.open}

    def teardown(self):
        """All clients leave and all workers die: nothing is left and everything is free."""
        for client in sorted(self.clients):
            self.leave(client)
        for worker, pool in sorted(self.abroad.items()):
            del self.abroad[worker]
            self.send(sc.BackFromAbroad(pool, worker, True))
        for worker in sorted(self.alive):
            del self.alive[worker]
            self.send(sc.WorkerDied(worker, self.now_s, early=False))
        for group in "gh":
            self.send(sc.Dissolve(group))
        self.scheduler.check()
        assert not self.scheduler.account.bundles
        assert not self.scheduler.pools
        assert not self.scheduler.workers
        assert not self.scheduler.queue
        assert self.scheduler.account.free == self.scheduler.account.total


def test_the_scheduler_keeps_its_invariants_whatever_happens():
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(max_examples=100, stateful_step_count=60, deadline=None)
    )
