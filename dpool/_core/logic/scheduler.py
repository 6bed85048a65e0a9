"""The local scheduler: which worker of which pool runs for whom, on which of the machine's resources.

```
 client ─ RequestLeases ──► queue (FIFO) ──► Grant(worker) ─► LEASED ── ReturnLease ──► IDLE ─┐
            (pool, shape)      │  ▲            StartWorker      │ ▲                            │
                               │  └─────────────────────────── │ │ ◄─── most recently used ───┘
                               └─ waits for: its pool (max_workers), its pool's back-off,
                                  the machine's resources, or an older request that was overtaken too often
```

A *client* is the connection of a driver or of a worker that runs tasks of its own. A *pool* is the set of workers of
one executor: fresh processes, never shared. A *lease* is (worker, shape), held by the pool's client; it may be granted
before the process is up, since the worker's socket exists already. The role turns instructions into processes and
messages; it must give a `Tick` at or after each `WakeAt` (it is enough to keep the earliest).

One thread. Invariants (`check`):
- A worker belongs to one pool and is in one state; it is in its pool's `idle` exactly when it is IDLE.
- What is free plus what live workers hold is the machine's total. A dying worker holds its lease until it is gone.
- A pool starts no worker at or above `max_workers`; dying workers count until they are gone.
- No request waits that could be granted.
- A closing pool has no requests and no idle workers, and disappears with its last worker.

Messages cross: a client may return or kill a lease whose worker has just died, and a worker's own link may say
"blocked" after the client returned its lease. Those are moves like any other (see MOVES); they change nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic import IllegalMove
from dpool._core.logic.places import ENDLESS, WISH, groups_of, needs
from dpool._core.logic.resources import CPUS, Account, Shape, check_shape, gpus_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_OVERTAKEN = 100
"""A request that does not fit is overtaken at most so often; then what it needs is kept for it."""
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0


# ------------------------------------------------------------------------------------------------ events


class ClientJoined(NamedTuple):
    """A driver or worker connected; the caller chooses its number."""

    client: int


class ClientLeft(NamedTuple):
    """Its connection closed: all of its pools are killed."""

    client: int


class OpenPool(NamedTuple):
    """A new pool; the caller chooses its number, which is free again after `PoolGone`."""

    client: int
    pool: int
    max_workers: int


class ResizePool(NamedTuple):
    """Surplus idle workers retire at once, surplus leased ones when they are returned."""

    pool: int
    max_workers: int


class ClosePool(NamedTuple):
    """No more grants. Without `kill` a leased worker retires when it is returned. May be repeated with `kill`."""

    pool: int
    kill: bool


class RequestLeases(NamedTuple):
    """`wanted` more leases of `shape`, which stand in the queue together."""

    pool: int
    shape: Shape
    wanted: int


class CancelRequests(NamedTuple):
    """No more leases of `shape` are wanted than have been granted."""

    pool: int
    shape: Shape


class ReturnLease(NamedTuple):
    """The client's end of a lease. `retire`: the worker is exiting, or must; it is not used again."""

    pool: int
    worker: int
    retire: bool


class Blocked(NamedTuple):
    """The worker's task waits for something: its CPUs are lent to others. Once per `Unblocked`."""

    worker: int


class Unblocked(NamedTuple):
    """The worker's task goes on: its CPUs are taken again, even if that oversubscribes them."""

    worker: int


class WorkerDied(NamedTuple):
    """The process is gone. `early`: before it completed any task. May be said twice."""

    worker: int
    now_s: float
    early: bool


class StartFailed(NamedTuple):
    """The process could not be started; there will be no `WorkerDied`."""

    worker: int
    now_s: float


class KillRequested(NamedTuple):
    """The client wants this worker dead (time-out, forced cancel)."""

    pool: int
    worker: int


class WentAbroad(NamedTuple):
    """A waiting lease of this shape is asked of another machine, under a number of our own (`new_worker`)."""

    pool: int
    shape: Shape
    worker: int


class BackFromAbroad(NamedTuple):
    """Such a lease has ended. `refused`: before it began; it waits here again, first of all."""

    pool: int
    worker: int
    refused: bool


class StaysHere(NamedTuple):
    """Where a waiting lease of this shape may be is decided: here. `bare`: it begins at once, and holds nothing."""

    pool: int
    shape: Shape
    bare: bool


class SetAside(NamedTuple):
    """A bundle of a placement group takes its resources, which must be free, for good."""

    group: str
    number: int
    bundle: Shape


class Dissolve(NamedTuple):
    """Whatever is here of a placement group ends, and what runs in it."""

    group: str


