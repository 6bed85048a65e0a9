"""Actors across machines: processes that are elsewhere, and actors whose home is elsewhere.

```
 an actor of ours: its lease is given by another machine ─► FarProcess, in the place of a process of this node
 a caller here, an actor of another machine: ConnectActor ─► RemoteActor ─► the gateway ─► the actor's home
        Grant, WorkerDied, ActorGone ◄─ RemoteUp, RemoteDied, RemoteGone ◄──┘
 a name that none of ours has ─► the control store ─► RemoteFind ─► its home still has it ─► ActorFound
```

An actor's id begins with the tag of its home: the node on which it was asked for, which has its state and decides when
it is made, and where, as it does for actors on this machine.

Part of `NodeActors`; the node's loop.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import frames, ids
from dpool._core import messages as m

if TYPE_CHECKING:
    import socket

    from dpool._core.node import Client, Node


class FarProcess:
    """The process of an actor on another machine: what `NodeActors` looks at of a `Proc`."""

    __slots__ = (
        "_sock", "end_code", "end_signal", "failed", "gpus", "granted", "host", "log_file", "pid", "pool", "reason",
        "worker",
    )  # fmt: skip

    def __init__(self, pool: int, up: m.RemoteUp, sock: socket.socket) -> None:
        self.pool = pool
        self.worker = up.worker
        self.pid = up.pid
        self.log_file = f"{up.log_file} on {up.host}"
        self.host = up.host
        self.gpus = up.gpus
        self.granted = True
        self.failed = ""
        self.reason = ""
        self.end_signal = 0
        self.end_code = 0
        self._sock = sock

    def take_lessee_socket(self) -> socket.socket:
        """Our end of the socket to it."""
        return self._sock

    def ended(self, message: m.RemoteDied) -> None:
        """It is dead, or there is no link to its machine."""
        self.pid = message.pid or self.pid
        self.end_signal, self.end_code = message.signal, message.exit_code
        if message.log_file:
            self.log_file, self.reason = message.log_file, message.reason
        else:
            self.failed = message.reason


def mark_far(page: int) -> None:
    """Before the caller sees the page: the process is on another machine; see frames.py."""
    os.pwrite(page, frames.NO_LIMIT.to_bytes(8, "little"), frames.LIMIT * 8)
    os.pwrite(page, frames.FAR.to_bytes(8, "little"), frames.LIMIT_SEEN * 8)


class _Link:
    """A caller here, of an actor whose home is elsewhere."""

    __slots__ = ("actor", "client", "number", "pid", "pool")

    def __init__(self, number: int, client: Client, message: m.ConnectActor) -> None:
        self.number = number
        self.client = client
        self.pool = message.pool
        """The client's number of it."""
        self.actor = message.actor
        self.pid = 0
        """Of the process, once it is known."""


