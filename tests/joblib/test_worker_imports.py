"""joblib in the workers: imported only when a task does, and configured from then on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import run_script

SCRIPT = """
import os, sys
import dpool, joblib
from joblib import Parallel, delayed
def imported(i):
    return sorted({{"joblib", "numpy", "dpool.joblib"}} & set(sys.modules))
def backend(i):
    import joblib
    return type(joblib.parallel.get_active_backend()[0]).__name__
def from_a_module_of_it(i):
    from joblib.parallel import get_active_backend
    return type(get_active_backend()[0]).__name__
def again(i):
    loader = sys.modules["joblib"].__spec__.loader
    return type(loader).__name__, sum("dpool" in repr(finder) for finder in sys.meta_path)
if __name__ == "__main__":
    from dpool.joblib import close_executors
    if {cpus}:
        dpool.joblib.cpu_count = lambda: {cpus}
    def call(function, n=2):
        return Parallel(n_jobs=2, backend="dpool")(delayed(function)(i) for i in range(n))
    {body}
"""


def run(body: str, cpus: int = 0) -> list[Any]:
    text = "\n    ".join(body.strip().splitlines())
    return [eval(line) for line in run_script(SCRIPT.format(body=text, cpus=cpus)).check().stdout.splitlines()]


def test_workers_import_no_joblib_for_tasks_that_need_none() -> None:
    assert run("print(call(imported))") == [[[], []]]


@pytest.mark.parametrize("function", ["backend", "from_a_module_of_it"])
@pytest.mark.parametrize(("cpus", "name"), [(2, "SequentialBackend"), (4, "DpoolBackend")])
def test_a_task_that_imports_it_finds_it_configured(function: str, cpus: int, name: str) -> None:
    """In the first task that imports it, and in the next, which finds it there."""
    first, second = run(f"print(call({function}))\nprint(call({function}, 8))", cpus)
    assert first == [name] * 2
    assert second == [name] * 8


def test_nothing_stays_of_the_wait_for_it() -> None:
    _, after = run("print(call(backend, 8))\nprint(call(again))", 2)
    assert after == [("SourceFileLoader", 0)] * 2


def test_no_configuration_outlives_its_batch() -> None:
    body = """
executor = dpool.joblib._keep(dpool.joblib._kept[-1].spec).executor() if call(backend) else None
print([executor.submit(backend, i).result() for i in range(4)])
"""
    assert run(body, 2) == [["LokyBackend"] * 4]


def test_an_import_that_fails_is_tried_again() -> None:
    body = """
def hidden(i):
    path, sys.path[:] = list(sys.path), []
    try:
        import joblib
    except ImportError:
        return "hidden"
    finally:
        sys.path[:] = path
print(call(hidden))
print(call(backend))
"""
    assert run(body, 2) == [["hidden"] * 2, ["SequentialBackend"] * 2]
