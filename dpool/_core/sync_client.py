"""A process's side of locks, queues, …: connections to the node, and what lives as long as somebody has it.

```
 Lock, Event, … ─► Core (one for each object and process) ─► Link (one for each node) ─► Connection ─► node
                     └ Handle: this process holds the object     └ the shared page, the file whose bytes are locked
```

A question takes a connection that nobody uses, and gives it back when it has been answered: so there are as many as
threads wait at a time. When something raises in the middle of a question the connection is closed, and the node gives
to somebody else what it had given: the kernel tells it whether the answer was read.

What is not answered all threads say on one connection, the teller: a message goes in one call, so they need not
exclude each other, and what a thread says arrives in the order in which it says it.

A forked child has the objects of its parent: a connection that is made before the fork holds them for as long as the
child lives (`_before_fork`). Everything else the child opens anew.

Threads: any; signal handlers and forks at any moment. `idle` changes only by single operations of lists.
"""

from __future__ import annotations

import itertools
import mmap
import os
import select
import socket
import sys
import threading
from _thread import start_new_thread
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from dpool._core import launch, storage, wire
from dpool._core import messages as m
from dpool._core.config import PROTOCOL
from dpool._core.context import here
from dpool._core.logic import sync_kinds as k
from dpool._core.node_page import PAGE_BYTES

if TYPE_CHECKING:
    from dpool._core.store_client import Handle, StoreClient

ANSWER_S = 30.0
"""How long a node may take for what it answers at once: it may just be starting, on a busy machine."""
LOOK_S = 0.5
"""How often somebody who waits for a lock looks for himself, should a process have died without a word."""
ALIVE_S = 0.2
"""How often it is looked whether the node still lives, where nothing else would tell."""
AGAIN_S = 5.0
"""How long it is tried to make an object while one node ends and the next begins."""

MOST_POLL_S = 1e6
"""So long may a poll be at a time; who has waited goes on waiting."""
SHORT_S = 0.002
"""After so long a task that waits lets others have its CPUs."""
MOST_IDLE = 8
"""Connections that are kept for the next question."""
TIDY_TRIES = 200
"""How often, each 5 ms, it is looked whether the last object has really gone."""

C = TypeVar("C", bound="Core")


class LinkLost(Exception):
    """The node has ended."""


def node_lost(what: str) -> BaseException:
    """The error for whoever uses an object of a node that has ended."""
    from dpool.errors import NodeLost

    return NodeLost(
        f"the {what} is lost: it lived in dpool's node process, which has ended (it was killed, or the program that "
        "started it is over). Make a new one"
    )


def object_gone(what: str) -> BaseException:
    """The error for an object that the node no longer knows."""
    from dpool.errors import ObjectLost

    return ObjectLost(
        f"the {what} is gone: nobody held it any more when it arrived here. Keep a reference to it until every process "
        "that is to use it has it"
    )


