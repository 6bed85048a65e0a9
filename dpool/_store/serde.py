"""How values lie in the store: a pickle stream and its out-of-band buffers in one piece of memory, the *flat* form.

```
 0        4      8        12  16             24                      aligned to 64      aligned to 64
 ┌────────┬──────┬────────┬───┬──────────────┬──────────────┬────────┬─────────────┬────┬─────────────┐
 │ "DPF1" │flags │buffers │ 0 │ stream bytes │ offset length│ stream │ buffer 0    │ …  │ buffer n-1  │
 └────────┴──────┴────────┴───┴──────────────┴──────────────┴────────┴─────────────┴────┴─────────────┘
   u32 each, little-endian       u64           2 × u64 per buffer      offsets count from the start
```

`Parts` is a value between pickling and this form: it refers to the value's own memory, so that each byte is copied
once, into the store. `load` copies no buffer: what it makes refers to the flat form, and is writable where that is.

One thread at a time. Whoever pickles a value and changes it before `write_into` stores what is there then.
"""

from __future__ import annotations

import pickle
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Fill = Callable[[memoryview], None]
    Reducer = Callable[[Any, "Parts"], Any]

BUFFER_LIMIT = 16 * 1024
"""Pickle-5 buffers of at least so many bytes travel out of band."""

PIECE = 16 * 1024 * 1024
"""Copies hold the interpreter lock; between pieces of so many bytes other threads get it."""

ALIGNMENT = 64
MAGIC = b"DPF1"
READ_ONLY = 1
"""The flag that says that every buffer is read-only."""

_HEADER = struct.Struct("<4sIIIQ")
_ENTRY = struct.Struct("<QQ")
_PROTOCOL = 5
_BEGIN, _STOP = pickle.PROTO[0], pickle.STOP[0]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Deferred:
    """A buffer that is not made before its place in the store is known."""

    __slots__ = ("fill", "size")

    def __init__(self, size: int, fill: Fill) -> None:
        self.size = size
        self.fill = fill


