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

**Never a stale capture**: each `prepare` verifies that whatever the function captures is what it was; see
`serialize_watch`. What changed gets a new number; numbers only grow, and are never used twice in one process.

Threads: `prepare` may be called from any; a lock protects everything but the check of a known function. A `Shipped`
belongs to whoever writes to that worker.

Order matters: the items that `Shipped.missing` returns belong after all tasks written to that worker so far, and before
the task that they were asked for: when a name changes, earlier tasks still need its earlier version. Likewise a worker
forgets functions after the tasks that use them.
"""

from __future__ import annotations

import pickle
import sys
from threading import RLock
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any
from weakref import ref

from dpool._core.arguments import FutureInside, by_value, futures_in
from dpool._core.config import INLINE_LIMIT
from dpool._core.mainspace import Importer, install_main
from dpool._core.serialize_globals import Definition, Globals, Needs, named, numbers
from dpool._core.serialize_names import ATOMIC, by_reference, main_path, plain, registered_by_value, value_index
from dpool._core.serialize_pickler import PROTOCOL, CapturePickler, Pickler, dump, dumps
from dpool._core.serialize_results import (
    dump_exception,
    dump_result,
    home_pickler,
    load_exception,
    load_result,
    pickle_result,
)
from dpool._core.serialize_watch import Plan, Watcher, steps
from dpool._core.storage import Stored, pack
from dpool._store.serde import Parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dpool._core.objectref import ObjectRef

    Args = Any
    """A tuple; of a chunk any collection of items, which is pickled as it is."""
    Kwargs = Any
    """A dictionary; of a chunk MAP or STARMAP (see frames.py)."""

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
    "pickle_result",
]

RAW_LIMIT = 1024
"""A str or bytes argument or result up to this length travels as it is."""

NAMELESS_LIMIT = 1024
"""So many lambdas and closures are known at a time."""

VARIANTS_LIMIT = 256
"""So many exports are kept that differ only in what their arguments need."""

_PLAIN_LIMIT = 1000
_LONG = 64 * 1024
_DATA = frozenset(("builtins", "numpy", "pandas", "pyarrow", "scipy", "torch"))
"""Packages whose large objects are stored once where they are shared: nothing of theirs refers to `__main__`."""
_SMALL = ATOMIC - {str, bytes}
_SIZED = (str, bytes)
_IMPORTED, _PICKLED = True, False


def _no_function() -> None:
    return None


class Export:
    """One version of one submitted function, with the definitions it needs.

    An `inline` one has no blob: each task brings its function along. Tasks hold their Export until they are done; when
    the last reference to it goes, its number is noted as dead.
    """

    __slots__ = ("_owner", "blob", "function", "inline", "keep", "label", "number", "requires")

    def __init__(
        self,
        blob: bytes,
        requires: tuple[Definition, ...],
        label: str,
        inline: bool = False,
        owner: Exporter | None = None,
    ) -> None:
        self.number = next(numbers)
        self.blob = blob
        self.requires = requires
        self.label = label
        self.inline = inline
        self._owner = owner
        self.function: Callable[[], Any] = _no_function
        """The function itself, while it lives; None: not known."""
        self.keep: list[Any] = []
        """What the function refers to in the object store."""

    def __del__(self) -> None:
        owner = getattr(self, "_owner", None)  # a signal handler may have cut its making short
        if owner is not None:
            owner.dead.append(self.number)

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
            if have == one.number:
                continue
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
        gone = set(numbers)
        self.ready -= gone
        self._functions -= gone


class _Entry:
    """What is known about one submitted function object."""

    __slots__ = (
        "alive",
        "content",
        "export",
        "fickle",
        "how",
        "key",
        "names",
        "own",
        "plan",
        "registered",
        "space",
        "variants",
    )

    def __init__(self) -> None:
        self.alive: Any = None
        """A weak reference whose end removes the entry."""
        self.export: Any = None
        """None: it was sent inline, …"""
        self.fickle = False
        """… and always will be: each call gets its own copy of what it captured, as it could change it."""
        self.space: dict[str, Any] | None = None
        self.key = ""
        """The function must be `space[key]`, if there is a space."""
        self.plan: Plan | None = None
        """What else must hold; None for what travels by reference."""
        self.own: tuple[Any, ...] | None = None
        """Of a nameless function: code, defaults, keyword defaults and number of attributes."""
        self.registered = False
        """It travels by value because its module is registered for that."""
        self.names: frozenset[str] = frozenset()
        """The globals that were looked at for it."""
        self.content: Any = None
        """What the export's blob is made of, …"""
        self.how: Any = None
        """… and how; None: as its type says."""
        self.variants: dict[frozenset[str], tuple[Export, Plan]] = {}
        """Exports with what certain arguments need besides, by the names of that."""


