"""A task is cancelled by force while its worker runs another one of the same frame."""

from __future__ import annotations

import os
from typing import Any

import pytest

import dpool
from dpool._core.lane import Lane
from dpool._core.messages import KillWorker
from tests.executor.support import Gate, same
from tests.helpers import wait_until


@pytest.mark.parametrize("retries", [0, 1])
def test_the_task_that_runs_is_not_forgotten(gate: Gate, monkeypatch: pytest.MonkeyPatch, retries: int) -> None:
    with dpool.Executor(1, max_retries=retries) as ex:
        for _ in range(3):
            assert [future.result() for future in [ex.submit(same, n) for n in range(400)]] == [*range(400)]
        monkeypatch.setattr(Lane, "rescue", lambda *_: True)  # the frame stays whole
        before = [ex.submit(same, n) for n in range(300)]
        runs = ex.submit(gate.enter, "task", 7)
        after = [ex.submit(same, n) for n in range(300)]
        gate.entered()
        lane = ex._pool.main  # type: ignore[attr-defined]

        def first_frame() -> Any:
            return next(iter(lane.dispatcher.slots.values())).frames[0]

        wait_until(lambda: runs in first_frame().tasks, 60)  # the answer to the one before has been read
        frame = first_frame()
        victims = [task for task in frame.tasks[frame.done :] if task in after]
        if not victims:
            pytest.skip("the frame ended with the task that runs")
        assert victims[0].cancel(force=True)  # the frame is taken apart: nothing is killed
        gate.open()
        assert runs.result(60) == 7
        for future, value in zip((*before, *after), (*range(300), *range(300)), strict=True):
            if future is not victims[0]:
                assert future.result(60) == value


def submit_together(ex: dpool.Executor, gate: Gate, names: str, together: int) -> list[Any]:
    """One worker runs the first; of the tasks `together` travel in one frame, and one or none in another behind it."""
    ex.submit(same).result(60)
    lane = ex._pool.main  # type: ignore[attr-defined]
    with lane.lock:
        (slot,) = lane.dispatcher.slots.values()
        slot.held = True
        tasks = [ex.submit(gate.enter, name, name) for name in names]
        slot.held = False
        lane.dispatcher.task_s = 1e-6 if together > 1 else 1.0
        lane.push()
        assert len(slot.frames[0].tasks) == together
        assert slot.frames[0].tasks[0] is tasks[0]
    gate.entered(names[0])
    return tasks


@pytest.mark.parametrize(("names", "together"), [("ab", 1), ("ab", 2), ("abc", 2), ("a", 1)])
def test_a_signal_that_comes_late_does_not_hit_the_next_task(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, names: str, together: int
) -> None:
    """The task that is cancelled by force ends by itself before the signal is there."""
    with dpool.Executor(1) as ex:
        victim, *others = submit_together(ex, gate, names, together)
        runtime = ex._pool.runtime  # type: ignore[attr-defined]
        late = []
        tell = runtime.tell
        monkeypatch.setattr(runtime, "tell", lambda m: late.append(m) if type(m) is KillWorker else tell(m))
        assert victim.cancel(force=True)
        others.append(ex.submit(gate.enter, "later", "later"))
        gate.open("a")
        names = names[1:]
        if names:
            gate.entered(names[0])
        else:
            gate.entered("later")
        assert [message.signal for message in late] == [9]
        monkeypatch.undo()
        runtime.tell(late[0])
        gate.open(*names, "later")
        assert [task.result(60) for task in others] == [*names, "later"]
        assert victim.cancelled()


def test_one_that_its_worker_has_read_and_not_begun_never_will(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "rescue", lambda *_: True)  # the frame stays whole
    with dpool.Executor(1) as ex:
        first, victim, last = submit_together(ex, gate, "abc", 2)
        lane = ex._pool.main  # type: ignore[attr-defined]
        assert lane._cancel_read(victim)
        assert victim.cancelled()
        gate.open("a", "b", "c")
        assert (first.result(60), last.result(60)) == ("a", "c")
        assert not gate.pids("b")
        assert gate.pids("a") == gate.pids("c")  # nothing was killed


@pytest.mark.parametrize("together", [1, 2])
def test_one_that_has_ended_kills_nobody(gate: Gate, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    """Its answer is there and has not been read yet; its worker has begun with the next task."""
    with dpool.Executor(1) as ex:
        victim, other = submit_together(ex, gate, "ab", together)
        monkeypatch.setattr(Lane, "_answered", lambda *_: None)
        gate.open("a")
        pid = gate.entered("b")
        assert victim.cancel(force=True) is False
        monkeypatch.undo()
        gate.open("b")
        assert (victim.result(60), other.result(60)) == ("a", "b")
        assert ex.submit(os.getpid).result(60) == pid
