"""The flat form: value in = value out, in place, no alias, and no malformed bytes are believed."""

from __future__ import annotations

import copy
import ctypes
import pickle
import struct
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpool._store import serde
from tests.helpers import run_script
from tests.store.flat import address, again, flat_of, mapped

LIMITS = (0, 1, serde.BUFFER_LIMIT, 64 * 1024, serde.PIECE)
"""Where something changes: out of band, handed over by the pickler as it is, copied in pieces."""


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit and type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return bool(one.tolist() == other.tolist() if one.dtype.hasobject else one.tobytes() == other.tobytes())
    if isinstance(one, memoryview):
        mine = (one.format, one.shape, one.readonly, one.tobytes())
        return mine == (other.format, other.shape, other.readonly, other.tobytes())
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def view_of(memory: Any) -> Any:
    return memoryview(memory)


# ---------------------------------------------------------------------------------------- numpy

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(endianness="?"),
    hnp.array_dtypes(allow_subarrays=True),
    st.just(np.dtype(object)),
)
SHAPES = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    st.sampled_from([(5000,), (70, 60), (0, 3), (3, 0, 2), (20, 10, 30)]),
)
LAYOUTS = ("C", "F", "every second", "backwards", "unaligned", "transposed")


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    dtype, shape = draw(DTYPES), draw(SHAPES)
    if dtype.hasobject:
        array = np.empty(shape, dtype)
        array.fill(draw(st.sampled_from([None, "text", 1 << 70, (1, 2)])))
    else:
        if dtype.subdtype is not None:
            dtype = dtype.base
        size = int(np.prod(shape)) * dtype.itemsize
        seed = draw(st.binary(min_size=1, max_size=64))
        array = np.frombuffer(np.resize(np.frombuffer(seed, "u1"), size).tobytes(), dtype, int(np.prod(shape)))
        if dtype.kind in "bU" or dtype.names:  # not every pattern of bits is one of their values
            array = np.zeros(array.shape, dtype)
        array = array.reshape(shape).copy()
    array = laid_out(array, draw(st.sampled_from(LAYOUTS)))
    array.flags.writeable = draw(st.booleans())
    return array


def laid_out(array: Any, layout: str) -> Any:
    """An equal array, in memory as the layout says."""
    if layout == "F":
        return np.asfortranarray(array) if array.ndim else array
    if layout == "transposed":
        return np.ascontiguousarray(array.T).T if array.ndim else array
    if layout == "unaligned" and not array.dtype.hasobject and array.size and array.dtype.itemsize:
        memory = bytearray(1) + array.tobytes()
        return np.frombuffer(memory, array.dtype, array.size, 1).reshape(array.shape)
    if not array.ndim or layout not in ("every second", "backwards"):
        return array
    step = 2 if layout == "every second" else -1
    base = np.repeat(array, 2, axis=0)[::2] if step < 0 else np.repeat(array, 2, axis=0)
    return base[::-1].copy()[::-1] if step < 0 else base[::2]


@settings(deadline=None, max_examples=300)
@given(arrays())
def test_an_array_comes_out_as_it_went_in(array):
    result = again(array)
    by_numpy = pickle.loads(pickle.dumps(array, 5))
    if array.nbytes < serde.BUFFER_LIMIT and by_numpy.dtype != array.dtype:
        array = by_numpy  # there it makes some big-endian arrays native
    assert same(result, array)
    contiguous = array.flags.c_contiguous or array.flags.f_contiguous
    if contiguous:
        assert (result.flags.c_contiguous, result.flags.f_contiguous) == (
            array.flags.c_contiguous,
            array.flags.f_contiguous,
        )
        if exports_buffer(array):  # of others numpy's own pickle does not keep it
            assert result.flags.writeable == array.flags.writeable


def exports_buffer(array: Any) -> bool:
    try:
        memoryview(array)
    except ValueError:
        return False
    return bool(array.dtype.itemsize) and not array.dtype.hasobject


