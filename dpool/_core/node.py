"""The node: one per machine, one single-threaded loop. It owns the workers and the machine's resources.

```
 drivers, workers ◄──control──► Client ──events──► LocalScheduler ──instructions──► StartWorker ─► zygote
                                                        ▲                           Grant ──────► client (+ descriptors)
 SIGCHLD ─► reap ──────────── WorkerDied ───────────────┘                           KillWorker ─► kill
 workers' pipes ─► lines ─► Output ─► client, and the worker's log file
 LineageStash ─► GcsWriter (its own thread) ─► Redis
```

The loop must never block: sockets are non-blocking with outboxes, and all that waits for Redis happens in the
writer's thread, which speaks to the loop through `call_soon` alone.

The node ends when its last driver leaves, or when no executor has been open for `linger_s`, nobody holds anything in
the object store and nobody has something that names the node (`KeepNode`); its workers, the control store and the
session directory go with it. If it is killed, the kernel kills the workers and the store, and the zygote removes the
directory.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import Any

from dpool._core import ids, launch, wire
from dpool._core import messages as m
from dpool._core.config import PROTOCOL, Config
from dpool._core.frames import make_page
from dpool._core.logic import scheduler as s
from dpool._core.logic.places import ENDLESS, GROUP, NODE
from dpool._core.logic.resources import Account, describe
from dpool._core.logic.resources import shape as make_shape
from dpool._core.node_worker import Proc, oom_kills

NODE_CLIENT = 0
"""The node as a client of its own scheduler: actors are its own."""
MAX_UNKNOWN_EXITS = 1000
START_PROGRAM_S = 10.0
ALONE_S = 60.0
"""How long a client's node waits for its program, which starts it and waits for it."""
ACCEPT_AGAIN_S = 0.2
"""How long a connection waits that could not be accepted."""
MAX_TRIES = 3
"""Zygotes that may die over one worker."""
SWEEP_AFTER_S = 1.0
"""Sessions that nobody could tidy up are looked for when the first results are out."""
MOST_WAIT_S = 3600.0
"""A single wait: the kernel takes 24 days at the most."""
MAX_OUTBOX = 1000
"""A client that leaves so many messages unread gets no more output until it reads; its workers then wait in their
writes.
"""


class Client:
    """One connection: a driver's, or a worker's for its own nested executors."""

    __slots__ = ("channel", "driver", "hello", "keeps", "number", "pools", "side", "sync")

    def __init__(self, number: int, channel: wire.ControlChannel) -> None:
        self.number = number
        self.channel = channel
        self.hello: m.Hello | None = None
        self.side: Any = None
        """It is a process's connection to the object store, and this is what the store knows of it."""
        self.sync: Any = None
        """The same for a connection to locks, queues, …"""
        self.driver = False
        self.keeps = False
        """It has something that names this node."""
        self.pools: dict[int, int] = {}
        """Its number of a pool → ours."""


class Pool:
    """One executor's workers, or an actor's process."""

    __slots__ = ("actors", "client", "number", "setup", "started")

    def __init__(self, client: Client, number: int, setup: bytes, actors: Any = None) -> None:
        self.client = client
        """Who gets what is printed, and, unless it is an actor's, hears of its workers."""
        self.actors = actors
        """Who hears of them if it is an actor's."""
        self.number = number
        """The client's."""
        self.setup = setup
        self.started = 0


