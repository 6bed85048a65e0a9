"""What must be in the store, as far as one node is concerned, and which of it is not there yet. Pure.

```
 operation ──apply──► live rows + dirty keys ──next_writes──► writes ──► store
                          ▲                                      │ written() ──► acknowledged batches
                          └───────────── failed() ───────────────┘
```

State, not a log: what was changed ten times is written once, what came and went between two flushes is never written,
and while the store is away this grows with what is alive, not with what happened. Only events are a log: bounded,
oldest dropped first, with a count. After an outage `rewrite_all` makes everything dirty once more.

Removals go first, since a full store takes nothing else, and what failed goes last, so that one row that is refused
does not hold up the others.

Invariants (`check`): a dirty key stands for a live row; a gone key for a removed one that the store may still have; a
task is in at most one batch; a batch has at least one live task; a name belongs to a live actor that is neither leaving
nor dead.

Detached actors outlive the job that made them: they stand under DETACHED, a job that never ends. Names stand there too.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from dpool._gcs.lineage import dropped_bits, pack
from dpool._gcs.operations import CommitLineage, DropTasks, Event, ForgetActor, ForgetJob, Heartbeat, RecordActor
from dpool._gcs.tables import (
    AddEvent,
    Beat,
    EndJob,
    JobRow,
    MarkDropped,
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dpool._core.ids import JobID, NodeID, ObjectID, TaskID
    from dpool._gcs.operations import Op
    from dpool._gcs.tables import ActorRow, Write

COMPACT_FROM = 16
"""Smaller batches are not packed anew when half of them is dropped: the row's overhead would stay anyway."""
REMEMBERED_ENDED_JOBS = 1000
DETACHED = b""
LEAVING = "leaving"
DEAD = "dead"


class _Batch:
    __slots__ = ("acked", "batch_no", "ids", "job_id", "records", "rewrite")

    def __init__(self, batch_no: int, job_id: JobID, records: dict[TaskID, bytes]) -> None:
        self.batch_no = batch_no
        self.job_id = job_id
        self.records = records  # what is live
        self.ids = list(records)  # what the store has, in its order; some of it may be dropped
        self.rewrite = True  # write the whole batch, not only what was dropped
        self.acked = False


class _Actor:
    __slots__ = ("row", "whole")

    def __init__(self, row: ActorRow) -> None:
        self.row = row
        self.whole = True  # the store does not have what never changes


class _Job:
    __slots__ = ("actors", "batches", "functions", "objects", "row")

    def __init__(self) -> None:
        self.actors: dict[ObjectID, _Actor] = {}
        self.row: JobRow | None = None
        self.functions: dict[bytes, bytes] = {}
        self.batches: dict[int, _Batch] = {}
        self.objects: dict[ObjectID, PutObject] = {}


_Key = tuple[str, bytes, int | bytes]
"""(kind, job id, number or id): what one row of the store stands for here."""


