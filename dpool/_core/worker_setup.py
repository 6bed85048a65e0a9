"""What makes a fresh fork of the zygote feel like a worker of `multiprocessing`.

The working directory, environment, `sys.path`, `sys.argv`, warnings filters, logger levels and authentication key are
the driver's; `multiprocessing.current_process()` has a numbered name, `parent_process()` is the driver; standard
input is /dev/null; what is written to standard output and error goes through the node to the driver, line by line.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import socket
import sys
from contextvars import copy_context
from typing import Any

from dpool._core import warning_filters
from dpool._core.config import WORKER_POLL_S
from dpool._core.context import WorkerContext, here
from dpool._core.frames import Page
from dpool._core.messages import Setup, Spawn
from dpool._core.preload import THREAD_VARIABLES, Preloaded, limit_loaded
from dpool._core.serialize import Importer, install_main
from dpool._core.worker import SubmitterGone, Worker


def run_worker(message: Spawn, fds: list[int]) -> None:
    """Become the worker and serve; never returns."""
    sock_fd, page_fd, out_fd, err_fd = fds
    _streams(out_fd, err_fd)
    _signals()
    setup: Setup = pickle.loads(message.setup)
    if message.submitter:
        setup = setup._replace(driver_pid=message.submitter)
    page = Page(page_fd)
    for fd in (page_fd, out_fd, err_fd):
        os.close(fd)
    context = WorkerContext(
        message.worker,
        message.ordinal,
        message.session,
        message.node_pid,
        setup.job,
        setup.depth,
        setup.driver_pid,
        message.place,
    )
    here.worker, here.worker_pid, here.page = context, os.getpid(), page
    importer = Importer()
    _take_over(setup, context)
    code = 0
    try:
        worker = Worker(socket.socket(fileno=sock_fd), page, importer, poll_s=WORKER_POLL_S)
        worker.run()
    except SubmitterGone:  # the node is about to kill us
        code = 1
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    leave_process(code)


def _streams(out_fd: int, err_fd: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out_fd, 1)
    os.dup2(err_fd, 2)
    os.close(null)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]
    faulthandler.enable(file=2, all_threads=True)


def _signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the loop has its handler
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def _take_over(setup: Setup, context: WorkerContext) -> None:
    import atexit

    if not Preloaded.anything:  # else what is there belongs to the modules, and was not there before
        atexit._clear()
    os.environ.clear()
    os.environ.update(setup.environ)
    _limit_threads(setup)
    if "TZ" in setup.environ:
        import time

        time.tzset()
    try:
        os.chdir(setup.cwd)
    except OSError as error:
        what = f"the driver's working directory {setup.cwd!r} cannot be entered on {os.uname().nodename}"
        sys.stderr.write(f"dpool: {what}, tasks there run in {os.getcwd()!r}: {error}\n")
    sys.path[:] = _path(setup, context.session)
    sys.path_importer_cache.clear()
    sys.argv[:] = setup.argv
    sys.setrecursionlimit(max(setup.recursion_limit, sys.getrecursionlimit()))
    if setup.decimal is not None:
        import decimal

        decimal.setcontext(setup.decimal)
    install_main(setup.main_file, setup.main_package)
    warning_filters.install(setup.filters)
    _multiprocessing(setup, context)
    _logging(setup)
    _random(context)
    if Preloaded.anything:
        limit_loaded()
    _call_at_start(setup)
    here.context = copy_context()


def _path(setup: Setup, session: str) -> list[str]:
    """`sys.path`; what the program has on another machine is sent when it is imported."""
    here.home = setup.home
    if not setup.home or os.path.basename(setup.home) == os.path.basename(session):
        return setup.path
    from dpool._core import far_modules

    far_modules.install(setup.home, session, setup.path, setup.cwd)
    return far_modules.paths(setup.path, sys.path)


def _limit_threads(setup: Setup) -> None:
    for name in THREAD_VARIABLES:
        if name not in setup.environ:
            os.environ[name] = str(setup.threads)


def _multiprocessing(setup: Setup, context: WorkerContext) -> None:
    import itertools
    from multiprocessing import process, util

    me: Any = process.current_process()
    me._name = f"DpoolWorker-{context.ordinal}"
    me._identity = (context.ordinal,)
    me.authkey = setup.authkey
    me._config.pop("daemon", None)
    me._parent_pid = setup.driver_pid
    process._process_counter = itertools.count(1)  # type: ignore[attr-defined]
    process._children = set()  # type: ignore[attr-defined]
    try:
        sentinel = os.pidfd_open(setup.driver_pid)
        process._parent_process = process._ParentProcess("MainProcess", setup.driver_pid, sentinel)  # type: ignore[attr-defined]
    except OSError:  # the driver is in another pid namespace, or just died
        process._parent_process = None  # type: ignore[attr-defined]
    if setup.tracker is not None:
        from dpool._core import tracker

        tracker.join(tracker.Tracker(*setup.tracker))
    util._finalizer_registry.clear()  # type: ignore[attr-defined]
    util._run_after_forkers()  # type: ignore[attr-defined]


def _logging(setup: Setup) -> None:
    levels, alone, handlers = setup.logs
    if levels or handlers:
        from dpool._core import logs

        logs.install(logs.Logs(levels, alone, [logs.Handler(*each) for each in handlers]))


def _random(context: WorkerContext) -> None:
    """`random` reseeds itself after a fork; numpy, should it be here already, does not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4), "big"))


def _call_at_start(setup: Setup) -> None:
    """What others than the runtime want done in workers."""
    if not setup.at_start:
        return
    from importlib import import_module

    for module, function, argument in setup.at_start:
        getattr(import_module(module), function)(argument)


def leave_process(code: int) -> None:
    """End the worker as `multiprocessing` ends its own: threads joined, exit functions run, streams flushed."""
    import atexit
    import threading
    from multiprocessing import util

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        util._exit_function()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = code or 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    os._exit(code)
