"""A simulated client: a driver, or a task that submits tasks of its own. It runs one program and leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dpool._core.logic import dependency, scheduler
from dpool._core.logic.dispatch import Slot
from dpool._core.logic.resources import Shape
from tests.sim.lane import STALL_S, Lane, Settled
from tests.sim.messages import Dispatched, DropOutput, Ended, Reply
from tests.sim.program import CANCELLED, CRASHED, FAILED, INFEASIBLE, RAISED, VALUE, Program, SimTask
from tests.sim.world import Link, World

if TYPE_CHECKING:
    from tests.sim.node import SimNode


class SimPool:
    """One executor.

    Attributes:
        workers: those it was ever granted and has not been told dead, by number.
        single: one task to a worker at a time.
        lifetime: how many tasks a worker runs before it leaves, None: any number.
        infeasible: shapes that its node can never grant; it says so once, so they are remembered.
    """

    def __init__(self, number: int, max_workers: int) -> None:
        self.number = number
        self.max_workers = max_workers
        self.lanes: dict[Shape, Lane] = {}
        self.workers: dict[int, Slot] = {}
        self.single = False
        self.lifetime: int | None = None
        self.infeasible: set[Shape] = set()
        self.closed = False


class SimRuntime:
    """Attributes:
    alive: it has not been killed.
    left: its program has ended and it has closed its connection.
    submitted: tasks submitted so far.
    """

    def __init__(self, world: World, name: str, program: Program, when_left: Callable[[], None]) -> None:
        self.world = world
        self.name = name
        self.program = program
        self.when_left = when_left
        self.alive = True
        self.left = False
        self.submitted: list[SimTask] = []
        self.pools: list[SimPool] = []
        self.dependencies = dependency.Dependencies()
        self.node: SimNode | None = None
        self._up = Link(world, _nobody)
        self._closing = False
        self.scarce = False
        """Others wait for resources: idle leases go back to the node."""
        self._dispatched: set[SimTask] = set()
        self._dropped: set[SimTask] = set()

    # -- to and fro

    def join(self, node: SimNode) -> None:
        """Connect, open the pools and begin to submit; or, after the loss of a node, go on where it was."""
        first = self.node is None
        self.node = node
        self.scarce = False
        client = next(self.world.numbers)
        self._up = node.accept(client, self)
        self.pools = [SimPool(next(self.world.numbers), workers) for workers in self.program.max_workers]
        for pool in self.pools:
            pool.single = self.world.chance(0.2)
            pool.lifetime = self.world.rng.choice((None, None, None, 1, 4))
            self._up.send(scheduler.OpenPool(client, pool.number, pool.max_workers))
        if first:
            for task in self.program.tasks:
                self.world.after(task.submit_at_s, self._submit, task)
                if task.cancel_at_s is not None:
                    self.world.after(task.cancel_at_s, self._cancel, task)

    def hear_node(self, node: SimNode, message: Any) -> None:
        if not self.alive or self.left or node is not self.node:
            return
        if isinstance(message, scheduler.Grant):
            self._granted(message)
        elif isinstance(message, scheduler.TellDied):
            self._worker_died(message)
        elif isinstance(message, scheduler.Scarce):
            self.scarce = message.wanted
            self._return_spare()
        else:
            self._infeasible(message)

    def node_lost(self, node: SimNode) -> None:
        """Its node is dead, and so are all workers. Pending tasks move on to the next node."""
        if not self.alive or self.left or node is not self.node:
            return
        for pool in self.pools:
            for number in list(pool.workers):
                self._take_from_dead(pool, number)
        # Only now: the last results of one pool may have made tasks of another ready.
        waiting = [task for pool in self.pools for lane in pool.lanes.values() for task in lane.queue]
        if self._closing:
            self._leave()
            return
        self.world.note(self.name, "lost its node")
        self._dispatched.clear()
        successor = node.successor
        assert successor is not None
        self.join(successor)
        for task in waiting:
            self._queue(task)

    def crash(self) -> None:
        """The process is killed."""
        if self.alive and not self.left:
            self.world.note(self.name, "dies")
            self.alive = False
            self._up.end()

    # -- tasks

    def _submit(self, task: SimTask) -> None:
        if not self.alive:
            return
        self.submitted.append(task)
        failed = any(need.outcome not in (None, VALUE) for need in task.needs)
        if failed:
            self._end(task, FAILED)
            return
        self._wait(dependency.Add(task.number, [need.number for need in task.needs if need.outcome is None]))

    def _wait(self, event: dependency.Event) -> None:
        out = self.dependencies.handle(event)
        self.dependencies.check()
        for instruction in out:
            task = self._by_number(instruction.task)
            if isinstance(instruction, dependency.Ready):
                self._queue(task)
            else:
                self._end(task, FAILED, told=True)

    def _by_number(self, number: int) -> SimTask:
        return next(task for task in self.program.tasks if task.number == number)

    def _end(self, task: SimTask, outcome: str, told: bool = False) -> None:
        """The task's future has its result. `told`: `Dependencies` knows."""
        assert task.outcome is None, f"{task} ended twice: {task.outcome}, then {outcome}"
        task.outcome = outcome
        self.world.note(self.name, f"{task} ends: {outcome}")
        if task in self._dispatched:
            self._up.send(Ended((task.number,)))
        if not told:
            self._wait(dependency.Resolved(task.number) if outcome == VALUE else dependency.Failed(task.number))
        for maybe in (task, *task.needs):
            self._drop_if_unneeded(maybe)
        if all(other.outcome is not None for other in self.program.tasks) and not self._closing:
            self._closing = True
            self.world.soon(self._close_pools)

    def _drop_if_unneeded(self, task: SimTask) -> None:
        ended = all(other.outcome is not None for other in (task, *task.needed_by))
        if task.big and ended and task not in self._dropped:
            self._dropped.add(task)
            self._up.send(DropOutput(task.number))

    def _cancel(self, task: SimTask) -> None:
        if not self.alive or task.outcome is not None:
            return
        if self.dependencies.waits(task.number):
            self._wait_cancelled(task)
            return
        for pool in self.pools:
            for lane in pool.lanes.values():
                if task in lane.queue:
                    lane.queue.remove(task)
                    self._end(task, CANCELLED)
                    self._lease(pool, lane)
                    return
                worker = lane.holder_of(task)
                if worker is not None and task.force:
                    task.cancelling = True
                    self._up.send(scheduler.KillRequested(pool.number, worker))
                    return

    def _wait_cancelled(self, task: SimTask) -> None:
        out = self.dependencies.handle(dependency.Cancelled(task.number))
        self.dependencies.check()
        for instruction in out:
            self._end(self._by_number(instruction.task), FAILED, told=True)
        self._end(task, CANCELLED, told=True)

    # -- leases

    def _queue(self, task: SimTask) -> None:
        pool = self.pools[task.pool]
        if task.shape in pool.infeasible:
            self._end(task, INFEASIBLE)
            return
        lane = pool.lanes.get(task.shape) or self._new_lane(pool, task.shape)
        lane.queue.append(task)
        self._pump(pool, lane)
        self._return_spare()

    def _return_spare(self) -> None:
        """Whoever waits may want what is leased and idle."""
        for pool in self.pools:
            for lane in list(pool.lanes.values()):
                for worker in lane.idle():
                    self._return_if_idle(pool, lane, worker)

    def _keeps(self, pool: SimPool, lane: Lane) -> bool:
        """Whether an idle lease stays: nobody is known to wait for the worker, or for what it holds."""
        others = any(other is not lane and other.queue for other in pool.lanes.values())
        return bool(lane.shape) and not (self.scarce or others or pool.closed or pool.single)

    def _new_lane(self, pool: SimPool, shape: Shape) -> Lane:
        lane = pool.lanes[shape] = Lane(self.world, shape, self._sent, pool.single, pool.lifetime)
        return lane

    def _sent(self, tasks: list[SimTask]) -> None:
        self._dispatched.update(tasks)
        self._up.send(Dispatched(tuple(task.number for task in tasks)))

    def _pump(self, pool: SimPool, lane: Lane) -> None:
        lane.push()
        self._lease(pool, lane)
        for worker in lane.idle():
            delay_s = 0.0 if pool.workers[worker].retiring else self.world.rng.choice((0.0, 0.0, 0.005))
            self.world.after(delay_s, self._return_if_idle, pool, lane, worker)
        if lane.wants_rescue():
            self.world.after(STALL_S + 0.0001, self._rescue, pool, lane)

    def _rescue(self, pool: SimPool, lane: Lane) -> None:
        if self.alive and pool in self.pools:
            settled = lane.rescue()
            self._settle(settled)
            if lane.queue or settled:
                self._pump(pool, lane)
            elif lane.wants_rescue():
                self.world.after(0.002, self._rescue, pool, lane)

    def _settle(self, settled: Settled) -> None:
        for task, raised in settled:
            self._end(task, RAISED if raised else VALUE)

    def _lease(self, pool: SimPool, lane: Lane) -> None:
        """Ask for as many leases as there are tasks waiting; for none any more when there are none."""
        if pool.closed:
            return
        crowded = sum(len(slot.frames) > 1 for slot in lane.dispatcher.slots.values())
        wanted = min(len(lane.queue) + crowded, pool.max_workers) - lane.outstanding
        if wanted > 0:
            lane.outstanding += wanted
            self._up.send(scheduler.RequestLeases(pool.number, lane.shape, wanted))
        elif not lane.queue and not crowded and lane.outstanding:
            lane.outstanding = 0
            self._up.send(scheduler.CancelRequests(pool.number, lane.shape))

    def _return_if_idle(self, pool: SimPool, lane: Lane, worker: int) -> None:
        if not self.alive or worker not in pool.workers or worker not in lane.idle():
            return
        if pool.workers[worker].retiring or not self._keeps(pool, lane):
            retire = lane.returned(worker) or self.world.chance(0.1)
            self._up.send(scheduler.ReturnLease(pool.number, worker, retire))

    def _granted(self, grant: scheduler.Grant) -> None:
        pool = next(pool for pool in self.pools if pool.number == grant.pool)
        slot = pool.workers.get(grant.worker)
        if slot is None:
            assert self.node is not None
            slot = pool.workers[grant.worker] = Slot(grant.worker, self.node.processes[grant.worker])
            slot.link.results = Link(self.world, lambda reply: self._answered(pool, grant.worker, reply))
        lane = pool.lanes[grant.shape]
        lane.outstanding = max(0, lane.outstanding - 1)
        lane.leased(slot)
        self._pump(pool, lane)

    def _answered(self, pool: SimPool, worker: int, reply: Reply) -> None:
        if not self.alive:
            return
        slot = pool.workers[worker]
        lane = next(lane for lane in pool.lanes.values() if worker in lane.dispatcher.slots)
        self._settle(lane.answered(slot, reply))
        self._pump(pool, lane)

    def _worker_died(self, told: scheduler.TellDied) -> None:
        pool = next(pool for pool in self.pools if pool.number == told.pool)
        assert told.worker in pool.workers, f"{self.name} was told of the death of worker {told.worker} twice"
        self._take_from_dead(pool, told.worker)
        for lane in list(pool.lanes.values()):
            if not pool.closed:
                self._pump(pool, lane)
        self._leave_if_done()

    def _take_from_dead(self, pool: SimPool, number: int) -> None:
        """Read what it had sent; then its tasks are lost, or, if it had not begun them, wait again."""
        slot = pool.workers[number]
        results = slot.link.results
        results.drain()
        results.cut()
        for lane in list(pool.lanes.values()):
            settled, lost = lane.died(slot)
            self._settle(settled)
            for task in reversed(lost):
                if task.cancelling:
                    self._end(task, CANCELLED)
                elif task.starts <= task.retries:
                    lane.queue.appendleft(task)
                else:
                    self._end(task, CRASHED)
            for task in [waiting for waiting in lane.queue if waiting.cancelling]:
                lane.queue.remove(task)
                self._end(task, CANCELLED)
        del pool.workers[number]

    def _infeasible(self, warning: scheduler.WarnInfeasible) -> None:
        """What this machine can never run fails at once."""
        pool = next(pool for pool in self.pools if pool.number == warning.pool)
        lane = pool.lanes[warning.shape]
        pool.infeasible.add(warning.shape)
        while lane.queue:
            self._end(lane.queue.popleft(), INFEASIBLE)
        self._lease(pool, lane)

    # -- chaos and the end

    def resize(self) -> None:
        """The user changes the size of a pool."""
        open_pools = [pool for pool in self.pools if not pool.closed]
        if self.alive and open_pools:
            pool = self.world.rng.choice(open_pools)
            pool.max_workers = self.world.rng.randint(1, 4)
            self._up.send(scheduler.ResizePool(pool.number, pool.max_workers))
            for lane in list(pool.lanes.values()):
                self._lease(pool, lane)

    def _close_pools(self) -> None:
        if not self.alive or self.left:
            return
        for pool in self.pools:
            pool.closed = True
            self._up.send(scheduler.ClosePool(pool.number, self.world.chance(0.3)))
            if self.world.chance(0.2):
                self._up.send(scheduler.ClosePool(pool.number, True))
        self._return_spare()
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._closing and not self.left and all(pool.closed and not pool.workers for pool in self.pools):
            self._leave()

    def _leave(self) -> None:
        self.world.note(self.name, "leaves")
        self.left = True
        self._up.end()
        self.when_left()

    def check_at_rest(self) -> None:
        """Every task that was submitted has ended, unless the process was killed."""
        if not self.alive:
            return
        assert self.left, f"{self.name} still waits for {[task for task in self.submitted if task.outcome is None]}"
        assert len(self.submitted) == len(self.program.tasks)
        assert all(task.outcome is not None for task in self.submitted)
        assert len(self.dependencies) == 0


def _nobody(message: Any) -> None:
    raise AssertionError(f"{message} was sent before the client had joined")
