"""How functions, arguments, results and exceptions cross process boundaries.

```
 submitter                                                                              worker
 prepare(fn, args, kwargs) ─► Export ──► Shipped.missing ─► (number, name, blob) ─────► Importer.install
             │                  └ requires: Definitions, the globals of __main__
             └► args as they are, or their pickle ────────────────────────────────────► Importer.load_call
 load_result, load_exception ◄───────────────────────────────────────────────────────── dump_result, dump_exception
```

A function that can be imported travels as its name. Everything of the submitter's `__main__` travels as *definitions*:
one per global name and version, assigned to the worker's `__main__`. So all functions of `__main__` share one namespace
there, and what a task or an initializer writes into it stays until the submitter's own value changes.

**Never a stale capture**: each `prepare` verifies that whatever the function captures is what it was (`serialize_watch`).
What changed gets a new number; numbers only grow, and are never used twice in one process.

Threads: `prepare` may be called from any; a lock protects everything but the check of a known function. A `Shipped` belongs to
whoever writes to that worker.

Order matters: the items that `Shipped.missing` returns belong after all tasks written to that worker so far, and before the
task that they were asked for: when a name changes, earlier tasks still need its earlier version.
"""

from __future__ import annotations

import pickle
import sys
from itertools import count
from threading import RLock
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any
from weakref import ref

from dpool._core import serialize_rebuild as rebuild
from dpool._core.mainspace import Importer, install_main
from dpool._core.serialize_pickler import (
    ATOMIC,
    MISSING,
    MODULE_FACTS,
    PROTOCOL,
    CapturePickler,
    Pickler,
    by_reference,
    dumps,
    main_path,
    plain,
    registered_by_value,
    value_index,
)
from dpool._core.serialize_results import dump_exception, dump_result, load_exception, load_result
from dpool._core.serialize_watch import Plan, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "ATOMIC",
    "Definition",
    "Export",
    "Exporter",
    "Importer",
    "Shipped",
    "dump_exception",
    "dump_result",
    "install_main",
    "load_exception",
    "load_result",
]

RAW_LIMIT = 1024
"""A str or bytes argument up to this length travels as it is."""

_NAMELESS_LIMIT = 1024
_VARIANTS_LIMIT = 256

_SMALL = ATOMIC - {str, bytes}
_SIZED = (str, bytes)
_numbers = count(1)


class Definition:
    """One version of one global of the submitter's `__main__`; an empty blob says that it was deleted."""

    __slots__ = ("blob", "name", "number")

    def __init__(self, number: int, name: str, blob: bytes) -> None:
        self.number = number
        self.name = name
        self.blob = blob

    def __repr__(self) -> str:
        return f"Definition({self.number}, {self.name!r})"


class Export:
    """One version of one submitted function, with the definitions it needs.

    An `inline` one has no blob: each task brings its function along. Tasks hold their Export until they are done; when
    the last reference to it goes, its number is noted as dead.
    """

    __slots__ = ("_dead", "blob", "inline", "label", "number", "requires")

    def __init__(
        self, blob: bytes, requires: tuple[Definition, ...], label: str, inline: bool = False, dead: list[int] | None = None
    ) -> None:
        self.number = next(_numbers)
        self.blob = blob
        self.requires = requires
        self.label = label
        self.inline = inline
        self._dead = dead

    def __del__(self) -> None:
        if self._dead is not None:
            self._dead.append(self.number)

    def __repr__(self) -> str:
        return f"Export({self.number}, {self.label!r}, requires={[one.name for one in self.requires]})"


class Shipped:
    """What one worker has been sent; kept by its submitter."""

    __slots__ = ("_functions", "_names", "ready")

    def __init__(self) -> None:
        self.ready: set[int] = set()
        """Numbers of exports for which nothing is missing."""
        self._names: dict[str, int] = {}
        self._functions: set[int] = set()

    def missing(self, export: Export) -> list[tuple[int, str, bytes]]:
        """The items to write before a task of `export`, now taken as sent; afterwards its number is in `ready`."""
        items = []
        names = self._names
        for one in export.requires:
            have = names.get(one.name)
            if have != one.number:
                if have is not None:
                    self.ready.clear()  # others may need the version that is overwritten
                if have is not None or one.blob:
                    items.append((one.number, one.name, one.blob))
                names[one.name] = one.number
        if not export.inline and export.number not in self._functions:
            items.append((export.number, "", export.blob))
            self._functions.add(export.number)
        self.ready.add(export.number)
        return items

    def forget(self, numbers: Iterable[int]) -> None:
        """The worker is told to forget these functions."""
        self.ready.difference_update(numbers)
        self._functions.difference_update(numbers)


