"""`dpool.wait`, once and in loops that take one after the other."""

from __future__ import annotations

import os
import random
from concurrent.futures import CancelledError

import pytest

import dpool
from dpool._core import driver
from tests.executor.support import LONG_S, Gate
from tests.helpers import wait_until


@dpool.remote(num_cpus=0.1)
def enter(gate: Gate, name: str) -> str:
    gate.enter(name)
    return name


def test_a_loop_over_done_ones() -> None:
    refs = [dpool.remote(len).remote("a" * n) for n in range(200)]
    dpool.get(refs)
    seen = []
    rest = refs
    while rest:
        ready, rest = dpool.wait(rest)
        assert isinstance(rest, list)
        seen += dpool.get(ready)
    assert seen == list(range(200))
    assert len(refs) == 200  # the caller's list is his own


def test_a_loop_in_the_order_in_which_they_end(gate: Gate) -> None:
    names = [f"n{i}" for i in range(20)]
    refs = {name: enter.remote(gate, name) for name in names}
    order = random.Random(5).sample(names, 20)
    rest: list[dpool.Future[str]] = list(refs.values())
    for at, name in enumerate(order):
        assert dpool.wait(rest, timeout=0)[0] == []
        gate.open(name)
        ready, rest = dpool.wait(rest, timeout=LONG_S)
        assert dpool.get(ready) == [name]
        assert rest == [ref for ref in refs.values() if ref in rest]
        assert len(rest) == 19 - at


def test_several_at_a_time_keep_their_order(gate: Gate) -> None:
    names = [f"n{i}" for i in range(12)]
    refs = [enter.remote(gate, name) for name in names]
    gate.open("n9", "n3", "n11")
    ready, rest = dpool.wait(refs, num_returns=3, timeout=LONG_S)
    assert dpool.get(ready) == ["n3", "n9", "n11"]
    assert len(rest) == 9
    gate.open(*names)
    wait_until(lambda: all(one.done() for one in rest), LONG_S)
    ready, rest = dpool.wait(rest, num_returns=9)
    assert dpool.get(ready) == [name for name in names if name not in ("n3", "n9", "n11")]
    assert rest == []


def test_a_list_that_was_changed_or_used_before(gate: Gate) -> None:
    first, second, third = (enter.remote(gate, name) for name in "abc")
    ready, rest = dpool.wait([first, second], timeout=0)
    assert (ready, rest) == ([], [first, second])
    rest.append(third)
    gate.open("c")
    ready, rest = dpool.wait(rest, timeout=LONG_S)
    assert (ready, rest) == ([third], [first, second])
    earlier = rest
    gate.open("a", "b")
    wait_until(lambda: first.done() and second.done(), LONG_S)
    once, _ = dpool.wait(rest)
    assert once in ([first], [second])
    assert dpool.wait(earlier)[0] == [first]  # the same list again, as if for the first time
    assert dpool.wait(earlier, num_returns=2) == ([first, second], [])


class Fleeting(dpool.Future[int]):
    """It ends between two looks at it, as one does that another thread ends."""

    looks = 0

    @property
    def _state(self) -> str:
        self.looks += 1
        if self.looks == 2:
            self.set_result(5)
        return self._now

    @_state.setter
    def _state(self, state: str) -> None:
        self._now = state


def test_a_future_that_ends_while_wait_begins_is_not_overlooked() -> None:
    for at_once in (0, 8):  # how many stand before it: then it is not among those that are looked at first
        others: list[dpool.Future[int]] = [dpool.Future() for _ in range(at_once)]
        one = Fleeting()
        assert dpool.wait([*others, one], timeout=LONG_S) == ([one], others)


def test_references_and_failures_are_ready() -> None:
    ref, failed = dpool.put(1), dpool.remote(lambda: 1 / 0).remote()
    ready, rest = dpool.wait([failed, ref], num_returns=2, timeout=LONG_S)
    assert (ready, rest) == ([failed, ref], [])


def test_what_cannot_be_waited_for() -> None:
    ref = dpool.put(1)
    assert dpool.wait([]) == ([], [])
    for wrong, error in (([1], TypeError), ([ref, ref], ValueError)):
        with pytest.raises(error):
            dpool.wait(wrong)  # type: ignore[arg-type]
    for count in (0, 2):
        with pytest.raises(ValueError, match="num_returns"):
            dpool.wait([ref], num_returns=count)


@dpool.remote(num_cpus=0.1, max_retries=0)
def fail() -> None:
    raise KeyError("at once")


def test_get_does_not_wait_for_others_when_one_has_failed(gate: Gate) -> None:
    hanging = [enter.remote(gate, f"n{i}") for i in range(3)]
    with pytest.raises(KeyError, match="at once"):
        dpool.get([*hanging, fail.remote(), enter.remote(gate, "n3")], timeout=LONG_S)
    assert not any(one.done() for one in hanging)
    gate.open("n0", "n1", "n2", "n3")
    assert dpool.get(hanging, timeout=LONG_S) == ["n0", "n1", "n2"]


def test_get_of_actors_that_wait_for_one_that_dies(gate: Gate) -> None:
    class Member:
        def wait(self) -> None:
            gate.enter("never")

        def die(self) -> None:
            os._exit(3)

    members = [dpool.ActorProxy(Member) for _ in range(2)]
    with pytest.raises(dpool.errors.ActorDied, match="code 3"):
        dpool.get([members[0].wait.submit(), members[1].die.submit()], timeout=LONG_S)
    gate.open("never")


def test_get_times_out_and_hears_of_a_cancel(gate: Gate) -> None:
    refs = [enter.remote(gate, "n0"), enter.remote(gate, "n1")]
    with pytest.raises(TimeoutError):
        dpool.get(refs, timeout=0.2)
    dpool.cancel(refs[1])
    with pytest.raises(CancelledError):
        dpool.get(refs, timeout=LONG_S)
    gate.open("n0")
    assert dpool.get(refs[0], timeout=LONG_S) == "n0"


def test_nobody_polls_while_as_many_tasks_are_out_as_there_are_cores(gate: Gate) -> None:
    """Whatever resources they ask for: a poll would take the processor from them."""
    runtime = driver.runtime()
    assert runtime.may_poll(0) == (runtime.cores > 1)
    refs = [enter.remote(gate, "each") for _ in range(runtime.cores)]
    assert not runtime.may_poll(0)
    gate.open("each")
    dpool.get(refs, timeout=LONG_S)
    assert runtime.may_poll(0) == (runtime.cores > 1)
