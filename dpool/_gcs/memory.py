"""A control store in this process's memory, for tests and the simulator: same contract, no server.

`MemoryServer` holds the data of all sessions, `MemoryStore` is one session's connection to it. Tests make it fail:
`server.up = False` refuses calls, `server.lose_replies(n)` does the next n calls and fails them all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpool._gcs.lineage import live_positions, split_ids, unpack
from dpool._gcs.tables import (
    MOST_GONE,
    ActorRow,
    AddEvent,
    Beat,
    EndJob,
    EventRow,
    FunctionRow,
    GoneRow,
    JobRow,
    MarkDropped,
    NodeRow,
    ObjectRow,
    PutActor,
    PutBatch,
    PutCopy,
    PutFunction,
    PutJob,
    PutName,
    PutObject,
    ReleaseName,
    RemoveActor,
    RemoveBatch,
    RemoveCopy,
    RemoveObject,
)
from dpool.errors import ControlStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from dpool._core.ids import FunctionID, JobID, NodeID, ObjectID, TaskID
    from dpool._gcs.tables import Write

_BatchName = tuple[bytes, int]
"""(node, batch number) within a job."""


class _Tables:
    """One session's data."""

    def __init__(self) -> None:
        self.epoch = 0
        self.nodes: dict[NodeID, NodeRow] = {}
        self.tokens: dict[NodeID, tuple[str, int]] = {}
        self.loads: dict[NodeID, bytes] = {}
        self.jobs: dict[JobID, JobRow] = {}
        self.functions: dict[FunctionID, FunctionRow] = {}
        self.batches: dict[JobID, dict[_BatchName, PutBatch]] = {}
        self.dropped: dict[JobID, dict[_BatchName, bytes]] = {}
        self.objects: dict[ObjectID, ObjectRow] = {}
        self.actors: dict[ObjectID, ActorRow] = {}
        self.names: dict[str, tuple[ObjectID, NodeID]] = {}
        self.gone: dict[NodeID, GoneRow] = {}
        self.copies: dict[ObjectID, set[NodeID]] = {}
        self.events: dict[NodeID, list[EventRow]] = {}


class MemoryServer:
    """What outlives a connection: every session's tables, and the faults to come."""

    def __init__(self) -> None:
        self.up = True
        self.calls = 0
        self._sessions: dict[str, _Tables] = {}
        self._lose_replies = 0

    def lose_replies(self, count: int) -> None:
        """The next `count` calls take effect and fail."""
        self._lose_replies = count

    def lose_data(self) -> None:
        """Forget everything, like a server that restarts without its file."""
        self._sessions.clear()

    def begin(self, session: str) -> _Tables:
        """The session's tables, for one call. Raises ControlStoreError while the server is down."""
        if not self.up:
            raise ControlStoreError("the memory store is down")
        self.calls += 1
        return self._sessions.setdefault(session, _Tables())

    def end(self) -> None:
        """The call's reply: lost, if a test asked for it."""
        if self._lose_replies:
            self._lose_replies -= 1
            raise ControlStoreError("the memory store's reply was lost")

    def knows(self, session: str) -> bool:
        """Whether the session has tables."""
        return session in self._sessions

    def remove(self, session: str) -> None:
        """Forget the session."""
        self._sessions.pop(session, None)


