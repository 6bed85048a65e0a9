"""adaptive: runners that sample a function where it is interesting."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

import dpool
from compat_tests.users.support import WORKERS, assert_ran_in

adaptive = pytest.importorskip("adaptive")
POINTS = 60


def peak(x: float) -> float:
    return x + 0.01 / (0.01 + (x - 0.3) ** 2)


def check(learner: Any) -> None:
    assert len(learner.data) >= POINTS
    assert all(peak(x) == y for x, y in learner.data.items())
    near = sum(abs(x - 0.3) < 0.1 for x in learner.data)
    assert near > len(learner.data) / 6, "more points where the function bends: a tenth of the interval"
    assert math.isclose(max(learner.data.values()), 1.3, abs_tol=0.1), "the peak has been found; elsewhere it is 1.04"


def test_blocking_runner_counts_the_workers(executor: dpool.Executor, note: Any) -> None:
    noted = note(peak)
    learner = adaptive.Learner1D(noted, bounds=(-1, 1))
    runner = adaptive.BlockingRunner(learner, npoints_goal=POINTS, executor=executor)
    assert runner._get_max_tasks() == WORKERS
    check(learner)
    assert_ran_in(executor, noted)


def test_runner_on_an_event_loop(executor: dpool.Executor, note: Any) -> None:
    noted = note(peak)
    learner = adaptive.Learner1D(noted, bounds=(-1, 1))

    async def run() -> None:
        runner = adaptive.Runner(learner, npoints_goal=POINTS, executor=executor, ntasks=3)
        await runner.task

    asyncio.run(run())
    check(learner)
    assert_ran_in(executor, noted)
