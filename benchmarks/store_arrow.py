"""How long until 1 GB of Arrow tables has been summed by tasks?

Ten tables of 100 MB exist in the driver (making them is not measured). Each is the argument of one task, all ten are
submitted at once, and each task sums all columns; timed is from the first submission to the last sum. Every call has
fresh table objects around the same columns.
"""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most
from benchmarks.peers import Peer
from benchmarks.steady import expect, series, store_subjects, tabulate, timed


def measure(peer: Peer, size: Size) -> Sample:
    anew: Any = importlib.import_module("pyarrow").Table.from_arrays
    tables = [work.table(int(size["bytes"]), first) for first in range(int(size["tables"]))]
    sums = [work.table_sum(table) for table in tables]

    def call(number: int) -> float:
        arguments = [(anew(table.columns, schema=table.schema),) for table in tables]
        return timed(lambda: expect(peer.submit_many(work.table_sum, arguments), sums))

    return series(peer, size, call, sum(table.nbytes for table in tables)).sample("arrow")


def judge(results: Results) -> list[Verdict]:
    return [at_most("1 GB of Arrow tables summed by tasks / ray", results.ratio("dpool", "ray", "arrow_ms"), 0.5)]


BENCHMARK = Benchmark(
    name="store_arrow",
    question="how long until tasks have summed 1 GB of Arrow tables, ten of 100 MB?",
    metrics=(
        Metric("arrow_ms", "first submission to last sum, median", "ms", digits=0),
        Metric("arrow_mean_ms", "the same, mean", "ms", digits=0),
    ),
    subjects=store_subjects("dpool", "mp", "loky", "ray", "dask"),
    sizes={
        "full": {
            "bytes": 1e8,
            "tables": 10,
            "least": 4,
            "window": 2,
            "fill": 1,
            "warm_s": 10,
            "rounds": 15,
            "rounds_s": 6,
        },
        "quick": {
            "bytes": 2e7,
            "tables": 5,
            "least": 2,
            "window": 1,
            "fill": 0,
            "warm_s": 1,
            "rounds": 3,
            "rounds_s": 1,
        },
        "tiny": {
            "bytes": 1e6,
            "tables": 3,
            "least": 2,
            "window": 1,
            "fill": 0,
            "warm_s": 0,
            "rounds": 1,
            "rounds_s": 0,
        },
    },
    judge=judge,
    repeat=3,
    measure=measure,
    needs=("numpy", "pyarrow"),
    tabulate=tabulate,
)
