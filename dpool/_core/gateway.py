"""The gateway: one per machine of a cluster, the only process that speaks to other machines.

```
 node ◄── control, as a driver's ──► Gateway ◄── Net (ZeroMQ, CURVE) ──► gateways of other machines
            Remote… messages            │
 local submitter ══ socket, page ══► Outgoing ── frames ──►  the gateway over there
 local worker    ◄══ socket, page ══ Incoming ◄── frames ──  the gateway over there
```

`dpool start` starts it, and it starts the node, as whose driver it stands for as long as the machine belongs to the
cluster: they live and die together. Towards its own node it is what it stands for: the client whose pools are those of
submitters elsewhere, and (with Remote… messages) the maker of workers that are elsewhere.

One thread, one loop; nothing in it blocks. A link that goes down ends every lease that went over it: the submitter here
hears that its workers died (and why), and workers here are ended, as their submitter cannot be told anything.
"""

from __future__ import annotations

import heapq
import os
import pickle
import select
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from dpool._core import frames, launch, wire
from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.cluster_key import ClusterKey
from dpool._core.config import PROTOCOL, Config
from dpool._core.gateway_about import GatewayAbout
from dpool._core.gateway_actors import ActorLinks
from dpool._core.gateway_direct import Caller, Door
from dpool._core.gateway_heirs import Heirs
from dpool._core.gateway_modules import Modules
from dpool._core.gateway_objects import Objects, Steps
from dpool._core.gateway_store import StoreTunnel
from dpool._core.gateway_streams import Streams
from dpool._core.gateway_tunnels import Tunnels
from dpool._core.ids import tag_of
from dpool._core.logic.heartbeats import Heartbeats
from dpool._core.net import LEFT, MAX_MESSAGE_BYTES, Down, Greeting, Message, Net, NoLink, Up
from dpool._core.pool_crash import LINK_DOWN
from dpool._core.relay import Incoming, Outgoing, Snapshot

LOOK_S = 0.002
"""How often it is looked whether a submitter wants tasks back, while a frame is under way."""
TRUST_S = 0.001
"""Between storing a LIMIT and trusting what the page says (as in lane.py)."""
PING_S = 1.0
JOIN_S = 20.0
NODE_END_S = 10.0
RETURN_S = 600.0
"""How long a machine is called whose link broke."""
PIECE = MAX_MESSAGE_BYTES


class Settings(NamedTuple):
    """What `dpool start` says."""

    session: str
    head: str
    """`host:port` of the head, or empty: it is the head."""
    ip: str
    port: int
    config: tuple[Any, ...]
    path: list[str]


class _Abroad:
    """A lease that a worker of another machine has given to a submitter here."""

    __slots__ = (
        "actor",
        "after",
        "direct",
        "directly",
        "end",
        "lease",
        "links",
        "outgoing",
        "owner",
        "peer",
        "pid",
        "pool",
        "steps",
    )

    def __init__(self, lease: int, pool: int, peer: bytes, pid: int) -> None:
        self.lease = lease
        self.pool = pool
        self.peer = peer
        self.pid = pid
        """Of the submitter."""
        self.steps = Steps()
        """What is to be told to the submitter, in order."""
        self.outgoing: Outgoing | None = None
        self.end: m.RemoteDied | None = None
        self.links: dict[int, _Abroad] = {}
        """It is an actor's process: the links to it, by our node's numbers."""
        self.owner: _Abroad | None = None
        """It is such a link, to this process."""
        self.after: Callable[[], None] | None = None
        """What is to be done when the last link has ended, as the process has."""
        self.actor = b""
        """It is a link to this actor, whose home is the other machine."""
        self.direct = False
        """The process is here, and nothing of it comes through the gateway."""
        self.directly = False
        """Its submitter can have a connection to it."""


class _Guest:
    """A lease of a worker here that a submitter of another machine has."""

    __slots__ = (
        "actor", "by_base", "incoming", "key", "lasting", "lease", "links", "peer", "pool", "process", "steps",
        "token", "tokens", "told", "wanted", "worker",
    )  # fmt: skip

    def __init__(self, peer: bytes, lease: int, pool: _GuestPool, shape: m.Shape) -> None:
        self.peer = peer
        self.lease = lease
        self.pool = pool
        self.wanted = shape
        self.worker = 0
        self.incoming: Incoming | None = None
        self.steps = Steps()
        """Frames for the worker, in order."""
        self.tokens: list[int] = []
        """Under which the gateway holds what the frame refers to that is under way, …"""
        self.lasting: list[int] = []
        """… and what the worker's functions refer to."""
        self.told = 0
        """The last task of whose result's references the submitter's side has been told by a journal."""
        self.links: list[_Guest] = []
        """It is an actor's process: the links to it."""
        self.process: _Guest | None = None
        """It is such a link, to this process."""
        self.actor = b""
        """It is a link to this actor of our node."""
        self.by_base: dict[int, int] = {}
        """Of a link, on which many frames can be under way: first task of a frame → what stands in `tokens` else."""
        self.token = self.key = b""
        """Of the connection that its submitter may make; see gateway_direct.py."""


class _GuestPool:
    """A pool of another machine's submitter, with workers here."""

    __slots__ = ("closed", "idle", "number", "peer", "theirs", "waiting", "workers")

    def __init__(self, number: int, peer: bytes, theirs: int) -> None:
        self.number = number
        self.peer = peer
        self.theirs = theirs
        self.waiting: list[_Guest] = []
        """In the order in which they asked."""
        self.workers: dict[int, _Guest] = {}
        self.idle: dict[int, Incoming] = {}
        """Workers that have been returned: their sockets are ours."""
        self.closed = False


