"""The asynchronous recorder: the node posts, a thread of its own writes.

```
 node's loop                    writer's thread
 ───────────                    ──────────────────────────────────────────────────────────────────
 start() ─────────────────────► spawn server ─► connect ─► register node ─► rewrite all that lives
 post(op) ──queue, eventfd────► every 10 ms or 256 operations: ledger ─► pipeline ─► acknowledge
 server_exited(pid, status) ──► outage: tell once, back off, spawn again, connect, …
 close(timeout) ──────────────► flush, remove the session's rows or the server itself, end
        ◄──notify(event)──────── Connected, Committed, Lost, Confirmed, Answered, Unavailable
```

What must be in the store before somebody goes on is posted like everything else, with a Confirm after it: it is not
gathered but written at once, the name that it asks for is read back, and the answer is Confirmed. An Ask is the same
with any question to the store; its answer is Answered. While the store is away they wait; whoever has given up ignores
the answer.

Threads: `post`, `start`, `server_exited`, `close` may be called from any thread and, but for `close`, never block.
`notify` and `spawn` are called on the writer's thread; `notify` must hand over and return. Nothing of redis is imported
before that thread connects.

Invariants: the ledger belongs to the thread. A batch is answered at most once as Committed, or as Lost when the writer
closes first. An outage is told once; it is over when the store has worked for `steady_s`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._gcs.child import KILL_WAIT_S, Child, readable
from dpool._gcs.config import Answered, Committed, Confirmed, Connected, GcsConfig, GcsEvent, Lost, Unavailable
from dpool._gcs.ledger import Ledger
from dpool._gcs.operations import (
    OPS,
    CommitLineage,
    DropTasks,
    Event,
    ForgetActor,
    ForgetJob,
    Heartbeat,
    Op,
    RecordActor,
)
from dpool._gcs.tables import (
    ActorRow,
    EndJob,
    JobRow,
    NodeRow,
    PutCopy,
    PutFunction,
    PutJob,
    PutObject,
    RemoveCopy,
    RemoveObject,
    StoreRefused,
)
from dpool.errors import ControlStoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._gcs.redis_store import RedisStore
    from dpool._gcs.server import EmbeddedServer
    from dpool._gcs.tables import Store

__all__ = [
    "ActorRow",
    "Answered",
    "Ask",
    "CommitLineage",
    "Committed",
    "Confirm",
    "Confirmed",
    "Connected",
    "DropTasks",
    "EndJob",
    "Event",
    "ForgetActor",
    "ForgetJob",
    "GcsConfig",
    "GcsEvent",
    "GcsWriter",
    "Heartbeat",
    "JobRow",
    "Lost",
    "NodeRow",
    "Op",
    "PutCopy",
    "PutFunction",
    "PutJob",
    "PutObject",
    "RecordActor",
    "RemoveCopy",
    "RemoveObject",
    "Unavailable",
]

KEEP_SESSION_EVERY_S = 60.0
STARTS_BEFORE_SET_ASIDE = 2
CLOSING_TIME_S = 0.2
"""A process that is killed closes its sockets first; so long after that it has ended."""
REAPING_TIME_S = 1.0
"""How long we wait to hear how a process ended from who reaped it."""
HURRIED_PAUSE_S = 0.5
"""While somebody waits for a Confirm, an attempt to reach the store follows the last one after this time."""


class Confirm(NamedTuple):
    """Answer with Confirmed when all that was posted before is in the store. `name`: whose actor has it; "": none is
    asked for.
    """

    number: int
    name: str


class Ask(NamedTuple):
    """Answer with Answered: what `question` returns. It runs in the writer's thread, and again if the store failed."""

    number: int
    question: Callable[[Store], Any]