class Exporter:
    """Turns submitted calls into exports and payloads. One per submitter; workers have one too."""

    def __init__(self) -> None:
        self.dead: list[int] = []
        """Numbers of exports that nobody holds any more; the runtime takes them, and has the workers forget them."""
        self._entries: dict[int, _Entry] = {}
        self._nameless: dict[int, None] = {}
        self._inline: dict[frozenset[int], Export] = {}
        self._globals = Globals(stored_global)
        self._lock = RLock()

    def prepare(self, fn: Callable[..., Any], args: Args, kwargs: Kwargs) -> tuple[Export, Args | bytes | Stored]:
        """What to send for the call `fn(*args, **kwargs)`, or for the calls of a chunk.

        Returns:
            The export and the payload: `args` itself if there are no keywords and only small atomic arguments, else
            the pickle of `(args, kwargs)`; for an inline export something for `Importer.load_inline`. What is larger
            than a message lies in the object store, and the payload says where.

        Raises:
            FutureInside: an argument is a Future: the task must wait for it.
            ObjectStoreFull: there is no room for a large argument.
            PicklingError, TypeError, …: whatever pickling the function, what it captures, or the arguments raised.
        """
        entry = self._entries.get(id(fn))
        if entry is None or not _is_current(entry, fn):
            return self._prepare_anew(fn, args, kwargs)
        if kwargs:
            return self._with_payload(entry, args, kwargs)
        for arg in args:
            kind = type(arg)
            if kind not in _SMALL and (kind not in _SIZED or len(arg) > RAW_LIMIT):
                return self._with_payload(entry, args, kwargs)
        return entry.export, args

    def method(self, label: str, name: str, how: int) -> _Entry:
        """What `prepare_method` wants to know: a method of an actor (METHOD), or one of its attributes (ATTRIBUTE)."""
        entry = _Entry()
        entry.how = how
        entry.content = name
        entry.export = self._export(how, name, (), f"{label}.{name}")
        return entry

    def prepare_method(self, entry: _Entry, args: Args, kwargs: Kwargs) -> tuple[Export, Args | bytes | Stored]:
        """`prepare` for a call of an actor's method."""
        if kwargs or not _travels_raw(args):
            return self._with_payload(entry, args, kwargs)
        return entry.export, args

    # ---- first sight of a function, or something has changed

    def _prepare_anew(self, fn: Any, args: Args, kwargs: Kwargs) -> tuple[Export, Args | bytes | Stored]:
        with self._lock:
            if self._globals.meet_main():
                self._entries.clear()
                self._nameless.clear()
            entry = self._enter(fn)
            for outdated in self._globals.outdated:
                self._entries.pop(id(outdated), None)
            self._globals.outdated.clear()
            if entry is None:
                return self._inline_call(fn, args, kwargs)
            if kwargs or not _travels_raw(args):
                return self._with_payload(entry, args, kwargs)
            return entry.export, args

    def _enter(self, fn: Any) -> _Entry | None:
        """The up-to-date entry of a function, or None if this call must carry the function inline."""
        kind = type(fn)
        if kind is BuiltinFunctionType:
            if not isinstance(fn.__self__, ModuleType | None):
                return None  # a method
        elif kind is not FunctionType and not issubclass(kind, type) and kind.__name__ != "_lru_cache_wrapper":
            return None
        found = by_reference(fn)
        if found is not None:
            return self._by_reference(fn, *found)
        old = self._entries.get(id(fn))
        path = main_path(fn)
        if path is not None:
            return self._of_main(fn, path, old)
        if kind is not FunctionType:
            return None
        if old is None:
            self._remember_nameless(fn, _Entry())
            return None
        return None if old.fickle else self._nameless_function(fn, old)

    def _remember(self, fn: Any, entry: _Entry) -> _Entry:
        key = id(fn)
        entries, nameless = self._entries, self._nameless

        def gone(_: Any) -> None:
            entries.pop(key, None)
            nameless.pop(key, None)

        entry.alive = ref(fn, gone)
        if entry.export is not None:
            entry.export.function = entry.alive
        entries[key] = entry
        return entry

    def _remember_nameless(self, fn: FunctionType, entry: _Entry) -> _Entry:
        self._remember(fn, entry)
        nameless = self._nameless
        nameless[id(fn)] = None
        if len(nameless) > NAMELESS_LIMIT:
            oldest = next(iter(nameless))
            del nameless[oldest]
            self._entries.pop(oldest, None)
        return entry

    def _by_reference(self, fn: Any, space: dict[str, Any], module: str, qualname: str) -> _Entry:
        entry = _Entry()
        if "." in qualname:
            entry.plan = Plan()
            entry.plan.lookups += steps(space, qualname)
        else:
            entry.space, entry.key = space, qualname
        entry.content = (module, qualname)
        entry.export = self._export(_IMPORTED, entry.content, (), label_of(fn))
        return self._remember(fn, entry)

    def _of_main(self, fn: Any, path: str, old: _Entry | None) -> _Entry:
        entry, label = _Entry(), label_of(fn)
        needs = self._globals.needs((path.partition(".")[0],), label)
        if "." not in path:
            entry.space, entry.key = self._globals.main, path
        entry.plan, entry.names = needs.plan, needs.names
        entry.content = dumps(fn, Pickler())
        entry.export = self._same_or_new(old, entry.content, needs.requires, label)
        return self._remember(fn, entry)

    def _nameless_function(self, fn: FunctionType, old: _Entry) -> _Entry | None:
        entry, label = _Entry(), label_of(fn)
        entry.own = (fn.__code__, fn.__defaults__, fn.__kwdefaults__, len(fn.__dict__))
        entry.registered = registered_by_value(fn.__module__ or "")
        entry.content, names, watcher, keep = self._capture(fn, label)
        entry.plan = watcher.plan
        if watcher.rebinds or watcher.plan.pickles or not watcher.steady:
            old.fickle = True
            return None
        needs = self._globals.needs(names, label)
        entry.plan.extend(needs.plan)
        entry.names = needs.names
        entry.export = self._same_or_new(old, entry.content, needs.requires, label)
        entry.export.keep = keep
        return self._remember_nameless(fn, entry)

    def _same_or_new(self, old: _Entry | None, content: bytes, requires: tuple[Definition, ...], label: str) -> Export:
        if old is not None and old.export is not None and old.content == content and old.export.requires == requires:
            same: Export = old.export
            return same
        return self._export(_PICKLED, content, requires, label)

    def _export(self, how: int, content: Any, requires: tuple[Definition, ...], label: str) -> Export:
        blob = pickle.dumps((tuple(one.number for one in requires), how, content), PROTOCOL)
        return Export(blob, requires, label, owner=self)

    def _capture(self, fn: FunctionType, label: str) -> tuple[bytes, list[str], Watcher, list[Any]]:
        """A nameless function by value: its pickle, the globals it needs, what was watched besides itself, and what it
        refers to in the object store.
        """
        index = value_index(self._globals.main)
        pickler = CapturePickler(index)
        try:
            blob = dumps(fn, pickler)
        except Exception as error:
            raise named(error, f"the function {label!r}") from error.__cause__
        self._globals.note_writes(pickler.writes)
        watcher = Watcher(index)
        watcher.watch_function(fn, itself=False)
        watcher.plan.lookups += [(self._globals.main, name, value) for name, value in pickler.loads.items()]
        return blob, [*pickler.loads, *pickler.uses], watcher, pickler.keep

    # ---- arguments

    def _with_payload(self, entry: _Entry, args: Args, kwargs: Kwargs) -> tuple[Export, bytes | Stored]:
        export: Export = entry.export
        try:
            if (
                type(kwargs) is not int
                and _all_plain(args)
                and (not kwargs or _all_plain(kwargs.values()))
                and not _any_long(args, kwargs)
            ):
                data = pickle.dumps((args, kwargs), PROTOCOL)
                if len(data) <= INLINE_LIMIT:
                    return export, data
            parts, pickler = _dump_call((), args, kwargs)
        except FutureInside:
            raise
        except Exception as error:
            raise named(error, f"the arguments of {export.label!r}") from error.__cause__
        payload = pack(parts, pickler.keep)
        if pickler.wanted and type(payload) is Stored:
            payload.wanted = tuple(pickler.wanted)
        names = pickler.loads.keys() | pickler.uses.keys()
        if not entry.names.issuperset(names):
            with self._lock:
                export = self._variant(entry, frozenset(names))
        return export, payload

    def _variant(self, entry: _Entry, names: frozenset[str]) -> Export:
        """The entry's export with the definitions that the arguments need besides."""
        known = entry.variants.get(names)
        if known is not None and known[1].holds():
            return known[0]
        base: Export = entry.export
        needs = self._globals.needs((*entry.names, *names), base.label)
        if known is not None and known[0].requires == needs.requires:
            export = known[0]
        else:
            how = entry.how
            if how is None:
                how = _PICKLED if isinstance(entry.content, bytes) else _IMPORTED
            export = self._export(how, entry.content, needs.requires, base.label)
            export.function = base.function
        if len(entry.variants) >= VARIANTS_LIMIT:
            entry.variants.clear()
        entry.variants[names] = (export, needs.plan)
        return export

    def _inline_call(self, fn: Any, args: Args, kwargs: Kwargs) -> tuple[Export, bytes | Stored]:
        label = label_of(fn)
        function: bytes | None = None
        names: list[str] = []
        keep: list[Any] = []
        called: tuple[Any, ...] = (fn,)
        if type(fn) is FunctionType:
            function, names, _, keep = self._capture(fn, label)
            called = ()
        try:
            parts, pickler = _dump_call(called, args, kwargs)
        except FutureInside:
            raise
        except Exception as error:
            raise named(error, f"the call of {label!r}") from error.__cause__
        payload = pack(parts, pickler.keep)
        needs = self._globals.needs((*names, *pickler.loads, *pickler.uses), label)
        export = self._inline_export(needs)
        requires = tuple(one.number for one in needs.requires)
        if isinstance(payload, Stored):
            payload.wanted = tuple(pickler.wanted)
            if type(payload.wire) is list:
                payload.wanted += payload.keep
            payload.keep += tuple(keep)
            payload.wire = pickle.dumps((requires, function, payload.wire), PROTOCOL)
            return export, payload
        data = pickle.dumps((requires, function, payload), PROTOCOL)
        return export, Stored(data, tuple(keep)) if keep else data

    def _inline_export(self, needs: Needs) -> Export:
        key = frozenset(one.number for one in needs.requires)
        export = self._inline.get(key)
        if export is None:
            if len(self._inline) >= VARIANTS_LIMIT:
                self._inline.clear()
            export = self._inline[key] = Export(b"", needs.requires, "", inline=True)
        return export


