"""Arrow data in the store: an Arrow IPC stream, written once into its place and read there.

```
 Table, RecordBatch, Array, ChunkedArray ──► schema + record batches ──► size (a dry run) ──► IPC stream in the store
                                        ◄── batches whose buffers point into the store ◄──
```

The rows that a slice shows are written, not those of the whole; but a dictionary, the characters of string views and
the elements of list views may be written whole. Columns of an extension type travel as their storage with the type
beside it, so that the receiver need not have registered it; where an extension type lies inside another type, the
standard pickle is used.

pyarrow is loaded where such a value passes, and nowhere else.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dpool._store import serde

if TYPE_CHECKING:
    from collections.abc import Callable


def handles(kind: type) -> bool:
    """Whether `reduce` is for this type of `pyarrow.lib`."""
    return kind.__name__ in ("RecordBatch", "Table") or kind.__name__.endswith("Array")


def reduce(obj: Any, parts: serde.Parts) -> Any:
    """The object as (how to make it, (IPC stream, schema or None)); NotImplemented for what IPC cannot carry."""
    pa = sys.modules["pyarrow"]
    if not getattr(obj, "is_cpu", True):
        return NotImplemented
    make, schema, batches = _as_batches(pa, obj)
    whole = None
    if any(_has_extension(pa, field.type) for field in schema):
        whole = schema
        schema = pa.schema([field.with_type(_storage_type(pa, field.type)) for field in schema])
        if any(_has_extension(pa, field.type) for field in schema):
            return NotImplemented
        batches = [_storage_batch(pa, batch, schema) for batch in batches]
    sink = pa.MockOutputStream()
    try:
        _write(pa, sink, schema, batches)
    except (pa.ArrowException, NotImplementedError):
        return NotImplemented
    size = sink.size()
    if size < serde.BUFFER_LIMIT:
        sink = pa.BufferOutputStream()
        _write(pa, sink, schema, batches)
        return make, (sink.getvalue().to_pybytes(), whole)

    def fill(target: memoryview) -> None:
        place = pa.FixedSizeBufferWriter(pa.py_buffer(target))
        _write(pa, place, schema, batches)
        place.close()

    return make, (parts.defer(size, fill), whole)


def _as_batches(pa: Any, obj: Any) -> tuple[Callable[..., Any], Any, list[Any]]:
    """How it is made again, and its schema and rows."""
    if isinstance(obj, pa.Table):
        return make_table, obj.schema, obj.to_batches()
    if isinstance(obj, pa.RecordBatch):
        return make_batch, obj.schema, [obj]
    schema = pa.schema([pa.field("", obj.type)])
    if isinstance(obj, pa.ChunkedArray):
        return make_chunked, schema, [pa.RecordBatch.from_arrays([chunk], schema=schema) for chunk in obj.chunks]
    return make_array, schema, [pa.RecordBatch.from_arrays([obj], schema=schema)]


def _has_extension(pa: Any, kind: Any) -> bool:
    """Whether it is, or contains, an extension type (or has a name that looks so: slower, and right all the same)."""
    return isinstance(kind, pa.BaseExtensionType) or "extension<" in str(kind)


def _storage_type(pa: Any, kind: Any) -> Any:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _storage_batch(pa: Any, batch: Any, schema: Any) -> Any:
    columns = [one.storage if isinstance(one.type, pa.BaseExtensionType) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _write(pa: Any, sink: Any, schema: Any, batches: list[Any]) -> None:
    options = pa.ipc.IpcWriteOptions(allow_64bit=True, use_threads=False)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)


# ---------------------------------------------------------------------------------------- reading


def _read(stream: Any, whole: Any) -> tuple[Any, list[Any]]:
    """Schema and record batches, which refer to the memory of `stream`."""
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.ipc.open_stream(pa.py_buffer(stream), options=options) as reader:
        batches = list(reader)
        if whole is None:
            return reader.schema, batches
    return whole, [_extended(pa, batch, whole) for batch in batches]


def _extended(pa: Any, batch: Any, schema: Any) -> Any:
    columns = [
        pa.ExtensionArray.from_storage(field.type, column) if isinstance(field.type, pa.BaseExtensionType) else column
        for field, column in zip(schema, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def make_table(stream: Any, whole: Any) -> Any:
    """The Table in an IPC stream; `whole` is its schema if that has extension types."""
    import pyarrow as pa

    schema, batches = _read(stream, whole)
    return pa.Table.from_batches(batches, schema)


def make_batch(stream: Any, whole: Any) -> Any:
    """The only RecordBatch."""
    return _read(stream, whole)[1][0]


def make_array(stream: Any, whole: Any) -> Any:
    """The only column of the only RecordBatch."""
    return _read(stream, whole)[1][0].column(0)


def make_chunked(stream: Any, whole: Any) -> Any:
    """The only column, a chunk for each RecordBatch."""
    import pyarrow as pa

    schema, batches = _read(stream, whole)
    return pa.chunked_array([batch.column(0) for batch in batches], type=schema.field(0).type)
