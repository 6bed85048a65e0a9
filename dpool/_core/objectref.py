"""`ObjectRef`: a reference to a value that `dpool.put` stored.

```
 put(value) ─► ObjectRef ─┬ argument of its own ─► ByValue ─► the task gets the value
                          └ inside something ────► make_ref, StoreHold ─► ObjectRef in that process ─ get ─► the value
```

A small value lies in the reference itself and travels with it; a large one lies in the store, and the reference holds
it. A reference that is pickled into a task or a result is held by whoever gets it; one that somebody else pickles (to
a file, to another program) is held until this process ends, for nobody knows when it will be read.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from dpool._core import storage
from dpool._core.future import Future
from dpool._core.serialize_reducers import BY_TYPE
from dpool._core.storage import Place

if TYPE_CHECKING:
    from dpool._core.serialize_pickler import Pickler
    from dpool._core.store_client import Handle


class _Names:
    """Names for references that lie in no store."""

    def __init__(self) -> None:
        self._pid = 0
        self._prefix = b""
        self._count = itertools.count()

    def new(self) -> bytes:
        """One that no process has given before."""
        if self._pid != os.getpid():
            self._prefix, self._pid = os.urandom(12), os.getpid()
        return self._prefix + next(self._count).to_bytes(8, "big")


_names = _Names()


class _Kind(type):
    """So that programs can ask `isinstance(x, ObjectRef)` of whatever `get` takes."""

    def __instancecheck__(cls, instance: object) -> bool:
        return type.__instancecheck__(cls, instance) or isinstance(instance, Future)


class ObjectRef(metaclass=_Kind):
    """A reference to a stored value: immutable, shared by all who have it. Futures count as instances.

    As an argument of a task (itself, not inside a container) it arrives as its value; inside a container it arrives as
    a reference, for `dpool.get`. The value lives as long as anybody has a reference to it. Source: Ray's object ids.
    """

    __slots__ = ("__weakref__", "_data", "_handle", "_inner", "_name", "_needs")

    def __init__(
        self,
        handle: Handle | None,
        data: bytes | None,
        inner: tuple[Handle, ...],
        needs: tuple[str, ...],
        name: bytes = b"",
    ) -> None:
        self._handle = handle
        self._data = data
        self._inner = inner
        """Handles of what must live because the data refer to it."""
        self._needs = needs
        """Names of `__main__` that the value needs to load."""
        self._name = name or (_names.new() if handle is None else handle.obj)

    @property
    def size(self) -> int:
        """Bytes of the stored value."""
        if self._handle is not None:
            return int(self._handle.size)
        assert self._data is not None
        return len(self._data)

    def hex(self) -> str:
        """What tells it from others, in hexadecimal digits."""
        return self._name.hex()

    def future(self) -> Future[Any]:
        """A Future that has ended, with the value."""
        future: Future[Any] = Future()
        try:
            future.set_result(self._load())
        except Exception as error:
            future.set_exception(error)
        return future

    def __await__(self) -> Generator[Any, None, Any]:
        """`await ref` in a coroutine: the value."""
        return self.future().__await__()

    def __eq__(self, other: object) -> bool:
        return type(other) is ObjectRef and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        where = self._handle.obj.hex() if self._handle is not None else "inline"
        return f"<dpool.ObjectRef {where}, {self.size:,} bytes>"

    def __reduce__(self) -> Any:
        for handle in (self._handle, *self._inner):
            if handle is not None:
                storage.client().escaped[handle.obj] = handle
        return _rebuilt(self)

    def _load(self, readonly: bool = False, copy: bool = False) -> Any:
        if self._handle is not None:
            storage.check_process(self._handle)
            return storage.load(self._handle.place, readonly, copy)
        assert self._data is not None
        value = storage.unpack(self._data)
        return value


def _rebuilt(ref: ObjectRef) -> Any:
    if ref._handle is not None:
        return make_ref, (ref._handle.place, ref._needs)
    return make_inline_ref, (ref._data, ref._needs, ref._name, [handle.place for handle in ref._inner])


def make_ref(place: Place, needs: tuple[str, ...]) -> ObjectRef:
    """In the process that unpickles a reference."""
    return ObjectRef(storage.client().hold(place), None, (), needs)


def make_inline_ref(data: bytes, needs: tuple[str, ...], name: bytes, inner: list[Place]) -> ObjectRef:
    """The same for one whose value it carries; what that refers to is held too."""
    return ObjectRef(None, data, tuple(storage.client().hold(place) for place in inner), needs, name)


def name_only(ref: ObjectRef) -> Any:
    """Reduces a reference to what tells it from others; it cannot be made again from that."""
    return bytes, (ref._name,)


class ByValue:
    """Stands for a reference among a task's arguments: the task gets the value."""

    __slots__ = ("ref",)

    def __init__(self, ref: ObjectRef) -> None:
        self.ref = ref


def load_by_value(place: Place) -> Any:
    """In the worker: the value of an argument that was given as a reference."""
    return storage.load(place)


def load_inline(data: bytes) -> Any:
    """The same for a small one."""
    return storage.unpack(data)


def _note(pickler: Pickler, ref: ObjectRef) -> None:
    if ref._handle is not None:
        pickler.keep.append(ref._handle)
    pickler.keep.extend(ref._inner)
    for name in ref._needs:
        pickler.need(name)


def _reduce_ref(pickler: Pickler, ref: ObjectRef) -> Any:
    pickler.stands_in()
    _note(pickler, ref)
    return _rebuilt(ref)


def _reduce_by_value(pickler: Pickler, one: ByValue) -> Any:
    ref = one.ref
    _note(pickler, ref)
    if ref._handle is not None:
        pickler.wanted.append(ref._handle)
        return load_by_value, (ref._handle.place,)
    return load_inline, (ref._data,)


BY_TYPE[ObjectRef] = _reduce_ref
BY_TYPE[ByValue] = _reduce_by_value


def handles_of(kept: Any) -> tuple[Any, ...]:
    """The Handles that something keeps alive: a Handle itself, or an ObjectRef."""
    if not isinstance(kept, ObjectRef):
        return (kept,)
    return kept._inner if kept._handle is None else (kept._handle, *kept._inner)
