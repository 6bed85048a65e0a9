"""How long does a task take that returns an array of 100 MB?

One task at a time. The worker has the array already (making it is not measured) and writes the number of the call into
its first element; the caller reads that element and drops the array.
"""

from __future__ import annotations

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most
from benchmarks.peers import Peer
from benchmarks.steady import expect, series, store_subjects, tabulate, timed


def measure(peer: Peer, size: Size) -> Sample:
    nbytes = int(size["bytes"])

    def call(number: int) -> float:
        return timed(lambda: expect(int(peer.apply(work.kept, nbytes, number)[0]), number))

    return series(peer, size, call, nbytes).sample("result")


def judge(results: Results) -> list[Verdict]:
    return [at_most("100 MB result / ray", results.ratio("dpool", "ray", "result_ms"), 0.6)]


BENCHMARK = Benchmark(
    name="store_result",
    question="how long does a task take that returns an array of 100 MB, in the steady state?",
    metrics=(
        Metric("result_ms", "one element read, dropped, median", "ms"),
        Metric("result_mean_ms", "the same, mean", "ms"),
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
