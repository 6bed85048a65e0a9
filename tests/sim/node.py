"""A simulated node: the real scheduler, reference counts and lineage stash, with simulated processes to act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpool._core.logic import lineage, references, scheduler
from dpool._core.logic.resources import Account, shape
from tests.sim.actors import FROM_USER, Built, EndsItself, SimActorWorker
from tests.sim.messages import Dispatched, DropOutput, Ended, Seal
from tests.sim.node_actors import SimNodeActors
from tests.sim.program import SimTask
from tests.sim.store import SimStore
from tests.sim.worker import SimWorker
from tests.sim.world import Link, World

if TYPE_CHECKING:
    from tests.sim.runtime import SimRuntime

TOTAL = shape(num_cpus=2, num_gpus=2, memory=100, tape=1)


def name_of(task: int) -> bytes:
    """The object id of a task's output."""
    return task.to_bytes(20, "big")


class SimNode:
    """One start of a node.

    Attributes:
        workers: its living processes, and dead ones that it has not reaped.
        processes: all that it ever started; a client may connect to one that has just died.
        successor: the node that was started in its place when it died.
        down: the socket to each client.
        objects: the outputs that lie in its store: put there when sealed, taken out when freed.
        start_fails: how likely a process cannot be started.
        dies_young: how likely a new process dies before it runs anything.
    """

    def __init__(self, world: World, epoch: int, start_fails: float, dies_young: float) -> None:
        self.world = world
        self.epoch = epoch
        self.start_fails = start_fails
        self.dies_young = dies_young
        self.alive = True
        self.successor: SimNode | None = None
        self.scheduler = scheduler.LocalScheduler(Account(TOTAL))
        self.references = references.References()
        self.stash = lineage.LineageStash(flush_s=0.01, batch_records=4, max_records=8)
        self.store = SimStore(world, self._store_answers)
        self.actors = SimNodeActors(self)
        self.workers: dict[int, SimWorker] = {}
        self.processes: dict[int, SimWorker] = {}
        self.clients: dict[int, SimRuntime] = {}
        self.down: dict[int, Link] = {}
        self.objects: set[int] = set()
        self._contents: dict[int, set[int]] = {}
        self._undelivered: dict[int, dict[int, None]] = {}
        self._owner_of_pool: dict[int, int] = {}
        self._pool_of: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"node {self.epoch}"

    # -- clients

    def accept(self, client: int, runtime: SimRuntime) -> Link:
        """A client connects; returns its socket to the node."""
        self.clients[client] = runtime
        self._undelivered[client] = {}
        self.down[client] = Link(
            self.world, lambda message: runtime.hear_node(self, message), lambda: runtime.node_lost(self)
        )
        up = Link(self.world, lambda message: self._hear_client(client, message), lambda: self._client_left(client))
        up.send(scheduler.ClientJoined(client))
        return up

    def _hear_client(self, client: int, message: Any) -> None:
        if not self.alive:
            return
        if isinstance(message, Dispatched):
            self._undelivered[client].update(dict.fromkeys(message.tasks))
            self._stash(lineage.Remember(self.world.now_s, [(task, name_of(task)) for task in message.tasks]))
        elif isinstance(message, Ended):
            for task in message.tasks:
                del self._undelivered[client][task]
            self._stash(lineage.Delivered(self.world.now_s, message.tasks))
        elif isinstance(message, DropOutput):
            if client in self.references.holders(name_of(message.task)):
                self._refer(references.Release(name_of(message.task), client))
        elif isinstance(message, FROM_USER):
            self.actors.hear(client, message)
        else:
            if isinstance(message, scheduler.OpenPool):
                self._owner_of_pool[message.pool] = client
                if self.scheduler.scarce:
                    self.down[client].send(scheduler.Scarce(True))
            self._schedule(message)

    def _client_left(self, client: int) -> None:
        if not self.alive:
            return
        del self.clients[client]
        self.down.pop(client).cut()
        self._refer(references.ProcessDied(client))
        self._stash(lineage.Delivered(self.world.now_s, tuple(self._undelivered.pop(client))))
        self._schedule(scheduler.ClientLeft(client))
        self.actors.client_left(client)

    # -- workers

    def hear_worker(self, worker: SimWorker, message: Any) -> None:
        if not self.alive:
            return
        if isinstance(message, (Built, EndsItself)):
            self.actors.hear_worker(worker, message)
            return
        if not isinstance(message, Seal):
            self._schedule(message)
            return
        client = self._owner_of_pool[self._pool_of[worker.number]]
        if client in self.clients:
            self._seal(message, client)
        self.world.soon(worker.answer)

    def _seal(self, seal: Seal, client: int) -> None:
        """The output is held for the client, once, however often the task was run."""
        outer = name_of(seal.task.number)
        if client not in self.references.holders(outer):
            self.objects.add(seal.task.number)
            seal.task.sealed_on = self
            self._refer(references.Acquire(outer, client))
        for inner in seal.contains:
            if name_of(inner) in self.references:
                self._refer(references.Contains(outer, name_of(inner)))
                self._contents.setdefault(seal.task.number, set()).add(inner)

    def reap(self, worker: SimWorker) -> None:
        """The process is dead: what it said before is heard first."""
        if not self.alive:
            return
        worker.to_node.drain()
        worker.to_node.cut()
        del self.workers[worker.number]
        early = worker.completed == 0
        self._schedule(scheduler.WorkerDied(worker.number, self.world.now_s, early))
        if self.world.chance(0.1):
            self.world.soon(self._schedule, scheduler.WorkerDied(worker.number, self.world.now_s, early))

    def check_arguments(self, task: SimTask) -> None:
        """What a task that begins takes as arguments must still be there."""
        for need in task.needs:
            there = not need.big or need.number in self.objects or need.sealed_on is not self
            assert there, f"{task} begins, but the output of {need} has been freed"

    # -- the machines

    def _schedule(self, event: scheduler.Event) -> None:
        if not self.alive:
            return
        self.world.note(str(self), event)
        out = self.scheduler.handle(event)
        self.scheduler.check()
        for instruction in out:
            self.world.note(str(self), f"  → {instruction}")
            self._act(instruction)

    def _act(self, instruction: scheduler.Instruction) -> None:
        if isinstance(instruction, scheduler.StartWorker):
            self._start(instruction)
        elif isinstance(instruction, scheduler.Grant | scheduler.TellDied | scheduler.WarnInfeasible):
            if instruction.client:
                self.down[instruction.client].send(instruction)
            else:
                self.actors.hear_scheduler(instruction)
        elif isinstance(instruction, scheduler.KillWorker):
            if instruction.worker in self.workers:
                self.world.soon(self.workers[instruction.worker].die)
        elif isinstance(instruction, scheduler.RetireWorker):
            if instruction.worker in self.workers:
                self.world.soon(self.workers[instruction.worker].retire)
        elif isinstance(instruction, scheduler.Scarce):
            for client in (client for client in self.scheduler.clients if client):
                self.down[client].send(instruction)
        elif isinstance(instruction, scheduler.WakeAt):
            self.world.at(instruction.at_s, self._wake)
        elif instruction.pool in self.actors.pools:
            self.world.after(0.0, self.actors.pool_gone, instruction.pool)  # after the deaths of the same batch
        else:
            del self._owner_of_pool[instruction.pool]

    def _start(self, instruction: scheduler.StartWorker) -> None:
        kind = SimActorWorker if instruction.pool in self.actors.pools else SimWorker
        worker = kind(self.world, self, instruction.worker)
        self.workers[worker.number] = self.processes[worker.number] = worker
        self._pool_of[worker.number] = instruction.pool
        if self.world.chance(self.start_fails):
            self.world.after(self.world.rng.choice((0.0, 0.002, 0.03)), self._start_failed, worker)
        elif self.world.chance(self.dies_young):
            self.world.after(0.002, worker.die)
        else:
            self.world.after(0.002, worker.come_up)

    def _start_failed(self, worker: SimWorker) -> None:
        if worker.alive and self.alive:
            worker.alive = False
            del self.workers[worker.number]
            self._schedule(scheduler.StartFailed(worker.number, self.world.now_s))

    def _wake(self) -> None:
        self._schedule(scheduler.Tick(self.world.now_s))

    def _refer(self, event: references.Event) -> None:
        out = self.references.handle(event)
        self.references.check()
        for freed in out:
            if freed.obj in self.actors.actors:
                self.actors.freed(freed.obj)
                continue
            task = int.from_bytes(freed.obj, "big")
            assert task in self.objects, f"the output of task {task} was freed twice"
            self.objects.remove(task)
            self._contents.pop(task, None)
            outside = [outer for outer, inside in self._contents.items() if task in inside]
            assert not outside, f"the output of task {task} was freed, but those of {outside} contain it"

    def _stash(self, event: lineage.Event) -> None:
        if not self.alive:
            return
        out = self.stash.handle(event)
        self.stash.check()
        for instruction in out:
            if isinstance(instruction, lineage.WakeAt):
                self.world.at(instruction.at_s, self._tick_stash)
            else:
                self.store.send(instruction)

    def _tick_stash(self) -> None:
        self._stash(lineage.Tick(self.world.now_s))

    def _store_answers(self, answer: lineage.Committed | lineage.Lost) -> None:
        self._stash(answer)

    # -- its end

    def crash(self) -> None:
        """The node dies, its workers die with it, and its clients find out by and by."""
        self.world.note(str(self), "dies")
        self.alive = False
        self.store.cut()
        for worker in list(self.workers.values()):
            worker.die()
        for link in self.down.values():
            link.end()

    def check_at_rest(self) -> None:
        """Nobody is left: nothing is held."""
        self.scheduler.check()
        left = set(self.scheduler.clients) - {0}  # 0: the node itself, for actors
        assert not left, f"clients are left: {left}"
        assert not self.scheduler.pools, f"pools are left: {list(self.scheduler.pools)}"
        assert not self.scheduler.workers, f"the scheduler knows workers: {list(self.scheduler.workers)}"
        assert not self.scheduler.queue, "requests are left"
        assert self.scheduler.account.free == self.scheduler.account.total, f"{self.scheduler.account}"
        assert not self.workers, f"processes are left: {list(self.workers.values())}"
        self.actors.check_at_rest()
        assert len(self.references) == 0, "references are left"
        assert not self.objects, f"outputs are left in the store: {self.objects}"
        assert len(self.stash) == 0, f"{len(self.stash)} lineage records are left in the stash"
        assert not any(self.store.batches.values()), f"records are left in the control store: {self.store.batches}"
