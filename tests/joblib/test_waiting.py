"""How a call waits: told of its end, interrupted, and with other calls on the same backend in between."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import joblib
import pytest
from joblib import Parallel, delayed

from dpool.joblib import DpoolBackend
from tests.executor.support import Gate, square
from tests.helpers import is_running, wait_until


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times that joblib slept before it looked again."""
    import time

    taken: list[float] = []

    def sleep(seconds: float) -> None:
        taken.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(joblib.parallel, "time", SimpleNamespace(time=time.time, sleep=sleep))
    return taken


def test_a_call_does_not_look_every_10_ms_whether_it_is_over(naps: list[float], gate: Gate) -> None:
    def open_seven() -> None:
        gate.entered("7")
        gate.open("7")

    threading.Thread(target=open_seven).start()
    calls = (delayed(gate.enter)("7", i) if i == 7 else delayed(square)(i) for i in range(20))
    assert Parallel(n_jobs=2, backend="dpool")(calls) == [i if i == 7 else i * i for i in range(20)]
    assert naps == []


@pytest.mark.parametrize("options", [{"timeout": 60}, {"return_as": "generator"}])
def test_one_that_has_more_to_look_at_does(options: dict[str, Any], naps: list[float], gate: Gate) -> None:
    def open_later() -> None:
        gate.entered()
        wait_until(lambda: naps, 30, "joblib has looked")
        gate.open()

    threading.Thread(target=open_later).start()
    results = Parallel(n_jobs=2, backend="dpool", **options)(delayed(gate.enter)("task", i) for i in range(2))
    assert list(results) == [0, 1]


def test_an_interrupt_ends_the_wait_and_the_tasks(gate: Gate) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        gate.entered("0")
        gate.entered("1")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Parallel(n_jobs=2, backend="dpool")(delayed(gate.enter)(str(i)) for i in range(2))
    thread.join()
    pids = gate.pids("0") + gate.pids("1")
    wait_until(lambda: not any(map(is_running, pids)), 30, "their workers are stopped")
    assert Parallel(n_jobs=2, backend="dpool")(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_a_generator_of_the_same_backend_feeds_a_call() -> None:
    backend = DpoolBackend()
    below = Parallel(n_jobs=2, backend=backend, return_as="generator")(delayed(square)(i) for i in range(30))
    above = Parallel(n_jobs=2, backend=backend)(delayed(square)(i) for i in below)
    assert above == [i**4 for i in range(30)]


def test_a_call_in_the_middle_of_another_ones_iterable() -> None:
    backend = DpoolBackend()

    def items() -> Iterator[Any]:
        for i in range(10):
            (value,) = Parallel(n_jobs=2, backend=backend)([delayed(square)(i)])
            yield delayed(square)(value)

    assert Parallel(n_jobs=2, backend=backend)(items()) == [i**4 for i in range(10)]


def test_the_instance_is_used_again_when_the_call_is_over() -> None:
    backend = DpoolBackend()
    for _ in range(3):
        parallel = Parallel(n_jobs=2, backend=backend)
        assert parallel(delayed(os.getpid)() for _ in range(2))
        assert parallel._backend is backend
    with Parallel(n_jobs=2, backend=backend) as first:
        second = Parallel(n_jobs=2, backend=backend)
        assert second(delayed(square)(i) for i in range(3)) == first(delayed(square)(i) for i in range(3))
        assert first._backend is backend is not second._backend
