"""Links between the gateways of a cluster: ZeroMQ with CURVE, one TCP connection for each direction.

```
 gateway A                                    gateway B
 ┌────────────────────────┐                  ┌────────────────────────┐
 │ dealer to B ───────────┼── TCP + CURVE ──►│ router (bound)         │
 │ router (bound) ◄───────┼── TCP + CURVE ───┼─────────── dealer to A │
 └────────────────────────┘                  └────────────────────────┘
 a client that nobody can connect to has a dealer only, and is answered through the router
 what is large and needs no order goes beside these, over dealers of its own (`send_beside`), made at first need
```

Who knows the cluster's secret gets in; all others are turned away by the handshake, before a byte of theirs is read
here (`_answer_zap`), and not many at a time (`Door`). The first message is a `Greeting`; different versions refuse each
other by name. Then a link is *up*: what is sent arrives whole, once and in order, until the link is *down*, which both
sides hear (`Up`, `Down`). A link never comes back: its connection is not made again, since nobody knows which messages
were lost with it. A new link can be made by `connect`; whoever still held the old one for up hears Down, then Up.

Each dealer has a routing id of its own (`_route`), the gateway's name and a number that no other has: so what is left
of an old link is never taken for a message of the new one.

One thread. Nothing here blocks: `receive` returns what is there, `fileno` is readable when there may be more, and what
cannot be sent yet lies in ZeroMQ's queue, up to `HIGH_WATER` messages, then here.
"""

from __future__ import annotations

import os
import pickle
import select
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from dpool._core.config import PROTOCOL
from dpool._core.door import Door

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dpool._core.cluster_key import ClusterKey

MAX_MESSAGE_BYTES = 1 << 20
"""Of one part, whose sender may add `HEADROOM` of its own. ZeroMQ closes a peer that says it will send more, before it
has sent it; so nobody who has not proved who it is can make us hold more than that."""
HEADROOM = 4096
SEAL_BYTES = 64
"""What encryption adds to a part, at most."""
HIGH_WATER = 10_000
HANDSHAKE_MS = 5_000
"""A connection that has not proved who it is by then is closed."""
SILENCE_S = 10.0
"""A peer that answers no ping for so long is down, unless `Net` is told otherwise."""
PINGS = 8
"""In that time."""
CONNECT_MS = 2_000
CONNECT_AGAIN_MS, CONNECT_AGAIN_MOST_MS = 100, 2_000
LINGER_MS = 500
STREAMS = 2
"""Connections to each peer for what is large; and as many threads that encrypt."""
LEFT = "it has left"
"""With these words it begins why a link is down whose other side said good-bye; what it said follows."""
MAX_REASON_BYTES = 400

_ACCEPTED, _PROVED, _GONE = zmq.EVENT_ACCEPTED, zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED

_ROUTE_NUMBER = 8

GREETING, REFUSAL, MESSAGE, LONG, GOODBYE, PING, BESIDE = b"G", b"R", b"M", b"L", b"B", b"P", b"S"
"""What a message is; LONG, with their number behind it: one whose payload comes in several parts; BESIDE:
the connection it comes over belongs to the link with the gateway of this name."""


class Greeting(NamedTuple):
    """Who speaks. `name`: of this start of the gateway, no other has it; `address`: `host:port`, or "" if nobody can
    connect to it; `about`: whatever the roles want to tell each other.
    """

    name: bytes
    address: str
    host: str
    version: str
    python: str
    about: Any = None
    protocol: int = PROTOCOL


class Up(NamedTuple):
    """The link works, both ways."""

    name: bytes
    greeting: Greeting


class Down(NamedTuple):
    """There is no link any more (or it never came to be: `name` is empty), for this reason."""

    name: bytes
    address: str
    reason: str


class Message(NamedTuple):
    name: bytes
    payload: bytes
    buffers: list[memoryview]


class NoLink(ConnectionError):
    """There is no link to that gateway (any more)."""


class _Link:
    """One peer. `dealer`: our connection to it; None: it is a client, which is answered through the router."""

    __slots__ = (
        "address", "beside", "dealer", "fd", "greeting", "last_event", "monitor", "name", "outbox", "route", "streams",
        "turn", "up",
    )  # fmt: skip

    def __init__(self, address: str) -> None:
        self.address = address
        self.name = b""
        self.route = b""
        """The routing id of its dealer, by which our router knows it; empty until it has greeted there."""
        self.greeting: Greeting | None = None
        self.dealer: zmq.Socket[bytes] | None = None
        self.fd = -1
        self.monitor: zmq.Socket[bytes] | None = None
        self.outbox: deque[list[Any]] = deque()
        self.streams: list[zmq.Socket[bytes]] = []
        """Our dealers to it for what is large."""
        self.turn = 0
        self.beside: list[bytes] = []
        """The routing ids of its own for that."""
        self.up = False
        self.last_event = ""


