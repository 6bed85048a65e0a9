"""A worker dies, leaves, forks, is stopped or hangs in C: its task alone is concerned."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

import dpool
from dpool.errors import ExecutorBroken, TaskTimeout, WorkerCrashed
from tests.faults import tasks
from tests.faults.support import DEADLINE_S, GONE_S, Ledger, all_gone, sigkill, workers_of
from tests.helpers import is_running, run_script, wait_until


def others(ledger: Ledger, executor: dpool.Executor, n: int, start: int = 0) -> list[int]:
    """`n` healthy tasks, whose values `check_others` expects."""
    for x in range(start, start + n):
        ledger.submit(executor, x, tasks.double, x)
    return list(range(start, start + n))


def check_others(ledger: Ledger, keys: list[int], outcome: dict[object, object]) -> None:
    assert {key: outcome[key] for key in keys} == {key: 2 * key for key in keys}
    runs = ledger.runs()
    assert {key: runs[str(key)] for key in keys} == dict.fromkeys(keys, 1)


# --- SIGKILL ---


def test_an_idle_worker_that_is_killed_is_replaced_and_no_future_affected(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        for name in ("a", "b"):
            ledger.submit(executor, name, tasks.wait_for_file, str(gate), name)
        first = {ledger.pid_of("a"), ledger.pid_of("b")}
        gate.touch()
        assert ledger.settle() == {"a": "a", "b": "b"}
        assert len(first) == 2
        for pid in first:
            sigkill(pid)
        keys = others(ledger, executor, 50)
        check_others(ledger, keys, ledger.settle())
        assert not first & {pid for key, pid in ledger.lines() if key in map(str, keys)}


def test_a_busy_worker_that_is_killed_fails_its_task_alone(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        ledger.submit(executor.options(name="the victim"), "victim", tasks.wait_for_file, str(gate))
        keys = others(ledger, executor, 60)
        pid = ledger.pid_of("victim")
        sigkill(pid)
        keys += others(ledger, executor, 60, start=60)
        outcome = ledger.settle()
        error = outcome.pop("victim")
        check_others(ledger, keys, outcome)
    assert type(error) is WorkerCrashed
    assert (error.pid, error.signal, error.exit_code, error.attempts) == (pid, signal.SIGKILL, None, 1)
    assert error.host == socket.gethostname()
    assert error.task == "the victim"
    for part in (str(pid), "SIGKILL", error.host, "the victim", error.log_file):
        assert part in str(error)
    assert ledger.runs()["victim"] == 1


def test_a_killed_task_is_run_again_as_often_as_allowed(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(1, max_retries=1) as executor:
        ledger.submit(executor, "again", tasks.wait_first_time, ledger.path, "again", str(gate))
        ledger.submit(executor, "fatal", tasks.kill_me)
        ledger.submit(executor.options(max_retries=3), "fatal too", tasks.kill_me)
        keys = others(ledger, executor, 20)
        sigkill(ledger.pid_of("again"))
        outcome = ledger.settle()
    assert outcome["again"] == "attempt 2"
    assert (type(outcome["fatal"]), outcome["fatal"].attempts) == (WorkerCrashed, 2)
    assert (type(outcome["fatal too"]), outcome["fatal too"].attempts) == (WorkerCrashed, 4)
    check_others(ledger, keys, outcome)
    runs = ledger.runs()
    assert (runs["again"], runs["fatal"], runs["fatal too"]) == (2, 2, 4)


def test_all_workers_killed_again_and_again(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    pids: set[int] = set()
    with dpool.Executor(2) as executor:
        for turn in range(5):
            for name in (f"a{turn}", f"b{turn}"):
                ledger.submit(executor, name, tasks.wait_for_file, str(gate), name)
            others(ledger, executor, 20, start=20 * turn)
            both = {ledger.pid_of(f"a{turn}"), ledger.pid_of(f"b{turn}")}
            for pid in both:
                os.kill(pid, signal.SIGKILL)
            pids |= both
        outcome = ledger.settle()
    errors = {key: value for key, value in outcome.items() if isinstance(value, BaseException)}
    assert set(errors) == {f"{letter}{turn}" for letter in "ab" for turn in range(5)}
    assert {type(error) for error in errors.values()} == {WorkerCrashed}
    assert {error.pid for error in errors.values()} == pids  # type: ignore[attr-defined]
    check_others(ledger, list(range(100)), outcome)
    assert all_gone(sorted(pids))


def test_strict_breaks_everything_that_is_pending(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2, strict=True) as executor:
        ledger.submit(executor, "a", tasks.wait_for_file, str(gate))
        ledger.submit(executor, "b", tasks.wait_for_file, str(gate))
        others(ledger, executor, 20)
        sigkill(ledger.pid_of("a"))
        outcome = ledger.settle()
        assert {type(value) for value in outcome.values()} == {WorkerCrashed}
        with pytest.raises(WorkerCrashed):
            executor.submit(tasks.pid)


# --- Ways to leave ---


@pytest.mark.parametrize(
    ("name", "action", "args", "number", "code"),
    [
        ("segfault", tasks.segfault, (), signal.SIGSEGV, None),
        ("abort", os.abort, (), signal.SIGABRT, None),
        ("exit 0", tasks.leave, (0,), None, 0),
        ("exit 3", tasks.leave, (3,), None, 3),
    ],
)
def test_a_task_that_ends_its_process(
    tmp_path: Path, name: str, action: object, args: tuple[int, ...], number: int | None, code: int | None
) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        keys = others(ledger, executor, 30)
        ledger.submit(executor, name, action, *args)  # type: ignore[arg-type]
        keys += others(ledger, executor, 30, start=30)
        outcome = ledger.settle()
        error = outcome.pop(name)
        check_others(ledger, keys, outcome)
    assert (type(error), error.signal, error.exit_code) == (WorkerCrashed, number, code)
    assert error.pid == ledger.pid_of(name)
    assert ledger.runs()[name] == 1


def test_sys_exit_in_a_task_is_its_exception_and_the_worker_stays() -> None:
    with dpool.Executor(1) as executor:
        before = executor.submit(tasks.pid).result(DEADLINE_S)
        for code in (5, 0, None, "a text"):
            error = executor.submit(tasks.sys_exit, code).exception(DEADLINE_S)
            assert type(error) is SystemExit
            assert error.code == code
        assert executor.submit(tasks.pid).result(DEADLINE_S) == before


# --- Forks ---


def test_a_task_may_fork(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        pid = executor.submit(tasks.pid).result(DEADLINE_S)
        ledger.submit(executor, "fork", tasks.fork_and_child_exits)
        keys = others(ledger, executor, 20)
        outcome = ledger.settle()
        assert outcome.pop("fork") == (pid, 7)
        check_others(ledger, keys, outcome)


def test_a_forked_child_that_returns_from_the_task_ends_there(tmp_path: Path) -> None:
    """It is not a second worker: it answers nothing, runs nothing, and leaves."""
    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        assert sum(executor.map(tasks.double, range(3000))) == 3000 * 2999  # now frames carry many tasks
        pid = executor.submit(tasks.pid).result(DEADLINE_S)
        keys = others(ledger, executor, 100)
        ledger.submit(executor, "fork", tasks.fork_and_child_returns, ledger.path)
        keys += others(ledger, executor, 100, start=100)
        outcome = ledger.settle()
        assert outcome.pop("fork") == ("worker", pid)
        check_others(ledger, keys, outcome)
        assert ledger.runs()["child"] == 1
        assert executor.submit(tasks.pid).result(DEADLINE_S) == pid
    wait_until(lambda: not is_running(ledger.pid_of("child")), GONE_S)


def test_a_forked_child_that_returns_late(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        ledger.submit(executor, "fork", tasks.fork_and_child_outlives, ledger.path, str(gate))
        assert ledger.settle()["fork"] == "worker"
        keys = others(ledger, executor, 100)
        gate.touch()
        keys += others(ledger, executor, 100, start=100)
        outcome = ledger.settle()
        assert outcome.pop("fork") == "worker"
        check_others(ledger, keys, outcome)
        child = ledger.pid_of("child")
        wait_until(lambda: not is_running(child), GONE_S, "the child has left")


# --- A worker is stopped ---

STOPPED = """
import os, signal, sys
import dpool
from pathlib import Path
from tests.faults import tasks
from tests.faults.support import DEADLINE_S, GONE_S, Ledger, sigkill
from tests.helpers import is_running, wait_until
from dpool.errors import WorkerCrashed

