"""Actors whose processes, callers and homes are on different machines (of loopback)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

import dpool
from dpool._core import driver
from tests.cluster.test_loopback import DEADLINE_S, Cluster
from tests.helpers import wait_until

HERE, THERE = {"here": 0.01}, {"lamp": 0.01}
"""Resources of the driver's machine, and of the other one."""


def actor(cls: type) -> Any:
    return dpool.remote(cls)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster()
    made.add(resources=(("here", 1.0),))
    made.add(resources=(("lamp", 1.0),))
    monkeypatch.setenv("DPOOL_ADDRESS", made.members[0].address)
    driver.configure(address=made.members[0].address)
    try:
        yield made
    finally:
        dpool.shutdown()
        driver.configure(address="")
        for member in list(made.members):
            made.stop(member)


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start
        self.seen: list[Any] = []

    def add(self, number: int = 1) -> int:
        self.value += number
        return self.value

    def note(self, item: Any) -> None:
        self.seen.append(item)

    def notes(self) -> list[Any]:
        return self.seen

    def parent(self) -> int:
        return os.getppid()

    def pid(self) -> int:
        return os.getpid()

    def total(self, array: Any) -> float:
        return float(array.sum())

    def ones(self, count: int) -> Any:
        return np.ones(count)

    def fail(self) -> None:
        raise KeyError("over there")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def there(**options: Any) -> Any:
    return actor(Counter).options(resources=THERE, **options)


@dpool.remote
def parent() -> int:
    return os.getppid()


def get(value: Any) -> Any:
    return dpool.get(value, timeout=DEADLINE_S)


def test_it_is_made_where_its_resources_are(cluster: Cluster) -> None:
    counter = there().remote(5)
    assert get([counter.add.remote() for _ in range(300)]) == list(range(6, 306))
    node = get(parent.options(resources=THERE).remote())
    assert (get(counter.parent.remote()), get(counter.parent.remote())) == (node, node)
    assert node != get(parent.options(resources=HERE).remote())
    with pytest.raises(KeyError, match="over there"):
        get(counter.fail.remote())


def test_many_that_ask_for_nothing_are_on_both(cluster: Cluster) -> None:
    wait_until(lambda: len(dpool.nodes()) == 2, DEADLINE_S, "the first machine knows what the second one has")
    counters = [actor(Counter).remote() for _ in range(8)]
    parents = get([counter.parent.remote() for counter in counters])
    assert len(set(parents)) == 2, "two CPUs each"
    spread = [actor(Counter).options(scheduling_strategy="SPREAD").remote() for _ in range(2)]
    assert get([counter.add.remote() for counter in spread]) == [1, 1]


@dpool.remote(num_gpus=1)
def devices() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


class Devices:
    def seen(self) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def test_the_gpus_of_another_machine(cluster: Cluster) -> None:
    cluster.add(num_gpus=2.0)
    assert get(devices.remote()) in ("0", "1")
    first, second = (actor(Devices).options(num_gpus=1).remote() for _ in range(2))
    assert sorted(get([first.seen.remote(), second.seen.remote()])) == ["0", "1"]


def test_large_values_both_ways(cluster: Cluster) -> None:
    counter = there().remote()
    array = np.arange(100_000.0)
    assert get(counter.total.remote(array)) == array.sum()
    stored = dpool.put(array)
    assert get([counter.total.remote(stored) for _ in range(5)]) == [array.sum()] * 5
    assert get(counter.ones.remote(100_000)).sum() == 100_000


@dpool.remote
def use(counter: Any, count: int) -> list[int]:
    values: list[int] = dpool.get([counter.add.remote() for _ in range(count)])
    return values


@dpool.remote
def use_inside(data: dict[str, Any]) -> int:
    value: int = data["counters"][0].add()
    return value


@pytest.mark.parametrize("of", [HERE, THERE], ids=["actor here", "actor there"])
def test_tasks_on_either_machine_call_it(cluster: Cluster, of: Any) -> None:
    counter = actor(Counter).options(resources=of).remote()
    found: list[int] = []
    for where in (HERE, THERE):
        values = get(use.options(resources=where).remote(counter, 50))
        assert values == sorted(values)
        found += values
        found.append(get(use_inside.options(resources=where).remote({"counters": [counter]})))
    assert sorted(found) == list(range(1, 103))


