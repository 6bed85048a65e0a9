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

MACHINES = 2
MBIT = 1000.0
PER_MACHINE = 4
"""Objects of each size on each machine."""


def make(size: int) -> Any:
    """An array of so many bytes."""
    numpy: Any = importlib.import_module("numpy")
    return numpy.ones(size // 8)


def look(array: Any) -> float:
    """Depends on it."""
    return float(array[0])


def driver(subject: str, tasks: str, *sizes: str) -> dict[str, float]:
    """Runs on one of the machines: milliseconds per task for each size of object."""
    runtime: Any = importlib.import_module(subject)
    if subject == "ray":
        runtime.init(address="auto", log_to_driver=False, logging_level="ERROR")
    maker, looker = runtime.remote(make), runtime.remote(look)
    count, found = int(tasks), {}
    for size in map(int, sizes):
        objects = [
            maker.options(resources={f"h{1 + number % MACHINES}": 1}).remote(size)
            for number in range(MACHINES * PER_MACHINE)
        ]
        runtime.wait(objects, num_returns=len(objects), timeout=120, fetch_local=False)
        begin = time.perf_counter()
        values = runtime.get([looker.remote(objects[number % len(objects)]) for number in range(count)])
        found[f"task_ms_{size}"] = 1e3 * (time.perf_counter() - begin) / count
        if values != [1.0] * count:
            raise AssertionError("wrong values")
        del objects
    runtime.shutdown()
    return found


def _words(size: Size) -> list[str]:
    sizes = [str(int(number)) for name, number in size.items() if name.startswith("bytes_")]
    return [str(int(size["tasks"])), *sizes]


def aware(size: Size) -> Any:
    with dpool_machines(MACHINES, 2, MBIT) as hosts:
        return drive(hosts[0], "machines_locality", "dpool", *_words(size))


def unaware(size: Size) -> Any:
    with dpool_machines(MACHINES, 2, MBIT, DPOOL_LOCALITY="0") as hosts:
        return drive(hosts[0], "machines_locality", "dpool", *_words(size))


def on_ray(size: Size) -> Any:
    with ray_machines(MACHINES, 2, MBIT) as hosts:
        return drive(hosts[0], "machines_locality", "ray", *_words(size))


SUBJECTS: dict[str, Callable[[Size], Any]] = {"dpool": aware, "dpool unaware": unaware, "ray": on_ray}


def one(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    return sample("machines_locality", subject, size, launcher)


def judge(results: Results) -> list[Verdict]:
    return [
        at_least(f"unaware / aware, {number / 1e6:g} MB", results.ratio("dpool unaware", "dpool", key), limit)
        for number, limit in ((10_000_000, 3.0), (100_000_000, 10.0))
        if results.values("dpool", key := f"task_ms_{number}")
    ]


BENCHMARK = Benchmark(
    name="machines_locality",
    question="what does it bring that a task goes where its data is?",
    metrics=tuple(
        Metric(f"task_ms_{number}", f"a task with {number / 1e6:g} MB", "ms", digits=2)
        for number in (100_000, 1_000_000, 10_000_000, 100_000_000)
    ),
    subjects=(Subject("dpool", "dpool"), Subject("dpool unaware", "dpool"), Subject("ray", "ray")),
    sizes={
        "full": {
            "tasks": 1000,
            "bytes_1": 100_000,
            "bytes_2": 1_000_000,
            "bytes_3": 10_000_000,
            "bytes_4": 100_000_000,
        },
        "quick": {"tasks": 200, "bytes_1": 100_000, "bytes_3": 10_000_000},
        "tiny": {"tasks": 8, "bytes_1": 100_000},
    },
    judge=judge,
    repeat=1,
    sample=one,
    timeout_s=600.0,
    needs=("numpy",),
)


if __name__ == "__main__":
    main("machines_locality", sys.argv[1:], SUBJECTS, driver)
