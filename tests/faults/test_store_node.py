"""The node, which owns the store, is killed: what this process holds goes to the next one, or the error says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import dpool
from dpool.errors import NodeLost, ObjectLost
from tests.faults import store_tasks as work
from tests.faults import tasks
from tests.faults.store_support import MIB, alone, drained
from tests.faults.support import DEADLINE_S, Ledger, one_of_role, sigkill
from tests.helpers import wait_until

SIZE = 6 * MIB


def test_pending_tasks_with_large_arguments(tmp_path: Path, gate: Path) -> None:
    """What has not begun runs on the next node, with the arguments that lay in the store of the first."""
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        ref = dpool.put(work.pattern(1, SIZE))
        done = executor.submit(work.pattern, 2, SIZE)
        unread = executor.submit(work.pattern, 3, SIZE)
        view = done.result(DEADLINE_S)
        wait_until(unread.done, DEADLINE_S, "a result that nobody has looked at")
        for name in ("a", "b"):
            ledger.submit(executor, name, tasks.wait_for_file, str(gate))
        for name in ("a", "b"):
            ledger.pid_of(name)
        for seed in range(10, 20):
            ledger.submit(executor, seed, work.check, work.pattern(seed, SIZE), seed, SIZE)
            ledger.submit(executor, f"ref {seed}", work.check, ref, 1, SIZE)
            ledger.submit(executor, f"nested {seed}", work.get_and_check, [ref], 1, SIZE)
        sigkill(one_of_role("dpool-node"))
        outcome = ledger.settle()
        assert {type(outcome.pop(name)) for name in ("a", "b")} == {NodeLost}
        assert set(outcome.values()) == {True}, outcome
        assert work.is_pattern(view, 2, SIZE)
        assert work.is_pattern(dpool.get(ref), 1, SIZE)
        assert work.is_pattern(done.result(), 2, SIZE)
        try:
            assert work.is_pattern(unread.result(DEADLINE_S), 3, SIZE)
        except ObjectLost as error:
            assert "node" in str(error)  # noqa: PT017
        assert executor.submit(work.check, work.pattern(4, SIZE), 4, SIZE).result(DEADLINE_S)
        del ref, done, unread, view
        ledger.futures.clear()
        drained(64 * MIB)


def spilled_when_the_node_dies(directory: str) -> None:
    """What lay on the disk is lost with its node, and the error says it; what lay in memory is not."""
    n = 12
    with dpool.Executor(1) as executor:
        refs = [dpool.put(work.pattern(seed, SIZE)) for seed in range(n)]
        states = [one.state for one in dpool.store_stats(listing=True).listing]
        assert 0 < states.count("spilled") < n
        sigkill(one_of_role("dpool-node"))
        right = lost = 0
        for seed, ref in enumerate(refs):
            try:
                right += work.is_pattern(dpool.get(ref), seed, SIZE)
            except ObjectLost as error:
                assert "the node that had it has ended" in str(error)  # noqa: PT017
                lost += 1
        assert right + lost == n
        assert lost <= states.count("spilled") + 1, (right, lost, states)  # one may have been on its way
        assert lost > 0
        refs = [dpool.put(work.pattern(seed, SIZE)) for seed in range(n)]
        for seed, ref in enumerate(refs):
            assert executor.submit(work.check, ref, seed, SIZE).result(DEADLINE_S)
        del refs, ref
        drained()
    wait_until(lambda: not os.listdir(directory), DEADLINE_S, "the dead node's files are gone")


def test_spilled_objects_of_a_dead_node(tmp_path: Path) -> None:
    spill_dir = tmp_path / "disk"
    spill_dir.mkdir()
    alone(spilled_when_the_node_dies, str(spill_dir), store=40 * MIB, spill_dir=spill_dir)


@pytest.mark.parametrize("retries", [0, 3])
def test_the_node_is_killed_while_values_are_on_their_way(tmp_path: Path, retries: int) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2, max_retries=retries) as executor:
        for turn in range(3):
            for seed in range(10 * turn, 10 * turn + 10):
                ledger.submit(executor, seed, work.pattern, seed, SIZE)
                ledger.submit(executor, f"argument {seed}", work.check, work.pattern(seed, SIZE), seed, SIZE)
            wait_until(lambda turn=turn: ledger.futures[10 * turn].done(), DEADLINE_S, "the first")  # type: ignore[misc]
            sigkill(one_of_role("dpool-node"))
            assert executor.submit(tasks.double, 1).result(DEADLINE_S) == 2
        outcome = ledger.settle()
        for key, value in outcome.items():
            if isinstance(value, Exception):
                assert isinstance(value, (NodeLost, ObjectLost)), value
            else:
                assert value is True if isinstance(key, str) else work.is_pattern(value, key, SIZE)  # type: ignore[arg-type]
        del outcome, value
        ledger.futures.clear()
        drained(64 * MIB)


def test_a_put_goes_on_when_the_node_dies() -> None:
    with dpool.Executor(1) as executor:
        assert executor.submit(tasks.double, 1).result(DEADLINE_S) == 2
        for seed in range(4):
            ref = dpool.put(work.pattern(seed, SIZE))
            sigkill(one_of_role("dpool-node"))
            other = dpool.put(work.pattern(100 + seed, SIZE))
            assert work.is_pattern(dpool.get(ref), seed, SIZE)
            assert work.is_pattern(dpool.get(other), 100 + seed, SIZE)
        del ref, other
        drained(64 * MIB)
