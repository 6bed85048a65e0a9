"""What a worker takes over from the process that submits: collected here, applied in `worker_setup`."""

from __future__ import annotations

import os
import pickle
import sys

from dpool._core import tracker, warning_filters
from dpool._core.context import here
from dpool._core.launch import SECRETS
from dpool._core.messages import Setup


def make_setup(job: bytes, max_workers: int, env: dict[str, str]) -> bytes:
    """A pickled `Setup` of this process as it is now; `env` is added to the environment."""
    main = sys.modules.get("__main__")
    log_format, log_datefmt = _log_format()
    cpus = len(os.sched_getaffinity(0))
    setup = Setup(
        driver_pid=os.getpid(),
        job=job,
        cwd=_cwd(),
        environ={name: value for name, value in {**os.environ, **env}.items() if name not in SECRETS},
        path=_path(),
        argv=list(sys.argv),
        main_file=getattr(main, "__file__", None),
        main_package=getattr(main, "__package__", None),
        filters=warning_filters.collect(),
        authkey=_authkey(),
        loggers=_logger_levels(),
        log_format=log_format,
        log_datefmt=log_datefmt,
        threads=max(1, cpus // max(1, max_workers or cpus)),
        depth=here.worker.depth + 1 if here.worker is not None else 1,
        at_start=[ask() for ask in here.at_start],
        tracker=tracker.of_this_process(),
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


def _logger_levels() -> dict[str, int]:
    """The levels that somebody set: logger name → level, '' the root's."""
    logging = sys.modules.get("logging")
    if logging is None:
        return {}
    levels = {"": logging.root.level} if logging.root.level != logging.WARNING else {}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        level = getattr(logger, "level", 0)
        if level:
            levels[name] = level
    return levels


def _log_format() -> tuple[str | None, str | None]:
    """Format and date format of the root logger's first handler."""
    logging = sys.modules.get("logging")
    if logging is None or not logging.root.handlers:
        return None, None
    formatter = logging.root.handlers[0].formatter
    if formatter is None:
        return "%(message)s", None
    return getattr(formatter, "_fmt", None) or "%(message)s", getattr(formatter, "datefmt", None)
