"""The driver's logging in its workers: the levels and handlers of loggers.

What a forked child would write to a file, or to standard output or error, a worker writes there too, in the same
format. Handlers of other kinds stay in the driver; if the root logger has only such, records go to standard error.

A module that adds handlers to its loggers when it is imported does so in the worker again: then ours go.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import logging

OUT, ERR = "stdout", "stderr"


class Handler(NamedTuple):
    """What a worker needs to make a handler like one of the driver's."""

    logger: str
    """Empty for the root."""
    stream: str
    """`OUT` or `ERR`; empty for a file."""
    file: str
    encoding: str | None
    level: int
    format: str
    style: str
    date_format: str | None


class Logs(NamedTuple):
    levels: dict[str, int]
    """Those that somebody set: logger name → level, '' the root's."""
    alone: list[str]
    """Loggers that do not propagate."""
    handlers: list[Handler]


def collect() -> Logs:
    """The logging of this process as it is now."""
    logging = sys.modules.get("logging")
    if logging is None:
        return Logs({}, [], [])
    levels = {"": logging.root.level} if logging.root.level != logging.WARNING else {}
    present = [each for each in logging.root.handlers if not isinstance(each, logging.NullHandler)]
    handlers = [found for each in present if (found := _described(logging, "", each)) is not None]
    if present and not handlers:
        handlers = [Handler("", ERR, "", None, 0, *_format(logging, present[0]))]
    alone = []
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger):
            continue
        if logger.level:
            levels[name] = logger.level
        own = [found for each in logger.handlers if (found := _described(logging, name, each)) is not None]
        if own and not logger.propagate:
            alone.append(name)
        handlers += own
    return Logs(levels, alone, handlers)


def _described(logging: Any, logger: str, handler: Any) -> Handler | None:
    if isinstance(handler, logging.FileHandler):
        _append(handler)
        encoding = getattr(handler, "encoding", None)
        return Handler(logger, "", handler.baseFilename, encoding, handler.level, *_format(logging, handler))
    stream = getattr(handler, "stream", None)
    for name, streams in ((OUT, (sys.stdout, sys.__stdout__)), (ERR, (sys.stderr, sys.__stderr__))):
        if isinstance(handler, logging.StreamHandler) and stream is not None and stream in streams:
            return Handler(logger, name, "", None, handler.level, *_format(logging, handler))
    return None


def _append(handler: logging.FileHandler) -> None:
    """A file that was opened with "w" has a position of its own, and we would write over what workers add."""
    import fcntl
    import os

    try:
        fd = handler.stream.fileno()  # type: ignore[union-attr]
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    except (AttributeError, OSError, ValueError):  # not opened yet, or closed
        return


def _format(logging: Any, handler: Any) -> tuple[str, str, str | None]:
    """Format, its style, and format of the date."""
    formatter = handler.formatter
    text = getattr(formatter, "_fmt", None) or "%(message)s"
    kind = type(getattr(formatter, "_style", None))
    style = next((sign for sign, (each, _) in logging._STYLES.items() if each is kind), "%")
    return text, style, getattr(formatter, "datefmt", None)


def install(logs: Logs) -> None:
    """The same in a worker."""
    if not logs.levels and not logs.handlers:
        return
    import logging

    for name, level in logs.levels.items():
        logging.getLogger(name or None).setLevel(level)
    for name in {each.logger for each in logs.handlers}:
        logger = logging.getLogger(name or None)
        if logger.handlers:  # a module that was preloaded has made its own
            continue
        logger.propagate = name not in logs.alone
        ours = [_made(each) for each in logs.handlers if each.logger == name]
        for handler in ours:
            logger.addHandler(handler)
        if name:
            _give_way(logger, ours)


def _give_way(logger: logging.Logger, ours: list[logging.Handler]) -> None:
    """Take our handlers away as soon as somebody adds one here."""

    def add(handler: logging.Handler) -> None:
        del vars(logger)["addHandler"]
        for each in ours:
            logger.removeHandler(each)
        logger.addHandler(handler)

    vars(logger)["addHandler"] = add


def _made(one: Handler) -> logging.Handler:
    import logging

    handler: logging.Handler
    if one.stream:
        handler = logging.StreamHandler(sys.stdout if one.stream == OUT else sys.stderr)
    else:
        from logging.handlers import WatchedFileHandler

        handler = WatchedFileHandler(one.file, "a", one.encoding, delay=True)  # the driver's may move it
    handler.setLevel(one.level)
    formatter: Any = logging.Formatter  # the type of `style` is a literal
    handler.setFormatter(formatter(one.format, one.date_format, one.style, validate=False))
    return handler
