"""Objects on their way between machines: what `logic/pulls.py` and `logic/serving.py` decide is done here.

```
 fetch(obj) ─ DescribeAsked ─► its home ─ Described: size, contents, who else has it ─► Borrowing: its contents are held
    ─► Pulls ─ MakeRoom ─► reserve (thread) ─ PieceAsked … PieceSent, written to their place … ─► Complete
    ─► seal (thread) ─► the store has it: whoever asked is told
 PieceAsked ─► Serving ─ Send ─► a piece of the object's bytes in the store, or of what has come of it so far
```

One transfer per object, however many ask for it. The loop moves the pieces; what asks the node something, and so may
block, is done in a thread of its own by a client of the store like others. An object is mapped while it is served.

Part of the gateway; its loop.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import ids, launch
from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.logic import pulls as p
from dpool._core.logic import serving as v
from dpool._core.net import MAX_MESSAGE_BYTES, NoLink
from dpool._core.store_client import NEEDED_ON, Copy, StoreClient, lost
from dpool._store import spill
from dpool.errors import ObjectStoreFull

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway
    from dpool._core.gateway_objects import Objects

assert p.PIECE_BYTES <= MAX_MESSAGE_BYTES, "a piece is one part of a message"
STALL_S = 5.0
"""So long after the last piece a transfer is begun anew from other sources."""
LOOK_S = 1.0
MOST_COPIES = 8
"""Machines besides its home that are named to whoever asks for an object."""
Then = Callable[[str], None]
"""Is told "" when the object is here, or why it cannot be had."""


MEASURED_BYTES = 1 << 20
"""A smaller object says nothing about the bandwidth."""


class _Fetch:
    """One object that is wanted here."""

    __slots__ = ("asked", "began_s", "contents", "copy", "freed", "progress_s", "sealing", "size", "then", "token")

    def __init__(self) -> None:
        self.asked: set[bytes] = set()
        """Gateways that are to say whether they have it."""
        self.then: list[Then] = []
        self.size = 0
        self.contents: list[bytes] = []
        self.token = 0
        """Under which these are held meanwhile; 0: not yet."""
        self.copy: Copy | None = None
        self.sealing = False
        self.freed = False
        """Nobody wants it any more, but it is being sealed."""
        self.progress_s = 0.0
        self.began_s = 0.0


class Transfers:
    """See the module."""

    def __init__(self, gateway: Gateway, objects: Objects, session: str, log: Callable[..., None]) -> None:
        self._gateway = gateway
        self._objects = objects
        self._session = session
        self._log = log
        self.pulls = p.Pulls()
        self.serving = v.Serving()
        self._fetches: dict[bytes, _Fetch] = {}
        self._here: set[bytes] = set()
        """Of other machines, and whole."""
        self._views: dict[bytes, memoryview] = {}
        self._viewing: dict[bytes, list[Callable[[], None]]] = {}
        """What is to be done when there is a view, or none can be had."""
        self._events: deque[tuple[bool, Any]] = deque()
        self._running = False
        self._client: StoreClient | None = None
        self._done: deque[Any] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = spill.SpillThread(self._told)
        self._looking = False
        gateway._on(self._wake, self._woken)

    # -- the thread

    def _told(self, result: Any) -> None:
        """In the thread: a job is done."""
        self._done.append(result)
        os.write(self._wake, b"\1\0\0\0\0\0\0\0")

    def _woken(self, mask: int) -> None:
        os.read(self._wake, 8)
        while self._done:
            result = self._done.popleft()
            if isinstance(result, spill.JobFailed):
                self._log("transfer.job_failed", error=repr(result.error))
            else:
                result()

    def _store(self) -> StoreClient:
        """In the thread: the client."""
        if self._client is None:
            self._client = StoreClient(launch.connect_node(self._session), self._session)
        self._client.poll()
        return self._client

    # -- what is wanted here

    def fetch(self, obj: bytes, then: Then) -> None:
        """Have an object in this machine's store."""
        if self._objects.ours(obj) or obj in self._here:
            then("")
            return
        known = self._fetches.get(obj)
        if known is not None:
            known.then.append(then)
            return
        known = self._fetches[obj] = _Fetch()
        known.then.append(then)
        self._ask_where(obj, known)

    def _ask_where(self, obj: bytes, fetch: _Fetch) -> None:
        """Its home knows who has it; if that is gone, somebody else may have a copy."""
        home = self._objects.peer_of(obj)
        fetch.asked = {home} if home is not None else set(self._gateway.peers)
        if not fetch.asked:
            self._nowhere(obj, fetch, self._objects.why_away(obj))
        for peer in list(fetch.asked):
            self._gateway._say_if_up(peer, pm.DescribeAsked(obj))

    def _nowhere(self, obj: bytes, fetch: _Fetch, why: str) -> None:
        if fetch.token:
            self._pull(p.Copies(obj, ()))
        else:
            self._end(obj, fetch, why)

    def fetch_again(self, obj: bytes, then: Then) -> None:
        """The same; the node says that it is not here."""
        if obj in self._here:
            self._here.discard(obj)
            self._gone(obj)
        self.fetch(obj, then)

    def described(self, peer: bytes, message: pm.Described, data: bytes) -> None:
        obj = message.obj
        fetch = self._fetches.get(obj)
        if fetch is None or peer not in fetch.asked:
            return  # somebody else said so before
        fetch.asked.clear()
        copies = (peer, *(name for name in message.copies if name in self._gateway.peers))
        if fetch.token:
            self._pull(p.Copies(obj, copies))
            return
        fetch.size = message.size
        fetch.contents = pickle.loads(data)
        fetch.token = self._objects.new_token()
        fetch.progress_s = monotonic()
        self._objects.arrived(fetch.token, fetch.contents, partial(self._begin, obj, fetch, copies))

    def _begin(self, obj: bytes, fetch: _Fetch, copies: tuple[bytes, ...]) -> None:
        if self._fetches.get(obj) is fetch:
            fetch.began_s = monotonic()
            self._pull(p.Want(obj, fetch.size, copies))
            self._look_later()

    def not_there(self, peer: bytes, message: pm.NotThere) -> None:
        fetch = self._fetches.get(message.obj)
        if fetch is not None and peer in fetch.asked:
            fetch.asked.discard(peer)
            if not fetch.asked:
                self._nowhere(message.obj, fetch, self._objects.why_not_there(message.obj, message.why))

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self._gateway._at(LOOK_S, self._look)

    def _look(self) -> None:
        """Whether some transfer does not get on."""
        self._looking = False
        now = monotonic()
        for obj, fetch in list(self._fetches.items()):
            if fetch.copy is not None and not fetch.sealing and now - fetch.progress_s > STALL_S:
                fetch.progress_s = now
                self._log("transfer.stalled", obj=obj.hex())
                self._pull(p.Stalled(obj))
        if self._fetches:
            self._look_later()

    def _fail(self, obj: bytes, why: str) -> None:
        self._end(obj, self._fetches[obj], why)

    def _end(self, obj: bytes, fetch: _Fetch, why: str) -> None:
        del self._fetches[obj]
        if fetch.token:
            self._objects.done(fetch.token)
        for then in fetch.then:
            then(why)

    def freed(self, obj: bytes) -> None:
        """Nobody here holds it any more."""
        self._here.discard(obj)
        self._gone(obj)
        fetch = self._fetches.get(obj)
        if fetch is None:
            return
        if fetch.sealing:
            fetch.freed = True
            return
        if obj in self.pulls.pulls:
            self._pull(p.Unwant(obj))
        if obj in self._fetches:
            self._fail(obj, "nobody here holds it any more")

    def peer_gone(self, peer: bytes) -> None:
        """There is no link to that machine any more."""
        self._pull(p.NodeLost(peer))
        self._serve(v.NodeLost(peer))
        for obj, fetch in list(self._fetches.items()):
            if peer in fetch.asked:
                fetch.asked.discard(peer)
                if not fetch.asked:
                    self._ask_where(obj, fetch)

    def moved(self, tags: list[bytes]) -> None:
        """Another machine is home of these objects: who was to describe them may not answer any more."""
        for obj, fetch in list(self._fetches.items()):
            if fetch.asked and ids.home_of(obj) in tags:
                self._ask_where(obj, fetch)

    def inherited(self) -> None:
        """We are, of some: they are no copies any more."""
        self._here = {obj for obj in self._here if not self._objects.ours(obj)}

    # -- pieces

    def piece_sent(self, peer: bytes, message: pm.PieceSent, data: memoryview) -> None:
        fetch = self._fetches.get(message.obj)
        if fetch is None or fetch.copy is None or fetch.sealing:
            return  # late
        at = message.piece * p.PIECE_BYTES
        target = fetch.copy.view[at : at + p.PIECE_BYTES]
        if message.piece < 0 or len(target) != len(data):
            raise m.ProtocolError(f"a piece of {len(data)} bytes, not {len(target)}")
        target[:] = data
        fetch.progress_s = monotonic()
        self._pull(p.Piece(message.obj, peer, message.piece))
        if message.obj in self.serving.objects and message.obj in self.pulls.pulls:
            self._serve(v.Here(message.obj, message.piece))

    def redirected(self, peer: bytes, message: pm.PieceRedirected) -> None:
        if message.to in self._gateway.peers:
            self._pull(p.Redirected(message.obj, peer, message.to))
        else:
            self._pull(p.Missing(message.obj, peer))

    def denied(self, peer: bytes, message: pm.PieceDenied) -> None:
        self._pull(p.Missing(message.obj, peer))

    def _pull(self, event: Any) -> None:
        self._handle(True, event)

    def _serve(self, event: Any) -> None:
        self._handle(False, event)

    def _handle(self, pull: bool, event: Any) -> None:
        """Give an event to one of the two; those that follow from it come afterwards, in order."""
        self._events.append((pull, event))
        if self._running:
            return
        self._running = True
        try:
            while self._events:
                pull, event = self._events.popleft()
                if pull and isinstance(event, (p.Want, p.Ready, p.Unwant)) and not self._allowed(event):
                    continue
                orders: list[Any] = (self.pulls if pull else self.serving).handle(event)
                for order in orders:
                    self._ORDERS[type(order)](self, order)
        finally:
            self._running = False

    def _allowed(self, event: Any) -> bool:
        """Whether it is still about what it was about when it was put in line."""
        known = self.pulls.pulls.get(event.object_id)
        if isinstance(event, p.Want):
            return event.object_id in self._fetches and known is None
        return known is not None and (not isinstance(event, p.Ready) or known.state == p.ROOM)

    # -- what Pulls decides

    def _make_room(self, order: p.MakeRoom) -> None:
        obj, fetch = order.object_id, self._fetches[order.object_id]

        def job() -> Callable[[], None]:
            try:
                copy = self._store().reserve(obj, order.size)
            except Exception as error:  # whatever it is, somebody waits for this object
                return partial(self._no_room, obj, fetch, self._why_none(error))
            return partial(self._room, obj, fetch, copy)

        self._thread.submit(job)

    def _why_none(self, error: Exception) -> str:
        """Why there is no copy here; who hears it may be on another machine."""
        host = self._gateway.host
        if isinstance(error, ObjectStoreFull):
            return f"{NEEDED_ON}{host}, which has no room for a copy: {error}"
        return f"a copy could not be made on {host}: {error}"

    def _no_room(self, obj: bytes, fetch: _Fetch, why: str) -> None:
        if self._fetches.get(obj) is fetch:
            self._pull(p.Unwant(obj))
            self._fail(obj, why)

    def _room(self, obj: bytes, fetch: _Fetch, copy: Copy) -> None:
        if self._fetches.get(obj) is not fetch:
            self._thread.submit(partial(self._drop, copy))
            return
        fetch.copy = copy
        fetch.progress_s = monotonic()
        self._serve(v.Coming(obj))
        self._pull(p.Ready(obj))

    def _drop(self, copy: Copy) -> Callable[[], None]:
        """In the thread."""
        self._store().drop_copy(copy)
        return _nothing

    def _locate(self, order: p.Locate) -> None:
        fetch = self._fetches.get(order.object_id)
        if fetch is not None:
            self._ask_where(order.object_id, fetch)

    def _complete(self, order: p.Complete) -> None:
        obj, fetch = order.object_id, self._fetches[order.object_id]
        fetch.sealing = True
        copy, contents = fetch.copy, fetch.contents
        assert copy is not None

        def job() -> Callable[[], None]:
            try:
                self._store().seal_copy(copy, contents)
            except Exception as error:  # as above
                return partial(self._sealed, obj, fetch, self._why_none(error))
            return partial(self._sealed, obj, fetch, "")

        self._thread.submit(job)

    def _sealed(self, obj: bytes, fetch: _Fetch, why: str) -> None:
        fetch.copy = None
        if why or fetch.size >= MEASURED_BYTES:
            self._log("transfer.done", obj=obj.hex(), bytes=fetch.size, failed=why or "no")
        if why:
            self._serve(v.Gone(obj))
        else:
            if fetch.size >= MEASURED_BYTES:
                self._gateway.pace = (self._gateway.pace[0], fetch.size / max(1e-6, monotonic() - fetch.began_s))
            self._objects.release([obj])  # that was ours by sealing it: others hold it
            if not fetch.freed:
                self._here.add(obj)
                self._serve(v.Whole(obj))
        self._end(obj, fetch, why)

    def _abandoned(self, order: p.Abandon | p.Lost) -> None:
        obj, fetch = order.object_id, self._fetches.get(order.object_id)
        self._gone(obj)
        if fetch is None:
            return
        if fetch.copy is not None:
            self._thread.submit(partial(self._drop, fetch.copy))
            fetch.copy = None
        if isinstance(order, p.Lost):
            self._fail(obj, self._objects.why_away(obj))

    # -- what others want

    def describe(self, peer: bytes, message: pm.DescribeAsked) -> None:
        obj = message.obj
        if self._objects.given and self._objects.ours(obj):
            return  # who asks hears, or has heard, whom to ask

        def job() -> Callable[[], None]:
            try:
                view, contents = self._store().look_at(obj)
            except Exception as error:  # who asks must get an answer
                if self._objects.given and self._objects.ours(obj):
                    return _nothing
                why = str(error).removeprefix(str(lost(obj, "")))
                return partial(self._gateway._say_if_up, peer, pm.NotThere(obj, why))
            return partial(self._describe, peer, obj, view, contents)

        self._thread.submit(job)

    def _describe(self, peer: bytes, obj: bytes, view: memoryview, contents: list[bytes]) -> None:
        if self._objects.is_lent(obj, peer):
            self._views.setdefault(obj, view)
            if obj not in self.serving.objects:
                self._serve(v.Whole(obj))
        known = self.serving.objects.get(obj)
        copies = [name for name in (known.whole if known else ()) if name != peer and name in self._gateway.peers]
        described = pm.Described(obj, len(view), copies[-MOST_COPIES:])
        self._gateway._say_if_up(peer, described, pickle.dumps(contents))

    def piece_asked(self, peer: bytes, message: pm.PieceAsked) -> None:
        if self._gateway.draining:
            self._gateway.heirs.gets_on(peer)
        event = v.Asked(message.obj, peer, message.piece, message.join, message.insist)
        if message.obj in self.serving.objects:
            self._serve(event)
        else:
            self._with_view(message.obj, partial(self._serve, event))

    def left(self, peer: bytes, message: pm.PullLeft) -> None:
        self._serve(v.Left(message.obj, peer, message.whole))
        known = self.serving.objects.get(message.obj)
        if known is None or not known.served:
            self._views.pop(message.obj, None)

    def not_lent(self, obj: bytes) -> None:
        """No other machine holds it any more."""
        self._gone(obj)

    def _gone(self, obj: bytes) -> None:
        self._views.pop(obj, None)
        self._serve(v.Gone(obj))

    def _with_view(self, obj: bytes, action: Callable[[], None]) -> None:
        """Do something when the object's bytes can be seen, or it is known that they cannot."""
        waiting = self._viewing.setdefault(obj, [])
        waiting.append(action)
        if len(waiting) > 1:
            return

        def job() -> Callable[[], None]:
            try:
                view, _ = self._store().look_at(obj)
            except Exception as error:  # as above
                self._log("transfer.no_view", obj=obj.hex(), error=error)
                return partial(self._viewed, obj, None)
            return partial(self._viewed, obj, view)

        self._thread.submit(job)

    def _viewed(self, obj: bytes, view: memoryview | None) -> None:
        if view is None:
            self._gone(obj)
        else:
            self._views[obj] = view
            self._serve(v.Whole(obj))
        for action in self._viewing.pop(obj):
            action()

    # -- what Serving decides

    def _send(self, order: v.Send) -> None:
        at = order.piece * p.PIECE_BYTES
        obj = order.object_id
        fetch = self._fetches.get(obj)
        data: Any
        if obj in self._views:
            data = self._views[obj][at : at + p.PIECE_BYTES]
        elif fetch is not None and fetch.copy is not None:
            data = bytes(fetch.copy.view[at : at + p.PIECE_BYTES])  # it may be given up while this is on its way
        else:
            self._with_view(obj, partial(self._send_again, order))
            return
        try:
            self._gateway.net.send_beside(order.node, pm.encode(pm.PieceSent(obj, order.piece)), [data])
        except NoLink:
            return  # NodeLost will follow

    def _send_again(self, order: v.Send) -> None:
        if order.object_id in self._views:
            self._send(order)

    _ORDERS: dict[type[Any], Callable[[Any, Any], None]] = {  # noqa: RUF012
        p.MakeRoom: _make_room,
        p.Ask: lambda self, o: self._gateway._say_if_up(o.node, pm.PieceAsked(o.object_id, o.piece, o.join, o.insist)),
        p.Leave: lambda self, o: self._gateway._say_if_up(o.node, pm.PullLeft(o.object_id, o.whole)),
        p.Locate: _locate,
        p.Complete: _complete,
        p.Abandon: _abandoned,
        p.Lost: _abandoned,
        v.Send: _send,
        v.Redirect: lambda self, o: self._gateway._say_if_up(o.node, pm.PieceRedirected(o.object_id, o.to)),
        v.Deny: lambda self, o: self._gateway._say_if_up(o.node, pm.PieceDenied(o.object_id)),
    }

    def close(self) -> None:
        """The gateway ends."""
        self._thread.close()
        self._views.clear()
        if self._client is not None:
            self._client.close()
        self._gateway._off(self._wake)
        os.close(self._wake)


def _nothing() -> None:
    """Nothing follows from the job that is done."""
