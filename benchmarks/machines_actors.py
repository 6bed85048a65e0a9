"""How long does it take to make 1,000 actors on four machines, and to call each once?

Each machine is to have a quarter of them, all at the same time; then all are let go. An actor needs no CPU of the
account, as ray's actors after their creation. The machines are namespaces of this one, with its cores.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.machines import dpool_machines, drive, main, ray_machines, sample
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most


class Counter:
    """An actor."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int) -> int:
        """Count."""
        self.count += number
        return self.count


def driver(subject: str, machines: str, actors: str) -> dict[str, float]:
    """Runs on one of the machines."""
    count = int(machines)
    runtime: Any = importlib.import_module(subject)
    if subject == "ray":
        runtime.init(address="auto", log_to_driver=False, logging_level="ERROR")
    made = runtime.remote(Counter)
    places = [made.options(num_cpus=0, resources={f"h{1 + number}": 0.001}) for number in range(count)]
    runtime.get([place.remote().add.remote(1) for place in places])  # each machine has had one
    begin = time.perf_counter()
    handles = [places[number % count].remote() for number in range(int(actors))]
    values = runtime.get([handle.add.remote(2) for handle in handles])
    taken_s = time.perf_counter() - begin
    if values != [2] * int(actors):
        raise AssertionError("wrong values")
    del handles
    runtime.shutdown()
    return {"all_s": taken_s, "each_ms": 1e3 * taken_s / int(actors)}


def on_dpool(size: Size) -> Any:
    machines = int(size["machines"])
    with dpool_machines(machines, 2) as hosts:
        return drive(hosts[0], "machines_actors", "dpool", str(machines), str(int(size["actors"])))


def on_ray(size: Size) -> Any:
    machines = int(size["machines"])
    with ray_machines(machines, 2) as hosts:
        return drive(hosts[0], "machines_actors", "ray", str(machines), str(int(size["actors"])))


SUBJECTS: dict[str, Callable[[Size], Any]] = {"dpool": on_dpool, "ray": on_ray}


def one(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    return sample("machines_actors", subject, size, launcher)


def judge(results: Results) -> list[Verdict]:
    return [at_most("actors on four machines / ray", results.ratio("dpool", "ray", "all_s"), 0.3)]


BENCHMARK = Benchmark(
    name="machines_actors",
    question="how long does it take to make actors on four machines, and to call each once?",
    metrics=(Metric("all_s", "all of them", "s", digits=2), Metric("each_ms", "one", "ms")),
    subjects=tuple(Subject(name, name) for name in SUBJECTS),
    sizes={
        "full": {"machines": 4, "actors": 1000},
        "quick": {"machines": 4, "actors": 100},
        "tiny": {"machines": 2, "actors": 4},
    },
    hosts=True,
    judge=judge,
    repeat=1,
    sample=one,
    timeout_s=600.0,
)


if __name__ == "__main__":
    main("machines_actors", sys.argv[1:], SUBJECTS, driver)
