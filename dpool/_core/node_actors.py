"""The node's side of actors: their processes, who is linked to them, their names; what to do is decided by `Actors`.

```
 ActorCreate ─► Actors ─► Lease ─► the scheduler (a pool of one worker each, whose client is the node itself)
                                        │ granted ─► first frame to the process: it constructs the object, and answers
 ConnectActor ─► Link ─► a socket pair and a page: one side to the process, one to the caller
 the process dies ─► WorkerDied ─► TellLost, Lease (again) or TellDead
 whatever changes ─► ActorRow ─► the control store
```

What an actor is constructed from is its ActorCreate message as bytes: the same that stand in its row of the control
store, so that it comes back here as it would on another node. They, and the objects that they refer to, are kept as
long as it may start once more. Where other nodes could claim a name (DPOOL_REDIS_URL), an actor with a name, or a
detached one, is made when the store has its row and says that the name is ours; see `_Claim`.

Runs in the node's loop. Made when the first actor is.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core import wire
from dpool._core.frames import ACTOR, EXIT, LEFT, LINK, make_page
from dpool._core.logic import actors as a
from dpool._core.logic import scheduler as s
from dpool._core.logic.places import SPREAD
from dpool._core.logic.resources import CPUS, UNIT
from dpool._core.node_actors_abroad import FarProcess, ForeignActors, cause_of, mark_far
from dpool._core.node_worker import Proc
from dpool._core.pool_crash import AGAIN, FOR_CALLER

if TYPE_CHECKING:
    from dpool._core.node import Client, Node
    from dpool._gcs.tables import ActorRow

NODE_CLIENT = 0
"""See node.py."""
INFEASIBLE = b""
"""As the exception of an actor's end: it was not made, as it asks for more than there is."""
Reply = Callable[[Any], None]
MOST_WHY = 500
"""Characters of what a caller says, at most."""
AGAIN_S = 0.01
"""After so long it is tried again to write to an actor that does not read."""


class _Actor:
    """What the node keeps of one."""

    __slots__ = ("holder", "home", "job", "message", "outbox", "pool", "proc", "receiver", "record", "unheld", "why")

    def __init__(self, message: m.ActorCreate, pool: int, holder: int, job: bytes) -> None:
        self.record = m.encode(message._replace(request=0))
        """What it is made from, until it will not be made again."""
        self.message = message._replace(frame=b"", setup=b"")
        self.job = job
        self.unheld = False
        """A detached one that nobody holds."""
        self.pool = pool
        """Its pool in the scheduler."""
        self.holder = holder
        """As which the node holds what its first frame refers to."""
        self.proc: Proc | FarProcess | None = None
        self.home: socket.socket | None = None
        """To its process."""
        self.receiver: wire.Receiver | None = None
        self.outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.why = ""
        """What a caller had its process killed for."""