class _Node:
    """A global of `__main__` as it was last pickled."""

    __slots__ = ("definition", "exporter", "is_class", "loaded", "loads", "name", "names", "plan", "value")

    def __init__(self, exporter: Exporter, name: str) -> None:
        self.exporter = exporter
        self.name = name
        self.definition: Definition | None = None
        self.value: Any = None
        """Kept for functions and classes only."""
        self.plan = Plan()
        self.names: tuple[str, ...] = ()
        """Other globals that it refers to."""
        self.loads: tuple[str, ...] = ()
        """Those of them that it needs to be loaded: if one is replaced, this one must be loaded again."""
        self.loaded: dict[str, int] | None = None
        """The versions of those; None while the node is new."""
        self.is_class = False

    def unchanged(self) -> bool:
        """Whether pickling it again gives the same bytes."""
        pickler = CapturePickler(value_index(rebuild.main_dict()))
        value = rebuild.main_dict().get(self.name, MISSING)
        return self.definition is not None and pickler.define(self.name, value) == self.definition.blob


class _Entry:
    """What is known about one submitted function object."""

    __slots__ = ("alive", "content", "export", "key", "names", "own", "plan", "space", "variants")

    def __init__(self, alive: Any) -> None:
        self.alive = alive
        self.export: Any = None
        """None: seen once, not exported."""
        self.space: dict[str, Any] | None = None
        self.key = ""
        """The function must be `space[key]`."""
        self.plan: Plan | None = None
        """None: it travels by reference."""
        self.own: tuple[Any, ...] | None = None
        """Of a nameless function: code, defaults, keyword defaults and number of attributes."""
        self.names: frozenset[str] = frozenset()
        self.content: Any = None
        self.variants: dict[tuple[int, ...], Export] = {}