class ForeignActors:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._links: dict[int, _Link] = {}
        self._by_client: dict[tuple[int, int], _Link] = {}
        self._finds: dict[int, Callable[[bool], None]] = {}

    def foreign(self, actor: bytes) -> bool:
        """Whether its home is another machine."""
        return self._node._abroad is not None and ids.home_of(actor) != ids.tag_of(self._node.session)

    # -- callers

    def connect(self, client: Client, message: m.ConnectActor) -> None:
        """A process here calls it."""
        link = _Link(self._node.scheduler.new_worker(), client, message)
        self._links[link.number] = self._by_client[client.number, link.pool] = link
        pid = client.hello.pid if client.hello is not None else 0
        self._node.tell_gateway(m.RemoteActor(link.number, link.actor, pid))

    def disconnect(self, client: Client, pool: int) -> None:
        """It does not any more."""
        link = self._by_client.pop((client.number, pool), None)
        if link is not None:
            del self._links[link.number]
            self._node.tell_gateway(m.RemoteLeft(link.number))

    def client_left(self, client: Client) -> None:
        """All its links are gone."""
        for number, pool in [key for key in self._by_client if key[0] == client.number]:
            self.disconnect(client, pool)
            del number

    def signal(self, client: Client, message: m.KillWorker) -> bool:
        """A caller wants the actor's process to get a signal; False if this is no link."""
        link = self._by_client.get((client.number, message.pool))
        if link is not None:
            self._node.tell_gateway(m.RemoteSignal(link.number, message.signal))
        return link is not None

    def up(self, message: m.RemoteUp, fds: list[int]) -> bool:
        """There is a process; False if this is about no link."""
        link = self._links.get(message.worker)
        if link is None:
            return False
        log_file = f"{message.log_file} on {message.host}"
        self._node._send(link.client, m.Grant(link.pool, link.number, (), (), True, log_file), tuple(fds))
        self._node._send(link.client, m.WorkerUp(link.pool, link.number, message.pid, 0))
        return True

    def died(self, message: m.RemoteDied) -> None:
        """The process has ended."""
        link = self._links.get(message.worker)
        if link is not None:
            self._node._send(link.client, m.WorkerDied(link.pool, link.number, *message[1:], False))

    def gone(self, message: m.RemoteGone) -> None:
        """The actor is dead for good, or its home is."""
        link = self._links.pop(message.link, None)
        if link is not None:
            del self._by_client[link.client.number, link.pool]
            self._node._send(link.client, m.ActorGone(link.pool, message.cause))

    # -- names

    def find(self, name: str, pid: int, answer: Callable[[bytes, bytes, str], None]) -> None:
        """Look for a name that no actor of ours has; the answer is (id, meta, why not), held by the process."""
        records, timeout_s = self._node.records(), self._node.config.gcs_timeout_s
        if records is None:
            answer(b"", b"", "")
            return
        waiting = [True]

        def told(found: tuple[bytes, bytes] | None) -> None:
            if waiting:
                waiting.clear()
                self._found(found, pid, answer)

        def late() -> None:
            if waiting:
                waiting.clear()
                records.give_up(number)
                text = f"the control store has not answered within {timeout_s:g} s, and only it knows what actors other"
                answer(b"", b"", f"{text} machines have{': ' * bool(records.trouble)}{records.trouble}")

        number = records.ask(partial(_look_up, name), told)
        self._node._at(monotonic() + timeout_s, late)

    def _found(self, found: tuple[bytes, bytes] | None, pid: int, answer: Callable[[bytes, bytes, str], None]) -> None:
        if found is None or not self.foreign(found[0]):
            answer(b"", b"", "")
        else:
            self.take(*found, pid, answer)

    def take(self, actor: bytes, meta: bytes, pid: int, answer: Callable[[bytes, bytes, str], None]) -> None:
        """Have a process hold an actor of another machine, if that still has it."""
        self._node._numbers += 1
        self._finds[self._node._numbers] = lambda there: answer(*((actor, meta, "") if there else (b"", b"", "")))
        self._node.tell_gateway(m.RemoteFind(self._node._numbers, actor, pid))

    def taken(self, message: m.RemoteFound) -> None:
        """The home has answered."""
        then = self._finds.pop(message.number, None)
        if then is not None:
            then(message.there)

    def waits(self) -> bool:
        """Whether somebody waits for a name."""
        return bool(self._finds)


def _look_up(name: str, store: Any) -> tuple[bytes, bytes] | None:
    """In the writer's thread: (id, meta) of the actor that has the name."""
    named = store.named_actor(name)
    row = store.actor(named[0]) if named is not None else None
    return (row.actor_id, row.meta) if row is not None else None


def cause_of(proc: Any, why: str) -> bytes:
    """What callers of an actor get whose process has ended; `why`: what one of them had it killed for."""
    host = getattr(proc, "host", "")
    if host and proc.failed:
        return pickle.dumps((f"its process was on {host}, and {proc.failed}", None))
    how = f"was killed by signal {proc.end_signal}" if proc.end_signal else f"exited with code {proc.end_code}"
    how = proc.failed or how
    if proc.reason == "oom":
        how += " because memory ran out"
    where = f" on {host}" if host else ""
    return pickle.dumps((f"its process (pid {proc.pid}{where}) {how}{why}; see {proc.log_file}", None))
