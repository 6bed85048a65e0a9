"""The node's side of other machines: which leases are asked of whom, and what becomes of them.

```
 the scheduler's queue ─ could_go ─► Cluster.choose ─► RemoteLease ─► the gateway ─► … another machine
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
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core.logic import scheduler as s
from dpool._core.logic.placement import Cluster, Load, Task

if TYPE_CHECKING:
    from dpool._core.node import Client, Node

HERE = b""
REPORT_S = 0.1
REFUSED_S = 0.05
"""A machine that refused is not asked again before then; its next heartbeat will say why."""


class _Lease:
    """One lease of another machine's worker."""

    __slots__ = ("granted", "host", "node", "pool", "returned", "shape", "worker")

    def __init__(self, worker: int, pool: int, node: bytes, shape: m.Shape) -> None:
        self.worker = worker
        self.pool = pool
        self.node = node
        self.shape = shape
        self.granted = False
        self.returned = False
        self.host = ""


class NodeAbroad:
    """See the module."""

    def __init__(self, node: Node, gateway: Client, log: Callable[..., None]) -> None:
        self._node = node
        self.gateway = gateway
        self._log = log
        self._leases: dict[int, _Lease] = {}
        self._hosts: dict[bytes, str] = {}
        self._refused: dict[bytes, float] = {}
        self._reported: m.LoadReport | None = None
        self.cluster = Cluster(HERE, salt=node.session.encode())
        self._considering = False
        self._numbers = 0

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
        waiting = self._node.scheduler.could_go(self.gateway.number)
        if not waiting:
            return
        self.cluster.heard(self._own_load())
        now = monotonic()
        usable = [HERE, *(name for name in self._hosts if self._refused.get(name, 0.0) < now)]
        for pool, shape, count in waiting:
            for _ in range(count):
                self._numbers += 1
                task = Task(self._numbers.to_bytes(8, "big"), shape)
                chosen = self.cluster.choose(task, usable)
                if chosen is None or chosen == HERE:
                    break
                if self.cluster.feasible_at(HERE, shape) and not self.cluster.begins_at_once(chosen, shape):
                    break  # it can as well wait here, and go to whoever is free first
                self._send_abroad(pool, shape, chosen)

    def _send_abroad(self, pool: int, shape: m.Shape, node: bytes) -> None:
        worker = self._node.scheduler.new_worker()
        self._node._do(s.WentAbroad(pool, shape, worker))
        self.cluster.placed(node, shape)
        self._leases[worker] = _Lease(worker, pool, node, shape)
        self._tell(m.RemoteLease(worker, node, pool, self._node._pools[pool].setup, shape))

    def feasible_elsewhere(self, shape: m.Shape) -> bool:
        """Whether another machine has that in total."""
        return any(name != HERE for name in self.cluster.feasible(shape))

    def _own_load(self) -> Load:
        report = self._report()
        self._numbers += 1
        return Load(
            HERE, self._numbers, report.total, report.free, report.waiting, report.task_s, 0.0, {}, report.draining
        )

    def _report(self) -> m.LoadReport:
        resources = self._node.resources()
        total = {name: amount for name, (amount, _) in resources.items()}
        free = {name: amount for name, (_, amount) in resources.items()}
        waiting = sum(request.count for request in self._node.scheduler.queue)
        return m.LoadReport(total, free, waiting, 0.0, False)

    def report(self) -> None:
        """Tell the others how it is here; every so often."""
        report = self._report()
        if report != self._reported:
            self._reported = report
            self._tell(report)
        self._node._at(monotonic() + REPORT_S, self.report)
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
            return
        lease.granted, lease.host = True, message.host
        pool = self._node._pools.get(lease.pool)
        if pool is None or lease.returned:
            self._tell(m.RemoteEnd(lease.worker, False))
            return
        grant = m.Grant(pool.number, lease.worker, lease.shape, (), True, message.log_file)
        self._node._send(pool.client, grant, tuple(fds))
        self._node._send(pool.client, m.WorkerUp(pool.number, lease.worker, message.pid, 0))

    def _refusal(self, message: m.RemoteRefused, fds: list[int]) -> None:
        lease = self._leases.pop(message.worker, None)
        if lease is not None:
            self._log("abroad.refused", host=self._hosts.get(lease.node), reason=message.reason)
            self._refused[lease.node] = monotonic() + REFUSED_S
            self._node._do(s.BackFromAbroad(lease.pool, lease.worker, not lease.returned))
            self.consider()

    def _died(self, message: m.RemoteDied, fds: list[int]) -> None:
        lease = self._leases.pop(message.worker, None)
        if lease is None:
            return
        pool = self._node._pools.get(lease.pool)
        if pool is not None and lease.granted:
            self._node._send(pool.client, m.WorkerDied(
                pool.number, lease.worker, message.pid, message.signal, message.exit_code, message.reason,
                message.log_file,
            ))  # fmt: skip
        self._node._do(s.BackFromAbroad(lease.pool, lease.worker, not lease.granted and not lease.returned))

    def _output(self, message: m.RemoteOutput, fds: list[int]) -> None:
        pool = self._node._pools.get(message.pool)
        if pool is not None:
            self._node._send(pool.client, m.Output(message.stream, message.data))

    def _peer_up(self, message: m.PeerUp, fds: list[int]) -> None:
        self._hosts[message.node] = message.host
        self._log("peer.up", host=message.host)

    def _peer_down(self, message: m.PeerDown, fds: list[int]) -> None:
        host = self._hosts.pop(message.node, "")
        self.cluster.gone(message.node)
        self._log("peer.down", host=host, reason=message.reason)

    def _peer_load(self, message: m.PeerLoad, fds: list[int]) -> None:
        load = Load(*message.load)
        if load.node in self._hosts:
            self.cluster.heard(load)
            self.consider()

    _MESSAGES: dict[type[Any], Callable[[Any, Any, list[int]], None]] = {  # noqa: RUF012
        m.RemoteUp: _up,
        m.RemoteRefused: _refusal,
        m.RemoteDied: _died,
        m.RemoteOutput: _output,
        m.PeerUp: _peer_up,
        m.PeerDown: _peer_down,
        m.PeerLoad: _peer_load,
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
