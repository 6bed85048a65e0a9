"""`Parallel(backend="dpool")`: results, errors, generators, time-outs, and that it never waits for ever."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator
from pickle import PicklingError
from typing import Any

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib._parallel_backends import FallbackToBackend
from joblib.parallel import get_active_backend

import dpool
from dpool.errors import InitializerFailed, SerializationError, WorkerCrashed
from dpool.joblib import DpoolBackend, close_executors
from tests.executor.support import LONG_S, Gate, fail, generator, kill_self, same, square
from tests.helpers import is_running, run_script, wait_until

VERSION = tuple(int(part) for part in joblib.__version__.split(".")[:2])
unordered = pytest.mark.skipif(VERSION < (1, 4), reason="joblib has generator_unordered from 1.4 on")


def parallel(**options: Any) -> Parallel:
    return Parallel(**{"n_jobs": 2, "backend": "dpool", **options})


def squares(n: int, **options: Any) -> list[int]:
    return list(parallel(**options)(delayed(square)(i) for i in range(n)))


# --- Results ---


@pytest.mark.parametrize("n", [0, 1, 2, 500])
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"pre_dispatch": "all"}, {"pre_dispatch": 1}])
def test_results_are_in_order(n: int, options: dict[str, Any]) -> None:
    assert squares(n, **options) == [i * i for i in range(n)]


def test_tasks_run_in_workers_that_stay_for_the_next_call() -> None:
    first = set(parallel()(delayed(os.getpid)() for _ in range(20)))
    second = set(parallel()(delayed(os.getpid)() for _ in range(20)))
    assert os.getpid() not in first | second
    assert len(first | second) <= 2


def test_keyword_arguments_and_functions_without_a_name() -> None:
    factor = 3
    calls = (delayed(lambda x, by: x * by * factor)(i, by=2) for i in range(4))
    assert parallel()(calls) == [0, 6, 12, 18]


def test_under_parallel_config() -> None:
    with parallel_config("dpool", n_jobs=2):
        backend, n_jobs = get_active_backend()
        assert isinstance(backend, DpoolBackend)
        assert n_jobs == 2
        assert os.getpid() not in Parallel()(delayed(os.getpid)() for _ in range(4))


def test_a_parallel_in_a_with_block_is_used_again() -> None:
    with parallel() as pool:
        assert [pool(delayed(square)(i) for i in range(n)) for n in (3, 0, 5)] == [[0, 1, 4], [], [0, 1, 4, 9, 16]]


def test_threads_call_at_the_same_time() -> None:
    found: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: squares(n)})) for n in range(50, 54)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert found == {n: [i * i for i in range(n)] for n in range(50, 54)}


def test_one_backend_serves_several_at_a_time() -> None:
    backend = DpoolBackend(nesting_level=0)
    one, other = (Parallel(n_jobs=2, backend=backend, return_as="generator") for _ in range(2))
    first, second = one(delayed(square)(i) for i in range(30)), other(delayed(square)(i) for i in range(30))
    assert list(zip(first, second, strict=True)) == [(i * i, i * i) for i in range(30)]


def test_it_prints_what_joblib_prints(capsys: pytest.CaptureFixture[str]) -> None:
    squares(20, verbose=11)
    assert "Using backend DpoolBackend with 2 concurrent workers." in capsys.readouterr().err


def test_short_calls_are_batched_by_the_time_that_they_take() -> None:
    batches: list[int] = []
    backend = DpoolBackend(nesting_level=0)
    completed = backend.batch_completed

    def note(batch_size: int, duration: float) -> None:
        batches.append(batch_size)
        completed(batch_size, duration)

    backend.batch_completed = note  # type: ignore[method-assign]
    Parallel(n_jobs=2, backend=backend)(delayed(square)(i) for i in range(5000))
    assert sum(batches) == 5000
    assert max(batches) >= 64


# --- n_jobs ---


def test_n_jobs_counts_cpus() -> None:
    backend, cpus = DpoolBackend(nesting_level=0), joblib.cpu_count()
    assert [backend.effective_n_jobs(n) for n in (None, 1, 7, -1, -1000)] == [1, 1, 7, cpus, 1]
    with pytest.raises(ValueError, match="n_jobs == 0"):
        backend.effective_n_jobs(0)
    with pytest.raises(ValueError, match="n_jobs == 0"):
        parallel(n_jobs=0)(delayed(square)(i) for i in range(2))


@pytest.mark.parametrize("n_jobs", [None, 1])
def test_one_job_runs_here(n_jobs: int | None) -> None:
    assert parallel(n_jobs=n_jobs)(delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2


def test_more_jobs_than_cpus(gate: Gate) -> None:
    n = joblib.cpu_count() + 1
    names = [f"t{i}" for i in range(n)]
    results = parallel(n_jobs=n, return_as="generator")(delayed(gate.enter)(name, name) for name in names)
    assert len({gate.entered(name) for name in names}) == n
    gate.open(*names)
    assert list(results) == names


# --- Errors ---


def test_an_error_arrives_with_its_traceback() -> None:
    with pytest.raises(KeyError, match="told") as caught:
        parallel()(delayed(fail)(KeyError("told")) for _ in range(3))
    assert "in fail" in str(caught.value.__cause__)
    assert squares(3) == [0, 1, 4]


def fail_or_hold(gate: Gate, i: int) -> None:
    if i:
        gate.enter(f"t{i}")
    else:
        gate.entered("t1")
        raise ValueError(i)


def test_after_an_error_running_tasks_are_stopped_and_the_workers_live_on(gate: Gate) -> None:
    with parallel() as pool:
        with pytest.raises(ValueError, match="0"):
            pool(delayed(fail_or_hold)(gate, i) for i in range(8))
        held = gate.entered("t1")
        wait_until(lambda: not is_running(held), LONG_S)
        assert pool(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]


def test_only_the_parallel_that_gives_up_is_stopped(gate: Gate) -> None:
    backend = DpoolBackend(nesting_level=0)
    other = Parallel(n_jobs=2, backend=backend, return_as="generator")(
        delayed(gate.enter)(name, name) for name in ("a", "b")
    )
    gate.entered("a")
    gate.open("b")
    with pytest.raises(KeyError):
        Parallel(n_jobs=2, backend=backend)(delayed(fail)(KeyError("x")) for _ in range(2))
    gate.open("a")
    assert list(other) == ["a", "b"]
    assert len(gate.pids("a")) == 1


def test_arguments_that_do_not_pickle() -> None:
    with pytest.raises(PicklingError, match="generator") as caught:
        parallel()(delayed(same)(generator()) for _ in range(3))
    assert isinstance(caught.value.__cause__, TypeError)
    assert squares(3) == [0, 1, 4]


def test_a_result_that_does_not_pickle() -> None:
    with pytest.raises((TypeError, SerializationError), match="generator"):
        parallel()(delayed(generator)() for _ in range(3))


@pytest.mark.skipif(VERSION < (1, 4), reason="joblib before 1.4 loses the error or waits for ever, with every backend")
def test_an_iterable_that_raises() -> None:
    def calls() -> Iterator[Any]:
        for i in range(20):
            if i == 15:
                raise ZeroDivisionError("in the iterable")
            yield delayed(square)(i)

    with pytest.raises(ZeroDivisionError, match="in the iterable"):
        parallel()(calls())
    assert squares(3) == [0, 1, 4]


# --- Crashes ---


def crash_at(i: int, bad: int) -> int:
    if i == bad:
        kill_self()
    return i


@pytest.mark.parametrize("return_as", ["list", "generator", pytest.param("generator_unordered", marks=unordered)])
def test_a_worker_that_dies_raises_and_later_calls_work(return_as: str) -> None:
    with pytest.raises(WorkerCrashed, match="SIGKILL while it ran crash_at"):
        list(parallel(return_as=return_as)(delayed(crash_at)(i, 3) for i in range(10)))
    assert squares(3) == [0, 1, 4]


@pytest.mark.parametrize("leave", [os._exit, kill_self])
def test_every_worker_dies_again_and_again(leave: Any) -> None:
    for _ in range(3):
        with pytest.raises(WorkerCrashed):
            parallel()(delayed(leave)(9) for _ in range(4))


def test_sys_exit_in_a_task() -> None:
    with pytest.raises(SystemExit):
        parallel()(delayed(fail)(SystemExit(3)) for _ in range(2))


def crash_once(gate: Gate, name: str) -> str:
    gate.note(name)
    if len(gate.pids(name)) == 1:
        kill_self()
    return name


def test_a_batch_is_run_again_if_asked_for(gate: Gate) -> None:
    with parallel_config("dpool", n_jobs=2, max_retries=1):
        assert Parallel(batch_size=1)(delayed(crash_once)(gate, name) for name in "abc") == ["a", "b", "c"]


def test_an_initializer_that_raises() -> None:
    with parallel_config("dpool", n_jobs=2, initializer=fail, initargs=(KeyError("set-up"),)):
        for _ in range(2):
            with pytest.raises(InitializerFailed, match="set-up"):
                Parallel()(delayed(square)(i) for i in range(2))
    assert squares(3) == [0, 1, 4]


def test_closing_the_executors_ends_a_call_that_runs(gate: Gate) -> None:
    errors: list[BaseException] = []

    def call() -> None:
        try:
            parallel()(delayed(gate.enter)(f"t{i}") for i in range(10))
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    gate.entered("t1")
    closing = threading.Thread(target=close_executors)
    closing.start()
    gate.open(*(f"t{i}" for i in range(10)))
    closing.join(LONG_S)
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert all("shut down" in str(error) for error in errors)


# --- Time-outs ---


def test_a_task_that_takes_too_long_is_stopped(gate: Gate) -> None:
    with pytest.raises(multiprocessing.TimeoutError):  # joblib's own
        parallel(timeout=0.2)(delayed(gate.enter)(f"t{i}") for i in range(2))
    for pid in gate.pids("t0") + gate.pids("t1"):
        wait_until(lambda pid=pid: not is_running(pid), LONG_S)  # type: ignore[misc]
    assert squares(3, timeout=LONG_S) == [0, 1, 4]


# --- Generators ---


def test_a_generator_yields_in_order_while_tasks_run(gate: Gate) -> None:
    results = parallel(return_as="generator", batch_size=1)(delayed(gate.enter)(name, name) for name in "abc")
    gate.open("b")
    gate.open("a")
    assert list(itertools.islice(results, 2)) == ["a", "b"]
    gate.open("c")
    assert list(results) == ["c"]


@unordered
def test_an_unordered_generator_yields_what_is_ready(gate: Gate) -> None:
    results = parallel(return_as="generator_unordered", batch_size=1)(delayed(gate.enter)(x, x) for x in "abc")
    gate.open("b")
    assert next(results) == "b"
    gate.open("a", "c")
    assert sorted(results) == ["a", "c"]


def test_dropping_a_generator_stops_its_tasks(gate: Gate) -> None:
    results = parallel(return_as="generator", batch_size=1)(delayed(gate.enter)(x, x) for x in "abcdef")
    gate.open("a")
    assert next(results) == "a"
    held = gate.entered("b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # joblib tells of the tasks that were cancelled
        del results
        gc.collect()
    wait_until(lambda: not is_running(held), LONG_S)
    assert squares(3) == [0, 1, 4]


# --- Settings ---


def test_threads_are_used_where_memory_must_be_shared() -> None:
    seen: list[int] = []
    with parallel_config("dpool", n_jobs=2):
        Parallel(n_jobs=2, require="sharedmem")(delayed(seen.append)(i) for i in range(4))
    assert sorted(seen) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="shared memory"):
        parallel(require="sharedmem")
    with pytest.raises(FallbackToBackend) as caught:
        DpoolBackend(nesting_level=0).configure(2, require="sharedmem")
    assert type(caught.value.backend).__name__ == "ThreadingBackend"


def test_settings_of_other_backends_are_accepted(tmp_path: Any) -> None:
    assert squares(3, prefer="processes", max_nbytes="2M", temp_folder=str(tmp_path), mmap_mode="c") == [0, 1, 4]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(TypeError, match="no setting wrong"), parallel_config("dpool", wrong=1):
        pass
    with pytest.raises(TypeError, match="wrong"):
        squares(2, wrong=1)


def threads_of_libraries() -> tuple[str | None, str | None]:
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")


def test_threads_of_libraries_are_limited() -> None:
    with parallel_config("dpool", n_jobs=2, inner_max_num_threads=3):
        assert set(Parallel()(delayed(threads_of_libraries)() for _ in range(4))) == {("3", "3")}
    share = os.environ.get("OMP_NUM_THREADS", str(max(1, joblib.cpu_count() // 2)))
    assert {omp for omp, _ in parallel()(delayed(threads_of_libraries)() for _ in range(4))} == {share}


def test_executors_of_other_settings_are_not_kept_without_end() -> None:
    pids = [parallel(n_jobs=n)(delayed(os.getpid)() for _ in range(2))[0] for n in range(2, 8)]
    wait_until(lambda: not any(map(is_running, pids[:2])), LONG_S)
    assert is_running(pids[-1])


def test_idle_workers_leave() -> None:
    with parallel_config("dpool", n_jobs=2, idle_worker_timeout=0.05):
        pids = set(Parallel()(delayed(os.getpid)() for _ in range(4)))
        wait_until(lambda: not any(map(is_running, pids)), LONG_S)
        assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


# --- Registering ---

PRINTS = """
if __name__ == "__main__":
    print(joblib.Parallel(n_jobs=2, backend="dpool")(joblib.delayed(pow)(i, 2) for i in range(3)))
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import joblib, dpool",
        "import dpool, joblib; dpool.register_joblib()",
        "import dpool, joblib, dpool.joblib",
        "import dpool; import joblib; from dpool import register_joblib; register_joblib(make_default=True)",
    ],
)
def test_it_is_known_and_nothing_stays_at_the_end(imports: str) -> None:
    assert run_script(imports + PRINTS).check().stdout == "[0, 1, 4]\n"