def _is_current(entry: _Entry, fn: Any) -> bool:
    """Whether the entry still says the truth about `fn`."""
    if entry.export is None or (entry.space is not None and entry.space.get(entry.key) is not fn):
        return False
    plan = entry.plan
    if plan is None:
        cloudpickle = sys.modules.get("cloudpickle")
        if cloudpickle is None or not cloudpickle.list_registry_pickle_by_value():
            return True
        return not registered_by_value(fn.__module__)
    own = entry.own
    if own is not None and (
        fn.__code__ is not own[0]
        or fn.__defaults__ is not own[1]
        or fn.__kwdefaults__ is not own[2]
        or len(fn.__dict__) != own[3]
        or (entry.registered and not registered_by_value(fn.__module__))
    ):
        return False
    return plan.holds()


class _StandsIn(Exception):
    """There is an ObjectRef or a Future somewhere in a chunk."""


def _stop() -> None:
    raise _StandsIn


def _dump(content: Any, may_stand_in: bool = True) -> tuple[Parts, Pickler]:
    parts = Parts()
    pickler = Pickler(parts=parts)
    if not may_stand_in:
        pickler.stands_in = _stop
    try:
        dump(content, pickler)
    except BaseException:
        parts.release()
        raise
    return parts, pickler


def _dump_call(called: tuple[Any, ...], args: Args, kwargs: Kwargs) -> tuple[Parts, Pickler]:
    """The pickle of a call, or of a chunk: its items are looked at only if there are references or futures in it."""
    if type(kwargs) is int:
        try:
            return _dump((*called, args, kwargs), may_stand_in=False)
        except _StandsIn:
            pass
        except Exception:
            if futures_in(args, kwargs):  # others than dpool's do not pickle
                raise FutureInside from None
            raise
    return _dump((*called, *by_value(args, kwargs)))


