"""What does it bring that a task goes where its data is? 1,000 tasks on two machines, each with one large argument.

Half of the objects lie on either machine. *aware* is the placement as it is; *unaware* has it look at free CPUs alone
(`DPOOL_LOCALITY=0`), as in the Ray paper's figure 8a, where locality was worth one to two orders of magnitude with
objects of 10 to 100 MB. The link has 1 Gbit/s; the task looks at one number. All tasks are submitted at one machine.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.machines import dpool_machines, drive, main, ray_machines, sample
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_least
from tests.cluster.hosts import Host

MACHINES = 2
MBIT = 1000.0
SIZES = {"100kb": "100 KB", "1mb": "1 MB", "10mb": "10 MB", "100mb": "100 MB"}
PER_MACHINE, MOST_PER_MACHINE = 4, 100
"""Objects of each size on each machine: at least, at most, …"""
BYTES_PER_MACHINE = 400_000_000
"""… and else as many as make so much."""


def make(size: int) -> Any:
    """An array of so many bytes."""
    numpy: Any = importlib.import_module("numpy")
    return numpy.ones(size // 8)


def look(array: Any) -> float:
    """Depends on it."""
    return float(array[0])


def driver(subject: str, tasks: str, *sizes: str) -> dict[str, float]:
    """Runs on one of the machines: milliseconds per task for each size of object, in bytes."""
    runtime: Any = importlib.import_module(subject)
    if subject == "ray":
        runtime.init(address="auto", log_to_driver=False, logging_level="ERROR")
    maker, looker = runtime.remote(make), runtime.remote(look)
    count, found = int(tasks), {}
    for size in map(int, sizes):
        each = max(PER_MACHINE, min(MOST_PER_MACHINE, BYTES_PER_MACHINE // size, count // (2 * MACHINES)))
        objects = [
            maker.options(resources={f"h{1 + number % MACHINES}": 1}).remote(size) for number in range(MACHINES * each)
        ]
        runtime.wait(objects, num_returns=len(objects), timeout=120, fetch_local=False)
        begin = time.perf_counter()
        values = runtime.get([looker.remote(objects[number % len(objects)]) for number in range(count)])
        found[str(size)] = 1e3 * (time.perf_counter() - begin) / count
        if values != [1.0] * count:
            raise AssertionError("wrong values")
        del objects
    runtime.shutdown()
    return found


def _ask(hosts: list[Host], subject: str, size: Size) -> dict[str, float]:
    sizes = {f"task_ms_{name}": str(int(size[name])) for name in SIZES}
    found = drive(hosts[0], "machines_locality", subject, str(int(size["tasks"])), *sizes.values())
    return {metric: found[number] for metric, number in sizes.items()}


def aware(size: Size) -> Any:
    with dpool_machines(MACHINES, 2, MBIT) as hosts:
        return _ask(hosts, "dpool", size)


def unaware(size: Size) -> Any:
    with dpool_machines(MACHINES, 2, MBIT, DPOOL_LOCALITY="0") as hosts:
        return _ask(hosts, "dpool", size)


def on_ray(size: Size) -> Any:
    with ray_machines(MACHINES, 2, MBIT) as hosts:
        return _ask(hosts, "ray", size)


SUBJECTS: dict[str, Callable[[Size], Any]] = {"dpool": aware, "dpool unaware": unaware, "ray": on_ray}


def one(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    return sample("machines_locality", subject, size, launcher)


def judge(results: Results) -> list[Verdict]:
    return [
        at_least("unaware / aware, 10 MB", results.ratio("dpool unaware", "dpool", "task_ms_10mb"), 3.0),
        at_least("unaware / aware, 100 MB", results.ratio("dpool unaware", "dpool", "task_ms_100mb"), 10.0),
    ]


BENCHMARK = Benchmark(
    name="machines_locality",
    question="what does it bring that a task goes where its data is?",
    metrics=tuple(Metric(f"task_ms_{name}", f"a task with {title}", "ms", digits=2) for name, title in SIZES.items()),
    subjects=(Subject("dpool", "dpool"), Subject("dpool unaware", "dpool"), Subject("ray", "ray")),
    sizes={
        "full": {"tasks": 1000, "100kb": 100_000, "1mb": 1_000_000, "10mb": 10_000_000, "100mb": 100_000_000},
        "quick": {"tasks": 200, "100kb": 100_000, "1mb": 1_000_000, "10mb": 10_000_000, "100mb": 30_000_000},
        "tiny": {"tasks": 8, "100kb": 8_000, "1mb": 100_000, "10mb": 200_000, "100mb": 2_000_000},
    },
    hosts=True,
    judge=judge,
    repeat=1,
    sample=one,
    timeout_s=600.0,
    needs=("numpy",),
)


if __name__ == "__main__":
    main("machines_locality", sys.argv[1:], SUBJECTS, driver)
