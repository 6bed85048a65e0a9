"""Arrays in the store's memory outlive what they came from, are many, and are forked: their bytes never change."""

from __future__ import annotations

import gc
import os
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpool
from dpool._store.pins import PINS
from tests.faults import store_tasks as work
from tests.faults.store_support import MIB, alone, drained, figures
from tests.faults.support import DEADLINE_S, GONE_S, by_role, sigkill, workers_of
from tests.helpers import wait_until

SIZE = 8 * MIB


def put_and_drop(first: int, n: int, size: int = SIZE) -> None:
    """Use the memory again and again."""
    for seed in range(first, first + n):
        ref = dpool.put(work.pattern(seed, size))
        assert work.is_pattern(dpool.get(ref), seed, size)


# --- What they came from goes ---


@pytest.mark.parametrize("readonly", [False, True])
def test_a_view_whose_reference_is_gone(readonly: bool) -> None:
    with dpool.Executor(1):
        views = {}
        for seed in range(5):
            ref = dpool.put(work.pattern(seed, SIZE))
            views[seed] = dpool.get(ref, readonly=readonly)
        del ref
        wait_until(lambda: not figures()["objects"], DEADLINE_S, "all are freed")
        put_and_drop(100, 20)
        for seed, view in views.items():
            assert view.flags.writeable is not readonly
            assert work.is_pattern(view, seed, SIZE)
        part = views[3][17:1000]
        del views, view, seed
        gc.collect()
        put_and_drop(200, 20)
        assert np.array_equal(part, work.pattern(3, SIZE)[17:1000]), "a part of a view keeps the whole"
        del part
        drained()


def test_a_view_that_was_written_to(tmp_path: Path) -> None:
    """Its pages are private; the stored value and other views of it are not changed."""
    with dpool.Executor(2) as executor:
        ref = dpool.put(work.pattern(1, SIZE))
        mine, other = dpool.get(ref), dpool.get(ref)
        mine[::3] = 0
        futures = [executor.submit(work.write_own_copy, ref, 1, SIZE) for _ in range(10)]
        assert all(future.result(DEADLINE_S) for future in futures)
        assert work.is_pattern(other, 1, SIZE)
        assert work.is_pattern(dpool.get(ref), 1, SIZE)
        expected = work.pattern(1, SIZE)
        expected[::3] = 0
        assert np.array_equal(mine, expected)
        del ref, futures
        put_and_drop(50, 10)
        assert np.array_equal(mine, expected)
        assert work.is_pattern(other, 1, SIZE)
        del mine, other
        drained()


def test_views_outlive_executor_and_node() -> None:
    with dpool.Executor(2) as executor:
        ref = dpool.put(work.pattern(1, SIZE))
        future = executor.submit(work.pattern, 2, SIZE)
        small = executor.submit(work.pattern, 3, MIB)
        views = [dpool.get(ref), future.result(DEADLINE_S), small.result(DEADLINE_S)]
        nodes = by_role("dpool-node")
    del ref, future, small
    wait_until(lambda: not set(nodes) & set(by_role("dpool-node")), GONE_S, "the node has ended")
    with dpool.Executor(2) as executor:
        put_and_drop(100, 10)
        assert executor.submit(work.check, work.pattern(9, SIZE), 9, SIZE).result(DEADLINE_S)
        for seed, (view, size) in enumerate(zip(views, (SIZE, SIZE, MIB), strict=True), 1):
            assert work.is_pattern(view, seed, size)
            view[0] = 0
            assert not view[0]
    assert work.is_pattern(views[0][1:], 1, SIZE) is False
    assert np.array_equal(views[0][1:], work.pattern(1, SIZE)[1:])


def test_views_outlive_a_node_that_is_killed() -> None:
    with dpool.Executor(2) as executor:
        ref = dpool.put(work.pattern(1, SIZE))
        kept, freed = dpool.get(ref), executor.submit(work.pattern, 2, SIZE).result(DEADLINE_S)
        for turn in range(3):
            node = by_role("dpool-node")[0]
            sigkill(node)
            put_and_drop(100 * turn + 100, 10)
            assert work.is_pattern(kept, 1, SIZE)
            assert work.is_pattern(freed, 2, SIZE)
            assert work.is_pattern(dpool.get(ref), 1, SIZE), "what this process holds is handed to the next node"
            assert executor.submit(work.check, ref, 1, SIZE).result(DEADLINE_S)
        del ref, kept, freed
        wait_until(lambda: not figures()["objects"], DEADLINE_S, "all are freed")


# --- Many ---


def many_views(n: int, size: int) -> None:
    """More arrays than a process has slots for pins."""
    assert n > PINS
    with dpool.Executor(1) as executor:
        views = []
        for seed in range(n):
            ref = dpool.put(work.pattern(seed, size))
            views.append(dpool.get(ref))
        del ref
        assert figures()["pinned_bytes"] <= PINS * (size + 8192)
        addresses = sorted(view.ctypes.data for view in views)
        assert all(b - a >= size for a, b in pairwise(addresses))
        assert all(work.is_pattern(view, seed, size) for seed, view in enumerate(views))
        for seed in range(0, n, 2):
            views[seed][:] = 0
        assert all(work.is_pattern(views[seed], seed, size) for seed in range(1, n, 2))
        del views
        put_and_drop(1, 5)
        assert executor.submit(work.check, work.pattern(2, size), 2, size).result(DEADLINE_S)
        drained(64 * MIB)


def test_more_views_than_pins() -> None:
    alone(many_views, 5000, 150_000, env={"DPOOL_OBJECT_STORE_MEMORY": str(4 << 30)})