here = Path(sys.argv[1])
gate = here / "gate"
ledger = Ledger(here)
with dpool.Executor(2) as executor:
    assert sum(executor.map(tasks.double, range(2000))) == 2000 * 1999
    ledger.submit(executor, "victim", tasks.wait_for_file, str(gate), "late")
    for x in range(100):
        ledger.submit(executor, x, tasks.double, x)
    pid = ledger.pid_of("victim")
    os.kill(pid, signal.SIGSTOP)
    for x in range(100, 200):
        ledger.submit(executor, x, tasks.double, x)
    wait_until(lambda: all(ledger.futures[x].done() for x in range(200)), DEADLINE_S, "the others are done")
    gate.touch()
    assert not ledger.futures["victim"].done(), "the worker was replaced before its time"
    outcome = ledger.settle()
    error = outcome.pop("victim")
    assert type(error) is WorkerCrashed, error
    assert error.pid == pid
    assert "SIGSTOP" in str(error), error
    assert outcome == {x: 2 * x for x in range(200)}
    assert set(ledger.runs().values()) == {1}, ledger.runs()
    wait_until(lambda: not is_running(pid), GONE_S)

    # one that is continued in time goes on as if nothing had been; unread tasks have moved on meanwhile
    (here / "second").mkdir()
    gate, ledger = here / "gate2", Ledger(here / "second")
    ledger.submit(executor, "victim", tasks.wait_for_file, str(gate), "in time")
    pid = ledger.pid_of("victim")
    os.kill(pid, signal.SIGSTOP)
    for x in range(50):
        ledger.submit(executor, x, tasks.double, x)
    wait_until(lambda: all(ledger.futures[x].done() for x in range(50)), DEADLINE_S, "the others are done")
    gate.touch()
    os.kill(pid, signal.SIGCONT)
    assert ledger.settle() == {"victim": "in time", **{x: 2 * x for x in range(50)}}
    assert is_running(pid)
