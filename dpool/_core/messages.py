"""Every message between the processes of one machine, in one file.

```
driver ──Hello OpenPool RequestLeases ReturnLease Kill …──► node ──Spawn, SpawnProgram──► zygote
driver ◄─Welcome Grant WorkerUp WorkerDied Output Notice── node ◄─Spawned, SpawnFailed── zygote/worker
node ──Remote…, LoadReport, Object…──► gateway ──Remote…, Peer…──► node      (of a machine in a cluster)
driver ──ActorCreate, ConnectActor──► node ──Grant (of a link), ActorGone──► driver      (whoever calls an actor)
any process ──Store…, Sync…──► node ──answers──► that process      (sockets of their own)
any process ──FarOpen──► gateway ──FarOpened──► that process      (the node of another machine)
driver ──frames of tasks──► worker ──frames of results──► driver      (see frames.py)
```

Messages are frozen tuples. On the wire: one byte that names the type, then the pickled fields; the peer is
authenticated (a socket pair that we made, or SO_PEERCRED of our own user) before anything is unpickled.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

Shape = tuple[tuple[str, int], ...]
GATEWAY = -1
VISITOR = -2


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
    """The worker that speaks (nested submission), or 0: a driver; GATEWAY: the gateway; VISITOR: it only asks."""
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
    why: str = ""
    """What is wrong with it, for the others who use it: an actor."""


class Blocked(NamedTuple):
    """A worker waits inside its task (True), or goes on (False)."""

    blocked: bool


class ConnectActor(NamedTuple):
    """The answers are Grant (whenever there is a process), WorkerDied and, in the end, ActorGone."""

    pool: int
    actor: bytes


class DisconnectActor(NamedTuple):
    pool: int
    actor: bytes


class OpenStore(NamedTuple):
    """The descriptor that comes along is the node's end of the sender's socket to the object store."""


class ExportFunction(NamedTuple):
    function: bytes
    blob: bytes


class TasksDispatched(NamedTuple):
    """Lineage of tasks that did not die young: (task id, record)."""

    records: list[tuple[bytes, bytes]]


class TasksDelivered(NamedTuple):
    tasks: list[bytes]


class AskOutput(NamedTuple):
    """Pass on what the workers have written so far, then say `OutputTold`."""

    number: int


class Bye(NamedTuple):
    """The driver leaves; the node ends when it was the last."""


class KeepNode(NamedTuple):
    """The sender has something that names this node: it does not go by itself while the sender is there. The answer is
    a Notice, "kept".
    """


class AskStatus(NamedTuple):
    """The answer is StatusTold."""


class AskDrain(NamedTuple):
    """The machine at that address is to leave the cluster when what runs there has ended. The answer is DrainTold."""

    address: str


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
    gpus: tuple[str, ...]
    fresh: bool
    log_file: str
    key: bytes = b""
    """Of a connection to a worker on another machine, which then is a fourth descriptor; see direct.py."""


class WorkerUp(NamedTuple):
    pool: int
    worker: int
    pid: int
    ordinal: int
    """As in Spawn."""


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
    unclaimed: bool = False
    """It made objects for its submitter, who perhaps never heard of them."""
    host: str = ""
    """Of its machine, if that is another one."""


class Output(NamedTuple):
    """Whole lines that a worker wrote."""

    stream: int
    data: bytes
    pool: int = 0
    """Whose; 0: an actor's."""


class OutputTold(NamedTuple):
    """What had been written at `AskOutput` has been passed on."""

    number: int


class Notice(NamedTuple):
    """Something a person should read once; but of category "stays": whether ("" or not) there are detached actors; and
    of category "kept": the answer to KeepNode.
    """

    category: str
    text: str


class ActorGone(NamedTuple):
    """The actor is dead for good; `cause`: pickled (text, pickled exception or None)."""

    pool: int
    cause: bytes


class Infeasible(NamedTuple):
    """This machine has not, in total, what the pool's tasks of this shape ask for; `text` says what is missing;
    `strict`: they fail, as the program wants it.
    """

    pool: int
    shape: Shape
    text: str
    strict: bool


