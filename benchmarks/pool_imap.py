"""How many items a second do `imap_unordered` and `imap` deal with, in chunks of one?

A range, whose items are there, and a generator, which may make each result wait for its next item.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import work
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Verdict, at_least, every_peer
from benchmarks.peers import Peer

_BUDGET_S = 5.0


def measure(peer: Peer, size: Size) -> Sample:
    pool = peer.pool(WORKERS)
    count, rounds = int(size["items"]), int(size["rounds"])
    try:
        return {
            "unordered": _rate(pool.imap_unordered, lambda: range(count), count, rounds),
            "unordered_generator": _rate(pool.imap_unordered, lambda: (i for i in range(count)), count, rounds),
            "ordered": _rate(pool.imap, lambda: range(count), count, rounds),
        }
    finally:
        pool.terminate()


def _rate(method: Callable[..., Any], make: Callable[[], Iterable[int]], count: int, rounds: int) -> float:
    """Items per second: the median of the rounds after the first, or the first where a slow peer gets no other."""
    taken_s: list[float] = []
    while len(taken_s) <= rounds and sum(taken_s) < _BUDGET_S:
        begin = time.perf_counter()
        found = sum(1 for _ in method(work.identity, make()))
        taken_s.append(time.perf_counter() - begin)
        if found != count:
            raise AssertionError(f"{found} results of {count}")
    return count / statistics.median(taken_s[1:] or taken_s)


def judge(results: Results) -> list[Verdict]:
    return [at_least("imap_unordered, chunks of one / mp.Pool", results.ratio("dpool", "mp", "unordered"), 3)]


BENCHMARK = Benchmark(
    name="pool_imap",
    question="how many items a second do imap_unordered and imap deal with, in chunks of one?",
    metrics=(
        Metric("unordered", "imap_unordered, a range", "items/s", less_is_better=False, digits=0),
        Metric("unordered_generator", "imap_unordered, a generator", "items/s", less_is_better=False, digits=0),
        Metric("ordered", "imap, a range", "items/s", less_is_better=False, digits=0),
    ),
    subjects=every_peer("dpool", "mp", "ray"),
    sizes={
        "full": {"items": 20_000, "rounds": 3},
        "quick": {"items": 20_000, "rounds": 1},
        "tiny": {"items": 200, "rounds": 1},
    },
    judge=judge,
    repeat=5,
    measure=measure,
)