class GcsWriter:
    """Records what the node posts; see the module's page.

    Args:
        config: see `GcsConfig`.
        spawn: starts `argv` with the bytes on its standard input (then end of file) and both outputs appended to the
            log's path, and returns the pid at once; an OSError says why it cannot (a broken pipe does not: then the
            process has ended, and is named by its pid). A process group of its own lets the writer end the server's
            own children with it. The child must die with the node (PDEATHSIG; that signal is bound to the thread
            that forks, and `spawn` is called on the writer's). It must not wait for the thread that calls `close`.
        notify: takes a `GcsEvent`; called on the writer's thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: GcsConfig,
        spawn: Callable[[list[str], bytes, str], int],
        notify: Callable[[GcsEvent], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._spawn = spawn
        self._notify = notify
        self._clock = clock
        self._ledger = Ledger(config.node.node_id, config.max_events)
        self._queue: deque[Op | Confirm | Ask] = deque()
        self._exits: dict[int, int] = {}
        self._lock = threading.Lock()  # start and close
        self._wake_lock = threading.Lock()  # the eventfd's life
        self._thread: threading.Thread | None = None
        self._wake_fd = -1
        self._idle = False
        self._urgent = False  # a Confirm is in the queue
        self._closing = False
        # the thread's own
        self._server: EmbeddedServer | None = None
        self._child: Child | None = None
        self._starting = False  # a child whose pid we may not know yet
        self._store: RedisStore | None = None
        self._token = os.urandom(16).hex()
        self._epoch = 1
        self._registered = False  # with the present store
        self._connections = 0  # that the store had made by then
        self._failed_starts = 0
        self._confirms: list[Confirm | Ask] = []  # drained, and not answered
        self._backoff_s = 0.0  # how long the next attempt waits
        self._told = False  # of the present outage
        self._connected_at: float | None = None
        self._keep_at: float | None = None  # when a shared server must hear that the session lives

    # --- any thread -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write what was, and will be, posted. Only the first call that succeeds counts.

        Raises OSError or RuntimeError if no descriptor or no thread is to be had.
        """
        with self._lock:
            if self._thread is not None or self._closing or self._config.mode == "off":
                return
            thread = threading.Thread(target=self._run, name="dpool-gcs", daemon=True)
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                thread.start()
            except RuntimeError:
                self._close_wake_fd()
                self._drain()  # what is posted must not pile up meanwhile
                raise
            self._thread = thread

    def post(self, op: Op) -> None:
        """Take one operation; never blocks. It waits for `start`; after `close`, or in mode "off", it is ignored."""
        if type(op) not in OPS:
            raise TypeError(f"{type(op).__name__} is no operation of the control store")
        if self._closing or self._config.mode == "off":
            return
        queue = self._queue
        queue.append(op)
        if self._idle or len(queue) == self._config.batch_ops:
            self._wake()

    def confirm(self, number: int, name: str = "") -> None:
        """Ask for Confirmed; never blocks. Without a store (mode "off", after `close`) there is no answer."""
        self._put_question(Confirm(number, name))

    def ask(self, number: int, question: Callable[[Store], Any]) -> None:
        """Ask for Answered; never blocks. Without a store (mode "off", after `close`) there is no answer."""
        self._put_question(Ask(number, question))

    def _put_question(self, question: Confirm | Ask) -> None:
        if self._closing or self._config.mode == "off":
            return
        self._queue.append(question)
        self._urgent = True
        self._wake()

    def embedded(self) -> tuple[str, str, str]:
        """Socket, user and password of the embedded server; empty if there is none (yet)."""
        server = self._server
        return (server.socket_path, server.user, server.password) if server is not None else ("", "", "")

    def server_exited(self, pid: int, status: int) -> None:
        """The node reaped the process `pid`. `status`: exit code, or minus the signal. Other pids are ignored."""
        starting, child = self._starting, self._child  # in this order: it ends when the child is there
        if starting or (child is not None and child.pid == pid):
            self._exits[pid] = status
            self._wake()

    @property
    def server_pid(self) -> int | None:
        """The embedded server's process, while there is one."""
        child = self._child
        return child.pid if child is not None else None

    def close(self, timeout_s: float = 0.4) -> None:
        """Write what is waiting, remove the session's rows, end the embedded server and remove its files.

        What is not written after `timeout_s` is given up; unacknowledged batches are told Lost.
        """
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        self._wake()
        thread.join(timeout_s)
        if thread.is_alive():
            self._cut_short()
            thread.join(KILL_WAIT_S)

    def _cut_short(self) -> None:
        """End the round trip that the thread is in: its server hangs, or is slow."""
        child, store = self._child, self._store
        if child is not None:
            child.kill()
        if store is not None:
            store.close()

    def _wake(self) -> None:
        self._idle = False
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    self._pause()
                    self._connect()
                    self._serve()
                except StoreRefused as error:
                    self._outage(str(error), sound=True)
                except ControlStoreError as error:
                    self._outage(self._reason(error))
                except Exception as error:  # a defect of ours: told like any outage, not the thread's silent end
                    self._outage(f"internal error: {error!r}")
            self._last_writes()
        finally:
            self._let_go()

    def _serve(self) -> None:
        """Write what comes, until the writer closes or the store fails (ControlStoreError)."""
        while not self._closing:
            self._gather(None if self._keep_at is None else self._keep_at - self._clock())
            if self._child is not None and self._child.gone():
                raise ControlStoreError("the server ended")
            self._keep_session()
            self._flush()
            if self._store is not None and self._store.connections != self._connections:
                self._register(self._store)  # the server may be another one than before
                self._flush()

    def _gather(self, timeout_s: float | None) -> None:
        """Wait for operations, then a moment for more of them, and take them in."""
        if not self._queue:
            self._idle = True
            if not self._queue and not self._closing:
                self._sleep(timeout_s)
            self._idle = False
        if 0 < len(self._queue) < self._config.batch_ops and not self._closing and not self._urgent:
            self._sleep(self._config.flush_s)
        self._drain()

    def _sleep(self, timeout_s: float | None) -> None:
        """Until `_wake`, the server's end, or the time-out."""
        readable(timeout_s, self._wake_fd, self._child.fd if self._child is not None else -1)
        if readable(0.0, self._wake_fd):
            os.eventfd_read(self._wake_fd)

    def _drain(self) -> None:
        queue, ledger = self._queue, self._ledger
        self._urgent = False
        for _ in range(len(queue)):
            op = queue.popleft()
            if type(op) is Confirm or type(op) is Ask:
                self._confirms.append(op)
            else:
                ledger.apply(op)  # type: ignore[arg-type]
        self._tell_acks()

    def _tell_acks(self) -> None:
        for batch_no in self._ledger.take_acks():
            self._notify(Committed(batch_no))

    def _flush(self) -> None:
        """Write everything that the store does not have yet. Raises ControlStoreError; then it comes again."""
        ledger, store = self._ledger, self._store
        assert store is not None
        while ledger.pending:
            writes = ledger.next_writes(self._config.batch_ops)
            try:
                store.apply(writes)
            except BaseException:
                ledger.failed()
                raise
            ledger.written()
            self._tell_acks()
        while self._confirms:
            one = self._confirms[0]
            answer: GcsEvent
            if type(one) is Ask:
                answer = Answered(one.number, one.question(store))
            else:
                found = store.named_actor(one.name) if one.name else None  # type: ignore[union-attr]
                answer = Confirmed(one.number, found[1] if found else b"")
            del self._confirms[0]
            self._notify(answer)

    def _keep_session(self) -> None:
        """On a shared server: say that we live; if it forgot us, write everything again."""
        if self._keep_at is None or self._clock() < self._keep_at or self._store is None:
            return
        if not self._store.keep_session(time.time()):
            self._register(self._store)
        self._keep_at = self._clock() + KEEP_SESSION_EVERY_S

    # --- connecting -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Have a store that knows this node and has everything that lives. Raises ControlStoreError.

        A store that refused is kept, since its connection is sound, and gets what it does not have yet.
        """
        self._drain()
        if self._store is None:
            self._registered = False
            self._store = self._open_store()
        if not self._registered:
            if self._config.url:
                self._store.keep_session(time.time())
                self._keep_at = self._clock() + KEEP_SESSION_EVERY_S
            self._register(self._store)
            self._registered = True
        self._flush()
        self._connected_at = self._clock()
        self._notify(Connected(self._epoch))

    def _open_store(self) -> RedisStore:
        from dpool._gcs.redis_store import connect_socket, connect_url  # not before it is needed

        config = self._config
        if config.url:
            return connect_url(config.session, config.url, config.reply_timeout_s)
        server = self._running_server()
        return connect_socket(config.session, server.socket_path, server.user, server.password, config.reply_timeout_s)

    def _register(self, store: RedisStore) -> None:
        """Register the node; whatever the store had of it may be gone, so everything is to be written."""
        self._epoch = self._ledger.epoch = store.register_node(self._config.node, self._token, self._epoch)
        self._connections = store.connections
        self._ledger.rewrite_all()

    def _running_server(self) -> EmbeddedServer:
        """The embedded server, started if it is not running, and answering. Raises ControlStoreError."""
        from dpool._gcs.server import EmbeddedServer

        if self._server is None:
            self._server = EmbeddedServer(self._config.directory, maxmemory_bytes=self._config.maxmemory_bytes)
        server = self._server
        child = self._child or self._start(server)

        def pause(seconds: float) -> bool:
            self._sleep(seconds)
            self._drain()
            return not self._closing and not child.gone()

        if not server.wait_ready(self._config.start_timeout_s, pause):
            self._failed_starts += 1
            if self._closing:
                raise ControlStoreError("closed before the embedded server answered")
            if child.gone():
                raise ControlStoreError("the server ended")
            child.kill()
            raise ControlStoreError(f"{server.binary} did not answer within {self._config.start_timeout_s:g} s")
        self._failed_starts = 0
        return server

    def _start(self, server: EmbeddedServer) -> Child:
        if self._failed_starts >= STARTS_BEFORE_SET_ASIDE:
            server.set_data_aside()  # it may be what it stumbles over; what lives is written again
        argv, config = server.command()
        self._exits.clear()
        self._starting = True
        try:
            self._child = Child(self._spawn(argv, config, self._config.log_file), self._exits)
        except Exception as error:
            raise ControlStoreError(f"cannot start {server.binary}: {error}") from error
        finally:
            self._starting = False
        return self._child

    def _reason(self, error: ControlStoreError) -> str:
        """Why the store failed: how the server ended, if it did by itself, else what the error says."""
        child = self._child
        if child is None or child.killed or self._closing or not child.gone(CLOSING_TIME_S):
            return str(error)
        return self._how_it_ended(child)

    def _how_it_ended(self, child: Child) -> str:
        from dpool._gcs.server import last_line

        until = self._clock() + REAPING_TIME_S
        while child.status() is None and self._clock() < until and not self._closing:
            if readable(until - self._clock(), self._wake_fd):
                os.eventfd_read(self._wake_fd)
        name = os.path.basename(self._server.binary) if self._server is not None else "the server"
        return f"{name} (pid {child.pid}) {child.end()}; its last words: {last_line(self._config.log_file)}"

    def _outage(self, reason: str, *, sound: bool = False) -> None:
        """Tell it once, let go of what is gone (not of a `sound` connection), and set the next attempt's pause."""
        config = self._config
        if self._connected_at is not None and self._clock() - self._connected_at >= config.steady_s:
            self._told = False
            self._backoff_s = 0.0
        self._connected_at = None
        self._backoff_s = min(max(2 * self._backoff_s, config.backoff_s[0]), config.backoff_s[1])
        if self._store is not None and not sound:
            self._store.close()
            self._store = self._keep_at = None
        if self._child is not None and self._child.gone():
            self._child.release()
            self._child = None
        if not self._told and not self._closing:
            self._told = True
            self._notify(Unavailable(reason, "" if config.url else config.log_file))

    def _pause(self) -> None:
        """After a failure: take operations in for a while before the next attempt."""
        begun = self._clock()
        while not self._closing and not (self._child is not None and self._child.gone()):
            pause_s = min(self._backoff_s, HURRIED_PAUSE_S) if self._confirms else self._backoff_s
            left = begun + pause_s - self._clock()
            if left <= 0:
                return
            self._gather(left)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _last_writes(self) -> None:
        """Write what is waiting; on a shared server, remove what is ours; tell what could not be written."""
        self._drain()
        if self._store is not None:
            try:
                self._flush()
                if self._config.url:
                    self._leave(self._store)
            except ControlStoreError as error:
                if self._config.url:  # an embedded server's rows go with it
                    self._notify(Unavailable(f"this session's rows may be left: {error}", ""))
        for batch_no in self._ledger.unacknowledged():
            self._notify(Lost(batch_no))

    def _leave(self, store: RedisStore) -> None:
        """Remove this node, its jobs and its actors; the last node removes the session."""
        mine = self._config.node.node_id
        store.apply([EndJob(job_id) for job_id in (*self._ledger.jobs(), mine)])
        for actor_id in self._ledger.staying():
            self._ledger.apply(ForgetActor(actor_id))
        self._flush()
        store.remove_node(mine)
        if not store.nodes():
            store.close_session()

    def _let_go(self) -> None:
        if self._store is not None:
            self._store.close()
        if self._child is not None:
            self._child.kill()  # not asked to end in order: its data go with it
            self._child.release()
            self._child = None
        if self._server is not None:
            self._server.remove_files()
        self._close_wake_fd()

    def _close_wake_fd(self) -> None:
        with self._wake_lock:
            os.close(self._wake_fd)
            self._wake_fd = -1