class Scarce(NamedTuple):
    """Others wait for resources (or, False, nobody does any more): leases that are not in use are wanted back."""

    wanted: bool


class Retire(NamedTuple):
    """The worker, which has no lease, must leave: its submitter, who holds its socket, tells it."""

    pool: int
    worker: int


class StatusTold(NamedTuple):
    """What each machine of the cluster says of itself, the one that was asked first; see node_about.py."""

    machines: list[dict[str, Any]]


class DrainTold(NamedTuple):
    """It has been told to, or cannot be; `why` is for people."""

    begun: bool
    why: str


class Closed(NamedTuple):
    """All workers of a closed pool are gone, their output delivered."""

    pool: int


# node → gateway (see gateway.py)


class RemoteLease(NamedTuple):
    """Get a worker from that machine, under this number of ours; the answer is RemoteUp or RemoteRefused."""

    worker: int
    node: bytes
    """The gateway's name there."""
    pool: int
    """The node's number."""
    setup: bytes
    shape: Shape
    pid: int
    """The process that submits."""
    job: bytes
    """Of the program that it is; empty: a worker, or another machine's."""
    direct: bool
    """It can have a connection to the worker; see direct.py."""


class RemoteEnd(NamedTuple):
    """Its submitter has returned it; the answer is RemoteDied."""

    worker: int
    retire: bool


class RemoteSignal(NamedTuple):
    worker: int
    signal: int
    link: int = 0
    """The worker is an actor's process: for a call of this caller."""


class RemoteActor(NamedTuple):
    """A process here calls an actor of another machine, over a link of this number. The answers are RemoteUp (whenever
    there is a process), RemoteDied and, in the end, RemoteGone.
    """

    link: int
    actor: bytes
    pid: int


class RemoteVisitor(NamedTuple):
    """The gateway's own link `pool`, to an actor of ours, is to go to this process on another machine."""

    pool: int
    worker: int
    caller: int
    """The node's number of the link."""


class RemoteLeft(NamedTuple):
    """It does not any more."""

    link: int


class ProgramEnded(NamedTuple):
    """A program of this machine has ended (or, from the gateway, one of another machine)."""

    job: bytes


class RemoteFind(NamedTuple):
    """A process here has found the name of an actor of another machine; the answer is RemoteFound."""

    number: int
    actor: bytes
    pid: int


class RemotePoolClosed(NamedTuple):
    """Its workers are to end; RemoteDied says of each that it has."""

    pool: int
    kill: bool


class ToPeer(NamedTuple):
    """For the node of that machine: one message, encoded. It hears FromPeer."""

    node: bytes
    data: bytes


class Drain(NamedTuple):
    """The machine is to leave the cluster when what runs there has ended. From anybody to a node, which tells the node
    that it is about; from that to its gateway.
    """

    node: bytes


class Leave(NamedTuple):
    """To the gateway, in the end: nothing runs here any more. `heirs`: who could take over what others hold of this
    machine's objects, the best first.
    """

    heirs: list[bytes]


class LoadReport(NamedTuple):
    """For the other machines: the fields of `Load`, but for name, number and what was seen."""

    total: dict[str, int]
    free: dict[str, int]
    waiting: int
    task_s: float
    draining: bool
    bytes_per_s: float = 0.0


class AboutReport(NamedTuple):
    """What this machine says of itself, for people; see node_about.py."""

    about: dict[str, Any]


class AskOutputAbroad(NamedTuple):
    """As AskOutput, of those machines; the answer is OutputAbroadTold."""

    number: int
    machines: list[bytes]


class StoreServer(NamedTuple):
    """The node's own control store answers here; for machines that have none."""

    path: str
    user: str
    password: str


class ObjectWanted(NamedTuple):
    """A process here asks for an object of another machine: get it into the store, or say StoreAway."""

    obj: bytes


class FutureWanted(NamedTuple):
    """A process here watches a future of another machine: say StoreFulfil when it is known what became of it."""

    obj: bytes


class ObjectsFreed(NamedTuple):
    """Nobody here holds these objects of other machines any more."""

    objs: list[bytes]
    seen: int
    """StoreHolds of the gateway's that had been read by then."""