ODD = {
    "datetime": lambda: np.arange(10_000).astype("M8[s]"),
    "big-endian datetime": lambda: np.arange(10_000).astype(">M8[ms]"),
    "timedelta": lambda: np.arange(10_000).astype("m8[D]").reshape(100, 100).T,
    "strided": lambda: np.arange(40_000).reshape(200, 200)[:, ::2],
    "backwards": lambda: np.arange(10_000)[::-1],
    "transposed": lambda: np.arange(60_000).reshape(30, 40, 50).transpose(1, 0, 2),
    "strided datetime": lambda: np.arange(40_000).astype("M8[s]")[::3],
    "broadcast": lambda: np.broadcast_to(np.arange(100.0), (100, 100)),
    "structured": lambda: np.zeros(10_000, "i4, f8, S3")[::2],
}


@pytest.mark.parametrize("kind", ODD)
def test_what_numpy_would_copy_into_the_stream_lies_in_the_flat_form_too(kind):
    array: Any = ODD[kind]()
    with mapped(array) as mapping:
        result = mapping.load()
        assert same(result, array)
        assert mapping.holds(result.__array_interface__["data"][0], result.nbytes)
        assert result.flags.writeable
        assert mapping.size < 1.1 * array.nbytes
        del result


def test_points_in_time_stay_read_only():
    array: Any = np.arange(10_000).astype("M8[s]")
    array.flags.writeable = False
    assert not again(array).flags.writeable


@pytest.mark.parametrize("readonly", [False, True])
def test_an_array_lies_in_the_flat_form_and_keeps_it_alive(readonly):
    array: Any = np.arange(10_000)
    array.flags.writeable = not readonly
    with mapped([array, "text"]) as mapping:
        result = mapping.load()
        assert mapping.holds(result[0].ctypes.data, result[0].nbytes)
        assert result[0].ctypes.data % serde.ALIGNMENT == mapping.start % serde.ALIGNMENT == 0
        with pytest.raises(BufferError):
            mapping.memory.close()
        assert same(result, [array, "text"])
        del result


def test_a_value_in_band_does_not_refer_to_the_flat_form():
    with mapped(["text", np.arange(10), bytes(100_000)]) as mapping:
        result = mapping.load()
        mapping.memory.close()
        assert same(result, ["text", np.arange(10), bytes(100_000)])


def test_an_array_that_occurs_twice_is_one_object_stored_once():
    array = np.arange(10_000)
    flat = flat_of([array, {"again": array}])
    assert len(flat) < 1.5 * array.nbytes
    first, rest = serde.load(memoryview(flat))
    assert first is rest["again"]


def test_two_private_copies_do_not_see_each_other():
    flat = flat_of({"a": np.zeros(10_000), "m": memoryview(bytearray(40_000))})
    mine, other = (serde.load(memoryview(copy.copy(flat))) for _ in range(2))
    mine["a"][:] = 1
    mine["m"][0] = 1
    assert not other["a"].any()
    assert not any(other["m"])


def test_what_is_loaded_is_as_writable_as_the_flat_form():
    flat = flat_of([np.zeros(10_000), memoryview(bytearray(40_000))])
    assert serde.load(memoryview(flat))[0].flags.writeable
    array, view = serde.load(memoryview(flat).toreadonly())
    assert not array.flags.writeable
    assert view.readonly


# ---------------------------------------------------------------------------------------- other values

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.binary().map(bytearray),
    st.binary().map(view_of),
    st.sampled_from([bytes(serde.BUFFER_LIMIT), bytearray(70_000), memoryview(bytes(20_000)), "é" * 40_000]),
    arrays().map(lambda array: array.astype(array.dtype.newbyteorder("="))),
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(VALUES)
def test_nested_values_come_out_as_they_went_in(value):
    parts = serde.dumps(value)
    flat = parts.to_bytes()
    assert serde.is_flat(flat)
    assert same(serde.load(memoryview(flat)), value)
    if not parts.has_buffers:
        assert not serde.is_flat(parts.stream())
        assert same(pickle.loads(parts.stream()), value)


