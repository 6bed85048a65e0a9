"""What gateways say to each other, in one file.

```
 gateway of the submitter                                    gateway of the workers
   PoolOpened, SetupChanged, PoolClosed ──────────────────────►
   LeaseWanted ───────────────────────────────────────────────►   LeaseGiven or LeaseRefused ◄──
   TaskFrame, LimitAsked, Aimed, SignalWanted, LeaseReturned ──►   ResultFrame, LimitTold, Printed ◄──
                                                                   WorkerEnded ◄── (every lease given ends so)
 both:  Heartbeat, Members, About, DrainWanted, OutputAsked and OutputTold, StoreOpened, StoreBytes, StoreClosed;  the head: StoreShared
```

Frozen tuples; on the wire one byte that names the type, then the pickled fields, then buffers. The link has proved that
its other side knows the cluster's secret before anything is unpickled (see net.py). Numbers of pools and leases are the
submitter's side's; with the peer's name they are unique.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

from dpool._core.messages import ProtocolError, Shape


class PoolOpened(NamedTuple):
    """A pool will want workers here."""

    pool: int
    setup: bytes


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
    """The frame is the buffer."""

    lease: int


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


class LeaseRefused(NamedTuple):
    """There is no room (any more), or it cannot be; `reason` is for the log."""

    lease: int
    reason: str


class ResultFrame(NamedTuple):
    """The frame is the buffer."""

    lease: int


class LimitTold(NamedTuple):
    lease: int
    limit: int
    started: int
    first: int
    noted: int
    journal: bytes


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


class DrainWanted(NamedTuple):
    """The receiver is to leave the cluster when what runs there has ended."""


class OutputAsked(NamedTuple):
    """Whether all that the sender's pools have printed up to now is on its way; the answer is OutputTold."""

    number: int


class OutputTold(NamedTuple):
    number: int


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
    DrainWanted,
    OutputAsked,
    OutputTold,
    StoreShared,
    StoreOpened,
    StoreBytes,
    StoreClosed,
)
_CODES = {kind: bytes((code,)) for code, kind in enumerate(MESSAGES, 1)}


def encode(message: Any) -> bytes:
    """The payload of one message."""
    return _CODES[type(message)] + pickle.dumps(tuple(message), 5)


def decode(data: bytes) -> Any:
    """The message in a payload; ProtocolError if it is none of ours."""
    if not data or not 1 <= data[0] <= len(MESSAGES):
        raise ProtocolError(f"unknown message type {data[:1].hex()}")
    try:
        return MESSAGES[data[0] - 1](*pickle.loads(data[1:]))
    except Exception as error:
        raise ProtocolError(f"malformed {MESSAGES[data[0] - 1].__name__}: {error!r}") from error
