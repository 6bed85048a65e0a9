"""The gateway's part in direct connections between a submitter and a worker of another machine.

```
 submitter's gateway                                       worker's gateway
 Caller ── connects, says the token ── TCP ──────────────► Door
   │ the socket, and the key                                │ the socket, and the key
   ▼                                                        ▼
 submitter ══════════ sealed records, from now on ═══════► worker
```

Token and key are made for one lease and travel over the link between the gateways (LeaseGiven). The token says only
which lease a connection is for; what is said on it is nobody's who does not have the key (see sealed.py). If the
connection cannot be made, frames go through the gateways, as they do for everything that is not plain.

Part of the gateway; its loop.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import pickle
import select
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from dpool._core import frames

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway, _Guest

TOKEN_BYTES = 16
KEY_BYTES = 32
CONNECT_S = 0.5
TOKEN_S = 5.0
"""After so long a caller that has not said its token is turned away."""
MOST_WAITING = 64
"""So many callers may be about to say theirs; one more, and the first of them is turned away."""
REST_S = 1.0
AGAIN_S = 60.0
"""A machine that cannot be reached directly is not tried again for so long."""
MOST_FAILURES = 200
"""After so many that were turned away within a second nobody is let in until the next one."""
BACKLOG = 128


class Door:
    """Where submitters of other machines connect to workers of this one."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._listener: socket.socket | None = None
        self._port = 0
        self._expected: dict[bytes, _Guest] = {}
        self._waiting: dict[int, tuple[socket.socket, bytearray]] = {}
        self._failures = 0
        self._since = 0.0
        self._resting = False

    def listen(self, ip: str) -> None:
        """On any port; not at all, if direct connections are not wanted."""
        if not possible(self._gateway.config.direct):
            return
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind((ip, 0))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener, self._port = listener, listener.getsockname()[1]
        self._gateway._on(listener.fileno(), self._accept)

    def offer(self, guest: _Guest) -> tuple[int, bytes, bytes]:
        """Port, token and key for the submitter of a worker; port 0: it cannot connect."""
        if self._listener is None:
            return 0, b"", b""
        guest.token, guest.key = os.urandom(TOKEN_BYTES), os.urandom(KEY_BYTES)
        self._expected[guest.token] = guest
        return self._port, guest.token, guest.key

    def forget(self, guest: _Guest) -> None:
        """Its lease has ended."""
        self._expected.pop(guest.token, None)

    def _accept(self, mask: int) -> None:
        assert self._listener is not None
        while not self._resting:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                if not self._waiting:  # whoever calls waits until there are descriptors again, and goes another way
                    self._rest()
                    return
                self._turn_away(next(iter(self._waiting)))
                continue
            while len(self._waiting) >= MOST_WAITING:
                self._turn_away(next(iter(self._waiting)))
            sock.setblocking(False)
            self._waiting[sock.fileno()] = (sock, bytearray())
            self._gateway._on(sock.fileno(), partial(self._token, sock))
            self._gateway._at(TOKEN_S, partial(self._late, sock))

    def _rest(self) -> None:
        """Do not look at the listener for a moment; who calls meanwhile waits, or is dropped by the kernel."""
        if self._listener is not None and not self._resting:
            self._resting = True
            self._gateway._off(self._listener.fileno())
            self._gateway._at(REST_S, self._look_again)

    def _look_again(self) -> None:
        self._resting = False
        if self._listener is not None:
            self._gateway._on(self._listener.fileno(), self._accept)

    def _late(self, sock: socket.socket) -> None:
        known = self._waiting.get(sock.fileno())
        if known is not None and known[0] is sock:
            self._turn_away(sock.fileno())

    def _turn_away(self, fd: int) -> None:
        sock, _ = self._waiting.pop(fd)
        self._gateway._off(fd)
        sock.close()
        now = monotonic()
        if now - self._since > REST_S:
            self._since, self._failures = now, 0
        self._failures += 1
        if self._failures > MOST_FAILURES:
            self._rest()

    def _token(self, sock: socket.socket, mask: int) -> None:
        """A caller says for which lease it comes."""
        fd = sock.fileno()
        said = self._waiting[fd][1]
        try:
            part = sock.recv(TOKEN_BYTES - len(said))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            part = b""
        said += part
        if part and len(said) < TOKEN_BYTES:
            return
        guest = self._expected.pop(bytes(said), None)
        if guest is None or guest.incoming is None:
            self._turn_away(fd)
            return
        del self._waiting[fd]
        self._gateway._off(fd)
        frame = pickle.dumps((0, frames.DIRECT, guest.key, 0, []), 5)
        guest.incoming.frame(frame, (sock.detach(),))
        self._gateway._watch_writing(guest.incoming.fileno(), guest.incoming.wants_to_write())

    def close(self) -> None:
        """No more connections."""
        listener, self._listener = self._listener, None
        for fd in list(self._waiting):
            self._turn_away(fd)
        if listener is not None:
            self._gateway._off(listener.fileno())
            listener.close()


class Caller:
    """Connects submitters of this machine to workers of others."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._possible = possible(gateway.config.direct)
        self._in_vain: dict[bytes, float] = {}

    def connect(self, peer: bytes, port: int, token: bytes, then: Callable[[socket.socket | None], None]) -> None:
        """Call a worker's door; `then` gets the connection, or None."""
        address = self._gateway.peers[peer].address if peer in self._gateway.peers else ""
        if not (self._possible and port and address) or self._in_vain.get(peer, 0.0) > monotonic():
            then(None)
            return
        host = address.rpartition(":")[0].strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect((host, port))
        except BlockingIOError:
            pass
        except OSError:
            self._failed(peer, sock, then)
            return
        self._gateway._on(sock.fileno(), partial(self._connected, peer, sock, token, then))
        self._gateway._epoll.modify(sock.fileno(), select.EPOLLOUT)
        self._gateway._at(CONNECT_S, partial(self._late, peer, sock, then))

    def _connected(
        self, peer: bytes, sock: socket.socket, token: bytes, then: Callable[[socket.socket | None], None], mask: int
    ) -> None:
        from dpool._core import sealed

        self._gateway._off(sock.fileno())
        try:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            sealed.prepare(sock)
            sock.send(token)
        except OSError:
            self._failed(peer, sock, then)
            return
        copy = socket.socket(fileno=sock.detach())
        then(copy)

    def _late(self, peer: bytes, sock: socket.socket, then: Callable[[socket.socket | None], None]) -> None:
        if sock.fileno() >= 0:
            self._gateway._off(sock.fileno())
            self._failed(peer, sock, then)

    def _failed(self, peer: bytes, sock: socket.socket, then: Callable[[socket.socket | None], None]) -> None:
        sock.close()
        self._in_vain[peer] = monotonic() + AGAIN_S
        then(None)

    def peer_down(self, peer: bytes) -> None:
        """Should it come back it is tried again."""
        self._in_vain.pop(peer, None)


def possible(wanted: bool) -> bool:
    """Whether connections can be made here that nobody else can read."""
    return wanted and importlib.util.find_spec("cryptography") is not None
