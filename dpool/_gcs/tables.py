"""The control store's vocabulary: rows (what is read), writes (what is changed) and the `Store` protocol.

Every write states what *is*, never a difference, so applying it twice, or again after a restart, changes
nothing: a client that lost a reply simply writes again. The one operation that is not of this kind,
taking an epoch, carries a token by which the store recognises its repetition.

Ids are raw bytes (`dpool._core.ids`). Times are seconds of the wall clock. Sizes are bytes.
Source: Ray paper (OSDI 2018) §4.2.1; DESIGN §5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from dpool.errors import ControlStoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dpool._core.ids import FunctionID, JobID, NodeID, ObjectID, TaskID

__all__ = [
    "MOST_GONE",
    "ActorRow",
    "AddEvent",
    "Beat",
    "EndJob",
    "EventRow",
    "FunctionRow",
    "GoneRow",
    "JobRow",
    "MarkDropped",
    "NodeRow",
    "ObjectRow",
    "PutActor",
    "PutBatch",
    "PutCopy",
    "PutFunction",
    "PutJob",
    "PutName",
    "PutObject",
    "ReleaseName",
    "RemoveActor",
    "RemoveBatch",
    "RemoveCopy",
    "RemoveObject",
    "Store",
    "StoreRefused",
    "Write",
]


MOST_GONE = 1000
"""Lost nodes that are remembered."""


# --- rows -----------------------------------------------------------------------------------------------------------


class NodeRow(NamedTuple):
    """One node process. `resources` are the machine's totals, sorted by name."""

    node_id: NodeID
    host: str
    pid: int
    address: str = ""
    resources: tuple[tuple[str, float], ...] = ()
    started_s: float = 0.0
    epoch: int = 0


class GoneRow(NamedTuple):
    """A node that was lost, not stopped; `by` is the node that was the first to say so."""

    node_id: NodeID
    host: str
    why: str
    at_s: float
    by: NodeID


class JobRow(NamedTuple):
    """One run of one driver, and the node it hangs on."""

    job_id: JobID
    node_id: NodeID
    pid: int = 0
    name: str = ""
    started_s: float = 0.0


class FunctionRow(NamedTuple):
    """A pickled function and the jobs that use it; it goes when the last of them ends."""

    function_id: FunctionID
    blob: bytes
    jobs: frozenset[JobID]


class ObjectRow(NamedTuple):
    """An object of the store: its size, its state ("sealed", "spilled", "lost", …) and the nodes that hold a copy.

    Nodes write those that are at home with them with their own id in the place of the job: they end with the node.
    """

    object_id: ObjectID
    job_id: JobID
    size_bytes: int
    state: str
    copies: frozenset[NodeID]


class ActorRow(NamedTuple):
    """An actor: how it is made, and how it is.

    `node_id` is the only one that may change the row; it names one start of a node, whose number is `epoch`. `creation`
    (opaque) is all that is needed to construct it anew, wherever; empty when it will not come back. `keep` are the
    objects that `creation` refers to. `cause` says why a dead one is dead. `meta` (opaque): what a proxy is made of.
    """

    actor_id: ObjectID
    job_id: JobID
    node_id: NodeID
    name: str = ""
    detached: bool = False
    resources: tuple[tuple[str, int], ...] = ()
    max_restarts: int = 0
    state: str = "waiting"
    restarts: int = 0
    cause: str = ""
    keep: tuple[ObjectID, ...] = ()
    creation: bytes = b""
    epoch: int = 0
    meta: bytes = b""


class EventRow(NamedTuple):
    """One line of a node's history; `event_id` grows strictly within a node."""

    event_id: tuple[int, int]
    name: str
    detail: str


# --- writes ---------------------------------------------------------------------------------------------------------


class Beat(NamedTuple):
    """The node's latest load report (opaque to the store)."""

    node_id: NodeID
    load: bytes


class PutJob(NamedTuple):
    row: JobRow


class EndJob(NamedTuple):
    """Everything of the job goes: its row, lineage, objects, actors with their names, and its share in functions.
    Detached actors stay.
    """

    job_id: JobID


class PutFunction(NamedTuple):
    function_id: FunctionID
    job_id: JobID
    blob: bytes


class PutBatch(NamedTuple):
    """A batch of lineage as it now is: it replaces what the store has under (job, node, batch number).

    `task_ids` are 16 bytes each, one after the other; `packed` is `lineage.pack` of their records, in the same order.
    """

    job_id: JobID
    node_id: NodeID
    batch_no: int
    task_ids: bytes
    packed: bytes


class MarkDropped(NamedTuple):
    """The batch's tasks that are not needed any more: bit i (little-endian) stands for the i-th task."""

    job_id: JobID
    node_id: NodeID
    batch_no: int
    dropped: bytes


class RemoveBatch(NamedTuple):
    job_id: JobID
    node_id: NodeID
    batch_no: int