class Offer(NamedTuple):
    """There is a resource more here, in any amount."""

    name: str


class Tick(NamedTuple):
    """It is `now_s`."""

    now_s: float


Event = (
    ClientJoined | ClientLeft | OpenPool | ResizePool | ClosePool | RequestLeases | CancelRequests | ReturnLease
    | Blocked | Unblocked | WorkerDied | StartFailed | KillRequested | WentAbroad | BackFromAbroad | StaysHere
    | SetAside | Dissolve | Offer | Tick
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ instructions


class StartWorker(NamedTuple):
    """Start a process for this worker number; answer with `StartFailed` or, some day, `WorkerDied`."""

    worker: int
    pool: int


class Grant(NamedTuple):
    """Tell the client that the worker is leased to it. `gpus`: the devices that this lease may see."""

    client: int
    pool: int
    worker: int
    shape: Shape
    gpus: tuple[int, ...]


class KillWorker(NamedTuple):
    """Kill the process; answer with `WorkerDied`."""

    worker: int


class RetireWorker(NamedTuple):
    """Ask the process, which runs nothing, to exit (it may be exiting already)."""

    worker: int


class TellDied(NamedTuple):
    """Tell the client that a worker of its pool is gone: once for each worker it was ever granted."""

    client: int
    pool: int
    worker: int


class WarnInfeasible(NamedTuple):
    """This machine has less in total than `shape` by `missing`; the request waits. Once for each (pool, shape)."""

    client: int
    pool: int
    shape: Shape
    missing: Shape


class Scarce(NamedTuple):
    """Somebody waits for resources that others hold (or, False, nobody does any more): idle leases are wanted back."""

    wanted: bool


class WakeAt(NamedTuple):
    """Give a `Tick` at or after this time."""

    at_s: float


class PoolGone(NamedTuple):
    """A closed pool's last worker is gone: forget the pool."""

    client: int
    pool: int


Instruction = StartWorker | Grant | KillWorker | RetireWorker | TellDied | WarnInfeasible | Scarce | WakeAt | PoolGone


# ------------------------------------------------------------------------------------------------ moves

IDLE = "idle"
LEASED = "leased"
BLOCKED = "blocked"
RETIRING = "retiring"
KILLED = "killed"
GONE = "gone"
UNKNOWN = "unknown"

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    # A worker's life. Grant, RetireWorker and KillWorker are what the scheduler decides; the rest is what happens.
    (UNKNOWN, StartWorker): IDLE,
    (IDLE, Grant): LEASED,
    (LEASED, ReturnLease): IDLE,
    (IDLE, RetireWorker): RETIRING,
    (LEASED, Blocked): BLOCKED,
    (BLOCKED, Unblocked): LEASED,
    (BLOCKED, ReturnLease): IDLE,
    # Dying.
    (IDLE, KillWorker): KILLED,
    (LEASED, KillWorker): KILLED,
    (BLOCKED, KillWorker): KILLED,
    (RETIRING, KillWorker): KILLED,
    (IDLE, WorkerDied): GONE,
    (LEASED, WorkerDied): GONE,
    (BLOCKED, WorkerDied): GONE,
    (RETIRING, WorkerDied): GONE,
    (KILLED, WorkerDied): GONE,
    (IDLE, StartFailed): GONE,
    (LEASED, StartFailed): GONE,
    (RETIRING, StartFailed): GONE,
    (KILLED, StartFailed): GONE,
    # Messages that crossed: the lease ended, or the worker did, before they were read.
    (IDLE, Blocked): IDLE,
    (IDLE, Unblocked): IDLE,
    (LEASED, Unblocked): LEASED,
    (RETIRING, Blocked): RETIRING,
    (RETIRING, Unblocked): RETIRING,
    (KILLED, Blocked): KILLED,
    (KILLED, Unblocked): KILLED,
    (KILLED, ReturnLease): KILLED,
    (KILLED, KillWorker): KILLED,
    (GONE, Blocked): GONE,
    (GONE, Unblocked): GONE,
    (GONE, ReturnLease): GONE,
    (GONE, KillWorker): GONE,
    (GONE, WorkerDied): GONE,
    (GONE, StartFailed): GONE,
}

OPEN = "open"
CLOSING = "closing"
ABSENT = "absent"

