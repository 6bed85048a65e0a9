"""A process that uses the object store dies or is stopped: what it was at work on is given back, and nobody else's
bytes change.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import dpool
from dpool.errors import WorkerCrashed
from tests.faults import store_tasks as work
from tests.faults import tasks
from tests.faults.store_support import MIB, alone, drained, figures
from tests.faults.support import DEADLINE_S, GONE_S, Ledger, sigkill, workers_of
from tests.helpers import process, wait_until

CHUNKS = 64 * MIB
"""More than what the processes of a test keep leased for small values."""


# --- In the middle of writing ---


@pytest.mark.parametrize("size", [MIB, 50 * MIB])
@pytest.mark.parametrize("action", [work.die_while_returning, work.die_while_putting])
def test_a_worker_dies_in_the_middle_of_a_value(tmp_path: Path, action: object, size: int) -> None:
    """The room that it had leased is free again."""
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        ledger.submit(executor, "victim", action, 1, size)  # type: ignore[arg-type]
        for x in range(10):
            ledger.submit(executor, x, work.pattern, x, size)
        outcome = ledger.settle()
        assert type(outcome.pop("victim")) is WorkerCrashed
        assert all(work.is_pattern(outcome[x], x, size) for x in range(10))
        del outcome
        ledger.futures.clear()
        drained(CHUNKS)


def test_a_worker_is_killed_at_some_moment_of_its_copying(tmp_path: Path) -> None:
    size = 300 * MIB
    with dpool.Executor(2) as executor:
        other = executor.submit(work.pattern, 5, MIB)
        ledger = Ledger(tmp_path)
        for turn in range(6):
            used = figures()["used"] + size // 2
            action = work.pattern if turn % 2 else work.put_list
            future = executor.submit(tasks.noted, ledger.path, turn, action, turn, size)
            pid = ledger.pid_of(turn)
            wait_until(lambda used=used: figures()["used"] > used, DEADLINE_S, "it has room")  # type: ignore[misc]
            for _ in range(turn * 5):
                figures()  # some time passes
            os.kill(pid, signal.SIGKILL)
            error = future.exception(DEADLINE_S)
            if error is None:
                value = future.result()
                assert work.is_pattern(value if turn % 2 else dpool.get(value[0]), turn, size)
                del value
            else:
                assert type(error) is WorkerCrashed
            del future, error
        assert work.is_pattern(other.result(DEADLINE_S), 5, MIB)
        del other
        drained(CHUNKS)


def test_objects_and_leases_of_a_dead_worker(tmp_path: Path) -> None:
    """What it had put for itself, and the rest of its chunk."""
    with dpool.Executor(1) as executor:
        for size in (MIB, 10 * MIB):
            future = executor.submit(work.die_after_puts, 5, size)
            assert type(future.exception(DEADLINE_S)) is WorkerCrashed
            del future
            drained()


# --- Between sealing and answering ---


@pytest.mark.parametrize("size", [MIB, 20 * MIB])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_dies_between_sealing_a_result_and_its_answer(tmp_path: Path, size: int, retries: int) -> None:
    died = tmp_path / "died"
    ledger = Ledger(tmp_path)
    with dpool.Executor(
        2, initializer=work.die_instead_of_answering, initargs=(str(died),), max_retries=retries
    ) as executor:
        for x in range(12):
            ledger.submit(executor, x, work.pattern, x, size)
        outcome = ledger.settle()
        assert died.exists()
        crashed = [x for x in outcome if type(outcome[x]) is WorkerCrashed]
        assert len(crashed) == (0 if retries else 1)
        assert all(work.is_pattern(outcome[x], x, size) for x in outcome if x not in crashed)  # type: ignore[arg-type]
        del outcome
        ledger.futures.clear()
        drained(CHUNKS)


# --- Readers ---


def test_a_reader_that_is_killed_maps_nothing_any_more(tmp_path: Path, gate: Path) -> None:
    size = 40 * MIB
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        ref = dpool.put(work.pattern(1, size))
        ledger.submit(executor, "reader", work.keep, ref, ledger.path, str(gate))
        wait_until(lambda: "kept" in ledger.runs(), DEADLINE_S, "the reader maps it")
        wait_until(lambda: figures()["pinned_bytes"] >= size, DEADLINE_S, "it is pinned")
        pid = ledger.pid_of("reader")
        del ref
        assert figures()["used"] >= size, "the reader holds it"
        sigkill(pid)
        assert type(ledger.settle()["reader"]) is WorkerCrashed
        ledger.futures.clear()
        drained()
        assert executor.submit(work.check, work.pattern(2, size), 2, size).result(DEADLINE_S)


def test_an_idle_reader_that_is_killed(tmp_path: Path) -> None:
    """It keeps a view after its task: that is a pin and no hold."""
    size = 40 * MIB
    with dpool.Executor(1) as executor:
        ref = dpool.put(work.pattern(1, size))
        pid = executor.submit(work.keep, ref).result(DEADLINE_S)
        del ref
        wait_until(lambda: not figures()["objects"], DEADLINE_S, "the object is free")
        assert figures()["zombie_bytes"] >= size
        sigkill(pid)
        drained()
        assert executor.submit(tasks.double, 2).result(DEADLINE_S) == 4


# --- Stopped ---


def stopped_reader(directory: str) -> None:
    """A store of 64 MiB: what the stopped one maps is freed, and everything else is wanted."""
    size = 20 * MIB
    path, gate = f"{directory}/runs", f"{directory}/gate"
    with dpool.Executor(2) as executor:
        ref = dpool.put(work.pattern(1, size))
        reading = executor.submit(work.wait_and_check, ref, 1, size, path, gate)
        wait_until(lambda: os.path.exists(path), DEADLINE_S, "it is mapped")
        pid = int(Path(path).read_text().split()[1])
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: (found := process(pid)) is not None and found.state == "T", GONE_S, "it is stopped")
        del ref
        refs = []
        for x in range(2, 14):
            refs.append(dpool.put(work.pattern(x, size)))
            assert executor.submit(work.check, refs[-1], x, size).result(DEADLINE_S)
        for x, one in enumerate(refs, 2):
            assert work.is_pattern(dpool.get(one), x, size)
        os.kill(pid, signal.SIGCONT)
        Path(gate).touch()
        assert reading.result(DEADLINE_S), "the bytes under a stopped reader changed"
        del refs, one, reading
        drained()


def test_a_stopped_reader_finds_its_bytes_as_they_were(tmp_path: Path) -> None:
    spill_dir = tmp_path / "spill"
    spill_dir.mkdir()
    alone(stopped_reader, str(tmp_path), store=64 * MIB, spill_dir=spill_dir)


def test_a_worker_is_stopped_while_it_writes(tmp_path: Path) -> None:
    """What it has leased stays its own, however long it sleeps."""
    size = 200 * MIB
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        before = figures()["used"]
        ledger.submit(executor, "slow", work.pattern, 1, size)
        pid = ledger.pid_of("slow")
        wait_until(lambda: figures()["used"] > before, DEADLINE_S, "it has room")
        os.kill(pid, signal.SIGSTOP)
        for x in range(2, 22):
            ledger.submit(executor, x, work.pattern, x, 10 * MIB)
        wait_until(lambda: all(ledger.futures[x].done() for x in range(2, 22)), DEADLINE_S, "the others are done")
        os.kill(pid, signal.SIGCONT)
        outcome = ledger.settle()
        assert work.is_pattern(outcome.pop("slow"), 1, size)
        assert all(work.is_pattern(value, x, 10 * MIB) for x, value in outcome.items())  # type: ignore[arg-type]
        del outcome
        ledger.futures.clear()
        drained()
        assert pid in workers_of(executor)
