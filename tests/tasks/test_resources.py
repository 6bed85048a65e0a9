"""What tasks hold while they run: never more than there is, and all of it free again afterwards."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from typing import Any

import pytest

import dpool
from dpool._core.driver import TASK_WORKER_IDLE_S
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


def test_a_lease_is_returned_soon_each_time(gate: Gate) -> None:
    """Others do not see as taken what an idle program has, however often it has been idle before."""
    for name in ("once", "again"):
        future = enter.options(num_cpus=1).remote(gate, name)
        gate.entered(name)
        assert not all_free()
        gate.open(name)
        assert dpool.get(future, timeout=LONG_S) == name
        wait_until(all_free, TASK_WORKER_IDLE_S / 3)


def shown() -> tuple[str | None, list[int | str]]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), dpool.get_gpu_ids()


class Shown:
    def look(self) -> tuple[str | None, list[int | str]]:
        return shown()


def test_gpus_are_shown_to_their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    dpool.shutdown()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5,7")
    dpool.init(num_cpus=2, num_gpus=2)
    assert dpool.get_gpu_ids() == []
    assert dpool.get(dpool.remote(num_gpus=1)(shown).remote()) == ("3", [3])
    assert dpool.get(dpool.remote(num_gpus=2)(shown).remote()) == ("3,GPU-5", [3, "GPU-5"])
    assert dpool.get(dpool.remote(shown).remote()) == ("3,GPU-5,7", [])  # not what an earlier task had
    actors = [dpool.remote(num_gpus=0.6)(Shown).remote() for _ in range(2)]
    assert sorted(actor.look() for actor in actors) == [("3", [3]), ("GPU-5", ["GPU-5"])]


def test_fractions_share_a_gpu(gate: Gate) -> None:
    dpool.shutdown()
    dpool.init(num_cpus=8, num_gpus=2)

    @dpool.remote(num_cpus=0, max_retries=0)
    def hold(name: str) -> list[int | str]:
        gate.enter(name)
        return dpool.get_gpu_ids()

    halves = [hold.options(num_gpus=0.5).remote(f"half{n}") for n in range(2)]
    for n in range(2):
        gate.entered(f"half{n}")
    large = [hold.options(num_gpus=0.6).remote(f"large{n}") for n in range(2)]  # only one fits beside them
    wait_until(lambda: len(gate.pids("large0")) + len(gate.pids("large1")) == 1, LONG_S)
    assert dpool.available_resources()["GPU"] == pytest.approx(0.4)
    gate.open("half0", "half1")
    assert dpool.get(halves, timeout=LONG_S) == [[0], [0]]
    for n in range(2):
        gate.entered(f"large{n}")
    gate.open("large0", "large1")
    assert sorted(dpool.get(large, timeout=LONG_S)) == [[0], [1]]
    with pytest.raises(ValueError, match="whole or below 1"):
        hold.options(num_gpus=1.5)
    victims = [hold.options(num_gpus=0.5).remote(f"victim{n}") for n in range(3)]
    for n in range(3):
        os.kill(gate.entered(f"victim{n}"), signal.SIGKILL)
    for victim in victims:
        with pytest.raises(dpool.errors.WorkerCrashed):
            dpool.get(victim, timeout=LONG_S)
    wait_until(all_free, LONG_S)


def test_a_child_does_not_run_in_the_process_of_a_parent_with_a_gpu(gate: Gate) -> None:
    parent = dpool.remote(num_gpus=1)(lambda: (os.getpid(), dpool.get(dpool.remote(os.getpid).remote())))
    first, second = dpool.get(parent.remote(), timeout=LONG_S)
    assert first != second


def test_a_number_of_gpus_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="whole"):
        dpool.init(num_gpus=1.5)


# -- memory


class Holder:
    """Holds what it was made with."""


def test_memory_is_counted_in_bytes(gate: Gate) -> None:
    total = dpool.cluster_resources()["memory"]
    part = int(total * 0.4)
    tasks = [enter.options(num_cpus=0, memory=part).remote(gate, f"{n}") for n in range(3)]
    wait_until(lambda: sum(bool(gate.pids(f"{n}")) for n in range(3)) == 2, LONG_S)
    assert dpool.available_resources()["memory"] == total - 2 * part
    gate.open("0", "1", "2")
    dpool.get(tasks, timeout=LONG_S)
    wait_until(all_free, LONG_S)
    actors = [dpool.remote(memory=part)(Holder).remote() for _ in range(2)]
    wait_until(lambda: dpool.available_resources()["memory"] == total - 2 * part, LONG_S)
    waiting = enter.options(num_cpus=0, memory=part).remote(gate, "behind")
    actors.pop().kill()
    gate.open("behind")
    assert dpool.get(waiting, timeout=LONG_S) == "behind"


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


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({"num_cpus": 3}, "num_cpus=1 too little"),
        ({"num_gpus": 2}, "num_gpus=1 too little"),
        ({"memory": 1 << 60}, "memory="),
        ({"resources": {"unicorn": 1}}, "unicorn=1 too little"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("actor", [False, True])
def test_what_is_missing_is_named_once(asked: dict[str, Any], missing: str, inside: bool, actor: bool) -> None:
    """Of tasks and actors, made here or by a task. A warning about an actor goes to the program."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if inside:
            texts, made = dpool.get(dpool.remote(ask_for_too_much).remote(asked, actor), timeout=LONG_S)
        else:
            texts, made = ask_for_too_much(asked, actor)
        if actor:
            wait_until(lambda: len(seen) > 0, LONG_S)
    del made
    texts += [str(one.message) for one in seen]
    assert len(texts) == 1
    assert missing in texts[0]


def ask_for_too_much(asked: dict[str, Any], actor: bool) -> tuple[list[str], list[Any]]:
    """A few times; the warnings, and the actors."""
    if actor:
        made = [dpool.remote(**asked)(Shown).remote() for _ in range(3)]
        calls = [one.look.submit() for one in made]
        assert dpool.wait(calls, timeout=0.01)[0] == []
        return [], made
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        calls = [dpool.remote(**asked)(len).remote("") for _ in range(3)]
        wait_until(lambda: len(seen) > 0, LONG_S)
        assert dpool.wait(calls, timeout=0.01)[0] == []
    return [str(one.message) for one in seen], []


def strictly(asked: dict[str, Any]) -> str:
    found = []
    for _ in range(2):
        try:
            dpool.get(dpool.remote(**asked)(len).remote(""), timeout=LONG_S)
        except dpool.errors.InfeasibleResources as error:
            found.append(str(error))
        try:
            dpool.remote(**asked)(Shown).remote().look()
        except dpool.errors.InfeasibleResources as error:
            found.append(str(error))
    assert len(found) == 4, found
    return "\n".join(found)


def test_strict_resources_raise_instead() -> None:
    dpool.shutdown()
    dpool.init(num_cpus=2, num_gpus=1, strict_resources=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for asked, name in (({"resources": {"unicorn": 1}}, "unicorn"), ({"num_gpus": 2}, "num_gpus=1")):
            for text in (strictly(asked), dpool.get(dpool.remote(strictly).remote(asked), timeout=LONG_S)):
                assert name in text
                assert "waits" not in text
        futures = [dpool.remote(resources={"unicorn": 1})(len).remote("") for _ in range(3)]
        for future in futures:
            with pytest.raises(dpool.errors.InfeasibleResources, match="unicorn"):
                dpool.get(future, timeout=LONG_S)
    assert seen == []  # nothing waits
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
