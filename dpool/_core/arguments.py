"""What stands for something else among a task's arguments: an ObjectRef for its value, a Future for what it will be.

That is so for the arguments of a call and, in a chunk, for the items of MAP and the arguments in each item of STARMAP
(see frames.py); not for what lies deeper, which arrives as it is: an ObjectRef, a Future.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from dpool._core.frames import MAP, STREAM
from dpool._core.future import InStore

_LISTS = (list, tuple)


class FutureInside(Exception):
    """A Future is among the arguments: the task must wait for it."""


def _each(args: Any, kwargs: Any) -> Iterable[Any]:
    if kwargs == STREAM:
        args, kwargs = args[:2]
    if kwargs.__class__ is not int:
        return chain(args, kwargs.values())
    if type(args) not in _LISTS:
        return ()
    if kwargs == MAP:
        return args  # type: ignore[no-any-return]
    return chain.from_iterable(item for item in args if type(item) in _LISTS)


def _replaced(args: Any, kwargs: Any, change: Callable[[Any], Any]) -> tuple[Any, Any]:
    if kwargs == STREAM:
        return (*_replaced(args[0], args[1], change), *args[2:]), STREAM
    if kwargs.__class__ is not int:
        return tuple(map(change, args)), {name: change(value) for name, value in kwargs.items()}
    if type(args) not in _LISTS:
        return args, kwargs
    if kwargs == MAP:
        return list(map(change, args)), kwargs
    return [tuple(map(change, item)) if type(item) in _LISTS else item for item in args], kwargs


def futures_in(args: Any, kwargs: Any) -> list[Any]:
    """The futures among the arguments, dpool's and others."""
    futures = sys.modules.get("concurrent.futures._base")
    if futures is None:
        return []
    return [value for value in _each(args, kwargs) if isinstance(value, futures.Future)]


def with_results(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments with the results of the futures among them, which have ended; what lies in the store is not
    fetched for this: a reference stands for it.
    """
    from concurrent.futures import Future

    from dpool._core.objectref import ObjectRef

    refs: dict[int, ObjectRef] = {}

    def result(value: Any) -> Any:
        if not isinstance(value, Future):
            return value
        handle = where_stored(value)
        if handle is None:
            return value.result()
        return refs.setdefault(id(value), ObjectRef(handle, None, (), ()))

    return _replaced(args, kwargs, result)


def where_stored(future: Any) -> Any:
    """The Handle of a result that lies in the store, if any worker can load it; else None."""
    stored = getattr(future, "_result", None)
    return stored.handle if type(stored) is InStore and stored.alone else None


def by_value(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments with references marked as to be replaced by their values; FutureInside if one is a Future."""
    if futures_in(args, kwargs):
        raise FutureInside
    objectref = sys.modules.get("dpool._core.objectref")
    if objectref is None:
        return args, kwargs
    marked: dict[int, Any] = {}

    def mark(value: Any) -> Any:
        if type(value) is not objectref.ObjectRef:
            return value
        return marked.setdefault(id(value), objectref.ByValue(value))  # the same one twice is the same value twice

    return _replaced(args, kwargs, mark)
