"""Large values that many tasks of one `map` take: stored once.

Only what cannot change between one submit and the next is shared: what `itertools.repeat` gives, and items of lists and
tuples, unless the first item is a number, text or bytes: then nobody looks at the others. A generator may yield
the same array again with other contents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from dpool._core.config import INLINE_LIMIT
from dpool._core.objectref import ByValue, ObjectRef
from dpool._core.serialize import ATOMIC, size_of, store_value


def share(iterables: tuple[Iterable[Any], ...]) -> tuple[Iterable[Any], ...]:
    """The same items; those that are large and occur more than once stand in the object store from now on."""
    stored: dict[int, Any] = {}
    seen: set[int] = set()
    for iterable in iterables:
        if type(iterable) is itertools.repeat:
            item = iterable.__reduce__()[1][0]
            if type(item) not in ATOMIC or type(item) in (str, bytes):
                _store_once(item, stored)
        elif _countable(iterable):
            for item in iterable:
                if id(item) in seen:
                    _store_once(item, stored)
                seen.add(id(item))
    return tuple(_replaced(iterable, stored) for iterable in iterables) if stored else iterables


def _countable(iterable: Any) -> bool:
    return type(iterable) in (list, tuple) and len(iterable) > 0 and type(iterable[0]) not in ATOMIC


def _store_once(item: Any, stored: dict[int, Any]) -> None:
    if id(item) not in stored:
        stored[id(item)] = _store(item)


def _replaced(iterable: Any, stored: dict[int, Any]) -> Iterable[Any]:
    if type(iterable) is itertools.repeat:
        arguments: Any = iterable.__reduce__()[1]
        return itertools.repeat(stored.get(id(arguments[0]), arguments[0]), *arguments[1:])
    if _countable(iterable):
        return [stored.get(id(item), item) for item in iterable]
    return iterable  # type: ignore[no-any-return]


def _store(item: Any) -> Any:
    """What stands for a large item among the arguments; a small one, or one that does not pickle, stands for itself."""
    if type(item) is ObjectRef:
        return item
    if size_of(item) <= INLINE_LIMIT:
        return item
    try:
        return ByValue(store_value(item))
    except Exception:  # the task's own future will say what is wrong with it
        return item