class Parts:
    """One pickled value that has not been copied yet: chunks of the pickle stream and out-of-band buffers.

    It is the file and the source of `buffer_callback` of a `pickle.Pickler`. Until `release`, the value's memory can be
    written to but not resized.
    """

    __slots__ = ("_buffers", "_chunks", "_deferred", "_padded", "_stream", "alone", "read_only", "shared")

    def __init__(self) -> None:
        self._chunks: list[bytes | memoryview] = []
        self._stream = 0
        self._buffers: list[memoryview | _Deferred] = []
        self._padded = 0
        self._deferred: dict[int, tuple[Any, _Deferred]] = {}
        self.alone = False
        """It refers to nothing of `__main__`: any process can load it. Said by the pickler's owner."""
        self.read_only = True
        """No buffer may be written to; so it is also without buffers."""
        self.shared: dict[Any, Any] = {}
        """For reducers: what several objects of the value share."""

    # ---- the pickler's side

    def write(self, data: Any) -> int:
        """Takes a piece of the pickle stream; `bytes` and a large object's own memory are referred to, not copied."""
        kind = type(data)
        if kind is bytes:
            chunk, size = data, len(data)
        else:
            chunk = bytes(data) if kind is memoryview else pickle.PickleBuffer(data).raw()  # a view may be used again
            size = len(chunk)
        self._chunks.append(chunk)
        self._stream += size
        return size

    def buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Takes a buffer out of band and says False, or says True: then the pickler writes it into the stream."""
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        part: memoryview | _Deferred = view
        if self._deferred and id(view.obj) in self._deferred:
            part = self._deferred.pop(id(view.obj))[1]
            size = part.size
        elif (size := view.nbytes) < BUFFER_LIMIT:
            return True
        self._buffers.append(part)
        self._padded += _aligned(size)
        if not view.readonly:
            self.read_only = False
        return False

    def defer(self, size: int, fill: Fill) -> pickle.PickleBuffer:
        """For reducers: a read-only buffer of `size` bytes that `fill(target)` writes once its place is known."""
        placeholder = bytes((0, 0))  # never read; its identity tells it from others
        self._deferred[id(placeholder)] = (placeholder, _Deferred(size, fill))
        return pickle.PickleBuffer(placeholder)

    # ---- the store's side

    @property
    def has_buffers(self) -> bool:
        """Whether there is anything out of band; if not, `stream()` is the shorter form."""
        return bool(self._buffers)

    @property
    def nbytes(self) -> int:
        """Bytes of the flat form: header, table, stream and aligned buffers."""
        start = _HEADER.size + _ENTRY.size * len(self._buffers) + self._stream
        return _aligned(start) + self._padded if self._buffers else start

    def stream(self) -> bytes:
        """The pickle itself.

        Raises:
            ValueError: there are buffers, without which it does not load.
        """
        if self._buffers:
            raise ValueError(f"the pickle refers to {len(self._buffers)} buffers: it does not load without them")
        if len(self._chunks) == 1 and isinstance(self._chunks[0], bytes):
            return self._chunks[0]
        return b"".join(self._chunks)

    def to_bytes(self) -> bytearray:
        """The flat form on its own."""
        flat = bytearray(self.nbytes)
        with memoryview(flat) as target:
            self.write_into(target)
        return flat

    def write_into(self, target: memoryview) -> None:
        """Writes the flat form to the start of `target`, which may be longer.

        Raises:
            ValueError: `target` is too short.
        """
        if target.format != "B" or target.ndim != 1:
            target = target.cast("B")
        if target.nbytes < self.nbytes:
            raise ValueError(f"{self.nbytes} bytes do not fit into {target.nbytes}")
        flags = READ_ONLY if self.read_only else 0
        _HEADER.pack_into(target, 0, MAGIC, flags, len(self._buffers), 0, self._stream)
        table, end = _HEADER.size, _HEADER.size + _ENTRY.size * len(self._buffers)
        for chunk in self._chunks:
            end = _copy(target, end, chunk)
        for part in self._buffers:
            offset = _aligned(end)
            target[end:offset] = bytes(offset - end)  # recycled memory has another value's bytes
            if isinstance(part, memoryview):
                end = _copy(target, offset, part)
            else:
                end = offset + part.size
                with target[offset:end] as place:
                    part.fill(place)
            _ENTRY.pack_into(target, table, offset, end - offset)
            table += _ENTRY.size
        if self._buffers:
            target[end : _aligned(end)] = bytes(_aligned(end) - end)

    def release(self) -> None:
        """Lets go of the value; afterwards this is empty."""
        for part in (*self._chunks, *self._buffers):
            if isinstance(part, memoryview):
                part.release()  # not its PickleBuffer, which may be the object's own
        self.__init__()  # type: ignore[misc]


def _copy(target: memoryview, start: int, source: bytes | memoryview) -> int:
    """Copies `source` to `target[start:]`; returns where it ends."""
    size = len(source)
    if size <= PIECE:
        target[start : start + size] = source
        return start + size
    with memoryview(source) as view:
        for at in range(0, size, PIECE):
            piece = view[at : at + PIECE]
            target[start + at : start + at + len(piece)] = piece
    return start + size


# ---------------------------------------------------------------------------------------- reading


def is_flat(data: Any) -> bool:
    """Whether these bytes are a flat form; a pickle begins otherwise."""
    return bytes(data[:4]) == MAGIC


def flat_readonly(data: memoryview) -> bool:
    """Whether nothing that `load` makes may write to its memory: all buffers are read-only, or there is none.

    Raises:
        ValueError: this is no flat form.
    """
    return bool(_header(data)[0] & READ_ONLY)


def _header(data: memoryview) -> tuple[int, int, int]:
    """Flags, number of buffers, bytes of the stream."""
    if len(data) < _HEADER.size:
        raise ValueError(f"a flat value has a header of {_HEADER.size} bytes, here are {len(data)}")
    magic, flags, count, reserved, stream = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"a flat value begins with {MAGIC!r}, this with {magic!r}")
    if flags & ~READ_ONLY or reserved:
        raise ValueError(f"a flat value with flags {flags:#x} and {reserved:#x}, of which only 0x1 and 0x0 are known")
    return flags, count, stream


def _table(flat: memoryview) -> tuple[int, int, list[tuple[int, int]]]:
    """Start and end of the stream, and the (start, end) of each buffer, all of them inside `flat` and apart."""
    _, count, stream = _header(flat)
    total = len(flat)
    start = _HEADER.size + _ENTRY.size * count
    if start > total:
        raise ValueError(f"the table of {count} buffers ends at {start}, behind the end of the value at {total}")
    end = start + stream
    if end > total:
        raise ValueError(f"the pickle stream ends at {end}, behind the end of the value at {total}")
    if stream < 2 or flat[start] != _BEGIN or flat[end - 1] != _STOP:
        raise ValueError(f"what lies from {start} to {end} is no pickle stream")
    spans = []
    behind = end
    for number, (offset, length) in enumerate(_ENTRY.iter_unpack(flat[_HEADER.size : start])):
        if offset < behind:
            raise ValueError(f"buffer {number} begins at {offset}, inside of what ends at {behind}")
        if offset % ALIGNMENT:
            raise ValueError(f"buffer {number} begins at {offset}, which is no multiple of {ALIGNMENT}")
        behind = offset + length
        if behind > total:
            raise ValueError(f"buffer {number} ends at {behind}, behind the end of the value at {total}")
        spans.append((offset, behind))
    return start, end, spans


def load(flat: memoryview) -> Any:
    """The value whose flat form begins `flat`.

    Its buffers are slices of `flat`, the only references to it that remain; they are writable if `flat` is, except
    those that were read-only.

    Raises:
        ValueError: the form is malformed, or stream and buffers do not belong together.
        Exception: whatever unpickling raised.
    """
    if flat.format != "B" or flat.ndim != 1:
        flat = flat.cast("B")
    start, end, spans = _table(flat)
    views = [flat[offset:behind] for offset, behind in reversed(spans)]
    try:
        with flat[start:end] as stream:
            value = pickle.loads(stream, buffers=_take(views, len(spans)))
        if views:
            raise ValueError(f"{len(views)} of the {len(spans)} buffers belong to nothing in the pickle stream")
    finally:
        views.clear()  # an exception's frames hold no memory
    return value


def _take(views: list[memoryview], count: int) -> Iterator[memoryview]:
    while views:
        yield views.pop()
    raise ValueError(f"the pickle stream asks for more buffers than the {count} that are there")


# ---------------------------------------------------------------------------------------- reducers


def reducer_for(kind: type) -> Reducer | None:
    """How objects of exactly this type are reduced, where the standard pickle would copy, or copy more than needed.

    The type is known by its names: nothing is imported. The reducer gives what `__reduce__` gives, or NotImplemented.
    """
    if kind is memoryview:
        return _reduce_memoryview
    module = kind.__module__
    if type(module) is not str:
        return None
    if module == "numpy":
        return _reduce_array if kind.__name__ == "ndarray" else None
    if module == "pyarrow.lib":
        from dpool._store import arrow

        return arrow.reduce if arrow.handles(kind) else None
    if (module, kind.__name__) in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter")):
        from dpool._store import torch

        return torch.reduce
    lib = sys.modules.get("pyarrow.lib")
    if lib is not None and issubclass(kind, getattr(lib, "ExtensionArray", ())):
        from dpool._store import arrow

        return arrow.reduce
    return None


def _reduce_array(array: Any, parts: Parts) -> Any:
    """Large arrays that numpy itself would copy into the stream: points in time, and what is not contiguous."""
    dtype = array.dtype
    if array.nbytes < BUFFER_LIMIT or dtype.hasobject:
        return NotImplemented
    if dtype.kind in "Mm":  # numpy exports no buffer of these
        return view_dtype, (array.view("i8"), dtype)
    if array.flags.forc:
        return NotImplemented
    return array.copy("K").__reduce_ex__(_PROTOCOL)


def view_dtype(array: Any, dtype: Any) -> Any:
    """The array's memory as elements of another dtype of the same size."""
    return array.view(dtype)


