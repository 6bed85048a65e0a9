"""The control store on a real Redis.

One connection, used by one thread: `resp` to the embedded server, `redis_link` to any other. Nothing is retried behind
our back, every call has a time-out, and each failure, of the network (ControlStoreError) or of the server
(StoreRefused), has a text without secrets. A caller repeats the call as it was; see `tables` for why that is safe.
Scripts, of one key each, are what must look before it writes: giving an epoch, recognised by its token; releasing a
function, which goes with its last job; and what belongs to one node at a time: actors and their names.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dpool._gcs import keys
from dpool._gcs.lineage import live_positions, split_ids, unpack
from dpool._gcs.resp import LinkFailed, ServerRefused, SocketLink
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
    StoreRefused,
)
from dpool.errors import ControlStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dpool._core.ids import FunctionID, JobID, NodeID, ObjectID, TaskID
    from dpool._gcs.spread import Link
    from dpool._gcs.tables import Write

Command = tuple[Any, ...]


FORGET_SESSION_S = 3600.0
"""On a shared server, the rows of a session that was not seen for this long are removed by the next one."""
GLOB = re.compile(r"[*?\[\]\\^-]")
STALE_EVENT = "equal or smaller than the target stream top item"

REGISTER = """
local token, name = ARGV[1], ARGV[2]
local known = redis.call('HGET', KEYS[1], 'token:' .. name)
local epoch
if known and string.match(known, '^%S+') == token then
  epoch = tonumber(string.match(known, '%d+$'))
else
  local last = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
  epoch = math.max(last + 1, tonumber(ARGV[3]))
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'token:' .. name, token .. ' ' .. epoch)
end
if redis.call('HGET', KEYS[1], 'row:' .. name) ~= ARGV[4] then  -- a full store refuses even the same value
  redis.call('HSET', KEYS[1], 'row:' .. name, ARGV[4])
end
return epoch
"""

RELEASE_FUNCTION = """
redis.call('HDEL', KEYS[1], 'job:' .. ARGV[1])
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 4) == 'job:' then return 0 end
end
return redis.call('DEL', KEYS[1])
"""

WRITE_OWN = """
local owner = redis.call('HGET', KEYS[1], 'node')
if owner and owner ~= ARGV[1] then return 0 end
if ARGV[2] == 'change' and not owner then return 0 end
if ARGV[3] == 'drop' then redis.call('HDEL', KEYS[1], 'creation') end
redis.call('HSET', KEYS[1], 'node', ARGV[1], unpack(ARGV, 4))
return 1
"""
"""A row that belongs to one node: ARGV is the node, "put" or "change" (only if it is there), "drop" or "" (whether
`creation` goes), fields and values.
"""

REMOVE_OWN = """
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] then return 0 end
if ARGV[2] and redis.call('HGET', KEYS[1], 'actor') ~= ARGV[2] then return 0 end
return redis.call('DEL', KEYS[1])
"""
"""ARGV is the node and, for a name that may have passed on, the actor."""


MARK_GONE = """
local name, by = ARGV[1], ARGV[2]
local row = redis.call('HGET', KEYS[1], 'row:' .. name)
if row then
  redis.call('HSET', KEYS[1], 'gone:' .. name, ARGV[3])
  redis.call('HDEL', KEYS[1], 'row:' .. name, 'token:' .. name)
end
local gone = redis.call('HGET', KEYS[1], 'gone:' .. name)
if not gone then return 0 end
return cjson.decode(gone)['by'] == by and 1 or 0
"""
"""ARGV is the node, who says so, and the row. 1 for whoever was the first, also if it asks again."""

BURY_ACTOR = """
if redis.call('HGET', KEYS[1], 'node') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'state', 'dead', 'cause', ARGV[2])
end
return redis.call('HGET', KEYS[1], 'name')
"""


PUBLIC = re.compile(
    r"([a-z+]+://)(?:[^?]*@)?((?:[\w.-]*|\[[\da-fA-F:.]+\])(?::\d+)?(?:,[\w.-]+:\d+)*(?:/[^?]*)?)(?:\?.*)?"
)


def redact(url: str) -> str:
    """The URL (or URLs) without user, password and query, for people's eyes."""
    found = [PUBLIC.fullmatch(one) for one in re.split(r",(?=[a-z+]+://)", url)]
    return ",".join(one[1] + one[2] if one is not None else "(a malformed URL)" for one in found)