def test_importing_dpool_imports_no_joblib() -> None:
    script = "import sys, dpool; print('joblib' in sys.modules); import joblib; print('dpool.joblib' in sys.modules)"
    assert run_script(script).check().stdout == "False\nFalse\n"
    script = "import sys, joblib, dpool; print('dpool.joblib' in sys.modules, 'dpool._core.driver' in sys.modules)"
    assert run_script(script).check().stdout == "False False\n"


def test_as_the_default_backend() -> None:
    script = """
import os, dpool, joblib
dpool.register_joblib(make_default=True)
if __name__ == "__main__":
    pool = joblib.Parallel(n_jobs=2)
    print(type(pool._backend).__name__, os.getpid() in pool(joblib.delayed(os.getpid)() for _ in range(3)))
"""
    assert run_script(script).check().stdout == "DpoolBackend False\n"


def test_a_forked_child_has_workers_of_its_own() -> None:
    script = """
import os, joblib, dpool
calls = lambda: [joblib.delayed(os.getppid)() for _ in range(2)]
if __name__ == "__main__":
    pool = joblib.Parallel(n_jobs=2, backend="dpool")
    pool(calls())
    pid = os.fork()
    if pid == 0:
        joblib.Parallel(n_jobs=2, backend="dpool")(calls())
        print("child", flush=True)
        raise SystemExit(0)
    os.waitpid(pid, 0)
    pool(calls())
    print("parent")
"""
    assert run_script(script).check().stdout == "child\nparent\n"


def test_dpool_and_joblib_side_by_side() -> None:
    with dpool.Executor(1) as ex:
        future = ex.submit(square, 3)
        assert squares(3) == [0, 1, 4]
        assert future.result(LONG_S) == 9
