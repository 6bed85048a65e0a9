"""What a worker takes over from the process that submits: collected here, applied in `worker_setup`."""

from __future__ import annotations

import os
import pickle
import sys

from dpool._core import logs, tracker, warning_filters
from dpool._core.context import WorkersEnv, here
from dpool._core.launch import SECRETS
from dpool._core.messages import Setup


def make_setup(job: bytes, max_workers: int, env: dict[str, str], home: str = "") -> bytes:
    """A pickled `Setup` of this process as it is now; `env` is added to the environment. `home`: see `Setup`."""
    main = sys.modules.get("__main__")
    cpus = len(os.sched_getaffinity(0))
    found = logs.collect()
    more = here.workers_env or WorkersEnv({}, "", [])
    setup = Setup(
        driver_pid=os.getpid(),
        job=job,
        cwd=more.directory or _cwd(),
        environ={name: value for name, value in {**os.environ, **more.variables, **env}.items() if name not in SECRETS},
        path=[*more.path, *_path()],
        argv=list(sys.argv),
        main_file=getattr(main, "__file__", None),
        main_package=getattr(main, "__package__", None),
        filters=warning_filters.collect(),
        authkey=_authkey(),
        logs=(found.levels, found.alone, [tuple(each) for each in found.handlers]),
        recursion_limit=sys.getrecursionlimit(),
        decimal=_decimal_context(),
        threads=max(1, cpus // max(1, max_workers or cpus)),
        depth=here.worker.depth + 1 if here.worker is not None else 1,
        at_start=[ask() for ask in here.at_start],
        tracker=tracker.of_this_process(),
        home=home,
    )
    return pickle.dumps(setup, 5)


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return "/"


def _path() -> list[str]:
    """`sys.path`, with '' (wherever we are) spelled out, as `multiprocessing` does."""
    cwd = _cwd()
    return [entry or cwd for entry in sys.path]


def _authkey() -> bytes:
    if "multiprocessing.process" not in sys.modules:
        from multiprocessing import process

        return bytes(process.current_process().authkey)
    return bytes(sys.modules["multiprocessing.process"].current_process().authkey)


def _decimal_context() -> object:
    """That of this thread, if somebody changed it."""
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return None
    context, default = decimal.getcontext(), decimal.Context()
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "traps")
    return context.copy() if any(getattr(context, name) != getattr(default, name) for name in names) else None
