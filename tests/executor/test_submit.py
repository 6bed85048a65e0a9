"""`submit`: what may be called, with what, what comes back, and that no worker idles while a task could run."""

from __future__ import annotations

import concurrent.futures
import functools
import operator
import os
import pickle
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest

import dpool
from dpool import errors
from tests.executor.support import LONG_S, Gate, fail, generator, noop, same, square, wait_for
from tests.helpers import wait_until

# --- Calls ---


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, x: int) -> int:
        return x + self.amount

    def add(self, x: int) -> int:
        return x + self.amount

    @staticmethod
    def twice(x: int) -> int:
        return 2 * x

    @classmethod
    def make(cls, amount: int) -> Adder:
        return cls(amount)


def test_it_is_an_executor_of_the_standard_library(ex: dpool.Executor) -> None:
    assert isinstance(ex, concurrent.futures.Executor)
    future = ex.submit(square, 7)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, dpool.Future)
    assert future.result(LONG_S) == 49


def test_keywords_called_fn_and_self(ex: dpool.Executor) -> None:
    future = ex.submit(echo, 1, fn=2, self=3, args=4, kwargs=5, route=6)
    assert future.result(LONG_S) == ((1,), {"fn": 2, "self": 3, "args": 4, "kwargs": 5, "route": 6})
    view = ex.options(name="echo")
    assert view.submit(echo, fn=1, self=2).result(LONG_S) == ((), {"fn": 1, "self": 2})
    with pytest.raises(TypeError):
        ex.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ex.submit(fn=square)  # type: ignore[call-arg]


def test_what_can_be_called(ex: dpool.Executor) -> None:
    factor = 3
    adder = Adder(10)
    calls: list[tuple[Any, int]] = [
        (square, 25),
        (lambda x: factor * x, 15),
        (functools.partial(operator.add, 1), 6),
        (functools.partial(lambda a, b: a - b, 1), -4),
        (adder, 15),
        (adder.add, 15),
        (Adder.twice, 10),
        (abs, 5),
        ([7, 8, 9, 10, 11, 12].__getitem__, 12),
        (operator.neg, -5),
        (functools.lru_cache(square), 25),
    ]
    futures = [ex.submit(function, 5) for function, _ in calls]
    assert [future.result(LONG_S) for future in futures] == [value for _, value in calls]
    assert ex.submit(Adder.make, 4).result(LONG_S).amount == 4
    assert ex.submit(Adder, 4).result(LONG_S).amount == 4


def test_what_is_not_callable_fails_as_a_task(ex: dpool.Executor) -> None:
    with pytest.raises(TypeError):
        ex.submit(None).result(LONG_S)  # type: ignore[arg-type]
    assert ex.submit(same, 1).result(LONG_S) == 1


VALUES: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, float("inf"), 1j, "", "é" * 3000, b"", b"\0" * 5000,
    (), (1,), ("R", b"x"), (2, b"x"), [], [[]], {}, {"a": [1]}, {1, 2}, frozenset((1,)),
    range(3), ..., NotImplemented, slice(1, 2), bytearray(b"x"), int, len, ValueError, Path("/"),
]  # fmt: skip


def test_values_go_and_come_back_as_they_are(ex: dpool.Executor) -> None:
    futures = [ex.submit(same, value) for value in VALUES]
    results = [future.result(LONG_S) for future in futures]
    assert results == VALUES
    assert [type(result) for result in results] == [type(value) for value in VALUES]
    error = ex.submit(same, ValueError("a value")).result(LONG_S)  # returned, not raised
    assert type(error) is ValueError
    assert error.args == ("a value",)


def test_subclasses_of_plain_types_stay_what_they_are(ex: dpool.Executor) -> None:
    for value in (Number(3), Text("x")):
        result = ex.submit(same, value).result(LONG_S)
        assert type(result) is type(value)
        assert result == value


class Number(int):
    pass


class Text(str):
    pass


def test_large_arguments_and_results(ex: dpool.Executor) -> None:
    data = os.urandom(8 << 20)
    futures = [ex.submit(same, data) for _ in range(4)]
    assert all(future.result(LONG_S) == data for future in futures)
    assert ex.submit(same, value=data).result(LONG_S) == data


def test_arguments_are_taken_when_they_are_submitted(one: dpool.Executor, gate: Gate) -> None:
    running = one.submit(gate.enter)
    gate.entered()
    items = [1, 2, 3]
    waiting = [one.submit(same, items) for _ in range(3)]
    items.append(4)
    gate.open()
    assert [future.result(LONG_S) for future in waiting] == [[1, 2, 3]] * 3
    assert running.result(LONG_S) is None


