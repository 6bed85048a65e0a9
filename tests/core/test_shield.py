"""What no signal handler may cut short."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from dpool._core.shield import shielded
from tests.helpers import wait_until

DEADLINE_S = 10.0


def no_locks() -> list[Any]:
    return []


def test_ctrl_c_waits_until_the_action_has_ended() -> None:
    steps: list[str] = []
    raised = threading.Event()

    def handler(*_: object) -> None:
        raised.set()
        raise KeyboardInterrupt

    def action() -> None:
        steps.append("begun")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        wait_until(raised.is_set, DEADLINE_S, "the handler has run")
        steps.append("ended")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            shielded(action, no_locks)
        assert steps == ["begun", "ended"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_the_action_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        shielded(lambda: 1 // 0, no_locks)


def test_who_holds_a_lock_that_the_action_needs_runs_it_itself() -> None:
    lock, seen = threading.RLock(), []

    def action() -> None:
        with lock:
            seen.append(threading.current_thread())

    shielded(action, lambda: [lock])
    with lock:
        shielded(action, lambda: [lock])
    assert seen[0] is not threading.main_thread()
    assert seen[1] is threading.main_thread()
