"""Value in = value out: through arguments, results, `put` and `get`, and deep inside containers."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import dpool
from tests.executor.storing import LARGE, MB, becomes_empty, equal, objects
from tests.executor.support import LONG_S, fail

pytestmark = pytest.mark.usefixtures("nothing_stays")
DTYPES = ["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "g", "F", "D", "S7", "U5", "m8[ms]", "M8[ns]", ">i4", ">f8"]
SIZES = (0, 1, 7, 1000, 16 * 1024, 64 * 1024, 128 * 1024 - 1, 128 * 1024, 128 * 1024 + 1, MB, 5 * MB)


def same(value: Any) -> Any:
    """What it was given."""
    return value


def nested(value: Any) -> Any:
    """A container that has the value twice, deep inside."""
    return {"deep": [1, (value, "text", {"again": [value]})]}


def goes_everywhere(ex: dpool.Executor, values: Iterable[tuple[str, Any]]) -> None:
    """Each value arrives as it was, on every way that there is."""
    count = 0
    for name, value in values:
        try:
            result = ex.submit(same, value).result(LONG_S)
            assert equal(value, result)
            inside = ex.submit(same, nested(value)).result(LONG_S)
            assert equal(nested(value), inside)
            if type(value) not in (bytes, str):
                assert inside["deep"][1][0] is inside["deep"][1][2]["again"][0]
            ref = dpool.put(value)
            assert equal(value, dpool.get(ref))
            assert equal(value, dpool.get(ref, copy=True))
            assert equal(nested(value), dpool.get(dpool.put(nested(value))))
            assert ex.submit(equal, value, ref).result(LONG_S)
            assert equal(value, ex.submit(same, ref).result(LONG_S))
            assert ex.submit(equal, a=ref, b=value).result(LONG_S)
        except BaseException as error:
            error.add_note(name) if hasattr(error, "add_note") else print(name)
            raise
        count += 1
    assert count
    del value, ref, result, inside
    becomes_empty()


def of_numpy() -> Iterable[tuple[str, Any]]:
    rng = np.random.default_rng(1)
    for dtype in DTYPES:
        size = 300_000 // np.dtype(dtype).itemsize
        raw = rng.integers(0, 2 if dtype == "?" else 50, size * np.dtype(dtype).itemsize, dtype=np.uint8)
        if dtype == "U5":
            large = np.array(["a", "bcd", "ä€𝄞"] * (size // 3))
            large = large.astype(dtype)
        else:
            large = raw.view(dtype)
        yield f"{dtype} large", large
        yield f"{dtype} small", large[:13].copy()
    table: Any = np.zeros(20_000, dtype=[("x", "<f8"), ("name", "S3"), ("part", [("y", ">i2"), ("z", "?", (2, 2))])])
    table["x"], table["name"] = np.arange(20_000), b"abc"
    yield "structured", table
    matrix = rng.random((200, 300))
    yield "C", matrix
    yield "Fortran", np.asfortranarray(matrix)
    yield "transposed", np.arange(60_000.0).reshape(30, 40, 50).transpose(2, 0, 1)
    yield "strided", matrix[::2, ::3]
    yield "backwards", matrix[::-1]
    yield "broadcast", np.broadcast_to(np.arange(300.0), (200, 300))
    yield "unaligned", np.frombuffer(b"x" + matrix.tobytes(), np.float64, offset=1)
    yield "unaligned field", table["part"]["y"]
    yield "no elements", np.empty((0, 300_000))
    yield "no dimensions", np.array(3.5)
    yield "scalar", np.float64(2.5)
    yield "objects", np.array([None, "text", 3, (1, 2)] * 10_000, dtype=object)
    yield "masked", np.ma.masked_greater(np.arange(float(LARGE)), 17.0)
    yield "inf and nan", np.array([np.nan, np.inf, -0.0] * LARGE)


def test_numpy(ex: dpool.Executor) -> None:
    goes_everywhere(ex, of_numpy())


@pytest.mark.parametrize("count", [10, LARGE])
def test_what_is_read_only_stays_so_and_nothing_else_becomes_so(ex: dpool.Executor, count: int) -> None:
    frozen = np.arange(float(count))
    frozen.flags.writeable = False
    free = np.arange(float(count))
    for form in (free, np.asfortranarray(free.reshape(2, -1)), free[::2].copy(), bytearray(free)):
        for arrived in (ex.submit(same, form).result(LONG_S), dpool.get(dpool.put(form))):
            assert not memoryview(arrived).readonly
    if count == LARGE:
        assert not ex.submit(same, frozen).result(LONG_S).flags.writeable
        assert not dpool.get(dpool.put(frozen)).flags.writeable
        both = dpool.get(dpool.put([frozen, free]))
        assert [one.flags.writeable for one in both] == [False, True]


@pytest.mark.needs("module:pandas")
def test_pandas(one: dpool.Executor) -> None:
    import pandas as pd

    def values() -> Iterable[tuple[str, Any]]:
        for size in (5, 9_000):
            when = pd.date_range("2024-03-30", periods=size, freq="min", tz="Europe/Berlin")
            texts = [f"text {n % 1000}" if n % 7 else None for n in range(size)]
            frame = pd.DataFrame(
                {
                    "x": np.arange(float(size)),
                    "n": np.arange(size, dtype=np.int16),
                    "text": pd.Series(texts, dtype="str"),
                    "kind": pd.Categorical([f"c{n % 3}" for n in range(size)], ["c2", "c1", "c0"], ordered=True),
                    "when": when,
                    "maybe": pd.array([None, *range(size - 1)], dtype="Int32"),
                    "took": pd.to_timedelta(np.arange(size), unit="s"),
                    "any": [(n, None) if n % 2 else "s" for n in range(size)],
                },
                index=pd.Index([f"row {n}" for n in range(size)], name="rows"),
            )
            frame.attrs["source"] = "here"
            yield f"frame {size}", frame
            yield f"one block {size}", pd.DataFrame(np.random.default_rng(2).random((size, 4)), columns=list("abcd"))
            yield f"slice {size}", frame.iloc[1::3, ::2]
            yield f"multi-index {size}", frame.set_index(["n", "kind"])[["x"]]
            for name in frame.columns:
                yield f"series {name} {size}", frame[name]
            yield f"range {size}", pd.RangeIndex(3, 3 * size, 3, name="r")
            yield f"times {size}", when
            yield f"texts {size}", frame.index
            yield f"categories {size}", pd.CategoricalIndex(frame["kind"])
            yield f"intervals {size}", pd.interval_range(0, size)
            yield f"sparse {size}", pd.Series(pd.arrays.SparseArray([0.0, 1.0] + [0.0] * size))

    goes_everywhere(one, values())


@pytest.mark.needs("module:pandas")
def test_a_task_writes_into_a_data_frame(one: dpool.Executor) -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": np.arange(float(LARGE)), "b": np.arange(LARGE)})
    arrived = one.submit(same, frame).result(LONG_S)
    arrived.loc[3, "a"] = -1.0
    arrived["b"] += 1
    assert (frame.loc[3, "a"], frame["b"].iloc[0]) == (3.0, 0)
    assert (arrived.loc[3, "a"], arrived["b"].iloc[0]) == (-1.0, 1)
    ref = dpool.put(frame)
    first = dpool.get(ref)
    first.iloc[:, 0] = 0.0
    pd.testing.assert_frame_equal(dpool.get(ref), frame)


@pytest.mark.needs("module:pyarrow")
def test_arrow(one: dpool.Executor) -> None:
    import decimal

    import pyarrow as pa

    def arrays(size: int) -> Iterable[tuple[str, Any]]:
        yield "float", pa.array(np.arange(float(size)))
        yield "with nulls", pa.array([n if n % 3 else None for n in range(size)], pa.int64())
        yield "text", pa.array([f"text {n}" if n % 5 else None for n in range(size)])
        yield "large text", pa.array(["ä" * (n % 9) for n in range(size)], pa.large_string())
        yield "truth", pa.array([bool(n % 3) for n in range(size)])
        yield "dictionary", pa.array([f"word {n % 11}" for n in range(size)]).dictionary_encode()
        yield "lists", pa.array([list(range(n % 4)) if n % 6 else None for n in range(size)])
        yield "structs", pa.array([{"a": n, "b": [str(n)]} for n in range(size)])
        yield "null", pa.nulls(size)
        yield "times", pa.array(np.arange(size), pa.timestamp("us", "Asia/Tokyo"))
        yield "decimal", pa.array([decimal.Decimal(n) / 4 for n in range(size)], pa.decimal128(20, 2))

    def values() -> Iterable[tuple[str, Any]]:
        for size in (0, 6, 20_000):
            columns = dict(arrays(size))
            for name, array in columns.items():
                yield f"{name} {size}", array
                yield f"{name} {size} sliced", array[size // 3 : size // 2]
                yield f"{name} {size} chunked", pa.chunked_array([array[: size // 2], array[size // 2 :]])
            batch = pa.RecordBatch.from_pydict(columns).replace_schema_metadata({"k": "v"})
            yield f"batch {size}", batch
            table = pa.Table.from_batches([batch, batch[: size // 2], batch[size:]])
            yield f"table {size}", table
            yield f"table {size} sliced", table.slice(size // 3, size)
        yield "no chunks", pa.chunked_array([], pa.int8())
        yield "no columns", pa.table({})

    goes_everywhere(one, values())


def test_bytes_and_views(ex: dpool.Executor) -> None:
    def values() -> Iterable[tuple[str, Any]]:
        for size in SIZES:
            data = np.random.default_rng(size).bytes(size)
            for kind in (bytes, bytearray, memoryview):
                yield f"{kind.__name__} {size}", kind(data)
            yield f"writable view {size}", memoryview(bytearray(data))
            yield f"text {size}", data.decode("latin-1")
        counted: Any = np.arange(LARGE)
        numbers = memoryview(counted).cast("B").cast("q", [200, LARGE // 200])
        yield "view of two dimensions", numbers
        yield "every other", memoryview(counted)[::2]

    goes_everywhere(ex, values())


@pytest.mark.needs("module:scipy")
def test_scipy_sparse(one: dpool.Executor) -> None:
    from scipy import sparse

    def values() -> Iterable[tuple[str, Any]]:
        for size in (20, 3000):
            matrix = sparse.random(size, size, 0.01 if size > 100 else 0.2, random_state=size)
            for form in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok") if size < 100 else ("csr", "csc", "coo"):
                yield f"{form} {size}", matrix.asformat(form)
            yield f"array {size}", sparse.csr_array(matrix)

    goes_everywhere(one, values())


def fitted(data: Any, target: Any) -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression().fit(data, target)


def forest(data: Any, target: Any) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(20, random_state=1).fit(data, target)


def predict(model: Any, data: Any) -> Any:
    return model.predict(data)


@pytest.mark.needs("module:sklearn")
def test_a_fitted_model(one: dpool.Executor) -> None:
    rng = np.random.default_rng(3)
    data = rng.random((2000, 20))
    target = data.sum(axis=1)
    for make in (fitted, forest):
        model = make(data, target)
        expected = model.predict(data)
        ref = dpool.put(model)
        assert (one.submit(predict, ref, data).result(LONG_S) == expected).all()
        assert (one.submit(predict, model, data).result(LONG_S) == expected).all()
        assert (dpool.get(ref).predict(data) == expected).all()
        assert (one.submit(make, data, target).result(LONG_S).predict(data) == expected).all()
        refit = dpool.get(ref).fit(data, 2 * target)  # what it learnt may be written over
        assert not (refit.predict(data) == expected).all()
        assert (dpool.get(ref).predict(data) == expected).all()


@pytest.mark.needs("module:torch")
def test_torch(one: dpool.Executor) -> None:
    import torch

    def values() -> Iterable[tuple[str, Any]]:
        for size in (10, 60_000):
            tensor = torch.arange(float(size))
            yield f"tensor {size}", tensor
            yield f"bfloat16 {size}", tensor.to(torch.bfloat16)
            yield f"transposed {size}", tensor.reshape(2, -1).T
            yield f"parameter {size}", torch.nn.Parameter(tensor)

    goes_everywhere(one, values())
    model = torch.nn.Linear(300, 300)
    state = one.submit(same, model.state_dict()).result(LONG_S)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@dataclasses.dataclass
class Record:
    """Arrays among other things."""

    name: str
    array: Any
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Record)
        return self.name == other.name and equal([self.array, self.more], [other.array, other.more])


class Slots:
    """An object without a dictionary."""

    __slots__ = ("array", "text")

    def __init__(self, array: Any, text: str) -> None:
        self.array = array
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and self.text == other.text and equal(self.array, other.array)


class Labelled(np.ndarray):
    """A subclass of ndarray with an attribute."""

    label = ""

    def __reduce__(self) -> Any:
        reduced: Any = super().__reduce__()
        made, arguments, state = reduced
        return made, arguments, (*state, self.label)

    def __setstate__(self, state: Any) -> None:
        self.label = state[-1]
        super().__setstate__(state[:-1])


def test_objects_that_hold_arrays(ex: dpool.Executor) -> None:
    def values() -> Iterable[tuple[str, Any]]:
        for size in (3, LARGE):
            array = np.arange(float(size))
            yield f"dataclass {size}", Record("r", array, {"view": array[::2], "bytes": bytes(array)})
            yield f"slots {size}", Slots(array, "t")
            yield f"many {size}", [Record(str(n), array[: n * size // 20]) for n in range(20)]
            labelled: Any = array.view(Labelled)
            labelled.label = "mine"
            yield f"subclass {size}", labelled

    goes_everywhere(ex, values())
    labelled: Any = np.arange(float(LARGE)).view(Labelled)
    labelled.label = "mine"
    assert ex.submit(same, labelled).result(LONG_S).label == "mine"


class Node:
    """A link in a ring."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.next: Node = self


