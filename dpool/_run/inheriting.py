"""What the program has changed in its own modules, taken over by the workers, as a fork would have it.

```
 a module of the program is imported ─► what its names mean is noted: Look
 a pool is made ─► each Look is compared with the present ─► changes ─► workers: made there when they import the module
```

Workers are no forks of the program: they import its modules afresh. Programs written for fork set variables of such
modules before they make a pool, and expect that its workers see them. (Variables of `__main__` travel with the
functions that use them.) Modules of the program are those below the directory of its script; compared, by identity, are
the values of their names, and one level below, what is in their lists, dictionaries and sets, and the attributes of
their classes and of instances of these. What does not pickle stays as the worker's own import makes it.

Threads: the import system's, and whoever makes a pool.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._core.context import here
from dpool._run.hooks import watch_imports, when_imported

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

INSTALLED = ("site-packages", "dist-packages")
"""Directories of modules that are not the program's own, wherever they lie."""
MOST = 100_000
"""Items of a list, dictionary or set that are noted; what is larger at the import is compared as a whole."""
_looks: dict[str, Look] = {}


class Change(NamedTuple):
    """What is to be done to one namespace: the module's own (`name` empty), or that of one of its values."""

    name: str
    kind: str
    """`names` of the module, `attributes`, or `content` (of a list, dictionary or set)."""
    new: Any
    """Name → value; the new content."""
    gone: list[str]


class Look:
    """What the names of a module meant at one moment."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._names = dict(vars(module))
        self._inside = {name: inside for name, value in self._names.items() if (inside := _inside(value, module, MOST))}

    def changes(self) -> list[tuple[str, str, Any, list[str]]]:
        """The difference between then and now."""
        now = dict(vars(self._module))
        found = [Change("", "names", *_difference(self._names, now))]
        for name, (kind, then) in self._inside.items():
            value = now.get(name)
            if value is not self._names[name]:
                continue  # it is another one altogether
            inside = _inside(value, self._module, inf)
            if inside is None:
                continue
            if kind == "attributes":
                found.append(Change(name, kind, *_difference(then, inside[1])))
            elif not _same(then, inside[1]):
                found.append(Change(name, kind, inside[1], []))
        return [tuple(one) for one in found if one.kind == "content" or one.new or one.gone]


def _inside(value: Any, module: ModuleType, most: float) -> tuple[str, Any] | None:
    """What can be changed in a value of `module` while it stays the same, if it has at most so many items; a copy."""
    kind = type(value)
    if kind in (list, dict, set):
        return ("content", value.copy()) if len(value) <= most else None
    if isinstance(value, type) and value.__module__ == module.__name__:
        return "attributes", {name: each for name, each in vars(value).items() if not _is_special(name)}
    if kind.__module__ == module.__name__ and hasattr(value, "__dict__"):
        return "attributes", dict(vars(value))
    return None


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _difference(then: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    new = {name: each for name, each in now.items() if not _is_special(name) and then.get(name, then) is not each}
    return new, [name for name in then if name not in now]


def _same(then: Any, now: Any) -> bool:
    """Whether two lists, dictionaries or sets hold the very same objects."""
    if len(then) != len(now):
        return False
    if type(then) is dict:
        return all(a is b and then[a] is now[b] for a, b in zip(then, now, strict=True))
    if type(then) is set:
        return bool(then == now)
    return all(a is b for a, b in zip(then, now, strict=True))


# -- in the program


def watch(directory: str) -> None:
    """Look at each module below `directory` when it has been imported."""
    root = os.path.join(os.path.realpath(directory), "")

    def is_own(spec: ModuleSpec) -> bool:
        origin = spec.origin if spec.has_location else None
        if origin is None or spec.name == "__main__":
            return False
        full = os.path.realpath(origin)
        return full.startswith(root) and not any(f"/{each}/" in full for each in INSTALLED)

    def look(module: ModuleType) -> None:
        _looks[module.__name__] = Look(module)

    watch_imports(is_own, look)


def for_workers() -> tuple[str, str, Any]:
    """What a worker must call: see `here.at_start`."""
    pickled = {}
    for name, look in list(_looks.items()):
        if name in sys.modules and (changes := _pickled(look.changes())):
            pickled[name] = changes
    return "dpool._run.inheriting", "take_over", pickled


def _pickled(changes: list[tuple[str, str, Any, list[str]]]) -> list[bytes]:
    """Each value by itself: one that does not pickle shall not keep others from it."""
    blobs = []
    for name, kind, new, gone in changes:
        if kind == "content":
            blobs.append(_pickle((name, kind, new, gone)))
            continue
        blobs += [_pickle((name, kind, {each: value}, [])) for each, value in new.items()]
        if gone:
            blobs.append(_pickle((name, kind, {}, gone)))
    return [blob for blob in blobs if blob]


def _pickle(change: tuple[str, str, Any, list[str]]) -> bytes:
    import pickle

    try:
        data = pickle.dumps(change, 5)
        if b"__main__" not in data:  # what is of `__main__` must be sent by value
            return data
    except Exception:  # perhaps cloudpickle can
        pass
    from cloudpickle import dumps

    try:
        return bytes(dumps(change, 5))
    except Exception:  # a lock, a file …: the worker's own import makes one of its own
        return b""


# -- in a worker


def take_over(pickled: dict[str, list[bytes]]) -> None:
    """Make these changes in each module as soon as it has been imported, here and in workers of this process."""
    for name, changes in pickled.items():
        when_imported(name, partial(_apply, changes))
    here.at_start.append(lambda: ("dpool._run.inheriting", "take_over", pickled))


def _apply(changes: list[bytes], module: ModuleType) -> None:
    import pickle

    for blob in changes:
        name, kind, new, gone = pickle.loads(blob)
        target = getattr(module, name) if name else module
        if kind == "content":
            target.clear()
            target.extend(new) if type(target) is list else target.update(new)
            continue
        for each, value in new.items():
            setattr(target, each, value)
        for each in gone:
            if hasattr(target, each):
                delattr(target, each)