class _Claim:
    """An actor that is made when the control store knows it, and, if it has a name, that this is ours."""

    __slots__ = ("message", "number", "pid", "reply", "until")

    def __init__(self, message: m.ActorCreate, pid: int, reply: Reply, until: float) -> None:
        self.message = message
        self.pid = pid
        self.reply = reply
        self.until = until
        """When whoever asked is told that it was not made."""
        self.number = 0
        """The recorder's, of the question to the store; 0: not asked yet."""


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
        self._claims: dict[str, deque[_Claim]] = {}
        """The first of each name has been asked for; the others are looked at when that is answered."""
        self._detached: dict[bytes, None] = {}
        """Those that are not dead."""
        self._holders = -(1 << 40)
        self.foreign = ForeignActors(node)
        node._do(s.ClientJoined(0))  # the node itself

    # -- what processes say

    def create(self, message: m.ActorCreate, pid: int, reply: Reply) -> None:
        """Make an actor for a process, which then holds it; the reply names what it got: another's, or none, if the
        name is taken.
        """
        self._create_or_wait(_Claim(message, pid, reply, monotonic() + self._node.config.gcs_timeout_s))

    def _create_or_wait(self, claim: _Claim) -> None:
        message = claim.message
        taken = self.machine.names.get(message.name) if message.name else None
        if taken is not None:
            found = self._actors[taken] if message.exists_ok else None
            if found is not None:
                found.unheld = False
            meta = found.message.meta if found is not None else b""
            claim.reply(m.ActorFound(message.request, taken if found else b"", meta, ""))
        elif message.name in self._claims:
            self._claims[message.name].append(claim)
        elif (message.name or message.detached) and self._node.shares_store():
            self._claim(claim)
        else:
            self._create(claim)

    def _create(self, claim: _Claim) -> None:
        message = claim.message
        self._holders -= 1
        pool = self._node.new_pool(message.setup, self, claim.pid)
        actor = self._actors[message.actor] = _Actor(message, pool, self._holders, self._job_of(claim))
        self._by_pool[pool] = message.actor
        self._node.store().hold(message.keep, actor.holder)
        claim.reply(m.ActorFound(message.request, message.actor, b"", ""))
        if message.detached:
            self._detached[message.actor] = None
            self._tell_stays()
        driver = self._node.driver_of(claim.pid)
        owner = 0 if message.detached or driver is None else driver.number
        self._do(a.Create(message.actor, message.name, message.restarts, owner))

    def _tell_stays(self) -> None:
        """Programs with no other use for the node stay for detached actors."""
        for client in list(self._node._clients.values()):
            if client.driver and client.hello is not None:
                self._node._send(client, m.Notice("stays", "yes" if self._detached else ""))

    def find(self, message: m.ActorFind, pid: int, reply: Reply) -> None:
        """The actor of that name, on whichever machine; the reply may take a while."""

        def answer(actor: bytes, meta: bytes, why: str) -> None:
            reply(m.ActorFound(message.request, actor, meta, why))

        actor = self.machine.names.get(message.name)
        if actor is not None:
            self._actors[actor].unheld = False
            answer(actor, self._actors[actor].message.meta, "")
        elif self._node._abroad is not None:
            self.foreign.find(message.name, pid, answer)
        else:
            answer(b"", b"", "")

    def lives(self, actor: bytes) -> bool:
        """Whether another machine can take hold of it now."""
        known = self._actors.get(actor)
        if known is None or self.machine.actors[actor].state in (a.LEAVING, a.DEAD):
            return False
        known.unheld = False
        return True

    def kill(self, actor: bytes, restart: bool, why: str) -> None:
        if actor in self._actors:
            self._do(a.Kill(actor, restart, _cause(why)))
        elif self.foreign.foreign(actor):
            self._node.tell_gateway(m.ActorKill(actor, restart, why))

    def connect(self, client: Client, message: m.ConnectActor) -> None:
        if message.actor not in self._actors and self.foreign.foreign(message.actor):
            self.foreign.connect(client, message)
            return
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
        else:
            self.foreign.disconnect(client, pool)

    def client_left(self, client: Client, was_driver: bool) -> None:
        """Its links are gone; so are a program's actors."""
        for pool in [pool for number, pool in self._numbers if number == client.number]:
            self.disconnect(client, pool)
        self.foreign.client_left(client)
        if was_driver:
            self._do(a.OwnerLeft(client.number, _cause("the program that made it has ended")))

    def program_ended(self, job: bytes) -> None:
        """A program on another machine has ended: so do the actors that its tasks have made here."""
        for name, actor in list(self._actors.items()):
            if actor.job == job and not actor.message.detached and self.machine.actors[name].state != a.DEAD:
                self._do(a.Kill(name, False, _cause("the program that made it has ended, or is on a lost machine")))

    def signal(self, client: Client, message: m.KillWorker) -> bool:
        """A caller wants its actor's process to get a signal; False if this is no link."""
        link = self._numbers.get((client.number, message.pool))
        if link is None:
            return self.foreign.signal(client, message)
        actor = self._actors.get(self._callers[link][2])
        if actor is not None and actor.proc is not None:
            if message.why:
                actor.why = message.why[:MOST_WHY]
                self._log("actor.refused", actor=actor.message.actor.hex(), caller=client.number, why=actor.why)
            if isinstance(actor.proc, FarProcess):
                self._node.tell_gateway(m.RemoteSignal(actor.proc.worker, message.signal, link))
            else:
                self._node._signal(actor.proc, message.signal)
        return True

    def freed(self, obj: bytes) -> bool:
        """Nobody holds this id any more: was it an actor's?"""
        actor = self._actors.get(obj)
        if actor is None:
            return False
        actor.unheld = True
        if not actor.message.detached or self.machine.actors[obj].state == a.DEAD:
            self._do(a.Freed(obj))
        return True

    def last_words(self) -> str:
        """What the program should know whose node ends now; "" if there is nothing."""
        living = [name for name in self._detached if self.machine.actors[name].state != a.LEAVING]
        left = [repr(self._actors[name].message.name or name.hex()[:12]) for name in living]
        if not left:
            return ""
        which = f"detached actor{'s' * (len(left) > 1)} {', '.join(left)}"
        return f"{which}: ended with this program, and with the node, which this program had started"

    def living(self) -> int:
        """Actors that are not dead: the node stays for them."""
        return self.machine.living()

    def somebody_waits(self) -> bool:
        """For an actor that is made when the control store has answered: the node stays for that, too."""
        return bool(self._claims) or self.foreign.waits()

    # -- what the scheduler says

    def granted_far(self, pool: int, shape: m.Shape, up: m.RemoteUp, fds: list[int]) -> FarProcess:
        """A process for an actor on another machine."""
        ours, theirs, page = fds
        fds.clear()
        for fd in (theirs, page):  # nothing that we send is ever taken back
            os.close(fd)
        proc = FarProcess(pool, up, socket.socket(fileno=ours))
        self.granted(s.Grant(NODE_CLIENT, pool, up.worker, shape, ()), proc)
        return proc

    def granted(self, order: s.Grant, proc: Proc | FarProcess) -> None:
        """A process for an actor: it gets its first frame."""
        name = self._by_pool[order.pool]
        if proc.failed or not self._wanted(name):
            return
        actor = self._actors[name]
        actor.proc = proc
        actor.home = proc.take_lessee_socket()
        proc.granted = True
        actor.receiver = wire.Receiver(actor.home)
        self._node._on(actor.home.fileno(), partial(self._answered, name))
        self._do(a.Granted(name, order.worker))
        gpus = proc.gpus if isinstance(proc, FarProcess) else self._node.gpu_names(order.gpus)
        env = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        if any(key == "num_cpus" for key, _ in order.shape):
            env["\0cpus"] = "1"
        env["\0actor"] = name.hex()
        message = m.decode(actor.record)
        items, number, call = pickle.loads(message.frame)
        frame: tuple[Any, ...] = (0, ACTOR, (items, [], env), number, [call])
        if isinstance(proc, FarProcess) and message.keep:
            frame += (([], message.keep, [call[0]] if type(call) is list else []),)
        self._say(actor, frame)

    def infeasible(self, pool: int, text: str) -> None:
        """This machine cannot hold the actor, and nobody wants to wait for one that can."""
        name = self._by_pool.get(pool)
        if name is not None:
            self._do(a.Kill(name, False, pickle.dumps((text, INFEASIBLE))))

    def died(self, pool: int, proc: Proc | FarProcess) -> None:
        """An actor's process is gone (or none could be started)."""
        name = self._by_pool.get(pool)
        if name is None or not self._wanted(name):
            return
        actor = self._actors[name]
        if actor.home is not None:
            self._last_word(name)
        if actor.home is None:  # it never got as far: count it as one that died while it started
            self._do(a.Granted(name, proc.worker))
        self._close_home(actor)
        why = actor.why and f", {FOR_CALLER}{actor.why}"
        self._do(a.WorkerDied(name, cause_of(proc, why)))
        actor.proc, actor.why = None, ""

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
            self.kill(name, False, f"it sent a malformed message ({error!r})")
            return
        failure = answer[3][0]
        if answer[0] == LEFT:
            self._do(a.Left(name, _cause("it ended itself (exit_actor)")))
            return
        if failure is None:
            self._do(a.Constructed(name))
            return
        data = failure[1][0] if type(failure[1]) is tuple else failure[1]
        self._do(a.Failed(name, pickle.dumps(("its constructor raised", data))))

    def _last_word(self, name: bytes) -> None:
        """That it ended by itself may not have been read yet."""
        if self.machine.actors[name].state == a.ALIVE:
            self._answered(name, 0)

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

    # -- the control store

    def _job_of(self, claim: _Claim) -> bytes:
        """Of the program that an actor belongs to, which may run on another machine."""
        if self._node._abroad is not None:
            setup: m.Setup = pickle.loads(claim.message.setup)
            return setup.job
        driver = self._node.driver_of(claim.pid)
        return driver.hello.job if driver is not None and driver.hello is not None else b""

    def record_all(self) -> None:
        """There is somebody now who writes it down."""
        for name in self.machine.actors:
            self._record(name)

    def _record(self, name: bytes) -> None:
        records, known = self._node._records, self.machine.actors.get(name)
        if records is None:
            return
        if known is None:
            records.forget_actor(name)
            return
        actor = self._actors[name]
        again = known.restarts_done > 0 and known.state in (a.WAITING, a.STARTING)
        row = _row(actor.message, self._node.node_id, actor.job)._replace(
            state="restarting" if again else known.state,
            restarts=known.restarts_done,
            cause=pickle.loads(known.cause)[0] if known.cause else "",
            creation=actor.record,
        )
        records.actor(row)
        if known.state == a.DEAD:
            records.actor_died(row)

    def _claim(self, claim: _Claim) -> None:
        """Have the store know the actor, and tell who has its name."""
        message = claim.message
        records = self._node.records()
        key = message.name or message.actor.hex()
        self._claims.setdefault(key, deque()).appendleft(claim)
        creation = m.encode(message._replace(request=0))
        records.actor(_row(message, self._node.node_id, self._job_of(claim))._replace(creation=creation))
        claim.number = records.confirm(message.name, partial(self._claimed, key, claim))
        self._node._at(claim.until, partial(self._claim_failed, key, claim))

    def _claimed(self, key: str, claim: _Claim, owner: bytes) -> None:
        """The store has the row, and this node has the name, or another one."""
        message = claim.message
        claim.number = 0
        self._claims[key].popleft()
        if owner != self._node.node_id and message.name:
            self._node.records().forget_actor(message.actor)
            self._named_elsewhere(claim)
        elif self._node.lives(claim.pid) and self._node.driver_of(claim.pid) is not None:
            self._create(claim)
        else:
            self._node.records().forget_actor(message.actor)
        self._go_on(key)

    def _named_elsewhere(self, claim: _Claim) -> None:
        """Another node's actor has the name."""
        message = claim.message

        def answer(actor: bytes, meta: bytes, why: str) -> None:
            name = message.name.partition("\0")[0]
            lost = f"the actor of the name {name!r} is on another node, which cannot be reached from here"
            why = why or ("" if actor else lost)
            claim.reply(m.ActorFound(message.request, actor, meta, why))

        if message.exists_ok:
            self.foreign.find(message.name, claim.pid, answer)
        else:
            claim.reply(m.ActorFound(message.request, b"", b"", ""))

    def _claim_failed(self, key: str, claim: _Claim) -> None:
        """Its time is over."""
        if not claim.number:
            return
        message, records = claim.message, self._node.records()
        records.give_up(claim.number)
        records.forget_actor(message.actor)
        self._claims[key].popleft()
        what = f"the actor {message.name!r}" if message.name else "the detached actor"
        claim.reply(
            m.ActorFound(
                message.request,
                b"",
                b"",
                f"{what} was not made: the control store (DPOOL_REDIS_URL) has not answered within "
                f"{self._node.config.gcs_timeout_s:g} s, and only it knows what other nodes have"
                f"{': ' * bool(records.trouble)}{records.trouble}. Try again when it is there; actors without a name "
                "can be made meanwhile. DPOOL_GCS_TIMEOUT_S changes the time",
            )
        )
        self._go_on(key)

    def _go_on(self, key: str) -> None:
        """Those who wanted the same name."""
        for claim in self._claims.pop(key):
            self._create_or_wait(claim)
        self._node.store_idle()

    # -- what the machine decides

    def _do(self, event: Any) -> None:
        for instruction in self.machine.handle(event):
            self._INSTRUCTIONS[type(instruction)](self, instruction)
        moved, self.machine.moved = self.machine.moved, {}
        for name in moved:
            self._settle(name)
            self._record(name)

    def _settle(self, name: bytes) -> None:
        """What will not be constructed again needs nothing for it."""
        known = self.machine.actors.get(name)
        actor = self._actors.get(name)
        if known is not None and actor is not None and actor.record and not known.may_start():
            actor.record = b""
            self._node.store().let_go_all(actor.holder)

    def _lease(self, order: a.Lease) -> None:
        if order.after_s:
            self._log("actor.pauses", actor=order.actor.hex(), seconds=order.after_s)
            self._node._at(monotonic() + order.after_s, partial(self._lease_now, order.actor))
        else:
            self._lease_now(order.actor)

    def _lease_now(self, name: bytes) -> None:
        known = self.machine.actors.get(name)
        if known is None or known.state != a.WAITING:  # it was given up meanwhile
            return
        actor = self._actors[name]
        shape = actor.message.shape
        if not shape and self._node._abroad is not None and self._crowded():
            shape = ((SPREAD, UNIT),)
        self._node.ask_for(s.RequestLeases(actor.pool, shape, 1))

    def _crowded(self) -> bool:
        """Whether there are more actors here than CPUs: those that ask for nothing then go to other machines, too."""
        here = sum(isinstance(actor.proc, Proc) for actor in self._actors.values())
        return here * UNIT >= self._node.resources().get(CPUS, (0, 0))[0]

    def _give_up(self, order: a.GiveUp) -> None:
        actor = self._actors[order.actor]
        self._node._closing_abroad(actor.pool, True)
        self._node.ask_for(s.ClosePool(actor.pool, True))
        if order.actor in self._detached:
            del self._detached[order.actor]
            self._tell_stays()
        if actor.unheld and actor.message.detached:
            self._node._soon.append(partial(self._forget_unheld, order.actor))

    def _forget_unheld(self, name: bytes) -> None:
        """A dead detached actor, unless somebody has got hold of it."""
        actor = self._actors.get(name)
        if actor is not None and actor.unheld and self.machine.actors[name].state == a.DEAD:
            self._do(a.Freed(name))

    def _link(self, order: a.Link) -> None:
        actor = self._actors[order.actor]
        client, pool, _ = self._callers[order.caller]
        assert actor.proc is not None
        if isinstance(actor.proc, FarProcess) and self._node._abroad.gateway is client:
            self._node.tell_gateway(m.RemoteVisitor(pool, actor.proc.worker, order.caller))
            return
        try:
            ours, theirs, page, copy = _link_fds()
        except OSError as error:
            self._log("actor.link_failed", error=error)
            self._node._at(monotonic() + 1.0, partial(self._link_again, order))
            return
        if isinstance(actor.proc, FarProcess):
            mark_far(page)
        with ours, theirs:
            self._node._send(
                client,
                m.Grant(pool, actor.proc.worker, (), (), True, actor.proc.log_file),
                (ours.fileno(), theirs.fileno(), page),
            )
            self._node._send(client, m.WorkerUp(pool, actor.proc.worker, actor.proc.pid, 0))
            pid = client.hello.pid if client.hello is not None else 0
            self._say(actor, (0, LINK, pid, order.caller, []), (copy, page))

    def _link_again(self, order: a.Link) -> None:
        known = self.machine.actors.get(order.actor)
        if known is not None and order.caller in known.linked:
            self._link(order)

    def _tell_lost(self, order: a.TellLost) -> None:
        client, pool, _ = self._callers[order.caller]
        actor = self._actors[order.actor]
        proc = actor.proc
        assert proc is not None
        reason = proc.reason or (actor.why and FOR_CALLER + actor.why)
        host = ""
        if isinstance(proc, FarProcess):
            reason, host = proc.failed or reason, proc.host
        reason = AGAIN * order.again + reason
        self._node._send(client, m.WorkerDied(
            pool, proc.worker, proc.pid, proc.end_signal, proc.end_code, reason, proc.log_file, False, host
        ))  # fmt: skip

    def _tell_dead(self, order: a.TellDead) -> None:
        known = self._callers.pop(order.caller, None)
        if known is not None:
            client, pool, _ = known
            self._numbers.pop((client.number, pool), None)
            self._node._send(client, m.ActorGone(pool, order.cause))

    def _kill_worker(self, order: a.KillWorker) -> None:
        proc = self._actors[order.actor].proc
        if isinstance(proc, FarProcess):
            self._node.tell_gateway(m.RemoteSignal(proc.worker, signal.SIGKILL))
        elif proc is not None:
            self._node.ask_for(s.KillRequested(proc.pool, proc.worker))

    def _leave(self, order: a.Leave) -> None:
        self._say(self._actors[order.actor], (0, EXIT, 0, 0, []))

    def _forget(self, order: a.Forget) -> None:
        actor = self._actors.pop(order.actor)
        self._close_home(actor)

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


def _link_fds() -> tuple[socket.socket, socket.socket, int, int]:
    """A socket pair, a page, and the second socket once more. OSError if there are not enough descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        page = make_page()
        try:
            return ours, theirs, page, os.dup(theirs.fileno())
        except OSError:
            os.close(page)
            raise
    except OSError:
        ours.close()
        theirs.close()
        raise


def _row(message: m.ActorCreate, node_id: bytes, job: bytes) -> ActorRow:
    """An actor that has just been asked for, without what it is made from."""
    from dpool._gcs.tables import ActorRow  # not before the first worker is on its way

    return ActorRow(
        message.actor,
        job,
        node_id,
        message.name,
        message.detached,
        tuple((str(name), int(amount)) for name, amount in message.shape),
        message.restarts,
        keep=tuple(message.keep),
        meta=message.meta,
    )


def _cause(text: str) -> bytes:
    return pickle.dumps((text, None))
