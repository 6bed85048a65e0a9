"""What /proc says about processes: memory, processor time, and which processes a measurement has started.

A process of a measurement carries `MARK` in its environment (inherited by forks and by programs they start), stands
in the session of its first process, or descends from one of these. So a daemon is found whoever its parent
is by now, and so is a program that was started with a clean environment, as a Redis may be.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MARK = "BENCHMARK_CELL"

_CPUCLOCK_SCHED = 2
_PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def rss_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process."""
    pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int) -> int:
    """Memory that only this process maps (Private_Clean + Private_Dirty); 0 when it has just ended."""
    try:
        rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
    except _GONE:
        return 0
    private = (line.split() for line in rollup.splitlines() if line.startswith(("Private_Clean:", "Private_Dirty:")))
    return sum(int(fields[1]) * 1024 for fields in private)


def cpu_s(pids: Iterable[int]) -> dict[int, float]:
    """Processor seconds that each process has used so far, all its threads together; 0 when it has ended."""
    return {pid: _cpu_of(pid) for pid in pids}


def marked(mark: str, session: int) -> list[int]:
    """Every living process that carries `mark`, belongs to `session`, or descends from one that does."""
    living = _living()
    setting = f"{MARK}={mark}".encode()
    found = {pid for pid, process in living.items() if process.session == session or _carries(pid, setting)}
    fresh = found
    while fresh:
        fresh = {pid for pid, process in living.items() if process.parent in fresh} - found
        found |= fresh
    return sorted(found)


def mine() -> list[int]:
    """Every process of the measurement that the caller belongs to, the caller included."""
    return marked(os.environ.get(MARK, "?"), os.getsid(0))


def name_of(pid: int) -> str:
    """The process's command name, or "?" when it has ended."""
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except _GONE:
        return "?"


class _Process(NamedTuple):
    parent: int
    session: int


def _living() -> dict[int, _Process]:
    """All processes of the machine but zombies."""
    found = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may contain anything; after it come state, parent, group, session.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except _GONE:
            continue
        if fields[0] not in ("Z", "X"):
            found[int(entry.name)] = _Process(parent=int(fields[1]), session=int(fields[3]))
    return found


def _carries(pid: int, setting: bytes) -> bool:
    try:
        return setting in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except _GONE:
        return False


def _cpu_of(pid: int) -> float:
    # The clock id that clock_getcpuclockid(3) computes: nanoseconds, and threads that have ended count too.
    # The ticks in /proc/PID/stat are 10 ms, too coarse for an idle process.
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0
