"""Ends: `shutdown` in all its forms, collected executors, interpreter exit, Ctrl-C, and that nothing is left."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import signal
import threading
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

import dpool
from dpool._core.driver import runtime
from tests.executor.support import LONG_S, Gate, noop, same, square
from tests.helpers import Script, is_running, run_script, wait_until

# --- shutdown ---


def test_shutdown_finishes_what_is_pending_and_leaves_no_worker(gate: Gate) -> None:
    ex = dpool.Executor(2)
    futures = [ex.submit(square, i) for i in range(100)]
    pids = list(ex._processes)
    assert pids
    ex.shutdown()
    assert [future.result(0) for future in futures] == [i * i for i in range(100)]
    assert not any(map(is_running, pids))


def test_shutdown_is_idempotent() -> None:
    ex = dpool.Executor(1)
    assert ex.submit(same, 1).result(LONG_S) == 1
    for wait_too in (False, True, True, False):
        ex.shutdown(wait=wait_too)
    ex.shutdown(cancel_futures=True)
    with ex:
        pass
    unused = dpool.Executor(1)
    unused.shutdown()
    unused.shutdown(wait=False)


def test_submit_after_shutdown() -> None:
    ex = dpool.Executor(1)
    view = ex.options(name="view")
    ex.shutdown()
    for submit in (ex.submit, view.submit):
        with pytest.raises(RuntimeError, match="after shutdown"):
            submit(noop)


def test_shutdown_without_waiting_still_finishes(gate: Gate) -> None:
    ex = dpool.Executor(1)
    running = ex.submit(gate.enter, value=1)
    pending = [ex.submit(square, i) for i in range(50)]
    ex.shutdown(wait=False)
    assert not running.done()
    with pytest.raises(RuntimeError):
        ex.submit(noop)
    gate.open()
    assert running.result(LONG_S) == 1
    assert [future.result(LONG_S) for future in pending] == [i * i for i in range(50)]


def test_shutdown_without_waiting_though_nobody_ever_waits(gate: Gate) -> None:
    ex = dpool.Executor(1)
    ex.submit(gate.note, "ran")
    ex.shutdown(wait=False)
    del ex
    wait_until(lambda: gate.pids("ran"), LONG_S)


def test_with_waits_also_when_it_raises(gate: Gate) -> None:
    futures = []

    def fail_with_a_task() -> None:
        with dpool.Executor(1) as ex:
            futures.append(ex.submit(gate.enter, value=1))
            gate.entered()
            threading.Timer(0.05, gate.open).start()
            raise KeyError

    with pytest.raises(KeyError):
        fail_with_a_task()
    assert futures[0].result(0) == 1


@pytest.mark.parametrize("wait_too", [True, False])
def test_shutdown_cancels_what_has_not_begun(gate: Gate, wait_too: bool) -> None:
    ex = dpool.Executor(1)
    running = ex.submit(gate.enter, value=1)
    gate.entered()
    pending = [ex.submit(gate.note, str(i)) for i in range(20)]
    pending += [ex.options(timeout=LONG_S).submit(gate.note, "20")]
    noticed = threading.Thread(target=lambda: wait(pending, LONG_S))
    noticed.start()
    threading.Timer(0.05, gate.open).start()
    ex.shutdown(wait=wait_too, cancel_futures=True)
    assert all(future.cancelled() for future in pending)
    noticed.join(LONG_S)
    assert not noticed.is_alive()
    assert running.result(LONG_S) == 1
    ex.shutdown()
    assert not any(gate.pids(str(i)) for i in range(21))


def test_shutdown_twice_the_second_cancels(gate: Gate) -> None:
    ex = dpool.Executor(1)
    running = ex.submit(gate.enter)
    gate.entered()
    pending = ex.submit(noop)
    ex.shutdown(wait=False)
    assert not pending.done()
    ex.shutdown(wait=False, cancel_futures=True)
    assert pending.cancelled()
    gate.open()
    running.result(LONG_S)
    ex.shutdown()


def test_shutdown_in_a_callback(one: dpool.Executor) -> None:
    done = threading.Event()

    def close(_: object) -> None:
        one.shutdown(wait=False)
        done.set()

    one.submit(noop).add_done_callback(close)
    assert done.wait(LONG_S)
    with pytest.raises(RuntimeError):
        one.submit(noop)


def test_shutdown_in_another_thread(gate: Gate) -> None:
    ex = dpool.Executor(1)
    future = ex.submit(gate.enter, value=2)
    thread = threading.Thread(target=ex.shutdown)
    thread.start()
    gate.open()
    assert future.result(LONG_S) == 2
    thread.join(LONG_S)
    assert not thread.is_alive()


def test_a_collected_executor_finishes_its_work(gate: Gate) -> None:
    ex = dpool.Executor(2)
    held = ex.submit(gate.enter, value=1)
    pid = gate.entered()
    pending = [ex.submit(square, i) for i in range(50)]
    del ex
    gc.collect()
    gate.open()
    assert held.result(LONG_S) == 1
    assert [future.result(LONG_S) for future in pending] == [i * i for i in range(50)]
    wait_until(lambda: not is_running(pid), LONG_S, "its worker leaves")


def test_a_collected_executor_leaves_nothing() -> None:
    ex = dpool.Executor(1)
    ex.submit(noop).result(LONG_S)
    pids = list(ex._processes)
    del ex
    gc.collect()
    wait_until(lambda: not any(map(is_running, pids)), LONG_S)


def test_executors_come_and_go(gate: Gate) -> None:
    for i in range(10):
        with dpool.Executor(1) as ex:
            assert ex.submit(square, i).result(LONG_S) == i * i


def test_two_executors_end_apart(one: dpool.Executor, gate: Gate) -> None:
    held = one.submit(gate.enter, value=1)
    with dpool.Executor(1) as other:
        assert other.submit(square, 2).result(LONG_S) == 4
    assert not held.done()
    gate.open()
    assert held.result(LONG_S) == 1


def test_an_executor_that_is_not_used_for_long_keeps_its_node() -> None:
    script = """
