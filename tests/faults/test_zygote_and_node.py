"""The zygote dies: nobody notices. The node dies: its running tasks are lost, all others run on the next one."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

import dpool
from dpool.errors import DpoolError, NodeLost
from tests.faults import tasks
from tests.faults.support import (
    DEADLINE_S,
    GONE_S,
    Ledger,
    all_gone,
    by_role,
    one_of_role,
    session_of,
    sigkill,
    workers_of,
)
from tests.helpers import is_running, run_script, wait_until

NODE, ZYGOTE = "dpool-node", "dpool-zygote"


# --- Zygote ---


def test_running_tasks_survive_the_zygote_and_later_workers_start(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        ledger.submit(executor, "a", tasks.wait_for_file, str(gate), "a")
        running = ledger.pid_of("a")
        zygote = one_of_role(ZYGOTE)
        sigkill(zygote)
        for x in range(50):
            ledger.submit(executor, x, tasks.double, x)
        for turn in range(2):  # both workers anew, from the next zygote
            name = f"victim {turn}"
            ledger.submit(executor, name, tasks.kill_me)
            ledger.futures[name].exception(DEADLINE_S)
        for x in range(50, 100):
            ledger.submit(executor, x, tasks.double, x)
        wait_until(lambda: all(ledger.futures[x].done() for x in range(100)), DEADLINE_S)
        gate.touch()
        outcome = ledger.settle()
        assert outcome["a"] == "a"
        assert is_running(running)
        assert {x: outcome[x] for x in range(100)} == {x: 2 * x for x in range(100)}
        assert set(ledger.runs().values()) == {1}
        assert by_role(ZYGOTE) != [zygote]


def test_workers_that_the_zygote_had_not_forked_yet_are_forked_by_the_next_one(tmp_path: Path, gate: Path) -> None:
    """More of them than an executor may lose in a row: this is no fault of theirs."""
    ledger = Ledger(tmp_path)
    with dpool.Executor(8) as executor:
        executor.submit(tasks.pid).result(DEADLINE_S)
        zygote = one_of_role(ZYGOTE)
        os.kill(zygote, signal.SIGSTOP)
        for x in range(8):
            ledger.submit(executor, x, tasks.wait_for_file, str(gate), x)
        sigkill(zygote)
        pids = {ledger.pid_of(x) for x in range(8)}
        assert len(pids) == 8
        gate.touch()
        assert ledger.settle() == {x: x for x in range(8)}
        assert set(ledger.runs().values()) == {1}


def test_the_zygote_is_killed_again_and_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2, max_retries=1) as executor:
        for turn in range(4):
            for x in range(25 * turn, 25 * turn + 25):
                ledger.submit(executor, x, tasks.double, x)
            sigkill(one_of_role(ZYGOTE))
            ledger.submit(executor, f"once {turn}", tasks.double_or_die_once, str(tmp_path / f"died{turn}"), turn)
            assert ledger.futures[f"once {turn}"].result(DEADLINE_S) == 2 * turn
        outcome = ledger.settle()
        assert {x: outcome[x] for x in range(100)} == {x: 2 * x for x in range(100)}
        runs = ledger.runs()
        assert all(runs[str(x)] == 1 for x in range(100))


# --- Node ---


def test_the_node_is_killed(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        for name in ("a", "b"):
            ledger.submit(executor, name, tasks.wait_for_file, str(gate))
        for x in range(100):
            ledger.submit(executor, x, tasks.double, x)
        workers = [ledger.pid_of("a"), ledger.pid_of("b")]
        node, zygote = one_of_role(NODE), one_of_role(ZYGOTE)
        session = session_of(node)
        assert session.is_dir()
        sigkill(node)
        wait_until(lambda: all_gone([*workers, zygote]), GONE_S, "the node's processes are gone")
        outcome = ledger.settle()
        lost = [outcome.pop(name) for name in ("a", "b")]
        assert outcome == {x: 2 * x for x in range(100)}
        assert set(ledger.runs().values()) == {1}
        assert [type(error) for error in lost] == [NodeLost, NodeLost]
        assert all(str(pid) in str(error) for error, pid in zip(lost, workers, strict=True))
        wait_until(lambda: not session.exists(), GONE_S, "the dead node's directory is gone")
        assert by_role(NODE) != [node]
        assert executor.submit(tasks.double, 21).result(DEADLINE_S) == 42


def test_a_task_that_the_node_took_along_is_retried(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2, max_retries=1) as executor:
        ledger.submit(executor, "again", tasks.wait_first_time, ledger.path, "again", str(gate))
        for x in range(50):
            ledger.submit(executor, x, tasks.double, x)
        ledger.pid_of("again")
        sigkill(one_of_role(NODE))
        outcome = ledger.settle()
        assert outcome.pop("again") == "attempt 2"
        assert outcome == {x: 2 * x for x in range(50)}
        runs = ledger.runs()
        assert runs["again"] == 2
        assert all(runs[str(x)] <= 2 for x in range(50))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nodes_that_die_again_and_again(tmp_path: Path, number: int) -> None:
    ledger = Ledger(tmp_path)
    seen: set[int] = set()
    with dpool.Executor(2, max_retries=5) as executor, dpool.Executor(1) as other:
        for turn in range(4):
            for x in range(50 * turn, 50 * turn + 50):
                ledger.submit(executor, x, tasks.double, x)
            assert other.submit(tasks.double, turn).result(DEADLINE_S) == 2 * turn
            node = one_of_role(NODE)
            os.kill(node, number)
            wait_until(partial(all_gone, [node]), GONE_S)
            seen.add(node)
        assert ledger.settle() == {x: 2 * x for x in range(200)}
    assert len(seen) == 4


def test_an_idle_executor_notices_that_its_node_died(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        first = executor.submit(tasks.pid).result(DEADLINE_S)
        sigkill(one_of_role(NODE))
        wait_until(lambda: not is_running(first), GONE_S)
        for x in range(50):
            ledger.submit(executor, x, tasks.double, x)
        assert ledger.settle() == {x: 2 * x for x in range(50)}
        assert first not in workers_of(executor)


def begun(ledger: Ledger, n: int) -> bool:
    return len(ledger.lines()) >= n


def test_a_node_that_dies_at_any_moment_of_its_start(tmp_path: Path) -> None:
    """Whatever it had done so far, every future resolves: with its value, or with an error that says why not."""
    seed = int(os.environ.get("DPOOL_TEST_SEED", "0")) or random.randrange(1 << 30)
    print("DPOOL_TEST_SEED", seed)
    rng = random.Random(seed)
    for turn in range(8):
        (tmp_path / str(turn)).mkdir()
        ledger = Ledger(tmp_path / str(turn))
        executor = dpool.Executor(2)
        for x in range(10):
            ledger.submit(executor, x, tasks.double, x)
        wait_until(partial(begun, ledger, rng.randrange(0, 6) if turn else 0), DEADLINE_S)
        for pid in by_role(NODE):
            os.kill(pid, signal.SIGKILL)
        for key, value in ledger.settle().items():
            assert value == 2 * int(str(key)) or isinstance(value, DpoolError), value
        executor.shutdown()


def test_a_node_that_is_stopped_for_a_while_is_a_stall_and_no_error(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        executor.submit(tasks.pid).result(DEADLINE_S)
        node = one_of_role(NODE)
        os.kill(node, signal.SIGSTOP)
        for x in range(50):
            ledger.submit(executor, x, tasks.double, x)  # the worker that is up does them alone
        ledger.settle()
        ledger.submit(executor, "victim", tasks.kill_me)  # only the node can tell that it died
        for x in range(50, 60):
            ledger.submit(executor, x, tasks.double, x)
        wait_until(lambda: "victim" in ledger.runs(), DEADLINE_S)
        os.kill(node, signal.SIGCONT)
        outcome = ledger.settle()
        assert isinstance(outcome.pop("victim"), DpoolError)
        assert outcome == {x: 2 * x for x in range(60)}
        assert by_role(NODE) == [node]


def test_a_nested_executor_dies_with_the_node_and_is_made_again(tmp_path: Path) -> None:
    with dpool.Executor(2, max_retries=2) as executor:
        futures = [executor.submit(tasks.nested, 200) for _ in range(4)]
        futures[0].result(DEADLINE_S)
        sigkill(one_of_role(NODE))
        assert [future.result(DEADLINE_S) for future in futures] == [200 * 199] * 4


NO_WORKER = """
import os, signal, sys, threading
import dpool
from dpool.errors import StartupError
from tests.faults import tasks
from tests.faults.support import by_role
from tests.helpers import MARK, wait_until