class Node:
    """See the module."""

    def __init__(self, session: str, driver: socket.socket, zygote: socket.socket) -> None:
        self.session = session
        self.config = Config()
        self.node_id = os.urandom(ids.ID_BYTES)
        self.scheduler = s.LocalScheduler(Account(()))
        self._resources_known = False
        self._gpus: list[str] = []
        """The devices that can be leased, as CUDA_VISIBLE_DEVICES has them."""
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._clients: dict[int, Client] = {}
        self._pools: dict[int, Pool] = {}
        self._procs: dict[int, Proc] = {}
        self._pids: dict[int, int] = {}
        self._unknown_exits: dict[int, tuple[int, int]] = {}
        self._programs: dict[int, tuple[m.SpawnProgram, Callable[[int], None]]] = {}
        self._numbers = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._zygote: wire.ControlChannel | None = None
        self._had_driver = False
        self._ending = False
        self._linger_armed = 0
        self._store: Any = None
        """The object store, once a process has something for it."""
        self._actors: Any = None
        """The actors, once there is one."""
        self._sync: Any = None
        """Locks, queues, … once there are some."""
        self._abroad: Any = None
        """Other machines, if a gateway has said Hello."""
        self._groups: Any = None
        """Placement groups, once there is one."""
        self._records: Any = None
        """The recorder to the control store, once it has been started."""
        self._oom_kills = oom_kills()
        self._on(self._wake_fd, self._woken)
        self._use_zygote(zygote)
        self._signals()
        self._listen()
        self._add_client(driver, driver_side=True)
        self._at(monotonic() + SWEEP_AFTER_S, self._sweep)

    def _sweep(self) -> None:
        try:
            for path in launch.sweep_stale(os.path.dirname(self.session), time()):
                _log("session.swept", path=path)
        except OSError as error:
            _log("session.sweep_failed", error=error)

    # -- the loop

    def run(self) -> None:
        """Serve until the last driver has left, then tidy up."""
        try:
            while not self._ending:
                timeout = -1.0
                if self._timers:
                    timeout = min(max(0.0, self._timers[0][0] - monotonic()), MOST_WAIT_S)
                for fd, mask in self._epoll.poll(0 if self._soon else timeout):
                    handler = self._handlers.get(fd)
                    if handler is not None:
                        handler(mask)
                while self._soon:
                    self._soon.popleft()()
                now = monotonic()
                while self._timers and self._timers[0][0] <= now:
                    heapq.heappop(self._timers)[2]()
        finally:
            self._tidy_up()

    def _on(self, fd: int, handler: Callable[[int], None], mask: int = select.EPOLLIN) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def _off(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, action: Callable[[], None]) -> None:
        """Run `action` in the loop; any thread."""
        self._soon.append(action)
        os.write(self._wake_fd, b"\1\0\0\0\0\0\0\0")

    def _woken(self, mask: int) -> None:
        os.read(self._wake_fd, 8)
        self._reap()

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._timers, (when_s, self._numbers, action))

    def _signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self.call_soon(self._end))
        signal.signal(signal.SIGCHLD, _nothing)
        signal.set_wakeup_fd(self._wakeup_pipe(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})  # whatever our driver had blocked

    def _wakeup_pipe(self) -> int:
        """Python writes a signal's number here, as one byte, which an eventfd would refuse."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def drained(mask: int) -> None:
            os.read(read_fd, 512)
            self._reap()

        self._on(read_fd, drained)
        return write_fd

    # -- clients

    def _listen(self) -> None:
        path = os.path.join(self.session, launch.SOCKET_NAME)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(128)
        self._listener = listener
        self._on(listener.fileno(), self._accept)

    def _accept(self, mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # `read_newcomers` has let it in already; or it is gone
            return
        except OSError as error:  # no descriptors left, most likely: do not ask again and again
            _log("accept.failed", error=error)
            self._off(self._listener.fileno())
            self._at(monotonic() + ACCEPT_AGAIN_S, lambda: self._on(self._listener.fileno(), self._accept))
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            _log("client.refused", uid=uid)
            sock.close()
            return
        self._add_client(sock, driver_side=False)

    def _add_client(self, sock: socket.socket, driver_side: bool) -> None:
        self._numbers += 1
        client = Client(self._numbers, wire.ControlChannel(sock))
        client.driver = driver_side
        self._clients[client.number] = client
        self._on(sock.fileno(), lambda mask: self._client_event(client, mask))

    def _client_event(self, client: Client, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT:
                client.channel.flush()
                if not client.channel.pending:
                    self._epoll.modify(client.channel.fileno(), select.EPOLLIN)
                    self._resume_output(client)
                if not mask & ~select.EPOLLOUT:
                    return
            message, fds = client.channel.receive()
        except (BlockingIOError, InterruptedError):
            return
        except (wire.Closed, wire.DescriptorsLost):
            self._client_left(client)
            return
        except m.ProtocolError as error:
            _log("client.malformed", client=client.number, error=error)
            self._client_left(client)
            return
        try:
            if isinstance(message, m.OpenStore) and len(fds) == 1:
                self._add_client(socket.socket(fileno=fds.pop()), driver_side=False)
            elif client.side is not None or isinstance(message, m.StoreHello):
                self._store_said(client, message, fds)
            elif client.sync is not None or isinstance(message, m.SyncHello):
                self._sync_said(client, message, fds)
            elif self._abroad is not None and self._abroad.gateway is client and self._abroad.said(message, fds):
                pass
            else:
                self._client_said(client, message)
        except Exception as error:  # whatever a peer says, it must not take the others along
            self._refuse(client, message, error)
        finally:
            for fd in fds:
                os.close(fd)

    def _refuse(self, client: Client, message: Any, error: Exception) -> None:
        _log("client.illegal", client=client.number, message=type(message).__name__, error=repr(error))
        self._send(client, m.Refused(f"{type(message).__name__}: {error}"))
        self._client_left(client)

    def _client_said(self, client: Client, message: Any) -> None:
        if client.hello is None:
            self._hello(client, message)
            return
        handler = self._MESSAGES.get(type(message))
        if handler is None:
            raise m.ProtocolError(f"{type(message).__name__} is not for a node")
        handler(self, client, message)

    def _hello(self, client: Client, message: Any) -> None:
        if not isinstance(message, m.Hello):
            raise ValueError("the first message must be Hello")
        version, python = m.versions()
        if (message.protocol, message.version, message.python) != (PROTOCOL, version, python):
            self._send(
                client,
                m.Refused(
                    f"this node runs dpool {version} (protocol {PROTOCOL}) on Python {python}, "
                    f"you run dpool {message.version} (protocol {message.protocol}) on Python {message.python}"
                ),
            )
            self._client_left(client)
            return
        client.hello = message
        if message.worker in (0, m.GATEWAY):
            client.driver = True
        if not self._had_driver and client.driver:
            self._had_driver = True
            self.config = Config(*message.config)
            sys.path[:] = message.path
            self._preload()
        self._do(s.ClientJoined(client.number))
        if self._records is not None and message.worker == 0:
            self._records.job_began(message)
        if message.worker == m.GATEWAY:
            from dpool._core.node_abroad import NodeAbroad

            self.node_id = message.job  # one name for both, in the whole cluster
            self._abroad = NodeAbroad(self, client, _log)
            self._at(monotonic(), self._abroad.report)
            if self.config.client:
                self._at(monotonic() + ALONE_S, self._alone)
        self._send(client, m.Welcome(self.node_id, os.getpid(), self.session, version, python, ()))
        if self._abroad is not None:
            self._abroad.greet(client)

    def _client_left(self, client: Client) -> None:
        if self._clients.pop(client.number, None) is None:
            return
        self._off(client.channel.fileno())
        client.channel.close()
        if client.side is not None:
            self._store.closed(client.side)
        if client.sync is not None:
            self._sync.closed(client.sync)
        if client.hello is not None:
            if self._store is not None and not any(
                o.side and o.side.pid == client.hello.pid for o in self._clients.values()
            ):
                self._store.process_gone(client.hello.pid)
            for number in client.pools.values():
                self._closing_abroad(number, True)
            self._do(s.ClientLeft(client.number))
            if self._groups is not None:
                self._groups.client_left(client.number)
            if self._actors is not None:
                self._actors.client_left(client, client.driver)
            if self._records is not None:
                self._records.client_left(client.number)
                if client.driver:
                    self._records.job_ended(client.hello.job)
            if client.driver and client.hello.worker == 0:
                self.tell_gateway(m.ProgramEnded(client.hello.job))
        if client.driver and not self._driven():
            self._end()
        elif client.keeps and not self._pools:
            self._arm_linger()

    def _driven(self, leaving: Client | None = None) -> bool:
        """Whether there are other drivers; the gateway of a machine that is only a client is none. A node whose gateway
        leaves ends with that, whoever is left.
        """
        gateway = self._abroad.gateway if self._abroad is not None else None
        if gateway is not None and (leaving is gateway or gateway.number not in self._clients):
            return False
        passive = gateway if self.config.client else None
        return any(one.driver for one in self._clients.values() if one is not leaving and one is not passive)

    def _alone(self) -> None:
        """A client's node for which no program has come."""
        if not self._driven():
            self._end()

    def _send(self, client: Client, message: Any, fds: tuple[int, ...] = ()) -> None:
        if client.number not in self._clients:
            return
        try:
            waited = client.channel.pending
            client.channel.send(message, fds)
        except wire.Closed:
            self._soon.append(lambda: self._client_left(client))
            return
        if client.channel.pending and not waited:
            self._epoll.modify(client.channel.fileno(), select.EPOLLIN | select.EPOLLOUT)

    # -- the object store

    def _store_said(self, client: Client, message: Any, fds: list[int]) -> None:
        if client.side is not None:
            self._store.said(client.side, message, fds)
            return
        version, python = m.versions()
        if (message.protocol, message.version, message.python) != (PROTOCOL, version, python):
            raise m.ProtocolError(f"this node runs dpool {version} on Python {python}")
        client.side = self.store().hello(client.number, client.channel, message, fds)

    def store(self) -> Any:
        """The object store, made at first use."""
        if self._store is None:
            from dpool._core.node_store import NodeStore

            self._store = NodeStore(self, _log)
        return self._store

    def spill_directory(self) -> str:
        """Where there is room on a disk."""
        from dpool._store.spill import choose_directory

        root = self.config.tmpdir or os.path.dirname(self.session)
        return choose_directory(self.config.spill_dir, self.session, root)

    def _sync_said(self, client: Client, message: Any, fds: list[int]) -> None:
        if client.sync is not None:
            self._sync.said(client.sync, message, fds)
            return
        version, python = m.versions()
        if (message.protocol, message.version, message.python) != (PROTOCOL, version, python):
            raise m.ProtocolError(f"this node runs dpool {version} on Python {python}")
        if self._sync is None:
            from dpool._core.node_sync import NodeSync

            self._sync = NodeSync(self, _log)
        client.sync = self._sync.hello(client.number, client.channel, message)

    def sync_freed(self, obj: bytes) -> bool:
        """Nobody holds this id any more: was it a lock, a queue, …?"""
        return self._sync is not None and bool(self._sync.freed(obj))

    def read_store_side(self, number: int) -> bool:
        """Read one message of a process's socket now; False if there is none."""
        client = self._clients.get(number)
        if client is None:
            return False
        waiter = select.poll()
        waiter.register(client.channel.fileno(), select.POLLIN)
        if not waiter.poll(0):
            return False
        self._client_event(client, select.EPOLLIN)
        return number in self._clients

    def readable_store_sides(self) -> list[int]:
        """The sockets for the store, and for locks and queues, that have something to read now."""
        sides = [client for client in self._clients.values() if client.side or client.sync]
        numbers = {client.channel.fileno(): client.number for client in sides}
        waiter = select.poll()
        for fd in numbers:
            waiter.register(fd, select.POLLIN)
        return [numbers[fd] for fd, _ in waiter.poll(0)]

    def read_newcomers(self) -> None:
        """Let in who has connected meanwhile, and read the first words of whoever has said nothing yet."""
        listener = self._listener.fileno()
        waiter = select.poll()
        waiter.register(listener, select.POLLIN)
        while listener in self._handlers and waiter.poll(0):
            self._accept(select.EPOLLIN)
        for client in list(self._clients.values()):
            if client.hello is None and client.side is None and client.sync is None:
                self.read_store_side(client.number)

    def refuse_store_side(self, number: int, message: Any, error: Exception) -> None:
        """A message that was read before cannot be: the node goes on without that peer."""
        client = self._clients.get(number)
        if client is not None:
            self._refuse(client, message, error)

    def send_store_side(self, number: int, message: Any, fds: tuple[int, ...]) -> None:
        """Send on a process's store socket."""
        client = self._clients.get(number)
        if client is not None:
            self._send(client, message, fds)

    def store_side_closed(self, number: int) -> None:
        """The process is gone: so is its socket."""
        client = self._clients.get(number)
        if client is not None:
            client.side = None
            self._client_left(client)

    def sync_side_ended(self, number: int) -> None:
        """The process is gone, though somebody else has its connection open."""
        self._client_left(self._clients[number])

    def lives(self, pid: int) -> bool:
        """Whether this is a process that can hold objects."""
        if pid in self._pids:
            return True
        return any(
            (c.hello is not None and c.hello.pid == pid) or (c.side is not None and c.side.pid == pid)
            for c in self._clients.values()
        )

    def store_idle(self) -> None:
        """Nobody holds an object any more."""
        if not self._pools:
            self._arm_linger()

    # -- what clients say

    def _open_pool(self, client: Client, message: m.OpenPool) -> None:
        self._numbers += 1
        number = self._numbers
        self._do(s.OpenPool(client.number, number, message.max_workers))
        client.pools[message.pool] = number
        self._pools[number] = Pool(client, message.pool, message.setup)
        if self.scheduler.scarce:
            self._send(client, m.Scarce(True))

    def _update_setup(self, client: Client, message: m.UpdateSetup) -> None:
        number = client.pools.get(message.pool)
        if number is not None:
            self._pools[number].setup = message.setup

    def _request(self, client: Client, message: m.RequestLeases) -> None:
        if message.shape and not self._resources_known:
            self._find_resources()
        self._pool_said(client, message.pool, lambda pool: s.RequestLeases(pool, message.shape, message.wanted))

    def _close_pool(self, client: Client, message: m.ClosePool) -> None:
        number = client.pools.get(message.pool)
        if number is None:
            self._send(client, m.Closed(message.pool))
            return
        self._closing_abroad(number, message.kill)
        self._do(s.ClosePool(number, message.kill))

    def _closing_abroad(self, pool: int, kill: bool) -> None:
        if self._abroad is not None:
            self._abroad.pool_closed(pool, kill)

    def _cancel_requests(self, client: Client, message: m.CancelRequests) -> None:
        number = client.pools.get(message.pool)
        if number is not None:
            self._do(s.CancelRequests(number, message.shape))
            if self._abroad is not None:
                self._abroad.cancelled(number, message.shape)

    def _return_lease(self, client: Client, message: m.ReturnLease) -> None:
        if self._abroad is None or not self._abroad.returned(message.worker, message.retire):
            self._pool_said(client, message.pool, lambda p: s.ReturnLease(p, message.worker, message.retire))

    def _kill(self, client: Client, message: m.KillWorker) -> None:
        if self._actors is not None and self._actors.signal(client, message):
            return
        if self._abroad is not None and self._abroad.signal(message.worker, message.signal):
            return
        proc = self._procs.get(message.worker)
        pool = client.pools.get(message.pool)
        if proc is None or pool is None or proc.pool != pool:
            return  # it has just died
        if message.signal == signal.SIGKILL:
            self._do(s.KillRequested(pool, message.worker))
        else:
            self._signal(proc, message.signal)

    def _blocked(self, client: Client, message: m.Blocked) -> None:
        assert client.hello is not None
        if client.hello.worker in self._procs:
            self._do((s.Blocked if message.blocked else s.Unblocked)(client.hello.worker))

    def _recorded(self, client: Client, message: Any) -> None:
        if self._records is not None:
            assert client.hello is not None
            self._records.take(client.number, client.hello.job, message)

    def _pool_said(self, client: Client, pool: int, event: Callable[[int], Any]) -> None:
        """An event of a pool of the client's; one that has just gone is passed over (the messages crossed)."""
        number = client.pools.get(pool)
        if number is not None:
            self._do(event(number))

    _MESSAGES: dict[type[Any], Callable[[Any, Client, Any], None]] = {  # noqa: RUF012
        m.OpenPool: _open_pool,
        m.UpdateSetup: _update_setup,
        m.AskOutput: lambda self, c, x: self._tell_output(c, x.number),
        m.ResizePool: lambda self, c, x: self._pool_said(c, x.pool, lambda p: s.ResizePool(p, x.max_workers)),
        m.ClosePool: _close_pool,
        m.RequestLeases: _request,
        m.CancelRequests: _cancel_requests,
        m.ReturnLease: _return_lease,
        m.KillWorker: _kill,
        m.Blocked: _blocked,
        m.ActorKill: lambda self, c, x: self.actors().kill(x.actor, x.restart, x.why),
        m.ConnectActor: lambda self, c, x: self.actors().connect(c, x),
        m.DisconnectActor: lambda self, c, x: self.actors().disconnect(c, x.pool),
        m.ExportFunction: _recorded,
        m.TasksDispatched: _recorded,
        m.TasksDelivered: _recorded,
        m.AskStatus: lambda self, c, x: self._about().told(c),
        m.AskDrain: lambda self, c, x: self._about().ask_drain(c, x.address),
        m.GroupCreate: lambda self, c, x: self.groups().create(c.number, x),
        m.GroupRemove: lambda self, c, x: self.groups().remove(x.group),
        m.Drain: lambda self, c, x: self._drain(x.node),
        m.Pace: lambda self, c, x: self._abroad.pace(x) if self._abroad is not None else None,
        m.Bye: lambda self, c, x: self._client_said_bye(c),
        m.KeepNode: lambda self, c, x: self._keep(c),
    }

    def _about(self) -> Any:
        if self._abroad is None:
            raise m.ProtocolError("this machine belongs to no cluster")
        return self._abroad.about

    def groups(self) -> Any:
        """The placement groups."""
        if self._groups is None:
            from dpool._core.node_groups import NodeGroups

            self._groups = NodeGroups(self, _log)
        return self._groups

    def _drain(self, name: bytes) -> None:
        if self._abroad is None:
            raise m.ProtocolError("this machine belongs to no cluster")
        self._abroad.drain(name)

    def machines(self) -> list[tuple[str, str, dict[str, int], dict[str, int], bool]]:
        """Of each machine: name, host, what there is, what is free, whether it is being drained."""
        if self._abroad is not None:
            found: list[tuple[str, str, dict[str, int], dict[str, int], bool]] = self._abroad.machines()
            return found
        known = self.resources()
        total = {name: amount for name, (amount, _) in known.items()}
        free = {name: amount for name, (_, amount) in known.items()}
        return [(self.node_id.hex(), self.host(), total, free, False)]

    @staticmethod
    def host() -> str:
        """What this machine is called."""
        return socket.gethostname()

    def _keep(self, client: Client) -> None:
        client.keeps = True
        self._send(client, m.Notice("kept", ""))

    def _client_said_bye(self, client: Client) -> None:
        """Its connection stays open until the node has tidied up, so that it can wait for that."""
        if client.driver and not self._driven(client):
            if self._actors is not None and (text := self._actors.last_words()):
                self._send(client, m.Notice("detached", text))
            self._end()
        else:
            self._client_left(client)

    # -- actors

    def actors(self) -> Any:
        """The actors of this machine."""
        if self._actors is None:
            from dpool._core.node_actors import NodeActors

            self._actors = NodeActors(self, _log)
        return self._actors

    def actor_freed(self, obj: bytes) -> bool:
        """Nobody holds this id any more: was it an actor's?"""
        return self._actors is not None and bool(self._actors.freed(obj))

    def actor_lives(self, obj: bytes) -> bool:
        """Whether this is an actor that another machine can take hold of."""
        return self._actors is not None and bool(self._actors.lives(obj))

    def new_pool(self, setup: bytes, actors: Any, pid: int) -> int:
        """A pool for an actor's process, for which this process has asked."""
        client = self.driver_of(pid)
        if client is None:
            raise m.ProtocolError("no program is connected that an actor could belong to")
        self._numbers += 1
        number = self._numbers
        self._do(s.OpenPool(NODE_CLIENT, number, 1))
        self._pools[number] = Pool(client, 0, setup, actors)
        return number

    def driver_of(self, pid: int) -> Client | None:
        """The connection of the program that a process works for."""
        job = next((c.hello.job for c in self._clients.values() if c.hello is not None and c.hello.pid == pid), None)
        drivers = [c for c in self._clients.values() if c.driver and c.hello is not None]
        return next((c for c in drivers if c.hello is not None and c.hello.job == job), drivers[0] if drivers else None)

    def ask_for(self, event: Any) -> None:
        """Give the scheduler an event when it has dealt with what it is at."""
        if isinstance(event, s.RequestLeases) and event.shape and not self._resources_known:
            self._find_resources()
        self._soon.append(partial(self._do, event))

    # -- what the scheduler decides

    def _do(self, event: Any) -> None:
        """Give the scheduler an event and carry out its instructions."""
        for instruction in self.scheduler.handle(event):
            self._INSTRUCTIONS[type(instruction)](self, instruction)
        if self._abroad is not None:
            self._abroad.consider()

    def _start_worker(self, order: s.StartWorker) -> None:
        pool = self._pools[order.pool]
        pool.started += 1
        proc = Proc(order.worker, order.pool, pool.started, self._free_place(order.pool), self.session)
        self._procs[order.worker] = proc
        try:
            proc.make_channels(make_page)
        except OSError as error:
            self._start_failed(proc, f"start: {error}")
            return
        for fd in proc.pipes:
            self._on(fd, partial(self._pipe_event, proc, fd))
        proc.order = m.Spawn(
            order.worker, pool.started, proc.place, os.getpid(), self.session, pool.setup, self._stand_in(pool)
        )
        self._have_forked(proc)
        if self._records is None and self.config.gcs == "on":
            try:
                self._soon_record()
            except (OSError, ImportError) as error:  # no descriptors left; the next worker is another occasion
                _log("recorder.failed", error=error)

    def _stand_in(self, pool: Pool) -> int:
        """The gateway's process, if it submits for another machine's; else 0."""
        if self._abroad is None or pool.client is not self._abroad.gateway or pool.actors is not None:
            return 0
        return int(pool.client.hello.pid) if pool.client.hello is not None else 0

    def tell_gateway(self, message: Any) -> None:
        """Say something to the gateway, if there is one."""
        if self._abroad is not None:
            self._send(self._abroad.gateway, message)

    def gateway_pid(self) -> int:
        """The gateway's process; 0: there is none."""
        return 0 if self._abroad is None else int(self._abroad.gateway.hello.pid)

    def _free_place(self, pool: int) -> int:
        """The lowest place that no worker of the pool has; one that has ended is still being looked after."""
        living = (proc for proc in self._procs.values() if proc.pool == pool)
        taken = {proc.place for proc in living if not proc.pid or proc.pid in self._pids}
        return next(place for place in range(len(taken) + 1) if place not in taken)

    def _have_forked(self, proc: Proc) -> None:
        proc.tries += 1
        try:
            self._to_zygote(proc.order, proc.worker_fds())
        except OSError as error:
            self._start_failed(proc, f"start: {error}")

    def _start_failed(self, proc: Proc, reason: str) -> None:
        """Told from the loop, since the scheduler is in the middle of its instructions."""
        proc.failed = reason
        _log("worker.start_failed", worker=proc.worker, reason=reason)

        def tell() -> None:
            if self._procs.get(proc.worker) is proc:
                self._do(s.StartFailed(proc.worker, monotonic()))
                self._forget(proc)

        self.call_soon(tell)

    def _grant(self, order: s.Grant) -> None:
        pool, proc = self._pools[order.pool], self._procs[order.worker]
        if pool.actors is not None:
            pool.actors.granted(order, proc)
            return
        fresh = not proc.granted
        fds: tuple[int, ...] = ()
        if fresh:
            if proc.failed:
                return
            proc.granted = True
            fds = proc.lessee_fds()
        gpus = self.gpu_names(order.gpus)
        message = m.Grant(pool.number, order.worker, order.shape, gpus, fresh, proc.log_file)
        self._send(pool.client, message, fds)
        if fresh:
            proc.close_lessee_side()
            if proc.pid:
                self._send(pool.client, m.WorkerUp(pool.number, proc.worker, proc.pid, proc.ordinal))

    def _kill_worker(self, order: s.KillWorker) -> None:
        proc = self._procs[order.worker]
        proc.killed = True
        self._signal(proc, signal.SIGKILL)

    def _retire_worker(self, order: s.RetireWorker) -> None:
        proc = self._procs[order.worker]
        pool = self._pools.get(proc.pool)
        if proc.granted and pool is not None and pool.actors is None:
            self._send(pool.client, m.Retire(pool.number, order.worker))
        else:  # nobody has its socket yet
            proc.killed = True
            self._signal(proc, signal.SIGKILL)

    def _signal(self, proc: Proc, number: int) -> None:
        if not proc.pid:
            proc.signals.append(number)
            return
        try:
            os.kill(proc.pid, number)
        except OSError as error:  # it is dead, and will be reaped; or there is no such signal
            _log("signal.failed", pid=proc.pid, signal=number, error=error)

    def _tell_died(self, order: s.TellDied) -> None:
        proc, pool = self._procs.get(order.worker), self._pools.get(order.pool)
        if proc is None or pool is None:
            return
        self._last_words(proc, pool)
        if pool.actors is not None:
            pool.actors.died(order.pool, proc)
            return
        self._send(
            pool.client,
            m.WorkerDied(
                pool.number,
                proc.worker,
                proc.pid,
                proc.end_signal,
                proc.end_code,
                proc.reason or proc.failed,
                proc.log_file,
                self._store is not None and self._store.left_unclaimed(proc.pid),
            ),
        )

    def _warn_infeasible(self, order: s.WarnInfeasible) -> None:
        if any(name.startswith(GROUP) for name, _ in order.missing):
            self._soon.append(partial(self.groups().wanted, order))
        elif self._abroad is not None:
            self._abroad.infeasible(order, partial(self._tell_infeasible, order))
        else:
            lack = f"this machine offers {describe(order.missing)} too little"
            if any(name.startswith(NODE) for name, _ in order.missing):
                lack = f"this machine, which is in no cluster, is another one (its NodeID is {self.node_id.hex()})"
            self._tell_infeasible(order, f"asks for {describe(order.shape)}, but {lack}")

    def _tell_infeasible(self, order: s.WarnInfeasible, what: str) -> None:
        pool, strict = self._pools[order.pool], self.config.strict_resources
        who = "a task" if pool.actors is None else "it" if strict else "an actor"
        text = f"{who} {what}"
        if not strict:
            text += "; it waits until a machine that has it joins"
        if pool.actors is None:
            self._send(pool.client, m.Infeasible(pool.number, order.shape, text, strict))
        elif strict:
            self._soon.append(partial(pool.actors.infeasible, order.pool, text))
        else:
            self._send(pool.client, m.Notice("infeasible", text))

    def _scarce(self) -> None:
        """Whoever has idle leases gives them back while others wait for resources."""
        for client in {pool.client.number: pool.client for pool in self._pools.values()}.values():
            self._send(client, m.Scarce(self.scheduler.scarce))

    def _wake_at(self, order: s.WakeAt) -> None:
        self._at(order.at_s, lambda: self._do(s.Tick(monotonic())))

    def _pool_gone(self, order: s.PoolGone) -> None:
        def tell() -> None:  # after the deaths, which come in the same batch of instructions
            forget = partial(self._forget_pool, order.pool)
            if self._abroad is None or not self._abroad.about.ask_output([order.pool], forget):
                forget()

        self._soon.append(tell)

    def _forget_pool(self, number: int) -> None:
        """Its workers are gone, and all that they printed is here."""
        pool = self._pools.pop(number)
        if self._abroad is not None:
            self._abroad.went.pop(number, None)
        if pool.actors is not None:
            pool.actors.pool_gone(number)
        else:
            pool.client.pools.pop(pool.number, None)
            self._send(pool.client, m.Closed(pool.number))
        if not self._pools:
            self._arm_linger()

    _INSTRUCTIONS: dict[type[Any], Callable[[Any, Any], None]] = {  # noqa: RUF012
        s.StartWorker: _start_worker,
        s.Grant: _grant,
        s.KillWorker: _kill_worker,
        s.RetireWorker: _retire_worker,
        s.TellDied: _tell_died,
        s.WarnInfeasible: _warn_infeasible,
        s.Scarce: lambda self, order: self._scarce(),
        s.WakeAt: _wake_at,
        s.PoolGone: _pool_gone,
    }

    # -- processes

    def _use_zygote(self, sock: socket.socket) -> None:
        self._zygote = wire.ControlChannel(sock)
        self._on(sock.fileno(), self._zygote_event)

    def _to_zygote(self, message: Any, fds: tuple[int, ...]) -> None:
        if self._zygote is None:
            self._use_zygote(launch.spawn_zygote(self.session))
            self._preload()
        assert self._zygote is not None
        try:
            self._zygote.send(message, fds)
        except wire.Closed:
            return  # what it said before is read first; then all that it has not done is asked for again
        if self._zygote.pending:
            self._epoll.modify(self._zygote.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _preload(self) -> None:
        """A new zygote hears first what the program wants to be imported."""
        if self.config.preload:
            self._to_zygote(m.Preload(list(self.config.preload), list(sys.path)), ())

    def _zygote_event(self, mask: int) -> None:
        assert self._zygote is not None
        try:
            if mask & select.EPOLLOUT and not mask & select.EPOLLHUP:
                self._zygote.flush()
                if not self._zygote.pending:
                    self._epoll.modify(self._zygote.fileno(), select.EPOLLIN)
                return
            message, _ = self._zygote.receive()
        except (BlockingIOError, InterruptedError):
            return
        except (wire.Closed, wire.DescriptorsLost, m.ProtocolError) as error:
            _log("zygote.closed", error=repr(error))
            self._zygote_died()
            return
        if isinstance(message, m.Spawned):
            self._spawned(message)
        elif isinstance(message, m.SpawnFailed):
            proc = self._procs.get(message.worker)
            if proc is not None:
                self._start_failed(proc, f"start: {message.reason}")
        elif isinstance(message, m.PreloadFailed):
            _log("preload.failed", module=message.module, reason=message.reason)
            text = f"the module {message.module!r} was not preloaded for the workers: {message.reason}"
            self.warn_drivers("preload", text)

    def _zygote_died(self) -> None:
        """Its workers live on; those that it had not forked yet are asked for again by a new one."""
        if self._zygote is None:
            return
        self._off(self._zygote.fileno())
        self._zygote.close()
        self._zygote = None
        _log("zygote.died")
        for proc in list(self._procs.values()):
            if proc.pid or proc.failed:
                continue
            if proc.tries < MAX_TRIES:
                self._have_forked(proc)
            else:
                self._start_failed(proc, f"start: {proc.tries} zygotes died before they had forked it")
        for order, _ in list(self._programs.values()):
            self._have_started(order)

    def _spawned(self, message: m.Spawned) -> None:
        if message.worker < 0:
            asked = self._programs.pop(message.worker, None)
            if asked is not None:
                asked[1](message.pid)
            return
        proc = self._procs.get(message.worker)
        if proc is None:
            os.kill(message.pid, signal.SIGKILL)  # given up meanwhile
            return
        proc.pid = message.pid
        proc.close_worker_side()
        self._pids[message.pid] = message.worker
        for number in proc.signals:
            self._signal(proc, number)
        pool = self._pools.get(proc.pool)
        if pool is not None and proc.granted and pool.actors is None:
            self._send(pool.client, m.WorkerUp(pool.number, proc.worker, proc.pid, proc.ordinal))
        exited = self._unknown_exits.pop(message.pid, None)
        if exited is not None:
            self._exited(proc, *exited)

    def _reap(self) -> None:
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
            except ChildProcessError:
                return
            if result is None:
                return
            worker = self._pids.get(result.si_pid)
            if result.si_code in (os.CLD_STOPPED, os.CLD_CONTINUED):
                if worker is not None:
                    self._stopped(self._procs[worker], result.si_code == os.CLD_STOPPED)
                continue
            by_signal = result.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
            end = (result.si_status, 0) if by_signal else (0, result.si_status)
            if worker is not None:
                self._exited(self._procs[worker], *end)
            else:
                self._other_exited(result.si_pid, *end)

    def _other_exited(self, pid: int, end_signal: int, end_code: int) -> None:
        if self._records is not None:
            self._records.server_exited(pid, -end_signal if end_signal else end_code)
        self._unknown_exits[pid] = (end_signal, end_code)
        while len(self._unknown_exits) > MAX_UNKNOWN_EXITS:
            del self._unknown_exits[next(iter(self._unknown_exits))]

    def _stopped(self, proc: Proc, stopped: bool) -> None:
        proc.stopped_at = monotonic() if stopped else 0.0
        if stopped:
            self._at(
                proc.stopped_at + self.config.stopped_worker_s,
                partial(self._stopped_too_long, proc, proc.stopped_at),
            )

    def _stopped_too_long(self, proc: Proc, at: float) -> None:
        if self._procs.get(proc.worker) is proc and proc.stopped_at == at:
            proc.reason = "stopped"
            self._signal(proc, signal.SIGKILL)

    def _exited(self, proc: Proc, end_signal: int, end_code: int) -> None:
        proc.end_signal, proc.end_code = end_signal, end_code
        if end_signal == signal.SIGKILL and not proc.killed and not proc.reason:
            now = oom_kills()
            if now > self._oom_kills:
                proc.reason = "oom"
            self._oom_kills = now
        _log("worker.ended", worker=proc.worker, pid=proc.pid, signal=end_signal, code=end_code, reason=proc.reason)
        self._pids.pop(proc.pid, None)
        if self._store is not None:
            self._store.process_gone(proc.pid)
        early = not proc.began() and (end_signal != 0 or end_code != 0)
        self._do(s.WorkerDied(proc.worker, monotonic(), early))
        self._forget(proc)

    def _forget(self, proc: Proc) -> None:
        pool = self._pools.get(proc.pool)
        if pool is not None:
            self._last_words(proc, pool)
        for fd in proc.pipes:
            self._off(fd)
        proc.close()
        del self._procs[proc.worker]

    # -- output

    def _pipe_event(self, proc: Proc, fd: int, mask: int) -> None:
        self._output(proc, fd)

    def _output(self, proc: Proc, fd: int) -> None:
        pool = self._pools.get(proc.pool)
        data = proc.read(fd)
        if not data and proc.at_end(fd):
            self._off(fd)
            return
        if pool is None or not data:
            return
        lines = proc.lines(fd, data)
        if lines:
            self._send(pool.client, m.Output(proc.stream(fd), lines, pool.number))
            if pool.client.channel.waiting() > MAX_OUTBOX:
                self._pause_output(pool.client)

    def _tell_output(self, client: Client, number: int) -> None:
        """Read what the client's workers, and actors, have written, and say that it has been read."""
        for proc in list(self._procs.values()):
            pool = self._pools.get(proc.pool)
            if pool is None or (pool.client is not client and pool.actors is None):
                continue
            for fd in proc.pipes:
                if fd in self._handlers:  # else it is at its end, or the client does not read
                    self._output(proc, fd)
        told = partial(self._send, client, m.OutputTold(number))
        if self._abroad is None or not self._abroad.about.ask_output(client.pools.values(), told):
            told()

    def _pause_output(self, client: Client) -> None:
        for proc in self._procs.values():
            pool = self._pools.get(proc.pool)
            if pool is not None and pool.client is client:
                for fd in proc.pipes:
                    self._off(fd)

    def _resume_output(self, client: Client) -> None:
        for proc in self._procs.values():
            pool = self._pools.get(proc.pool)
            if pool is not None and pool.client is client:
                for fd in proc.pipes:
                    if fd not in self._handlers and not proc.at_end(fd):
                        self._on(fd, partial(self._pipe_event, proc, fd))

    def _last_words(self, proc: Proc, pool: Pool) -> None:
        """What a dead worker wrote before it died."""
        for fd in proc.pipes:
            while data := proc.read(fd):
                lines = proc.lines(fd, data)
                if lines:
                    self._send(pool.client, m.Output(proc.stream(fd), lines, pool.number))
            rest = proc.rest(fd)
            if rest:
                self._send(pool.client, m.Output(proc.stream(fd), rest, pool.number))

    # -- resources and the control store

    def _find_resources(self) -> None:
        """What this machine offers; looked up when somebody first asks for something."""
        self._resources_known = True
        from dpool._core.machine import find_gpus, find_resources

        self._gpus = find_gpus(self.config)
        total = make_shape(**find_resources(self.config, len(self._gpus)))
        self.scheduler.account = Account(total)
        self.scheduler.account.offer(f"{NODE}{self.node_id.hex()}", ENDLESS)

    def gpu_names(self, devices: tuple[int, ...]) -> tuple[str, ...]:
        """As CUDA_VISIBLE_DEVICES has them."""
        return tuple(self._gpus[device] for device in devices)

    def resources(self) -> dict[str, tuple[int, int]]:
        """Name → units that there are, units that are free."""
        if not self._resources_known:
            self._find_resources()
        account = self.scheduler.account
        return {name: (total, account.free[name]) for name, total in account.total.items()}

    def _soon_record(self) -> None:
        """Start recording, but not before the first result is out."""
        from dpool._core.recorder import Recorder

        drivers = [c.hello for c in self._clients.values() if c.driver and c.hello is not None]
        if not drivers or (self._abroad is not None and self._abroad.store_at is None):
            return
        self._records = Recorder(self)
        for hello in drivers:
            if hello.worker == 0:
                self._records.job_began(hello)
        if self._actors is not None:
            self._actors.record_all()
        self._at(monotonic() + 0.25, self._records.start)

    def shares_store(self) -> bool:
        """Whether other nodes use the same control store."""
        return self.config.gcs == "on" and (bool(self.config.redis_url) or self._abroad is not None)

    def records(self) -> Any:
        """The recorder to the control store, there before the first worker; None without a store."""
        if self._records is None and self.config.gcs == "on":
            self._soon_record()
        return self._records

    def start_program(self, argv: tuple[str, ...], stdin: bytes, log_file: str) -> int:
        """Start another program through the zygote; called by the recorder's thread, waits for the pid."""
        answered = threading.Event()
        pids: list[int] = []
        asked: list[int] = []

        def told(pid: int) -> None:
            pids.append(pid)
            answered.set()

        def ask() -> None:
            self._numbers += 1
            order = m.SpawnProgram(-self._numbers, argv, stdin, os.getpid(), log_file)
            asked.append(order.program)
            self._programs[order.program] = order, told
            self._have_started(order)

        self.call_soon(ask)
        until = monotonic() + START_PROGRAM_S
        while not answered.wait(0.01):
            if self._ending:  # the loop, which would answer, waits for this thread
                raise OSError("the node is ending")
            if monotonic() > until:
                self.call_soon(lambda: [self._programs.pop(number, None) for number in asked].clear())
                raise OSError(f"the zygote did not start it within {START_PROGRAM_S} s")
        return pids[0]

    def _have_started(self, order: m.SpawnProgram) -> None:
        try:
            self._to_zygote(order, ())
        except OSError as error:  # whoever waits for it gives up after a while, and says so
            _log("program.failed", argv=order.argv, error=error)

    def warn_drivers(self, category: str, text: str) -> None:
        """One warning to every driver."""
        for client in list(self._clients.values()):
            if client.driver and client.hello is not None:
                self._send(client, m.Notice(category, text))

    # -- ending

    def _arm_linger(self) -> None:
        self._linger_armed += 1
        turn = self._linger_armed
        self._at(monotonic() + self.config.linger_s, lambda: self._lingered(turn))

    def _lingered(self, turn: int) -> None:
        if turn != self._linger_armed or self._pools or (self._store is not None and not self._store.idle()):
            return
        if self._actors is not None and self._actors.somebody_waits():
            return
        if any(client.keeps for client in self._clients.values()):
            return
        if self._epoll.poll(0):  # perhaps a driver with another executor
            self._at(monotonic(), lambda: self._lingered(turn))
        else:
            self._end()

    def _end(self) -> None:
        self._ending = True

    def _tidy_up(self) -> None:
        """Kill what is left, stop the store, remove the directory; the drivers' sockets close last, by our exit."""
        for proc in list(self._procs.values()):
            self._signal(proc, signal.SIGKILL)
        if self._records is not None:
            self._records.close()
        if self._store is not None:
            self._store.close()
        if self._zygote is not None:
            self._zygote.close()
        until = monotonic() + 2
        while self._pids and monotonic() < until:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED)
            except ChildProcessError:
                break
            if result is not None:
                self._pids.pop(result.si_pid, None)
        launch.remove_session(self.session)


def _nothing(signum: int, frame: Any) -> None:
    """SIGCHLD only has to write to the wake-up pipe."""


def _log(event: str, **fields: Any) -> None:
    """One event in the node's log file."""
    words = " ".join(f"{name}={value}" for name, value in fields.items())
    try:
        sys.stderr.write(f"{monotonic():.6f} {event} {words}\n")
        sys.stderr.flush()
    except OSError:  # the disk is full: the work goes on without a log
        return