class Ledger:
    """One node's live rows. `max_events` bounds the events that wait for the store."""

    def __init__(self, node_id: NodeID, max_events: int = 1000) -> None:
        self.node_id = node_id
        self.epoch = 0  # known when the node is registered, before anything is written
        self.events_dropped = 0  # ever
        self._dropped_told = self._dropped_in_flight = 0
        self._max_events = max_events
        self._jobs: dict[JobID, _Job] = {}
        self._ended: deque[JobID] = deque(maxlen=REMEMBERED_ENDED_JOBS)
        self._task_batch: dict[TaskID, _Batch] = {}
        self._actor_jobs: dict[ObjectID, JobID] = {}
        self._names: dict[bytes, ObjectID] = {}
        self._copies: set[ObjectID] = set()
        self._load: bytes | None = None
        self._events: deque[AddEvent] = deque()
        self._event_id = (0, 0)
        self._dirty: dict[_Key, None] = {}  # live rows that the store does not have like this
        self._gone: dict[_Key, None] = {}  # rows that the store may have and should not
        self._sent: set[_Key] = set()  # the store may have a row for these
        self._in_flight: list[_Key] = []
        self._events_in_flight = 0
        self._acks: list[int] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            CommitLineage: self._commit,
            DropTasks: self._drop,
            PutJob: self._put_job,
            EndJob: self._end_job,
            PutFunction: self._put_function,
            PutObject: self._put_object,
            RemoveObject: self._remove_object,
            PutCopy: self._put_copy,
            RemoveCopy: self._remove_copy,
            RecordActor: self._record_actor,
            ForgetActor: self._forget_actor,
            ForgetJob: self._forget_job,
            Heartbeat: self._heartbeat,
            Event: self._event,
        }

    # --- what the node says -----------------------------------------------------------------------------------------

    def apply(self, op: Op) -> None:
        """Take in one operation."""
        self._handlers[type(op)](op)

    def jobs(self) -> list[JobID]:
        """The jobs of this node's drivers that have not ended."""
        jobs = self._jobs.items()
        return [job_id for job_id, job in jobs if job.row is not None and job.row.node_id == self.node_id]

    def staying(self) -> list[ObjectID]:
        """The actors of this node that end with no job of its own: detached ones, and those of other nodes' jobs."""
        ending = self.jobs()
        return [actor_id for actor_id, job_id in self._actor_jobs.items() if job_id not in ending]

    def _job(self, job_id: JobID) -> _Job | None:
        """The job's rows; None if it has ended: what comes late for it is ignored."""
        job = self._jobs.get(job_id)
        if job is None and job_id not in self._ended:
            job = self._jobs[job_id] = _Job()
        return job

    def _put_job(self, op: PutJob) -> None:
        job = self._job(op.row.job_id)
        if job is not None:
            job.row = op.row
            self._changed(("job", op.row.job_id, 0))

    def _end_job(self, op: EndJob) -> None:
        job = self._jobs.pop(op.job_id, None)
        if op.job_id in self._ended:
            return
        self._ended.append(op.job_id)
        for batch in job.batches.values() if job else ():
            for task in batch.records:
                del self._task_batch[task]
            self._ack(batch)
        for actor_id, actor in job.actors.items() if job else ():
            del self._actor_jobs[actor_id]
            self._unname(actor.row)
        self._dirty = {key: None for key in self._dirty if key[1] != op.job_id}
        self._gone = {key: None for key in self._gone if key[1] != op.job_id}
        self._sent = {key for key in self._sent if key[1] != op.job_id}
        self._gone["end", op.job_id, 0] = None

    def _forget_job(self, op: ForgetJob) -> None:
        self._end_job(EndJob(op.job_id))
        self._gone.pop(("end", op.job_id, 0), None)

    def _put_function(self, op: PutFunction) -> None:
        job = self._job(op.job_id)
        if job is not None and op.function_id not in job.functions:
            job.functions[op.function_id] = op.blob
            self._changed(("function", op.job_id, op.function_id))

    def _put_object(self, op: PutObject) -> None:
        job = self._job(op.job_id)
        if job is not None:
            job.objects[op.object_id] = op
            self._changed(("object", op.job_id, op.object_id))

    def _remove_object(self, op: RemoveObject) -> None:
        job = self._job(op.job_id)
        if job is not None and job.objects.pop(op.object_id, None) is not None:
            self._removed(("object", op.job_id, op.object_id))

    def _put_copy(self, op: PutCopy) -> None:
        self._copies.add(op.object_id)
        self._changed(("copy", b"", op.object_id))

    def _remove_copy(self, op: RemoveCopy) -> None:
        if op.object_id in self._copies:
            self._copies.discard(op.object_id)
            self._removed(("copy", b"", op.object_id))

    def _record_actor(self, op: RecordActor) -> None:
        row = op.row._replace(node_id=self.node_id)
        job_id = DETACHED if row.detached else row.job_id
        job = self._job(job_id)
        if job is None:
            return
        actor = job.actors.get(row.actor_id)
        if actor is None:
            job.actors[row.actor_id] = _Actor(row)
            self._actor_jobs[row.actor_id] = job_id
        else:
            actor.row = row
        self._changed(("actor", job_id, row.actor_id))
        if row.state in (LEAVING, DEAD):
            self._unname(row)
        elif row.name:
            name = _encoded(row.name)
            if self._names.get(name) != row.actor_id:
                self._job(DETACHED)
                self._names[name] = row.actor_id
                self._changed(("name", DETACHED, name))

    def _unname(self, row: ActorRow) -> None:
        """The actor has its name no longer, if it had one."""
        name = _encoded(row.name)
        if self._names.get(name) == row.actor_id:
            del self._names[name]
            self._removed(("name", DETACHED, name))

    def _forget_actor(self, op: ForgetActor) -> None:
        job_id = self._actor_jobs.pop(op.actor_id, None)
        if job_id is not None:
            self._unname(self._jobs[job_id].actors.pop(op.actor_id).row)
            self._removed(("actor", job_id, op.actor_id))

    def _heartbeat(self, op: Heartbeat) -> None:
        self._load = op.load
        self._changed(("load", b"", 0))

    def _changed(self, key: _Key) -> None:
        """The row is not in the store as it is here."""
        self._dirty[key] = None
        self._gone.pop(key, None)

    def _removed(self, key: _Key) -> None:
        """The row is gone here: tell the store, unless it never heard of it."""
        self._dirty.pop(key, None)
        if key in self._sent:
            self._gone[key] = None

    # --- lineage ----------------------------------------------------------------------------------------------------

    def _commit(self, op: CommitLineage) -> None:
        job = self._job(op.job_id)
        records = dict(op.records)
        if job is None or not records:
            self._acks.append(op.batch_no)  # nothing to keep, so nothing to wait for
            return
        old = job.batches.get(op.batch_no)
        self._forget_tasks(records if old is None else [*records, *old.records])
        batch = job.batches[op.batch_no] = _Batch(op.batch_no, op.job_id, records)
        for task in records:
            self._task_batch[task] = batch
        self._changed(("batch", op.job_id, op.batch_no))

    def _drop(self, op: DropTasks) -> None:
        self._forget_tasks(op.task_ids)

    def _forget_tasks(self, tasks: Iterable[TaskID]) -> None:
        for task in tasks:
            batch = self._task_batch.pop(task, None)
            if batch is None:
                continue
            del batch.records[task]
            key = ("batch", batch.job_id, batch.batch_no)
            if not batch.records:
                del self._jobs[batch.job_id].batches[batch.batch_no]
                self._ack(batch)
                self._removed(key)
                continue
            self._changed(key)
            if len(batch.ids) >= COMPACT_FROM and 2 * len(batch.records) <= len(batch.ids):
                batch.rewrite = True

    def _ack(self, batch: _Batch) -> None:
        if not batch.acked:
            batch.acked = True
            self._acks.append(batch.batch_no)

    def take_acks(self) -> list[int]:
        """The batches that are safe since the last call: in the store, or not needed any more."""
        acks, self._acks = self._acks, []
        return acks

    def unacknowledged(self) -> list[int]:
        """The batches that nobody has been told to be safe."""
        return [batch.batch_no for job in self._jobs.values() for batch in job.batches.values() if not batch.acked]

    # --- events -----------------------------------------------------------------------------------------------------

    def _event(self, op: Event) -> None:
        if len(self._events) >= self._max_events:
            self._events.popleft()
            self._events_in_flight = max(0, self._events_in_flight - 1)
            self.events_dropped += 1
        self._events.append(self._next_event(int(op.at_s * 1000), op.name, op.detail))

    def _next_event(self, at_ms: int, name: str, detail: str) -> AddEvent:
        """An event whose id is greater than all before, whatever the wall clock does."""
        last_ms, last_seq = self._event_id
        self._event_id = (at_ms, 0) if at_ms > last_ms else (last_ms, last_seq + 1)
        return AddEvent(self.node_id, self._event_id, name, detail)

    # --- what the store is told -------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether something is not in the store yet."""
        return bool(self._dirty or self._gone or self._events or self.events_dropped > self._dropped_told)

    def next_writes(self, limit: int, limit_bytes: int = 4 << 20) -> list[Write]:
        """At most `limit` writes (and about `limit_bytes`); then call `written` or `failed`, before the next ones."""
        writes: list[Write] = []
        size = 0
        for keys in (self._gone, self._dirty):
            while keys and len(writes) < limit and size < limit_bytes:
                key = next(iter(keys))
                del keys[key]
                write = self._write(key)
                self._in_flight.append(key)
                self._sent.add(key)
                writes.append(write)
                size += len(write.packed) if isinstance(write, PutBatch) else 256
                size += len(write.blob) if isinstance(write, PutFunction) else 0
                size += len(write.row.creation) if isinstance(write, PutActor) and write.whole else 0
        self._events_in_flight = min(len(self._events), limit - len(writes))
        writes.extend(self._events[i] for i in range(self._events_in_flight))
        everything = self._events_in_flight == len(self._events)  # an id may only be followed by greater ones
        if self.events_dropped > self._dropped_told and everything and len(writes) < limit:
            self._dropped_in_flight = self.events_dropped
            writes.append(self._next_event(0, "events.dropped", f"total={self.events_dropped}"))
        return writes

    def _write(self, key: _Key) -> Write:
        kind, job_id, name = key
        if kind == "load":
            return Beat(self.node_id, self._load or b"")
        if kind == "end":
            return EndJob(job_id)
        if kind == "copy":
            assert isinstance(name, bytes)
            return (PutCopy if name in self._copies else RemoveCopy)(name, self.node_id)
        job = self._jobs[job_id]  # rows of an ended job are not dirty
        if kind == "job":
            return PutJob(job.row or JobRow(job_id, self.node_id))
        if kind == "batch":
            assert isinstance(name, int)
            return self._batch_write(job, job_id, name)
        assert isinstance(name, bytes)
        if kind == "function":
            return PutFunction(name, job_id, job.functions[name])
        if kind == "name":
            return self._name_write(name)
        if kind == "actor":
            actor = job.actors.get(name)
            if actor is None:
                return RemoveActor(name, job_id, self.node_id)
            return PutActor(actor.row._replace(epoch=self.epoch), actor.whole)
        return job.objects.get(name) or RemoveObject(name, job_id)

    def _name_write(self, name: bytes) -> Write:
        text, actor_id = name.decode(errors="surrogatepass"), self._names.get(name)
        return ReleaseName(text, self.node_id) if actor_id is None else PutName(text, actor_id, self.node_id)

    def _batch_write(self, job: _Job, job_id: JobID, batch_no: int) -> Write:
        batch = job.batches.get(batch_no)
        if batch is None:
            return RemoveBatch(job_id, self.node_id, batch_no)
        if not batch.rewrite:
            return MarkDropped(job_id, self.node_id, batch_no, dropped_bits(batch.ids, batch.records))
        batch.ids = list(batch.records)
        return PutBatch(job_id, self.node_id, batch_no, b"".join(batch.ids), pack(list(batch.records.values())))

    def written(self) -> None:
        """The last writes are in the store."""
        for key in self._in_flight:
            kind, job_id, name = key
            if not self._live(key) and key not in self._gone:
                self._sent.discard(key)
            job = self._jobs.get(job_id)
            if kind == "actor" and job is not None and name in job.actors:
                job.actors[name].whole = False
            job = job if kind == "batch" else None
            batch = job.batches.get(name) if job is not None and isinstance(name, int) else None
            if batch is not None:
                batch.rewrite = False
                self._ack(batch)
        self._in_flight.clear()
        for _ in range(self._events_in_flight):
            self._events.popleft()
        self._events_in_flight = 0
        self._dropped_told = max(self._dropped_told, self._dropped_in_flight)

    def failed(self) -> None:
        """The last writes may be in the store or not: they come again."""
        for key in self._in_flight:
            if self._live(key):
                self._dirty[key] = None
            elif key[0] in ("end", "copy") or key[1] in self._jobs:  # the end of a job is the end of its rows
                self._gone[key] = None
        self._in_flight.clear()
        self._events_in_flight = 0
        self._dropped_in_flight = 0

    def _live(self, key: _Key) -> bool:
        """Whether the key stands for a row that lives."""
        kind, job_id, name = key
        if kind == "load":
            return True
        if kind == "copy":
            return name in self._copies
        job = self._jobs.get(job_id)
        if job is None or kind == "end":
            return False
        return (
            kind == "job"
            or (kind == "function" and name in job.functions)
            or (kind == "object" and name in job.objects)
            or (kind == "actor" and name in job.actors)
            or (kind == "name" and name in self._names)
            or (kind == "batch" and name in job.batches)
        )

    def rewrite_all(self) -> None:
        """The store may have lost anything: every live row is dirty again."""
        if self._load is not None:
            self._changed(("load", b"", 0))
        for object_id in self._copies:
            self._changed(("copy", b"", object_id))
        for job_id, job in self._jobs.items():
            if job.row is not None:
                self._changed(("job", job_id, 0))
            for function_id in job.functions:
                self._changed(("function", job_id, function_id))
            for object_id in job.objects:
                self._changed(("object", job_id, object_id))
            for actor_id, actor in job.actors.items():
                actor.whole = True
                self._changed(("actor", job_id, actor_id))
            for batch in job.batches.values():
                batch.rewrite = True
                self._changed(("batch", job_id, batch.batch_no))
        for name in self._names:
            self._changed(("name", DETACHED, name))

    # --- invariants -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants named at the top."""
        tasks: dict[TaskID, _Batch] = {}
        for job_id, job in self._jobs.items():
            assert job_id not in self._ended
            for batch in job.batches.values():
                assert batch.records, "a batch has at least one live task"
                assert not tasks.keys() & batch.records.keys(), "a task is in at most one batch"
                assert batch.rewrite or batch.records.keys() <= set(batch.ids), "what the store has includes what lives"
                assert batch.acked or ("batch", job_id, batch.batch_no) in [*self._dirty, *self._in_flight]
                tasks.update(dict.fromkeys(batch.records, batch))
        assert tasks == self._task_batch
        actors = {actor_id: job_id for job_id, job in self._jobs.items() for actor_id in job.actors}
        assert actors == self._actor_jobs
        for name, actor_id in self._names.items():
            row = self._jobs[actors[actor_id]].actors[actor_id].row
            assert _encoded(row.name) == name
            assert row.state not in (LEAVING, DEAD), "a name belongs to an actor that lives"
        assert all(map(self._live, self._dirty)), "a dirty key stands for a live row"
        assert not any(map(self._live, self._gone)), "a gone key does not"
        assert len(self._events) <= self._max_events


def _encoded(name: str) -> bytes:
    """A name as it stands in a key."""
    return name.encode(errors="surrogatepass")
