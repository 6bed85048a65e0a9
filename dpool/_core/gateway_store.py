"""The control store's way through the gateways: every machine of a cluster uses the head's.

```
 node's writer ══ Unix socket ══► gateway ── StoreBytes ──► gateway of the head ══ Unix socket ══► Redis
        (session directory)                                  (logs in, then passes on bytes)
```

The head says where the store is as soon as a link is up (`StoreShared`): at a URL that every machine can use, or here.
Nobody but the head's node and gateway knows the password of its Redis. A connection that is opened before the server
answers waits for it, as does one that comes while the server is started again.

Runs in the gateway's loop; nothing blocks. What one connection has under way is one request or one answer, as its only
user waits for each.
"""

from __future__ import annotations

import os
import select
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.net import NoLink

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway

SOCKET_NAME = "store.sock"
PIECE = 1 << 20
MOST_PIPES = 64
"""Connections of one machine at a time; a node has one, and a second while the first is being given up."""
LOGGED_IN = b"+OK\r\n"


class _Pipe:
    """One connection: our end of a Unix socket, and what the other machine has sent that it has not taken yet."""

    __slots__ = ("login", "number", "outbox", "peer", "sock")

    def __init__(self, peer: bytes, number: int, sock: socket.socket | None) -> None:
        self.peer = peer
        self.number = number
        self.sock = sock
        """None: the server is not there yet."""
        self.outbox = bytearray()
        self.login = b""
        """What the server still has to say before its answers are passed on."""


class StoreTunnel:
    """See the module."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._listener: socket.socket | None = None
        self._pipes: dict[tuple[bytes, int], _Pipe] = {}
        """Of those that we opened, and of those that were opened here: numbers are the opener's."""
        self._numbers = 0
        self._head = b""
        self._server: m.StoreServer | None = None
        self.shared: pm.StoreShared | None = None
        """Where the store is, once that is known."""

    def anybodys(self) -> bool:
        """Whether no way to the store, if there is one, goes through the head: then everybody can say where it is."""
        return self.shared is not None and (bool(self.shared.url) or not self.shared.session)

    # -- the head

    def begin(self, session: str, url: str) -> None:
        """We are the head."""
        self.shared = pm.StoreShared(session, url)

    def server_up(self, server: m.StoreServer) -> None:
        """Our node's Redis answers (again)."""
        self._server = server
        for pipe in [pipe for pipe in self._pipes.values() if pipe.sock is None]:
            self._connect(pipe)

    def opened(self, peer: bytes, message: pm.StoreOpened) -> None:
        """A machine wants a connection to it."""
        if sum(one == peer for one, _ in self._pipes) >= MOST_PIPES:
            self._say(peer, pm.StoreClosed(message.number))
            return
        pipe = self._pipes[peer, message.number] = _Pipe(peer, message.number, None)
        if self._server is not None:
            self._connect(pipe)

    def _connect(self, pipe: _Pipe) -> None:
        assert self._server is not None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._server.path)  # to a Unix socket: at once, or not at all
        except OSError:
            sock.close()
            self._server = None  # it is being started again, and its node will say so
            return
        sock.setblocking(False)
        pipe.sock, pipe.login = sock, LOGGED_IN
        words = (b"AUTH", self._server.user.encode(), self._server.password.encode())
        login = b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        pipe.outbox[:0] = login
        self._gateway._on(sock.fileno(), partial(self._event, pipe))
        self._flush(pipe)

    # -- the other machines

    def learned(self, head: bytes, message: pm.StoreShared) -> str:
        """The head says where it is; returns the URL for our node."""
        self._head, self.shared = head, message
        if message.url or not message.session:
            return message.url
        return self._listen()

    def _listen(self) -> str:
        path = os.path.join(self._gateway._settings.session, SOCKET_NAME)
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._listener.bind(path)
            os.chmod(path, 0o600)
            self._listener.listen(MOST_PIPES)
            self._gateway._on(self._listener.fileno(), self._accept)
        return f"unix://{path}"

    def _accept(self, mask: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        sock.setblocking(False)
        self._numbers += 1
        pipe = _Pipe(self._head, self._numbers, sock)
        self._pipes[pipe.peer, pipe.number] = pipe
        self._gateway._on(sock.fileno(), partial(self._event, pipe))
        if not self._say(pipe.peer, pm.StoreOpened(pipe.number)):
            self._end(pipe)

    # -- both

    def bytes_came(self, peer: bytes, message: pm.StoreBytes) -> None:
        """For one of our sockets."""
        pipe = self._pipes.get((peer, message.number))
        if pipe is not None:
            pipe.outbox += message.data
            if pipe.sock is not None:
                self._flush(pipe)

    def closed(self, peer: bytes, message: pm.StoreClosed) -> None:
        """The other side's socket is closed."""
        pipe = self._pipes.get((peer, message.number))
        if pipe is not None:
            self._end(pipe)

    def peer_down(self, peer: bytes) -> None:
        """All connections to and from there have ended."""
        for pipe in [pipe for pipe in self._pipes.values() if pipe.peer == peer]:
            self._end(pipe)

    def _event(self, pipe: _Pipe, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._flush(pipe)
        if mask & ~select.EPOLLOUT and pipe.sock is not None:
            self._read(pipe)

    def _read(self, pipe: _Pipe) -> None:
        assert pipe.sock is not None
        try:
            data = pipe.sock.recv(PIECE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data or not data.startswith(pipe.login[: len(data)]):  # at its end, or it does not let us in
            self._end(pipe)
            self._say(pipe.peer, pm.StoreClosed(pipe.number))
            return
        pipe.login, data = pipe.login[len(data) :], data[len(pipe.login) :]
        if data and not self._say(pipe.peer, pm.StoreBytes(pipe.number, data)):
            self._end(pipe)

    def _say(self, peer: bytes, message: Any) -> bool:
        try:
            self._gateway._say(peer, message)
        except NoLink:
            return False
        return True

    def _flush(self, pipe: _Pipe) -> None:
        assert pipe.sock is not None
        try:
            while pipe.outbox:
                del pipe.outbox[: pipe.sock.send(pipe.outbox)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # its end is read next
            pipe.outbox.clear()
        self._gateway._watch_writing(pipe.sock.fileno(), bool(pipe.outbox))

    def _end(self, pipe: _Pipe) -> None:
        del self._pipes[pipe.peer, pipe.number]
        if pipe.sock is not None:
            self._gateway._off(pipe.sock.fileno())
            pipe.sock.close()

    def close(self) -> None:
        """The gateway ends."""
        for pipe in list(self._pipes.values()):
            self._end(pipe)
        if self._listener is not None:
            self._gateway._off(self._listener.fileno())
            self._listener.close()
            self._listener = None
