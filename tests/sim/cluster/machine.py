"""A simulated machine of a cluster: the real state machines, and what node, gateway and workers do with them.

```
 Lane ── node_event ──► LocalScheduler ── Grant ──► Lane             (a worker of this machine)
                          │ could_go               ▲ granted
                          ▼                        │
                        Cluster.choose ─ lease_wanted ─► the same over there, for a guest pool: lease_given
 a frame for elsewhere ── task_frame ─► objects.py: its references and objects ─► the worker ─ result_frame ─► Lane
```

What the roles do (node_abroad.py, gateway.py) is told again here in few words; what decides is the code itself:
LocalScheduler, Cluster, Heartbeats, and in objects.py References, Borrowing, Pulls and Serving.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from dpool._core.logic import scheduler as s
from dpool._core.logic.heartbeats import Heartbeats
from dpool._core.logic.placement import Cluster, Load, Task, average
from dpool._core.logic.resources import CPUS, UNIT, Account, Shape, shape
from tests.sim.cluster.engine import Core, Engine
from tests.sim.cluster.lane import Job, Lane
from tests.sim.cluster.objects import SimObjects

HERE = b""
PROGRAMS, GATEWAY = 1, 2
"""The node's clients."""
HEARTBEAT_S = 0.1
QUIET_S = 2.0
"""So often the control store hears at least of a machine where nothing changes."""
REFUSED_S = 0.05
SHORT = 200
"""Bytes of a short message, with its frames and what CURVE adds."""
BEAT_BYTES = 350
MOST_WORKERS = 1 << 20


class Worker:
    """A process. `guest`: what it runs for another machine, if it does."""

    __slots__ = ("alive", "core", "guest", "number", "pool")

    def __init__(self, engine: Engine, number: int, pool: int) -> None:
        self.number = number
        self.pool = pool
        self.core = Core(engine)
        self.alive = True
        self.guest: Guest | None = None


class Abroad:
    """A lease that another machine has given, or is asked for. `frames`: (numbers, ready at), the first under way."""

    __slots__ = ("frames", "granted", "lane", "lease", "peer", "returned")

    def __init__(self, lease: int, lane: Lane, peer: bytes) -> None:
        self.lease = lease
        self.lane = lane
        self.peer = peer
        self.granted = False
        self.returned = False
        self.frames: deque[range] = deque()


class Guest:
    """A lease of a worker here that a program of another machine has."""

    __slots__ = ("ended", "lease", "peer", "pool", "token", "worker")

    def __init__(self, peer: bytes, lease: int, pool: int) -> None:
        self.peer = peer
        self.lease = lease
        self.pool = pool
        self.worker: Worker | None = None
        self.token = 0
        """Of the frame that it has, or had last: what that needed stays here until the next one has come, so that a
        thousand tasks which need one object do not fetch it a thousand times.
        """
        self.ended = False