# gateway → node


class Unmoved(NamedTuple):
    """The machine leaves in a moment, and this is lost with it: for people."""

    text: str


class StoreAt(NamedTuple):
    """Where the control store of the cluster is. `session`: what its keys carry, empty: there is none; `url`: empty:
    the node is to start it; `address`: that of the gateway.
    """

    session: str
    url: str
    address: str


class RemoteGone(NamedTuple):
    """The actor is dead for good; `cause` as in ActorGone."""

    link: int
    cause: bytes


class RemoteFound(NamedTuple):
    """`there`: the process holds the actor now; else it is there no more."""

    number: int
    there: bool


class RemoteUp(NamedTuple):
    """It is there. Three descriptors come along, as with Grant; four, if there is a key."""

    worker: int
    pid: int
    log_file: str
    host: str
    gpus: tuple[str, ...] = ()
    key: bytes = b""
    """As in Grant."""


class RemoteRefused(NamedTuple):
    worker: int
    reason: str


class RemoteDied(NamedTuple):
    """As WorkerDied."""

    worker: int
    pid: int
    signal: int
    exit_code: int
    reason: str
    log_file: str


class RemoteOutput(NamedTuple):
    """Whole lines that a worker of a pool wrote elsewhere."""

    pool: int
    stream: int
    data: bytes


class FromPeer(NamedTuple):
    """The node of that machine says this, encoded."""

    node: bytes
    data: bytes


class Pace(NamedTuple):
    """How fast it goes here, on average: seconds of a task, and bytes per second received; 0: not known. From programs,
    too.
    """

    task_s: float
    bytes_per_s: float


class PeerUp(NamedTuple):
    """There is a link to the gateway of another machine."""

    node: bytes
    host: str


class PeerDown(NamedTuple):
    node: bytes
    reason: str


class PeerAbout(NamedTuple):
    """What another machine says of itself."""

    node: bytes
    about: dict[str, Any]


class OutputAbroadTold(NamedTuple):
    number: int


class PeerLoad(NamedTuple):
    """Another machine's heartbeat; the fields of `Load` in logic/placement.py."""

    load: tuple[Any, ...]


# placement groups: program → node, and node → node; see node_groups.py


class GroupCreate(NamedTuple):
    """Set so much aside, all or nothing, as soon as it can be; until GroupRemove, or the sender has gone."""

    group: str
    bundles: list[Shape]
    strategy: str


class GroupRemove(NamedTuple):
    """It is over, and whatever runs in it ends. From node to node: if it is yours."""

    group: str


class BundleWanted(NamedTuple):
    """The answer is BundleAnswer."""

    group: str
    number: int
    bundle: Shape


class BundleAnswer(NamedTuple):
    group: str
    number: int
    done: bool


class GroupEnded(NamedTuple):
    """What you have of it is yours again. `for_good`: it is removed, and nobody is to wait for it."""

    group: str
    for_good: bool


# node → program, in a cluster


class ClusterSize(NamedTuple):
    """The CPUs of all machines together."""

    cpus: int


# node → zygote and back


class Spawn(NamedTuple):
    worker: int
    ordinal: int
    """Numbers the workers of a pool: 1, 2, …"""
    place: int
    """The lowest number, from 0, that no other living worker of the pool has."""
    node_pid: int
    session: str
    setup: bytes
    submitter: int = 0
    """The process that stands for the one that the setup names, which is on another machine; 0: it is here."""


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


class Preload(NamedTuple):
    """Modules that workers shall have from the start."""

    modules: list[str]
    path: list[str]
    """Where they are found."""


class PreloadFailed(NamedTuple):
    module: str
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
    """`warnings.filters`; see `warning_filters`."""
    authkey: bytes
    logs: tuple[dict[str, int], list[str], list[tuple[Any, ...]]]
    """Levels and handlers of loggers; see `logs`."""
    recursion_limit: int
    decimal: Any
    """The context of decimal numbers, if the driver has another than the default one."""
    threads: int
    """BLAS and OpenMP threads for each worker."""
    depth: int
    """How deeply nested the workers' tasks will be: 1 for those of a driver."""
    at_start: list[tuple[str, str, Any]]
    """What a worker calls when it has taken over all this: module, function, argument."""
    tracker: tuple[int, int, int] | None = None
    """The driver's resource tracker; see `tracker`."""
    home: str = ""
    """In a cluster: the session directory of the program's node. A worker elsewhere has the program's modules sent from
    its machine; see far_modules.py.
    """


