"""The store is full, the disk is full, a spill file is damaged: values stay right, or the error says what is wrong."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import dpool
from dpool.errors import ObjectLost, ObjectStoreFull
from tests.faults import store_tasks as work
from tests.faults import tasks
from tests.faults.store_support import MIB, alone, drained, mount_tmpfs, own_mounts
from tests.faults.support import DEADLINE_S, one_of_role
from tests.helpers import is_running, wait_until


@pytest.fixture
def spill_dir(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.mkdir()
    return path


def spill_files(directory: str) -> list[Path]:
    """Every file below `directory` with more than a header in it."""
    return [path for path in Path(directory).rglob("*") if path.is_file()]


# --- Full memory ---


def working_set(store: int, size: int) -> None:
    """Three times what the store holds, written and read in any order, by this process and by workers."""
    n = 3 * store // size
    rng = random.Random(7)
    with dpool.Executor(2) as executor:
        refs = [dpool.put(work.pattern(seed, size)) for seed in range(n)]
        stats = dpool.store_stats()
        assert stats.used <= stats.resident <= stats.capacity == store
        assert stats.objects == n
        assert stats.spilled_objects > 0
        for _ in range(2):
            order = rng.sample(range(n), n)
            futures = {seed: executor.submit(work.check, refs[seed], seed, size) for seed in order}
            for seed in rng.sample(range(n), n):
                assert work.is_pattern(dpool.get(refs[seed], readonly=bool(seed % 2)), seed, size)
            assert all(future.result(DEADLINE_S) for future in futures.values())
            del futures
        results = [executor.submit(work.pattern, seed, size) for seed in range(n)]
        for seed in rng.sample(range(n), n):
            assert work.is_pattern(results[seed].result(DEADLINE_S), seed, size)
        stats = dpool.store_stats()
        assert stats.resident <= store
        assert stats.spills > 0
        assert stats.restores > 0
        assert 0 < stats.hit_rate < 1
        del refs, results
        drained(store // 2)


@pytest.mark.parametrize(("store", "size"), [(16 * MIB, MIB), (16 * MIB, 5 * MIB), (64 * MIB, 6 * MIB)])
def test_a_working_set_larger_than_the_store(spill_dir: Path, store: int, size: int) -> None:
    alone(working_set, store, size, store=store, spill_dir=spill_dir)


def least_recently_used(spill: str) -> None:
    size = 8 * MIB
    with dpool.Executor(1):
        refs = [dpool.put(work.pattern(seed, size)) for seed in range(7)]  # of 64 MiB there is room for seven
        for seed in (0, 1, 2):
            assert work.is_pattern(dpool.get(refs[seed]), seed, size)
        refs += [dpool.put(work.pattern(seed, size)) for seed in (7, 8, 9)]
        listing = dpool.store_stats(listing=True).listing
        ids = [ref._handle.obj.hex() for ref in refs if ref._handle is not None]
        spilled = {ids.index(one.id) for one in listing if one.state == "spilled"}
        assert spilled == {3, 4, 5}, "the longest unused leave"
        for seed, ref in enumerate(refs):
            assert work.is_pattern(dpool.get(ref), seed, size)
        assert {one.owner for one in listing} == {os.getpid()}
        assert {one.size // MIB for one in listing} == {8}
        del refs, ref
        drained()
        wait_until(lambda: not spill_files(spill), DEADLINE_S, "the files of freed objects are gone")


def test_the_least_recently_used_leave_first(spill_dir: Path) -> None:
    alone(least_recently_used, str(spill_dir), store=64 * MIB, spill_dir=spill_dir)


def all_want_room(directory: str, workers: int, size: int) -> None:
    """Every worker maps an argument, and they all have a result at the same moment."""
    with dpool.Executor(workers) as executor:
        argument = dpool.put(work.pattern(0, 8 * MIB))
        for turn in range(3):
            path = f"{directory}/there{turn}"
            futures = [
                executor.submit(work.put_when_all_are_there, path, workers, seed, size, argument)
                for seed in range(1, workers + 1)
            ]
            for seed, future in enumerate(futures, 1):
                assert work.is_pattern(future.result(DEADLINE_S), seed, size)
        del argument, futures, future
        drained()


@pytest.mark.parametrize("size", [6 * MIB, 14 * MIB, 40 * MIB])
def test_every_worker_waits_for_room_at_once(tmp_path: Path, spill_dir: Path, size: int) -> None:
    """A store of 32 MiB; the arguments are pinned, so not all results fit, or none, and yet all come."""
    alone(all_want_room, str(tmp_path), 6, size, store=32 * MIB, spill_dir=spill_dir)


def larger_than_the_store(spill: str) -> None:
    size = 50 * MIB
    with dpool.Executor(2) as executor:
        ref = dpool.put(work.pattern(1, size))
        assert spill_files(spill), "it lies on the disk"
        assert executor.submit(work.check, ref, 1, size).result(DEADLINE_S)
        assert executor.submit(work.check, work.pattern(2, size), 2, size).result(DEADLINE_S)
        value = executor.submit(work.pattern, 3, size).result(DEADLINE_S)
        value[0] = value[0]
        again = dpool.get(ref, readonly=True)
        assert not again.flags.writeable
        assert work.is_pattern(value, 3, size)
        assert work.is_pattern(again, 1, size)
        assert executor.submit(tasks.double, 2).result(DEADLINE_S) == 4
        del ref, value, again
        drained()
        wait_until(lambda: not spill_files(spill), DEADLINE_S, "the file is gone")


def test_an_object_larger_than_the_store(spill_dir: Path) -> None:
    alone(larger_than_the_store, str(spill_dir), store=16 * MIB, spill_dir=spill_dir)


def readers_while_it_moves(directory: str, workers: int) -> None:
    """Many processes read one object again and again, while others push it out."""
    size = 4 * MIB
    with dpool.Executor(workers) as executor:
        ref = dpool.put(work.pattern(1, size))
        futures = [
            executor.submit(work.map_when_all_are_there, [ref], directory, workers, seed, size)
            for seed in range(workers)
        ]
        seed = 100
        while not all(future.done() for future in futures):
            refs = [dpool.put(work.pattern(seed + x, 3 * MIB)) for x in range(8)]
            assert work.is_pattern(dpool.get(refs[0]), seed, 3 * MIB)
            seed += 8
        assert all(future.result() for future in futures)
        del refs, futures, ref
        drained()


def test_64_processes_read_one_object(tmp_path: Path, spill_dir: Path) -> None:
    alone(readers_while_it_moves, str(tmp_path), 64, store=16 * MIB, spill_dir=spill_dir, timeout=120)


def many_threads(store: int) -> None:
    """Threads of one process put, get and drop more than there is room for."""
    size, n = 3 * MIB, 6
    wrong: list[Any] = []

    def run(thread: int) -> None:
        rng = random.Random(thread)
        mine: dict[int, dpool.ObjectRef] = {}
        for turn in range(25):
            seed = 100 * thread + turn
            mine[seed] = dpool.put(work.pattern(seed, size))
            one = rng.choice(list(mine))
            if not work.is_pattern(dpool.get(mine[one]), one, size):
                wrong.append(one)
            if len(mine) > 3:
                del mine[rng.choice(list(mine))]

    with dpool.Executor(1):
        threads = [threading.Thread(target=run, args=(thread,)) for thread in range(n)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert not wrong
        drained(store // 2)


def test_threads_in_a_full_store(spill_dir: Path) -> None:
    alone(many_threads, 24 * MIB, store=24 * MIB, spill_dir=spill_dir)


# --- Full disk ---


def put_if_there_is_room(seed: int, size: int) -> Any:
    """Files of what was dropped are removed a moment later."""
    try:
        return dpool.put(work.pattern(seed, size))
    except ObjectStoreFull:
        return None


def full_disk(directory: str, disk_mib: int) -> None:
    """A store of 16 MiB and a disk of a few: what fits in neither is refused, and nothing else is harmed."""
    own_mounts()
    mount_tmpfs(directory, f"size={disk_mib}m")
    size = 3 * MIB
    with dpool.Executor(2) as executor:
        node = one_of_role("dpool-node")
        refs: list[dpool.ObjectRef] = []
        error = None
        for seed in range(20):
            try:
                refs.append(dpool.put(work.pattern(seed, size)))
            except ObjectStoreFull as raised:
                error = raised
                break
        assert error is not None
        assert len(refs) >= 4
        text = str(error)
        for part in (f"{size:,}"[:5], f"{16 * MIB:,}", f"pid {os.getpid()}", directory, "No space left"):
            assert part in text, (part, text)
        for seed, ref in enumerate(refs):
            assert work.is_pattern(dpool.get(ref), seed, size)
        failed = executor.submit(work.pattern, 1, size).exception(DEADLINE_S)
        assert isinstance(failed, ObjectStoreFull), failed
        assert isinstance(executor.submit(work.put_list, 1, size).exception(DEADLINE_S), ObjectStoreFull)
        failed = executor.submit(work.check, work.pattern(1, size), 1, size).exception(DEADLINE_S)
        assert isinstance(failed, ObjectStoreFull), failed
        assert executor.submit(tasks.double, 4).result(DEADLINE_S) == 8
        assert executor.submit(work.check, refs[0], 0, size).result(DEADLINE_S)
        assert is_running(node)
        # something is dropped: there is room again
        del refs[:2], ref
        ref = wait_until(lambda: put_if_there_is_room(50, size), DEADLINE_S, "there is room again")
        assert work.is_pattern(dpool.get(ref), 50, size)
        del refs, ref, failed, error
        drained()
        assert one_of_role("dpool-node") == node
    wait_until(lambda: not os.listdir(directory), DEADLINE_S, "the spill directory is gone")


@pytest.mark.root
@pytest.mark.needs("mount")
@pytest.mark.parametrize("disk_mib", [1, 8])
def test_a_full_disk(spill_dir: Path, disk_mib: int) -> None:
    alone(full_disk, str(spill_dir), disk_mib, store=16 * MIB, spill_dir=spill_dir)


def space_returns(directory: str) -> None:
    own_mounts()
    mount_tmpfs(directory, "size=64m")
    size = 3 * MIB
    filler = Path(directory) / "filler"
    with open(filler, "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 63 * MIB)
    with dpool.Executor(2) as executor:
        refs = []
        for seed in range(20):
            try:
                refs.append(dpool.put(work.pattern(seed, size)))
            except ObjectStoreFull:
                break
        assert len(refs) < 20
        filler.unlink()
        for seed in range(len(refs), 15):
            refs.append(dpool.put(work.pattern(seed, size)))
        assert executor.submit(work.check, work.pattern(99, size), 99, size).result(DEADLINE_S)
        for seed, ref in enumerate(refs):
            assert work.is_pattern(dpool.get(ref), seed, size)
            assert executor.submit(work.check, ref, seed, size).result(DEADLINE_S)
        del refs, ref
        drained()


@pytest.mark.root
@pytest.mark.needs("mount")
def test_a_disk_on_which_space_returns(spill_dir: Path) -> None:
    alone(space_returns, str(spill_dir), store=16 * MIB, spill_dir=spill_dir)


def no_spill_directory(directory: str) -> None:
    size = 3 * MIB
    with dpool.Executor(1) as executor:
        refs = []
        error = None
        try:
            for seed in range(20):
                refs.append(dpool.put(work.pattern(seed, size)))
        except ObjectStoreFull as raised:
            error = raised
        assert error is not None
        assert directory in str(error), error
        assert all(work.is_pattern(dpool.get(ref), seed, size) for seed, ref in enumerate(refs))
        assert executor.submit(work.check, refs[0], 0, size).result(DEADLINE_S)


def test_a_spill_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    missing = str(tmp_path / "file" / "below")
    alone(no_spill_directory, missing, store=16 * MIB, env={"DPOOL_SPILL_DIR": missing})


# --- Damaged files ---


def cut(path: Path) -> None:
    os.truncate(path, 5000)


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096 + 777_777)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((byte ^ 4,)))


DAMAGES: dict[str, Callable[[Path], None]] = {"missing": Path.unlink, "truncated": cut, "corrupt": flip}


def value_of(ref: dpool.ObjectRef) -> Future[Any]:
    """What `get` gives or raises."""
    future: Future[Any] = Future()
    try:
        future.set_result(dpool.get(ref))
    except ObjectLost as error:
        future.set_exception(error)
    return future


def damaged(directory: str, kind: str, workers_read: bool) -> None:
    size, n = 3 * MIB, 12
    with dpool.Executor(1) as executor:
        refs = [dpool.put(work.pattern(seed, size)) for seed in range(n)]
        ids = [ref._handle.obj.hex() for ref in refs if ref._handle is not None]
        files = {path.name[:40]: path for path in spill_files(directory)}
        states = {ids.index(one.id): one.state for one in dpool.store_stats(listing=True).listing}
        victims = [seed for seed in range(n) if states[seed] == "spilled"]
        assert len(victims) >= 3
        path = files[ids[victims[1]]]
        DAMAGES[kind](path)
        for seed in range(n):
            for _ in range(2):
                future: Future[Any] = (
                    executor.submit(work.check, refs[seed], seed, size) if workers_read else value_of(refs[seed])
                )
                if seed == victims[1]:
                    with pytest.raises(ObjectLost, match=kind) as lost:
                        future.result(DEADLINE_S)
                    assert path.name in str(lost.value)
                else:
                    value = future.result(DEADLINE_S)
                    assert value is True or work.is_pattern(value, seed, size)
                    del value
        del future, lost
        refs.append(dpool.put(work.pattern(77, size)))
        assert work.is_pattern(dpool.get(refs[-1]), 77, size)
        del refs
        gc.collect()  # an exception refers to what raised it
        drained()


@pytest.mark.parametrize("workers_read", [False, True], ids=["driver", "worker"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_spill_file(spill_dir: Path, kind: str, workers_read: bool) -> None:
    alone(damaged, str(spill_dir), kind, workers_read, store=16 * MIB, spill_dir=spill_dir)


def damaged_direct(directory: str, kind: str) -> None:
    """The same for what never was in memory, and is read by its reader alone."""
    size = 30 * MIB
    with dpool.Executor(1) as executor:
        bad, good = (dpool.put(work.pattern(seed, size)) for seed in (1, 2))
        assert bad._handle is not None
        path = min(spill_files(directory), key=lambda one: one.stat().st_mtime_ns)
        DAMAGES[kind](path)
        for _ in range(2):
            with pytest.raises(ObjectLost, match=kind) as lost:
                dpool.get(bad)
            assert path.name in str(lost.value)
        assert isinstance(executor.submit(work.check, bad, 1, size).exception(DEADLINE_S), ObjectLost)
        assert executor.submit(work.check, good, 2, size).result(DEADLINE_S)
        del bad, good, lost
        gc.collect()
        drained()


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_of_an_object_larger_than_the_store(spill_dir: Path, kind: str) -> None:
    alone(damaged_direct, str(spill_dir), kind, store=16 * MIB, spill_dir=spill_dir)
