"""`dpool run --report`: what is counted is what was done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import served, write
from tests.helpers import REPOSITORY

TIMES = {"wall_s", "tasks_wall_s", "task_s", "speedup"}


def report(directory: Path, text: str, *options: str) -> dict[str, Any]:
    """The report of a program of these lines, without what depends on time."""
    file = directory / "report.json"
    served("--report-json", str(file), *options, write(directory, text)).check()
    found: dict[str, Any] = json.loads(file.read_text())
    assert found.pop("program") == str(directory / "program.py")
    times = {name: found.pop(name) for name in TIMES}
    assert times["wall_s"] >= times["tasks_wall_s"] >= 0
    if found["tasks"]:
        assert times["speedup"] == pytest.approx(times["task_s"] / times["tasks_wall_s"])
    else:
        assert (times["task_s"], times["speedup"]) == (0, None)
    return found


def expected(**figures: Any) -> dict[str, Any]:
    nothing = {
        "tasks": 0,
        "calls": 0,
        "crashes_survived": 0,
        "not_copied_bytes": 0,
        "not_copied_reads": 0,
        "standard": [],
    }
    return {**nothing, **figures}


def test_no_pool(tmp_path: Path) -> None:
    assert report(tmp_path, "print('nothing')") == expected()


def test_a_program_with_a_stream(tmp_path: Path) -> None:
    text = """
    import dpool
    @dpool.remote(num_returns="streaming")
    def count(n):
        yield from range(n)
    assert [dpool.get(item) for item in count.remote(3)] == [0, 1, 2]
    """
    assert report(tmp_path, text)["tasks"] >= 1


def test_tasks_and_calls(tmp_path: Path) -> None:
    text = """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import Pool
    with Pool(2) as pool:
        pool.map(abs, range(100), chunksize=10)
        pool.starmap(max, [(1, 2)] * 6, chunksize=3)
        list(pool.imap(abs, range(7), chunksize=2))
        list(pool.imap_unordered(abs, range(5)))
        pool.apply(abs, (1,))
    with ProcessPoolExecutor(2) as executor:
        list(executor.map(abs, range(20), chunksize=5))
        list(executor.map(abs, range(3)))
        executor.submit(abs, 1).result()
        executor.submit(int, "x").exception()
    """
    tasks = 10 + 2 + 4 + 5 + 1 + 4 + 3 + 2
    assert report(tmp_path, text) == expected(tasks=tasks, calls=100 + 6 + 7 + 5 + 1 + 20 + 3 + 2)


@pytest.mark.needs("module:joblib")
def test_calls_of_joblib(tmp_path: Path) -> None:
    text = """
    from joblib import Parallel, delayed
    Parallel(n_jobs=2, batch_size=5)(delayed(abs)(x) for x in range(20))
    """
    found = report(tmp_path, text)
    assert 4 <= found.pop("tasks") <= 20  # joblib hands out what it has pre-dispatched in slices
    assert found == {name: value for name, value in expected(calls=20).items() if name != "tasks"}


def test_crashes(tmp_path: Path) -> None:
    text = """
    import os
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import Pool
    with ProcessPoolExecutor(2) as executor:
        print(type(executor.submit(os.kill, 0, 0).exception()))
        for _ in range(3):
            assert executor.submit(os._exit, 3).exception() is not None
        executor.submit(abs, 1).result()
    with Pool(2, maxtasksperchild=1) as pool:  # whose workers leave, and are told to
        pool.map(abs, range(6), chunksize=1)
    """
    assert report(tmp_path, text) == expected(tasks=8, calls=8, crashes_survived=3)


@pytest.mark.needs("module:numpy")
def test_what_was_not_copied(tmp_path: Path) -> None:
    text = """
    import numpy
    from multiprocessing import Pool
    def total(array):
        return int(array.sum())
    def made(size):
        return numpy.ones(size)
    with Pool(2) as pool:
        large = numpy.ones(1_000_000)
        assert [pool.apply(total, (large,)) for _ in range(3)] == [1_000_000] * 3
        assert pool.apply(made, (500_000,)).nbytes == 4_000_000
        assert pool.apply(total, (numpy.ones(10),)) == 10
    """
    found = report(tmp_path, text)
    assert found.pop("not_copied_bytes") == pytest.approx(3 * 8_000_000 + 4_000_000, rel=0.001)
    assert found == {name: value for name, value in expected(
        tasks=5, calls=5, not_copied_reads=4).items() if name != "not_copied_bytes"}  # fmt: skip


@pytest.mark.needs("module:numpy")
def test_reads_in_nested_workers_count(tmp_path: Path) -> None:
    text = """
    import numpy
    from concurrent.futures import ProcessPoolExecutor
    def total(array):
        return int(array.sum())
    def outer():
        with ProcessPoolExecutor(1) as executor:
            return executor.submit(total, numpy.ones(1_000_000)).result()
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(outer).result() == 1_000_000
    """
    found = report(tmp_path, text)
    assert (found["tasks"], found["not_copied_reads"]) == (1, 1)
    assert found["not_copied_bytes"] == pytest.approx(8_000_000, rel=0.001)


def test_what_stayed_standard(tmp_path: Path) -> None:
    text = """
    from multiprocessing.pool import Pool
    class Own(Pool):
        def _setup_queues(self):
            super()._setup_queues()
    with Own(1) as pool:
        pool.apply(abs, (1,))
    """
    standard = [{"name": "__main__.Own", "why": "it changes internals (_setup_queues)"}]
    assert report(tmp_path, text) == expected(standard=standard)


def test_table(tmp_path: Path) -> None:
    text = """
    import sys
    from multiprocessing import Pool
    with Pool(2) as pool:
        pool.map(abs, range(100), chunksize=10)
    sys.exit("the last words")
    """
    path = write(tmp_path, text)
    found = served("--report", path)
    assert (found.rc, found.stdout) == (1, "")
    first, second, *rows = found.stderr.splitlines()
    assert (first, second) == ("the last words", f"dpool run: {path}")
    assert rows[0] == "  tasks               10 (100 calls)"
    assert [row[:20].strip() for row in rows] == [
        "tasks",
        "wall time",
        "first task to last",
        "sum of task times",
        "speed-up",
        "crashes survived",
        "not copied",
    ]


def test_a_forked_child_reports_nothing(tmp_path: Path) -> None:
    text = """
    import os, sys
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    sys.exit(0)
    """
    assert served("--report", write(tmp_path, text)).check().stderr.count("wall time") == 1


def test_file_is_relative_to_where_the_command_was_given(tmp_path: Path) -> None:
    path = write(tmp_path, "import os; os.chdir('/')")
    served("--report-json", "here.json", path, cwd=tmp_path).check()
    assert json.loads((tmp_path / "here.json").read_text())["tasks"] == 0


def test_nothing_is_counted_without_a_report(tmp_path: Path) -> None:
    text = """
    from multiprocessing import Pool
    with Pool(1) as pool:
        pool.apply(abs, (1,))
    from dpool._core import executor_pool, lane, store_client
    methods = (executor_pool.ExecutorPool.submit, executor_pool.ExecutorPool._bury, lane.Lane._receive,
               lane.Lane.settle, store_client.StoreClient._map)
    print({method.__module__ for method in methods} - {"dpool._core.executor_pool", "dpool._core.lane",
                                                       "dpool._core.store_client"})
    """
    assert served(write(tmp_path, text)).check().stdout == "set()\n"


def test_page_names_every_figure() -> None:
    page = (REPOSITORY / "docs" / "run.md").read_text()
    for name in (*expected(), *TIMES, "program"):
        assert f"`{name}`" in page, name
    assert os.path.exists(REPOSITORY / "docs" / "run.md")
