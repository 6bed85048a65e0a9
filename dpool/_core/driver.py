"""The native runtime in a process that submits: its connection to the node, its workers' sockets, and who reads them.

```
 outer epoll (io thread sleeps here)             inner epoll
 ├─ wake  (eventfd)                              ├─ node      Grant, WorkerUp, WorkerDied, Output, …
 └─ inner epoll, armed or not ──────────────────►├─ worker 1  frames of results
                                                 └─ worker 2
```

Threads. The *reading role* belongs to one thread at a time (`_reading`): a thread that waits in `result()` takes it
and reads for itself, so that no hand-off between threads stands between a worker's answer and its reader; a thread
that submits many tasks takes it for a moment now and then (`pump`). As soon as a thread has done so, the inner epoll
is disarmed in the outer one, and the io thread only looks every `tick_s` whether somebody still reads; if not, it
arms it again and reads itself. So an idle process sleeps without a tick, and a busy one has one reader.

The io thread also keeps the timers, takes stalled frames apart and hands lineage on. It lives while an executor is
open.

Invariants: the io thread is armed, or it wakes within `tick_s`, or a reader is in a long wait and will wake it when
it leaves. `tell` never blocks.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any
from weakref import ref

import dpool.errors  # noqa: F401  at the exit, when a task may still fail, it could not be imported any more
from dpool._core import config as configuration
from dpool._core import ids, launch, storage, wire
from dpool._core.context import WorkersEnv, here
from dpool._core.executor_pool import ExecutorPool
from dpool._core.frames import Page
from dpool._core.future import DONE, Future
from dpool._core.future import _mutex as futures_mutex
from dpool._core.lane import Link
from dpool._core.lineage import Lineage
from dpool._core.messages import (
    ActorGone,
    AskOutput,
    Blocked,
    Bye,
    Closed,
    ClusterSize,
    Grant,
    Hello,
    Infeasible,
    KeepNode,
    Notice,
    OpenStore,
    Output,
    OutputTold,
    Refused,
    Retire,
    Scarce,
    Welcome,
    WorkerDied,
    WorkerUp,
    versions,
)
from dpool._core.polling import Choice, Poller
from dpool._core.replicate import make_setup
from dpool._core.serialize import Exporter
from dpool._core.shield import inside, run_deferred, shielded

if TYPE_CHECKING:
    from dpool._core.actor_pool import ActorPool

MOST_TASK_WORKERS = 256
"""Workers of one process's `@remote` tasks, those that wait for others included."""
TASK_WORKER_IDLE_S = 60.0
LONG_S = 0.02
"""A reader that waits longer tells the io thread when it leaves, which then needs no tick meanwhile."""
MIN_PURGE = 1000
"""Timers from which on those of tasks that have ended are looked for and dropped."""
OUTPUT_S = 0.5
"""How long to wait for what workers have written: it matters only for the order of lines."""
MOST_WAIT_S = 3600.0
"""A single wait: the kernel takes 24 days at the most, and a time-out may be longer."""
SHORT_S = 0.001
"""A wait up to this long tells whether polling pays."""
CLOSED = "closed its connection"
MAX_BARREN = 5
"""Nodes in a row that may end before a worker of theirs is up; then no further one is started."""
MOST_READ_NOW = 100
"""Messages that are dealt with, at most, before something is answered that they may be about."""
_EPOLLIN = select.EPOLLIN
_log = logging.getLogger("dpool")