def views_without_descriptors(n: int, size: int) -> None:
    with dpool.Executor(1) as executor:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        refs = [dpool.put(work.pattern(seed, size)) for seed in range(n)]
        views = dpool.get(refs)
        views += [executor.submit(work.pattern, seed, size).result(DEADLINE_S) for seed in range(n, n + 50)]
        assert len(os.listdir("/proc/self/fd")) < 200
        assert all(work.is_pattern(view, seed, size) for seed, view in enumerate(views))
        del views, refs
        drained(64 * MIB)


def test_views_need_no_descriptors() -> None:
    alone(views_without_descriptors, 1000, 160_000)


def pressed() -> None:
    """Readers map most of a store of 64 MiB: from then on they get copies, and the store goes on."""
    size = 6 * MIB
    with dpool.Executor(2) as executor:
        views = []
        for seed in range(25):
            ref = dpool.put(work.pattern(seed, size))
            views.append(dpool.get(ref))
            assert executor.submit(work.check, ref, seed, size).result(DEADLINE_S)
        del ref
        assert all(work.is_pattern(view, seed, size) for seed, view in enumerate(views))
        assert figures()["pinned_bytes"] < 64 * MIB
        del views
        drained()


def test_readers_that_map_most_of_the_store(tmp_path: Path) -> None:
    spill_dir = tmp_path / "spill"
    spill_dir.mkdir()
    alone(pressed, store=64 * MIB, spill_dir=spill_dir)


# --- Forks ---


def forked(n: int) -> None:
    with dpool.Executor(1):
        for turn in range(n):
            ref = dpool.put(work.pattern(turn, SIZE))
            view: Any = dpool.get(ref, readonly=bool(turn % 2))
            told, tell = os.pipe()
            child = os.fork()
            if not child:
                os.close(tell)
                right = work.is_pattern(view, turn, SIZE)
                os.read(told, 1)  # the parent has let go, and used much memory since
                right = right and work.is_pattern(view, turn, SIZE)
                del view
                gc.collect()
                os._exit(0 if right else 1)
            os.close(told)
            del view, ref
            put_and_drop(100, 10)
            os.close(tell)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == 0, f"the child saw other bytes (its exit code is {status})"
        put_and_drop(200, 3)


def test_a_forked_child_sees_the_bytes_of_the_moment_of_the_fork() -> None:
    """Memory that a child may map is never written again: there is enough of it here."""
    alone(forked, 6)


def forked_with_little_memory() -> None:
    alone_in_the_store = 24 * MIB
    with dpool.Executor(1) as executor:
        ref = dpool.put(work.pattern(1, alone_in_the_store))
        view = dpool.get(ref)
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            os.close(tell)
            os.read(told, 1)
            os._exit(0 if work.is_pattern(view, 1, alone_in_the_store) else 1)
        os.close(told)
        del view, ref
        refs = [dpool.put(work.pattern(seed, SIZE)) for seed in range(20)]
        assert all(work.is_pattern(dpool.get(ref), seed, SIZE) for seed, ref in enumerate(refs))
        assert executor.submit(work.check, refs[0], 0, SIZE).result(DEADLINE_S)
        os.close(tell)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_keeps_its_bytes_when_memory_is_scarce(tmp_path: Path) -> None:
    spill_dir = tmp_path / "spill"
    spill_dir.mkdir()
    alone(forked_with_little_memory, store=64 * MIB, spill_dir=spill_dir)


def test_the_child_of_a_task_keeps_its_bytes(tmp_path: Path, gate: Path) -> None:
    """A worker forks while it maps its argument, and answers; its child looks later."""
    with dpool.Executor(1) as executor:
        ref = dpool.put(work.pattern(1, SIZE))
        path = tmp_path / "child"
        executor.submit(work.fork_and_look_later, ref, 1, SIZE, str(path), str(gate)).result(DEADLINE_S)
        assert len(workers_of(executor)) == 1
        del ref
        put_and_drop(100, 20)
        assert executor.submit(work.check, work.pattern(3, SIZE), 3, SIZE).result(DEADLINE_S)
        gate.touch()
        wait_until(lambda: path.exists() and path.read_text(), DEADLINE_S, "the child has looked")
        assert path.read_text().startswith("right ")


# --- Threads ---


def threads(n: int) -> None:
    """Threads take and drop views of many small objects, switched as often as can be; memory is used again at once."""
    size, turns = 160_000, 60
    sys.setswitchinterval(1e-6)
    with dpool.Executor(1):
        views: dict[int, list[tuple[int, Any]]] = {}

        def run(thread: int) -> bool:
            mine = views[thread] = []
            for turn in range(turns):
                seed = 1000 * thread + turn
                mine.append((seed, dpool.get(dpool.put(work.pattern(seed, size)))))
                if turn % 3 == 2:
                    seed, view = mine.pop(turn // 3)
                    if not work.is_pattern(view, seed, size):
                        return False
            return all(work.is_pattern(view, seed, size) for seed, view in mine)

        with ThreadPoolExecutor(n) as pool:
            assert all(pool.map(run, range(n)))
        assert all(work.is_pattern(view, seed, size) for mine in views.values() for seed, view in mine)
        pins = figures()["pinned_bytes"] / (40 * 4096)  # so much memory one takes, with what describes it
        assert pins == sum(map(len, views.values())), "each view has a pin of its own"
        views.clear()
        drained(64 * MIB)


def test_threads_that_read_and_let_go() -> None:
    alone(threads, 8)
