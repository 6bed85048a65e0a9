"""How long does a call of an actor take, one after the other, each waiting for its value?

The method adds one to a number and returns it. `manager` is an object in a server process of `multiprocessing.Manager`,
called through its proxy; dask's actor lives in one of the workers.
"""

from __future__ import annotations

import statistics
import time

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most
from benchmarks.runtimes import Runtime
from benchmarks.steady import expect


def measure(runtime: Runtime, size: Size) -> Sample:
    actor = runtime.actor(work.Counter, "add")
    calls, limit_s = int(size["calls"]), size["limit_s"]
    for number in range(int(size["warm_ups"])):
        expect(actor.call(1), number + 1)
    taken_s: list[float] = []
    end = time.perf_counter() + limit_s
    while len(taken_s) < calls and (not taken_s or time.perf_counter() < end):
        begin = time.perf_counter()
        actor.call(1)
        taken_s.append(time.perf_counter() - begin)
    expect(actor.call(1), int(size["warm_ups"]) + len(taken_s) + 1)
    actor.end()
    return {"call_us": statistics.median(taken_s) * 1e6, "mean_us": statistics.fmean(taken_s) * 1e6}


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("an actor's call / ray", results.ratio("dpool", "ray", "call_us"), 0.15),
        at_most("an actor's call / a Manager's proxy", results.ratio("dpool", "manager", "call_us"), 1.0),
    ]


BENCHMARK = Benchmark(
    name="actor_call",
    question="how long does a call of an actor take, one after the other?",
    metrics=(Metric("call_us", "call, median", "µs"), Metric("mean_us", "call, mean", "µs")),
    subjects=(Subject("dpool", "dpool"), Subject("manager", "mp"), Subject("ray", "ray"), Subject("dask", "dask")),
    sizes={
        "full": {"warm_ups": 500, "calls": 10_000, "limit_s": 3},
        "quick": {"warm_ups": 100, "calls": 2000, "limit_s": 1},
        "tiny": {"warm_ups": 1, "calls": 20, "limit_s": 1},
    },
    judge=judge,
    repeat=5,
    measure=measure,
    runtimes=True,
)