@pytest.mark.parametrize("size", sorted({limit + d for limit in LIMITS for d in (-1, 0, 1) if limit + d >= 0}))
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, str])
def test_sizes_around_the_limits(kind, size):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    value = data.decode() if kind is str else kind(data)
    assert same(again([value, 1]), [value, 1])


def test_cycles():
    loop: list = [np.zeros(10_000)]
    loop.append({"loop": loop})
    result = again(loop)
    assert result[1]["loop"] is result
    assert same(result[0], loop[0])


def test_large_bytes_are_not_copied_before_they_are_written():
    value = bytearray(100_000)
    parts = serde.dumps(value)
    value[5] = 7
    assert serde.load(memoryview(parts.to_bytes()))[5] == 7
    with pytest.raises(BufferError):
        value.append(1)
    parts.release()
    value.append(1)
    assert not parts.has_buffers


def test_an_object_that_keeps_its_pickle_buffer_still_has_it():
    class Keeper:
        def __init__(self) -> None:
            self.buffer = pickle.PickleBuffer(bytearray(50_000))

        def __reduce__(self) -> Any:
            return bytearray, (self.buffer,)

    keeper = Keeper()
    assert len(flat_of(keeper)) > 50_000
    assert again(keeper) == bytearray(50_000)


# ---------------------------------------------------------------------------------------- memoryview


def views() -> list[Any]:
    matrix = np.arange(12_000).reshape(100, 120)
    readonly = matrix.copy()
    readonly.flags.writeable = False
    simple: list[Any] = [view_of(np.arange(5000).astype(code)) for code in "?bBhHiIlLqQfd"]
    odd = [view_of(np.zeros(5000, dtype)) for dtype in ("F", "D", "e", ">i4", ">f8", "i4,f8", "U3", "S3")]
    return [
        *simple,
        *odd,
        view_of(bytes(range(256)) * 100).cast("c"),
        view_of(bytes(range(256)) * 100)[3:5000:7],
        view_of(bytearray(range(256)) * 100)[::-1],
        view_of(matrix),
        view_of(readonly),
        view_of(matrix.T),
        view_of(readonly.T),
        view_of(matrix[::2, ::3]),
        view_of(matrix.astype("D")[::2]),
        view_of(readonly.astype(">i4")),
        view_of(np.zeros((0, 5))),
        view_of(np.zeros(0)),
        view_of(b""),
        view_of(np.array(1.5)),
        view_of(np.array(1.5 + 1j)),
    ]


@pytest.mark.parametrize(
    "view", [pytest.param(one, id=f"{i}-{one.format}-{one.shape}") for i, one in enumerate(views())]
)
def test_a_memoryview_keeps_content_format_and_shape(view):
    assert same(again(view), view)


def test_a_memoryview_of_ctypes_comes_as_the_native_format():
    view = memoryview((ctypes.c_int32 * 3)(1, 2, 3))
    result = again(view)
    assert result == view
    assert (result.format, result.shape, result.readonly) == ("i", (3,), False)


def test_a_memoryview_lies_in_the_flat_form():
    with mapped(memoryview(bytearray(100_000)).cast("d")) as mapping:
        result = mapping.load()
        assert mapping.holds(address(result), result.nbytes)
        del result


def test_a_released_memoryview_is_an_error():
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(ValueError, match="released"):
        serde.dumps(view)


# ---------------------------------------------------------------------------------------- the form itself


def test_the_target_may_be_longer_and_not_shorter():
    parts = serde.dumps([np.arange(5000), np.arange(6001, dtype="i1").repeat(3)])
    dirty = bytearray(b"\xff" * (parts.nbytes + 100))
    parts.write_into(memoryview(dirty))
    assert dirty[: parts.nbytes] == parts.to_bytes()  # what was there before does not show between the buffers
    assert dirty[parts.nbytes :] == b"\xff" * 100
    assert len(serde.load(memoryview(dirty))) == 2
    with pytest.raises(ValueError, match="do not fit"):
        parts.write_into(memoryview(dirty)[: parts.nbytes - 1])


