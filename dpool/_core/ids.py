"""Identities: 16-byte ids that carry lineage.

A task's id is a hash of its parent task and its submission index, so running the parent again gives
its children the same ids; an output's id is the id of its task plus an index, so every write is an
idempotent upsert. Nothing here is on the hot path: the runtime numbers tasks with plain integers
and derives the id only when a record, a message to another machine or an error needs it.

Source: Ray paper (OSDI 2018) §4.2; DESIGN §4.
"""

from __future__ import annotations

from hashlib import blake2b

ID_BYTES = 16
INDEX_BYTES = 4
MAX_OUTPUT_INDEX = 2 ** (8 * INDEX_BYTES) - 1
TAG_BYTES = 6

TaskID = bytes
"""16 bytes."""
ObjectID = bytes
"""20 bytes: the task's id and the output's index, big-endian."""
FunctionID = bytes
"""16 bytes: the hash of the function's pickled definition."""
JobID = bytes
"""16 bytes, random: one run of one driver."""
NodeID = bytes
"""16 bytes, random: one start of one node."""
Tag = bytes
"""6 bytes: the node whose store counts the holders of an object; the object's id begins with it."""


def task_id(parent: TaskID, index: int) -> TaskID:
    """The id of the `index`-th task submitted by `parent` (a job's id for a driver's own tasks)."""
    if len(parent) != ID_BYTES:
        raise ValueError(f"a parent id has {ID_BYTES} bytes, not {len(parent)}")
    return blake2b(parent + index.to_bytes(8, "big"), digest_size=ID_BYTES, person=b"dpool-task").digest()


def object_id(task: TaskID, index: int = 0) -> ObjectID:
    """The id of the `index`-th output of `task`."""
    if len(task) != ID_BYTES:
        raise ValueError(f"a task id has {ID_BYTES} bytes, not {len(task)}")
    return task + index.to_bytes(INDEX_BYTES, "big")


def split_object_id(obj: ObjectID) -> tuple[TaskID, int]:
    """The inverse of `object_id`: the task that makes the object, and the output's index."""
    if len(obj) != ID_BYTES + INDEX_BYTES:
        raise ValueError(f"an object id has {ID_BYTES + INDEX_BYTES} bytes, not {len(obj)}")
    return obj[:ID_BYTES], int.from_bytes(obj[ID_BYTES:], "big")


def function_id(definition: bytes) -> FunctionID:
    """The id of a function: the hash of its pickled definition."""
    return blake2b(definition, digest_size=ID_BYTES, person=b"dpool-func").digest()


def tag_of(session: str) -> Tag:
    """The tag of the node whose session directory this is: the random part of its name."""
    try:
        tag = bytes.fromhex(session[-2 * TAG_BYTES :])
    except ValueError:
        tag = b""
    return tag if len(tag) == TAG_BYTES else blake2b(session.encode(), digest_size=TAG_BYTES).digest()


def home_of(obj: ObjectID) -> Tag:
    """The tag of the node that counts the holders of an object."""
    return obj[:TAG_BYTES]