import dpool, os, tempfile
from tests.helpers import wait_until
def sessions(): return sorted(name for name in os.listdir(tempfile.gettempdir()) if name.startswith("dpool-"))
others = set(sessions())
def mine(): return [name for name in sessions() if name not in others]
ex = dpool.Executor(1)
first = mine()
wait_until(lambda: os.path.exists(os.path.join(tempfile.gettempdir(), first[0], "node.sock")))
other = dpool.Executor(1)
other.submit(abs, 1).result()
other.shutdown()
try: wait_until(lambda: mine() != first, 0.3)        # a node that is not needed leaves at once
except AssertionError: pass
assert ex.submit(abs, -2).result() == 2
assert mine() == first and len(first) == 1
ex.shutdown()
wait_until(lambda: not mine(), 30)
assert dpool.Executor(1).submit(abs, -3).result() == 3   # and another one is started
print("done")
"""
    assert run_script(script, env={"DPOOL_LINGER_S": "0.01"}).check().stdout == "done\n"


def test_an_executor_that_nobody_holds_ends_while_another_thread_waits(gate: Gate) -> None:
    """What its finalizer puts off is not put off until the thread that reads has something to read."""
    with dpool.Executor(1) as ex:
        held = ex.submit(gate.enter)
        gate.entered()
        reader = threading.Thread(target=held.result, args=(LONG_S,))
        reader.start()
        wait_until(lambda: runtime()._long, LONG_S, "it waits without a tick")
        other = dpool.Executor(1)
        worker = other.submit(os.getpid).result(LONG_S)
        wait_until(lambda: runtime()._reader == reader.ident and runtime()._long, LONG_S)
        del other
        gc.collect()
        wait_until(lambda: not is_running(worker), LONG_S, "its worker leaves")
        gate.open()
        reader.join()


def test_the_program_may_have_blocked_signals() -> None:
    """The node hears of its children's ends all the same."""
    script = """
import signal, threading
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
import dpool
ex = dpool.Executor(1)
print(ex.submit(abs, -1).result(60))
ending = threading.Thread(target=ex.shutdown, daemon=True)
ending.start()
ending.join(30)
print("hangs" if ending.is_alive() else "ended")
ex.kill_workers()
"""
    assert run_script(script, env={"DPOOL_GCS": "off"}).check().stdout.split() == ["1", "ended"]


