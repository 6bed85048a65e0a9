"""A worker on another machine, seen by its submitter: a TCP connection to it, and the way through the gateways.

```
 lane ─ send() ─► queue ─ one at a time ─┬─ records on TCP ══════════════════════════► worker
                                         └─ aside: socket ─► our gateway ─► its gateway ─► worker
 lane ◄─ receive() ◄─────────────────────┴── the same two ways ◄───────────────────────────
```

Stands in the place of the worker's socket and of its own end (`Link.sock`, `Link.unread`, `Link.receiver`), so that a
lane need not know. What carries references to objects, descriptors, or much, goes aside, where the gateways see to
that; so does an answer. One frame is under way at a time, so the two ways cannot overtake each other.

What a frame's way there has begun counts as begun (`relay.Outgoing`, which this uses as a gateway does): what waits
here is taken back at will, what is under way is asked for through the gateways, which see the worker's page.

Threads: the lane sends under its lock, the reader receives; `_lock` guards what both touch.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import socket
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import frames, sealed, wire
from dpool._core.relay import DIED, Outgoing, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

LAST_WORDS_S = 0.25
"""How long after its death the last answers of a worker are waited for: they come another way than the news."""
ASIDE = frames.INIT | frames.ACTOR | frames.LINK | frames.STOP | frames.LOOSE
"""Frames with one of these flags never go directly."""


class _Sent:
    """A frame that waits."""

    __slots__ = ("base", "count", "data", "plain")

    def __init__(self, data: bytes, base: int, count: int, plain: bool) -> None:
        self.data = data
        self.base = base
        self.count = count
        self.plain = plain


class Direct:
    """See the module. `aside`: the socket to the gateway; `page`: as the gateway sees it."""

    def __init__(self, aside: socket.socket, tcp: socket.socket, key: bytes, page: frames.Page) -> None:
        self._aside = aside
        self._records = sealed.Records(tcp, key, sealed.SUBMITTER)
        self._slots = page.slots
        self._outgoing = Outgoing(None, page, 0, self._forward, self._ask)
        self._aside_receiver = wire.Receiver(aside)
        self._queue: deque[_Sent] = deque()
        self._lock = threading.RLock()
        self._advancing = False
        self._again = False
        self.unread = Unread(self)
        self._next: tuple[int, int, bool] | None = None
        self._directly = False
        """That is how the frame under way went."""
        self._asking = False
        """How far the worker is has been asked, and not been answered."""
        self._holding = False
        """The first frame of the queue is being taken back."""
        self._switched = False
        """The worker has said that the rest of its answer comes aside, …"""
        self._early: deque[bytes | mmap.mmap] = deque()
        """… which may come before that."""
        self._died = False
        self._inbox: bytes | mmap.mmap | None = None
        self._answers: deque[bytes] = deque()
        """Of our own: to frames of which nothing was left."""
        self.broken = ""
        """The connection is: why."""
        self.on_broken: Callable[[], None] | None = None
        self._until = 0.0
        self._poke = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poked = False
        self._epoll = select.epoll()
        self._writing = False
        for fd in (tcp.fileno(), aside.fileno(), self._poke):
            self._epoll.register(fd, select.EPOLLIN)

    def fileno(self) -> int:
        """Readable when `receive` may have something."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    # -- as the socket of a worker

    def announce(self, base: int, count: int, plain: bool) -> None:
        """What the next frame that is sent is: its first task, how many; `plain`: it may go directly."""
        self._next = (base, count, plain)

    def send(self, data: bytes, flags: int = 0) -> int:
        """As a socket's."""
        about, self._next = self._next, None
        if about is None:
            base, _, _, _, calls, *_ = wire.loads(data)
            about = base, len(calls), False
        self._queue.append(_Sent(data, *about))
        self._advance()
        return len(data)

    def sendmsg(self, buffers: list[bytes], rights: list[Any], flags: int = 0) -> int:
        """As a socket's: a frame in a memory file, or the initializer with its descriptors."""
        fds = rights[0][2]
        if len(fds) == 1 and buffers[0][:1] == b"M":
            with mmap.mmap(fds[0], os.fstat(fds[0]).st_size, prot=mmap.PROT_READ) as mapped:
                self.send(mapped[:], flags)
            return len(buffers[0])
        self._next = None
        return self._aside.sendmsg(buffers, rights, flags)  # a worker's first frame: nothing is under way

    def _advance(self) -> None:
        """Send what may be under way. A signal handler that submits in the middle of this leaves it to us."""
        with self._lock:
            self._again = True
            if self._advancing:
                return
            self._advancing = True
            try:
                while self._again:
                    self._again = False
                    while self._may_send():
                        self._one(self._queue[0])
                        self._queue.popleft()
            except OSError as error:  # the frame was accepted: what becomes of it, the end of the worker says
                self._broke(error)
            except BaseException:  # a signal handler raised: whether the frame has gone is not known
                self._broke("it was interrupted")
                raise
            finally:
                self._advancing = False

    def _may_send(self) -> bool:
        waits = self._asking or self._holding or self.broken
        return bool(self._queue) and not waits and self._outgoing.wants_frames()

    def _one(self, sent: _Sent) -> None:
        if sent.plain and sent.count:
            last = sent.base + sent.count - 1
            self._slots[frames.STARTED] = last  # before LIMIT is looked at, as a worker does
            if self._slots[frames.LIMIT] > last and self._outgoing.goes(last):
                self._forward(sent.data, None)
                return
        self._outgoing.take(sent.data)
        while (answer := self._outgoing.own_answer()) is not None:
            self._answers.append(answer)
            self._wake()

    def _forward(self, frame: bytes, carried: Any) -> None:
        if carried is not None:
            frame = pickle.dumps((*wire.loads(frame), carried), 5)
        self._directly = carried is None and len(frame) <= sealed.LIMIT and self._may_go(frame)
        self._switched = False
        if self._directly:
            self._records.send(frame, False)
            self._watch_writing()
        else:
            wire.send(self._aside, frame)

    def _may_go(self, frame: bytes) -> bool:
        sent = self._queue[0]
        if sent.plain:
            return True
        _, flags, _, _, calls, *_ = wire.loads(frame)
        return bool(calls) and not flags & ASIDE

    # -- as the worker's own end

    def hold(self) -> bytes:
        """The oldest frame that is not under way, which then stays where it is; BlockingIOError if there is none."""
        with self._lock:
            if self._advancing or not self._queue:
                raise BlockingIOError
            self._holding = True
            return self._queue[0].data

    def holds(self) -> bool:
        """Whether one is being taken back."""
        return self._holding

    def taken(self) -> None:
        """It is not in the queue any more."""
        with self._lock:
            if self._holding:
                self._queue.popleft()
                self._holding = False
        self._advance()

    # -- answers

    def receive(self, flags: int = 0) -> bytes | mmap.mmap:
        """The next answer, as a Receiver's; stays until `consumed`."""
        if self._inbox is not None:
            return self._inbox
        if self._poked:
            self._poked = False
            self._drain_poke()
        if self._answers:
            self._inbox = self._answers.popleft()
            return self._inbox
        if not self.broken:
            try:
                found = self._receive_directly()
            except sealed.Broken as error:
                self._broke(error)
            else:
                if found is not None:
                    return found
        return self._receive_aside()

    def _receive_directly(self) -> bytes | mmap.mmap | None:
        if self._writing:
            self._flush()
        found = self._records.receive()
        if found is None:
            return None
        frame, end = found
        if self._records.waiting():
            self._wake()
        if not frame:
            self._switched = True
            return self._take_early()
        if end:
            self._outgoing.ended()
        self._inbox = frame
        return frame

    def _take_early(self) -> bytes | mmap.mmap | None:
        if not self._early:
            return None
        if len(self._early) > 1:
            self._wake()
        return self._aside_answer(self._early.popleft())

    def _flush(self) -> None:
        with self._lock:
            self._records.flush()
            self._watch_writing()

    def _receive_aside(self) -> bytes | mmap.mmap:
        if self._early and (self._switched or self.broken):
            found = self._take_early()
            assert found is not None
            return found
        while True:
            data = self._aside_receiver.receive(wire.DONTWAIT)
            said = wire.loads(data)
            if said[0] is None:
                self._told(*said[1:])
            elif self._directly and not self._switched and not self.broken:
                self._early.append(data)
            else:
                return self._aside_answer(data)
            self._aside_receiver.consumed()

    def _aside_answer(self, data: bytes | mmap.mmap) -> bytes | mmap.mmap:
        if wire.loads(data)[1]:
            self._outgoing.ended()
        self._inbox = data
        return data

    def _told(self, kind: str, *fields: Any) -> None:
        """The gateway has news."""
        if kind == DIED:
            self._died = True
            self._outgoing.died(Snapshot(*fields[0]))
            return
        limit, snapshot = fields
        self._asking = False
        self._outgoing.limited(limit, Snapshot(*snapshot))
        self._advance()

    def consumed(self) -> None:
        """The answer has been dealt with."""
        self._inbox = None
        self._aside_receiver.consumed()
        if self._queue:
            self._advance()

    def take_fds(self) -> list[int]:
        """As a Receiver's."""
        return self._aside_receiver.take_fds()

    def close_fds(self) -> None:
        """As a Receiver's."""
        self._aside_receiver.close_fds()

    def _wake(self) -> None:
        """There is something to receive that no descriptor tells of."""
        self._poked = True
        os.eventfd_write(self._poke, 1)

    def _drain_poke(self) -> None:
        try:
            os.eventfd_read(self._poke)
        except BlockingIOError:
            return

    def _watch_writing(self) -> None:
        wanted = not self._records.flush()
        if wanted != self._writing:
            self._writing = wanted
            self._epoll.modify(self._records.fileno(), select.EPOLLIN | select.EPOLLOUT * wanted)

    # -- questions about what is under way

    def look(self) -> None:
        """Whether the lane wants something back; to be called until it has it."""
        with self._lock:
            if not self._advancing:
                self._outgoing.look()

    def _ask(self, limit: int) -> None:
        if not self._directly:
            return  # the gateway knows, and asks by itself
        try:
            wire.send(self._aside, pickle.dumps((limit, frames.ASK, None, 0, []), 5))
        except OSError:  # the gateway does not read now, or is gone
            self._outgoing.not_asked()
        else:
            self._asking = True

    # -- the end

    def _broke(self, why: object) -> None:
        """Nothing more can be said directly. The worker is dead, most likely: its machine will say so."""
        with self._lock:
            if self.broken:
                return
            self.broken = str(why) or "it broke"
            self._epoll.unregister(self._records.fileno())
            self._wake()  # what has come early
        if self.on_broken is not None:
            self.on_broken()

    def patience_ms(self) -> int:
        """It is dead: how long its last answers are still to be waited for."""
        if self._died and self._directly and not self.broken and not self._outgoing.wants_frames():
            now = monotonic()
            self._until = self._until or now + LAST_WORDS_S
            return max(0, int((self._until - now) * 1e3))
        return 0

    def close(self) -> None:
        self._epoll.close()
        os.close(self._poke)
        self._records.close()
        self._aside_receiver.close_fds()
        self._aside.close()


class Unread:
    """The worker's own end, as a Receiver: frames that are taken back from it."""

    __slots__ = ("_direct",)

    def __init__(self, direct: Direct) -> None:
        self._direct = direct

    @property
    def inbox(self) -> bool:
        """Whether one has been received and not dealt with."""
        return self._direct.holds()

    def receive(self, flags: int = 0) -> bytes:
        """The oldest frame that is not under way; BlockingIOError if there is none."""
        return self._direct.hold()

    def consumed(self) -> None:
        """It has been dealt with."""
        self._direct.taken()

    def close_fds(self) -> None:
        """There are none."""
