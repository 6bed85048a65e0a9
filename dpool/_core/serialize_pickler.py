"""How one object becomes bytes: by reference where the other side can import it, by value where it cannot.

```
                       ┌ importable ─────────────► its module and name (standard pickle)
 function, class, … ───┼ reachable in __main__ ──► `__main__.name`, and the name is noted: a Definition must travel
                       └ neither ────────────────► by value: functions here, classes with cloudpickle's reducers
```

`Pickler` serves arguments and results. `CapturePickler` serves what a function captures: there an object that is also
the value of a global of `__main__` is pickled as that global, so that `x is SENTINEL` stays true in the worker.
"""

from __future__ import annotations

import io
import pickle
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

from dpool._core import serialize_rebuild as rebuild
from dpool._core.serialize_names import (
    MAIN_NAMES,
    MISSING,
    CodeFacts,
    by_reference,
    captured_globals,
    code_facts,
    contents_of,
    is_dispatch,
    main_path,
    plain,
    submodules,
    walk,
)
from dpool._core.serialize_reducers import BY_TYPE, REMADE, Root, cloud, reduce_named, registered
from dpool._store.serde import reducer_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._store.serde import Parts

PROTOCOL = 5
_FOR_THE_STORE = frozenset(("numpy", "pyarrow.lib", "torch", "torch.nn.parameter"))
"""Modules of the types that the store has its own way with."""
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not a static type of the interpreter or an extension


def _may_be() -> None:
    """ObjectRefs and Futures travel as what they are."""


