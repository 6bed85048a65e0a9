"""The workers of a pool: started with it, replaced when they die or have done enough; initializers; what they know."""

from __future__ import annotations

import multiprocessing.pool
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, fail, generator, kill_self, noop, square
from tests.helpers import is_running, wait_until

STATE: dict[str, object] = {}


def who() -> tuple[int, int, int]:
    worker = dpool.current_worker()
    assert worker is not None
    assert worker is dpool.current_worker()
    return worker.id, worker.pid, worker.index


def test_workers_start_with_the_pool(gate: Gate) -> None:
    with dpool.Pool(3, gate.note, ("init",)) as pool:
        wait_until(lambda: len(gate.pids("init")) == 3, LONG_S)
        workers = pool._pool
        assert len(workers) == pool._processes == 3
        assert {worker.pid for worker in workers} == set(gate.pids("init"))
        assert {worker.name for worker in workers} == {f"DpoolWorker-{i}" for i in (1, 2, 3)}
        assert all(worker.is_alive() and worker.exitcode is None and worker.daemon for worker in workers)
        assert repr(pool) == "<dpool.pool.Pool state=RUN pool_size=3>"
    assert not any(worker.is_alive() for worker in workers)
    assert all(worker.exitcode is not None for worker in workers)


def test_a_pool_is_shown_with_the_workers_that_are_being_started() -> None:
    with dpool.Pool(3) as pool:
        assert repr(pool) == "<dpool.pool.Pool state=RUN pool_size=3>"


def test_every_worker_is_used(pool: dpool.Pool, gate: Gate) -> None:
    results = [pool.apply_async(gate.enter, (name,)) for name in "ab"]
    pids = {gate.entered("a"), gate.entered("b")}
    assert pids == {worker.pid for worker in pool._pool}
    gate.open("a", "b")
    for result in results:
        result.wait(LONG_S)


# --- A worker dies ---


def test_the_call_of_a_dead_worker_raises_and_the_pool_lives_on(pool: dpool.Pool) -> None:
    with pytest.raises(dpool.errors.WorkerCrashed, match="SIGKILL"):
        pool.apply(kill_self)
    assert pool.map(square, range(20)) == [i * i for i in range(20)]
    with pytest.raises(dpool.errors.WorkerCrashed, match="exited with code 3"):
        pool.apply(os._exit, (3,))
    wait_until(lambda: len(pool._pool) == 2, LONG_S)
    assert pool.apply(square, (3,)) == 9


def crash_at(x: int) -> int:
    if x == 7:
        kill_self()
    return x


def test_only_the_chunk_of_a_dead_worker_is_lost(pool: dpool.Pool) -> None:
    with pytest.raises(dpool.errors.WorkerCrashed):
        pool.map(crash_at, range(20), 5)
    results = pool.imap(crash_at, range(20))
    found: list[Any] = []
    while len(found) < 20:
        try:
            found.append(next(results))
        except dpool.errors.WorkerCrashed:
            found.append("lost")
    assert found == [*range(7), "lost", *range(8, 20)]
    called: list[Any] = []
    result = pool.apply_async(kill_self, error_callback=called.append)
    with pytest.raises(dpool.errors.WorkerCrashed):
        result.get(LONG_S)
    assert len(called) == 1


def test_an_idle_worker_that_dies_is_replaced(one: dpool.Pool) -> None:
    worker = one._pool[0]
    worker.terminate()
    worker.join(LONG_S)
    assert worker.exitcode == -15
    wait_until(lambda: [other for other in one._pool if other.pid != worker.pid], LONG_S)
    assert one.apply(square, (4,)) == 16


def crash_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        kill_self()
    return "done"


def test_retries(tmp_path: Path) -> None:
    with dpool.Pool(1, max_retries=1) as pool:
        assert pool.apply(crash_once, (tmp_path / "once",)) == "done"


def test_sys_exit_in_a_task_arrives(pool: dpool.Pool) -> None:
    with pytest.raises(SystemExit) as caught:
        pool.apply(sys.exit, (5,))
    assert caught.value.code == 5
    with pytest.raises(SystemExit):
        pool.map(sys.exit, [1, 2])
    assert pool.apply(square, (3,)) == 9


# --- Initializers ---


def init(gate: Gate, value: object = None) -> None:
    STATE["value"] = value
    gate.note("init")


