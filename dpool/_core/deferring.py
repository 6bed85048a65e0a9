"""What an executor's pool and a link to an actor have in common: work that is put off, and threads that may wait."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from dpool._core.shield import run_deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._core.driver import NativeRuntime


class Deferring:
    """See the module; `lock` guards whatever stands on this."""

    def __init__(self, runtime: NativeRuntime) -> None:
        self.runtime = runtime
        self.lock = threading.RLock()
        self._deferred: list[Callable[[], Any]] = []

    def later(self, action: Callable[[], Any]) -> None:
        """Run `action` when no lock is held."""
        self._deferred.append(action)
        self.runtime.defer(self.run_deferred)

    def run_deferred(self) -> None:
        run_deferred(self._deferred, self.later)

    def holds_calls(self) -> bool:
        """Whether calls wait here behind one whose arguments are not there."""
        return False

    def may_wait(self) -> bool:
        """Whether this thread can wait: it is not a signal handler or finalizer in the middle of our own work."""
        return not self.lock._is_owned() and not self.runtime.dispatching_here()  # type: ignore[attr-defined]

    def wait_any(self, done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until `done()`, which is asked whenever tasks have ended, or the time is over."""
        if self.lock._is_owned():  # type: ignore[attr-defined]
            raise RuntimeError(
                "a signal handler or finalizer interrupted dpool in the middle of its work; it may submit, but not wait"
            )
        self.runtime._check_process()
        self.runtime.wait_until(done, timeout)
