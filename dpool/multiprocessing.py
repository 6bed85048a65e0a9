"""`import dpool.multiprocessing as multiprocessing`: the standard library's names, served by dpool.

```
 Pool ───────────────────────────────────────► dpool.Pool
 Lock Event Queue Value Pipe … ──────────────► dpool's own: pickle anywhere, work across workers and processes
 Process Manager current_process … ──────────► multiprocessing (the names that are not here pass through)
```

`docs/multiprocessing.md` says what differs. A context (`get_context("spawn")`) has the same names; its start method is
that of its `Process`.
"""

from __future__ import annotations

import multiprocessing as _standard
import multiprocessing.context as _context
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpool._core import sync_locks as _locks
    from dpool._core import sync_queues as _queues
    from dpool.pool import Pool as _Pool

ProcessError = _standard.ProcessError
BufferTooShort = _standard.BufferTooShort
TimeoutError = _standard.TimeoutError
AuthenticationError = _standard.AuthenticationError


class Context(_context.BaseContext):
    """What `get_context` gives: all names of this module, and a start method for `Process`."""

    def __init__(self, standard: Any) -> None:
        self._standard = standard

    def __getattr__(self, name: str) -> Any:
        if name == "_standard":  # one that is being unpickled
            raise AttributeError(name)
        return getattr(self._standard, name)

    def __reduce__(self) -> Any:
        return get_context, (self._standard.get_start_method(),)

    def __repr__(self) -> str:
        return f"<dpool.multiprocessing.Context {self._standard.get_start_method()!r}>"

    @property
    def Process(self) -> Any:
        """The standard library's `Process` of this start method."""
        return self._standard.Process

    def Pool(  # type: ignore[override]
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **settings: Any,
    ) -> _Pool:
        """A `dpool.Pool`."""
        from dpool.pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self, **settings)

    def Manager(self) -> Any:
        """The standard library's `SyncManager`, started: its proxies work in tasks, and in `initargs`."""
        from dpool._core.sync_managers import started

        return started(self._standard)

    def Lock(self) -> _locks.Lock:  # type: ignore[override]
        """A lock."""
        from dpool._core.sync_locks import Lock

        return Lock()

    def RLock(self) -> _locks.RLock:  # type: ignore[override]
        """A recursive lock."""
        from dpool._core.sync_locks import RLock

        return RLock()

    def Semaphore(self, value: int = 1) -> _locks.Semaphore:  # type: ignore[override]
        """A semaphore."""
        from dpool._core.sync_locks import Semaphore

        return Semaphore(value)

    def BoundedSemaphore(self, value: int = 1) -> _locks.BoundedSemaphore:  # type: ignore[override]
        """A semaphore that never has more permits than at the beginning."""
        from dpool._core.sync_locks import BoundedSemaphore

        return BoundedSemaphore(value)

    def Condition(self, lock: Any = None) -> _locks.Condition:  # type: ignore[override]
        """A condition."""
        from dpool._core.sync_locks import Condition

        return Condition(lock)

    def Event(self) -> _locks.Event:  # type: ignore[override]
        """An event."""
        from dpool._core.sync_locks import Event

        return Event()

    def Barrier(  # type: ignore[override]
        self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None
    ) -> _locks.Barrier:
        """A barrier."""
        from dpool._core.sync_locks import Barrier

        return Barrier(parties, action, timeout)

    def Queue(self, maxsize: int = 0) -> _queues.Queue:  # type: ignore[override]
        """A queue."""
        from dpool._core.sync_queues import Queue

        return Queue(maxsize)

    def JoinableQueue(self, maxsize: int = 0) -> _queues.JoinableQueue:  # type: ignore[override]
        """A queue with `task_done` and `join`."""
        from dpool._core.sync_queues import JoinableQueue

        return JoinableQueue(maxsize)

    def SimpleQueue(self) -> _queues.SimpleQueue:  # type: ignore[override]
        """A queue without limit."""
        from dpool._core.sync_queues import SimpleQueue

        return SimpleQueue()

    def Pipe(self, duplex: bool = True) -> Any:
        """Two connections; one that is pickled into a task is handed over once."""
        import dpool._core.sync_shared  # noqa: F401  # from now on dpool's pickles may contain connections

        return self._standard.Pipe(duplex)

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
        """A ctypes object in shared memory."""
        from dpool._core.sync_shared import RawValue

        return RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type: Any, size_or_initializer: Any) -> Any:
        """A ctypes array in shared memory."""
        from dpool._core.sync_shared import RawArray

        return RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        """A ctypes object in shared memory, with a lock."""
        from dpool._core.sync_shared import Value

        return Value(typecode_or_type, *args, lock=lock)

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:
        """A ctypes array in shared memory, with a lock."""
        from dpool._core.sync_shared import Array

        return Array(typecode_or_type, size_or_initializer, lock=lock)

    def get_context(self, method: str | None = None) -> Any:
        """The context of a start method; ValueError if there is none of that name."""
        return self if method is None else get_context(method)

    def get_start_method(self, allow_none: bool = False) -> Any:
        """The name of the start method."""
        return self._standard.get_start_method(allow_none)

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """As in the standard library: once, and only on the default context."""
        self._standard.set_start_method(method, force)

    @property
    def reducer(self) -> Any:
        """The standard library's."""
        return self._standard.reducer

    @reducer.setter
    def reducer(self, reduction: Any) -> None:
        self._standard.reducer = reduction

    def _check_available(self) -> None:
        self._standard._check_available()


