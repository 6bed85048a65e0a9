"""The functions that stand inside dpool's pickles by name: they rebuild what was pickled by value.

A pickle made by `serialize_pickler` says `make_function(code, …)`, `use_module("numpy")`, and so on; whoever loads it
(mostly a worker) runs these. Nothing here imports cloudpickle, so loading functions of `__main__` starts fast.

`__main__` is always that of the loading process: in a worker the namespace that `mainspace` built. An object that is
defined under a name of `__main__` is put there as soon as it exists, before it is filled, so that definitions which
refer to each other can be loaded one inside the other.
"""

from __future__ import annotations

import builtins
import marshal
import pickle
import sys
from types import CellType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# attributes that the last version of a class of __main__ brought: one that the next version lacks was deleted
_shipped_attributes: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()

# classes that came from another process by value: they go home as a reference to the original
received_classes: WeakKeyDictionary[type, str] = WeakKeyDictionary()


begun: set[str] = set()
"""Names of `__main__` whose new values exist, perhaps unfilled, while their definitions are loaded."""


def main_dict() -> dict[str, Any]:
    """The globals of this process' `__main__`."""
    return sys.modules["__main__"].__dict__


def define(name: str, value: Any) -> None:
    """Put a value into `__main__` before it is filled."""
    main_dict()[name] = value
    begun.add(name)


def use_main() -> ModuleType:
    """The module object `__main__` of this process."""
    return sys.modules["__main__"]


def use_module(name: str) -> ModuleType:
    """Import `name` (dots allowed) and return that very module, not its top-level package."""
    __import__(name)
    return sys.modules[name]


def resolve(module: str, qualname: str) -> Any:
    """The object at `qualname` (dots allowed) in the importable `module`."""
    found: Any = use_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def make_cell() -> CellType:
    """An empty closure cell; whoever pickled it fills it later."""
    return CellType()


def fill_cell(cell: CellType, state: tuple[Any]) -> None:
    """Give a cell that stands alone its contents."""
    cell.cell_contents = state[0]


def make_function(
    code: Any, space: dict[str, Any] | None, cells: tuple[CellType, ...] | None, name: str = ""
) -> FunctionType:
    """A bare function, defined as `name` in `__main__` if it has one there.

    `code` is marshalled or a code object; `space` becomes its globals, or `__main__` where it is None.
    """
    if isinstance(code, bytes):
        code = marshal.loads(code)
    if space is None:
        space = main_dict()
    space.setdefault("__builtins__", builtins)
    function = FunctionType(code, space, None, None, cells)
    if name:
        define(name, function)
    return function


def fill_function(function: FunctionType, state: tuple[Any, ...]) -> None:
    """Everything of a function that may refer back to it; see `Pickler._function_by_value` for the order."""
    name, qualname, module, doc, defaults, kwdefaults, annotations, attributes, filled, imports, captured = state
    function.__name__ = name
    function.__qualname__ = qualname
    function.__module__ = module
    function.__doc__ = doc
    function.__defaults__ = defaults
    function.__kwdefaults__ = kwdefaults
    if annotations:
        function.__annotations__ = annotations
    if attributes:
        function.__dict__.update(attributes)
    for cell, contents in filled:
        cell.cell_contents = contents
    for module_name in imports:
        __import__(module_name)
    if captured:
        function.__globals__.update(captured)


def begin(name: str, make: Callable[..., Any], *args: Any) -> Any:
    """Make a value of `__main__` and put it there at once; the pickle fills it afterwards."""
    value = make(*args)
    define(name, value)
    return value


def fill_set(target: set[Any], items: Iterable[Any]) -> None:
    """Fill a set of `__main__`."""
    target.update(items)


def begin_class(name: str, make: Callable[..., type], *args: Any) -> type:
    """Make a class of `__main__`, or find the one that an earlier version of the same class made, and put it there."""
    cls = make(*args)
    if name:
        define(name, cls)
    return cls


def fill_class(cls: type, state: tuple[tuple[dict[str, Any], Any], Callable[[type, Any], Any], str]) -> None:
    """Set a class's attributes and delete those which an earlier version had brought and this one has not.

    `state` is (attributes and slots, cloudpickle's setter for them, the id under which both sides know the class).
    """
    content, fill, tracker = state
    names = frozenset(content[0])
    for gone in _shipped_attributes.get(cls, frozenset()) - names:
        if gone in cls.__dict__:
            delattr(cls, gone)
    fill(cls, content)
    _shipped_attributes[cls] = names
    received_classes[cls] = tracker


def known_class(tracker: str, blob: bytes) -> type:
    """The class that this process once sent away under `tracker`, or, if it is gone, a rebuilt one from `blob`."""
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    if cloudpickle is not None:
        found = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
        if found is not None:
            return found  # type: ignore[no-any-return]
    return pickle.loads(blob)  # type: ignore[no-any-return]


def make_cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    """A `functools.lru_cache` around `function`, empty."""
    from functools import lru_cache

    return lru_cache(maxsize=maxsize, typed=typed)(function)


def make_dispatch(function: Any) -> Any:
    """A `functools.singledispatch` whose default is `function`."""
    from functools import singledispatch

    return singledispatch(function)


def fill_dispatch(function: Any, registry: dict[type, Any]) -> None:
    """Register the implementations of a `singledispatch`."""
    for cls, implementation in registry.items():
        function.register(cls, implementation)


def make_cached_property(function: Any, name: str | None) -> Any:
    """A `functools.cached_property`; by itself it does not pickle before Python 3.12, where it holds a lock."""
    from functools import cached_property

    made = cached_property(function)
    made.attrname = name
    return made


def make_plain(cls: type[Any]) -> Any:
    """An instance without `__init__`, for singletons whose `__reduce__` is their own global name."""
    return object.__new__(cls)


def fill_plain(instance: Any, attributes: dict[str, Any]) -> None:
    """The attributes of such a singleton."""
    instance.__dict__.update(attributes)


def make_lock() -> Any:
    """A fresh lock: a lock of `__main__` protects one process, so each process has its own."""
    import _thread

    return _thread.allocate_lock()


def make_rlock() -> Any:
    """A fresh re-entrant lock."""
    import threading

    return threading.RLock()


def make_local() -> Any:
    """A fresh `threading.local`."""
    import threading

    return threading.local()


def make_type_parameter(kind: Any, name: str, constraints: tuple[Any, ...], facts: dict[str, Any], module: str) -> Any:
    """A `TypeVar`, `ParamSpec` or `TypeVarTuple` of `module`."""
    made = kind(name, *constraints, **facts)
    made.__module__ = module
    return made


def make_new_type(name: str, supertype: Any, module: str) -> Any:
    """A `typing.NewType` of `module`."""
    import typing

    make: Any = typing.NewType
    made = make(name, supertype)
    made.__module__ = module
    return made


def make_alias(name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    """What `type name = value` makes (Python 3.12)."""
    import typing

    return typing.TypeAliasType(name, value, type_params=parameters)  # type: ignore[attr-defined]


def make_module(name: str) -> ModuleType:
    """An empty module, for one that only its maker has."""
    module = ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    return module


def fill_module(module: ModuleType, content: dict[str, Any]) -> None:
    """Give such a module its content."""
    module.__dict__.update(content)