print("good")
"""


def test_a_stopped_worker_is_replaced_when_its_time_is_over(tmp_path: Path) -> None:
    result = run_script(STOPPED, str(tmp_path), env={"DPOOL_STOPPED_WORKER_S": "1.5"}).check()
    assert result.stdout == "good\n"


STOPPED_IDLE = """
import os, signal, sys
import dpool
from pathlib import Path
from tests.faults import tasks
from tests.faults.support import Ledger

ledger = Ledger(Path(sys.argv[1]))
with dpool.Executor(1) as executor:
    pid = executor.submit(tasks.pid).result()
    os.kill(pid, signal.SIGSTOP)
    for x in range(100):
        ledger.submit(executor, x, tasks.double, x)
    outcome = ledger.settle()
    assert outcome == {x: 2 * x for x in range(100)}, outcome
    assert set(ledger.runs().values()) == {1}
    assert pid not in {number for _, number in ledger.lines()}
print("good")
"""


def test_tasks_that_a_stopped_worker_never_read_move_on_without_an_error(tmp_path: Path) -> None:
    result = run_script(STOPPED_IDLE, str(tmp_path), env={"DPOOL_STOPPED_WORKER_S": "0.5"}).check()
    assert result.stdout == "good\n"


# --- C code that holds the interpreter's lock ---


def test_a_task_that_holds_the_gil_stops_nobody_else(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor, dpool.Executor(1) as other:
        ledger.submit(executor, "held", tasks.hold_gil, 3.0)
        ledger.pid_of("held")
        keys = others(ledger, executor, 100)
        wait_until(lambda: all(ledger.futures[key].done() for key in keys), DEADLINE_S, "the others are done")
        assert other.submit(tasks.double, 4).result(DEADLINE_S) == 8
        other.shutdown()
        assert not ledger.futures["held"].done(), "the other executor's shutdown waited for it"
        outcome = ledger.settle()
        assert outcome.pop("held") == "held"
        check_others(ledger, keys, outcome)


def test_a_task_that_holds_the_gil_can_be_timed_out_and_cancelled(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        late = ledger.submit(executor.options(timeout=0.3), "late", tasks.hold_gil, 300.0)
        forced = ledger.submit(executor, "forced", tasks.hold_gil, 300.0)
        keys = others(ledger, executor, 20)
        ledger.pid_of("forced")
        assert forced.cancel(force=True)
        assert type(late.exception(DEADLINE_S)) is TaskTimeout
        wait_until(lambda: all(future.done() for future in ledger.futures.values()), DEADLINE_S)
        del ledger.futures["forced"]
        outcome = ledger.settle()
        outcome.pop("late")
        check_others(ledger, keys, outcome)


def test_a_driver_that_holds_the_gil_finds_its_results_when_it_lets_go(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        keys = others(ledger, executor, 200)
        tasks.hold_gil(1.0)
        keys += others(ledger, executor, 200, start=200)
        check_others(ledger, keys, ledger.settle())


# --- Workers that cannot even start ---


def test_workers_that_die_at_their_start_break_the_executor_without_a_fork_storm(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2, env={"A=B": "no variable can be called so"}) as executor:
        keys = others(ledger, executor, 20)
        log = executor.submit(tasks.pid)
        assert type(log.exception(DEADLINE_S)) is ExecutorBroken
        message = str(log.exception())
        outcome = ledger.settle()
        assert {type(outcome[key]) for key in keys} == {ExecutorBroken}
        with pytest.raises(ExecutorBroken):
            executor.submit(tasks.pid)
    assert "died before they ran anything" in message
    assert "exited with code" in message
    assert not ledger.runs()
    sys.stderr.flush()
    # each failed start says why, once; there were no more than the message counts, and their companions
    assert 5 <= capfd.readouterr().err.count("ValueError") <= 12


def test_killing_all_workers_on_purpose_is_final_whatever_the_retries(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    executor = dpool.Executor(2, max_retries=5)
    for name in ("a", "b"):
        ledger.submit(executor, name, tasks.wait_for_file, str(gate))
    for x in range(50):
        ledger.submit(executor, x, tasks.double, x)
    ledger.pid_of("a")
    ledger.pid_of("b")
    executor.kill_workers()
    wait_until(lambda: all(future.done() for future in ledger.futures.values()), DEADLINE_S)
    executor.shutdown()
    assert {type(ledger.futures[name].exception()) for name in ("a", "b")} == {WorkerCrashed}
    assert all(ledger.futures[x].cancelled() for x in range(50))
    assert ledger.runs() == {"a": 1, "b": 1}


def test_crashes_cause_no_back_off(tmp_path: Path) -> None:
    """A worker that had come as far as a task was sound: the next one starts at once, however often that happens."""
    from time import monotonic

    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        began_s = monotonic()
        for x in range(40):
            ledger.submit(executor, x, tasks.kill_me)
        assert {type(value) for value in ledger.settle().values()} == {WorkerCrashed}
        # with the back-off of workers that die at once this takes more than a minute
        assert monotonic() - began_s < 40


def test_shutdown_while_workers_die(tmp_path: Path, gate: Path) -> None:
    ledger = Ledger(tmp_path)
    executor = dpool.Executor(2)
    ledger.submit(executor, "a", tasks.wait_for_file, str(gate))
    ledger.submit(executor, "b", tasks.wait_for_file, str(gate))
    keys = others(ledger, executor, 50)
    pids = [ledger.pid_of("a"), ledger.pid_of("b")]
    executor.shutdown(wait=False)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    executor.shutdown(wait=True)
    outcome = ledger.settle(1)
    assert {type(outcome.pop(name)) for name in ("a", "b")} == {WorkerCrashed}
    check_others(ledger, keys, outcome)
    assert workers_of(executor) == []