class _Default(Context):
    def __reduce__(self) -> Any:
        return get_context, ()

    def get_all_start_methods(self) -> list[str]:
        """The names of the start methods that there are here, the default one first."""
        found: list[str] = _standard.get_all_start_methods()
        return found


_default = _Default(_context._default_context)
_contexts: dict[str, Context] = {}


def get_context(method: str | None = None) -> Any:
    """The context of a start method, by default the one in use: all names of this module. Source: the same function of
    `multiprocessing`.

    Raises:
        ValueError: there is no start method of that name.
    """
    if method is None:
        method = _standard.get_context().get_start_method()
    found = _contexts.get(method)
    if found is None:
        found = _contexts[method] = Context(_standard.get_context(method))
    return found


_OURS = (
    "Array", "Barrier", "BoundedSemaphore", "Condition", "Event", "JoinableQueue", "Lock", "Manager", "Pipe", "Pool",
    "Queue", "RLock", "RawArray", "RawValue", "Semaphore", "SimpleQueue", "Value",
)  # fmt: skip

if TYPE_CHECKING:
    Array = _default.Array
    Barrier = _default.Barrier
    BoundedSemaphore = _default.BoundedSemaphore
    Condition = _default.Condition
    Event = _default.Event
    JoinableQueue = _default.JoinableQueue
    Lock = _default.Lock
    Manager = _default.Manager
    Pipe = _default.Pipe
    Pool = _default.Pool
    Queue = _default.Queue
    RLock = _default.RLock
    RawArray = _default.RawArray
    RawValue = _default.RawValue
    Semaphore = _default.Semaphore
    SimpleQueue = _default.SimpleQueue
    Value = _default.Value
    from multiprocessing import Process as Process
    from multiprocessing import active_children as active_children
    from multiprocessing import current_process as current_process
    from multiprocessing import parent_process as parent_process

globals().update((name, getattr(_default, name)) for name in _OURS)
__all__ = list(_standard.__all__)


def __getattr__(name: str) -> Any:
    """Whatever else `multiprocessing` has, its submodules too."""
    try:
        return getattr(_standard, name)
    except AttributeError:
        pass
    import importlib

    try:
        return importlib.import_module(f"multiprocessing.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_standard)})
