"""Large values that many tasks of one `map` take: stored once.

Only what cannot change between one submit and the next is shared: items of lists and tuples, and what
`itertools.repeat` gives. A generator may yield the same array again with other contents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from dpool._core.config import INLINE_LIMIT
from dpool._core.objectref import ByValue
from dpool._core.serialize import ATOMIC, store_value


def share(iterable: Iterable[Any]) -> Iterable[Any]:
    """The same items; those that are large and occur more than once stand in the object store from now on."""
    if type(iterable) is itertools.repeat:
        return _share_repeated(iterable)
    if type(iterable) not in (list, tuple):
        return iterable
    items: Any = iterable
    if not items or type(items[0]) in ATOMIC or len(set(map(id, items))) == len(items):
        return items  # type: ignore[no-any-return]
    stored: dict[int, Any] = {}
    seen: set[int] = set()
    for item in items:
        key = id(item)
        if key in seen and key not in stored:
            stored[key] = _store(item)
        seen.add(key)
    return [stored.get(id(item), item) for item in items]


def _share_repeated(repeated: Any) -> Iterable[Any]:
    times = repeated.__reduce__()[1]
    item = times[0]
    if type(item) in ATOMIC and type(item) not in (str, bytes):
        return repeated  # type: ignore[no-any-return]
    stored = _store(item)
    if stored is item:
        return repeated  # type: ignore[no-any-return]
    return itertools.repeat(stored, *times[1:])


def _store(item: Any) -> Any:
    """What stands for a large item among the arguments; a small one, or one that does not pickle, stands for itself."""
    if size_of(item) <= INLINE_LIMIT:
        return item
    try:
        return ByValue(store_value(item))
    except Exception:  # the task's own future will say what is wrong with it
        return item


def size_of(value: Any) -> int:
    """Bytes that a value is known to have without looking inside; 0 if it does not say."""
    if isinstance(value, (bytes, bytearray, str)):
        return len(value)
    for name in ("nbytes", "size"):  # arrays, tensors, Arrow; DataFrames
        found = getattr(value, name, None)
        if isinstance(found, int):
            return found if name == "nbytes" else 8 * found
    data = getattr(value, "data", None)  # sparse matrices
    found = getattr(data, "nbytes", 0)
    return found if isinstance(found, int) else 0
