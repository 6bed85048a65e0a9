"""What a program under `dpool run --report` has had done: counted in the process that submits, printed at its end.

```
 ExecutorPool.submit ─► calls of a chunk ─┐
 Lane._receive ─► task time of an answer ─┼─► Tally ─► at the end: a table on standard error, a JSON file
 Lane.settle ─► tasks that have ended ────┤
 ExecutorPool._bury ─► crashes ───────────┘
 StoreClient._map, in every process ─► bytes read in place ─► a memory file that all append to
```

The methods are wrapped when their modules are imported, and only for a report: without one, nothing is counted. Tasks
that tasks submit are counted in the processes that submit them, which nobody asks; only their reads are in the file.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO
from weakref import WeakKeyDictionary, WeakSet

from dpool._run import serving
from dpool._run.hooks import when_imported

if TYPE_CHECKING:
    from types import ModuleType

_READ = struct.Struct("q")
"""One read of the object store: bytes that were not copied (negative: they were copied after all)."""
BATCHES = ("_run_batch", "run_batch")
"""Functions of dpool's whose first argument is a list of calls."""


class Tally:
    """What has been counted. Any thread; an exact count needs the lock, the times do not."""

    def __init__(self) -> None:
        self.begun_s = monotonic()
        self.first_s = 0.0
        self.last_s = 0.0
        self.tasks = 0
        self.calls = 0
        self.task_ns = 0
        self.crashes = 0
        self.lock = threading.Lock()
        self.in_chunk: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """The number of calls in tasks that have more than one."""
        self.ended_early: WeakSet[Any] = WeakSet()
        """What was counted as one call: it may have ended before it was noted how many it has."""

    def submitted(self, future: Any, calls: int) -> None:
        self.first_s = self.first_s or monotonic()
        if calls != 1:
            with self.lock:
                if future in self.ended_early:
                    self.calls += calls - 1
                else:
                    self.in_chunk[future] = calls

    def answered(self, elapsed_ns: int) -> None:
        self.last_s = monotonic()
        with self.lock:
            self.task_ns += elapsed_ns

    def ended(self, futures: list[Any]) -> None:
        with self.lock:
            self.tasks += len(futures)
            for future in futures:
                calls = self.in_chunk.pop(future, -1)
                self.calls += calls if calls >= 0 else 1
                if calls < 0:
                    self.ended_early.add(future)

    def crashed(self) -> None:
        with self.lock:
            self.crashes += 1


# -- counting


def _calls_in(fn: Any, args: Any, kwargs: Any) -> int:
    """How many calls a task makes."""
    if kwargs.__class__ is int:
        return len(args)
    if getattr(fn, "__name__", "") in BATCHES and fn.__module__.startswith("dpool."):
        return len(args[0])
    return 1


def _count_submit(tally: Tally, kind: Any) -> None:
    submit = kind.submit

    def counted_submit(self: Any, route: Any, fn: Any, args: Any, kwargs: Any, *flow: Any) -> Any:
        calls = _calls_in(fn, args, kwargs)
        future = submit(self, route, fn, args, kwargs, *flow)
        tally.submitted(future, calls)
        return future

    kind.submit = counted_submit


def _count_pool(tally: Tally, module: Any) -> None:
    kind = module.ExecutorPool
    _count_submit(tally, kind)
    bury = kind._bury

    def counted_bury(self: Any, message: Any, known: Any) -> None:
        crash = (message.signal or message.exit_code) and known is not None and known[0].link.why is None
        expected = self._forced or self._terminated
        bury(self, message, known)
        if crash and not expected and self.broken is None:
            tally.crashed()

    kind._bury = counted_bury


def _count_lane(tally: Tally, module: Any) -> None:
    kind = module.Lane
    receive, settle = kind._receive, kind.settle

    def counted_receive(self: Any, slot: Any) -> bool:
        found: bool = receive(self, slot)
        if found:
            tally.answered(slot.link.answer[2])
        return found

    def counted_settle(self: Any, tasks: list[Any], values: list[Any]) -> None:
        tally.ended(tasks)
        settle(self, tasks, values)

    kind._receive, kind.settle = counted_receive, counted_settle


