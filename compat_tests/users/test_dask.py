"""dask: an Executor as the scheduler, and an Executor or a Pool as the pool of its own schedulers."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest

import dpool
from compat_tests.users.support import assert_ran_in, diabetes

dask = pytest.importorskip("dask")
pytest.importorskip("sklearn")


def lines_of(path: str) -> collections.Counter[str]:
    return collections.Counter(Path(path).read_text(errors="replace").split())


def words(noted: Any) -> Any:
    """The words of some files of the standard library, counted; a graph of tasks."""
    home = Path(collections.__file__).parent
    counts = [dask.delayed(noted)(str(path)) for path in sorted(home.parent.glob("a*.py"))]
    while len(counts) > 1:
        counts = [dask.delayed(sum)(counts[at : at + 3], collections.Counter()) for at in range(0, len(counts), 3)]
    return counts[0]


def test_compute_with_an_executor(executor: dpool.Executor, note: Any) -> None:
    noted = note(lines_of)
    expected = words(lines_of).compute(scheduler="synchronous")
    assert len(expected) > 1000
    assert dask.compute(words(noted), scheduler=executor) == (expected,)
    assert_ran_in(executor, noted)


@pytest.mark.parametrize("scheduler", ["processes", "threads"])
def test_pool_of_a_scheduler(scheduler: str, either: Any, note: Any) -> None:
    noted = note(lines_of)
    expected = words(lines_of).compute(scheduler="synchronous")
    with dask.config.set(pool=either):
        assert words(noted).compute(scheduler=scheduler) == expected
    assert_ran_in(either, noted)


def test_arrays(executor: dpool.Executor) -> None:
    array = pytest.importorskip("dask.array")
    data = array.from_array(diabetes()[0], chunks=(100, 10))
    product = (data.T @ data).sum(axis=0) - data.mean(axis=0)
    found = product.compute(scheduler=executor)
    assert found.tolist() == product.compute(scheduler="synchronous").tolist()
    assert executor._processes, "nobody worked"


def failing(path: str) -> Any:
    raise LookupError(f"nothing in {path}")


def test_an_error_arrives(executor: dpool.Executor) -> None:
    with pytest.raises(LookupError, match="nothing in"):
        words(failing).compute(scheduler=executor)
