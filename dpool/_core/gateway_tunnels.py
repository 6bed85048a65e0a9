"""The gateway's tunnels: connections of processes here to nodes of other machines, and streams between machines.

```
 process ── FarOpen, then Sync… ──► gateway ═ TunnelOpened, TunnelData ═►  gateway ── socket pair ──► its node
         ◄── answers, descriptors ──        ◄═══════ TunnelData ═════════          ◄── answers, descriptors ──
 process ◄══ stream ══► gateway ◄═════════ TunnelData, TunnelRead ═══════► gateway ◄══ stream ══► a pipe, a listener
```

A tunnel has two open ends, one on each machine. What is read at one end is written at the other, whole packets or
bytes, in order; no more is under way than the window. A descriptor that the node answers with becomes a tunnel of its
own, for a stream. `TunnelRead` says how much has been written; to a process: read, as it has said something since. So
if the link goes down, or the process ends, the node is told to take back what its last answer gave (`SyncReturn`) if
nobody is known to have read it.

To the node, processes of other machines are connections of this gateway with process numbers above 2**32; `FarEnded`
says that one has ended. What packets refer to in the object store is held here, and its home told, before they are
passed on, and until the next packet comes the other way.

Part of the gateway; its loop.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dpool._core import ids, launch, wire
from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.config import PROTOCOL
from dpool._core.gateway_objects import Steps

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway

PID_BITS = 32
"""A process of another machine: the number of its gateway's link, then so many bits of its process id there."""
WINDOW_PACKETS = 64
WINDOW_BYTES = 1 << 20
READ_BYTES = 128 << 10
AT_ONCE = 16
"""Reads from one end before others have their turn."""
BUSY_S = 0.02
"""Whoever listens and has a full queue is asked again after so long, …"""
BUSY_TRIES = 500
"""… so often."""

Key = tuple[bytes, int, bool]
"""The peer, the number, and whether it is we who have numbered."""


