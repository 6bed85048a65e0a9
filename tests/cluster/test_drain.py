"""What others hold of a machine's objects when it leaves: another one gets it, and is its home from then on."""

from __future__ import annotations

import os
import signal
from time import monotonic
from typing import Any

import numpy as np
import pytest

import dpool
from dpool._cluster.drain import watch
from dpool._core import gateway_start
from dpool._core import messages as m
from dpool._core.runtime import open_runtime
from dpool._core.visit import Visitor
from tests.cluster.test_loopback import DEADLINE_S, Cluster, cluster
from tests.cluster.test_objects import objects_of, wait_until_empty
from tests.helpers import wait_until

__all__ = ["cluster"]
SIZE = 1 << 20


def begin(resource: str) -> None:
    """Have the machine leave that has this."""
    found = [node["NodeID"] for node in dpool.nodes() if resource in node["Resources"]]
    runtime: Any = open_runtime(None)
    runtime.tell(m.Drain(bytes.fromhex(found[0])))


def left(cluster: Cluster, leaver: gateway_start.Started) -> None:
    """Wait until it has, and this machine knows."""
    count = len(cluster.members)
    cluster.members.remove(leaver)
    wait_until(lambda: not os.path.exists(leaver.session), DEADLINE_S, "it has left")
    wait_until(lambda: len(dpool.nodes()) < count, DEADLINE_S)


def log_of(member: gateway_start.Started) -> str:
    with open(os.path.join(member.session, gateway_start.GATEWAY_LOG), encoding="utf-8") as log:
        return log.read()


def join(cluster: Cluster, name: str, **settings: Any) -> gateway_start.Started:
    """One more machine, with so little memory for objects that most go to its disk."""
    count = len(cluster.members)
    member = cluster.add(resources=((name, 1.0),), object_store_memory=8 << 20, **settings)
    wait_until(lambda: len(dpool.nodes()) == count + 1, DEADLINE_S, "all machines are known")
    return member


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """Its second machine has the lamp, the third one the chair."""
    join(cluster, "chair")
    return cluster


@dpool.remote
def make(number: int) -> Any:
    return np.full(SIZE, number, np.uint8)


@dpool.remote
def box(number: int) -> list[Any]:
    """A large value, and a reference to another that nothing else refers to."""
    return [np.full(SIZE, number, np.uint8), dpool.put(np.full(SIZE, number + 1, np.uint8))]


@dpool.remote(resources={"lamp": 0.1})
def promise(number: int) -> list[Any]:
    """Futures of tasks that this one submits: one has a large value."""
    made = [make.options(resources={"lamp": 0.1}).remote(number), double.remote(number)]
    assert not dpool.wait(made, num_returns=2, timeout=DEADLINE_S)[1]
    return made


@dpool.remote(resources={"lamp": 0.1})
def double(number: int) -> int:
    return 2 * number


@dpool.remote
class Keeper:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, kept: list[Any]) -> None:
        self.kept = kept

    def look(self) -> list[int]:
        return [int(dpool.get(ref)[-1]) for ref in self.kept]


keepers: Any = Keeper


def made_there(resource: str, first: int, count: int) -> dict[int, Any]:
    """Number → a reference to a large value of which nobody else has a copy."""
    there = make.options(resources={resource: 0.1})
    made = {number: there.remote(number) for number in range(first, first + count)}
    assert not dpool.wait(list(made.values()), num_returns=count, timeout=DEADLINE_S, fetch_local=False)[1]
    return made


def check(made: dict[int, Any]) -> None:
    for number, value in zip(made, dpool.get(list(made.values()), timeout=DEADLINE_S), strict=True):
        assert value.shape == (SIZE,)
        assert value[0] == value[-1] == number


def test_what_is_moved(three: Cluster) -> None:
    """Values that nobody has fetched, a reference inside one, futures, references of an actor on a third machine."""
    made = made_there("lamp", 0, 20)
    boxed, promised = box.options(resources={"lamp": 0.1}).remote(20), promise.remote(30)
    assert not dpool.wait([boxed, promised], num_returns=2, timeout=DEADLINE_S, fetch_local=False)[1]
    keeper = keepers.options(resources={"chair": 0.1}).remote()
    dpool.get(keeper.keep.remote([*list(made.values())[:3], *made_there("lamp", 77, 1).values()]), timeout=DEADLINE_S)
    begin("lamp")
    left(three, three.members[1])
    check(made)
    value, ref = dpool.get(boxed, timeout=DEADLINE_S)
    assert (value[5], dpool.get(ref, timeout=DEADLINE_S)[5]) == (20, 21)
    large, small = dpool.get(promised, timeout=DEADLINE_S)
    assert (dpool.get(large, timeout=DEADLINE_S)[5], dpool.get(small, timeout=DEADLINE_S)) == (30, 60)
    assert dpool.get(keeper.look.remote(), timeout=DEADLINE_S) == [0, 1, 2, 77]
    del made, boxed, promised, value, ref, large, small, keeper
    wait_until_empty(three)


