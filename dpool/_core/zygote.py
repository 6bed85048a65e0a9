"""The zygote: a single-threaded process whose only work is to fork, so that a worker starts in milliseconds.

It is forked by the node before the node has any thread, imports what a worker needs, and forks a worker for every
`Spawn`. A worker is forked twice (zygote → middle → worker) and the middle exits, so that the kernel hands the worker
to the node, which is a "child subreaper": the node learns how each worker ended, whether or not the zygote lives, and
the workers die with the node (`PR_SET_PDEATHSIG`). A worker is never a fork of the user's process.

The zygote ends when the node's socket closes; should the node have been killed, it removes the session directory.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from typing import Any

from dpool._core import wire
from dpool._core.messages import Preload, Spawn, Spawned, SpawnFailed, SpawnProgram

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: Any) -> None:
    """The system call; OSError when the kernel refuses."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    value = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def set_title(name: str) -> None:
    """What `ps` and `top` show as the command's name (15 characters)."""
    prctl(PR_SET_NAME, name.encode()[:15])


def serve(sock: socket.socket, session: str) -> None:
    """Fork on demand until the node's end closes; runs in the zygote and returns only there."""
    set_title("dpool-zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _preload()
    channel = wire.ControlChannel(sock)
    while True:
        try:
            message, fds = channel.receive(0)
        except InterruptedError:
            continue
        except wire.Closed:
            break
        try:
            _obey(channel, message, fds)
        except wire.Closed:
            break
        for fd in fds:
            os.close(fd)
        _preload_more()
    _remove_session(session)


def _obey(channel: wire.ControlChannel, message: Any, fds: list[int]) -> None:
    if isinstance(message, Spawn):
        _fork_twice(channel, message.worker, message.node_pid, partial(_become_worker, message, fds))
    elif isinstance(message, SpawnProgram):
        _fork_twice(channel, message.program, message.node_pid, partial(_become_program, message, fds))
    elif isinstance(message, Preload):
        _preload_asked(channel, message)


def _preload() -> None:
    """Import what every worker needs, so that the forks share it."""
    import gc
    import multiprocessing.process
    import multiprocessing.util  # noqa: F401  registers its exit function, which a worker calls itself

    import dpool._core.serialize
    import dpool._core.worker
    import dpool._core.worker_setup  # noqa: F401

    gc.freeze()  # a collection first would cost the first worker milliseconds, and find nothing


def _preload_more() -> None:
    """What a worker may need, once the first one is on its way."""
    import gc
    import traceback  # noqa: F401

    if "dpool.errors" not in sys.modules:
        import dpool.errors  # noqa: F401  the standard library's executors come with it

        gc.freeze()


def _preload_asked(channel: wire.ControlChannel, message: Preload) -> None:
    """What the program asked for is imported by another zygote, which then serves in our place."""
    from dpool._core.preload import fork_preloaded

    zygote = os.getpid()

    def become_child() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != zygote:
            os._exit(1)

    fork_preloaded(message, channel.fileno(), channel.send, become_child)


def _fork_twice(channel: wire.ControlChannel, worker: int, node_pid: int, become: Any) -> None:
    try:
        middle = os.fork()
    except OSError as error:
        _say(channel, SpawnFailed(worker, f"fork: {error}"))
        return
    if middle:
        _, status = os.waitpid(middle, 0)
        if status:  # then there is no child, or nobody knows of it
            how = os.waitstatus_to_exitcode(status)
            _say(channel, SpawnFailed(worker, f"fork: the process between ended with {how}"))
        return
    try:
        middle = os.getpid()
        try:
            child = os.fork()
        except OSError as error:
            _say(channel, SpawnFailed(worker, f"fork: {error}"))
            os._exit(0)
        if child:
            os._exit(0)
        _say(channel, Spawned(worker, os.getpid()))
        channel.close()
        _bind_to_node(node_pid, middle)
        become()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def _say(channel: wire.ControlChannel, message: Any) -> None:
    """Tell the node; waits while it is so busy, or stopped, that its socket is full. Closed if it is gone."""
    from select import POLLOUT, poll

    channel.send(message)
    waiter = poll()
    waiter.register(channel.fileno(), POLLOUT)
    while channel.pending:
        waiter.poll()
        channel.flush()


def _bind_to_node(node_pid: int, middle_pid: int) -> None:
    """Wait for the kernel to take us from the process between and hand us to the node, then ask to die with it. If the
    node is dead, somebody else is our parent then.
    """
    while os.getppid() == middle_pid:
        os.sched_yield()
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != node_pid:
        os._exit(1)


def _become_worker(message: Spawn, fds: list[int]) -> None:
    from dpool._core.worker_setup import run_worker

    set_title("dpool-worker")
    run_worker(message, fds)


def _become_program(message: SpawnProgram, fds: list[int]) -> None:
    """Become another program (the control store's server), with its log as output and its configuration as input."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log = os.open(message.log_file, flags, 0o600)
    source = os.memfd_create("dpool-stdin")
    os.write(source, message.stdin)
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.setpgid(0, 0)
    try:
        os.execvp(message.argv[0], message.argv)
    except OSError as error:
        sys.stderr.write(f"{message.argv[0]}: {error}\n")
        sys.stderr.flush()
        os._exit(127)


def _remove_session(session: str) -> None:
    """The node is gone; if it could not tidy up, do it."""
    if os.path.isdir(session):
        from dpool._core.launch import remove_session

        remove_session(session)
