"""What gateways say to each other, in one file.

```
 gateway of the submitter                                    gateway of the workers
   PoolOpened, SetupChanged, PoolClosed ──────────────────────►
   LeaseWanted ───────────────────────────────────────────────►   LeaseGiven or LeaseRefused ◄──
   TaskFrame, LimitAsked, Aimed, SignalWanted, LeaseReturned ──►   ResultFrame, LimitTold, Printed ◄──
                                                                   WorkerEnded ◄── (every lease given ends so)
 both:  Heartbeat, Members, About, DrainAsked; OutputAsked, OutputTold; Borrow…, Future… (references);
        Describe…, Piece…, PullLeft (copies of objects); Heirlooms…, Bequeathed, HomeMoved, Rebound (leaving);
        StoreOpened, StoreBytes, StoreClosed (the control store, of which the head says StoreShared)
```

Frozen tuples; on the wire one byte that names the type, then the pickled fields, then buffers. The link has proved that
its other side knows the cluster's secret before anything is unpickled (see net.py). Numbers of pools and leases are the
submitter's side's; with the peer's name they are unique.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

from dpool._core.fields import checker
from dpool._core.messages import ProtocolError, Shape


class PoolOpened(NamedTuple):
    """A pool will want workers here."""

    pool: int
    setup: bytes
    job: bytes
    """Of the program of the sender's machine that it belongs to; empty: one of another machine."""


class SetupChanged(NamedTuple):
    """Workers that are started from now on take over this."""

    pool: int
    setup: bytes


class PoolClosed(NamedTuple):
    """It wants no more, and those it has are to end; `kill`: now."""

    pool: int
    kill: bool


class LeaseWanted(NamedTuple):
    """The answer is LeaseGiven or LeaseRefused."""

    pool: int
    lease: int
    shape: Shape


class LeaseReturned(NamedTuple):
    """It is not wanted any more (given or not). `retire`: its worker must not be used again."""

    lease: int
    retire: bool


class TaskFrame(NamedTuple):
    """The buffer is the frame, and in front of it, pickled, the fields of its `Carried`."""

    lease: int
    carried: int = 0
    """How many bytes these are; 0: it carries nothing."""


class LimitAsked(NamedTuple):
    lease: int
    limit: int


class Aimed(NamedTuple):
    """The next signal is for this task: a slot of the page, and what to store there."""

    lease: int
    slot: int
    value: int


class SignalWanted(NamedTuple):
    lease: int
    number: int


class LeaseGiven(NamedTuple):
    lease: int
    pid: int
    """0: not known yet."""
    log_file: str
    host: str
    gpus: tuple[str, ...] = ()
    """The devices that the lease may see, as CUDA_VISIBLE_DEVICES has them there."""
    port: int = 0
    """Where the submitter may connect to the worker; 0: nowhere."""
    token: bytes = b""
    key: bytes = b""


class LeaseRefused(NamedTuple):
    """There is no room (any more), or it cannot be; `reason` is for the log."""

    lease: int
    reason: str


class ResultFrame(NamedTuple):
    """The buffer is the frame, and in front of it, pickled, the list of the objects that its results refer to. The
    sender holds them until RefsTaken.
    """

    lease: int
    end: bool = False
    """The frame of tasks is done with."""
    carried: int = 0
    pipe: int = 0
    """A pipe to a generator came with it, which has this number."""


class LimitTold(NamedTuple):
    lease: int
    limit: int
    started: int
    first: int
    noted: int
    journal: bytes
    refs: list[bytes]
    """As in ResultFrame: of what the journal notes, as far as that has not been said yet."""


class WorkerEnded(NamedTuple):
    """As WorkerDied; what its page said last is added."""

    lease: int
    pid: int
    signal: int
    exit_code: int
    reason: str
    log_file: str
    started: int
    first: int
    noted: int
    journal: bytes
    refs: list[bytes]


class Printed(NamedTuple):
    """Whole lines that a worker of the pool wrote."""

    pool: int
    stream: int
    data: bytes


class Heartbeat(NamedTuple):
    """What a machine says of itself; see `Load` in logic/placement.py."""

    node: bytes
    number: int
    total: dict[str, int]
    free: dict[str, int]
    waiting: int
    task_s: float
    bytes_per_s: float
    seen: dict[bytes, int]
    draining: bool


