"""Exceptions are those of `multiprocessing.pool`: MaybeEncodingError, RemoteTraceback, TimeoutError; texts included."""

from __future__ import annotations

import builtins
import multiprocessing
import multiprocessing.pool
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, generator, square

standard: Any = multiprocessing.pool


def raise_here(x: object = None) -> None:
    raise RuntimeError("here", x)  # a remark


def numbers() -> Iterator[int]:
    return generator()


class Unreadable:
    """Pickles, and cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


class NoRepr:
    def __repr__(self) -> str:
        raise ValueError("no text")

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("no pickle")


class Picky(Exception):
    """Cannot be made from its args."""

    def __init__(self, one: object, *, two: object) -> None:
        super().__init__(f"{one} {two}")


def picky() -> None:
    raise Picky(1, two=2)


def test_the_traceback_of_the_worker_is_the_cause(pool: dpool.Pool) -> None:
    calls = [
        lambda: pool.apply(raise_here),
        pool.apply_async(raise_here).get,
        lambda: pool.map(raise_here, range(5)),
        lambda: pool.starmap(raise_here, [(1,)]),
        lambda: list(pool.imap(raise_here, range(3))),
        lambda: list(pool.imap_unordered(raise_here, iter(range(3)), 2)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError) as caught:
            call()
        cause: Any = caught.value.__cause__
        assert type(cause) is standard.RemoteTraceback
        assert 'raise RuntimeError("here", x)  # a remark' in cause.tb
        assert str(cause) == cause.tb
        assert cause.tb.startswith('\n"""\nTraceback (most recent call last):\n')
        assert "dpool/_core" not in cause.tb


def test_a_result_that_does_not_pickle(pool: dpool.Pool) -> None:
    errors: list[Any] = []
    result = pool.apply_async(numbers, error_callback=errors.append)
    with pytest.raises(standard.MaybeEncodingError) as caught:
        result.get(LONG_S)
    error: Any = caught.value
    assert errors == [error]
    assert error.__cause__ is None
    assert re.fullmatch(r"<generator object generator at 0x[0-9a-f]+>", error.value)
    assert error.exc == """TypeError("cannot pickle 'generator' object")"""
    assert str(error) == f"Error sending result: '{error.value}'. Reason: '{error.exc}'"
    assert type(pickle.loads(pickle.dumps(error))) is standard.MaybeEncodingError


def test_it_is_the_same_error_as_the_standard_librarys(pool: dpool.Pool) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as other:
        found: list[Any] = []
        for one in (pool, other):
            with pytest.raises(standard.MaybeEncodingError) as caught:
                one.apply(numbers)
            found.append(caught.value)
    addresses = re.compile(r"0x[0-9a-f]+")
    mine, theirs = ([addresses.sub("", str(part)) for part in (e.exc, e.value, e.args, e)] for e in found)
    assert mine == theirs
    assert [type(error.__cause__) for error in found] == [type(None)] * 2


def test_chunks_and_iterators_say_so_too(pool: dpool.Pool) -> None:
    with pytest.raises(standard.MaybeEncodingError, match="generator"):
        pool.map(lambda _: numbers(), range(4))
    results = pool.imap(lambda x: numbers() if x == 1 else x, range(3))
    assert next(results) == 0
    with pytest.raises(standard.MaybeEncodingError):
        next(results)
    assert next(results) == 2


def test_a_result_without_a_repr(pool: dpool.Pool) -> None:
    with pytest.raises(standard.MaybeEncodingError, match="whose repr raised ValueError: no text"):
        pool.apply(NoRepr)


def test_executors_keep_the_error_of_pickling() -> None:
    with dpool.Executor(1) as ex:
        error = ex.submit(numbers).exception(LONG_S)
    assert type(error) is TypeError
    assert not [name for name in vars(error) if name.startswith("_dpool")]


def test_what_does_not_unpickle(pool: dpool.Pool) -> None:
    with pytest.raises(dpool.errors.DeserializationError, match="not a number"):
        pool.apply(Unreadable)
    with pytest.raises(dpool.errors.DeserializationError, match="not a number"):
        pool.map(str, [Unreadable()], 1)
    with pytest.raises(dpool.errors.DeserializationError, match="not a number"):
        pool.map(str, [Unreadable()] * 4, 2)
    assert pool.apply(square, (3,)) == 9


def test_exceptions_that_the_standard_library_cannot_carry(pool: dpool.Pool) -> None:
    with pytest.raises(Picky, match="1 2"):
        pool.apply(picky)


def test_time_outs_are_multiprocessings(one: dpool.Pool, gate: Gate) -> None:
    result = one.apply_async(gate.enter)
    waits = [
        lambda: result.get(0.01),
        lambda: one.map_async(square, [1]).get(0),
        lambda: one.imap(square, [1]).next(0),
        lambda: one.imap_unordered(square, [1], 3).next(0.01),
    ]
    for wait in waits:
        with pytest.raises(multiprocessing.TimeoutError) as caught:
            wait()
        assert not isinstance(caught.value, builtins.TimeoutError)
    gate.open()
    result.get(LONG_S)


def test_an_exception_is_raised_again_by_each_get(pool: dpool.Pool) -> None:
    result = pool.map_async(raise_here, range(3))
    seen = []
    for _ in range(3):
        with pytest.raises(RuntimeError) as caught:
            result.get(LONG_S)
        seen.append(caught.value)
    assert seen[0] is seen[1] is seen[2]
