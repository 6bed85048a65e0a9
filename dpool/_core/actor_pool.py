"""One process's link to one actor, as a lane with one worker: the actor's process.

```
 method call ─► ActorPool.submit ─┬ a future among its arguments ─► held, and all later calls behind it ─┐
                                  └──────────────────────────────────────────────────────────────────────┴─► Lane
 node: ConnectActor ─► Grant (a socket to the actor) … WorkerDied (it comes back, or ActorGone)
```

Calls of this process begin in the order in which they were made. A call whose actor dies under it fails, unless the
actor comes back and the call may be repeated (`max_task_retries`, and always if it is read-only); calls that were not
begun wait for it.

Threads: as for `ExecutorPool`, whose place this takes: `lock` guards everything here and in the lane.
"""

from __future__ import annotations

import pickle
import signal
import threading
from collections import deque
from concurrent.futures import _base
from functools import partial
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from dpool._core import frames, storage
from dpool._core.arguments import FutureInside
from dpool._core.context import here
from dpool._core.deferring import Deferring
from dpool._core.dependents import Dependents
from dpool._core.future import CANCELLED_AND_NOTIFIED, PENDING, Future, finish
from dpool._core.lane import Lane, Route
from dpool._core.logic.dispatch import Slot
from dpool._core.messages import ActorKill, ConnectActor, DisconnectActor, Grant, KillWorker, WorkerDied
from dpool._core.pool_crash import AGAIN, FOR_CALLER, LINK_DOWN, how

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._core.driver import NativeRuntime

OPEN, CLOSED = "open", "closed"
READ_RETRIES = 3
"""How often a call that changes nothing is made again after its actor died under it: it may be what kills it."""
AT_ONCE = 1000
"""Calls that are under way in an actor that runs many at a time, at most: its own limit decides which of them run."""


class _RouteToItself(Route):
    """That of calls of an actor which runs one at a time, and which makes them."""

    __slots__ = ()
    to_itself = True

    def wait(self, future: Future[Any], timeout: float | None) -> None:
        self.check_wait(future)
        super().wait(future, timeout)

    def blocks(self, future: Future[Any]) -> bool:
        extra = future._extra
        whole = future if extra is None or extra.whole is None else extra.whole
        return current_thread() is main_thread() and not whole.done() and not self.lane.started(whole)

    def check_wait(self, future: Future[Any]) -> None:
        if self.blocks(future):
            raise RuntimeError(
                f"the actor {self.pool.label} waits for a call of its own, which cannot begin before this one ends; "
                "call the method of the object itself, or make it an actor with `async def` methods or max_concurrency="
            )

    def waiters(self, future: Future[Any], waiters: list[Any]) -> Any:
        return _Waiters(waiters, partial(self.check_wait, future)) if self.blocks(future) else waiters


class _Waiters:
    """Those who wait, as the standard library does, for a call that `blocks`; not until that one has ended, too."""

    def __init__(self, waiters: list[Any], check: Callable[[], None]) -> None:
        self._waiters = waiters
        self._check = check
        self.remove = waiters.remove

    def append(self, waiter: Any) -> None:
        if isinstance(waiter, _base._AllCompletedWaiter) and (
            not waiter.stop_on_exception or waiter.num_pending_calls == 1
        ):
            self._check()
        self._waiters.append(waiter)