class About(NamedTuple):
    """What a machine says of itself, for people; see node_about.py."""

    about: dict[str, Any]


class OutputAsked(NamedTuple):
    """Whether all that the sender's pools have printed up to now is on its way; the answer is OutputTold."""

    number: int


class OutputTold(NamedTuple):
    number: int


class NodeSaid(NamedTuple):
    """For the node there: what ToPeer has."""

    data: bytes


class DrainAsked(NamedTuple):
    """The machine is to leave the cluster."""


class Members(NamedTuple):
    """The addresses of the other gateways that the sender has a link to."""

    addresses: list[str]


class StoreShared(NamedTuple):
    """The head says where the control store of the cluster is; `session`: what its keys carry, empty: there is none;
    `url`: empty: at the head, through its gateway.
    """

    session: str
    url: str


class StoreOpened(NamedTuple):
    """To the head: a connection to its Redis; numbers are the sender's."""

    number: int


class StoreBytes(NamedTuple):
    number: int
    data: bytes


class StoreClosed(NamedTuple):
    number: int


class ProgramEnded(NamedTuple):
    """A program of the sender's machine."""

    job: bytes


class StreamTold(NamedTuple):
    """To the generator with this pipe: what its caller has written into its own; empty: that is closed."""

    pipe: int
    data: bytes


# actors; see gateway_actors.py


class LinkWanted(NamedTuple):
    """`lease` is an actor's process: the sender has one more caller of it. The link is a lease of its own; it ends with
    LeaseReturned, or, when the process does, with WorkerEnded.
    """

    lease: int
    link: int


class ActorWanted(NamedTuple):
    """A process of the sender's calls an actor whose home the receiver is. The answers are LeaseGiven (whenever there
    is a process), WorkerEnded and, in the end, ActorEnded.
    """

    link: int
    actor: bytes


class LinkHere(NamedTuple):
    """In the place of LeaseGiven: the process is on the receiver's machine, which has leased it to the sender."""

    link: int
    lease: int


class ActorEnded(NamedTuple):
    """The actor is dead for good; `cause` as in ActorGone."""

    link: int
    cause: bytes


class ActorKilled(NamedTuple):
    """As ActorKill."""

    actor: bytes
    restart: bool
    why: str


# references to objects; see gateway_objects.py


class RefsTaken(NamedTuple):
    """What a frame of results carried is held here now."""

    objs: list[bytes]


class BorrowAsked(NamedTuple):
    """The sender's machine holds these objects, whose home the receiver is. The answer is BorrowTold."""

    objs: list[bytes]


class BorrowTold(NamedTuple):
    """`refused`: those that are not there any more."""

    objs: list[bytes]
    refused: list[bytes]


class BorrowEnded(NamedTuple):
    """It does not hold these any more."""

    objs: list[bytes]


class FutureAsked(NamedTuple):
    """Say what becomes of this future, whose home the receiver is: FutureTold."""

    obj: bytes


class FutureTold(NamedTuple):
    """The buffer is, pickled, the data of it and the objects that these refer to."""

    obj: bytes
    kind: int


# objects; see transfers.py, and for the words logic/pulls.py and logic/serving.py


class DescribeAsked(NamedTuple):
    """What is this object, whose home the receiver is? The answer is Described or NotThere."""

    obj: bytes


class Described(NamedTuple):
    """The buffer is, pickled, the list of the objects that it contains."""

    obj: bytes
    size: int
    copies: list[bytes]
    """Other gateways that have all of it."""


class NotThere(NamedTuple):
    obj: bytes
    why: str


class PieceAsked(NamedTuple):
    obj: bytes
    piece: int
    join: bool
    insist: bool


class PieceSent(NamedTuple):
    """The piece is the buffer."""

    obj: bytes
    piece: int


class PieceRedirected(NamedTuple):
    obj: bytes
    to: bytes


class PieceDenied(NamedTuple):
    obj: bytes


class PullLeft(NamedTuple):
    obj: bytes
    whole: bool


# a machine that leaves, and its heir; see gateway_heirs.py and logic/heirs.py


class Heirlooms(NamedTuple):
    """The sender is about to leave: have copies of these. The answer is HeirloomsHad. The buffer is, pickled, what has
    become of those that are futures: (id, kind, data, the ids that these refer to) each.
    """

    round: int
    objs: list[bytes]


