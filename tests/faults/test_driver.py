"""The driver dies, is interrupted, or forks: what it started goes with it, or is not the child's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.support import DEADLINE_S, GONE_S, by_role, session_of
from tests.helpers import MARK, Script, run_script, wait_until

BUSY = """
import sys, threading
from pathlib import Path
import dpool
from tests.faults import tasks
from tests.faults.support import servers, tell
from tests.helpers import MARK, wait_until

here, how = Path(sys.argv[1]), sys.argv[2]
task = getattr(tasks, sys.argv[3])
path, gate = str(here / "runs"), str(here / "gate")

def main():
    with dpool.Executor(2) as executor:
        futures = [executor.submit(task, path, gate) for _ in range(4)]
        if "store" in sys.argv:
            wait_until(servers, 30, "the store has been started")
        wait_until(lambda: Path(path).exists() and Path(path).read_text().count("running") >= 2, 30, "both run")
        tell("ready")
        if how == "result":
            futures[0].result()
        elif how == "wait":
            dpool_wait(futures)
        elif how == "with":
            pass
        elif how == "as_completed":
            for future in as_completed(futures):
                future.result()
        elif how == "map":
            list(executor.map(tasks.wait_for_file, [gate] * 4))
        elif how == "sleep":
            time.sleep(60)

import time
from concurrent.futures import as_completed, wait as dpool_wait
if how == "exit":
    executor = dpool.Executor(2)
    futures = [executor.submit(task, path, gate) for _ in range(4)]
    wait_until(lambda: Path(path).exists() and Path(path).read_text().count("running") >= 2, 30, "both run")
    me = threading.get_ident()

    def leaving():  # met before, Ctrl-C would end the program in the usual way
        names, frame = set(), sys._current_frames()[me]
        while frame:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        return {"_wait_for_pools", "_read_events"} <= names

    def tell_when_main_leaves():
        wait_until(leaving, 30, "the main thread waits at its exit")
        tell("ready")

    threading.Thread(target=tell_when_main_leaves, daemon=True).start()
else:
    main()
"""


def start(tmp_path: Path, how: str, task: str = "report", *more: str) -> Script:
    """A driver with two running tasks and two that wait, once they run."""
    script = Script(BUSY, str(tmp_path), how, task, *more)
    assert script.process.stdout is not None
    line = script.process.stdout.readline()
    if line != "ready\n":
        script.kill()
        raise AssertionError(f"{line!r}: {script.process.communicate()}")
    return script


def sessions(script: Script) -> list[Path]:
    return [session_of(pid) for pid in by_role("dpool-node", script.mark)]


def lines(tmp_path: Path, word: str) -> int:
    return (tmp_path / "runs").read_text().count(word)


# --- It dies ---


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_takes_everything_along(tmp_path: Path, number: int) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with start(first, "result", "report", "store") as script, start(second, "result") as other:
        directories = sessions(script)
        assert len(directories) == 1
        assert {one.command.split("/")[-1] for one in script.leftovers()}
        script.process.send_signal(number)
        result = script.finish(timeout=GONE_S, settle_s=GONE_S)  # checks that no process is left
        assert result.rc == -number
        wait_until(lambda: not directories[0].exists(), GONE_S, "the session directory is gone")
        assert lines(first, "done") == 0
        # the other driver is not concerned
        (second / "gate").touch()
        other.finish().check()
        assert lines(second, "running") == 4


def test_a_driver_that_is_killed_with_its_node_and_zygote(tmp_path: Path) -> None:
    """Nobody is left to tidy up but the kernel; and the directory stays, at worst, for the next session to find."""
    with start(tmp_path, "result", "report", "store") as script:
        directories = sessions(script)
        for pid in (*by_role("dpool-zygote", script.mark), script.pid, *by_role("dpool-node", script.mark)):
            os.kill(pid, signal.SIGKILL)
        script.finish(timeout=GONE_S, settle_s=GONE_S)
    left = [one for one in directories if one.exists()]
    for one in left:
        os.utime(one, (0, 0))  # a session that may be about to begin is left alone for a while
    text = """
