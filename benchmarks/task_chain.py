"""How long does a chain of a thousand tasks take, each with the result of the one before as its argument?

All are submitted at once; nobody but the tasks sees the results in between.
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
    length, submit = int(size["tasks"]), runtime.remote(work.increment)
    taken_s = []
    for _ in range(int(size["rounds"]) + 1):
        begin = time.perf_counter()
        last: Any = 0
        for _ in range(length):
            last = submit(last)
        expect(runtime.gather([last]), [length])
        taken_s.append(time.perf_counter() - begin)
    return {"chain_ms": statistics.median(taken_s[1:]) * 1e3}  # the first round warms up


def judge(results: Results) -> list[Verdict]:
    return [at_most("a chain of 1,000 dependent tasks / ray", results.ratio("dpool", "ray", "chain_ms"), 0.1)]


BENCHMARK = Benchmark(
    name="task_chain",
    question="how long does a chain of 1,000 dependent tasks take?",
    metrics=(Metric("chain_ms", "the chain", "ms"),),
    subjects=every_peer("dpool", "ray", "dask"),
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
