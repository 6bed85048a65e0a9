"""The node's side of actors: their processes, who is linked to them, their names; what to do is decided by `Actors`.

```
 ActorCreate ─► Actors ─► Lease ─► the scheduler (a pool of one worker each, whose client is the node itself)
                                        │ granted ─► first frame to the process: it constructs the object, and answers
 ConnectActor ─► Link ─► a socket pair and a page: one side to the process, one to the caller
 the process dies ─► WorkerDied ─► TellLost, Lease (again) or TellDead
```

Runs in the node's loop. Made when the first actor is.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core import wire
from dpool._core.frames import ACTOR, EXIT, LINK, make_page
from dpool._core.logic import actors as a
from dpool._core.logic import scheduler as s

if TYPE_CHECKING:
    from dpool._core.node import Client, Node
    from dpool._core.node_worker import Proc

AGAIN_S = 0.01
"""After so long it is tried again to write to an actor that does not read."""


class _Actor:
    """What the node keeps of one."""

    __slots__ = ("holder", "home", "message", "outbox", "pool", "proc", "receiver")

    def __init__(self, message: m.ActorCreate, pool: int, holder: int) -> None:
        self.message = message
        self.pool = pool
        """Its pool in the scheduler."""
        self.holder = holder
        """As which the node holds what its first frame refers to."""
        self.proc: Proc | None = None
        self.home: socket.socket | None = None
        """To its process."""
        self.receiver: wire.Receiver | None = None
        self.outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()


class NodeActors:
    """See the module."""

    def __init__(self, node: Node, log: Callable[..., None]) -> None:
        self._node = node
        self._log = log
        self.machine = a.Actors()
        self._actors: dict[bytes, _Actor] = {}
        self._by_pool: dict[int, bytes] = {}
        self._callers: dict[int, tuple[Client, int, bytes]] = {}
        """Our number of a link → client, its number, actor."""
        self._numbers: dict[tuple[int, int], int] = {}
        """(client, its number) → ours."""
        self._holders = -(1 << 40)
        node._do(s.ClientJoined(0))  # the node itself

    # -- what processes say

    def create(self, message: m.ActorCreate, pid: int, reply: Callable[[Any], None]) -> bytes:
        """Make an actor for a process, which then holds it; the id of what it got: another's, or none, if the name is
        taken.
        """
        taken = self.machine.names.get(message.name) if message.name else None
        if taken is not None:
            found = self._actors[taken] if message.exists_ok else None
            reply(m.ActorFound(message.request, taken if found else b"", found.message.meta if found else b""))
            return taken if found else b""
        self._holders -= 1
        pool = self._node.new_pool(message.setup, self, pid)
        actor = self._actors[message.actor] = _Actor(message, pool, self._holders)
        self._by_pool[pool] = message.actor
        self._node.store().hold(message.keep, actor.holder)
        reply(m.ActorFound(message.request, message.actor, b""))
        driver = self._node.driver_of(pid)
        owner = 0 if message.detached or driver is None else driver.number
        self._do(a.Create(message.actor, message.name, message.restarts, owner))
        return message.actor

    def find(self, name: str) -> tuple[bytes, bytes]:
        """(id, meta) of the actor of that name; empty if there is none."""
        actor = self.machine.names.get(name)
        return (b"", b"") if actor is None else (actor, self._actors[actor].message.meta)

    def kill(self, actor: bytes, restart: bool) -> None:
        if actor in self._actors:
            self._do(a.Kill(actor, restart, _cause("it was killed (kill)")))

    def connect(self, client: Client, message: m.ConnectActor) -> None:
        self._node._numbers += 1
        number = self._node._numbers
        if message.actor not in self._actors:
            self._node._send(
                client, m.ActorGone(message.pool, _cause("nobody held it any more, or its node has ended"))
            )
            return
        self._callers[number] = (client, message.pool, message.actor)
        self._numbers[client.number, message.pool] = number
        self._do(a.Connect(message.actor, number))

    def disconnect(self, client: Client, pool: int) -> None:
        number = self._numbers.pop((client.number, pool), None)
        if number is not None:
            _, _, actor = self._callers.pop(number)
            self._do(a.Disconnect(actor, number))

    def client_left(self, client: Client, was_driver: bool) -> None:
        """Its links are gone; so are a program's actors."""
        for number, pool in [key for key in self._numbers if key[0] == client.number]:
            self.disconnect(client, pool)
            del number
        if was_driver:
            self._do(a.OwnerLeft(client.number))

    def signal(self, client: Client, pool: int, number: int) -> bool:
        """A caller wants its actor's process to get a signal; False if this is no link."""
        link = self._numbers.get((client.number, pool))
        if link is None:
            return False
        actor = self._actors.get(self._callers[link][2])
        if actor is not None and actor.proc is not None:
            self._node._signal(actor.proc, number)
        return True

    def freed(self, obj: bytes) -> bool:
        """Nobody holds this id any more: was it an actor's?"""
        actor = self._actors.get(obj)
        if actor is None:
            return False
        if not actor.message.detached:
            self._do(a.Freed(obj))
        return True

    def living(self) -> int:
        """Actors that are not dead: the node stays for them."""
        return self.machine.living()

    # -- what the scheduler says

    def granted(self, order: s.Grant, proc: Proc) -> None:
        """A process for an actor: it gets its first frame."""
        name = self._by_pool[order.pool]
        if proc.failed or not self._wanted(name):
            return
        actor = self._actors[name]
        ours, peer, page = proc.lessee_fds()
        actor.proc = proc
        actor.home = socket.socket(fileno=os.dup(ours))
        proc.granted = True
        proc.close_lessee_side()
        del peer, page
        actor.receiver = wire.Receiver(actor.home)
        self._node._on(actor.home.fileno(), partial(self._answered, name))
        self._do(a.Granted(name, order.worker))
        env = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, order.gpus))} if order.gpus else {}
        if any(key == "num_cpus" for key, _ in order.shape):
            env["\0cpus"] = "1"
        items, number, call = pickle.loads(actor.message.frame)
        self._say(actor, (0, ACTOR, (items, [], env), number, [call]))

    def died(self, pool: int, proc: Proc) -> None:
        """An actor's process is gone (or none could be started)."""
        name = self._by_pool.get(pool)
        if name is None or not self._wanted(name):
            return
        actor = self._actors[name]
        if actor.home is None:  # it never got as far: count it as one that died while it started
            self._do(a.Granted(name, proc.worker))
        self._close_home(actor)
        how = f"was killed by signal {proc.end_signal}" if proc.end_signal else f"exited with code {proc.end_code}"
        how = proc.failed or how
        if proc.reason == "oom":
            how += " because memory ran out"
        self._do(a.WorkerDied(name, _cause(f"its process (pid {proc.pid}) {how}; see {proc.log_file}")))
        actor.proc = None

    def _wanted(self, name: bytes) -> bool:
        """Not if it was given up after its process had been asked for: that is killed with its pool."""
        known = self.machine.actors.get(name)
        return known is not None and known.state != a.DEAD

    def pool_gone(self, pool: int) -> None:
        """Its last process has been reaped."""
        self._by_pool.pop(pool, None)

    # -- what actors' processes say

    def _answered(self, name: bytes, mask: int) -> None:
        actor = self._actors.get(name)
        if actor is None or actor.receiver is None:
            return
        try:
            answer = wire.loads(actor.receiver.receive(wire.DONTWAIT))
            actor.receiver.consumed()
        except (BlockingIOError, InterruptedError):
            return
        except (wire.Closed, OSError):  # its death will be told
            if actor.home is not None:
                self._node._off(actor.home.fileno())
            return
        except Exception as error:
            self._log("actor.malformed", error=repr(error))
            self.kill(name, restart=False)
            return
        failure = answer[3][0]
        if failure is None:
            self._do(a.Constructed(name))
            return
        data = failure[1][0] if type(failure[1]) is tuple else failure[1]
        self._do(a.Failed(name, pickle.dumps(("its constructor raised", data))))

    def _say(self, actor: _Actor, frame: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        """Send, or send later; the descriptors are ours no longer."""
        actor.outbox.append((pickle.dumps(frame, 5), fds))
        if len(actor.outbox) == 1:
            self._flush(actor)

    def _flush(self, actor: _Actor) -> None:
        while actor.outbox and actor.home is not None:
            data, fds = actor.outbox[0]
            try:
                wire.send(actor.home, data, fds)
            except BlockingIOError:
                self._node._at(monotonic() + AGAIN_S, partial(self._flush, actor))
                return
            except OSError:  # it is dead, and will be reaped
                pass
            actor.outbox.popleft()
            for fd in fds:
                os.close(fd)

    def _close_home(self, actor: _Actor) -> None:
        if actor.home is not None:
            self._node._off(actor.home.fileno())
            actor.home.close()
        for _, fds in actor.outbox:
            for fd in fds:
                os.close(fd)
        actor.outbox.clear()
        actor.home = actor.receiver = None

    # -- what the machine decides

    def _do(self, event: Any) -> None:
        for instruction in self.machine.handle(event):
            self._INSTRUCTIONS[type(instruction)](self, instruction)

    def _lease(self, order: a.Lease) -> None:
        actor = self._actors[order.actor]
        self._node.ask_for(s.RequestLeases(actor.pool, actor.message.shape, 1))

    def _give_up(self, order: a.GiveUp) -> None:
        self._node.ask_for(s.ClosePool(self._actors[order.actor].pool, True))

    def _link(self, order: a.Link) -> None:
        actor = self._actors[order.actor]
        client, pool, _ = self._callers[order.caller]
        assert actor.proc is not None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            page = make_page()
        except OSError as error:
            self._log("actor.link_failed", error=error)
            self._node._at(monotonic() + 1.0, partial(self._link_again, order))
            return
        with ours, theirs:
            self._node._send(
                client,
                m.Grant(pool, actor.proc.worker, (), (), True, actor.proc.log_file),
                (ours.fileno(), theirs.fileno(), page),
            )
            self._node._send(client, m.WorkerUp(pool, actor.proc.worker, actor.proc.pid, 0))
            pid = client.hello.pid if client.hello is not None else 0
            self._say(actor, (0, LINK, pid, 0, []), (os.dup(theirs.fileno()), page))

    def _link_again(self, order: a.Link) -> None:
        known = self.machine.actors.get(order.actor)
        if known is not None and order.caller in known.linked:
            self._link(order)

    def _tell_lost(self, order: a.TellLost) -> None:
        client, pool, _ = self._callers[order.caller]
        proc = self._actors[order.actor].proc
        assert proc is not None
        reason = "again" if order.again else proc.reason
        self._node._send(
            client,
            m.WorkerDied(pool, proc.worker, proc.pid, proc.end_signal, proc.end_code, reason, proc.log_file, False),
        )

    def _tell_dead(self, order: a.TellDead) -> None:
        known = self._callers.pop(order.caller, None)
        if known is not None:
            client, pool, _ = known
            self._numbers.pop((client.number, pool), None)
            self._node._send(client, m.ActorGone(pool, order.cause))

    def _kill_worker(self, order: a.KillWorker) -> None:
        proc = self._actors[order.actor].proc
        if proc is not None:
            self._node.ask_for(s.KillRequested(proc.pool, proc.worker))

    def _leave(self, order: a.Leave) -> None:
        self._say(self._actors[order.actor], (0, EXIT, 0, 0, []))

    def _forget(self, order: a.Forget) -> None:
        actor = self._actors.pop(order.actor)
        self._close_home(actor)
        self._node.store().let_go_all(actor.holder)

    _INSTRUCTIONS: dict[type[Any], Callable[[Any, Any], None]] = {  # noqa: RUF012
        a.Lease: _lease,
        a.GiveUp: _give_up,
        a.Link: _link,
        a.TellLost: _tell_lost,
        a.TellDead: _tell_dead,
        a.KillWorker: _kill_worker,
        a.Leave: _leave,
        a.Forget: _forget,
    }


def _cause(text: str) -> bytes:
    return pickle.dumps((text, None))
