"""A task is cancelled by force while its worker runs another one of the same frame."""

from __future__ import annotations

from typing import Any

import pytest

import dpool
from dpool._core.lane import Lane
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
