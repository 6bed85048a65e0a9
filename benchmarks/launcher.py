"""Starts the processes of one measurement and sees to it that none outlives it."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import procs

_ROOT = Path(__file__).resolve().parent.parent
_POLL_S = 0.005
_TAIL_CHARS = 1500


class CellFailed(Exception):
    """A measurement's process failed or hung; the message ends with the last of what it wrote."""


class Finished(NamedTuple):
    """A process that ended well: what it wrote to its result file, and its life from start to end."""

    result: str
    wall_s: float


class Launcher:
    """Runs this interpreter, and remembers in `left_behind` the names of processes that had to be killed afterwards."""

    def __init__(self, grace_s: float = 10.0) -> None:
        self.left_behind: list[str] = []
        self._grace_s = grace_s

    def run(
        self, arguments: Sequence[str], env: Mapping[str, str | None] | None = None, timeout_s: float = 300.0
    ) -> Finished:
        """Run `python *arguments FILE`, FILE being where the process writes its result.

        Raises CellFailed when it fails or is not done after `timeout_s`. Returns when all its processes are gone.
        """
        mark = secrets.token_hex(8)
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            result, log = Path(folder, "result"), Path(folder, "log")
            with log.open("wb") as output:
                begin = time.perf_counter()
                process = subprocess.Popen(
                    [sys.executable, *arguments, str(result)],
                    cwd=_ROOT,
                    env=_environment(mark, env or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                try:
                    if not _ends_within(process.pid, timeout_s):
                        raise CellFailed(f"not done after {timeout_s:g} s\n{_tail(log)}")
                    wall_s = time.perf_counter() - begin
                    code = process.wait()
                finally:
                    self._end_processes(mark, process)
            if code != 0:
                raise CellFailed(f"exit code {code}\n{_tail(log)}")
            return Finished(result.read_text(), wall_s)

    def _end_processes(self, mark: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until every process of a measurement is gone; kill what is still there after a while."""
        ended = process.returncode is not None
        deadline = time.monotonic() + (self._grace_s if ended else 0.0)
        while (alive := procs.marked(mark, process.pid)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self.left_behind += [procs.name_of(pid) for pid in alive if pid != process.pid]
        while alive:
            for pid in alive:
                _kill(pid)
            process.wait()
            alive = procs.marked(mark, process.pid)


def _ends_within(pid: int, timeout_s: float) -> bool:
    """Wait for a child to end. Unlike Popen.wait(timeout), which looks every 50 ms, this sees the very moment."""
    watched = os.pidfd_open(pid)
    try:
        return bool(select.select([watched], [], [], timeout_s)[0])
    finally:
        os.close(watched)


def _environment(mark: str, changes: Mapping[str, str | None]) -> dict[str, str]:
    env = {**os.environ, procs.MARK: mark}
    # Peers that start workers with a fresh interpreter must find `benchmarks` wherever those begin.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    for name, value in changes.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL_CHARS:].strip()
