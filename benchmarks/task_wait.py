"""How long does a loop take that waits for a thousand tasks and takes them one by one, as they end?

*ready*: all tasks have ended before the loop begins, so that the loop alone is timed. *running*: from the first
submission; the tasks do nothing.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.runtimes import Runtime
from benchmarks.steady import expect


def measure(runtime: Runtime, size: Size) -> Sample:
    count, submit = int(size["tasks"]), runtime.remote(work.noop)
    ready_s, running_s = [], []
    for _ in range(int(size["rounds"]) + 1):
        refs = [submit() for _ in range(count)]
        runtime.gather(refs)
        ready_s.append(_taken(runtime, refs, time.perf_counter()))
        begin = time.perf_counter()
        running_s.append(_taken(runtime, [submit() for _ in range(count)], begin))
    # The first round warms up.
    return {"ready_ms": statistics.median(ready_s[1:]) * 1e3, "running_ms": statistics.median(running_s[1:]) * 1e3}


def _taken(runtime: Runtime, refs: list[Any], begin: float) -> float:
    """Seconds since `begin`, when the last has been taken."""
    count, taken = len(refs), set()
    while refs:
        one, refs = runtime.wait_one(refs)
        taken.add(one)
    end = time.perf_counter()
    expect(len(taken), count)
    return end - begin


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("wait for 1,000 tasks one by one, all ready / ray", results.ratio("dpool", "ray", "ready_ms"), 0.3),
        at_most("the same from their submission / ray", results.ratio("dpool", "ray", "running_ms"), 0.3),
    ]


BENCHMARK = Benchmark(
    name="task_wait",
    question="how long does a loop of `wait` take that takes 1,000 tasks one by one?",
    metrics=(Metric("ready_ms", "all are ready", "ms"), Metric("running_ms", "from their submission", "ms")),
    subjects=every_peer("dpool", "ray"),
    sizes={
        "full": {"tasks": 1000, "rounds": 5},
        "quick": {"tasks": 1000, "rounds": 2},
        "tiny": {"tasks": 20, "rounds": 1},
    },
    judge=judge,
    repeat=5,
    measure=measure,
    runtimes=True,
)
