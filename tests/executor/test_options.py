"""`Executor.options`: time-outs that kill, retries, names, resources."""

from __future__ import annotations

import concurrent.futures
import os
import re
import sys
import time
from pathlib import Path

import pytest

import dpool
from dpool import errors
from tests.executor.support import LONG_S, Gate, kill_self, noop, same, square
from tests.helpers import is_running, run_script, wait_until

# --- timeout ---
# It counts from the task's way to its worker, so 0.2 s are for tasks that never end by themselves: a machine that is
# busy may need as long to start a worker, or to run anything.


def killed_in(error: BaseException) -> int:
    """The pid of the worker that was killed, as the message says."""
    found = re.search(r"pid (\d+)", str(error))
    assert found is not None, error
    return int(found[1])


def test_a_timeout_kills_the_task(ex: dpool.Executor, gate: Gate) -> None:
    other = ex.submit(gate.enter, "other", 5)
    other_pid = gate.entered("other")
    future = ex.options(timeout=0.2, name="the slow one").submit(gate.enter)
    error = future.exception(LONG_S)
    assert isinstance(error, errors.TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, concurrent.futures.TimeoutError)
    for word in ("the slow one", "0.2"):
        assert word in str(error)
    pid = killed_in(error)
    wait_until(lambda: not is_running(pid), LONG_S)
    assert is_running(other_pid)
    assert set(gate.pids()) <= {pid}
    gate.open("other")
    assert other.result(LONG_S) == 5
    assert [ex.submit(square, i).result(LONG_S) for i in range(5)] == [0, 1, 4, 9, 16]


def test_a_timeout_ends_a_task_that_holds_the_interpreter(one: dpool.Executor) -> None:
    future = one.options(timeout=0.2).submit(sum, range(10**12))
    assert isinstance(future.exception(LONG_S), errors.TaskTimeout)
    assert one.submit(square, 3).result(LONG_S) == 9


def test_waiting_for_a_worker_does_not_count(one: dpool.Executor, gate: Gate) -> None:
    held = one.submit(gate.enter)
    gate.entered()
    view = one.options(timeout=2)
    waiting = [view.submit(square, i) for i in range(5)]
    late = time.monotonic() + 2.2
    wait_until(lambda: time.monotonic() > late)
    gate.open()
    assert [future.result(LONG_S) for future in waiting] == [i * i for i in range(5)]
    held.result(LONG_S)


def test_a_timeout_of_one_is_no_matter_for_the_next(one: dpool.Executor, gate: Gate) -> None:
    views = [one.options(timeout=LONG_S if i % 2 else 0.2) for i in range(4)]
    futures = [view.submit(gate.enter, str(i), i) for i, view in enumerate(views)]
    gate.open("1", "3")
    assert isinstance(futures[0].exception(LONG_S), errors.TaskTimeout)
    assert futures[1].result(LONG_S) == 1
    assert isinstance(futures[2].exception(LONG_S), errors.TaskTimeout)
    assert futures[3].result(LONG_S) == 3


def test_a_timeout_is_not_retried(gate: Gate) -> None:
    with dpool.Executor(1, max_retries=3) as ex:
        worker = ex.options(timeout=LONG_S).submit(os.getpid).result(LONG_S)
        error = ex.options(timeout=0.2).submit(gate.enter).exception(LONG_S)
        assert isinstance(error, errors.TaskTimeout)
        assert killed_in(error) == worker, "it ran once more, in another one"
        assert len(gate.pids()) <= 1


def test_a_timeout_breaks_no_strict_executor(gate: Gate) -> None:
    with dpool.Executor(1, strict=True) as ex:
        assert isinstance(ex.options(timeout=0.2).submit(gate.enter).exception(LONG_S), errors.TaskTimeout)
        assert ex.submit(square, 3).result(LONG_S) == 9


def test_a_map_with_a_timeout_for_each_task(ex: dpool.Executor, gate: Gate) -> None:
    both = [ex.submit(gate.enter, name) for name in ("a", "b")]
    for name in ("a", "b"):
        gate.entered(name)  # its worker need not be started any more
    gate.open("0", "1", "a", "b")
    concurrent.futures.wait(both, LONG_S)
    results = ex.options(timeout=3).map(gate.enter, ["0", "1", "2"], [0, 1, 2])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(errors.TaskTimeout):
        next(results)