POOL_MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, OpenPool): OPEN,
    (OPEN, RequestLeases): OPEN,
    (OPEN, CancelRequests): OPEN,
    (OPEN, ResizePool): OPEN,
    (OPEN, WentAbroad): OPEN,
    (OPEN, BackFromAbroad): OPEN,
    (OPEN, StaysHere): OPEN,
    (OPEN, ClosePool): CLOSING,
    (OPEN, ClientLeft): CLOSING,
    (CLOSING, ClosePool): CLOSING,
    (CLOSING, ClientLeft): CLOSING,
    (CLOSING, RequestLeases): CLOSING,  # crossed, as are the next two
    (CLOSING, CancelRequests): CLOSING,
    (CLOSING, ResizePool): CLOSING,
    (CLOSING, BackFromAbroad): CLOSING,
    (CLOSING, PoolGone): ABSENT,
    (ABSENT, ClosePool): ABSENT,  # crossed: its last worker has just gone
}

JOINED = "joined"

CLIENT_MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, ClientJoined): JOINED,
    (JOINED, OpenPool): JOINED,
    (JOINED, ClientLeft): ABSENT,
}


class _Worker:
    """One process.

    Attributes:
        lease: what it holds, from its Grant until it is returned or the worker is gone; None: nothing.
        gpus: the devices of that lease.
        lent: the lease's CPUs are lent to others (it blocks, or retires and keeps its GPUs until it is gone).
        generation: its pool's when it was started; of workers that die at once, one per generation counts.
    """

    __slots__ = ("generation", "gpus", "lease", "lent", "number", "pool", "state")

    def __init__(self, number: int, pool: _Pool) -> None:
        self.number = number
        self.pool = pool
        self.state = MOVES[UNKNOWN, StartWorker]
        self.lease: Shape | None = None
        self.gpus: tuple[int, ...] = ()
        self.lent = False
        self.generation = pool.generation

    def move(self, cause: type[tuple[object, ...]]) -> None:
        self.state = _next(MOVES, self.state, cause, f"worker {self.number}")


class _Pool:
    """The workers of one executor.

    Attributes:
        workers: all that are not gone, dying ones too.
        idle: those that are IDLE, the most recently used last (a dict for its order).
        surplus_limit: as many workers as there were when `max_workers` was lowered; they need not die for it.
        early_deaths: generations in a row that died before they did anything.
        wake_at_s: no starts before then, None: no back-off.
        warned: shapes that are infeasible and were warned about.
        abroad: leases asked of other machines, or given by them: our number -> shape.
        orphaned: its client left.
    """

    __slots__ = (
        "abroad", "client", "early_deaths", "generation", "idle", "max_workers", "number", "orphaned", "state",
        "surplus_limit", "wake_at_s", "warned", "workers",
    )  # fmt: skip

    def __init__(self, number: int, client: int, max_workers: int) -> None:
        self.number = number
        self.client = client
        self.max_workers = max_workers
        self.state = POOL_MOVES[ABSENT, OpenPool]
        self.workers: dict[int, _Worker] = {}
        self.idle: dict[int, _Worker] = {}
        self.surplus_limit = 0
        self.generation = 0
        self.early_deaths = 0
        self.wake_at_s: float | None = None
        self.warned: set[Shape] = set()
        self.abroad: dict[int, Shape] = {}
        self.orphaned = False

    def move(self, cause: type[tuple[object, ...]]) -> None:
        self.state = _next(POOL_MOVES, self.state, cause, f"pool {self.number}")


class _Request:
    """Leases that one RequestLeases asked for and that are not granted yet.

    Attributes:
        needs: what each takes: its shape without wishes.
        decided: it may be granted here.
        bare: it takes nothing.
        feasible: the machine has that, in total.
    """

    __slots__ = ("bare", "count", "decided", "feasible", "names", "needs", "overtaken", "pool", "shape")

    def __init__(self, pool: _Pool, shape: Shape, count: int, decided: bool, bare: bool = False) -> None:
        self.pool = pool
        self.shape = shape
        self.needs = () if bare else needs(shape)
        self.bare = bare
        self.count = count
        self.decided = decided
        self.feasible = True
        self.names = frozenset(name for name, _ in self.needs)
        self.overtaken = 0


def _next(
    moves: dict[tuple[str, type[tuple[object, ...]]], str], state: str, cause: type[tuple[object, ...]], subject: str
) -> str:
    try:
        return moves[state, cause]
    except KeyError:
        raise IllegalMove(state, cause.__name__, subject) from None


# What keeps a request waiting.
_INFEASIBLE = "more than this machine has"
_UNDECIDED = "it wishes to be somewhere"
_POOL_FULL = "its pool has max_workers"
_BACKING_OFF = "its pool's workers die at once"
_RESOURCES = "resources are in use"
_RESERVED = "resources are kept for an older request"


