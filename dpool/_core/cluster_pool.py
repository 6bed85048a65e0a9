"""An executor's pool where there are several machines: its workers are leases, wherever there is room.

| `max_workers` | what a lease holds | how many there are |
|---|---|---|
| None | one CPU | as many as the cluster has CPUs; changes as machines come and go |
| a number | one CPU where one is free; else nothing, so that all of them begin | that number |

Tasks whose large arguments lie on other machines have lanes of their own, whose leases are asked for near those.

Same threads and locks as ExecutorPool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpool._core import ids
from dpool._core.executor_pool import OPEN, PUMP_EVERY, ExecutorPool
from dpool._core.future import Future
from dpool._core.lane import Lane, Route
from dpool._core.logic.places import FIXED, NEAR, with_names
from dpool._core.logic.resources import CPUS, UNIT
from dpool._core.messages import Pace
from dpool._core.storage import Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._core.driver import NativeRuntime
    from dpool._core.logic.dispatch import Slot
    from dpool._core.messages import Shape

NEAR_BYTES = 1 << 18
"""Arguments that are smaller, all together, lie near enough anywhere."""
PACE_CHANGE = 1.5
"""The node hears how long tasks take when it is so much more, or less, than it was told."""


class ClusterPool(ExecutorPool):
    """See the module."""

    def __init__(self, runtime: NativeRuntime, number: int, **options: Any) -> None:
        self._elastic = options["max_workers"] is None
        self._ones: Shape = ()
        """What a task without options asks for; of the tasks' own pool, whose tasks say it themselves, nothing."""
        if not options.get("daemon"):
            self._ones = ((CPUS, UNIT),) if self._elastic else with_names(((CPUS, UNIT),), {FIXED: UNIT})
        stateful = options["initializer"] is not None or options["max_tasks_per_child"] is not None
        self._keeps = bool(stateful or options.get("standing"))
        """Its workers are not exchanged for others."""
        self._near: dict[tuple[Route, Shape], Route] = {}
        self._told_s = 0.0
        super().__init__(runtime, number, **options)

    @property
    def max_workers(self) -> int:
        """How many workers there may be."""
        if self._max_workers is not None:
            return self._max_workers
        return max(1, self.runtime.cluster_cpus)

    def nudge(self) -> None:
        """What waited for the number of CPUs is settled when the node has told it: `cluster_changed`."""

    def cluster_changed(self) -> None:
        """The cluster has other CPUs than before."""
        if self._elastic:
            for lane in list(self._lanes.values()):
                lane.push()
            if self.standing:
                self.populate()

    def lane(self, shape: Shape, single: bool) -> Lane:
        """As in ExecutorPool; a task without resources holds what a worker does."""
        return super().lane(shape or self._ones, single)

    def want_workers(self, lane: Lane, at_least: int = 0) -> None:
        """As in ExecutorPool; the node, which estimates how long others wait here, hears how long tasks take."""
        super().want_workers(lane, at_least)
        task_s = lane.dispatcher.task_s
        if task_s and not self._told_s / PACE_CHANGE < task_s < self._told_s * PACE_CHANGE:
            self._told_s = task_s
            self.runtime.tell(Pace(task_s, 0.0))

    def worker_idle(self, lane: Lane, slot: Slot) -> None:
        """As in ExecutorPool; but a worker that has been initialized, or whose tasks are counted, stays ours."""
        if self._keeps and lane.shape == self._ones and not lane.single:
            return
        super().worker_idle(lane, slot)

    def give_up_idle(self) -> None:
        """As in ExecutorPool; but see `worker_idle`."""
        if not self._keeps:
            super().give_up_idle()

    # -- near what they take

    def submit(self, route: Route, fn: Callable[..., Any], args: Any, kwargs: Any, flow: Any = None) -> Future[Any]:
        """As in ExecutorPool, but for the lane."""
        if self.state is not OPEN:
            self._refuse()
        try:
            export, call = self._prepare(fn, args, kwargs)
        except BaseException as error:
            return self._unprepared(route, fn, args, kwargs, error, flow)
        if call.__class__ is Stored:
            route = self.near(route, call)
        future: Future[Any] = Future(route, export, call)
        if flow is not None:
            future._more().stream = flow
        self._queue(future, route.lane)
        if self.state is not OPEN:
            self._submitted_too_late(future)
        return future

    def _queue(self, future: Future[Any], lane: Lane) -> None:
        try:
            lane.queue.append(future)
            if lane.hungry:
                lane.push()
            else:
                self._submitted += 1
                if not self._submitted % PUMP_EVERY:
                    self.runtime.pump()
        except BaseException:  # a signal handler raised: nobody has the future, but it is queued
            self.later(lane.push)
            raise

    def dependent_ready(self, future: Future[Any]) -> None:
        """As in ExecutorPool, but for the lane."""
        if isinstance(future._call, Stored) and isinstance(future._route, Route):
            future._route = self.near(future._route, future._call)
        super().dependent_ready(future)

    def near(self, route: Route, call: Stored) -> Route:
        """The route for a call with stored arguments: near those, if they are large."""
        sizes = stored_at(call)
        if sum(sizes.values()) < NEAR_BYTES or not self.runtime.config.locality:
            return route
        home, size = max(sizes.items(), key=lambda one: one[1])
        shape = with_names(route.lane.shape, {f"{NEAR}{home.hex()}": rounded(size)})
        known = self._near.get((route, shape))
        if known is None:
            lane = self.lane(shape, route.lane.single)
            known = Route(self, lane, route.max_retries, route.timeout_s, route.name, False, route.retry_on)
            self._near[route, shape] = known
        return known


def stored_at(call: Stored) -> dict[bytes, int]:
    """Home → bytes of the call's arguments that lie in the object store."""
    places = [] if isinstance(call.wire, bytes) else [call.wire]
    places += [handle.place for handle in call.keep if getattr(handle, "place", None) is not None]
    found: dict[bytes, int] = {}
    for obj, size in {place[0]: place[4] for place in places}.items():
        home = ids.home_of(obj)
        found[home] = found.get(home, 0) + size
    return found


def rounded(size: int) -> int:
    """To a power of two: calls with about as much lying at the same place are alike."""
    return 1 << max(1, size).bit_length()
