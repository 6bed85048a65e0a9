"""One executor's tasks and workers, as the submitting process sees them.

```
 Executor.submit ─► ExecutorPool.submit ─► Lane (one per resource shape) ─► workers
                         │                    ▲
                         ├─ Dependencies ─────┘ tasks whose arguments are futures
                         └─ node: OpenPool, RequestLeases, ReturnLease, KillWorker, ClosePool
```

Threads: `submit` from any; the events of workers from whoever has the reading role. `lock` guards everything here and
in the lanes; it is not held while futures are settled, since their callbacks are the user's code.

Invariants: a worker is in one lane, or in `_spare` (granted once, returned); the pool holds at most `max_workers`
live ones. A pool ends once: CLOSED after its tasks are done, or BROKEN with the error that every later submit raises.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import frames, promises, storage, wire
from dpool._core.arguments import FutureInside
from dpool._core.deferring import Deferring
from dpool._core.dependents import Dependents
from dpool._core.future import CANCELLED_AND_NOTIFIED, DONE, PENDING, Future, finish
from dpool._core.lane import Lane, Route
from dpool._core.launch import await_deaths
from dpool._core.logic.dispatch import Slot
from dpool._core.messages import (
    CancelRequests,
    ClosePool,
    Grant,
    KillWorker,
    OpenPool,
    RequestLeases,
    ResizePool,
    ReturnLease,
    Shape,
    UpdateSetup,
    WorkerDied,
)
from dpool._core.pool_crash import NODE_DIED, crash, fail_all, how
from dpool._core.pool_initializer import Initializer
from dpool._core.pool_workers import Clock, WorkerProcess
from dpool._core.serialize import ATOMIC

if TYPE_CHECKING:
    from dpool._core.driver import NativeRuntime

promises.register()
OPEN, CLOSING, BROKEN, CLOSED = "open", "closing", "broken", "closed"
DEATH_S = 5.0
"""How long the kernel may take to end a dead node's workers."""
MAX_FAILED_STARTS = 5
"""Workers in a row that die before they do anything: then the pool gives up."""
TERMINATE_S = 1.0
"""How long workers that were told to end may take for it."""
LEASE_IDLE_S = 0.1
"""A lease that holds resources is kept so long without a task: the next one may come at once."""
FOREVER_S = 1e9
PUMP_EVERY = 64
"""Submits between two looks at the workers' sockets."""


