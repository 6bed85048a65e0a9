"""tqdm: `process_map`, whose initializer ships the lock of the bars, and bars within workers."""

from __future__ import annotations

import concurrent.futures
import io
import os
from collections.abc import Iterator

import pytest

import dpool
from compat_tests.users.support import WORKERS

tqdm = pytest.importorskip("tqdm")
contrib = pytest.importorskip("tqdm.contrib.concurrent")

ITEMS = 40
EXPECTED = [item * item for item in range(ITEMS)]


@pytest.fixture(autouse=True)
def a_lock_of_its_own() -> Iterator[None]:
    """The lock of bars lives as long as tqdm, and its name with it; each test begins without one."""
    yield
    for kind in (tqdm.tqdm, contrib.tqdm_auto):
        if "_lock" in vars(kind):
            del kind._lock
    if hasattr(tqdm.std.TqdmDefaultWriteLock, "mp_lock"):
        del tqdm.std.TqdmDefaultWriteLock.mp_lock


def square_and_pid(item: int) -> tuple[int, int]:
    return item * item, os.getpid()


def check(found: list[tuple[int, int]], shown: str) -> None:
    assert [value for value, _ in found] == EXPECTED
    assert os.getpid() not in {pid for _, pid in found}
    assert f"{ITEMS}/{ITEMS}" in shown


@pytest.mark.parametrize("lock_name", ["mp_lock", ""])
def test_executor_map(lock_name: str) -> None:
    file = io.StringIO()
    found = contrib._executor_map(
        dpool.Executor, square_and_pid, range(ITEMS), max_workers=WORKERS, lock_name=lock_name, file=file
    )
    check(found, file.getvalue())


def test_process_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", dpool.Executor)
    file = io.StringIO()
    found = contrib.process_map(square_and_pid, range(ITEMS), max_workers=WORKERS, file=file)
    check(found, file.getvalue())


def counted(position: int) -> int:
    return sum(1 for _ in tqdm.tqdm(range(100), position=position, file=io.StringIO()))


def test_bars_in_workers(pool: dpool.Pool) -> None:
    assert pool.map(counted, range(1, 9)) == [100] * 8
