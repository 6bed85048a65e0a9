"""Scheduling strategies and placement groups on one machine; see tests/cluster/test_policy.py for several."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import dpool
from dpool.util import PlacementGroup, placement_group, remove_placement_group
from dpool.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from tests.helpers import run_script, wait_until

DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def two_cpus() -> Any:
    dpool.init(num_cpus=2)
    yield
    dpool.shutdown()


@dpool.remote
def double(number: int) -> int:
    return 2 * number


def test_all_strategies_that_mean_this_machine() -> None:
    node = dpool.nodes()[0]["NodeID"]
    assert node == dpool.get_runtime_context().get_node_id()
    for strategy in (None, "DEFAULT", "SPREAD", dpool.NodeAffinity("0" * 32, soft=True)):
        assert dpool.get(double.options(scheduling_strategy=strategy).remote(4), DEADLINE_S) == 8


def use_and_close_an_executor() -> None:
    """After which a program has no more use for its node, as far as executors go; nodes do not linger in tests."""
    with dpool.Executor(1) as executor:
        assert executor.submit(abs, -3).result(DEADLINE_S) == 3


def test_an_id_that_was_given_out_names_the_node_as_long_as_the_program_runs() -> None:
    node = dpool.nodes()[0]["NodeID"]
    use_and_close_an_executor()
    assert dpool.nodes()[0]["NodeID"] == dpool.get_runtime_context().get_node_id() == node
    use_and_close_an_executor()
    assert dpool.get(double.options(scheduling_strategy=dpool.NodeAffinity(node)).remote(4), DEADLINE_S) == 8
    dpool.shutdown()
    context = dpool.get_runtime_context()
    another = context.get_node_id()
    assert another != node
    use_and_close_an_executor()
    assert another == context.get_node_id()


def test_a_machine_that_there_is_not() -> None:
    dpool.init(num_cpus=2, strict_resources=True)
    node = dpool.nodes()[0]["NodeID"]
    with pytest.raises(dpool.errors.InfeasibleResources, match=f"in no cluster, is another one .its NodeID is {node}"):
        dpool.get(double.options(scheduling_strategy=dpool.NodeAffinity("0" * 32)).remote(4), DEADLINE_S)


def test_a_node_that_was_named_ends_with_its_program() -> None:
    done = run_script("import dpool\nprint(len(dpool.nodes()[0]['NodeID']))")
    assert (done.stdout, done.stderr, done.rc) == ("32\n", "", 0)  # and nothing is left behind


def test_a_group_stays_while_nothing_runs() -> None:
    group = placement_group([{"CPU": 1}])
    use_and_close_an_executor()
    wait_until(lambda: dpool.available_resources()["CPU"] == 1.0, DEADLINE_S, "its bundle is set aside")
    use_and_close_an_executor()
    assert dpool.available_resources()["CPU"] == 1.0
    assert group.wait(DEADLINE_S)
    remove_placement_group(group)


def test_a_group() -> None:
    group = placement_group([{"CPU": 1}], name="mine")
    assert group.wait(DEADLINE_S)
    inside = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    assert dpool.get(double.options(scheduling_strategy=inside).remote(4), DEADLINE_S) == 8
    assert dpool.available_resources()["CPU"] == 1.0

    class Counter:
        def count(self) -> int:
            return 7

    actor = dpool.remote(Counter).options(num_cpus=1, scheduling_strategy=inside).remote()
    assert actor.count() == 7
    with dpool.Executor(1) as executor:
        anywhere = executor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
        assert anywhere.submit(abs, -3).result(DEADLINE_S) == 3
    remove_placement_group(group)

    def killed() -> bool:
        try:
            return bool(actor.count() != 7)
        except dpool.errors.ActorDied:
            return True

    wait_until(killed, DEADLINE_S, "the actor ends with the group")
    with pytest.raises(dpool.errors.InfeasibleResources, match="removed"):
        dpool.get(double.options(scheduling_strategy=inside).remote(4), DEADLINE_S)


def test_a_group_in_a_task() -> None:
    group = placement_group([{"CPU": 1}])

    @dpool.remote(num_cpus=0)
    def inner(passed: PlacementGroup) -> bool:
        return passed == group and passed.wait(DEADLINE_S)

    assert dpool.get(inner.remote(group), DEADLINE_S)
    remove_placement_group(group)


def test_a_group_that_cannot_be() -> None:
    group = placement_group([{"CPU": 2}, {"CPU": 1}])
    assert not group.wait(0.3)
    remove_placement_group(group)
    assert dpool.get(double.options(num_cpus=2).remote(1), DEADLINE_S) == 2, "nothing of it was kept"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: placement_group([]), "at least one"),
        (lambda: placement_group([{}]), "at least one resource"),
        (lambda: placement_group([{"GPU": 0.5}]), "whole GPUs"),
        (lambda: placement_group([{"CPU": 1}], strategy="ANYHOW"), "STRICT_PACK"),
        (lambda: placement_group([{"CPU": 1}], lifetime="detached"), "lives as long"),
        (lambda: double.options(scheduling_strategy="somewhere"), "scheduling_strategy"),
        (lambda: double.options(scheduling_strategy=dpool.NodeAffinity("here")), "NodeID"),
        (
            lambda: double.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(PlacementGroup("0" * 32, [{"CPU": 1}]), 1)
            ),
            "no bundle 1",
        ),
        (
            lambda: PlacementGroupSchedulingStrategy(
                PlacementGroup("0" * 32, [{"CPU": 1}]), placement_group_capture_child_tasks=True
            ),
            "capture_child_tasks",
        ),
    ],
)
def test_what_cannot_be(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_rays_name_of_a_machine() -> None:
    strategy = NodeAffinitySchedulingStrategy("0" * 32, soft=True)
    assert dpool.get(double.options(scheduling_strategy=strategy).remote(1), DEADLINE_S) == 2


def test_the_module_and_the_function_have_one_name() -> None:
    text = (
        "import dpool; from dpool.util.placement_group import placement_group\n"
        "assert dpool.util.placement_group([{'CPU': 0.1}]).wait(30)\n"
    )
    subprocess.run([sys.executable, "-c", text], check=True, timeout=DEADLINE_S)
