"""Does `get` of a stored array depend on its size?

Arrays of 1 MB, 100 MB and 1 GB lie in the store. Timed is `get`, reading one element, and dropping the array. Where
there is not memory enough for 1 GB several times over, the largest is smaller, in steps of 100 MB; the table says how
large it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most
from benchmarks.peers import Peer
from benchmarks.steady import expect, series, store_subjects, tabulate, timed

_STEP_BYTES = 100_000_000
_COPIES = 5  # in the driver, in the store, and what a peer without shared memory needs on the way


def measure(peer: Peer, size: Size) -> Sample:
    large = largest(int(size["large"]), available_bytes())
    sample: dict[str, float] = {"large_mb": large / 1e6}
    for key, nbytes in (("small", int(size["small"])), ("middle", int(size["middle"])), ("large", large)):
        times = series(peer, size, _call(peer, peer.put(work.numbers(nbytes, first=nbytes)), nbytes))
        sample |= times.sample(key, 1e6, "us")
    return {**sample, "large_per_small": sample["large_us"] / sample["small_us"]}


def _call(peer: Peer, reference: Any, first: int) -> Callable[[int], float]:
    return lambda number: timed(lambda: expect(int(peer.fetch(reference)[0]), first))


def available_bytes() -> int:
    """Memory free for use, as the kernel estimates it; a control group's limit is not looked at."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def largest(wanted: int, available: int) -> int:
    """The greatest array there is memory for: `wanted`, or less in whole steps, but at least one step (or `wanted`)."""
    bearable = available // _COPIES // _STEP_BYTES * _STEP_BYTES
    return min(wanted, max(bearable, _STEP_BYTES))


def judge(results: Results) -> list[Verdict]:
    return [at_most("get of 1 GB / get of 1 MB", results.median("dpool", "large_per_small"), 2)]


BENCHMARK = Benchmark(
    name="store_get",
    question="how long does the get of a stored array take, small or large?",
    metrics=(
        Metric("small_us", "1 MB, median", "µs"),
        Metric("middle_us", "100 MB, median", "µs"),
        Metric("large_us", "1 GB, median", "µs"),
        Metric("large_per_small", "1 GB / 1 MB", "", digits=2),
        Metric("large_mb", "size of the largest", "MB", less_is_better=False, digits=0),
    ),
    subjects=store_subjects("dpool", "ray", "dask"),
    sizes={
        "full": {"small": 1e6, "middle": 1e8, "large": 1e9, "least": 10, "window": 5, "fill": 0, "warm_s": 5}
        | {"rounds": 500, "rounds_s": 3},
        "quick": {"small": 1e6, "middle": 1e7, "large": 1e8, "least": 4, "window": 2, "fill": 0, "warm_s": 0.5}
        | {"rounds": 100, "rounds_s": 0.5},
        "tiny": {"small": 1e5, "middle": 1e6, "large": 4e6, "least": 2, "window": 1, "fill": 0, "warm_s": 0}
        | {"rounds": 2, "rounds_s": 0},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    needs=("numpy",),
    puts=True,
    tabulate=tabulate,
)
