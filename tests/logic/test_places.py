"""Wishes, placement groups and what is set aside for them; where a waiting lease goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpool._core.logic.placement import Cluster, Load
from dpool._core.logic.places import (
    FIXED,
    NEAR,
    PREFER,
    SPREAD,
    in_all,
    in_group,
    needs,
    plan,
    visible,
    wishes,
    with_names,
)
from dpool._core.logic.resources import UNIT, Account, Shape, shape
from dpool._core.logic.spilling import Asked, Decision, decide

HERE, THERE, FAR = b"", b"there", b"far"
HOMES = {"h": HERE, "t": THERE, "f": FAR}
ONE = shape(num_cpus=1)
MORE = {"group": 1000 * UNIT}


def test_needs_and_wishes() -> None:
    assert needs(ONE) is ONE
    assert wishes(ONE) is None
    wanted = with_names(ONE, {SPREAD: UNIT, f"{NEAR}t": 5, f"{PREFER}h": UNIT})
    assert needs(wanted) == ONE
    found = wishes(wanted)
    assert found is not None
    assert (found.spread, found.fixed, found.prefer, found.near) == (True, False, "h", (("t", 5),))


def test_what_people_see() -> None:
    assert visible({"num_cpus": 1, "node|x": 5, "num_cpus|g|0": 1}) == {"num_cpus": 1}
    total = {"num_cpus": 2, "node|x": 9}
    assert in_all([("x", "a", total, {"num_cpus": 1}, False), ("y", "b", total, {}, False)]) == {"num_cpus": (4, 1)}


class TestSettingAside:
    def test_it_is_there_under_other_names(self) -> None:
        account = Account(shape(num_cpus=4, num_gpus=2, lamp=1))
        account.set_aside("g", 0, shape(num_cpus=2, num_gpus=1), MORE)
        account.set_aside("g", 1, shape(num_cpus=1), MORE)
        account.check()
        assert account.free["num_cpus"] == UNIT
        assert account.fits(in_group(shape(num_cpus=3), "g", -1))
        assert not account.fits(in_group(shape(num_cpus=2), "g", 1))
        gpu = in_group(shape(num_gpus=1), "g", 0)
        outside = account.take(shape(num_gpus=1))
        inside = account.take(gpu)
        assert set(inside) | set(outside) == {0, 1}
        assert not account.dissolve("g", 0, MORE), "somebody holds its GPU"
        account.give_back(gpu, inside)
        account.check()
        assert account.dissolve("g", 0, MORE)
        assert account.dissolve("g", 1, MORE)
        account.give_back(shape(num_gpus=1), outside)
        account.check()
        assert account.free == account.total == dict(shape(num_cpus=4, num_gpus=2, lamp=1))

    def test_its_cpus_are_lent_like_others(self) -> None:
        account = Account(shape(num_cpus=1))
        account.set_aside("g", 0, ONE, MORE)
        lease = in_group(ONE, "g", 0)
        account.take(lease)
        account.release_cpus(lease)
        assert account.fits(lease)
        account.take(lease)
        account.reclaim_cpus(lease)
        account.check()

    def test_what_does_not_fit_changes_nothing(self) -> None:
        account = Account(shape(num_cpus=1, num_gpus=1))
        for bundle in (shape(num_cpus=2), shape(num_gpus=0.5)):
            with pytest.raises(ValueError, match=r"fit|whole GPUs"):
                account.set_aside("g", 0, bundle, MORE)
        assert account.free == account.total == dict(shape(num_cpus=1, num_gpus=1))


@pytest.mark.parametrize(
    ("strategy", "bundles", "expected"),
    [
        ("PACK", [1, 1], {"a": 2}),
        ("PACK", [2, 2, 1], {"a": 1, "b": 2}),
        ("SPREAD", [1, 1], {"a": 1, "b": 1}),
        ("SPREAD", [1, 1, 1], {"a": 2, "b": 1}),
        ("STRICT_PACK", [2, 1], {"b": 2}),
        ("STRICT_PACK", [2, 2], None),
        ("STRICT_SPREAD", [1, 3], {"a": 1, "b": 1}),
        ("STRICT_SPREAD", [1, 1, 1], None),
    ],
)
def test_a_plan(strategy: str, bundles: list[int], expected: dict[str, int] | None) -> None:
    free = {"a": dict(shape(num_cpus=2)), "b": dict(shape(num_cpus=3))}
    found = plan([shape(num_cpus=cpus) for cpus in bundles], strategy, free, "a")
    counts = None if found is None else {name: found.count(name) for name in sorted(set(found))}
    assert counts == expected
    for name, there in free.items():
        used = sum(cpus for cpus, at in zip(bundles, found or [], strict=False) if at == name)
        assert used * UNIT <= there["num_cpus"]


def world(**free: float) -> Cluster:
    """Machines of two CPUs, with so many free. What is named `busy` has five tasks of a second waiting."""
    cluster = Cluster(HERE)
    for name, cpus in free.items():
        node = {"here": HERE, "there": THERE, "far": FAR}[name]
        waiting = 0 if cpus >= 0 else 5
        cluster.heard(
            Load(node, 1, dict(shape(num_cpus=2)), dict(shape(num_cpus=max(0, cpus))), waiting, 1.0, 100e6, {})
        )
    return cluster


def choose(cluster: Cluster, wanted: Shape, **ours: list[Shape]) -> Decision | None:
    held = {{"here": HERE, "there": THERE, "far": FAR}[name]: shapes for name, shapes in ours.items()}
    return decide(cluster, b"key", wanted, set(cluster.nodes), held, HOMES)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([THERE, FAR]), st.integers(1, 2)), max_size=30), st.data())
def test_what_was_asked_for_is_known_by_group_and_machine(
    leases: list[tuple[int, bytes, int]], data: st.DataObject
) -> None:
    asked, left = Asked(), [(group, node, shape(num_cpus=cpus)) for group, node, cpus in leases]
    for lease in left:
        asked.add(*lease)
    while True:
        for group in range(3):
            expected: dict[bytes, list[Shape]] = {}
            for _, node, wanted in filter(lambda lease: lease[0] == group, left):
                expected.setdefault(node, []).append(wanted)
            found = asked.of(group)
            assert {node: sorted(there) for node, there in found.items()} == {
                node: sorted(there) for node, there in expected.items()
            }
            assert all(asked.at(group, node) is there for node, there in found.items())
        assert len(asked) == len({group for group, _, _ in left})
        if not left:
            break
        asked.remove(*left.pop(data.draw(st.integers(0, len(left) - 1))))


class TestDeciding:
    def test_another_machine_has_room(self) -> None:
        assert choose(world(here=0, there=1), ONE) == Decision(THERE)

    def test_all_are_busy_alike(self) -> None:
        assert choose(world(here=0, there=0), ONE) is None

    def test_waiting_there_is_much_shorter(self) -> None:
        assert choose(world(here=-1, there=0), ONE) == Decision(THERE)
        assert choose(world(here=-1, there=0), ONE, there=[ONE, ONE]) is None, "it has all that it could run"

    def test_no_machine_has_it(self) -> None:
        assert choose(world(here=2, there=2), shape(num_cpus=3)) is None

    def test_only_another_one_has_it(self) -> None:
        cluster = world(here=2)
        lamp = shape(lamp=1)
        cluster.heard(Load(THERE, 1, dict(lamp), {"lamp": 0}, 3, 1.0, 0.0, {}))
        assert choose(cluster, lamp) == Decision(THERE), "it waits where it is"
        assert choose(cluster, lamp, there=[lamp]) is None

    def test_spread(self) -> None:
        wanted = with_names(ONE, {SPREAD: UNIT})
        assert choose(world(here=2, there=2), wanted, here=[ONE]) == Decision(THERE)
        assert choose(world(here=2, there=2), wanted, here=[ONE], there=[ONE, ONE]) == Decision(HERE)
        assert choose(world(here=0, there=0), wanted) is None

    def test_preferred(self) -> None:
        wanted = with_names(ONE, {f"{PREFER}t": UNIT})
        assert choose(world(here=2, there=0), wanted) == Decision(THERE), "it waits there"
        assert choose(world(here=2), wanted) == Decision(HERE), "it is gone"

    def test_near_its_inputs(self) -> None:
        def wanted(size: int) -> Shape:
            return with_names(ONE, {f"{NEAR}t": size})

        assert choose(world(here=2, there=2), wanted(100_000_000)) == Decision(THERE)
        assert choose(world(here=2, there=-1), wanted(100_000_000)) == Decision(HERE), "moving it takes one second"
        assert choose(world(here=2, there=-1), wanted(1_000_000_000)) == Decision(THERE), "and here ten"

    def test_a_number_of_workers(self) -> None:
        wanted = with_names(ONE, {FIXED: UNIT})
        assert choose(world(here=1, there=2), wanted) == Decision(HERE)
        assert choose(world(here=0, there=2), wanted) == Decision(THERE)
        assert choose(world(here=0, there=0), wanted, here=[ONE, ONE], there=[ONE]) == Decision(THERE, bare=True)

    def test_a_machine_that_is_drained(self) -> None:
        cluster = world(here=0)
        cluster.heard(Load(THERE, 1, dict(shape(num_cpus=2)), dict(shape(num_cpus=2)), 0, 0.0, 0.0, {}, draining=True))
        assert choose(cluster, ONE) is None