class Exporter:
    """Turns submitted calls into exports and payloads. One per submitter; workers have one too."""

    def __init__(self) -> None:
        self.dead: list[int] = []
        """Numbers of exports that nobody refers to any more; the runtime drains it and tells the workers to forget them."""
        self._entries: dict[int, _Entry] = {}
        self._nameless: dict[int, None] = {}
        self._nodes: dict[str, _Node] = {}
        self._stored: set[str] = set()
        self._inline: dict[tuple[int, ...], Export] = {}
        self._main: dict[str, Any] = {}
        self._lock = RLock()

    def prepare(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Export, tuple[Any, ...] | bytes]:
        """What to send for the call `fn(*args, **kwargs)`.

        Returns:
            The export and the payload: `args` itself if there are no keywords and only small atomic arguments, else
            the pickle of `(args, kwargs)`; for an inline export something for `Importer.load_inline`.

        Raises:
            PicklingError, TypeError, …: whatever pickling the function, what it captures, or the arguments raised.
        """
        entry = self._entries.get(id(fn))
        if entry is None or not self._current(entry, fn):
            return self._prepare_anew(fn, args, kwargs)
        if kwargs:
            return self._with_payload(entry, fn, args, kwargs)
        for arg in args:
            kind = type(arg)
            if kind not in _SMALL and (kind not in _SIZED or len(arg) > RAW_LIMIT):
                return self._with_payload(entry, fn, args, kwargs)
        return entry.export, args

    @staticmethod
    def _current(entry: _Entry, fn: Any) -> bool:
        """Whether the entry still says the truth about `fn`."""
        space = entry.space
        if space is not None and space.get(entry.key) is not fn:
            return False
        plan = entry.plan
        if plan is None:
            cloudpickle = sys.modules.get("cloudpickle")
            if cloudpickle is None or not cloudpickle.list_registry_pickle_by_value():
                return entry.export is not None
            return not registered_by_value(fn.__module__)
        own = entry.own
        if own is not None and (
            fn.__code__ is not own[0]
            or fn.__defaults__ is not own[1]
            or fn.__kwdefaults__ is not own[2]
            or len(fn.__dict__) != own[3]
        ):
            return False
        return plan.holds()

    # ---- the slow path: first sight of a function, or something has changed

    def _prepare_anew(
        self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Export, tuple[Any, ...] | bytes]:
        with self._lock:
            self._meet_main()
            entry = self._enter(fn)
            if entry is None:
                return self._inline_call(fn, args, kwargs)
            if not kwargs and _travels_raw(args):
                return entry.export, args
            return self._with_payload(entry, fn, args, kwargs)

    def _meet_main(self) -> None:
        main = rebuild.main_dict()
        if main is not self._main:  # another __main__: runpy, a test, or the worker's own
            self._main = main
            self._entries.clear()
            self._nodes.clear()

    def _enter(self, fn: Any) -> _Entry | None:
        """The up-to-date entry of a function, or None if this call must carry the function inline."""
        kind = type(fn)
        if kind is BuiltinFunctionType and type(fn.__self__) not in (type(sys), type(None)):
            return None
        if kind not in (FunctionType, BuiltinFunctionType) and not issubclass(kind, type):
            if kind.__name__ != "_lru_cache_wrapper":
                return None
        old = self._entries.get(id(fn))
        found = by_reference(fn)
        if found is not None:
            entry = self._by_reference(fn, *found)
        else:
            path = main_path(fn)
            if path is not None:
                entry = self._of_main(fn, path, old)
            elif kind is FunctionType and old is not None:
                entry = self._nameless_function(fn, old)
            else:
                if kind is FunctionType:
                    self._remember(fn, _Entry(None))
                return None
        return entry

    def _remember(self, fn: Any, entry: _Entry) -> _Entry:
        key = id(fn)
        entries, nameless = self._entries, self._nameless

        def gone(_: Any) -> None:
            entries.pop(key, None)
            nameless.pop(key, None)

        entry.alive = ref(fn, gone)
        if entry.export is None:
            entry.space = {}  # never current
            nameless[key] = None
            if len(nameless) > _NAMELESS_LIMIT:
                oldest = next(iter(nameless))
                del nameless[oldest]
                entries.pop(oldest, None)
        entries[key] = entry
        return entry

    def _by_reference(self, fn: Any, space: dict[str, Any], module: str, qualname: str) -> _Entry:
        entry = _Entry(None)
        if "." in qualname:
            top = qualname.partition(".")[0]
            entry.plan = Plan()
            entry.plan.lookups.append((space, top, space[top]))
        else:
            entry.space, entry.key = space, qualname
        entry.export = self._export(True, (module, qualname), (), label_of(fn))
        return self._remember(fn, entry)

    def _of_main(self, fn: Any, path: str, old: _Entry | None) -> _Entry:
        top = path.partition(".")[0]
        entry = _Entry(None)
        if path == top:
            entry.space, entry.key = self._main, top
        requires, entry.plan, entry.names = self._closure((top,), label_of(fn))
        entry.content = dumps(fn, Pickler())
        entry.export = self._same_or_new(old, entry.content, requires, label_of(fn))
        return self._remember(fn, entry)

    def _nameless_function(self, fn: FunctionType, old: _Entry) -> _Entry:
        entry = _Entry(None)
        blob, names, plan = self._capture(fn)
        requires, rest, entry.names = self._closure(names, label_of(fn))
        plan.extend(rest)
        entry.plan = plan
        entry.own = (fn.__code__, fn.__defaults__, fn.__kwdefaults__, len(fn.__dict__))
        entry.content = blob
        entry.export = self._same_or_new(old, blob, requires, label_of(fn))
        return self._remember(fn, entry)

    def _same_or_new(self, old: _Entry | None, content: bytes, requires: tuple[Definition, ...], label: str) -> Export:
        if old is not None and old.content == content:
            export: Export = old.export
            if export is not None and export.requires == requires:
                return export
        return self._export(False, content, requires, label)

    def _export(self, imported: bool, content: Any, requires: tuple[Definition, ...], label: str) -> Export:
        blob = pickle.dumps((tuple(one.number for one in requires), imported, content), PROTOCOL)
        return Export(blob, requires, label, dead=self.dead)

    def _capture(self, fn: FunctionType) -> tuple[bytes, list[str], Plan]:
        """A nameless function by value: its pickle, the globals it needs, and what to watch besides itself."""
        index = value_index(self._main)
        pickler = CapturePickler(index)
        try:
            blob = dumps(fn, pickler)
        except Exception as error:
            raise named(error, f"function {label_of(fn)!r}") from error.__cause__
        self._stored |= pickler.writes
        watcher = Watcher(index)
        watcher.watch_function(fn, itself=False)
        for name, value in pickler.loads.items():
            watcher.plan.lookups.append((self._main, name, value))
        if not watcher.steady:
            watcher.plan.volatile.append(_Recapture(self, fn, blob))
        return blob, [*pickler.loads, *pickler.uses], watcher.plan

    # ---- payloads

    def _with_payload(
        self, entry: _Entry, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Export, bytes]:
        payload, names = self._payload((args, kwargs), f"the arguments of {entry.export.label!r}")
        export: Export = entry.export
        if not entry.names.issuperset(names):
            with self._lock:
                export = self._variant(entry, names)
        return export, payload

    def _payload(self, content: Any, what: str) -> tuple[bytes, list[str]]:
        """The pickle of the arguments, and the globals of `__main__` that it needs."""
        try:
            if all(map(plain, content[-2])) and all(map(plain, content[-1].values())) and len(content) == 2:
                return pickle.dumps(content, PROTOCOL), []
            pickler = Pickler()
            return dumps(content, pickler), [*pickler.loads, *pickler.uses]
        except Exception as error:
            raise named(error, what) from error.__cause__

    def _variant(self, entry: _Entry, names: list[str]) -> Export:
        """The entry's export with the definitions that the arguments need besides."""
        export: Export = entry.export
        requires, _, _ = self._closure((*entry.names, *names), export.label)
        key = tuple(one.number for one in requires)
        variant = entry.variants.get(key)
        if variant is None:
            if len(entry.variants) >= _VARIANTS_LIMIT:
                entry.variants.clear()
            _, imported, content = pickle.loads(export.blob)
            variant = entry.variants[key] = self._export(imported, content, requires, export.label)
        return variant

    def _inline_call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Export, bytes]:
        label = label_of(fn)
        function, names = None, []
        if type(fn) is FunctionType:
            function, names, _ = self._capture(fn)
            payload, more = self._payload((args, kwargs), f"the arguments of {label!r}")
        else:
            payload, more = self._payload((fn, args, kwargs), f"the call of {label!r}")
        requires, _, _ = self._closure((*names, *more), label)
        key = tuple(one.number for one in requires)
        export = self._inline.get(key)
        if export is None:
            if len(self._inline) >= _VARIANTS_LIMIT:
                self._inline.clear()
            export = self._inline[key] = Export(b"", requires, "", inline=True)
        return export, pickle.dumps((key, function, payload), PROTOCOL)

    # ---- the globals of __main__

    def _closure(self, roots: Iterable[str], label: str) -> tuple[tuple[Definition, ...], Plan, frozenset[str]]:
        """All globals that are needed by way of `roots`: their definitions, what to watch, and their names."""
        plan = Plan()
        nodes: dict[str, _Node] = {}
        waiting, seen = list(roots), set(MODULE_FACTS)
        index: dict[int, str] = {}
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if not index:
                index = value_index(self._main)
            node = self._node(name, label, index)
            if node is None:
                plan.lookups.append((self._main, name, self._main.get(name, MISSING)))
                continue
            nodes[name] = node
            waiting += node.names
        self._renew_dependents(nodes)
        requires = []
        for node in nodes.values():
            plan.extend(node.plan)
            if node.definition is not None:
                requires.append(node.definition)
        requires.sort(key=lambda one: one.number)
        return tuple(requires), plan, frozenset(nodes)

    def _node(self, name: str, label: str, index: dict[int, str]) -> _Node | None:
        """The up-to-date node of a global; None if there is nothing to send for it."""
        old = self._nodes.get(name)
        if old is not None and old.plan.holds():
            return old
        value = self._main.get(name, MISSING)
        if value is MISSING and old is None:
            return None
        node = _Node(self, name)
        blob = b""
        if value is MISSING:
            node.plan.lookups.append((self._main, name, MISSING))
        else:
            try:
                blob = self._pickle_global(node, value, index)
            except Exception as error:
                if name in self._stored:  # a function assigns it: each process makes its own
                    return None
                raise named(error, f"global {name!r} of __main__, which {label!r} uses") from error.__cause__
        if old is not None and old.definition is not None and old.definition.blob == blob:
            node.definition, node.loaded = old.definition, old.loaded
        else:
            node.definition = Definition(next(_numbers), name, blob)
        if old is not None and old.value is not None and old.value is not value:
            self._entries.pop(id(old.value), None)
        self._nodes[name] = node
        return node

    def _pickle_global(self, node: _Node, value: Any, index: dict[int, str]) -> bytes:
        name, main = node.name, self._main
        pickler = CapturePickler(index)
        blob = pickler.define(name, value)
        self._stored |= pickler.writes
        node.loads = tuple(pickler.loads)
        node.names = (*pickler.loads, *pickler.uses)
        node.is_class = issubclass(type(value), type)
        watcher = Watcher(index, name)
        lookups = watcher.plan.lookups
        lookups += [(main, needed, there) for needed, there in pickler.loads.items()]
        if type(value) is FunctionType or node.is_class:
            node.value = value
            lookups.append((main, name, value))
            watcher.watch(value)
        elif watcher.is_fixed(value):
            lookups.append((main, name, value))
            watcher.watch(value)
        elif plain(value):
            watcher.plan.pickles.append((main, name, blob))
        else:
            watcher.watch_mutable(main, name)
        node.plan = watcher.plan
        if not watcher.steady:
            node.plan.volatile.append(node)
        return blob

    @staticmethod
    def _renew_dependents(nodes: dict[str, _Node]) -> None:
        """Give a new number to what was loaded with a value in it that has since been replaced."""
        fresh = {name for name, node in nodes.items() if node.loaded is None}
        stale: set[str] = set()
        grown = True
        while grown:
            grown = False
            for name, node in nodes.items():
                if node.loaded is None or name in stale:
                    continue
                for needed in node.loads:
                    other = nodes.get(needed)
                    if other is None or other.is_class or other.definition is None:
                        continue  # a class is updated where it is
                    if needed in fresh or needed in stale or node.loaded.get(needed) != other.definition.number:
                        stale.add(name)
                        grown = True
                        break
        for name in stale:
            old = nodes[name].definition
            if old is not None:
                nodes[name].definition = Definition(next(_numbers), name, old.blob)
        for node in nodes.values():
            node.loaded = {
                needed: other.definition.number
                for needed in node.loads
                if (other := nodes.get(needed)) is not None and other.definition is not None
            }


