"""Arrow data: equal afterwards, read in place, only the rows of a slice written."""

from __future__ import annotations

import datetime as dt
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpool._store import serde
from tests.store.flat import again, flat_of, mapped

N = 20_000


class Celsius(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.int64(), "tests.celsius")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Celsius:
        return cls()


def celsius(n: int) -> Any:
    return pa.ExtensionArray.from_storage(Celsius(), pa.array(range(n)))


MAKE = {
    "int": lambda n: pa.array(range(n)),
    "int with nulls": lambda n: pa.array([None if i % 3 else i for i in range(n)], pa.int32()),
    "float": lambda n: pa.array(np.linspace(0, 1, n)),
    "bool": lambda n: pa.array([i % 3 == 0 for i in range(n)]),
    "string": lambda n: pa.array([str(i) if i % 7 else None for i in range(n)]),
    "large string": lambda n: pa.array([str(i) for i in range(n)], pa.large_string()),
    "string view": lambda n: pa.array([str(i) * 4 for i in range(n)], pa.string_view()),
    "binary": lambda n: pa.array([b"%d" % i for i in range(n)]),
    "fixed binary": lambda n: pa.array([b"abc"] * n, pa.binary(3)),
    "dictionary": lambda n: pa.array([str(i % 5) for i in range(n)]).dictionary_encode(),
    "ordered dictionary": lambda n: pa.DictionaryArray.from_arrays(
        pa.array([i % 2 for i in range(n)], pa.int8()), ["a", "b"], ordered=True
    ),
    "list of dictionary": lambda n: pa.array([["a", "b"]] * n, pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "null": pa.nulls,
    "decimal": lambda n: pa.array([None, *range(n - 1)], pa.decimal128(20, 2)),
    "timestamp": lambda n: pa.array([dt.datetime(2020, 1, 1)] * n, pa.timestamp("ns", "Europe/Berlin")),
    "interval": lambda n: pa.array([pa.MonthDayNano([1, 2, 3])] * n),
    "list": lambda n: pa.array([[i, i] if i % 3 else None for i in range(n)]),
    "list view": lambda n: pa.array([[i] for i in range(n)], pa.list_view(pa.int64())),
    "fixed list": lambda n: pa.array([[i, i] for i in range(n)], pa.list_(pa.int64(), 2)),
    "struct": lambda n: pa.array([{"a": i, "b": [str(i)]} for i in range(n)]),
    "map": lambda n: pa.array([[(str(i), i)] for i in range(n)], pa.map_(pa.string(), pa.int64())),
    "sparse union": lambda n: pa.UnionArray.from_sparse(
        pa.array([i % 2 for i in range(n)], pa.int8()), [pa.array(range(n)), pa.array([str(i) for i in range(n)])]
    ),
    "dense union": lambda n: pa.UnionArray.from_dense(
        pa.array([i % 2 for i in range(n)], pa.int8()),
        pa.array([i // 2 for i in range(n)], pa.int32()),
        [pa.array(range(n)), pa.array([str(i) for i in range(n)])],
    ),
    "run end encoded": lambda n: pa.RunEndEncodedArray.from_arrays(pa.array([5, n], pa.int32()), pa.array(["a", "b"])),
    "extension": celsius,
    "uuid": lambda n: pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * n, pa.binary(16))),
    "extension in a struct": lambda n: pa.StructArray.from_arrays([celsius(n)], ["t"]),
}
WHOLE = {"string view", "list view", "extension in a struct"}
"""Of these a slice brings more than its rows along."""
SCHEMA = pa.schema([pa.field("a", pa.int64(), nullable=False, metadata={"unit": "K"})], metadata={"made": "by hand"})

made: dict[str, Any] = {}


@pytest.fixture(params=MAKE)
def array(request: pytest.FixtureRequest) -> Any:
    """N values of each type."""
    if request.param not in made:
        made[request.param] = MAKE[request.param](N)
    return made[request.param]


@pytest.fixture
def kind(array: Any, request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["array"])


def check(value: Any) -> Any:
    """The value after its way, which is equal, valid and of the same type."""
    result = again(value)
    assert type(result) is type(value)
    result.validate(full=True)
    if isinstance(value, pa.Table | pa.RecordBatch):
        assert result.equals(value, check_metadata=True)
    else:
        assert result.type == value.type
        assert result.equals(value)
    return result


def test_arrays_and_their_slices(array):
    for part in (array, array[100:5000], array[3:5], array[:0], array[N:]):
        check(part)


def test_chunked_arrays_keep_their_chunks(array):
    chunked = pa.chunked_array([array[:10], array[10:10], array[20:]])
    assert [len(chunk) for chunk in check(chunked).chunks] == [10, 0, N - 20]
    assert check(pa.chunked_array([], type=array.type)).num_chunks == 0


def test_tables_and_batches(array):
    chunked = pa.chunked_array([array[:10], array[20:]])
    table = pa.table({"of chunks": chunked, "whole": pa.array(range(len(chunked)))})
    check(table)
    check(table[5:100])
    check(table[:0])
    check(pa.table({"none": pa.chunked_array([], type=array.type)}))
    check(pa.RecordBatch.from_arrays([array], names=["one"]))


@pytest.mark.parametrize("kind", sorted(MAKE.keys() - WHOLE))
def test_a_slice_writes_only_its_rows(kind):
    array = MAKE[kind](N)
    assert len(flat_of(array[1000:1010])) < 4000
    assert len(flat_of(pa.table({"a": array})[1000:1010])) < 4000


def buffers(array: Any) -> Iterator[Any]:
    storage = array.storage if isinstance(array.type, pa.BaseExtensionType) else array
    if isinstance(storage, pa.DictionaryArray):
        yield from buffers(storage.dictionary)
    yield from (one for one in storage.buffers() if one is not None and one.size)


def test_what_is_loaded_lies_in_the_flat_form_and_keeps_it(array, kind):
    numbers = pa.array(range(N))
    with mapped([pa.table({"a": array, "more": numbers})]) as mapping:
        (table,) = mapping.load()
        for buffer in buffers(table.column(0).chunk(0)):
            small = buffer.size < serde.BUFFER_LIMIT and kind == "extension in a struct"  # the standard pickle's
            assert small or mapping.holds(buffer.address, buffer.size)
        buffer = None
        with pytest.raises(BufferError):
            mapping.memory.close()
        assert table.column(0).equals(pa.chunked_array([array]))
        del table
        gc.collect()


def test_an_extension_type_may_be_registered_or_not():
    array = celsius(N)
    pa.register_extension_type(Celsius())
    try:
        table = pa.table({"t": array, "nested": MAKE["extension in a struct"](N)}, metadata={"a": "b"})
        check(table)
        check(array)
        check(table.select(["t"]))
    finally:
        pa.unregister_extension_type("tests.celsius")
    check(table.select(["t"]))


def test_schema_and_field_metadata():
    table = pa.table([range(N)], schema=SCHEMA)
    assert check(table).schema.equals(SCHEMA, check_metadata=True)
    check(table.to_batches()[0])
    extended = pa.schema([pa.field("t", Celsius(), nullable=False, metadata={"x": "y"})], metadata={"m": "n"})
    assert check(pa.table([celsius(N)], schema=extended)).schema.equals(extended, check_metadata=True)


def test_no_columns():
    check(pa.table({}))
    assert check(pa.table({"a": [1, 2]}).select([])).num_rows == 2
    assert check(pa.RecordBatch.from_pylist([{"a": 1}]).select([])).num_rows == 1


def test_chunks_with_other_dictionaries():
    parts = [pa.array([text] * 5000).dictionary_encode() for text in ("a", "b", "a", "c")]
    check(pa.chunked_array(parts))
    check(pa.table({"d": pa.chunked_array(parts)}))


def test_the_same_table_twice_is_stored_once():
    table = pa.table({"a": range(N)})
    flat = flat_of([table, {"again": table}])
    assert len(flat) < 1.2 * table.nbytes
    first, rest = serde.load(memoryview(flat))
    assert first is rest["again"]


def test_several_deferred_streams_and_other_buffers_in_one_value():
    value = [pa.array(range(N)), np.arange(N), pa.table({"s": [str(i) for i in range(N)]}), memoryview(bytes(20_000))]
    result = again(value)
    assert result[0].equals(value[0])
    assert (result[1] == value[1]).all()
    assert result[2].equals(value[2])
    assert result[3] == value[3]


def test_a_read_only_mapping_serves():
    table = pa.table({"a": range(N)})
    assert serde.flat_readonly(memoryview(flat_of(table)))
    assert not serde.flat_readonly(memoryview(flat_of([table, np.arange(N)])))


def test_a_value_can_be_written_more_than_once():
    parts = serde.dumps(pa.table({"a": range(N)}))
    assert parts.to_bytes() == parts.to_bytes()


def test_other_arrow_objects_go_the_standard_way():
    buffer = pa.py_buffer(bytes(50_000))
    assert again([pa.scalar(5), buffer, pa.int64(), SCHEMA]) == [pa.scalar(5), buffer, pa.int64(), SCHEMA]


COLUMNS = st.sampled_from([pa.int8(), pa.float64(), pa.string(), pa.binary(), pa.list_(pa.int16()), pa.bool_()])
VALUES = {
    pa.int8(): st.integers(-128, 127),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(),
    pa.binary(): st.binary(),
    pa.list_(pa.int16()): st.lists(st.integers(-5, 5), max_size=4),
    pa.bool_(): st.booleans(),
}


@st.composite
def tables(draw: st.DrawFn) -> Any:
    rows = draw(st.integers(0, 20))
    columns = {}
    for number, kind in enumerate(draw(st.lists(COLUMNS, min_size=1, max_size=4))):
        values = draw(st.lists(st.none() | VALUES[kind], min_size=rows, max_size=rows))
        cut = draw(st.integers(0, rows))
        repeat = 200 if draw(st.booleans()) else 1
        columns[str(number)] = (kind, [values[:cut] * repeat, values[cut:] * repeat], repeat)
    if len({repeat for *_, repeat in columns.values()}) > 1:
        columns = {"0": columns["0"]}
    return pa.table({name: pa.chunked_array(chunks, type=kind) for name, (kind, chunks, _) in columns.items()})


@settings(deadline=None, max_examples=100)
@given(tables(), st.data())
def test_any_table_and_any_slice(table, data):
    check(table)
    start = data.draw(st.integers(0, table.num_rows))
    check(table.slice(start, data.draw(st.integers(0, table.num_rows - start))))