def test_one_after_the_other(three: Cluster) -> None:
    """Also a machine that joins in between, and has never heard of the first one, is told whom to ask."""
    made = made_there("lamp", 0, 10)
    begin("lamp")
    left(three, three.members[1])
    assert len(objects_of(three.members[1])) == 10, "its store had not been used, and so has the most room"
    made.update(made_there("chair", 10, 4))
    join(three, "desk")
    keeper = keepers.options(resources={"desk": 0.1}).remote()
    dpool.get(keeper.keep.remote([made[0], made[13]]), timeout=DEADLINE_S)
    begin("chair")
    left(three, three.members[1])
    assert dpool.get(keeper.look.remote(), timeout=DEADLINE_S) == [0, 13]
    check(made)
    del made, keeper
    wait_until_empty(three)


def test_meanwhile(three: Cluster) -> None:
    """What is being moved can be asked for, and freed; and the heir can die, before and afterwards."""
    made = made_there("lamp", 0, 20)
    first, second = three.members[1:]
    os.kill(second.pid, signal.SIGSTOP)
    try:
        begin("lamp")
        wait_until(lambda: "leave.offers" in log_of(first), DEADLINE_S, "it waits for its heir")
        check({0: made[0]})
        del made[1]
        os.kill(second.pid, signal.SIGCONT)
        left(three, first)
    finally:
        os.kill(second.pid, signal.SIGCONT)
    rest = {number: made.pop(number) for number in range(2, 10)}
    check(rest)
    three.stop(second, signal.SIGKILL)
    check(rest)
    with pytest.raises(dpool.errors.ObjectLost, match=r"the machine that has it, .* has left the cluster"):
        dpool.get(made[15], timeout=DEADLINE_S)
    del made, rest
    wait_until_empty(three)


def test_an_heir_that_is_gone(three: Cluster) -> None:
    """The next one takes over."""
    made = made_there("lamp", 0, 4)
    first, second = three.members[1:]
    os.kill(second.pid, signal.SIGSTOP)
    begin("lamp")
    wait_until(lambda: "leave.offers" in log_of(first), DEADLINE_S, "it waits for its heir")
    three.stop(second, signal.SIGKILL)
    left(three, first)
    check(made)
    del made
    wait_until_empty(three)


def test_nobody_stays(cluster: Cluster) -> None:
    """The program's own machine is drained, too: what it needs of the other one is lost, and that is said."""
    wait_until(lambda: len(dpool.nodes()) == 2, DEADLINE_S)
    made = made_there("lamp", 0, 2)
    here, there = cluster.members
    with Visitor(here.session) as visitor:
        visitor.drain(here.address)
        wait_until(lambda: any(node["Draining"] for node in dpool.nodes()), DEADLINE_S)
        begin("lamp")
        gone, unmoved = watch(visitor, there.address, monotonic() + DEADLINE_S)
    assert gone
    assert unmoved.startswith("2 objects (2,097,")
    assert "could not be moved: there is no other machine that could take them" in unmoved
    left(cluster, there)
    with pytest.raises(dpool.errors.ObjectLost, match="could not be moved"):
        dpool.get(made[0], timeout=DEADLINE_S)
    dpool.shutdown()
    wait_until(lambda: not os.path.exists(here.session), DEADLINE_S, "nothing runs there any more")
    cluster.members.remove(here)


def test_no_room(cluster: Cluster) -> None:
    """The machine with the most room has not enough, and no disk: the other one takes all; then it is the only one."""
    third = join(cluster, "chair", spill_dir="/dev/null/nowhere")
    made = made_there("lamp", 0, 12)
    begin("lamp")
    left(cluster, cluster.members[1])
    assert "inherits" not in log_of(third)
    assert len(objects_of(cluster.members[0])) == 12
    check(made)
    cluster.add(resources=(("lamp", 1.0),))
    wait_until(lambda: len(dpool.nodes()) == 3, DEADLINE_S)
    made = made_there("lamp", 20, 12)
    here, there = cluster.members[0], cluster.members[2]
    with Visitor(here.session) as visitor:
        visitor.drain(here.address)
        wait_until(lambda: any(node["Draining"] for node in dpool.nodes()), DEADLINE_S)
        begin("lamp")
        unmoved = watch(visitor, there.address, monotonic() + DEADLINE_S)[1]
    assert "could not be moved: it is needed on" in unmoved
    assert "no room" in unmoved
    left(cluster, there)
    lost = []
    for number, ref in made.items():
        try:
            assert dpool.get(ref, timeout=DEADLINE_S)[5] == number
        except dpool.errors.ObjectLost as error:
            lost.append(str(error))
    assert 0 < len(lost) < 12
    assert all("was drained, and it could not be moved: it is needed on" in text for text in lost)
    assert unmoved.startswith(f"{len(lost)} object")
    del made, ref
    wait_until_empty(cluster)
    dpool.shutdown()
    wait_until(lambda: not os.path.exists(here.session), DEADLINE_S, "nothing runs there any more")
    cluster.members.remove(here)
