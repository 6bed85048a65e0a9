"""How long until 100 tasks have read one stored array of 100 MB, putting it into the store included?

`put` (ray: `ray.put`, dask: `scatter`), 100 tasks that get the reference and sum one element in each MiB, all results;
then the reference is dropped. The array's first element is another one each time. Pools without a store would copy the
array a hundred times; they are left out.
"""

from __future__ import annotations

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most
from benchmarks.peers import Peer
from benchmarks.steady import expect, series, store_subjects, tabulate, timed


def measure(peer: Peer, size: Size) -> Sample:
    tasks = int(size["tasks"])
    array = work.numbers(int(size["bytes"]))
    base = work.touch(array)

    def put_and_read(number: int) -> None:
        reference = peer.put(array)
        expect(set(peer.submit_many(work.touch, [(reference,)] * tasks)), {base + number})

    def call(number: int) -> float:
        array[0] = number
        return timed(lambda: put_and_read(number))

    return series(peer, size, call, array.nbytes).sample("shared")


def judge(results: Results) -> list[Verdict]:
    return [at_most("100 MB object read by 100 tasks / ray", results.ratio("dpool", "ray", "shared_ms"), 0.3)]


BENCHMARK = Benchmark(
    name="store_shared",
    question="how long until 100 tasks have read one object of 100 MB, its put included?",
    metrics=(
        Metric("shared_ms", "put, 100 tasks, results, median", "ms"),
        Metric("shared_mean_ms", "the same, mean", "ms"),
    ),
    subjects=store_subjects("dpool", "ray", "dask"),
    sizes={
        "full": {
            "bytes": 1e8,
            "tasks": 100,
            "least": 10,
            "window": 5,
            "fill": 1,
            "warm_s": 10,
            "rounds": 60,
            "rounds_s": 5,
        },
        "quick": {
            "bytes": 2e7,
            "tasks": 100,
            "least": 4,
            "window": 2,
            "fill": 0,
            "warm_s": 1,
            "rounds": 5,
            "rounds_s": 1,
        },
        "tiny": {"bytes": 2e6, "tasks": 5, "least": 2, "window": 1, "fill": 0, "warm_s": 0, "rounds": 2, "rounds_s": 0},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    needs=("numpy",),
    puts=True,
    tabulate=tabulate,
)