# store client (driver or worker, on a socket of its own) → node; see node_store.py


class StoreHello(NamedTuple):
    """The first message; the descriptor of the process's pin page comes along."""

    protocol: int
    version: str
    python: str
    pid: int


class StoreWant(NamedTuple):
    """Room for `length` bytes; the answer is StoreLeased or StoreOnDisk."""

    request: int
    length: int
    complete: bool = False
    """Of its leases the sender has only `leases` (segment, offset, length)."""
    leases: list[tuple[int, int, int]] = []  # noqa: RUF012


class StoreMissed(NamedTuple):
    """The segment's descriptor has not arrived: this process may not open any more. Send it again the next time."""

    segment: int


class StoreReturn(NamedTuple):
    """A part of a lease that will not be used."""

    segment: int
    offset: int
    length: int


class StoreSeal(NamedTuple):
    """The range, in a lease of the sender's, now holds this object; `holder` (a process id) holds it, once."""

    obj: bytes
    segment: int
    offset: int
    length: int
    size: int
    holder: int
    contains: list[bytes]
    """References that lie inside it."""


class StoreSealFile(NamedTuple):
    """The object has been written to a file, as there was no room."""

    obj: bytes
    size: int
    path: str
    crc: int
    holder: int
    contains: list[bytes]


class StoreLocate(NamedTuple):
    """Where is it? The answer is StoreLocated, StoreInFile or StoreUnknown."""

    request: int
    obj: bytes


class StoreHold(NamedTuple):
    """A process holds these objects, once (more) each."""

    objs: list[bytes]
    holder: int


class StoreRelease(NamedTuple):
    """The sender no longer holds these, once (each time an object is named)."""

    objs: list[bytes]


class StoreRetire(NamedTuple):
    """A child was forked that maps these ranges: they must never be written again."""

    keys: list[int]


class StoreClaim(NamedTuple):
    """Of what a dead worker made for the sender, it has received only these."""

    worker_pid: int
    objs: list[bytes]


class StoreAdopt(NamedTuple):
    """A segment that an earlier node had made, with the objects (id, offset, length, size) in it that the sender holds;
    its descriptor comes along.
    """

    segment: int
    size: int
    objs: list[tuple[bytes, int, int, int]]


class StoreAsk(NamedTuple):
    """The answer is StoreReport."""

    request: int
    listing: bool


class StorePromise(NamedTuple):
    """The sender will say what became of these futures of its."""

    objs: list[bytes]


class StoreFulfil(NamedTuple):
    """What became of a promised future: a kind as in frames.py, and its data."""

    obj: bytes
    kind: int
    data: bytes
    contains: list[bytes]


class StoreWatch(NamedTuple):
    """Tell what becomes of this future: StoreResolved, when it is known."""

    obj: bytes


# the gateway's connection to the store → node; see node_lending.py


class StoreLend(NamedTuple):
    """Another machine holds these objects too, under the number `peer`. The answer is StoreLent."""

    request: int
    objs: list[bytes]
    peer: int


class StoreLendEnd(NamedTuple):
    """It does not hold these any more."""

    objs: list[bytes]
    peer: int


class StorePeerGone(NamedTuple):
    """It holds nothing any more."""

    peer: int


class StoreInside(NamedTuple):
    """Which references lie in the object? The answer is StoreContents."""

    request: int
    obj: bytes


class StoreEstate(NamedTuple):
    """What do other machines, or the gateway, hold of the objects whose home this is? The answer is StoreEstateTold."""

    request: int


class StoreServe(NamedTuple):
    """This machine is home of the objects with these tags, too; see gateway_heirs.py. `left`: said once more, as the
    machine that was has left: what it had told the control store is gone from there.
    """

    tags: list[bytes]
    left: bool


