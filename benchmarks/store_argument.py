"""How long does a task take that gets an array of 100 MB as its argument?

One task at a time, `submit(fn, array).result()`: the same array each time, but with another number in its first
element, so that nobody can answer from an earlier copy; the result proves it. Two functions: *touched*, which sums one
element in each MiB (the figure of the target: what it costs to hand the array over), and *read*, which sums all (where
mapped pages are really looked at). ray and dask get the array itself, not a reference made before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most
from benchmarks.peers import Peer
from benchmarks.steady import expect, series, store_subjects, tabulate, timed


def measure(peer: Peer, size: Size) -> Sample:
    array = work.numbers(int(size["bytes"]))
    sample: dict[str, float] = {}
    for key, fn in (("touch", work.touch), ("read", work.read)):
        sample |= series(peer, size, _call(peer, fn, array), array.nbytes).sample(key)
    return sample


def _call(peer: Peer, fn: Callable[[Any], int], array: Any) -> Callable[[int], float]:
    array[0] = 0
    base = fn(array)

    def call(number: int) -> float:
        array[0] = number
        return timed(lambda: expect(peer.apply(fn, array), base + number))

    return call


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("100 MB argument / mp.Pool", results.ratio("dpool", "mp", "touch_ms"), 0.06),
        at_most("100 MB argument / dask", results.ratio("dpool", "dask", "touch_ms"), 0.2),
    ]


BENCHMARK = Benchmark(
    name="store_argument",
    question="how long does a task take whose argument is an array of 100 MB, in the steady state?",
    metrics=(
        Metric("touch_ms", "touched, median", "ms"),
        Metric("touch_mean_ms", "touched, mean", "ms"),
        Metric("read_ms", "all read, median", "ms"),
        Metric("read_mean_ms", "all read, mean", "ms"),
    ),
    subjects=store_subjects("dpool", "mp", "ppe", "loky", "ray", "dask"),
    sizes={
        "full": {"bytes": 1e8, "least": 10, "window": 5, "fill": 1, "warm_s": 10, "rounds": 60, "rounds_s": 5},
        "quick": {"bytes": 2e7, "least": 4, "window": 2, "fill": 0, "warm_s": 1, "rounds": 5, "rounds_s": 0.5},
        "tiny": {"bytes": 2e6, "least": 2, "window": 1, "fill": 0, "warm_s": 0, "rounds": 2, "rounds_s": 0},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    needs=("numpy",),
    tabulate=tabulate,
)
