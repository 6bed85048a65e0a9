"""The functions that the benchmarks run in workers: importable, so that every peer ships them by name.

`spin` does a fixed amount of work, it does not wait for a time to pass. A loop that watches the clock would also "work"
while another process has its core, and would credit a peer with parallelism that it does not have.
"""

from __future__ import annotations

import os
import time
from itertools import repeat

_CALIBRATION_LOOPS = 100_000
_CALIBRATION_ROUNDS = 7


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
