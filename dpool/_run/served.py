"""The classes that a program under `dpool run` gets where it asks for the standard library's pools, or loky's.

They are dpool's, with the signatures and names of those that they stand for. `isinstance` says of both kinds that they
are instances. A subclass that changes the internals of the standard class is made a subclass of that one: what it
changes is not in dpool.
"""

from __future__ import annotations

import sys
from abc import ABCMeta
from typing import TYPE_CHECKING, Any

import dpool.executor
from dpool._run.serving import options, stays_standard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_standards: dict[type, type] = {}
"""Our class → the standard one."""


class _Served(ABCMeta):
    """The type of the classes here, and of the subclasses that a program makes of them."""

    def __new__(mcls, name: str, bases: tuple[type, ...], space: dict[str, Any], **settings: Any) -> Any:
        space.setdefault("__module__", sys._getframe(1).f_globals.get("__name__"))  # it would be ours else
        changed = sorted({each for base in bases for each in _internals(base) & space.keys()})
        if not changed:
            return super().__new__(mcls, name, bases, space, **settings)
        if "__new__" not in space:
            space = {**space, "__new__": _naming(changed)}
        return type(name, tuple(_standards.get(base, base) for base in bases), space, **settings)


def _internals(base: type) -> set[str]:
    """The private names that a subclass of `base`, a class of ours, may not change."""
    standard = _standards.get(base)
    if standard is None:
        return set()
    return {name for name in vars(standard) if name.startswith("_") and not name.startswith("__")}


def _naming(changed: list[str]) -> Any:
    """A `__new__` that says that the class stays standard: when it is used, for many libraries only define one."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        stays_standard(f"{cls.__module__}.{cls.__qualname__}", f"it changes internals ({', '.join(changed)})")
        return object.__new__(cls)

    return new


def _stand_for(ours: type, standard: type) -> type:
    """`ours`, which is asked for as `standard`."""
    ours.__module__, ours.__qualname__, ours.__doc__ = standard.__module__, standard.__qualname__, standard.__doc__
    _standards[ours] = standard
    ours.register(standard)  # type: ignore[attr-defined]
    return ours


def pool(standard: type) -> type:
    """multiprocessing.pool.Pool"""
    import dpool.pool

    class Pool(dpool.pool.Pool, metaclass=_Served):
        def __init__(
            self,
            processes: int | None = None,
            initializer: Callable[..., object] | None = None,
            initargs: Iterable[Any] = (),
            maxtasksperchild: int | None = None,
            context: Any = None,
        ) -> None:
            if processes is None:
                processes = options().workers
            super().__init__(processes, initializer, initargs, maxtasksperchild, context)

    return _stand_for(Pool, standard)


def either(standard: type) -> type:
    """A class of results: for `isinstance`, of ours and of ThreadPool's."""
    import dpool.pool

    class Either(metaclass=ABCMeta):  # noqa: B024  there is nothing to inherit
        def __class_getitem__(cls, item: Any) -> Any:
            return standard.__class_getitem__(item) if hasattr(standard, "__class_getitem__") else cls

    Either.__name__, Either.__qualname__, Either.__module__ = (
        standard.__name__,
        standard.__qualname__,
        "multiprocessing.pool",
    )
    Either.register(standard)
    Either.register(getattr(dpool.pool, standard.__name__))
    return Either


_executors: dict[type, type] = {}


def executor(standard: type) -> type:
    """concurrent.futures.ProcessPoolExecutor"""
    if standard in _executors:
        return _executors[standard]

    class ProcessPoolExecutor(dpool.executor.Executor, metaclass=_Served):
        def __init__(
            self,
            max_workers: int | None = None,
            mp_context: Any = None,
            initializer: Callable[..., object] | None = None,
            initargs: tuple[Any, ...] = (),
            *,
            max_tasks_per_child: int | None = None,
        ) -> None:
            if max_workers is None:
                max_workers = options().workers
            super().__init__(max_workers, mp_context, initializer, initargs, max_tasks_per_child=max_tasks_per_child)

    return _executors.setdefault(standard, _stand_for(ProcessPoolExecutor, standard))


# -- loky


def loky_executor(standard: type) -> type:
    """loky.ProcessPoolExecutor"""
    if standard in _executors:
        return _executors[standard]

    class ProcessPoolExecutor(dpool.executor.Executor, metaclass=_Served):
        shutdown = dpool.executor.ReusableExecutor.shutdown

        def __init__(
            self,
            max_workers: int | None = None,
            job_reducers: Any = None,
            result_reducers: Any = None,
            timeout: float | None = None,
            context: Any = None,
            initializer: Callable[..., object] | None = None,
            initargs: tuple[Any, ...] = (),
            env: Any = None,
        ) -> None:
            if max_workers is None:
                max_workers = options().workers
            super().__init__(max_workers, None, initializer, initargs, idle_timeout=timeout, env=env)

    ours = _stand_for(ProcessPoolExecutor, standard)
    ours.register(dpool.executor.ReusableExecutor)  # type: ignore[attr-defined]
    return _executors.setdefault(standard, ours)


def reusable(standard: Callable[..., Any]) -> Callable[..., Any]:
    """loky.get_reusable_executor"""
    from functools import wraps

    @wraps(standard)
    def get_reusable_executor(max_workers: int | None = None, *args: Any, **kwargs: Any) -> Any:
        reuse = kwargs.get("reuse", args[3] if len(args) > 3 else "auto")
        if max_workers is None and reuse is not True:
            max_workers = options().workers
        return dpool.executor.get_reusable_executor(max_workers, *args, **kwargs)

    return get_reusable_executor


def broken_pool(standard: type) -> type:
    """What loky raises when a worker dies; ours are of the standard library's kind."""
    from concurrent.futures.process import BrokenProcessPool

    return BrokenProcessPool


def worker_crashed(standard: type) -> type:
    """The same, more precisely."""
    from dpool.errors import WorkerCrashed

    return WorkerCrashed