def test_a_timeout_runs_on_while_nobody_waits(one: dpool.Executor, gate: Gate) -> None:
    future = one.options(timeout=0.1).submit(gate.enter)
    wait_until(future.done, LONG_S)
    assert isinstance(future.exception(0), errors.TaskTimeout)


# --- max_retries, name ---


def crash_first(gate: Gate, times: int) -> int:
    gate.note("run")
    if len(gate.pids("run")) <= times:
        kill_self()
    return len(gate.pids("run"))


def test_retries_of_one_task(one: dpool.Executor, gate: Gate) -> None:
    assert one.options(max_retries=2).submit(crash_first, gate, 2).result(LONG_S) == 3


def test_retries_that_do_not_suffice(one: dpool.Executor, gate: Gate) -> None:
    error = one.options(max_retries=1, name="fragile").submit(crash_first, gate, 9).exception(LONG_S)
    assert isinstance(error, errors.WorkerCrashed)
    assert (error.attempts, error.task, error.signal, error.pid) == (2, "fragile", 9, gate.pids("run")[-1])
    assert "fragile" in str(error)
    assert len(gate.pids("run")) == 2


def test_options_override_the_executors(gate: Gate) -> None:
    with dpool.Executor(1, max_retries=2) as ex:
        assert isinstance(
            ex.options(max_retries=0).submit(crash_first, gate, 1).exception(LONG_S), errors.WorkerCrashed
        )
        assert len(gate.pids("run")) == 1
        assert ex.options(name="x").submit(crash_first, gate, 2).result(LONG_S) == 3
        assert ex.submit(crash_first, gate, 3).result(LONG_S) == 4


