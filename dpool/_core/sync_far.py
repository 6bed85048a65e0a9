"""A process's side of locks, queues, … that live on another machine of the cluster.

```
 Lock, Queue, … ─► Core ─► FarLink ─► Connection ─► gateway of this machine ═══► … ─► the node of that one
                    └ Handle: held at this machine's node, which borrows it from the other
```

Messages only: there is no shared page. What a node of this machine does with the page the other node does in the
process's name (node_sync_far.py). All that is said is answered, also an item that is put into a queue: so whoever hears
by another way that it was said (a task's result, say) finds it done.
"""

from __future__ import annotations

import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import far, launch, storage
from dpool._core import messages as m
from dpool._core.context import here
from dpool._core.logic import sync_kinds as k
from dpool._core.node_page import FAR_RANGE
from dpool._core.sync_client import Core, Link, LinkLost, own_session
from dpool._core.sync_locks import _Flag
from dpool._core.sync_mutex import Mutex

if TYPE_CHECKING:
    from dpool._core.store_client import Handle, StoreClient


class _Unknown(LinkLost):
    """It is no machine of this cluster."""


def _opened(through: str, session: str) -> tuple[socket.socket, m.FarOpened]:
    """The gateway's answer on a new connection to it, for the node there.

    Raises:
        OSError, LinkLost: there is no gateway (any more), or it does not answer.
    """
    try:
        sock, _, answer = far.opened(through, session, "")
    except far.Unanswered as error:
        raise LinkLost(str(error)) from error
    return sock, answer


def link(through: str, session: str) -> FarLink | None:
    """The link to that session, through the gateway of ours; None if that knows of no such machine."""
    made = FarLink(through, session)
    try:
        sock = made._connected()
    except _Unknown:
        return None
    except (OSError, LinkLost):
        return made  # it is lost, and says so when it is used
    try:
        connection, _ = made.join(sock)
    except LinkLost:
        made.lost = True
    else:
        connection.given = False
        made.idle += (connection,)
    return made


class FarLink(Link):
    """What this process has at a node of another machine. `through`: the session of this machine's node."""

    far = True

    def __init__(self, through: str, session: str) -> None:
        super().__init__(session, False)
        self.through = through
        self.host = ""

    def _connected(self) -> socket.socket:
        try:
            sock, answer = _opened(self.through, self.session)
        except (OSError, LinkLost):
            self.lost = True
            raise
        if answer.status == m.FAR_OPEN:
            self.host = answer.host
            return sock
        sock.close()
        self.lost = True
        raise _Unknown("no such machine") if answer.status == m.FAR_UNKNOWN else LinkLost(answer.why)

    def lost_error(self, what: str, error: BaseException | None = None) -> BaseException:
        """Where it lived, and what has become of that, as the gateway knows."""
        from dpool.errors import NodeLost

        where = self.host or "another machine"
        return NodeLost(f"the {what} is lost: it lived on {where}, and {self._why(error)}. Make a new one")

    def _why(self, error: BaseException | None) -> str:
        try:
            sock, answer = _opened(self.through, self.session)
        except (OSError, LinkLost) as gone:
            return f"this machine's gateway to it is gone ({gone})"
        sock.close()
        if answer.status == m.FAR_LOST:
            return answer.why
        return f"the connection to its node was lost ({error or 'it has closed'})"

    def store(self) -> StoreClient:
        """Of this machine's node: what other machines' objects are held here is counted there."""
        if here.worker is not None or own_session() == self.through:
            return storage.client()
        with self._lock:  # a child that a driver has forked
            if self._store is None:
                from dpool._core.store_client import StoreClient

                try:
                    self._store = StoreClient(launch.connect_node(self.through), self.through)
                except OSError as error:
                    raise storage.StoreGone(str(error)) from error
            return self._store


# -- what is not as on one machine


class FarMutex(Mutex):
    """A lock of another machine: `held` is the claim, by which it is unlocked."""

    __slots__ = ()

    def __init__(self, link: Link, handle: Handle, slot: int) -> None:
        Core.__init__(self, link, handle)
        self.slot = slot
        self.in_child()

    def is_ours(self) -> bool:
        """Whether a thread of this process has it, as far as it knows: another process may have released it."""
        return bool(self.held)

    def is_taken(self) -> bool:
        """Whether anybody has it."""
        return self.is_ours() or bool(self.ask(k.FAR_OWNED).n)

    def acquire(self, block: bool, timeout: float | None) -> bool:
        """As `multiprocessing.Lock.acquire`."""
        waits = block and (timeout is None or timeout > 0)
        until = None if timeout is None else monotonic() + max(0.0, timeout)
        connection = self._take()
        claim = dead = 0
        try:
            request = connection.begin(self.obj, k.FAR_LOCK, k.BLOCK if waits else 0)
            reply = connection.finish(request, until if waits else None)
            if reply.status == k.OK:
                dead, (claim, _) = reply.n, FAR_RANGE.unpack(reply.data)
                self.thread, self.count, self.held = threading.get_ident(), 1, claim
        except LinkLost as error:
            raise self._lost(connection, error) from error
        except BaseException:
            if claim and self.held == claim:
                self._forget()
            connection.abandon()  # if it was got, that gives it back
            raise
        connection.given = False
        self.link.idle += (connection,)
        if reply.status == k.GONE:
            from dpool._core.sync_client import object_gone

            raise object_gone(self.what)
        if dead:
            self._warn(dead)
        return bool(claim)

    def _forget(self) -> None:
        self.thread = self.count = self.held = 0

    def release_ours(self) -> bool:
        """Release it; False if this process has not got it."""
        claim = self.held
        if not claim:
            return False
        try:
            status = self.ask(k.FAR_UNLOCK, claim).status
        except BaseException:
            if not self.link.lost:  # a signal handler has raised: it may not have been said
                self.ask(k.FAR_UNLOCK, claim)
            raise
        finally:
            if self.held == claim:
                self._forget()
        return status == k.OK


class FarFlag(_Flag):
    """An event of another machine. It stands where others have the words of the page: looking there asks the node."""

    __slots__ = ()

    def __init__(self, link: Link, handle: Handle, slot: int) -> None:
        Core.__init__(self, link, handle)
        self.slot = slot
        self.word = 0

    @property
    def words(self) -> Any:  # type: ignore[override]
        """What is asked for the flag."""
        return self

    def __getitem__(self, word: int) -> int:
        return int(self.ask(k.VALUE).n)