class Connection:
    """One question at a time."""

    __slots__ = ("_open", "_receiver", "_requests", "_sock", "fds", "given", "poller")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._receiver = wire.Receiver(sock)
        self._requests = itertools.count(1)
        self._open = 0
        """The question that has not been answered."""
        self.given = False
        """An answer has been read whose asker has not yet taken over what it gives."""
        self.fds: list[int] = []
        self.poller = select.poll()
        self.poller.register(sock.fileno(), select.POLLIN)

    def hello(self, pid: int, page: bool) -> m.SyncWelcome:
        """Say who we are."""
        self._send(m.SyncHello(PROTOCOL, *m.versions(), pid, [], page))
        welcome = self._receive(monotonic() + ANSWER_S)
        if type(welcome) is not m.SyncWelcome:
            raise LinkLost(f"the node answered {welcome!r:.100}")
        self.fds, self._receiver.fds = self._receiver.fds, []
        self._receiver.consumed()
        return welcome

    def _send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        data = m.encode(message)
        sent: list[int] = []
        while not sent:
            try:
                wire.send(self._sock, data, fds, sent)
            except BlockingIOError:
                waiter = select.poll()
                waiter.register(self._sock.fileno(), select.POLLOUT)
                waiter.poll()
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno in (24, 12):  # no descriptors, no memory
                    raise
                raise LinkLost(str(error)) from error

    def _receive(self, until: float | None) -> Any:
        """The next message; None when the time is over."""
        while True:
            left = None if until is None else max(0.0, until - monotonic())
            if not self.poller.poll(None if left is None else min(left, MOST_POLL_S) * 1000):
                if left is None or left <= MOST_POLL_S:
                    return None
                continue
            try:
                data = self._receiver.receive(wire.DONTWAIT)
            except (BlockingIOError, InterruptedError):
                continue
            except (OSError, wire.Closed, wire.DescriptorsLost, m.ProtocolError) as error:
                raise LinkLost(f"{type(error).__name__} {error}") from error
            message = _decoded(data if isinstance(data, bytes) else data[:])
            if type(message) is m.Refused:
                raise LinkLost(f"the node refused: {message.reason}")
            return message

    def _take(self, request: int, until: float | None) -> m.SyncReply | None:
        """The answer to `request`; None when the time is over."""
        message = self._receive(until)
        if message is None:
            return None
        if type(message) is not m.SyncReply or message.request != request:
            raise LinkLost(f"the node answered {message!r:.100}")
        if message.status != k.REGISTERED:
            self.given = True
            self._open = 0
        self.fds, self._receiver.fds = self._receiver.fds, []
        self._receiver.consumed()
        return message

    def tell(self, obj: bytes, op: int, n: int = 0, data: bytes = b"", refs: list[bytes] | None = None) -> None:
        """Say something that is not answered."""
        self._send(m.SyncAsk(0, obj, op, n, data, refs or []))

    def make(self, obj: bytes, kind: int, value: int, bound: int, fds: tuple[int, ...]) -> m.SyncReply:
        """A new object."""
        request = self._open = next(self._requests)
        self._send(m.SyncMake(request, obj, kind, value, bound), fds)
        return self._answer(request)

    def _answer(self, request: int) -> m.SyncReply:
        reply = self._take(request, monotonic() + ANSWER_S)
        if reply is None:
            raise LinkLost(f"the node did not answer within {ANSWER_S} s")
        return reply

    def ask(self, obj: bytes, op: int, n: int = 0, data: bytes = b"", refs: list[bytes] | None = None) -> m.SyncReply:
        """A question that is answered at once."""
        request = self.begin(obj, op, n, data, refs)
        return self._answer(request)

    def begin(self, obj: bytes, op: int, n: int = 0, data: bytes = b"", refs: list[bytes] | None = None) -> int:
        """A question whose answer `finish` waits for."""
        request = self._open = next(self._requests)
        self._send(m.SyncAsk(request, obj, op, n, data, refs or []))
        return request

    def registered(self, request: int) -> int:
        """The first of two answers: its status."""
        return self._answer(request).status

    def finish(self, request: int, until: float | None, look: Callable[[], bool] | None = None) -> m.SyncReply:
        """Wait for the answer; when the time is over (or `look()`, asked now and then, is true) it is WITHDRAWN, if
        it has not just come.
        """
        if not here.holds_cpus:
            return self._finish(request, until, look)
        soon = monotonic() + SHORT_S
        reply = self._take(request, soon if until is None else min(soon, until))
        if reply is not None:
            return reply
        from dpool._core.driver import runtime

        with runtime().blocking():  # who is waited for may need the CPUs that this task has
            return self._finish(request, until, look)

    def _finish(self, request: int, until: float | None, look: Callable[[], bool] | None) -> m.SyncReply:
        while True:
            step = until
            if look is not None:
                step = monotonic() + LOOK_S
                if until is not None:
                    step = min(step, until)
            reply = self._take(request, step)
            if reply is not None:
                return reply
            if (until is not None and monotonic() >= until) or (look is not None and look()):
                self._send(m.SyncWithdraw(request))
                return self._answer(request)

    def abandon(self) -> None:
        """Something has raised: what was given to this connection is not ours, and what it waits for no longer is."""
        try:
            if self.given or self._receiver.inbox:
                self._send(m.SyncReturn(os.getpid()))
            elif self._open:
                self._send(m.SyncWithdraw(self._open))  # a barrier is not broken by that; by a mere close it is
        except (LinkLost, OSError):
            pass  # then there is nobody to tell
        finally:
            self.close()

    def gone(self) -> bool:
        """Whether the node has closed it."""
        waiter = select.poll()
        waiter.register(self._sock.fileno(), 0)
        return bool(waiter.poll(0))

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self._receiver.close_fds()
        self._sock.close()


