"""What the node keeps of one worker process: its channels, its output, how it ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from dpool._core import frames

LINE_LIMIT = 1 << 20
"""A line longer than this is passed on in pieces."""
_OOM_FILES = (
    ("/sys/fs/cgroup/memory.events", "oom_kill "),
    ("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill "),
    ("/proc/vmstat", "oom_kill "),
)


def oom_kills() -> int:
    """How many processes the kernel has killed for memory, as far as this process can see."""
    total = 0
    for path, name in _OOM_FILES:
        try:
            with open(path) as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(name))
        except (OSError, ValueError, IndexError):
            continue
    return total


class Proc:
    """One worker, from the order to start it until it has been reaped."""

    __slots__ = (
        "_at_end", "_lessee", "_log", "_page", "_partial", "_theirs", "end_code", "end_signal", "failed", "granted",
        "killed", "log_file", "order", "ordinal", "pid", "pipes", "place", "pool", "reason", "signals", "stopped_at",
        "tries", "worker",
    )  # fmt: skip

    def __init__(self, worker: int, pool: int, ordinal: int, place: int, session: str) -> None:
        self.worker = worker
        self.pool = pool
        self.ordinal = ordinal
        self.place = place
        self.pid = 0
        self.order: Any = None
        """What the zygote was told."""
        self.tries = 0
        """Zygotes that were told."""
        self.stopped_at = 0.0
        self.granted = False
        self.killed = False
        self.failed = ""
        self.reason = ""
        self.end_signal = 0
        self.end_code = 0
        self.signals: list[int] = []
        """Signals to send as soon as its pid is known."""
        self.log_file = os.path.join(session, f"worker-{worker}.log")
        self.pipes: list[int] = []
        """Our ends of its standard output and error, in this order."""
        self._theirs: list[int] = []
        self._lessee: list[int] = []
        self._partial: dict[int, bytes] = {}
        self._at_end: set[int] = set()
        self._log = -1
        self._page = -1

    def make_channels(self, make_page: Callable[[], int]) -> None:
        """Its socket, page and output pipes. OSError when this process may not open more."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._lessee = [ours.detach()]
            self._theirs = [theirs.detach()]
            page = make_page()
            self._theirs.append(page)
            for _ in range(2):
                read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(read_fd, False)
                self.pipes.append(read_fd)
                self._theirs.append(write_fd)
            self._lessee += [os.dup(self._theirs[0]), os.dup(page)]
            self._page = os.dup(page)
            self._touch_log()
        except OSError:
            self.close()
            raise

    def worker_fds(self) -> tuple[int, ...]:
        """The worker's side: its end of the socket, the page, its ends of the pipes."""
        return tuple(self._theirs)

    def _touch_log(self) -> None:
        """Errors name the log file, so there is one even if nothing is written."""
        try:
            os.close(os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError:  # a full disk must not keep a worker from starting
            return

    def close_worker_side(self) -> None:
        """The worker has it now."""
        while self._theirs:
            os.close(self._theirs.pop())

    def lessee_fds(self) -> tuple[int, ...]:
        """The submitter's end, the worker's end, the page."""
        return tuple(self._lessee)

    def take_lessee_socket(self) -> socket.socket:
        """The submitter's end, for the node itself, which then is the submitter."""
        ours = self._lessee.pop(0)
        self.close_lessee_side()
        return socket.socket(fileno=ours)

    def close_lessee_side(self) -> None:
        """The submitter has it now."""
        while self._lessee:
            os.close(self._lessee.pop())

    def began(self) -> bool:
        """Whether it has got as far as waiting for tasks: one that dies before would die again and again."""
        return self._page >= 0 and any(os.pread(self._page, 8, frames.LIMIT * 8))

    def close(self) -> None:
        self.close_worker_side()
        self.close_lessee_side()
        if self._page >= 0:
            os.close(self._page)
            self._page = -1
        while self.pipes:
            os.close(self.pipes.pop())
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    # -- output

    def stream(self, fd: int) -> int:
        """1: standard output, 2: standard error."""
        return self.pipes.index(fd) + 1

    def read(self, fd: int) -> bytes:
        """What waits in the pipe; b"" when nothing does."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return b""
        if not data:
            self._at_end.add(fd)
        elif self._write_log(data):
            pass
        return data

    def at_end(self, fd: int) -> bool:
        return fd in self._at_end

    def _write_log(self, data: bytes) -> bool:
        try:
            if self._log < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._log = os.open(self.log_file, flags, 0o600)
            os.write(self._log, data)
        except OSError:  # a full disk must not stop the output on its way to the driver
            return False
        return True

    def lines(self, fd: int, data: bytes) -> bytes:
        """The whole lines that are complete with `data`; the rest is kept."""
        data = self._partial.pop(fd, b"") + data
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut and len(data) > LINE_LIMIT:
            cut = len(data)
        if cut < len(data):
            self._partial[fd] = data[cut:]
        return data[:cut]

    def rest(self, fd: int) -> bytes:
        """What is left of an unfinished last line."""
        rest = self._partial.pop(fd, b"")
        return rest + b"\n" if rest else b""
