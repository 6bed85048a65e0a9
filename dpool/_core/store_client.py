"""A process's side of the object store: writing, reading, holding.

```
 write(parts) ─► room in a lease (or StoreWant) ─► copy ─► header ─► StoreSeal ─► Handle
 load(place)  ─► pin ─► map copy-on-write ─► header still says it? ─► value whose buffers are the mapping
                                              └ no: StoreLocate ─► there, or from the file
```

A `Handle` is this process's hold of one object: while one lives, the object does. There is one Handle for each object,
and references, futures and tasks share it; when it is collected, StoreRelease follows. Readers say nothing at all: see
`_store/pins.py`.

Threads: any. `_ask_lock` orders requests and their answers, and may be taken again by a signal handler that interrupted
its owner; a message is sent whole or not at all, so sending needs no lock; copying, mapping and unpickling happen under
none.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import select
import socket
import sys
import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from dpool._core import ids, wire
from dpool._core import messages as m
from dpool._core.config import PROTOCOL
from dpool._core.storage import Leaving, Place, StoreGone, gone
from dpool._store import memory, serde
from dpool._store.pins import PinPage, key_of, make_page

if TYPE_CHECKING:
    from dpool._store.spill import SpillFile

CHUNKED = 4 << 20
"""Values up to this size are written into a chunk that is leased for many."""
UNIT = 256 << 10
"""Page tables are filled in steps of this size."""
MAX_TRIES = 100
"""How often an object is looked for that leaves memory again before it is mapped, because others want room."""
LOOK_AGAIN_MS = 200
"""After so long without a message it is looked whether a signal handler, which asked too, has read the answer."""
NOBODY_WAITS = 0
"""In the place of a request's number."""
NEEDED_ON = "it is needed on "
"""With these words it begins why an object of another machine is not here if there is no room; the machine follows."""
MANY = 1000
"""Objects that are let go with one message, at most about so many."""


class Handle:
    """This process holds an object; see the module."""

    __slots__ = ("__weakref__", "_client", "held", "length", "obj", "offset", "said", "segment", "size")

    def __init__(self, client: StoreClient, place: Place, held: int, said: list[int]) -> None:
        self._client = client
        self.obj, self.segment, self.offset, self.length, self.size = place
        self.held = held
        """How often the node counts us, …"""
        self.said = said
        """… once it has been told: empty until then."""

    @property
    def pid(self) -> int:
        """The process that holds it."""
        return self._client.pid

    @property
    def place(self) -> Place:
        """How it is described to others."""
        return [self.obj, self.segment, self.offset, self.length, self.size]

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # a signal handler may have cut its making short; at the very end modules are empty, and all is let go anyway
        if getattr(self, "said", None) and not _ending():
            self._client.let_go(self.obj, self.held)


