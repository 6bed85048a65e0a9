"""A task that waits for one of its own that no worker has begun runs it itself.

```
 parent task ─ get(child) ─┬ child sent to a worker ──► wait; the parent's CPUs are lent meanwhile
                           └ child still queued ──────► taken out of the queue, run here, in the parent's stack
```

So a tree of nested tasks needs as many processes as there are CPUs, not as many as it has nodes, and no process switch
where no CPU is free anyway; fork-join frameworks do the same (Cilk, Java's ForkJoinPool). Arguments and results are
pickled all the same, so that neither side sees what the other changes, and context variables are those of a fresh task.

Only tasks of `@remote` that ask for no more than one CPU, have no time-out, and whose parent holds a CPU; only in the
first attempt of the parent, since a child that crashes takes it along. And not while this process has calls of actors
that wait for their arguments: what the child asks of those actors would wait behind them, and they perhaps for it.
"""

from __future__ import annotations

import pickle
import signal
import threading
from typing import TYPE_CHECKING, Any

from dpool._core import storage
from dpool._core.context import here
from dpool._core.future import CANCELLED_AND_NOTIFIED, PENDING, RUNNING, Future, InStore, _mutex, finish
from dpool._core.serialize import ATOMIC, dump_exception, load_exception, pickle_result
from dpool._core.storage import Stored

if TYPE_CHECKING:
    from dpool._core.lane import Lane

MOST_DEEP = 30
"""Tasks that run one inside the other, at most: each takes some frames of Python's stack."""


class _Depth(threading.local):
    now = 0


_depth = _Depth()


def run_here(lane: Lane, future: Future[Any]) -> bool:
    """Run a queued task in this thread; False if it is not to be had or must not."""
    if not here.holds_cpus or _depth.now >= MOST_DEEP or threading.current_thread() is not threading.main_thread():
        return False
    if any(pool.holds_calls() for pool in list(lane.pool.runtime.pools.values())):
        return False
    export, call = future._export, future._call
    if export is None or not (export.inline or export.function() is not None) or not _take(lane, future):
        return False
    _depth.now += 1
    try:
        here.context.copy().run(_run, lane, future, export, call)
    finally:
        _depth.now -= 1
    lane.pool.task_ended()
    return True


def _take(lane: Lane, future: Future[Any]) -> bool:
    with lane.lock:
        if future._state is not PENDING:
            return False
        try:
            lane.queue.remove(future)
        except ValueError:  # it is being sent at this moment
            return False
        with _mutex:
            future._state = RUNNING
    return True


def _run(lane: Lane, future: Future[Any], export: Any, call: Any) -> None:
    """Run it; KeyboardInterrupt if that has reached the child, and was meant for whoever waits for it."""
    interrupts = here.interrupts
    before = interrupts.count
    interrupts.inline.append(future)
    try:
        _run_child(lane.label(future), future, export, call)
    except KeyboardInterrupt:
        future._settle(CANCELLED_AND_NOTIFIED)  # unless it ended before
        if interrupts.count == before:  # the child has raised it itself
            raise
    finally:
        interrupts.inline.pop()
    if interrupts.count != before:  # the child may have caught it
        if interrupts.inner is not future:
            raise KeyboardInterrupt
        interrupts.inner = None
        interrupts.count = before
        interrupts.armed = True


def interrupt(future: Future[Any]) -> None:
    """Another thread of the task cancels a child that the task runs."""
    here.interrupts.inner = future
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _run_child(label: str, future: Future[Any], export: Any, call: Any) -> None:
    try:
        function, args, kwargs = _load(export, call)
        result = function(*args, **kwargs)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            if not here.interrupts.armed:  # a signal: the child is cancelled
                raise
            finish(future, None, load_exception(dump_exception(error, label), label))
            raise  # it is meant for whoever waits as well
        finish(future, None, load_exception(dump_exception(error, label), label))
        return
    if type(result) in ATOMIC:
        finish(future, result)
        return
    try:
        value = _copied(result, label)
    except BaseException as error:
        finish(future, None, load_exception(dump_exception(error, label), label))
        return
    finish(future, value)


def _load(export: Any, call: Any) -> tuple[Any, Any, Any]:
    """(function, args, kwargs)"""
    from dpool._core.mainspace import load_function, load_payload

    if type(call) is tuple:
        return export.function(), call, {}
    wire: Any = call.wire if call.__class__ is Stored else call
    if not export.inline:
        return (export.function(), *load_payload(wire))
    _, function, content = pickle.loads(wire)
    if function is None:
        loaded: tuple[Any, Any, Any] = load_payload(content)
        return loaded
    return (load_function(function), *load_payload(content))


def _copied(result: Any, label: str) -> Any:
    """The result as whoever asked for it would have got it from another process."""
    parts, keep = pickle_result(result, label)
    packed: Any = parts if type(parts) is bytes else storage.pack(parts, keep)  # type: ignore[arg-type]
    if packed.__class__ is not Stored:
        return storage.unpack(packed)
    if type(packed.wire) is list:
        return InStore(packed.wire, label, packed.keep[0])
    data: Any = packed.wire
    return storage.unpack(data)
