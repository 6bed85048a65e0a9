"""What `dpool run` serves: the table of names, and how each is replaced when its module is imported.

```
 PARTS: part ─► rows (module, name, how it is made, who keeps the standard one) ─► hooks.replace
 pool, executor, loky: classes of `served`      joblib: its backend      sync: the methods of a context
```

What stays standard is named once, on standard error, and in the report.
"""

from __future__ import annotations

import sys
from functools import partial, wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._core.context import here
from dpool._run import ordering
from dpool._run.hooks import is_inside, replace, when_imported

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class Options(NamedTuple):
    """What to serve, and how; travels to the workers."""

    without: frozenset[str] = frozenset()
    """Parts that stay standard because the user says so."""
    workers: int | None = None
    """Where the program names no number."""
    quiet: bool = False
    """Do not say on standard error what stays standard."""
    tally: str = ""
    """The file to which processes write what they have read in place; see `report`."""


class Row(NamedTuple):
    """One name that is replaced."""

    module: str
    name: str
    maker: str
    """The name in `served` of the function that makes it, from the standard one."""
    insiders: tuple[str, ...] = ()
    """Modules and packages that keep the standard one."""


def _lokys() -> tuple[Row, ...]:
    """loky, and the copy of it that joblib brings."""
    rows = []
    for loky in ("loky", "joblib.externals.loky"):
        insiders = ("loky", "joblib")
        rows += [
            Row(loky, "get_reusable_executor", "reusable", insiders),
            Row(loky, "ProcessPoolExecutor", "loky_executor", insiders),
            Row(loky, "BrokenProcessPool", "broken_pool", insiders),
            Row(f"{loky}.reusable_executor", "get_reusable_executor", "reusable", insiders),
            Row(f"{loky}.process_executor", "ProcessPoolExecutor", "loky_executor", insiders),
            Row(f"{loky}.process_executor", "BrokenProcessPool", "broken_pool", insiders),
            Row(f"{loky}.process_executor", "TerminatedWorkerError", "worker_crashed", insiders),
        ]
    return tuple(rows)


PARTS: dict[str, tuple[Row, ...]] = {
    "pool": (
        Row("multiprocessing.pool", "Pool", "pool", ("multiprocessing.managers",)),
        Row("multiprocessing.pool", "AsyncResult", "either"),
        Row("multiprocessing.pool", "ApplyResult", "either"),
        Row("multiprocessing.pool", "MapResult", "either"),
        Row("multiprocessing.pool", "IMapIterator", "either"),
        Row("multiprocessing.pool", "IMapUnorderedIterator", "either"),
    ),
    "executor": (
        Row("concurrent.futures.process", "ProcessPoolExecutor", "executor"),
        Row("concurrent.futures", "ProcessPoolExecutor", "executor"),
    ),
    "loky": _lokys(),
}

SYNC = "dpool.multiprocessing"
"""The module that has the synchronisation objects, …"""
SYNC_NAMES = (
    "Lock",
    "RLock",
    "Condition",
    "Semaphore",
    "BoundedSemaphore",
    "Event",
    "Barrier",
    "Queue",
    "JoinableQueue",
    "SimpleQueue",
    "Value",
    "Array",
    "RawValue",
    "RawArray",
    "Pipe",
)
"""… which replace the methods of this name of every context of multiprocessing."""
SYNC_INSIDERS = ("multiprocessing", "concurrent.futures", "loky", "joblib", "dpool")
"""Packages that get the standard ones from a context: their own pools and processes are made of them."""

CHOICES = (*PARTS, "joblib", "sync")
"""What a user can leave out."""


class _State:
    """Of this process."""

    options = Options()
    standard: dict[str, str] = {}  # noqa: RUF012
    """What has stayed standard → why."""


def options() -> Options:
    """Those with which this process serves."""
    return _State.options


def standard() -> dict[str, str]:
    """What has stayed standard so far → why."""
    return _State.standard


def stays_standard(name: str, why: str) -> None:
    """Somebody uses `name`, which dpool cannot serve: say so, the first time."""
    if name in _State.standard:
        return
    _State.standard[name] = why
    if not _State.options.quiet and sys.stderr is not None:
        sys.stderr.write(f"dpool run: {name} stays standard: {why}\n")


def install(chosen: Options) -> None:
    """Serve, from now on, in this process."""
    _State.options = chosen
    for part, rows in PARTS.items():
        if part not in chosen.without:
            for row in rows:
                when_imported(row.module, partial(_replace, row))
    if "joblib" not in chosen.without:
        when_imported("joblib.parallel", _serve_joblib)
    if "sync" not in chosen.without:
        when_imported("multiprocessing.context", _serve_contexts)
    ordering.install()
    if chosen.tally:
        from dpool._run import report

        when_imported("dpool._core.store_client", partial(report.count_reads, chosen.tally))


def serve(chosen: Options) -> None:
    """Serve in this process and in every worker of it."""
    install(chosen)
    here.at_start.append(lambda: ("dpool._run.serving", "serve_in_worker", tuple(chosen)))


def serve_in_worker(settings: tuple[Any, ...]) -> None:
    """The same in a worker, which has got the options as a plain tuple; it says nothing, or each would say it."""
    serve(Options(*settings)._replace(quiet=True))


def _replace(row: Row, module: ModuleType) -> None:
    def make(standard: Any) -> Any:
        from dpool._run import served

        return getattr(served, row.maker)(standard)

    replace(module, row.name, make, row.insiders)


# -- joblib


def _serve_joblib(module: Any) -> None:
    """Where joblib would use its own processes it uses ours: by default, and where "loky" is asked for by name."""

    def backend(**settings: Any) -> Any:
        from dpool.joblib import DpoolBackend

        return DpoolBackend(**settings)

    module.BACKENDS["loky"] = module.BACKENDS["dpool"] = backend


# -- locks, queues and the like


def _serve_contexts(module: Any) -> None:
    """`multiprocessing.Lock` and its relatives are methods of a context, and so are `get_context(…).Lock`."""
    there = find_spec(SYNC) is not None
    for name in SYNC_NAMES:
        method = _context_method(name, getattr(module.BaseContext, name), there)
        setattr(module.BaseContext, name, method)
        package = sys.modules.get("multiprocessing")
        if package is not None and name in package.__dict__:  # it was imported before: it has taken the old method
            package.__dict__[name] = getattr(module._default_context, name)


def _context_method(name: str, standard: Callable[..., Any], there: bool) -> Callable[..., Any]:
    @wraps(standard)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_inside(sys._getframe(1).f_globals.get("__name__"), SYNC_INSIDERS):
            return standard(self, *args, **kwargs)
        if not there:
            stays_standard(f"multiprocessing.{name}", f"this version has no {SYNC}")
            return standard(self, *args, **kwargs)
        from importlib import import_module

        return getattr(import_module(SYNC), name)(*args, **kwargs)

    return method
