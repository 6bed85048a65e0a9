"""Moments in which two of the store's processes or threads meet: what one has just said, and the other does not know."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import dpool
from dpool._core import driver, storage
from dpool.errors import ObjectLost
from tests.faults import store_tasks as work
from tests.faults import tasks
from tests.faults.store_support import MIB, alone, drained, figures
from tests.faults.support import DEADLINE_S, one_of_role, sigkill

SIZE = 10 * MIB
CHUNKS = 64 * MIB
"""More than what the processes of a test keep leased for small values."""


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


def views_and_references_of_an_earlier_node() -> None:
    """Some objects are mapped and held, some only mapped, and twice; in the next node's store none is written over."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        refs = [dpool.put(work.pattern(seed, SIZE)) for seed in range(3)]
        views = [dpool.get(ref) for ref in refs for _ in range(2)]
        del refs[0]
        sigkill(one_of_role("dpool-node"))
        more = [dpool.put(work.pattern(10, SIZE))]
        assert figures()["objects"] == 3, "the next store has what is held"
        del refs[0]
        more += [dpool.put(work.pattern(seed, SIZE)) for seed in range(11, 16)]
        assert all(work.is_pattern(view, at // 2, SIZE) for at, view in enumerate(views))
        assert work.is_pattern(dpool.get(refs[0]), 2, SIZE)
        assert all(work.is_pattern(dpool.get(ref), seed, SIZE) for seed, ref in enumerate(more, 10))
        del views, more, refs
        drained(CHUNKS)


def test_views_and_references_of_an_earlier_node() -> None:
    alone(views_and_references_of_an_earlier_node)


def objects_that_an_earlier_node_had_spilled() -> None:
    """Where they had been, other objects are now."""
    with dpool.Executor(1) as executor:
        executor.submit(tasks.double, 1).result(DEADLINE_S)
        refs = [dpool.put(work.pattern(seed, SIZE)) for seed in range(6)]
        assert figures()["spilled_objects"]
        sigkill(one_of_role("dpool-node"))
        more = [dpool.put(work.pattern(seed, SIZE)) for seed in range(6, 12)]
        right = 0
        for seed, ref in enumerate(refs):
            try:
                assert work.is_pattern(dpool.get(ref), seed, SIZE)
                right += 1
            except ObjectLost:
                continue
        assert right
        assert all(work.is_pattern(dpool.get(ref), seed, SIZE) for seed, ref in enumerate(more, 6))


def test_objects_that_an_earlier_node_had_spilled() -> None:
    alone(objects_that_an_earlier_node_had_spilled, store=50 * MIB)


def put_while_nodes_die() -> None:
    for turn in range(5):
        with dpool.Executor(1) as executor:
            executor.submit(tasks.double, 1).result(DEADLINE_S)
            ref = dpool.put(work.pattern(turn, SIZE))
            over = threading.Event()

            def put(over: threading.Event = over, ref: dpool.ObjectRef = ref, turn: int = turn) -> bool:
                right = True
                while right and not over.is_set():
                    mine = dpool.put(work.pattern(9, MIB))
                    right = work.is_pattern(dpool.get(ref), turn, SIZE) and work.is_pattern(dpool.get(mine), 9, MIB)
                return right

            with ThreadPoolExecutor(2) as threads:
                putting = [threads.submit(put) for _ in range(2)]
                try:
                    sigkill(one_of_role("dpool-node"))
                    assert executor.submit(tasks.double, 2).result(DEADLINE_S) == 4
                finally:
                    over.set()
            assert all(one.result(DEADLINE_S) for one in putting)


def test_threads_put_while_nodes_die() -> None:
    alone(put_while_nodes_die)
