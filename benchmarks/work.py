"""The functions that the benchmarks run in workers: importable, so that every peer ships them by name.

`spin` does a fixed amount of work, it does not wait for a time to pass. A loop that watches the clock would also "work"
while another process has its core, and would credit a peer with parallelism that it does not have.
"""

from __future__ import annotations

import importlib
import os
import time
from itertools import repeat
from typing import Any

_CALIBRATION_LOOPS = 100_000
_CALIBRATION_ROUNDS = 7
_MIB_OF_INT64 = (1 << 20) // 8

_kept: dict[int, Any] = {}
_trees: dict[str, Any] = {}


def noop() -> None:
    """Do nothing: what is left is the cost of the peer."""


def identity(x: object) -> object:
    """Return the argument."""
    return x


def spin(loops: int) -> None:
    """Turn an empty loop `loops` times; `loops_for` says how many make a microsecond here."""
    # Not range(): its numbers up to 256 exist already, so short loops would turn faster than long ones.
    for _ in repeat(None, loops):
        pass


def spin_and_tell(loops: int) -> int:
    """Spin, then return the process id of the worker that did it."""
    spin(loops)
    return os.getpid()


def wait_at(gate: str) -> None:
    """Block until whoever holds the named pipe `gate` open for writing closes it."""
    with open(gate, "rb") as pipe:
        pipe.read()


def numbers(nbytes: int, first: int = 0) -> Any:
    """An array of `nbytes` bytes, 64-bit integers that count from `first`."""
    return importlib.import_module("numpy").arange(first, first + nbytes // 8, dtype="int64")


def touch(array: Any) -> int:
    """The sum of one element in each MiB of an array of `numbers`, the first of all included."""
    return int(array[::_MIB_OF_INT64].sum())


def read(array: Any) -> int:
    """The sum of all elements."""
    return int(array.sum())


def kept(nbytes: int, number: int) -> Any:
    """An array of `numbers` that this process makes once and keeps; its first element says `number`."""
    if nbytes not in _kept:
        _kept[nbytes] = numbers(nbytes)
    _kept[nbytes][0] = number
    return _kept[nbytes]


def table(nbytes: int, first: int) -> Any:
    """An Arrow table of `nbytes` bytes: four columns of 64-bit integers, four of floats, in one chunk."""
    pyarrow: Any = importlib.import_module("pyarrow")
    counted = numbers(nbytes // 8, first) % 1000
    whole = {f"i{number}": counted + number for number in range(4)}
    return pyarrow.table({**whole, **{f"f{number}": counted * 0.5 + number for number in range(4)}})


def table_sum(table: Any) -> float:
    """The sum of all columns of an Arrow table; exact for those that `table` makes."""
    total: Any = importlib.import_module("pyarrow.compute").sum
    return float(sum(total(column).as_py() for column in table.columns))


def loops_per_us() -> float:
    """How many turns of `spin`'s loop take one microsecond on this machine, at its best."""
    best_s = min(_timed_spin() for _ in range(_CALIBRATION_ROUNDS))
    return _CALIBRATION_LOOPS / (best_s * 1e6)


def loops_for(task_us: float, rate: float) -> int:
    """The argument of `spin` for a task of `task_us` microseconds, `rate` being `loops_per_us()`."""
    return max(1, round(task_us * rate))


def _timed_spin() -> float:
    begin = time.perf_counter()
    spin(_CALIBRATION_LOOPS)
    return time.perf_counter() - begin


class Counter:
    """What the actors of the benchmarks are."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, by: int = 1) -> int:
        """Add to the value; return it."""
        self.value += by
        return self.value


def increment(x: int) -> int:
    """One more."""
    return x + 1


def tree(api: str, nodes: int) -> int:
    """A binary tree of `nodes` nested tasks: each submits its children and waits for them. `api`: "dpool" or "ray"."""
    if nodes == 1:
        return 1
    module: Any = importlib.import_module(api)
    submit = _tree_task(api, module)
    left = (nodes - 1) // 2
    sizes: list[int] = module.get([submit(api, part) for part in (left, nodes - 1 - left) if part])
    return 1 + sum(sizes)


def _tree_task(api: str, module: Any) -> Any:
    if api not in _trees:
        _trees[api] = module.remote(tree)
    return _trees[api].remote
