"""Messages over Unix SOCK_SEQPACKET sockets: whole or not at all, with descriptors.

A message of up to `INLINE_LIMIT` bytes is one packet. A larger one is written to a memory file (memfd) whose descriptor
travels in a packet `M<length><summary>`; so a frame is never cut, and an unread frame can be taken back out of the
kernel's buffer as one piece, whatever its size. The first byte tells: 0x80 pickle (frames), 1…n control, `M` memory
file.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
from array import array
from collections import deque
from typing import Any

from dpool._core.config import INLINE_LIMIT as INLINE_LIMIT
from dpool._core.messages import ProtocolError as ProtocolError
from dpool._core.messages import decode, encode

_MEMFD = b"M"
_LENGTH = struct.Struct("<cQ")
_SIZE = (INLINE_LIMIT + 4096,)
MAX_DESCRIPTORS = 64
"""Descriptors that may come with one message."""
_ANCILLARY = (socket.CMSG_SPACE(MAX_DESCRIPTORS * 4),)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)  # plain ints: or-ing the enum's members takes longer than the system call
DONTWAIT = int(socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_NOSIGNAL) | DONTWAIT
_CUT = int(socket.MSG_CTRUNC | socket.MSG_TRUNC)


class Closed(Exception):
    """The peer is gone."""


class DescriptorsLost(Exception):
    """A message came without its descriptors: this process may not open any more (see `ulimit -n`).

    `summary`: what its sender has said for this case.
    """

    def __init__(self, summary: bytes) -> None:
        super().__init__()
        self.summary = summary


def memory_file(data: bytes | memoryview, name: str = "dpool-frame") -> int:
    """A memory file that holds `data`; the caller closes the descriptor. OSError if memory is exhausted."""
    fd = os.memfd_create(name)
    try:
        os.posix_fallocate(fd, 0, len(data))
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.write(fd, view[done : done + (1 << 30)])
    except BaseException:
        os.close(fd)
        raise
    return fd


def send(
    sock: socket.socket, data: bytes, fds: tuple[int, ...] = (), sent: list[int] | None = None, summary: bytes = b""
) -> None:
    """Send one message at once; BlockingIOError if the peer's buffer is full, OSError if it is gone.

    `sent` is not empty exactly when the message has gone, whatever a signal handler may raise meanwhile. `summary`: all
    that a peer gets of a large message that may open no more descriptors.
    """
    if sent is None:
        sent = []
    if len(data) > INLINE_LIMIT:
        fd = memory_file(data)
        try:
            rights = [_rights((fd, *fds))]
            sent.extend(map(sock.sendmsg, ([_LENGTH.pack(_MEMFD, len(data)) + summary],), (rights,), (_SEND,)))
        finally:
            os.close(fd)
    elif fds:
        sent.extend(map(sock.sendmsg, ([data],), ([_rights(fds)],), (_SEND,)))
    else:
        sent.extend(map(sock.send, (data,), (_SEND,)))


def _rights(fds: tuple[int, ...]) -> tuple[int, int, array[int]]:
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))


class Receiver:
    """Receives messages; not thread-safe.

    A message stays in `inbox` until `consumed`: should a signal handler raise while it is worked on, `receive` gives
    it again. It gets there in one call of C code, so there is no moment in which it is read and not yet kept.
    """

    __slots__ = ("fds", "inbox", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox: deque[tuple[Any, Any, int, Any]] = deque()
        self.fds: list[int] = []
        """The descriptors that came with the last message; the caller owns them."""

    def receive(self, flags: int = 0) -> bytes | mmap.mmap:
        """The next message. Closed at the end, BlockingIOError when none waits."""
        inbox = self.inbox
        if not inbox:
            inbox.extend(map(self.sock.recvmsg, _SIZE, _ANCILLARY, (flags | _CLOEXEC,)))
        data, ancillary, msg_flags, _ = inbox[0]
        if not ancillary and not msg_flags & _CUT:
            if not data:
                inbox.clear()
                raise Closed
            return data  # type: ignore[no-any-return]
        return self._with_descriptors(data, ancillary, msg_flags)

    def consumed(self) -> None:
        """The message has been dealt with."""
        self.inbox.clear()

    def _with_descriptors(self, data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> bytes | mmap.mmap:
        fds = array("i")
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
        self.fds = list(fds)
        large = len(data) >= _LENGTH.size and data[:1] == _MEMFD
        if flags & _CUT:
            self.close_fds()
            self.inbox.clear()
            if flags & socket.MSG_TRUNC:
                raise ProtocolError("a packet longer than the limit")
            if large:
                raise DescriptorsLost(data[_LENGTH.size :])
            return data  # a control message; its reader sees that the descriptors are missing
        if large:
            try:
                mapped = self._map(data)
            except ProtocolError:
                self.close_fds()
                self.inbox.clear()
                raise
            self.inbox[0] = (mapped, (), 0, None)
            return mapped
        return data

    def _map(self, data: bytes) -> mmap.mmap:
        if not self.fds:
            raise ProtocolError("a memory file without its descriptor")
        fd = self.fds.pop(0)
        try:
            length = _LENGTH.unpack_from(data)[1]
            if os.fstat(fd).st_size != length or length == 0:
                raise ProtocolError("a memory file of another length than announced")
            return mmap.mmap(fd, length, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def take_fds(self) -> list[int]:
        """The descriptors that came with the last message; the caller's from now on."""
        fds, self.fds = self.fds, []
        return fds

    def close_fds(self) -> None:
        """Close the descriptors that came with the last message."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def loads(data: bytes | mmap.mmap) -> Any:
    """Unpickle a frame."""
    return pickle.loads(data)


class ControlChannel:
    """Control messages with their descriptors over one socket, with an outbox so that `send` never blocks.

    `pending` is true while the outbox waits for the peer to read; the owner then watches for writability and calls
    `flush`. The outbox is bounded: a peer that does not read while `limit` messages wait is treated as gone.
    """

    __slots__ = ("_outbox", "_receiver", "limit", "sock", "unread")

    def __init__(self, sock: socket.socket, limit: int = 100_000) -> None:
        self.sock = sock
        self.unread = False
        """The peer has closed and left something unread that was sent to it, as the kernel says."""
        self._receiver = Receiver(sock)
        self._outbox: list[tuple[bytes, tuple[int, ...]]] = []
        self.limit = limit

    @property
    def pending(self) -> bool:
        return bool(self._outbox)

    def waiting(self) -> int:
        """Messages in the outbox."""
        return len(self._outbox)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        """Send or queue; descriptors are duplicated if they must wait. Closed when the peer is gone or does not
        read.
        """
        data = encode(message)
        if not self._outbox:
            try:
                send(self.sock, data, fds)
                return
            except BlockingIOError:
                pass
            except OSError as error:
                self.unread = True
                raise Closed(str(error)) from error
        if len(self._outbox) >= self.limit:
            raise Closed(f"the peer has not read {self.limit} messages")
        self._outbox.append((data, tuple(os.dup(fd) for fd in fds)))

    def flush(self) -> None:
        """Send what waits, as far as the peer takes it."""
        while self._outbox:
            data, fds = self._outbox[0]
            try:
                send(self.sock, data, fds)
            except BlockingIOError:
                return
            except OSError as error:
                self.unread = True
                raise Closed(str(error)) from error
            del self._outbox[0]
            for fd in fds:
                os.close(fd)

    def receive(self, flags: int = DONTWAIT) -> tuple[Any, list[int]]:
        """The next message and its descriptors (the caller's from now on)."""
        self._receiver.fds = []
        try:
            try:
                data = self._receiver.receive(flags)
            except ConnectionResetError:  # it closed without reading all of ours; what it had said is still to be read
                self.unread = True
                data = self._receiver.receive(flags)
        except OSError as error:
            if isinstance(error, (BlockingIOError, InterruptedError)):
                raise
            raise Closed(str(error)) from error
        try:
            message = decode(data if isinstance(data, bytes) else data[:])
        except ProtocolError:
            self._receiver.close_fds()
            raise
        finally:
            self._receiver.consumed()
        fds, self._receiver.fds = self._receiver.fds, []
        return message, fds

    def close(self) -> None:
        for _, fds in self._outbox:
            for fd in fds:
                os.close(fd)
        self._outbox.clear()
        self.sock.close()
