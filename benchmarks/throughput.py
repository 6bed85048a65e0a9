"""How many no-op tasks a second, when 10,000 are submitted at once and all their results are taken?

Each task is a submission of its own. `map` is shown beside it: with chunks of one item, and with chunks of 100, where
one message carries 100 calls and the peers differ far less.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_least, every_peer
from benchmarks.peers import Peer

_CHUNK = 100
_BUDGET_S = 5.0


def measure(peer: Peer, size: Size) -> Sample:
    tasks, rounds = int(size["tasks"]), int(size["rounds"])
    nothing: list[tuple[()]] = [()] * tasks
    items = range(tasks)
    sample = {"submit": _rate(tasks, rounds, lambda: peer.submit_many(work.noop, nothing))}
    if peer.maps:
        sample["map_1"] = _rate(tasks, rounds, lambda: peer.map(work.identity, items, 1))
        sample["map_100"] = _rate(tasks, rounds, lambda: peer.map(work.identity, items, _CHUNK))
    return sample


def _rate(tasks: int, rounds: int, run: Callable[[], list[object]]) -> float:
    """Tasks per second: the median of the rounds after the first, or the first where a slow peer gets no other."""
    taken_s: list[float] = []
    while len(taken_s) <= rounds and sum(taken_s) < _BUDGET_S:
        gc.collect()
        begin = time.perf_counter()
        results = run()
        taken_s.append(time.perf_counter() - begin)
        if len(results) != tasks:
            raise AssertionError(f"{len(results)} results of {tasks} tasks")
    return tasks / statistics.median(taken_s[1:] or taken_s)


def judge(results: Results) -> list[Verdict]:
    return [
        at_least("no-op submits / mp.Pool apply_async", results.ratio("dpool", "mp", "submit"), 4),
        at_least("no-op submits / ProcessPoolExecutor", results.ratio("dpool", "ppe", "submit"), 10),
    ]


BENCHMARK = Benchmark(
    name="throughput",
    question="how many no-op tasks a second, submitted one by one (mp: apply_async), results included?",
    metrics=(
        Metric("submit", "one submission per task", "tasks/s", less_is_better=False, digits=0),
        Metric("map_1", "map, chunks of 1", "tasks/s", less_is_better=False, digits=0),
        Metric("map_100", "map, chunks of 100", "tasks/s", less_is_better=False, digits=0),
    ),
    subjects=every_peer(),
    sizes={
        "full": {"tasks": 10_000, "rounds": 3},
        "quick": {"tasks": 10_000, "rounds": 1},
        "tiny": {"tasks": 200, "rounds": 1},
    },
    judge=judge,
    repeat=5,
    measure=measure,
)
