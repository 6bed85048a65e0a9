"""How much memory does a queued task cost?

A million tasks (one small integer as argument) are submitted behind a task that blocks the only worker; their futures
are kept, as a program keeps them. *Driver* is the growth of the submitting process's resident memory per task. *All
processes* is the growth of private memory of the driver and everything it started: what is merely moved shows there.
ray and dask get fewer tasks (they need minutes for a million); their figure is per task, too.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import procs, work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.peers import Peer

_GATE_DEADLINE_S = 30.0
_SETTLED_SHARE = 0.002
_SETTLE_DEADLINE_S = 20.0
_POLL_S = 0.25


def measure(peer: Peer, size: Size) -> Sample:
    tasks = min(int(size["tasks"]), peer.most_queued)
    with _blocked_worker(peer):
        arguments = [(number,) for number in range(tasks)]
        gc.collect()
        driver_before, all_before = procs.rss_bytes(), _private_of_all()
        begin = time.perf_counter()
        handles = peer.submit_all(work.identity, arguments)
        submit_s = time.perf_counter() - begin
        driver_after, all_after = _settled_rss(), _private_of_all()
        if len(handles) != tasks:
            raise AssertionError(f"{len(handles)} handles of {tasks} tasks")
        peer.abandon()
    return {
        "driver_bytes": (driver_after - driver_before) / tasks,
        "all_bytes": (all_after - all_before) / tasks,
        "submit_us": submit_s / tasks * 1e6,
        "tasks": tasks,
    }


@contextmanager
def _blocked_worker(peer: Peer) -> Iterator[None]:
    """While inside, the worker sits in a task that opens a named pipe and reads it to the end."""
    with tempfile.TemporaryDirectory() as folder:
        gate = str(Path(folder, "gate"))
        os.mkfifo(gate)
        blocker = peer.submit_all(work.wait_at, [(gate,)])  # kept: ray and dask drop a task whose handle is gone
        writer = _open_when_read(gate)
        try:
            yield
        finally:
            os.close(writer)
            del blocker


def _open_when_read(gate: str) -> int:
    """Open the pipe for writing, which fails until its reader is there."""
    deadline = time.monotonic() + _GATE_DEADLINE_S
    while True:
        try:
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def _settled_rss() -> int:
    """The driver's resident memory once it has stopped changing: feeder threads may still be at work."""
    deadline = time.monotonic() + _SETTLE_DEADLINE_S
    last = procs.rss_bytes()
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        now = procs.rss_bytes()
        if abs(now - last) <= _SETTLED_SHARE * last:
            return now
        last = now
    return last


def _private_of_all() -> int:
    return sum(procs.private_bytes(pid) for pid in procs.mine())


def judge(results: Results) -> list[Verdict]:
    ratio = results.ratio("dpool", "ppe", "driver_bytes")
    return [at_most("driver memory per queued task / ProcessPoolExecutor", ratio, 1)]


BENCHMARK = Benchmark(
    name="queue_memory",
    question="how much memory does a queued task cost, a million queued behind a blocked worker?",
    metrics=(
        Metric("driver_bytes", "driver, resident, per task", "bytes", digits=0),
        Metric("all_bytes", "all processes, private, per task", "bytes", digits=0),
        Metric("submit_us", "one submit, meanwhile", "µs"),
        Metric("tasks", "tasks queued", "", digits=0),
    ),
    subjects=every_peer(),
    sizes={"full": {"tasks": 1_000_000}, "quick": {"tasks": 50_000}, "tiny": {"tasks": 5_000}},
    judge=judge,
    repeat=1,
    measure=measure,
    workers=1,
    timeout_s=900.0,
)