class StoreAway(NamedTuple):
    """An object of another machine that was wanted cannot be had, for this reason."""

    obj: bytes
    why: str


# node → store client


class StoreLent(NamedTuple):
    """`refused`: those of the objects that are not there any more."""

    request: int
    refused: list[bytes]


class StoreContents(NamedTuple):
    request: int
    objs: list[bytes]


class StoreEstateTold(NamedTuple):
    """`objs`: (id, bytes) each; `futures`: (id, kind, data, the ids that these refer to) each, as in StoreFulfil."""

    request: int
    objs: list[tuple[bytes, int]]
    futures: list[tuple[bytes, int, bytes, list[bytes]]]


class ActorCreate(NamedTuple):
    """A new actor, held by the sender. The answer is ActorFound; with another id, or none, if the name is taken."""

    request: int
    actor: bytes
    name: str
    shape: Shape
    restarts: int
    detached: bool
    exists_ok: bool
    """If the name is taken, the answer is the actor that has it."""
    frame: bytes
    """The first frame of its process, which constructs the object; see frames.py."""
    keep: list[bytes]
    """Objects that the frame refers to."""
    meta: bytes
    """What a handle is made of, for those who ask for the name."""
    setup: bytes
    """See OpenPool."""


class ActorFind(NamedTuple):
    """By its name; the answer is ActorFound, and the sender then holds the actor."""

    request: int
    name: str


class ActorKill(NamedTuple):
    """Its process ends now; `restart`: as if it had crashed. `why`: what its callers are told."""

    actor: bytes
    restart: bool
    why: str


class ActorFound(NamedTuple):
    """`actor` is empty if there is none. `why`: the control store was needed, and did not help."""

    request: int
    actor: bytes
    meta: bytes
    why: str


class StoreLeased(NamedTuple):
    """`segment_size`: bytes of the segment, whose descriptor comes along the first time."""

    request: int
    segment: int
    segment_size: int
    offset: int
    length: int


class StoreOnDisk(NamedTuple):
    """No room and none to be had: write it to this file."""

    request: int
    path: str


class StoreLocated(NamedTuple):
    request: int
    obj: bytes
    segment: int
    segment_size: int
    offset: int
    length: int
    size: int


class StoreInFile(NamedTuple):
    request: int
    obj: bytes
    path: str
    size: int
    crc: int


class StoreUnknown(NamedTuple):
    request: int
    obj: bytes
    why: str


class StoreReport(NamedTuple):
    request: int
    stats: dict[str, Any]
    listing: list[tuple[Any, ...]]


class StoreDropped(NamedTuple):
    """The segment is gone; forget its descriptor."""

    segment: int


class StoreResolved(NamedTuple):
    obj: bytes
    kind: int
    data: bytes


# synchronisation: client → node


class SyncHello(NamedTuple):
    """The first message of a connection for locks, queues, …

    `holds`: what a child that was just forked has of its parent's, for as long as this connection lives; `page`: the
    shared page's descriptor is wanted.
    """

    protocol: int
    version: str
    python: str
    pid: int
    holds: list[bytes]
    page: bool


class SyncMake(NamedTuple):
    """A new object, held by the sender; a kind and values as in logic/sync.py. The answer is SyncReply."""

    request: int
    obj: bytes
    kind: int
    value: int
    bound: int


class SyncAsk(NamedTuple):
    """A question as in logic/sync_kinds.py; `request` 0: no answer. The answer is SyncReply."""

    request: int
    obj: bytes
    op: int
    n: int
    data: bytes
    refs: list[bytes]


class SyncWithdraw(NamedTuple):
    """Do not wait any longer; answered, unless the answer has gone out."""

    request: int


class SyncReturn(NamedTuple):
    """The last answer was read, and nobody got what it gave: give it to somebody else."""

    pid: int


# node → synchronisation client


class SyncWelcome(NamedTuple):
    """The shared page's descriptor comes along if it was wanted."""

    session: str


class SyncReply(NamedTuple):
    request: int
    status: int
    n: int
    data: bytes
    refs: list[bytes]


# objects of other machines: any process → gateway, and back


