"""The node's side of the object store: sockets, segments, files; what to do is decided by the pure `Store`.

```
 clients (one socket and one pin page per process) ──Store…──► NodeStore ──events──► Store (room, eviction) ─┐
        ▲                                                        │ └────events──► References (who holds)    │
        └──── answers, descriptors ──────────────────────────────┘◄──────────── instructions ───────────────┘
 memory thread: fallocate, punch, in order      spill thread, restore thread: files, one after the other
 huge thread: what has been sealed is made to lie in huge pages
```

Runs in the node's loop; the threads answer through `call_soon`. Made when the first process says StoreHello.

Order matters twice. A release counts only when everything that any process has said before it has been read, for
whoever passes a reference on keeps its own until the receiver has said that it holds it (`_settle_releases`). And what
needs memory is answered when the memory is there, in the order of the instructions (`_perform`).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import ids, wire
from dpool._core import messages as m
from dpool._core.logic import IllegalMove
from dpool._core.logic import references as r
from dpool._core.logic.places import in_all, visible
from dpool._core.machine import available_memory
from dpool._store import events as e
from dpool._store import memory, spill
from dpool._store.objects import Store
from dpool._store.pins import LOOK_AFTER_S, PinPage, place_of

if TYPE_CHECKING:
    from dpool._core.node import Node
    from dpool._core.node_lending import NodeLending

CHUNK = 16 << 20
"""Bytes that a process leases at a time for small values, or a 64th of a small store."""
INLINE_ALLOCATION = 1 << 20
"""Memory up to this size is allocated in the loop itself."""
MOST_PREFAULT = 128 << 20
"""Bytes that are made warm ahead, at most."""
HUGE_AT_ONCE = 8
"""Huge pages that are made in one system call."""
MAX_DRAIN = 1000
"""Messages read from one process before others have their turn."""
NODE = 0
"""The node as a client of its own store: it makes memory warm."""
OBJECT_BYTES = ids.ID_BYTES + ids.INDEX_BYTES
LOST = 0
"""kind of what became of a promised future: nothing, its owner is gone."""


class Side:
    """One process: its socket, its pin page, the segments whose descriptor it has."""

    __slots__ = ("channel", "number", "page", "pid", "pidfd", "segments", "watches")

    def __init__(self, number: int, channel: wire.ControlChannel, pid: int, page: PinPage) -> None:
        self.number = number
        self.channel = channel
        self.pid = pid
        self.page = page
        self.segments: set[int] = set()
        self.watches: set[bytes] = set()
        self.pidfd = -1


class Segment:
    """One memory file, mapped by the node as long as anybody refers to this."""

    __slots__ = ("fd", "huge", "size", "window")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.window = memory.Window(fd, size, writable=True)
        self.huge = bytearray(-(-size // memory.HUGE))
        """One byte for each huge page: whether there has been one."""

    def allocate(self, where: e.Range) -> None:
        """Get memory for a range. OSError if there is none."""
        os.posix_fallocate(self.fd, where.offset, where.length)

    def punch(self, where: e.Range) -> None:
        """Give the memory of a range back."""
        memory.punch(self.fd, where.offset, where.length)
        first, end = where.offset // memory.HUGE, -(-where.end // memory.HUGE)
        self.huge[first:end] = bytes(end - first)

    def is_huge(self, where: e.Range) -> bool:
        """Whether all of a range that can lie in huge pages does."""
        return self.huge.find(0, -(-where.offset // memory.HUGE), where.end // memory.HUGE) < 0

    def make_huge(self, where: e.Range) -> None:
        """Have a range that has memory lie in huge pages, where the kernel makes such; takes a while."""
        first, end = -(-where.offset // memory.HUGE), where.end // memory.HUGE
        self.huge[first:end] = b"\1" * (end - first)
        for at in range(first, end, HUGE_AT_ONCE):
            self.window.collapse(at * memory.HUGE, (min(end, at + HUGE_AT_ONCE) - at) * memory.HUGE)

    def close(self) -> None:
        os.close(self.fd)


class NodeStore:
    """See the module."""

    def __init__(self, node: Node, log: Callable[..., None]) -> None:
        self._node = node
        self._log = log
        config = node.config
        capacity = int(config.object_store_memory) or available_memory() // 3
        self.references = r.References()
        first = (int.from_bytes(node.node_id[:2], "big") & 0x7FFF) << 12 | 1  # other numbers than an earlier node's
        self.store = Store(capacity, self._pinned, first_segment=first)
        self._sides: dict[int, Side] = {}
        self._segments: dict[int, Segment] = {}
        self._unclaimed: dict[int, dict[bytes, int]] = {}
        """Process id of a worker → what it made for others, with the holder: a dead one may not have sent it."""
        self._maker: dict[bytes, int] = {}
        self._promises: dict[bytes, m.StoreResolved | None] = {}
        self._promised_by: dict[int, set[bytes]] = {}
        self._watchers: dict[bytes, list[int]] = {}
        self._releases: list[tuple[int, list[bytes]]] = []
        self._ended_holders: list[int] = []
        self._settling = False
        self._questions: list[tuple[Side, Any]] = []
        self._pressed = False
        self._chunk = min(CHUNK, capacity // 64 // memory.PAGE * memory.PAGE)
        self._files = spill.SpillDirectory(node.spill_directory(), node.session)
        self._spill_thread = spill.SpillThread(self._told)
        self._restore_thread = spill.SpillThread(self._told)
        self._memory_thread = spill.SpillThread(self._told)
        self._huge_thread = spill.SpillThread(self._told)
        self._memory_jobs = 0
        self._prefaults = 0
        self._prefaulting = False
        self._lending: NodeLending | None = None
        """What is held across machines, once there is a gateway."""
        self._do(e.Joined(NODE, os.getpid()))

    def _told(self, result: Any) -> None:
        """In a thread: what is to be done in the loop now that a job is done."""
        if isinstance(result, spill.JobFailed):
            self._node.call_soon(partial(self._log, "store.job_failed", error=repr(result.error)))
        else:
            self._node.call_soon(result)

    # -- processes

    def hello(self, number: int, channel: wire.ControlChannel, message: m.StoreHello, fds: list[int]) -> Side:
        """A process joins. ProtocolError, OSError if it cannot be."""
        if len(fds) != 1:
            raise m.ProtocolError("StoreHello comes with one descriptor")
        side = Side(number, channel, message.pid, PinPage(fds[0]))
        os.close(fds.pop())
        self._sides[number] = side
        side.page.press(self._pressed)
        side.page.offer(self._chunk)
        self._do(e.Joined(number, message.pid))
        return side

    def closed(self, side: Side) -> None:
        """Its socket has closed; if the process lives on, what it maps stays until it ends."""
        if side.number not in self._sides or side.pidfd >= 0:
            return
        try:
            side.pidfd = os.pidfd_open(side.pid)
        except OSError:  # it has ended, and been reaped
            self._gone(side)
            return
        waiter = select.poll()
        waiter.register(side.pidfd, select.POLLIN)
        if waiter.poll(0):
            self._gone(side)
        else:
            self._node._on(side.pidfd, lambda mask: self._gone(side))

    def process_gone(self, pid: int) -> None:
        """A process has ended for certain: what it said last is read, then nothing is held or mapped by it."""
        for side in [side for side in self._sides.values() if side.pid == pid]:
            self._drain(side.number)
            if side.number in self._sides:
                self._gone(side)
        self._references_of_dead(pid)

    def _gone(self, side: Side) -> None:
        if self._sides.pop(side.number, None) is None:
            return
        if side.pidfd >= 0:
            self._node._off(side.pidfd)
            os.close(side.pidfd)
        side.page.close()
        for obj in side.watches:
            self._watchers[obj] = [number for number in self._watchers.get(obj, []) if number != side.number]
        self._node.store_side_closed(side.number)
        self._do(e.Left(side.number))
        if not any(other.pid == side.pid for other in self._sides.values()):
            self._references_of_dead(side.pid)
        self._do(e.Rescan(monotonic()))

    def _references_of_dead(self, pid: int) -> None:
        for obj in self._promised_by.pop(pid, set()):
            if obj in self._promises and self._promises[obj] is None:
                self._resolve(m.StoreResolved(obj, LOST, f"its process (pid {pid}) has ended".encode()))
        self._follow(r.ProcessDied(pid))

    def left_unclaimed(self, pid: int) -> bool:
        """Whether a dead worker made something that its submitter may not have received."""
        return bool(self._unclaimed.get(pid))

    def idle(self) -> bool:
        """Nobody holds anything: the node may go."""
        return len(self.references) == 0

    def _drain(self, number: int) -> None:
        for _ in range(MAX_DRAIN):
            if not self._node.read_store_side(number):
                return

    # -- what queues keep, and who has what besides

    def hold(self, objs: Iterable[bytes], holder: int) -> None:
        """A queue (holder 0), a process or, below 0, a connection holds these."""
        for obj in objs:
            self._follow(r.Acquire(obj, holder))

    def let_go_all(self, holder: int) -> None:
        """The same for all that it holds."""
        self._ended_holders.append(holder)
        self.let_go((), holder)

    def let_go(self, objs: Iterable[bytes], holder: int) -> None:
        """It no longer does; told like the releases of processes, when all that was said before is known."""
        if not self._releases:
            self._node.call_soon(self._settle_releases)
        self._releases.append((holder, list(objs)))

    # -- what processes say

    def said(self, side: Side, message: Any, fds: list[int]) -> None:
        """One message; an exception if it cannot be (the node then closes that peer)."""
        handler = self._MESSAGES.get(type(message))
        if handler is None:
            raise m.ProtocolError(f"{type(message).__name__} is not for a store")
        named = [getattr(message, "obj", None), *getattr(message, "contains", ())]
        named += [getattr(message, "actor", None), *getattr(message, "keep", ())]
        if any(obj is not None and (type(obj) is not bytes or len(obj) != OBJECT_BYTES) for obj in named):
            raise m.ProtocolError(f"an object's id has {OBJECT_BYTES} bytes")
        if isinstance(message, m.StoreAdopt):
            self._adopt(side, message, fds)
        else:
            handler(self, side, message)

    def _want(self, side: Side, message: m.StoreWant) -> None:
        self._see_uses()
        if message.complete:
            self._do(e.Keep(side.number, [e.Range(*lease) for lease in message.leases]))
        self._do(e.Rescan(monotonic()))  # what readers have let go is warm: better than new memory
        self._do(e.Want(side.number, message.request, message.length, monotonic()))

    def _return(self, side: Side, message: m.StoreReturn) -> None:
        self._do(e.Return(side.number, e.Range(message.segment, message.offset, message.length)))

    def _seal(self, side: Side, message: m.StoreSeal) -> None:
        where = e.Range(message.segment, message.offset, message.length)
        self._do(e.Seal(side.number, message.obj, where, message.size, side.pid, monotonic()))
        segment = self._segments[where.segment]
        if not segment.is_huge(where):  # for all who read it, and those who write there afterwards
            self._huge_thread.submit(partial(_make_huge, segment, where))
        self._record(message.obj, message.size)
        self._made(side, message.obj, message.holder, message.contains)

    def _seal_file(self, side: Side, message: m.StoreSealFile) -> None:
        self._do(e.SealFile(side.number, message.obj, message.size, message.path, message.crc, side.pid, monotonic()))
        self._record(message.obj, message.size)
        self._made(side, message.obj, message.holder, message.contains)

    def _record(self, obj: bytes, size: int | None) -> None:
        """Where others could ask for it: an object is in our store, or (None) is so no longer."""
        records, lending = self._node._records, self._across()
        if records is None or lending is None:
            return
        if size is None:
            records.object_gone(obj, not lending.foreign(obj))
        else:
            records.object_here(obj, size, not lending.foreign(obj))

    def _made(self, side: Side, obj: bytes, holder: int, contains: list[bytes]) -> None:
        if not self._node.lives(holder):
            holder = side.pid
            self._follow(r.Acquire(obj, holder))
            self._releases.append((holder, [obj]))
            self._node.call_soon(self._settle_releases)
            return
        self._follow(r.Acquire(obj, holder))
        for inner in contains:
            self._follow(r.Contains(obj, inner))
        if holder != side.pid:
            self._unclaimed.setdefault(side.pid, {})[obj] = holder
            self._maker[obj] = side.pid
        if self._lending is not None:
            self._lending.came(obj)

    def _locate(self, side: Side, message: m.StoreLocate) -> None:
        lending = self._across()
        if lending is not None and lending.locate(side, message):
            return
        self._see_uses()
        self._do(e.Locate(side.number, message.request, message.obj, monotonic()))

    def _hold(self, side: Side, message: m.StoreHold) -> None:
        if self._node.lives(message.holder):
            for obj in message.objs:
                self._follow(r.Acquire(obj, message.holder))
        lending = self._across()
        if lending is not None:
            lending.held(side)

    def _release(self, side: Side, message: m.StoreRelease) -> None:
        if not self._releases:
            self._node.call_soon(self._settle_releases)
        self._releases.append((side.pid, message.objs))

    def _settle_releases(self) -> None:
        """Read what everybody has said before these releases arrived, then let go; then see what is asked for."""
        if self._settling:
            return
        self._settling = True
        try:
            while True:
                releases, self._releases = self._releases, []
                ended, self._ended_holders = self._ended_holders, []
                self._node.read_newcomers()
                for number in self._node.readable_store_sides():
                    self._drain(number)
                gateway = self._node.gateway_pid()
                for pid, objs in releases:
                    if pid == gateway:
                        self._received(objs)
                    for obj in objs:
                        self._follow(r.Release(obj, pid))
                for holder in ended:
                    self._follow(r.ProcessDied(holder))
                if not self._releases:
                    break
        finally:
            self._settling = False
        questions, self._questions = self._questions, []
        for side, message in questions:
            if side.number in self._sides:
                try:
                    self._QUESTIONS[type(message)](self, side, message)
                except ValueError as error:  # it may be another peer's message, or nobody's, in which it is noticed
                    self._node.refuse_store_side(side.number, message, error)

    def _received(self, objs: list[bytes]) -> None:
        """What the gateway lets go, it had heard of, whoever made it in its name."""
        for obj in objs:
            maker = self._maker.pop(obj, None)
            if maker is not None:
                self._unclaimed.get(maker, {}).pop(obj, None)

    # -- actors, who are held as objects are

    def _create_actor(self, side: Side, message: m.ActorCreate) -> None:
        self._node.actors().create(message, side.pid, partial(self._actor_found, side))

    def _find_actor(self, side: Side, message: m.ActorFind) -> None:
        self._node.actors().find(message, side.pid, partial(self._actor_found, side))

    def _actor_found(self, side: Side, found: m.ActorFound) -> None:
        if found.actor and not self._node.actors().foreign.foreign(found.actor):  # else the gateway has said it
            self._follow(r.Acquire(found.actor, side.pid))
        self._send(side.number, found)

    def _question(self, side: Side, message: Any) -> None:
        """What is answered when all that has been said is known: memory may just have come free."""
        self._questions.append((side, message))
        self._settle_releases()

    def _retire(self, side: Side, message: m.StoreRetire) -> None:
        for key in message.keys:
            self._do(e.Retire(*place_of(key)))

    def _claim(self, side: Side, message: m.StoreClaim) -> None:
        """Whatever a dead worker made for the sender and did not get out to it, nobody will ever ask for."""
        had = set(message.objs)
        left = self._unclaimed.get(message.worker_pid, {})
        for obj in [obj for obj, holder in left.items() if holder == side.pid]:
            del left[obj]
            self._maker.pop(obj, None)
            if obj not in had:
                self._follow(r.Release(obj, side.pid))
        if not left:
            self._unclaimed.pop(message.worker_pid, None)

    def _adopt(self, side: Side, message: m.StoreAdopt, fds: list[int]) -> None:
        if len(fds) != 1 or os.fstat(fds[0]).st_size < message.size:
            raise m.ProtocolError("StoreAdopt comes with the segment's descriptor")
        known = self._segments.get(message.segment)
        if known is not None and os.path.sameopenfile(known.fd, fds[0]):
            side.segments.add(message.segment)  # it had lost its connection: what it holds and maps is known
            return
        if known is not None:
            raise m.ProtocolError(f"segment {message.segment} is known")
        fd = os.dup(fds[0])
        self._segments[message.segment] = Segment(fd, message.size)
        side.segments.add(message.segment)
        self._do(e.Adopt(message.size, message.objs, side.number, side.pid, monotonic(), message.segment))
        for obj, *_ in message.objs:
            self._follow(r.Acquire(obj, side.pid))

    def _ask(self, side: Side, message: m.StoreAsk) -> None:
        self._do(e.Rescan(monotonic()))
        stats = self.store.stats()._asdict()
        stats["reads"] = sum(one.page.reads() for one in self._sides.values())
        stats["file_reads"] = sum(one.page.file_reads() for one in self._sides.values())
        listing = [tuple(one) for one in self.store.listing()] if message.listing else []
        machines = self._node.machines()
        stats["machines"] = [(*one[:2], visible(one[2]), visible(one[3]), one[4]) for one in machines]
        stats["resources"] = in_all(machines)
        self._send(side.number, m.StoreReport(message.request, stats, listing))
        if self.idle():  # a node that was started for this question goes again
            self._node.store_idle()

    def _promise(self, side: Side, message: m.StorePromise) -> None:
        for obj in message.objs:
            self._promises.setdefault(obj, None)
            self._promised_by.setdefault(side.pid, set()).add(obj)
            self._follow(r.Acquire(obj, side.pid))

    def _fulfil(self, side: Side, message: m.StoreFulfil) -> None:
        self._promised_by.get(side.pid, set()).discard(message.obj)
        if message.obj not in self._promises:
            return
        for inner in message.contains:
            self._follow(r.Contains(message.obj, inner))
        self._resolve(m.StoreResolved(message.obj, message.kind, message.data))

    def _resolve(self, resolved: m.StoreResolved) -> None:
        self._promises[resolved.obj] = resolved
        for number in self._watchers.pop(resolved.obj, ()):
            side = self._sides.get(number)
            if side is not None:
                side.watches.discard(resolved.obj)
                self._send(number, resolved)

    def _watch(self, side: Side, message: m.StoreWatch) -> None:
        if message.obj not in self._promises:
            lending = self._across()
            if lending is None or not lending.watch(message.obj):
                self._send(side.number, m.StoreResolved(message.obj, LOST, b"nobody holds it any more"))
                return
            self._promises[message.obj] = None
        known = self._promises[message.obj]
        if known is not None:
            self._send(side.number, known)
        else:
            side.watches.add(message.obj)
            self._watchers.setdefault(message.obj, []).append(side.number)

    _MESSAGES: dict[type[Any], Callable[[Any, Side, Any], None]] = {  # noqa: RUF012
        m.StoreWant: _question,
        m.StoreMissed: lambda self, side, message: side.segments.discard(message.segment),
        m.StoreReturn: _return,
        m.StoreSeal: _seal,
        m.StoreSealFile: _seal_file,
        m.StoreLocate: _question,
        m.StoreHold: _hold,
        m.StoreRelease: _release,
        m.StoreRetire: _retire,
        m.StoreClaim: _claim,
        m.StoreAdopt: lambda self, side, message: None,
        m.StoreAsk: _question,
        m.ActorCreate: lambda self, side, message: self._create_actor(side, message),
        m.ActorFind: lambda self, side, message: self._find_actor(side, message),
        m.ActorKill: lambda self, side, message: self._node.actors().kill(message.actor, message.restart, message.why),
        m.StorePromise: _promise,
        m.StoreFulfil: _fulfil,
        m.StoreWatch: _question,
        m.StoreLend: lambda self, side, message: self._gateway_said(side, message),
        m.StoreLendEnd: lambda self, side, message: self._gateway_said(side, message),
        m.StorePeerGone: lambda self, side, message: self._gateway_said(side, message),
        m.StoreAway: lambda self, side, message: self._gateway_said(side, message),
        m.StoreInside: lambda self, side, message: self._gateway_said(side, message),
        m.StoreEstate: lambda self, side, message: self._gateway_said(side, message),
        m.StoreServe: lambda self, side, message: self._gateway_said(side, message),
    }

    _QUESTIONS: dict[type[Any], Callable[[Any, Side, Any], None]] = {  # noqa: RUF012
        m.StoreWant: _want,
        m.StoreLocate: _locate,
        m.StoreAsk: _ask,
        m.StoreWatch: _watch,
        m.StoreLend: lambda self, side, message: self._gateway_asked(side, message),
        m.StoreInside: lambda self, side, message: self._gateway_asked(side, message),
        m.StoreEstate: lambda self, side, message: self._gateway_asked(side, message),
    }

    # -- other machines

    def _across(self) -> NodeLending | None:
        """What is held across machines; None if there is no gateway."""
        if self._lending is None and self._node.gateway_pid():
            from dpool._core.node_lending import NodeLending

            self._lending = NodeLending(self._node, self)
        return self._lending

    def _gateway_said(self, side: Side, message: Any) -> None:
        lending = self._across()
        if lending is None:
            raise m.ProtocolError(f"{type(message).__name__} is the gateway's to say, and there is none")
        lending.said(side, message)
        if type(message) in self._QUESTIONS:
            self._question(side, message)

    def _gateway_asked(self, side: Side, message: Any) -> None:
        lending = self._across()
        assert lending is not None
        lending.asked(side, message)

    def follow(self, event: Any) -> None:
        """Apply an event to the references."""
        self._follow(event)

    def promised(self, obj: bytes) -> bool:
        """Whether it is a future that somebody has promised."""
        return obj in self._promises

    def record(self, obj: bytes) -> None:
        """Say that an object is here where others could ask for it."""
        self._record(obj, self.store.size_of(obj))

    def outcome(self, obj: bytes) -> m.StoreResolved | None:
        """What has become of it, if that is known."""
        return self._promises[obj]

    def locate_again(self, number: int, request: int, obj: bytes) -> None:
        """Answer a process that had to wait for an object of another machine."""
        if number in self._sides:
            self._do(e.Locate(number, request, obj, monotonic()))

    def answer(self, number: int, message: Any) -> None:
        """Answer a process, if it is still there."""
        self._send(number, message)

    # -- who holds

    def _follow(self, event: Any) -> None:
        try:
            freed = self.references.handle(event)
        except (IllegalMove, ValueError) as error:  # a peer's mistake costs that peer its object, and nobody else
            self._log("store.illegal", said=event, error=error)
            return
        for order in freed:
            if self._lending is not None:
                self._lending.freed(order.obj)
            maker = self._maker.pop(order.obj, None)
            if maker is not None:
                self._unclaimed.get(maker, {}).pop(order.obj, None)
            if self._promises.pop(order.obj, False) is not False:
                self._watchers.pop(order.obj, None)
            elif (lent := self._lending) and lent.made_elsewhere(order.obj) and not self.store.knows(order.obj):
                continue  # an id was all that was here of it
            elif not self._node.sync_freed(order.obj) and not self._node.actor_freed(order.obj):
                for where in self.store.places(order.obj):  # whoever reads it without holding it must notice
                    self._mark(memory.LEAVING, where)
                self._do(e.Free(order.obj))
                self._record(order.obj, None)
        if freed and not len(self.references):
            self._node.store_idle()

    # -- what the store decides

    def _do(self, event: Any) -> None:
        self._perform(self.store.handle(event))

    def _perform(self, orders: list[Any]) -> None:
        """Carry out instructions: what concerns memory one after the other, and in the memory thread if it takes time;
        everything else at once.
        """
        queued = [one for one in orders if type(one) in self._QUEUED]
        for one in orders:
            if type(one) not in self._QUEUED:
                self._INSTRUCTIONS[type(one)](self, one)
        if not queued:
            return
        work = [one for one in queued if type(one) is e.Punch or type(one) is e.Allocate]
        if not self._memory_jobs and sum(one.range.length for one in work) <= INLINE_ALLOCATION:
            self._memory_done(queued, self._make_memory(queued))
            return
        self._memory_jobs += 1
        self._memory_thread.submit(partial(self._memory_job, queued))

    def _memory_job(self, queued: list[Any]) -> Callable[[], None]:
        """In the memory thread."""
        refused = self._make_memory(queued)

        def done() -> None:
            self._memory_jobs -= 1
            self._memory_done(queued, refused)

        return done

    def _make_memory(self, queued: list[Any]) -> str:
        """Why memory could not be had, or ""; what can be done is done all the same."""
        refused = ""
        for one in queued:
            try:
                if type(one) is e.MakeSegment:
                    self._make_segment(one)
                elif type(one) is e.Punch:
                    self._segments[one.range.segment].punch(one.range)
                elif type(one) is e.Allocate:
                    self._segments[one.range.segment].allocate(one.range)
            except Exception as error:  # whatever it is: who waits for this memory must get an answer
                refused = refused or f"{type(error).__name__}: {error}"
        return refused

    def _memory_done(self, queued: list[Any], refused: str) -> None:
        cold = sum(one.range.length for one in queued if type(one) is e.Allocate)
        for one in queued:
            kind = type(one)
            if kind is e.Leased:
                if refused:
                    self._log("store.no_memory", length=one.range.length, error=refused)
                    self._do(e.MemoryRefused(one.client, one.request, one.range))
                else:
                    self._leased(one)
                    self._prefault(one, cold)
            elif kind is e.StartRestore:
                if refused:
                    self._do(e.MemoryRefused(NODE, 0, one.range))
                else:
                    self._start_restore(one)
            elif kind is e.DropSegment:
                self._drop_segment(one)

    def _prefault(self, order: e.Leased, cold: int) -> None:
        """Somebody had to wait for new memory: have as much ready for the next one, as long as there is plenty."""
        if order.client == NODE:
            self._prefaulting = False
            return
        length = min(cold, MOST_PREFAULT)
        if length <= INLINE_ALLOCATION or self._prefaulting or self.store.resident + length > self.store.capacity // 2:
            return
        self._prefaulting = True
        self._prefaults += 1
        self._do(e.Want(NODE, self._prefaults, length, monotonic()))

    def _make_segment(self, order: e.MakeSegment) -> None:
        fd = os.memfd_create(f"dpool-store-{order.segment}")
        try:
            os.ftruncate(fd, order.size)
            self._segments[order.segment] = Segment(fd, order.size)
        except BaseException:
            os.close(fd)
            raise

    def _leased(self, order: e.Leased) -> None:
        if order.client == NODE:
            self._do(e.Return(NODE, order.range))
            return
        where = order.range
        size = self._segments[where.segment].size
        answer = m.StoreLeased(order.request, where.segment, size, where.offset, where.length)
        if not self._send_segment(order.client, where.segment, answer):
            self._do(e.Return(order.client, where))

    def _send_segment(self, number: int, segment: int, answer: Any) -> bool:
        """An answer that names a segment, with its descriptor if the process has not got it yet."""
        side = self._sides.get(number)
        if side is None:
            return False
        if segment in side.segments:
            self._send(number, answer)
        else:
            side.segments.add(segment)
            self._send(number, answer, (self._segments[segment].fd,))
        return True

    def _on_disk(self, order: e.OnDisk) -> None:
        if order.client == NODE:
            self._prefaulting = False
            return
        try:
            self._files.ensure()
            path = self._files.new_path(os.urandom(20))
        except OSError as error:
            self._log("spill.no_directory", error=error)
            path = f"\0{error}"
        self._send(order.client, m.StoreOnDisk(order.request, path))

    def _located(self, order: e.Located) -> None:
        where = order.range
        size = self._segments[where.segment].size
        answer = m.StoreLocated(order.request, order.obj, where.segment, size, where.offset, where.length, order.size)
        self._send_segment(order.client, where.segment, answer)

    def _start_spill(self, order: e.StartSpill) -> None:
        where, obj = order.range, order.obj
        begin = where.offset + memory.HEADER
        segment = self._segments[where.segment]
        self._spill_thread.submit(partial(self._spill_job, obj, segment, begin, order.size))

    def _spill_job(self, obj: bytes, segment: Segment, begin: int, size: int) -> Callable[[], None]:
        """In the spill thread."""
        try:
            self._files.ensure()
            file = spill.write(self._files.new_path(obj), segment.window.peek(begin, size), obj)
        except Exception as error:  # whatever it is, somebody waits for the end of this
            full = isinstance(error, OSError) and spill.is_full(error)
            event: Any = e.SpillFailed(obj, f"{type(error).__name__}: {error}", full, monotonic())
        else:
            event = e.SpillDone(obj, file.path, file.crc, monotonic())
        return partial(self._do, event)

    def _start_restore(self, order: e.StartRestore) -> None:
        file = spill.SpillFile(order.path, order.size, order.crc)
        segment = self._segments[order.range.segment]
        self._restore_thread.submit(partial(self._restore_job, order.obj, file, segment, order.range))

    def _restore_job(self, obj: bytes, file: spill.SpillFile, segment: Segment, where: e.Range) -> Callable[[], None]:
        """In the restore thread."""
        target = segment.window.peek(where.offset, where.length)
        try:
            spill.read_into(file, target[memory.HEADER : memory.HEADER + file.size], obj)
            memory.write_header(target, obj, file.size)
            event: Any = e.RestoreDone(obj, monotonic())
        except spill.SpillLost as error:
            event = e.RestoreFailed(obj, str(error), monotonic())
        except Exception as error:  # of this process, not of the file: let the reader, who waits for an answer, try
            self._log("restore.failed", path=file.path, error=error)
            event = e.MemoryRefused(NODE, 0, where)
        return partial(self._do, event)

    def _mark(self, state: int, where: e.Range) -> None:
        memory.write_state(self._segments[where.segment].fd, where.offset, state)

    def _mark_leaving(self, order: e.MarkLeaving) -> None:
        self._mark(memory.LEAVING, order.range)
        self._node._at(monotonic() + LOOK_AFTER_S, lambda: self._do(e.Looked(order.obj, monotonic())))

    def _mark_sealed(self, order: e.MarkSealed) -> None:
        if self.store.places(order.obj):  # else it has been freed by now
            self._mark(memory.SEALED, order.range)

    def _drop_segment(self, order: e.DropSegment) -> None:
        segment = self._segments.pop(order.segment, None)
        if segment is None:
            return  # it could not be made
        memory.punch(segment.fd, 0, segment.size)  # whoever still has its descriptor does not keep the pages
        segment.close()
        for side in self._sides.values():
            if order.segment in side.segments:
                side.segments.discard(order.segment)
                self._send(side.number, m.StoreDropped(order.segment))

    def _pressure(self, order: e.Pressure) -> None:
        self._pressed = order.on
        for side in self._sides.values():
            side.page.press(order.on)

    def _delete_file(self, order: e.DeleteFile) -> None:
        self._spill_thread.submit(partial(_delete, order.path))

    def _unknown(self, order: e.Unknown) -> None:
        self._send(order.client, m.StoreUnknown(order.request, order.obj, order.why))

    def _in_file(self, order: e.InFile) -> None:
        self._send(order.client, m.StoreInFile(order.request, order.obj, order.path, order.size, order.crc))

    _QUEUED: frozenset[type[Any]] = frozenset(
        (e.MakeSegment, e.Punch, e.Allocate, e.DropSegment, e.Leased, e.StartRestore)
    )

    _INSTRUCTIONS: dict[type[Any], Callable[[Any, Any], None]] = {  # noqa: RUF012
        e.OnDisk: _on_disk,
        e.Located: _located,
        e.InFile: _in_file,
        e.Unknown: _unknown,
        e.Adopted: lambda self, order: None,
        e.StartSpill: _start_spill,
        e.MarkLeaving: _mark_leaving,
        e.MarkSealed: _mark_sealed,
        e.DeleteFile: _delete_file,
        e.Pressure: _pressure,
        e.WakeAt: lambda self, order: self._node._at(order.at_s, lambda: self._do(e.Tick(monotonic()))),
    }

    # -- small things

    def _send(self, number: int, message: Any, fds: tuple[int, ...] = ()) -> None:
        if number in self._sides:
            self._node.send_store_side(number, message, fds)

    def _pinned(self, where: e.Range) -> bool:
        return any(side.page.pins(where.segment, where.offset) for side in self._sides.values())

    def _see_uses(self) -> None:
        """What was read lately, so that the least recently used goes first."""
        if self.store.short_of_room():
            self._do(e.Used([use for side in self._sides.values() for use in side.page.recent()]))

    def close(self) -> None:
        """The node ends: the files go, the memory goes with the last mapping."""
        self._huge_thread.close()
        self._spill_thread.close()
        self._restore_thread.close()
        self._memory_thread.close()
        self._files.remove_all()
        mapped = {segment for side in self._sides.values() for segment, _ in side.page.live()}
        mapped |= self.store.retired_segments()  # children that were forked may live on
        for number, segment in self._segments.items():
            if number not in mapped:  # whoever has its descriptor, and lives on, does not keep the pages
                memory.punch(segment.fd, 0, segment.size)


def _delete(path: str) -> Callable[[], None]:
    spill.remove(path)
    return _nothing


def _make_huge(segment: Segment, where: e.Range) -> Callable[[], None]:
    """In a thread of its own, as nobody waits for it."""
    segment.make_huge(where)
    return _nothing


def _nothing() -> None:
    """Nothing follows from the job that is done."""
