"""How long from the creation of an actor to the value of its first call?

The runtime is up; each actor is ended before the next is made, which is not timed. `manager` starts a server process
for each object. dask's actor is an object in a worker that is there already, not a process.
"""

from __future__ import annotations

import statistics
import time

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most
from benchmarks.runtimes import Runtime
from benchmarks.steady import expect


def measure(runtime: Runtime, size: Size) -> Sample:
    taken_s = []
    for _ in range(int(size["actors"]) + 1):
        begin = time.perf_counter()
        actor = runtime.actor(work.Counter, "add")
        expect(actor.call(1), 1)
        taken_s.append(time.perf_counter() - begin)
        actor.end()
        time.sleep(size["pause_s"])  # the end of one is not to disturb the next
    return {"create_ms": statistics.median(taken_s[1:]) * 1e3, "first_ms": taken_s[0] * 1e3}


def judge(results: Results) -> list[Verdict]:
    return [at_most("an actor's creation with its first call / ray", results.ratio("dpool", "ray", "create_ms"), 0.1)]


BENCHMARK = Benchmark(
    name="actor_create",
    question="how long does it take to make an actor, until its first call has its value?",
    metrics=(
        Metric("create_ms", "creation with first call, median", "ms"),
        Metric("first_ms", "the same for the first actor of the program", "ms"),
    ),
    subjects=(Subject("dpool", "dpool"), Subject("manager", "mp"), Subject("ray", "ray"), Subject("dask", "dask")),
    sizes={
        "full": {"actors": 10, "pause_s": 0.3},
        "quick": {"actors": 5, "pause_s": 0.2},
        "tiny": {"actors": 1, "pause_s": 0},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    runtimes=True,
)
