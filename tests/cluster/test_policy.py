"""Who runs where: strategies, placement groups, executors over several machines, machines that come and go."""

from __future__ import annotations

import os
from typing import Any

import pytest

import dpool
from dpool._core import messages as m
from dpool._core.runtime import open_runtime
from dpool.util import placement_group, remove_placement_group
from dpool.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from tests.cluster.test_loopback import DEADLINE_S, Cluster, cluster
from tests.helpers import wait_until

__all__ = ["cluster"]


def node_here() -> str:
    return dpool.get_runtime_context().get_node_id()


where = dpool.remote(node_here)


def names(count: int = 2) -> list[str]:
    """The machines, once there are so many; that of this program first."""
    wait_until(lambda: len(dpool.nodes()) == count, DEADLINE_S, "all machines are known")
    return [node["NodeID"] for node in dpool.nodes()]


def wait_there(path: str) -> str:
    """Run until there is such a file."""
    open(f"{path}-{os.getpid()}", "w").close()
    wait_until(lambda: os.path.exists(path), DEADLINE_S)
    return node_here()


def gather(directory: str, number: int, others: int) -> int:
    """Wait until so many run at the same time."""
    open(f"{directory}/{number}", "w").close()
    wait_until(lambda: len(os.listdir(directory)) >= others, DEADLINE_S)
    return number


def test_what_there_is(cluster: Cluster) -> None:
    first, second = names()
    assert first != second
    assert node_here() == first
    assert dpool.cluster_resources()["CPU"] == 4.0
    assert dpool.cluster_resources()["lamp"] == 1.0
    wait_until(lambda: dpool.available_resources()["CPU"] == 4.0, DEADLINE_S)
    assert not any("|" in name for name in dpool.cluster_resources())


def test_a_machine_by_its_name(cluster: Cluster) -> None:
    for name in names():
        assert dpool.get(where.options(scheduling_strategy=dpool.NodeAffinity(name)).remote(), DEADLINE_S) == name
        soft = NodeAffinitySchedulingStrategy(name, soft=True)
        assert dpool.get([where.options(scheduling_strategy=soft).remote() for _ in range(6)], DEADLINE_S) == [name] * 6


def test_a_machine_that_is_not_there(cluster: Cluster) -> None:
    names()
    gone = "0" * 32
    soft = dpool.NodeAffinity(gone, soft=True)
    assert dpool.get(where.options(scheduling_strategy=soft).remote(), DEADLINE_S) == node_here()
    waits = where.options(scheduling_strategy=dpool.NodeAffinity(gone)).remote()
    with pytest.warns(RuntimeWarning, match="a certain machine"):
        dpool.wait([waits], timeout=2)
    assert dpool.wait([waits], timeout=0)[1] == [waits]
    dpool.cancel(waits)


def test_spread(cluster: Cluster, tmp_path: Any) -> None:
    both = names()
    gate = str(tmp_path / "gate")
    waiting = dpool.remote(wait_there).options(scheduling_strategy="SPREAD")
    running = [waiting.remote(gate) for _ in range(2)]
    wait_until(lambda: len(os.listdir(tmp_path)) == 2, DEADLINE_S)
    open(gate, "w").close()
    assert sorted(dpool.get(running, DEADLINE_S)) == sorted(both)


def test_the_number_of_cpus_is_of_this_moment(cluster: Cluster) -> None:
    runtime: Any = open_runtime(None)
    names()
    assert runtime.cpus() == 4
    cluster.add()
    names(3)  # the node has told it; there is no executor whose thread would have read it
    assert runtime.cpus() == 6


def test_an_executor_without_a_number_uses_all_cpus(cluster: Cluster, tmp_path: Any) -> None:
    both = names()
    with dpool.Executor() as executor:
        done = [executor.submit(gather, str(tmp_path), number, 4) for number in range(4)]
        assert [one.result(DEADLINE_S) for one in done] == [0, 1, 2, 3]
        assert executor._max_workers == 4
        cluster.add()
        names(3)
        wait_until(lambda: executor._max_workers == 6, DEADLINE_S)
        gate = str(tmp_path / "gate")
        more = [executor.submit(wait_there, gate) for _ in range(6)]
        wait_until(lambda: len(os.listdir(tmp_path)) == 4 + 6, DEADLINE_S, "all six run at a time")
        open(gate, "w").close()
        assert len({one.result(DEADLINE_S) for one in more}) == 3
    assert set(both) < set(names(3))


def test_the_number_of_workers_keeps_its_meaning(cluster: Cluster, tmp_path: Any) -> None:
    """So many run at a time, though there are fewer CPUs: what waits for each other must not wait for ever."""
    names()
    with dpool.Executor(6) as executor:
        gate = str(tmp_path / "gate")
        running = [executor.submit(wait_there, gate) for _ in range(8)]
        wait_until(lambda: len(os.listdir(tmp_path)) == 6, DEADLINE_S, "six run at a time")
        open(gate, "w").close()
        assert len({one.result(DEADLINE_S) for one in running}) == 2, "on both machines"
        assert len(os.listdir(tmp_path)) <= 6 + 1, "no more than six processes"