def test_many_threads_submit(ex: dpool.Executor) -> None:
    results: dict[int, list[int]] = {}

    def client(number: int) -> None:
        futures = [ex.submit(square, 1000 * number + i) for i in range(200)]
        results[number] = [future.result(LONG_S) for future in futures]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert results == {n: [(1000 * n + i) ** 2 for i in range(200)] for n in range(8)}


def test_a_callback_submits(ex: dpool.Executor) -> None:
    """As joblib does, with a lock of its own held."""
    lock = threading.Lock()
    done = threading.Event()
    seen: list[int] = []

    def next_one(future: concurrent.futures.Future[int]) -> None:
        with lock:
            seen.append(future.result())
            if len(seen) == 50:
                done.set()
            else:
                ex.submit(square, len(seen)).add_done_callback(next_one)

    with lock:
        ex.submit(square, 0).add_done_callback(next_one)
    assert done.wait(LONG_S)
    assert seen == [i * i for i in range(50)]


def signal_and_say(pid: int, gate: Gate) -> str:
    gate.note("ran")
    os.kill(pid, signal.SIGUSR1)
    return "said"


def test_a_signal_handler_submits(one: dpool.Executor, gate: Gate) -> None:
    """The signal comes as soon as the task is sent, in the middle of `submit`: no answer goes to the wrong future."""
    submitted: list[dpool.Future[int]] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: submitted.append(one.submit(square, 9)))
    try:
        for _ in range(200):
            assert one.submit(signal_and_say, os.getpid(), gate).result(LONG_S) == "said"
        wait_until(lambda: submitted, LONG_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert {future.result(LONG_S) for future in submitted} == {81}
    assert len(gate.pids("ran")) == 200


# --- Errors of the task ---


class Custom(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


class Base(BaseException):
    pass


def outer() -> None:
    inner()


def inner() -> None:
    raise KeyError("missing key")


@pytest.mark.parametrize(
    "error",
    [ValueError("a", 1), Custom(3, "x"), OSError(2, "gone", "file"), SystemExit(3), KeyboardInterrupt(),
     GeneratorExit("g"), Base("b"), StopIteration(4), concurrent.futures.CancelledError(), TimeoutError("t")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_exception_keeps_type_and_arguments(one: dpool.Executor, error: BaseException) -> None:
    future = one.submit(fail, error)
    raised = future.exception(LONG_S)
    assert type(raised) is type(error)
    assert raised.args == error.args
    assert vars(raised) == vars(error)
    with pytest.raises(type(error)) as info:
        future.result(LONG_S)
    assert info.value is raised
    assert not future.cancelled()
    assert one.submit(same, 1).result(LONG_S) == 1


def test_the_remote_traceback_is_the_cause(one: dpool.Executor) -> None:
    error = one.submit(outer).exception(LONG_S)
    assert isinstance(error, KeyError)
    cause = str(error.__cause__)
    assert "in outer" in cause
    assert "in inner" in cause
    assert 'raise KeyError("missing key")' in cause
    assert Path(__file__).name in cause
    assert cause in "".join(traceback.format_exception(type(error), error, error.__traceback__))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes are of Python 3.11")
def test_notes_and_groups_come_along(one: dpool.Executor) -> None:
    def noted() -> None:
        error = ValueError("x")
        error.add_note("a note")  # type: ignore[attr-defined,unused-ignore]
        raise error

    error = one.submit(noted).exception(LONG_S)
    assert error.__notes__ == ["a note"]  # type: ignore[union-attr,unused-ignore]
    group = one.submit(fail, ExceptionGroup("g", [ValueError(1), KeyError(2)])).exception(LONG_S)  # type: ignore[name-defined,unused-ignore]  # noqa: F821
    assert [type(e) for e in group.exceptions] == [ValueError, KeyError]  # type: ignore[union-attr,unused-ignore]


def test_each_future_has_its_own_exception(one: dpool.Executor) -> None:
    first, second = one.submit(outer).exception(LONG_S), one.submit(outer).exception(LONG_S)
    assert first is not second


# --- What does not pickle, or does not unpickle ---


class NoPickle:
    """Raises in the process that pickles it."""

    def __reduce__(self) -> Any:
        raise ZeroDivisionError("no pickle")


class NoUnpickle:
    """Raises in the process that unpickles it."""

    def __reduce__(self) -> Any:
        return _no_unpickle, ()


def _no_unpickle() -> None:
    raise ZeroDivisionError("no unpickle")


class NoUnpickleError(Exception):
    """Pickles, but its own constructor refuses what it was pickled with."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class NoPickleError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def make(kind: type[Any], *args: Any) -> Any:
    return kind(*args)


def raise_new(kind: type[BaseException], *args: Any) -> None:
    raise kind(*args)


def alone(ex: dpool.Executor, *call: Any) -> BaseException:
    """Submit the call between two good ones: it fails, they do not. Its exception."""
    before, bad, after = ex.submit(square, 3), ex.submit(*call), ex.submit(square, 4)
    error = bad.exception(LONG_S)
    assert error is not None
    assert (before.result(LONG_S), after.result(LONG_S), ex.submit(square, 5).result(LONG_S)) == (9, 16, 25)
    return error


def test_an_argument_that_does_not_pickle(ex: dpool.Executor) -> None:
    assert isinstance(alone(ex, same, NoPickle()), ZeroDivisionError)
    for argument in (threading.Lock(), generator(), [threading.Lock()]):
        assert isinstance(alone(ex, same, argument), (TypeError, pickle.PicklingError))


def test_a_function_that_does_not_pickle(ex: dpool.Executor) -> None:
    items = generator()

    def iterate() -> None:
        raise AssertionError(f"it cannot run {items}")

    error = alone(ex, iterate)
    assert isinstance(error, (TypeError, pickle.PicklingError))
    assert "generator" in str(error)


def test_an_argument_that_does_not_unpickle(ex: dpool.Executor) -> None:
    error = alone(ex, same, NoUnpickle())
    assert isinstance(error, concurrent.futures.process.BrokenProcessPool)  # as in the standard library, but alone
    assert isinstance(error, errors.DeserializationError)
    assert "same" in str(error)
    assert "no unpickle" in str(error)


def test_a_result_that_does_not_pickle(ex: dpool.Executor) -> None:
    error = alone(ex, make, NoPickle)
    assert "no pickle" in str(error)
    assert "make" in str(error)
    error = alone(ex, make, threading.Lock)
    assert isinstance(error, (TypeError, pickle.PicklingError))
    assert "make" in str(error)


def test_a_result_that_does_not_unpickle(ex: dpool.Executor) -> None:
    error = alone(ex, make, NoUnpickle)
    assert isinstance(error, errors.DeserializationError)
    assert "no unpickle" in str(error)
    assert "make" in str(error)


def test_an_exception_that_does_not_unpickle(ex: dpool.Executor) -> None:
    error = alone(ex, raise_new, NoUnpickleError, 1, 2)
    assert type(error).__name__ == "NoUnpickleError"
    assert "1 and 2" in str(error)
    assert "raise_new" in str(error.__cause__)


def test_an_exception_that_does_not_pickle(ex: dpool.Executor) -> None:
    error = alone(ex, raise_new, NoPickleError, "locked")
    assert type(error).__name__ == "NoPickleError"
    assert "locked" in str(error)
    assert "raise_new" in str(error.__cause__)


# --- No worker idles while a task could run ---


def prime(ex: dpool.Executor, count: int = 3000) -> None:
    """Let the executor learn that tasks are tiny, so that many travel in one frame."""
    for future in [ex.submit(noop) for _ in range(count)]:
        future.result(LONG_S)


@pytest.mark.parametrize("primed", [False, True])
def test_tasks_behind_a_long_one_move_to_the_other_worker(ex: dpool.Executor, gate: Gate, primed: bool) -> None:
    if primed:
        prime(ex)
    long = ex.submit(gate.enter)
    short = [ex.submit(square, i) for i in range(500)]
    assert [future.result(LONG_S) for future in short] == [i * i for i in range(500)]
    assert not long.done()
    gate.open()
    long.result(LONG_S)


def test_a_long_task_in_the_middle_of_tiny_ones(ex: dpool.Executor, gate: Gate) -> None:
    prime(ex)
    futures = [ex.submit(square, i) if i != 300 else ex.submit(gate.enter) for i in range(1000)]
    long = futures.pop(300)
    assert all(future.result(LONG_S) is not None for future in futures)
    assert not long.done()
    gate.open()
    long.result(LONG_S)


def test_tasks_that_wait_for_later_ones(ex: dpool.Executor, tmp_path: Path) -> None:
    """The first waits for what the second does: a frame with both in it must not stay on one worker."""
    prime(ex)
    for number in range(5):
        path = tmp_path / str(number)
        waits = ex.submit(wait_for, path)
        fillers = [ex.submit(noop) for _ in range(100)]
        makes = ex.submit(path.touch)
        waits.result(LONG_S)
        makes.result(LONG_S)
        for future in fillers:
            future.result(LONG_S)


def test_both_workers_are_busy_until_one_is_free(ex: dpool.Executor, gate: Gate) -> None:
    prime(ex)
    first, second = ex.submit(gate.enter, "a"), ex.submit(gate.enter, "b")
    rest = [ex.submit(square, i) for i in range(300)]
    assert gate.entered("a") != gate.entered("b")
    assert not any(future.done() for future in rest)
    wait_until(lambda: not any(future.running() for future in rest), LONG_S, "what was sent to them is taken back")
    gate.open("b")
    assert [future.result(LONG_S) for future in rest] == [i * i for i in range(300)]
    assert second.done()
    assert not first.done()
    gate.open("a")
    first.result(LONG_S)


def test_the_thread_that_waits_need_not_be_the_one_that_submits(ex: dpool.Executor) -> None:
    futures = [ex.submit(square, i) for i in range(100)]
    seen: list[int] = []
    threads = [threading.Thread(target=lambda f=f: seen.append(f.result(LONG_S))) for f in futures[::10]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert sorted(seen) == [i * i for i in range(0, 100, 10)]


def test_tasks_end_though_nobody_waits(ex: dpool.Executor, gate: Gate) -> None:
    futures = [ex.submit(gate.note, str(i)) for i in range(20)]
    wait_until(lambda: all(future.done() for future in futures), LONG_S, "all are done")
    assert all(gate.pids(str(i)) for i in range(20))


def test_no_more_workers_than_asked_for_and_all_of_them(gate: Gate) -> None:
    with dpool.Executor(3) as ex:
        held = [ex.submit(gate.enter, str(i)) for i in range(3)]
        pids = {gate.entered(str(i)) for i in range(3)}
        assert len(pids) == 3
        more = [ex.submit(os.getpid) for _ in range(10)]
        assert not any(future.done() for future in more)
        gate.open("0", "1", "2")
        assert {future.result(LONG_S) for future in more} <= pids
        assert [future.result(LONG_S) for future in held] == [None] * 3
        assert set(ex._processes) == pids


def test_the_default_is_a_worker_for_each_cpu() -> None:
    from loky import cpu_count

    with dpool.Executor() as ex:
        assert ex._max_workers == cpu_count()
        assert ex.submit(square, 2).result(LONG_S) == 4


def test_arguments_of_the_constructor() -> None:
    for count in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            dpool.Executor(count)
    with pytest.raises(TypeError):
        dpool.Executor(max_workers="2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        dpool.Executor(initializer=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        dpool.Executor(max_tasks_per_child=0)
    with pytest.raises(TypeError):
        dpool.Executor(max_tasks_per_child=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_retries"):
        dpool.Executor(max_retries=-1)
    with pytest.raises(ValueError, match="address"):
        dpool.Executor(address="tcp://nowhere")


def test_max_tasks_per_child(gate: Gate) -> None:
    with dpool.Executor(1, max_tasks_per_child=3) as ex:
        pids = [future.result(LONG_S) for future in [ex.submit(os.getpid) for _ in range(9)]]
    assert len(set(pids)) == 3
    assert all(pids.count(pid) == 3 for pid in pids)


def test_workers_of_two_executors_share_nothing() -> None:
    with dpool.Executor(1) as a, dpool.Executor(1) as b:
        a.submit(setattr, os, "of_a", 1).result(LONG_S)
        assert not b.submit(hasattr, os, "of_a").result(LONG_S)
        assert a.submit(hasattr, os, "of_a").result(LONG_S)
        assert a.submit(os.getpid).result(LONG_S) != b.submit(os.getpid).result(LONG_S)
    with dpool.Executor(1) as c:
        assert not c.submit(hasattr, os, "of_a").result(LONG_S)


def test_an_executor_is_a_pool_of_processes_to_who_asks(ex: dpool.Executor) -> None:
    kinds: list[type] = [concurrent.futures.ProcessPoolExecutor, concurrent.futures.ThreadPoolExecutor, dpool.Executor]
    assert [isinstance(ex, kind) for kind in kinds] == [True, False, True]
    assert type(ex) is dpool.Executor


def test_an_executor_does_not_pickle(ex: dpool.Executor) -> None:
    with pytest.raises(TypeError, match="an Executor cannot be pickled"):
        pickle.dumps(ex)
    with pytest.raises(TypeError, match="makes an Executor of its own"):
        ex.submit(id, ex).result(LONG_S)
