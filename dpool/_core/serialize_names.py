"""What names mean: which globals a code object uses, and under which name another process finds an object.

An object is found by name if its module can be imported elsewhere as it was imported here, or if it stands in
`__main__`, of which each worker has its own. The results are cached per code object and per module.
"""

from __future__ import annotations

import marshal
import sys
from opcode import opmap
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any
from weakref import ref

MISSING: Any = object()
"""Stands where there is no value."""

ATOMIC = frozenset({int, float, bool, type(None), complex, str, bytes})
"""Exact types whose objects are immutable and contain no others."""

MAIN_NAMES = ("__main__", "__mp_main__")

MODULE_FACTS = frozenset(
    {
        "__annotations__",
        "__builtins__",
        "__cached__",
        "__debug__",
        "__doc__",
        "__file__",
        "__loader__",
        "__name__",
        "__package__",
        "__path__",
        "__spec__",
    }
)
"""A module's own facts: the worker's `__main__` has them already."""

# ---------------------------------------------------------------------------------------- code

_LOAD_GLOBAL = opmap["LOAD_GLOBAL"]
_READS = frozenset(opmap[name] for name in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in opmap)
_WRITES = frozenset(opmap[name] for name in ("STORE_GLOBAL", "DELETE_GLOBAL"))
_STORE_DEREF = opmap["STORE_DEREF"]
_EXTENDED_ARG = opmap["EXTENDED_ARG"]
_GLOBAL_SHIFT = 1 if sys.version_info >= (3, 11) else 0  # the lowest bit of LOAD_GLOBAL says "and push NULL"


class CodeFacts:
    """What a code object says about its surroundings, its nested code objects included."""

    __slots__ = ("alive", "attributes", "blob", "reads", "rebinds", "writes")

    def __init__(self, code: CodeType, alive: ref[CodeType]) -> None:
        self.alive = alive
        reads: dict[str, None] = {}
        writes: dict[str, None] = {}
        self.attributes: set[str] = set()
        """Every name in it, those of attributes too: which submodules of a package it could mean."""
        self.rebinds = _scan(code, reads, writes, self.attributes)
        """Whether it, or a function in it, assigns a variable of a function around it."""
        self.reads = tuple(reads)
        """Global names that it may read."""
        self.writes = tuple(writes)
        """Global names that it assigns or deletes."""
        try:
            self.blob: Any = marshal.dumps(code)
            """Marshalled, or the code object itself if it has constants that no compiler makes."""
        except ValueError:
            self.blob = code


def _scan(code: CodeType, reads: dict[str, None], writes: dict[str, None], attributes: set[str]) -> bool:
    names, data, argument = code.co_names, code.co_code, 0
    first_free, rebinds = _first_free(code), False
    attributes.update(names)
    for at in range(0, len(data), 2):
        op = data[at]
        argument = argument << 8 | data[at + 1]
        if op == _EXTENDED_ARG:
            continue
        if op == _LOAD_GLOBAL:
            reads[names[argument >> _GLOBAL_SHIFT]] = None
        elif op in _READS:  # in the body of a nested class
            reads[names[argument]] = None
        elif op in _WRITES:
            writes[names[argument]] = None
        elif op == _STORE_DEREF:
            rebinds |= argument >= first_free
        argument = 0
    for constant in code.co_consts:
        if type(constant) is CodeType:
            rebinds |= _scan(constant, reads, writes, attributes)
    return rebinds


def _first_free(code: CodeType) -> int:
    """The number by which STORE_DEREF means the first variable that belongs to a function around this one."""
    if sys.version_info >= (3, 11):
        return len({*code.co_varnames, *code.co_cellvars})
    return len(code.co_cellvars)


_code_facts: dict[int, CodeFacts] = {}


def code_facts(code: CodeType) -> CodeFacts:
    """The facts of a code object, found once: marshalling it twice may give different bytes."""
    key = id(code)
    facts = _code_facts.get(key)
    if facts is None or facts.alive() is not code:
        facts = _code_facts[key] = CodeFacts(code, ref(code, lambda _: _code_facts.pop(key, None)))
    return facts


def is_dispatch(function: FunctionType) -> bool:
    """Whether `function` is what `functools.singledispatch` returns."""
    functools = sys.modules.get("functools")
    return function.__globals__ is getattr(functools, "__dict__", None) and hasattr(function, "registry")


