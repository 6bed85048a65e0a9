"""Large results: they stay in the store until somebody asks, and leave with the future; whatever becomes of workers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpool
from dpool import errors
from dpool._core.worker import Worker
from tests.executor.storing import LARGE, MB, becomes_empty, counted, holds, objects, pid, stored_bytes, total, zeros
from tests.executor.support import LONG_S, Gate, fail, wait_for
from tests.helpers import wait_until

pytestmark = pytest.mark.usefixtures("nothing_stays")
SUM = float(LARGE * (LARGE - 1) / 2)


def ready(*futures: Any) -> None:
    """Wait until they are done, and read none."""
    done, rest = dpool.wait(futures, num_returns=len(futures), timeout=LONG_S)
    assert not rest
    assert all(one.done() for one in done)


def test_a_result_is_read_once_and_is_the_same_then(one: dpool.Executor) -> None:
    future = one.submit(counted)
    ready(future)
    stats = dpool.store_stats(listing=True)
    assert (stats.objects, stats.pinned, stats.reads) == (1, 0, 0)
    result: Any = future.result()
    assert future.result() is result
    assert future.exception() is None
    assert dpool.get(future) is result
    assert dpool.store_stats().reads == 1
    result[0] = 8.0
    assert future.result()[0] == 8.0
    del result, future
    becomes_empty()


def test_two_threads_ask_for_one_result(one: dpool.Executor) -> None:
    future = one.submit(counted)
    ready(future)
    results: list[Any] = []
    barrier = threading.Barrier(4)

    def ask() -> None:
        barrier.wait(LONG_S)
        results.append(future.result(LONG_S))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [float(one.sum()) for one in results] == [SUM] * 4
    assert all(one is future.result() for one in results)
    results.clear()


def test_unread_results_are_not_pinned_and_leave_with_their_futures(ex: dpool.Executor) -> None:
    futures: list[Any] = [ex.submit(zeros) for _ in range(50)]
    ready(*futures)
    stats = dpool.store_stats()
    assert (stats.objects, stats.pinned) == (50, 0)
    del futures[25:]
    holds(25)
    assert float(futures[0].result()[0]) == 0.0
    futures.clear()
    becomes_empty()


def test_a_result_outlives_executor_and_worker() -> None:
    with dpool.Executor(1) as ex:
        future: Any = ex.submit(counted)
        other = ex.submit(counted, LARGE, 5)
        ready(future)
    assert future.result().sum() == SUM
    assert other.result(LONG_S)[0] == 5
    with dpool.Executor(1):
        assert future.result().sum() == SUM
        assert other.result().sum() == SUM + 5 * LARGE


def test_a_result_unread_at_shutdown_is_read_later() -> None:
    ex = dpool.Executor(1)
    future: Any = ex.submit(counted)
    ready(future)
    ex.shutdown()
    assert future.result(LONG_S).sum() == SUM


def test_await_and_gather(ex: dpool.Executor) -> None:
    async def main() -> list[float]:
        one = await ex.submit(counted)
        many: Any = await asyncio.gather(*(ex.submit(counted, LARGE, start) for start in range(3)))
        loop = asyncio.get_running_loop()
        ran = await loop.run_in_executor(ex, counted, LARGE)
        return [float(each.sum()) for each in (one, *many, ran)]

    assert asyncio.run(main()) == [SUM, SUM, SUM + LARGE, SUM + 2 * LARGE, SUM]
    becomes_empty()


def test_as_completed_and_wait_of_the_standard_library(ex: dpool.Executor) -> None:
    futures: list[Any] = [ex.submit(counted, LARGE, start) for start in range(20)]
    firsts = sorted(float(one.result()[0]) for one in concurrent.futures.as_completed(futures, timeout=LONG_S))
    assert firsts == list(map(float, range(20)))
    done, rest = concurrent.futures.wait(futures, LONG_S)
    assert (len(done), len(rest)) == (20, 0)
    futures.clear()
    done.clear()
    becomes_empty()


def test_a_callback_reads_the_result(one: dpool.Executor) -> None:
    seen: list[float] = []
    future: Any = one.submit(counted)
    future.add_done_callback(lambda done: seen.append(float(done.result().sum())))
    wait_until(lambda: seen, LONG_S)
    assert seen == [SUM]
    del future
    becomes_empty()


def test_map_whose_results_are_taken_slowly(ex: dpool.Executor) -> None:
    results = ex.map(counted, [MB // 8] * 200, range(200))
    kept: list[Any] = []
    for number, one in enumerate(results):
        assert (one[0], one[-1]) == (number, number + MB // 8 - 1)
        if number == 100:
            wait_until(lambda: stored_bytes() > 90 * MB, LONG_S, "the others wait in the store")
            assert dpool.store_stats().pinned < 8 * MB
        if number % 50 == 0:
            kept.append(one)
    assert [float(one[0]) for one in kept] == [0, 50, 100, 150]
    del one, results
    kept.clear()
    becomes_empty()


def test_an_iterator_that_is_dropped_lets_go_of_its_results(ex: dpool.Executor) -> None:
    results: Iterator[Any] = ex.map(counted, [LARGE] * 50, chunksize=5)
    assert next(results).sum() == SUM
    del results
    becomes_empty()


@pytest.mark.parametrize("chunksize", [1, 4])
def test_large_items_of_a_map(ex: dpool.Executor, chunksize: int) -> None:
    items = (np.full(LARGE, float(n)) for n in range(20))
    assert list(ex.map(total, items, chunksize=chunksize)) == [LARGE * float(n) for n in range(20)]
    becomes_empty()


def test_futures_of_large_results_as_arguments(ex: dpool.Executor, gate: Gate) -> None:
    first: Any = ex.submit(gate.enter, "task", 3)
    made = ex.submit(counted)
    assert ex.submit(total, made, more=made).result(LONG_S) == 2 * SUM
    waiting = ex.submit(np.full, LARGE, first)
    after = ex.submit(total, waiting)
    inside = ex.submit(lambda container: container[0].result(LONG_S).sum(), [made])
    assert inside.result(LONG_S) == SUM
    gate.open()
    assert after.result(LONG_S) == 3 * LARGE
    del first, made, waiting, after, inside
    becomes_empty()


# --- What is cancelled, lost or killed ---


def test_cancelled_tasks_let_go_of_their_arguments(one: dpool.Executor, gate: Gate) -> None:
    first = one.submit(gate.enter, "task", None)
    gate.entered()
    futures = [one.submit(total, np.full(LARGE, float(n))) for n in range(20)]
    holds(20)
    assert all(future.cancel() for future in futures[5:])
    holds(5)
    gate.open()
    assert [future.result(LONG_S) for future in futures[:5]] == [LARGE * float(n) for n in range(5)]
    assert first.result(LONG_S) is None
    holds(0)


def test_shutdown_that_cancels_lets_go_of_arguments(gate: Gate) -> None:
    with dpool.Executor(1):
        ex = dpool.Executor(1)
        first = ex.submit(gate.enter, "task", None)
        gate.entered()
        futures = [ex.submit(total, zeros()) for _ in range(10)]
        holds(10)
        ex.shutdown(wait=False, cancel_futures=True)
        gate.open()
        assert first.result(LONG_S) is None
        wait_until(lambda: all(future.done() for future in futures), LONG_S)
        assert any(future.cancelled() for future in futures)
        becomes_empty()


def test_futures_that_are_dropped_before_their_tasks_end(ex: dpool.Executor, gate: Gate) -> None:
    ex.submit(gate.enter, "task", zeros())
    for _ in range(10):
        ex.submit(counted)
    gate.open()
    becomes_empty()


@pytest.mark.parametrize("forced", [True, False], ids=["cancelled", "timed out"])
def test_a_killed_task_lets_go_of_its_argument(one: dpool.Executor, gate: Gate, forced: bool) -> None:
    view = one.options(timeout=0.2) if not forced else one
    future = view.submit(gate.enter, "task", zeros())
    if forced:
        gate.entered()
        assert future.cancel(force=True)
    else:
        with pytest.raises(errors.TaskTimeout):
            future.result(LONG_S)
    becomes_empty()
    assert one.submit(total, zeros()).result(LONG_S) == 0.0


def die_after_answering() -> None:
    """From now on this worker is killed as soon as it has answered with something large."""
    answer = Worker._answer

    def then_die(self: Worker, first: int, end: bool, elapsed_ns: int, values: list[Any]) -> None:
        answer(self, first, end, elapsed_ns, values)
        if any(type(one) is tuple for one in values):
            os.kill(os.getpid(), signal.SIGKILL)

    Worker._answer = then_die  # type: ignore[method-assign]


def test_a_worker_that_dies_after_its_answer(gate: Gate) -> None:
    with dpool.Executor(1, initializer=die_after_answering, max_retries=3) as ex:
        for start in range(3):
            result: Any = ex.submit(counted, LARGE, start).result(LONG_S)
            assert result[0] == start
            assert result.sum() == SUM + start * LARGE
        del result
        becomes_empty()


def once_killed(path: Path, array: Any) -> Any:
    """Killed the first time; then twice its argument."""
    if not path.exists():
        path.touch()
        array[...] = -1.0
        os.kill(os.getpid(), signal.SIGKILL)
    return array * 2


def test_a_task_that_is_run_again_gets_its_argument_as_it_was(tmp_path: Path) -> None:
    with dpool.Executor(1, max_retries=1) as ex:
        ref = dpool.put(counted())
        for name, argument in (("a", counted()), ("b", ref)):
            result: Any = ex.submit(once_killed, tmp_path / name, argument).result(LONG_S)
            assert (result == 2 * counted()).all()
        del result, ref, argument
        becomes_empty()
    with dpool.Executor(1) as ex:
        with pytest.raises(errors.WorkerCrashed):
            ex.submit(once_killed, tmp_path / "c", counted()).result(LONG_S)
        becomes_empty()


def test_strict_executors_let_go_of_everything(gate: Gate) -> None:
    with dpool.Executor(1):
        with dpool.Executor(2, strict=True) as ex:
            futures = [ex.submit(gate.enter, "task", zeros()) for _ in range(2)]
            futures += [ex.submit(gate.enter, "task", zeros()) for _ in range(6)]
            os.kill(gate.entered(), signal.SIGKILL)
            for future in futures:
                assert isinstance(future.exception(LONG_S), errors.DpoolError)
            del future
            futures.clear()
        becomes_empty()


def test_workers_for_one_task_each() -> None:
    with dpool.Executor(2, max_tasks_per_child=1) as ex:
        results: list[Any] = list(ex.map(counted, [LARGE] * 6, range(6)))
        assert [float(one[0]) for one in results] == list(map(float, range(6)))
        assert [float(one.sum()) for one in results] == [SUM + n * LARGE for n in range(6)]
        assert len({ex.submit(pid).result(LONG_S) for _ in range(2)}) == 2
        results.clear()
        becomes_empty()


def test_many_small_and_large_results_in_turn(ex: dpool.Executor) -> None:
    futures: list[Any] = [ex.submit(counted, LARGE if n % 7 == 0 else 5, n) for n in range(200)]
    for number, future in enumerate(futures):
        assert future.result(LONG_S)[0] == number
    del future
    futures.clear()
    becomes_empty()


class Unreadable:
    """Pickles, with much data, and does not unpickle."""

    def __init__(self) -> None:
        self.array = counted()

    def __reduce__(self) -> Any:
        return refuse, (self.array,)


def refuse(array: Any) -> None:
    raise ValueError("I will not")


def iter_of_nothing() -> Iterator[int]:
    yield from ()


class Unwritable:
    """Its data go to the store, and then it does not pickle."""

    def __reduce__(self) -> Any:
        return list, ([counted(), iter_of_nothing()],)


def test_what_does_not_pickle_or_unpickle_leaves_nothing(one: dpool.Executor) -> None:
    future = one.submit(Unreadable)
    with pytest.raises(errors.DeserializationError, match="I will not"):
        future.result(LONG_S)
    with pytest.raises(errors.DeserializationError, match="I will not"):
        one.submit(total, Unreadable()).result(LONG_S)
    with pytest.raises(TypeError, match="generator"):
        one.submit(Unwritable).result(LONG_S)
    with pytest.raises(TypeError, match="generator"):
        one.submit(total, Unwritable()).result(LONG_S)
    with pytest.raises(TypeError, match="generator"):
        dpool.put(Unwritable())
    del future
    one.submit(gc.collect).result(LONG_S)
    becomes_empty()
    assert one.submit(total, counted()).result(LONG_S) == SUM


def test_a_failed_dependency_lets_go_of_arguments(one: dpool.Executor) -> None:
    broken = one.submit(fail, ValueError("x"))
    future = one.submit(total, broken, zeros())
    assert isinstance(future.exception(LONG_S), ValueError)
    assert objects() == 0


def sleep_beside(path: Path, array: Any) -> Any:
    wait_for(path)
    return array


def test_results_of_a_process_that_stays_busy_are_there_at_once(ex: dpool.Executor, tmp_path: Path) -> None:
    busy: Any = ex.submit(sleep_beside, tmp_path / "go", counted())
    for start in range(5):
        assert ex.submit(counted, LARGE, start).result(LONG_S)[0] == start
    (tmp_path / "go").touch()
    assert busy.result(LONG_S).sum() == SUM
