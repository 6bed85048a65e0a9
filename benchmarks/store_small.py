"""How long does `get(put(value))` take for 1 KB?

The value is a `bytes` object of 1,024 bytes that begins with the number of the call; one pair at a time, back to back.
"""

from __future__ import annotations

from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most
from benchmarks.peers import Peer
from benchmarks.steady import expect, series, store_subjects, tabulate, timed

_BYTES = 1024


def measure(peer: Peer, size: Size) -> Sample:
    def call(number: int) -> float:
        value = number.to_bytes(8, "little").ljust(_BYTES, b"x")
        return timed(lambda: expect(peer.fetch(peer.put(value)), value))

    return series(peer, size, call).sample("pair", 1e6, "us")


def judge(results: Results) -> list[Verdict]:
    return [at_most("put and get of 1 KB / ray", results.ratio("dpool", "ray", "pair_us"), 0.2)]


BENCHMARK = Benchmark(
    name="store_small",
    question="how long do put and get of 1 KB take?",
    metrics=(Metric("pair_us", "put and get, median", "µs"), Metric("pair_mean_us", "put and get, mean", "µs")),
    subjects=store_subjects("dpool", "ray", "dask"),
    sizes={
        "full": {"least": 500, "window": 100, "fill": 0, "warm_s": 5, "rounds": 5000, "rounds_s": 3},
        "quick": {"least": 50, "window": 20, "fill": 0, "warm_s": 0.5, "rounds": 1000, "rounds_s": 0.5},
        "tiny": {"least": 5, "window": 2, "fill": 0, "warm_s": 0, "rounds": 20, "rounds_s": 0.1},
    },
    judge=judge,
    repeat=5,
    measure=measure,
    puts=True,
    tabulate=tabulate,
)
