"""Times something again and again until the times are level, and only then for the record. For large objects.

The first hundred megabytes through a fresh process cost several times what the later ones do: pages are made, mappings
set up, buffers grown. A peer whose store has a fixed size has seen all its pages only when as many bytes as the store
holds have passed through it once; until then every other call may meet a fresh page. So such a peer is warmed up by
that many bytes, every peer by the least number of calls, and then each until two windows of calls agree.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.model import Results, Size, Subject
from benchmarks.peers import STORE_BYTES, Peer

CAPACITY_BYTES = 4 << 30
"""Of every store whose size can be set."""

_LEVEL = 0.1
"""Two windows of calls agree when their medians differ by no more than this share of the greater."""


class Series(NamedTuple):
    """Seconds of each call after the warm-up, and whether the times had become level by then."""

    times_s: list[float]
    level: bool

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    def sample(self, key: str, scale: float = 1e3, unit: str = "ms") -> dict[str, float]:
        """Median and mean (where fresh pages met now and then show), and `level` as 0 or 1."""
        mean = statistics.fmean(self.times_s)
        return {
            f"{key}_{unit}": self.median_s * scale,
            f"{key}_mean_{unit}": mean * scale,
            f"{key}_level": float(self.level),
        }


def store_subjects(*peers: str) -> tuple[Subject, ...]:
    """One subject per peer, the stores all of the same size."""
    return tuple(Subject(name, name, {STORE_BYTES: str(CAPACITY_BYTES)}) for name in peers)


def series(peer: Peer, size: Size, call: Callable[[int], float], nbytes: int = 0) -> Series:
    """Call until level, then for the record.

    `call(number)` moves `nbytes` bytes into the store and returns the seconds that count; `number` is another one each
    time, so that a call can put it into the data. `size` has `least` (calls of a warm-up), `window` (calls in each of
    the two that must agree), `fill` (1: a store is filled once before), `warm_s` (after which a warm-up ends anyway,
    but for filling the store), `rounds` and `rounds_s` (calls for the record, and after how long there are no more).
    """
    gc.collect()
    least, window = int(size["least"]), int(size["window"])
    if size["fill"] and peer.recycles and nbytes:
        least = max(least, math.ceil(int(os.environ.get(STORE_BYTES, CAPACITY_BYTES)) / nbytes))
    times_s: list[float] = []
    deadline = time.perf_counter() + size["warm_s"]
    while len(times_s) < least or not (level := is_level(times_s, window)):
        if len(times_s) >= least and time.perf_counter() > deadline:
            break
        times_s.append(call(len(times_s)))
    warm_ups = len(times_s)
    deadline = time.perf_counter() + size["rounds_s"]
    while len(times_s) < warm_ups + int(size["rounds"]) and (
        len(times_s) == warm_ups or time.perf_counter() < deadline
    ):
        times_s.append(call(len(times_s)))
    return Series(times_s[warm_ups:], level)


def is_level(times_s: list[float], window: int) -> bool:
    """Whether the last two windows agree."""
    if len(times_s) < 2 * window:
        return False
    last, before = statistics.median(times_s[-window:]), statistics.median(times_s[-2 * window : -window])
    return abs(last - before) <= _LEVEL * max(last, before)


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes, the end of what it returns included."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def expect(found: object, wanted: object) -> None:
    """A benchmark that moves wrong data measures nothing."""
    if found != wanted:
        raise AssertionError(f"the task saw {found!r:.200}, not {wanted!r:.200}")


def tabulate(results: Results) -> list[str]:
    """Names what was still changing when the record began."""
    lines = []
    for subject in results.subjects():
        keys = dict.fromkeys(key for sample in results.samples[subject] for key in sample if key.endswith("_level"))
        for key in keys:
            values = results.values(subject, key)
            if missed := values.count(0.0):
                name = key.removesuffix("_level")
                lines.append(f"    {subject}: {name} was not level after the warm-up in {missed} of {len(values)}")
    return lines