def _travels_raw(args: Args) -> bool:
    """Whether every argument is small and atomic."""
    return all(type(arg) in _SMALL or (type(arg) in _SIZED and len(arg) <= RAW_LIMIT) for arg in args)


def _all_plain(values: Iterable[Any]) -> bool:
    return all(plain(value, _PLAIN_LIMIT) for value in values)


def _any_long(args: Args, kwargs: Kwargs) -> bool:
    """Whether an argument is a long str or bytes, which must not be copied more often than necessary."""
    return any(type(value) in _SIZED and len(value) > _LONG for value in (*args, *kwargs.values()))


def store_value(value: Any) -> ObjectRef:
    """`dpool.put`."""
    from dpool._core.objectref import ObjectRef

    parts = Parts()
    pickler = home_pickler(parts)
    dump(value, pickler)
    packed = pack(parts, pickler.keep)
    needs = tuple({**pickler.loads, **pickler.uses})
    if type(packed) is bytes:
        return ObjectRef(None, packed, (), needs)
    assert isinstance(packed, Stored)
    if type(packed.wire) is bytes:
        return ObjectRef(None, packed.wire, packed.keep, needs)
    return ObjectRef(packed.keep[0], None, (), needs)


def stored_global(value: Any) -> tuple[bytes, tuple[Any, ...]] | None:
    """A large array, table, … that functions refer to as a global: stored once, and each worker maps it."""
    if type(value) in ATOMIC or size_of(value) <= INLINE_LIMIT:
        return None
    from dpool._core.objectref import ByValue

    try:
        ref = store_value(value)
    except Exception:  # the usual way will say what is wrong with it
        return None
    if ref._needs:
        return None  # the usual way sees to it that what its objects need travels first
    return dumps(ByValue(ref), Pickler()), (ref,)


def size_of(value: Any) -> int:
    """Bytes that a value of data is known to have without looking inside; 0 if it does not say."""
    if isinstance(value, (bytes, bytearray, str)):
        return len(value)
    if type(value).__module__.partition(".")[0] not in _DATA:
        return 0
    for name in ("nbytes", "size"):  # arrays, tensors, Arrow; DataFrames
        found = getattr(value, name, None)
        if isinstance(found, int):
            return found if name == "nbytes" else 8 * found
    data = getattr(value, "data", None)  # sparse matrices
    found = getattr(data, "nbytes", 0)
    return found if isinstance(found, int) else 0


def label_of(fn: Any) -> str:
    """A task's name: the function's qualified name, or its type's."""
    name = getattr(fn, "__qualname__", None)
    if isinstance(name, str):
        return name
    inner = getattr(fn, "func", None)
    kind = type(fn).__qualname__
    return kind if inner is None else f"{kind}({label_of(inner)})"
