"""Sealed records over a TCP connection: what a submitter and its worker on another machine say to each other directly.

```
 record:  length and mark (4 bytes) | AES-256-GCM of the frame, and its tag (16 bytes)
```

The key is made for this one connection by the worker's gateway and reaches both ends through gateways and the sockets
of their own machines: so who opens a record knows that the other end made it. A record's nonce is its number and the
direction: one that was changed, left out, repeated or put elsewhere does not open, and then the connection is `Broken`.

Each end is used by one thread at a time. Nothing blocks but `Records.send_all`.
"""

from __future__ import annotations

import socket
import struct
from select import POLLOUT, poll
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LIMIT = 1 << 20
"""Bytes of the largest frame that travels so; others go through the gateways, which cut them into pieces."""
MARK = 1 << 31
"""In the length: the frame is marked; what that means is its reader's affair."""
SUBMITTER, WORKER = b"s", b"w"
"""The ends."""
QUIET_S = 10
"""After so long without a sign of the other machine the kernel gives the connection up."""
_HEAD = struct.Struct("<I")
_TAG = 16
_CHUNK = 1 << 16
_DONTWAIT = int(socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_NOSIGNAL) | _DONTWAIT


class Broken(OSError):
    """The connection has ended, or cannot be trusted any more."""


class Records:
    """One end of a connection. `side`: which; the socket is its own from now on."""

    __slots__ = ("_aead", "_got", "_opened", "_sealed", "_sides", "_unsent", "sock")

    def __init__(self, sock: socket.socket, key: bytes, side: bytes) -> None:
        self.sock = sock
        self._aead = AESGCM(key)
        self._sides = (SUBMITTER, WORKER) if side == SUBMITTER else (WORKER, SUBMITTER)
        self._sealed = 0
        self._opened = 0
        self._got = b""
        self._unsent = b""

    def fileno(self) -> int:
        return self.sock.fileno()

    # -- out

    def send(self, frame: bytes, mark: bool) -> None:
        """Send one; what the kernel does not take at once waits for `flush`. Broken: it did not go out."""
        head = _HEAD.pack(len(frame) + _TAG | mark * MARK)
        record = head + self._aead.encrypt(self._nonce(self._sides[0], self._sealed), frame, head)
        self._sealed += 1
        if self._unsent:
            self._unsent += record
        else:
            self._unsent = record
            self.flush()

    def flush(self) -> bool:
        """Send what waits; whether all of it has gone."""
        while self._unsent:
            try:
                sent = self.sock.send(self._unsent, _SEND)
            except BlockingIOError:
                return False
            except OSError as error:
                raise Broken(str(error)) from error
            self._unsent = self._unsent[sent:]
        return True

    def send_all(self, frame: bytes, mark: bool) -> None:
        """The same, and wait until all of it has gone."""
        self.send(frame, mark)
        while not self.flush():
            waiter = poll()
            waiter.register(self.sock.fileno(), POLLOUT)
            waiter.poll()

    # -- in

    def receive(self) -> tuple[bytes, bool] | None:
        """The next frame, and whether it is marked; None: none is there yet."""
        found = self._open()
        while found is None:
            try:
                chunk = self.sock.recv(_CHUNK, _DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                raise Broken(str(error)) from error
            if not chunk:
                raise Broken("the other side has closed it")
            self._got = self._got + chunk if self._got else chunk
            found = self._open()
        return found

    def waiting(self) -> bool:
        """Whether something has been read that was not asked for yet."""
        return len(self._got) >= _HEAD.size

    def _open(self) -> tuple[bytes, bool] | None:
        got = self._got
        if len(got) < _HEAD.size:
            return None
        (length,) = _HEAD.unpack_from(got)
        mark = bool(length & MARK)
        end = _HEAD.size + (length & ~MARK)
        if not _HEAD.size + _TAG <= end <= _HEAD.size + _TAG + LIMIT:
            raise Broken("a record of a length that none has")
        if len(got) < end:
            return None
        view = memoryview(got)
        try:
            frame = self._aead.decrypt(
                self._nonce(self._sides[1], self._opened), view[_HEAD.size : end], view[: _HEAD.size]
            )
        except InvalidTag:
            raise Broken("a record that was not made with this connection's key, or is not the next one") from None
        self._opened += 1
        self._got = got[end:] if len(got) > end else b""
        return frame, mark

    @staticmethod
    def _nonce(side: bytes, number: int) -> bytes:
        return side + b"\0\0\0" + number.to_bytes(8, "little")

    def close(self) -> None:
        self.sock.close()


def prepare(sock: socket.socket) -> None:
    """What every such connection is set to: small records leave at once, and a dead machine is noticed."""
    options: list[tuple[Any, int, int]] = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET_S // 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, QUIET_S // 2),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, QUIET_S * 1000),
    ]
    sock.setblocking(False)
    for level, name, value in options:
        sock.setsockopt(level, name, value)