def contents_of(cell: Any) -> Any:
    """What a closure cell holds, or MISSING."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def captured_globals(function: FunctionType, facts: CodeFacts) -> dict[str, Any]:
    """The globals that a function refers to, as they are now."""
    scope = function.__globals__
    return {name: scope[name] for name in facts.reads + facts.writes if name in scope and name not in MODULE_FACTS}


def captured_packages(function: FunctionType, facts: CodeFacts) -> list[ModuleType]:
    """The packages among the modules that a function refers to directly."""
    found = [function.__globals__.get(name) for name in facts.reads]
    found += map(contents_of, function.__closure__ or ())
    return [module for module in found if type(module) is ModuleType and hasattr(module, "__path__")]


def submodules(function: FunctionType, facts: CodeFacts) -> tuple[str, ...]:
    """The imported submodules that a function may reach as attributes of a package, as in `xml.etree.ElementTree`."""
    found = []
    for package in captured_packages(function, facts):
        prefix = package.__name__ + "."
        for name in list(sys.modules):
            if name.startswith(prefix) and facts.attributes.issuperset(name[len(prefix) :].split(".")):
                found.append(name)
    return tuple(found)


# ---------------------------------------------------------------------------------------- modules and qualified names

_importable: dict[str, tuple[Any, bool]] = {}


def registered_by_value(name: str) -> bool:
    """Whether the module `name`, or a package around it, is registered with `cloudpickle.register_pickle_by_value`."""
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is None:
        return False
    registry = cloudpickle.list_registry_pickle_by_value()
    while registry and name:
        if name in registry:
            return True
        name = name.rpartition(".")[0]
    return False


def is_importable(name: str) -> bool:
    """Whether another process would find the module `name` as this one did (found out once per module object)."""
    module = sys.modules.get(name)
    if module is None or name in MAIN_NAMES:
        return False
    known = _importable.get(name)
    if known is None or known[0] is not module:
        known = _importable[name] = (module, _can_find(name, module))
    return known[1]


def _can_find(name: str, module: Any) -> bool:
    if name in sys.builtin_module_names:
        return True
    spec = getattr(module, "__spec__", None)
    real = getattr(spec, "name", None) or getattr(module, "__name__", None)
    if real != name:  # an alias, as os.path is posixpath
        return isinstance(real, str) and sys.modules.get(real) is module and is_importable(real)
    if spec is None:
        return False
    parent, _, _ = name.rpartition(".")
    path = None
    if parent:
        if not is_importable(parent):
            return False
        path = getattr(sys.modules[parent], "__path__", None)
        if path is None:
            return True  # a module that makes its submodules by itself
    for finder in sys.meta_path:
        found = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if found is not None:
            return bool(found.origin == spec.origin)
    return False


def walk(start: Any, qualname: str) -> Any:
    """The object at the dotted `qualname` below `start`, or MISSING."""
    for part in qualname.split("."):
        try:
            start = getattr(start, part)
        except AttributeError:
            return MISSING
    return start


_NAMEABLE = frozenset(
    {"_lru_cache_wrapper", "TypeVar", "ParamSpec", "TypeVarTuple", "TypeAliasType", "NewType"},
)


def is_nameable(obj: Any) -> bool:
    """Whether `obj` is of a kind that knows its own name: only those are asked, others may do anything when asked."""
    kind = type(obj)
    if kind is FunctionType or kind is BuiltinFunctionType or issubclass(kind, type):
        return True
    return kind.__name__ in _NAMEABLE and kind.__module__ in ("functools", "typing", "builtins")


def by_reference(obj: Any) -> tuple[dict[str, Any], str, str] | None:
    """`(module dict, module name, qualified name)` of an object that another process can import, or None."""
    if not is_nameable(obj):
        return None
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str) or not is_importable(module_name):
        return None
    module = sys.modules[module_name]
    if walk(module, qualname) is not obj or registered_by_value(module_name):
        return None
    return module.__dict__, module_name, qualname


def main_path(obj: Any) -> str | None:
    """The qualified name under which `obj` stands in this process' `__main__`, or None."""
    if not is_nameable(obj):
        return None
    module_name = getattr(obj, "__module__", None)
    if module_name not in MAIN_NAMES:
        return None
    module = sys.modules.get(module_name)
    if module_name == "__mp_main__" and module is not sys.modules["__main__"]:
        return None
    qualname = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if not isinstance(qualname, str) or walk(module, qualname) is not obj:
        return None
    return qualname


# ---------------------------------------------------------------------------------------- values

_NO_IDENTITY = ATOMIC | {tuple, frozenset, ModuleType, type(...), type(NotImplemented)}
_CONTAINERS = frozenset({list, tuple, set, frozenset})


def value_index(scope: dict[str, Any]) -> dict[int, str]:
    """The globals of `__main__` by the identity of their values, where identity can matter."""
    index: dict[int, str] = {}
    for name, value in list(scope.items()):
        if type(value) in _NO_IDENTITY or name in MODULE_FACTS or _is_history(name):
            continue
        if is_nameable(value) and (main_path(value) is not None or by_reference(value) is not None):
            continue
        known = index.get(id(value))
        if known is None or (known.startswith("_") and not name.startswith("_")):
            index[id(value)] = name
    return index


def _is_history(name: str) -> bool:
    """`_`, `__`, `_12`, `_i3`, `Out`, …: where IPython keeps what was typed and shown."""
    if not name.startswith("_"):
        return name in ("In", "Out")
    return name.strip("_") in ("", "i", "ii", "iii", "ih", "oh", "dh") or name.lstrip("_i").isdigit()


def plain(value: Any, limit: int = 1 << 62, depth: int = 3) -> bool:
    """Whether the standard pickle of `value` is certainly the same as ours: builtin containers of atomic values.

    Containers longer than `limit` are not looked at.
    """
    kind = type(value)
    if kind in ATOMIC:
        return True
    if kind is dict:
        return _all_plain(value.keys(), limit, depth) and _all_plain(value.values(), limit, depth)
    return kind in _CONTAINERS and _all_plain(value, limit, depth)


def _all_plain(items: Any, limit: int, depth: int) -> bool:
    if len(items) > limit:
        return False
    if ATOMIC.issuperset(map(type, items)):
        return True
    return depth > 0 and len(items) <= 100 and all(plain(item, limit, depth - 1) for item in items)
