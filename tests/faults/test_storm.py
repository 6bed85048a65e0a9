"""Everything at once: workers, the zygote, the node and the store are killed at random while many kinds of task run."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dpool
from dpool.errors import DpoolError, NodeLost, WorkerCrashed
from tests.faults import tasks
from tests.faults.support import Ledger, by_role, servers, workers_of

N = 20_000
RETRIES = 3
KINDS: list[tuple[Callable[..., Any], Callable[[int], tuple[Any, ...]], Callable[[int], Any]]] = [
    (tasks.double, lambda x: (x,), lambda x: 2 * x),
    (tasks.double, lambda x: (x,), lambda x: 2 * x),
    (tasks.double, lambda x: (x,), lambda x: 2 * x),
    (tasks.spin_and_double, lambda x: (x, 0.001), lambda x: 2 * x),
    (tasks.length, lambda x: (bytes(x % 3000),), lambda x: x % 3000),
    (tasks.length, lambda x: (bytes(150_000 if x % 20 == 0 else 10),), lambda x: 150_000 if x % 20 == 0 else 10),
    (tasks.filled, lambda x: (x % 2000, x % 251), lambda x: bytes((x % 251,)) * (x % 2000)),
    (tasks.fail, lambda x: (f"task {x}",), lambda x: f"task {x}"),
]


@contextmanager
def killing(seed: int, choose: Callable[[random.Random], int], mean_s: float) -> Iterator[list[int]]:
    """SIGKILL for whom `choose` names, again and again, until the block ends; the list of them."""
    rng, over, killed = random.Random(seed), threading.Event(), []

    def kill() -> None:
        while not over.wait(rng.expovariate(1 / mean_s)):
            pid = choose(rng)
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended by itself
                killed.append(pid)

    thread = threading.Thread(target=kill, name="killer")
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def storm(tmp_path: Path, executor: dpool.Executor, seed: int, n: int) -> tuple[dict[object, Any], Ledger]:
    rng = random.Random(seed)
    ledger = Ledger(tmp_path)
    kinds = [rng.randrange(len(KINDS)) for _ in range(n)]
    for x in range(n):
        action, arguments, _ = KINDS[kinds[x]]
        ledger.submit(executor, x, action, *arguments(x))
    outcome = ledger.settle(100)
    lost = {}
    for x in range(n):
        value, expected = outcome[x], KINDS[kinds[x]][2](x)
        if isinstance(value, ZeroDivisionError):
            value = value.args[0]
        if isinstance(value, DpoolError):
            lost[x] = value
        else:
            assert value == expected, f"task {x} of kind {kinds[x]}"
    return lost, ledger  # type: ignore[return-value]


def seeded() -> int:
    seed = int(os.environ.get("DPOOL_TEST_SEED", "0")) or random.randrange(1 << 30)
    print("DPOOL_TEST_SEED", seed)
    return seed


@pytest.mark.slow
def test_workers_are_killed_at_random(tmp_path: Path) -> None:
    seed = seeded()
    with dpool.Executor(3, max_retries=RETRIES) as executor:

        def any_worker(rng: random.Random) -> int:
            alive = workers_of(executor)
            return rng.choice(alive) if alive else 0

        with killing(seed, any_worker, 0.03) as killed:
            lost, ledger = storm(tmp_path, executor, seed, N)
    runs = ledger.runs()
    assert len(killed) >= 10, "there was no storm"
    # a task is lost only when its worker died under it at each of its attempts
    assert {type(error) for error in lost.values()} <= {WorkerCrashed}
    assert {error.attempts for error in lost.values()} <= {RETRIES + 1}
    assert len(lost) <= len(killed) // (RETRIES + 1)
    # a worker may die after it has begun a task and before the task has noted that
    assert all((x in lost or runs[str(x)] >= 1) and runs[str(x)] <= RETRIES + 1 for x in range(N))
    # what ran twice had been killed: no more of them than kills
    assert sum(max(0, runs[str(x)] - 1) for x in range(N)) <= len(killed)


@pytest.mark.slow
def test_anything_is_killed_at_random(tmp_path: Path) -> None:
    seed = seeded()
    n = N // 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the store's
        with dpool.Executor(2, max_retries=20) as executor:

            def anything(rng: random.Random) -> int:
                kind = rng.randrange(10)
                found = (
                    by_role("dpool-node") if kind == 0
                    else by_role("dpool-zygote") if kind <= 2
                    else servers() if kind <= 4
                    else workers_of(executor)
                )  # fmt: skip
                return rng.choice(found) if found else 0

            with killing(seed, anything, 0.03) as killed:
                lost, ledger = storm(tmp_path, executor, seed, n)
    assert len(killed) >= 3
    assert {type(error) for error in lost.values()} <= {WorkerCrashed, NodeLost}
    assert not lost, "twenty retries were not enough"
    assert set(ledger.runs()) == {str(x) for x in range(n)}
