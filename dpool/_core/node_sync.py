"""The node's side of locks, queues, …: connections, the shared page and memory; what to do is decided by `Sync`.

```
 connections (some per process) ──SyncMake, SyncAsk──► NodeSync ──events──► Sync (who has what, who waits)
        ▲                                                 │ └──► object store (who holds the object itself)
        └──── SyncReply, descriptors ─────────────────────┘
 shared page: a slot of words for each lock and event, mapped by all; its file's bytes are what locks lock
```

Runs in the node's loop. Made when the first process says SyncHello.

What a process's other connections have said before is read before a question is dealt with, so its threads need not
share a connection to be heard in the order in which they spoke. What is not answered all of them say on one connection:
it is dealt with at once, before a question that may have been put after it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import select
import termios
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpool._core import ids, node_spool, wire
from dpool._core import messages as m
from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k
from dpool._core.logic.sync_kinds import SEGMENT
from dpool._core.node_page import FLOCK, PAGE_BYTES, PLACE, SLOT_BYTES, SLOTS, WORDS, byte_of

if TYPE_CHECKING:
    from dpool._core.node import Node
    from dpool._core.node_sync_far import FarSides

STEP = 64 << 10
"""Bytes of the page that are given memory at a time."""
LEAST = 64
"""Bytes: the smallest piece of shared memory."""
OBJECT_BYTES = ids.ID_BYTES + ids.INDEX_BYTES
SPOOLED_AT_ONCE = 1000
"""Items that go to the file before it is counted again how much lies in memory."""
MOST_UNREAD = 10_000
"""More messages than a socket holds."""
QUEUES = 0
"""The holder of what items in queues refer to."""
FIRST_FAR_PID = 1 << 32
"""Processes from here on run on other machines; see gateway_tunnels.py."""


class Side:
    """One connection of a process."""

    __slots__ = ("channel", "number", "pid", "reading", "tells", "ticket")

    def __init__(self, number: int, channel: wire.ControlChannel, pid: int, ticket: bool) -> None:
        self.number = number
        self.channel = channel
        self.pid = pid
        self.ticket = ticket
        """It holds what a forked child has of its parent's."""
        self.reading = False
        self.tells = False
        """What is not answered comes here."""


class Page:
    """The shared page."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("dpool-sync")
        try:
            os.ftruncate(self.fd, PAGE_BYTES)
            self._map = mmap.mmap(self.fd, PAGE_BYTES)
        except BaseException:
            os.close(self.fd)
            raise
        self.words = memoryview(self._map).cast("Q")
        self._backed = 0
        self._next = 1  # slot 0 is nobody's
        self._free: list[int] = []
        self._prober = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)

    def take(self) -> int:
        """A slot. OSError if there is no memory, or all are taken."""
        if self._free:
            return self._free.pop()
        if self._next >= SLOTS:
            raise OSError(f"{SLOTS - 1:,} locks and events live already: drop some")
        if (self._next + 1) * SLOT_BYTES > self._backed:
            os.posix_fallocate(self.fd, self._backed, STEP)
            self._backed += STEP
        self._next += 1
        return self._next - 1

    def give(self, slot: int) -> None:
        """Nobody uses it any more."""
        self._free.append(slot)

    def is_free(self, slot: int, generation: int) -> bool:
        """Whether no process has locked that byte."""
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte_of(slot, generation), 1, 0)
        found = fcntl.fcntl(self._prober, fcntl.F_OFD_GETLK, asked)
        return FLOCK.unpack(found)[0] == fcntl.F_UNLCK  # type: ignore[no-any-return]


class Memory:
    """Shared memory for values and arrays: pieces of segments by powers of two, or a segment of its own."""

    def __init__(self) -> None:
        self._segments: dict[int, tuple[int, int]] = {}
        """Number → descriptor, size."""
        self._numbers = 0
        self._free: dict[int, list[tuple[int, int]]] = {}
        self._open = (0, SEGMENT)
        """The segment that new pieces are cut from, and how much of it has been."""
        self._taken: dict[bytes, tuple[int, int, int]] = {}

    def take(self, obj: bytes, length: int) -> None:
        """Zeroed memory for `obj`. OSError if there is none."""
        size = max(LEAST, 1 << max(0, length - 1).bit_length())
        if size > SEGMENT // 4:
            size = -(-max(1, length) // mmap.PAGESIZE) * mmap.PAGESIZE
            if size == SEGMENT:  # by their size all know the segments that are cut into pieces
                size += mmap.PAGESIZE
            self._taken[obj] = self._make(size), 0, length
            return
        free = self._free.get(size)
        if free:
            number, offset = free.pop()
            os.pwrite(self._segments[number][0], bytes(size), offset)
        else:
            number, offset = self._open
            if offset + size > SEGMENT:
                number, offset = self._make(SEGMENT), 0
            self._open = number, offset + size
        self._taken[obj] = number, offset, length

    def _make(self, size: int) -> int:
        fd = os.memfd_create("dpool-shared")
        try:
            os.posix_fallocate(fd, 0, size)
        except BaseException:
            os.close(fd)
            raise
        self._numbers += 1
        self._segments[self._numbers] = fd, size
        return self._numbers

    def place(self, obj: bytes) -> tuple[bytes, int]:
        """Where it lies, packed, and the segment's descriptor; KeyError if it has none."""
        number, offset, length = self._taken[obj]
        fd, size = self._segments[number]
        return PLACE.pack(number, size, offset, length), fd

    def give(self, obj: bytes) -> None:
        """Nobody uses it any more."""
        number, offset, length = self._taken.pop(obj)
        fd, total = self._segments[number]
        if total == SEGMENT:
            self._free.setdefault(max(LEAST, 1 << max(0, length - 1).bit_length()), []).append((number, offset))
        else:
            del self._segments[number]
            os.close(fd)


