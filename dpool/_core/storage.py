"""The object store as the rest of this process uses it: one client, made at first need, made anew when its node died.

```
 arguments, results, put ─ pack(parts) ─┬ up to INLINE_LIMIT ─► bytes, in the frame
                                        └ larger ─► StoreClient.write ─► Stored: its place, and the Handle that keeps it
 a worker's arguments, result(), get ─── load(place) ─► StoreClient.load ─► value        unpack(bytes) ─► value
```

What is larger than a message goes to the store by itself: `pack` turns a pickled value into bytes or into a `Stored`.
A process that cannot have the store (its node has just died) sends the value as it is: slower, and nothing is lost.
"""

from __future__ import annotations

import os
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from dpool._core import launch
from dpool._core.config import INLINE_LIMIT
from dpool._core.context import here

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from dpool._core.store_client import Handle, StoreClient
    from dpool._store.serde import Parts

Place = list[Any]
"""Where an object lies, as it travels: [id, segment, offset, length, size of its value]; segment 0: ask the node."""
AGAIN_S = 5.0
"""How long a driver tries to get something from a store whose node is ending."""


class StoreGone(Exception):
    """The node that owns the store has ended."""


def gone(why: str) -> StoreGone:
    """The store has closed its socket. A worker whose node has died does not live to say so: what it runs is not to
    fail for that, but to run again or be lost with the worker.
    """
    if here.worker is not None and here.worker_pid == os.getpid():
        launch.end_with_node(here.worker.node_pid)
    return StoreGone(why)


class Leaving(StoreGone):
    """This process may be about to leave the node, as nothing here seemed to need it."""


class NoStore(StoreGone):
    """There is no node, and none can be started any more."""


class Stored:
    """What a task's payload is, beyond plain bytes: where it lies, or bytes with references in them; and what must live
    as long.
    """

    __slots__ = ("keep", "wanted", "wire")

    def __init__(self, wire: bytes | Place, keep: tuple[Any, ...]) -> None:
        self.wire = wire
        """What travels: the bytes, or the place of the object."""
        self.keep = keep
        self.wanted: tuple[Any, ...] = ()
        """Of what it refers to, the Handles of that which whoever loads it needs at once."""


class _State:
    """The one client of this process. In an object, as Python may give a class's attribute for a moment after it has
    been replaced, to a signal handler that runs while the old one is taken apart.
    """

    def __init__(self) -> None:
        self.client: StoreClient | None = None
        self.connecting = 0
        """Threads that connect to the node's store."""
        self.lock = threading.RLock()
        self.hooked = False


_Current = _State()
when_left: list[Callable[[], None]] = []
"""Called when this driver's node is gone."""
needed_to_the_end: list[Callable[[], bool]] = []
"""Whether the node is needed until the interpreter has run its exit handlers: child processes use it, or threads."""


def connected() -> StoreClient | None:
    """This process's client, if it has one."""
    client = _Current.client
    if client is None or client.pid != os.getpid():
        return None
    return client


def client() -> StoreClient:
    """This process's client.

    Raises:
        StoreGone: there is no node, and none can be started.
    """
    client = _Current.client
    if client is not None and client.pid == os.getpid() and not client.closed:
        return client
    with _Current.lock:
        _Current.connecting += 1
    try:
        # takes the runtime's lock, under which others wait for ours: never the other way round
        return _connected(*_connect())
    finally:
        with _Current.lock:
            _Current.connecting -= 1


def _connected(sock: socket.socket, session: str) -> StoreClient:
    """The client with that socket, unless another thread was faster."""
    from dpool._core.store_client import StoreClient  # not before something large passes: it brings ctypes along

    with _Current.lock:
        client = _Current.client
        if client is not None and client.pid == os.getpid() and not client.closed:
            sock.close()
        else:
            earlier = client if client is not None and client.pid == os.getpid() else None
            client = StoreClient(sock, session)
            if earlier is not None:
                try:
                    earlier.adopt_into(client)
                except BaseException:  # that node has ended too: what we have is for another one
                    client.close()
                    raise
                earlier.close()
            _Current.client = client
            if not _Current.hooked:
                _Current.hooked = True
                os.register_at_fork(before=_before_fork, after_in_child=_in_child)
        return client


def _connect() -> tuple[socket.socket, str]:
    """A new socket to the node's store, and the node's session directory."""
    if here.worker is not None:
        try:
            return launch.connect_node(here.worker.session), here.worker.session
        except OSError as error:
            raise gone(str(error)) from error
    from dpool._core.driver import runtime

    current = runtime()
    return current.open_store(), current.session