def _decoded(data: bytes) -> Any:
    """The message; what a signal handler raises meanwhile is not taken for a malformed one."""
    try:
        return m.decode(data)
    except m.ProtocolError as error:
        try:
            m.decode(data)
        except m.ProtocolError:
            raise LinkLost(str(error)) from error
        raise (error.__cause__ or error) from None


class Link:
    """What this process has at one node."""

    far = False
    """The node is another machine's; see sync_far.py."""

    def __init__(self, session: str, home: bool) -> None:
        self.session = session
        self.home = home
        """It is the node that this process's own objects are made in."""
        self.pid = os.getpid()
        self.lost = False
        self.idle: list[Connection] = []
        self.words: memoryview = memoryview(b"")
        self.lock_fd = -1
        """An open file description of our own of the page's file: the locks belong to it."""
        self._page_fd = -1
        self._map: mmap.mmap | None = None
        self.cores: WeakValueDictionary[bytes, Core] = WeakValueDictionary()
        self.kept: dict[bytes, Any] = {}
        """What somebody else than us has pickled, who may unpickle it at any time."""
        self._store: StoreClient | None = None
        self._lock = threading.RLock()
        self._looked = 0.0
        self._told: dict[str, Connection] = {}
        """The teller, when there is one."""
        self._tickets: dict[int, socket.socket] = {}
        """Thread that is forking → the connection that holds what the child will have."""
        self._ticket: socket.socket | None = None
        """The one that holds what this process has, if it is a forked child."""
        self.segments: dict[int, mmap.mmap] = {}

    # -- connections

    def take(self) -> Connection:
        """A connection that nobody uses.

        Give it back by `connection.given = False` and `link.idle += (connection,)`: these are no calls, so no signal
        handler can come in between.
        """
        try:
            connection = self.idle.pop()
        except IndexError:
            pass
        else:
            if len(self.idle) > MOST_IDLE:
                self._close_idle()
            return connection
        if self.lost:
            raise LinkLost("the node has ended")
        try:
            return self.join(self._connected())[0]
        except (ConnectionError, FileNotFoundError) as error:
            self.lost = True
            raise LinkLost(str(error)) from error

    def _connected(self) -> socket.socket:
        """A new socket to the node."""
        return launch.connect_node(self.session)

    def lost_error(self, what: str, error: BaseException | None = None) -> BaseException:
        """For whoever uses an object of this node, which has ended."""
        return node_lost(what)

    def teller(self) -> Connection:
        """The connection for what is not answered; nobody gives it back, or closes it."""
        found = self._told.get("teller")
        if found is None:
            made = self.take()
            found = self._told.setdefault("teller", made)
            if found is not made:
                self.idle += (made,)
        return found

    def _close_idle(self) -> None:
        """As many threads as there were do not wait any more."""
        try:
            while len(self.idle) > MOST_IDLE:
                self.idle.pop(0).close()
        except IndexError:  # another thread was faster
            return

    def join(self, sock: socket.socket) -> tuple[Connection, str]:
        """A new connection on `sock`, and the session that its node serves."""
        connection = Connection(sock)
        try:
            wanted = self.lock_fd < 0 and not self.far
            welcome = connection.hello(self.pid, wanted)
            if wanted:
                if len(connection.fds) != 1:
                    raise OSError(24, "this process has no file descriptors left (see `ulimit -n`)")
                self._use_page(connection.fds.pop())
        except BaseException:
            connection.close()
            raise
        return connection, welcome.session

    def _use_page(self, fd: int) -> None:
        with self._lock:
            if self.lock_fd >= 0:
                os.close(fd)
                return
            self._page_fd = fd
            self._map = mmap.mmap(fd, PAGE_BYTES)
            self.words = memoryview(self._map).cast("Q")
            self.lock_fd = _reopened(fd)

    def alive(self) -> bool:
        """Whether the node lives, as far as it was looked at lately."""
        now = monotonic()
        if not self.lost and now - self._looked > ALIVE_S:
            self._looked = now
            try:
                connection = self.take()
            except LinkLost:
                self.lost = True
                return False
            if connection.gone():
                self.lost = True
                connection.close()
            else:
                connection.given = False
                self.idle += (connection,)
        return not self.lost

    # -- objects

    def store(self) -> StoreClient:
        """The object store of this node. StoreGone if there is none any more."""
        if self.home:
            return storage.client()
        with self._lock:
            if self._store is None:
                from dpool._core.store_client import StoreClient

                try:
                    self._store = StoreClient(launch.connect_node(self.session), self.session)
                except OSError as error:
                    raise storage.StoreGone(str(error)) from error
            return self._store

    def core(self, kind: type[C], obj: bytes, make: Callable[[Link, Handle], C], what: str) -> C:
        """This process's side of an object that another one has made."""
        with self._lock:
            known = self.cores.get(obj)
            if known is not None:
                assert isinstance(known, kind)
                return known
            try:
                handle = self.store().hold([obj, 0, 0, 0, 0])
                if self.lock_fd < 0:
                    connection = self.take()
                    connection.given = False
                    self.idle += (connection,)
                core = make(self, handle)
            except (storage.StoreGone, LinkLost) as error:
                raise self.lost_error(what, error) from error
            self.cores[obj] = core
            return core

    def make(self, kind: int, value: int, bound: int, fds: tuple[int, ...]) -> tuple[Handle, m.SyncReply, list[int]]:
        """A new object: our hold of it, and what the node says of it."""
        client = storage.client()
        obj = client.new_id()
        connection = self.take()
        try:
            reply = connection.make(obj, kind, value, bound, fds)
            got, connection.fds = connection.fds, []
            handle = client.received([obj, 0, 0, 0, 0]) if reply.status == k.OK else None
        except BaseException:
            connection.abandon()
            raise
        connection.given = False
        self.idle += (connection,)
        if handle is None:
            raise OSError(f"dpool's node cannot make it: {reply.data.decode()}")
        return handle, reply, got

    # -- forks, and the end

    def before_fork(self) -> None:
        """Have what a child will have of us held for it."""
        if self.lost or self.pid != os.getpid() or not self.cores:
            return
        holds = list(self.cores.keys())
        try:
            sock = self._connected()
        except (OSError, LinkLost):
            return
        try:
            wire.send(sock, m.encode(m.SyncHello(PROTOCOL, *m.versions(), self.pid, holds, False)))
        except OSError:
            sock.close()
            return
        self._tickets[threading.get_ident()] = sock  # other threads may fork at the same time

    def in_parent(self) -> None:
        ticket = self._tickets.pop(threading.get_ident(), None)
        if ticket is not None:
            ticket.close()

    def in_child(self) -> None:
        """What the parent's connections, locks and page are is not ours."""
        for connection in (*self.idle, *self._told.values()):
            connection.close()
        self.idle = []
        self._told = {}
        ours = self._tickets.pop(threading.get_ident(), None)
        for sock in (self._ticket, *self._tickets.values()):
            if sock is not None:
                sock.close()
        self._tickets = {}
        self._ticket = ours
        self.pid = os.getpid()
        self.home = self.home and here.worker is not None
        self._lock = threading.RLock()
        if self._store is not None:
            self._store.in_child()
            self._store = None
        if self.lock_fd >= 0:
            os.close(self.lock_fd)  # its locks are the parent's, for as long as we have it
            self.lock_fd = _reopened(self._page_fd)
        for core in list(self.cores.values()):
            core.in_child()

    def close(self) -> None:
        """Nothing of this node is left here."""
        self.lost = True
        while self.idle:
            self.idle.pop().close()
        while self._told:
            self._told.popitem()[1].close()
        if self._ticket is not None:
            self._ticket.close()
            self._ticket = None
        for fd in (self.lock_fd, self._page_fd):
            if fd >= 0:
                os.close(fd)
        self.lock_fd = self._page_fd = -1
        self.words, self._map = memoryview(b""), None
        self.segments.clear()
        if _Links.known.get(self.session) is self:
            del _Links.known[self.session]
        if self._store is not None:
            self._store.close()
            self._store = None


