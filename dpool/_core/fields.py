"""Whether the fields of a message are of the types that its class says; for messages that other machines send.

`checker(Kind)` reads the annotations once and gives a function that raises ProtocolError for fields that do not fit: so
what stands behind it may rely on the types, and a malformed message ends the link that it came by and nothing else.

| annotation | what fits |
|---|---|
| `int` | an int (no bool) of at most 64 bits |
| `float` | a float, or such an int |
| `bytes`, `str`, `bool`, `None`, `set[X]`, `dict[X, Y]` | that very type, with such items |
| `list[X]`, `tuple[X, ...]`, `tuple[X, Y]` | a list or tuple of such items, of that length if it is said |
| `X | Y` | either |
| `Any` | anything |
| a NamedTuple | a tuple, of that class or plain, with such fields |
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dpool._core.messages import ProtocolError

LEAST, MOST = -(1 << 63), (1 << 64) - 1
Test = Callable[[Any], bool]


def checker(kind: type[Any]) -> Callable[[tuple[Any, ...]], None]:
    """A function that raises ProtocolError unless it is given fields for that NamedTuple (trailing ones with a default
    may be missing).
    """
    tests = _field_tests(kind)
    required = len(tests) - len(kind._field_defaults)

    def check(fields: tuple[Any, ...]) -> None:
        if type(fields) is not tuple or not required <= len(fields) <= len(tests):
            raise ProtocolError(f"malformed {kind.__name__}: it has other fields")
        for (name, test), value in zip(tests, fields, strict=False):
            if not test(value):
                raise ProtocolError(f"malformed {kind.__name__}: {name} is a {type(value).__name__}")

    return check


def _field_tests(kind: type[Any]) -> list[tuple[str, Test]]:
    hints = typing.get_type_hints(kind)
    return [(name, _test(hints[name])) for name in kind._fields]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and type(value) is not bool and LEAST <= value <= MOST


def _is_float(value: Any) -> bool:
    return type(value) is float or _is_int(value)


def _is_anything(value: Any) -> bool:
    return True


@lru_cache(None)
def _test(hint: Any) -> Test:
    if hint is Any:
        return _is_anything
    if hint is int:
        return _is_int
    if hint is float:
        return _is_float
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        tests = [_test(one) for one in inner]
        return lambda value: any(test(value) for test in tests)
    if origin is tuple and inner[-1:] != (...,):
        return _fixed(list, [_test(one) for one in inner])
    if origin is set:
        return _several((set,), _test(inner[0]))
    if origin in (list, tuple):
        return _several((list, tuple), _test(inner[0]))
    if origin is dict:
        return _mapping(*map(_test, inner))
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return _fixed(hint, [test for _, test in _field_tests(hint)])
    if hint in (bytes, str, bool, type(None)):
        return lambda value: type(value) is hint
    raise TypeError(f"fields of messages cannot be {hint!r}")


def _fixed(kind: type[Any], tests: list[Test]) -> Test:
    def fits(value: Any) -> bool:
        return type(value) in (kind, tuple) and len(value) == len(tests) and all(map(_pass, tests, value))

    return fits


def _pass(test: Test, value: Any) -> bool:
    return test(value)


def _several(kinds: tuple[type[Any], ...], test: Test) -> Test:
    return lambda value: type(value) in kinds and all(map(test, value))


def _mapping(key: Test, item: Test) -> Test:
    return lambda value: type(value) is dict and all(map(key, value)) and all(map(item, value.values()))
