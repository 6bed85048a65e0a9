"""Many tiny tasks travel in one frame: a crash or a block in the middle of one concerns that task alone."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import dpool
from dpool.errors import WorkerCrashed
from tests.faults import tasks
from tests.faults.support import DEADLINE_S, Ledger
from tests.helpers import wait_until


def into_frames(executor: dpool.Executor) -> None:
    """Teach the executor that tasks are tiny, so that it sends many in one frame."""
    assert sum(executor.map(tasks.double, range(5000))) == 5000 * 4999


def seeded() -> random.Random:
    seed = int(os.environ.get("DPOOL_TEST_SEED", "0")) or random.randrange(1 << 30)
    print("DPOOL_TEST_SEED", seed)
    return random.Random(seed)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("noting", [True, False], ids=["noted", "tiny"])
def test_a_crash_in_the_middle_of_a_frame(tmp_path: Path, workers: int, noting: bool) -> None:
    """Exactly one future fails; what was done is delivered, what had not begun is run elsewhere, nothing runs twice."""
    rng, n = seeded(), 1500
    with dpool.Executor(workers) as executor:
        into_frames(executor)
        for turn in range(6):
            (tmp_path / str(turn)).mkdir()
            ledger = Ledger(tmp_path / str(turn))
            victim = rng.randrange(n)
            for x in range(n):
                if noting:
                    ledger.submit(executor, x, tasks.double_or_die, x, victim)
                else:
                    ledger.watch(x, executor.submit(tasks.double_or_die, x, victim))
            outcome = ledger.settle()
            error = outcome.pop(victim)
            assert type(error) is WorkerCrashed
            assert outcome == {x: 2 * x for x in range(n) if x != victim}
            if noting:
                runs = ledger.runs()
                assert {x: runs[str(x)] for x in range(n)} == dict.fromkeys(range(n), 1)


def test_a_crash_in_a_frame_whose_results_overflow_the_journal(tmp_path: Path) -> None:
    """The worker answers in pieces; those that are on their way when it dies count too."""
    n, size, victim = 600, 900, 431
    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        into_frames(executor)
        for x in range(n):
            action, args = (tasks.kill_me, ()) if x == victim else (tasks.filled, (size, x % 251))
            ledger.submit(executor, x, action, *args)
        outcome = ledger.settle()
        assert type(outcome.pop(victim)) is WorkerCrashed
        assert outcome == {x: bytes((x % 251,)) * size for x in range(n) if x != victim}
        assert set(ledger.runs().values()) == {1}


def test_a_crash_in_a_frame_is_retried_alone(tmp_path: Path) -> None:
    n = 1000
    ledger = Ledger(tmp_path)
    with dpool.Executor(2, max_retries=1) as executor:
        into_frames(executor)
        for x in range(n):
            if x % 250 == 100:
                ledger.submit(executor, x, tasks.double_or_die_once, str(tmp_path / f"died{x}"), x)
            else:
                ledger.submit(executor, x, tasks.double, x)
        assert ledger.settle() == {x: 2 * x for x in range(n)}
        runs = ledger.runs()
        assert {x: runs[str(x)] for x in range(n)} == {x: 2 if x % 250 == 100 else 1 for x in range(n)}


def test_exceptions_in_a_frame_that_crashes(tmp_path: Path) -> None:
    n, victim = 400, 333
    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        into_frames(executor)
        for x in range(n):
            if x == victim:
                ledger.submit(executor, x, tasks.kill_me)
            else:
                ledger.submit(executor, x, tasks.fail, f"task {x}")
        outcome = ledger.settle()
        assert type(outcome.pop(victim)) is WorkerCrashed
        assert {type(error) for error in outcome.values()} == {ZeroDivisionError}
        assert {x: error.args for x, error in outcome.items()} == {x: (f"task {x}",) for x in range(n) if x != victim}


# --- A task that blocks ---


@pytest.mark.parametrize("before", [0, 5])
def test_tasks_behind_a_blocked_one_run_on_the_other_worker(tmp_path: Path, gate: Path, before: int) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        into_frames(executor)
        for x in range(before):
            ledger.submit(executor, x, tasks.double, x)
        ledger.submit(executor, "blocked", tasks.wait_for_file, str(gate), "free")
        for x in range(before, 500):
            ledger.submit(executor, x, tasks.double, x)
        wait_until(lambda: all(ledger.futures[x].done() for x in range(500)), DEADLINE_S, "the others are done")
        assert not ledger.futures["blocked"].done()
        gate.touch()
        outcome = ledger.settle()
        assert outcome.pop("blocked") == "free"
        assert outcome == {x: 2 * x for x in range(500)}
        assert set(ledger.runs().values()) == {1}


def test_two_blocked_tasks_one_after_the_other(tmp_path: Path, gate: Path) -> None:
    """Both workers are taken; a task that a third one would do waits, and is done when the first is free."""
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        into_frames(executor)
        ledger.submit(executor, "a", tasks.wait_for_file, str(tmp_path / "a"), "a")
        for x in range(100):
            ledger.submit(executor, x, tasks.double, x)
        ledger.submit(executor, "b", tasks.wait_for_file, str(tmp_path / "b"), "b")
        for x in range(100, 200):
            ledger.submit(executor, x, tasks.double, x)
        ledger.pid_of("a")
        ledger.pid_of("b")
        wait_until(lambda: all(ledger.futures[x].done() for x in range(100)), DEADLINE_S, "what stood before b is done")
        (tmp_path / "b").touch()
        wait_until(lambda: all(ledger.futures[x].done() for x in range(200)), DEADLINE_S, "all others are done")
        assert not ledger.futures["a"].done()
        (tmp_path / "a").touch()
        outcome = ledger.settle()
        assert (outcome.pop("a"), outcome.pop("b")) == ("a", "b")
        assert outcome == {x: 2 * x for x in range(200)}
        assert set(ledger.runs().values()) == {1}


def test_one_worker_delivers_what_it_did_before_it_blocks_and_the_rest_can_be_cancelled(
    tmp_path: Path, gate: Path
) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        into_frames(executor)
        for x in range(200):
            ledger.submit(executor, x, tasks.double, x)
        ledger.submit(executor, "blocked", tasks.wait_for_file, str(gate), "free")
        for x in range(200, 400):
            ledger.submit(executor, x, tasks.double, x)
        ledger.pid_of("blocked")
        wait_until(lambda: all(ledger.futures[x].done() for x in range(200)), DEADLINE_S, "what stood before is done")
        # what stands behind it may be sent to it, but has not begun: it is taken back, so it can be cancelled
        cancelled = range(201, 400, 2)
        wait_until(lambda: all(ledger.futures[x].cancel() for x in cancelled), DEADLINE_S, "all can be cancelled")
        for x in cancelled:
            assert ledger.futures.pop(x).cancelled()
        gate.touch()
        outcome = ledger.settle()
        assert outcome.pop("blocked") == "free"
        assert outcome == {x: 2 * x for x in (*range(200), *range(200, 400, 2))}
        assert not {str(x) for x in cancelled} & set(ledger.runs())
        assert set(ledger.runs().values()) == {1}


def test_tasks_behind_a_blocked_one_wait_for_a_worker_that_is_added(tmp_path: Path, gate: Path) -> None:
    """One worker, blocked; the executor is resized, and the new worker takes what stands behind."""
    executor = dpool.get_reusable_executor(1, timeout=None)
    try:
        ledger = Ledger(tmp_path)
        into_frames(executor)
        ledger.submit(executor, "blocked", tasks.wait_for_file, str(gate), "free")
        for x in range(300):
            ledger.submit(executor, x, tasks.double, x)
        ledger.pid_of("blocked")
        assert dpool.get_reusable_executor(2, timeout=None) is executor
        wait_until(lambda: all(ledger.futures[x].done() for x in range(300)), DEADLINE_S, "the others are done")
        gate.touch()
        outcome = ledger.settle()
        assert outcome.pop("blocked") == "free"
        assert outcome == {x: 2 * x for x in range(300)}
        assert set(ledger.runs().values()) == {1}
    finally:
        executor.shutdown()


def test_a_blocked_task_that_dies(tmp_path: Path, gate: Path) -> None:
    """Tasks have just been taken back from behind it: they run once, elsewhere."""
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        into_frames(executor)
        for turn in range(10):
            ledger.submit(executor, f"dies {turn}", tasks.hold_gil_then_die, 0.02 * (turn % 3))
            for x in range(100 * turn, 100 * turn + 100):
                ledger.submit(executor, x, tasks.double, x)
        outcome = ledger.settle()
        assert {type(outcome.pop(f"dies {turn}")) for turn in range(10)} == {WorkerCrashed}
        assert outcome == {x: 2 * x for x in range(1000)}
        assert set(ledger.runs().values()) == {1}