class Pickler(pickle.Pickler):
    """One pickle. Afterwards `loads` holds what it needs of `__main__` to load, `uses` what its code needs to run.

    Args:
        known: in a worker that answers, the objects of `__main__` which the submitter sent it (those alone go back by
            reference); None where everything in `__main__` does.
        home: the pickle goes from a worker back to the process where its `__main__` comes from.
        whole: with `home`, spell out also the classes that came from there.
        parts: takes the pickle, and large buffers out of band; without it, `dumps` gives all of it as bytes.
    """

    def __init__(
        self,
        known: dict[str, Any] | None = None,
        home: bool = False,
        whole: bool = False,
        parts: Parts | None = None,
    ) -> None:
        if parts is None:
            self.target = io.BytesIO()
            super().__init__(self.target, PROTOCOL)
        else:
            super().__init__(parts, PROTOCOL, buffer_callback=parts.buffer)
        self.parts = parts
        self.keep: list[Any] = []
        """Handles of objects in the store that the pickle refers to: they must live as long as it."""
        self.wanted: list[Any] = []
        """Of these, the ones whose values are loaded with the pickle."""
        self.stands_in: Callable[[], None] = _may_be
        """Called when an ObjectRef or a Future is met; what it raises ends the pickling."""
        self.reducers = self.dispatch_table = registered()
        self.known = known
        self.home = home
        self.whole = whole
        self.definition = ""
        """The global of `__main__` whose value is pickled, …"""
        self.root: Any = MISSING
        """… and that value, which goes by value though it can be reached in `__main__`."""
        self.loads: dict[str, Any] = {}
        """Names of `__main__` that must exist when the pickle is loaded, with their values here."""
        self.uses: dict[str, None] = {}
        """Names of `__main__` that functions in the pickle refer to when they run."""
        self.writes: set[str] = set()
        """Those of them that functions assign."""
        self.owned_cells: set[int] = set()
        """Ids of the closure cells of functions in the pickle."""
        self._spaces: dict[int, dict[str, Any]] = {}

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            return self._reduce_function(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        special = BY_TYPE.get(kind)
        if special is not None and kind not in self.reducers:
            return special(self, obj)
        if self.parts is not None and (kind is memoryview or kind.__module__ in _FOR_THE_STORE):
            reducer = reducer_for(kind)
            if reducer is not None and (kind is memoryview or kind not in self.reducers):
                return reducer(obj, self.parts)
        if obj is self.root or kind.__module__ in MAIN_NAMES:
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

    def need(self, name: str) -> None:
        """The pickle refers to something that loads only where this name of `__main__` exists."""
        self.loads.setdefault(name, rebuild.main_dict().get(name, MISSING))

    # ---- functions

    def _reduce_function(self, function: FunctionType) -> Any:
        if self.reference(function) or by_reference(function) is not None:
            return NotImplemented
        if is_dispatch(function):
            return self._reduce_dispatch(function)
        facts = code_facts(function.__code__)
        space, captured = self._surroundings(function, facts)
        cells = function.__closure__
        self.owned_cells.update(map(id, cells or ()))
        filled = [(cell, there) for cell in cells or () if (there := contents_of(cell)) is not MISSING]
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
            self.uses.update(dict.fromkeys(facts.reads + facts.writes))
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
        if type(cls) is not type and type(cls) in self.reducers:
            return NotImplemented  # the metaclass has a registered reducer
        if cls is type(None) or cls is type(...) or cls is type(NotImplemented):
            return NotImplemented  # pickle knows these three
        if self.reference(cls) or by_reference(cls) is not None:
            return NotImplemented
        if not cls.__flags__ & _HEAP_TYPE:
            name = next((name for name, value in vars(sys.modules["types"]).items() if value is cls), None)
            return NotImplemented if name is None else (rebuild.resolve, ("types", name))
        tracker = rebuild.received_classes.get(cls)
        if self.home and not self.whole and tracker is not None:
            return rebuild.known_class, (tracker, dumps(cls, Pickler(self.known, home=True, whole=True)))
        return self._class_by_value(cls)

    def _class_by_value(self, cls: type) -> Any:
        cloudpickle = cloud()
        make, args, (attributes, slots), *_, fill = cloudpickle._dynamic_class_reduce(cls)
        attributes.pop("__slotnames__", None)  # copyreg's cache, written by pickling an instance
        if not attributes.get("__annotations__", True):
            del attributes["__annotations__"]  # made by merely looking at it
        if cls.__dict__.get("__slots__") and make is cloudpickle._make_skeleton_class:
            args[3]["__slots__"] = cls.__dict__[
                "__slots__"
            ]  # set afterwards, it would only be a name: instances had a __dict__
        tracker = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS[cls]
        name = self.definition if cls is self.root else ""
        state = ((attributes, slots), fill, tracker)
        return rebuild.begin_class, (name, make, *args), state, None, None, rebuild.fill_class

    # ---- other objects

    def _reduce_main_value(self, obj: Any, kind: type) -> Any:
        """The value of a global of `__main__`, or an instance of one of its classes."""
        reduced = self._reduce_other(obj, kind)
        if reduced is NotImplemented:
            reduced = self._reduce_as_pickle_does(obj, kind)
        if isinstance(reduced, str):  # the name of a global, says the object
            module = sys.modules["__main__"]
            if kind.__module__ not in MAIN_NAMES or (walk(module, reduced) is obj and self._note(reduced)):
                return reduced
            reduced = (rebuild.make_plain, (kind,), dict(getattr(obj, "__dict__", {})), None, None, rebuild.fill_plain)
        if obj is self.root and self.definition:
            return (rebuild.begin, (self.definition, reduced[0], *reduced[1]), *reduced[2:])
        return reduced

    def _reduce_as_pickle_does(self, obj: Any, kind: type) -> Any:
        try:
            reducer = self.reducers[kind]
        except KeyError:
            return obj.__reduce_ex__(PROTOCOL)
        return reducer(obj)

    def _reduce_other(self, obj: Any, kind: type) -> Any:
        if kind in self.reducers:
            return NotImplemented
        if kind.__module__ in ("functools", "typing"):
            return reduce_named(self, obj, kind)
        return NotImplemented


class CapturePickler(Pickler):
    """Pickles what functions and definitions capture: objects that globals of `__main__` name keep their identity.

    Args:
        index: see `value_index`.
    """

    def __init__(self, index: dict[int, str]) -> None:
        super().__init__()
        self.index = index

    def define(self, name: str, value: Any) -> bytes:
        """The pickle of `value` as the value of the global `name`."""
        path = main_path(value)
        if self.index.get(id(value), name) == name and (path is None or path == name):
            if plain(value, depth=0):
                return pickle.dumps(value, PROTOCOL)
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
        for name in ("stdout", "stderr"):
            if obj is getattr(sys, name):
                return getattr, (sys, name)
        remake = REMADE.get((kind.__module__, kind.__name__))
        return (remake, ()) if remake is not None else super()._reduce_other(obj, kind)


def dump(obj: Any, pickler: Pickler) -> None:
    """Pickle `obj` by a fresh `pickler`.

    Raises:
        PicklingError: also for a structure nested too deeply; and whatever the object's own reducers raise.
    """
    try:
        pickler.dump(obj)
    except RecursionError as error:
        raise pickle.PicklingError(f"{type(obj).__name__} object is nested too deeply to be pickled") from error


def dumps(obj: Any, pickler: Pickler) -> bytes:
    """The pickle of `obj` by a fresh `pickler` that has no parts; raises like `dump`."""
    dump(obj, pickler)
    return pickler.target.getvalue()
