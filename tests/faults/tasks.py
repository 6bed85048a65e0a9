"""What the fault tests run in workers; importable there by name, so that it does not matter how functions travel."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

from tests.helpers import wait_until


def note(path: str, key: object) -> None:
    """Add the line `key pid` to a file; one write, so lines of many processes do not mix."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{key} {os.getpid()}\n".encode())
    finally:
        os.close(fd)


def noted(path: str, key: object, action: Callable[..., Any], *args: Any) -> Any:
    """`action(*args)`, noted before it begins."""
    note(path, key)
    return action(*args)


def pid(*_: object) -> int:
    return os.getpid()


def double(x: int) -> int:
    return 2 * x


def length(data: bytes) -> int:
    return len(data)


def filled(size: int, byte: int = 7) -> bytes:
    return bytes((byte,)) * size


def wait_for_file(path: str, value: Any = None, deadline_s: float = 60.0) -> Any:
    """Block, as a task on a lock does, until the file is there."""
    wait_until(lambda: os.path.exists(path), deadline_s, f"{path} opens")
    return value


def wait_first_time(path: str, key: str, gate: str) -> str:
    """Block at the first execution, return at the next."""
    with open(path) as file:
        earlier = sum(line.startswith(f"{key} ") for line in file)
    if earlier == 1:  # the line of this execution
        wait_for_file(gate)
    return f"attempt {earlier}"


def spin(seconds: float) -> int:
    """Keep a core busy."""
    from time import perf_counter

    until, n = perf_counter() + seconds, 0
    while perf_counter() < until:
        n += 1
    return n


def kill_me(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)
    wait_until(lambda: False, 30, "the signal")


def double_or_die(x: int, victim: int) -> int:
    if x == victim:
        kill_me()
    return 2 * x


def double_or_die_once(path: str, x: int) -> int:
    """Die the first time that anybody runs it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return 2 * x
    kill_me()
    raise AssertionError("alive")


def segfault() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def sys_exit(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


def fail(text: str) -> None:
    raise ZeroDivisionError(text)


def hold_gil(seconds: float) -> str:
    """Sleep in C with the interpreter's lock held."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return "held"


def fork_and_child_exits() -> tuple[int, int]:
    child = os.fork()
    if not child:
        os._exit(7)
    return os.getpid(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_and_child_returns(path: str) -> tuple[str, int]:
    """Both return; the worker waits for its child first."""
    child = os.fork()
    if not child:
        note(path, "child")
        return "child", os.getpid()
    os.waitpid(child, 0)
    return "worker", os.getpid()


def fork_and_child_outlives(path: str, gate: str) -> str:
    """The child returns long after the worker answered."""
    if not os.fork():
        wait_for_file(gate)
        note(path, "child")
        return "child"
    return "worker"


def own_socket() -> socket.socket:
    """The worker's own end of its submitter's socket."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
        except OSError:
            continue
        found = socket.socket(fileno=os.dup(fd))
        if found.type == socket.SOCK_SEQPACKET and not found.getsockname():
            return found
        found.close()
    raise AssertionError("this worker has no socket")


def send_to_submitter(packets: list[bytes], gate: str = "") -> None:
    """Say something to the submitter that no worker would, as a broken extension module might; then block."""
    sock = own_socket()
    for packet in packets:
        sock.send(packet)
    wait_until(lambda: False, 60, "the end")


def report(path: str, gate: str) -> str:
    """Note that it runs, and block; note a KeyboardInterrupt too."""
    note(path, "running")
    try:
        wait_for_file(gate)
    except KeyboardInterrupt:
        note(path, "interrupted")
        raise
    return "done"


def stubborn(path: str, gate: str) -> str:
    """As `report`, but it goes on when it is interrupted."""
    note(path, "running")
    while not os.path.exists(gate):
        try:
            wait_for_file(gate)
        except KeyboardInterrupt:
            note(path, "interrupted")
    return "done"


def nested(n: int) -> int:
    import dpool

    with dpool.Executor(1) as inner:
        return sum(inner.map(double, range(n)))


def hold_gil_then_die(seconds: float) -> None:
    hold_gil(seconds)
    kill_me()


def print_and_fill(size: int, text: int) -> bytes:
    """Say much, answer much."""
    print("x" * text)
    return filled(size)


def swallow(size: int) -> int:
    """Touch so much memory."""
    data = bytearray(size)
    for at in range(0, size, 4096):
        data[at] = 1
    return len(data)


def spin_and_double(x: int, seconds: float) -> int:
    spin(seconds)
    return 2 * x


def after_file(path: str, action: Callable[..., Any], *args: Any) -> Any:
    """`action(*args)`, once the file is there."""
    wait_for_file(path)
    return action(*args)
