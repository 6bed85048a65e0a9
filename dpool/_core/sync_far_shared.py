"""Values and arrays whose memory lies on another machine: each look at them, and each change, is a message.

`FarValue`, `FarArray` and `FarStruct` stand where the memory's own machine has ctypes objects: they have `value`,
elements and fields, but no address: what wants one (`numpy.frombuffer`, `ctypes.memmove`) raises TypeError.

Two changes that overlap need the lock, as always; a bit field is changed by writing its whole structure.
"""

from __future__ import annotations

import ctypes
from multiprocessing import sharedctypes
from typing import TYPE_CHECKING, Any

from dpool._core.logic import sync_kinds as k
from dpool._core.node_page import FAR_RANGE
from dpool._core.sync_client import Core, Link, object_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpool._core.store_client import Handle
    from dpool._core.sync_shared import Shared

AT_ONCE = 1 << 20
"""Bytes that travel at a time."""
_CHARACTERS = (ctypes.c_char, ctypes.c_wchar)


class FarPiece(Core):
    """A piece of shared memory of another machine."""

    what = "shared value"
    __slots__ = ()

    def __init__(self, link: Link, handle: Handle) -> None:
        super().__init__(link, handle)

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from there."""
        pieces = []
        for at in range(offset, offset + length, AT_ONCE):
            asked = FAR_RANGE.pack(at, min(AT_ONCE, offset + length - at))
            pieces.append(self._answer(k.FAR_READ, 0, asked))
        return b"".join(pieces)

    def write(self, offset: int, data: bytes) -> None:
        """Put these there."""
        for at in range(0, len(data), AT_ONCE):
            self._answer(k.FAR_WRITE, offset + at, data[at : at + AT_ONCE])

    def _answer(self, op: int, n: int, data: bytes) -> bytes:
        reply = self._question(lambda connection: connection.ask(self.obj, op, n, data))
        if reply.status != k.OK:
            raise object_gone(self.what)
        return reply.data


def far_object(kind: Any, wrapper: Shared) -> Any:
    """What stands for a ctypes object of that kind in another machine's memory."""
    return _at(kind, wrapper, 0, wrapper)


def _at(kind: Any, wrapper: Shared, offset: int, own: Shared | None = None) -> Any:
    if issubclass(kind, ctypes.Array):
        return FarArray(kind, wrapper, offset, own)
    if issubclass(kind, ctypes._SimpleCData):
        return FarValue(kind, wrapper, offset, own)
    return FarStruct(kind, wrapper, offset, own)


def _is_plain(kind: Any) -> bool:
    """Whether ctypes gives such an element as a Python object, not as one of ctypes."""
    return bool(kind.__bases__ == (ctypes._SimpleCData,))


class _Far:
    """Common to all. `_wrapper`: what a pickle of it refers to; None for a part of something."""

    _kind: Any
    _memory: Shared
    _offset: int
    _wrapper: Shared | None

    def __init__(self, kind: Any, memory: Shared, offset: int, wrapper: Shared | None) -> None:
        vars(self).update(_kind=kind, _memory=memory, _offset=offset, _wrapper=wrapper)

    def far_copy(self) -> Any:
        """A ctypes object with what lies there now."""
        return self._kind.from_buffer_copy(self._read(0, ctypes.sizeof(self._kind)))

    def _read(self, offset: int, length: int) -> bytes:
        piece: FarPiece = self._memory._core
        return piece.read(self._offset + offset, length)

    def _write(self, offset: int, data: bytes) -> None:
        piece: FarPiece = self._memory._core
        piece.write(self._offset + offset, data)

    def _store(self, made: Any) -> None:
        self._write(0, bytes(made))

    def __reduce__(self) -> Any:
        if self._wrapper is None:  # as a part of a ctypes object is pickled: by value
            return self.far_copy().__reduce__()
        from dpool._core.sync_shared import rebuild_ctype

        if issubclass(self._kind, ctypes.Array):
            return rebuild_ctype, (self._kind._type_, self._wrapper, self._kind._length_)
        return rebuild_ctype, (self._kind, self._wrapper, None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._kind.__name__} on another machine>"


class FarValue(_Far):
    """A number, or a character."""

    @property
    def value(self) -> Any:
        """What it is now."""
        return self.far_copy().value

    @value.setter
    def value(self, value: Any) -> None:
        self._store(self._kind(value))


