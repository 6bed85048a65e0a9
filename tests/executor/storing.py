"""What the tests of the object store share: what it holds, what a copy is, when two values are the same.

Imported by workers: nothing heavy is imported here before it is needed.
"""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path
from typing import Any

import dpool
from tests.executor.support import LONG_S
from tests.helpers import wait_until

MB = 1 << 20
LARGE = 40_000
"""Eight-byte numbers that do not fit into a message."""


# --- The store ---


def objects() -> int:
    """How many objects the store holds."""
    return dpool.store_stats().objects


def stored_bytes() -> int:
    """Bytes of the objects of the store, without the room that processes have taken for the next ones."""
    return sum(one.size for one in dpool.store_stats(listing=True).listing)


def becomes_empty() -> None:
    """Wait until nobody holds or maps anything: to be called when all references have been dropped."""
    gc.collect()

    def left() -> Any:
        stats = dpool.store_stats(listing=True)
        return None if (stats.objects, stats.pinned, stats.spilled_objects) == (0, 0, 0) else stats

    try:
        wait_until(lambda: left() is None, LONG_S)
    except AssertionError:
        raise AssertionError(f"something is left in the store: {left()}") from None


def forget_plain_pickles() -> None:
    """As if this process had ended: what it pickled by itself is held no longer."""
    from dpool._core import storage

    storage.client().escaped.clear()


def holds(count: int) -> None:
    """Wait until the store holds so many objects."""
    wait_until(lambda: objects() == count, LONG_S, f"the store holds {count} objects")


# --- Memory ---


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory of a process that lies in no file: a copy of a stored value adds to it, a mapping does not."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("smaps_rollup has no line Anonymous")


def mapped_from_store(address: int, pid: int | str = "self") -> bool:
    """Whether an address lies in a mapping of the store."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
        if start <= address < end:
            return "dpool-store" in line
    return False


def address_of(array: Any) -> int:
    """Where the data of a numpy array lie."""
    return int(array.__array_interface__["data"][0])


# --- Tasks ---


def pid() -> int:
    return os.getpid()


def zeros(count: int = LARGE) -> Any:
    """An array, made in the worker."""
    import numpy as np

    return np.zeros(count)


def counted(count: int = LARGE, start: int = 0) -> Any:
    """`start`, `start` + 1, …, made in the worker."""
    import numpy as np

    return np.arange(start, start + count, dtype=np.float64)


def total(*arrays: Any, **more: Any) -> float:
    return float(sum(one.sum() for one in (*arrays, *more.values())))


def overwrite(array: Any, number: float = -1.0) -> float:
    """Write into an argument; what it was before, summed."""
    before = float(array.sum())
    array[...] = number
    return before


def get_inside(container: Any) -> Any:
    """The value of the one reference in a list, a dict or an attribute `ref`."""
    if isinstance(container, dict):
        (ref,) = container.values()
    elif isinstance(container, (list, tuple)):
        (ref,) = container
    else:
        ref = container.ref
    assert isinstance(ref, dpool.ObjectRef)
    return dpool.get(ref)


# --- Equality ---


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same in every way that their users can see; AssertionError says in which not."""
    assert type(a) is type(b), (type(a), type(b))
    roots = [cls.__module__.partition(".")[0] for cls in type(a).__mro__]
    check = next((_CHECKS[root] for root in roots if root in _CHECKS), None)
    if check is not None:
        check(a, b)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        assert all(equal(x, y) for x, y in zip(a, b, strict=True))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert all(equal(a[key], b[key]) for key in a)
    elif isinstance(a, memoryview):
        assert (a.format, a.shape, a.readonly) == (b.format, b.shape, b.readonly)
        assert a.tobytes() == b.tobytes()
    elif "__eq__" not in {name for cls in type(a).__mro__[:-1] for name in vars(cls)}:
        assert equal(vars(a), vars(b))
    else:
        assert a == b
    return True


def _numpy(a: Any, b: Any) -> None:
    import numpy as np

    if not isinstance(a, np.ndarray):
        assert a == b or (a != a and b != b)
        return
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.dtype.str == b.dtype.str  # the byte order too
    if isinstance(a, np.ma.MaskedArray):
        assert equal(np.asarray(np.ma.getmaskarray(a)), np.asarray(np.ma.getmaskarray(b)))
        assert a.tobytes() == b.tobytes()
    elif a.dtype.hasobject:
        assert a.tolist() == b.tolist()
    else:
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    if a.flags.forc:
        assert (a.flags.c_contiguous, a.flags.f_contiguous) == (b.flags.c_contiguous, b.flags.f_contiguous)


def _pandas(a: Any, b: Any) -> None:
    import pandas as pd

    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, check_freq=True)
    elif isinstance(a, pd.Series):
        pd.testing.assert_series_equal(a, b)
    else:
        pd.testing.assert_index_equal(a, b, exact=True)


def _pyarrow(a: Any, b: Any) -> None:
    if hasattr(a, "schema"):
        assert a.schema.equals(b.schema, check_metadata=True)
    else:
        assert a.type == b.type
    b.validate(full=True)
    assert a.equals(b)


def _scipy(a: Any, b: Any) -> None:
    assert (a.format, a.dtype, a.shape, a.nnz) == (b.format, b.dtype, b.shape, b.nnz)
    assert (a != b).nnz == 0


def _torch(a: Any, b: Any) -> None:
    import torch

    assert (a.dtype, a.shape, a.stride(), a.requires_grad) == (b.dtype, b.shape, b.stride(), b.requires_grad)
    assert torch.equal(a, b)


def _sklearn(a: Any, b: Any) -> None:
    assert equal(vars(a), vars(b)) if not hasattr(a, "estimators_") else pickle.dumps(a) == pickle.dumps(b)


_CHECKS: dict[str, Any] = {
    "numpy": _numpy,
    "pandas": _pandas,
    "pyarrow": _pyarrow,
    "scipy": _scipy,
    "torch": _torch,
    "sklearn": _sklearn,
}
