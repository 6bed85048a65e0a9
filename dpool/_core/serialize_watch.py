"""Noticing that something which was captured has changed.

A `Plan` is what must still be true for a pickle made earlier to be what pickling would give now. Immutable captures are
compared by identity; mutable ones are pickled again and the bytes compared. The common function, which captures
nothing mutable, costs a few dictionary look-ups.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any

from dpool._core import serialize_rebuild as rebuild
from dpool._core.serialize_names import (
    ATOMIC,
    MISSING,
    MODULE_FACTS,
    by_reference,
    captured_globals,
    captured_packages,
    code_facts,
    contents_of,
    is_dispatch,
    main_path,
)
from dpool._core.serialize_pickler import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Volatile(Protocol):
        """Something that can only be checked by pickling it again as it was pickled."""

        def unchanged(self) -> bool: ...


_FIXED_TYPES = ATOMIC | {
    BuiltinFunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
    WrapperDescriptorType,
    object,
    range,
    type(...),
    type(NotImplemented),
}
_FIXED_NAMES = frozenset(
    {
        ("_abc", "_abc_data"),
        ("_thread", "RLock"),
        ("_thread", "_local"),
        ("_thread", "lock"),
        ("collections", "_tuplegetter"),
        ("datetime", "date"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("decimal", "Decimal"),
        ("dpool._core.objectref", "ObjectRef"),
        ("fractions", "Fraction"),
        ("logging", "Logger"),
        ("logging", "RootLogger"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),
        ("re", "Pattern"),
        ("typing", "NewType"),
        ("typing", "ParamSpec"),
        ("typing", "TypeVar"),
        ("typing", "TypeVarTuple"),
        ("uuid", "UUID"),
    }
)
"""Types whose objects do not change, or whose changes do not travel."""

_MADE_BY_THE_CLASS = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__match_args__",
        "__module__",
        "__non_callable_proto_members__",
        "__orig_bases__",
        "__parameters__",
        "__protocol_attrs__",
        "__qualname__",
        "__slotnames__",
        "__static_attributes__",
        "__type_params__",
        "__weakref__",
        "_abc_impl",
        "_generate_next_value_",
        "_hashable_values_",
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_value2member_map_",
    }
)
"""Class attributes that the class statement made and nobody changes by hand."""


class Plan:
    """What must still hold. Empty: nothing can have changed."""

    __slots__ = ("cells", "functions", "lookups", "mappings", "pickles", "sizes", "volatile")

    def __init__(self) -> None:
        self.lookups: list[tuple[Any, str, Any]] = []
        """(namespace, name, the object that the name means there, or MISSING)."""
        self.functions: list[tuple[Any, Any, Any, Any, int]] = []
        """(function, code, defaults, keyword defaults, number of attributes)."""
        self.cells: list[tuple[Any, Any]] = []
        """(closure cell, contents or MISSING)."""
        self.mappings: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = []
        """(mapping, keys, values)."""
        self.sizes: list[tuple[Any, int]] = []
        """(namespace of a package, length): a submodule may have been imported."""
        self.pickles: list[tuple[dict[str, Any], str, Copy]] = []
        """(namespace, name, copy of the mutable object there)."""
        self.volatile: list[Volatile] = []

    def extend(self, other: Plan) -> None:
        """Take over all of another plan."""
        for field in Plan.__slots__:
            getattr(self, field).extend(getattr(other, field))

    def holds(self) -> bool:
        """Whether nothing has changed."""
        for space, name, value in self.lookups:
            if space.get(name, MISSING) is not value:
                return False
        for function, code, defaults, kwdefaults, size in self.functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not kwdefaults
                or len(function.__dict__) != size
            ):
                return False
        if self.cells or self.mappings or self.sizes or self.pickles or self.volatile:
            return self._rest_holds()
        return True

    def _rest_holds(self) -> bool:
        for cell, contents in self.cells:
            if contents_of(cell) is not contents:
                return False
        for mapping, keys, values in self.mappings:
            if tuple(mapping) != keys or any(a is not b for a, b in zip(mapping.values(), values, strict=True)):
                return False
        for package, size in self.sizes:
            if len(package) != size:
                return False
        for space, name, copy in self.pickles:
            if not copy.equals(space.get(name, MISSING)):
                return False
        return all(one.unchanged() for one in self.volatile)


class Copy:
    """An object as it was: its pickle, and apart from that the buffers (of arrays), which compare much faster."""

    __slots__ = ("_blob", "_buffers")

    def __init__(self, value: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        self._blob = _pickled(value, buffers)
        self._buffers = [bytearray(buffer.raw()) for buffer in buffers]

    def equals(self, value: Any) -> bool:
        """Whether `value` pickles to the same bytes."""
        buffers: list[pickle.PickleBuffer] = []
        try:
            blob = _pickled(value, buffers)
        except Exception:  # whatever a reducer raises: pickling it in earnest will report it
            return False
        if blob != self._blob or len(buffers) != len(self._buffers):
            return False
        return all(kept == buffer.raw() for kept, buffer in zip(self._buffers, buffers, strict=True))


def _pickled(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    """A pickle to compare with; references stand in it by their names, for it holds nothing."""
    objectref = sys.modules.get("dpool._core.objectref")
    if objectref is None:
        return pickle.dumps(value, PROTOCOL, buffer_callback=buffers.append)
    target = io.BytesIO()
    pickler = pickle.Pickler(target, PROTOCOL, buffer_callback=buffers.append)
    pickler.dispatch_table = {**copyreg.dispatch_table, objectref.ObjectRef: objectref.name_only}
    pickler.dump(value)
    return target.getvalue()


def snapshot(mapping: Any) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """A mapping with the keys and the values it has now."""
    return mapping, tuple(mapping), tuple(mapping.values())


def _is_enum(cls: type) -> bool:
    return type(cls).__name__ in ("EnumMeta", "EnumType") and type(cls).__module__ == "enum"


class Watcher:
    """Fills a plan for what one pickle contains.

    Args:
        index: see `value_index`; what globals name is not watched here, each global has a plan.
        name: the global of `__main__` whose value is watched, or "".
    """

    def __init__(self, index: dict[int, str], name: str = "") -> None:
        self.plan = Plan()
        self.steady = True
        """False: something can only be checked by pickling all of it again."""
        self.rebinds = False
        """A function among it assigns a variable that it has in common with another one."""
        self._index = index
        self._name = name
        self._seen: set[int] = set()

    def watch_global(self, space: dict[str, Any], name: str) -> None:
        """Watch the value of a global, which is pickled by value."""
        value = space[name]
        if self._same_if_identical(value):
            self.plan.lookups.append((space, name, value))
            self.watch(value)
        else:
            self.watch_pickle(space, name)

    @staticmethod
    def _same_if_identical(value: Any) -> bool:
        """Whether it is enough to compare identity, and to watch what the object refers to."""
        kind = type(value)
        return (
            kind in _FIXED_TYPES
            or kind in (FunctionType, tuple, frozenset, staticmethod, classmethod, property)
            or issubclass(kind, type)
            or _is_enum(kind)
            or (kind.__module__, kind.__name__) in _FIXED_NAMES
            or (kind.__module__, kind.__name__) == ("functools", "_lru_cache_wrapper")
        )

    def _watch_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.watch(value)

    def watch(self, value: Any) -> None:
        """Watch a captured value, whose identity somebody else watches."""
        kind = type(value)
        if kind in ATOMIC or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if kind is tuple or kind is frozenset:
            self._watch_all(value)
        elif kind is FunctionType or issubclass(kind, type):
            self._watch_definition(value)
        elif kind is staticmethod or kind is classmethod:
            self.watch(value.__func__)
        elif kind is property:
            self._watch_all((value.fget, value.fset, value.fdel))
        elif kind.__module__ == "functools" and kind.__name__ == "_lru_cache_wrapper":
            self.watch(value.__wrapped__)
        elif id(value) not in self._index and not self._same_if_identical(value):
            self.watch_pickle({"value": value}, "value")

    def watch_pickle(self, space: dict[str, Any], name: str) -> None:
        """Watch a mutable object by its pickle."""
        try:
            self.plan.pickles.append((space, name, Copy(space[name])))
        except Exception:  # the standard pickle cannot: whatever a reducer raises
            self.steady = False

    def _watch_definition(self, value: Any) -> None:
        path = main_path(value)
        if path is not None and path.partition(".")[0] != self._name:
            return  # a reference into __main__, which the pickle has noted
        found = by_reference(value)
        if found is not None:
            self.plan.lookups += steps(found[0], found[2])
        elif type(value) is FunctionType:
            self.watch_function(value)
        else:
            self._watch_class(value)

    def watch_function(self, function: Any, itself: bool = True) -> None:
        """Watch a function that travels by value; without `itself`, the caller watches its code, defaults and size."""
        plan = self.plan
        if is_dispatch(function):
            plan.mappings.append(snapshot(function.registry))
            self._watch_all(function.registry.values())
            return
        defaults, kwdefaults, attributes = function.__defaults__, function.__kwdefaults__, function.__dict__
        if itself:
            plan.functions.append((function, function.__code__, defaults, kwdefaults, len(attributes)))
        self._watch_all(defaults or ())
        for mapping in (kwdefaults, attributes):
            if mapping:
                plan.mappings.append(snapshot(mapping))
                self._watch_all(mapping.values())
        for cell in function.__closure__ or ():
            contents = contents_of(cell)
            plan.cells.append((cell, contents))
            self.watch(contents)
        facts = code_facts(function.__code__)
        self.rebinds |= facts.rebinds
        for package in captured_packages(function, facts):
            plan.sizes.append((package.__dict__, len(package.__dict__)))
        scope = function.__globals__
        if scope is not rebuild.main_dict():
            captured = captured_globals(function, facts)
            for name in (*facts.reads, *facts.writes):
                if name not in MODULE_FACTS:
                    plan.lookups.append((scope, name, captured.get(name, MISSING)))
            self._watch_all(captured.values())

    def _watch_class(self, cls: type) -> None:
        self.plan.mappings.append(snapshot(cls.__dict__))
        self._watch_all(cls.__bases__)
        self.watch(type(cls))
        members = (FunctionType, staticmethod, classmethod, property) if _is_enum(cls) else None
        for name, value in cls.__dict__.items():
            if name not in _MADE_BY_THE_CLASS and (members is None or type(value) in members):
                self.watch(value)


def steps(space: Any, qualname: str) -> list[tuple[Any, str, Any]]:
    """The look-ups, one per dot, that lead from a namespace to the object at `qualname`."""
    found = []
    for part in qualname.split("."):
        value = space.get(part, MISSING)
        found.append((space, part, value))
        space = getattr(value, "__dict__", {})
    return found