def test_the_stream_alone_needs_no_buffers():
    assert pickle.loads(serde.dumps([1, "two"]).stream()) == [1, "two"]
    with pytest.raises(ValueError, match="1 buffers"):
        serde.dumps(np.arange(5000)).stream()


@pytest.mark.parametrize(
    ("value", "readonly"),
    [
        ("no buffers", True),
        (memoryview(bytes(20_000)), True),
        (memoryview(bytearray(20_000)), False),
        ([memoryview(bytes(20_000)), memoryview(bytearray(20_000))], False),
        (bytearray(100_000), True),  # in the stream: loading copies it
    ],
)
def test_whether_a_read_only_mapping_serves(value, readonly):
    assert serde.flat_readonly(memoryview(flat_of(value))) is readonly


def test_an_exception_while_loading_leaves_nothing_behind():
    with mapped([memoryview(bytearray(20_000)), Refuses()]) as mapping, pytest.raises(RuntimeError, match="refused"):
        mapping.load()


class Refuses:
    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    raise RuntimeError("refused")


SAMPLE = flat_of([np.arange(5000), np.arange(4000), "text"])
HEAD = 24 + 2 * 16


@settings(deadline=None)
@given(st.integers(0, len(SAMPLE) - 1))
def test_a_truncated_form_is_refused(length):
    last = struct.unpack_from("<QQ", SAMPLE, 24 + 16)
    if length >= sum(last):
        return  # only padding is missing
    with pytest.raises(ValueError):
        serde.load(memoryview(SAMPLE)[:length])


@settings(deadline=None, max_examples=400)
@example(16, 133)
@given(st.integers(0, HEAD - 1), st.integers(1, 255))
def test_a_changed_header_or_table_is_refused_or_harmless(at, change):
    changed = bytearray(SAMPLE)
    changed[at] ^= change
    try:
        result = serde.load(memoryview(changed))
    except (ValueError, EOFError, pickle.UnpicklingError):  # the last two: the stream's length is another one
        return
    assert at in range(4, 5) or at >= 24  # the read-only flag; a buffer that is shorter or lies elsewhere
    assert len(result) == 3


def forged(
    magic: bytes = b"DPF1",
    flags: int = 0,
    reserved: int = 0,
    count: int = 1,
    stream: int | None = None,
    entries: tuple[tuple[int, int], ...] = ((128, 64),),
    pickled: bytes = pickle.dumps(bytearray(3), 5),
) -> memoryview:
    head = struct.pack("<4sIIIQ", magic, flags, count, reserved, len(pickled) if stream is None else stream)
    head += b"".join(struct.pack("<QQ", *entry) for entry in entries) + pickled
    return memoryview(bytearray(head.ljust(128, b"\0") + bytes(128)))


TAKES_ONE = pickle.dumps(pickle.PickleBuffer(bytearray(3)), 5, buffer_callback=lambda _: False)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (memoryview(b""), "header of 24 bytes, here are 0"),
        (forged(magic=b"DPF2"), "begins with"),
        (memoryview(pickle.dumps(list(range(20)))), "begins with"),
        (forged(flags=2), "flags 0x2"),
        (forged(reserved=1), "0x1"),
        (forged(count=0xFFFFFFFF), "table of 4294967295 buffers"),
        (forged(stream=1 << 63), "stream ends"),
        (forged(stream=0), "no pickle stream"),
        (forged(stream=5), "no pickle stream"),
        (forged(entries=((64, 8),), pickled=TAKES_ONE.ljust(40, b".")), "inside of"),
        (forged(entries=((129, 8),), pickled=TAKES_ONE), "no multiple of 64"),
        (forged(entries=((128, 129),), pickled=TAKES_ONE), "ends at 257"),
        (forged(entries=((1 << 63, 1 << 63),), pickled=TAKES_ONE), "behind the end"),
        (forged(entries=((320, 0),), pickled=TAKES_ONE), "behind the end"),
        (forged(count=2, entries=((128, 65), (192, 64)), pickled=TAKES_ONE), "buffer 1 begins at 192, inside of"),
        (forged(count=2, entries=((192, 8), (128, 8)), pickled=TAKES_ONE), "buffer 1 begins at 128, inside of"),
        (forged(count=2, entries=((128, 8), (192, 8)), pickled=TAKES_ONE), "1 of the 2 buffers"),
        (forged(count=0, entries=(), pickled=TAKES_ONE), "asks for more buffers than the 0"),
    ],
)
def test_malformed_forms_are_refused(form, message):
    with pytest.raises(ValueError, match=message):
        serde.load(form)


