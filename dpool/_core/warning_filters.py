"""`warnings.filters` on their way from the driver to a worker, which imports nothing for them.

numpy has filters for classes of its own, and so have others: to import them for a filter would cost every worker of a
program that has numpy a tenth of a second. Until its module is there, a category is a stand-in that no warning is a
subclass of; then it is what the module says.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from typing import Any


def collect() -> bytes:
    """This process' filters."""
    filters = []
    category: Any
    for action, message, category, module, line in warnings.filters:
        try:
            home, name = category.__module__, category.__qualname__
            filters.append(pickle.dumps((action, message, home, name, module, line), 5))
        except Exception:  # a pattern of some other kind
            continue
    return pickle.dumps(filters, 5)


def install(collected: bytes) -> None:
    """The filters of another process instead of ours."""
    filters = []
    for one in pickle.loads(collected):
        action, message, home, name, module, line = pickle.loads(one)
        category = _find(home, name)
        filters.append((action, message, category or _StandIn(name, (), {"__module__": home}), module, line))
    warnings.filters[:] = filters  # type: ignore[index]
    warnings.simplefilter("default", _Unused)  # the public way to say that the list has changed …
    del warnings.filters[0]  # type: ignore[attr-defined]  # … and this leaves it as it was


class _Unused(Warning):
    """Nobody ever warns with it."""


class _StandIn(type):
    """The type of what stands for a category: `issubclass` asks the class that it stands for, once that exists."""

    def __subclasscheck__(cls, kind: type) -> bool:
        real = _find(cls.__module__, cls.__qualname__)
        return real is not None and issubclass(kind, real)


def _find(home: str, name: str) -> Any:
    """The class `name` of the module `home`, if that has been imported."""
    found: Any = sys.modules.get(home)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and type(found) is not _StandIn else None