class FarArray(_Far):
    """An array: elements and slices; `value` and `raw` if it is one of characters."""

    def __len__(self) -> int:
        return int(self._kind._length_)

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:]) if _is_plain(self._kind._type_) else (self[i] for i in range(len(self)))

    def _index(self, index: int) -> int:
        length = len(self)
        if not -length <= index < length:
            raise IndexError("invalid index")
        return index % length

    def __getitem__(self, index: Any) -> Any:
        kind = self._kind._type_
        size = ctypes.sizeof(kind)
        if not isinstance(index, slice):
            offset = self._index(index) * size
            if _is_plain(kind):
                return kind.from_buffer_copy(self._read(offset, size)).value
            return _at(kind, self._memory, self._offset + offset)
        chosen = range(*index.indices(len(self)))
        if not _is_plain(kind):
            return [self[i] for i in chosen]
        if not chosen:
            return (kind * 0)()[:]
        first, last = min(chosen), max(chosen)
        found = (kind * (last - first + 1)).from_buffer_copy(self._read(first * size, (last - first + 1) * size))
        step = chosen.step
        return found[::step] if step > 0 else found[len(found) - 1 :: step]

    def __setitem__(self, index: Any, value: Any) -> None:
        kind = self._kind._type_
        size = ctypes.sizeof(kind)
        if not isinstance(index, slice):
            self._write(self._index(index) * size, bytes(_one(kind, value)))
            return
        chosen = range(*index.indices(len(self)))
        values = list(value)
        if len(values) != len(chosen):
            raise ValueError("Can only assign sequence of same size")
        if chosen.step == 1:
            if values:
                self._write(chosen.start * size, b"".join(bytes(_one(kind, one)) for one in values))
        else:
            for i, one in zip(chosen, values, strict=True):
                self[i] = one

    def __getattr__(self, name: str) -> Any:
        if name not in ("value", "raw") or self._kind._type_ not in _CHARACTERS:
            raise AttributeError(f"{self._kind.__name__!r} object has no attribute {name!r}")
        return getattr(self.far_copy(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("value", "raw") or self._kind._type_ not in _CHARACTERS:
            raise AttributeError(f"{self._kind.__name__!r} object has no attribute {name!r}")
        made = self.far_copy()
        setattr(made, name, value)
        self._store(made)


def _one(kind: Any, value: Any) -> Any:
    """An element, as the memory has it."""
    if isinstance(value, _Far):
        value = value.far_copy()
    made = (kind * 1)()
    made[0] = value
    return made


class FarStruct(_Far):
    """A structure or a union: its fields."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        place, kind = self._field(name)
        if kind is None or _is_plain(kind):
            return getattr(self.far_copy(), name)
        return _at(kind, self._memory, self._offset + place.offset)

    def __setattr__(self, name: str, value: Any) -> None:
        place, kind = self._field(name)
        if isinstance(value, _Far):
            value = value.far_copy()
        made = self.far_copy()
        setattr(made, name, value)
        if kind is None:
            self._store(made)
        else:
            size = ctypes.sizeof(kind)
            self._write(place.offset, bytes(made)[place.offset : place.offset + size])

    def _field(self, name: str) -> tuple[Any, Any]:
        """Where a field lies, and its kind; None if it is some bits."""
        for base in self._kind.__mro__:
            for field in vars(base).get("_fields_", ()):
                if field[0] == name:
                    return getattr(self._kind, name), None if len(field) > 2 else field[1]
        raise AttributeError(f"{self._kind.__name__!r} object has no attribute {name!r}")


def far_wrapper(obj: Any, lock: Any) -> Any:
    """The standard library's wrapper for such an object. Source: `multiprocessing.sharedctypes.synchronized`."""
    module: Any = sharedctypes
    kind = obj._kind
    if isinstance(obj, FarValue):
        return module.Synchronized(obj, lock)
    if isinstance(obj, FarArray):
        return (module.SynchronizedString if kind._type_ is ctypes.c_char else module.SynchronizedArray)(obj, lock)
    names = {field[0]: module.make_property(field[0]) for field in kind._fields_}
    wrapper = module.class_cache.get(kind)
    if wrapper is None:
        name = f"Synchronized{kind.__name__}"
        wrapper = module.class_cache[kind] = type(name, (module.SynchronizedBase,), names)
    return wrapper(obj, lock)
