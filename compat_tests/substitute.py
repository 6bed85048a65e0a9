"""The class that stands where the standard library's tests expect ProcessPoolExecutor.

```
DPOOL_COMPAT_EXECUTOR=dpool:Executor ──► class ProcessPoolExecutor(dpool.Executor)   this module's only product
DPOOL_COMPAT_FUTURE=dpool:Future     ──► the class the tests build by hand as `Future()`
```

It is imported by the tests' own process and by the scripts which the tests start with `python -I -c`.
It adds three things and nothing else: the name that the scripts import; `strict=True` where a test asks for the
standard library's "one crash breaks the pool" (see `exclusions.STRICT`); and stand-ins for two private attributes, so
that tests which only *join* them still run.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

EXECUTOR_VARIABLE = "DPOOL_COMPAT_EXECUTOR"
FUTURE_VARIABLE = "DPOOL_COMPAT_FUTURE"
POOL_VARIABLE = "DPOOL_COMPAT_POOL"
DEFAULT_EXECUTOR = "dpool:Executor"
DEFAULT_POOL = "dpool:Pool"
DEFAULT_FUTURE = "dpool:Future"


class JoinsProcesses:
    """Stands for `_executor_manager_thread`: joined, it has seen every worker exit. It does not hold the executor."""

    def __init__(self, processes: Mapping[int, Any]) -> None:
        self._processes = processes

    def join(self) -> None:
        for process in list(self._processes.values()):
            process.join()


class NoThread:
    """Stands for `_call_queue`: dpool has no feeder thread, so there is nothing to join."""

    def join_thread(self) -> None:
        return


class _PrivateNames:
    """The two private attributes that tests join; everything that they check besides is public."""

    _processes: Mapping[int, Any]

    @property
    def _executor_manager_thread(self) -> JoinsProcesses:
        return JoinsProcesses(self._processes)

    @property
    def _call_queue(self) -> NoThread:
        return NoThread()


def load(spec: str) -> Any:
    """The object named by `module:attribute`.

    Raises:
        ValueError: the text has no colon.
        ImportError, AttributeError: there is no such object.
    """
    module, colon, name = spec.partition(":")
    if not colon:
        raise ValueError(f"expected module:attribute, got {spec!r}")
    return getattr(importlib.import_module(module), name)


def is_standard(executor: type) -> bool:
    """True when the harness tests itself with the standard library's own class."""
    return executor.__module__ == "concurrent.futures.process"


def stand_in(executor: type) -> type:
    """A subclass of `executor` called ProcessPoolExecutor; its `always` are keyword arguments of every instance."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        executor.__init__(self, *args, **{**type(self).always, **kwargs})  # type: ignore[misc]

    bases = (executor,) if is_standard(executor) else (_PrivateNames, executor)
    body = {"__init__": __init__, "__module__": __name__, "always": {}}
    return type("ProcessPoolExecutor", bases, body)


@functools.cache
def base() -> type:
    """The executor class under test."""
    chosen: type = load(os.environ.get(EXECUTOR_VARIABLE, DEFAULT_EXECUTOR))
    return chosen


@functools.cache
def process_pool_executor() -> Any:
    """Its stand-in; also importable from here as ProcessPoolExecutor, which is how the tests' scripts get it."""
    return stand_in(base())


def future() -> type:
    """The class that the tests build by hand as `Future()`."""
    chosen: type = load(os.environ.get(FUTURE_VARIABLE, DEFAULT_FUTURE))
    return chosen


@functools.cache
def pool() -> Any:
    """What the tests of multiprocessing's Pool are run with."""
    return load(os.environ.get(POOL_VARIABLE, DEFAULT_POOL))


def __getattr__(name: str) -> Any:
    if name == "ProcessPoolExecutor":
        return process_pool_executor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
