"""What does the control store (Redis, lineage) cost in throughput?

The same tasks with dpool's default settings and with DPOOL_GCS=off, in turn. "On" is measured once the store's process
runs; when none appears, and DPOOL_REDIS_URL names none elsewhere, there is no ratio, since both sides would be "off".
The load is a row of bursts, longer than the store's batching delay, so that writing the lineage falls into it.
"""

from __future__ import annotations

import gc
import os
import statistics
import time

from benchmarks import procs, work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_least
from benchmarks.peers import Peer

_KINDS = (("noop", 0, 10_000), ("100us", 100, 4_000), ("20ms", 20_000, 40))  # name, task µs, tasks in a burst
_STORE_NAMES = ("redis-server", "valkey-server")
_STORE_DEADLINE_S = 10.0
_POLL_S = 0.02


def measure(peer: Peer, size: Size) -> Sample:
    wanted = os.environ.get("DPOOL_GCS", "on").lower() != "off"
    stores = _wait_for_store() if wanted and "DPOOL_REDIS_URL" not in os.environ else float(wanted)
    rate = work.loops_per_us()
    sample = {"store": stores}
    for name, task_us, burst in _KINDS:
        fn, arguments = (work.spin, (work.loops_for(task_us, rate),)) if task_us else (work.noop, ())
        sample[name] = _rate(peer, fn, [arguments] * max(2, int(burst * size["bursts"])), size["load_s"])
    return sample


def _wait_for_store() -> float:
    """The number of store processes, as soon as there is one; 0 when none has come in time."""
    deadline = time.monotonic() + _STORE_DEADLINE_S
    while time.monotonic() < deadline:
        if stores := sum(procs.name_of(pid).startswith(_STORE_NAMES) for pid in procs.mine()):
            return float(stores)
        time.sleep(_POLL_S)
    return 0.0


def _rate(peer: Peer, fn: object, arguments: list[tuple[int, ...]], load_s: float) -> float:
    """Tasks per second: the median of the bursts of a load that lasts `load_s`."""
    assert callable(fn)
    bursts_s: list[float] = []
    end = time.perf_counter() + load_s
    while not bursts_s or time.perf_counter() < end:
        gc.collect()
        begin = time.perf_counter()
        peer.submit_many(fn, arguments)
        bursts_s.append(time.perf_counter() - begin)
    return len(arguments) / statistics.median(bursts_s)


def judge(results: Results) -> list[Verdict]:
    names = {"noop": "no-op tasks", "100us": "100 µs tasks", "20ms": "20 ms tasks"}
    seen = bool(results.median("gcs on", "store"))
    return [
        at_least(f"throughput with the store / without, {names[key]}", _if(seen, results, key), 0.95) for key in names
    ]


def _if(seen: bool, results: Results, key: str) -> float | None:
    """No ratio without a store: it would compare nothing with nothing."""
    return results.ratio("gcs on", "gcs off", key) if seen else None


BENCHMARK = Benchmark(
    name="gcs_overhead",
    question="what does the control store cost in throughput?",
    metrics=(
        Metric("noop", "no-op tasks", "tasks/s", less_is_better=False, digits=0),
        Metric("100us", "100 µs tasks", "tasks/s", less_is_better=False, digits=0),
        Metric("20ms", "20 ms tasks", "tasks/s", less_is_better=False),
        Metric("store", "store processes seen", "", digits=0),
    ),
    subjects=(Subject("gcs on", "dpool", {"DPOOL_GCS": None}), Subject("gcs off", "dpool", {"DPOOL_GCS": "off"})),
    sizes={
        "full": {"load_s": 3, "bursts": 1},
        "quick": {"load_s": 0.3, "bursts": 0.5},
        "tiny": {"load_s": 0, "bursts": 0.02},
    },
    judge=judge,
    repeat=5,
    measure=measure,
    reference="gcs off",
)