# --- terminate_workers, kill_workers ---


@pytest.mark.parametrize("stop", [dpool.Executor.terminate_workers, dpool.Executor.kill_workers])
def test_stopping_workers(gate: Gate, stop: object) -> None:
    ex = dpool.Executor(2)
    running = [ex.submit(gate.enter, str(i)) for i in range(2)]
    pids = [gate.entered(str(i)) for i in range(2)]
    pending = [ex.submit(noop) for _ in range(10)]
    stop(ex)  # type: ignore[operator]
    assert all(future.cancelled() for future in pending)
    for future in running:
        assert isinstance(future.exception(LONG_S), BrokenProcessPool)
    with pytest.raises(RuntimeError):
        ex.submit(noop)
    wait_until(lambda: not any(map(is_running, pids)), LONG_S)
    stop(ex)  # type: ignore[operator]
    ex.shutdown()


@pytest.mark.parametrize("stop", [dpool.Executor.terminate_workers, dpool.Executor.kill_workers])
@pytest.mark.parametrize("used", [False, True])
def test_stopping_idle_workers(stop: object, used: bool) -> None:
    ex = dpool.Executor(2)
    if used:
        assert ex.submit(square, 2).result(LONG_S) == 4
    stop(ex)  # type: ignore[operator]
    with pytest.raises(RuntimeError):
        ex.submit(noop)
    ex.shutdown()


# --- The interpreter's exit ---

EXIT = """
import dpool, sys, threading, time, os
from tests.executor.support import Gate
from pathlib import Path
def slow(path):
    time.sleep(0.2)
    Path(path).touch()
    print("ran", flush=True)
"""


@pytest.mark.parametrize(
    ("end", "rc"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise LookupError('of the script')", 1),
        ("ex.shutdown(wait=False)", 0),
        ("del ex", 0),
    ],
)
def test_interpreter_exit_completes_what_is_pending(tmp_path: Path, end: str, rc: int) -> None:
    """With the executor still open, or not; as the standard library does."""
    script = f"{EXIT}\nex = dpool.Executor(1)\nex.submit(time.sleep, 0.05)\nex.submit(slow, sys.argv[1])\n{end}\n"
    result = run_script(script, str(tmp_path / "file"))
    assert result.rc == rc
    assert (tmp_path / "file").exists()
    assert "ran\n" in result.stdout
    assert ("LookupError" in result.stderr) == ("LookupError" in end)
    if "LookupError" not in end:
        assert result.stderr == ""


def test_exit_with_an_executor_that_was_never_used() -> None:
    result = run_script("import dpool\nex = dpool.Executor(2)\nother = dpool.Executor(1)\nprint(1)\n").check()
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_an_executor_cannot_be_made_at_exit() -> None:
    script = """
        import atexit, dpool
        ex = dpool.Executor(1)
        print(ex.submit(abs, -1).result())
        @atexit.register
        def late():
            for call in (lambda: ex.submit(abs, 1), lambda: dpool.Executor(1)):
                try:
                    call()
                except RuntimeError as error:
                    print("shutdown" in str(error))
        """
    result = run_script("\n".join(line[8:] for line in script.splitlines())).check()
    assert result.stdout == "1\nTrue\nTrue\n"
    assert result.stderr == ""


def test_an_infinite_task_is_no_obstacle_to_a_hard_exit(tmp_path: Path) -> None:
    script = """
import dpool, os, sys, time
from tests.executor.support import Gate
from pathlib import Path
gate = Gate(Path(sys.argv[1]))
ex = dpool.Executor(2)
ex.submit(gate.enter)
gate.entered()
os._exit(5)
"""
    assert run_script(script, str(tmp_path)).rc == 5  # run_script looks for what is left


