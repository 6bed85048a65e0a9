"""Values too large for a message, and references, between two machines (gateways with their nodes on this one)."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any

import numpy as np
import pytest

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
    gc.collect()
    wait_until(lambda: not any(objects_of(member) for member in cluster.members), DEADLINE_S, "the stores are empty")
    for member in cluster.members:
        for name in (gateway_start.GATEWAY_LOG, launch.NODE_LOG):
            with open(os.path.join(member.session, name), encoding="utf-8") as log:
                assert not [line for line in log if "illegal" in line or "Traceback" in line or "_failed" in line]


@dpool.remote(resources={"lamp": 0.1})
def total(array: Any) -> float:
    return float(array.sum())


@dpool.remote(resources={"lamp": 0.1})
def make(size: int) -> Any:
    return np.arange(size, dtype=np.uint8)


def check_a_large_argument(cluster: Cluster) -> None:
    assert dpool.get(total.remote(np.ones(LARGE, np.uint8)), timeout=DEADLINE_S) == LARGE
    wait_until_empty(cluster)


def check_a_large_result(cluster: Cluster) -> None:
    made = make.remote(LARGE)
    value = dpool.get(made, timeout=DEADLINE_S)
    assert np.array_equal(value, np.arange(LARGE, dtype=np.uint8))
    del made, value
    wait_until_empty(cluster)


def check_a_result_that_nobody_asks_for_stays_there(cluster: Cluster) -> None:
    made = make.remote(LARGE)
    assert dpool.wait([made], timeout=DEADLINE_S, fetch_local=False)[0]
    wait_until(lambda: len(objects_of(cluster.members[1])) == 1, DEADLINE_S)
    assert not objects_of(cluster.members[0])
    assert dpool.wait([made], timeout=DEADLINE_S)[0]
    wait_until(lambda: len(objects_of(cluster.members[0])) == 1, DEADLINE_S, "it has come, for whoever will ask for it")
    assert dpool.get(made, timeout=DEADLINE_S)[5] == 5
    del made
    wait_until_empty(cluster)


@dpool.remote(resources={"lamp": 0.1})
def first_of(box: list[Any]) -> float:
    return float(dpool.get(box[0])[0])


@dpool.remote(resources={"lamp": 0.1})
def boxed(size: int) -> dict[str, Any]:
    return {"ref": dpool.put(np.full(size, 7.0)), "text": "beside it"}


@dpool.remote(resources={"lamp": 0.1})
def same(box: list[Any]) -> list[Any]:
    return box


def check_a_reference_as_an_argument(cluster: Cluster) -> None:
    ref = dpool.put(np.full(LARGE // 8, 2.0))
    assert dpool.get([total.remote(ref) for _ in range(20)], timeout=DEADLINE_S) == [2.0 * (LARGE // 8)] * 20
    del ref
    wait_until_empty(cluster)


def check_a_reference_inside_an_argument(cluster: Cluster) -> None:
    ref = dpool.put(np.full(LARGE // 8, 2.0))
    assert dpool.get(first_of.remote([ref]), timeout=DEADLINE_S) == 2.0
    del ref
    wait_until_empty(cluster)


def check_a_reference_inside_a_result(cluster: Cluster) -> None:
    box = dpool.get(boxed.remote(LARGE // 8), timeout=DEADLINE_S)
    assert box["text"] == "beside it"
    assert dpool.get(box["ref"], timeout=DEADLINE_S)[-1] == 7.0
    del box
    wait_until_empty(cluster)


def check_a_reference_there_and_back(cluster: Cluster) -> None:
    ref = dpool.put(np.full(LARGE // 8, 3.0))
    back = dpool.get(same.remote([ref]), timeout=DEADLINE_S)
    assert back[0] == ref
    del ref
    assert dpool.get(back[0], timeout=DEADLINE_S)[0] == 3.0
    again = dpool.get(same.remote(dpool.get(same.remote(back))), timeout=DEADLINE_S)
    assert dpool.get(again[0], timeout=DEADLINE_S)[0] == 3.0
    del back, again
    wait_until_empty(cluster)


@dpool.remote(resources={"lamp": 0.1})
def large_box(size: int) -> list[Any]:
    return [np.ones(size), dpool.put(np.full(size, 5.0))]


def check_a_reference_inside_a_large_result(cluster: Cluster) -> None:
    """It lies in an object of the other machine's store, of which a copy comes here."""
    made = large_box.remote(LARGE // 8)
    ones, ref = dpool.get(made, timeout=DEADLINE_S)
    del made
    assert ones.sum() == LARGE // 8
    assert dpool.get(ref, timeout=DEADLINE_S)[0] == 5.0
    del ones, ref
    wait_until_empty(cluster)


@dpool.remote(resources={"lamp": 0.1})
def sum_inside(box: list[Any]) -> float:
    return float(dpool.get(box[0]).sum())


@dpool.remote(resources={"lamp": 0.1})
def when(path: str, size: int) -> Any:
    wait_until(lambda: os.path.exists(path), DEADLINE_S)
    return np.ones(size)


def check_a_future_inside_an_argument(cluster: Cluster, tmp_path: Any, size: int) -> None:
    """Its owner is here, its value there; and who waits for it is there, too."""
    gate = tmp_path / "gate"
    made = when.remote(str(gate), size)
    summed = sum_inside.remote([made])
    gate.touch()
    assert dpool.get(summed, timeout=DEADLINE_S) == size
    del made
    gate.unlink()
    wait_until_empty(cluster)


def check_a_future_as_an_argument(cluster: Cluster) -> None:
    assert dpool.get(total.remote(make.remote(LARGE)), timeout=DEADLINE_S) == np.arange(LARGE, dtype=np.uint8).sum()
    wait_until_empty(cluster)


def check_a_function_that_refers_to_objects(cluster: Cluster) -> None:
    ref = dpool.put(np.full(LARGE // 8, 4.0))
    array = np.full(LARGE // 8, 6.0)

    @dpool.remote(resources={"lamp": 0.1})
    def look(index: int) -> tuple[float, float]:
        return float(dpool.get(ref)[index]), float(array[index])

    assert dpool.get([look.remote(i) for i in range(5)], timeout=DEADLINE_S) == [(4.0, 6.0)] * 5


@dpool.remote(resources={"lamp": 0.1}, max_retries=0)
def fail_with(ref: Any) -> None:
    raise KeyError(ref)


def check_an_exception_with_a_reference(cluster: Cluster) -> None:
    ref = dpool.put(np.full(LARGE // 8, 4.0))
    with pytest.raises(KeyError) as raised:
        dpool.get(fail_with.remote([ref]), timeout=DEADLINE_S)
    del ref
    assert dpool.get(raised.value.args[0][0], timeout=DEADLINE_S)[0] == 4.0
    del raised
    wait_until_empty(cluster)


@dpool.remote(resources={"lamp": 0.1}, max_retries=0)
def make_and_die(size: int) -> Any:
    dpool.put(np.ones(size))
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def check_a_worker_that_dies_over_there_leaves_nothing(cluster: Cluster) -> None:
    ref = dpool.put(np.ones(LARGE))
    whole = {"lamp": 1}
    made = make.options(resources=whole).remote(LARGE)
    assert dpool.wait([made], timeout=DEADLINE_S, fetch_local=False)[0]
    lost = make_and_die.options(resources=whole).remote(LARGE)
    held = total.remote(ref)
    with pytest.raises(dpool.errors.WorkerCrashed):
        dpool.get(lost, timeout=DEADLINE_S)
    assert dpool.get(held, timeout=DEADLINE_S) == LARGE
    assert dpool.get(made, timeout=DEADLINE_S)[5] == 5, "its worker is dead, and it lives"
    del ref, held, lost, made
    wait_until_empty(cluster)


def test_the_machine_that_has_it_is_gone(cluster: Cluster) -> None:
    made = make.remote(LARGE)
    assert dpool.wait([made], timeout=DEADLINE_S, fetch_local=False)[0]
    cluster.stop(cluster.members[1], signal.SIGKILL)
    with pytest.raises(dpool.errors.ObjectLost, match="has left the cluster"):
        dpool.get(made, timeout=DEADLINE_S)
    box = dpool.put(np.ones(LARGE))
    assert dpool.get(box).sum() == LARGE
    del box
    wait_until_empty(cluster)


def test_the_machine_that_holds_it_is_gone(cluster: Cluster) -> None:
    ref = dpool.put(np.ones(LARGE))
    keeper = keep_for_ever.remote([ref])
    assert dpool.wait([keeper], timeout=DEADLINE_S)[0]
    del ref, keeper
    assert len(objects_of(cluster.members[0])) == 1, "a worker over there has a reference to it"
    cluster.stop(cluster.members[1], signal.SIGKILL)
    wait_until_empty(cluster)


@dpool.remote(resources={"lamp": 0.1})
def keep_for_ever(box: list[Any]) -> None:
    sys.modules["kept_for_ever"] = box  # type: ignore[assignment]


@dpool.remote(resources={"chair": 0.1})
def keep_there(box: list[Any]) -> None:
    sys.modules["kept_for_ever"] = dpool.get(box), box  # type: ignore[assignment]


@pytest.fixture
def three(cluster: Cluster) -> Cluster:
    """With a third machine, which has the chair, and so little memory for objects that most go to its disk."""
    cluster.add(resources=(("chair", 1.0),), object_store_memory=8 << 20)
    return cluster


@dpool.remote(resources={"chair": 0.1})
def sit(box: list[Any]) -> tuple[float, list[Any]]:
    return float(dpool.get(box[0])[0]), box


def check_a_third_machine(three: Cluster) -> None:
    """A reference made on one machine, through this one, is looked at on another, and comes back."""
    box = dpool.get(boxed.remote(LARGE // 8), timeout=DEADLINE_S)
    seen, back = dpool.get(sit.remote([box["ref"]]), timeout=DEADLINE_S)
    assert seen == 7.0
    del box
    assert dpool.get(back[0], timeout=DEADLINE_S)[0] == 7.0
    del back
    wait_until_empty(three)


@dpool.remote(resources={"lamp": 0.1})
def have_it_seen(size: int) -> tuple[float, list[Any]]:
    seen, box = dpool.get(sit.remote([dpool.put(np.full(size, 9.0))]))
    return seen, box


def check_a_task_elsewhere_asks_a_third_machine(three: Cluster) -> None:
    seen, box = dpool.get(have_it_seen.remote(LARGE // 8), timeout=DEADLINE_S)
    assert seen == 9.0
    assert dpool.get(box[0], timeout=DEADLINE_S)[-1] == 9.0
    del box
    wait_until_empty(three)


@dpool.remote(resources={"chair": 0.1})
def total_there(array: Any) -> float:
    return float(array.sum())


def check_what_one_machine_made_is_used_on_another(three: Cluster) -> None:
    made = [make.remote(LARGE) for _ in range(3)]
    sums = [total_there.remote(one) for one in made]
    assert dpool.get(sums, timeout=DEADLINE_S) == [np.arange(LARGE, dtype=np.uint8).sum()] * 3
    assert not objects_of(three.members[0]), "it went from one to the other"
    assert len(objects_of(three.members[1])) == 3
    del made
    wait_until_empty(three)


def check_another_machine_has_a_copy_when_its_home_is_gone(three: Cluster) -> None:
    made = make.remote(LARGE)
    dpool.get(keep_there.remote([made]), timeout=DEADLINE_S)
    three.stop(three.members[1], signal.SIGKILL)
    assert np.array_equal(dpool.get(made, timeout=DEADLINE_S), np.arange(LARGE, dtype=np.uint8))


def fetched(member: gateway_start.Started) -> int:
    """How many objects have come to a machine."""
    with open(os.path.join(member.session, gateway_start.GATEWAY_LOG), encoding="utf-8") as log:
        return log.read().count(" transfer.done ")


@dpool.remote
def meet_there(path: str, number: int, array: Any) -> float:
    """Wait until the other one runs there, too."""
    os.makedirs(path, exist_ok=True)
    open(f"{path}/{number}", "w").close()
    wait_until(lambda: len(os.listdir(path)) == 2, DEADLINE_S)
    return float(array.sum())


def check_one_for_all(three: Cluster, tmp_path: Any) -> None:
    """An object that tasks on all machines need, several at a time, comes once to each."""
    ref = dpool.put(np.ones(4 * LARGE))
    places = [str(tmp_path / name) for name in ("left", "right")]
    sums = [
        meet_there.options(resources={name: 0.1}).remote(place, number, ref)
        for name, place in zip(("lamp", "chair"), places, strict=True)
        for number in range(2)
    ]
    assert dpool.get(sums, timeout=DEADLINE_S) == [4.0 * LARGE] * 4
    del ref
    wait_until_empty(three)
    assert [fetched(member) for member in three.members] == [0, 1, 1]


def test_large_values(cluster: Cluster) -> None:
    check_a_large_argument(cluster)
    check_a_large_result(cluster)
    check_a_result_that_nobody_asks_for_stays_there(cluster)


def test_references(cluster: Cluster) -> None:
    check_a_reference_as_an_argument(cluster)
    check_a_reference_inside_an_argument(cluster)
    check_a_reference_inside_a_result(cluster)
    check_a_reference_there_and_back(cluster)
    check_a_reference_inside_a_large_result(cluster)
    check_a_worker_that_dies_over_there_leaves_nothing(cluster)
    check_an_exception_with_a_reference(cluster)
    check_a_function_that_refers_to_objects(cluster)


def test_futures(cluster: Cluster, tmp_path: Any) -> None:
    for size in (10, LARGE // 8):
        check_a_future_inside_an_argument(cluster, tmp_path, size)
    check_a_future_as_an_argument(cluster)


def test_three_machines(three: Cluster, tmp_path: Any) -> None:
    check_one_for_all(three, tmp_path)
    check_a_third_machine(three)
    check_a_task_elsewhere_asks_a_third_machine(three)
    check_what_one_machine_made_is_used_on_another(three)
    check_another_machine_has_a_copy_when_its_home_is_gone(three)