class PutObject(NamedTuple):
    """The object's size and state, and whether `node_id` holds a copy (a row without copies may be rebuilt)."""

    object_id: ObjectID
    job_id: JobID
    size_bytes: int
    state: str
    node_id: NodeID
    held: bool = True


class PutCopy(NamedTuple):
    """`node_id` has a copy of an object, whose row is written by the node that is its home."""

    object_id: ObjectID
    node_id: NodeID


class RemoveCopy(NamedTuple):
    object_id: ObjectID
    node_id: NodeID


class RemoveObject(NamedTuple):
    object_id: ObjectID
    job_id: JobID


class PutActor(NamedTuple):
    """The actor as it now is. `whole`: also what never changes, else only state, restarts, cause and whether
    `creation` is needed. Ignored if the row is another node's.
    """

    row: ActorRow
    whole: bool = True


class RemoveActor(NamedTuple):
    """Nobody can ask for the actor any more. Ignored if the row is another node's."""

    actor_id: ObjectID
    job_id: JobID
    node_id: NodeID


class PutName(NamedTuple):
    """The node's actor of that name. Ignored if the name is another node's: see `Store.named_actor`."""

    name: str
    actor_id: ObjectID
    node_id: NodeID


class ReleaseName(NamedTuple):
    """The node has no actor of that name any more. Ignored if the name is another node's."""

    name: str
    node_id: NodeID


class AddEvent(NamedTuple):
    """One more event of a node; the store keeps the newest ones only. An id it has already seen changes nothing."""

    node_id: NodeID
    event_id: tuple[int, int]
    name: str
    detail: str


Write = (
    Beat
    | PutJob
    | EndJob
    | PutFunction
    | PutBatch
    | MarkDropped
    | RemoveBatch
    | PutObject
    | RemoveObject
    | PutCopy
    | RemoveCopy
    | PutActor
    | RemoveActor
    | PutName
    | ReleaseName
    | AddEvent
)


class StoreRefused(ControlStoreError):
    """The store answered, but refused (it is full, or its disk): the connection is sound, so try again later."""


class Store(Protocol):
    """A control store of one session. One thread uses it at a time.

    Every method raises `dpool.errors.ControlStoreError` if the store cannot be reached or refuses; the call may then
    have taken effect or not, and is repeated as it was.
    """

    def register_node(self, row: NodeRow, token: str, at_least: int = 1) -> int:
        """Write the node's row and return its epoch: greater than every epoch given before, and `>= at_least`.

        The same token for the same node gets the same epoch again. `at_least` is the epoch the node had, for a store
        that lost its data.
        """

    def remove_node(self, node_id: NodeID) -> None:
        """The node is gone: its row, its load and its events go; epochs go on counting. Its actors' rows stay for
        whoever takes them over.
        """

    def bury_node(self, node_id: NodeID, why: str, at_s: float, by: NodeID) -> bool:
        """The node is lost: its row becomes a `GoneRow`; its jobs and objects end, its detached actors are dead and
        nameless.

        True for the one node (`by`) that was the first to say so; False: it was another one, or the node had left.
        """

    def gone_nodes(self) -> dict[NodeID, GoneRow]:
        """The nodes that were lost; the latest ones, if there are very many."""

    def apply(self, writes: Sequence[Write]) -> None:
        """Apply the writes, in order, in as few round trips as possible."""

    def nodes(self) -> dict[NodeID, NodeRow]:
        """All registered nodes."""

    def loads(self) -> dict[NodeID, bytes]:
        """The latest load report of every node that sent one."""

    def jobs(self) -> dict[JobID, JobRow]:
        """All jobs that have not ended."""

    def function(self, function_id: FunctionID) -> FunctionRow | None:
        """The exported function, or None."""

    def lineage_of(self, job_id: JobID, task_ids: Iterable[TaskID]) -> dict[TaskID, bytes]:
        """The records of those tasks that the job still needs.

        It reads the job's whole index (16 bytes per live task), so ask for many tasks at once.
        """

    def object(self, object_id: ObjectID) -> ObjectRow | None:
        """Where the object is, or None."""

    def actor(self, actor_id: ObjectID) -> ActorRow | None:
        """The actor, or None if there is none, or nobody can ask for it any more."""

    def actors_of(self, node_id: NodeID) -> list[ObjectID]:
        """The actors that the node has, dead ones included that somebody may ask for."""

    def named_actor(self, name: str) -> tuple[ObjectID, NodeID] | None:
        """Who has the name: the first that took it. A node that has put a name and reads itself here has claimed it."""

    def events(self, node_id: NodeID) -> list[EventRow]:
        """The node's newest events, oldest first."""

    def keep_session(self, now_s: float) -> bool:
        """Say that the session lives. False: the store did not know it (any more), so its rows must be written."""

    def close_session(self) -> None:
        """Remove everything of the session."""

    def close(self) -> None:
        """Close the connection; the data stay."""
