"""Values too large for a message, and references, between two machines (gateways with their nodes on this one)."""

from __future__ import annotations

from typing import Any

import numpy as np

import dpool
from dpool._core import gateway_start, launch
from dpool._core.store_client import StoreClient
from tests.cluster.test_loopback import DEADLINE_S, Cluster, cluster
from tests.helpers import wait_until

__all__ = ["cluster"]
LARGE = 3_000_000


def objects_of(member: gateway_start.Started) -> list[Any]:
    """What a machine's store holds."""
    client = StoreClient(launch.connect_node(member.session), member.session)
    try:
        return client.report(True).listing
    finally:
        client.close()


def wait_until_empty(cluster: Cluster) -> None:
    wait_until(lambda: not any(objects_of(member) for member in cluster.members), DEADLINE_S, "the stores are empty")


@dpool.remote(resources={"lamp": 0.1})
def total(array: Any) -> float:
    return float(array.sum())


@dpool.remote(resources={"lamp": 0.1})
def make(size: int) -> Any:
    return np.arange(size, dtype=np.uint8)


def test_a_large_argument(cluster: Cluster) -> None:
    assert dpool.get(total.remote(np.ones(LARGE, np.uint8)), timeout=DEADLINE_S) == LARGE
    wait_until_empty(cluster)


def test_a_large_result(cluster: Cluster) -> None:
    made = make.remote(LARGE)
    value = dpool.get(made, timeout=DEADLINE_S)
    assert np.array_equal(value, np.arange(LARGE, dtype=np.uint8))
    del made, value
    wait_until_empty(cluster)


def test_a_result_that_nobody_asks_for_stays_there(cluster: Cluster) -> None:
    made = make.remote(LARGE)
    assert dpool.wait([made], timeout=DEADLINE_S)[0]
    wait_until(lambda: len(objects_of(cluster.members[1])) == 1, DEADLINE_S)
    assert not objects_of(cluster.members[0])
    del made
    wait_until_empty(cluster)