import sys
from pathlib import Path
import dpool
from tests.helpers import wait_until
with dpool.Executor(1) as executor:
    assert executor.submit(abs, -1).result() == 1
    wait_until(lambda: not any(map(Path.exists, map(Path, sys.argv[1:]))), 30, "the stale session is removed")
"""
    run_script(text, *map(str, left)).check()


@pytest.mark.parametrize("last", ["os._exit(5)", "sys.exit(5)", "raise SystemExit(5)"])
def test_a_driver_that_leaves_with_tasks_pending(tmp_path: Path, last: str) -> None:
    text = f"""
import os, sys
import dpool
from tests.faults import tasks
executor = dpool.Executor(2)
futures = [executor.submit(tasks.noted, sys.argv[1], x, tasks.spin, 0.01) for x in range(20)]
futures[0].result()
{last}
"""
    path = tmp_path / "runs"
    result = run_script(text, str(path))
    assert result.rc == 5
    assert result.stderr == ""
    if "_exit" not in last:
        assert len(path.read_text().splitlines()) == 20  # as in the standard library: the rest is done first


def test_tasks_that_fail_and_crash_while_the_interpreter_exits(gate: Path) -> None:
    """Their errors are made then; a module that is imported for them may not be importable any more."""
    text = """
import sys, threading
import dpool
from tests.faults import tasks

def tell(future):
    sys.stdout.write(f"{type(future.exception()).__name__}\\n")

executor = dpool.Executor(2)
executor.submit(tasks.pid).result()
for action, args in ((tasks.fail, ("",)), (tasks.kill_me, ()), (tasks.segfault, ()), (tasks.double, (1,))):
    executor.submit(tasks.after_file, sys.argv[1], action, *args).add_done_callback(tell)
opener = threading.Timer(0.2, open, (sys.argv[1], "w"))
opener.daemon = True
opener.start()
"""
    result = run_script(text, str(gate)).check()
    assert sorted(result.stdout.split()) == ["NoneType", "WorkerCrashed", "WorkerCrashed", "ZeroDivisionError"]
    assert "Error" not in result.stderr.replace("Fatal Python error", ""), result.stderr


# --- Ctrl-C ---


@pytest.mark.parametrize("how", ["result", "wait", "with", "as_completed", "map", "sleep", "exit"])
def test_ctrl_c_interrupts_the_running_tasks_and_the_driver(tmp_path: Path, how: str) -> None:
    with start(tmp_path, how) as script:
        os.killpg(script.pid, signal.SIGINT)  # as a terminal does
        result = script.finish(timeout=30, settle_s=GONE_S)
    # once the interpreter exits it can only report an exception, not end with it
    assert result.rc in ((0, -signal.SIGINT) if how == "exit" else (-signal.SIGINT,)), result
    assert result.stderr.count("Traceback") == 1, result.stderr
    assert result.stderr.rstrip(": \n").endswith("KeyboardInterrupt"), result.stderr
    assert lines(tmp_path, "running") == 2
    assert lines(tmp_path, "interrupted") == 2


def test_ctrl_c_leaves_nothing_of_a_session(tmp_path: Path) -> None:
    with start(tmp_path, "result", "report", "store") as script:
        directories = sessions(script)
        os.killpg(script.pid, signal.SIGINT)
        script.finish(timeout=30, settle_s=GONE_S)
    wait_until(lambda: not any(one.exists() for one in directories), GONE_S)


@pytest.mark.parametrize("how", ["result", "with", "exit"])
def test_a_second_ctrl_c_kills_tasks_that_do_not_listen(tmp_path: Path, how: str) -> None:
    with start(tmp_path, how, "stubborn") as script:
        os.killpg(script.pid, signal.SIGINT)
        wait_until(lambda: lines(tmp_path, "interrupted") == 2, DEADLINE_S, "both were interrupted")
        assert script.process.poll() is None
        os.killpg(script.pid, signal.SIGINT)
        result = script.finish(timeout=30, settle_s=GONE_S)
    assert result.rc in ((0, -signal.SIGINT) if how == "exit" else (-signal.SIGINT,)), result
    assert "KeyboardInterrupt" in result.stderr
    assert lines(tmp_path, "running") == 2
    assert "dpool-io" not in result.stderr


def test_a_driver_that_catches_ctrl_c_can_go_on(tmp_path: Path) -> None:
    text = """
