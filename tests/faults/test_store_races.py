"""Moments in which two of the store's processes or threads meet: what one has just said, and the other does not know."""

from __future__ import annotations

import threading

import dpool
from dpool._core import driver, storage
from tests.faults import store_tasks as work
from tests.faults import tasks
from tests.faults.store_support import MIB, alone
from tests.faults.support import DEADLINE_S, one_of_role, sigkill

SIZE = 10 * MIB


# --- The node dies ---


def connect_while_the_next_node_starts() -> None:
    """Whoever finds the store gone asks for a new connection just when the runtime hands the old one's memory on."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        ref = dpool.put(work.pattern(1, SIZE))
        handing_on = threading.Event()
        asking = threading.Event()
        open_store, open_again = driver.NativeRuntime.open_store, driver.NativeRuntime._open_store_again

        def open_store_late(self: driver.NativeRuntime) -> object:
            if threading.current_thread() is threading.main_thread():
                asking.set()
                assert handing_on.wait(DEADLINE_S)
            return open_store(self)

        def open_again_late() -> None:
            handing_on.set()
            assert asking.wait(DEADLINE_S)
            open_again()

        driver.NativeRuntime.open_store = open_store_late  # type: ignore[assignment]
        driver.NativeRuntime._open_store_again = staticmethod(open_again_late)  # type: ignore[assignment]
        waiting = executor.submit(tasks.double, 2)
        sigkill(one_of_role("dpool-node"))
        storage.node_died()
        other = dpool.put(work.pattern(2, SIZE))
        assert work.is_pattern(dpool.get(ref), 1, SIZE)
        assert work.is_pattern(dpool.get(other), 2, SIZE)
        assert waiting.exception(DEADLINE_S) is None or "node" in str(waiting.exception())


def test_connecting_while_the_next_node_starts() -> None:
    alone(connect_while_the_next_node_starts)