def test_a_flat_form_is_told_from_a_pickle():
    assert serde.is_flat(flat_of(1))
    assert serde.is_flat(memoryview(flat_of(1)))
    assert not serde.is_flat(pickle.dumps(1, 5))
    assert not serde.is_flat(b"")
    with pytest.raises(ValueError, match="begins with"):
        serde.flat_readonly(memoryview(pickle.dumps(list(range(20)), 5)))


# ---------------------------------------------------------------------------------------- what is loaded, and libraries


def test_nothing_is_imported_for_other_values():
    script = """
    import sys
    from dpool._store import serde

    class Table: __module__ = "pyarrow.lib2"
    class Tensor: __module__ = "elsewhere"
    class Odd: __module__ = None

    assert [serde.reducer_for(kind) for kind in (Table, Tensor, Odd, dict)] == [None] * 4
    view = memoryview(bytes(50_000))
    assert serde.load(memoryview(serde.dumps([view, {1: "a"}]).to_bytes())) == [view, {1: "a"}]
    print([name for name in ("numpy", "pyarrow", "torch", "dpool._store.arrow") if name in sys.modules])
    """
    assert run_script(dedent(script)).check().stdout.strip() == "[]"


def test_pandas():
    pd = pytest.importorskip("pandas")
    n = 10_000
    frame = pd.DataFrame(
        {
            "i": np.arange(n),
            "f": np.linspace(0, 1, n),
            "s": [f"text {i}" for i in range(n)],
            "t": pd.date_range("2020-01-01", periods=n, freq="min", tz="Europe/Berlin"),
            "c": pd.Categorical(["a", "b"] * (n // 2)),
            "o": [(i,) for i in range(n)],
            "n": pd.array([1, None] * (n // 2), dtype="Int64"),
        }
    )
    pd.testing.assert_frame_equal(again(frame), frame)
    pd.testing.assert_frame_equal(again(frame[::3]), frame[::3])
    pd.testing.assert_series_equal(again(frame["s"]), frame["s"])
    result = again(frame)
    result.loc[:, "f"] = 5.0
    assert (result["f"] == 5.0).all()


def test_pandas_numbers_lie_in_the_flat_form():
    pd = pytest.importorskip("pandas")
    with mapped(pd.DataFrame({"a": np.arange(10_000), "b": np.arange(10_000)})) as mapping:
        result = mapping.load()
        column = result["a"].to_numpy()
        assert mapping.holds(column.ctypes.data, column.nbytes)
        del result, column


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
def test_scipy_sparse(form):
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(40, 50, 0.9, format=form, random_state=1)
    result = again(matrix)
    assert type(result) is type(matrix)
    assert (result != matrix).nnz == 0


def test_scikit_learn():
    ensemble = pytest.importorskip("sklearn.ensemble")
    rows = np.random.default_rng(1).random((200, 20))
    model = ensemble.RandomForestRegressor(n_estimators=20, random_state=1).fit(rows, rows.sum(axis=1))
    assert (again(model).predict(rows) == model.predict(rows)).all()
