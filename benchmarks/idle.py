"""What does an idle pool cost: memory of a worker, processor time of everything?

Every worker has run tasks; then nobody does anything. *Worker* is the median over the workers of the memory that only
that process maps (Private_Clean + Private_Dirty). *Helpers* is the same, summed over what is neither driver nor worker:
trackers and daemons, dpool's node, zygote and Redis. *All* is the sum over every process, the driver included.
*Processor* is the time that driver, workers and helpers used, in percent of one core.
"""

from __future__ import annotations

import os
import statistics
import time

from benchmarks import procs
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.peers import Peer


def measure(peer: Peer, size: Size) -> Sample:
    workers = peer.worker_pids()
    time.sleep(size["settle_s"])
    everyone = sorted({*procs.mine(), *workers})
    helpers = set(everyone) - set(workers) - {os.getpid()}
    memory = {pid: procs.private_bytes(pid) / 1e6 for pid in everyone}
    before, begin = procs.cpu_s(everyone), time.perf_counter()
    time.sleep(size["watch_s"])
    after, watched_s = procs.cpu_s(everyone), time.perf_counter() - begin
    newcomers = procs.cpu_s(set(procs.mine()) - set(everyone))
    # One that has ended by now reads as 0; what it used after `before` is not known.
    used_s = sum(max(0.0, after[pid] - before[pid]) for pid in everyone) + sum(newcomers.values())
    return {
        "worker_mb": statistics.median(memory[pid] for pid in workers),
        "helpers_mb": sum(memory[pid] for pid in helpers),
        "all_mb": sum(memory.values()),
        "cpu_percent": 100 * used_s / watched_s,
        "processes": len(everyone),
    }


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("private memory of an idle worker", results.median("dpool", "worker_mb"), 15, " MB"),
        at_most("processor time of an idle executor", results.median("dpool", "cpu_percent"), 0.5, " %"),
        at_most("private memory of all processes / ray", results.ratio("dpool", "ray", "all_mb"), 0.1),
    ]


BENCHMARK = Benchmark(
    name="idle",
    question="what does an idle pool of two workers cost?",
    metrics=(
        Metric("worker_mb", "private memory of a worker", "MB"),
        Metric("helpers_mb", "private memory of all helpers", "MB"),
        Metric("all_mb", "private memory of all processes", "MB"),
        Metric("cpu_percent", "processor, all processes", "%", digits=3),
        Metric("processes", "processes, the driver included", "", digits=0),
    ),
    subjects=every_peer(),
    sizes={
        "full": {"settle_s": 2, "watch_s": 10},
        "quick": {"settle_s": 0.5, "watch_s": 1.5},
        "tiny": {"settle_s": 0, "watch_s": 0.1},
    },
    judge=judge,
    repeat=3,
    measure=measure,
)
