"""How many calls of an actor a second, submitted without waiting for one another?

All calls are submitted, then all values are fetched; both count. The values must be in the order of the calls, but for
dask, which does not promise that.
"""

from __future__ import annotations

import statistics
import time

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_least, every_peer
from benchmarks.runtimes import Runtime
from benchmarks.steady import expect


def measure(runtime: Runtime, size: Size) -> Sample:
    actor = runtime.actor(work.Counter, "add")
    calls = min(int(size["calls"]), runtime.most_pipelined)
    seen, rates = 0, []
    for _ in range(int(size["rounds"]) + 1):
        begin = time.perf_counter()
        values = runtime.gather([actor.submit(1) for _ in range(calls)])
        rates.append(calls / (time.perf_counter() - begin))
        # Threads run what dask's actors are asked for, in no certain order.
        expect(sorted(values) if runtime.name == "dask" else values, list(range(seen + 1, seen + calls + 1)))
        seen += calls
    actor.end()
    return {"calls_per_s": statistics.median(rates[1:])}  # the first round warms up


def judge(results: Results) -> list[Verdict]:
    return [at_least("pipelined calls of an actor / ray", results.ratio("dpool", "ray", "calls_per_s"), 20)]


BENCHMARK = Benchmark(
    name="actor_pipeline",
    question="how many pipelined calls of an actor a second?",
    metrics=(Metric("calls_per_s", "calls", "/s", less_is_better=False, digits=0),),
    subjects=every_peer("dpool", "ray", "dask"),
    sizes={
        "full": {"calls": 10_000, "rounds": 3},
        "quick": {"calls": 3000, "rounds": 3},
        "tiny": {"calls": 50, "rounds": 1},
    },
    judge=judge,
    repeat=5,
    measure=measure,
    runtimes=True,
)
