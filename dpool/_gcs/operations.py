"""What a node says to its `Ledger`: operations, each of which changes what must be in the store.

Some are rows of `tables` as they are (`PutJob`, `PutObject`, `PutCopy` and their like); those that stand
here the ledger turns into rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, get_args

from dpool._gcs.tables import EndJob, PutCopy, PutFunction, PutJob, PutObject, RemoveCopy, RemoveObject

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dpool._core.ids import JobID, ObjectID, TaskID
    from dpool._gcs.tables import ActorRow


class CommitLineage(NamedTuple):
    """Remember these tasks: `records` are (task id, record). Answered by Committed or Lost with the same number."""

    batch_no: int
    job_id: JobID
    records: Iterable[tuple[TaskID, bytes]]


class DropTasks(NamedTuple):
    """The lineage of these tasks is not needed any more. Unknown ids are ignored."""

    task_ids: Iterable[TaskID]


class Heartbeat(NamedTuple):
    """The node's load; only the latest one is written."""

    load: bytes


class Event(NamedTuple):
    """A line of history. `at_s` is wall-clock time; `name` is like "task.failed"; `detail` is "key=value …"."""

    at_s: float
    name: str
    detail: str = ""


class RecordActor(NamedTuple):
    """The actor as it now is. It has its name until it leaves or is dead; `node_id` and `epoch` are this node's."""

    row: ActorRow


class ForgetActor(NamedTuple):
    """Nobody can ask for it any more. Unknown ids are ignored."""

    actor_id: ObjectID


class ForgetJob(NamedTuple):
    """Another node's job has ended, and that node says so to the store."""

    job_id: JobID


Op = (
    CommitLineage
    | DropTasks
    | PutJob
    | EndJob
    | PutFunction
    | PutObject
    | RemoveObject
    | PutCopy
    | RemoveCopy
    | RecordActor
    | ForgetActor
    | ForgetJob
    | Heartbeat
    | Event
)
OPS = frozenset(get_args(Op))
"""The same, to look a type up."""