def again(action: Callable[[StoreClient], Any]) -> Any:
    """Do something with the store; if its node has ended meanwhile, with the next one's.

    A node that ends takes a moment for it, in which it can be neither asked nor replaced: so it is tried for a while.
    """
    until = monotonic() + AGAIN_S
    pause_s = 0.001
    while True:
        current = None
        try:
            current = client()
            return action(current)
        except Exception as error:
            lost = isinstance(error, StoreGone)
            if not lost and (current is None or not current.closed):
                raise  # else another thread has closed it: whatever followed from that
            if here.worker is not None or isinstance(error, NoStore) or monotonic() >= until:
                raise
            if current is not None and not isinstance(error, Leaving):
                current.closed = True
        sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)


def node_died() -> None:
    """The node of this driver is dead: what we still have of the store is for the next one."""
    current = connected()
    if current is not None:
        current.closed = True
    for call in when_left:
        call()


def node_left() -> None:
    """The node of this driver is gone for good reason, and nothing is left in its store."""
    if here.worker is not None:  # it has only left the node, which is its own task's too
        return
    with _Current.lock:
        current = connected()
        if current is not None and not current.handles:
            _Current.client = None
            current.close()
    for call in when_left:
        call()


def let_everything_go() -> None:
    """The runtime is shut down: references that are left are lost."""
    with _Current.lock:
        current = connected()
        _Current.client = None
        if current is not None:
            current.closed = True
            current.close()


def in_use() -> bool:
    """Whether something that this process holds lies in the store, or it has asked for something that takes long."""
    current = connected()
    if current is None or current.closed:
        return _Current.connecting > 0
    return len(current.handles) > 0 or current.patient > 0 or _Current.connecting > 0


def leave() -> bool:
    """Whether this process may leave the node, as it neither holds nor asks for anything: then whoever asks from now
    on asks the next node.
    """
    current = connected()
    if current is None or here.worker is not None:  # a worker's node goes on without it
        return not in_use()
    current.leaving = True  # before looking: who asks looks at this after it is counted
    if in_use():
        current.leaving = False
        return False
    current.closed = True
    return True


def pack(parts: Parts, keep: list[Any], holder: int = 0) -> bytes | Stored:
    """A pickled value as it travels in a frame.

    Args:
        keep: Handles of the references in it.
        holder: the process that shall hold it, if it goes to the store; 0: this one.

    Raises:
        ObjectStoreFull: see `StoreClient.write`.
    """
    try:
        if parts.nbytes <= INLINE_LIMIT:
            return _in_line(parts, keep)
        mine = os.getpid()
        contains = [handle.obj for handle in keep]
        try:
            written = again(lambda client: client.write(parts, contains, holder or mine))
        except StoreGone:
            return _in_line(parts, keep)
        if type(written) is list:
            return Stored(written, ())
        return Stored(written.place, (written,))
    finally:
        parts.release()


def _in_line(parts: Parts, keep: list[Any]) -> bytes | Stored:
    data = bytes(parts.to_bytes()) if parts.has_buffers else parts.stream()
    return Stored(data, tuple(keep)) if keep else data


def check_process(handle: Handle) -> None:
    """ForkedRuntimeError in a forked child: what its parent holds is not its own."""
    if handle.pid != os.getpid():
        from dpool.errors import ForkedRuntimeError

        raise ForkedRuntimeError(
            f"this process (pid {os.getpid()}) was forked from pid {handle.pid}, whose references it cannot use; get "
            "the value before the fork"
        )


def unpack(data: bytes) -> Any:
    """The value of bytes that `pack` made."""
    from dpool._store import serde

    if serde.is_flat(data):
        return serde.load(memoryview(bytearray(data)))  # its buffers shall be writable
    import pickle

    return pickle.loads(data)


def load(place: Place, readonly: bool = False, copy: bool = False) -> Any:
    """The value of an object in the store; ObjectLost if it is gone."""
    try:
        return again(lambda client: client.load(place, readonly, copy))
    except StoreGone as error:
        from dpool.errors import ObjectLost

        raise ObjectLost(f"the object {place[0].hex()} is lost: the node that owned the store has ended") from error


def _before_fork() -> None:
    current = _Current.client
    if current is not None:
        current.before_fork()


def _in_child() -> None:
    _Current.lock = threading.RLock()
    _Current.connecting = 0
    current = _Current.client
    if current is not None:
        current.in_child()