class Gateway:
    """See the module."""

    def __init__(self, settings: Settings, key: ClusterKey, joined: Callable[[str, str, str], None]) -> None:
        self._settings = settings
        self._joined = joined
        """Is told, once, that we belong to the cluster: session, our address, the head's."""
        self._welcome = False
        self.config = Config(*settings.config)
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self.ending = ""
        """Why it is about to end."""
        self._abroad: dict[int, _Abroad] = {}
        self._pools: dict[tuple[int, bytes], bool] = {}
        """(our node's pool, peer) → it has been opened there."""
        self._setups: dict[int, bytes] = {}
        self._guests: dict[tuple[bytes, int], _Guest] = {}
        self._guest_pools: dict[tuple[bytes, int], _GuestPool] = {}
        self._jobs: dict[bytes, set[bytes]] = {}
        """Peer → the programs of its machine that have had workers here."""
        self._by_number: dict[int, _GuestPool] = {}
        self._writing: set[int] = set()
        self._beat = 0
        self._load: pm.Heartbeat | None = None
        self._seen: dict[bytes, int] = {}
        """Peer → leases that it has asked for in all."""
        self._uncounted: set[bytes] = set()
        """Peers that have not heard of the latest of those."""
        version, python = m.versions()
        self.host = socket.gethostname()
        about = {"nodes": [], "tag": tag_of(settings.session)}
        greeting = Greeting(os.urandom(16), "", self.host, version, python, about)
        self.net = Net(key, greeting, self.config.node_timeout_s)
        self._belongs = False
        """We have joined the cluster."""
        self._beats = Heartbeats(greeting.name)
        self._telling = False
        """Some in turn are to be told a beat later."""
        self.peers: dict[bytes, Greeting] = {}
        self.pace = (0.0, 0.0)
        """Of what was measured here since it was last told: seconds of a task, bytes per second received."""
        self.draining = False
        self.store = StoreTunnel(self)
        self.streams = Streams(self)
        self.actors = ActorLinks(self, _Abroad, _Guest)
        self.about = GatewayAbout(self)
        self.door = Door(self)
        self.caller = Caller(self)
        self._node_gone = False
        self._node_pid, sock = launch.spawn_node(settings.session)
        self._node = wire.ControlChannel(sock)
        self._on(sock.fileno(), self._node_event)
        self._on(self.net.fileno(), self._net_event)
        self.objects = Objects(self, settings.session, _log)
        self.heirs = Heirs(self, _log)
        self.tunnels = Tunnels(self, settings.session, _log)
        self.modules = Modules(self.host, settings.session, self._on, _log)

    # -- the loop

    def run(self) -> None:
        """Serve until told to leave, or until the node is gone."""
        self._tell(
            m.Hello(
                PROTOCOL, *m.versions(), os.getpid(), self.net.greeting.name, "gateway", m.GATEWAY,
                self._settings.config, self._settings.path,
            )
        )  # fmt: skip
        if not self.config.client:  # nobody connects to a client
            address = self.net.listen(self._settings.ip, self._settings.port)
            _log("gateway.listens", address=address)
            self.door.listen(self._settings.ip)
        if self._settings.head:
            self.net.connect(self._settings.head)
            self._at(min(JOIN_S, self.config.start_timeout_s), self._late)
        self._at(PING_S, self._ping)
        signal.signal(signal.SIGTERM, lambda *_: self.end("it was told to (SIGTERM)"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            while not self.ending:
                self._turn()
        finally:
            _log("gateway.ends", reason=self.ending)
            self._leave_node()
            self.objects.close()
            self.door.close()
            self.modules.close()
            self.store.close()
            self.net.close(self.ending)

    def _leave_node(self) -> None:
        """End the node, and serve on until it has tidied up: it says good-bye to the control store through us."""
        self._tell(m.Bye())
        until = monotonic() + NODE_END_S
        while not self._node_gone and monotonic() < until:
            self._turn()
        self._node.close()

    def _turn(self) -> None:
        timeout = max(0.0, self._timers[0][0] - monotonic()) if self._timers else -1.0
        if self.net.pending():
            timeout = min(timeout, LOOK_S) if timeout >= 0 else LOOK_S
        for fd, mask in self._epoll.poll(timeout):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(mask)
        self.net.flush()
        self._net_event(0)
        now = monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _at(self, after_s: float, action: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._timers, (monotonic() + after_s, self._numbers, action))

    def _on(self, fd: int, handler: Callable[[int], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _off(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def end(self, reason: str) -> None:
        self.ending = self.ending or reason

    def _ping(self) -> None:
        self.net.ping()
        self._at(PING_S, self._ping)

    def _late(self) -> None:
        head = self._settings.head
        if self._belongs:
            return
        if any(peer.address == head for peer in self.peers.values()) and self.store.shared is None:
            self.end(
                f"{head} answers, but the head of its cluster does not, and only that one knows the control store: "
                "no machine can join any more. Stop what is left, and start a new head"
            )
        self.net.give_up(head)

    def _await_return(self, address: str) -> None:
        """A link broke whose other side did not say good-bye: it may be the network's fault, and come back."""
        self.net.connect(address)
        self._at(RETURN_S, partial(self.net.give_up, address))

    # -- our node

    def _tell(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        try:
            self._node.send(message, fds)
        except wire.Closed:
            self._lost_node("")
            return
        self._watch_writing(self._node.fileno(), self._node.pending)

    def _watch_writing(self, fd: int, wanted: bool) -> None:
        if wanted != (fd in self._writing):
            (self._writing.add if wanted else self._writing.discard)(fd)
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def _node_event(self, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT:
                self._node.flush()
                self._watch_writing(self._node.fileno(), self._node.pending)
            if not mask & ~select.EPOLLOUT:
                return
            message, fds = self._node.receive()
        except (BlockingIOError, InterruptedError):
            return
        except (wire.Closed, wire.DescriptorsLost, m.ProtocolError) as error:
            self._lost_node(f" ({error})" * bool(str(error)))
            return
        handler = self._FROM_NODE.get(type(message))
        if handler is not None:
            handler(self, message, fds)
        for fd in fds:
            os.close(fd)

    def _lost_node(self, why: str) -> None:
        self.end(f"the node is gone{why}")
        self._node_gone = True
        self._off(self._node.fileno())

    def _welcomed(self, message: m.Welcome, fds: list[int]) -> None:
        self._welcome = True
        os.waitpid(self._node_pid, 0)  # the node stands on its own
        if not self._settings.head:
            on = self.config.gcs == "on"
            self.store.begin(os.path.basename(self._settings.session) if on else "", self.config.redis_url)
            self._tell_store(self.config.redis_url)
            for peer in self.peers:
                self._say_if_up(peer, self.store.shared)
        self._perhaps_joined()

    def _tell_store(self, url: str) -> None:
        """The node hears where the cluster's control store is."""
        shared = self.store.shared
        if shared is not None:
            self._tell(m.StoreAt(shared.session, url, self.net.greeting.address))

    def _store_shared(self, peer: bytes, message: pm.StoreShared) -> None:
        """The head says where it is."""
        if self._settings.head and self.store.shared is None:
            url = self.store.learned(peer, message)
            self._tell_store((self.config.redis_url or url) if message.url else url)
            self._perhaps_joined()

    def _perhaps_joined(self) -> None:
        """The node has answered, and so has the head."""
        address = self.net.greeting.address
        head = self._settings.head or address
        known = not self._settings.head or any(peer.address == head for peer in self.peers.values())
        if self._welcome and known and self.store.shared is not None:
            self._belongs = True
            self._joined(self._settings.session, address, head)
            self._joined = lambda *_: None

    def _refused(self, message: m.Refused, fds: list[int]) -> None:
        self.end(f"the node refuses: {message.reason}")

    def _program_ended(self, message: m.ProgramEnded, fds: list[int]) -> None:
        for peer in self.peers:
            self._say_if_up(peer, pm.ProgramEnded(message.job))

    def _load_report(self, message: m.LoadReport, fds: list[int]) -> None:
        """How it is here: for everybody, in turn."""
        self._load = pm.Heartbeat(
            self.net.greeting.name, 0, message.total, message.free, message.waiting, message.task_s,
            message.bytes_per_s, {}, message.draining,
        )  # fmt: skip
        if any(self.pace):
            self._tell(m.Pace(*self.pace))
            self.pace = (0.0, 0.0)
        self._beats.news()
        if not self._telling:
            self._tell_load()

    def _tell_load(self) -> None:
        """Those whose turn it is hear it, and those whose requests have been counted since."""
        for peer in dict.fromkeys((*self._beats.due(), *self._uncounted)):
            self._say_load(peer)
        self._uncounted.clear()
        self._telling = bool(self._beats.owed)
        if self._telling:
            self._at(self.config.heartbeat_s, self._tell_load)

    def _say_load(self, peer: bytes) -> None:
        """With how many of its own requests (at the other side: those of b"") have been counted."""
        if self._load is not None:
            self._beat += 1
            seen = {b"": self._seen.get(peer, 0)}
            self._say_if_up(peer, self._load._replace(number=self._beat, seen=seen))

    def _count(self, peer: bytes) -> None:
        """One more request of its, which it is to hear of even if nothing else changes here."""
        self._seen[peer] = self._seen.get(peer, 0) + 1
        self._uncounted.add(peer)
        if not self._telling:
            self._telling = True
            self._at(self.config.heartbeat_s, self._tell_load)

    def _heartbeat(self, peer: bytes, message: pm.Heartbeat) -> None:
        self._tell(m.PeerLoad(tuple(message)))

    # -- workers of other machines, for submitters here

    def _remote_lease(self, message: m.RemoteLease, fds: list[int]) -> None:
        """The node wants a worker from another machine."""
        pool = (message.pool, message.node)
        abroad = _Abroad(message.worker, message.pool, message.node, message.pid)
        abroad.directly = message.direct
        self._abroad[message.worker] = abroad
        try:
            if pool not in self._pools:
                self._pools[pool] = True
                self._say(message.node, pm.PoolOpened(message.pool, message.setup, message.job))
            self._say(message.node, pm.LeaseWanted(message.pool, message.worker, message.shape))
        except NoLink as error:
            del self._abroad[message.worker]
            self._tell(m.RemoteRefused(message.worker, str(error)))

    def _remote_end(self, message: m.RemoteEnd, fds: list[int]) -> None:
        """The submitter returned it. It stays ours until its machine says that it has ended."""
        abroad = self._abroad.get(message.worker)
        if abroad is not None:
            self._say_if_up(abroad.peer, pm.LeaseReturned(message.worker, message.retire))

    def _remote_signal(self, message: m.RemoteSignal, fds: list[int]) -> None:
        abroad = self._abroad.get(message.worker)
        if abroad is None:
            return
        abroad = abroad.links.get(message.link, abroad)
        if message.signal == signal.SIGINT and abroad.outgoing is not None:
            for slot, value in abroad.outgoing.take_aim():
                self._say_if_up(abroad.peer, pm.Aimed(abroad.lease, slot, value))
        self._say_if_up(abroad.peer, pm.SignalWanted(abroad.lease, message.signal))

    def _remote_pool_closed(self, message: m.RemotePoolClosed, fds: list[int]) -> None:
        for pool, peer in [key for key in self._pools if key[0] == message.pool]:
            del self._pools[pool, peer]
            self._say_if_up(peer, pm.PoolClosed(pool, message.kill))

    def _lease_given(self, peer: bytes, message: pm.LeaseGiven) -> None:
        abroad = self._abroad.get(message.lease)
        if abroad is None or abroad.peer != peer:
            self._say_if_up(peer, pm.LeaseReturned(message.lease, True))
            return
        if not abroad.directly:
            self._lease_up(abroad, message, [])
            return
        made: list[socket.socket] = []
        step = abroad.steps.add(partial(self._lease_up, abroad, message, made), ready=False)

        def then(sock: socket.socket | None) -> None:
            if sock is not None:
                made.append(sock)
            abroad.steps.now(step)

        self.caller.connect(peer, message.port, message.token, then)

    def _lease_up(self, abroad: _Abroad, message: pm.LeaseGiven, made: list[socket.socket]) -> None:
        """The submitter gets the worker, and a connection to it if one could be made."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = frames.make_page()
        try:
            abroad.outgoing = Outgoing(
                socket.socket(fileno=os.dup(theirs.fileno())),
                frames.Page(page),
                message.pid,
                partial(self._forward, abroad),
                partial(self._ask_limit, abroad),
            )
            abroad.outgoing.on_link = partial(self.actors.link, abroad)
            abroad.outgoing.aside = bool(made)
            fds = (ours.fileno(), theirs.fileno(), page, *(sock.fileno() for sock in made))
            self._tell(m.RemoteUp(*message[:5], message.key if made else b""), fds)
        finally:
            for sock in made:
                sock.close()
            ours.close()
            theirs.close()
            os.close(page)
        self._on(abroad.outgoing.fileno(), partial(self._submitter_event, abroad))

    def _lease_refused(self, peer: bytes, message: pm.LeaseRefused) -> None:
        if self._abroad.pop(message.lease, None) is not None:
            self._tell(m.RemoteRefused(message.lease, message.reason))

    def _submitter_event(self, abroad: _Abroad, mask: int) -> None:
        outgoing = abroad.outgoing
        assert outgoing is not None
        try:
            if mask & select.EPOLLOUT:
                outgoing.flush()
            if mask & ~select.EPOLLOUT:
                outgoing.readable()
        except (wire.Closed, OSError):
            self._off(outgoing.fileno())  # the node says so, too
            self.actors.caller_gone(abroad)
            return
        self._watch_outgoing(abroad)

    def _watch_outgoing(self, abroad: _Abroad) -> None:
        """While a frame is under way its socket is not read: what is in there can be taken back."""
        outgoing = abroad.outgoing
        assert outgoing is not None
        if outgoing.fileno() in self._handlers:
            wanted = select.EPOLLIN * outgoing.wants_frames() | select.EPOLLOUT * outgoing.wants_to_write()
            self._epoll.modify(outgoing.fileno(), wanted)

    def _forward(self, abroad: _Abroad, frame: bytes, carried: Any) -> None:
        blob = b"" if carried is None else pickle.dumps(carried)
        self._say_if_up(abroad.peer, pm.TaskFrame(abroad.lease, len(blob)), blob + frame)
        self._at(LOOK_S, partial(self._look, abroad))

    def _look(self, abroad: _Abroad) -> None:
        if abroad.outgoing is not None and not abroad.outgoing.wants_frames():
            abroad.outgoing.look()
            self._at(LOOK_S, partial(self._look, abroad))

    def _ask_limit(self, abroad: _Abroad, limit: int) -> None:
        self._say_if_up(abroad.peer, pm.LimitAsked(abroad.lease, limit))

    def _result_frame(self, peer: bytes, message: pm.ResultFrame, frame: bytes) -> None:
        abroad = self._abroad.get(message.lease)
        refs = pickle.loads(frame[: message.carried]) if message.carried else []
        if abroad is None or abroad.outgoing is None:
            if refs:
                self._say_if_up(peer, pm.RefsTaken(refs))  # nobody wants them
            return
        answer = partial(self._answer, abroad, frame[message.carried :], message.end, message.pipe)
        self.objects.results_came(abroad, refs, answer)

    def _answer(self, abroad: _Abroad, frame: bytes, end: bool, pipe: int) -> None:
        if abroad.outgoing is None:
            return
        try:
            abroad.outgoing.results(frame, end, (self.streams.pipe(abroad.peer, pipe),) if pipe else ())
            abroad.outgoing.readable()
        except (wire.Closed, OSError):
            self._off(abroad.outgoing.fileno())
            self.actors.caller_gone(abroad)
            return
        self._watch_outgoing(abroad)

    def _limit_told(self, peer: bytes, message: pm.LimitTold) -> None:
        abroad = self._abroad.get(message.lease)
        if abroad is not None and abroad.outgoing is not None:
            told = partial(abroad.outgoing.limited, message.limit, Snapshot(*message[2:-1]))
            self.objects.results_came(abroad, message.refs, told)
        elif message.refs:
            self._say_if_up(peer, pm.RefsTaken(message.refs))

    def _worker_ended(self, peer: bytes, message: pm.WorkerEnded) -> None:
        abroad = self._abroad.get(message.lease)
        if abroad is not None:
            where = message.log_file
            if peer in self.peers and " on " not in where:
                where += f" on {self.peers[peer].host}"
            end = m.RemoteDied(message.lease, message.pid, message.signal, message.exit_code, message.reason, where)
            lost = partial(self._lost_abroad, abroad, Snapshot(*message[6:-1]), end)
            lost = partial(self.actors.after_links, abroad, lost)
            self.objects.results_came(abroad, message.refs, lost)
        elif message.refs:
            self._say_if_up(peer, pm.RefsTaken(message.refs))

    def _lost_abroad(self, abroad: _Abroad, snapshot: Snapshot | None, end: m.RemoteDied) -> None:
        if abroad.actor:
            self.actors.process_lost(abroad, snapshot, end)
            return
        if self._abroad.pop(abroad.lease, None) is None:
            return
        if abroad.outgoing is not None:
            if snapshot is not None:
                abroad.outgoing.died(snapshot)
            self._off(abroad.outgoing.fileno())
            abroad.outgoing.close()
            abroad.outgoing = None
        if abroad.owner is None:
            self._tell(end)
        else:
            self.actors.link_ended(abroad)

    # -- workers here, for submitters of other machines

    def _pool_opened(self, peer: bytes, message: pm.PoolOpened) -> None:
        self._numbers += 1
        pool = _GuestPool(self._numbers, peer, message.pool)
        self._guest_pools[peer, message.pool] = self._by_number[pool.number] = pool
        self._tell(m.OpenPool(pool.number, 1 << 20, message.setup))
        if message.job:
            self._jobs.setdefault(peer, set()).add(message.job)

    def _peer_program_ended(self, peer: bytes, message: pm.ProgramEnded) -> None:
        self._jobs.get(peer, set()).discard(message.job)
        self._tell(m.ProgramEnded(message.job))

    def _setup_changed(self, peer: bytes, message: pm.SetupChanged) -> None:
        pool = self._guest_pools.get((peer, message.pool))
        if pool is not None:
            self._tell(m.UpdateSetup(pool.number, message.setup))

    def _pool_closed(self, peer: bytes, message: pm.PoolClosed) -> None:
        pool = self._guest_pools.pop((peer, message.pool), None)
        if pool is not None:
            pool.closed = True
            for guest in pool.waiting:
                del self._guests[peer, guest.lease]
                self._say_if_up(peer, pm.LeaseRefused(guest.lease, "its pool is closed"))
            pool.waiting.clear()
            self._tell(m.ClosePool(pool.number, message.kill))

    def _lease_wanted(self, peer: bytes, message: pm.LeaseWanted) -> None:
        self._count(peer)
        pool = self._guest_pools.get((peer, message.pool))
        if pool is None or self.draining:
            why = "its pool is closed" if pool is None else "this machine is being drained"
            self._say_if_up(peer, pm.LeaseRefused(message.lease, why))
            return
        guest = _Guest(peer, message.lease, pool, message.shape)
        self._guests[peer, message.lease] = guest
        pool.waiting.append(guest)
        self._tell(m.RequestLeases(pool.number, message.shape, 1))

    def new_guest_pool(self, number: int, peer: bytes) -> _GuestPool:
        """For a link to an actor, which has a number as pools have."""
        return _GuestPool(number, peer, 0)

    def _grant(self, message: m.Grant, fds: list[int]) -> None:
        if self.actors.granted(message, fds):
            return
        pool = self._by_number.get(message.pool)
        if pool is None:
            return
        guest = next((one for one in pool.waiting if one.wanted == message.shape), None)
        if message.fresh:
            ours, theirs, page = fds
            fds.clear()
            os.close(theirs)
            incoming = Incoming(socket.socket(fileno=ours), frames.Page(page), _nowhere)
            os.close(page)
        else:
            incoming = pool.idle.pop(message.worker)
            incoming.new_lease()
        if guest is None:  # given up meanwhile
            pool.idle[message.worker] = incoming
            self._tell(m.ReturnLease(pool.number, message.worker, False))
            return
        pool.waiting.remove(guest)
        guest.worker, guest.incoming = message.worker, incoming
        pool.workers[message.worker] = guest
        incoming.back = partial(self._send_back, guest)
        self._on(incoming.fileno(), partial(self._worker_event, guest))
        offer = self.door.offer(guest)
        self._say_if_up(guest.peer, pm.LeaseGiven(guest.lease, 0, message.log_file, self.host, message.gpus, *offer))

    def _worker_up(self, message: m.WorkerUp, fds: list[int]) -> None:
        """Its pid is known now; whoever leased it needs it for messages only, and hears it when it ends."""

    def _send_back(self, guest: _Guest, frame: bytes, fds: list[int]) -> None:
        self.objects.result_frame(guest, frame, self.streams.began(guest, fds[0]) if fds else 0)

    def _worker_event(self, guest: _Guest, mask: int) -> None:
        incoming = guest.incoming
        assert incoming is not None
        if mask & select.EPOLLOUT:
            incoming.flush()
        if mask & ~select.EPOLLOUT:
            incoming.readable()
        self._watch_writing(incoming.fileno(), incoming.wants_to_write())

    def _task_frame(self, peer: bytes, message: pm.TaskFrame, frame: bytes) -> None:
        guest = self._guests.get((peer, message.lease))
        if guest is not None and guest.incoming is not None:
            carried = pickle.loads(frame[: message.carried]) if message.carried else None
            self.objects.task_frame(guest, frame[message.carried :], carried)

    def _limit_asked(self, peer: bytes, message: pm.LimitAsked) -> None:
        guest = self._guests.get((peer, message.lease))
        if guest is not None and guest.incoming is not None:
            guest.incoming.limit(message.limit)
            self._at(TRUST_S, partial(self._tell_limit, guest, message.limit))

    def _tell_limit(self, guest: _Guest, limit: int) -> None:
        if guest.incoming is not None and not guest.incoming.limited(limit):  # its machine is asked first
            self._at(TRUST_S, partial(self._tell_limit, guest, limit))
        elif guest.incoming is not None:
            guest.incoming.readable()  # what it has answered comes before what it has noted since
            snapshot = guest.incoming.snapshot()
            refs = self.objects.journal(guest, snapshot)
            self._say_if_up(guest.peer, pm.LimitTold(guest.lease, limit, *snapshot, refs))

    def _aimed(self, peer: bytes, message: pm.Aimed) -> None:
        guest = self._guests.get((peer, message.lease))
        if guest is not None and guest.incoming is not None:
            guest.incoming.aim(message.slot, message.value)

    def _signal_wanted(self, peer: bytes, message: pm.SignalWanted) -> None:
        guest = self._guests.get((peer, message.lease))
        if guest is not None and guest.worker:
            self._tell(m.KillWorker(guest.pool.number, guest.worker, message.number))

    def _lease_returned(self, peer: bytes, message: pm.LeaseReturned) -> None:
        guest = self._guests.get((peer, message.lease))
        if guest is None or self.actors.returned(guest):
            return
        if guest.incoming is None:
            del self._guests[peer, message.lease]
            guest.pool.waiting.remove(guest)
            self._say_if_up(peer, pm.LeaseRefused(message.lease, "it was not wanted any more"))
            self._tell(m.CancelRequests(guest.pool.number, guest.wanted))  # all of that shape
            if left := sum(other.wanted == guest.wanted for other in guest.pool.waiting):
                self._tell(m.RequestLeases(guest.pool.number, guest.wanted, left))
        else:
            self._give_back(guest, message.retire)

    def _give_back(self, guest: _Guest, retire: bool) -> None:
        """The lease ends; the worker stays, unless it is to retire."""
        assert guest.incoming is not None
        self.door.forget(guest)
        del self._guests[guest.peer, guest.lease]
        self._off(guest.incoming.fileno())
        self._writing.discard(guest.incoming.fileno())
        del guest.pool.workers[guest.worker]
        guest.pool.idle[guest.worker] = guest.incoming
        if retire:
            guest.incoming.frame(_EXIT)
        snapshot = guest.incoming.snapshot()
        refs = self.objects.journal(guest, snapshot)
        self._say_if_up(guest.peer, pm.WorkerEnded(guest.lease, 0, 0, 0, "returned", "", *snapshot, refs))
        guest.incoming = None
        self.objects.lease_ended(guest)
        self._tell(m.ReturnLease(guest.pool.number, guest.worker, retire))

    def _retire(self, message: m.Retire, fds: list[int]) -> None:
        pool = self._by_number.get(message.pool)
        if pool is not None and message.worker in pool.idle:
            pool.idle[message.worker].frame(_EXIT)

    def _worker_died(self, message: m.WorkerDied, fds: list[int]) -> None:
        if self.actors.process_died(message):
            return
        pool = self._by_number.get(message.pool)
        if pool is None:
            return
        idle = pool.idle.pop(message.worker, None)
        if idle is not None:
            idle.close()
        guest = pool.workers.pop(message.worker, None)
        if guest is None or guest.incoming is None:
            if message.unclaimed:
                self.objects.worker_died(message.pid)
            return
        self.door.forget(guest)
        self.actors.process_ended(guest)
        guest.incoming.readable()  # its last words
        self._off(guest.incoming.fileno())
        self._writing.discard(guest.incoming.fileno())
        del self._guests[guest.peer, guest.lease]
        snapshot = guest.incoming.snapshot()
        refs = self.objects.journal(guest, snapshot)
        end = pm.WorkerEnded(
            guest.lease, message.pid, message.signal, message.exit_code, message.reason, message.log_file,
            *snapshot, refs,
        )  # fmt: skip
        self._say_if_up(guest.peer, end)
        guest.incoming.close()
        guest.incoming = None
        if message.unclaimed:
            self.objects.worker_died(message.pid)
        self.objects.lease_ended(guest)

    def _closed(self, message: m.Closed, fds: list[int]) -> None:
        pool = self._by_number.pop(message.pool, None)
        if pool is not None:
            for incoming in pool.idle.values():
                incoming.close()

    def _output(self, message: m.Output, fds: list[int]) -> None:
        """Lines of a worker here, for whoever submits to it."""
        pool = self._by_number.get(message.pool)
        if pool is not None:
            for at in range(0, len(message.data), PIECE):
                printed = pm.Printed(pool.theirs, message.stream, message.data[at : at + PIECE])
                self._say_if_up(pool.peer, printed)

    def _printed(self, peer: bytes, message: pm.Printed) -> None:
        self._tell(m.RemoteOutput(message.pool, message.stream, message.data))

    # -- what nodes say to each other, and leaving

    def _to_peer(self, message: m.ToPeer, fds: list[int]) -> None:
        self._say_if_up(message.node, pm.NodeSaid(message.data))

    def _node_said(self, peer: bytes, message: pm.NodeSaid) -> None:
        self._tell(m.FromPeer(peer, message.data))

    def _drain(self, message: m.Drain, fds: list[int]) -> None:
        """Our node is being drained (no name), or means another one."""
        if not message.node:
            self.draining = True
        else:
            self._say_if_up(message.node, pm.DrainAsked())

    def _drain_asked(self, peer: bytes, message: pm.DrainAsked) -> None:
        self._tell(m.Drain(self.net.greeting.name))

    # -- other gateways

    def _say(self, peer: bytes, message: Any, frame: Any = None) -> None:
        """Send to a gateway; NoLink if that cannot be."""
        if frame is None:
            self.net.send(peer, pm.encode(message))
            return
        pieces = [memoryview(frame)[at : at + PIECE] for at in range(0, len(frame), PIECE)]
        self.net.send(peer, pm.encode(message), pieces)

    def _say_if_up(self, peer: bytes, message: Any, frame: Any = None) -> None:
        """The same; if there is no link, all that it is about has ended or is about to."""
        try:
            self._say(peer, message, frame)
        except NoLink:
            return

    def _net_event(self, mask: int) -> None:
        while (event := self.net.receive()) is not None:
            if isinstance(event, Message):
                self._peer_said(event)
            elif isinstance(event, Up):
                self._peer_up(event)
            else:
                self._peer_down(event)

    def _peer_up(self, event: Up) -> None:
        self.peers[event.name] = event.greeting
        _log("peer.up", name=event.name.hex(), host=event.greeting.host, address=event.greeting.address)
        self.objects.peer_up(event.name, event.greeting)
        self.heirs.peer_up(event.name)
        self.tunnels.peer_up(event.name)
        self._tell(m.PeerUp(event.name, event.greeting.host))
        self._beats.peer_up(event.name)
        self._say_load(event.name)
        self.about.peer_up(event.name)
        if self.store.shared is not None and (not self._settings.head or self.store.anybodys()):
            self._say_if_up(event.name, self.store.shared)
        self._say_if_up(event.name, pm.Members([peer.address for peer in self.peers.values() if peer.address]))
        self._perhaps_joined()

    def _members(self, peer: bytes, message: pm.Members) -> None:
        """Who else is in the cluster."""
        for address in message.addresses:
            if address != self.net.greeting.address:
                self.net.connect(address)

    def _peer_down(self, event: Down) -> None:
        greeting = self.peers.pop(event.name, None)
        _log("peer.down", name=event.name.hex(), address=event.address, reason=event.reason)
        if event.address == self._settings.head and not self._belongs:
            self.end(f"the head at {event.address} cannot be joined: {event.reason}")
            return
        if greeting is None:
            return
        self.store.peer_down(event.name)
        self.about.peer_down(event.name)
        self.tunnels.peer_down(event.name, f"the link to {greeting.host} ({greeting.address}) is down: {event.reason}")
        self.objects.peer_down(event.name, greeting.host, event.reason)
        self.caller.peer_down(event.name)
        self.heirs.peer_down(event.name, greeting.host)
        self._seen.pop(event.name, None)
        self._beats.peer_down(event.name)
        self._uncounted.discard(event.name)
        for abroad in [one for one in self._abroad.values() if one.peer == event.name]:
            reason = f"{LINK_DOWN}{greeting.host} ({greeting.address}) is down: {event.reason}"
            end = m.RemoteDied(abroad.lease, 0, 0, 0, reason, "")
            lost = partial(self._lost_abroad, abroad, None, end)
            if abroad.actor:
                lost = partial(self.actors.home_lost, abroad, reason)
            self.objects.results_came(abroad, [], lost)
        self.actors.peer_down(event.name)
        for opened in [one for one in self._pools if one[1] == event.name]:
            del self._pools[opened]
        for (peer, number), pool in list(self._guest_pools.items()):
            if peer == event.name:
                del self._guest_pools[peer, number]
                self._tell(m.ClosePool(pool.number, True))
        for job in self._jobs.pop(event.name, ()):
            self._tell(m.ProgramEnded(job))
        self._tell(m.PeerDown(event.name, event.reason))
        if greeting.address and not event.reason.startswith(LEFT):
            self._await_return(greeting.address)

    def _peer_said(self, event: Message) -> None:
        try:
            self._handle(event)
        except m.ProtocolError as error:
            self.net.drop(event.name, f"it sent something malformed: {error}")

    def _handle(self, event: Message) -> None:
        message = pm.decode(event.payload)
        with_frame = self._WITH_FRAME.get(type(message))
        if with_frame is not None:
            with_frame(self, event.name, message, b"".join(event.buffers))
        elif isinstance(message, pm.PieceSent):
            self.objects.transfers.piece_sent(event.name, message, event.buffers[0] if event.buffers else _EMPTY)
        else:
            self._FROM_PEERS[type(message)](self, event.name, message)

    _WITH_FRAME: dict[type[Any], Callable[[Any, bytes, Any, bytes], None]] = {  # noqa: RUF012
        pm.TaskFrame: _task_frame,
        pm.ResultFrame: _result_frame,
        pm.FutureTold: lambda self, *said: self.objects.future_told(*said),
        pm.TunnelData: lambda self, *said: self.tunnels.data(*said),
        pm.Described: lambda self, *said: self.objects.transfers.described(*said),
        pm.Heirlooms: lambda self, *said: self.heirs.offered(*said),
    }
    _FROM_NODE: dict[type[Any], Callable[[Any, Any, list[int]], None]] = {  # noqa: RUF012
        m.Welcome: _welcomed,
        m.Refused: _refused,
        m.LoadReport: _load_report,
        m.ToPeer: _to_peer,
        m.Drain: _drain,
        m.Leave: lambda self, message, fds: self.heirs.leave(message.heirs),
        m.RemoteLease: _remote_lease,
        m.RemoteEnd: _remote_end,
        m.RemoteSignal: _remote_signal,
        m.RemotePoolClosed: _remote_pool_closed,
        m.Grant: _grant,
        m.WorkerUp: _worker_up,
        m.WorkerDied: _worker_died,
        m.Retire: _retire,
        m.Closed: _closed,
        m.Output: _output,
        m.RemoteActor: lambda self, *said: self.actors.wanted(*said),
        m.RemoteVisitor: lambda self, *said: self.actors.visit(*said),
        m.RemoteLeft: lambda self, *said: self.actors.left(*said),
        m.RemoteFind: lambda self, *said: self.actors.find(*said),
        m.ActorKill: lambda self, *said: self.actors.kill(*said),
        m.ActorGone: lambda self, *said: self.actors.gone(*said),
        m.ProgramEnded: _program_ended,
        m.StoreServer: lambda self, message, fds: self.store.server_up(message),
        m.AboutReport: lambda self, message, fds: self.about.report(message),
        m.AskOutputAbroad: lambda self, message, fds: self.about.ask_output(message.number, message.machines),
        m.OutputTold: lambda self, message, fds: self.about.output_told_here(message.number),
        m.ObjectWanted: lambda self, *said: self.objects.wanted(*said),
        m.FutureWanted: lambda self, *said: self.objects.future_wanted(*said),
        m.ObjectsFreed: lambda self, *said: self.objects.freed(*said),
    }
    _FROM_PEERS: dict[type[Any], Callable[[Any, bytes, Any], None]] = {  # noqa: RUF012
        pm.Heartbeat: _heartbeat,
        pm.Members: _members,
        pm.NodeSaid: _node_said,
        pm.DrainAsked: _drain_asked,
        pm.PoolOpened: _pool_opened,
        pm.SetupChanged: _setup_changed,
        pm.PoolClosed: _pool_closed,
        pm.LeaseWanted: _lease_wanted,
        pm.LeaseReturned: _lease_returned,
        pm.LimitAsked: _limit_asked,
        pm.Aimed: _aimed,
        pm.SignalWanted: _signal_wanted,
        pm.LeaseGiven: _lease_given,
        pm.LeaseRefused: _lease_refused,
        pm.LimitTold: _limit_told,
        pm.WorkerEnded: _worker_ended,
        pm.Printed: _printed,
        pm.ProgramEnded: _peer_program_ended,
        pm.StreamTold: lambda self, *said: self.streams.told(*said),
        pm.LinkWanted: lambda self, *said: self.actors.link_wanted(*said),
        pm.ActorWanted: lambda self, *said: self.actors.actor_wanted(*said),
        pm.LinkHere: lambda self, *said: self.actors.link_here(*said),
        pm.ActorEnded: lambda self, *said: self.actors.ended(*said),
        pm.ActorKilled: lambda self, *said: self.actors.killed(*said),
        pm.StoreShared: _store_shared,
        pm.About: lambda self, peer, message: self._tell(m.PeerAbout(peer, message.about)),
        pm.OutputAsked: lambda self, peer, message: self.about.output_asked(peer, message.number),
        pm.OutputTold: lambda self, peer, message: self.about.output_told(peer, message.number),
        pm.StoreOpened: lambda self, peer, message: self.store.opened(peer, message),
        pm.StoreBytes: lambda self, peer, message: self.store.bytes_came(peer, message),
        pm.StoreClosed: lambda self, peer, message: self.store.closed(peer, message),
        pm.RefsTaken: lambda self, *said: self.objects.refs_taken(*said),
        pm.BorrowAsked: lambda self, *said: self.objects.borrow_asked(*said),
        pm.BorrowTold: lambda self, *said: self.objects.borrow_told(*said),
        pm.BorrowEnded: lambda self, *said: self.objects.borrow_ended(*said),
        pm.FutureAsked: lambda self, *said: self.objects.future_asked(*said),
        pm.DescribeAsked: lambda self, *said: self.objects.transfers.describe(*said),
        pm.NotThere: lambda self, *said: self.objects.transfers.not_there(*said),
        pm.PieceAsked: lambda self, *said: self.objects.transfers.piece_asked(*said),
        pm.PieceRedirected: lambda self, *said: self.objects.transfers.redirected(*said),
        pm.PieceDenied: lambda self, *said: self.objects.transfers.denied(*said),
        pm.PullLeft: lambda self, *said: self.objects.transfers.left(*said),
        pm.HeirloomsDropped: lambda self, *said: self.heirs.dropped(*said),
        pm.HeirloomsHad: lambda self, *said: self.heirs.had(*said),
        pm.Bequeathed: lambda self, *said: self.heirs.bequeathed(*said),
        pm.HomeMoved: lambda self, *said: self.heirs.home_moved(*said),
        pm.Rebound: lambda self, *said: self.heirs.rebound(*said),
        pm.TunnelOpened: lambda self, *said: self.tunnels.opened(*said),
        pm.TunnelRead: lambda self, *said: self.tunnels.read(*said),
        pm.TunnelClosed: lambda self, *said: self.tunnels.closed(*said),
        pm.ProcessEnded: lambda self, *said: self.tunnels.process_ended(*said),
    }


_EMPTY = memoryview(b"")
_EXIT = pickle.dumps((0, frames.EXIT, None, 0, []), 5)
"""The frame after which a worker leaves."""


def _nowhere(frame: bytes, fds: list[int]) -> None:
    """Results of a worker that nobody has leased: there are none."""
    for fd in fds:
        os.close(fd)


def _log(event: str, **fields: Any) -> None:
    """One event in the log file."""
    words = " ".join(f"{name}={value}" for name, value in fields.items())
    sys.stderr.write(f"{monotonic():.6f} {event} {words}\n")
    sys.stderr.flush()