class NativeRuntime:
    """See the module. One for each process; made by `runtime()`."""

    def __init__(self, config: configuration.Config) -> None:
        self.config = config
        self.pid = os.getpid()
        self.cores = len(os.sched_getaffinity(0))
        self.exporter = Exporter()
        self.job = here.worker.job if here.worker is not None else os.urandom(ids.ID_BYTES)
        self.pools: dict[int, ExecutorPool | ActorPool] = {}
        self._tasks: dict[Any, ExecutorPool] = {}
        self.stays = False
        """There is a detached actor, as far as we know: the node is not left before the program ends."""
        self.keeping = False
        """The program has something that names the node: it is not left, and does not go, before the program ends."""
        self._kept = False
        """The node has heard of that."""
        self.exiting = False
        self._ended_on_purpose = False
        """By `dpool.shutdown`, which says that it ends everything."""
        self.node_lost = False
        self.scarce = False
        """Others wait for resources: what is leased and not in use is given back at once."""
        self.replacing = False
        """A node has died, and the next one does not have what we still have of its store yet: no task may go there."""
        self.welcome: Welcome | None = None
        self.cluster_cpus = 0
        """Of all machines; 0: this one is in no cluster, or the node has not answered yet."""
        self._had_node = False
        """A node has answered once: it can be started here."""
        self._barren = 0
        """Nodes in a row that ended before a worker of theirs was up."""
        self.session = ""
        self._session_is_ours = False
        """This process has made it, for a node of its own."""
        self._numbers = itertools.count(1)
        self._node: wire.ControlChannel | None = None
        self._node_child = 0
        self._send_lock = threading.RLock()
        self._start_lock = threading.RLock()
        self._reading = threading.RLock()
        self._reader = 0
        """The thread that has the reading role, or 0."""
        self._handlers: dict[int, Callable[[], None]] = {}
        self._callbacks: deque[Callable[[], Any]] = deque()
        """What the io thread is to run: users' callbacks."""
        self._inner = select.epoll()
        self._outer = select.epoll()
        self._poller = Poller(self._inner.poll, config.poll_s)
        self._choice = Choice()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poke_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inner.register(self._poke_fd, _EPOLLIN)
        self._outer.register(self._wake_fd, _EPOLLIN)
        self._outer.register(self._inner.fileno(), _EPOLLIN)
        self._handlers[self._poke_fd] = self._poked
        self._armed = True
        self.sleeping = False
        """The io thread sleeps for long, or without a limit."""
        self._long = False
        self._touched = 0
        """Counts reads by threads other than the io thread."""
        self._watching = False
        """Frames of several tasks are out."""
        self._timers: list[tuple[float, int, Callable[[], Any]]] = []
        self._purge_at = MIN_PURGE
        self._deferred: list[Callable[[], Any]] = []
        self._io: Callable[[], threading.Thread | None] = _no_thread
        """The io thread, held weakly: one that has ended leaves nothing behind."""
        self._stop_io = False
        self._io_left = False
        """The io thread is about to end."""
        self._dispatching = False
        """The thread with the reading role is dealing with a message."""
        self._sleepers = 0
        """Threads that wait on a Condition because another one reads."""
        self._settled = threading.Condition()
        self._watchers = 0
        """Threads that wait on `_settled`, …"""
        self._turn = 0
        """… and how often they have been woken."""
        self._waiting: set[object] = set()
        """What threads of this worker's task wait for: one object for each wait."""
        self._lends = False
        """The CPUs of its lease are lent, as far as the node has been told."""
        self._output_asked = itertools.count(1)
        self._output_told = 0
        """The last of these numbers that the node has answered."""
        self._warned: set[str] = set()
        self._lineage = Lineage(self) if config.gcs == "on" else None

    # -- pools

    def open_pool(self, **options: Any) -> ExecutorPool:
        """A new executor's pool; its workers start when the first task comes."""
        self._check_process()
        self._check_exiting("create an executor")
        with self._start_lock:
            self.start()
            kind = self._cluster_pool() if self.config.address else ExecutorPool
            pool = kind(self, next(self._numbers), **options)
            self.pools[pool.number] = pool
            pool.announce()
            self._start_io()
        return pool

    @staticmethod
    def _cluster_pool() -> type[ExecutorPool]:
        from dpool._core.cluster_pool import ClusterPool

        return ClusterPool

    def node_name(self) -> bytes:
        """Of the node of this machine; waits until it has answered."""
        self.wait_until(lambda: self.welcome is not None or self.node_lost, self.config.start_timeout_s)
        return self.welcome.node if self.welcome is not None else b""

    def keep_node(self) -> None:
        """From now on the node stays until `dpool.shutdown`, or until the program ends: what names it is given out."""
        until = monotonic() + self.config.start_timeout_s
        self.start_now()
        while here.worker is None and not self._kept and monotonic() < until:  # it may be about to go
            with self._start_lock:
                self.start()
                self.keeping = True
                self.tell(KeepNode())
            self.wait_until(lambda: self._kept or self.node_lost, until - monotonic())

    def cpus(self) -> int:
        """Of the cluster; waits until the node has told."""
        self.start_now()
        self.wait_until(lambda: self.cluster_cpus > 0 or self.node_lost, self.config.start_timeout_s)
        self._read_now()  # there may be more of them by now
        return self.cluster_cpus

    def task_pool(self, env: tuple[tuple[str, str], ...] = (), max_calls: int = 0) -> ExecutorPool:
        """The pool of `@remote` tasks, which this process has one of; but for those whose workers have other variables,
        or run so many tasks at most.
        """
        self._check_exiting("submit a task")
        with self._start_lock:
            pool = self._tasks.get((env, max_calls))
            if pool is None or pool.state != "open":
                pool = self._tasks[env, max_calls] = self.open_pool(
                    max_workers=MOST_TASK_WORKERS,
                    initializer=None,
                    initargs=(),
                    max_tasks_per_child=max_calls or None,
                    strict=False,
                    all_at_once=False,
                    idle_timeout_s=TASK_WORKER_IDLE_S,
                    env=dict(env) or None,
                    label="Task pool",
                    daemon=True,
                )
            return pool

    def connect_actor(self, held: Any) -> Any:
        """A link to an actor that this process holds."""
        from dpool._core.actor_pool import ActorPool

        self._check_process()
        self._check_exiting("call an actor")
        with self._start_lock:
            if held._pool is not None and held._pool.state == "open":  # of another thread, just now
                return held._pool
            self.start()
            meta = held.meta
            pool = ActorPool(self, next(self._numbers), held.actor, meta.label, meta.many, meta.max_task_retries)
            self.pools[pool.number] = pool
            held.linked(pool)
            pool.announce()
            self._start_io()
        return pool

    def cancel_children(self, task: int) -> None:
        """Cancel the `@remote` tasks that this worker's task of that number has submitted."""
        for pool in list(self._tasks.values()):
            pool.cancel_children(task)

    def start_now(self) -> None:
        """Start the node before there is anything for it to do."""
        self._check_process()
        with self._start_lock:
            self.start()

    def forget(self, pool: Any) -> None:
        """The pool has ended; with the last one the io thread ends too."""
        with self._start_lock:
            self.pools.pop(pool.number, None)
            if not self.pools:
                self._stop_io = True
                self.wake()

    def setup_for(self, pool: ExecutorPool) -> bytes:
        return self.setup(pool.max_workers_hint(), pool.env)

    def setup(self, max_workers: int, env: dict[str, str]) -> bytes:
        """What workers, or an actor, of this process take over; the runtime has started."""
        if not self.config.address:
            return make_setup(self.job, max_workers, env)
        return make_setup(self.job, max_workers, {"DPOOL_ADDRESS": "auto", **env}, here.home or self.session)

    def _check_exiting(self, what: str) -> None:
        """Before any lock: a thread that the end of the interpreter has stopped may hold it."""
        if self.exiting:
            raise RuntimeError(f"cannot {what} at interpreter shutdown")

    def _check_process(self) -> None:
        if os.getpid() != self.pid:
            raise self._forked_error()

    def _forked_error(self) -> BaseException:
        from dpool.errors import ForkedRuntimeError

        return ForkedRuntimeError(
            f"this process (pid {os.getpid()}) was forked from pid {self.pid}, whose executors and futures it "
            "cannot use; make a new dpool.Executor here"
        )

    # -- the node

    def start(self) -> None:
        """Start a node (or, in a worker, connect to the worker's own); returns before it has answered."""
        if self._node is not None:
            if self.pools or not self._node_gone():
                return  # should it be gone, whoever reads tells the open pools
            self._drop_node()
        if here.worker is not None:
            self.session = here.worker.session
            try:
                sock = launch.connect_node(self.session)
            except (ConnectionError, FileNotFoundError):
                launch.end_with_node(here.worker.node_pid)
                raise
        elif self.config.address:
            from dpool._core import joining

            self._session_is_ours = False
            self.session = joining.join(self.config, self.config.address)
            sock = launch.connect_node(self.session)
        elif early := launch.take_early():
            self.session, self._node_child, sock = early
            self._session_is_ours = True
        else:
            self.session = launch.make_session(self.config)
            self._session_is_ours = True
            try:
                self._node_child, sock = launch.spawn_node(self.session)
            except OSError as error:
                launch.remove_session(self.session)
                from dpool.errors import StartupError

                raise StartupError(f"the node process could not be started ({sys.executable}): {error}") from error
        self.welcome = None
        self._handlers[sock.fileno()] = self._node_readable
        with self._send_lock:  # nobody may say anything before
            self._node = wire.ControlChannel(sock)
            self.node_lost = self.scarce = False
            self._inner.register(sock.fileno(), _EPOLLIN)
            self.tell(
                Hello(
                    configuration.PROTOCOL,
                    *versions(),
                    self.pid,
                    self.job,
                    os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python",
                    here.worker.worker if here.worker is not None else 0,
                    tuple(self.config),
                    list(sys.path),
                )
            )
        if here.worker is None:
            self.at(monotonic() + self.config.start_timeout_s, partial(self._start_timeout, self._node))

    def _start_timeout(self, node: wire.ControlChannel) -> None:
        if self._node is node and self.welcome is None and self.pools:
            self._node_closed(node, f"did not answer within {self.config.start_timeout_s} s")

    def _node_gone(self) -> bool:
        """Whether the node left while nobody read (it leaves when it has lingered long enough)."""
        assert self._node is not None
        hangup = select.poll()  # no message is read here: that is for whoever has the reading role
        hangup.register(self._node.fileno(), 0)
        return bool(hangup.poll(0))

    def _drop_node(self) -> None:
        if self._node is not None:
            fd = self._node.fileno()
            self._handlers.pop(fd, None)
            if fd >= 0:
                self._inner.unregister(fd)
            self._node.close()
            self._node = None
            self.keeping = self._kept = False
            storage.node_left()
        self._reap()
        if self._session_is_ours:
            launch.remove_session(self.session)

    def _reap(self) -> None:
        """The process that we started exits as soon as the node stands on its own."""
        if self._node_child:
            try:
                os.waitpid(self._node_child, 0)
            except ChildProcessError:  # somebody else waited for any child
                pass
            self._node_child = 0

    def open_store(self) -> socket.socket:
        """A new socket to the node's object store; StoreGone if there is no node, and none can be started."""
        self._check_process()
        with self._start_lock:
            if self.exiting and self._node is None:
                raise storage.NoStore("the interpreter exits")
            self.start()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self.tell(OpenStore(), (theirs.fileno(),))
            finally:
                theirs.close()
        return ours

    def tell(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        """Send a control message to the node; what cannot be sent now is sent by the reader."""
        with self._send_lock:
            if self._node is None or self.node_lost:
                return
            try:
                waited = self._node.pending
                self._node.send(message, fds)
                if self._node.pending and not waited:
                    self._inner.modify(self._node.fileno(), _EPOLLIN | select.EPOLLOUT)
            except wire.Closed:
                return  # the end of file is read, and dealt with, by the reader

    def _node_readable(self) -> None:
        """What the node says is dealt with wholly: what a worker's end or beginning changes cannot be done by half."""
        shielded(self._hear_node, self._locks)

    def _locks(self) -> list[Any]:
        """What this thread may hold when a signal handler or finalizer has interrupted us."""
        return [self._send_lock, self._start_lock, futures_mutex, *(pool.lock for pool in list(self.pools.values()))]

    def _hear_node(self) -> None:
        node = self._node
        if node is None:
            return
        if node.pending:
            with self._send_lock:
                try:
                    node.flush()
                except wire.Closed:
                    pass  # read below
                if not node.waiting():
                    self._inner.modify(node.fileno(), _EPOLLIN)
        try:
            message, fds = node.receive()
        except (BlockingIOError, InterruptedError):
            return
        except wire.Closed:
            self._node_closed(node, CLOSED)
            return
        except wire.DescriptorsLost:
            self.descriptors_lost()
            return
        except wire.ProtocolError as error:
            self._node_closed(node, f"sent a malformed message ({error})")
            return
        self._handle(message, fds)

    def _handle(self, message: Any, fds: list[int]) -> None:
        kind = type(message)
        if kind is Grant:
            pool = self.pools.get(message.pool)
            if pool is not None:
                pool.granted(message, fds)
            else:
                for fd in fds:
                    os.close(fd)
        elif kind is WorkerUp or kind is WorkerDied or kind is Retire or kind is Closed:
            pool = self.pools.get(message.pool)
            if pool is None:
                return
            if kind is WorkerUp:
                self._barren = 0
                pool.worker_up(message.worker, message.pid, message.ordinal)
            elif kind is WorkerDied:
                pool.worker_died(message)
            elif kind is Retire:
                pool.retire(message.worker)
            else:
                pool.closed()
        elif kind is Output:
            _write_output(message)
        elif kind is ActorGone:
            link: Any = self.pools.get(message.pool)
            if link is not None:
                link.gone(message.cause)
        elif kind is Scarce:
            self.scarce = message.wanted
            if message.wanted:
                for pool in list(self.pools.values()):
                    pool.give_up_idle()
        elif kind is Infeasible:
            pool = self.pools.get(message.pool)
            if pool is not None:
                pool.infeasible(message.shape, message.text, message.strict)
        elif kind is ClusterSize:
            self.cluster_cpus = message.cpus
            for pool in list(self.pools.values()):
                pool.cluster_changed()
            self.poke_reader()
        elif kind is OutputTold:
            self._output_told = message.number
            self.poke_reader()
        elif kind is Notice and message.category == "stays":
            self.stays = bool(message.text)
        elif kind is Notice and message.category == "kept":
            self._kept = True
        elif kind is Notice:
            self._notice(message)
        elif kind is Welcome:
            self.welcome = message
            self._had_node = True
            self._reap()
        elif kind is Refused:
            self._node_closed(self._node, f"refused us: {message.reason}")

    def catch_up_output(self, wait_s: float = 0.0) -> None:
        """Have what workers wrote before now written here too, if their writing is counted; waits for `OUTPUT_S`.

        `wait_s`: counted or not, and wait for so long.
        """
        pools = list(self.pools.values())
        if not pools or os.getpid() != self.pid or self.dispatching_here() or not all(p.may_wait() for p in pools):
            return
        if any([pool.has_written() for pool in pools]) or wait_s:
            number = next(self._output_asked)
            self.tell(AskOutput(number))
            self.wait_until(lambda: self._output_told >= number or self.node_lost, wait_s or OUTPUT_S)

    def notice(self, text: str) -> None:
        """Warn the user once."""
        self._notice(Notice("runtime", text))

    def _notice(self, message: Notice) -> None:
        """One warning for one cause."""
        if message.text in self._warned or (message.category == "detached" and self._ended_on_purpose):
            return
        self._warned.add(message.text)
        import warnings

        try:
            warnings.warn(message.text, RuntimeWarning, stacklevel=2)
        except RuntimeWarning as error:  # warnings are errors here; whoever reads has done nothing to deserve one
            print(f"{type(error).__name__}: {error}", file=sys.stderr)

    def descriptors_lost(self, asked: ExecutorPool | None = None) -> None:
        """A message came without its descriptors; `asked`: the pool that it was for, if that is known."""
        from dpool.errors import StartupError

        error = StartupError(
            "this process has no file descriptors left for another worker (see `ulimit -n`); close files, or raise "
            "the limit"
        )
        for pool in [asked] if asked is not None else list(self.pools.values()):
            if not pool.processes:
                pool.break_all(error)
            else:
                self._notice(Notice("descriptors", str(error)))

    def _node_closed(self, node: wire.ControlChannel | None, what: str) -> None:
        """The node died, or never came up: its workers died with it."""
        with self._start_lock:  # a thread that has found it gone as well may have started the next one
            if node is not self._node or self.node_lost:
                return
            if here.worker is not None:
                launch.end_with_node(here.worker.node_pid)
            self.node_lost = True
            if here.worker is None:
                self.replacing = True
                storage.node_died()
            log_file = os.path.join(self.session, launch.NODE_LOG)
            started = self.welcome is not None
            self._barren += 1
            if self.config.address and here.worker is None:
                self._had_node, started = False, False  # it is not ours to start again
            worth_it = (started or (self._had_node and what == CLOSED)) and self._barren < MAX_BARREN
            tail = "" if worth_it else launch.log_tail(log_file)
            self._drop_node()
            pools = list(self.pools.values())  # those made from now on are the next node's
        if worth_it and not self.exiting:
            for pool in pools:
                pool.node_died(log_file)
            self._start_again(pools)
            return
        from dpool.errors import NodeLost, StartupError

        if self.config.address:
            error: BaseException = NodeLost(
                f"the node of this machine ({socket.gethostname()}), which belongs to the cluster "
                f"(address={self.config.address!r}), {what}: what ran for this program is lost. `dpool status` shows "
                "which machines are left; start one here again, or run the program on another."
            )
        else:
            error = StartupError(f"the node process {what}; its log ends with:\n{tail}")
        self._give_up(error, pools)

    def _start_again(self, pools: list[ExecutorPool | ActorPool]) -> None:
        """Another node in the place of one that died with the workers of `pools`, if somebody needs it."""
        from dpool.errors import DpoolError

        with self._start_lock:
            if not self.pools:
                self.replacing = False
                return
            try:
                self.start()
            except DpoolError as error:
                self._give_up(error, pools)
                return
        for pool in pools:
            pool.announce()  # first of all: a node that knows of nobody ends when its store is empty
        if storage.connected() is not None:
            self._open_store_again()
        self.replacing = False
        for pool in list(self.pools.values()):  # with those that were opened meanwhile
            pool.go_on()

    @staticmethod
    def _open_store_again() -> None:
        """What we still have of the dead node's store is handed to the next one, before tasks ask there for it."""
        try:
            storage.client()
        except storage.StoreGone as error:
            _log.warning("the object store of a node that died could not be handed on: %s", error)

    def _give_up(self, error: BaseException, pools: list[ExecutorPool | ActorPool]) -> None:
        """No node can be had: nothing that was open can go on."""
        self.replacing = False
        for pool in pools:
            pool.break_all(error)
            pool.closed()
        for pool in list(self.pools.values()):  # opened meanwhile, with a node of their own
            pool.go_on()

    # -- links to workers

    def link(self, message: Grant, fds: list[int]) -> Link | None:
        """Our side of a worker that is new to us; None if this process may not open it."""
        if len(fds) != 3 + bool(message.key):
            return None
        sock, peer, page = socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1]), fds[2]
        try:
            mapped = Page(page)
            if message.key:
                from dpool._core.direct import Direct

                direct = Direct(sock, socket.socket(fileno=fds[3]), message.key, mapped)
                return Link(direct, peer, mapped, message.log_file)
            return Link(sock, peer, mapped, message.log_file)
        except OSError:  # mapping the page takes one more
            sock.close()
            peer.close()
            return None
        finally:
            os.close(page)

    def watch(self, link: Link, handler: Callable[[], None]) -> None:
        """Read this worker's answers from now on."""
        fd = link.fileno()
        self._handlers[fd] = handler
        self._inner.register(fd, _EPOLLIN)

    def unwatch(self, link: Link) -> None:
        fd = link.fileno()
        if self._handlers.pop(fd, None) is not None:
            self._inner.unregister(fd)

    def may_poll(self, adding: int) -> bool:
        """Whether a worker should poll after its next frame: only while cores are left over."""
        if self.cores < 2 or (adding and not self._choice.polling):
            return False
        n = adding
        for pool in list(self.pools.values()):
            for lane in list(pool._lanes.values()):
                n += len(lane.queue)
                for slot in list(lane.dispatcher.slots.values()):
                    n += len(slot.frames)
        return n < self.cores

    # -- reading

    def _take_duty(self) -> None:
        """The io thread need not wake for the sockets while this thread reads."""
        self._touched += 1
        if self._armed:
            self._armed = False
            self._outer.modify(self._inner.fileno(), 0)
            if self.sleeping:
                self.wake()

    def attend(self) -> None:
        """Somebody waits without reading: the io thread takes over now."""
        if not self._armed and self._reader == 0:
            self._arm()

    def _arm(self) -> None:
        self._armed = True
        self._outer.modify(self._inner.fileno(), _EPOLLIN)

    def _read_events(self, timeout: float) -> int:
        """Handle what is readable, waiting up to `timeout` seconds; the caller has the reading role."""
        events = self._inner.poll(timeout)
        self._dispatch(events)
        return len(events)

    def ended(self, future: Future[Any], elsewhere: bool) -> None:
        """A task has ended: run its callbacks (in the io thread, if `elsewhere`); its reader may wait for another."""
        extra = future._extra
        if extra is not None and extra.callbacks:
            if elsewhere:
                self.in_io_thread(future._run_callbacks)
            else:
                future._run_callbacks()
        self.poke_reader()

    def in_io_thread(self, action: Callable[[], Any]) -> None:
        """Run `action` in the io thread, with the reading role free; if there is no such thread any more, here."""
        io = self._io()
        if io is None or self._io_left:
            action()
            return
        self._callbacks.append(action)
        if io is not threading.current_thread():  # else it is on its way there
            self.wake()

    def settled(self) -> None:
        """Tasks have ended: who waits for any of several, and does not read, shall look."""
        if self._watchers:
            with self._settled:
                self._turn += 1
                self._settled.notify_all()

    def poke_reader(self) -> None:
        """Something has changed that the thread with the reading role, or one that watches it, may be waiting for."""
        self.settled()
        reader = self._reader
        # this very thread, too, if a signal handler runs in it while it waits
        if reader and (reader != threading.get_ident() or not self._dispatching):
            self._poke()

    def _poke(self) -> None:
        try:
            os.write(self._poke_fd, b"\1\0\0\0\0\0\0\0")
        except OSError:  # it has been poked often enough, or the runtime is gone
            return

    def _poked(self) -> None:
        try:
            os.read(self._poke_fd, 8)
        except BlockingIOError:
            return

    def _run_callbacks(self) -> None:
        while self._callbacks:
            self._callbacks.popleft()()

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        before, self._dispatching = self._dispatching, True
        try:
            for fd, _ in events:
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
        except BaseException:
            self.wake()  # what was put off until now
            raise
        finally:
            self._dispatching = before
        if self._deferred:
            self.run_deferred()

    def defer(self, action: Callable[[], Any]) -> None:
        """Run `action` soon, with no lock held."""
        self._deferred.append(action)
        reader = self._reader
        if not reader:
            self.wake()
        elif reader != threading.get_ident() or not self._dispatching:  # else it is run after what is dispatched now
            self._poke()  # the reader may be in a long wait

    def run_deferred(self) -> None:
        run_deferred(self._deferred, self.defer)

    def pump(self) -> None:
        """Handle what is readable now, if nobody else does."""
        if self._reader:
            return
        reading = self._reading
        try:
            if reading.acquire(blocking=False):
                self._reader = threading.get_ident()
                self._take_duty()
                self._read_events(0)
        finally:
            try:
                self._leave(reading)
            except BaseException:  # a signal handler raised
                self._leave(reading)
                raise

    def _leave(self, reading: Any) -> None:
        """Give the reading role up, if this thread has it; a signal may have come right after it was taken."""
        if reading._is_owned():
            self._reader = 0
            reading.release()

    def wait_for(self, future: Future[Any], timeout: float | None, pool: Any = None) -> None:
        """Wait until the future is done, or the time is over; reads meanwhile if nobody else does."""
        self._check_process()
        if pool is not None and future._state not in DONE:
            pool.nudge()
        try:
            self._wait(lambda: future._state in DONE, timeout, future)
        except KeyboardInterrupt:
            if pool is not None and threading.current_thread() is threading.main_thread():
                pool.interrupt()
            raise

    def wait_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `done()`, reading meanwhile if nobody else does; True if it came true in time."""
        self._wait(done, timeout, None)
        return done()

    def _wait(self, done: Callable[[], bool], timeout: float | None, future: Future[Any] | None) -> None:
        until = None if timeout is None else monotonic() + timeout
        reading = self._reading
        me = threading.get_ident()
        while not done():
            if self._reader == me:  # inside a handler of ours
                if self._dispatching and threading.current_thread() is threading.main_thread():
                    raise RuntimeError(
                        "a signal handler cannot wait for a task here: it interrupted this thread while it was reading "
                        "results; let it set a flag or an event, and wait outside"
                    )
                try:
                    self._read_until(done, until)
                finally:
                    self._poke()  # whoever was interrupted, and waits for something else, has perhaps missed it
                return
            took = False
            try:
                took = reading.acquire(blocking=False)
                if took:
                    self._reader = me
                    self._read_until(done, until)
            finally:
                try:
                    self._leave(reading)
                except BaseException:  # a signal handler raised
                    self._leave(reading)
                    raise
            if not took:
                self._sleep_until(done, until, future)
            elif self._sleepers:
                self.attend()
            if until is not None and monotonic() >= until:
                return

    def dispatching_here(self) -> bool:
        """Whether this thread is dealing with a message, and what it does now has interrupted that."""
        return self._dispatching and (self._reader == threading.get_ident() or inside())

    def _sleep_until(self, done: Callable[[], bool], until: float | None, future: Future[Any] | None) -> None:
        """Another thread reads: it will end our future, or leave the reading role to us."""
        self._sleepers += 1
        try:
            left = LONG_S if future is None else 1.0
            if until is not None:
                left = min(left, max(0.0, until - monotonic()))
            if future is None:
                self._watch_until(done, left)
                return
            condition = future._condition
            with condition:
                if not done():
                    condition.wait(left)
        finally:
            self._sleepers -= 1

    def _watch_until(self, done: Callable[[], bool], timeout: float) -> None:
        with self._settled:
            self._watchers += 1
            turn = self._turn
        try:
            if done():  # with no lock held: it may take others
                return
            with self._settled:
                if self._turn == turn:
                    self._settled.wait(timeout)
        finally:
            with self._settled:
                self._watchers -= 1

    def _read_until(self, done: Callable[[], bool], until: float | None) -> None:
        wait = None
        try:
            self._take_duty()
            begun = 0.0
            if self._worth_polling():
                begun = perf_counter()
                while self._choice.polling and not done():
                    events = self._poller.poll()
                    if not events:
                        break
                    self._dispatch(events)
            while not done():
                left = LONG_S if not self._long else 3600.0
                if until is not None:
                    left = min(left, until - monotonic())
                    if left <= 0:
                        return
                if wait is None and here.holds_cpus:
                    wait = object()
                    self.lend(wait, True)
                if not self._read_events(left) and not done():
                    self._long = True
            if begun:
                waited = perf_counter() - begun
                if waited < SHORT_S:
                    self._choice.note(waited)
        finally:
            if wait is not None:
                try:
                    self.lend(wait, False)
                except BaseException:  # a signal handler raised
                    self.lend(wait, False)
                    raise
            if self._long:
                self._long = False
                try:
                    self.wake()
                except BaseException:  # a signal handler raised
                    self.wake()
                    raise

    def lend(self, wait: object, begins: bool) -> None:
        """In a worker: a thread of the task begins to wait, or goes on; the CPUs of its lease are lent meanwhile.

        What a signal handler cuts short is put right when the end of the wait is said (again).
        """
        with self._send_lock:
            if begins:
                self._waiting.add(wait)
                if not self._lends:
                    self._lends = True  # first: the node takes an end that it knows no beginning of, not two beginnings
                    self.tell(Blocked(True))
                return
            self._waiting.discard(wait)
            if self._lends and not self._waiting:
                self.tell(Blocked(False))
                self._lends = False

    @contextmanager
    def blocking(self) -> Iterator[None]:
        """The task of this worker waits, for something else than a future: others may have its CPUs meanwhile."""
        with self._start_lock:
            self.start()
        wait = object()
        try:
            self.lend(wait, True)
            yield
        finally:
            try:
                self.lend(wait, False)
            except BaseException:  # a signal handler raised
                self.lend(wait, False)
                raise

    def _worth_polling(self) -> bool:
        return self.may_poll(0)

    # -- the io thread

    def wake(self) -> None:
        """Let the io thread look around."""
        try:
            os.write(self._wake_fd, b"\1\0\0\0\0\0\0\0")
        except (BlockingIOError, OSError):
            return  # it is awake already, or the runtime is gone

    def at(self, when_s: float, action: Callable[[], Any]) -> None:
        """Run `action` at a monotonic time, in the io thread."""
        with self._send_lock:
            if len(self._timers) >= self._purge_at:
                self._timers[:] = [timer for timer in self._timers if not getattr(timer[2], "dead", False)]
                heapq.heapify(self._timers)
                self._purge_at = max(MIN_PURGE, 2 * len(self._timers))
            heapq.heappush(self._timers, (when_s, next(self._numbers), action))
            first = self._timers[0][0] == when_s
        if first:
            self.wake()

    def _start_io(self) -> None:
        """Under `_start_lock`, under which the thread also decides to end."""
        self._stop_io = False
        io = self._io()
        if self._io_left or io is None or not io.is_alive():
            self._io_left = False
            self._armed = False
            self._arm()
            thread = threading.Thread(target=self._io_loop, name="dpool-io", daemon=True)
            self._io = ref(thread)
            thread.start()
        else:
            self.wake()

    def join_io(self) -> None:
        """Wait until the io thread has ended, if it is to end: if no pool is left but such as end by themselves now."""
        if all(pool.ending() for pool in list(self.pools.values())):
            self.wait_until(lambda: not self.pools or not all(pool.ending() for pool in list(self.pools.values())), 5)
        io = self._io()
        if io is not None and self._stop_io and io is not threading.current_thread():
            io.join(5)

    def _io_may_leave(self) -> bool:
        if not self._stop_io or self._callbacks:
            return False
        with self._start_lock:
            self._io_left = self._stop_io  # unless an executor was made meanwhile
            if self._io_left:
                self._reap()
                if self.config.linger_s == 0 and not self.stays and not self.keeping and storage.leave():
                    self.close()  # nothing is to stay until the next executor: no node, no socket to it
        return self._io_left

    def _io_loop(self) -> None:
        touched = self._touched
        while not self._io_may_leave():
            self.sleeping = True  # before looking: who changes something afterwards must wake this thread
            timeout = self._io_timeout()
            if timeout is not None and timeout <= LONG_S:
                self.sleeping = False
            events = self._outer.poll(-1 if timeout is None else timeout)
            self.sleeping = False
            try:
                self._io_turn(events, touched)
            except BaseException:  # of a callback, most likely; the others must not wait for ever
                _log.exception("the io thread goes on after an error")
            touched = self._touched

    def _io_turn(self, events: list[tuple[int, int]], touched: int) -> None:
        """What the io thread does each time it wakes."""
        for fd, _ in events:
            if fd == self._wake_fd:
                os.read(fd, 8)
        self._run_callbacks()
        self._run_timers()
        if self._deferred and self._reader == 0:
            self.run_deferred()
        if self._armed:
            if any(fd != self._wake_fd for fd, _ in events):
                self._io_read()
        elif self._reader == 0 and touched == self._touched:
            self._arm()
        self._housekeeping()
        self._run_callbacks()

    def _io_read(self) -> None:
        reading = self._reading
        try:
            if reading.acquire(timeout=self.config.tick_s):
                self._reader = threading.get_ident()
                self._read_events(0)
        finally:
            self._leave(reading)

    def _read_now(self) -> None:
        """Deal with what has come, unless another thread does, or this one is about to."""
        reading = self._reading
        if self._reader == threading.get_ident():
            return
        try:
            if reading.acquire(blocking=False):
                self._reader = threading.get_ident()
                for _ in range(MOST_READ_NOW):
                    if not self._read_events(0):
                        break
        finally:
            try:
                self._leave(reading)
            except BaseException:  # a signal handler raised
                self._leave(reading)
                raise

    def _io_timeout(self) -> float | None:
        timeout: float | None = None
        if (not self._armed and not self._long) or self._watching:
            timeout = self.config.tick_s
        elif self._lineage is not None and self._lineage.waiting():
            timeout = self.config.lineage_flush_s
        if self._timers:
            left = min(max(0.0, self._timers[0][0] - monotonic()), MOST_WAIT_S)
            timeout = left if timeout is None else min(timeout, left)
        return timeout

    def _run_timers(self) -> None:
        now = monotonic()
        while True:
            with self._send_lock:
                if not self._timers or self._timers[0][0] > now:
                    return
                action = heapq.heappop(self._timers)[2]
            action()

    def _housekeeping(self) -> None:
        now = monotonic()
        watching = False
        if self._lineage is not None:
            self._lineage.look(now)
        dead = self.exporter.dead[:]
        del self.exporter.dead[: len(dead)]
        for pool in list(self.pools.values()):
            if dead:
                pool.forget_numbers(dead)
                if self._lineage is not None:
                    self._lineage.forget_functions(dead)
            for lane in list(pool._lanes.values()):
                watching |= lane.rescue(now, self.config.stall_s)
        self._watching = watching

    # -- ending

    def at_exit(self) -> None:
        """The interpreter exits: what is pending is finished first, unless Ctrl-C ended the program."""
        self.exiting = True
        if os.getpid() != self.pid:
            return
        interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
        for pool in list(self.pools.values()):
            if pool.standing or pool.daemon:  # its workers are daemons, as multiprocessing's
                pool.terminate()
                continue
            if interrupted:
                pool.interrupt()
            pool.close(cancel_futures=interrupted)
        try:
            self._wait_for_pools(interrupted)
        finally:
            if any(needed() for needed in storage.needed_to_the_end):
                import atexit

                atexit.register(self._close_last)  # it is called first
            else:
                self.close()

    def leave_if_idle(self) -> bool:
        """Leave the node if nothing is to stay that nobody uses; False if it is still used."""
        with self._start_lock:
            if self.config.linger_s or self.pools or self.exiting or self.stays or self.keeping:
                return True
            if not storage.leave():
                return False
            self.close()
            return True

    def _close_last(self) -> None:
        """Everybody else's exit functions first: they may use what lives in the node, or wait for child processes."""
        import atexit

        atexit.unregister(self._close_last)
        atexit._run_exitfuncs()
        self.close()

    def _wait_for_pools(self, interrupted: bool) -> None:
        try:
            self.wait_until(lambda: not self.pools)
        except KeyboardInterrupt:
            for pool in list(self.pools.values()):
                if interrupted:
                    pool.signal_workers(int(signal.SIGKILL))
                else:
                    pool.interrupt()
            self._wait_for_pools(True)
            raise

    def connected(self) -> bool:
        """Whether there is a node."""
        return self._node is not None and not self.node_lost

    def shut_down(self) -> None:
        """End everything, now."""
        for pool in list(self.pools.values()):
            pool.terminate()
        self.wait_until(lambda: not self.pools)
        self.join_io()
        storage.let_everything_go()
        self.stays = False
        self._ended_on_purpose = True
        self._warned.clear()
        self.close()
        self._ended_on_purpose = False

    def close(self) -> None:
        """Leave the node, which ends when it was only ours."""
        with self._start_lock:
            self.tell(Bye())
            if self._node is not None and here.worker is None:
                self._await_node_end()
            self._drop_node()

    def _await_node_end(self) -> None:
        """Read the node's last words until it closes; kill it if it does not within 5 s."""
        assert self._node is not None
        waiter = select.poll()
        waiter.register(self._node.fileno(), select.POLLIN)
        until = monotonic() + 5
        while True:
            left = until - monotonic()
            if left <= 0 or not waiter.poll(left * 1000):
                if self.welcome is not None and self._session_is_ours:  # a machine's node serves others, too
                    os.kill(self.welcome.pid, signal.SIGKILL)
                return
            try:
                message, fds = self._node.receive()
            except (BlockingIOError, InterruptedError):
                continue
            except (wire.Closed, wire.DescriptorsLost, wire.ProtocolError):
                return
            self._handle(message, fds)

    def after_fork(self) -> None:
        """In a forked child: let go of what is the parent's, without a word to the node or to a worker.

        No lock is taken: a thread that is not here may have held it.
        """
        pools, self.pools = list(self.pools.values()), {}
        self._send_lock, self._start_lock, self._reading = threading.RLock(), threading.RLock(), threading.RLock()
        self._armed = True
        self._reader = 0
        self._callbacks.clear()
        self._settled, self._watchers = threading.Condition(), 0
        self._inner.close()
        self._outer.close()
        if self._wake_fd >= 0:  # else this is a fork of the fork
            os.close(self._wake_fd)
            os.close(self._poke_fd)
            self._wake_fd = self._poke_fd = -1
        if self._node is not None:
            self._node.close()
            self._node = None
        for pool in pools:
            pool.disown(self._forked_error())