def state(_: object) -> tuple[int, object]:
    return os.getpid(), STATE["value"]


def test_an_initializer_runs_once_in_each_worker(gate: Gate) -> None:
    with dpool.Pool(2, init, (gate, "set"), maxtasksperchild=3) as pool:
        found = pool.map(state, range(20), 1)
    assert {value for _, value in found} == {"set"}
    pids = {pid for pid, _ in found}
    assert len(pids) >= 6
    assert pids <= set(gate.pids("init"))
    assert len(gate.pids("init")) == len(set(gate.pids("init")))


def test_an_initializer_that_always_raises(gate: Gate) -> None:
    def bad() -> None:
        gate.note("init")
        raise ArithmeticError("never")

    with dpool.Pool(2, bad) as pool:
        for _ in range(2):  # it lives on: each call is another occasion
            before = len(gate.pids("init"))
            with pytest.raises(dpool.errors.InitializerFailed, match="ArithmeticError: never"):
                pool.apply_async(noop).get(LONG_S)
            assert len(gate.pids("init")) > before
        with pytest.raises(dpool.errors.InitializerFailed):
            pool.map(square, range(100), 1)
        with pytest.raises(dpool.errors.InitializerFailed):
            list(pool.imap(square, range(10)))
        pool.close()
        pool.join()


def test_workers_are_not_started_for_ever_for_nothing(gate: Gate) -> None:
    def bad() -> None:
        gate.note("init")
        raise ArithmeticError

    with dpool.Pool(1, bad) as pool:
        wait_until(lambda: len(gate.pids("init")) >= 5, LONG_S)
        wait_until(lambda: not pool._pool, LONG_S)
        assert len(gate.pids("init")) == 5


@pytest.mark.parametrize("end", [lambda: os._exit(1), kill_self], ids=["exits", "is killed"])
def test_an_initializer_that_kills_its_worker(end: Any) -> None:
    with dpool.Pool(2, end) as pool, pytest.raises(dpool.errors.InitializerFailed, match="died in it"):
        pool.apply_async(noop).get(LONG_S)


def raise_at_first(directory: Path, times: int) -> None:
    for i in range(times):
        try:
            (directory / f"try-{i}").touch(exist_ok=False)
        except FileExistsError:
            continue
        raise OSError(f"try {i}")


def test_an_initializer_that_fails_at_first(tmp_path: Path) -> None:
    with dpool.Pool(1, raise_at_first, (tmp_path, 3)) as pool:
        assert pool.apply_async(square, (3,)).get(LONG_S) == 9
    assert len(list(tmp_path.iterdir())) == 3


def test_replacements_that_fail_do_not_stop_those_that_work(tmp_path: Path, gate: Gate) -> None:
    def only_one() -> None:
        try:
            (tmp_path / "first").touch(exist_ok=False)
        except FileExistsError:
            raise OSError("there is one already") from None

    with dpool.Pool(2, only_one) as pool:
        assert pool.map(square, range(50), 1) == [i * i for i in range(50)]
        with pytest.raises(dpool.errors.WorkerCrashed):
            pool.apply(kill_self)
        with pytest.raises(dpool.errors.InitializerFailed, match="one already"):
            pool.apply(noop)
        (tmp_path / "first").unlink()
        assert pool.apply_async(square, (3,)).get(LONG_S) == 9


def test_initargs_that_do_not_pickle() -> None:
    with dpool.Pool(1, print, (generator(),)) as pool:
        for _ in range(2):
            with pytest.raises(dpool.errors.InitializerFailed, match="pickle"):
                pool.apply_async(noop).get(LONG_S)


def test_initargs_that_do_not_unpickle() -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return fail, (KeyError("on the other side"),)

    with dpool.Pool(1, print, (Bad(),)) as pool, pytest.raises(dpool.errors.InitializerFailed, match="other side"):
        pool.apply_async(noop).get(LONG_S)


# --- maxtasksperchild ---


def test_a_worker_is_replaced_after_so_many_tasks() -> None:
    with dpool.Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(os.getpid) for _ in range(6)]
        assert [pids[i] == pids[i + 1] for i in range(5)] == [True, False, True, False, True]
        chunks = pool.map(lambda _: os.getpid(), range(40), 10)
        assert [len(set(chunks[i : i + 10])) for i in (0, 10, 20, 30)] == [1] * 4  # a chunk is one task
        assert 2 <= len(set(chunks)) <= 4  # what waits behind a worker's last task may go to its replacement
        assert max(map(chunks.count, chunks)) <= 20
        pool.close()
        pool.join()


