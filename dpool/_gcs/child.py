"""The embedded server's process, as the writer sees it: it may be a child, or a child of the node's launcher."""

from __future__ import annotations

import os
import select
import signal

KILL_WAIT_S = 1.0


class Child:
    """A process that somebody else reaps. A pidfd (where the kernel has one) tells that it is gone.

    `exits` is what those who reap have told: pid → exit code, or minus the signal.
    """

    __slots__ = ("_exits", "fd", "killed", "pid")

    def __init__(self, pid: int, exits: dict[int, int]) -> None:
        self.pid = pid
        self.killed = False
        """By us: then its end explains nothing."""
        self._exits = exits
        try:
            self.fd = os.pidfd_open(pid)
        except OSError:  # gone already, or a kernel without pidfd: then the node's word counts
            self.fd = -1

    def gone(self, within_s: float = 0.0) -> bool:
        """Whether the process has ended, or (where there is a pidfd) ends `within_s`."""
        if self.pid in self._exits:
            return True
        if self.fd >= 0:
            return readable(within_s, self.fd)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def status(self) -> int | None:
        """The ended process's exit code, or minus the signal; None while who reaped it has not told."""
        peeked = self._peek()  # first: who reaps it now tells afterwards
        return self._exits.get(self.pid, peeked)

    def end(self) -> str:
        """How the process ended, in words: "was killed by signal 9", "exited with status 1", "is gone"."""
        status = self.status()
        if status is None:
            return "is gone"
        return f"exited with status {status}" if status >= 0 else f"was killed by signal {-status}"

    def _peek(self) -> int | None:
        """The status of an unreaped child of ours; None if it is not, or not any more."""
        try:
            seen = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            return None
        if seen is None:
            return None
        return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status

    def kill(self) -> None:
        """Kill it, with a child of its own that may be rewriting its file (if it has a process group of its own)."""
        if self.gone():
            return
        self.killed = True
        try:
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def release(self) -> None:
        """Wait until the killed process is gone, and let go of it."""
        if self.fd >= 0:
            readable(KILL_WAIT_S, self.fd)
            os.close(self.fd)
            self.fd = -1
        self._exits.pop(self.pid, None)


def readable(timeout_s: float | None, *descriptors: int) -> bool:
    """Wait until one of the descriptors can be read (negative ones are ignored); False after `timeout_s`."""
    poll = select.poll()
    for fd in descriptors:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))
