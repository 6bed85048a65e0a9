"""Does a cluster make tasks of one machine dearer? What a local task takes on 1, 2, 4 and 8 machines.

One program on the first machine runs empty tasks there. Counted are the processor time of everything that runs on that
machine (program, node, gateway, workers, control store), the packets that it sends to others meanwhile, and the
bytes that its control store, which is the cluster's, is sent; less what the same time takes when nothing runs
(heartbeats go on at all times), before or after, whichever is less.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks import procs
from benchmarks.launcher import Launcher
from benchmarks.machines import dpool_machines, drive, main, sample
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most

IDLE_S = 2.0


def noop() -> None:
    """The task."""


def driver(tasks: str) -> dict[str, float]:
    """Runs on the first machine."""
    dpool: Any = importlib.import_module("dpool")
    here = dpool.remote(noop).options(resources={"h1": 0.001})
    count = int(tasks)
    dpool.get([here.remote() for _ in range(max(100, count // 10))])
    before = spent(partial(time.sleep, IDLE_S))
    busy = spent(lambda: dpool.get([here.remote() for _ in range(count)]))
    after = spent(partial(time.sleep, IDLE_S))
    dpool.shutdown()
    # What still ends, or begins, in one of the two is no heartbeat: the quieter is what the machine needs at all times.
    cpu_s, packets, stored = (
        of - min(idle) * busy.wall_s for of, *idle in zip(busy[:3], before.rates(), after.rates(), strict=True)
    )
    found = {"packets": max(0.0, packets) / count, "stored": max(0.0, stored) / count}
    return {"cpu_us": cpu_s / count * 1e6, **found}


class Spent(NamedTuple):
    """Seconds of processors, packets, bytes to the control store, and seconds."""

    cpu_s: float
    packets: int
    stored: int
    wall_s: float

    def rates(self) -> tuple[float, float, float]:
        """Per second."""
        return self.cpu_s / self.wall_s, self.packets / self.wall_s, self.stored / self.wall_s


def spent(action: Callable[[], Any]) -> Spent:
    """What it takes; what a process used that ends meanwhile is not counted."""
    cpu_s, packets, said, begin = processors_s(), sent(), told(), time.perf_counter()
    action()
    wall_s, now = time.perf_counter() - begin, processors_s()
    used_s = sum(now_s - cpu_s.get(pid, 0.0) for pid, now_s in now.items() if now_s)
    return Spent(used_s, sent() - packets, told() - said, wall_s)


def processors_s() -> dict[int, float]:
    """What each process of this machine has used so far."""
    return procs.cpu_s(int(name) for name in os.listdir("/proc") if name.isdigit())


def sent() -> int:
    """Packets that have left this machine."""
    with open("/sys/class/net/eth0/statistics/tx_packets", encoding="ascii") as file:
        return int(file.read())


def told() -> int:
    """Bytes that the control store has read."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with open(f"/proc/{name}/comm", encoding="utf-8") as comm:
            if not comm.read().startswith(("redis", "valkey")):
                continue
        with open(f"/proc/{name}/io", encoding="ascii") as file:
            total += int(file.readline().split()[1])
    return total


def on_machines(count: int, size: Size) -> Any:
    with dpool_machines(count, 2) as hosts:
        return drive(hosts[0], "machines_flat", str(int(size["tasks"])))


SUBJECTS: dict[str, Callable[[Size], Any]] = {f"{n} machines": partial(on_machines, n) for n in (1, 2, 4, 8)}


def one(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    return sample("machines_flat", subject, size, launcher)


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("a local task's processor time, 8 / 1", results.ratio("8 machines", "1 machines", "cpu_us"), 1.1),
        at_most("packets to others per local task", results.median("8 machines", "packets"), 0.001),
        at_most("bytes to the control store per local task", results.median("8 machines", "stored"), 1.0),
    ]


BENCHMARK = Benchmark(
    name="machines_flat",
    question="does a cluster make tasks of one machine dearer?",
    metrics=(
        Metric("cpu_us", "processor time per task", "µs", digits=2),
        Metric("packets", "packets to others per task", "", digits=4),
        Metric("stored", "to the control store per task", "bytes", digits=3),
    ),
    subjects=tuple(Subject(name, "dpool") for name in SUBJECTS),
    sizes={"full": {"tasks": 200_000}, "quick": {"tasks": 50_000}, "tiny": {"tasks": 2000}},
    hosts=True,
    judge=judge,
    repeat=3,
    sample=one,
    reference="1 machines",
    timeout_s=600.0,
)


if __name__ == "__main__":
    main("machines_flat", sys.argv[1:], SUBJECTS, driver)
