"""The node's side of other machines: which leases are asked of whom, and what becomes of them.

```
 the scheduler's queue ─ could_go ─► decide ─► RemoteLease ─► the gateway ─► … another machine
                                                                         │
 client ◄─ Grant (socket, page) ◄─ RemoteUp ◄────────────────────────────┤
 client ◄─ WorkerDied ◄─────────── RemoteDied, once for each ◄───────────┤
 the queue again ◄──────────────── RemoteRefused ◄───────────────────────┘
```

The gateway is the program that started this node, and a client like others. Runs in the node's loop; made when the
gateway says Hello.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core.ids import tag_of
from dpool._core.logic import scheduler as s
from dpool._core.logic.placement import Cluster, Load, average
from dpool._core.logic.places import HOME, NODE, needs
from dpool._core.logic.resources import CPUS, UNIT, Shape, describe
from dpool._core.logic.spilling import Asked, decide
from dpool._core.node_about import NodeAbout
from dpool._core.node_health import Health

if TYPE_CHECKING:
    from dpool._core.node import Client, Node
    from dpool._core.node_actors_abroad import FarProcess

HERE = b""
ACTORS = 0
"""The group of all actors' pools; no pool has this number."""
REFUSED_S = 0.05
"""A machine that refused is not asked again before then; its next heartbeat will say why."""
INFEASIBLE_S = 1.0
"""After so long it is said that no machine has what is asked for: those that have just joined are known by then."""


class _Lease:
    """One lease of another machine's worker."""

    __slots__ = ("granted", "group", "host", "needs", "node", "pool", "proc", "returned", "shape", "worker")

    def __init__(self, worker: int, pool: int, group: int, node: bytes, shape: m.Shape, takes: m.Shape) -> None:
        self.worker = worker
        self.pool = pool
        self.group = group
        self.node = node
        self.shape = shape
        self.needs = takes
        """What it takes over there."""
        self.granted = False
        self.returned = False
        self.host = ""
        self.proc: FarProcess | None = None
        """It is an actor's."""