class SimMachine:
    """One machine.

    Args:
        world: all machines by name; whoever is not in it (any more) hears nothing.
        slowness: how much longer tasks take here.
        tell_all: every other machine hears each beat, not `heartbeats.AUDIENCE` of them.
    """

    def __init__(
        self,
        engine: Engine,
        world: dict[bytes, SimMachine],
        number: int,
        cpus: int,
        slowness: float = 1.0,
        tell_all: bool = False,
    ) -> None:
        self.engine = engine
        self.world = world
        self.name = number.to_bytes(6, "big")
        self.number = number
        self.cpus = cpus
        self.slowness = slowness
        self.alive = True
        self.node = Core(engine)
        self.gateway = Core(engine)
        self.network_out = Core(engine)
        self.network_in = Core(engine)
        self.down: set[bytes] = set()
        self.objects = SimObjects(self)
        self.workers: dict[int, Worker] = {}
        self.lanes: dict[int, Lane] = {}
        self.abroad: dict[int, Abroad] = {}
        self.guests: dict[tuple[bytes, int], Guest] = {}
        self.guest_pools: dict[tuple[bytes, int], int] = {}
        self.guests_of: dict[int, deque[Guest]] = {}
        """Guest pool → leases that wait for a worker."""
        self.leased = 0
        self.running_s = 0.0
        """Seconds of tasks begun here."""
        self.task_s = 0.0
        self._total = {CPUS: cpus * UNIT}
        self.scheduler = s.LocalScheduler(Account(shape(num_cpus=cpus)))
        for client in (PROGRAMS, GATEWAY):
            self.scheduler.handle(s.ClientJoined(client))
        self._pools = 0
        self.tell_all = tell_all
        self._beats = Heartbeats(self.name)
        self._number = 0
        self._reported = (dict(self._total), 0, 0.0)
        """What the others know: they have heard it when the links came up."""
        self._gcs_told_s = -QUIET_S
        self._seen: Counter[bytes] = Counter()
        self._uncounted: set[bytes] = set()
        self._heard: dict[bytes, Load] = {}
        self._cluster: Cluster | None = None
        self._considering = False
        self._keys = 0
        self._refused: dict[bytes, float] = {}

    def begin(self) -> None:
        """It has joined; the others know."""
        for peer in self.world.values():
            if peer is not self and peer.alive:
                self._beats.peer_up(peer.name)
        self.engine.gcs_commands(2, 400)
        self.engine.after(self.engine.rng.uniform(0, HEARTBEAT_S), self._beat)

    def peer_up(self, peer: SimMachine) -> None:
        """A machine has joined: each tells the other how it is."""
        self._beats.peer_up(peer.name)
        self.gateway.charge(2 * self.engine.costs.link_s + self.engine.costs.beat_s)
        self._hear(peer._load(self.name))

    # -- messages between machines

    def post(self, to: bytes, size: int, handler: Callable[..., None], *args: Any, extra_s: float = 0.0) -> bool:
        """Send; `handler(machine, sender, *args)` is called there. False if there is no link."""
        if to in self.down:
            return False
        engine, peer = self.engine, self.world[to]
        engine.counts["messages"] += 1
        engine.counts["bytes"] += size
        sent_s = self.gateway.charge(engine.costs.link_s + extra_s)
        sent_s = self.network_out.charge(size / engine.costs.bytes_per_s, sent_s)
        engine.at(sent_s + engine.costs.latency_s, peer._arrive, self.name, size, extra_s, handler, args)
        return True

    def _arrive(
        self, sender: bytes, size: int, extra_s: float, handler: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        if self.alive:
            came_s = self.network_in.charge(size / self.engine.costs.bytes_per_s)
            read_s = self.gateway.charge(self.engine.costs.link_s + extra_s, came_s)
            self.engine.at(read_s, self._deliver, sender, handler, args)

    def _deliver(self, sender: bytes, handler: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.alive and sender not in self.down:
            handler(self, sender, *args)
            self.check_if_careful()

    def check_if_careful(self) -> None:
        if self.engine.careful:
            self.check()

    def check(self) -> None:
        """What must hold at any time."""
        self.scheduler.check()
        self._beats.check()
        if self._cluster is not None:
            self._cluster.check()
        self.objects.check()
        assert self.leased <= self.cpus, f"{self.leased} leases on {self.cpus} CPUs"
        assert self.leased == sum(worker.lease is not None for worker in self.scheduler.workers.values())

    # -- the node

    def run_job(self, job: Job, max_workers: int, submit: bool = True) -> Lane:
        """A program starts here with these tasks; what its objects need is held by it until all have ended."""
        self._pools += 1
        pool = self._pools
        lane = Lane(self, pool, job, max_workers, lambda: self._finished(lane))
        self.lanes[pool] = lane
        for obj in job.refs:
            self.objects.program_holds(obj)
        self.node_event(s.OpenPool(PROGRAMS, pool, max_workers))
        if submit:
            lane.submit(range(job.total))
        return lane

    def _finished(self, lane: Lane) -> None:
        for obj in lane.job.refs:
            self.objects.program_drops(obj)
        self.node_event(s.ClosePool(lane.pool, False))
        for peer in {abroad.peer for abroad in self.abroad.values() if abroad.lane is lane}:
            self.post(peer, SHORT, SimMachine.pool_closed, lane.pool)

    def node_event(self, event: s.Event) -> None:
        """Something for the scheduler; it is dealt with when the node comes to it."""
        done_s = self.node.charge(self.engine.costs.lease_s)
        self.engine.at(done_s + self.engine.costs.hop_s, self._node_event, event)

    def _node_event(self, event: s.Event) -> None:
        if self.alive:
            self.do(event)
            self.check_if_careful()

    def do(self, event: s.Event) -> list[s.Instruction]:
        if isinstance(event, s.ReturnLease):
            worker = self.scheduler.workers.get(event.worker)
            if worker is not None and worker.state == s.LEASED:
                self.leased -= 1
        elif isinstance(event, s.WorkerDied):
            worker = self.scheduler.workers.get(event.worker)
            self.leased -= worker is not None and worker.lease is not None
        out = self.scheduler.handle(event)
        for order in out:
            self._act(order)
        self._consider()
        return out

    def _act(self, order: s.Instruction) -> None:
        if isinstance(order, s.StartWorker):
            worker = self.workers[order.worker] = Worker(self.engine, order.worker, order.pool)
            worker.core.charge(self.engine.costs.start_s)
        elif isinstance(order, s.Grant):
            self.leased += 1
            assert self.leased <= self.cpus, f"{self.leased} leases on {self.cpus} CPUs"
            worker = self.workers[order.worker]
            if order.client == PROGRAMS:
                self.lanes[order.pool].granted(order.worker, worker)
            else:
                self._grant_guest(order.pool, worker)
        elif isinstance(order, s.KillWorker | s.RetireWorker):
            self.workers[order.worker].alive = False
            self.engine.after(1e-3, self._reap, order.worker)
        elif isinstance(order, s.TellDied):
            worker = self.workers.pop(order.worker)
            if order.client == PROGRAMS:
                self.lanes[order.pool].died(order.worker)
            elif worker.guest is not None:
                self._end_guest(worker.guest)
        elif isinstance(order, s.PoolGone):
            self.lanes.pop(order.pool, None)
            self.guests_of.pop(order.pool, None)

    def _reap(self, number: int) -> None:
        if self.alive and number in self.workers:
            self.do(s.WorkerDied(number, self.engine.now_s, False))

    def kill_worker(self, number: int) -> None:
        """It crashes."""
        self.workers[number].alive = False
        self._reap(number)

    def cancel_leases(self, pool: int, asked: Shape) -> None:
        self.node_event(s.CancelRequests(pool, asked))
        for abroad in self.abroad.values():
            if abroad.lane.pool == pool and not abroad.granted:
                self._return_abroad(abroad)

    def return_lease(self, lane: Lane, link: tuple[int, Worker | None]) -> None:
        number, worker = link
        if worker is not None:
            self.node_event(s.ReturnLease(lane.pool, number, False))
        elif number in self.abroad:
            self._return_abroad(self.abroad[number])

    def _return_abroad(self, abroad: Abroad) -> None:
        if not abroad.returned:
            abroad.returned = True
            self.post(abroad.peer, SHORT, SimMachine.lease_returned, abroad.lease)

    # -- who goes where

    def _consider(self) -> None:
        """Ask other machines for what waits here, once what is being done is done."""
        if not self._considering and self.scheduler.queue and len(self.world) > 1:
            self._considering = True
            self.engine.at(self.node.free_at_s, self._considered)

    def _considered(self) -> None:
        self._considering = False
        waiting = self.scheduler.could_go(GATEWAY) if self.alive else []
        if not waiting:
            return
        view = self.cluster
        view.heard(self._own_load())
        now_s = self.engine.now_s
        self._refused = {name: until_s for name, until_s in self._refused.items() if until_s >= now_s}
        nowhere: set[Shape] = set()
        for pool, asked, count in waiting:
            for _ in range(count if asked not in nowhere else 0):
                self._keys += 1
                self.node.charge(self.engine.costs.choose_s)
                self.engine.counts["choices"] += 1
                task = Task(self._keys.to_bytes(8, "big"), asked)
                chosen = view.choose(task, without=self._refused)
                if chosen is None or chosen == HERE or not view.begins_at_once(chosen, asked):
                    nowhere.add(asked)
                    break
                self._send_abroad(pool, asked, chosen)
        self.check_if_careful()

    def _send_abroad(self, pool: int, asked: Shape, chosen: bytes) -> None:
        assert chosen not in self.down, "a machine that is gone was chosen"
        lease = self.scheduler.new_worker()
        self.scheduler.handle(s.WentAbroad(pool, asked, lease))
        self.cluster.placed(chosen, asked)
        self.abroad[lease] = Abroad(lease, self.lanes[pool], chosen)
        if not self.post(chosen, SHORT, SimMachine.lease_wanted, pool, lease, asked):
            self._back(self.abroad.pop(lease))

    def _back(self, abroad: Abroad) -> None:
        self.node.charge(self.engine.costs.lease_s)
        self.do(s.BackFromAbroad(abroad.lane.pool, abroad.lease, not abroad.granted and not abroad.returned))

    @property
    def cluster(self) -> Cluster:
        """Its view; made when it is first asked for, from what it would know by then."""
        if self._cluster is None:
            view = self._cluster = Cluster(HERE, salt=self.name)
            for peer in self.world.values():
                if peer is not self and peer.name not in self.down:
                    view.heard(
                        self._heard.get(peer.name) or Load(peer.name, 0, peer._total, peer._total, 0, 0.0, 0.0, {})
                    )
            self._heard.clear()
        return self._cluster

    # -- heartbeats

    def _own_load(self) -> Load:
        return self._load(HERE)._replace(node=HERE)

    def _load(self, to: bytes) -> Load:
        self._number += 1
        waiting = sum(request.count for request in self.scheduler.queue)
        seen = {HERE: self._seen[to]} if to in self._seen else {}
        free = dict(self.scheduler.account.free)
        return Load(self.name, self._number, self._total, free, waiting, self.task_s, 0.0, seen)

    def _beat(self) -> None:
        if not self.alive:
            return
        engine = self.engine
        waiting = sum(request.count for request in self.scheduler.queue)
        report = dict(self.scheduler.account.free), waiting, round(self.task_s, 4)
        if report != self._reported:
            self._beats.news()
        if report != self._reported or engine.now_s - self._gcs_told_s >= QUIET_S:
            engine.gcs_commands(1, BEAT_BYTES)
            self.gateway.charge(engine.costs.link_s)
            self._gcs_told_s = engine.now_s
        self._reported = report
        told = list(self._beats.due())
        while self.tell_all and self._beats.owed:
            told += self._beats.due()
        free, waiting, _ = report
        for peer in dict.fromkeys((*told, *self._uncounted)):
            engine.counts["heartbeats"] += 1
            self._number += 1
            seen = {HERE: self._seen[peer]} if peer in self._seen else {}
            load = Load(self.name, self._number, self._total, free, waiting, self.task_s, 0.0, seen)
            self.post(peer, BEAT_BYTES, SimMachine.heartbeat, load)
        self._uncounted.clear()
        self._consider()
        engine.after(HEARTBEAT_S, self._beat)

    def heartbeat(self, sender: bytes, load: Load) -> None:
        self.node.charge(self.engine.costs.beat_s / 2)
        self.gateway.charge(self.engine.costs.beat_s / 2)
        self._hear(load)
        if load.free.get(CPUS, 0) > 0 and not load.waiting:
            self._consider()

    def _hear(self, load: Load) -> None:
        if self._cluster is not None:
            self._cluster.heard(load)
        else:
            self._heard[load.node] = load

    # -- leases between machines

    def lease_wanted(self, sender: bytes, theirs: int, lease: int, asked: Shape) -> None:
        """A machine wants a worker of ours. It gets one at once or not at all: it can as well wait where it is."""
        self._seen[sender] += 1
        self._uncounted.add(sender)
        pool = self.guest_pools.get((sender, theirs))
        if pool is None:
            self._pools += 1
            pool = self.guest_pools[sender, theirs] = self._pools
            self.guests_of[pool] = deque()
            self.do(s.OpenPool(GATEWAY, pool, MOST_WORKERS))
        self.node.charge(self.engine.costs.lease_s)
        guest = self.guests[sender, lease] = Guest(sender, lease, pool)
        self.guests_of[pool].append(guest)
        out = self.do(s.RequestLeases(pool, asked, 1))
        if not any(isinstance(order, s.Grant) for order in out):
            self.do(s.CancelRequests(pool, asked))
            del self.guests[sender, lease]
            self.guests_of[pool].remove(guest)
            self.engine.counts["refused"] += 1
            self.post(sender, BEAT_BYTES, SimMachine.lease_refused, lease, self._load(sender))

    def _grant_guest(self, pool: int, worker: Worker) -> None:
        guest = self.guests_of[pool].popleft()
        guest.worker, worker.guest = worker, guest
        self.post(guest.peer, SHORT, SimMachine.lease_given, guest.lease)

    def lease_refused(self, sender: bytes, lease: int, load: Load) -> None:
        abroad = self.abroad.pop(lease, None)
        if abroad is not None:
            self._refused[sender] = self.engine.now_s + REFUSED_S
            self._hear(load)
            self._back(abroad)

    def lease_given(self, sender: bytes, lease: int) -> None:
        abroad = self.abroad.get(lease)
        if abroad is None:
            return
        abroad.granted = True
        if not abroad.returned:
            abroad.lane.granted(lease, None)

    def lease_returned(self, sender: bytes, lease: int) -> None:
        guest = self.guests.get((sender, lease))
        if guest is not None and guest.worker is not None:
            worker = guest.worker
            self._end_guest(guest)
            self.node_event(s.ReturnLease(worker.pool, worker.number, False))

    def _end_guest(self, guest: Guest) -> None:
        guest.ended = True
        self.guests.pop((guest.peer, guest.lease), None)
        if guest.worker is not None:
            guest.worker.guest = None
        if guest.token:
            self.objects.frame_done(guest.token)
            guest.token = 0
        self.post(guest.peer, SHORT, SimMachine.lease_ended, guest.lease)

    def lease_ended(self, sender: bytes, lease: int) -> None:
        abroad = self.abroad.pop(lease, None)
        if abroad is not None:
            abroad.lane.died(lease)
            self._back(abroad)

    def pool_closed(self, sender: bytes, theirs: int) -> None:
        pool = self.guest_pools.pop((sender, theirs), None)
        if pool is not None:
            self.node_event(s.ClosePool(pool, False))

    # -- frames

    def send_frame(self, lane: Lane, link: tuple[int, Worker | None], numbers: range, at_s: float) -> None:
        """A program sends tasks to a worker of its own; `at_s`: when the worker, or our gateway, can read them."""
        number, worker = link
        if worker is not None:
            took_s, done_s = self._run(worker, lane.job, numbers, at_s)
            self.engine.at(done_s + self.engine.costs.hop_s, self._answer, lane, number, worker, numbers, took_s)
            return
        abroad = self.abroad.get(number)
        if abroad is not None:
            abroad.frames.append(numbers)
            if len(abroad.frames) == 1:
                self.engine.at(at_s, self._forward, abroad)

    def _run(self, worker: Worker, job: Job, numbers: range, at_s: float) -> tuple[float, float]:
        costs = self.engine.costs
        took_s = job.time_s(numbers) * self.slowness + len(numbers) * costs.run_s
        begin_s = max(worker.core.free_at_s, at_s, self.engine.now_s)
        done_s = worker.core.charge(2 * costs.frame_s + took_s, at_s)
        if job.began_s is not None:
            job.began_s[numbers.start : numbers.stop] = [begin_s] * len(numbers)
        self.running_s += took_s
        self.task_s = average(self.task_s, took_s / len(numbers))
        return took_s, done_s

    def _answer(self, lane: Lane, number: int, worker: Worker, numbers: range, took_s: float) -> None:
        if self.alive and worker.alive:
            lane.answered(number, numbers, took_s, False)

    def _forward(self, abroad: Abroad) -> None:
        if self.alive and abroad.frames and abroad.lease in self.abroad:
            job, numbers = abroad.lane.job, abroad.frames[0]
            size = SHORT + 30 * len(numbers)
            self.post(
                abroad.peer, size, SimMachine.task_frame, abroad.lease, job, numbers, extra_s=self.engine.costs.relay_s
            )

    def task_frame(self, sender: bytes, lease: int, job: Job, numbers: range) -> None:
        """Tasks for a worker that a program of another machine has; first what they need must be here."""
        guest = self.guests.get((sender, lease))
        if guest is not None and guest.worker is not None:
            if job.refs:
                before = guest.token
                guest.token = self.objects.frame_came(
                    sender, job.refs, lambda complete: self._run_guest(guest, job, numbers, complete)
                )
                if before:
                    self.objects.frame_done(before)
            else:
                self._run_guest(guest, job, numbers, True)

    def _run_guest(self, guest: Guest, job: Job, numbers: range, complete: bool) -> None:
        """`complete`: what its tasks need is here; otherwise it is lost, and they fail."""
        if guest.ended or guest.worker is None:
            return
        if complete:
            self.objects.check_there(job.refs)
            took_s, done_s = self._run(guest.worker, job, numbers, self.engine.now_s + self.engine.costs.hop_s)
        else:
            took_s, done_s = 0.0, self.engine.now_s
        self.engine.at(done_s + self.engine.costs.hop_s, self._guest_answers, guest, numbers, took_s, not complete)

    def _guest_answers(self, guest: Guest, numbers: range, took_s: float, failed: bool) -> None:
        if not self.alive or guest.ended or guest.worker is None or not guest.worker.alive:
            return
        size, extra_s = SHORT + 30 * len(numbers), self.engine.costs.relay_s
        self.post(guest.peer, size, SimMachine.result_frame, guest.lease, numbers, took_s, failed, extra_s=extra_s)
        self.check_if_careful()

    def result_frame(self, sender: bytes, lease: int, numbers: range, took_s: float, failed: bool) -> None:
        abroad = self.abroad.get(lease)
        if abroad is None:
            return
        abroad.frames.popleft()
        if abroad.frames:
            self._forward(abroad)
        abroad.lane.answered(lease, numbers, took_s, failed)

    # -- machines that go

    def die(self) -> None:
        """Power off. The others find out later."""
        self.alive = False
        for peer in self.world.values():
            if peer.alive:
                self.engine.after(self.engine.costs.detect_s, peer.peer_down, self.name)

    def peer_down(self, peer: bytes) -> None:
        if not self.alive or peer in self.down:
            return
        self.down.add(peer)
        self.gateway.charge(self.engine.costs.link_s)
        self._beats.peer_down(peer)
        self._uncounted.discard(peer)
        self._heard.pop(peer, None)
        if self._cluster is not None:
            self._cluster.gone(peer)
        for abroad in [one for one in self.abroad.values() if one.peer == peer]:
            del self.abroad[abroad.lease]
            abroad.lane.died(abroad.lease)
            self._back(abroad)
        for key in [key for key in self.guest_pools if key[0] == peer]:
            self.do(s.ClosePool(self.guest_pools.pop(key), True))
        self.objects.peer_down(peer)
        self.check_if_careful()

    def check_at_rest(self) -> None:
        """All programs have ended: nothing is left of them."""
        self.check()
        assert not self.lanes, f"{self.name.hex()} has lanes"
        assert not self.abroad, f"{self.name.hex()} has leases elsewhere"
        assert not self.guests, f"{self.name.hex()} has guests"
        assert not self.leased
        self.objects.check_at_rest()


def alive(machines: Iterable[SimMachine]) -> list[SimMachine]:
    return [machine for machine in machines if machine.alive]
