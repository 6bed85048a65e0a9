"""How long does `Pool.apply` of a no-op take, one call after the other?"""

from __future__ import annotations

import statistics
import time

from benchmarks import work
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.peers import Peer


def measure(peer: Peer, size: Size) -> Sample:
    pool = peer.pool(WORKERS)
    taken_s: list[float] = []
    try:
        end = time.perf_counter() + size["limit_s"]
        while len(taken_s) < size["calls"] and (not taken_s or time.perf_counter() < end):
            begin = time.perf_counter()
            pool.apply(work.noop)
            taken_s.append(time.perf_counter() - begin)
    finally:
        pool.terminate()
    return {"apply_us": statistics.median(taken_s) * 1e6}


def judge(results: Results) -> list[Verdict]:
    return [at_most("apply(noop) / mp.Pool", results.ratio("dpool", "mp", "apply_us"), 0.5)]


BENCHMARK = Benchmark(
    name="pool_apply",
    question="how long does Pool.apply of a no-op take, one after the other?",
    metrics=(Metric("apply_us", "apply, median", "µs"),),
    subjects=every_peer("dpool", "mp", "ray"),
    sizes={
        "full": {"calls": 5000, "limit_s": 5},
        "quick": {"calls": 1000, "limit_s": 1},
        "tiny": {"calls": 20, "limit_s": 1},
    },
    judge=judge,
    repeat=5,
    measure=measure,
)
