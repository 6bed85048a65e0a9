"""How many steps of a simulation a second, where the rollouts are of unequal length? Two workers.

The workload is the Ray paper's (OSDI 2018, section 5.3, table 4): rollouts of gymnasium's `Pendulum-v1` under a fixed
policy, each of a random number of steps. dpool has all of them submitted and takes them one by one as they end
(`dpool.wait`); its peers go batch by batch, one rollout for each worker, and wait for the longest:

- *mpi* is mpi4py with OpenMPI, bulk-synchronous: two ranks, each runs its rollout, then all exchange what they have
  (`allgather`). Nothing is submitted, and nobody is told what to do.
- *ppe* is `ProcessPoolExecutor`: a batch is submitted, its results are fetched, then the next one.

*ideal* is what taking them as they end could gain at the most: the steps of the batches' longest rollouts, over those
of the busier of two workers that always take the next rollout at once. Every worker has run a rollout before.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_least
from benchmarks.steady import expect

_MPIRUN = ("mpirun", "-n", str(WORKERS), "--oversubscribe", "--allow-run-as-root")
_SEED = 20
_SHORTEST = 10

Rollout = tuple[int, int]
"""Its seed, and how many steps it has."""

_environments: dict[str, Any] = {}


def rollout(seed: int, steps: int) -> tuple[int, float]:
    """Simulate; returns the number of steps and the sum of their rewards. A process makes its environment once."""
    numpy: Any = importlib.import_module("numpy")
    environment = _environment()
    (cosine, sine, speed), _ = environment.reset(seed=seed)
    total = 0.0
    for _ in range(steps):
        torque = -2.0 * sine - 0.5 * speed * cosine
        (cosine, sine, speed), reward, *_ = environment.step(numpy.array([torque], numpy.float32))
        total += float(reward)
    return steps, total


def _environment() -> Any:
    if "pendulum" not in _environments:
        gymnasium: Any = importlib.import_module("gymnasium")
        _environments["pendulum"] = gymnasium.make("Pendulum-v1", max_episode_steps=1 << 30)
    return _environments["pendulum"]


def workload(size: Size) -> list[Rollout]:
    """The same for everybody: lengths uniformly distributed between 10 and the longest."""
    chosen = random.Random(_SEED)
    return [(number, chosen.randint(_SHORTEST, int(size["longest"]))) for number in range(int(size["rollouts"]))]


def ideal(work: Sequence[Rollout]) -> float:
    """See the module."""
    batches = sum(max(steps for _, steps in work[at : at + WORKERS]) for at in range(0, len(work), WORKERS))
    busy = [0] * WORKERS
    for _, steps in work:
        busy[busy.index(min(busy))] += steps
    return batches / max(busy)


# -- the subjects, each in processes of its own: steps a second


def dpool_as_they_end(work: Sequence[Rollout]) -> float:
    dpool: Any = importlib.import_module("dpool")
    dpool.init(num_cpus=WORKERS)
    task = dpool.remote(rollout)
    dpool.get([task.remote(*one) for one in work[: 10 * WORKERS]])
    begin = time.perf_counter()
    refs, done = [task.remote(*one) for one in work], []
    while refs:
        (ready,), refs = dpool.wait(refs)
        done.append(dpool.get(ready))
    rate = _rate(work, done, begin)
    dpool.shutdown()
    return rate


def ppe_in_batches(work: Sequence[Rollout]) -> float:
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork")) as pool:
        for future in [pool.submit(rollout, *one) for one in work[: 10 * WORKERS]]:
            future.result()
        begin, done = time.perf_counter(), []
        for at in range(0, len(work), WORKERS):
            futures = [pool.submit(rollout, *one) for one in work[at : at + WORKERS]]
            done += [future.result() for future in futures]
        return _rate(work, done, begin)


def mpi_in_batches(work: Sequence[Rollout]) -> float:
    """Starts the ranks, and waits for them."""
    program = [*_MPIRUN, sys.executable, "-m", "benchmarks.pendulum", "rank", json.dumps(work)]
    ended = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    return float(ended.stdout)


def _rank(work: Sequence[Rollout]) -> None:
    """One of the processes that mpirun starts; the first prints the rate."""
    everybody: Any = importlib.import_module("mpi4py.MPI").COMM_WORLD
    rank, ranks = everybody.Get_rank(), everybody.Get_size()
    for one in work[rank : 10 * WORKERS : ranks]:
        rollout(*one)
    everybody.Barrier()
    begin, done = time.perf_counter(), []
    for at in range(0, len(work), ranks):
        mine = work[at + rank : at + rank + 1]
        done += [result for result in everybody.allgather(rollout(*mine[0]) if mine else None) if result is not None]
    rate = _rate(work, done, begin)
    if rank == 0:
        print(rate)


def _rate(work: Sequence[Rollout], done: Sequence[tuple[int, float]], begin: float) -> float:
    taken_s = time.perf_counter() - begin
    expect(sorted(steps for steps, _ in done), sorted(steps for _, steps in work))
    return sum(steps for steps, _ in done) / taken_s


SUBJECTS: dict[str, Callable[[Sequence[Rollout]], float]] = {
    "dpool": dpool_as_they_end,
    "mpi": mpi_in_batches,
    "ppe": ppe_in_batches,
}


def main(arguments: Sequence[str]) -> None:
    subject, work, *file = arguments
    if subject == "rank":
        _rank(json.loads(work))
    else:
        Path(file[0]).write_text(json.dumps(SUBJECTS[subject](json.loads(work))))


def sample(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    work = workload(size)
    rate = json.loads(launcher.run(["-m", "benchmarks.pendulum", subject.name, json.dumps(work)]).result)
    return {"steps_per_s": rate, "ideal": ideal(work)}


def judge(results: Results) -> list[Verdict]:
    return [
        at_least("steps of Pendulum / mpi4py in batches", results.ratio("dpool", "mpi", "steps_per_s"), 1.2),
        at_least("the same / ProcessPoolExecutor in batches", results.ratio("dpool", "ppe", "steps_per_s"), 1.2),
    ]


BENCHMARK = Benchmark(
    name="pendulum",
    question="how many steps of a simulation a second, with rollouts of unequal length and two workers?",
    metrics=(
        Metric("steps_per_s", "steps", "/s", less_is_better=False, digits=0),
        Metric("ideal", "as they end / in batches, at the most", "×", less_is_better=False, digits=2),
    ),
    subjects=tuple(Subject(name, name) for name in SUBJECTS),
    sizes={
        "full": {"rollouts": 600, "longest": 1000},
        "quick": {"rollouts": 60, "longest": 1000},
        "tiny": {"rollouts": 4, "longest": 20},
    },
    judge=judge,
    repeat=5,
    sample=sample,
    needs=("gymnasium", "numpy"),
)


if __name__ == "__main__":
    main(sys.argv[1:])