class Net:
    """All links of one gateway; see the module.

    Args:
        key: the cluster's.
        greeting: what peers are told; its `address` is filled in by `listen`.
        silence_s: a peer from which nothing has come for so long is down.
    """

    def __init__(self, key: ClusterKey, greeting: Greeting, silence_s: float = SILENCE_S) -> None:
        self.greeting = greeting
        self._key = key
        self._silence_ms = max(PINGS, round(silence_s * 1000))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(STREAMS)
        self._zap: zmq.Socket[bytes] | None = None
        self._router: zmq.Socket[bytes] | None = None
        self._door: Door | None = None
        self._door_monitor: zmq.Socket[bytes] | None = None
        self._links: dict[bytes, _Link] = {}
        """Those that are up, by name."""
        self._routes: dict[bytes, _Link] = {}
        """Those of them that have greeted at our router, by route."""
        self._calling: dict[str, _Link] = {}
        """Those that we connect to and that have not greeted."""
        self._ready: deque[Up | Down | Message] = deque()
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        """By their sockets' descriptors."""
        self._touched: set[int] = set()
        """Those on which something was sent since they were read."""
        self._router_fd = -1

    # -- making links

    def listen(self, ip: str, port: int = 0) -> str:
        """Accept peers at this address; returns `host:port` with the port that was given.

        Raises:
            OSError: the address cannot be used; it is named.
        """
        door = Door(ip, port)
        self._serve_zap()
        router = self._socket(zmq.ROUTER)
        router.curve_server = True
        router.curve_secretkey = self._key.secret
        router.curve_publickey = self._key.public
        router.zap_domain = b"dpool"
        router.router_mandatory = True
        router.router_handover = True
        router.setsockopt(zmq.USE_FD, os.dup(door.sock.fileno()))
        self._door, self._router = door, router
        self._door_monitor = router.get_monitor_socket(_ACCEPTED | _PROVED | _GONE)
        self._watch(self._door_monitor, self._read_door)
        self._router_fd = self._watch(router, self._read_router)
        address = f"{_bracketed(ip)}:{door.port}"
        router.bind(f"tcp://{address}")
        self.greeting = self.greeting._replace(address=address)
        return address

    def connect(self, address: str) -> None:
        """Make a link to the gateway that listens there, unless there is one; Up or Down says what became of it.

        It is tried until somebody answers; whoever loses patience says `give_up`.
        """
        if address in self._calling or any(link.address == address for link in self._links.values()):
            return
        self._call(_Link(address))

    def give_up(self, address: str) -> None:
        """Connect there no more; Down says what was in the way."""
        link = self._calling.get(address)
        if link is not None:
            self._lost(link, link.last_event or "nobody answered")

    def _dealer(self) -> zmq.Socket[bytes]:
        dealer = self._socket(zmq.DEALER)
        dealer.routing_id = _route(self.greeting.name)
        dealer.curve_secretkey = self._key.secret
        dealer.curve_publickey = self._key.public
        dealer.curve_serverkey = self._key.public
        dealer.reconnect_ivl, dealer.reconnect_ivl_max = CONNECT_AGAIN_MS, CONNECT_AGAIN_MOST_MS
        dealer.connect_timeout = CONNECT_MS
        return dealer

    def _call(self, link: _Link) -> None:
        dealer = link.dealer = self._dealer()
        link.monitor = dealer.get_monitor_socket(
            zmq.EVENT_CONNECT_RETRIED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self._calling[link.address] = link
        self._watch(link.monitor, lambda: self._read_monitor(link))
        link.fd = self._watch(dealer, lambda: self._read_dealer(link))
        dealer.connect(f"tcp://{link.address}")
        self._push(link, [GREETING, _packed(self.greeting)])

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.maxmsgsize = MAX_MESSAGE_BYTES + HEADROOM + SEAL_BYTES
        socket.heartbeat_ivl = self._silence_ms // PINGS
        socket.heartbeat_timeout = self._silence_ms
        socket.handshake_ivl = HANDSHAKE_MS
        socket.sndhwm = socket.rcvhwm = HIGH_WATER
        socket.linger = LINGER_MS
        socket.ipv6 = True
        return socket

    # -- who may come in

    def _serve_zap(self) -> None:
        """Answer the handshakes' question whether a client's key is allowed (ZeroMQ RFC 27)."""
        if self._zap is None:
            self._zap = self._context.socket(zmq.REP)
            self._zap.linger = 0
            self._zap.bind("inproc://zeromq.zap.01")
            self._watch(self._zap, self._answer_zap)

    def _answer_zap(self) -> None:
        assert self._zap is not None
        while (parts := _received(self._zap)) is not None:
            version, request, _, _, _, mechanism, *credentials = parts
            known = mechanism == b"CURVE" and credentials == [z85.decode(self._key.public)]
            status, text = (b"200", b"") if known else (b"400", b"not of this cluster")
            self._zap.send_multipart([version, request, status, text, b"", b""])

    def _read_door(self) -> None:
        """What has become of those who connected here."""
        while self._door is not None and self._door_monitor is not None:
            parts = _received(self._door_monitor)
            if parts is None:
                return
            event = parse_monitor_message(parts)
            if event["event"] == _ACCEPTED:
                self._door.accepted(event["value"])
            elif event["event"] == _PROVED:
                self._door.proved(event["value"])
            else:
                self._door.gone(event["value"])

    # -- messages

    def send(self, name: bytes, payload: bytes, buffers: Sequence[Any] = ()) -> None:
        """Send one message; each of the buffers has at most `MAX_MESSAGE_BYTES`, the payload any number.

        Raises:
            NoLink: it is not up; nothing was sent.
        """
        link = self._links.get(name)
        if link is None or not link.up:
            raise NoLink(f"there is no link to the gateway {name.hex()}")
        if len(payload) <= MAX_MESSAGE_BYTES + HEADROOM:
            self._push(link, [MESSAGE, payload, *buffers])
            return
        view = memoryview(payload)
        pieces = [view[at : at + MAX_MESSAGE_BYTES] for at in range(0, len(view), MAX_MESSAGE_BYTES)]
        self._push(link, [LONG + len(pieces).to_bytes(4, "little"), *pieces, *buffers])

    def send_beside(self, name: bytes, payload: bytes, buffers: Sequence[Any] = ()) -> None:
        """Send one message that may overtake others, be overtaken, or be lost if its connection breaks; it does not
        keep those that `send` sends waiting.

        Raises:
            NoLink: the link is not up; nothing was sent.
        """
        link = self._links.get(name)
        if link is None or not link.up or link.dealer is None:
            self.send(name, payload, buffers)
            return
        if len(link.streams) < STREAMS:
            stream = self._dealer()
            stream.connect(f"tcp://{link.address}")
            stream.send_multipart([BESIDE, self.greeting.name], zmq.NOBLOCK)
            link.streams.append(stream)
        link.turn += 1
        stream = link.streams[link.turn % len(link.streams)]
        try:
            stream.send_multipart([MESSAGE, payload, *buffers], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError:  # too much waits there
            self.send(name, payload, buffers)

    def _push(self, link: _Link, parts: list[Any]) -> None:
        if link.outbox:
            link.outbox.append(parts)
            return
        if not self._sent(link, parts):
            link.outbox.append(parts)

    def _sent(self, link: _Link, parts: list[Any]) -> bool:
        """False: not now. If the peer is gone the link is down, and it is as good as sent."""
        try:
            if link.dealer is not None:
                self._touched.add(link.fd)
                link.dealer.send_multipart(parts, zmq.NOBLOCK, copy=False)
            else:
                assert self._router is not None
                self._touched.add(self._router_fd)
                self._router.send_multipart([link.route, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            self._lost(link, f"it cannot be reached: {error.strerror}")
        return True

    def ping(self) -> None:
        """Say something on every link, so that one that is down is noticed; to be called every second or so."""
        for link in list(self._links.values()):
            if not link.outbox:
                self._push(link, [PING])
        if self._door is not None:
            self._door.new_second()

    def flush(self) -> None:
        """Send what could not be sent; to be called now and then while `pending`."""
        for link in [*self._links.values(), *self._calling.values()]:
            while link.outbox and self._sent(link, link.outbox[0]):
                link.outbox.popleft()

    def pending(self) -> bool:
        """Whether anything waits to be sent here (not in ZeroMQ)."""
        return any(link.outbox for link in self._links.values()) or any(x.outbox for x in self._calling.values())

    # -- what comes

    def fileno(self) -> int:
        """Readable when `receive` may have something."""
        return self._epoll.fileno()

    def receive(self) -> Up | Down | Message | None:
        """The next thing that happened; None: nothing yet."""
        if not self._ready:
            # A ZeroMQ descriptor tells of a change once, and not if a send has taken notice of it: so those that may
            # have something are read to their end.
            touched, self._touched = self._touched, set()
            touched.update(fd for fd, _ in self._epoll.poll(0))
            for fd in touched:
                reader = self._readers.get(fd)
                if reader is not None:
                    reader()
        return self._ready.popleft() if self._ready else None

    def _watch(self, socket: zmq.Socket[bytes], reader: Callable[[], None]) -> int:
        fd = int(socket.getsockopt(zmq.FD))
        self._readers[fd] = reader
        self._touched.add(fd)
        self._epoll.register(fd, select.EPOLLIN)
        return fd

    def _unwatch(self, socket: zmq.Socket[bytes]) -> None:
        fd = int(socket.getsockopt(zmq.FD))
        del self._readers[fd]
        self._touched.discard(fd)
        self._epoll.unregister(fd)

    def _read_router(self) -> None:
        assert self._router is not None
        while (frames := _frames(self._router)) is not None:
            route, kind, *rest = frames
            link = self._routes.get(route.bytes)
            if kind.bytes == GREETING:
                if link is None:  # else its connection broke and was made again before it heard from us
                    self._was_called(route.bytes, rest)
            elif kind.bytes == BESIDE and rest:
                self._joined(route.bytes, rest[0].bytes)
            elif link is None:  # it does not know yet that the link is down
                self._refuse(route.bytes, "the link was given up on the other side")
            else:
                self._heard(link, kind.bytes, rest)

    def _joined(self, route: bytes, name: bytes) -> None:
        """A connection is the peer's for what is large."""
        link = self._links.get(name)
        if link is not None and self._routes.get(route) is None:
            self._routes[route] = link
            link.beside.append(route)

    def _read_dealer(self, link: _Link) -> None:
        while link.dealer is not None and (frames := _frames(link.dealer)) is not None:
            kind, *rest = frames
            if kind.bytes == REFUSAL and rest:
                self._lost(link, bytes(rest[0].bytes).decode("utf-8", "replace"))
            elif link.greeting is None and kind.bytes == GREETING:
                self._greeted(link, rest)
            elif link.up:
                self._heard(link, kind.bytes, rest)

    def _heard(self, link: _Link, kind: bytes, rest: list[zmq.Frame]) -> None:
        if kind == MESSAGE and rest:
            self._ready.append(Message(link.name, rest[0].bytes, [memoryview(frame.buffer) for frame in rest[1:]]))
        elif kind[:1] == LONG:
            pieces = int.from_bytes(kind[1:5], "little")
            payload = b"".join(frame.buffer for frame in rest[:pieces])
            self._ready.append(Message(link.name, payload, [memoryview(frame.buffer) for frame in rest[pieces:]]))
        elif kind == GOODBYE:
            said = bytes(rest[0].buffer[:MAX_REASON_BYTES]).decode("utf-8", "replace") if rest else ""
            self._lost(link, f"{LEFT}: {said}" if said else LEFT)

    # -- greetings

    def _was_called(self, route: bytes, rest: list[zmq.Frame]) -> None:
        """A peer's first message at our router."""
        greeting = _unpacked(rest)
        if greeting is None or greeting.name != _name_of(route):
            self._refuse(route, "its greeting is malformed")
            return
        refusal = self._refusal(greeting)
        if refusal:
            self._refuse(route, refusal)
            return
        for known in list(self._links.values()):
            if known.name == greeting.name or (known.address and known.address == greeting.address):
                self._lost(known, "it has connected anew")
        link = self._calling.get(greeting.address) if greeting.address else None
        if link is None:
            link = _Link(greeting.address)
            if greeting.address:
                self._call(link)
        link.route = route
        self._routes[route] = link
        self._name(link, greeting)
        if not greeting.address:
            self._push(link, [GREETING, _packed(self.greeting)])

    def _greeted(self, link: _Link, rest: list[zmq.Frame]) -> None:
        """The answer to a client's greeting, through the connection that it made."""
        greeting = _unpacked(rest)
        if greeting is not None:
            self._name(link, greeting)

    def _name(self, link: _Link, greeting: Greeting) -> None:
        if link.up:
            return
        link.name, link.greeting, link.up = greeting.name, greeting, True
        self._calling.pop(link.address, None)
        self._links[link.name] = link
        self._ready.append(Up(link.name, greeting))

    def _refuse(self, route: bytes, reason: str) -> None:
        assert self._router is not None
        self._touched.add(self._router_fd)
        try:
            self._router.send_multipart([route, REFUSAL, reason.encode()], zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # it is gone: all the better

    def _refusal(self, theirs: Greeting) -> str:
        mine = self.greeting
        if (theirs.protocol, theirs.version, theirs.python) == (mine.protocol, mine.version, mine.python):
            return ""
        return (
            f"{mine.host} runs dpool {mine.version} (protocol {mine.protocol}) on Python {mine.python}, "
            f"{theirs.host} runs dpool {theirs.version} (protocol {theirs.protocol}) on Python {theirs.python}; "
            "install the same on both"
        )

    # -- the end of links

    def _read_monitor(self, link: _Link) -> None:
        while link.monitor is not None and (parts := _received(link.monitor)) is not None:
            event = parse_monitor_message(parts)["event"]
            if event == zmq.EVENT_CONNECT_RETRIED:
                link.last_event = link.last_event or "nobody listens there, or the way is blocked"
            elif event == zmq.EVENT_DISCONNECTED and link.up:
                self._lost(link, "the connection broke")
            elif event == zmq.EVENT_DISCONNECTED:  # ZeroMQ connects again, but what was sent is lost
                link.outbox.clear()
                self._push(link, [GREETING, _packed(self.greeting)])
            else:
                link.last_event = "it does not accept this cluster's token, or is no gateway of dpool"

    def drop(self, name: bytes, reason: str) -> None:
        """End a link, for instance because the peer was declared dead; there will be a Down."""
        link = self._links.get(name)
        if link is not None:
            self._lost(link, reason)

    def _lost(self, link: _Link, reason: str) -> None:
        known = self._links.get(link.name) is link or self._calling.get(link.address) is link
        if not known:
            return
        if self._links.get(link.name) is link:
            del self._links[link.name]
        if self._calling.get(link.address) is link:
            del self._calling[link.address]
        for route in (link.route, *link.beside):
            self._routes.pop(route, None)
        self._ready.append(Down(link.name, link.address, reason))
        self._close(link)

    def _close(self, link: _Link) -> None:
        link.up = False
        link.outbox.clear()
        dealer, monitor = link.dealer, link.monitor
        link.dealer = link.monitor = None
        if monitor is not None and dealer is not None:
            self._unwatch(monitor)
            self._unwatch(dealer)
            dealer.disable_monitor()
            monitor.close(0)
            dealer.close()
        for stream in link.streams:
            stream.close(0)
        link.streams.clear()

    def close(self, why: str = "") -> None:
        """Say good-bye, and why, and end every link. What was sent is given half a second to leave."""
        for link in list(self._links.values()):
            if link.up:
                self._push(link, [GOODBYE, why.encode()])
        for link in [*self._links.values(), *self._calling.values()]:
            self._close(link)
        self._links.clear()
        self._calling.clear()
        self._routes.clear()
        if self._router is not None and self._door_monitor is not None and self._door is not None:
            self._unwatch(self._door_monitor)
            self._router.disable_monitor()
            self._door_monitor.close(0)
            self._door.close()
        for socket in (self._router, self._zap):
            if socket is not None:
                self._unwatch(socket)
                socket.close()
        self._router = self._zap = self._door = self._door_monitor = None
        self._epoll.close()
        self._context.term()


def _received(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


def _frames(socket: zmq.Socket[bytes]) -> list[zmq.Frame] | None:
    try:
        return socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None


def _packed(greeting: Greeting) -> bytes:
    return pickle.dumps(tuple(greeting))


def _unpacked(rest: list[zmq.Frame]) -> Greeting | None:
    """The peer knows the cluster's secret: what it sends may be unpickled."""
    try:
        greeting = Greeting(*pickle.loads(rest[0].bytes))
    except Exception:  # a peer of another age
        return None
    words = (greeting.address, greeting.host, greeting.version, greeting.python)
    if type(greeting.name) is not bytes or type(greeting.protocol) is not int:
        return None
    return greeting if all(type(word) is str for word in words) else None


def _route(name: bytes) -> bytes:
    """A routing id for one connection (which must not begin with a zero byte)."""
    return b"d" + name + os.urandom(_ROUTE_NUMBER)


def _name_of(route: bytes) -> bytes:
    return route[1:-_ROUTE_NUMBER]


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
