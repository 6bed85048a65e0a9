"""How long does it take to put an array of 100 MB into the store, against a plain copy of memory?

In turn, in the same process: `put` of the array (its reference is dropped untimed), and `numpy.copyto` into memory that
has been written to before. The ratio is that of the two medians of one repetition.
"""

from __future__ import annotations

import importlib
import statistics
import time
from typing import Any

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most
from benchmarks.peers import Peer
from benchmarks.steady import expect, series, store_subjects, tabulate, timed


def measure(peer: Peer, size: Size) -> Sample:
    numpy: Any = importlib.import_module("numpy")
    array = work.numbers(int(size["bytes"]))
    target = array.copy()
    copies_s: list[float] = []

    def call(number: int) -> float:
        array[0] = number
        begin = time.perf_counter()
        reference = peer.put(array)
        put_s = time.perf_counter() - begin
        del reference
        copies_s.append(timed(lambda: numpy.copyto(target, array)))
        return put_s

    puts = series(peer, size, call, array.nbytes)
    array[0] = -1
    expect(int(peer.fetch(peer.put(array))[0]), -1)
    copy_s = statistics.median(copies_s[-len(puts.times_s) :])
    return {**puts.sample("put"), "copy_ms": copy_s * 1e3, "put_per_copy": puts.median_s / copy_s}


def judge(results: Results) -> list[Verdict]:
    return [at_most("put of 100 MB / plain copy into warm memory", results.median("dpool", "put_per_copy"), 1.3)]


BENCHMARK = Benchmark(
    name="store_put",
    question="how long does the put of an array of 100 MB take, in the steady state?",
    metrics=(
        Metric("put_ms", "put, median", "ms", digits=2),
        Metric("put_mean_ms", "put, mean", "ms", digits=2),
        Metric("copy_ms", "plain copy into warm memory", "ms", digits=2),
        Metric("put_per_copy", "put / plain copy", "", digits=2),
    ),
    subjects=store_subjects("dpool", "ray", "dask"),
    sizes={
        "full": {"bytes": 1e8, "least": 10, "window": 5, "fill": 1, "warm_s": 10, "rounds": 100, "rounds_s": 5},
        "quick": {"bytes": 2e7, "least": 4, "window": 2, "fill": 0, "warm_s": 1, "rounds": 10, "rounds_s": 0.5},
        "tiny": {"bytes": 2e6, "least": 2, "window": 1, "fill": 0, "warm_s": 0, "rounds": 2, "rounds_s": 0},
    },
    judge=judge,
    repeat=5,
    measure=measure,
    needs=("numpy",),
    puts=True,
    tabulate=tabulate,
)
