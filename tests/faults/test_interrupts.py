"""A signal handler that raises in the middle of anything that the main thread does for dpool: nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import pytest

import dpool
from dpool._core import frames
from tests.faults import tasks
from tests.faults.support import DEADLINE_S
from tests.helpers import is_running, process, run_script, wait_until

ANYWHERE = """
import os, random, sys, threading
from concurrent.futures import CancelledError, wait
import dpool
from tests.faults import tasks

PACKAGE, DEADLINE_S = os.path.dirname(dpool.__file__), 30
seed = int(os.environ.get("DPOOL_TEST_SEED", "0")) or random.randrange(1 << 30)
print("DPOOL_TEST_SEED", seed)
rng = random.Random(seed)
left, where = 0, ""

def look(frame, event, arg):  # called where Python looks for signals: when a function begins, and after one in C
    global left, where
    if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
        left -= 1
        if not left:
            sys.setprofile(None)
            places = []
            while frame:
                places.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
                frame = frame.f_back
            where = " < ".join(places)
            raise KeyboardInterrupt

def interrupted(executor, n, at):
    global left
    futures, left = [], at
    try:
        try:
            sys.setprofile(look)
            for x in range(n):
                futures.append(executor.submit(tasks.double, x))
            for future in futures:
                future.result()
        finally:
            sys.setprofile(None)
    except KeyboardInterrupt:
        return futures, True
    return futures, False

def check(executor, futures):
    assert not wait(futures, DEADLINE_S).not_done, f"futures never resolve: {where}"
    for x, future in enumerate(futures):
        try:
            assert future.result() == 2 * x, where
        except (CancelledError, KeyboardInterrupt):
            pass
    called = threading.Event()
    last = executor.submit(tasks.double, 21)
    last.add_done_callback(lambda _: called.set())
    assert called.wait(DEADLINE_S), f"nobody reads: {where}"
    assert last.result() == 42

hit = 0
for rounds, warm in ((1000, True), *[(1, False)] * 5):
    with dpool.Executor(2) as executor:
        if warm:
            list(executor.map(tasks.double, range(300)))
        for _ in range(rounds):
            n = rng.choice((1, 3, 40))
            futures, raised = interrupted(executor, n, rng.randrange(1, 40 + 40 * n if warm else 1500))
            hit += raised
            check(executor, futures)
assert hit > 200, hit
print("good")
"""


def test_an_exception_in_any_step_of_a_submit_or_an_answer_loses_nothing() -> None:
    result = run_script(ANYWHERE)
    assert result.stdout.endswith("good\n"), result
    assert result.rc == 0, result


def main_waits() -> bool:
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    while frame is not None and frame.f_code.co_name != "wait_for":
        frame = frame.f_back
    return frame is not None


def ctrl_c_when_main_waits() -> None:
    wait_until(main_waits, DEADLINE_S, "the main thread waits for a result")
    os.kill(os.getpid(), signal.SIGINT)


def test_a_worker_whose_unread_tasks_ctrl_c_cancels_gets_what_is_submitted_next() -> None:
    with dpool.Executor(1) as executor:
        worker = executor.submit(tasks.pid).result(DEADLINE_S)
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: (found := process(worker)) is not None and found.state == "T", DEADLINE_S, "it has stopped")
        futures = [executor.submit(tasks.double, x) for x in range(100)]
        threading.Thread(target=ctrl_c_when_main_waits).start()
        with pytest.raises(KeyboardInterrupt):
            futures[-1].result(DEADLINE_S)
        os.kill(worker, signal.SIGCONT)
        assert all(future.cancelled() for future in futures)
        assert executor.submit(tasks.double, 4).result(DEADLINE_S) == 8
        assert list(executor.map(tasks.double, range(100), timeout=DEADLINE_S)) == [2 * x for x in range(100)]
        assert is_running(worker)


def test_ctrl_c_that_comes_late_to_a_worker_spares_what_was_submitted_after_it(tmp_path: Path) -> None:
    """The signal goes by way of the node: here it comes when the worker has a later task."""
    with dpool.Executor(1) as executor:
        worker = executor.submit(tasks.pid).result(DEADLINE_S)
        node = process(worker).parent  # type: ignore[union-attr]
        first = executor.submit(tasks.wait_for_file, str(tmp_path / "first"), 1)
        wait_until(first.running, DEADLINE_S, "it runs")
        os.kill(node, signal.SIGSTOP)
        threading.Thread(target=ctrl_c_when_main_waits).start()
        with pytest.raises(KeyboardInterrupt):
            first.result(DEADLINE_S)
        (tmp_path / "first").touch()
        assert first.result(DEADLINE_S) == 1
        second = executor.submit(tasks.wait_for_file, str(tmp_path / "second"), 2)
        wait_until(second.running, DEADLINE_S, "it runs")
        slot = next(iter(executor._pool._slots.values()))[0]  # type: ignore[attr-defined]
        os.kill(node, signal.SIGCONT)
        page = slot.link.page.slots
        wait_until(lambda: page[frames.HANDLED] == page[frames.ASKED], DEADLINE_S, "the signal has been there")
        (tmp_path / "second").touch()
        assert second.result(DEADLINE_S) == 2
