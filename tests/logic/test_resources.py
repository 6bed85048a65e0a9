"""The machine's account of resources: exact sums, exclusive GPUs, nothing lost and nothing granted twice."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpool._core.logic.resources import CPUS, GPUS, MEMORY, UNIT, Account, amount_of, check_shape, describe, shape


def test_a_shape_is_sorted_in_units_and_without_zeros():
    assert shape(num_cpus=0.5, num_gpus=2, memory=100, tape=3, none=0) == (
        (MEMORY, 100 * UNIT),
        (CPUS, UNIT // 2),
        (GPUS, 2 * UNIT),
        ("tape", 3 * UNIT),
    )
    assert shape() == ()


@pytest.mark.parametrize(
    ("asked", "error", "names"),
    [
        ({"num_cpus": -1}, ValueError, "num_cpus must not be negative: -1"),
        ({"num_cpus": math.nan}, ValueError, "num_cpus must be finite"),
        ({"memory": math.inf}, ValueError, "memory must be finite"),
        ({"tape": 0.00001}, ValueError, "tape must be 0 or at least 1/10000"),
        ({"num_gpus": 1.5}, ValueError, "num_gpus must be whole or below 1"),
        ({"tape": "2"}, TypeError, "tape must be a number, not '2'"),
        ({"tape": None}, TypeError, "tape must be a number, not None"),
    ],
)
def test_a_senseless_amount_is_refused_and_named(asked, error, names):
    with pytest.raises(error, match=names):
        shape(**asked)


@pytest.mark.parametrize(
    "malformed",
    [
        (("b", 1), ("a", 1)),
        (("a", 1), ("a", 1)),
        (("", 1),),
        ((1, 1),),
        (("a", 0),),
        (("a", -1),),
        (("a", 1.0),),
        ((GPUS, UNIT + 1),),
    ],
)
def test_a_malformed_shape_from_outside_is_refused(malformed):
    with pytest.raises(ValueError):
        check_shape(malformed)


def test_huge_integers_stay_exact():
    big = 2**60 + 1
    assert shape(memory=big) == ((MEMORY, big * UNIT),)


def test_describe_speaks_the_users_units():
    assert describe(shape(num_cpus=0.25, memory=3)) == "memory=3, num_cpus=0.25"
    assert describe(()) == "nothing"


def test_a_thousand_tenths_leave_nothing_behind():
    account = Account(shape(num_cpus=100))
    tenth = shape(num_cpus=0.1)
    for _ in range(1000):
        account.take(tenth)
    assert account.free[CPUS] == 0
    assert not account.fits(tenth)
    for _ in range(1000):
        account.give_back(tenth)
    assert account.free == account.total
    account.check()


def test_taking_more_than_is_free_changes_nothing():
    account = Account(shape(num_cpus=2, tape=1))
    with pytest.raises(ValueError, match="does not fit"):
        account.take(shape(num_cpus=1, tape=2))
    assert account.free == account.total


def test_giving_back_what_was_not_taken_changes_nothing():
    account = Account(shape(num_cpus=2, num_gpus=2))
    gpus = account.take(shape(num_gpus=1))
    for wrong in [
        (shape(num_cpus=1), ()),
        (shape(num_gpus=1), (1,)),
        (shape(num_gpus=1), ()),
        (shape(num_gpus=1), (7,)),
    ]:
        with pytest.raises(ValueError):
            account.give_back(*wrong)
    with pytest.raises(ValueError, match="not taken"):
        account.give_back(shape(tape=1))
    assert account.free == {CPUS: 2 * UNIT, GPUS: UNIT}
    account.give_back(shape(num_gpus=1), gpus)
    account.check()
    assert account.free == account.total


def test_parts_of_a_gpu_share_a_device_and_whole_ones_are_exclusive():
    account = Account(shape(num_gpus=3))
    assert account.take(shape(num_gpus=0.5)) == (0,)
    assert account.take(shape(num_gpus=0.25)) == (0,), "the fullest device that holds it"
    assert account.take(shape(num_gpus=2)) == (1, 2)
    assert not account.fits(shape(num_gpus=1)), "a quarter of device 0 is free, no whole one"
    assert account.take(shape(num_gpus=0.25)) == (0,)
    assert account.free[GPUS] == 0


def test_free_parts_on_two_devices_do_not_make_one():
    account = Account(shape(num_gpus=2))
    account.take(shape(num_gpus=0.6))
    account.take(shape(num_gpus=0.6))
    assert account.free[GPUS] == 8_000
    assert not account.fits(shape(num_gpus=0.5))
    assert not account.fits(shape(num_gpus=1))


def test_missing_says_by_how_much_the_machine_is_too_small():
    account = Account(shape(num_cpus=2))
    assert account.missing(shape(num_cpus=2)) == ()
    assert account.missing(shape(num_cpus=3, num_gpus=1)) == shape(num_cpus=1, num_gpus=1)


def test_a_machine_has_whole_gpus():
    with pytest.raises(ValueError, match="whole GPUs"):
        Account(shape(num_gpus=0.5))


def test_blocked_cpus_are_lent_and_come_back_even_if_they_are_in_use():
    account = Account(shape(num_cpus=1, memory=10))
    asked = shape(num_cpus=1, memory=10)
    account.take(asked)
    account.release_cpus(asked)
    assert account.free == {CPUS: UNIT, MEMORY: 0}
    account.take(shape(num_cpus=1))
    account.reclaim_cpus(asked)
    assert account.free[CPUS] == -UNIT
    account.check()
    account.give_back(shape(num_cpus=1))
    account.give_back(asked)
    assert account.free == account.total


amounts = st.one_of(st.integers(0, 3), st.sampled_from([0.1, 0.25, 0.3333, 0.5, 1.0]))
shapes = st.builds(shape, num_cpus=amounts, num_gpus=amounts, memory=amounts, tape=amounts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(shapes, st.integers(0, 5)), max_size=40))
def test_whatever_is_taken_and_given_back_the_sums_are_exact(steps):
    account = Account(shape(num_cpus=4, num_gpus=3, memory=5, tape=2))
    held = []
    for asked, which in steps:
        if account.fits(asked):
            held.append((asked, account.take(asked)))
        else:
            with pytest.raises(ValueError, match="does not fit"):
                account.take(asked)
        if which < len(held):
            account.give_back(*held.pop(which))
        account.check()
        for name, total in account.total.items():
            assert account.free[name] + sum(amount_of(taken, name) for taken, _ in held) == total
        for device in range(3):
            users = [taken for taken, gpus in held if device in gpus]
            assert sum(min(amount_of(taken, GPUS), UNIT) for taken in users) <= UNIT
    for taken, gpus in held:
        account.give_back(taken, gpus)
    assert account.free == account.total
    assert account.devices == [UNIT] * 3