class LocalScheduler:
    """The node's scheduler over one `Account` of resources; see the module.

    Attributes:
        account: the machine's resources.
        clients: the pools of each joined client.
        pools: every pool that has not gone.
        workers: every worker that is not gone.
        queue: requests in the order in which they came.
        scarce: one of them waits for resources (or did when it was last looked), and everybody has been told.
        dissolving: placement groups that are to end, and have something left here.
        choosy: there are other machines, and requests with wishes wait until it is decided where they go.
        settled: clients whose requests are for this machine: whoever asks for other machines.
        draining: what is asked for from now on goes elsewhere, if it can.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.clients: dict[int, set[int]] = {}
        self.pools: dict[int, _Pool] = {}
        self.workers: dict[int, _Worker] = {}
        self.queue: deque[_Request] = deque()
        self.scarce = False
        self.dissolving: set[str] = set()
        self.choosy = False
        self.draining = False
        self.settled: set[int] = set()
        self._next_worker = 1
        self._handlers: dict[type[tuple[object, ...]], Callable[..., None]] = {
            ClientJoined: self._client_joined,
            ClientLeft: self._client_left,
            OpenPool: self._open_pool,
            ResizePool: self._resize_pool,
            ClosePool: self._close_pool,
            RequestLeases: self._request_leases,
            CancelRequests: self._cancel_requests,
            ReturnLease: self._return_lease,
            Blocked: self._blocked,
            Unblocked: self._unblocked,
            WorkerDied: self._worker_died,
            StartFailed: self._start_failed,
            KillRequested: self._kill_requested,
            WentAbroad: self._went_abroad,
            BackFromAbroad: self._back_from_abroad,
            StaysHere: self._stays_here,
            SetAside: self._set_aside,
            Dissolve: self._dissolve,
            Offer: self._offer,
            Tick: self._tick,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; returns what the role must do, in this order.

        Raises:
            IllegalMove: the event is not allowed now; nothing has changed.
            ValueError: a number or a shape in it makes no sense; nothing has changed.
        """
        out: list[Instruction] = []
        self._handlers[type(event)](event, out)
        scarce = self._grant_all(out) if self.queue else False
        if self.account.free.get(CPUS, 0) < 0:  # lent and taken again
            scarce = True
        if scarce != self.scarce:
            self.scarce = scarce
            out.append(Scarce(scarce))
        return out

    # -------------------------------------------------------------------------------------------- clients and pools

    def _client_joined(self, event: ClientJoined, out: list[Instruction]) -> None:
        self._move_client(event.client, ClientJoined)
        self.clients[event.client] = set()

    def _client_left(self, event: ClientLeft, out: list[Instruction]) -> None:
        self._move_client(event.client, ClientLeft)
        for number in sorted(self.clients.pop(event.client)):
            pool = self.pools[number]
            pool.orphaned = True
            self._close(pool, ClientLeft, kill=True, out=out)

    def _open_pool(self, event: OpenPool, out: list[Instruction]) -> None:
        self._move_client(event.client, OpenPool)
        if event.pool in self.pools:
            raise IllegalMove(self.pools[event.pool].state, "OpenPool", f"pool {event.pool}")
        _check_max_workers(event.max_workers)
        self.pools[event.pool] = _Pool(event.pool, event.client, event.max_workers)
        self.clients[event.client].add(event.pool)

    def _resize_pool(self, event: ResizePool, out: list[Instruction]) -> None:
        pool = self._pool(event.pool, ResizePool)
        _check_max_workers(event.max_workers)
        pool.move(ResizePool)
        pool.max_workers = event.max_workers
        pool.surplus_limit = len(pool.workers)
        for worker in list(pool.idle.values())[: max(0, _staying(pool) - pool.max_workers)]:
            self._retire(worker, out)

    def _close_pool(self, event: ClosePool, out: list[Instruction]) -> None:
        pool = self.pools.get(event.pool)
        if pool is not None:
            self._close(pool, ClosePool, event.kill, out)

    def _close(self, pool: _Pool, cause: type[tuple[object, ...]], kill: bool, out: list[Instruction]) -> None:
        pool.move(cause)
        self._drop_requests(pool, None)
        if kill:
            for worker in pool.workers.values():
                self._kill(worker, out)
        else:
            for worker in list(pool.idle.values()):
                self._retire(worker, out)
        self._forget_if_empty(pool, out)

    def _forget_if_empty(self, pool: _Pool, out: list[Instruction]) -> None:
        if pool.state != CLOSING or pool.workers or pool.abroad:
            return
        pool.move(PoolGone)
        del self.pools[pool.number]
        if not pool.orphaned:
            self.clients[pool.client].remove(pool.number)
        out.append(PoolGone(pool.client, pool.number))

    # -------------------------------------------------------------------------------------------- requests and leases

    def _request_leases(self, event: RequestLeases, out: list[Instruction]) -> None:
        pool = self._pool(event.pool, RequestLeases)
        check_shape(event.shape)
        if event.wanted < 1:
            raise ValueError(f"a request asks for at least one lease, not {event.wanted}")
        pool.move(RequestLeases)
        if pool.state == CLOSING:
            return
        missing = self.account.missing(needs(event.shape))
        if missing and event.shape not in pool.warned:
            pool.warned.add(event.shape)
            out.append(WarnInfeasible(pool.client, pool.number, event.shape, missing))
        self.queue.append(self._new_request(pool, event.shape, event.wanted, False))

    def _cancel_requests(self, event: CancelRequests, out: list[Instruction]) -> None:
        pool = self._pool(event.pool, CancelRequests)
        pool.move(CancelRequests)
        self._drop_requests(pool, event.shape)

    def _drop_requests(self, pool: _Pool, shape: Shape | None) -> None:
        """Forget the pool's requests for `shape`, or all of them."""
        if self.queue:
            self.queue = deque(r for r in self.queue if r.pool is not pool or (shape is not None and r.shape != shape))

    def _return_lease(self, event: ReturnLease, out: list[Instruction]) -> None:
        worker = self._worker(event.worker, ReturnLease, event.pool)
        if worker is None or worker.state == KILLED:
            return
        pool = worker.pool
        worker.move(ReturnLease)
        pool.idle[worker.number] = worker
        self._end_back_off(pool)
        used_gpus = bool(worker.gpus)
        if used_gpus:
            # The process keeps its GPUs open, so nobody else can be sure of those devices until it is gone.
            self._lend_cpus(worker)
        else:
            self._give_back(worker)
        if event.retire or used_gpus or pool.state == CLOSING or _staying(pool) > pool.max_workers:
            self._retire(worker, out)

    def _grant_all(self, out: list[Instruction]) -> bool:
        """Grant whatever can be granted, oldest request first; True if resources are missing for the rest."""
        waiting: list[_Request] = []
        left: deque[_Request] = deque()
        for request in self.queue:
            obstacle = None
            while request.count and (obstacle := self._obstacle(request, waiting)) is None:
                self._grant(request, out)
                for older in waiting:
                    older.overtaken += not older.names.isdisjoint(request.names)
            if request.count:
                left.append(request)
                if obstacle in (_RESOURCES, _RESERVED):
                    waiting.append(request)
        self.queue = left
        return bool(waiting)

    def _obstacle(self, request: _Request, waiting: Iterable[_Request]) -> str | None:
        """Why `request` cannot be granted; None: it can. `waiting`: older requests that wait for resources."""
        pool = request.pool
        if not request.feasible:
            return _INFEASIBLE
        if not request.decided and self.choosy:
            return _UNDECIDED
        if not pool.idle:
            if len(pool.workers) + len(pool.abroad) >= pool.max_workers:
                return _POOL_FULL
            if pool.wake_at_s is not None:
                return _BACKING_OFF
        if not self.account.fits(request.needs):
            return _RESOURCES
        for older in waiting:
            if older.overtaken >= MAX_OVERTAKEN and not older.names.isdisjoint(request.names):
                return _RESERVED
        return None

    def _grant(self, request: _Request, out: list[Instruction]) -> None:
        pool = request.pool
        worker = pool.idle.popitem()[1] if pool.idle else self._start(pool, out)
        worker.move(Grant)
        worker.lease = request.needs
        worker.gpus = self.account.take(request.needs)
        request.count -= 1
        out.append(Grant(pool.client, pool.number, worker.number, request.shape, worker.gpus))

    # -------------------------------------------------------------------------------------------- other machines

    def new_worker(self) -> int:
        """A number for a worker of another machine, which none of ours will have."""
        self._next_worker += 1
        return self._next_worker - 1

    def could_go(self, client: int = -1) -> list[tuple[int, Shape, int]]:
        """(pool, shape, how many) of the leases that wait for resources, for what this machine has not in total, or
        for a decision; oldest first, without those that are for this machine, or are `client`'s.
        """
        found: list[tuple[int, Shape, int]] = []
        room: dict[int, int] = {}
        for request in self.queue:
            pool = request.pool
            if pool.client in self.settled or pool.client == client or request.bare:
                continue
            left = room.setdefault(pool.number, pool.max_workers - len(pool.workers) - len(pool.abroad))
            if request.decided and self.choosy and _has_wishes(request.shape):
                continue  # it stays
            if not request.decided:
                left += len(pool.idle)
            count = min(request.count, left)
            if count > 0:
                room[pool.number] -= count
                found.append((pool.number, request.shape, count))
        return found

    def has_room(self, number: int) -> bool:
        """Whether the pool may have a worker more, here or elsewhere."""
        pool = self.pools[number]
        return len(pool.workers) + len(pool.abroad) < pool.max_workers

    def drain(self) -> None:
        """What waits, and what is asked for from now on, goes elsewhere, if it can."""
        self.draining = True
        for request in self.queue:
            request.decided = request.pool.client in self.settled

    def waiting(self) -> int:
        """Leases that wait for nothing but resources that others hold."""
        room: dict[int, int] = {}
        total = 0
        for request in self.queue:
            pool = request.pool
            left = room.setdefault(pool.number, pool.max_workers - len(pool.workers) - len(pool.abroad))
            if request.feasible and (request.decided or not self.choosy):
                count = max(0, min(request.count, left + len(pool.idle)))
                room[pool.number] -= count
                total += count
        return total

    def _split_off(self, number: int, shape: Shape, cause: type[tuple[object, ...]]) -> _Pool:
        """One lease of that shape waits no more, where the pool has one."""
        pool = self._pool(number, cause)
        alike = [r for r in self.queue if r.pool is pool and r.shape == shape and not r.bare]
        request = next((r for r in alike if not r.decided), alike[0] if alike and cause is WentAbroad else None)
        if request is None:
            raise IllegalMove(pool.state, cause.__name__, f"pool {number}, which waits for nothing like that")
        pool.move(cause)
        request.count -= 1
        if not request.count:
            self.queue.remove(request)
        return pool

    def _stays_here(self, event: StaysHere, out: list[Instruction]) -> None:
        pool = self._split_off(event.pool, event.shape, StaysHere)
        self.queue.appendleft(self._new_request(pool, event.shape, 1, True, event.bare))

    def _new_request(self, pool: _Pool, shape: Shape, count: int, decided: bool, bare: bool = False) -> _Request:
        decided = decided or pool.client in self.settled or not (self.draining or _has_wishes(shape))
        request = _Request(pool, shape, count, decided, bare)
        request.feasible = self._feasible(request.needs)
        return request

    # -------------------------------------------------------------------------------------------- what there is

    def _feasible(self, shape: Shape) -> bool:
        return not self.account.missing(shape) and not (self.dissolving and groups_of(shape) & self.dissolving)

    def _look_again(self) -> None:
        """The machine's total has changed."""
        for request in self.queue:
            request.feasible = self._feasible(request.needs)

    def _set_aside(self, event: SetAside, out: list[Instruction]) -> None:
        check_shape(event.bundle)
        if (event.group, event.number) in self.account.bundles or event.group in self.dissolving:
            raise IllegalMove("set aside", "SetAside", f"bundle {event.number} of group {event.group}")
        self.account.set_aside(event.group, event.number, event.bundle, {"group": ENDLESS})
        self._look_again()

    def _dissolve(self, event: Dissolve, out: list[Instruction]) -> None:
        if not any(group == event.group for group, _ in self.account.bundles):
            return
        self.dissolving.add(event.group)
        for worker in self.workers.values():
            if worker.lease is not None and event.group in groups_of(worker.lease):
                self._kill(worker, out)
        self._dissolve_rest()

    def _dissolve_rest(self) -> None:
        """As soon as nobody holds anything of a group that is to end, its bundles are the machine's again."""
        for group, number in [key for key in self.account.bundles if key[0] in self.dissolving]:
            self.account.dissolve(group, number, {"group": ENDLESS})
        self.dissolving &= {group for group, _ in self.account.bundles}
        self._look_again()

    def _offer(self, event: Offer, out: list[Instruction]) -> None:
        self.account.offer(event.name, ENDLESS)
        self._look_again()

    def _went_abroad(self, event: WentAbroad, out: list[Instruction]) -> None:
        pool = self._pool(event.pool, WentAbroad)
        if event.worker in pool.abroad or event.worker in self.workers:
            raise IllegalMove(pool.state, "WentAbroad", f"worker {event.worker}, which there is")
        self._split_off(event.pool, event.shape, WentAbroad)
        pool.abroad[event.worker] = event.shape

    def _back_from_abroad(self, event: BackFromAbroad, out: list[Instruction]) -> None:
        pool = self._pool(event.pool, BackFromAbroad)
        if event.worker not in pool.abroad:
            raise IllegalMove(pool.state, "BackFromAbroad", f"worker {event.worker}, which is not abroad")
        pool.move(BackFromAbroad)
        shape = pool.abroad.pop(event.worker)
        if event.refused and pool.state == OPEN:
            self.queue.appendleft(self._new_request(pool, shape, 1, False))
        self._forget_if_empty(pool, out)

    # -------------------------------------------------------------------------------------------- workers

    def _start(self, pool: _Pool, out: list[Instruction]) -> _Worker:
        worker = _Worker(self._next_worker, pool)
        self._next_worker += 1
        self.workers[worker.number] = pool.workers[worker.number] = worker
        out.append(StartWorker(worker.number, pool.number))
        return worker

    def _blocked(self, event: Blocked, out: list[Instruction]) -> None:
        worker = self._worker(event.worker, Blocked)
        if worker is None:
            return
        blocks = worker.state == LEASED
        worker.move(Blocked)
        if blocks:
            self._lend_cpus(worker)

    def _unblocked(self, event: Unblocked, out: list[Instruction]) -> None:
        worker = self._worker(event.worker, Unblocked)
        if worker is None:
            return
        goes_on = worker.state == BLOCKED
        worker.move(Unblocked)
        if goes_on and worker.lease is not None:
            worker.lent = False
            self.account.reclaim_cpus(worker.lease)

    def _kill_requested(self, event: KillRequested, out: list[Instruction]) -> None:
        worker = self._worker(event.worker, KillWorker, event.pool)
        if worker is not None:
            self._kill(worker, out)

    def _worker_died(self, event: WorkerDied, out: list[Instruction]) -> None:
        worker = self._worker(event.worker, WorkerDied)
        if worker is None:
            return
        if not event.early:
            self._end_back_off(worker.pool)
        elif worker.state not in (RETIRING, KILLED):
            self._back_off(worker, event.now_s, out)
        self._gone(worker, WorkerDied, out)

    def _start_failed(self, event: StartFailed, out: list[Instruction]) -> None:
        worker = self._worker(event.worker, StartFailed)
        if worker is None:
            return
        self._back_off(worker, event.now_s, out)
        self._gone(worker, StartFailed, out)

    def _gone(self, worker: _Worker, cause: type[tuple[object, ...]], out: list[Instruction]) -> None:
        worker.move(cause)
        pool = worker.pool
        self._give_back(worker)
        pool.idle.pop(worker.number, None)
        del pool.workers[worker.number], self.workers[worker.number]
        pool.surplus_limit = min(pool.surplus_limit, len(pool.workers))
        if not pool.orphaned:
            out.append(TellDied(pool.client, pool.number, worker.number))
        self._forget_if_empty(pool, out)

    def _retire(self, worker: _Worker, out: list[Instruction]) -> None:
        worker.move(RetireWorker)
        del worker.pool.idle[worker.number]
        out.append(RetireWorker(worker.number))

    def _kill(self, worker: _Worker, out: list[Instruction]) -> None:
        killed_before = worker.state == KILLED
        worker.move(KillWorker)
        worker.pool.idle.pop(worker.number, None)
        if not killed_before:
            out.append(KillWorker(worker.number))

    def _lend_cpus(self, worker: _Worker) -> None:
        if worker.lease is not None and not worker.lent:
            worker.lent = True
            self.account.release_cpus(worker.lease)

    def _give_back(self, worker: _Worker) -> None:
        if worker.lease is None:
            return
        if worker.lent:
            self.account.reclaim_cpus(worker.lease)
        self.account.give_back(worker.lease, worker.gpus)
        worker.lease, worker.gpus, worker.lent = None, (), False
        if self.dissolving:
            self._dissolve_rest()

    # -------------------------------------------------------------------------------------------- back-off

    def _back_off(self, worker: _Worker, now_s: float, out: list[Instruction]) -> None:
        """Workers that die before they did anything are replaced after 0, 50 ms, 100 ms … 2 s: no storm of forks."""
        pool = worker.pool
        if worker.generation < pool.generation:
            return
        pool.generation += 1
        pool.early_deaths += 1
        if pool.early_deaths > 1:
            doubled = min(pool.early_deaths - 2, 16)
            pool.wake_at_s = now_s + min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2**doubled)
            out.append(WakeAt(pool.wake_at_s))

    def _end_back_off(self, pool: _Pool) -> None:
        pool.early_deaths = 0
        pool.wake_at_s = None

    def _tick(self, event: Tick, out: list[Instruction]) -> None:
        ahead: list[float] = []
        for pool in self.pools.values():
            if pool.wake_at_s is not None:
                if pool.wake_at_s > event.now_s:
                    ahead.append(pool.wake_at_s)
                else:
                    pool.wake_at_s = None
        if ahead:
            out.append(WakeAt(min(ahead)))

    # -------------------------------------------------------------------------------------------- look-ups

    def _move_client(self, client: int, cause: type[tuple[object, ...]]) -> None:
        state = JOINED if client in self.clients else ABSENT
        _next(CLIENT_MOVES, state, cause, f"client {client}")

    def _pool(self, number: int, cause: type[tuple[object, ...]]) -> _Pool:
        """The pool, of which `cause` is allowed."""
        pool = self.pools.get(number)
        _next(POOL_MOVES, ABSENT if pool is None else pool.state, cause, f"pool {number}")
        assert pool is not None
        return pool

    def _worker(self, number: int, cause: type[tuple[object, ...]], pool: int | None = None) -> _Worker | None:
        """The worker, of which `cause` is allowed; None if it is gone (which allows it too)."""
        worker = self.workers.get(number)
        if worker is None:
            _next(MOVES, GONE if 0 < number < self._next_worker else UNKNOWN, cause, f"worker {number}")
            return None
        if pool is not None and worker.pool.number != pool:
            raise IllegalMove(f"of pool {worker.pool.number}, not {pool}", cause.__name__, f"worker {number}")
        _next(MOVES, worker.state, cause, f"worker {number}")
        return worker

    # -------------------------------------------------------------------------------------------- invariants

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        self.account.check()
        self._check_accounts()
        held = {group for worker in self.workers.values() for group in groups_of(worker.lease or ())}
        assert self.dissolving <= held, f"nobody holds anything of {self.dissolving - held}, which should be gone"
        for client, pools in self.clients.items():
            assert all(self.pools[number].client == client and not self.pools[number].orphaned for number in pools)
        for number, pool in self.pools.items():
            assert pool.number == number
            assert pool.orphaned or number in self.clients[pool.client]
            self._check_pool(pool)
        assert sum(len(pool.workers) for pool in self.pools.values()) == len(self.workers)
        self._check_queue()

    def _check_accounts(self) -> None:
        """What is free and what is held make the total, for each name and each device."""
        free = dict(self.account.free)
        devices = list(self.account.devices)
        for worker in self.workers.values():
            for name, amount in worker.lease or ():
                free[name] += 0 if name.split("|")[0] == CPUS and worker.lent else amount
            for device in worker.gpus:
                devices[device] += gpus_of(worker.lease or ()) // len(worker.gpus)
        for bundle, _ in self.account.bundles.values():
            for name, amount in bundle:
                free[name] += amount
        assert free == self.account.total, f"free and held make {free}, not {self.account.total}"
        assert devices == [10_000] * len(devices), f"a GPU was lost or granted twice: {devices}"

    def _check_pool(self, pool: _Pool) -> None:
        assert len(pool.workers) <= max(pool.max_workers, pool.surplus_limit), f"pool {pool.number} is too large"
        assert {n for n, w in pool.workers.items() if w.state == IDLE} == set(pool.idle)
        assert pool.state == OPEN or pool.workers or pool.abroad, f"pool {pool.number} should be gone"
        assert pool.state == OPEN or not pool.idle
        assert not pool.abroad.keys() & self.workers.keys()
        assert all(number < self._next_worker for number in pool.abroad)
        for number, worker in pool.workers.items():
            assert self.workers[number] is worker
            assert worker.pool is pool
            assert worker.number == number < self._next_worker
            assert worker.lease is None or worker.state != IDLE
            assert worker.lease is not None or worker.state not in (LEASED, BLOCKED)
            assert worker.lease is None or worker.state != RETIRING or (worker.gpus and worker.lent)
            assert worker.lent == (worker.state == BLOCKED) or (worker.lent and worker.state in (RETIRING, KILLED))

    def _check_queue(self) -> None:
        waiting: list[_Request] = []
        for request in self.queue:
            assert request.count > 0
            assert self.pools[request.pool.number] is request.pool
            assert request.pool.state == OPEN
            assert request.overtaken <= MAX_OVERTAKEN
            obstacle = self._obstacle(request, waiting)
            assert obstacle is not None, f"pool {request.pool.number} waits for {request.shape}, which is free"
            if obstacle in (_RESOURCES, _RESERVED):
                waiting.append(request)
        assert self.scarce or not waiting, "that resources are scarce was not told"


def _has_wishes(shape: Shape) -> bool:
    return any(name[0] == WISH for name, _ in shape)


def _staying(pool: _Pool) -> int:
    """How many of its workers are not dying."""
    return sum(worker.state not in (RETIRING, KILLED) for worker in pool.workers.values())


def _check_max_workers(max_workers: int) -> None:
    if max_workers < 1:
        raise ValueError(f"a pool has at least one worker, not {max_workers}")