class HeirloomsDropped(NamedTuple):
    """These are not wanted any more."""

    objs: list[bytes]


class HeirloomsHad(NamedTuple):
    """All up to this round are there, but for `lost`, and `why` is for people; round 0: none is taken."""

    round: int
    lost: list[bytes]
    why: str


class Bequeathed(NamedTuple):
    """The sender leaves, and the receiver is home of the objects with these tags: tag → which one that it has had, not
    counting the first. `borrowers`: who holds some of them.
    """

    tags: dict[bytes, int]
    borrowers: list[bytes]


class HomeMoved(NamedTuple):
    """The same, for all others: that gateway is home now. Whoever holds any asks it anew, and then says Rebound."""

    tags: dict[bytes, int]
    heir: bytes
    lost: list[bytes]
    """What could not be moved, and, for people, why; only who leaves says that."""
    why: str


class Rebound(NamedTuple):
    tags: list[bytes]


class TunnelOpened(NamedTuple):
    """A process of the sender's machine speaks to our node, or to who listens at a Unix socket of ours."""

    tunnel: int
    pid: int
    path: str


class TunnelData(NamedTuple):
    """A packet, or bytes of a stream, is the buffer. `yours`: who receives this has numbered the tunnel.

    `streams`: numbers of tunnels that begin with this packet, one for each descriptor in it; `refs`: the objects that
    it refers to.
    """

    tunnel: int
    yours: bool
    streams: list[int]
    refs: list[bytes]


class TunnelRead(NamedTuple):
    """So many packets, or bytes, have been passed on in all; packets to a process: and read."""

    tunnel: int
    yours: bool
    passed: int


class TunnelClosed(NamedTuple):
    """The other end has closed. `unread`: not all that was passed on had been read."""

    tunnel: int
    yours: bool
    passed: int
    unread: bool


class ProcessEnded(NamedTuple):
    """All that a process said through tunnels has been sent; it has ended."""

    pid: int


MESSAGES: tuple[type[Any], ...] = (
    PoolOpened,
    SetupChanged,
    PoolClosed,
    LeaseWanted,
    LeaseReturned,
    TaskFrame,
    LimitAsked,
    Aimed,
    SignalWanted,
    LeaseGiven,
    LeaseRefused,
    ResultFrame,
    LimitTold,
    WorkerEnded,
    Printed,
    Heartbeat,
    Members,
    About,
    OutputAsked,
    OutputTold,
    NodeSaid,
    DrainAsked,
    StoreShared,
    StoreOpened,
    StoreBytes,
    StoreClosed,
    ProgramEnded,
    StreamTold,
    LinkWanted,
    ActorWanted,
    LinkHere,
    ActorEnded,
    ActorKilled,
    RefsTaken,
    BorrowAsked,
    BorrowTold,
    BorrowEnded,
    FutureAsked,
    FutureTold,
    DescribeAsked,
    Described,
    NotThere,
    PieceAsked,
    PieceSent,
    PieceRedirected,
    PieceDenied,
    PullLeft,
    Heirlooms,
    HeirloomsDropped,
    HeirloomsHad,
    Bequeathed,
    HomeMoved,
    Rebound,
    TunnelOpened,
    TunnelData,
    TunnelRead,
    TunnelClosed,
    ProcessEnded,
)
_CODES = {kind: bytes((code,)) for code, kind in enumerate(MESSAGES, 1)}
_CHECKS = [checker(kind) for kind in MESSAGES]


def encode(message: Any) -> bytes:
    """The payload of one message."""
    return _CODES[type(message)] + pickle.dumps(tuple(message), 5)


def decode(data: bytes) -> Any:
    """The message in a payload; ProtocolError if it is none of ours."""
    if not data or not 1 <= data[0] <= len(MESSAGES):
        raise ProtocolError(f"unknown message type {data[:1].hex()}")
    kind, check = MESSAGES[data[0] - 1], _CHECKS[data[0] - 1]
    try:
        fields = pickle.loads(memoryview(data)[1:])
    except Exception as error:
        raise ProtocolError(f"malformed {kind.__name__}: {error!r}") from error
    check(fields)
    return kind(*fields)
