"""Every message between the processes of one machine, in one file.

```
driver ──Hello OpenPool RequestLeases ReturnLease Kill …──► node ──Spawn, SpawnProgram──► zygote
driver ◄─Welcome Grant WorkerUp WorkerDied Output Notice── node ◄─Spawned, SpawnFailed── zygote/worker
driver ──frames of tasks──► worker ──frames of results──► driver      (see frames.py)
```

Messages are frozen tuples. On the wire: one byte that names the type, then the pickled fields; the peer is
authenticated (a socket pair that we made, or SO_PEERCRED of our own user) before anything is unpickled.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

Shape = tuple[tuple[str, int], ...]


class ProtocolError(Exception):
    """A frame that is not one of ours; its peer is closed."""


# driver → node


class Hello(NamedTuple):
    protocol: int
    version: str
    python: str
    pid: int
    job: bytes
    label: str
    """What the program is called, for people."""
    worker: int
    """The worker that speaks (nested submission), or 0: a driver."""
    config: tuple[Any, ...]
    path: list[str]
    """The driver's `sys.path`: where the node finds what it imports later."""


class OpenPool(NamedTuple):
    pool: int
    max_workers: int
    setup: bytes
    """A pickled `Setup`: what every worker of the pool takes over from its driver."""


class UpdateSetup(NamedTuple):
    pool: int
    setup: bytes


class ResizePool(NamedTuple):
    pool: int
    max_workers: int


class ClosePool(NamedTuple):
    pool: int
    kill: bool


class RequestLeases(NamedTuple):
    pool: int
    shape: Shape
    wanted: int


class CancelRequests(NamedTuple):
    pool: int
    shape: Shape


class ReturnLease(NamedTuple):
    pool: int
    worker: int
    retire: bool


class KillWorker(NamedTuple):
    pool: int
    worker: int
    signal: int


class Blocked(NamedTuple):
    """A worker waits inside its task (True), or goes on (False)."""

    blocked: bool


class ExportFunction(NamedTuple):
    function: bytes
    blob: bytes


class TasksDispatched(NamedTuple):
    """Lineage of tasks that did not die young: (task id, record)."""

    records: list[tuple[bytes, bytes]]


class TasksDelivered(NamedTuple):
    tasks: list[bytes]


class Bye(NamedTuple):
    """The driver leaves; the node ends when it was the last."""


# node → driver


class Welcome(NamedTuple):
    node: bytes
    pid: int
    session: str
    version: str
    python: str
    total: Shape


class Refused(NamedTuple):
    reason: str


class Grant(NamedTuple):
    """A lease; `fresh`: three descriptors come along (our end, the worker's end, its page)."""

    pool: int
    worker: int
    shape: Shape
    gpus: tuple[int, ...]
    fresh: bool
    log_file: str


class WorkerUp(NamedTuple):
    pool: int
    worker: int
    pid: int


class WorkerDied(NamedTuple):
    pool: int
    worker: int
    pid: int
    signal: int
    """0: it exited by itself."""
    exit_code: int
    reason: str
    """`oom`, `stopped`, `start: …`, or empty."""
    log_file: str


class Output(NamedTuple):
    """Whole lines that a worker wrote."""

    stream: int
    data: bytes


class Notice(NamedTuple):
    """Something a person should read once; `category` picks the warning class."""

    category: str
    text: str


class Retire(NamedTuple):
    """The worker, which has no lease, must leave: its submitter, who holds its socket, tells it."""

    pool: int
    worker: int


class Closed(NamedTuple):
    """All workers of a closed pool are gone, their output delivered."""

    pool: int


# node → zygote and back


class Spawn(NamedTuple):
    worker: int
    ordinal: int
    """Numbers the workers of a pool: 1, 2, …"""
    node_pid: int
    session: str
    setup: bytes


class SpawnProgram(NamedTuple):
    program: int
    """A negative number, chosen by the node."""
    argv: tuple[str, ...]
    stdin: bytes
    node_pid: int
    log_file: str


class Spawned(NamedTuple):
    worker: int
    pid: int


class SpawnFailed(NamedTuple):
    worker: int
    reason: str


class Setup(NamedTuple):
    """What a worker takes over from the process that submits."""

    driver_pid: int
    job: bytes
    cwd: str
    environ: dict[str, str]
    path: list[str]
    argv: list[str]
    main_file: str | None
    main_package: str | None
    filters: bytes
    """Pickled `warnings.filters`, one by one."""
    authkey: bytes
    loggers: dict[str, int]
    log_format: str | None
    """The format of the root logger's first handler, if the driver has one."""
    log_datefmt: str | None
    threads: int
    """BLAS and OpenMP threads for each worker."""
    depth: int
    """How deeply nested the workers' tasks will be: 1 for those of a driver."""


CONTROL: tuple[type[Any], ...] = (
    Hello,
    OpenPool,
    UpdateSetup,
    ResizePool,
    ClosePool,
    RequestLeases,
    CancelRequests,
    ReturnLease,
    KillWorker,
    Blocked,
    ExportFunction,
    TasksDispatched,
    TasksDelivered,
    Bye,
    Welcome,
    Refused,
    Grant,
    WorkerUp,
    WorkerDied,
    Output,
    Notice,
    Retire,
    Closed,
    Spawn,
    SpawnProgram,
    Spawned,
    SpawnFailed,
)
_CODES = {kind: bytes((code,)) for code, kind in enumerate(CONTROL, 1)}
_TYPES = {
    "int": int, "bool": bool, "str": str, "bytes": bytes, "list": list, "tuple": tuple, "dict": dict, "Shape": tuple,
}  # fmt: skip


def _field_types(kind: type[Any]) -> tuple[type[Any], ...]:
    """What `isinstance` asks of each field."""
    names = (str(getattr(one, "__forward_arg__", one)) for one in kind.__annotations__.values())
    return tuple(_TYPES[name.partition("[")[0]] for name in names)


_FIELDS = {kind: _field_types(kind) for kind in CONTROL}


def versions() -> tuple[str, str]:
    """(dpool, Python) of this process; peers must have the same."""
    import sys

    from dpool._core.config import VERSION

    return VERSION, "{}.{}.{}".format(*sys.version_info[:3])


def encode(message: Any) -> bytes:
    """The bytes of one control message."""
    return _CODES[type(message)] + pickle.dumps(tuple(message), 5)


def decode(data: bytes) -> Any:
    """The message in `data`; ProtocolError if it is none of ours."""
    if not 1 <= data[0] <= len(CONTROL):
        raise ProtocolError(f"unknown message type {data[0]}")
    kind = CONTROL[data[0] - 1]
    try:
        fields = pickle.loads(data[1:])
        if type(fields) is not tuple:
            raise TypeError(f"fields are a {type(fields).__name__}")
        message = kind(*fields)
        if not all(map(isinstance, fields, _FIELDS[kind])):
            raise TypeError(f"a field of {message!r:.200} has another type")
        return message
    except Exception as error:
        raise ProtocolError(f"malformed {kind.__name__}: {error!r}") from error
