"""How one object becomes bytes: by reference where the other side can import it, by value where it cannot.

```
                       ┌ importable ─────────────► its module and name (standard pickle)
 function, class, … ───┼ reachable in __main__ ──► `__main__.name`, and the name is noted: a Definition must travel
                       └ neither ────────────────► by value: functions here, classes with cloudpickle's reducers
```

`Pickler` serves arguments and results. `CapturePickler` serves what a function captures: there an object that is also the
value of a global of `__main__` is pickled as that global, so that `x is SENTINEL` stays true in the worker.

cloudpickle is imported when the first class must go by value, or the first object of a type that only it can pickle.
"""

from __future__ import annotations

import copyreg
import io
import marshal
import pickle
import sys
from opcode import opmap
from types import (
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from dpool._core import serialize_rebuild as rebuild

if TYPE_CHECKING:
    from collections.abc import Callable

PROTOCOL = 5
MISSING: Any = object()
ATOMIC = frozenset({int, float, bool, type(None), complex, str, bytes})
MAIN_NAMES = ("__main__", "__mp_main__")

# a module's own facts, which the worker's __main__ has already
MODULE_FACTS = frozenset(
    "__name__ __doc__ __package__ __loader__ __spec__ __file__ __cached__ __builtins__ __path__ __annotations__ __debug__".split()
)

_LOAD_GLOBAL = opmap["LOAD_GLOBAL"]
_READS = frozenset(opmap[name] for name in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in opmap)
_WRITES = frozenset(opmap[name] for name in ("STORE_GLOBAL", "DELETE_GLOBAL"))
_EXTENDED_ARG = opmap["EXTENDED_ARG"]
_GLOBAL_SHIFT = 1 if sys.version_info >= (3, 11) else 0  # the lowest bit of LOAD_GLOBAL says "and push NULL"


class CodeFacts:
    """What a code object, its nested ones included, says about its surroundings."""

    __slots__ = ("alive", "attributes", "blob", "reads", "writes")

    def __init__(self, code: CodeType, alive: ref[CodeType]) -> None:
        self.alive = alive
        reads: dict[str, None] = {}
        writes: dict[str, None] = {}
        attributes: set[str] = set()
        _scan(code, reads, writes, attributes)
        self.reads = tuple(reads)
        """Global names that it may read."""
        self.writes = tuple(writes)
        """Global names that it assigns or deletes."""
        self.attributes = attributes
        """Every name in it, attributes included: which submodules of a package it could mean."""
        try:
            self.blob: Any = marshal.dumps(code)
        except ValueError:  # constants that no compiler makes
            self.blob = code


def _scan(code: CodeType, reads: dict[str, None], writes: dict[str, None], attributes: set[str]) -> None:
    names, data, argument = code.co_names, code.co_code, 0
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
        argument = 0
    for constant in code.co_consts:
        if type(constant) is CodeType:
            _scan(constant, reads, writes, attributes)


_code_facts: dict[int, CodeFacts] = {}


def code_facts(code: CodeType) -> CodeFacts:
    """The facts of a code object, found once: marshalling twice may give different bytes."""
    key = id(code)
    facts = _code_facts.get(key)
    if facts is None or facts.alive() is not code:
        facts = _code_facts[key] = CodeFacts(code, ref(code, lambda _: _code_facts.pop(key, None)))
    return facts


# ---------------------------------------------------------------------------------------- what can be imported

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
    if spec is None or spec.name != name:
        real = getattr(spec, "name", None) or getattr(module, "__name__", None)  # os.path is posixpath
        return bool(real and real != name and sys.modules.get(real) is module and is_importable(real))
    parent, _, _ = name.rpartition(".")
    if parent and not is_importable(parent):
        return False
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return True  # a parent that makes its submodules by itself, as os does with os.path
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        found = find(name, path) if find is not None else None
        if found is not None:
            return bool(found.origin == spec.origin)
    return False


def by_reference(obj: Any) -> tuple[dict[str, Any], str, str] | None:
    """`(module dict, module name, qualified name)` of an object that another process can import, or None."""
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str):
        return None
    if module_name in MAIN_NAMES or not is_importable(module_name):
        return None
    module = sys.modules[module_name]
    if walk(module, qualname) is not obj or registered_by_value(module_name):
        return None
    return module.__dict__, module_name, qualname


def walk(start: Any, qualname: str) -> Any:
    """The object at the dotted `qualname` below `start`, or MISSING."""
    for part in qualname.split("."):
        try:
            start = getattr(start, part)
        except AttributeError:
            return MISSING
    return start


