"""Does a cluster make tasks of one machine dearer? Processor time per local task on 1, 2 and 4 machines, and packets.

One program on the first machine runs empty tasks there. Counted are the processor time of everything that runs on that
machine (program, node, gateway, workers, control store), and the packets that it sends to others meanwhile; less what
the same time takes when nothing runs (heartbeats go on at all times).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.machines import dpool_machines, drive, main, sample
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most

IDLE_S = 2.0
TICKS = os.sysconf("SC_CLK_TCK")


def noop() -> None:
    """The task."""


def driver(tasks: str) -> dict[str, float]:
    """Runs on the first machine."""
    dpool: Any = importlib.import_module("dpool")
    here = dpool.remote(noop).options(resources={"h1": 0.001})
    count = int(tasks)
    dpool.get([here.remote() for _ in range(max(100, count // 10))])
    idle = spent(partial(time.sleep, IDLE_S))
    busy = spent(lambda: dpool.get([here.remote() for _ in range(count)]))
    dpool.shutdown()
    cpu_s, packets = (of - idle_of / idle[2] * busy[2] for of, idle_of in zip(busy[:2], idle[:2], strict=True))
    return {"cpu_us": cpu_s / count * 1e6, "packets": max(0.0, packets) / count}


def spent(action: Callable[[], Any]) -> tuple[float, float, float]:
    """Seconds of processors, packets and seconds that it takes."""
    cpu_s, packets, begin = processor_s(), sent(), time.perf_counter()
    action()
    return processor_s() - cpu_s, sent() - packets, time.perf_counter() - begin


def processor_s() -> float:
    """What all processes of this machine have used so far; those that have ended are not counted."""
    ticks = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def sent() -> int:
    """Packets that have left this machine."""
    with open("/sys/class/net/eth0/statistics/tx_packets", encoding="ascii") as file:
        return int(file.read())


def on_machines(count: int, size: Size) -> Any:
    with dpool_machines(count, 2) as hosts:
        return drive(hosts[0], "machines_flat", str(int(size["tasks"])))


SUBJECTS: dict[str, Callable[[Size], Any]] = {f"{n} machines": partial(on_machines, n) for n in (1, 2, 4)}


def one(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    return sample("machines_flat", subject, size, launcher)


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("a local task's processor time, 4 / 1", results.ratio("4 machines", "1 machines", "cpu_us"), 1.1),
        at_most("packets to others per local task", results.median("4 machines", "packets"), 0.001),
    ]


BENCHMARK = Benchmark(
    name="machines_flat",
    question="does a cluster make tasks of one machine dearer?",
    metrics=(
        Metric("cpu_us", "processor time per task", "µs", digits=2),
        Metric("packets", "packets to others per task", "", digits=4),
    ),
    subjects=tuple(Subject(name, "dpool") for name in SUBJECTS),
    sizes={"full": {"tasks": 200_000}, "quick": {"tasks": 50_000}, "tiny": {"tasks": 200}},
    hosts=True,
    judge=judge,
    repeat=3,
    sample=one,
    reference="1 machines",
    timeout_s=600.0,
)


if __name__ == "__main__":
    main("machines_flat", sys.argv[1:], SUBJECTS, driver)