class _Packets:
    """An end that has packets with descriptors."""

    window = WINDOW_PACKETS
    reads = True

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._receiver = wire.Receiver(sock)
        self.unread = False
        """It has closed without reading all."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> tuple[bytes, list[int]]:
        """One packet; wire.Closed at the end."""
        try:
            data = self._receiver.receive(wire.DONTWAIT)
        except ConnectionResetError:
            self.unread = True
            data = self._receiver.receive(wire.DONTWAIT)
        self._receiver.consumed()
        return (data if isinstance(data, bytes) else data[:]), self._receiver.take_fds()

    def write(self, data: Any, fds: tuple[int, ...]) -> int:
        try:
            wire.send(self._sock, data, fds)
        except BlockingIOError:
            return 0
        except OSError:
            self.unread = True
            raise
        return len(data)

    def close(self) -> None:
        self._receiver.close_fds()
        self._sock.close()


class _Stream:
    """A connected socket; its flags are shared with others, so each call says that it must not wait."""

    window = WINDOW_BYTES
    reads = True
    unread = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> tuple[bytes, list[int]]:
        data = self._sock.recv(READ_BYTES, socket.MSG_DONTWAIT)
        if not data:
            raise wire.Closed
        return data, []

    def write(self, data: Any, fds: tuple[int, ...]) -> int:
        try:
            return self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self._sock.close()


class _Fifo:
    """One end of a pipe, opened anew: an open file of our own, which does not wait."""

    window = WINDOW_BYTES
    unread = False

    def __init__(self, fd: int) -> None:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        self.reads = mode == os.O_RDONLY
        self._fd = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_CLOEXEC)
        os.close(fd)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> tuple[bytes, list[int]]:
        data = os.read(self._fd, READ_BYTES) if self.reads else b""
        if not data:
            raise wire.Closed
        return data, []

    def write(self, data: Any, fds: tuple[int, ...]) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self._fd)


End = _Packets | _Stream | _Fifo


def _end_of(fd: int) -> End | None:
    """What a descriptor is that a node has answered with; None (and closed) if it cannot pass to another machine."""
    kind = os.fstat(fd).st_mode
    if stat.S_ISFIFO(kind):
        return _Fifo(fd)
    if stat.S_ISSOCK(kind):
        return _Stream(socket.socket(fileno=fd))
    os.close(fd)
    return None


class _Tunnel:
    """One of them, with its end here."""

    __slots__ = (
        "acked",
        "end",
        "finishing",
        "greets",
        "key",
        "out",
        "passed",
        "pid",
        "sent",
        "steps",
        "tokens",
        "told",
    )

    def __init__(self, key: Key, end: End | None, pid: int) -> None:
        self.key = key
        self.end = end
        """None: not yet."""
        self.pid = pid
        """Whose it is, at the machine where it began; 0: a stream."""
        self.greets = False
        """The next packet from the other machine is a SyncHello."""
        self.sent = 0
        """Packets or bytes that were read here, …"""
        self.acked = 0
        """… and of these, what has been written over there (by a process: read)."""
        self.passed = 0
        """The same the other way round, …"""
        self.told = 0
        """… as far as it has been said."""
        self.out: deque[tuple[Any, tuple[int, ...]]] = deque()
        self.finishing = False
        """The other end has closed: so does this one, when all is written."""
        self.steps = Steps()
        """What comes from the other machine, in order."""
        self.tokens: list[int] = []
        """Under which we hold what the last packet from there refers to."""


class Tunnels:
    """See the module."""

    def __init__(self, gateway: Gateway, session: str, log: Callable[..., None]) -> None:
        self._gateway = gateway
        self._log = log
        self._by_key: dict[Key, _Tunnel] = {}
        self._alive: set[_Tunnel] = set()
        """Those that are finishing, too."""
        self._callers: dict[int, socket.socket] = {}
        """Connections that have not said what they want."""
        self._pids: dict[int, tuple[int, set[bytes]]] = {}
        """Process here that has tunnels → its pidfd, and the peers that know it."""
        self._links: dict[bytes, int] = {}
        self._far_pids: dict[bytes, set[int]] = {}
        self._count = 0
        self._registered: dict[int, int] = {}
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each thread, anywhere, that waits
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        path = os.path.join(session, launch.GATEWAY_SOCKET)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(128)
        self._listener = listener
        gateway._on(listener.fileno(), self._accept)

    # -- processes here

    def _accept(self, mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it is gone again
            return
        except OSError as error:  # no descriptors left, most likely; who waits is let in when there are some
            self._log("tunnel.accept_failed", error=error)
            self._gateway._off(self._listener.fileno())
            self._gateway._at(BUSY_S, lambda: self._gateway._on(self._listener.fileno(), self._accept))
            return
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            sock.close()
            return
        self._callers[sock.fileno()] = sock
        self._gateway._on(sock.fileno(), partial(self._caller_said, sock, pid))

    def _caller_said(self, sock: socket.socket, pid: int, mask: int) -> None:
        try:
            data = sock.recv(wire.INLINE_LIMIT, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._gateway._off(sock.fileno())
        del self._callers[sock.fileno()]
        try:
            message = m.decode(data or b"\0")
            if type(message) is not m.FarOpen:
                raise m.ProtocolError(f"{type(message).__name__} is not for a gateway")
            if (message.protocol, message.version, message.python) != (PROTOCOL, *m.versions()):
                raise m.ProtocolError(f"this gateway runs dpool {m.versions()[0]} on Python {m.versions()[1]}")
            self._open(sock, pid, message)
        except (OSError, m.ProtocolError) as error:
            self._log("tunnel.refused", pid=pid, error=error)
            sock.close()

    def _open(self, sock: socket.socket, pid: int, message: m.FarOpen) -> None:
        objects = self._gateway.objects
        tag = ids.tag_of(message.session)
        peer = objects.machine_of(tag)
        if peer is None:
            why = objects.why_lost(tag)
            wire.send(sock, m.encode(m.FarOpened(m.FAR_LOST if why else m.FAR_UNKNOWN, "", why)))
            sock.close()
            return
        opened = m.encode(m.FarOpened(m.FAR_OPEN, self._gateway.peers[peer].host, ""))
        self._count += 1
        key = (peer, self._count, True)
        if message.path:
            ours, theirs = socket.socketpair()
            with theirs, sock:
                self._begin(_Tunnel(key, _Stream(ours), 0))
                wire.send(sock, opened, (theirs.fileno(),))
        else:
            wire.send(sock, opened)
            self._begin(_Tunnel(key, _Packets(sock), pid))
        self._gateway._say_if_up(peer, pm.TunnelOpened(key[1], pid, message.path))
        if not message.path:
            self._watch_process(pid, peer)

    def _watch_process(self, pid: int, peer: bytes) -> None:
        """Its end is told when all that it has said is."""
        known = self._pids.get(pid)
        if known is not None:
            known[1].add(peer)
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # it has ended, and been reaped
            self._pids[pid] = -1, {peer}
            self._gateway._at(0, partial(self._process_ended, pid, 0))
            return
        self._pids[pid] = pidfd, {peer}
        self._gateway._on(pidfd, partial(self._process_ended, pid))

    def _process_ended(self, pid: int, mask: int) -> None:
        pidfd, peers = self._pids.pop(pid)
        if pidfd >= 0:
            self._gateway._off(pidfd)
            os.close(pidfd)
        for tunnel in [one for one in self._by_key.values() if one.pid == pid and one.key[2]]:
            self._read(tunnel, to_the_end=True)
        for peer in peers:
            self._gateway._say_if_up(peer, pm.ProcessEnded(pid))

    # -- what other gateways say

    def peer_up(self, peer: bytes) -> None:
        """There is a link to another machine's gateway."""
        self._count += 1
        self._links[peer] = self._count
        self._far_pids[peer] = set()

    def peer_down(self, peer: bytes, reason: str) -> None:
        """There is none any more: whoever waits for an answer is told, and processes there are as if dead."""
        for tunnel in [one for one in self._alive if one.key[0] == peer]:
            if not isinstance(tunnel.end, _Packets):
                pass
            elif tunnel.key[2]:
                self._write(tunnel, m.encode(m.Refused(reason)), ())
            elif tunnel.acked < tunnel.sent:
                self._take_back(tunnel)
            if tunnel in self._alive:
                self._close(tunnel)
        for pid in self._far_pids.pop(peer, ()):
            self._gateway._tell(m.FarEnded(pid))
        self._links.pop(peer, None)
        for _, peers in self._pids.values():
            peers.discard(peer)

    def opened(self, peer: bytes, message: pm.TunnelOpened) -> None:
        """A process there has something to say here. It may connect to whatever its user has here: whoever knows the
        cluster's secret runs programs as that user.
        """
        if peer not in self._links:
            return
        key = (peer, message.tunnel, False)
        if message.path:
            self._begin(_Tunnel(key, None, 0))
            self._connect(key, message.path, BUSY_TRIES)
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._gateway._tell(m.OpenStore(), (theirs.fileno(),))
        pid = self._links[peer] << PID_BITS | message.pid
        self._far_pids[peer].add(pid)
        tunnel = _Tunnel(key, _Packets(ours), pid)
        tunnel.greets = True
        self._begin(tunnel)

    def _connect(self, key: Key, path: str, tries: int) -> None:
        tunnel = self._by_key.get(key)
        if tunnel is None:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)
        except BlockingIOError:
            sock.close()
            if tries:
                self._gateway._at(BUSY_S, partial(self._connect, key, path, tries - 1))
            else:
                self._ended(tunnel)
        except OSError as error:
            self._log("tunnel.nobody_listens", path=path, error=error)
            sock.close()
            self._ended(tunnel)
        else:
            tunnel.end = _Stream(sock)
            self._flush(tunnel)

    def data(self, peer: bytes, message: pm.TunnelData, frame: bytes) -> None:
        """A packet, or bytes, for an end here."""
        if peer not in self._links:
            return
        streams = [self._begin(_Tunnel((peer, number, False), None, 0)) for number in message.streams]
        tunnel = self._by_key.get((peer, message.tunnel, message.yours))
        if tunnel is None:
            for stream in streams:
                self._ended(stream)
            return
        deliver = partial(self._deliver, tunnel, frame, streams)
        if not message.refs:
            tunnel.steps.add(deliver)
            return
        step = tunnel.steps.add(deliver, ready=False)
        token = self._gateway.objects.new_token()
        tunnel.tokens.append(token)
        self._gateway.objects.arrived(token, message.refs, partial(tunnel.steps.now, step))

    def _deliver(self, tunnel: _Tunnel, frame: bytes, streams: list[_Tunnel]) -> None:
        fds = []
        for stream in streams:
            ours, theirs = socket.socketpair()
            fds.append(theirs.detach())
            stream.end = _Stream(ours)
            if stream in self._alive:
                self._flush(stream)
            else:
                ours.close()
        try:
            if tunnel.greets:
                tunnel.greets = False
                frame = self._as_ours(tunnel, frame)
            if tunnel in self._alive:
                self._write(tunnel, frame, tuple(fds))
        except m.ProtocolError as error:
            self._log("tunnel.malformed", error=error)
            self._ended(tunnel)
        finally:
            for fd in fds:
                os.close(fd)

    def _as_ours(self, tunnel: _Tunnel, frame: bytes) -> bytes:
        """A SyncHello, under the number that the process has here."""
        hello = m.decode(frame)
        if type(hello) is not m.SyncHello:
            raise m.ProtocolError(f"a tunnel begins with {type(hello).__name__}")
        return m.encode(hello._replace(pid=tunnel.pid, page=False))

    def read(self, peer: bytes, message: pm.TunnelRead) -> None:
        """More has been passed on there."""
        tunnel = self._by_key.get((peer, message.tunnel, message.yours))
        if tunnel is not None:
            tunnel.acked = message.passed
            self._watch(tunnel)

    def closed(self, peer: bytes, message: pm.TunnelClosed) -> None:
        """The end there has closed."""
        tunnel = self._by_key.get((peer, message.tunnel, message.yours))
        if tunnel is not None:
            tunnel.steps.add(partial(self._finish, tunnel, message))

    def _finish(self, tunnel: _Tunnel, message: pm.TunnelClosed) -> None:
        if tunnel not in self._alive:
            return
        self._by_key.pop(tunnel.key, None)
        ours = tunnel.key[2]
        if isinstance(tunnel.end, _Packets) and not ours and (message.unread or message.passed < tunnel.sent):
            self._take_back(tunnel)
        tunnel.finishing = True
        if tunnel in self._alive:
            self._flush(tunnel)

    def _take_back(self, tunnel: _Tunnel) -> None:
        """What the node's last answer gave has not been read."""
        self._write(tunnel, m.encode(m.SyncReturn(0)), ())

    def process_ended(self, peer: bytes, message: pm.ProcessEnded) -> None:
        """A process there is no more."""
        if peer not in self._links:
            return
        pid = self._links[peer] << PID_BITS | message.pid
        self._far_pids[peer].discard(pid)
        self._gateway._tell(m.FarEnded(pid))

    # -- ends here

    def _begin(self, tunnel: _Tunnel) -> _Tunnel:
        self._by_key[tunnel.key] = tunnel
        self._alive.add(tunnel)
        self._watch(tunnel)
        return tunnel

    def _event(self, tunnel: _Tunnel, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._flush(tunnel)
        if mask & ~select.EPOLLOUT and tunnel in self._alive:
            self._read(tunnel)

    def _watch(self, tunnel: _Tunnel) -> None:
        """What is asked of the end's descriptor; one that is to be left alone would say again and again that it is
        closed.
        """
        end = tunnel.end
        if end is None or tunnel not in self._alive:
            return
        fd, may_read = end.fileno(), tunnel.sent - tunnel.acked < end.window and not tunnel.finishing
        wanted = select.EPOLLIN * (end.reads and may_read) | select.EPOLLOUT * bool(tunnel.out)
        known = self._registered.get(fd)
        if not wanted and (end.reads or tunnel.finishing):
            self._unwatch(fd)
        elif known is None:
            self._registered[fd] = wanted
            self._gateway._on(fd, partial(self._event, tunnel))
            self._gateway._epoll.modify(fd, wanted)
        elif known != wanted:
            self._registered[fd] = wanted
            self._gateway._epoll.modify(fd, wanted)

    def _unwatch(self, fd: int) -> None:
        if self._registered.pop(fd, None) is not None:
            self._gateway._off(fd)

    def _read(self, tunnel: _Tunnel, to_the_end: bool = False) -> None:
        end = tunnel.end
        if end is None:
            return
        left = AT_ONCE
        while tunnel in self._alive and not tunnel.finishing:
            if not to_the_end and (not left or tunnel.sent - tunnel.acked >= end.window):
                break
            left -= 1
            try:
                data, fds = end.read()
                ends = [one for one in map(_end_of, fds) if one is not None]
                refs = list(getattr(m.decode(data), "refs", ())) if isinstance(end, _Packets) else []
            except (BlockingIOError, InterruptedError):
                break
            except (OSError, wire.Closed, wire.DescriptorsLost, m.ProtocolError):
                self._ended(tunnel)
                return
            tunnel.sent += 1 if isinstance(end, _Packets) else len(data)
            self._pass_on(tunnel, data, refs, ends)
        self._watch(tunnel)

    def _pass_on(self, tunnel: _Tunnel, data: bytes, refs: list[bytes], ends: list[End]) -> None:
        peer, number, ours = tunnel.key
        if tunnel.told < tunnel.passed:  # of a process: it has read what it was sent before it says more
            self._tell_passed(tunnel)
        streams = []
        for end in ends:
            self._count += 1
            streams.append(_Tunnel((peer, self._count, True), end, 0))
        numbers = [stream.key[1] for stream in streams]
        self._gateway._say_if_up(peer, pm.TunnelData(number, not ours, numbers, refs), data)
        for stream in streams:
            self._begin(stream)
        self._let_go(tunnel)

    def _let_go(self, tunnel: _Tunnel) -> None:
        """Whoever got what we hold for it has had it in hand."""
        while tunnel.tokens:
            self._gateway.objects.done(tunnel.tokens.pop())

    def _write(self, tunnel: _Tunnel, data: bytes, fds: tuple[int, ...]) -> None:
        tunnel.out.append((memoryview(data), tuple(os.dup(fd) for fd in fds)))
        self._flush(tunnel)

    def _flush(self, tunnel: _Tunnel) -> None:
        end = tunnel.end
        if end is None:
            return
        try:
            while tunnel.out:
                data, fds = tunnel.out[0]
                done = end.write(data, fds)
                if done < len(data):
                    tunnel.out[0] = (data[done:], fds)
                else:
                    tunnel.out.popleft()
                    for fd in fds:
                        os.close(fd)
                tunnel.passed += done if end.window == WINDOW_BYTES else done == len(data)
                if done < len(data):
                    break
        except OSError:
            self._ended(tunnel)
            return
        if tunnel.finishing and not tunnel.out:
            self._close(tunnel)
            return
        packets = isinstance(end, _Packets)
        if tunnel.passed - tunnel.told >= (1 if packets else WINDOW_BYTES // 4) and not (packets and tunnel.key[2]):
            self._tell_passed(tunnel)
        self._watch(tunnel)

    def _tell_passed(self, tunnel: _Tunnel) -> None:
        if not tunnel.finishing:
            tunnel.told = tunnel.passed
            peer, number, ours = tunnel.key
            self._gateway._say_if_up(peer, pm.TunnelRead(number, not ours, tunnel.passed))

    def _ended(self, tunnel: _Tunnel) -> None:
        """The end here has closed."""
        if not tunnel.finishing:
            peer, number, ours = tunnel.key
            unread = bool(tunnel.out) or (tunnel.end is not None and tunnel.end.unread)
            self._gateway._say_if_up(peer, pm.TunnelClosed(number, not ours, tunnel.passed, unread))
        self._close(tunnel)

    def _close(self, tunnel: _Tunnel) -> None:
        self._alive.discard(tunnel)
        if self._by_key.get(tunnel.key) is tunnel:
            del self._by_key[tunnel.key]
        self._let_go(tunnel)
        for _, fds in tunnel.out:
            for fd in fds:
                os.close(fd)
        tunnel.out.clear()
        if tunnel.end is not None:
            self._unwatch(tunnel.end.fileno())
            tunnel.end.close()

    def close(self) -> None:
        """The gateway ends."""
        for tunnel in list(self._alive):
            self._close(tunnel)
        for sock in (self._listener, *self._callers.values()):
            self._gateway._off(sock.fileno())
            sock.close()
        for pidfd, _ in self._pids.values():
            if pidfd >= 0:
                os.close(pidfd)
