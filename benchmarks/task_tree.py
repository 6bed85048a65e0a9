"""How long does a tree of nested tasks take, each of which submits two and waits for them? What does a large one need?

*127* is a binary tree of seven levels: the first one of a program, for which ray starts its processes, and further
ones, which find them there; then the system idle, two seconds later: its processes (the driver included) and their
private memory. *10,000* is asked of dpool alone, for ray starts a process for every task that waits: how long, and at
the most how many processes and how much private memory. These are looked at from the driver, every 50 ms while the tree
is computed.
"""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType
from typing import Any

from benchmarks import procs, work
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.runtimes import Runtime
from benchmarks.steady import expect

_LOOK_S = 0.05
_LEVELS = 14
_MOST_PROCESSES = WORKERS * _LEVELS + 6
"""One for each level and worker: what going depth-first needs if no task runs its children itself; and
driver, node, zygote, Redis and two that come or go.
"""
_MOST_MB = 200


def measure(runtime: Runtime, size: Size) -> Sample:
    submit = runtime.remote(work.tree)
    taken_s = [_timed(runtime, int(size["nodes"]), submit) for _ in range(int(size["rounds"]) + 1)]
    sample = {"tree_ms": statistics.median(taken_s[1:]) * 1e3, "first_ms": taken_s[0] * 1e3}
    time.sleep(size["settle_s"])
    before = procs.mine()
    sample |= {"left_mb": _private_mb(before), "left_processes": len(before)}
    if runtime.name != "dpool":
        return sample
    with Watch() as watch:
        sample["large_s"] = _timed(runtime, int(size["large"]), submit)
    sample["extra_mb"] = watch.memory_mb - sample["left_mb"]
    return {**sample, "processes": watch.processes, "memory_mb": watch.memory_mb}


def _timed(runtime: Runtime, nodes: int, submit: Any) -> float:
    begin = time.perf_counter()
    expect(runtime.gather([submit(runtime.name, nodes)]), [nodes])
    return time.perf_counter() - begin


class Watch:
    """Looks at all processes of the measurement, in a thread, until it is left: at the most, how many and how large."""

    def __init__(self) -> None:
        self.processes = 0
        self.memory_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Watch:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        pids = procs.mine()
        self.processes = max(self.processes, len(pids))
        self.memory_mb = max(self.memory_mb, _private_mb(pids))


def _private_mb(pids: list[int]) -> float:
    return sum(procs.private_bytes(pid) for pid in pids) / 1e6


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("the first tree of 127 nested tasks / ray", results.ratio("dpool", "ray", "first_ms"), 0.1),
        at_most("further ones / ray", results.ratio("dpool", "ray", "tree_ms"), 0.1),
        at_most("private memory of all processes after them / ray", results.ratio("dpool", "ray", "left_mb"), 0.1),
        at_most("processes for a tree of 10,000", results.median("dpool", "processes"), _MOST_PROCESSES),
        at_most("memory that the tree of 10,000 adds", results.median("dpool", "extra_mb"), _MOST_MB, " MB"),
    ]


BENCHMARK = Benchmark(
    name="task_tree",
    question="how long does a tree of nested tasks take, and what does one of 10,000 need?",
    metrics=(
        Metric("first_ms", "127 nested tasks, first time", "ms"),
        Metric("tree_ms", "127 nested tasks, again", "ms"),
        Metric("left_mb", "private memory of all processes, 2 s later", "MB"),
        Metric("left_processes", "processes, 2 s later", "", digits=0),
        Metric("large_s", "10,000 nested tasks", "s", digits=2),
        Metric("processes", "processes meanwhile, at the most", "", digits=0),
        Metric("memory_mb", "their private memory, at the most", "MB"),
        Metric("extra_mb", "more than before the tree", "MB"),
    ),
    subjects=every_peer("dpool", "ray"),
    sizes={
        "full": {"nodes": 127, "rounds": 3, "settle_s": 2, "large": 10_000},
        "quick": {"nodes": 127, "rounds": 1, "settle_s": 2, "large": 10_000},
        "tiny": {"nodes": 7, "rounds": 1, "settle_s": 0, "large": 31},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    runtimes=True,
)