class MemoryStore:
    """A `tables.Store` on a `MemoryServer`; keeps at most `max_events` events per node."""

    def __init__(self, session: str, server: MemoryServer | None = None, max_events: int = 10_000) -> None:
        self._session = session
        self._server = server or MemoryServer()
        self._max_events = max_events
        self._appliers: dict[type, Callable[[_Tables, Any], None]] = {
            Beat: self._beat,
            PutJob: self._put_job,
            EndJob: self._end_job,
            PutFunction: self._put_function,
            PutBatch: self._put_batch,
            MarkDropped: self._mark_dropped,
            RemoveBatch: self._remove_batch,
            PutObject: self._put_object,
            RemoveObject: self._remove_object,
            PutCopy: self._put_copy,
            RemoveCopy: self._remove_copy,
            PutActor: self._put_actor,
            RemoveActor: self._remove_actor,
            PutName: self._put_name,
            ReleaseName: self._release_name,
            AddEvent: self._add_event,
        }

    # --- writing ----------------------------------------------------------------------------------------------------

    def register_node(self, row: NodeRow, token: str, at_least: int = 1) -> int:
        """See `tables.Store`."""
        tables = self._server.begin(self._session)
        known, epoch = tables.tokens.get(row.node_id, ("", 0))
        if known != token:
            epoch = tables.epoch = max(tables.epoch + 1, at_least)
            tables.tokens[row.node_id] = (token, epoch)
        tables.nodes[row.node_id] = row._replace(epoch=epoch)
        self._server.end()
        return epoch

    def remove_node(self, node_id: NodeID) -> None:
        """See `tables.Store`."""
        tables = self._server.begin(self._session)
        tables.nodes.pop(node_id, None)
        tables.tokens.pop(node_id, None)
        tables.loads.pop(node_id, None)
        tables.events.pop(node_id, None)
        self._server.end()

    def bury_node(self, node_id: NodeID, why: str, at_s: float, by: NodeID) -> bool:
        """See `tables.Store`."""
        tables = self._server.begin(self._session)
        row = tables.nodes.pop(node_id, None)
        if row is not None:
            tables.gone[node_id] = GoneRow(node_id, row.host, why, at_s, by)
            for number in sorted(tables.gone, key=lambda one: tables.gone[one].at_s)[:-MOST_GONE]:
                del tables.gone[number]
        first = node_id in tables.gone and tables.gone[node_id].by == by
        if first:
            for known in (tables.tokens, tables.loads, tables.events):
                known.pop(node_id, None)
            for job in [job for job in tables.jobs.values() if job.node_id == node_id]:
                self._end_job(tables, EndJob(job.job_id))
            self._end_job(tables, EndJob(node_id))
            for actor in [actor for actor in tables.actors.values() if actor.node_id == node_id]:
                tables.actors[actor.actor_id] = actor._replace(state="dead", cause=why)
                self._release_name(tables, ReleaseName(actor.name, node_id))
        self._server.end()
        return first

    def gone_nodes(self) -> dict[NodeID, GoneRow]:
        """See `tables.Store`."""
        return dict(self._server.begin(self._session).gone)

    def apply(self, writes: Sequence[Write]) -> None:
        """See `tables.Store`."""
        tables = self._server.begin(self._session)
        for write in writes:
            self._appliers[type(write)](tables, write)
        self._server.end()

    def _beat(self, tables: _Tables, write: Beat) -> None:
        tables.loads[write.node_id] = write.load

    def _put_job(self, tables: _Tables, write: PutJob) -> None:
        tables.jobs[write.row.job_id] = write.row

    def _end_job(self, tables: _Tables, write: EndJob) -> None:
        job_id = write.job_id
        tables.jobs.pop(job_id, None)
        tables.batches.pop(job_id, None)
        tables.dropped.pop(job_id, None)
        for object_id in [row.object_id for row in tables.objects.values() if row.job_id == job_id]:
            del tables.objects[object_id]
            tables.copies.pop(object_id, None)
        for actor in [row for row in tables.actors.values() if row.job_id == job_id and not row.detached]:
            del tables.actors[actor.actor_id]
            if tables.names.get(actor.name) == (actor.actor_id, actor.node_id):
                del tables.names[actor.name]
        for row in [row for row in tables.functions.values() if job_id in row.jobs]:
            tables.functions[row.function_id] = row._replace(jobs=row.jobs - {job_id})
            if row.jobs == {job_id}:
                del tables.functions[row.function_id]

    def _put_function(self, tables: _Tables, write: PutFunction) -> None:
        old = tables.functions.get(write.function_id)
        jobs = (old.jobs if old else frozenset()) | {write.job_id}
        tables.functions[write.function_id] = FunctionRow(write.function_id, write.blob, jobs)

    def _put_batch(self, tables: _Tables, write: PutBatch) -> None:
        name = (write.node_id, write.batch_no)
        tables.batches.setdefault(write.job_id, {})[name] = write
        tables.dropped.setdefault(write.job_id, {})[name] = b""

    def _mark_dropped(self, tables: _Tables, write: MarkDropped) -> None:
        tables.dropped.setdefault(write.job_id, {})[write.node_id, write.batch_no] = write.dropped

    def _remove_batch(self, tables: _Tables, write: RemoveBatch) -> None:
        name = (write.node_id, write.batch_no)
        tables.batches.get(write.job_id, {}).pop(name, None)
        tables.dropped.get(write.job_id, {}).pop(name, None)

    def _put_object(self, tables: _Tables, write: PutObject) -> None:
        old = tables.objects.get(write.object_id)
        copies = old.copies if old else frozenset()
        copies = copies | {write.node_id} if write.held else copies - {write.node_id}
        if not write.held:
            tables.copies.get(write.object_id, set()).discard(write.node_id)
        tables.objects[write.object_id] = ObjectRow(
            write.object_id, write.job_id, write.size_bytes, write.state, copies
        )

    def _put_copy(self, tables: _Tables, write: PutCopy) -> None:
        tables.copies.setdefault(write.object_id, set()).add(write.node_id)

    def _remove_copy(self, tables: _Tables, write: RemoveCopy) -> None:
        tables.copies.get(write.object_id, set()).discard(write.node_id)
        old = tables.objects.get(write.object_id)
        if old is not None:
            tables.objects[write.object_id] = old._replace(copies=old.copies - {write.node_id})

    def _remove_object(self, tables: _Tables, write: RemoveObject) -> None:
        tables.objects.pop(write.object_id, None)
        tables.copies.pop(write.object_id, None)

    def _put_actor(self, tables: _Tables, write: PutActor) -> None:
        row = write.row
        old = tables.actors.get(row.actor_id)
        if old is not None and old.node_id != row.node_id:
            return
        if not write.whole:
            if old is None:
                return
            creation = old.creation if row.creation else b""
            row = old._replace(state=row.state, restarts=row.restarts, cause=row.cause, creation=creation)
        tables.actors[row.actor_id] = row

    def _remove_actor(self, tables: _Tables, write: RemoveActor) -> None:
        old = tables.actors.get(write.actor_id)
        if old is not None and old.node_id == write.node_id:
            del tables.actors[write.actor_id]

    def _put_name(self, tables: _Tables, write: PutName) -> None:
        if tables.names.get(write.name, (b"", write.node_id))[1] == write.node_id:
            tables.names[write.name] = (write.actor_id, write.node_id)

    def _release_name(self, tables: _Tables, write: ReleaseName) -> None:
        if tables.names.get(write.name, (b"", b""))[1] == write.node_id:
            del tables.names[write.name]

    def _add_event(self, tables: _Tables, write: AddEvent) -> None:
        events = tables.events.setdefault(write.node_id, [])
        if not events or events[-1].event_id < write.event_id:
            events.append(EventRow(write.event_id, write.name, write.detail))
            del events[: -self._max_events]

    # --- reading ----------------------------------------------------------------------------------------------------

    def nodes(self) -> dict[NodeID, NodeRow]:
        """See `tables.Store`."""
        return dict(self._server.begin(self._session).nodes)

    def loads(self) -> dict[NodeID, bytes]:
        """See `tables.Store`."""
        return dict(self._server.begin(self._session).loads)

    def jobs(self) -> dict[JobID, JobRow]:
        """See `tables.Store`."""
        return dict(self._server.begin(self._session).jobs)

    def function(self, function_id: FunctionID) -> FunctionRow | None:
        """See `tables.Store`."""
        return self._server.begin(self._session).functions.get(function_id)

    def lineage_of(self, job_id: JobID, task_ids: Iterable[TaskID]) -> dict[TaskID, bytes]:
        """See `tables.Store`."""
        wanted = set(task_ids)
        return {task: record for task, record in self._live_records(job_id) if task in wanted}

    def _live_records(self, job_id: JobID) -> Iterator[tuple[TaskID, bytes]]:
        tables = self._server.begin(self._session)
        for name, batch in tables.batches.get(job_id, {}).items():
            tasks, records = split_ids(batch.task_ids), unpack(batch.packed)
            for position in live_positions(len(tasks), tables.dropped[job_id][name]):
                yield tasks[position], records[position]

    def object(self, object_id: ObjectID) -> ObjectRow | None:
        """See `tables.Store`."""
        tables = self._server.begin(self._session)
        row = tables.objects.get(object_id)
        return row and row._replace(copies=row.copies | tables.copies.get(object_id, set()))

    def actor(self, actor_id: ObjectID) -> ActorRow | None:
        """See `tables.Store`."""
        return self._server.begin(self._session).actors.get(actor_id)

    def actors_of(self, node_id: NodeID) -> list[ObjectID]:
        """See `tables.Store`."""
        rows = self._server.begin(self._session).actors.values()
        return [row.actor_id for row in rows if row.node_id == node_id]

    def named_actor(self, name: str) -> tuple[ObjectID, NodeID] | None:
        """See `tables.Store`."""
        return self._server.begin(self._session).names.get(name)

    def events(self, node_id: NodeID) -> list[EventRow]:
        """See `tables.Store`."""
        return list(self._server.begin(self._session).events.get(node_id, ()))

    # --- the session ------------------------------------------------------------------------------------------------

    def keep_session(self, now_s: float) -> bool:
        """See `tables.Store`. Sessions of a `MemoryServer` are not forgotten by themselves."""
        known = self._server.knows(self._session)
        self._server.begin(self._session)
        return known

    def close_session(self) -> None:
        """See `tables.Store`."""
        self._server.begin(self._session)
        self._server.remove(self._session)

    def close(self) -> None:
        """See `tables.Store`; there is no connection."""
