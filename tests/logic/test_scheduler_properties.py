"""Hypothesis drives the local scheduler with anything that its clients and workers may say, in any order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dpool._core.logic import IllegalMove
from dpool._core.logic import scheduler as sc
from dpool._core.logic.resources import Account, shape

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
    ]
)


class SchedulerMachine(RuleBasedStateMachine):
    """A role that does what it is told, and remembers what it was told."""

    clients = Bundle("clients")
    pools = Bundle("pools")

    def __init__(self):
        super().__init__()
        self.scheduler = sc.LocalScheduler(Account(TOTAL))
        self.now_s = 0.0
        self.numbers = 0
        self.alive = {}  # worker -> pool: processes
        self.doomed = set()  # workers told to go
        self.leases = {}  # worker -> pool: as the clients know them
        self.told = set()
        self.open = {}  # pool -> client
        self.left = set()

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
            assert instruction.client not in self.left
            assert instruction.worker not in self.told, "told twice"
            self.told.add(instruction.worker)
        elif isinstance(instruction, sc.PoolGone):
            assert instruction.pool not in self.alive.values()

    @rule(target=clients)
    def join(self):
        self.numbers += 1
        self.send(sc.ClientJoined(self.numbers))
        return self.numbers

    @rule(client=clients)
    def leave(self, client):
        if client not in self.left:
            self.left.add(client)
            gone = [pool for pool, owner in self.open.items() if owner == client]
            for pool in gone:
                del self.open[pool]
            self.leases = {worker: pool for worker, pool in self.leases.items() if pool not in gone}
            self.send(sc.ClientLeft(client))

    @rule(target=pools, client=clients, max_workers=st.integers(1, 4))
    def open_pool(self, client, max_workers):
        self.numbers += 1
        if client not in self.left:
            self.open[self.numbers] = client
            self.send(sc.OpenPool(client, self.numbers, max_workers))
        return self.numbers

    @rule(pool=pools, max_workers=st.integers(1, 4))
    def resize(self, pool, max_workers):
        if pool in self.open:
            self.send(sc.ResizePool(pool, max_workers))

    @rule(pool=pools, kill=st.booleans())
    def close(self, pool, kill):
        if self.open.pop(pool, None) is not None:
            self.send(sc.ClosePool(pool, kill))

    @rule(pool=pools, asked=shapes, count=st.integers(1, 4))
    def request(self, pool, asked, count):
        if pool in self.open:
            self.send(sc.RequestLeases(pool, asked, count))

    @rule(pool=pools, asked=shapes)
    def cancel(self, pool, asked):
        if pool in self.open:
            self.send(sc.CancelRequests(pool, asked))

    @rule(data=st.data(), retire=st.booleans())
    def return_lease(self, data, retire):
        if self.leases:
            worker = data.draw(st.sampled_from(sorted(self.leases)))
            self.send(sc.ReturnLease(self.leases.pop(worker), worker, retire))

    @rule(data=st.data(), blocks=st.booleans())
    def block(self, data, blocks):
        if self.alive:
            worker = data.draw(st.sampled_from(sorted(self.alive)))
            known = self.scheduler.workers[worker].state
            if not (blocks and known == sc.BLOCKED):
                self.send(sc.Blocked(worker) if blocks else sc.Unblocked(worker))

    @rule(data=st.data(), early=st.booleans(), failed=st.booleans())
    def die(self, data, early, failed):
        if not self.alive:
            return
        worker = data.draw(st.sampled_from(sorted(self.alive)))
        failed = failed and self.scheduler.workers[worker].state != sc.BLOCKED
        del self.alive[worker]
        self.leases.pop(worker, None)
        self.send(sc.StartFailed(worker, self.now_s) if failed else sc.WorkerDied(worker, self.now_s, early))
        self.send(sc.WorkerDied(worker, self.now_s, early))

    @rule(data=st.data())
    def kill(self, data):
        if self.leases:
            worker = data.draw(st.sampled_from(sorted(self.leases)))
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
        for client in list(self.scheduler.clients):
            self.leave(client)
        for worker in sorted(self.alive):
            del self.alive[worker]
            self.send(sc.WorkerDied(worker, self.now_s, early=False))
        self.scheduler.check()
        assert not self.scheduler.pools
        assert not self.scheduler.workers
        assert not self.scheduler.queue
        assert self.scheduler.account.free == self.scheduler.account.total


def test_the_scheduler_keeps_its_invariants_whatever_happens():
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(max_examples=60, stateful_step_count=50, deadline=None)
    )