def main_path(obj: Any) -> str | None:
    """The qualified name under which `obj` stands in this process' `__main__`, or None."""
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


# ---------------------------------------------------------------------------------------- cloudpickle, on demand

_CLOUD_TYPES = frozenset(
    {
        classmethod,
        property,
        staticmethod,
        io.TextIOWrapper,
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
    {("typing", "TypeVar"), ("logging", "Logger"), ("logging", "RootLogger"), ("dataclasses", "_FIELD_BASE"), ("abc", "abstractproperty")}
    | {("collections", "odict_keys"), ("collections", "odict_values"), ("collections", "odict_items")}
)
_NEEDED = (
    "_dynamic_class_reduce",
    "_typevar_reduce",
    "_DYNAMIC_CLASS_TRACKER_BY_CLASS",
    "_DYNAMIC_CLASS_TRACKER_BY_ID",
)


def cloud() -> Any:
    """The module `cloudpickle.cloudpickle`; raises ImportError, naming what is missing, if its internals have changed."""
    from cloudpickle import cloudpickle

    absent = [name for name in _NEEDED if not hasattr(cloudpickle, name)]
    if absent:
        version = getattr(sys.modules["cloudpickle"], "__version__", "?")
        raise ImportError(f"dpool cannot use cloudpickle {version}: it lacks {', '.join(absent)} (dpool needs cloudpickle >= 3.0)")
    return cloudpickle


class _Reducers(dict[type, Any]):
    """Reducers by type: what the user registered, then cloudpickle's for the types that need it."""

    def __missing__(self, kind: type) -> Any:
        if kind in _CLOUD_TYPES or (kind.__module__, kind.__qualname__) in _CLOUD_NAMES:
            reducer = cloud().Pickler.dispatch_table.get(kind)
            if reducer is not None:
                self[kind] = reducer
                return reducer
        raise KeyError(kind)


def _registered() -> _Reducers:
    """copyreg's reducers and, above them, those registered with multiprocessing's ForkingPickler."""
    table = _Reducers(copyreg.dispatch_table)
    reduction = sys.modules.get("multiprocessing.reduction")
    if reduction is not None:
        for kind, reducer in reduction.ForkingPickler._extra_reducers.items():
            if kind is not MethodType or getattr(reducer, "__module__", "") != "multiprocessing.reduction":
                table[kind] = reducer
    return table


# ---------------------------------------------------------------------------------------- the picklers


class Root:
    """Stands for the builtin container that is the value of a global, so that it exists before it is filled."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def reduce(self) -> tuple[Any, ...]:
        kind = type(self.value)
        start = (rebuild.begin, (self.name, kind))
        if kind is list:
            return (*start, None, iter(self.value))
        if kind is dict:
            return (*start, None, None, iter(self.value.items()))
        return (*start, list(self.value), None, None, rebuild.fill_set)


class Pickler(pickle.Pickler):
    """One pickle. Afterwards `loads` holds what it needs of `__main__` to load, `uses` what its code needs to run.

    Args:
        known: in a worker that answers, the objects of `__main__` which the submitter sent it (those alone go back by
            reference); None where everything in `__main__` does.
        home: the pickle goes from a worker back to the process where its `__main__` comes from.
        whole: with `home`, spell out also the classes that came from there.
    """

    def __init__(self, known: dict[str, Any] | None = None, home: bool = False, whole: bool = False) -> None:
        self.target = io.BytesIO()
        super().__init__(self.target, PROTOCOL)
        self.dispatch_table = self._table = _registered()
        self.known = known
        self.home = home
        self.whole = whole
        self.definition = ""
        """The global of `__main__` whose value is pickled, and the value."""
        self.root: Any = MISSING
        self.loads: dict[str, Any] = {}
        """Names of `__main__` that must exist when the pickle is loaded, with their values here."""
        self.uses: dict[str, None] = {}
        """Names of `__main__` that functions in the pickle refer to when they run."""
        self.writes: set[str] = set()
        """Those of them that functions assign."""
        self._spaces: dict[int, dict[str, Any]] = {}
        self._cells: set[int] = set()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return self._reduce_function(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        if kind is Root:
            return obj.reduce()
        special = _SPECIAL.get(kind)
        if special is not None and kind not in self._table:
            return special(self, obj)
        if obj is self.root or getattr(obj, "__module__", None) in MAIN_NAMES:
            return self._reduce_main_value(obj, kind)
        return self._reduce_other(obj, kind)

    # ---- references into __main__

    def reference(self, obj: Any) -> bool:
        """Whether `obj` is pickled as a name of `__main__`; if so the name is noted."""
        path = main_path(obj)
        return path is not None and self._note(path)

    def _note(self, path: str) -> bool:
        top = path.partition(".")[0]
        if top == self.definition:
            return False  # inside its own definition an object goes by value, and then by pickle's memo
        value = rebuild.main_dict().get(top, MISSING)
        if self.known is not None and self.known.get(top, MISSING) is not value:
            return False
        self.loads[top] = value
        return True

    # ---- functions

    def _reduce_function(self, function: FunctionType) -> Any:
        if self.reference(function) or by_reference(function) is not None:
            return NotImplemented
        if is_dispatch(function):
            return self._reduce_dispatch(function)
        facts = code_facts(function.__code__)
        space, captured = self._surroundings(function, facts)
        cells = function.__closure__
        filled = []
        for cell in cells or ():
            self._cells.add(id(cell))
            try:
                filled.append((cell, cell.cell_contents))
            except ValueError:  # an empty cell stays empty
                continue
        state = (
            function.__name__,
            function.__qualname__,
            function.__module__,
            function.__doc__,
            function.__defaults__,
            function.__kwdefaults__,
            function.__annotations__ or None,
            function.__dict__ or None,
            filled,
            submodules(function, facts),
            captured,
        )
        name = self.definition if function is self.root else ""
        return rebuild.make_function, (facts.blob, space, cells, name), state, None, None, rebuild.fill_function

    def _surroundings(self, function: FunctionType, facts: CodeFacts) -> tuple[Any, Any]:
        """The namespace for the function's globals (None: the receiver's `__main__`), and what to put into it."""
        scope = function.__globals__
        if scope is rebuild.main_dict() and not self.home:
            self.uses.update(dict.fromkeys(facts.reads))
            self.uses.update(dict.fromkeys(facts.writes))
            self.writes.update(facts.writes)
            return None, None
        space = self._spaces.get(id(scope))
        if space is None:  # shared by all functions of that module which this pickle contains
            own = ("__name__", "__package__", "__file__", "__path__")
            space = self._spaces[id(scope)] = {name: scope[name] for name in own if name in scope}
        return space, captured_globals(function, facts)

    def _reduce_dispatch(self, function: Any) -> tuple[Any, ...]:
        registry = dict(function.registry)
        make: tuple[Any, ...] = (rebuild.make_dispatch, (registry.pop(object),))
        if function is self.root and self.definition:
            make = (rebuild.begin, (self.definition, make[0], *make[1]))
        return (*make, registry, None, None, rebuild.fill_dispatch)

    # ---- classes

    def _reduce_class(self, cls: Any) -> Any:
        if type(cls) is not type and type(cls) in self._table:
            return NotImplemented  # the metaclass has a registered reducer
        if cls in _SINGLETON_TYPES:
            return NotImplemented  # pickle knows type(None), type(...) and type(NotImplemented)
        if self.reference(cls) or by_reference(cls) is not None:
            return NotImplemented
        if not cls.__flags__ & _HEAP_TYPE:
            name = next((name for name, value in vars(sys.modules["types"]).items() if value is cls), None)
            return NotImplemented if name is None else (rebuild.resolve, ("types", name))
        tracker = rebuild.received_classes.get(cls)
        if self.home and not self.whole and tracker is not None:
            return rebuild.known_class, (tracker, dumps(cls, Pickler(self.known, True, True)))
        return self._class_by_value(cls)

    def _class_by_value(self, cls: type) -> Any:
        cloudpickle = cloud()
        make, args, (attributes, slots), *_, fill = cloudpickle._dynamic_class_reduce(cls)
        attributes.pop("__slotnames__", None)  # copyreg's cache, written by pickling an instance
        if not attributes.get("__annotations__", True):
            del attributes["__annotations__"]  # made by merely looking at it
        tracker = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS[cls]
        name = self.definition if cls is self.root else ""
        state = ((attributes, slots), fill, tracker)
        return rebuild.begin_class, (name, make, *args), state, None, None, rebuild.fill_class

    # ---- other objects

    def _reduce_main_value(self, obj: Any, kind: type) -> Any:
        """The value of a global of `__main__`, or an instance of one of its classes."""
        if kind in self._table:
            reduced = self._table[kind](obj)
        else:
            reduced = self._reduce_other(obj, kind)
            if reduced is NotImplemented:
                reduced = self._reduce_registered(obj, kind)
        if isinstance(reduced, str):
            module = getattr(obj, "__module__", None)
            if module not in MAIN_NAMES or (walk(sys.modules[module], reduced) is obj and self._note(reduced)):
                return reduced
            reduced = (rebuild.make_plain, (kind,), dict(getattr(obj, "__dict__", {})), None, None, rebuild.fill_plain)
        if obj is self.root and self.definition:
            return (rebuild.begin, (self.definition, reduced[0], *reduced[1]), *reduced[2:])
        return reduced

    def _reduce_registered(self, obj: Any, kind: type) -> Any:
        try:
            reducer = self._table[kind]
        except KeyError:
            return obj.__reduce_ex__(PROTOCOL)
        return reducer(obj)

    def _reduce_other(self, obj: Any, kind: type) -> Any:
        module = kind.__module__
        if module == "functools":
            return _reduce_functools(self, obj, kind)
        if module == "typing":
            return _reduce_typing(self, obj, kind)
        if isinstance(obj, ModuleType):
            return _reduce_module(self, obj)
        return NotImplemented


class CapturePickler(Pickler):
    """Pickles what functions and definitions capture: objects that globals of `__main__` name keep their identity."""

    def __init__(self, index: dict[int, str]) -> None:
        super().__init__()
        self.index = index

    def define(self, name: str, value: Any) -> bytes:
        """The pickle of `value` as the value of the global `name`."""
        if plain(value):
            return pickle.dumps(value, PROTOCOL)
        path = main_path(value)
        if self.index.get(id(value), name) == name and (path is None or path == name):
            self.definition = name
            if type(value) in (list, dict, set):
                value = Root(name, value)
            else:
                self.root = value
        blob = dumps(value, self)
        self.loads.pop(name, None)
        return blob

    def persistent_id(self, obj: Any) -> str | None:
        name = self.index.get(id(obj))
        if name is None or obj is self.root:
            return None
        self.loads[name] = obj
        return name

    def _reduce_other(self, obj: Any, kind: type) -> Any:
        remake = _REMADE.get((kind.__module__, kind.__name__))
        return (remake, ()) if remake is not None else super()._reduce_other(obj, kind)


def dumps(obj: Any, pickler: Pickler) -> bytes:
    """The pickle of `obj` by a fresh `pickler`.

    Raises:
        PicklingError: also for a structure nested too deeply; and whatever the object's own reducers raise.
    """
    try:
        pickler.dump(obj)
    except RecursionError as error:
        raise pickle.PicklingError(f"{type(obj).__name__} object is nested too deeply to be pickled") from error
    return pickler.target.getvalue()


def plain(value: Any, depth: int = 3) -> bool:
    """Whether the standard pickle of `value` is certainly the same as ours: builtin containers of atomic values."""
    kind = type(value)
    if kind in ATOMIC:
        return True
    if kind is dict:
        return _plain_items(value.keys(), depth) and _plain_items(value.values(), depth)
    return kind in _CONTAINERS and _plain_items(value, depth)


def _plain_items(items: Any, depth: int) -> bool:
    if ATOMIC.issuperset(map(type, items)):
        return True
    return depth > 0 and len(items) <= 100 and all(plain(item, depth - 1) for item in items)


def value_index(scope: dict[str, Any]) -> dict[int, str]:
    """The globals of `__main__` by the identity of their values, where identity can matter."""
    index: dict[int, str] = {}
    for name, value in scope.items():
        if type(value) in _NO_IDENTITY or name in MODULE_FACTS or _is_history(name):
            continue
        if hasattr(value, "__qualname__") and (main_path(value) is not None or by_reference(value) is not None):
            continue
        known = index.get(id(value))
        if known is None or (known.startswith("_") and not name.startswith("_")):
            index[id(value)] = name
    return index


def _is_history(name: str) -> bool:
    """`_`, `__`, `_12`, `_i3`, `Out`, …: where IPython keeps what was typed and shown."""
    return name.strip("_") in ("", "i", "ii", "iii", "ih", "oh", "dh", "In", "Out") or name.lstrip("_i").isdigit()


def _reduce_functools(pickler: Pickler, obj: Any, kind: type) -> Any:
    if kind.__name__ == "_lru_cache_wrapper":
        if pickler.reference(obj):
            return obj.__qualname__
        if by_reference(obj) is not None:
            return NotImplemented
        parameters = obj.cache_parameters()
        return rebuild.make_cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
    if kind.__name__ == "cached_property":
        return rebuild.make_cached_property, (obj.func, obj.attrname)
    return NotImplemented


def _reduce_typing(pickler: Pickler, obj: Any, kind: type) -> Any:
    name = kind.__name__
    if name not in ("TypeVar", "ParamSpec", "TypeVarTuple", "TypeAliasType") or obj.__module__ not in MAIN_NAMES:
        return NotImplemented
    if pickler.reference(obj):
        return obj.__name__
    if name == "TypeVar":
        return cloud()._typevar_reduce(obj)
    if name == "TypeAliasType":
        return rebuild.make_alias, (obj.__name__, obj.__value__, obj.__type_params__)
    return kind, (obj.__name__,)


def _reduce_module(pickler: Pickler, module: ModuleType) -> Any:
    if module is sys.modules["__main__"]:
        return rebuild.use_main, ()
    name = module.__name__
    if sys.modules.get(name) is module and is_importable(name) and not registered_by_value(name):
        return rebuild.use_module, (name,)
    content = {key: value for key, value in vars(module).items() if key not in ("__builtins__", "__loader__", "__spec__")}
    return rebuild.make_module, (name,), content, None, None, rebuild.fill_module


def _reduce_method(pickler: Pickler, method: MethodType) -> Any:
    found = getattr(method.__self__, method.__func__.__name__, None)
    if getattr(found, "__func__", None) is method.__func__:
        return NotImplemented
    return MethodType, (method.__func__, method.__self__)  # private or renamed: pickle would not find it again


def _reduce_cell(pickler: Pickler, cell: CellType) -> Any:
    if id(cell) in pickler._cells:
        return rebuild.make_cell, ()  # the function that owns it fills it
    try:
        return rebuild.make_cell, (), (cell.cell_contents,), None, None, rebuild.fill_cell
    except ValueError:
        return rebuild.make_cell, ()


def _reduce_code(pickler: Pickler, code: CodeType) -> Any:
    blob = code_facts(code).blob
    return (marshal.loads, (blob,)) if isinstance(blob, bytes) else pickler._table[CodeType](code)


_SPECIAL: dict[type, Callable[[Pickler, Any], Any]] = {
    ModuleType: _reduce_module,
    MethodType: _reduce_method,
    CellType: _reduce_cell,
    CodeType: _reduce_code,
}
_NO_IDENTITY = ATOMIC | {tuple, frozenset, ModuleType, type(...), type(NotImplemented)}
_CONTAINERS = frozenset({list, tuple, set, frozenset})
_SINGLETON_TYPES = (type(None), type(...), type(NotImplemented))
_HEAP_TYPE = 1 << 9
_REMADE = {
    ("_thread", "lock"): rebuild.make_lock,
    ("_thread", "RLock"): rebuild.make_rlock,
    ("_thread", "_local"): rebuild.make_local,
}
"""What belongs to one process: as a global of `__main__` each process has its own."""


def is_dispatch(function: Any) -> bool:
    """Whether `function` is what `functools.singledispatch` returns."""
    functools = sys.modules.get("functools")
    return function.__globals__ is getattr(functools, "__dict__", None) and hasattr(function, "registry")


def captured_globals(function: FunctionType, facts: CodeFacts) -> dict[str, Any]:
    """The globals that a function refers to, of a module that is not `__main__`."""
    scope = function.__globals__
    return {
        name: scope[name] for name in facts.reads + facts.writes if name in scope and name not in MODULE_FACTS
    }


def captured_packages(function: FunctionType, facts: CodeFacts) -> list[ModuleType]:
    """The packages among the modules that a function refers to directly."""
    found = [function.__globals__.get(name) for name in facts.reads]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    return [module for module in found if isinstance(module, ModuleType) and hasattr(module, "__path__")]


def submodules(function: FunctionType, facts: CodeFacts) -> tuple[str, ...]:
    """The imported submodules that a function may reach as attributes of a package, as in `xml.etree.ElementTree`."""
    found = []
    for package in captured_packages(function, facts):
        prefix = package.__name__ + "."
        for name in list(sys.modules):
            if name.startswith(prefix) and facts.attributes.issuperset(name[len(prefix) :].split(".")):
                found.append(name)
    return tuple(found)
