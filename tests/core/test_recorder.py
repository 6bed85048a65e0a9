"""The node's recorder, with a writer that only notes what it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpool._core import ids, recorder
from dpool._core import messages as m
from dpool._core.config import Config
from dpool._gcs import writer as w

JOB = b"j" * 16


class FakeWriter:
    """Notes what is posted."""

    def __init__(self, config: Any, spawn: Any, notify: Callable[[Any], None]) -> None:
        self.posted: list[Any] = []
        self.notify = notify
        self.closed = False
        self.started = 0
        self.refuses: list[Exception] = []

    def start(self) -> None:
        if self.refuses:
            raise self.refuses.pop()
        self.started += 1

    def post(self, op: Any) -> None:
        self.posted.append(op)

    def close(self) -> None:
        self.closed = True


class FakeNode:
    """As much of a node as the recorder sees; timers run when the test says."""

    def __init__(self, session: Path) -> None:
        self.config = Config()
        self.node_id = b"n" * 16
        self.session = str(session)
        self.timers: list[Callable[[], None]] = []
        self.warnings: list[str] = []
        self._abroad: Any = None

    def call_soon(self, action: Callable[[], None]) -> None:
        action()

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        self.timers.append(action)

    def warn_drivers(self, category: str, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    monkeypatch.setattr(w, "GcsWriter", FakeWriter)
    return FakeNode(tmp_path)


def made(node: FakeNode) -> tuple[recorder.Recorder, FakeWriter]:
    one = recorder.Recorder(node)  # type: ignore[arg-type]
    writer = one._writer
    assert isinstance(writer, FakeWriter)
    return one, writer


def many(count: int) -> list[tuple[bytes, bytes]]:
    return [(ids.task_id(JOB, index), b"record %d" % index) for index in range(count)]


def of(writer: FakeWriter, kind: type[Any]) -> list[Any]:
    return [op for op in writer.posted if type(op) is kind]


def test_tasks_delivered_before_the_flush_are_never_written(node: FakeNode) -> None:
    one, writer = made(node)
    records = many(10)
    one.take(1, JOB, m.TasksDispatched(records))
    one.take(1, JOB, m.TasksDelivered([task for task, _ in records]))
    while node.timers:
        node.timers.pop()()
    assert not of(writer, w.CommitLineage)
    assert not one._tasks
    assert not len(one._references)


def test_written_tasks_are_dropped_when_they_are_delivered(node: FakeNode) -> None:
    one, writer = made(node)
    records = many(300)  # more than a batch: written at once
    one.take(1, JOB, m.TasksDispatched(records))
    (commit,) = of(writer, w.CommitLineage)
    written = [task for task, _ in commit.records]
    assert len(written) >= 256
    one._told(w.Committed(commit.batch_no))
    one.take(1, JOB, m.TasksDelivered([task for task, _ in records]))
    while node.timers:
        node.timers.pop()()
    dropped = {task for op in of(writer, w.DropTasks) for task in op.task_ids}
    assert dropped >= set(written)
    assert not one._tasks


def test_what_a_dead_client_had_submitted_goes_with_it(node: FakeNode) -> None:
    one, writer = made(node)
    mine, other = many(300), [(ids.task_id(b"k" * 16, 1), b"other")]
    one.take(1, JOB, m.TasksDispatched(mine))
    one.take(2, JOB, m.TasksDispatched(other))
    (commit,) = of(writer, w.CommitLineage)
    one._told(w.Committed(commit.batch_no))
    one.client_left(1)
    while node.timers:
        node.timers.pop()()
        for again in of(writer, w.CommitLineage)[1:]:
            one._told(w.Committed(again.batch_no))
    dropped = {task for op in of(writer, w.DropTasks) for task in op.task_ids}
    assert dropped >= {task for task, _ in commit.records}
    assert set(one._tasks.values()) == {(other[0][0], JOB)}


def test_an_unavailable_store_is_told_with_its_cause_and_log(node: FakeNode) -> None:
    one, _ = made(node)
    one._told(w.Unavailable("no such file", "/somewhere/gcs.log"))
    (text,) = node.warnings
    assert "no such file" in text
    assert "/somewhere/gcs.log" in text


def test_no_thread_to_be_had_is_one_warning_and_tried_again(node: FakeNode) -> None:
    """The node goes on."""
    one, writer = made(node)
    writer.refuses = [OSError(24, "Too many open files"), RuntimeError("can't start new thread")]
    one.start()
    for _ in range(2):
        assert not writer.started
        node.timers.pop()()
    assert writer.started == 1
    assert not node.timers
    (warning,) = node.warnings
    assert "can't start new thread" in warning
    writer.refuses = [RuntimeError("can't start new thread")]
    one.close()
    one.start()
    assert not node.timers