import sys, threading
from pathlib import Path
import dpool
from tests.faults import tasks
from tests.faults.support import tell
from tests.helpers import wait_until

path, gate = sys.argv[1:]
main = threading.get_ident()

def waits():
    frame = sys._current_frames()[main]
    while frame and frame.f_code.co_name != "wait_for":
        frame = frame.f_back
    return frame

def tell_when_main_waits():  # met elsewhere, the exception is the program's own
    wait_until(waits, 30, "the main thread waits for a result")
    tell("ready")

with dpool.Executor(2) as executor:
    futures = [executor.submit(tasks.report, path, gate) for _ in range(4)]
    wait_until(lambda: Path(path).exists() and Path(path).read_text().count("running") >= 2, 30, "both run")
    threading.Thread(target=tell_when_main_waits).start()
    try:
        futures[0].result()
    except KeyboardInterrupt:
        tell("caught")
    outcome = [type(f.exception()).__name__ if not f.cancelled() else "cancelled" for f in futures]
    assert outcome == ["KeyboardInterrupt"] * 2 + ["cancelled"] * 2, outcome
    assert list(executor.map(tasks.double, range(100))) == [2 * x for x in range(100)]
tell("good")
"""
    with Script(text, str(tmp_path / "runs"), str(tmp_path / "gate")) as script:
        assert script.process.stdout is not None
        assert script.process.stdout.readline() == "ready\n"
        os.killpg(script.pid, signal.SIGINT)
        result = script.finish(timeout=30).check()
    assert result.stdout == "caught\ngood\n"
    assert result.stderr == ""


AT_ANY_MOMENT = """
import os, random, signal, sys, threading
from concurrent.futures import CancelledError, wait
import dpool
from tests.faults import tasks

seed = int(os.environ.get("DPOOL_TEST_SEED", "0")) or random.randrange(1 << 30)
print("DPOOL_TEST_SEED", seed)
rng = random.Random(seed)
hit = 0
with dpool.Executor(2) as executor:
    list(executor.map(tasks.double, range(3000)))
    for turn in range(40):
        futures, timer = [], threading.Timer(rng.random() * 0.02, os.kill, (os.getpid(), signal.SIGINT))
        try:
            try:
                timer.start()
                for x in range(1500):
                    futures.append(executor.submit(tasks.double, x))
                for future in futures:
                    future.result()
            finally:
                timer.join()
                signal.sigtimedwait([], 0)  # let the handler run here, if it has not
        except KeyboardInterrupt:
            hit += 1
        done, pending = wait(futures, 30)
        assert not pending, f"turn {turn}: {len(pending)} of {len(futures)} futures never resolve"
        for x, future in enumerate(futures):
            try:
                assert future.result() == 2 * x
            except (CancelledError, KeyboardInterrupt):
                pass
        assert list(executor.map(tasks.double, range(50))) == [2 * x for x in range(50)]
assert hit >= 20, hit
"""


def test_ctrl_c_at_any_moment_leaves_no_future_unresolved() -> None:
    """In the middle of a submit, of an answer, of a callback: the program may catch it and go on."""
    run_script(AT_ANY_MOMENT).check()


# --- It forks ---

FORKS = """
import os, sys
from pathlib import Path
import dpool
from dpool.errors import ForkedRuntimeError
from tests.faults import tasks
from tests.faults.support import Ledger
from tests.helpers import wait_until

here = Path(sys.argv[1])
gate = here / "gate"
ledger = Ledger(here)

