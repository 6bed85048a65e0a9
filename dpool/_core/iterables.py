"""Iterables that become tasks: in slices that pickle well, as far as one can tell how long and how large they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

IN_MEMORY = (list, tuple, range, dict, set, frozenset, str, bytes, bytearray, deque)
"""Types whose iterators never wait."""


def is_array(items: Any) -> bool:
    """Whether it is a numpy array of one dimension or more: its slices pickle faster than its items."""
    kind = type(items)
    return kind.__name__ == "ndarray" and kind.__module__ == "numpy" and items.ndim > 0


def slices(items: Any, size: int) -> Iterator[Any]:
    """`items` in pieces of `size`, each of a kind that pickles fast: a slice of a range is a range."""
    if type(items) in (list, tuple, range) or is_array(items):
        return (items[at : at + size] for at in range(0, len(items), size))
    source = iter(items)
    return iter(lambda: tuple(islice(source, size)), ())


def length(*iterables: Any) -> int | None:
    """How many items they give together, as `zip` does; None if they do not say."""
    try:
        return min(map(len, iterables), default=0)
    except TypeError:
        return None


def check_buffersize(buffersize: Any) -> None:
    """TypeError, ValueError for what is neither None nor a number of tasks."""
    if buffersize is None:
        return
    if not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