over, killed = threading.Event(), set()

def kill_zygotes_and_nodes():
    while not over.wait(0.005):
        for pid in by_role("dpool-node"):
            if pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)

executor = dpool.Executor(2)
killer = threading.Thread(target=kill_zygotes_and_nodes)
killer.start()
futures = [executor.submit(tasks.wait_for_file, sys.argv[1]) for x in range(10)]
try:
    wait_until(lambda: all(f.done() for f in futures), 60, "no node lives long enough, so the tasks fail")
finally:
    over.set()
    killer.join()
executor.shutdown()
errors = {type(f.exception()).__name__ for f in futures}
assert errors <= {"StartupError", "NodeLost"}, errors
print(len(killed))
"""


def test_nodes_that_never_get_as_far_as_a_worker_are_not_started_for_ever(gate: Path) -> None:
    killed = int(run_script(NO_WORKER, str(gate)).check().stdout)
    assert 1 <= killed <= 40


def test_what_a_dead_nodes_worker_began_is_never_run_again(tmp_path: Path) -> None:
    """The kernel ends the workers a moment after it closed the node's socket; what they begin until then is theirs."""
    with dpool.Executor(2) as executor:
        for turn in range(12):
            (tmp_path / str(turn)).mkdir()
            ledger = Ledger(tmp_path / str(turn))
            for x in range(400):
                ledger.submit(executor, x, tasks.spin_and_double, x, 0.0001)
            wait_until(partial(begun, ledger, 20 * turn), DEADLINE_S)
            sigkill(one_of_role(NODE))
            outcome = ledger.settle()
            runs = ledger.runs()
            assert all(runs[str(x)] <= 1 for x in range(400)), "without retries a task runs once"
            assert all(value == 2 * int(str(x)) or type(value) is NodeLost for x, value in outcome.items())
            lost = [value for value in outcome.values() if isinstance(value, NodeLost)]
            assert len(lost) <= 2, "one task of each worker, at most"
