"""What tasks hold while they run: never more than there is, and all of it free again afterwards."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate
from tests.helpers import wait_until


def all_free() -> bool:
    return dpool.available_resources() == dpool.cluster_resources()


@dpool.remote
def enter(gate: Gate, name: str) -> str:
    gate.enter(name)
    return name


@pytest.mark.parametrize(
    ("options", "fit"),
    [
        ({}, 2),
        ({"num_cpus": 0.5}, 4),
        ({"num_cpus": 2}, 1),
        ({"num_cpus": 0, "resources": {"licence": 1}}, 3),
        ({"num_cpus": 0, "num_gpus": 0.5}, 2),
        ({"num_cpus": 0.25, "resources": {"licence": 1.5}}, 2),
    ],
)
def test_no_more_run_than_fit(gate: Gate, options: dict[str, Any], fit: int) -> None:
    names = [f"{n}" for n in range(fit + 2)]
    futures = [enter.options(**options).remote(gate, name) for name in names]
    wait_until(lambda: sum(bool(gate.pids(name)) for name in names) == fit, LONG_S)
    free = dpool.available_resources()
    assert all(amount >= 0 for amount in free.values())
    assert sum(bool(gate.pids(name)) for name in names) == fit
    gate.open(*names)
    assert dpool.get(futures, timeout=LONG_S) == names
    wait_until(all_free, LONG_S)


def test_gpus_are_shown_to_their_task() -> None:
    seen = dpool.remote(num_gpus=1)(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert dpool.get(seen.remote()) == "0"


def test_everything_is_free_after_crashes(gate: Gate) -> None:
    asked = {"num_cpus": 1, "num_gpus": 0.5, "resources": {"licence": 1}}
    victims = [enter.options(max_retries=0, **asked).remote(gate, name) for name in "ab"]
    for name in "ab":
        os.kill(gate.entered(name), signal.SIGKILL)
    for victim in victims:
        with pytest.raises(dpool.errors.WorkerCrashed):
            dpool.get(victim, timeout=LONG_S)
    wait_until(all_free, LONG_S)


def test_what_is_not_there_is_waited_for_with_a_warning() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        waiting = [dpool.remote(num_gpus=4)(len).remote("") for _ in range(3)]
        wait_until(lambda: len(seen) > 0, LONG_S)
        assert not any(one.done() for one in waiting)
    assert [one.category for one in seen] == [RuntimeWarning]
    assert "num_gpus=3 too little" in str(seen[0].message)
    for one in waiting:
        dpool.cancel(one)
        assert one.cancelled()


def test_strict_resources_raise_instead() -> None:
    dpool.shutdown()
    dpool.init(num_cpus=2, strict_resources=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        futures = [dpool.remote(resources={"unicorn": 1})(len).remote("") for _ in range(3)]
        for future in futures:
            with pytest.raises(dpool.errors.InfeasibleResources, match="unicorn"):
                dpool.get(future, timeout=LONG_S)
        with pytest.raises(dpool.errors.InfeasibleResources):
            dpool.get(dpool.remote(resources={"unicorn": 1})(len).remote(""), timeout=LONG_S)
    assert dpool.get(dpool.remote(len).remote("ab")) == 2


def waits_for(gate: Gate) -> str:
    child = enter.options(num_cpus=2).remote(gate, "b")
    gate.note("a")
    return "parent of " + str(dpool.get(child))


def test_a_task_that_waits_lends_its_cpus(gate: Gate) -> None:
    parent = dpool.remote(waits_for).remote(gate)
    gate.entered("b")
    gate.open("b")
    assert dpool.get(parent, timeout=LONG_S) == "parent of b"
    wait_until(all_free, LONG_S)


def test_executors_and_tasks_share_the_resources(gate: Gate) -> None:
    """An idle lease of the one goes to the other as soon as it is wanted."""
    with dpool.Executor(2) as ex:
        for _ in range(5):
            assert ex.options(num_cpus=2).submit(len, "abc").result(LONG_S) == 3
            assert dpool.get(dpool.remote(num_cpus=2)(len).remote("ab"), timeout=LONG_S) == 2
    wait_until(all_free, LONG_S)


def test_tasks_from_many_threads() -> None:
    found: list[int] = []

    def submit() -> None:
        found.extend(dpool.get([dpool.remote(num_cpus=0.5)(len).remote("a" * n) for n in range(30)], timeout=LONG_S))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert sorted(found) == sorted([*range(30)] * 4)
    wait_until(all_free, LONG_S)