def _no_thread() -> None:
    """No io thread has been started yet."""


def _write_output(message: Output) -> None:
    """What a worker wrote, to where this process writes."""
    stream = sys.stdout if message.stream == 1 else sys.stderr
    if stream is None or _Current.quiet:
        return
    try:
        stream.write(message.data.decode(errors="replace"))
        stream.flush()
    except (OSError, ValueError):  # closed
        return


class _Current:
    """The one documented default runtime of this process."""

    runtime: NativeRuntime | None = None
    changes: dict[str, Any] = {}  # noqa: RUF012
    """Settings that go before the environment's."""
    lock = threading.Lock()
    hooked = False
    initialized = False
    """`configure` was called since the last `shut_down`."""
    quiet = False
    """What workers write is not shown."""


def runtime() -> NativeRuntime:
    """The runtime of this process, made at first use."""
    current = _Current.runtime
    if current is not None and current.pid == os.getpid():
        return current
    with _Current.lock:
        current = _Current.runtime
        if current is None or current.pid != os.getpid():
            settings = configuration.from_environment()._replace(**_Current.changes).validate()
            current = _Current.runtime = NativeRuntime(settings)
            if not _Current.hooked:
                _Current.hooked = True
                threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
                os.register_at_fork(after_in_child=_forked)
        return current


