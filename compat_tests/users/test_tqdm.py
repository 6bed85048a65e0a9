"""tqdm: `process_map`, whose initializer ships the lock of the bars, and bars within workers."""

from __future__ import annotations

import concurrent.futures
import io
import os
from typing import Any

import pytest

import dpool
from compat_tests.users.support import WORKERS

tqdm = pytest.importorskip("tqdm")
contrib = pytest.importorskip("tqdm.contrib.concurrent")

ITEMS = 40
EXPECTED = [item * item for item in range(ITEMS)]


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


def lock_kept_for(gate: str, ready: str) -> None:
    from tests.helpers import wait_until

    with tqdm.tqdm.get_lock():
        open(ready, "wb").close()
        wait_until(lambda: os.path.exists(gate), 30)


@pytest.mark.parametrize("kind", [dpool.Executor, dpool.Pool])
def test_bars_in_workers_and_here_take_turns(kind: Any, tmp_path: Any) -> None:
    from tests.helpers import wait_until

    gate, ready = str(tmp_path / "gate"), str(tmp_path / "ready")
    lock = tqdm.tqdm.get_lock()
    with (
        kind(1, initializer=tqdm.tqdm.set_lock, initargs=(lock,)) as workers,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        call = workers.apply if isinstance(workers, dpool.Pool) else lambda fn, args: workers.submit(fn, *args).result()
        holding = threads.submit(call, lock_kept_for, (gate, ready))
        wait_until(lambda: os.path.exists(ready), 30)
        assert not lock.mp_lock.acquire(block=False), "a worker has it"
        open(gate, "wb").close()
        holding.result(30)
        assert lock.mp_lock.acquire(timeout=30)
        lock.mp_lock.release()


def counted(position: int) -> int:
    return sum(1 for _ in tqdm.tqdm(range(100), position=position, file=io.StringIO()))


def test_bars_in_workers(pool: dpool.Pool) -> None:
    assert pool.map(counted, range(1, 9)) == [100] * 8
