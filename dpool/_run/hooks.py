"""Changing modules as they are imported, and not before.

`when_imported` calls an action with a module as soon as it has been executed; a finder in front of `sys.meta_path`
sees it come, and lets the ordinary finders find it. `replace` gives a module's name another meaning for everybody but
the module's own functions, which look names up in the module's dictionary: that stays as it is.

Threads: any; the import system holds the lock of the module that is being imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec

    Action = Callable[[ModuleType], object]

_waiting: dict[str, list[Action]] = {}
"""By module: what is to be done once it has been imported."""


_kinds: set[type] = set()
"""Types that `replace` has made, each for one module."""


def when_imported(name: str, action: Action) -> None:
    """Call `action(module)` after the module `name` has been imported; at once if it has been."""
    module = sys.modules.get(name)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        action(module)
        return
    _waiting.setdefault(name, []).append(action)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _Finder:
    """Finds nothing itself: it asks the others, and has their loader tell when it has done its work."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _waiting:
            return None
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                _watch(spec)
                return spec
        return None


_finder: Any = _Finder()


def _watch(spec: ModuleSpec) -> None:
    """Have `spec`'s loader call us back. It stays the object that it is, since others look at it."""
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        if module.__name__ != spec.name:
            return  # the loader of a zip file loads several
        loader.__dict__.pop("exec_module", None)
        for action in _waiting.pop(spec.name, ()):
            action(module)

    loader.exec_module = exec_module


def is_inside(name: Any, packages: tuple[str, ...]) -> bool:
    """Whether a module of this name is one of `packages`, or in one."""
    return isinstance(name, str) and any(name == package or name.startswith(package + ".") for package in packages)


class _Replacement:
    """What a module's name means to others; in the type of the module, so it goes before the dictionary."""

    def __init__(self, module: ModuleType, name: str, make: Callable[[Any], Any], insiders: tuple[str, ...]) -> None:
        self._name = name
        self._standard = module.__dict__[name]
        self._make = make
        self._made: Any = None
        self._insiders = insiders

    def __get__(self, module: ModuleType, kind: type | None = None) -> Any:
        try:
            present = module.__dict__[self._name]
        except KeyError:
            raise AttributeError(f"module {module.__name__!r} has no attribute {self._name!r}") from None
        if present is not self._standard:
            return present  # the program has put something else there
        if is_inside(sys._getframe(1).f_globals.get("__name__"), self._insiders):
            return present
        if self._made is None:
            self._made = self._make(self._standard)
        return self._made

    def __set__(self, module: ModuleType, value: Any) -> None:
        module.__dict__[self._name] = self._standard if value is self._made else value

    def __delete__(self, module: ModuleType) -> None:
        del module.__dict__[self._name]


def replace(module: ModuleType, name: str, make: Callable[[Any], Any], insiders: tuple[str, ...] = ()) -> None:
    """From now on `module.name` is what `make(standard)` returns, which is called when somebody first asks for it.

    Modules of the packages `insiders` get the standard one. A name that the module does not have stays
    absent.
    """
    if name not in module.__dict__:
        return
    kind = type(module)
    if kind not in _kinds:
        module.__class__ = kind = type("module", (kind,), {"__slots__": ()})
        _kinds.add(kind)
    setattr(kind, name, _Replacement(module, name, make, insiders))
