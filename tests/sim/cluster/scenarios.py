"""What a simulated cluster is asked. Each returns plain numbers; the same seed gives the same ones."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from statistics import mean, pstdev
from typing import Any

from dpool._core.logic import pulls
from dpool._core.logic.placement import Cluster, Load, Task
from dpool._core.logic.resources import CPUS, UNIT
from tests.sim.cluster.costs import COSTS, Costs
from tests.sim.cluster.engine import Engine
from tests.sim.cluster.lane import ONE_CPU, Job, Lane
from tests.sim.cluster.machine import HEARTBEAT_S, HERE, SimMachine, alive

CPUS_EACH = 8
SETTLE_S = 1.0
"""After the last task: what is still said arrives, and what is not needed is freed."""


def build(engine: Engine, count: int, cpus: int = CPUS_EACH, **words: Any) -> list[SimMachine]:
    """That many machines, which know each other."""
    world: dict[bytes, SimMachine] = {}
    for number in range(count):
        machine = SimMachine(engine, world, number, cpus, **words)
        world[machine.name] = machine
    for machine in world.values():
        machine.begin()
    return list(world.values())


def settle(engine: Engine, machines: list[SimMachine]) -> None:
    """Let everything come to rest, and look that it does."""
    engine.run_for(SETTLE_S + engine.costs.detect_s)
    for machine in alive(machines):
        machine.check_at_rest()


def all_ended(lanes: list[Lane]) -> Callable[[], bool]:
    """Whether all tasks of the programs that live have ended; looked at in constant time."""
    left = list(lanes)

    def ended() -> bool:
        while left and (left[-1].job.ended == left[-1].job.total or not left[-1].machine.alive):
            left.pop()
        return not left

    return ended


def throughput(count: int, seed: int, tasks: int) -> dict[str, float]:
    """Every machine has a program that submits `tasks` empty tasks: how many per second do all of them do?"""
    engine = Engine(seed)
    machines = build(engine, count)
    lanes = [machine.run_job(Job(tasks), CPUS_EACH) for machine in machines]
    engine.run(all_ended(lanes), 1000.0)
    took_s = max(lane.job.finished_s or 0.0 for lane in lanes)
    sent = engine.counts["messages"] - engine.counts["heartbeats"]
    settle(engine, machines)
    return {"machines": count, "tasks_per_s": count * tasks / took_s, "messages_per_task": sent / (count * tasks)}


def steady(count: int, seed: int, span_s: float, load: float = 0.8, tell_all: bool = False) -> dict[str, float]:
    """Tasks of 50 ms (exponential) arrive at random, at some machines more than they can do, `load` over all.

    What does the cluster cost itself, and how long do tasks wait?
    """
    engine = Engine(seed)
    rng = engine.rng
    machines = build(engine, count, tell_all=tell_all)
    weights = [rng.expovariate(1.0) for _ in machines]
    rates = [weight / sum(weights) * count * CPUS_EACH * load / 0.05 for weight in weights]
    arrivals: list[list[float]] = []
    lanes: list[Lane] = []
    for machine, rate in zip(machines, rates, strict=True):
        when_s, times = rng.expovariate(rate), []
        while when_s < span_s:
            times.append(when_s)
            when_s += rng.expovariate(rate)
        if not times:
            continue
        durations = [rng.expovariate(1 / 0.05) for _ in times]
        job = Job(len(times), durations.__getitem__, timed=True)
        lane = machine.run_job(job, count * CPUS_EACH, submit=False)
        for number, at_s in enumerate(times):
            engine.at(at_s, lane.submit, range(number, number + 1))
        lanes.append(lane)
        arrivals.append(times)
    half = _Watch(engine, machines, span_s / 2)
    engine.run_for(span_s)
    figures = half.figures(span_s / 2)
    for machine in machines:
        machine.tell_all = False  # the figures are there; the rest is to end
    engine.run(all_ended(lanes), 1000.0)
    waits: list[float] = []
    for lane, times in zip(lanes, arrivals, strict=True):
        assert lane.job.began_s is not None
        waits += [began - came for began, came in zip(lane.job.began_s, times, strict=True)]
    waits.sort()
    settle(engine, machines)
    assert not sum(lane.job.again + lane.job.failed for lane in lanes)
    return {
        "machines": count,
        **figures,
        "wait_mean_ms": 1e3 * mean(waits),
        "wait_p99_ms": 1e3 * waits[int(0.99 * len(waits))],
        "refused_per_choice": engine.counts["refused"] / max(1, engine.counts["choices"]),
    }


class _Watch:
    """From half of the time on: what is sent, how busy everybody is."""

    def __init__(self, engine: Engine, machines: list[SimMachine], after_s: float) -> None:
        self._engine = engine
        self._machines = machines
        self._shares: list[float] = []
        self._over = False
        engine.at(after_s, self._begin)

    def _begin(self) -> None:
        self._counts = self._engine.counts.copy()
        self._gcs_s = self._engine.gcs.busy_s
        self._busy_s = [(machine.node.busy_s, machine.gateway.busy_s) for machine in self._machines]
        self._sample()

    def _sample(self) -> None:
        if self._over:
            return
        leased = [machine.leased / machine.cpus for machine in self._machines]
        self._shares.append(pstdev(leased) / mean(leased))
        self._engine.after(HEARTBEAT_S, self._sample)

    def figures(self, span_s: float) -> dict[str, float]:
        self._over = True
        engine, count = self._engine, len(self._machines)
        rate = {
            name: (engine.counts[name] - self._counts[name]) / span_s / count
            for name in ("messages", "bytes", "heartbeats", "gcs commands", "gcs bytes", "choices")
        }
        nodes = [m.node.busy_s - was[0] for m, was in zip(self._machines, self._busy_s, strict=True)]
        gateways = [m.gateway.busy_s - was[1] for m, was in zip(self._machines, self._busy_s, strict=True)]
        beat_s = (2 * engine.costs.link_s + engine.costs.beat_s) * rate["heartbeats"]
        return {
            "heartbeats_per_s": rate["heartbeats"],
            "heartbeat_bytes_per_s": rate["heartbeats"] * 350,
            "heartbeat_core": beat_s,
            "messages_per_s": rate["messages"],
            "bytes_per_s": rate["bytes"],
            "gcs_commands_per_s": rate["gcs commands"],
            "gcs_bytes_per_s": rate["gcs bytes"],
            "gcs_core": (engine.gcs.busy_s - self._gcs_s) / span_s,
            "node_core": mean(nodes) / span_s,
            "gateway_core": mean(gateways) / span_s,
            "busiest_gateway_core": max(gateways) / span_s,
            "imbalance": mean(self._shares),
        }


def burst(count: int, seed: int, task_s: float, each: int) -> dict[str, float]:
    """One program submits `each` tasks of `task_s` for every CPU of the cluster, at once."""
    engine = Engine(seed)
    machines = build(engine, count)
    engine.run_for(2 * HEARTBEAT_S)
    begin_s = engine.now_s
    cpus = count * CPUS_EACH
    job = Job(each * cpus, task_s)
    lane = machines[0].run_job(job, cpus)
    busy: list[float] = []

    def look() -> None:
        if sum(machine.leased for machine in machines) >= 0.9 * cpus:
            busy.append(engine.now_s - begin_s)
        elif job.ended < job.total:
            engine.after(0.005, look)

    look()
    engine.run(all_ended([lane]), 10_000.0)
    took_s = (job.finished_s or 0.0) - begin_s
    ideal_s = each * task_s
    figures = {
        "machines": count,
        "tasks": job.total,
        "busy_after_s": busy[0] if busy else float("nan"),
        "took_s": took_s,
        "ideal_s": ideal_s,
        "efficiency": ideal_s / took_s,
        "submitters_gateway_core": machines[0].gateway.busy_s / took_s,
    }
    settle(engine, machines)
    assert not job.again + job.failed
    return figures


def loss(count: int, seed: int, share: float, each: int, task_s: float = 0.1) -> dict[str, float]:
    """Half of the machines have programs of `each` tasks, work for all; half-way `share` of the machines die."""
    took: list[float] = []
    again = lost_jobs = 0
    for losing in (False, True):
        engine = Engine(seed)
        machines = build(engine, count)
        objects = [machine.objects.put(4 * pulls.PIECE_BYTES) for machine in machines]
        lanes = [
            machine.run_job(Job(each, task_s, (objects[machine.number],)), 4 * CPUS_EACH) for machine in machines[::2]
        ]
        for machine in machines[1::2]:
            drop_unused(machine, objects[machine.number])
        dying = Random(seed).sample(machines, int(share * count)) if losing else []
        for machine in dying:
            engine.at(0.55 * each / (2 * CPUS_EACH) * task_s, machine.die)
        engine.run(all_ended(lanes), 1000.0)
        living = [lane for lane in lanes if lane.machine.alive]
        took.append(max(lane.job.finished_s or 0.0 for lane in living))
        again = sum(lane.job.again for lane in living)
        lost_jobs = len(lanes) - len(living)
        settle(engine, machines)
        assert not sum(lane.job.failed for lane in living)
    return {
        "machines": count,
        "lost": share * count,
        "programs_lost": lost_jobs,
        "tasks_again": again,
        "tasks_again_share": again / (count / 2 * each),
        "took_s": took[1],
        "took_without_s": took[0],
    }


def drop_unused(machine: SimMachine, obj: bytes) -> None:
    """An object that nobody is to use."""
    machine.objects.program_holds(obj)
    machine.objects.program_drops(obj)


def broadcast(count: int, seed: int, pieces: int) -> dict[str, float]:
    """All machines need one object at the same time."""
    engine = Engine(seed)
    machines = build(engine, count)
    home = machines[0]
    obj = home.objects.put(pieces * pulls.PIECE_BYTES)
    home.objects.program_holds(obj)
    done: list[float] = []

    def need(machine: SimMachine) -> None:
        def ready(complete: bool) -> None:
            assert complete
            done.append(engine.now_s)
            machine.objects.frame_done(token)

        token = machine.objects.frame_came(home.name, (obj,), ready)

    for machine in machines[1:]:
        need(machine)
    engine.run(lambda: len(done) == count - 1, 1000.0)
    most = max(machine.network_out.busy_s for machine in machines) * engine.costs.bytes_per_s
    for machine in machines[1:]:
        assert machine.objects.received[obj] == pieces, "a piece came twice"
    home.objects.program_drops(obj)
    settle(engine, machines)
    alone_s = pieces * pulls.PIECE_BYTES / engine.costs.bytes_per_s
    return {
        "machines": count,
        "took_s": max(done),
        "one_copy_s": alone_s,
        "one_by_one_s": alone_s * (count - 1),
        "most_copies_sent": most / pieces / pulls.PIECE_BYTES,
    }


def placement(count: int, seed: int, deciders: int, share: float) -> dict[str, float]:
    """Machines that see `count` idle ones place tasks on `share` of all CPUs at once, without a word in between.

    Each round those that found no room hear so, and choose again.
    """
    rng = Random(seed)
    names = [number.to_bytes(6, "big") for number in range(count)]
    total = {CPUS: CPUS_EACH * UNIT}
    views = []
    for number in range(deciders):
        view = Cluster(HERE, salt=b"%d" % number)
        view.heard(Load(HERE, 0, total, {}, 1, 0.05, 0.0, {}))
        for name in rng.sample(names, len(names)):
            view.heard(Load(name, 0, total, total, 0, 0.05, 0.0, {}))
        views.append(view)
    free = dict.fromkeys(names, CPUS_EACH)
    seen = [dict.fromkeys(names, 0) for _ in views]
    waiting = [int(share * count * CPUS_EACH / deciders)] * deciders
    rounds = refused = keys = 0
    first_refused = 0.0
    while any(waiting):
        rounds += 1
        assert rounds < 100
        before = sum(waiting)
        for number, view in enumerate(views):
            asked: list[bytes] = []
            for _ in range(waiting[number]):
                keys += 1
                chosen = view.choose(Task(keys.to_bytes(8, "big"), ONE_CPU))
                if chosen is None or chosen == HERE or not view.begins_at_once(chosen, ONE_CPU):
                    break
                view.placed(chosen, ONE_CPU)
                asked.append(chosen)
            for name in asked:
                seen[number][name] += 1
                waiting[number] -= free[name] > 0
                refused += free[name] <= 0
                free[name] = max(0, free[name] - 1)
            for name in dict.fromkeys(asked):
                left = {CPUS: free[name] * UNIT}
                view.heard(Load(name, rounds, total, left, 0, 0.05, 0.0, {HERE: seen[number][name]}))
        first_refused = first_refused or sum(waiting) / before
    busy = [CPUS_EACH - left for left in free.values()]
    return {
        "machines": count,
        "tasks": sum(busy),
        "rounds": rounds,
        "refused_share": refused / sum(busy),
        "refused_first_round": first_refused,
        "imbalance": pstdev(busy) / mean(busy),
    }


def chaos(seed: int) -> dict[str, float]:
    """A few machines, programs whose tasks need objects, and misfortunes; every machine is checked after each event.

    Tasks of programs that live end exactly once; they fail only if the home of what they need is dead; nothing is left.
    """
    rng = Random(seed)
    costs: Costs = COSTS._replace(detect_s=rng.choice((0.001, 0.1, 1.0)), start_s=rng.choice((1e-4, 1e-2)))
    engine = Engine(seed, costs, careful=True)
    machines = build(engine, rng.choice((2, 3, 5, 8)) if rng.random() < 0.97 else 36, rng.choice((1, 2, 4)))
    lanes: list[Lane] = []

    def program(machine: SimMachine, refs: tuple[bytes, ...]) -> None:
        if machine.alive:
            times = [rng.choice((0.0, 1e-4, 0.01, 0.1)) for _ in range(rng.choice((1, 5, 60)))]
            cpus = sum(one.cpus for one in machines)
            lanes.append(machine.run_job(Job(len(times), times.__getitem__, refs), rng.choice((1, 2, cpus))))

    def first(machine: SimMachine) -> None:
        if not machine.alive:
            return
        made = [machine.objects.put(rng.choice((0, 1, 3 << 20))) for _ in range(rng.choice((0, 1, 3)))]
        program(machine, tuple(made))

    def pass_on() -> None:
        """A program whose tasks need what has come from elsewhere."""
        lent = [
            (machine, obj)
            for machine in alive(machines)
            for obj in sorted(machine.objects.borrowing.objects)
            if obj in machine.objects.whole
        ]
        if lent:
            machine, obj = rng.choice(lent)
            program(machine, (obj,))

    for _ in range(rng.choice((1, 4, 10))):
        engine.after(rng.uniform(0.0, 0.8), first, rng.choice(machines))
    for _ in range(rng.choice((0, 5, 20))):
        engine.after(rng.uniform(0.0, 0.8), pass_on)
    kills = 0 if rng.random() < 0.3 else rng.choice((1, len(machines) // 2))
    for machine in rng.sample(machines, kills):
        engine.after(rng.uniform(0.0, 0.6), machine.die)
    for _ in range(rng.choice((0, 0, 5))):
        engine.after(rng.uniform(0.0, 0.5), _kill_a_worker, rng, machines)
    if rng.random() < 0.5:
        engine.after(rng.uniform(0.0, 0.5), _join, engine, machines)
    engine.run_for(0.8)
    engine.run(all_ended(lanes), 200.0)
    engine.run_for(2.0)
    settle(engine, machines)
    for lane in lanes:
        if lane.machine.alive:
            assert lane.job.ended == lane.job.total
            dead_home = any(not lane.machine.world[obj[:6]].alive for obj in lane.job.refs)
            assert dead_home or not lane.job.failed, "a task failed, and what it needs is there"
    if not kills:
        for machine in machines:
            for obj, fetched in machine.objects.fetched.items():
                pieces = max(1, -(-machine.objects.sizes[obj] // pulls.PIECE_BYTES))
                assert machine.objects.received[obj] == fetched * pieces, "a piece came twice"
    return {"tasks": sum(lane.job.ended for lane in lanes), **engine.counts}


def _kill_a_worker(rng: Random, machines: list[SimMachine]) -> None:
    living = [(machine, number) for machine in alive(machines) for number, w in machine.workers.items() if w.alive]
    if living:
        machine, number = rng.choice(living)
        machine.kill_worker(number)


def _join(engine: Engine, machines: list[SimMachine]) -> None:
    world = machines[0].world
    machine = SimMachine(engine, world, len(world), machines[0].cpus)
    for peer in alive(machines):
        peer.peer_up(machine)
        machine.peer_up(peer)
    machine.down.update(peer.name for peer in machines if not peer.alive)
    world[machine.name] = machine
    machines.append(machine)
    machine.begin()
