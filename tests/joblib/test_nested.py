"""A `Parallel` inside a task of another: the workers' share of the CPUs, and no deadlock."""

from __future__ import annotations

import os
import pickle
from typing import Any

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config

import dpool
from dpool.joblib import DpoolBackend
from tests.executor.support import LONG_S, Gate, kill_self, square
from tests.helpers import run_script, wait_until

SCRIPT = """
import os, sys
import dpool, dpool.joblib, joblib
from joblib import Parallel, delayed
dpool.joblib.cpu_count = lambda: {cpus}
def inner(j):
    return os.getpid()
def outer(i):
    dpool.joblib.cpu_count = lambda: {cpus}
    backend = joblib.parallel.get_active_backend()[0]
    pids = set(Parallel(n_jobs=8)(delayed(inner)(j) for j in range(40)))
    return type(backend).__name__, joblib.effective_n_jobs(8), pids == {{os.getpid()}}, len(pids) <= {share}
if __name__ == "__main__":
    with joblib.parallel_config("dpool", n_jobs={n_jobs}):
        print(set(Parallel()(delayed(outer)(i) for i in {calls})))
"""


def nested(cpus: int, n_jobs: int, share: int) -> Any:
    script = SCRIPT.format(cpus=cpus, n_jobs=n_jobs, share=share, calls="range(4)")
    (found,) = eval(run_script(script).check().stdout)
    return found


def test_workers_with_one_cpu_do_it_themselves() -> None:
    assert nested(cpus=2, n_jobs=2, share=1) == ("SequentialBackend", 1, True, True)


def test_workers_with_more_cpus_have_workers_of_their_own() -> None:
    assert nested(cpus=4, n_jobs=2, share=2) == ("DpoolBackend", 2, False, True)


def test_few_tasks_have_the_more_cpus_each() -> None:
    script = SCRIPT.format(cpus=6, n_jobs=6, share=3, calls="range(2)")
    listed = script.replace("(delayed(outer)(i) for i in range(2))", "([delayed(outer)(i) for i in range(2)])")
    assert eval(run_script(script).check().stdout) == {("SequentialBackend", 1, True, True)}
    assert eval(run_script(listed).check().stdout) == {("DpoolBackend", 3, False, True)}


def one_level(level: int, n_jobs: int) -> list[Any]:
    if level == 0:
        return [os.getpid()]
    below = Parallel(n_jobs=n_jobs, backend="dpool")(delayed(one_level)(level - 1, n_jobs) for _ in range(2))
    return [pid for pids in below for pid in pids]


def test_to_any_depth_without_deadlock() -> None:
    assert len(one_level(4, 2)) == 16


def crash_below() -> Any:
    return Parallel(n_jobs=2)([delayed(kill_self)(), delayed(square)(2)])


def test_a_crash_below_is_an_error_here() -> None:
    with pytest.raises(dpool.errors.WorkerCrashed):
        Parallel(n_jobs=2, backend="dpool")(delayed(crash_below)() for _ in range(2))


def test_the_backend_is_light_to_pickle() -> None:
    backend = DpoolBackend(nesting_level=0, inner_max_num_threads=2, max_retries=1)
    Parallel(n_jobs=2, backend=backend)(delayed(square)(i) for i in range(3))
    data = pickle.dumps(backend)
    assert len(data) < 300
    again = pickle.loads(data)
    assert (again.nesting_level, again.inner_max_num_threads, again.backend_kwargs) == (0, 2, {"max_retries": 1})


def in_a_task(gate: Gate) -> list[int]:
    with parallel_config("dpool", n_jobs=2):
        results = Parallel()(delayed(meet)(gate, name) for name in ("a", "b"))
    return list(results)


def meet(gate: Gate, name: str) -> int:
    gate.note(name)
    gate.open(name)
    gate.enter(name)
    return os.getpid()


def test_a_task_that_holds_cpus_lends_them_while_it_waits(gate: Gate) -> None:
    with dpool.Executor(2) as ex:
        everything = ex.options(num_cpus=joblib.cpu_count())
        waiting = everything.submit(wait_with_joblib, gate)
        gate.entered("inside")
        other = everything.submit(square, 5)
        assert other.result(LONG_S) == 25  # while the first one waits
        gate.open("inside")
        assert waiting.result(LONG_S) == ["inside", "x"]


def wait_with_joblib(gate: Gate) -> list[Any]:
    from dpool.joblib import close_executors

    try:
        gate.open("x")
        return list(Parallel(n_jobs=2, backend="dpool")(delayed(gate.enter)(name, name) for name in ("inside", "x")))
    finally:
        close_executors()


def test_inside_a_task_of_an_executor(gate: Gate) -> None:
    with dpool.Executor(1) as ex:
        pids = ex.submit(in_a_task, gate).result(LONG_S)
        assert os.getpid() not in pids
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), LONG_S)
