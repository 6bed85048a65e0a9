"""The gateway's part in actors: whoever calls one has a link to its process, wherever both are.

```
 home of the actor (its node decides)                     a machine where its process is
 node ─ LINK frame: socket, page ─► Outgoing ─ LinkWanted ─► Incoming ◄── socket, page ─ LINK frame ─► process
                                                          a machine where a caller is
 node ─ Grant: socket, page ─► Incoming ◄─ LeaseGiven ─── Outgoing ◄── RemoteUp: socket, page ── caller
        ConnectActor ◄──────────────────── ActorWanted ──◄ RemoteActor
```

The process of an actor is a lease like others; each link to it is one more, so that its frames, limits and signals
travel as those of tasks do. A link to an actor of another machine goes to that machine, the actor's home, whose node
takes this gateway for the caller: it has the actor's state, and says when the process is lost, and when the actor is
dead. If the process is on the caller's machine they get a socket between them (LinkHere); if it is on a third one the
home passes the frames on.

Part of the gateway; its loop.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dpool._core import frames, wire
from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.logic import borrowing as b
from dpool._core.node_actors_abroad import mark_far
from dpool._core.relay import Incoming, Outgoing

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway, _Abroad, _Guest
    from dpool._core.relay import Snapshot

NO_SNAPSHOT: tuple[Any, ...] = (0, 0, 0, b"", [])


class ActorLinks:
    """See the module. `abroad`, `guest`: make what the gateway keeps of a lease."""

    def __init__(self, gateway: Gateway, abroad: Callable[..., _Abroad], guest: Callable[..., _Guest]) -> None:
        self._gateway = gateway
        self._new_abroad = abroad
        self._new_guest = guest
        self._visitors: dict[int, _Guest] = {}
        """Our number of a link to an actor of this machine's node → the caller elsewhere that has it."""

    # -- actors of our node, whose processes are elsewhere

    def link(self, process: _Abroad, pid: int, number: int, fds: list[int]) -> None:
        """Our node links a caller (a process id, and the node's number of the link) to such a process."""
        gateway = self._gateway
        sock, page = socket.socket(fileno=fds[0]), frames.Page(fds[1])
        os.close(fds[1])
        gateway._numbers += 1
        one = self._new_abroad(-gateway._numbers, process.pool, process.peer, pid)
        one.owner = process
        one.outgoing = Outgoing(sock, page, 0, partial(gateway._forward, one), partial(gateway._ask_limit, one))
        process.links[number] = gateway._abroad[one.lease] = one
        gateway._say_if_up(one.peer, pm.LinkWanted(process.lease, one.lease))
        gateway._on(sock.fileno(), partial(gateway._submitter_event, one))

    def caller_gone(self, one: _Abroad) -> None:
        """It has closed its socket: so does the process's side."""
        if one.owner is None or self._gateway._abroad.pop(one.lease, None) is None:
            return
        self._gateway._say_if_up(one.peer, pm.LeaseReturned(one.lease, False))
        self._close(one)
        self.link_ended(one)

    def after_links(self, process: _Abroad, then: Callable[[], None]) -> None:
        """A process has ended: its callers have heard what it said last before they hear of that."""
        if process.links:
            process.after = then
        else:
            then()

    def link_ended(self, one: _Abroad) -> None:
        """A link is gone; perhaps the last one of a process that has ended."""
        process = one.owner
        assert process is not None
        for number in [number for number, link in process.links.items() if link is one]:
            del process.links[number]
        if process.after is not None and not process.links:
            then, process.after = process.after, None
            then()

    def _close(self, one: _Abroad) -> None:
        if one.outgoing is not None:
            self._gateway._off(one.outgoing.fileno())
            self._gateway._writing.discard(one.outgoing.fileno())
            one.outgoing.close()
            one.outgoing = None

    # -- processes here, of actors of other machines

    def link_wanted(self, peer: bytes, message: pm.LinkWanted) -> None:
        """One more caller of such a process."""
        gateway = self._gateway
        process = gateway._guests.get((peer, message.lease))
        if process is None or process.incoming is None:
            gateway._say_if_up(peer, pm.WorkerEnded(message.link, 0, 0, 0, "", "", *NO_SNAPSHOT))
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = frames.make_page()
        one = self._new_guest(peer, message.link, process.pool, ())
        one.process, one.worker = process, process.worker
        one.incoming = Incoming(ours, frames.Page(page), partial(gateway._send_back, one))
        process.links.append(one)
        gateway._guests[peer, message.link] = one
        gateway._on(ours.fileno(), partial(gateway._worker_event, one))
        process.incoming.frame(pickle.dumps((0, frames.LINK, os.getpid(), 0, []), 5), (theirs.detach(), page))
        gateway._watch_writing(process.incoming.fileno(), process.incoming.wants_to_write())

    def returned(self, one: _Guest) -> bool:
        """A caller does not want its link any more; False if it is no link."""
        if one.process is None and not one.actor:
            return False
        if one.process is not None:
            one.process.links.remove(one)
        else:
            del self._visitors[one.pool.number]
            self._gateway._tell(m.DisconnectActor(one.pool.number, one.actor))
        del self._gateway._guests[one.peer, one.lease]
        self._let_go(one)
        return True

    def process_ended(self, process: _Guest) -> None:
        """It has died: what it answered last, and how far it was, for each caller."""
        for one in process.links:
            del self._gateway._guests[one.peer, one.lease]
            self._last_words(one, pm.WorkerEnded(one.lease, 0, 0, 0, "", "", *NO_SNAPSHOT))
        process.links.clear()

    def _last_words(self, one: _Guest, end: pm.WorkerEnded) -> None:
        gateway = self._gateway
        if one.incoming is not None:
            one.incoming.readable()
            snapshot = one.incoming.snapshot()
            refs = gateway.objects.journal(one, snapshot)
            end = pm.WorkerEnded(*end[:6], *snapshot, refs)
        gateway._say_if_up(one.peer, end)
        self._let_go(one)

    def _let_go(self, one: _Guest) -> None:
        gateway = self._gateway
        if one.incoming is not None:
            gateway._off(one.incoming.fileno())
            gateway._writing.discard(one.incoming.fileno())
            one.incoming.close()
            one.incoming = None
        gateway.objects.lease_ended(one)

    # -- actors of our node, called from elsewhere

    def actor_wanted(self, peer: bytes, message: pm.ActorWanted) -> None:
        """A process of another machine calls it."""
        gateway = self._gateway
        gateway._numbers += 1
        one = self._new_guest(peer, message.link, None, ())
        one.pool = gateway.new_guest_pool(gateway._numbers, peer)
        one.actor = message.actor
        gateway._guests[peer, message.link] = self._visitors[one.pool.number] = one
        gateway._tell(m.ConnectActor(one.pool.number, message.actor))

    def granted(self, message: m.Grant, fds: list[int]) -> bool:
        """There is a process for it; False if this is not about a link."""
        one = self._visitors.get(message.pool)
        if one is None:
            return False
        ours, theirs, page = fds
        fds.clear()
        os.close(theirs)
        one.incoming = Incoming(socket.socket(fileno=ours), frames.Page(page), partial(self._gateway._send_back, one))
        os.close(page)
        one.worker = message.worker
        self._gateway._on(ours, partial(self._gateway._worker_event, one))
        host = self._gateway.host
        self._gateway._say_if_up(one.peer, pm.LeaseGiven(one.lease, 0, message.log_file, host))
        return True

    def visit(self, message: m.RemoteVisitor, fds: list[int]) -> None:
        """There is one, but elsewhere: on the caller's own machine, or on a third one, for which we pass frames on."""
        gateway = self._gateway
        one, process = self._visitors.get(message.pool), gateway._abroad.get(message.worker)
        if one is None or process is None:
            return  # it is gone again, and that is on its way
        one.worker = message.worker
        if process.peer == one.peer:
            gateway._say_if_up(one.peer, pm.LinkHere(one.lease, process.lease))
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = frames.make_page()
        mark_far(page)
        one.incoming = Incoming(ours, frames.Page(page), partial(gateway._send_back, one))
        gateway._on(ours.fileno(), partial(gateway._worker_event, one))
        self.link(process, os.getpid(), message.caller, [theirs.detach(), page])
        host = gateway.peers[process.peer].host if process.peer in gateway.peers else gateway.host
        gateway._say_if_up(one.peer, pm.LeaseGiven(one.lease, 0, "", host))

    def process_died(self, message: m.WorkerDied) -> bool:
        """It has ended; whether another takes its place is said by the reason, or by ActorGone."""
        one = self._visitors.get(message.pool)
        if one is None:
            return False
        self._last_words(one, pm.WorkerEnded(one.lease, *message[2:7], *NO_SNAPSHOT))
        return True

    def gone(self, message: m.ActorGone, fds: list[int]) -> None:
        """The actor is dead for good."""
        one = self._visitors.pop(message.pool, None)
        if one is not None:
            self._gateway._guests.pop((one.peer, one.lease), None)
            self._let_go(one)
            self._gateway._say_if_up(one.peer, pm.ActorEnded(one.lease, message.cause))

    def killed(self, peer: bytes, message: pm.ActorKilled) -> None:
        """Somebody elsewhere ends an actor of our node."""
        self._gateway._tell(m.ActorKill(*message))

    # -- callers here, of actors of other machines

    def wanted(self, message: m.RemoteActor, fds: list[int]) -> None:
        """A process here calls an actor whose home is elsewhere."""
        gateway = self._gateway
        peer = gateway.objects.machine_of(message.actor)
        if peer is None:
            self._tell_gone(message.link, gateway.objects.why_away(message.actor))
            return
        one = gateway._abroad[message.link] = self._new_abroad(message.link, 0, peer, message.pid)
        one.actor = message.actor
        gateway._say_if_up(peer, pm.ActorWanted(message.link, message.actor))

    def link_here(self, peer: bytes, message: pm.LinkHere) -> None:
        """The process that it calls is on this machine, too: they get a socket between them."""
        gateway = self._gateway
        one, process = gateway._abroad.get(message.link), gateway._guests.get((peer, message.lease))
        if one is None or process is None or process.incoming is None:
            return  # it is gone again, and that is on its way
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = frames.make_page()
        one.direct = True
        with ours, theirs:
            copy = os.dup(theirs.fileno())
            gateway._tell(m.RemoteUp(one.lease, 0, "", gateway.host), (ours.fileno(), theirs.fileno(), page))
            process.incoming.frame(pickle.dumps((0, frames.LINK, one.pid, 0, []), 5), (copy, page))
        gateway._watch_writing(process.incoming.fileno(), process.incoming.wants_to_write())

    def left(self, message: m.RemoteLeft, fds: list[int]) -> None:
        """It does not any more."""
        one = self._gateway._abroad.pop(message.link, None)
        if one is not None:
            self._gateway._say_if_up(one.peer, pm.LeaseReturned(one.lease, False))
            self._close(one)

    def process_lost(self, one: _Abroad, snapshot: Snapshot | None, end: m.RemoteDied) -> None:
        """The process of such an actor has ended; it may come back."""
        if one.outgoing is not None and snapshot is not None:
            one.outgoing.died(snapshot)
        if one.outgoing is not None or one.direct:
            one.direct = False
            self._close(one)
            self._gateway._tell(end)

    def ended(self, peer: bytes, message: pm.ActorEnded) -> None:
        """The actor is dead for good."""
        one = self._gateway._abroad.get(message.link)
        if one is not None and one.actor:
            self._gateway.objects.results_came(one, [], partial(self._ended, one, message.cause))

    def _ended(self, one: _Abroad, cause: bytes) -> None:
        if self._gateway._abroad.pop(one.lease, None) is not None:
            self._close(one)
            self._gateway._tell(m.RemoteGone(one.lease, cause))

    def home_lost(self, one: _Abroad, reason: str) -> None:
        """There is no link to the home of an actor that is called from here."""
        if self._gateway._abroad.pop(one.lease, None) is not None:
            self._close(one)
            self._tell_gone(one.lease, reason)

    def _tell_gone(self, link: int, why: str) -> None:
        self._gateway._tell(m.RemoteGone(link, pickle.dumps((why, None))))

    def kill(self, message: m.ActorKill, fds: list[int]) -> None:
        """A process here ends an actor whose home is elsewhere; if that is gone, so is the actor."""
        peer = self._gateway.objects.machine_of(message.actor)
        if peer is not None:
            self._gateway._say_if_up(peer, pm.ActorKilled(*message))

    def find(self, message: m.RemoteFind, fds: list[int]) -> None:
        """A process here has found the name of an actor: it holds it now, if its home still has it."""
        objects = self._gateway.objects
        token = objects.new_token()
        objects.arrived(token, [message.actor], partial(self._found, token, message))

    def _found(self, token: int, message: m.RemoteFind) -> None:
        objects = self._gateway.objects
        known = objects.borrowing.objects.get(message.actor)
        there = known is not None and known.state == b.BORROWED
        if there:
            objects.hold([message.actor], message.pid)
        self._gateway._tell(m.RemoteFound(message.number, there))
        objects.done(token)

    # -- both

    def peer_down(self, peer: bytes) -> None:
        """All callers there are gone."""
        for one in [one for one in self._visitors.values() if one.peer == peer]:
            self.returned(one)


def with_carried(one: _Guest, frame: bytes, fields: Any) -> bytes:
    """The frame for the process; if that is on a third machine, with what it refers to once more."""
    if one.incoming is None or not one.incoming.far():
        return frame
    return pickle.dumps((*wire.loads(frame)[:5], fields), 5)