class FarOpen(NamedTuple):
    """The first message of a connection to the gateway: one to the node whose session directory that is, on another
    machine; or, if `path` is not empty, to whoever listens there at that Unix socket. The answer is FarOpened.
    """

    protocol: int
    version: str
    python: str
    session: str
    path: str


class FarOpened(NamedTuple):
    """`status`: FAR_UNKNOWN, FAR_OPEN, FAR_LOST. What is said next on this connection is said to that node; with a
    path, a descriptor comes along: the connection.
    """

    status: int
    host: str
    why: str


class FarEnded(NamedTuple):
    """gateway → node: a process of another machine has ended; all that it had said has been passed on."""

    pid: int


FAR_UNKNOWN, FAR_OPEN, FAR_LOST = range(3)
"""It is no machine of this cluster, as far as is known; the connection works; it was one, and is gone."""

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
    ConnectActor,
    DisconnectActor,
    OpenStore,
    ExportFunction,
    TasksDispatched,
    TasksDelivered,
    AskOutput,
    Bye,
    KeepNode,
    AskStatus,
    AskDrain,
    StatusTold,
    DrainTold,
    Welcome,
    Refused,
    Grant,
    WorkerUp,
    WorkerDied,
    Output,
    OutputTold,
    Notice,
    ActorGone,
    Infeasible,
    Scarce,
    Retire,
    Closed,
    RemoteLease,
    RemoteEnd,
    RemoteSignal,
    RemoteActor,
    RemoteVisitor,
    RemoteLeft,
    ProgramEnded,
    RemoteFind,
    RemoteGone,
    RemoteFound,
    RemotePoolClosed,
    RemoteUp,
    RemoteRefused,
    RemoteDied,
    RemoteOutput,
    PeerUp,
    PeerDown,
    PeerLoad,
    PeerAbout,
    AboutReport,
    Drain,
    Leave,
    Unmoved,
    AskOutputAbroad,
    OutputAbroadTold,
    LoadReport,
    ToPeer,
    FromPeer,
    Pace,
    GroupCreate,
    GroupRemove,
    BundleWanted,
    BundleAnswer,
    GroupEnded,
    ClusterSize,
    StoreServer,
    StoreAt,
    ObjectWanted,
    FutureWanted,
    ObjectsFreed,
    Spawn,
    SpawnProgram,
    Spawned,
    SpawnFailed,
    Preload,
    PreloadFailed,
    StoreHello,
    StoreWant,
    StoreMissed,
    StoreReturn,
    StoreSeal,
    StoreSealFile,
    StoreLocate,
    StoreHold,
    StoreRelease,
    StoreRetire,
    StoreClaim,
    StoreAdopt,
    StoreAsk,
    StorePromise,
    StoreFulfil,
    StoreWatch,
    StoreLend,
    StoreLendEnd,
    StorePeerGone,
    StoreInside,
    StoreEstate,
    StoreServe,
    StoreAway,
    StoreLent,
    StoreContents,
    StoreEstateTold,
    ActorCreate,
    ActorFind,
    ActorKill,
    ActorFound,
    StoreLeased,
    StoreOnDisk,
    StoreLocated,
    StoreInFile,
    StoreUnknown,
    StoreReport,
    StoreDropped,
    StoreResolved,
    SyncHello,
    SyncMake,
    SyncAsk,
    SyncWithdraw,
    SyncReturn,
    SyncWelcome,
    SyncReply,
    FarOpen,
    FarOpened,
    FarEnded,
)
RESERVED = (ord("M"), 0x80)
"""First bytes that mean something else: a memory file, a pickle; see wire.py."""
_BY_CODE = dict(zip((code for code in range(1, 256) if code not in RESERVED), CONTROL, strict=False))
_CODES = {kind: bytes((code,)) for code, kind in _BY_CODE.items()}
_TYPES = {
    "int": int, "float": float, "bool": bool, "str": str, "bytes": bytes, "list": list, "tuple": tuple, "dict": dict,
    "Shape": tuple,
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
    kind = _BY_CODE.get(data[0])
    if kind is None:
        raise ProtocolError(f"unknown message type {data[0]}")
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