def _reduce_memoryview(view: memoryview, parts: Parts) -> Any:
    form = _cast_format(view)
    if form is None or (view.ndim > 1 and not view.nbytes):  # memoryview.cast makes none of these
        return _through_numpy(view)
    if view.c_contiguous:
        buffer = pickle.PickleBuffer(view)
    else:
        data = view.tobytes()
        buffer = pickle.PickleBuffer(data if view.readonly else bytearray(data))
    return make_memoryview, (buffer, form, None if view.ndim == 1 else view.shape or ())


def _cast_format(view: memoryview) -> str | None:
    """The format by which `memoryview.cast` makes an equal view; None if there is none."""
    native = view.format.removeprefix("@")
    if view.format[0] in "<=" and sys.byteorder == "little":  # as ctypes spells it
        native = view.format[1:]
    if len(native) != 1 or native not in "cbBhHiIlLqQnNfd?P" or struct.calcsize(native) != view.itemsize:
        return None
    return native if view.format[0] in "<=" else view.format


def make_memoryview(buffer: Any, form: str, shape: tuple[int, ...] | None) -> memoryview:
    """The view of these bytes; read-only if they are."""
    view = memoryview(buffer)
    if view.format != "B":
        view = view.cast("B")
    return view.cast(form) if shape is None else view.cast(form, shape)  # type: ignore[call-overload,no-any-return]


def _through_numpy(view: memoryview) -> Any:
    """Formats that only numpy reads and writes again: structures, complex numbers, other byte orders."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return NotImplemented
    try:
        array = numpy.asarray(view)
        again = memoryview(array)
    except (ValueError, TypeError, BufferError):  # a format that it does not know
        return NotImplemented
    if (again.format, again.shape) != (view.format, view.shape):
        return NotImplemented
    return view_array, (array, view.readonly)


def view_array(array: Any, readonly: bool) -> memoryview:
    """The memory of a numpy array."""
    view = memoryview(array)
    return view.toreadonly() if readonly else view


class _Pickler(pickle.Pickler):
    def __init__(self, parts: Parts) -> None:
        super().__init__(parts, _PROTOCOL, buffer_callback=parts.buffer)
        self.parts = parts

    def reducer_override(self, obj: Any) -> Any:
        reducer = reducer_for(type(obj))
        return NotImplemented if reducer is None else reducer(obj, self.parts)


def dumps(value: Any) -> Parts:
    """A value pickled by the standard pickler with these reducers."""
    parts = Parts()
    _Pickler(parts).dump(value)
    return parts