class RedisStore:
    """A `tables.Store` on one Redis connection.

    Args:
        session: the session's name; every key carries it.
        link: sends commands (see `connect_url`, `connect_socket`).
        where: what errors call the server.
        max_events: about how many events are kept per node.
    """

    def __init__(self, session: str, link: Link, where: str, max_events: int = 10_000) -> None:
        self._session = session
        self._link = link
        self._where = where
        self._max_events = max_events
        self._encoders: dict[type, Callable[[Any], Iterator[Command]]] = {
            Beat: self._beat,
            PutJob: self._put_job,
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

    def __repr__(self) -> str:
        return f"<RedisStore {self._session} at {self._where}>"

    @property
    def connections(self) -> int:
        """How often it has connected: a server that was started again may have forgotten what it was told."""
        return self._link.connections

    # --- running commands -------------------------------------------------------------------------------------------

    def _run(self, commands: Sequence[Command], server: Link | None = None) -> list[Any]:
        """Send the commands in one go; their answers, or ControlStoreError for the first that failed."""
        if not commands:
            return []
        try:
            answers = (server or self._link).execute(commands)
        except LinkFailed as error:
            raise ControlStoreError(self._story(error)) from None
        for command, answer in zip(commands, answers, strict=True):
            if isinstance(answer, ServerRefused) and not (command[0] == "XADD" and STALE_EVENT in str(answer)):
                raise StoreRefused(self._story(answer))
        return answers

    def _one(self, *command: Any) -> Any:
        return self._run([command])[0]

    def _story(self, error: Exception) -> str:
        return f"{self._where}: {str(error) or type(error).__name__}"

    # --- nodes ------------------------------------------------------------------------------------------------------

    def register_node(self, row: NodeRow, token: str, at_least: int = 1) -> int:
        """See `tables.Store`."""
        name, body = row.node_id.hex(), _to_json(row._replace(epoch=0))
        return int(self._one("EVAL", REGISTER, 1, keys.nodes(self._session), token, name, at_least, body))

    def remove_node(self, node_id: NodeID) -> None:
        """See `tables.Store`."""
        name = node_id.hex()
        self._run(
            [
                ("HDEL", keys.nodes(self._session), f"row:{name}", f"token:{name}"),
                ("HDEL", keys.loads(self._session), name),
                ("UNLINK", keys.events(self._session, node_id)),
            ]
        )

    def bury_node(self, node_id: NodeID, why: str, at_s: float, by: NodeID) -> bool:
        """See `tables.Store`. Cut short, it is to be repeated: the row of who was the first stays."""
        known = self.nodes().get(node_id)
        body = {"host": known.host if known else "", "why": why, "at_s": at_s, "by": by.hex()}
        key = keys.nodes(self._session)
        if not int(self._one("EVAL", MARK_GONE, 1, key, node_id.hex(), by.hex(), json.dumps(body))):
            return False
        for job in self.jobs().values():
            if job.node_id == node_id:
                self._end_job(job.job_id)
        self._end_job(node_id)
        names = self.actors_of(node_id)
        told = ("EVAL", BURY_ACTOR, 1)
        buried = self._run([(*told, keys.actor(self._session, one), node_id, _bytes(why)) for one in names])
        self._run(
            [
                *(next(self._release_name(ReleaseName(_text(name), node_id))) for name in buried if name),
                ("HDEL", keys.loads(self._session), node_id.hex()),
                ("UNLINK", keys.events(self._session, node_id)),
            ]
        )
        self._forget_long_gone()
        return True

    def _forget_long_gone(self) -> None:
        rows = sorted(self.gone_nodes().values(), key=lambda row: row.at_s)
        fields = [f"gone:{row.node_id.hex()}" for row in rows[:-MOST_GONE]]
        if fields:
            self._one("HDEL", keys.nodes(self._session), *fields)

    def gone_nodes(self) -> dict[NodeID, GoneRow]:
        """See `tables.Store`."""
        rows = {}
        for field, value in _pairs(self._one("HGETALL", keys.nodes(self._session))).items():
            if field.startswith(b"gone:"):
                body = json.loads(value)
                name = bytes.fromhex(field[5:].decode())
                rows[name] = GoneRow(name, body["host"], body["why"], body["at_s"], bytes.fromhex(body["by"]))
        return rows

    def nodes(self) -> dict[NodeID, NodeRow]:
        """See `tables.Store`."""
        fields = _pairs(self._one("HGETALL", keys.nodes(self._session)))
        rows = {}
        for field, value in fields.items():
            if field.startswith(b"row:"):
                node_id = bytes.fromhex(field[4:].decode())
                epoch = int(fields[b"token:" + field[4:]].split()[-1])
                rows[node_id] = _node_from_json(node_id, value)._replace(epoch=epoch)
        return rows

    def loads(self) -> dict[NodeID, bytes]:
        """See `tables.Store`."""
        fields = _pairs(self._one("HGETALL", keys.loads(self._session)))
        return {bytes.fromhex(name.decode()): load for name, load in fields.items()}

    def _beat(self, write: Beat) -> Iterator[Command]:
        yield "HSET", keys.loads(self._session), write.node_id.hex(), write.load

    # --- jobs and functions -----------------------------------------------------------------------------------------

    def jobs(self) -> dict[JobID, JobRow]:
        """See `tables.Store`."""
        rows = {}
        for field, value in _pairs(self._one("HGETALL", keys.jobs(self._session))).items():
            body = json.loads(value)
            job_id = bytes.fromhex(field.decode())
            rows[job_id] = JobRow(job_id, bytes.fromhex(body["node"]), body["pid"], body["name"], body["started_s"])
        return rows

    def _put_job(self, write: PutJob) -> Iterator[Command]:
        row = write.row
        body = {"node": row.node_id.hex(), "pid": row.pid, "name": row.name, "started_s": row.started_s}
        yield "HSET", keys.jobs(self._session), row.job_id.hex(), json.dumps(body)

    def _put_function(self, write: PutFunction) -> Iterator[Command]:
        # the index first: whatever happens in between, the end of the job finds the function
        yield "SADD", keys.job_functions(self._session, write.job_id), write.function_id
        key = keys.function(self._session, write.function_id)
        yield "HSET", key, "blob", write.blob, f"job:{write.job_id.hex()}", b""

    def _end_job(self, job_id: JobID) -> None:
        """Idempotent: the row that says the job exists goes last."""
        functions = keys.job_functions(self._session, job_id)
        objects = keys.job_objects(self._session, job_id)
        actors = keys.job_actors(self._session, job_id)
        used, owned, made = self._run([("SMEMBERS", functions), ("SMEMBERS", objects), ("SMEMBERS", actors)])
        self._end_actors(made)
        commands: list[Command] = [
            ("EVAL", RELEASE_FUNCTION, 1, keys.function(self._session, name), job_id.hex()) for name in used
        ]
        commands += [("UNLINK", keys.object_(self._session, name)) for name in owned]
        commands += [("UNLINK", keys.lineage(self._session, job_id, shard)) for shard in range(keys.LINEAGE_SHARDS)]
        commands += [("UNLINK", functions), ("UNLINK", objects), ("UNLINK", actors)]
        commands.append(("HDEL", keys.jobs(self._session), job_id.hex()))
        self._run(commands)

    def _end_actors(self, made: Iterable[ObjectID]) -> None:
        """The rows go last: whatever happens in between, they say what else there is."""
        names = list(made)
        rows = self._run([("HMGET", keys.actor(self._session, name), "node", "name") for name in names])
        commands: list[Command] = []
        for actor_id, (node_id, name) in zip(names, rows, strict=True):
            if node_id is None:
                continue
            if name:
                key = keys.actor_name(self._session, _text(name))
                commands.append(("EVAL", REMOVE_OWN, 1, key, node_id, actor_id))
            commands.append(("SREM", keys.node_actors(self._session, node_id), actor_id))
        self._run(commands)
        self._run([("UNLINK", keys.actor(self._session, name)) for name in names])

    def function(self, function_id: FunctionID) -> FunctionRow | None:
        """See `tables.Store`."""
        fields = _pairs(self._one("HGETALL", keys.function(self._session, function_id)))
        if b"blob" not in fields:
            return None
        jobs = frozenset(bytes.fromhex(field[4:].decode()) for field in fields if field.startswith(b"job:"))
        return FunctionRow(function_id, fields[b"blob"], jobs)

    # --- lineage ----------------------------------------------------------------------------------------------------

    def _shard(self, write: PutBatch | MarkDropped | RemoveBatch) -> tuple[str, str]:
        """The key and the name of the batch in it."""
        key = keys.lineage(self._session, write.job_id, write.batch_no % keys.LINEAGE_SHARDS)
        return key, f"{write.node_id.hex()}.{write.batch_no}"

    def _put_batch(self, write: PutBatch) -> Iterator[Command]:
        key, name = self._shard(write)
        yield "HSET", key, f"i:{name}", write.task_ids, f"r:{name}", write.packed, f"d:{name}", b""

    def _mark_dropped(self, write: MarkDropped) -> Iterator[Command]:
        key, name = self._shard(write)
        yield "HSET", key, f"d:{name}", write.dropped

    def _remove_batch(self, write: RemoveBatch) -> Iterator[Command]:
        key, name = self._shard(write)
        yield "HDEL", key, f"i:{name}", f"r:{name}", f"d:{name}"

    def lineage_of(self, job_id: JobID, task_ids: Iterable[TaskID]) -> dict[TaskID, bytes]:
        """See `tables.Store`."""
        wanted = set(task_ids)
        found: dict[TaskID, bytes] = {}
        for shard in range(keys.LINEAGE_SHARDS):
            key = keys.lineage(self._session, job_id, shard)
            names = [field[2:] for field in self._one("HKEYS", key) if field.startswith(b"i:")]
            for start in range(0, len(names), 64):
                if len(found) == len(wanted):
                    return found
                found.update(self._search(key, names[start : start + 64], wanted))
        return found

    def _search(self, key: str, names: list[bytes], wanted: set[TaskID]) -> Iterator[tuple[TaskID, bytes]]:
        """The wanted records of these batches: first the ids, then only the blobs that hold one."""
        fields = [kind + name for name in names for kind in (b"i:", b"d:")]
        values = self._one("HMGET", key, *fields)
        for name, ids, dropped in zip(names, values[::2], values[1::2], strict=True):
            tasks = split_ids(ids or b"")  # the batch may have gone meanwhile
            hits = [at for at in live_positions(len(tasks), dropped or b"") if tasks[at] in wanted]
            packed = self._one("HGET", key, b"r:" + name) if hits else None
            records = unpack(packed) if packed else []
            yield from ((tasks[at], records[at]) for at in hits if at < len(records))

    # --- objects ----------------------------------------------------------------------------------------------------

    def _put_object(self, write: PutObject) -> Iterator[Command]:
        key, at = keys.object_(self._session, write.object_id), f"at:{write.node_id.hex()}"
        yield "SADD", keys.job_objects(self._session, write.job_id), write.object_id
        row = ("job", write.job_id, "size", write.size_bytes, "state", write.state)
        if write.held:
            yield "HSET", key, *row, at, b""
        else:
            yield "HSET", key, *row
            yield "HDEL", key, at

    def _remove_object(self, write: RemoveObject) -> Iterator[Command]:
        yield "UNLINK", keys.object_(self._session, write.object_id)
        yield "SREM", keys.job_objects(self._session, write.job_id), write.object_id

    def _put_copy(self, write: PutCopy) -> Iterator[Command]:
        yield "HSET", keys.object_(self._session, write.object_id), f"at:{write.node_id.hex()}", b""

    def _remove_copy(self, write: RemoveCopy) -> Iterator[Command]:
        yield "HDEL", keys.object_(self._session, write.object_id), f"at:{write.node_id.hex()}"

    def object(self, object_id: ObjectID) -> ObjectRow | None:
        """See `tables.Store`."""
        fields = _pairs(self._one("HGETALL", keys.object_(self._session, object_id)))
        if b"job" not in fields:
            return None
        copies = frozenset(bytes.fromhex(field[3:].decode()) for field in fields if field.startswith(b"at:"))
        return ObjectRow(object_id, fields[b"job"], int(fields[b"size"]), fields[b"state"].decode(), copies)

    # --- actors -----------------------------------------------------------------------------------------------------

    def _put_actor(self, write: PutActor) -> Iterator[Command]:
        row = write.row
        key = keys.actor(self._session, row.actor_id)
        now = ("state", row.state, "restarts", row.restarts, "cause", _bytes(row.cause))
        drop = "" if row.creation else "drop"
        if not write.whole:
            yield "EVAL", WRITE_OWN, 1, key, row.node_id, "change", drop, *now
            return
        # the indices first: whatever happens in between, the end of the job or of the node finds the actor
        yield "SADD", keys.node_actors(self._session, row.node_id), row.actor_id
        if not row.detached:
            yield "SADD", keys.job_actors(self._session, row.job_id), row.actor_id
        made: tuple[Any, ...] = ("job", row.job_id, "epoch", row.epoch, "name", _bytes(row.name))
        made += ("detached", int(row.detached), "resources", json.dumps(row.resources))
        made += ("max_restarts", row.max_restarts, "keep", json.dumps([one.hex() for one in row.keep]))
        made += ("meta", row.meta)
        made += ("creation", row.creation) if row.creation else ()
        yield "EVAL", WRITE_OWN, 1, key, row.node_id, "put", drop, *made, *now

    def _remove_actor(self, write: RemoveActor) -> Iterator[Command]:
        yield "EVAL", REMOVE_OWN, 1, keys.actor(self._session, write.actor_id), write.node_id
        yield "SREM", keys.job_actors(self._session, write.job_id), write.actor_id
        yield "SREM", keys.node_actors(self._session, write.node_id), write.actor_id

    def _put_name(self, write: PutName) -> Iterator[Command]:
        key = keys.actor_name(self._session, write.name)
        yield "EVAL", WRITE_OWN, 1, key, write.node_id, "put", "", "actor", write.actor_id

    def _release_name(self, write: ReleaseName) -> Iterator[Command]:
        yield "EVAL", REMOVE_OWN, 1, keys.actor_name(self._session, write.name), write.node_id

    def actor(self, actor_id: ObjectID) -> ActorRow | None:
        """See `tables.Store`."""
        fields = _pairs(self._one("HGETALL", keys.actor(self._session, actor_id)))
        if b"job" not in fields:
            return None
        return ActorRow(
            actor_id,
            fields[b"job"],
            fields[b"node"],
            _text(fields[b"name"]),
            fields[b"detached"] == b"1",
            tuple((name, amount) for name, amount in json.loads(fields[b"resources"])),
            int(fields[b"max_restarts"]),
            fields[b"state"].decode(),
            int(fields[b"restarts"]),
            _text(fields[b"cause"]),
            tuple(map(bytes.fromhex, json.loads(fields[b"keep"]))),
            fields.get(b"creation", b""),
            int(fields[b"epoch"]),
            fields[b"meta"],
        )

    def actors_of(self, node_id: NodeID) -> list[ObjectID]:
        """See `tables.Store`."""
        names = list(self._one("SMEMBERS", keys.node_actors(self._session, node_id)))
        owners = self._run([("HGET", keys.actor(self._session, name), "node") for name in names])
        return [name for name, owner in zip(names, owners, strict=True) if owner == node_id]

    def named_actor(self, name: str) -> tuple[ObjectID, NodeID] | None:
        """See `tables.Store`."""
        actor_id, node_id = self._one("HMGET", keys.actor_name(self._session, name), "actor", "node")
        return (actor_id, node_id) if actor_id is not None else None

    # --- events -----------------------------------------------------------------------------------------------------

    def _add_event(self, write: AddEvent) -> Iterator[Command]:
        key, (major, minor) = keys.events(self._session, write.node_id), write.event_id
        body = ("name", write.name, "detail", write.detail)
        yield "XADD", key, "MAXLEN", "~", self._max_events, f"{major}-{minor}", *body

    def events(self, node_id: NodeID) -> list[EventRow]:
        """See `tables.Store`."""
        rows = []
        for entry_id, fields in self._one("XRANGE", keys.events(self._session, node_id), "-", "+") or ():
            major, minor = entry_id.decode().split("-")
            body = _pairs(fields)
            rows.append(EventRow((int(major), int(minor)), body[b"name"].decode(), body[b"detail"].decode()))
        return rows

    # --- the session ------------------------------------------------------------------------------------------------

    def apply(self, writes: Sequence[Write]) -> None:
        """See `tables.Store`."""
        commands: list[Command] = []
        for write in writes:
            if isinstance(write, EndJob):  # has to read first, so what came before it must be there
                self._run(commands)
                commands = []
                self._end_job(write.job_id)
            else:
                commands.extend(self._encoders[type(write)](write))
        self._run(commands)

    def keep_session(self, now_s: float) -> bool:
        """See `tables.Store`. `now_s` is wall-clock time; sessions unseen for FORGET_SESSION_S are removed."""
        known, dead, _ = self._run(
            [
                ("ZSCORE", keys.SESSIONS, self._session),
                ("ZRANGEBYSCORE", keys.SESSIONS, "-inf", now_s - FORGET_SESSION_S),
                ("ZADD", keys.SESSIONS, now_s, self._session),
            ]
        )
        for name in dead:
            if name.decode() != self._session:
                self._remove_session(name.decode())
        return known is not None

    def close_session(self) -> None:
        """See `tables.Store`."""
        self._remove_session(self._session)

    def _remove_session(self, session: str) -> None:
        """Everything under the session's prefix, found by SCAN: this is rare and must not depend on any index."""
        pattern = GLOB.sub(r"\\\g<0>", keys.session_prefix(session)) + "*"  # the name may come from the shared server
        for server in self._link.servers():
            cursor = b"0"
            while True:
                ((cursor, found),) = self._run([("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)], server)
                self._run([("UNLINK", key) for key in found])
                if int(cursor) == 0:
                    break
        self._one("ZREM", keys.SESSIONS, session)

    def close(self) -> None:
        """See `tables.Store`. Another thread may call it to end a call in progress."""
        self._link.close()


def connect_socket(session: str, path: str, user: str, password: str, timeout_s: float) -> RedisStore:
    """A store on the embedded server's Unix socket. Each call may take `timeout_s`. Connects at the first call."""
    return RedisStore(session, SocketLink(path, user, password, timeout_s), f"the embedded server at {path}")


def connect_url(session: str, url: str, timeout_s: float) -> RedisStore:
    """A store on the server, or servers, at `url`; see `redis_link`. Raises ControlStoreError for a malformed URL."""
    where = redact(url)
    if url.startswith("unix:///") and "?" not in url:  # nobody's name in it: the way to the head of the cluster
        return RedisStore(session, SocketLink(url.removeprefix("unix://"), "", "", timeout_s), where)
    from dpool._gcs.redis_link import link_to  # 75 ms of imports, which the embedded server does without

    return RedisStore(session, link_to(url, where, timeout_s), where)


def _bytes(text: str) -> bytes:
    """What Python takes for a string, as bytes; UTF-8, but for lone surrogates."""
    return text.encode(errors="surrogatepass")


def _text(data: bytes) -> str:
    """The inverse of `_bytes`."""
    return data.decode(errors="surrogatepass")


def _pairs(answer: Any) -> dict[bytes, bytes]:
    """A flat list of fields and values, as a dict."""
    return dict(zip(answer[::2], answer[1::2], strict=True))


def _to_json(row: NodeRow) -> str:
    body = {"host": row.host, "pid": row.pid, "address": row.address, "started_s": row.started_s}
    return json.dumps({**body, "resources": dict(row.resources)})


def _node_from_json(node_id: NodeID, value: bytes) -> NodeRow:
    body = json.loads(value)
    resources = tuple((name, float(amount)) for name, amount in body["resources"].items())
    return NodeRow(node_id, body["host"], body["pid"], body["address"], resources, body["started_s"])
