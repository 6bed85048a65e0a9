"""How many items a second does `Pool.map` of a no-op deal with, in its default chunks?

The function returns its argument, so that every number travels there and back. A range is what the target is about:
its slices are small, whatever they hold. In a list each number has to be sent.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import work
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Verdict, at_least, every_peer
from benchmarks.peers import Peer


def measure(peer: Peer, size: Size) -> Sample:
    pool = peer.pool(WORKERS)
    count = int(size["items"])
    try:
        return {
            "range": _rate(pool, range(count), int(size["rounds"])),
            "list": _rate(pool, list(range(count)), int(size["rounds"])),
        }
    finally:
        pool.terminate()


def _rate(pool: Any, items: Sequence[int], rounds: int) -> float:
    """Items per second: the median of the rounds after the first."""
    taken_s: list[float] = []
    for _ in range(rounds + 1):
        gc.collect()
        begin = time.perf_counter()
        results = pool.map(work.identity, items)
        taken_s.append(time.perf_counter() - begin)
        if len(results) != len(items) or results[-1] != items[-1]:
            raise AssertionError("map lost something")
        del results
    return len(items) / statistics.median(taken_s[1:])


def judge(results: Results) -> list[Verdict]:
    return [
        at_least("map over a range / mp.Pool", results.ratio("dpool", "mp", "range"), 1),
        at_least("map over a range / ray's Pool", results.ratio("dpool", "ray", "range"), 20),
    ]


BENCHMARK = Benchmark(
    name="pool_map",
    question="how many items a second does Pool.map of a no-op deal with, a million at a time in default chunks?",
    metrics=(
        Metric("range", "of a range", "items/s", less_is_better=False, digits=0),
        Metric("list", "of a list", "items/s", less_is_better=False, digits=0),
    ),
    subjects=every_peer("dpool", "mp", "ray"),
    sizes={
        "full": {"items": 1_000_000, "rounds": 3},
        "quick": {"items": 1_000_000, "rounds": 1},
        "tiny": {"items": 1000, "rounds": 1},
    },
    judge=judge,
    repeat=5,
    measure=measure,
)