class ActorPool(Deferring):
    """See the module."""

    standing = False
    daemon = True
    max_workers = 1

    def __init__(
        self, runtime: NativeRuntime, number: int, actor: bytes, label: str, many: bool, max_task_retries: int
    ) -> None:
        super().__init__(runtime)
        self.number = number
        self.actor = actor
        self.label = label
        self.flags = 0
        self.state = OPEN
        self.closing = False
        self.broken: BaseException | None = None
        self.lane = self.main = Lane(self, (), single=False, lifetime=None)
        self.lane.in_order = True
        if many:
            self.lane.dispatcher.make_loose(AT_ONCE)
        self._lanes = {((), False): self.lane}
        route = _RouteToItself if here.actor_id == actor and not many else Route
        self.route = route(self, self.lane, max_task_retries, None, "")
        self.reading = route(self, self.lane, max(max_task_retries, READ_RETRIES), None, "")
        """Of calls that change nothing."""
        self.processes: dict[int, Slot] = {}
        """The one that it is linked to, by its pid."""
        self._slot: Slot | None = None
        self.keep: Any = None
        """What holds the actor, while something is to be answered. Whoever submits holds it himself meanwhile."""
        self._finishing: BaseException | None = None
        """What further calls raise: the actor ends when those so far have been answered."""
        self.leaving = False
        """It is about to be closed."""
        self._when_idle: Callable[[], None] | None = None
        self._held: deque[Future[Any]] = deque()
        """Calls behind one whose arguments are not there yet, that one first."""
        self._entries: dict[tuple[str, int], Any] = {}
        self.dependents = Dependents(self, self._prepare)

    # -- calls

    def submit(
        self,
        name: str,
        how: int,
        args: Any,
        kwargs: Any,
        most: int = 0,
        read_only: bool = False,
        flow: Any = None,
    ) -> Future[Any]:
        """A call of a method (`how` METHOD), or a look at an attribute. Errors of pickling land on the future.

        Args:
            most: how many calls may be pending.
            read_only: it changes nothing, so it may be made again.
            flow: where to what it yields goes.
        """
        if self.broken is not None or self._finishing is not None:
            if self.broken is not None:
                self.keep = None
            return self._failed(self._gone())
        if most and self._pending() >= most:
            from dpool.errors import PendingCallsLimit

            raise PendingCallsLimit(f"{self.label} has {most} calls pending already (max_pending_calls)")
        route = self.reading if read_only else self.route
        entry = self._entries.get((name, how))
        if entry is None:
            entry = self._entries[name, how] = self.runtime.exporter.method(self.label, name, how)
        try:
            export, call = self._prepare(entry, args, kwargs)
        except FutureInside:
            future: Future[Any] = Future(route)
            if flow is not None:
                future._more().stream = flow
            with self.lock:
                self._held.append(future)
            self.dependents.add(future, entry, args, kwargs)
            return future
        except Exception as error:
            return self._failed(error)
        future = Future(route, export, call)
        if flow is not None:
            future._more().stream = flow
        if self._behind(future):
            return future
        lane = self.lane
        lane.queue.append(future)
        if lane.hungry:
            lane.push()
        self._check_gone()
        return future

    def _check_gone(self) -> None:
        """It may have died in between."""
        if self.broken is not None:
            self._fail_pending()

    def _prepare(self, entry: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self.runtime.exporter.prepare_method(entry, args, kwargs)

    def _behind(self, future: Future[Any]) -> bool:
        """If calls are held back, so is this one."""
        if not self._held:
            return False
        with self.lock:
            if self._held:
                self._held.append(future)
            return bool(self._held)

    def holds_calls(self) -> bool:
        """See `Deferring`; the first of them waits for its arguments."""
        return bool(self._held)

    def _failed(self, error: BaseException) -> Future[Any]:
        future: Future[Any] = Future(self.route)
        finish(future, None, error)
        return future

    def _pending(self) -> int:
        return len(self.lane.queue) + len(self._held) + self.lane.dispatcher.in_flight()

    def dependent_ready(self, future: Future[Any]) -> None:
        """A call has its arguments, or failed for want of them: those behind it may go, up to the next that waits."""
        with self.lock:
            while self._held and (self._held[0]._export is not None or self._held[0].done()):
                one = self._held.popleft()
                if not one.done():
                    self.lane.queue.append(one)
        self.lane.push()

    def finish(self, why: str, now: bool) -> None:
        """End the actor, for everybody, when it has answered what this process has asked so far; or `now`."""
        with self.lock:
            if self._finishing is None:
                self._finishing = death_of(self.label, pickle.dumps((why, None)))
        if now:
            self._end_actor(why)
        else:
            self._end_when_idle(why)

    def _end_when_idle(self, why: str) -> None:
        with self.lock:
            self._when_idle = partial(self._end_when_idle, why)
            if self._pending():
                return
        self._end_actor(why)

    def _end_actor(self, why: str) -> None:
        self._when_idle = None
        if self.broken is not None or self.state is CLOSED:
            return
        try:
            storage.client().say(ActorKill(self.actor, False, why))
        except storage.StoreGone:  # it has ended with its node, which will be noticed
            return

    # -- what the lane asks for

    def may_grow(self, lane: Lane) -> bool:
        return False

    def want_workers(self, lane: Lane, at_least: int = 0) -> None:
        """There is the one, or there will be."""

    def worker_idle(self, lane: Lane, slot: Slot) -> None:
        """It stays, but whoever has let go of it need not keep it any longer."""
        self.keeping(self.keep)
        if self._when_idle is not None:
            self.later(self._when_idle)

    def keeping(self, held: Any) -> None:
        """A call was submitted: this holds the actor until it is answered, whoever lets go of it meanwhile."""
        with self.lock:
            slot = self._slot
            pending = self.lane.queue or self._held or (slot is not None and slot.frames)
            self.keep = held if pending else None

    def worker_leaves(self, lane: Lane, slot: Slot) -> None:
        """It has no lifetime."""

    def check_drained(self) -> None:
        """Calls do not keep the link."""

    def task_ended(self) -> None:
        """As above; but a call that will never be made may be what others wait behind."""
        if self._held:
            self.later(partial(self.dependent_ready, self._held[0]))
        if self._when_idle is not None:
            self.later(self._when_idle)

    def task_cancelled(self, future: Future[Any]) -> None:
        extra = future._extra
        if extra is not None and extra.group is not None:
            self.dependents.cancelled(extra.group)
        if self.lock._is_owned():  # type: ignore[attr-defined]  # in the middle of sending, most likely
            self.later(partial(self._leaves_queue, future))
        else:
            self._leaves_queue(future)
        self.task_ended()

    def _leaves_queue(self, future: Future[Any]) -> None:
        """It is pending no longer, and nobody need keep the actor for it."""
        with self.lock:
            if future in self.lane.queue:
                self.lane.queue.remove(future)
            self.keeping(self.keep)

    def initialized(self, lane: Lane, slot: Slot, value: Any) -> None:
        """No initializer was sent."""

    def start_clock(self, future: Future[Any], now_s: float) -> None:
        """Calls have no time-outs."""

    def kill_for(self, lane: Lane, slot: Slot, why: Any, said: str = "") -> None:
        """A call is cancelled by force, or the actor does not speak our language: its process ends. `said`: what others
        who call it are told.
        """
        slot.link.why = why
        slot.retiring = True
        self.runtime.tell(KillWorker(self.number, slot.worker, int(signal.SIGKILL), said))

    def nudge(self) -> None:
        """Nothing was put off."""

    # -- the actor's process

    def announce(self) -> None:
        """Ask the node for a link."""
        self.runtime.tell(ConnectActor(self.number, self.actor))

    def go_on(self) -> None:
        """The actor ended with the node that died."""

    def granted(self, message: Grant, fds: list[int]) -> None:
        """Here it is."""
        link = self.runtime.link(message, fds) if len(fds) == 3 else None
        if link is None:
            self.gone(pickle.dumps(("this process has no file descriptors left for a link to it", None)))
            return
        slot = Slot(message.worker, link)
        with self.lock:
            self._slot = slot
        self.runtime.watch(link, partial(self.lane.on_readable, slot))
        self.lane.granted(slot, hold=False)

    def worker_up(self, worker: int, pid: int, ordinal: int) -> None:
        if self._slot is not None and self._slot.worker == worker:
            self._slot.link.pid = pid
            self.processes[pid] = self._slot

    def worker_died(self, message: WorkerDied) -> None:
        """Its process is gone; it comes back if `reason` begins with AGAIN."""
        slot = self._slot
        if slot is None or slot.worker != message.worker:
            return
        lost = self.lane.worker_died(slot)
        self.runtime.unwatch(slot.link)
        why = slot.link.why
        slot.link.close()
        self._slot = None
        self.processes.clear()
        for future in lost:
            self._lost(future, message, why)

    def _lost(self, future: Future[Any], message: WorkerDied, why: Any) -> None:
        from dpool.errors import ActorDied

        if why is not None:
            error = why(future)
            if error is not None:
                finish(future, None, error)
            if future.done():
                return
        extra = future._more()
        extra.attempts += 1
        assert future._route is not None
        again, reason = message.reason.startswith(AGAIN), message.reason.removeprefix(AGAIN)
        if again and extra.attempts <= future._route.max_retries:
            self.lane.run_again(future)
            return
        call = self.lane.label(future)
        what = "it is being restarted" if again else "it will not come back"
        if reason.startswith(LINK_DOWN):
            ended = f"is lost: {reason}, while its process (pid {message.pid}) there ran {call}"
            unknown = "whether the call has run to its end is not known, and max_task_retries= would run it again"
            finish(future, None, ActorDied(f"the actor {self.label} {ended}; {what}; {unknown}"))
            return
        asked = f" ({reason})" if reason.startswith(FOR_CALLER) else ""
        where = f" on {message.host}" if message.host else ""
        text = f"the actor {self.label} (pid {message.pid}{where}) {how(message)}{asked} while it ran {call}; {what}"
        finish(future, None, ActorDied(f"{text}. max_task_retries= would run the call again. See {message.log_file}"))

    def gone(self, cause: bytes) -> None:
        """The actor is dead for good."""
        self.broken = death_of(self.label, cause)
        self.closing = True
        self._fail_pending()

    def _gone(self) -> BaseException:
        error = self.broken or self._finishing
        assert error is not None
        copy = type(error)(*error.args)
        copy.__cause__ = error.__cause__
        return copy

    def _fail_pending(self) -> None:
        with self.lock:
            pending = [*self.lane.queue, *self._held]
            self.lane.queue.clear()
            self._held.clear()
            self.dependents.clear()
            for slot in self.lane.dispatcher.slots.values():
                pending += [task for frame in slot.frames for task in frame.tasks[frame.done :]]
                slot.frames.clear()
            self.keep = None
        for future in pending:
            finish(future, None, self._gone())

    # -- what the runtime asks of its pools

    def retire(self, worker: int) -> None:
        """Only a pool's worker is retired."""

    def cluster_changed(self) -> None:
        """An actor is one process, however many CPUs there are."""

    def give_up_idle(self) -> None:
        """The actor keeps what it holds."""

    def infeasible(self, shape: Any, text: str, strict: bool) -> None:
        """The node that creates it says so to the creator."""
        self.runtime.notice(text)

    def forget_numbers(self, numbers: list[int]) -> None:
        """Functions that no longer exist here."""
        if self._slot is not None:
            with self.lock:
                self._slot.link.shipped.forget(numbers)
                self._slot.link.dead += numbers

    def ending(self) -> bool:
        """Whether it is closed, or about to be, since nobody here holds the actor any more."""
        return self.leaving or self.state is CLOSED

    def interrupt(self) -> None:
        """Ctrl-C: what waits is cancelled; the actor goes on."""
        for future in [*self.lane.take_all_back(everything=True), *list(self._held)]:
            if future._settle(CANCELLED_AND_NOTIFIED, only_from=PENDING):
                self.task_cancelled(future)

    def has_written(self) -> bool:
        """Whether the actor has counted up what it wrote since this was last asked."""
        slot = self._slot
        if slot is None:
            return False
        try:
            written = slot.link.page.slots[frames.WRITTEN]
        except ValueError:  # it is gone, and its page with it
            return False
        before, slot.link.written = slot.link.written, written
        return bool(before != written)

    def signal_workers(self, number: int) -> None:
        """The actor's process is not ours."""

    def close(self, cancel_futures: bool = False) -> None:
        self.terminate()

    def terminate(self) -> None:
        """The link is not needed any more."""
        with self.lock:
            if self.state is CLOSED:
                return
            self.state = CLOSED
        if self.broken is None:
            self.broken = death_of(self.label, pickle.dumps(("the runtime was shut down", None)))
        self.runtime.tell(DisconnectActor(self.number, self.actor))
        self._fail_pending()
        self.closed()

    def break_all(self, error: BaseException) -> None:
        """No node can be had."""
        from dpool.errors import ActorDied

        self.broken = ActorDied(f"the actor {self.label} is lost: {error}")
        self._fail_pending()

    def node_died(self, log_file: str) -> None:
        """The node is dead, and the actor with it."""
        if self._slot is not None:
            pid = self._slot.link.page.slots[frames.PID]
            self.worker_died(
                WorkerDied(self.number, self._slot.worker, pid, int(signal.SIGKILL), 0, "", log_file, False)
            )
        self.gone(pickle.dumps((f"the node died with it; see {log_file}", None)))

    def closed(self) -> None:
        """Let go of the link."""
        slot, self._slot = self._slot, None
        if slot is not None:
            with self.lock:
                self.lane.dispatcher.slots.pop(slot.worker, None)
            self.runtime.unwatch(slot.link)
            slot.link.close()
        self.runtime.forget(self)

    def disown(self, error: BaseException) -> None:
        """In a forked child: the link is the parent's."""
        self.lock = self.lane.lock = threading.RLock()
        self.state, self.broken, self.closing = CLOSED, error, True
        self.lane.queue.clear()
        self._held.clear()
        if self._slot is not None:
            self._slot.link.close()
            self._slot = None


def death_of(label: str, cause: bytes) -> BaseException:
    """What calls of a dead actor raise; `cause`: pickled (text, pickled exception, nothing (b"": it asked for more than
    there is) or None).
    """
    from dpool.errors import ActorDied, InfeasibleResources

    text, data = pickle.loads(cause)
    if data == b"":
        return InfeasibleResources(f"the actor {label} cannot be made: {text}")
    error = ActorDied(f"the actor {label} is dead: {text}")
    if data is not None:
        from dpool._core.serialize import load_exception

        error.__cause__ = load_exception(data, f"{label}.__init__")
    return error
