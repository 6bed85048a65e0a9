"""How objects of particular types are taken apart: what the user registered, cloudpickle's table, and dpool's own.

cloudpickle is imported when the first class must go by value, or the first object of a type that only it can pickle.
"""

from __future__ import annotations

import copyreg
import marshal
import sys
from types import (
    CellType,
    CodeType,
    GetSetDescriptorType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from dpool._core import serialize_rebuild as rebuild
from dpool._core.serialize_names import (
    MISSING,
    by_reference,
    code_facts,
    contents_of,
    is_importable,
    registered_by_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._core.serialize_pickler import Pickler

_CLOUD_TYPES = frozenset(
    {
        classmethod,
        property,
        staticmethod,
        memoryview,
        CodeType,
        GetSetDescriptorType,
        MappingProxyType,
        WeakSet,
        type({}.keys()),
        type({}.values()),
        type({}.items()),
    }
)
_CLOUD_NAMES = frozenset(
    {
        ("abc", "abstractproperty"),
        ("collections", "odict_items"),
        ("collections", "odict_keys"),
        ("collections", "odict_values"),
        ("dataclasses", "_FIELD_BASE"),
        ("logging", "Logger"),
        ("logging", "RootLogger"),
    }
)
_OURS_TOO = ("multiprocessing.", "dpool.")
"""Modules that register reducers for types for which we have better ones."""
_NEEDED = (
    "_DYNAMIC_CLASS_TRACKER_BY_CLASS",
    "_DYNAMIC_CLASS_TRACKER_BY_ID",
    "_dynamic_class_reduce",
)


def cloud() -> Any:
    """The module `cloudpickle.cloudpickle`.

    Raises:
        ImportError: it is not installed, or lacks an internal function that dpool uses; the message names it.
    """
    from cloudpickle import cloudpickle

    absent = [name for name in _NEEDED if not hasattr(cloudpickle, name)]
    if absent:
        version = getattr(sys.modules["cloudpickle"], "__version__", "?")
        raise ImportError(
            f"dpool cannot use cloudpickle {version}, which lacks {', '.join(absent)}: install another version (>= 3.0)"
        )
    return cloudpickle


class Reducers(dict[type, Any]):
    """Reducers by type: those that are registered, then cloudpickle's for the types that need it."""

    def __missing__(self, kind: type) -> Any:
        if kind in _CLOUD_TYPES or (kind.__module__, kind.__qualname__) in _CLOUD_NAMES:
            reducer = cloud().Pickler.dispatch_table.get(kind)
            if reducer is not None:
                self[kind] = reducer
                return reducer
        raise KeyError(kind)


def registered() -> Reducers:
    """copyreg's reducers and, above them, those registered with multiprocessing's ForkingPickler."""
    table = Reducers(copyreg.dispatch_table)
    reduction = sys.modules.get("multiprocessing.reduction")
    if reduction is not None:
        for kind, reducer in reduction.ForkingPickler._extra_reducers.items():
            home = getattr(reducer, "__module__", "")
            if home == "torch.multiprocessing.reductions":
                continue  # they share memory with a process that reads at once; the store does that
            if kind in BY_TYPE and home.startswith(_OURS_TOO):
                continue  # theirs serve only processes that are being started
            if kind is not MethodType or home != "multiprocessing.reduction":
                table[kind] = reducer
    return table


class Root:
    """Stands for the builtin container that is the value of a global, so that it exists before it is filled."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value


def _reduce_root(pickler: Pickler, root: Root) -> Any:
    kind = type(root.value)
    make = (rebuild.begin, (root.name, kind))
    if kind is list:
        return (*make, None, iter(root.value))
    if kind is dict:
        return (*make, None, None, iter(root.value.items()))
    return (*make, list(root.value), None, None, rebuild.fill_set)


def _reduce_module(pickler: Pickler, module: ModuleType) -> Any:
    if module is sys.modules["__main__"]:
        return rebuild.use_main, ()
    name = module.__name__
    if sys.modules.get(name) is module and is_importable(name) and not registered_by_value(name):
        return rebuild.use_module, (name,)
    local = ("__builtins__", "__loader__", "__spec__")
    content = {key: value for key, value in vars(module).items() if key not in local}
    return rebuild.make_module, (name,), content, None, None, rebuild.fill_module


def _reduce_method(pickler: Pickler, method: MethodType) -> Any:
    found = getattr(method.__self__, method.__func__.__name__, None)
    if getattr(found, "__func__", None) is method.__func__:
        return NotImplemented
    return MethodType, (method.__func__, method.__self__)  # private or renamed: pickle would not find it again


def _reduce_cell(pickler: Pickler, cell: CellType) -> Any:
    contents = contents_of(cell)
    if contents is MISSING or id(cell) in pickler.owned_cells:  # the function that owns it fills it
        return rebuild.make_cell, ()
    return rebuild.make_cell, (), (contents,), None, None, rebuild.fill_cell


def _reduce_code(pickler: Pickler, code: CodeType) -> Any:
    blob = code_facts(code).blob
    return (marshal.loads, (blob,)) if isinstance(blob, bytes) else pickler.reducers[CodeType](code)


BY_TYPE: dict[type, Callable[[Pickler, Any], Any]] = {
    Root: _reduce_root,
    ModuleType: _reduce_module,
    MethodType: _reduce_method,
    CellType: _reduce_cell,
    CodeType: _reduce_code,
}
"""dpool's own, for exact types; something registered for the type goes first."""

REMADE = {
    ("_thread", "RLock"): rebuild.make_rlock,
    ("_thread", "_local"): rebuild.make_local,
    ("_thread", "lock"): rebuild.make_lock,
}
"""What belongs to one process: where a global of `__main__` holds one, each process gets its own."""


def reduce_named(pickler: Pickler, obj: Any, kind: type) -> Any:
    """Objects that pickle finds by their name, of a kind that can stand in `__main__`, and others of those modules."""
    name = kind.__name__
    if kind.__module__ == "functools":
        if name == "cached_property":
            return rebuild.make_cached_property, (obj.func, obj.attrname)
        if name != "_lru_cache_wrapper":
            return NotImplemented
    elif name not in _ANEW:
        return NotImplemented
    if pickler.reference(obj):
        return getattr(obj, "__qualname__", None) or obj.__name__
    if by_reference(obj) is not None:
        return NotImplemented  # pickle finds it by its name
    return _ANEW[name](obj)


def _new_cache(cached: Any) -> Any:
    parameters = cached.cache_parameters()
    return rebuild.make_cached, (cached.__wrapped__, parameters["maxsize"], parameters["typed"])


def _new_type_parameter(one: Any) -> Any:
    """`TypeVar`, `ParamSpec` and `TypeVarTuple`; which facts they have depends on the version of Python."""
    facts = {name: getattr(one, f"__{name}__") for name in _PARAMETER_FACTS if hasattr(one, f"__{name}__")}
    if facts.get("default", MISSING) is getattr(sys.modules["typing"], "NoDefault", MISSING):
        facts.pop("default", None)
    if facts.get("infer_variance") is False:
        del facts["infer_variance"]
    constraints = getattr(one, "__constraints__", ())
    return rebuild.make_type_parameter, (type(one), one.__name__, constraints, facts, one.__module__)


_PARAMETER_FACTS = ("bound", "covariant", "contravariant", "infer_variance", "default")

_ANEW: dict[str, Callable[[Any], Any]] = {
    "_lru_cache_wrapper": _new_cache,
    "NewType": lambda one: (rebuild.make_new_type, (one.__qualname__, one.__supertype__, one.__module__)),
    "ParamSpec": _new_type_parameter,
    "TypeAliasType": lambda one: (rebuild.make_alias, (one.__name__, one.__value__, one.__type_params__)),
    "TypeVar": _new_type_parameter,
    "TypeVarTuple": _new_type_parameter,
}