def test_a_crash_names_everything(one: dpool.Executor) -> None:
    pid = one.submit(os.getpid).result(LONG_S)
    error = one.submit(kill_self, 11).exception(LONG_S)
    assert isinstance(error, errors.WorkerCrashed)
    assert isinstance(error, concurrent.futures.process.BrokenProcessPool)
    for word in ("kill_self", str(pid), "SIGSEGV", os.uname().nodename, error.log_file):
        assert word
        assert word in str(error)
    assert (error.signal, error.exit_code, error.pid) == (11, None, pid)
    error = one.submit(os._exit, 3).exception(LONG_S)
    assert isinstance(error, errors.WorkerCrashed)
    assert (error.signal, error.exit_code) == (None, 3)
    assert "code 3" in str(error)
    assert one.submit(square, 3).result(LONG_S) == 9


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0}, {"timeout": -1}, {"max_retries": -1}, {"num_cpus": -1}, {"num_gpus": -0.5},
     {"resources": {"x": -1}}],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be(one: dpool.Executor, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        one.options(**wrong)  # type: ignore[arg-type]


def test_a_view_keeps_its_executor_open() -> None:
    view = dpool.Executor(1).options(name="view")
    assert view.submit(square, 3).result(LONG_S) == 9
    view._executor.shutdown()


# --- Resources. The machine is described by variables that a process reads once, so each test is a script. ---

RESOURCES = """
import dpool, os, sys, time, warnings
from pathlib import Path
from tests.executor.support import Gate, square
from tests.helpers import wait_until
gate = Gate(Path(sys.argv[1]))
def running(gate, name):
    gate.enter(name)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()
"""


def resources(body: str, gate: Gate, **env: str) -> None:
    environment = {f"DPOOL_{name}": value for name, value in env.items()}
    result = run_script(RESOURCES + body + "\nprint('done')\n", str(gate.directory), env=environment).check()
    assert result.stdout == "done\n"
    assert result.stderr == ""


def test_cpus_are_held_while_a_task_runs(gate: Gate) -> None:
    resources(
        """
with dpool.Executor(4) as ex:
    view = ex.options(num_cpus=1.5)
    held = [view.submit(running, gate, str(i)) for i in range(2)]   # 3 of 4
    wait_until(lambda: gate.pids("0") and gate.pids("1"), 60)
    third, small = view.submit(running, gate, "2"), ex.options(num_cpus=1).submit(running, gate, "small")
    gate.entered("small")                                           # 4 of 4
    assert not gate.pids("2")
    assert [ex.submit(square, i).result(60) for i in range(5)] == [0, 1, 4, 9, 16]  # these hold nothing
    gate.open("0", "small")
    gate.entered("2")
    gate.open("1", "2")
    for future in [*held, third, small]: future.result(60)
""",
        gate,
        NUM_CPUS="4",
    )


def test_plain_tasks_and_tasks_with_resources_share_the_workers(gate: Gate) -> None:
    resources(
        """
with dpool.Executor(2) as ex:
    view = ex.options(num_cpus=1)
    for round in range(20):
        futures = [view.submit(square, 3), ex.submit(square, 4), view.submit(square, 5), ex.submit(square, 6)]
        assert [future.result(60) for future in futures] == [9, 16, 25, 36]
    assert len(ex._processes) <= 2
""",
        gate,
        NUM_CPUS="2",
    )


def test_gpus_are_shown_to_their_task(gate: Gate) -> None:
    resources(
        """
with dpool.Executor(3) as ex:
    view = ex.options(num_gpus=1)
    held = [view.submit(running, gate, str(i)) for i in range(2)]
    gate.entered("0"); gate.entered("1")
    third = view.submit(running, gate, "2")
    assert ex.submit(square, 3).result(60) == 9
    assert not gate.pids("2")
    gate.open("0")
    first = held[0].result(60)
    gate.entered("2")
    gate.open("1", "2")
    found = [held[1].result(60), third.result(60)]
    assert sorted(devices for devices, pid in [first, found[0]]) == ["0", "1"], (first, found)
    assert found[1][0] == first[0], (first, found)
    # a process keeps its device open: it is gone before another shape's task may have that
    both = ex.options(num_gpus=2).submit(running, gate, "2").result(60)
    assert both[0] == "0,1"
    assert both[1] not in {pid for devices, pid in [first, *found]}
""",
        gate,
        NUM_GPUS="2",
        NUM_CPUS="4",
    )


def test_several_gpus_and_parts_of_one(gate: Gate) -> None:
    resources(
        """
with dpool.Executor(4) as ex:
    both = ex.options(num_gpus=2).submit(running, gate, "both")
    gate.entered("both"); gate.open("both")
    assert both.result(60)[0] == "0,1"
    halves = [ex.options(num_gpus=0.5).submit(running, gate, str(i)) for i in range(4)]
    for i in range(4): gate.entered(str(i))
    gate.open(*"0123")
    assert sorted(future.result(60)[0] for future in halves) == ["0", "0", "1", "1"]
""",
        gate,
        NUM_GPUS="2",
    )


def test_a_plain_task_sees_no_gpu_that_it_does_not_hold(gate: Gate) -> None:
    resources(
        """
with dpool.Executor(1) as ex:
    gate.open("a", "b")
    assert ex.options(num_gpus=1).submit(running, gate, "a").result(60)[0] == "0"
    assert ex.submit(running, gate, "b").result(60)[0] == "untouched"
""".replace("with", "os.environ['CUDA_VISIBLE_DEVICES'] = 'untouched'\nwith", 1),
        gate,
        NUM_GPUS="1",
    )


def test_what_no_machine_has_warns_once_and_waits(gate: Gate) -> None:
    resources(
        """
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    ex = dpool.Executor(2)
    futures = [ex.options(resources={"antenna": 2}).submit(square, i) for i in range(5)]
    futures += [ex.options(num_cpus=99).submit(square, 1)]
    wait_until(lambda: len(seen) == 2, 60)
    assert [ex.submit(square, i).result(60) for i in range(5)] == [0, 1, 4, 9, 16]
    texts = sorted(str(one.message) for one in seen)
    assert "antenna=2" in texts[0], texts
    assert "num_cpus=99" in texts[1], texts
    assert not any(future.done() for future in futures)
    assert all(future.cancel() for future in futures[1:])
    ex.shutdown(cancel_futures=True)
    assert futures[0].cancelled()
    assert len(seen) == 2, [str(one.message) for one in seen]
""",
        gate,
        NUM_CPUS="2",
    )


def test_gpus_of_a_machine_that_has_none(gate: Gate) -> None:
    resources(
        """
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    ex = dpool.Executor(1)
    future = ex.options(num_gpus=1).submit(square, 2)
    wait_until(lambda: seen, 60)
    assert "num_gpus" in str(seen[0].message), seen[0].message
    assert future.cancel()
    assert ex.submit(square, 3).result(60) == 9
    ex.shutdown()
""",
        gate,
        NUM_GPUS="0",
    )


def test_memory_is_a_resource(gate: Gate) -> None:
    resources(
        """
total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
from dpool._core.machine import available_memory
most = available_memory() * 2 // 3
with dpool.Executor(2) as ex:
    a, b = [ex.options(memory=most).submit(running, gate, name) for name in "ab"]
    wait_until(lambda: gate.pids("a") or gate.pids("b"), 60)
    assert ex.submit(square, 3).result(60) == 9
    assert len(gate.pids("a") + gate.pids("b")) == 1
    gate.open("a", "b")
    assert a.result(60)[1] and b.result(60)[1]
""",
        gate,
    )


def test_a_task_that_blocks_lends_its_cpus(gate: Gate) -> None:
    """Nested tasks need CPUs too; the outer one gives its own back while it waits."""
    resources(
        """
def outer(depth):
    if depth == 0: return 1
    with dpool.Executor(1) as inner:
        return 1 + inner.options(num_cpus=1).submit(outer, depth - 1).result()
if __name__ == "__main__":
    with dpool.Executor(1) as ex:
        assert ex.options(num_cpus=1).submit(outer, 3).result(60) == 4
""",
        gate,
        NUM_CPUS="1",
    )


@pytest.mark.parametrize("how", ["wait", "as_completed", "map", "exception", "shutdown"])
def test_every_way_to_block_lends_cpus(gate: Gate, how: str) -> None:
    resources(
        """
import concurrent.futures as cf
def outer(how):
    with dpool.Executor(1) as inner:
        view = inner.options(num_cpus=1)
        if how == "map": return list(view.map(square, [1, 2, 3]))
        futures = [view.submit(square, x) for x in (1, 2, 3)]
        if how == "wait": assert not cf.wait(futures, 60).not_done
        if how == "as_completed": assert len(list(cf.as_completed(futures, 60))) == 3
        if how == "exception": assert futures[2].exception(60) is None
        if how == "shutdown": inner.shutdown()
        return [future.result(60) for future in futures]
with dpool.Executor(1) as ex:
    assert ex.options(num_cpus=1).submit(outer, HOW).result(60) == [1, 4, 9]
""".replace("HOW", repr(how)),
        gate,
        NUM_CPUS="1",
    )


def test_options_and_timeouts_together(gate: Gate) -> None:
    resources(
        """
with dpool.Executor(2) as ex:
    def view(timeout): return ex.options(num_cpus=1, timeout=timeout, max_retries=1, name="all at once")
    try:
        view(0.3).submit(running, gate, "a").result(60)
    except dpool.errors.TaskTimeout as error:
        assert "all at once" in str(error)
    else:
        raise AssertionError
    gate.open("b")
    assert view(60).submit(running, gate, "b").result(60)  # which may need a worker to start
""",
        gate,
        NUM_CPUS="1",
    )


def test_noop_views_cost_no_worker(ex: dpool.Executor) -> None:
    ex.options(timeout=1)
    ex.options(num_cpus=1)
    assert ex.submit(noop).result(LONG_S) is None
    assert ex.submit(same, 1).result(LONG_S) == 1
    assert sys.getrefcount(ex) < 100


def test_a_timeout_leaves_files_of_others_alone(one: dpool.Executor, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert one.options(timeout=LONG_S).submit(path.write_text, "x").result(LONG_S) == 1
    assert path.read_text() == "x"