def _more_descriptors() -> None:
    """A connection for each thread that waits, anywhere, can be more than a program is usually allowed to open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _unread(fd: int) -> bool:
    """Whether the other end has not read all that was sent."""
    return any(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))


class NodeSync:
    """See the module."""

    def __init__(self, node: Node, log: Callable[..., None]) -> None:
        self._node = node
        self._log = log
        self._store = node.store()
        self.sync = s.Sync()
        self._sides: dict[int, Side] = {}
        self._by_pid: dict[int, set[int]] = {}
        self._tellers: set[int] = set()
        """Connections on which things are said that are not answered."""
        self._pidfds: dict[int, int] = {}
        _more_descriptors()
        self._page = Page()
        self._memory = Memory()
        self._descriptors: dict[bytes, int] = {}
        self._kinds: dict[bytes, int] = {}
        self._spool = node_spool.Spool(os.path.dirname(node.spill_directory()))
        self._ahead = False
        self._queued = 0
        """Bytes of items in queues, or more."""
        self._spooling = 0
        """So many more items go to the file."""
        self._far: FarSides | None = None
        """What processes of other machines have, once one has asked."""

    # -- connections

    def hello(self, number: int, channel: wire.ControlChannel, message: m.SyncHello) -> Side:
        """A connection of a process. OSError if the process is gone already."""
        side = Side(number, channel, message.pid, bool(message.holds))
        if side.ticket:  # of a child: who it is it says on another one
            self._store.hold(message.holds, -number)
        elif message.pid < FIRST_FAR_PID:
            self._watch(message.pid)
        self._sides[number] = side
        self._by_pid.setdefault(side.pid, set()).add(number)
        self._send(side, m.SyncWelcome(self._node.session), (self._page.fd,) if message.page else ())
        return side

    def _watch(self, pid: int) -> None:
        """Its end, not that of its connections, says that the kernel has unlocked what it had locked."""
        if pid in self._pidfds:
            return
        pidfd = os.pidfd_open(pid)
        self._pidfds[pid] = pidfd
        self._node._on(pidfd, lambda mask: self._ended(pid))

    def _ended(self, pid: int) -> None:
        for number in list(self._by_pid.get(pid, ())):
            while self._node.read_store_side(number):
                continue
        pidfd = self._pidfds.pop(pid)
        self._node._off(pidfd)
        os.close(pidfd)
        self._gone(pid)

    def far_ended(self, pid: int) -> None:
        """A process of another machine has ended; its connections have closed, or are a child's."""
        self._node.read_newcomers()
        for number in list(self._by_pid.get(pid, ())):
            while self._node.read_store_side(number):
                continue
        if self._far is not None:
            self._far.ended(pid)
        self._gone(pid)

    def _gone(self, pid: int) -> None:
        for number in list(self._by_pid.get(pid, ())):
            self._end_of(self._sides[number])
        self._do(s.Died(pid))

    def _end_of(self, side: Side) -> None:
        """A connection of a dead process that still stands: a child of it that was forked meanwhile has it, too."""
        if not side.ticket:
            side.channel.unread = side.channel.unread or _unread(side.channel.fileno())
            self._node.sync_side_ended(side.number)

    def closed(self, side: Side) -> None:
        """The connection has closed."""
        self._tellers.discard(side.number)
        if self._sides.pop(side.number, None) is None:
            return
        numbers = self._by_pid[side.pid]
        numbers.discard(side.number)
        if not numbers:
            del self._by_pid[side.pid]
        if side.ticket:
            self._store.let_go_all(-side.number)
        unread = side.channel.unread or side.channel.pending
        if self._far is not None:
            self._far.closed(side, unread)
        self._do(s.Closed(side.number, unread))

    # -- what they say

    def said(self, side: Side, message: Any, fds: list[int]) -> None:
        """One message; an exception if it cannot be (the node then closes that peer)."""
        side.reading = True
        try:
            if type(message) is m.SyncAsk and not message.request:
                side.tells = True
                self._tellers.add(side.number)
            else:
                self._read_others(side)
            if side.number not in self._sides:
                return
            if type(message) is m.SyncAsk:
                self._ask(side, message)
            elif type(message) is m.SyncWithdraw:
                self._do(s.Withdraw(side.number, message.request))
            elif type(message) is m.SyncMake:
                self._make(side, message, fds)
            elif type(message) is m.SyncReturn:
                if self._far is not None:
                    self._far.returned(side)
                self._do(s.Return(side.number))
            else:
                raise m.ProtocolError(f"{type(message).__name__} is not for locks and queues")
        finally:
            side.reading = False

    def _read_others(self, side: Side) -> None:
        """What was said before this question is dealt with first: by its own process, and what nobody waits for an
        answer to, by all; for whoever asks may know, by a task's result, that it was said.
        """
        numbers = self._by_pid.get(side.pid, set()) | self._tellers
        if len(numbers) < 2:
            return
        waiter = select.poll()
        found = {}
        for number in numbers:
            other = self._sides[number]
            if not other.reading and (other.tells or not self._ahead):
                found[other.channel.fileno()] = other
                waiter.register(other.channel.fileno(), select.POLLIN)
        ahead, self._ahead = self._ahead, True  # what is read ahead does not read all others ahead in its turn
        try:
            self._read_all([found[fd] for fd, _ in waiter.poll(0)])
        finally:
            self._ahead = ahead

    def _read_all(self, sides: list[Side]) -> None:
        for other in sides:
            for _ in range(MOST_UNREAD):  # what is said meanwhile is not waited for
                if other.reading or not self._node.read_store_side(other.number):
                    break

    def _ask(self, side: Side, message: m.SyncAsk) -> None:
        if message.op == k.FETCH:
            self._fetch(side, message)
            return
        if message.op >= k.FAR or (self._far is not None and side.pid >= FIRST_FAR_PID):
            if self._far is None:
                from dpool._core.node_sync_far import FarSides

                self._far = FarSides(self._node, self)
            if self._far.asked(side, message):
                return
        refs = tuple(message.refs)
        if any(type(ref) is not bytes or len(ref) != OBJECT_BYTES for ref in refs):
            raise m.ProtocolError(f"an object's id has {OBJECT_BYTES} bytes")
        data = message.data
        if data[:1] == k.ELSEWHERE:
            raise m.ProtocolError("no item begins like that")
        if message.op == k.PUT and len(data) >= node_spool.LEAST:
            data = self._kept(data)
        self._do(s.Ask(side.number, side.pid, message.request, message.obj, message.op, message.n, data, refs))

    def _kept(self, data: bytes) -> bytes:
        """An item as it is kept: in memory, or, when there is much already, as the token of where it lies."""
        self._queued += len(data)
        if self._queued <= node_spool.KEPT:
            return data
        if not self._spooling:  # what has been fetched meanwhile was not subtracted: count
            self._queued = self.sync.queued_bytes() + len(data)
            if self._queued <= node_spool.KEPT:
                return data
            self._spooling = SPOOLED_AT_ONCE
        self._spooling -= 1
        try:
            return self._spool.write(data)
        except OSError as error:  # no room there: then in memory
            self._log("queue.no_spool", error=error)
            return data

    def _make(self, side: Side, message: m.SyncMake, fds: list[int]) -> None:
        obj, kind = message.obj, message.kind
        if len(obj) != OBJECT_BYTES or not s.MUTEX <= kind <= s.DESCRIPTOR:
            raise m.ProtocolError(f"no object of kind {kind} can be made")
        slot, data, answer_fds = 0, b"", ()
        try:
            if kind in (s.MUTEX, s.EVENT):
                slot = self._page.take()
            elif kind == s.MEMORY:
                self._memory.take(obj, message.value)
        except OSError as error:
            self._send(side, m.SyncReply(message.request, k.NO, 0, str(error).encode(), []))
            return
        self._do(s.Make(obj, kind, slot, message.value, message.bound))
        self._kinds[obj] = kind
        self._store.hold((obj,), side.pid)
        if kind == s.MEMORY:
            data, fd = self._memory.place(obj)
            answer_fds = (fd,)  # type: ignore[assignment]
        elif kind == s.DESCRIPTOR:
            if len(fds) != 1:
                raise m.ProtocolError("a descriptor comes along with its name")
            self._descriptors[obj] = fds.pop()
        self._send(side, m.SyncReply(message.request, k.OK, slot, data, []), answer_fds)

    def _fetch(self, side: Side, message: m.SyncAsk) -> None:
        """Shared memory, or an open file: that only once."""
        obj = message.obj
        kind = self._kinds.get(obj)
        if kind == s.MEMORY:
            data, fd = self._memory.place(obj)
            self._send(side, m.SyncReply(message.request, k.OK, 0, data, []), (fd,))
        elif kind == s.DESCRIPTOR and obj in self._descriptors:
            fd = self._descriptors.pop(obj)
            self._send(side, m.SyncReply(message.request, k.OK, 0, b"", []), (fd,))
            os.close(fd)
        else:
            self._send(side, m.SyncReply(message.request, k.GONE, 0, b"", []))

    def freed(self, obj: bytes) -> bool:
        """Nobody holds this id any more; False if it is none of ours."""
        kind = self._kinds.pop(obj, 0)
        if not kind:
            return False
        if self._far is not None:
            self._far.freed(obj)
        if kind in (s.MUTEX, s.EVENT):
            self._page.give(self.sync.slot(obj))
        elif kind == s.MEMORY:
            self._memory.give(obj)
        elif kind == s.DESCRIPTOR and obj in self._descriptors:
            os.close(self._descriptors.pop(obj))
        self._do(s.Free(obj))
        return True

    # -- what is decided

    def _do(self, event: Any) -> None:
        for one in self.sync.handle(event):
            if isinstance(one, k.Answer):
                self._answer(one)
            elif isinstance(one, k.Mark):
                self._page.words[one.slot * WORDS + one.word] = one.value
            elif isinstance(one, k.Probe):
                free = self._page.is_free(one.slot, one.generation)
                self._do(s.Probed(one.obj, free, one.who, one.request))
            elif isinstance(one, k.Hold):
                self._store.hold(one.refs, QUEUES)
            elif isinstance(one, k.Delivered):
                self._spool.forget(one.data)
            else:
                self._store.let_go(one.refs, QUEUES)

    def _answer(self, one: k.Answer) -> None:
        side = self._sides.get(one.who)
        if side is not None and (self._far is None or not self._far.answered(side, one)):
            data = self._spool.read(one.data) if one.data[:1] == k.ELSEWHERE else one.data
            self._send(side, m.SyncReply(one.request, one.status, one.n, data, list(one.refs)))

    def _send(self, side: Side, message: Any, fds: tuple[int, ...] = ()) -> None:
        self._node.send_store_side(side.number, message, fds)