def test_closing_a_pool_whose_workers_live_short() -> None:
    pool = dpool.Pool(3, maxtasksperchild=1)
    results = [pool.apply_async(square, (i,)) for i in range(10)]
    pool.close()
    pool.join()
    assert [result.get(0) for result in results] == [i * i for i in range(10)]


# --- What a worker knows ---


def test_outside_of_a_worker_there_is_none() -> None:
    assert dpool.current_worker() is None


def test_a_worker_knows_its_place(pool: dpool.Pool, gate: Gate) -> None:
    results = [pool.apply_async(lambda name: (gate.enter(name), who())[1], (name,)) for name in "ab"]
    gate.entered("a")
    gate.entered("b")
    gate.open("a", "b")
    found = [result.get(LONG_S) for result in results]
    assert sorted(index for _, _, index in found) == [0, 1]
    assert {pid for _, pid, _ in found} == {worker.pid for worker in pool._pool}
    assert len({number for number, _, _ in found}) == 2
    assert pool.apply(lambda: repr(dpool.current_worker())).startswith("<dpool worker ")


def test_a_replacement_takes_the_place_of_the_dead(gate: Gate) -> None:
    with dpool.Pool(2) as pool:
        for _ in range(3):
            results = [pool.apply_async(lambda: (gate.enter("all"), who())[1]) for _ in range(2)]
            wait_until(lambda: len(gate.pids("all")) == 2, LONG_S)
            gate.open("all")
            assert sorted(result.get(LONG_S)[2] for result in results) == [0, 1]
            (gate.directory / "all.open").unlink()
            (gate.directory / "all.in").unlink()
            with pytest.raises(dpool.errors.WorkerCrashed):
                pool.apply(kill_self)
            wait_until(lambda: len(pool._pool) == 2, LONG_S)


def count_up() -> tuple[int, int]:
    worker = dpool.current_worker()
    assert worker is not None
    worker.state["n"] = worker.state.get("n", 0) + 1
    return os.getpid(), worker.state["n"]


def test_a_worker_has_a_state_of_its_own(one: dpool.Pool) -> None:
    first = [one.apply(count_up) for _ in range(3)]
    assert [n for _, n in first] == [1, 2, 3]
    with pytest.raises(dpool.errors.WorkerCrashed):
        one.apply(kill_self)
    assert one.apply(count_up)[1] == 1


def test_executors_have_workers_too() -> None:
    with dpool.Executor(1) as ex:
        assert ex.submit(who).result(LONG_S)[2] == 0


def in_a_child() -> bool:
    assert dpool.current_worker() is not None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"none" if dpool.current_worker() is None else b"some")
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(read, 4) == b"none"


def test_a_child_of_a_task_is_no_worker(one: dpool.Pool) -> None:
    assert one.apply(in_a_child)


def test_variables_for_the_workers() -> None:
    with dpool.Pool(1, env={"DPOOL_TEST_VALUE": "7"}) as pool:
        assert pool.apply(os.getenv, ("DPOOL_TEST_VALUE",)) == "7"


def nested(n: int) -> list[int]:
    with dpool.Pool(2) as pool:
        return pool.map(square, range(n))


def test_pools_in_pools(pool: dpool.Pool) -> None:
    assert pool.map(nested, [2, 3, 4], 1) == [[0, 1], [0, 1, 4], [0, 1, 4, 9]]


def test_no_worker_is_left_by_many_pools() -> None:
    pids: set[int] = set()

    def use() -> None:
        with dpool.Pool(1) as pool:
            pids.add(pool.apply(os.getpid))

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert len(pids) == 6
    assert not any(map(is_running, pids))


def test_a_pool_is_one_of_multiprocessing_to_who_asks(pool: dpool.Pool) -> None:
    kinds: list[type] = [multiprocessing.pool.Pool, multiprocessing.pool.ThreadPool, dpool.Pool]
    assert [isinstance(pool, kind) for kind in kinds] == [True, False, True]
    assert type(pool) is dpool.Pool
