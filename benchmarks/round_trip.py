"""How long does one task take, there and back, on an otherwise idle machine?

Two figures. *Back to back*: the next task is submitted as soon as the last one has answered, so both sides are still
awake, or polling. *After a pause*: 2 ms pass before each task, everybody sleeps and must be woken. The target is about
the first, as published figures are; the second is what a program that submits now and then sees.
"""

from __future__ import annotations

import statistics
import time

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.peers import Peer

_PAUSE_S = 0.002
_BUDGET_S = 3.0  # for the slow peers: fewer round trips, the same median


def measure(peer: Peer, size: Size) -> Sample:
    trips = _time_trips(peer, int(size["trips"]), pause_s=0.0)
    paused = _time_trips(peer, int(size["paused"]), pause_s=_PAUSE_S)
    return {
        "p50_us": statistics.median(trips),
        "p99_us": sorted(trips)[int(len(trips) * 0.99)],
        "paused_us": statistics.median(paused),
    }


def _time_trips(peer: Peer, trips: int, pause_s: float) -> list[float]:
    """Microseconds of each round trip."""
    taken_us: list[float] = []
    deadline = time.perf_counter() + _BUDGET_S
    while len(taken_us) < trips and time.perf_counter() < deadline:
        if pause_s:
            time.sleep(pause_s)
        begin = time.perf_counter()
        peer.apply(work.noop)
        taken_us.append((time.perf_counter() - begin) * 1e6)
    return taken_us


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("round trip / mp.Pool.apply", results.ratio("dpool", "mp", "p50_us"), 0.45),
        at_most("round trip / ProcessPoolExecutor", results.ratio("dpool", "ppe", "p50_us"), 0.25),
    ]


BENCHMARK = Benchmark(
    name="round_trip",
    question="how long does submit(noop).result() take on an otherwise idle machine?",
    metrics=(
        Metric("p50_us", "back to back, median", "µs"),
        Metric("p99_us", "back to back, 99th percentile", "µs"),
        Metric("paused_us", "after a pause of 2 ms, median", "µs"),
    ),
    subjects=every_peer(),
    sizes={
        "full": {"trips": 5000, "paused": 300},
        "quick": {"trips": 1000, "paused": 50},
        "tiny": {"trips": 100, "paused": 5},
    },
    judge=judge,
    repeat=7,
    measure=measure,
)