def configure(env: WorkersEnv | None = None, quiet: bool | None = None, **changes: Any) -> None:
    """Settings for the runtime of this process; RuntimeError if it runs already, with others.

    `env`: what workers get beside what this process has. `quiet`: what they write is not shown.
    """
    current = _Current.runtime
    if current is not None and current.pid == os.getpid():
        if current.pools or storage.in_use() or current.stays:
            now = {name: getattr(current.config, name) for name in changes}
            if now != changes or (env is not None and env != here.workers_env):
                raise RuntimeError(
                    f"dpool runs already, with {now}: call dpool.init before the first Executor or put, or when the "
                    "last executor is closed and nothing is held in the object store"
                )
            return
        current.config = current.config._replace(**changes).validate()
        current.close()  # the next node is started with these
    _Current.changes = {**_Current.changes, **changes}
    _Current.initialized = True
    if quiet is not None:
        _Current.quiet = quiet
    if env is not None:
        here.workers_env = env


def in_use() -> bool:
    """Whether this process has a runtime with a node, or settings for one."""
    current = _Current.runtime
    return _Current.initialized or (current is not None and current.pid == os.getpid() and current.connected())


def shut_down() -> None:
    """See `dpool.shutdown`."""
    current = _Current.runtime
    if current is not None and current.pid == os.getpid():
        current.shut_down()
        current.config = configuration.from_environment().validate()
    _Current.changes = {}
    _Current.initialized = _Current.quiet = False
    here.workers_env = None


def _at_exit() -> None:
    current = _Current.runtime
    if current is not None:
        current.at_exit()


def _forked() -> None:
    current = _Current.runtime
    if current is not None:
        current.after_fork()
    _Current.lock = threading.Lock()