class _Segment:
    """A memory file of the node's, as far as this process needs it. What it gives is mapped for as long as it lives."""

    __slots__ = ("_windows", "fd", "filled", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._windows: dict[bool, memory.Window] = {}
        """The lasting mappings: writable or not → the only one."""
        self.filled = bytearray(-(-size // UNIT))
        """One byte for each UNIT: whether its page tables have been filled."""

    def for_writing(self, offset: int, length: int) -> memoryview:
        """The range in the lasting writable mapping, its page tables filled."""
        writable = self._mapped(True)
        first, last = offset // UNIT, -(-(offset + length) // UNIT)
        if self.filled.find(0, first, last) >= 0:
            writable.populate(offset, length)
            self.filled[first:last] = b"\1" * (last - first)
        return writable.peek(offset, length)

    @property
    def window(self) -> memory.Window:
        """The lasting read-only mapping."""
        return self._mapped(False)

    def _mapped(self, writable: bool) -> memory.Window:
        window = self._windows.get(writable)
        if window is None:  # of several threads' that of the first is taken, and none is unmapped that is used
            window = self._windows.setdefault(writable, memory.Window(self.fd, self.size, writable))
        return window

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:  # also when modules are being emptied
        _close(self.fd)  # not before the last thread that is at work on it; the mappings go with their last views


class Copy:
    """Where a copy of another machine's object is being written."""

    __slots__ = ("lease", "obj", "path", "segment", "view")

    def __init__(self, obj: bytes, view: memoryview, lease: _Lease | None, segment: _Segment | None, path: str) -> None:
        self.obj = obj
        self.view = view
        """The bytes of its value."""
        self.lease = lease
        """None: it goes to the file `path`, as there is no room in memory."""
        self.segment = segment
        self.path = path


class _Lease:
    """A range that this process may write to, for as long as this lives: the node is told with each question for room
    which leases there are, so none is lost for good, wherever a signal handler may raise.
    """

    __slots__ = ("__weakref__", "range")

    def __init__(self, segment: int, offset: int, length: int) -> None:
        self.range = (segment, offset, length)
        """Replaced as a whole."""


class _View:
    """A range that this process maps, and where its pin is."""

    __slots__ = ("at", "length", "offset", "segment")

    def __init__(self, client: StoreClient, slot: int, segment: int, offset: int, length: int) -> None:
        self.at = client, slot
        self.segment = segment
        self.offset = offset
        self.length = length


class StoreClient:
    """See the module. One for each process and node."""

    def __init__(self, sock: socket.socket, session: str) -> None:
        self.pid = os.getpid()
        self._tag = ids.tag_of(session)
        """What the ids of objects begin with whose home is our node."""
        self.closed = False
        self._sock = sock
        self._receiver = wire.Receiver(sock)
        fd = make_page()
        self._page = PinPage(fd)
        self._views: dict[int, _View] = {}
        """What this process maps, by the slot of its pin."""
        self._writing: dict[bytes, tuple[int, int, int]] = {}
        """What threads write at this moment: the object → segment, offset, length."""
        self._ask_lock = threading.RLock()
        self._requests = itertools.count(1)
        self._replies: dict[int, Any] = {}
        self._abandoned: set[int] = set()
        self.foreign = False
        """This process has been given an object of another machine."""
        self._on_their_way: WeakSet[Handle] = WeakSet()
        """What was asked for ahead."""
        self._left_behind: set[bytes] = set()
        """What this process held in the store of a node that has ended, and could not hand on."""
        self._prefix = self._new_prefix()
        self._made = itertools.count()
        self._segments: dict[int, _Segment] = {}
        self._leases: WeakValueDictionary[int, _Lease] = WeakValueDictionary()
        self._lease_numbers = itertools.count()
        self._asking = 0
        """Questions that wait for their answers: more than one only in a signal handler."""
        self.leaving = False
        """Nothing more is to be asked: see `storage.leave`."""
        self.patient = 0
        """Questions whose answers may take seconds, …"""
        self._patient_lock = threading.Lock()
        """… counted under this."""
        self._chunk = _Lease(0, 0, 0)
        """Segment, offset and length of what is left of the chunk."""
        self.handles: WeakValueDictionary[bytes, Handle] = WeakValueDictionary()
        self._handles_lock = threading.RLock()
        self._dead: deque[tuple[bytes, int]] = deque()
        """What is no longer held, and how often it was; not told yet."""
        self._flushing = False
        """A thread is there to tell it, because the node had not read what was told before."""
        self.escaped: dict[bytes, Handle] = {}
        """What was pickled by somebody else than us, who may unpickle it at any time: held for good."""
        self._resolved: deque[m.StoreResolved] = deque()
        """What became of futures: told with no lock held, since their callbacks are the user's code."""
        self.on_resolved: Callable[[m.StoreResolved], None] | None = None
        try:
            self._send(m.StoreHello(PROTOCOL, *m.versions(), self.pid), (fd,))
        except BaseException:
            self._page.close()
            sock.close()
            raise
        finally:
            os.close(fd)

    # -- messages

    def fileno(self) -> int:
        return self._sock.fileno()

    def _send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        self._send_now(m.encode(message), fds)
        if self._dead:
            self.flush_dead()

    def _send_now(
        self, data: bytes, fds: tuple[int, ...] = (), sent: list[int] | None = None, wait: bool = True
    ) -> None:
        """`sent` is not empty once it has gone, whatever a signal handler may raise."""
        if sent is None:
            sent = []
        while not sent:
            try:
                wire.send(self._sock, data, fds, sent)
            except BlockingIOError:
                if not wait:
                    raise
                _wait(self._sock, select.POLLOUT)
            except OSError as error:
                if isinstance(error, InterruptedError):
                    continue
                raise gone(str(error)) from error

    def let_go(self, obj: bytes, times: int) -> None:
        """A Handle was collected: anywhere, perhaps in the middle of `_send`, perhaps in a forked child."""
        self._dead.append((obj, times))
        self.flush_dead(False)

    def flush_dead(self, wait: bool = True) -> None:
        """Say what is no longer held. Several threads may be at it, and finalizers in the middle of it."""
        while self._dead and self.pid == os.getpid() and not self.closed:
            taken: list[tuple[bytes, int]] = []
            sent: list[int] = []
            full = False
            try:
                try:
                    taken.extend(map(deque.popleft, itertools.repeat(self._dead, MANY)))
                except IndexError:
                    pass  # that is all
                objs = [obj for obj, times in taken for _ in range(times)]
                self._send_now(m.encode(m.StoreRelease(objs)), (), sent, wait)
            except BlockingIOError:
                full = True
            except StoreGone:  # nobody is left who counts
                return
            finally:
                if not sent:
                    self._dead.extendleft(reversed(taken))
            if full:
                self._flush_elsewhere()
                return

    def _flush_elsewhere(self) -> None:
        """The node has much to read, and a finalizer cannot wait for it; a thread can."""
        if self._flushing:
            return
        self._flushing = True
        try:
            start_new_thread(self._flush_here, ())  # unlike threading.Thread it takes no lock
        except RuntimeError:  # no more threads are allowed, or the interpreter ends
            self._flushing = False

    def _flush_here(self) -> None:
        self.flush_dead()
        self._flushing = False
        self.flush_dead(False)  # what came in between

    def _ask(self, make: Callable[[int], Any]) -> Any:
        """Send a request and wait for its answer."""
        try:
            return self._ask_now(make)
        finally:
            if self._resolved:
                self._tell_resolved()

    def _tell_resolved(self) -> None:
        if self._ask_lock._is_owned():  # type: ignore[attr-defined]
            return  # whoever has it will do it
        while self._resolved:
            try:
                message = self._resolved.popleft()
            except IndexError:  # another thread was faster
                return
            if self.on_resolved is not None:
                self.on_resolved(message)

    def _ask_now(self, make: Callable[[int], Any]) -> Any:
        with self._ask_lock:
            request = next(self._requests)
            self._asking += 1
            try:
                self._send(make(request))
                while request not in self._replies:
                    if _wait(self._sock, select.POLLIN, LOOK_AGAIN_MS):
                        self._take()
                reply = self._replies.pop(request)
                if isinstance(reply, OSError):
                    raise reply
                return reply
            except BaseException:
                self._abandoned.add(request)
                self._replies.pop(request, None)
                raise
            finally:
                self._asking -= 1

    def _ask_patiently(self, make: Callable[[int], Any]) -> Any:
        """The same for what may take seconds: other threads can ask meanwhile."""
        request = next(self._requests)
        try:
            self._send(make(request))
            while True:
                with self._ask_lock:
                    while request not in self._replies and self._take():
                        pass
                    if request in self._replies:
                        reply = self._replies.pop(request)
                        break
                _wait(self._sock, select.POLLIN, LOOK_AGAIN_MS // 10)
        except BaseException:
            self._abandoned.add(request)
            self._replies.pop(request, None)
            raise
        if self._resolved:
            self._tell_resolved()
        return reply

    def poll(self) -> None:
        """Take what the node has said of itself."""
        if self._ask_lock.acquire(blocking=False):
            try:
                while self._take():
                    pass
            finally:
                self._ask_lock.release()
            self._tell_resolved()

    def _take(self) -> bool:
        """Deal with one message; False if there is none."""
        try:
            self._receive()
        except (BlockingIOError, InterruptedError):
            return False
        return True

    def _receive(self) -> None:
        receiver = self._receiver
        receiver.fds = []
        try:
            message = _decoded(bytes(receiver.receive(wire.DONTWAIT)))
        except (BlockingIOError, InterruptedError):
            raise
        except IndexError as error:  # a signal handler, which asked too, has dealt with it
            raise BlockingIOError from error
        except (OSError, wire.Closed, wire.DescriptorsLost, m.ProtocolError) as error:
            raise gone(f"the node closed the store ({type(error).__name__} {error})") from error
        fds, receiver.fds = receiver.fds, []
        kind = type(message)
        missed = False
        if kind is m.StoreLeased or kind is m.StoreLocated:
            self._know(message.segment, message.segment_size, fds)
            missed = message.segment not in self._segments
        if kind is m.Refused:
            raise StoreGone(f"the node refused: {message.reason}")
        if kind is not m.StoreDropped and kind is not m.StoreResolved:
            self._answered(message, missed)
        receiver.consumed()
        if missed:
            self._send(m.StoreMissed(message.segment))
        if kind is m.StoreDropped:
            self._forget(message.segment)
        elif kind is m.StoreResolved:
            self._resolved.append(message)

    def _answered(self, message: Any, missed: bool) -> None:
        """An answer has come; cut short by a signal handler, it comes once more."""
        request = message.request
        if request == NOBODY_WAITS:
            return
        if request in self._abandoned:
            self._replies.pop(request, None)
            if type(message) is m.ActorFound and message.actor:
                self._abandoned.discard(request)  # let go of it once
                self._dead.append((message.actor, 1))
        elif missed:
            self._replies[request] = OSError(
                errno.EMFILE,
                "this process has no file descriptors left for the object store (see `ulimit -n`); close files, or "
                "raise the limit",
            )
        elif type(message) is m.StoreLeased:
            self._replies[request] = self._leased(message.segment, message.offset, message.length)
        else:
            self._replies[request] = message

    def _leased(self, segment: int, offset: int, length: int) -> _Lease:
        lease = _Lease(segment, offset, length)
        self._leases[next(self._lease_numbers)] = lease
        return lease

    def _know(self, number: int, size: int, fds: list[int]) -> None:
        if not fds:
            return
        known = self._segments.get(number)
        if known is not None:
            for fd in fds:
                if fd != known.fd:  # else this very message was read once before, and a signal handler raised
                    os.close(fd)
        else:
            self._segments[number] = _Segment(fds[0], size)

    def _forget(self, number: int) -> None:
        self._segments.pop(number, None)

    # -- writing

    def new_id(self) -> bytes:
        """The id of another object that this process makes."""
        index = next(self._made)
        if index > ids.MAX_OUTPUT_INDEX:
            self._prefix, self._made = self._new_prefix(), itertools.count(1)
            index = 0
        return ids.object_id(self._prefix, index)

    def _new_prefix(self) -> bytes:
        """What the next many ids begin with: the node is their home."""
        return self._tag + os.urandom(ids.ID_BYTES - ids.TAG_BYTES)

    def write(self, parts: serde.Parts, contains: list[bytes], holder: int) -> Handle | Place:
        """Store a value; the Handle of it, or for another `holder` (a process id) its place.

        Raises:
            ObjectStoreFull: neither the store nor the disk has room.
            StoreGone: there is no node any more.
        """
        obj, size = self.new_id(), parts.nbytes
        need = memory.HEADER + size
        room = self._room(need)
        if isinstance(room, m.StoreOnDisk):
            return self._write_file(obj, parts, room.path, contains, holder)
        segment, offset, length = self._writing[obj] = room.range
        place: Place = [obj, segment, offset, length, size]
        sealed: list[int] = []
        handle = Handle(self, place, 1, sealed) if holder == self.pid else None
        try:
            known = self._segments[segment]  # kept until the value is written, whatever becomes of the node
            target = known.for_writing(offset, length)
            parts.write_into(target[memory.HEADER : need])
            memory.write_header(target, obj, size)
            if handle is not None:
                self.handles[obj] = handle
            message = m.StoreSeal(obj, segment, offset, length, size, holder, contains)
            self._send_now(m.encode(message), (), sealed)
        except Exception:
            if not sealed:
                self._give_back(room)
            raise
        finally:
            self._writing.pop(obj, None)
        if self._dead:
            self.flush_dead()
        return place if handle is None else handle

    def _room(self, need: int) -> _Lease | m.StoreOnDisk:
        """A range of our own to write into."""
        length = -(-need // memory.PAGE) * memory.PAGE
        if length > CHUNKED:
            return self._lease(length)
        with self._ask_lock:
            while True:
                chunk = self._chunk
                self._chunk = _Lease(0, 0, 0)  # a signal handler that stores something finds none, and gets its own
                segment, offset, left = chunk.range
                if left >= length:
                    part = self._leased(segment, offset, length)
                    chunk.range = (segment, offset + length, left - length)
                    self._chunk = chunk
                    return part
                if left:
                    self._give_back(chunk)
                answer = self._lease(max(length, self._page.chunk()))
                if isinstance(answer, m.StoreOnDisk):  # then just what is needed
                    return self._lease(length)
                self._chunk = answer

    def _lease(self, length: int) -> _Lease | m.StoreOnDisk:
        def want(request: int) -> m.StoreWant:
            leases = [lease.range for lease in list(self._leases.values()) if lease.range[2]]
            return m.StoreWant(request, length, self._asking == 1, leases)

        answer: _Lease | m.StoreOnDisk = self._ask(want)
        return answer

    def _give_back(self, lease: _Lease) -> None:
        """Nothing will be written there; said once, as it may be somebody else's right afterwards."""
        if self.closed:
            return
        try:
            self._send(m.StoreReturn(*lease.range))
        except StoreGone:
            return

    def _write_file(
        self, obj: bytes, parts: serde.Parts, path: str, contains: list[bytes], holder: int
    ) -> Handle | Place:
        from dpool._store import spill

        if path.startswith("\0"):
            raise self._full(parts.nbytes, f"no spill directory: {path[1:]}")
        scratch = mmap.mmap(-1, max(1, parts.nbytes))
        view = memoryview(scratch)
        try:
            parts.write_into(view[: parts.nbytes])
            file = spill.write(path, view[: parts.nbytes], obj)
        except OSError as error:
            raise self._full(parts.nbytes, f"{os.path.dirname(path)}: {error.strerror}") from error
        finally:
            view.release()
            scratch.close()
        place = [obj, 0, 0, 0, parts.nbytes]
        sealed: list[int] = []
        handle = Handle(self, place, 1, sealed) if holder == self.pid else None
        if handle is not None:
            self.handles[obj] = handle
        message = m.StoreSealFile(obj, parts.nbytes, file.path, file.crc, holder, contains)
        self._send_now(m.encode(message), (), sealed)
        return place if handle is None else handle

    def _full(self, size: int, disk: str) -> BaseException:
        from dpool.errors import ObjectStoreFull

        try:
            report = self.report(True)
        except StoreGone:
            return ObjectStoreFull(f"no room for an object of {size:,} bytes, and the node has ended")
        stats = report.stats
        by_pid: dict[int, int] = {}
        for _, held, pid, *_ in report.listing:
            by_pid[pid] = by_pid.get(pid, 0) + held
        holders = ", ".join(f"pid {pid}: {held:,}" for pid, held in sorted(by_pid.items(), key=lambda one: -one[1])[:5])
        return ObjectStoreFull(
            f"no room for an object of {size:,} bytes: the object store of {os.uname().nodename} holds "
            f"{stats['used']:,} of {stats['capacity']:,} bytes ({stats['pinned_bytes']:,} of them mapped by readers; "
            f"made by {holders}), and the disk took no more ({disk}). Drop references or arrays that are not needed, "
            "make room on the disk (DPOOL_SPILL_DIR chooses another), or enlarge the store (DPOOL_OBJECT_STORE_MEMORY)."
        )

    # -- holding

    def _handle(self, place: Place, held: int) -> Handle:
        """The Handle for an object of which the node counts us `held` more times."""
        with self._handles_lock:
            handle = self.handles.get(place[0])
            if handle is None:
                self.foreign = self.foreign or ids.home_of(place[0]) != self._tag
                handle = self.handles[place[0]] = Handle(self, place, held, [1])
            else:
                handle.held += held
            return handle

    def received(self, place: Place) -> Handle:
        """An object that its maker sealed in our name."""
        return self._handle(place, 1)

    def hold(self, place: Place) -> Handle:
        """Hold an object that somebody else holds meanwhile."""
        with self._handles_lock:
            handle = self.handles.get(place[0])
            if handle is not None:
                return handle
            self.foreign = self.foreign or ids.home_of(place[0]) != self._tag
            handle = self.handles[place[0]] = Handle(self, place, 1, [])
            self._send_now(m.encode(m.StoreHold([place[0]], self.pid)), (), handle.said)
            return handle

    def ask_for_actor(self, make: Callable[[int], Any]) -> tuple[Handle | None, m.ActorFound]:
        """Make an actor, or find one: this process holds it then."""
        with self._patient_lock:
            self.patient += 1
        try:
            if self.leaving:
                raise Leaving("this process leaves the node")
            found: m.ActorFound = self._ask_patiently(make)
            return self._handle([found.actor, 0, 0, 0, 0], 1) if found.actor else None, found
        finally:
            with self._patient_lock:
                self.patient -= 1

    def say(self, message: Any) -> None:
        """Send what is not answered."""
        self._send(message)

    def hold_for(self, objs: list[bytes], pid: int) -> None:
        """Let another process hold these, before it knows."""
        self._send(m.StoreHold(objs, pid))

    def claim(self, worker_pid: int) -> None:
        """A worker has died: what it made for us and did not send may go."""
        with self._handles_lock:
            objs = list(self.handles.keys())
        self._send(m.StoreClaim(worker_pid, objs))

    # -- reading

    def load(self, place: Place, readonly: bool = False, copy: bool = False) -> Any:
        """The value at `place`, which this process or its submitter holds.

        Raises:
            ObjectLost: it is gone, and the text says why.
        """
        return serde.load(self._flat(place, readonly, copy))

    def _flat(self, place: Place, readonly: bool, copy: bool) -> memoryview:
        """The bytes of the value."""
        obj = place[0]
        for _ in range(MAX_TRIES):
            flat = self._map(place, readonly, copy)
            if flat is None:
                ask = self._ask if ids.home_of(obj) == self._tag else self._ask_patiently  # it comes from elsewhere
                answer = ask(lambda request: m.StoreLocate(request, obj))
                if isinstance(answer, m.StoreLocated):
                    place = [obj, answer.segment, answer.offset, answer.length, answer.size]
                    handle = self.handles.get(obj)
                    if handle is not None:
                        handle.segment, handle.offset, handle.length = place[1:4]
                    continue
                flat = self._from_file(answer, readonly)
            return flat
        raise lost(obj, "it was moved away each time it was looked for")

    def _map(self, place: Place, readonly: bool, copy: bool) -> memoryview | None:
        """The object's value in memory, pinned as long as anything refers to it; None if it is not there."""
        obj, number, offset, length, size = place
        segment = self._segments.get(number)
        if segment is None or offset + length > segment.size:  # it lies on another machine, or did
            return None
        page = self._page
        slot = page.reserve() if not copy and not page.pressed() else 0
        if not slot:
            copied = self._copied(place, segment)
            return copied.toreadonly() if readonly and copied is not None else copied
        view = self._views[slot] = _View(self, slot, number, offset, length)
        unpin = partial(_unpin, view)
        try:
            page.pin(slot, number, offset)
            window = segment.window
            head = window.peek(offset, min(length, 2 * memory.HEADER))
            there = memory.is_sealed(head, obj)
            if there:
                page.note_read(number, offset)
            if there and (readonly or serde.flat_readonly(head[memory.HEADER :])):
                return self._valid(window.slice(offset, length, unpin)[memory.HEADER : memory.HEADER + size])
            if there:
                mapped = memory.map_private(segment.fd, offset, length, unpin)
                return self._valid(mapped[memory.HEADER : memory.HEADER + size])
        except BaseException:
            unpin()
            raise
        unpin()
        return None

    def _copied(self, place: Place, segment: _Segment) -> memoryview | None:
        """A private copy; the pin is needed only meanwhile."""
        obj, number, offset, length, size = place
        page = self._page
        while not (slot := page.reserve(spare=True)):
            os.sched_yield()  # more threads than spare slots copy at this moment
        try:
            page.pin(slot, number, offset)
            shared = segment.window.peek(offset, length)
            if not memory.is_sealed(shared, obj):
                return None
            page.note_read(number, offset)
            return self._valid(memory.private_copy(shared[memory.HEADER : memory.HEADER + size]))
        finally:
            page.unpin(slot)

    def _valid(self, value: memoryview) -> memoryview:
        """The same, unless our pins have gone to the client of the next node meanwhile, which knows nothing of it."""
        if self.closed:
            raise StoreGone("the node has ended")
        return value

    def _from_file(self, answer: Any, readonly: bool) -> memoryview:
        from dpool._store import spill

        if isinstance(answer, m.StoreUnknown):
            behind = " any more: the node that had it has ended" if answer.obj in self._left_behind else ""
            raise lost(answer.obj, answer.why + behind)
        file: SpillFile = spill.SpillFile(answer.path, answer.size, answer.crc)
        try:
            view = spill.read_private(file, answer.obj)
        except (OSError, spill.SpillLost) as error:
            raise lost(answer.obj, str(error)) from error
        self._page.note_file_read()
        return view.toreadonly() if readonly else view

    def fetch_soon(self, handles: list[Handle]) -> None:
        """Have objects of other machines come to this one's store, before anybody asks for their values."""
        for handle in handles:
            if ids.home_of(handle.obj) != self._tag and handle not in self._on_their_way:
                self._on_their_way.add(handle)
                self._send(m.StoreLocate(NOBODY_WAITS, handle.obj))

    # -- copies of what lies on other machines, and what they are made from: for the gateway

    def reserve(self, obj: bytes, size: int) -> Copy:
        """Room for a copy of an object of another machine.

        Raises:
            ObjectStoreFull: there is none, not on disk either.
            OSError, StoreGone.
        """
        room = self._room(memory.HEADER + size)
        if isinstance(room, m.StoreOnDisk):
            if room.path.startswith("\0"):
                raise self._full(size, f"no spill directory: {room.path[1:]}")
            return Copy(obj, memoryview(mmap.mmap(-1, max(1, size)))[:size], None, None, room.path)
        segment, offset, length = room.range
        known = self._segments[segment]
        return Copy(obj, known.for_writing(offset, length)[memory.HEADER :][:size], room, known, "")

    def seal_copy(self, copy: Copy, contains: list[bytes]) -> None:
        """All of it is there: this process holds the object now, once more.

        Raises:
            ObjectStoreFull: it was to go to the disk, which does not take it.
            StoreGone.
        """
        size = len(copy.view)
        if copy.lease is None:
            from dpool._store import spill

            try:
                file = spill.write(copy.path, copy.view, copy.obj)
            except OSError as error:
                raise self._full(size, f"{os.path.dirname(copy.path)}: {error.strerror}") from error
            self._send(m.StoreSealFile(copy.obj, size, file.path, file.crc, self.pid, contains))
            return
        segment, offset, length = copy.lease.range
        assert copy.segment is not None
        memory.write_header(copy.segment.for_writing(offset, memory.HEADER), copy.obj, size)
        self._send(m.StoreSeal(copy.obj, segment, offset, length, size, self.pid, contains))

    def drop_copy(self, copy: Copy) -> None:
        """It is not wanted any more."""
        if copy.lease is not None:
            self._give_back(copy.lease)

    def look_at(self, obj: bytes) -> tuple[memoryview, list[bytes]]:
        """The bytes of an object of this node's, which stay as they are while anything refers to them; and what it
        contains. ObjectLost if it is gone.
        """
        contents: m.StoreContents = self._ask(lambda request: m.StoreInside(request, obj))
        return self._flat([obj, 0, 0, 0, 0], True, False), contents.objs

    # -- questions

    def report(self, listing: bool) -> m.StoreReport:
        """Figures of the whole store, and what is in it."""
        answer: m.StoreReport = self._ask(lambda request: m.StoreAsk(request, listing))
        return answer

    # -- futures that travel

    def promise(self, objs: list[bytes]) -> list[Handle]:
        """This process will say what becomes of these futures."""
        self._send(m.StorePromise(objs))
        return [self._handle([obj, 0, 0, 0, 0], 1) for obj in objs]

    def fulfil(self, obj: bytes, kind: int, data: bytes, contains: list[bytes]) -> None:
        """What became of a promised future."""
        self._send(m.StoreFulfil(obj, kind, data, contains))

    def watch(self, obj: bytes) -> None:
        """Have `on_resolved` called when it is known what became of a future of another process."""
        self._send(m.StoreWatch(obj))

    def wait_message(self) -> None:
        """Wait for a message and deal with it; for the one thread that watches futures."""
        _wait(self._sock, select.POLLIN)
        self.poll()

    # -- another node

    def adopt_into(self, other: StoreClient) -> None:
        """The node died: hand what we hold, and have the memory of, to the store of the next one.

        What we only map, or another thread is writing at this moment, goes along under another name, so that it is
        not written over.
        """
        with self._handles_lock:
            held = list(self.handles.values())
        there: set[bytes] = set()
        by_segment: dict[int, dict[int, tuple[bytes, int, int, int]]] = {}
        for handle in held:
            if self._is_there(handle):
                entry = (handle.obj, handle.offset, handle.length, handle.size)
                by_segment.setdefault(handle.segment, {})[handle.offset] = entry
                there.add(handle.obj)
        ranges = [(*where, False) for where in list(self._writing.values())]
        for view in list(self._views.values()):
            if view.segment in by_segment:
                ranges.append((view.segment, view.offset, view.length, other._take_over(view)))
        only_mapped = []
        for number, offset, length, pinned in ranges:
            if number in by_segment and offset not in by_segment[number]:
                obj = other.new_id()
                by_segment[number][offset] = (obj, offset, length, length - memory.HEADER)
                if pinned:
                    only_mapped.append(obj)
        for number, objs in by_segment.items():
            segment = self._segments[number]
            other._send(m.StoreAdopt(number, segment.size, list(objs.values())), (segment.fd,))
        other._send(m.StoreRelease(only_mapped))  # the pins keep their memory
        for number in by_segment:
            other._segments[number] = self._segments.pop(number)
        with other._handles_lock:
            for handle in held:
                handle._client = other
                other.handles[handle.obj] = handle
                if handle.obj in there:
                    handle.held = 1
                else:  # it was elsewhere than in memory that we know: the next node has never heard of it
                    handle.held = handle.segment = 0
                    other._left_behind.add(handle.obj)

    def _is_there(self, handle: Handle) -> bool:
        """Whether an object is where it was seen last: it may have been moved since, and something else be there."""
        segment = self._segments.get(handle.segment)
        if segment is None:
            return False
        return memory.is_sealed(segment.window.peek(handle.offset, memory.HEADER), handle.obj)

    def _take_over(self, view: _View) -> bool:
        """Pin here what was mapped of an earlier node's; False if there is no slot left for it."""
        client, slot = view.at
        mine = self._page.reserve()
        if not mine:
            return False
        self._page.pin(mine, view.segment, view.offset)
        self._views[mine] = view
        view.at = self, mine
        if client._views.pop(slot, None) is None:
            _unpin(view)  # collected before it was told that its pin is here
        return True

    # -- forks, and the end

    def before_fork(self) -> None:
        """The child will see our mappings: what they show must stay as it is for as long as the child lives."""
        if self.closed or self.pid != os.getpid():
            return
        keys = [key_of(*where) for where in self._page.live()]
        if keys:
            try:
                self._send(m.StoreRetire(keys))
            except StoreGone:
                return

    def in_child(self) -> None:
        """In a forked child: the socket, the page and the handles are the parent's."""
        if self.closed:
            return
        self.closed = True
        self._sock.close()

    def close(self) -> None:
        """The node is gone; what is mapped stays as long as it is looked at."""
        self.closed = True
        self._sock.close()
        self._page.close()
        self._segments.clear()


def _unpin(view: _View) -> None:
    """The last view of a mapping is gone; called by the garbage collector, and perhaps twice."""
    client, slot = view.at
    if os.getpid() == client.pid and client._views.get(slot) is view:
        del client._views[slot]
        client._page.unpin(slot)


def _decoded(data: bytes) -> Any:
    """The message. What a signal handler raises meanwhile is not taken for a malformed one, which then waits to be read
    again.
    """
    try:
        return m.decode(data)
    except m.ProtocolError as error:
        m.decode(data)
        raise (error.__cause__ or error) from None


def lost(obj: bytes, why: str) -> BaseException:
    """What readers of an object get that is not there."""
    from dpool.errors import ObjectLost, ObjectStoreFull

    if why.startswith(NEEDED_ON):
        return ObjectStoreFull(f"the object {obj.hex()} cannot be read: {why}")
    return ObjectLost(f"the object {obj.hex()} is lost: {why}")


def _wait(sock: socket.socket, events: int, timeout_ms: int | None = None) -> bool:
    waiter = select.poll()
    waiter.register(sock, events)
    return bool(waiter.poll(timeout_ms))