# --- Ctrl-C ---

INTERRUPTED = """
import dpool, os, sys, time
from pathlib import Path
from tests.executor.support import Gate
gate = Gate(Path(sys.argv[1]))
def task(name):
    try:
        gate.note("running")
        gate.enter(name)
    except KeyboardInterrupt:
        gate.note("interrupted")
        raise
if __name__ == "__main__":
    with dpool.Executor(2) as ex:
        futures = [ex.submit(task, str(i)) for i in range(6)]
        {wait}
"""


@pytest.mark.parametrize("group", [False, True], ids=["driver alone", "process group"])
@pytest.mark.parametrize(
    "wait_in",
    ["futures[0].result()", "[f.result() for f in futures]", "dpool.Executor(1).map", "pass", "time.sleep(60)"],
)
def test_ctrl_c(gate: Gate, wait_in: str, group: bool) -> None:
    """Running tasks get a KeyboardInterrupt, so does the driver; no traceback comes from the workers."""
    if wait_in.endswith("map"):
        wait_in = "list(ex.map(task, map(str, range(10, 16))))"
    with Script(INTERRUPTED.format(wait=wait_in), str(gate.directory)) as script:
        wait_until(lambda: len(gate.pids("running")) == 2, LONG_S)
        (os.killpg if group else os.kill)(script.pid, signal.SIGINT)
        result = script.finish(timeout=LONG_S)
    assert result.rc in (-signal.SIGINT, 130)
    assert result.stderr.count("KeyboardInterrupt\n") == 1, result.stderr
    assert result.stderr.count("Traceback") <= 2, result.stderr  # the remote one may be the cause
    assert sorted(gate.pids("interrupted")) == sorted(gate.pids("running"))
    assert len(gate.pids("running")) == 2


def test_ctrl_c_twice_kills_what_does_not_listen(gate: Gate) -> None:
    script_text = """
import dpool, sys
from pathlib import Path
from tests.executor.support import Gate
gate = Gate(Path(sys.argv[1]))
def deaf():
    try:
        gate.enter()
    except KeyboardInterrupt:
        gate.enter("deaf")
with dpool.Executor(1) as ex:
    ex.submit(deaf).result()
"""
    with Script(script_text, str(gate.directory)) as script:
        gate.entered()
        os.kill(script.pid, signal.SIGINT)
        gate.entered("deaf")
        os.kill(script.pid, signal.SIGINT)
        result = script.finish(timeout=LONG_S)
    assert result.rc in (-signal.SIGINT, 130)


def test_ctrl_c_in_the_middle_of_many_tiny_tasks() -> None:
    """Wherever it hits, the executor closes."""
    script = """
import dpool, os, signal, sys, threading
def square(x): return x * x
with dpool.Executor(2) as warm:
    warm.submit(square, 1).result()
    for round in range(8):
        with dpool.Executor(2) as ex:
            ex.submit(square, 1).result()
            timer = threading.Timer(0.02 + 0.0013 * round, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            try:
                while True:
                    for _ in ex.map(square, range(2000)):
                        pass
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            timer.join()
"""
    result = run_script(script).check()
    assert result.stdout == "interrupted\n" * 8


def test_waiters_of_every_kind_end_when_workers_are_killed(gate: Gate) -> None:
    ex = dpool.Executor(1)
    running, pending = ex.submit(gate.enter), ex.submit(noop)
    gate.entered()
    seen: list[str] = []

    def take(future: concurrent.futures.Future[object]) -> None:
        try:
            future.result(LONG_S)
        except BaseException as error:
            seen.append(type(error).__name__)

    threads = [threading.Thread(target=take, args=(future,)) for future in (running, pending)]
    for thread in threads:
        thread.start()
    ex.kill_workers()
    for thread in threads:
        thread.join(LONG_S)
    assert sorted(seen) == ["CancelledError", "WorkerCrashed"]
    ex.shutdown()
