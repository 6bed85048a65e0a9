"""How long does a ring allreduce over four machines take, on links of 1 Gbit/s, against OpenMPI's?

dpool's is the program of `examples/ring_allreduce.py`, with an actor on each machine; mpi4py's is `Allreduce`, over
TCP. As in the Ray paper's figure 12b, the same ring is also run with a delay of some milliseconds before each of its
calls, as a slower scheduler would cause: the *late* rows.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.machines import dpool_machines, drive, main, mpirun, plain_machines, sample
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most

MBIT = 1000.0


def driver(machines: str, rounds: str, late_ms: str, *sizes: str) -> dict[str, float]:
    """Runs on one of the machines: milliseconds for an array of each size."""
    ranks = int(machines)
    dpool: Any = importlib.import_module("dpool")
    example: Any = importlib.import_module("examples.ring_allreduce")
    numpy: Any = importlib.import_module("numpy")
    delay_s = float(late_ms) / 1e3

    class Late(example.Rank):  # type: ignore[misc]
        async def exchange(self, right: Any, chunk: Any) -> Any:
            if delay_s:
                await asyncio.sleep(delay_s)
            return await super().exchange(right, chunk)

    made, found = dpool.remote(Late), {}
    for size in sizes:
        numbers = int(size) // 4
        ring = [made.options(resources={f"h{1 + rank}": 1}).remote(rank, numbers, "float32") for rank in range(ranks)]
        dpool.get([actor.result.submit() for actor in ring])
        taken_s = []
        for _ in range(int(rounds) + 1):
            begin = time.perf_counter()
            dpool.get([actor.allreduce.submit(ring[(rank + 1) % ranks], ranks) for rank, actor in enumerate(ring)])
            taken_s.append(time.perf_counter() - begin)
        array, _ = dpool.get(ring[0].result.submit())
        expected = numpy.sum([example.initial(rank, numbers, "float32") for rank in range(ranks)], axis=0)
        grown = ranks ** int(rounds)
        if not numpy.allclose(array, expected * grown, rtol=1e-3, atol=1e-2 * grown):
            raise AssertionError("wrong sums")
        found[size] = 1e3 * statistics.median(taken_s[1:])
    dpool.shutdown()
    return found


def rank(size: str, rounds: str) -> None:
    """One of the processes that mpirun starts; the first prints what it took."""
    numpy: Any = importlib.import_module("numpy")
    mpi: Any = importlib.import_module("mpi4py.MPI")
    everybody = mpi.COMM_WORLD
    mine = numpy.ones(int(size) // 4, numpy.float32)
    total = numpy.empty_like(mine)
    taken_s = []
    for _ in range(int(rounds) + 1):
        everybody.Barrier()
        begin = time.perf_counter()
        everybody.Allreduce(mine, total, op=mpi.SUM)
        everybody.Barrier()
        taken_s.append(time.perf_counter() - begin)
    if total[0] != everybody.Get_size():
        raise AssertionError("wrong sums")
    if everybody.Get_rank() == 0:
        print(json.dumps({"ms": 1e3 * statistics.median(taken_s[1:])}))


def _sizes(size: Size) -> dict[str, str]:
    """Metric → bytes."""
    return {f"ms_{name}": str(int(size[name])) for name in ("medium", "large")}


def on_dpool(late_ms: float, size: Size) -> dict[str, float]:
    sizes, machines = _sizes(size), int(size["machines"])
    words = str(machines), str(int(size["rounds"])), f"{late_ms:g}", *sizes.values()
    with dpool_machines(machines, 2, MBIT) as hosts:
        found = drive(hosts[0], "machines_allreduce", *words)
    return {metric: found[number] for metric, number in sizes.items()}


def on_mpi(size: Size) -> dict[str, float]:
    with plain_machines(int(size["machines"]), MBIT) as hosts:
        return {
            metric: mpirun(hosts, "machines_allreduce", number, str(int(size["rounds"])))["ms"]
            for metric, number in _sizes(size).items()
        }


SUBJECTS: dict[str, Callable[[Size], Any]] = {
    "dpool": partial(on_dpool, 0.0),
    "mpi": on_mpi,
    "dpool late 1 ms": partial(on_dpool, 1.0),
    "dpool late 5 ms": partial(on_dpool, 5.0),
    "dpool late 10 ms": partial(on_dpool, 10.0),
}


def one(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    return sample("machines_allreduce", subject, size, launcher)


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("ring allreduce of 100 MB / OpenMPI's", results.ratio("dpool", "mpi", "ms_large"), 1.5),
        at_most("ring allreduce of 10 MB / OpenMPI's", results.ratio("dpool", "mpi", "ms_medium"), 2.0),
    ]


BENCHMARK = Benchmark(
    name="machines_allreduce",
    question="how long does a ring allreduce over four machines take?",
    metrics=(Metric("ms_medium", "10 MB", "ms"), Metric("ms_large", "100 MB", "ms")),
    subjects=tuple(Subject(name, name.split()[0]) for name in SUBJECTS),
    sizes={
        "full": {"machines": 4, "rounds": 3, "medium": 10_000_000, "large": 100_000_000},
        "quick": {"machines": 4, "rounds": 2, "medium": 10_000_000, "large": 20_000_000},
        "tiny": {"machines": 2, "rounds": 1, "medium": 10_000, "large": 100_000},
    },
    hosts=True,
    judge=judge,
    repeat=1,
    sample=one,
    timeout_s=600.0,
    needs=("numpy",),
)


if __name__ == "__main__":
    main("machines_allreduce", sys.argv[1:], SUBJECTS, driver, rank)