def turn_round(node: Node) -> Node:
    assert node.next.next is node
    node.array[0] = 5.0
    return node.next


@pytest.mark.parametrize("size", [3, LARGE])
def test_cycles(one: dpool.Executor, size: int) -> None:
    first, second = Node(np.zeros(size)), Node(np.ones(size))
    first.next, second.next = second, first
    other = one.submit(turn_round, first).result(LONG_S)
    assert other.next.next is other
    assert (other.array[0], other.next.array[0], first.array[0]) == (1.0, 5.0, 0.0)
    again = dpool.get(dpool.put(first))
    assert again.next.next is again
    assert equal(again.next.array, second.array)
    endless: list[Any] = [np.zeros(size)]
    endless.append(endless)
    got = one.submit(same, endless).result(LONG_S)
    assert got[1] is got
    del first, second, other, again, got
    one.submit(gc.collect).result(LONG_S)  # its argument was a cycle there too
    becomes_empty()


class Trouble(Exception):
    """Carries data."""

    def __init__(self, text: str, array: Any) -> None:
        super().__init__(text, array)
        self.array = array


@pytest.mark.parametrize("size", [3, LARGE, 600_000])
def test_exceptions_that_carry_arrays(ex: dpool.Executor, size: int) -> None:
    array = np.arange(float(size))
    for _ in range(2):
        future = ex.submit(fail, Trouble("too much", array))
        error = future.exception(LONG_S)
        assert type(error) is Trouble
        assert error.args[0] == "too much"
        assert equal(error.array, array)
        assert future.exception() is error
    with pytest.raises(Trouble) as caught:
        ex.submit(fail, Trouble("once more", array)).result(LONG_S)
    assert equal(caught.value.array, array)
    again = dpool.get(dpool.put(caught.value))
    assert type(again) is Trouble
    assert equal(again.array, array)
    del error, future, caught, again
    gc.collect()
    becomes_empty()


def aliases(a: Any, b: Any, *, c: Any, d: Any) -> tuple[bool, ...]:
    return a is b, c[0] is a, d.array is a


def test_one_object_in_many_places_of_a_call_is_one_object_there(ex: dpool.Executor, gate: Any) -> None:
    array = np.arange(float(LARGE))
    assert ex.submit(aliases, array, array, c=[array], d=Record("r", array)).result(LONG_S) == (True, True, True)
    ref = dpool.put(array)
    assert ex.submit(aliases, ref, ref, c=[None], d=Record("r", None)).result(LONG_S) == (True, False, False)
    future = ex.submit(gate.enter, "task", None)
    gate.entered()
    before = objects()
    stored = ex.submit(aliases, array, array, c=[array], d=Record("r", array))
    assert objects() == before + 1
    (size,) = [one.size for one in dpool.store_stats(listing=True).listing if one.size > array.nbytes + 1000] or [0]
    assert size < 2 * array.nbytes
    gate.open()
    assert future.result(LONG_S) is None
    assert stored.result(LONG_S) == (True, True, True)
