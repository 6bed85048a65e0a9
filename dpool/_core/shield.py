"""Work that no signal handler may cut short: it runs in a thread of its own while the main thread waits for it.

Python runs signal handlers in the main thread, between any two of its steps; what one raises (KeyboardInterrupt, for
example) is raised there. For what is done often, the code is written so that it can be called again; this is for the
rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_threads: set[int] = set()
"""Threads that do something in the place of the main thread."""
WAIT_S = 0.05
"""How long the main thread waits at a time, once it has been interrupted."""


class _Job:
    """An action that is run once, by the thread or not at all."""

    __slots__ = ("action", "error", "over", "turn")

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action
        self.turn = [True]
        """Whoever takes it out decides whether the action is run."""
        self.error: BaseException | None = None
        self.over = False

    def run(self) -> None:
        try:
            self.turn.pop()
        except IndexError:
            return  # the main thread has given up before it began
        me = threading.get_ident()
        _threads.add(me)
        try:
            self.action()
        except BaseException as error:
            self.error = error
        _threads.discard(me)
        self.over = True


def inside() -> bool:
    """Whether this thread does something in the place of the main thread, which waits for it."""
    return threading.get_ident() in _threads


def shielded(action: Callable[[], Any], locks: Callable[[], list[Any]]) -> None:
    """Run `action`; a signal handler that raises meanwhile does so before it begins or after it has ended.

    If this thread holds one of `locks()`, which `action` may need, or no thread can be started, it runs here.
    """
    if threading.current_thread() is not threading.main_thread() or any(lock._is_owned() for lock in locks()):
        action()
        return
    job = _Job(action)
    thread = threading.Thread(target=job.run, name="dpool-shield", daemon=True)
    try:
        thread.start()
        thread.join()
    except RuntimeError:  # no more threads, or the interpreter exits
        action()
        return
    except BaseException:
        _call_off(job, thread)
        raise
    if job.error is not None:
        raise job.error


def run_deferred(deferred: list[Callable[[], Any]], again: Callable[[Callable[[], Any]], None]) -> None:
    """Run what was put off, until nothing is left. An action that is cut short is put off once more, by `again`."""
    while deferred:
        try:
            action = deferred.pop(0)
        except IndexError:  # another thread was faster
            return
        try:
            action()
        except Exception:
            raise
        except BaseException:  # Ctrl-C
            again(action)
            raise


def _call_off(job: _Job, thread: threading.Thread) -> None:
    """The main thread was interrupted: the action is not begun any more, or it is waited for."""
    try:
        job.turn.pop()
    except IndexError:
        while not job.over:
            thread.join(WAIT_S)
