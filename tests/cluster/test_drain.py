"""What others hold of a machine's objects when it leaves: another one gets it, and is its home from then on."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

import dpool
from dpool._core import gateway_start
from dpool._core import messages as m
from dpool._core.runtime import open_runtime
from tests.cluster.test_loopback import DEADLINE_S, Cluster, cluster
from tests.cluster.test_objects import objects_of, wait_until_empty
from tests.helpers import wait_until

__all__ = ["cluster"]
SIZE = 1 << 20
LAMP, CHAIR = {"lamp": 0.1}, {"chair": 0.1}


def drain(cluster: Cluster, resource: str) -> gateway_start.Started:
    """Have the machine leave that has this; its worker's lease is given back first. Wait until it has."""
    wait_until(lambda: any(resource in node["Resources"] for node in dpool.nodes()), DEADLINE_S)
    name = next(node["NodeID"] for node in dpool.nodes() if resource in node["Resources"])
    runtime: Any = open_runtime(None)
    runtime.tell(m.Drain(bytes.fromhex(name)))
    leaver = next(member for member in cluster.members if resource in resources_of(member))
    cluster.members.remove(leaver)
    wait_until(lambda: not os.path.exists(leaver.session), DEADLINE_S, "it has left")
    wait_until(lambda: all(node["NodeID"] != name for node in dpool.nodes()), DEADLINE_S)
    return leaver


OFFERED: dict[str, tuple[str, ...]] = {}


def resources_of(member: gateway_start.Started) -> tuple[str, ...]:
    return OFFERED.get(member.session, ("lamp",))


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """With a third machine, which has the chair."""
    OFFERED.clear()
    OFFERED[cluster.members[0].session] = ()
    third = cluster.add(resources=(("chair", 1.0),))
    OFFERED[third.session] = ("chair",)
    wait_until(lambda: len(dpool.nodes()) == 3, DEADLINE_S, "all machines are known")
    return cluster


@dpool.remote
def make(number: int) -> Any:
    return np.full(SIZE, number, np.uint8)


@dpool.remote
def box(number: int) -> list[Any]:
    """A large value, and a reference to another that nothing else refers to."""
    return [np.full(SIZE, number, np.uint8), dpool.put(np.full(SIZE, number + 1, np.uint8))]


@dpool.remote(resources=CHAIR)
class Keeper:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, kept: list[Any]) -> None:
        self.kept = kept

    def look(self) -> list[int]:
        return [int(dpool.get(ref)[-1]) for ref in self.kept]


def made_there(resources: dict[str, float], count: int) -> list[Any]:
    made = [make.options(resources=resources).remote(number) for number in range(count)]
    assert not dpool.wait(made, num_returns=count, timeout=DEADLINE_S, fetch_local=False)[1]
    return made


def check(made: list[Any]) -> None:
    for number, value in enumerate(dpool.get(made, timeout=DEADLINE_S)):
        assert value.shape == (SIZE,)
        assert value[0] == value[-1] == number


def test_values_that_nobody_has_fetched(three: Cluster) -> None:
    """Also a reference inside a value, and references that an actor on a third machine holds."""
    made = made_there(LAMP, 8)
    boxed = box.options(resources=LAMP).remote(20)
    assert dpool.wait([boxed], timeout=DEADLINE_S, fetch_local=False)[0]
    keeper = Keeper.remote()
    dpool.get(keeper.keep.remote([*made[:3], make.options(resources=LAMP).remote(77)]), timeout=DEADLINE_S)
    drain(three, "lamp")
    check(made)
    value, ref = dpool.get(boxed, timeout=DEADLINE_S)
    assert (value[5], dpool.get(ref, timeout=DEADLINE_S)[5]) == (20, 21)
    assert dpool.get(keeper.look.remote(), timeout=DEADLINE_S) == [0, 1, 2, 77]
    del made, boxed, ref, value, keeper
    wait_until_empty(three)
