"""How long does `Pool.map` take over 200 arrays of 10 MB, all different?

The function adds one element of each MiB, and the result proves it. The arrays lie in the driver's own memory: each
has to be brought to a worker.
"""

from __future__ import annotations

import statistics
import time

from benchmarks import work
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.peers import Peer


def measure(peer: Peer, size: Size) -> Sample:
    arrays = [work.numbers(int(size["bytes"]), number) for number in range(int(size["arrays"]))]
    expected = [work.touch(array) for array in arrays]
    pool = peer.pool(WORKERS)
    taken_s: list[float] = []
    try:
        for _ in range(int(size["rounds"])):
            begin = time.perf_counter()
            found = pool.map(work.touch, arrays)
            taken_s.append(time.perf_counter() - begin)
            if found != expected:
                raise AssertionError("map gave wrong sums")
    finally:
        pool.terminate()
    return {"arrays_ms": statistics.median(taken_s) * 1e3}


def judge(results: Results) -> list[Verdict]:
    return [at_most("map over 200 arrays of 10 MB / mp.Pool", results.ratio("dpool", "mp", "arrays_ms"), 0.1)]


BENCHMARK = Benchmark(
    name="pool_arrays",
    question="how long does Pool.map take over 200 different arrays of 10 MB?",
    metrics=(Metric("arrays_ms", "median", "ms"),),
    subjects=every_peer("dpool", "mp", "ray"),
    sizes={
        "full": {"arrays": 200, "bytes": 1e7, "rounds": 3},
        "quick": {"arrays": 200, "bytes": 1e7, "rounds": 1},
        "tiny": {"arrays": 4, "bytes": 2e6, "rounds": 1},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    needs=("numpy",),
)