def count_reads(file: str, module: ModuleType) -> None:
    """Have each read of the object store in this process noted in `file`."""
    kind = module.StoreClient
    read, copied = kind._map, kind._copied
    opened: list[int] = []

    def note(size: int) -> None:
        if not opened:
            try:
                opened.append(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
            except OSError:  # the program has ended: nobody will read it
                opened.append(-1)
        if opened[0] >= 0:
            os.write(opened[0], _READ.pack(size))

    def counted_map(self: Any, place: Any, readonly: bool, copy: bool) -> Any:
        found = read(self, place, readonly, copy)
        if found is not None:
            note(place[4])
        return found

    def counted_copy(self: Any, place: Any, segment: Any) -> Any:
        found = copied(self, place, segment)
        if found is not None:
            note(-place[4])
        return found

    kind._map, kind._copied = counted_map, counted_copy


# -- the report


def start(program: str, shown: bool, json_file: str | None) -> str:
    """Count from now on, and report when the interpreter ends; returns the file for `count_reads`.

    Raises:
        OSError: `json_file` cannot be written.
    """
    written = open(json_file, "w") if json_file is not None else None
    tally = Tally()
    reads = os.memfd_create("dpool-report")
    pid = os.getpid()

    def finish() -> None:
        if os.getpid() != pid:
            return  # a child that the program forked
        found = figures(program, tally, reads)
        if written is not None:
            with written:
                _write_json(found, written)
        if shown and sys.stderr is not None:
            sys.stderr.write(table(found))
            sys.stderr.flush()

    atexit.register(finish)  # the first that is registered is the last that is called
    when_imported("dpool._core.executor_pool", lambda module: _count_pool(tally, module))
    when_imported("dpool._core.cluster_pool", lambda module: _count_submit(tally, module.ClusterPool))
    when_imported("dpool._core.lane", lambda module: _count_lane(tally, module))
    return f"/proc/{pid}/fd/{reads}"


def figures(program: str, tally: Tally, reads: int) -> dict[str, Any]:
    """What the report says, as JSON has it. Times are seconds, sizes bytes."""
    sizes = [size for (size,) in _READ.iter_unpack(_content(reads))]
    task_s = tally.task_ns * 1e-9
    span_s = max(0.0, tally.last_s - tally.first_s) if tally.last_s else 0.0
    return {
        "program": program,
        "wall_s": monotonic() - tally.begun_s,
        "tasks": tally.tasks,
        "calls": tally.calls,
        "tasks_wall_s": span_s,
        "task_s": task_s,
        "speedup": task_s / span_s if span_s else None,
        "crashes_survived": tally.crashes,
        "not_copied_bytes": sum(sizes),
        "not_copied_reads": sum(1 if size > 0 else -1 for size in sizes),
        "standard": [{"name": name, "why": why} for name, why in serving.standard().items()],
    }


def _content(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    return data[: len(data) - len(data) % _READ.size]


def _write_json(found: dict[str, Any], file: TextIO) -> None:
    json.dump(found, file, indent=2)
    file.write("\n")


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    speedup = found["speedup"]
    rows = [
        ("tasks", f"{found['tasks']:,}" + (f" ({found['calls']:,} calls)" if found["calls"] != found["tasks"] else "")),
        ("wall time", f"{found['wall_s']:.2f} s"),
        ("first task to last", f"{found['tasks_wall_s']:.2f} s"),
        ("sum of task times", f"{found['task_s']:.2f} s"),
        ("speed-up", "–" if speedup is None else f"{speedup:.2f} ×"),
        ("crashes survived", f"{found['crashes_survived']:,}"),
        ("not copied", f"{_size(found['not_copied_bytes'])} in {found['not_copied_reads']:,} reads"),
    ]
    rows += [("stayed standard", f"{one['name']}: {one['why']}") for one in found["standard"]]
    width = max(len(name) for name, _ in rows)
    lines = [f"dpool run: {found['program']}", *(f"  {name:{width}}  {value}" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _size(count: float) -> str:
    units = iter(("bytes", "kB", "MB", "GB"))
    unit = next(units)
    while count >= 1000 and unit != "GB":
        count /= 1000
        unit = next(units)
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