def _reopened(fd: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


class Core:
    """One object as this process knows it: shared by all that stand for it here."""

    what = "object"
    __slots__ = ("__weakref__", "handle", "link", "obj")

    def __init__(self, link: Link, handle: Handle) -> None:
        self.link = link
        self.handle = handle
        self.obj = handle.obj

    def in_child(self) -> None:
        """In a forked child."""

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if _ending():  # modules are empty, and the node lets go of all that this process had
            return
        link = getattr(self, "link", None)
        if not isinstance(link, Link) or link.pid != os.getpid() or any(one is not self for one in link.cores.values()):
            return
        if link.lost:
            link.close()
        if link.home:
            _tidy_up_elsewhere()

    def ask(self, op: int, n: int = 0) -> m.SyncReply:
        """A question that is answered at once."""
        return self._question(lambda connection: connection.ask(self.obj, op, n))

    def wait(self, op: int, n: int, until: float | None, look: Callable[[], bool] | None = None) -> m.SyncReply:
        """A question that may have to wait; see `Connection.finish`."""
        return self._question(lambda connection: connection.finish(connection.begin(self.obj, op, n), until, look))

    def _question(self, put: Callable[[Connection], m.SyncReply]) -> m.SyncReply:
        connection = self._take()
        try:
            reply = put(connection)
        except LinkLost as error:
            raise self._lost(connection, error) from error
        except BaseException:
            connection.abandon()
            raise
        connection.given = False
        self.link.idle += (connection,)
        if reply.status == k.GONE:
            raise object_gone(self.what)
        return reply

    def tell(self, op: int, n: int = 0, data: bytes = b"", refs: list[bytes] | None = None) -> None:
        """Say something that is not answered."""
        try:
            self.link.teller().tell(self.obj, op, n, data, refs)
        except LinkLost as error:
            self.link.lost = True
            raise self.link.lost_error(self.what, error) from error

    def _take(self) -> Connection:
        try:
            return self.link.take()
        except LinkLost as error:
            raise self.link.lost_error(self.what, error) from error

    def _lost(self, connection: Connection, error: BaseException) -> BaseException:
        connection.close()
        self.link.lost = True
        return self.link.lost_error(self.what, error)

    @classmethod
    def for_link(cls, link: Link) -> type[Core]:
        """The class for objects of that node."""
        return cls

    def keep_for(self, pickler: Any) -> None:
        """A pickle of ours is to hold it."""
        if (self.link.home or self.link.far) and self.handle.pid == os.getpid():
            pickler.keep.append(self.handle)
        else:
            self.link.kept[self.obj] = self

    def keep_for_anybody(self) -> None:
        """Somebody else pickles it: a process that is being started, which we then see the end of; or who knows."""
        from multiprocessing import context

        popen = context.get_spawning_popen()
        if popen is None:
            self.link.kept[self.obj] = self
        else:
            popen.__dict__.setdefault("_dpool_keeps", []).append(self)


class _Links:
    """Session → link."""

    known: dict[str, Link] = {}  # noqa: RUF012
    home: Link | None = None
    lock = threading.RLock()
    hooked = False


def link_to(session: str) -> Link:
    """The link to the node that serves `session`."""
    with _Links.lock:
        link = _Links.known.get(session)
        if link is None and _is_our_nodes(session):
            try:
                return home()
            except (LinkLost, storage.StoreGone) as error:
                raise node_lost("object") from error
        if link is None or (link.far and link.lost):
            worker = here.worker
            link = _far_link(session) or Link(session, worker is not None and worker.session == session)
            _Links.known[session] = link
            _hook()
        return link


def _far_link(session: str) -> Link | None:
    """The link to another machine of this one's cluster; None if it is no such machine's session."""
    through = own_session()
    if not through or through == session or not os.path.exists(os.path.join(through, launch.GATEWAY_SOCKET)):
        return None
    from dpool._core import sync_far

    return sync_far.link(through, session)


def own_session() -> str:
    """The session of the node whose process this is; empty if there is none."""
    if here.worker is not None:
        return here.worker.session
    driver = sys.modules.get("dpool._core.driver")
    runtime = None if driver is None else driver._Current.runtime
    return runtime.session if runtime is not None and runtime.pid == os.getpid() else ""


def _is_our_nodes(session: str) -> bool:
    """Whether it is that of the node which this driver has started."""
    driver = sys.modules.get("dpool._core.driver")
    runtime = None if driver is None or here.worker is not None else driver._Current.runtime
    return runtime is not None and runtime.pid == os.getpid() and runtime.session == session


def home() -> Link:
    """The link to the node that this process makes objects in; it is started if need be. LinkLost, StoreGone."""
    if here.worker is not None:
        return link_to(here.worker.session)
    with _Links.lock:
        link = _Links.home
        if link is not None and link.pid == os.getpid() and link.home and not link.lost:
            return link
        from dpool._core.driver import runtime

        link = Link("", True)
        connection, link.session = link.join(runtime().open_store())
        connection.given = False
        link.idle += (connection,)
        _Links.home = _Links.known[link.session] = link
        _hook()
        return link


def make(kind: int, value: int = 0, bound: int = 0, fds: tuple[int, ...] = ()) -> tuple[Link, Any, Any, list[int]]:
    """A new object: its link, our hold, what the node says, descriptors.

    Raises:
        NodeLost: there is no node, and none can be started.
        OSError: the node has no memory or no descriptors left for it.
    """
    until = monotonic() + AGAIN_S
    while True:
        try:
            link = home()
            return (link, *link.make(kind, value, bound, fds))
        except (LinkLost, storage.StoreGone) as error:
            if here.worker is not None or isinstance(error, storage.NoStore) or monotonic() > until:
                raise node_lost("new object") from error
            _forget_home()
        select.poll().poll(5)


def _tidy_up_elsewhere() -> None:
    """The last object here is being collected, anywhere: where nodes do not linger, a thread sees to that."""
    driver = sys.modules.get("dpool._core.driver")
    runtime = None if driver is None or here.worker is not None else driver._Current.runtime
    if runtime is None or runtime.config.linger_s:
        return
    try:
        start_new_thread(_tidy_up, (runtime,))
    except RuntimeError:  # no more threads are allowed, or the interpreter ends
        return


def _tidy_up(runtime: Any) -> None:
    waiter = select.poll()
    for _ in range(TIDY_TRIES):
        if (_Links.home is not None and _Links.home.cores) or runtime.leave_if_idle():
            return
        waiter.poll(5)


def _forget_home() -> None:
    with _Links.lock:
        link, _Links.home = _Links.home, None
        if link is not None:
            link.lost = True
            _drop_if_unused(link)


def _drop_if_unused(link: Link) -> None:
    if not link.cores:
        link.close()


def _node_gone() -> None:
    """This driver's node has ended."""
    if _Links.home is not None and _Links.home.pid == os.getpid():
        _forget_home()
    for link in [one for one in list(_Links.known.values()) if one.far]:  # they went through it
        link.lost = True
        _drop_if_unused(link)


def _in_use() -> bool:
    return _Links.home is not None and len(_Links.home.cores) > 0


def _hook() -> None:
    if not _Links.hooked:
        _Links.hooked = True
        storage.when_left.append(_node_gone)
        storage.needed_to_the_end.append(_in_use)
        os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


def _before_fork() -> None:
    for link in list(_Links.known.values()):
        link.before_fork()


def _in_parent() -> None:
    for link in list(_Links.known.values()):
        link.in_parent()


def _in_child() -> None:
    _Links.lock = threading.RLock()
    for link in list(_Links.known.values()):
        link.in_child()