class _Recapture:
    """A nameless function that can only be checked by pickling it again."""

    __slots__ = ("alive", "blob", "exporter")

    def __init__(self, exporter: Exporter, fn: FunctionType, blob: bytes) -> None:
        self.exporter = exporter
        self.alive = ref(fn)
        self.blob = blob

    def unchanged(self) -> bool:
        fn = self.alive()
        return fn is not None and dumps(fn, CapturePickler(value_index(rebuild.main_dict()))) == self.blob


def _travels_raw(args: tuple[Any, ...]) -> bool:
    """Whether every argument is small and atomic."""
    return all(type(arg) in _SMALL or (type(arg) in _SIZED and len(arg) <= RAW_LIMIT) for arg in args)


def label_of(fn: Any) -> str:
    """A task's name: the function's qualified name, or its type's."""
    inner = getattr(fn, "func", None)
    if inner is not None and not hasattr(fn, "__qualname__"):
        return f"{type(fn).__name__}({label_of(inner)})"
    name = getattr(fn, "__qualname__", None) or getattr(type(fn), "__qualname__", "?")
    return str(name)


def named(error: Exception, what: str) -> Exception:
    """The same error, whose text says what could not be pickled."""
    if type(error).__module__ in ("builtins", "_pickle", "pickle") and len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]} (while pickling {what})",)
    elif sys.version_info >= (3, 11):
        error.add_note(f"while pickling {what}")
    return error
