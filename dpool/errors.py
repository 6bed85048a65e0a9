"""Every exception of dpool, each with the drop-in base class that old code already catches.

```
DpoolError
├── WorkerCrashed        (BrokenProcessPool)  a worker process died while it ran the task
│   └── OutOfMemory                           … and the kernel killed it for memory
├── NodeLost             (BrokenProcessPool)  the node process, and its workers with it, died
├── InitializerFailed    (BrokenProcessPool)  the initializer raised or died: the executor is broken
├── ExecutorBroken       (BrokenProcessPool)  submitted to, or pending in, a broken executor
├── TaskTimeout          (TimeoutError)       the task ran longer than its `timeout=` and was killed
├── SerializationError   (PicklingError)      an argument, a result or an exception does not pickle
├── DeserializationError (BrokenProcessPool)  … or does not unpickle on the other side
├── ActorDied            (BrokenProcessPool)  the actor's process died under the call, or is dead for good
├── PendingCallsLimit    (RuntimeError)       the actor has as many calls pending as `max_pending_calls=` allows
├── InfeasibleResources  (ValueError)         no machine can ever grant what the task asks for
├── ControlStoreError    (RuntimeError)       the control store (Redis) did not answer in time
├── ObjectStoreFull      (MemoryError)        neither the object store nor the disk has room
├── ObjectLost           (LookupError)        the object is gone: damaged, removed, or let go by all
├── StartupError         (RuntimeError)       the runtime could not be started
└── ForkedRuntimeError   (RuntimeError)       an object of the parent used in a forked child
```

Each one survives pickling with all its fields, and its message names what happened, where, and what to do.
"""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool
from pickle import PicklingError

__all__ = [
    "ActorDied",
    "ControlStoreError",
    "DeserializationError",
    "DpoolError",
    "ExecutorBroken",
    "ForkedRuntimeError",
    "InfeasibleResources",
    "InitializerFailed",
    "NodeLost",
    "ObjectLost",
    "ObjectStoreFull",
    "OutOfMemory",
    "PendingCallsLimit",
    "SerializationError",
    "StartupError",
    "TaskTimeout",
    "WorkerCrashed",
]


class DpoolError(Exception):
    """Base of every error that dpool itself raises."""


class WorkerCrashed(DpoolError, BrokenProcessPool):
    """The worker that ran the task died (killed, segmentation fault, `os._exit`).

    Attributes:
        task: the task's name.
        pid: the worker's process id.
        host: the machine's host name.
        signal: the signal's number, or None if it exited by itself.
        exit_code: the exit code, or None if a signal killed it (or it is not known).
        attempts: how often the task was started, this time included.
        log_file: where the worker's last words are.
    """

    def __init__(
        self,
        message: str,
        *,
        task: str = "",
        pid: int = 0,
        host: str = "",
        signal: int | None = None,
        exit_code: int | None = None,
        attempts: int = 1,
        log_file: str = "",
    ) -> None:
        super().__init__(message)
        self.task = task
        self.pid = pid
        self.host = host
        self.signal = signal
        self.exit_code = exit_code
        self.attempts = attempts
        self.log_file = log_file


class OutOfMemory(WorkerCrashed):
    """The kernel killed the worker because the machine, or its memory cgroup, ran out of memory."""


class NodeLost(DpoolError, BrokenProcessPool):
    """The node process died, and the workers that ran the task died with it; or another machine that ran it is lost."""


class InitializerFailed(DpoolError, BrokenProcessPool):
    """The executor's `initializer` raised, or its worker died in it; the executor cannot be used any more."""


class ExecutorBroken(DpoolError, BrokenProcessPool):
    """The executor is broken (`strict=True` and a worker died, or its workers were killed on purpose)."""


if sys.version_info >= (3, 11):
    _TimeoutBase = TimeoutError
else:
    from concurrent.futures import TimeoutError as _FutureTimeoutError

    class _TimeoutBase(_FutureTimeoutError, TimeoutError):
        """Python 3.10 has two of this name; old code catches either."""


class TaskTimeout(DpoolError, _TimeoutBase):
    """The task ran longer than the `timeout=` it was submitted with; its worker was killed."""


class SerializationError(DpoolError, PicklingError):
    """An argument, a result or an exception cannot be pickled; the message names it."""


class DeserializationError(DpoolError, BrokenProcessPool):
    """An argument or a result was pickled but does not unpickle on the other side; the message names it."""


class ActorDied(DpoolError, BrokenProcessPool):
    """The actor's process died while it ran the call, or the actor is dead for good; the message says why."""


class PendingCallsLimit(DpoolError, RuntimeError):
    """The actor has as many pending calls of this process as `max_pending_calls=` allows."""


class InfeasibleResources(DpoolError, ValueError):
    """No machine has, in total, what the task asks for."""


class ControlStoreError(DpoolError, RuntimeError):
    """The control store (Redis) could not be reached in time."""


class ObjectStoreFull(DpoolError, MemoryError):
    """Neither the object store nor the disk has room for the object; the message names sizes and who made what."""


class ObjectLost(DpoolError, LookupError):
    """The object is gone: its file was damaged or removed, or nobody held it any more; the message says which."""


class StartupError(DpoolError, RuntimeError):
    """The runtime's processes could not be started; the message names the cause and the log file."""


class ForkedRuntimeError(DpoolError, RuntimeError):
    """A future or an executor of the parent process was used in a forked child, which owns nothing of it."""