def refused(what, action):
    try:
        action()
    except ForkedRuntimeError as error:
        assert str(os.getpid()) in str(error) and str(os.getppid()) in str(error), error
    else:
        raise AssertionError(f"{what} was not refused in the child")

def child(executor):
    refused("submit", lambda: executor.submit(tasks.pid))
    refused("map", lambda: list(executor.map(tasks.double, [1])))
    refused("result", lambda: ledger.futures["a"].result())
    refused("result of a queued task", lambda: ledger.futures[3].result())
    refused("exception", lambda: ledger.futures["a"].exception())
    assert not ledger.futures[3].cancel() and not ledger.futures["a"].cancel(force=True)
    refused("result with a timeout", lambda: ledger.futures["a"].result(1))
    executor.shutdown()  # leaves the parent's alone: it must not raise, for `with` blocks end in children too
    with dpool.Executor(2) as own:
        assert own.submit(tasks.double, 4).result(30) == 8
        assert list(own.map(tasks.double, range(300))) == [2 * x for x in range(300)]

with dpool.Executor(2) as executor:
    for name in "ab":
        ledger.submit(executor, name, tasks.wait_for_file, str(gate), name)
    for x in range(50):
        ledger.submit(executor, x, tasks.double, x)
    ledger.pid_of("a"), ledger.pid_of("b")
    pid = os.fork()
    if not pid:
        code = 1
        try:
            child(executor)
            code = 0
        finally:
            if sys.argv[2] == "_exit" or code:
                import traceback
                if code: traceback.print_exc()
                os._exit(code)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    gate.touch()
    assert code == 0
    assert ledger.settle() == {"a": "a", "b": "b", **{x: 2 * x for x in range(50)}}
    assert set(ledger.runs().values()) == {1}
    assert list(executor.map(tasks.double, range(300))) == [2 * x for x in range(300)]
print("good")
"""


@pytest.mark.parametrize("leaves", ["_exit", "sys.exit"])
def test_the_driver_forks_while_tasks_are_pending(tmp_path: Path, leaves: str) -> None:
    """`sys.exit` passes through the parent's `with` block, in the child too."""
    env = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}  # from 3.12 on, of forks in a process with threads
    result = run_script(FORKS, str(tmp_path), leaves, env=env).check()
    assert result.stdout == "good\n"
    assert result.stderr == ""


def test_children_of_multiprocessing_leave_the_parents_executor_alone(tmp_path: Path) -> None:
    text = """
import multiprocessing, sys
import dpool
from tests.faults import tasks

def child():
    import dpool
    with dpool.Executor(1) as own:
        assert own.submit(tasks.double, 2).result(30) == 4

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with dpool.Executor(2) as executor:
        futures = [executor.submit(tasks.spin, 0.01) for _ in range(40)]
        children = [context.Process(target=child) for _ in range(3)]
        for one in children: one.start()
        for one in children: one.join()
        assert [one.exitcode for one in children] == [0, 0, 0]
        assert all(f.result(30) > 0 for f in futures)
    print("good")
"""
    result = run_script(text).check()
    assert result.stdout == "good\n"
    assert result.stderr == ""


def test_a_forked_child_that_outlives_the_driver_holds_nothing_up(tmp_path: Path) -> None:
    """It has inherited the driver's sockets; the node must not wait for it."""
    text = """
import os, sys
import dpool
from tests.faults import tasks
from tests.faults.support import tell
executor = dpool.Executor(1)
executor.submit(tasks.pid).result()
if not os.fork():
    tasks.wait_for_file(sys.argv[1])
    os._exit(0)
tell("ready")
os._exit(3)
"""
    gate = tmp_path / "gate"
    with Script(text, str(gate)) as script:
        assert script.process.stdout is not None
        assert script.process.stdout.readline() == "ready\n"
        wait_until(lambda: not by_role("dpool-node", script.mark), GONE_S, "the node left with the driver")
        gate.touch()
        assert script.finish().rc == 3


assert MARK
