"""Lineage of the tasks of this process, on its way to the node: off the hot path, and only for tasks that live long
enough.

A task that is answered within `lineage_flush_s` of being sent leaves no trace. The io thread looks at the frames that
are out; what is older is described to the node (task id, function id, arguments), which writes it to the control
store; when the task has been answered, the node is told to forget it. So the hot path does nothing for lineage at
all.

Source: Lineage Stash (SOSP 2019) §3, Ray (OSDI 2018) §4.2; DESIGN §5.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any
from weakref import ref

from dpool._core import ids
from dpool._core.context import here
from dpool._core.messages import ExportFunction, TasksDelivered, TasksDispatched
from dpool._core.storage import Stored

if TYPE_CHECKING:
    from dpool._core.driver import NativeRuntime
    from dpool._core.future import Future
    from dpool._core.logic.dispatch import Frame
    from dpool._core.serialize import Export

NESTED = 1 << 62
"""Submission indexes of a job from here on stand for workers that submit."""
MAX_ARGUMENTS = 16 * 1024
"""Arguments larger than this are not copied into the control store; the record says how large they were."""


def _ended(future: ref[Future[Any]]) -> bool:
    task = future()
    return task is None or task.done()


class Lineage:
    """What this process has told its node of its tasks; used by the io thread alone."""

    def __init__(self, runtime: NativeRuntime) -> None:
        self._runtime = runtime
        worker = here.worker
        # tasks of a worker's own executors descend from the worker, so that their ids differ from the driver's
        self._parent = runtime.job if worker is None else ids.task_id(runtime.job, NESTED + worker.worker)
        self._index = 0
        self._told: dict[bytes, ref[Future[Any]]] = {}
        self._functions: dict[int, bytes] = {}
        """Number of an export → the id under which the node knows it."""

    def waiting(self) -> bool:
        """Whether frames are out that have not been looked at, or told tasks have ended."""
        return any(_ended(future) for future in self._told.values()) or any(True for _ in self._unrecorded())

    def _unrecorded(self) -> Any:
        for pool in list(self._runtime.pools.values()):
            for lane in list(pool._lanes.values()):
                for slot in list(lane.dispatcher.slots.values()):
                    for frame in list(slot.frames):
                        if not frame.recorded:
                            yield pool, lane, frame

    def look(self, now_s: float) -> None:
        """Tell the node of tasks that have been out for long, and of those that have ended."""
        delivered = [task for task, future in self._told.items() if _ended(future)]
        for task in delivered:
            del self._told[task]
        if delivered:
            self._runtime.tell(TasksDelivered(delivered))
        young_s = self._runtime.config.lineage_flush_s
        records: list[tuple[bytes, bytes]] = []
        for pool, lane, frame in self._unrecorded():
            if now_s - frame.sent_at >= young_s:
                with pool.lock:
                    records += self._record(frame, lane.label)
        if records:
            self._runtime.tell(TasksDispatched(records))

    def _record(self, frame: Frame, label: Any) -> list[tuple[bytes, bytes]]:
        frame.recorded = True
        records = []
        for future in frame.tasks[frame.done :]:
            export, call = future._export, future._call
            if export is None:
                continue
            self._index += 1
            task = ids.task_id(self._parent, self._index)
            if isinstance(call, Stored):
                call = call.wire
            data = call if isinstance(call, bytes) else pickle.dumps((call, {}), 5)
            arguments = data if len(data) <= MAX_ARGUMENTS else len(data)
            function = self._function(export)
            records.append((task, pickle.dumps((label(future), function, export.inline, arguments), 5)))
            self._told[task] = ref(future)
        return records

    def _function(self, export: Export) -> bytes:
        """The id of the function, exported to the node the first time."""
        if export.inline:
            return b""
        known = self._functions.get(export.number)
        if known is None:
            known = self._functions[export.number] = ids.function_id(export.blob)
            self._runtime.tell(ExportFunction(known, export.blob))
        return known

    def forget_functions(self, numbers: list[int]) -> None:
        """These exports are gone."""
        for number in numbers:
            self._functions.pop(number, None)
