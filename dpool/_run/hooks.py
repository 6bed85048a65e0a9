"""Changing modules as they are imported, and not before.

`when_imported` calls an action with a module as soon as it has been executed; a finder in front of `sys.meta_path`
sees it come, and lets the ordinary finders find it. `replace` gives a module's name another meaning for everybody but
the module's own functions, which look names up in the module's dictionary: that stays as it is.

Threads: any; the import system holds the lock of the module that is being imported.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Action = Callable[[ModuleType], object]

_waiting: dict[str, list[Action]] = {}
"""By module: what is to be done once it has been imported."""


_watchers: list[tuple[Callable[[ModuleSpec], bool], Action]] = []
_kinds: set[type] = set()
"""Types that `replace` has made, each for one module."""


def when_imported(name: str, action: Action) -> None:
    """Call `action(module)` after the module `name` has been imported; at once if it has been."""
    module = sys.modules.get(name)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        action(module)
        return
    _waiting.setdefault(name, []).append(action)
    _begin()


def watch_imports(concerns: Callable[[ModuleSpec], bool], action: Action) -> None:
    """Call `action(module)` after the import of each module whose spec concerns us, from now on."""
    _watchers.append((concerns, action))
    _begin()


def _begin() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _Finder:
    """Finds nothing itself: it asks the others, and has the spec that they find tell when the module is there."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _waiting and not _watchers:
            return None
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                actions = [action for concerns, action in _watchers if concerns(spec)]
                if actions or name in _waiting:
                    _watch(spec, actions)
                return spec
        return None


_finder: Any = _Finder()


class _WatchedSpec(ModuleSpec):
    """A spec that tells when its module has been executed: the import system then sets `_initializing` to False.

    So no frame of ours stands in the traceback of a module that fails, and the loader stays as it is.
    """

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__["_initializing"])

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if value:
            return
        self.__class__ = ModuleSpec  # type: ignore[assignment]
        actions = self.__dict__.pop("_actions")
        module = sys.modules.get(self.name)
        if module is not None:  # else it has failed, and is waited for further on
            for action in (*actions, *_waiting.pop(self.name, ())):
                action(module)


def _watch(spec: ModuleSpec, actions: list[Action]) -> None:
    """Have the actions called when the module of `spec` has been executed."""
    if type(spec) is ModuleSpec and spec.loader is not None:
        spec.__class__ = _WatchedSpec
        spec.__dict__["_actions"] = actions


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
