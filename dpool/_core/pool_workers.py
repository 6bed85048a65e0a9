"""One worker as the program sees it (`Executor._processes`, `Pool._pool`), and the clock of a task with a time-out."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any
from weakref import ref

from dpool._core.future import DONE, Future
from dpool._core.messages import KillWorker

if TYPE_CHECKING:
    from dpool._core.executor_pool import ExecutorPool


class WorkerProcess:
    """What `Executor._processes` and `Pool._pool` show of one worker: what both can of `multiprocessing.Process`."""

    __slots__ = ("_pool", "_worker", "ended", "exitcode", "name", "pid")
    daemon = True

    def __init__(self, pool: ExecutorPool, worker: int, pid: int, ordinal: int) -> None:
        self._pool = pool
        self._worker = worker
        self.pid = pid
        self.name = f"DpoolWorker-{ordinal}"
        self.exitcode: int | None = None
        """None while it lives; negative: the signal that killed it."""
        self.ended = threading.Event()

    def is_alive(self) -> bool:
        """Whether the node has not reported its end yet."""
        return not self.ended.is_set()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive():
            self._pool.runtime.tell(KillWorker(self._pool.number, self._worker, int(number)))

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        self._pool.runtime.wait_until(self.ended.is_set, timeout)

    def __repr__(self) -> str:
        return f"<WorkerProcess pid={self.pid} {'alive' if self.is_alive() else 'ended'}>"


class Clock:
    """The time-out of one task; keeps neither the task nor its result alive."""

    __slots__ = ("_future", "_pool")

    def __init__(self, pool: ExecutorPool, future: Future[Any]) -> None:
        self._pool = pool
        self._future = ref(future)

    @property
    def dead(self) -> bool:
        """Whether the task has ended."""
        future = self._future()
        return future is None or future._state in DONE

    def __call__(self) -> None:
        future = self._future()
        if future is not None:
            self._pool.task_timed_out(future)