class ExecutorPool(Deferring):
    """See the module."""

    def __init__(
        self,
        runtime: NativeRuntime,
        number: int,
        *,
        max_workers: int | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks_per_child: int | None,
        strict: bool,
        all_at_once: bool,
        idle_timeout_s: float | None,
        env: dict[str, str] | None,
        label: str,
        standing: bool = False,
        daemon: bool = False,
    ) -> None:
        super().__init__(runtime)
        self.number = number
        self.label = label
        self.daemon = daemon
        """The program's end does not wait for its tasks."""
        self.standing = standing
        """The rules of multiprocessing.Pool: see `Runtime.open_pool`."""
        self.flags = frames.SHOW if standing else 0
        """Of every frame."""
        self.state = OPEN
        self.closing = False
        self.broken: BaseException | None = None
        self._abandoned = False
        """Its executor was collected."""
        self._terminated = False
        self.drained = threading.Event()
        self.gone = threading.Event()
        self.processes: dict[int, WorkerProcess] = {}
        self._forced = False
        """All workers have been signalled: what they ran is not to run again."""
        self._max_workers = max_workers
        self._lifetime = max_tasks_per_child
        self._strict = strict
        self._all_at_once = all_at_once
        self._idle_timeout_s = idle_timeout_s
        self.env = env or {}
        self._at_end: list[Callable[[], Any]] = []
        self._opened = False
        self._failed_starts = 0
        self._lanes: dict[tuple[Shape, bool], Lane] = {}
        self._slots: dict[int, tuple[Slot, Lane | None]] = {}
        self._infeasible: dict[Shape, str] = {}
        """What no machine here can run, and why."""
        self._submitted = 0
        self._ceiling: int | None = None
        """No more workers than these can be started at present."""
        self._recovering = 0
        """Deaths of workers that are being dealt with."""
        self._owed = False
        """A standing pool's workers were wanted, or being initialized, when their node died: the next one starts them.
        """
        self._unpickled = 0
        """Tasks that did not pickle: like any others, they make workers start."""
        self._prepare = runtime.exporter.prepare
        self.initializer = Initializer(initializer, initargs, self._prepare)
        self.dependents = Dependents(self, self._prepare)
        self.main = self.lane((), single=False)
        self.route = Route(self, self.main, 0, None, "")

    # -- settings

    @property
    def max_workers(self) -> int:
        """How many workers there may be; counted at first need, because counting CPUs takes longer than starting
        one.
        """
        if self._max_workers is None:
            from loky import cpu_count

            self._max_workers = int(cpu_count())
        return self._max_workers

    def max_workers_hint(self) -> int:
        """`max_workers`, or 0 while it has not been counted."""
        return self._max_workers or 0

    def nudge(self) -> None:
        """Somebody waits for a task: settle what was put off while the first worker started."""
        if self._max_workers is None and self._opened:
            with self.lock:
                self.runtime.tell(ResizePool(self.number, self.max_workers))
                for lane in self._lanes.values():
                    lane._push()

    def cluster_changed(self) -> None:
        """The cluster has other CPUs than before."""

    def resize(self, max_workers: int) -> None:
        """Change `max_workers`; surplus workers leave, busy ones when they have run what they were sent."""
        with self.lock:
            self._max_workers = max_workers
            self.runtime.tell(ResizePool(self.number, max_workers))
            # spare workers are the node's to retire
            live = [worker for worker, (slot, lane) in self._slots.items() if lane is not None and not slot.retiring]
            surplus = len(live) - max_workers
        for worker in live:
            if surplus <= 0:
                break
            surplus -= self._retire_if_idle(worker)
        with self.lock:
            for worker in live:
                known = self._slots.get(worker)
                if surplus > 0 and known is not None and known[0].frames and not known[0].retiring:
                    known[0].retiring = True
                    surplus -= 1
        for lane in list(self._lanes.values()):
            lane.push()

    def lane(self, shape: Shape, single: bool) -> Lane:
        """The lane for a resource shape; `single`: tasks that may be killed (time-out) never share a frame."""
        with self.lock:
            lane = self._lanes.get((shape, single))
            if lane is None:
                lane = self._lanes[shape, single] = Lane(self, shape, single, self._lifetime)
            return lane

    def make_route(
        self,
        shape: Shape,
        max_retries: int,
        timeout_s: float | None,
        name: str,
        inline: bool = False,
        retry_on: tuple[type[BaseException], ...] = (),
    ) -> Route:
        """Options for tasks; tasks with a time-out have workers of their own while they run."""
        lane = self.lane(shape, single=timeout_s is not None)
        return Route(self, lane, max_retries, timeout_s, name, inline and timeout_s is None, retry_on)

    # -- submitting

    def submit(self, route: Route, fn: Callable[..., Any], args: Any, kwargs: Any, flow: Any = None) -> Future[Any]:
        """One task: a call, or a chunk of calls (see `runtime.Pool.submit`). Errors of pickling land on the future.
        `flow`: where to what it yields goes.
        """
        if self.state is not OPEN:
            self._refuse()
        try:
            export, call = self._prepare(fn, args, kwargs)
        except BaseException as error:
            return self._unprepared(route, fn, args, kwargs, error, flow)
        future: Future[Any] = Future(route, export, call)
        if flow is not None:
            future._more().stream = flow
        lane = route.lane
        try:
            lane.queue.append(future)
            if lane.hungry:
                lane.push()
            else:
                self._submitted += 1
                if not self._submitted % PUMP_EVERY:
                    self.runtime.pump()
        except BaseException:  # a signal handler raised: nobody has the future, but it is queued
            self.later(lane.push)
            raise
        if self.state is not OPEN:
            self._submitted_too_late(future)
        return future

    @staticmethod
    def share(iterables: tuple[Iterable[Any], ...]) -> tuple[Iterable[Any], ...]:
        """Arguments for many tasks; see `sharing`."""
        if all(
            type(one) is not itertools.repeat and (type(one) not in (list, tuple) or _atomic(one)) for one in iterables
        ):
            return iterables
        from dpool._core.sharing import share

        return share(iterables)

    def _refuse(self) -> None:
        if self.broken is not None:
            raise self._broken_again()
        if self.runtime.exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        raise RuntimeError("cannot schedule new futures after shutdown")

    def _broken_again(self) -> BaseException:
        error = self.broken
        assert error is not None
        return type(error)(*error.args)

    def _submitted_too_late(self, future: Future[Any]) -> None:
        """The pool closed while the task was submitted: it is run if there is still somebody to run it."""
        if self.state in (CLOSED, BROKEN) and future._settle(CANCELLED_AND_NOTIFIED, only_from=PENDING):
            self._refuse()

    def _unprepared(
        self, route: Route, fn: Callable[..., Any], args: Any, kwargs: Any, error: BaseException, flow: Any
    ) -> Future[Any]:
        """A future is among the arguments, or they do not pickle."""
        future: Future[Any] = Future(route)
        if flow is not None:
            future._more().stream = flow
        if isinstance(error, FutureInside):
            self.dependents.add(future, fn, args, kwargs)
        elif not isinstance(error, Exception):
            raise error
        else:
            finish(future, None, error)
            with self.lock:
                self._unpickled += 1
                self.want_workers(self.main, at_least=self._unpickled)
        return future

    def dependent_ready(self, future: Future[Any]) -> None:
        """A task that waited for futures has its arguments."""
        assert future._route is not None
        lane = future._route.lane
        lane.queue.append(future)
        lane.push()

    # -- workers

    def may_grow(self, lane: Lane) -> bool:
        """Whether another worker could be asked for."""
        if self.state in (BROKEN, CLOSED):
            return False
        return self._workers() + lane.requested < self._most()

    def _most(self) -> int:
        """How many workers may be asked for now."""
        return self.max_workers if self._ceiling is None else min(self._ceiling, self.max_workers)

    def _workers(self) -> int:
        """Leased workers; those returned to the node are leased again on request."""
        return sum(len(lane.dispatcher.slots) for lane in self._lanes.values())

    def _asked(self) -> int:
        return sum(lane.requested for lane in self._lanes.values())

    def want_workers(self, lane: Lane, at_least: int = 0) -> None:
        """Ask the node for as many leases as the lane's tasks could use. Under the lane's lock, or with nothing
        held.
        """
        if self.state in (BROKEN, CLOSED) or self.runtime.node_lost or self.runtime.replacing:  # the next node is asked
            return
        if self.initializer.failures >= MAX_FAILED_STARTS:
            if self._working():
                return  # they can do it
            self.initializer.failures = 0  # another occasion
        if lane.shape in self._infeasible:
            self.later(partial(self._fail_infeasible, lane))
            return
        if not self._opened:
            self._open()
        waiting = len(lane.queue) + lane.dispatcher.in_flight() - len(lane.dispatcher.slots) - lane.requested
        if self._all_at_once:
            waiting = self.max_workers
        waiting = max(waiting, at_least - lane.requested - len(lane.dispatcher.slots))
        if waiting <= 0:
            return
        first = not self._slots and not self._asked()
        if first and waiting == 1 and self._max_workers is None:
            count = 1  # do not count the CPUs before the first worker is on its way
        else:
            # what other lanes ask for may be long in coming, or never; the node keeps to `max_workers`
            count = min(waiting, self._most() - self._workers() - lane.requested)
            count = max(count, 0) + self._give_up_spare(lane, waiting - max(count, 0))
        if count > 0:
            lane.requested += count
            self.runtime.tell(RequestLeases(self.number, lane.shape, count))

    def populate(self) -> None:
        """Have all workers started that there may be, now and not at the first task."""
        with self.lock:
            wanted = self.state is OPEN or (self.state is CLOSING and self._owed)
            wanted = wanted and self.initializer.failures < MAX_FAILED_STARTS
            self._owed = wanted and self.runtime.node_lost
            if wanted and not self._owed:
                self.want_workers(self.main, at_least=self.max_workers)

    def _give_up_spare(self, lane: Lane, wanted: int) -> int:
        """Other lanes' idle workers go back to the node, so that it can lease them for this lane's shape."""
        given = 0
        for other in list(self._lanes.values()):
            if other is lane or given >= wanted:
                continue
            for slot in list(other.dispatcher.slots.values()):
                if given < wanted and not slot.frames and not slot.held and not slot.retiring and not other.queue:
                    self._give_back(other, slot)
                    given += 1
        return given

    def give_up_idle(self) -> None:
        """Others wait for resources: leases that hold some and are not in use go back to the node."""
        with self.lock:
            for lane in self._lanes.values():
                if lane.shape and not lane.queue:
                    for slot in list(lane.dispatcher.slots.values()):
                        if not slot.frames and not slot.held and not slot.retiring:
                            self._give_back(lane, slot)

    def infeasible(self, shape: Shape, text: str, strict: bool) -> None:
        """This machine cannot run the tasks of a lane: they wait, with a warning, or fail if that was asked for."""
        if not strict:
            self.runtime.notice(text)
            return
        with self.lock:
            self._infeasible[shape] = text
        for lane in list(self._lanes.values()):
            if lane.shape == shape:
                self._fail_infeasible(lane)

    def _fail_infeasible(self, lane: Lane) -> None:
        from dpool.errors import InfeasibleResources

        with self.lock:
            pending = list(lane.queue)
            lane.queue.clear()
            lane.hungry = True
        fail_all(pending, InfeasibleResources(self._infeasible[lane.shape]))
        if self.closing:
            self.check_drained()

    def _give_back(self, lane: Lane, slot: Slot) -> None:
        del lane.dispatcher.slots[slot.worker]
        self._slots[slot.worker] = (slot, None)
        self.runtime.tell(ReturnLease(self.number, slot.worker, False))

    def _open(self) -> None:
        with self.lock:
            if self._opened:
                return
            self.refresh_setup()
            self._opened = True  # last: without its setup no worker can start

    def announce(self) -> None:
        """Tell a node of us, so that it stays while we may have tasks; the setup of workers follows with the first
        one. What was asked of the node before, or of this one before it knew us, is void.
        """
        with self.lock:
            if self.drained.is_set():  # while the node was replaced: this one would keep us for ever
                return
            self.runtime.tell(OpenPool(self.number, self._max_workers or 1 << 20, b""))
            self._void_requests()

    def _void_requests(self) -> None:
        """No node knows of them any more. Under the lock."""
        self._owed = self.standing and self._initializing()
        self._opened = False
        for lane in self._lanes.values():
            lane.requested = 0

    def go_on(self) -> None:
        """After `announce` to a node that stands in the place of a dead one: ask it for what is needed."""
        for lane in list(self._lanes.values()):
            lane.push()
        if self.standing:
            self.populate()
        if self.closing:
            self.check_drained()

    def refresh_setup(self) -> None:
        """The driver's working directory, environment, … as they are now, for workers started from now on."""
        self.runtime.tell(UpdateSetup(self.number, self.runtime.setup_for(self)))

    def granted(self, message: Grant, fds: list[int]) -> None:
        """The node leased a worker to us."""
        lane = self.lane_for(message.shape)
        if message.fresh:
            link = self.runtime.link(message, fds)
            if link is None:
                lane.requested = max(0, lane.requested - 1)
                self.runtime.tell(KillWorker(self.number, message.worker, int(signal.SIGKILL)))
                self.runtime.descriptors_lost(self)
                return
            slot = Slot(message.worker, link)
            link.up = False
        else:
            known = self._slots.get(message.worker)
            if known is None:
                return  # it died, and its death was told
            slot = known[0]
            slot.held = slot.retiring = slot.returned = False
        if message.gpus or message.shape:
            slot.link.gpus = self._lease_env(message)
        with self.lock:
            self._slots[message.worker] = (slot, lane)
        if message.fresh:
            self.runtime.watch(slot.link, partial(self._readable, slot))
        if self.state in (CLOSED, BROKEN):
            self._say_exit(slot)
            return
        hold = message.fresh and bool(self.initializer)
        if hold:
            self._send_initializer(slot)
        lane.granted(slot, hold)
        if self.closing:
            self.check_drained()

    def lane_for(self, shape: Shape) -> Lane:
        """The lane that waits for a lease of `shape`."""
        lanes = [lane for (s, _), lane in self._lanes.items() if s == shape]
        waiting = [lane for lane in lanes if lane.requested and lane.queue] or [
            lane for lane in lanes if lane.requested
        ]
        return (waiting or lanes or [self.main])[0]

    @staticmethod
    def _lease_env(message: Grant) -> dict[str, str]:
        names = [name for name, _ in message.shape]
        names = [name.partition("|")[0] for name in names]  # a placement group's are those of a machine
        env = {"\0cpus": "1" if "num_cpus" in names else "0"}
        if "num_gpus" in names:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(message.gpus)
        return env

    def _readable(self, slot: Slot) -> None:
        lane = self._slots.get(slot.worker, (slot, None))[1] or self.main
        lane.on_readable(slot)

    def _send_initializer(self, slot: Slot) -> None:
        """The first frame of a fresh worker, which is held until it has answered."""
        try:
            self.initializer.prepared()
        except BaseException as error:
            self._initializer_failed(slot, error, again=False)
            self.kill_for(self.main, slot, lambda _: None)
            return
        try:
            self.initializer.send(slot.link)
        except OSError as error:
            self._initializer_failed(slot, error)
            self.kill_for(self.main, slot, lambda _: None)  # else it would wait for it for ever

    def initialized(self, lane: Lane, slot: Slot, value: Any) -> None:
        """The initializer of a worker has ended."""
        if value is None:
            self._failed_starts = self.initializer.failures = 0
            lane.initialized(slot)
            if self.closing:
                self.check_drained()
            return
        from dpool._core.serialize import load_exception

        error = load_exception(value[1], "the initializer") if value.__class__ is tuple else None
        self._initializer_failed(slot, error)

    def _initializer_failed(self, slot: Slot, error: BaseException | None, again: bool = True) -> None:
        """`again`: another worker may fare better, if the pool is one that tries."""
        from dpool.errors import InitializerFailed

        what = f"{type(error).__name__}: {error}" if error is not None else "its worker died in it"
        failure = InitializerFailed(
            f"the initializer of the {self.label.lower()} failed ({what}); no task can run, see {slot.link.log_file}"
        )
        failure.__cause__ = error
        if not self.standing:
            self.break_all(failure)
            return
        slot.retiring = True
        self.initializer.failures = self.initializer.failures + 1 if again else MAX_FAILED_STARTS
        if self.initializer.failures >= MAX_FAILED_STARTS:
            self._fail_queued(failure)

    def _working(self) -> bool:
        """Whether there are workers whose initializer has not failed."""
        return any(not slot.held and not slot.retiring for slot, lane in self._slots.values() if lane is not None)

    def _fail_queued(self, error: BaseException) -> None:
        """No worker can be had for what waits. What is submitted from now on is another occasion."""
        pending: list[Future[Any]] = []
        with self.lock:
            if self._working():
                return
            for lane in self._lanes.values():
                pending += lane.queue
                lane.queue.clear()
                lane.hungry = True
        fail_all(pending, error)
        if self.closing:
            self.check_drained()

    # -- workers end

    def worker_idle(self, lane: Lane, slot: Slot) -> None:
        """A worker has nothing to do: other lanes, or others who wait for resources, may need it."""
        if lane.requested and not lane.queue and (lane.shape or lane.single):
            with self.lock:
                self._cancel_requests(lane)
        if (
            lane.single
            or (lane.shape and self.runtime.scarce)
            or any(other is not lane and other.queue for other in self._lanes.values())
        ):
            with self.lock:
                if slot.worker in lane.dispatcher.slots:
                    self._give_back(lane, slot)
            for other in self._lanes.values():
                if other is not lane and other.queue and not other.requested:
                    self.later(other.push)
        elif lane.shape or self._idle_timeout_s is not None:
            slot.link.idle_since = monotonic()
            due = self._idle_due(slot, lane)
            if due < slot.link.idle_clock:
                self._wind(slot, due)

    def _idle_due(self, slot: Slot, lane: Lane | None) -> float:
        """When something has to be done about a worker that is still idle then."""
        since: float = slot.link.idle_since
        if lane is not None and lane.shape:
            return since + LEASE_IDLE_S
        return since + (FOREVER_S if self._idle_timeout_s is None else self._idle_timeout_s)

    def _wind(self, slot: Slot, due: float) -> None:
        """Set the idle clock of a worker; where it stood before does not count any more."""
        slot.link.idle_clock = due
        self.runtime.at(due, partial(self._idle_long, slot.worker, due))

    def _cancel_requests(self, lane: Lane) -> None:
        """The lane wants no more workers; others that ask for the same shape ask again."""
        self.runtime.tell(CancelRequests(self.number, lane.shape))
        for other in self._lanes.values():
            if other.shape == lane.shape and other.requested:
                other.requested = 0
                if other.queue:
                    self.later(other.push)

    def _idle_long(self, worker: int, clock: float) -> None:
        """The idle clock of a worker: it leaves, or the clock is set again."""
        known = self._slots.get(worker)
        if known is None or known[0].link.idle_clock != clock:
            return
        slot, lane = known
        due = self._idle_due(slot, lane)
        if slot.frames or slot.held or monotonic() < due:
            self._wind(slot, max(due, monotonic() + 0.01))
        elif lane is not None and lane.shape:
            with self.lock:
                if not slot.frames and slot.worker in lane.dispatcher.slots and not slot.retiring:
                    self._give_back(lane, slot)
            slot.link.idle_clock = float("inf")
            if self._idle_timeout_s is not None:
                self._wind(slot, slot.link.idle_since + self._idle_timeout_s)
        else:
            slot.link.idle_clock = float("inf")
            self._retire_if_idle(worker)

    def _retire_if_idle(self, worker: int) -> int:
        known = self._slots.get(worker)
        if known is None:
            return 0
        slot, lane = known
        with (lane or self.main).lock:
            if slot.frames or slot.held or slot.retiring:
                return 0
            slot.retiring = True
        self._say_exit(slot)
        return 1

    def retire(self, worker: int) -> None:
        """The node wants a worker gone that has no lease."""
        known = self._slots.get(worker)
        if known is not None and known[1] is None and not known[0].retiring:
            known[0].retiring = True
            self._say_exit(known[0])

    def worker_leaves(self, lane: Lane, slot: Slot) -> None:
        """It has run its last task: it was told so with that one (`max_tasks_per_child`), or is told now."""
        if lane.dispatcher.lifetime is None or slot.assigned < lane.dispatcher.lifetime:
            self._say_exit(slot)
        self.runtime.tell(ReturnLease(self.number, slot.worker, True))

    def _say_exit(self, slot: Slot) -> None:
        from pickle import dumps

        try:
            wire.send(slot.link.sock, dumps((slot.next_seq, frames.EXIT, None, 0, []), 5))
        except OSError:
            self.runtime.tell(KillWorker(self.number, slot.worker, int(signal.SIGTERM)))
        if self._slots.get(slot.worker, (slot, None))[1] is not None and not slot.returned:
            slot.returned = True
            self.runtime.tell(ReturnLease(self.number, slot.worker, True))

    def worker_up(self, worker: int, pid: int, ordinal: int) -> None:
        known = self._slots.get(worker)
        if known is not None:
            known[0].link.pid = pid
            known[0].link.up = True
            self.processes[pid] = WorkerProcess(self, worker, pid, ordinal)

    def worker_died(self, message: WorkerDied) -> None:
        """The node says so: its tasks are retried or fail, the others go on."""
        with self.lock:
            known = self._slots.pop(message.worker, None)
            self._recovering += 1  # what it ran is about to be queued again: the pool is not drained
        try:
            self._bury(message, known)
        finally:
            with self.lock:
                self._recovering -= 1
            if self.closing:
                self.check_drained()

    def _bury(self, message: WorkerDied, known: tuple[Slot, Lane | None] | None) -> None:
        self._forget_process(message.pid, -message.signal if message.signal else message.exit_code)
        if known is None:
            self._start_failed(message)
            return
        self._ceiling = None
        slot, lane = known
        page = slot.link.page.slots
        began = page[frames.STARTED] > 0
        up = page[frames.PID] > 0 or slot.link.remote  # it had got as far as its loop
        idle = up and not slot.frames and not slot.held
        blameless = message.reason == NODE_DIED
        initializing = slot.held and bool(self.initializer) and not began and not slot.retiring and not blameless
        lost = (lane or self.main).worker_died(slot)
        if message.unclaimed:
            self._claim(message.pid)
        self.runtime.unwatch(slot.link)
        why = slot.link.why
        slot.link.close()
        if began or idle:
            self._failed_starts = 0
        elif (message.signal or message.exit_code or message.reason) and not (
            blameless or (initializing and self.standing)
        ):
            self._failed_starts += 1
        initializing = initializing and slot.held and not slot.retiring  # it had not answered, though it was not read
        if initializing and self.state in (OPEN, CLOSING) and why is None and (self.standing or self.state is OPEN):
            self._initializer_failed(slot, None)
        for future in lost:
            self._lost(future, message, why)
        if self._strict and why is None and (message.signal or message.exit_code) and self.state is OPEN:
            self.break_all(crash(message, "a task", 1, self._strict))
        elif self._failed_starts >= MAX_FAILED_STARTS:
            self._give_up(message)
        for each in list(self._lanes.values()):
            each.push()
        if self.standing:
            self.populate()

    @staticmethod
    def _claim(pid: int) -> None:
        """All its answers have been read: what else it put into the store for us may go."""
        try:
            storage.client().claim(pid)
        except storage.StoreGone:  # and all that was in it
            return

    def _start_failed(self, message: WorkerDied) -> None:
        """It never got as far as being granted: the lease that it was to be is asked for again."""
        if self._workers():  # those that there are can do it
            self._ceiling = self._workers()
            self.runtime.notice(
                f"an executor goes on with {self._ceiling} of {self.max_workers} workers, because no more can be "
                f"started ({message.reason})"
            )
        else:
            self._failed_starts += 1
        with self.lock:
            for lane in self._lanes.values():
                if lane.requested:
                    self._cancel_requests(lane)
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._give_up(message)

    def _give_up(self, message: WorkerDied) -> None:
        from dpool.errors import ExecutorBroken

        with self.lock:
            if any(slot.link.page.slots[frames.STARTED] for slot, _ in self._slots.values()):
                return  # no more can be started, but there are some that work
        last = message.reason or how(message)
        self.break_all(
            ExecutorBroken(
                f"{self._failed_starts} workers in a row died before they ran anything (the last one: {last}); "
                f"see {message.log_file}"
            )
        )

    def has_written(self) -> bool:
        """Whether a worker has counted up what it wrote since this was last asked."""
        found = False
        for slot, _ in list(self._slots.values()):
            try:
                written = slot.link.page.slots[frames.WRITTEN]
            except ValueError:  # the worker is gone, and its page with it
                continue
            found |= written != slot.link.written
            slot.link.written = written
        return found

    def _forget_process(self, pid: int, exit_code: int) -> None:
        process = self.processes.pop(pid, None)
        if process is not None:
            process.exitcode = exit_code
            process.ended.set()
            self.runtime.poke_reader()

    def _lost(
        self, future: Future[Any], message: WorkerDied, why: Callable[[Future[Any]], BaseException | None] | None
    ) -> None:
        route = future._route
        assert route is not None
        if why is not None:
            error = why(future)
            if error is not None:
                finish(future, None, error)
            if future._state in DONE:
                self.task_ended()
                return
            # it shared its frame with the one that was cancelled by force
        extra = future._more()
        extra.attempts += 1
        if extra.attempts <= route.max_retries and self.state is not BROKEN and not self._forced:
            route.lane.run_again(future)
            return
        finish(future, None, crash(message, self.main.label(future), extra.attempts, self._strict))
        self.task_ended()

    def kill_for(
        self, lane: Lane, slot: Slot, why: Callable[[Future[Any]], BaseException | None], said: str = ""
    ) -> None:
        """Have a worker killed on purpose; `why` gives what its task shall raise."""
        slot.link.why = why
        slot.retiring = True
        self.runtime.tell(KillWorker(self.number, slot.worker, int(signal.SIGKILL)))

    def start_clock(self, future: Future[Any], now_s: float) -> None:
        """A task with a time-out is on its way to its worker."""
        route = future._route
        if route is not None and route.timeout_s is not None:
            self.runtime.at(now_s + route.timeout_s, Clock(self, future))

    def task_timed_out(self, future: Future[Any]) -> None:
        """The time of a task is over: kill its worker."""
        route = future._route
        assert route is not None
        lane = route.lane
        with lane.lock:
            found = lane._slot_of(future)
            if found is None or future._state in DONE:
                return
            from dpool.errors import TaskTimeout

            slot, name = found[0], lane.label(future)
            known = f" (pid {slot.link.pid})" if slot.link.pid else ""  # not that of a worker on another machine
            text = f"{name} ran longer than its timeout of {route.timeout_s} s; its worker{known} was killed"
            self.kill_for(lane, slot, lambda _: TaskTimeout(text))

    # -- functions that died

    def forget_numbers(self, numbers: list[int]) -> None:
        """Functions that no longer exist here: workers may drop them, with the next frame."""
        with self.lock:
            for slot, _ in self._slots.values():
                slot.link.shipped.forget(numbers)
                slot.link.dead += numbers

    # -- ending

    def task_ended(self) -> None:
        """A task has ended, or has gone another way than through a lane."""
        if self.closing:
            self.check_drained()

    def task_cancelled(self, future: Future[Any]) -> None:
        extra = future._extra
        if extra is not None and extra.group is not None:
            self.dependents.cancelled(extra.group)
        if self.closing:
            self.check_drained()

    def close(self, cancel_futures: bool = False) -> None:
        """No more tasks; what is pending runs (or is cancelled), then the workers leave. Does not wait."""
        with self.lock:
            if self.state is OPEN:
                self.state = CLOSING
            self.closing = True
        if cancel_futures:
            self._cancel_pending(everything=False)
        self.check_drained()

    def _cancel_pending(self, everything: bool) -> None:
        with self.lock:
            pending = self.dependents.futures()[::-1]  # who depends on another one comes first
        for lane in list(self._lanes.values()):
            pending += lane.take_all_back(everything)
        for future in pending:
            if future._settle(CANCELLED_AND_NOTIFIED, only_from=PENDING):
                self.task_cancelled(future)

    def check_drained(self) -> None:
        """If the last task of a closing pool has ended, let the workers go."""
        with self.lock:
            if self.drained.is_set() or not self.closing or self.dependents or self._recovering:
                return
            if self.standing and self.initializer and self.state is CLOSING and self._initializing():
                return  # who closes the pool at once still finds that it has run
            for lane in self._lanes.values():
                with lane.lock:
                    while lane.queue and lane.queue[0]._state is not PENDING:
                        lane.queue.popleft()
                    if lane.busy() and self.state is not BROKEN:
                        return
            self.drained.set()
            if self.state is CLOSING:
                self.state = CLOSED
        self._leave()

    def _initializing(self) -> bool:
        return (
            self._owed
            or any(lane.requested for lane in self._lanes.values())
            or any(slot.held and not slot.retiring for slot, _ in self._slots.values())
        )

    def _leave(self) -> None:
        for slot, _ in list(self._slots.values()):
            if not slot.retiring or not slot.returned:
                slot.retiring = True
                self._say_exit(slot)
        if not self.runtime.node_lost:
            for lane in self._lanes.values():
                if lane.requested:
                    self.runtime.tell(CancelRequests(self.number, lane.shape))
            self.runtime.tell(ClosePool(self.number, self.state is BROKEN and not self._terminated))
        if self.runtime.node_lost or not self._opened:  # nobody to wait for
            self.closed()

    def closed(self) -> None:
        """The node says that the last worker is gone."""
        with self.lock:
            slots = [slot for slot, _ in self._slots.values()]
            self._slots.clear()
        for slot in slots:
            self.runtime.unwatch(slot.link)
            slot.link.close()
        for pid in list(self.processes):
            self._forget_process(pid, 0)
        self.initializer.close()
        self.gone.set()
        for action in self._at_end:
            self.runtime.in_io_thread(action)
        self.runtime.forget(self)
        self.runtime.poke_reader()

    def when_gone(self, action: Callable[[], Any]) -> None:
        """Run `action` when the last worker is gone, in whatever thread."""
        self._at_end.append(action)
        if self.gone.is_set():
            self.runtime.in_io_thread(action)

    def check_open(self) -> None:
        """Raise what `submit` would."""
        if self.state is not OPEN:
            self._refuse()

    def break_all(self, error: BaseException) -> None:
        """The pool cannot go on: everything pending fails with `error`."""
        with self.lock:
            if self.state in (BROKEN, CLOSED):
                return
            self.state = BROKEN
            self.broken = error
            self.closing = True
            pending = self.dependents.futures()
            self.dependents.clear()
        for lane in list(self._lanes.values()):
            with lane.lock:
                pending += [
                    task for slot in lane.dispatcher.slots.values() for f in slot.frames for task in f.tasks[f.done :]
                ]
                for slot in lane.dispatcher.slots.values():
                    slot.frames.clear()
                pending += lane.queue
                lane.queue.clear()
        fail_all(pending, error)
        self.check_drained()

    def terminate(self) -> None:
        """End at once: what is pending fails, the workers get SIGTERM and, if that does not end them, SIGKILL."""
        from dpool.errors import ExecutorBroken

        if not self.may_wait():
            self.later(self.terminate)
            return
        with self.lock:
            if self.state in (BROKEN, CLOSED) or self._terminated:
                return
            self._terminated = True
        self.break_all(ExecutorBroken("the pool was terminated before the task had ended"))
        self.signal_workers(int(signal.SIGTERM))  # afterwards: nothing shall look as if a worker had crashed
        self.runtime.at(monotonic() + TERMINATE_S, self._insist)

    def _insist(self) -> None:
        if not self.gone.is_set():
            self.runtime.tell(ClosePool(self.number, True))

    def close_later(self) -> None:
        """`close`, from a finalizer, which may run anywhere, in the middle of anything."""
        self._abandoned = True
        self.later(self.close)

    def ending(self) -> bool:
        """Whether it is closed, or about to be, and nothing is left to do."""
        with self.lock:
            idle = not self.dependents and not any(lane.busy() for lane in self._lanes.values())
            return self.drained.is_set() or (self._abandoned and idle)

    def disown(self, error: BaseException) -> None:
        """In a forked child: the tasks and workers are the parent's, whoever asks for them here gets `error`."""
        self.lock = threading.RLock()
        self.state, self.broken, self.closing = BROKEN, error, True
        self.drained, self.gone = threading.Event(), threading.Event()
        self.drained.set()
        self.gone.set()
        self.dependents.clear()
        for lane in self._lanes.values():
            lane.lock = self.lock
            lane.queue.clear()
            lane.dispatcher.slots.clear()
        for slot, _ in self._slots.values():
            slot.link.close()
        self._slots.clear()

    def in_callback_thread(self, action: Callable[[], Any]) -> None:
        """Run `action` where callbacks run, soon."""
        self.runtime.in_io_thread(action)

    def task_s(self) -> float:
        """What a task takes, on average; 0: not known."""
        return self.main.dispatcher.task_s

    def wait_gone(self) -> None:
        """Wait until the closed pool's tasks are done and its workers gone."""
        self.runtime.wait_until(self.gone.is_set)
        self.runtime.join_io()

    def stop(self, number: int) -> None:
        """Close, cancel what is pending, send a signal to every worker."""
        self.close(cancel_futures=True)
        self._cancel_pending(everything=True)
        self.signal_workers(number)

    def live_processes(self) -> dict[int, WorkerProcess]:
        """The workers that live; waits for those that have been asked for."""
        if self.state is OPEN:
            self.runtime.wait_until(lambda: self.state is not OPEN or not self._starting(), 10)
        return self.processes

    def _starting(self) -> bool:
        with self.lock:
            asked = any(lane.requested and not lane.shape for lane in self._lanes.values())
            return self._owed or asked or any(not slot.link.up for slot, _ in self._slots.values())

    def describe(self) -> str:
        """For people."""
        return f"max_workers={self._max_workers or 'CPUs'} {self.state}"

    def interrupt(self) -> None:
        """Ctrl-C: what waits is cancelled, what runs gets a KeyboardInterrupt."""
        self._cancel_pending(everything=True)
        with self.lock:
            for slot, _ in list(self._slots.values()):
                if slot.frames:  # by the time the signal is there, the worker may run what is submitted next
                    slot.link.page.slots[frames.INTERRUPT] = slot.frames[-1].end - 1
                    slot.link.page.slots[frames.ASKED] += 1
                    self.runtime.tell(KillWorker(self.number, slot.worker, int(signal.SIGINT)))

    def cancel_children(self, parent: int) -> None:
        """Cancel what the worker's task of this number has submitted and what has not ended."""
        with self.lock:
            known = [*self.dependents.futures()]
            for lane in self._lanes.values():
                known += lane.queue
                known += [task for slot in lane.dispatcher.slots.values() for f in slot.frames for task in f.tasks]
        for future in known:
            if future._extra is not None and future._extra.parent == parent:
                assert future._route is not None
                future._route.lane.stop(future)

    def signal_workers(self, number: int) -> None:
        """Send a signal to every worker; for good."""
        self._forced = True
        for slot, _ in list(self._slots.values()):
            slot.link.why = None
            self.runtime.tell(KillWorker(self.number, slot.worker, number))

    def node_died(self, log_file: str) -> None:
        """All workers died with the node; pending tasks move to the next one."""
        with self.lock:
            self._void_requests()
        self._workers_end_with_node()
        for worker in list(self._slots):
            pid = self._slots[worker][0].link.pid
            self.worker_died(WorkerDied(self.number, worker, pid, int(signal.SIGKILL), 0, NODE_DIED, log_file))
        self._failed_starts = 0
        if self.drained.is_set():
            self.closed()

    def _workers_end_with_node(self) -> None:
        """The kernel kills them after it closed the node's sockets: until then they run what they have."""
        pids = []
        with self.lock:
            for slot, lane in self._slots.values():
                while lane is not None and slot.frames and lane._take_unread(slot):
                    pass
                slot.retiring = True  # else one would get what another one had
                if slot.link.page.slots[frames.PID]:  # else it has read nothing, and now it never will
                    pids.append(slot.link.page.slots[frames.PID])
        await_deaths(pids, DEATH_S)


def _atomic(items: Any) -> bool:
    return not items or type(items[0]) in ATOMIC