class NodeAbroad:
    """See the module."""

    def __init__(self, node: Node, gateway: Client, log: Callable[..., None]) -> None:
        self._node = node
        self.gateway = gateway
        self._log = log
        self._leases: dict[int, _Lease] = {}
        self._asked = Asked()
        """The same, by group of pools."""
        self._hosts: dict[bytes, str] = {}
        self._refused: dict[bytes, float] = {}
        self._reported: m.LoadReport | None = None
        self.cluster = Cluster(HERE, salt=node.session.encode())
        self.store_at: m.StoreAt | None = None
        """Where the control store is, once the gateway has said it."""
        self.health = Health(node, self._hosts, log)
        self.about = NodeAbout(node, self)
        self.went: dict[int, set[bytes]] = {}
        """Pool → the machines on which it has, or had, workers."""
        self._considering = False
        self._numbers = 0
        self._pace = (0.0, 0.0)
        """Mean seconds of a task, mean bytes per second received."""
        self._cpus = 0
        """What the programs here were told of the cluster's."""
        self.name: bytes = node.node_id
        self._homes = {self.name.hex(): HERE, tag_of(node.session).hex(): HERE}
        """What wishes call the machines."""
        node.scheduler.settled.add(gateway.number)
        node.resources()
        node._do(s.Offer(f"{NODE}{self.name.hex()}"))
        node._do(s.Offer(f"{HOME}{tag_of(node.session).hex()}"))

    # -- who goes where

    def consider(self) -> None:
        """Ask other machines for what waits here; to be called when something has changed. Not from within the
        scheduler's instructions: it is done a moment later.
        """
        if self._hosts and not self._considering:
            self._considering = True
            self._node._soon.append(self._consider)

    def _consider(self) -> None:
        self._considering = False
        scheduler = self._node.scheduler
        waiting = scheduler.could_go()
        if not waiting:
            return
        self.cluster.heard(self._own_load())
        now = monotonic()
        self._refused = {name: until for name, until in self._refused.items() if until >= now}
        usable = {HERE, *self._hosts} - self._refused.keys()
        nowhere: set[tuple[int, m.Shape]] = set()
        for pool, shape, count in waiting:
            group = self._group(pool)
            if (group, shape) in nowhere:
                continue
            ours = self._ours(pool, group)
            takes = needs(shape)
            for _ in range(count):
                self._numbers += 1
                decision = decide(self.cluster, self._numbers.to_bytes(8, "big"), shape, usable, ours, self._homes)
                if decision is None and scheduler.draining and not self.feasible_elsewhere(takes):
                    self._stays(pool, shape, False)
                    continue
                if decision is None:
                    nowhere.add((group, shape))
                    break
                if decision.node != HERE and not scheduler.has_room(pool):
                    break
                takes = () if decision.bare else takes
                if decision.node == HERE:
                    ours[HERE].append(takes)
                    self._stays(pool, shape, decision.bare)
                else:
                    self._send_abroad(pool, group, shape, takes, decision.node)
                    ours[decision.node] = self._asked.at(group, decision.node)

    def _group(self, pool: int) -> int:
        """All actors are placed as if they were of one pool."""
        return pool if self._node._pools[pool].actors is None else ACTORS

    def _ours(self, pool: int, group: int) -> dict[bytes, list[Shape]]:
        """Machine → what the group of that pool has been leased there, or has asked for."""
        node = self._node
        pools = {pool}
        if group == ACTORS:
            pools = {number for number, one in node._pools.items() if one.actors is not None}
        found = self._asked.of(group)
        known = [node.scheduler.pools[number] for number in pools if number in node.scheduler.pools]
        workers = (worker for one in known for worker in one.workers.values())
        found[HERE] = [worker.lease for worker in workers if worker.lease is not None]
        return found

    def _stays(self, pool: int, shape: m.Shape, bare: bool) -> None:
        """It begins here, or waits here."""
        self._node._do(s.StaysHere(pool, shape, bare))
        self.cluster.heard(self._own_load())

    def _send_abroad(self, pool: int, group: int, shape: m.Shape, takes: m.Shape, node: bytes) -> None:
        worker = self._node.scheduler.new_worker()
        self._node._do(s.WentAbroad(pool, shape, worker))
        self.went.setdefault(pool, set()).add(node)
        self.cluster.placed(node, takes)
        self._leases[worker] = _Lease(worker, pool, group, node, shape, takes)
        self._asked.add(group, node, takes)
        known = self._node._pools[pool]
        hello = known.client.hello
        assert hello is not None
        job = b"" if hello.worker else hello.job
        direct = known.actors is None
        self._tell(m.RemoteLease(worker, node, pool, known.setup, takes, hello.pid, job, direct))

    def feasible_elsewhere(self, shape: m.Shape) -> bool:
        """Whether another machine has that in total."""
        return any(name != HERE for name in self.cluster.feasible(needs(shape)))

    def infeasible(self, order: s.WarnInfeasible, tell: Callable[[str], None]) -> None:
        """This machine has not what is asked for. If none has, that is told a little later, when all are known."""
        self._node._at(monotonic() + INFEASIBLE_S, partial(self._still_infeasible, order, tell))

    def _still_infeasible(self, order: s.WarnInfeasible, tell: Callable[[str], None]) -> None:
        waits = any(r.pool.number == order.pool and r.shape == order.shape for r in self._node.scheduler.queue)
        if not waits or self.feasible_elsewhere(order.shape):
            return
        self.cluster.heard(self._own_load())
        missing = [name for name in self.cluster.missing(needs(order.shape)) if "|" not in name]
        which = f"no machine of the cluster has so much {', '.join(missing)}" if missing else (
            "no machine of the cluster has all of that"
        )  # fmt: skip
        tell(f"asks for {describe(order.shape)}, but {which}")

    def _own_load(self) -> Load:
        report = self._report()
        self._numbers += 1
        return Load(
            HERE, self._numbers, report.total, report.free, report.waiting, report.task_s, report.bytes_per_s, {},
            report.draining,
        )  # fmt: skip

    def _report(self) -> m.LoadReport:
        resources = self._node.resources()
        total = {name: amount for name, (amount, _) in resources.items()}
        free = {name: amount for name, (_, amount) in resources.items()}
        scheduler = self._node.scheduler
        task_s, bytes_per_s = (float(f"{value:.2g}") for value in self._pace)
        takes_none = scheduler.draining or self._node.config.client
        return m.LoadReport(total, free, scheduler.waiting(), task_s, takes_none, bytes_per_s)

    def pace(self, message: m.Pace) -> None:
        """Somebody has measured."""
        task_s, bytes_per_s = self._pace
        self._pace = (
            average(task_s, message.task_s) if message.task_s else task_s,
            average(bytes_per_s, message.bytes_per_s) if message.bytes_per_s else bytes_per_s,
        )

    def _tell_size(self) -> None:
        """The programs here hear how many CPUs the cluster has, if that has changed."""
        own = self._node.resources().get(CPUS, (0, 0))[0]
        cpus = own + sum(view.load.total.get(CPUS, 0) for name, view in self.cluster.nodes.items() if name != HERE)
        if cpus // UNIT != self._cpus:
            self._cpus = cpus // UNIT
            for client in list(self._node._clients.values()):
                self.greet(client)

    def greet(self, client: Client) -> None:
        """What a program has to know of the cluster."""
        if client is not self.gateway and client.hello is not None:
            self._node._send(client, m.ClusterSize(self._cpus))

    def machines(self) -> list[tuple[str, str, dict[str, int], dict[str, int], bool]]:
        """Name, host, what there is, what is free, whether it is being drained; this one first."""
        own = self._report()
        found = [(self.name.hex(), self._node.host(), dict(own.total), dict(own.free), own.draining)]
        for name, view in self.cluster.nodes.items():
            if name in self._hosts:
                load = view.load
                found.append((name.hex(), self._hosts[name], dict(load.total), dict(load.free), load.draining))
        return found

    def frees(self) -> dict[bytes, dict[str, int]]:
        """What is free on each machine that takes anything, as far as it is known here."""
        self.cluster.heard(self._own_load())
        known = {name: view.load for name, view in self.cluster.nodes.items() if name == HERE or name in self._hosts}
        return {name: dict(load.free) for name, load in known.items() if not load.draining}

    def to_peer(self, node: bytes, message: Any) -> None:
        """Say something to the node of another machine."""
        self._tell(m.ToPeer(node, m.encode(message)))

    def to_all_peers(self, message: Any) -> None:
        """To each of them."""
        for node in self._hosts:
            self.to_peer(node, message)

    def _from_peer(self, message: m.FromPeer, fds: list[int]) -> None:
        if message.node in self._hosts:
            self._node.groups().peer_said(message.node, m.decode(message.data))

    # -- leaving the cluster

    def drain(self, name: bytes) -> None:
        """A machine of the cluster is to leave when what runs there has ended."""
        if name != self.name:
            self._tell(m.Drain(name))
            return
        if not self._node.scheduler.draining:
            self._log("node.drains")
            self._node.scheduler.drain()
            self._tell(m.Drain(b""))
            self.consider()
            self._drained()

    def _drained(self) -> None:
        """End when nothing is left."""
        node = self._node
        programs = any(pool.actors or not self._is_workers(pool.client) for pool in node._pools.values())
        leases = self._leases or any(worker.lease is not None for worker in node.scheduler.workers.values())
        waiting = (node._pools.get(request.pool.number) for request in node.scheduler.queue)
        if programs or leases or any(pool is not None and pool.client is not self.gateway for pool in waiting):
            node._at(monotonic() + node.config.heartbeat_s, self._drained)
        else:
            self._tell(m.Leave(self._heirs()))

    def _is_workers(self, client: Client) -> bool:
        """Whether a pool is of a worker, which may keep it when its tasks have ended, or of a submitter elsewhere."""
        return client is self.gateway or (client.hello is not None and client.hello.worker > 0)

    def _heirs(self) -> list[bytes]:
        """Machines that could take over what others hold of our objects: those with the most room come first."""
        loads = {name: self.cluster.nodes[name].load for name in self._hosts if name in self.cluster.nodes}
        room = {name: self.about.room(name) for name, load in loads.items() if not load.draining}
        return sorted(room, key=lambda name: (-room[name], name))

    def unmoved(self, message: m.Unmoved) -> None:
        """We are about to leave, and this is lost."""
        self.about.unmoved = message.text

    def report(self) -> None:
        """Tell the others how it is here; every so often."""
        report = self._report()
        if report != self._reported:
            self._reported = report
            self._tell(report)
        self.health.beat(report)
        self.about.beat()
        self._tell_size()
        self._node._at(monotonic() + self._node.config.heartbeat_s, self.report)
        self.consider()

    # -- what the gateway says

    def said(self, message: Any, fds: list[int]) -> bool:
        """Deal with a message of the gateway's; False if it is none of these."""
        handler = self._MESSAGES.get(type(message))
        if handler is None:
            return False
        handler(self, message, fds)
        return True

    def _up(self, message: m.RemoteUp, fds: list[int]) -> None:
        lease = self._leases.get(message.worker)
        if lease is None:
            self._node.actors().foreign.up(message, fds)
            return
        lease.host = message.host
        pool = self._node._pools.get(lease.pool)
        if pool is None or lease.returned:
            self._tell(m.RemoteEnd(lease.worker, False))
            return
        lease.granted = True
        if pool.actors is not None:
            lease.proc = pool.actors.granted_far(lease.pool, lease.shape, message, fds)
            return
        grant = m.Grant(pool.number, lease.worker, lease.shape, message.gpus, True, message.log_file, message.key)
        self._node._send(pool.client, grant, tuple(fds))
        self._node._send(pool.client, m.WorkerUp(pool.number, lease.worker, message.pid, 0))

    def _forget(self, worker: int) -> _Lease | None:
        """The lease has ended, or could not be had."""
        lease = self._leases.pop(worker, None)
        if lease is not None:
            self._asked.remove(lease.group, lease.node, lease.needs)
        return lease

    def _refusal(self, message: m.RemoteRefused, fds: list[int]) -> None:
        lease = self._forget(message.worker)
        if lease is not None:
            self._log("abroad.refused", host=self._hosts.get(lease.node), reason=message.reason)
            self._refused[lease.node] = monotonic() + REFUSED_S
            self._node._do(s.BackFromAbroad(lease.pool, lease.worker, not lease.returned))
            self.consider()

    def _died(self, message: m.RemoteDied, fds: list[int]) -> None:
        lease = self._forget(message.worker)
        if lease is None:
            self._node.actors().foreign.died(message)
            return
        pool = self._node._pools.get(lease.pool)
        if pool is not None and lease.proc is not None:
            lease.proc.ended(message)
            pool.actors.died(lease.pool, lease.proc)
        elif pool is not None and lease.granted:
            self._node._send(pool.client, m.WorkerDied(
                pool.number, lease.worker, message.pid, message.signal, message.exit_code, message.reason,
                message.log_file, host=lease.host,
            ))  # fmt: skip
        self._node._do(s.BackFromAbroad(lease.pool, lease.worker, not lease.granted and not lease.returned))

    def _output(self, message: m.RemoteOutput, fds: list[int]) -> None:
        pool = self._node._pools.get(message.pool)
        if pool is not None:
            self._node._send(pool.client, m.Output(message.stream, message.data, pool.number))

    def _peer_up(self, message: m.PeerUp, fds: list[int]) -> None:
        self._hosts[message.node] = message.host
        self._homes[message.node.hex()] = message.node
        self._node.scheduler.choosy = True
        self._log("peer.up", host=message.host)

    def _peer_down(self, message: m.PeerDown, fds: list[int]) -> None:
        host = self._hosts.pop(message.node, "")
        self.cluster.gone(message.node)
        self.about.gone(message.node)
        self._homes = {home: node for home, node in self._homes.items() if node != message.node}
        if not self._hosts:
            self._node.scheduler.choosy = False
            self._node._do(s.Tick(monotonic()))
        self._node.groups().peer_down(message.node)
        self._tell_size()
        self._log("peer.down", host=host, reason=message.reason)
        self.health.suspect(message.node, host, message.reason)

    def _program_ended(self, message: m.ProgramEnded, fds: list[int]) -> None:
        """One of another machine: nothing is kept here for its tasks."""
        if self._node._actors is not None:
            self._node._actors.program_ended(message.job)
        if self._node._records is not None:
            self._node._records.job_left(message.job)

    def _store_at(self, message: m.StoreAt, fds: list[int]) -> None:
        """The control store of the cluster is there, or there is none."""
        node = self._node
        self.store_at = message
        if not message.session:
            node.config = node.config._replace(gcs="off")
        elif (records := node.records()) is not None:
            records.start()

    def store_connected(self, path: str, user: str, password: str) -> None:
        """The store answers; it is this machine's if it has a path."""
        if path:
            self._tell(m.StoreServer(path, user, password))

    def _far_ended(self, message: m.FarEnded, fds: list[int]) -> None:
        """A process of another machine, which had locks or queues of ours, perhaps."""
        if self._node._sync is not None:
            self._node._sync.far_ended(message.pid)

    def _peer_load(self, message: m.PeerLoad, fds: list[int]) -> None:
        load = Load(*message.load)
        if load.node in self._hosts:
            self.cluster.heard(load)
            self._homes.update({name[len(HOME) :]: load.node for name in load.total if name.startswith(HOME)})
            self._tell_size()
            self._node.groups().look()
            self.consider()

    _MESSAGES: dict[type[Any], Callable[[Any, Any, list[int]], None]] = {  # noqa: RUF012
        m.RemoteUp: _up,
        m.RemoteRefused: _refusal,
        m.RemoteDied: _died,
        m.RemoteOutput: _output,
        m.PeerUp: _peer_up,
        m.PeerDown: _peer_down,
        m.PeerLoad: _peer_load,
        m.FromPeer: _from_peer,
        m.Pace: lambda self, message, fds: self.pace(message),
        m.Unmoved: lambda self, message, fds: self.unmoved(message),
        m.FarEnded: _far_ended,
        m.StoreAt: _store_at,
        m.ProgramEnded: _program_ended,
        m.RemoteGone: lambda self, message, fds: self._node.actors().foreign.gone(message),
        m.RemoteFound: lambda self, message, fds: self._node.actors().foreign.taken(message),
        m.PeerAbout: lambda self, message, fds: self.about.heard(message),
        m.OutputAbroadTold: lambda self, message, fds: self.about.output_told(message.number),
    }

    # -- what submitters say

    def returned(self, worker: int, retire: bool) -> bool:
        """A submitter returns a lease; False if it is none of these."""
        lease = self._leases.get(worker)
        if lease is None:
            return False
        if not lease.returned:
            lease.returned = True
            self._tell(m.RemoteEnd(worker, retire))
        return True

    def signal(self, worker: int, number: int) -> bool:
        """A submitter wants a worker to get a signal; False if it is none of these."""
        if worker not in self._leases:
            return False
        self._tell(m.RemoteSignal(worker, number))
        return True

    def cancelled(self, pool: int, shape: m.Shape) -> None:
        """Leases of this shape that have not been given are not wanted any more."""
        for lease in list(self._leases.values()):
            if lease.pool == pool and lease.shape == shape and not lease.granted:
                self.returned(lease.worker, False)

    def pool_closed(self, pool: int, kill: bool) -> None:
        """A pool is closing: its workers elsewhere end."""
        leases = [lease for lease in self._leases.values() if lease.pool == pool]
        for lease in leases:
            if kill and lease.granted:
                self._tell(m.RemoteSignal(lease.worker, signal.SIGKILL))
            elif not lease.granted:
                self.returned(lease.worker, True)
        self._tell(m.RemotePoolClosed(pool, kill))

    def _tell(self, message: Any) -> None:
        self._node._send(self.gateway, message)
