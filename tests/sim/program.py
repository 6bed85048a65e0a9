"""What a simulated program does: tasks with their needs, durations and misfortunes, drawn by chance."""

from __future__ import annotations

from itertools import count
from random import Random

from dpool._core.logic.resources import Shape, shape

SHAPES = (shape(), shape(num_cpus=1), shape(num_cpus=0.5), shape(num_cpus=2), shape(num_gpus=0.5), shape(num_gpus=1))
RARE_SHAPES = (shape(num_cpus=1, memory=60), shape(num_cpus=1, tape=1), shape(num_gpus=2), shape(num_cpus=99))

VALUE = "value"
RAISED = "raised"
CRASHED = "crashed"
CANCELLED = "cancelled"
FAILED = "failed"
INFEASIBLE = "infeasible"


class SimTask:
    """One task.

    Attributes:
        number: unique in the whole run.
        needs: tasks whose values it takes as arguments.
        needed_by: tasks of its program that need it.
        crashes: how many of its attempts kill their worker half way.
        blocks: it waits for something in the middle, without its CPUs.
        children: a program that it submits and waits for.
        big: its output goes into the object store.
        cancel_at_s: when it is cancelled, if it has not ended by then. `force`: even if it runs.
        cancelling: its worker is to be killed for it.
        retries: how often it may be run again after a crash.
        starts: how often it was begun.
        sealed_on: the node in whose store its output was put.
        outcome: how it ended, None: not yet.
    """

    def __init__(self, number: int, pool: int, shape: Shape) -> None:
        self.number = number
        self.pool = pool
        self.shape = shape
        self.submit_at_s = 0.0
        self.duration_s = 0.0
        self.needs: list[SimTask] = []
        self.needed_by: list[SimTask] = []
        self.crashes = 0
        self.retries = 0
        self.raises = False
        self.blocks = False
        self.big = False
        self.force = False
        self.cancelling = False
        self.cancel_at_s: float | None = None
        self.children: Program | None = None
        self.starts = 0
        self.sealed_on: object = None
        self.outcome: str | None = None

    def __repr__(self) -> str:
        return f"task {self.number}"


class Program:
    """Tasks over some pools. `max_workers`: one number per pool."""

    def __init__(self, max_workers: list[int], tasks: list[SimTask]) -> None:
        self.max_workers = max_workers
        self.tasks = tasks


def draw_program(rng: Random, numbers: count[int], depth: int = 0) -> Program:
    """A program; those of depth > 0 are what a task submits. Some are bursts of many alike tasks."""
    pools = rng.randint(1, 1 if depth else 3)
    tasks: list[SimTask] = []
    until_s = rng.choice((0.0, 0.01, 0.1, 0.5))
    burst = not depth and rng.random() < 0.4
    for _ in range(rng.randint(1, 3 if depth else 14) + 25 * burst):
        # A child must not need what its waiting parent may hold: only CPUs are given back by one that waits.
        shapes = SHAPES[:3] if depth else RARE_SHAPES if rng.random() < 0.08 else SHAPES[:2] if burst else SHAPES
        task = SimTask(next(numbers), rng.randrange(pools), rng.choice(shapes))
        _draw_fate(rng, task, depth)
        if burst and rng.random() < 0.8:
            task.duration_s = rng.choice((0.0001, 0.001, 0.002))
        task.submit_at_s = rng.uniform(0.0, until_s)
        if tasks and rng.random() < (0.1 if burst else 0.5):
            task.needs = rng.sample(tasks, rng.randint(1, min(3, len(tasks))))
        tasks.append(task)
        if depth < 2 and rng.random() < 0.08:
            task.children = draw_program(rng, numbers, depth + 1)
    tasks.sort(key=lambda task: task.submit_at_s)
    submitted: set[SimTask] = set()
    for task in tasks:
        task.needs = [need for need in task.needs if need in submitted]
        for need in task.needs:
            need.needed_by.append(task)
        submitted.add(task)
    return Program([rng.randint(1, 3) for _ in range(pools)], tasks)


def _draw_fate(rng: Random, task: SimTask, depth: int) -> None:
    task.duration_s = rng.choice((0.0, 0.0001, 0.001, 0.02, 0.2))
    task.raises = rng.random() < 0.05
    task.blocks = rng.random() < 0.15
    task.big = rng.random() < 0.3
    task.retries = rng.choice((0, 0, 1, 3))
    if rng.random() < 0.1:
        task.crashes = rng.randint(1, 3)
    if depth == 0 and rng.random() < 0.1:
        task.cancel_at_s = rng.uniform(0.0, 0.3)
        task.force = rng.random() < 0.5