def test_calls_of_one_caller_keep_their_order(cluster: Cluster) -> None:
    counter = there().remote()
    slow = parent.options(resources=THERE).remote()
    for number in range(100):
        counter.note.remote(number if number != 50 else slow)
    seen = get(counter.notes.remote())
    assert [item if isinstance(item, int) and item < 100 else "slow" for item in seen] == [
        *range(50), "slow", *range(51, 100)
    ]  # fmt: skip


class Gate:
    """Calls of it wait for each other."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def wait(self) -> str:
        await self.open.wait()
        return "through"

    async def let(self) -> None:
        self.open.set()


class Threads:
    def __init__(self) -> None:
        self.open = threading.Event()

    def wait(self) -> bool:
        return self.open.wait(DEADLINE_S)

    def let(self) -> None:
        self.open.set()


def test_many_calls_at_a_time(cluster: Cluster) -> None:
    gate = actor(Gate).options(resources=THERE).remote()
    waiting = [gate.wait.remote() for _ in range(20)]
    gate.let.remote()
    assert get(waiting) == ["through"] * 20
    threads = actor(Threads).options(resources=THERE, max_concurrency=3).remote()
    both = [threads.wait.remote() for _ in range(2)]
    threads.let.remote()
    assert get(both) == [True, True]


def test_names_are_the_clusters(cluster: Cluster) -> None:
    counter = there(name="counter").remote(1)
    assert get(counter.add.remote()) == 2
    with pytest.raises(ValueError, match="already"):
        there(name="counter").remote()
    assert get(find_and_add.options(resources=THERE).remote("counter")) == 3
    assert get(find_and_add.options(resources=HERE).remote("counter")) == 4
    assert get(make_or_find.options(resources=THERE).remote("counter")) == 5
    assert get(find_and_add.options(resources=THERE).remote("nobody")) == -1
    get(make_detached.options(resources=THERE).remote("kept"))
    assert get(dpool.get_actor("kept").add.remote()) == 8
    with pytest.raises(ValueError, match="already"):
        actor(Counter).options(name="kept").remote()
    dpool.kill(dpool.get_actor("kept"))
    wait_until(lambda: not exists("kept"), DEADLINE_S, "its name is free again")


def exists(name: str) -> bool:
    try:
        dpool.get_actor(name)
    except ValueError:
        return False
    return True


@dpool.remote
def find_and_add(name: str) -> int:
    try:
        value: int = dpool.get_actor(name).add()
    except ValueError:
        return -1
    return value


@dpool.remote
def make_or_find(name: str) -> int:
    value: int = actor(Counter).options(name=name, get_if_exists=True).remote().add()
    return value


@dpool.remote
def make_detached(name: str) -> None:
    actor(Counter).options(name=name, lifetime="detached").remote(7)


def test_kill_and_restart(cluster: Cluster) -> None:
    counter = there(max_restarts=1).remote(1)
    first = get(counter.pid.remote())
    with pytest.raises(dpool.errors.ActorDied, match="SIGKILL"):
        get(counter.die.remote())
    assert get(counter.add.remote()) == 2, "constructed anew"
    assert get(counter.pid.remote()) != first
    dpool.kill(counter)
    with pytest.raises(dpool.errors.ActorDied, match="killed"):
        get(counter.add.remote())
    other = there().remote()
    assert get(use.options(resources=HERE).remote(other, 1)) == [1]
    get(kill.options(resources=HERE).remote(other))
    with pytest.raises(dpool.errors.ActorDied):
        get([other.add.remote() for _ in range(2)])


@dpool.remote
def kill(counter: Any) -> None:
    dpool.kill(counter)


def test_its_machine_goes(cluster: Cluster) -> None:
    lost, moves = there().remote(), actor(Counter).options(num_cpus=2, max_restarts=1).remote()
    assert get([lost.add.remote(), moves.add.remote()]) == [1, 1]
    cluster.stop(cluster.members[1], signal.SIGKILL)
    with pytest.raises(dpool.errors.ActorDied, match=f"on {os.uname().nodename}"):
        get(lost.add.remote())
    assert get(moves.pid.remote())


def test_it_goes_with_its_last_proxy(cluster: Cluster) -> None:
    counter = there().remote()
    pid = get(counter.pid.remote())
    holder = actor(Counter).options(resources=THERE).remote()
    get(holder.note.remote(counter))
    del counter
    found = get(holder.notes.remote())
    assert get(found[0].add.remote()) == 1, "an actor over there holds it"
    del found
    dpool.kill(holder)
    del holder
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), DEADLINE_S, "it has ended")


def test_a_call_is_cancelled(cluster: Cluster, tmp_path: Any) -> None:
    sleeper = actor(Sleeper).options(resources=THERE).remote()
    running = sleeper.hang.remote(str(tmp_path / "began"))
    wait_until(lambda: (tmp_path / "began").exists(), DEADLINE_S)
    dpool.cancel(running)
    with pytest.raises(CancelledError):
        running.result(DEADLINE_S)
    pid = get(sleeper.pid.remote())
    assert get(cancel_it.options(resources=HERE).remote(sleeper, str(tmp_path / "again"))) == "cancelled"
    assert get(sleeper.pid.remote()) == pid
    assert get(sleeper.fine.remote()) == "fine"


class Sleeper:
    def hang(self, path: str) -> None:
        open(path, "w").close()
        wait_until(lambda: False, 1000)

    def fine(self) -> str:
        return "fine"

    def pid(self) -> int:
        return os.getpid()


@dpool.remote
def cancel_it(sleeper: Any, path: str) -> str:
    running = sleeper.hang.remote(path)
    wait_until(lambda: os.path.exists(path), DEADLINE_S)
    dpool.cancel(running)
    try:
        running.result(DEADLINE_S)
    except CancelledError:
        return "cancelled"
    return "ended"


@dpool.remote
def totals(counter: Any, arrays: Any) -> list[float]:
    stored = dpool.put(arrays[0])
    values: list[float] = dpool.get([counter.total.remote(one) for one in (arrays[0], stored, arrays[1])])
    return [*values, float(dpool.get(counter.ones.remote(100_000)).sum())]


def test_home_process_and_caller_on_three_machines(cluster: Cluster) -> None:
    cluster.add(resources=(("third", 1.0),))
    counter = there(max_restarts=1).remote()
    third = {"third": 0.01}
    assert get(use.options(resources=third).remote(counter, 100)) == list(range(1, 101))
    array = np.arange(100_000.0)
    arrays = [array, dpool.put(np.ones(100_000))]
    expected = [array.sum(), array.sum(), 100_000.0, 100_000.0]
    assert get(totals.options(resources=third).remote(counter, arrays)) == expected
    assert get(sees_death.options(resources=third).remote(counter)) == ("SIGKILL", 1)
    gate = actor(Gate).options(resources=THERE).remote()
    waiting = gate.wait.remote()
    assert get(open_gate.options(resources=third).remote(gate)) == "through"
    assert get(waiting) == "through"


@dpool.remote
def sees_death(counter: Any) -> tuple[str, int]:
    try:
        counter.die()
    except dpool.errors.ActorDied as error:
        return "SIGKILL" if "SIGKILL" in str(error) else str(error), counter.add()
    return "lives", 0


@dpool.remote
def open_gate(gate: Any) -> str:
    waiting = gate.wait.remote()
    gate.let()
    through: str = waiting.result(DEADLINE_S)
    return through


@dpool.remote(resources=THERE)
def make_two() -> list[int]:
    """Which hold each other."""
    first, second = actor(Counter).options(name="first").remote(), actor(Counter).remote()
    dpool.get([first.note.remote(second), second.note.remote(first)])
    return [first.pid(), second.pid()]


def test_what_its_tasks_have_made_ends_with_the_program(cluster: Cluster) -> None:
    pids = get(make_two.remote())
    assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
    dpool.shutdown()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), DEADLINE_S, "both have ended")
    driver.configure(address=cluster.members[0].address)
    assert not exists("first")


def test_what_its_tasks_have_made_ends_with_its_machine(cluster: Cluster) -> None:
    third = cluster.add(resources=(("third", 1.0),))
    dpool.shutdown()
    driver.configure(address=third.address)
    pids = get(make_two.remote())
    cluster.stop(third, signal.SIGKILL)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), DEADLINE_S, "both have ended")


def test_a_detached_one_outlives_its_program(cluster: Cluster) -> None:
    counter = there(name="stays", lifetime="detached").remote(5)
    pid = get(counter.pid.remote())
    del counter
    dpool.shutdown()
    driver.configure(address=cluster.members[1].address)  # another program, on another machine
    again = dpool.get_actor("stays")
    assert get([again.add.remote(), again.pid.remote()]) == [6, pid]
    again.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), DEADLINE_S, "it has ended")
