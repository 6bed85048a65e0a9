"""Every Redis key, spelled once, with its type and meaning.

All keys of a session begin with `dpool:<session>:`, so an ACL can name them and a sweep can find them. What grows with
the work is spread by id: the part in braces is the hash tag that Redis Cluster shards by. Every operation touches one
key, or one Lua script touches one key. Ids stand in keys and field names as hex, in values raw.

| key | type | fields or members |
|---|---|---|
| `dpool:sessions` | sorted set | session → time it was last seen alive (a server shared by several sessions only) |
| `…:nodes` | hash | `epoch` → last epoch given; `row:<node>` → JSON; `token:<node>` → token of its registration; |
| | | `gone:<node>` → JSON, of one that was lost |
| `…:loads` | hash | `<node>` → its latest load report |
| `…:jobs` | hash | `<job>` → JSON |
| `…:job_functions:{<job>}` | set | ids of the functions the job uses |
| `…:job_objects:{<job>}` | set | ids of the job's objects |
| `…:function:{<function>}` | hash | `blob` → the pickled function; `job:<job>` → empty, one per job that uses it |
| `…:object:{<object>}` | hash | `job`, `size`, `state`; `at:<node>` → empty, one per copy |
| `…:job_actors:{<job>}` | set | ids of the actors that end with the job |
| `…:node_actors:{<node>}` | set | ids of the actors that the node has |
| `…:actor:{<actor>}` | hash | how it is: `node`, `epoch`, `state`, `restarts`, `cause`; how it is made: `job`, |
| | | `name`, `detached`, `resources`, `max_restarts`, `keep`, `meta`, `creation` |
| `…:actor_name:{<name>}` | hash | `actor`, `node` → who has the name; the name stands in the key as hex |
| `…:lineage:{<job>.<shard>}` | hash | batch b = `<node>.<number>`: `i:b` ids, `r:b` records, `d:b` dropped bits |
| `…:events:{<node>}` | stream | `name`, `detail`; the newest ones only |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpool._core.ids import FunctionID, JobID, NodeID, ObjectID

PREFIX = "dpool:"
SESSIONS = PREFIX + "sessions"
LINEAGE_SHARDS = 16
"""How many keys a job's lineage is spread over: known in advance, so a job ends without a search."""


def session_prefix(session: str) -> str:
    """What every key of the session begins with."""
    return f"{PREFIX}{session}:"


def _spread(session: str, table: str, tag: str) -> str:
    """A key of a table that has one for each id."""
    return f"{PREFIX}{session}:{table}:{{{tag}}}"


def nodes(session: str) -> str:
    """Hash: the nodes' rows, registration tokens and the epoch counter."""
    return f"{PREFIX}{session}:nodes"


def loads(session: str) -> str:
    """Hash: each node's latest load report."""
    return f"{PREFIX}{session}:loads"


def jobs(session: str) -> str:
    """Hash: the rows of the jobs that have not ended."""
    return f"{PREFIX}{session}:jobs"


def job_functions(session: str, job_id: JobID) -> str:
    """Set: the functions that the job uses."""
    return _spread(session, "job_functions", job_id.hex())


def job_objects(session: str, job_id: JobID) -> str:
    """Set: the job's objects."""
    return _spread(session, "job_objects", job_id.hex())


def function(session: str, function_id: FunctionID) -> str:
    """Hash: a pickled function and the jobs that use it."""
    return _spread(session, "function", function_id.hex())


def object_(session: str, object_id: ObjectID) -> str:
    """Hash: an object's size, state, job and copies."""
    return _spread(session, "object", object_id.hex())


def job_actors(session: str, job_id: JobID) -> str:
    """Set: the actors that end with the job."""
    return _spread(session, "job_actors", job_id.hex())


def node_actors(session: str, node_id: NodeID) -> str:
    """Set: the actors that the node has."""
    return _spread(session, "node_actors", node_id.hex())


def actor(session: str, actor_id: ObjectID) -> str:
    """Hash: how an actor is made, and how it is."""
    return _spread(session, "actor", actor_id.hex())


def actor_name(session: str, name: str) -> str:
    """Hash: which actor has the name, and on which node."""
    return _spread(session, "actor_name", name.encode(errors="surrogatepass").hex())


def lineage(session: str, job_id: JobID, shard: int) -> str:
    """Hash: the batches of the job's lineage whose number is `shard` modulo LINEAGE_SHARDS."""
    return _spread(session, "lineage", f"{job_id.hex()}.{shard}")


def events(session: str, node_id: NodeID) -> str:
    """Stream: the node's newest events."""
    return _spread(session, "events", node_id.hex())
