"""Random programs mean on dpool what they mean in one process, one statement after the other.

CI runs the same programs each time. `DPOOL_TEST_PROGRAMS=5000 python -m pytest tests/tasks/test_differential.py` draws
so many new ones; a failure prints the smallest program that shows it, which `check(Program(…))` runs again.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import dpool
from tests.executor.support import LONG_S
from tests.helpers import wait_until
from tests.tasks.programs import (
    Arg,
    Ask,
    Call,
    Gated,
    Get,
    Life,
    Make,
    Nested,
    Program,
    Put,
    Race,
    Raise,
    Stream,
    Wait,
    WaitLoop,
)
from tests.tasks.running import FUNCTIONS, run_program
from tests.tasks.worlds import Ambiguous, Dpool, Serial

NEW = int(os.environ.get("DPOOL_TEST_PROGRAMS", "0"))
"""So many programs that no run has seen; 0: those of CI."""

index = st.integers(0, 7)
small = st.integers(0, 20)
cpus = st.sampled_from([1, 1, 1, 0.5, 2, 0])
many = st.lists(index, min_size=1, max_size=6).map(tuple)


def of(kind: Any, *fields: Any) -> st.SearchStrategy[Any]:
    """Statements of a kind; a field is a strategy or a list of what it may be."""
    drawn = [st.sampled_from(field) if isinstance(field, list) else field for field in fields]
    return st.tuples(*drawn).map(lambda values: kind(*values))


def some(one: Any, least: int = 0, most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(one, min_size=least, max_size=most).map(tuple)


YES_NO = [False, True]
arg = of(Arg, ["value", "ref", "ref", "inside"], index)
CALL = of(
    Call, sorted(FUNCTIONS), some(arg), cpus, [0, 0, 0, 0, 1, 3], [1, 2, 3], [0, 0, 0, 1, 2], [0, 0, 0, 1], [0, 1, 2, 3]
)  # fmt: skip
SIMPLE = st.one_of(
    CALL,
    CALL,
    of(Put, small),
    of(Get, index),
    of(Get, index),
    of(Wait, many, index, [None, None, 0]),
    of(WaitLoop, many, [1, 2]),
    of(Stream, st.integers(0, 5), st.integers(0, 6), [None, None, 0, 1, 4], YES_NO),
    of(Race, st.integers(1, 8), some(index), YES_NO),
    of(Raise, small),
)
ACTOR = st.integers(0, 2)
ACTORS = st.one_of(
    of(Make, ["plain", "plain", "async", "threads"], arg, [False] * 7 + [True], YES_NO, [-1, 0, 1]),
    of(Ask, ACTOR, ["add", "two", "relay"], arg, ["submit", "block", "name"]),
    of(Ask, ACTOR, ["add"], arg),
)
LIFE = of(
    Life,
    some(st.sampled_from(["add", "add", "add", "fail", "crash", "kill"]), 1, 8),
    [0, 1, 2, -1],
    [0, 0, 1, 2],
    YES_NO,
)


def bodies(depth: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """Statements; those that contain others only while `depth` is left."""
    kinds = [SIMPLE, SIMPLE, ACTORS]
    if depth:
        inner = bodies(depth - 1)
        needs = some(some(st.integers(0, 3), 1, 2))
        cancels = some(st.tuples(index, st.booleans(), st.booleans()))
        kinds += [
            of(Nested, inner, some(arg), some(ACTOR, 0, 2), cpus, ["log", "refs"], YES_NO),
            of(Ask, ACTOR, ["frame"], arg, ["submit", "block"], inner),
            of(Gated, some(st.booleans(), 1), needs, st.integers(0, 3), bodies(0), cancels),
            LIFE,
        ]
    return some(st.one_of(kinds), 0, 7)


BODIES = bodies(2)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A strategy whose name is short."""
    return Program(draw(BODIES), draw(st.booleans()))


def check(program: Program) -> bool:
    """Run it in both worlds; False if what it means is not one thing."""
    try:
        expected = run_program(Serial(""), program)
    except Ambiguous:
        return False
    scratch = tempfile.mkdtemp(prefix="program-")  # not removed here: tasks that nobody waited for may still use it
    found = run_program(Dpool(scratch), program)
    assert len(found) == len(expected), f"dpool {found}, serially {expected}"
    differ = [pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1]]
    assert found == expected, f"first of {len(differ)}: dpool {differ[:1]} serially; the whole log: {found}"
    return True


@pytest.mark.timeout(300 + NEW)
@settings(
    max_examples=NEW or 80,
    derandomize=not NEW,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
@given(programs())
def test_random_programs_mean_what_they_mean_serially(program: Program) -> None:
    note(f"check({program!r})")
    check(program)


def test_afterwards_everything_is_free() -> None:
    check(Program((Make("plain", Arg("value", 0)), Ask(0, "add", Arg("value", 0)), Call("array", ()))))
    wait_until(lambda: dpool.available_resources() == dpool.cluster_resources(), LONG_S)
