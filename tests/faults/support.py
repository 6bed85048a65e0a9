"""What the fault tests share: the ledger of what ran and resolved how often, and the runtime's processes by their role.

Nothing here but `workers_of` looks into dpool: processes are found as `ps` shows them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import dpool
from tests.faults import tasks
from tests.helpers import MARK, is_running, mark_of, processes, wait_until

DEADLINE_S = 60.0
"""Until then every future has resolved, whatever happened to its worker."""
GONE_S = 10.0
"""Until then what lost its owner has gone."""


class Ledger:
    """Tasks submitted under a key each: how often a worker began with each, and how often its future resolved."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "runs")
        Path(self.path).touch()
        self.futures: dict[object, dpool.Future[Any]] = {}
        self._resolved: Counter[object] = Counter()
        self._lock = threading.Lock()

    def submit(self, executor: Any, key: object, action: Callable[..., Any], *args: Any) -> dpool.Future[Any]:
        """Submit `action(*args)` under a new key."""
        return self.watch(key, executor.submit(tasks.noted, self.path, key, action, *args))

    def watch(self, key: object, future: dpool.Future[Any]) -> dpool.Future[Any]:
        """Count how often `future` resolves."""
        assert key not in self.futures
        self.futures[key] = future
        future.add_done_callback(lambda _: self._count(key))
        return future

    def _count(self, key: object) -> None:
        with self._lock:
            self._resolved[key] += 1

    def lines(self) -> list[tuple[str, int]]:
        """(key, pid) of each execution, in order."""
        with open(self.path) as file:
            return [(key, int(number)) for key, _, number in (line.rstrip("\n").rpartition(" ") for line in file)]

    def runs(self) -> Counter[str]:
        """Key, as text → how often a worker began with it."""
        return Counter(key for key, _ in self.lines())

    def pid_of(self, key: object) -> int:
        """The worker that runs `key` now; waits until there is one."""
        wait_until(lambda: str(key) in self.runs(), DEADLINE_S, f"{key} begins")
        return next(number for name, number in reversed(self.lines()) if name == str(key))

    def settle(self, deadline_s: float = DEADLINE_S) -> dict[object, Any]:
        """Key → value or exception, once every future has resolved; each did exactly once.

        Raises:
            AssertionError: one did not resolve in time, or twice.
        """
        pending = wait(self.futures.values(), timeout=deadline_s).not_done
        assert not pending, f"{len(pending)} of {len(self.futures)} futures did not resolve within {deadline_s} s"
        with_callbacks = set(self.futures)
        wait_until(lambda: set(self._resolved) >= with_callbacks, GONE_S, "all callbacks were called")
        twice = {key: n for key, n in self._resolved.items() if n != 1}
        assert not twice, f"resolved more than once: {twice}"
        return {key: future.exception() or future.result() for key, future in self.futures.items()}


# --- Processes by role ---


def by_role(role: str, mark: str | None = None) -> list[int]:
    """Pids of live processes of this test run (or of a script's `mark`) that `ps` calls `role`."""
    mark = os.environ[MARK] if mark is None else mark
    found = []
    for one in processes():
        if one.state in "ZX" or one.pid == os.getpid():
            continue
        try:
            name = Path(f"/proc/{one.pid}/comm").read_text().strip()
        except OSError:
            continue
        if name == role and mark_of(one.pid).startswith(mark):
            found.append(one.pid)
    return found


def one_of_role(role: str, mark: str | None = None) -> int:
    """The one process of that role; waits until there is one."""
    return wait_until(lambda: by_role(role, mark), DEADLINE_S, f"there is a {role}")[-1]


def servers(mark: str | None = None) -> list[int]:
    """Pids of the control store's servers: children of nodes (they write over the environment that they inherited)."""
    nodes = by_role("dpool-node", mark)
    found = [one for one in processes() if one.parent in nodes and one.state not in "ZX"]
    return [one.pid for one in found if "-server" in one.command]


def workers_of(executor: dpool.Executor) -> list[int]:
    """Pids of the executor's live workers."""
    return [number for number in list(executor._processes) if is_running(number)]


def sigkill(pid: int) -> None:
    """SIGKILL, and wait until it is dead (its parent may reap it later)."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid), GONE_S, f"{pid} is dead")


def all_gone(pids: list[int]) -> bool:
    return not any(map(is_running, pids))


def session_of(pid: int) -> Path:
    """The session directory that a node serves, read from its command line."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    return Path(command.rpartition("main('")[2].partition("')")[0])


def resident_bytes(pid: int | str = "self") -> int:
    """Memory of a process that is its own: resident, without what a file or another process shares."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) * 1024


def tell(line: str) -> None:
    """For scripts: a line, in one piece, for whoever reads standard output."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