def test_with_a_pool(cluster: Cluster, tmp_path: Any) -> None:
    names()
    with dpool.Pool() as pool:
        assert pool._processes == 4
        gate = str(tmp_path / "gate")
        running = pool.map_async(wait_there, [gate] * 4, chunksize=1)
        wait_until(lambda: len(os.listdir(tmp_path)) == 4, DEADLINE_S)
        open(gate, "w").close()
        assert len(set(running.get(DEADLINE_S))) == 2


@pytest.mark.parametrize(("strategy", "machines"), [("STRICT_PACK", 1), ("STRICT_SPREAD", 2)])
def test_a_placement_group(cluster: Cluster, strategy: str, machines: int) -> None:
    names()
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy=strategy)
    assert dpool.get(group.ready(), DEADLINE_S) == group
    at = [
        where.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, number)).remote()
        for number in (0, 1, 0, 1)
    ]
    found = dpool.get(at, DEADLINE_S)
    assert found[:2] == found[2:]
    assert len(set(found)) == machines
    anywhere = where.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
    assert set(dpool.get([anywhere.remote() for _ in range(5)], DEADLINE_S)) <= set(found)
    wait_until(lambda: dpool.available_resources()["CPU"] == 2.0, DEADLINE_S, "two of four are set aside")
    remove_placement_group(group)
    wait_until(lambda: dpool.available_resources()["CPU"] == 4.0, DEADLINE_S, "they are given back")
    with pytest.raises(dpool.errors.InfeasibleResources, match="removed"):
        dpool.get(anywhere.remote(), DEADLINE_S)


def test_a_group_that_waits(cluster: Cluster, tmp_path: Any) -> None:
    names()
    gate = str(tmp_path / "gate")
    running = [dpool.remote(wait_there).remote(gate) for _ in range(4)]
    wait_until(lambda: len(os.listdir(tmp_path)) == 4, DEADLINE_S)
    group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="STRICT_SPREAD")
    assert not group.wait(0.5)
    open(gate, "w").close()
    assert group.wait(DEADLINE_S)
    assert len(dpool.get(running, DEADLINE_S)) == 4
    remove_placement_group(group)


def test_a_group_goes_with_its_program(cluster: Cluster) -> None:
    names()
    group = placement_group([{"CPU": 2}, {"CPU": 1}], strategy="STRICT_SPREAD")
    assert group.wait(DEADLINE_S)
    dpool.shutdown()
    from dpool._core import driver

    driver.configure(address=cluster.members[0].address)
    wait_until(lambda: dpool.available_resources()["CPU"] == 4.0, DEADLINE_S, "they are given back")


def test_what_no_machine_has(cluster: Cluster) -> None:
    names()
    waits = where.options(resources={"anvil": 1}).remote()
    with pytest.warns(RuntimeWarning, match="no machine of the cluster has so much anvil"):
        dpool.wait([waits], timeout=2)
    cluster.add(resources=(("anvil", 1.0),))
    assert dpool.get(waits, DEADLINE_S) in names(3), "a machine that joins is used at once"


def test_a_machine_is_drained(cluster: Cluster, tmp_path: Any) -> None:
    first, second = names()
    gate = str(tmp_path / "gate")
    there = dpool.remote(wait_there).options(scheduling_strategy=dpool.NodeAffinity(second))
    running = there.remote(gate)
    wait_until(lambda: len(os.listdir(tmp_path)) == 1, DEADLINE_S)
    runtime: Any = open_runtime(None)
    runtime.tell(m.Drain(bytes.fromhex(second)))
    wait_until(lambda: [node["Draining"] for node in dpool.nodes()] == [False, True], DEADLINE_S)
    spread = where.options(scheduling_strategy="SPREAD")
    assert set(dpool.get([spread.remote() for _ in range(4)], DEADLINE_S)) == {first}, "nothing new goes there"
    open(gate, "w").close()
    assert dpool.get(running, DEADLINE_S) == second, "what runs there ends in peace"
    leaver = cluster.members.pop(1)
    wait_until(lambda: not os.path.exists(leaver.session), DEADLINE_S, "it has left")
    wait_until(lambda: len(dpool.nodes()) == 1, DEADLINE_S)


def test_the_programs_own_node_goes(cluster: Cluster, tmp_path: Any) -> None:
    names()
    waiting = dpool.remote(wait_there).options(max_retries=0).remote(str(tmp_path / "gate"))
    wait_until(lambda: len(os.listdir(tmp_path)) == 1, DEADLINE_S)
    cluster.stop(cluster.members[0])
    with pytest.raises(dpool.errors.NodeLost, match="belongs to the cluster"):
        dpool.get(waiting, DEADLINE_S)


@dpool.remote
def large() -> list[Any]:
    """A reference to something large that is stored where this runs."""
    return [dpool.put(b"x" * 20_000_000)]


@dpool.remote
def take(value: bytes) -> tuple[int, str]:
    return len(value), node_here()


def test_tasks_go_where_their_large_arguments_are(cluster: Cluster) -> None:
    for name in names():
        (ref,) = dpool.get(large.options(scheduling_strategy=dpool.NodeAffinity(name)).remote(), DEADLINE_S)
        assert dpool.get([take.remote(ref) for _ in range(2)], DEADLINE_S) == [(20_000_000, name)] * 2
