"""How fast does a working set of twice the store's size go in and out, against the disk itself?

The store has 512 MB. All objects are put, then all are got, in the same order (the worst for a store that spills the
least recently used first: each is in a file when its turn comes), and every byte is compared with what was put. In turn
with it, and not before the store's files are gone, the same bytes are written to plain files of the same size in the
same directory, read into memory that was used before, and compared in the same way. Bytes a second: the bytes put plus
the bytes got, over the time of both.

Neither waits for the disk to have the data (no fsync), so both are as fast as the page cache where memory is plenty.
Right before either, files of the same bytes are written and deleted: a virtual machine may hand free memory back to
its host after a second or two, and whoever writes next then fetches it again, at a tenth of the speed.
"""

from __future__ import annotations

import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_least
from benchmarks.peers import SPILL_DIR, STORE_BYTES, Peer
from benchmarks.steady import expect, timed

_IN_MEMORY = ("tmpfs", "ramfs")
_SPILLED_ENOUGH = 0.9
_DELETE_DEADLINE_S = 5.0
_POLL_S = 0.01


@contextmanager
def around(size: Size) -> Iterator[Mapping[str, str]]:
    """The size of the store, and a directory on a disk for its files."""
    with tempfile.TemporaryDirectory(prefix="benchmark-spill-", dir=disk_directory()) as folder:
        yield {STORE_BYTES: str(int(size["store"])), SPILL_DIR: folder}


def disk_directory() -> str:
    """Where the files go: DPOOL_SPILL_DIR, else the directory for temporary files unless that lies in memory."""
    configured = os.environ.get(SPILL_DIR)
    if configured:
        return configured
    usual = tempfile.gettempdir()
    return "/var/tmp" if filesystem_of(usual) in _IN_MEMORY else usual


def filesystem_of(path: str) -> str:
    """The type of the file system that a path lies on."""
    best, found = "", "?"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind = line.split()[:3]
        inside = os.path.commonpath([point, os.path.realpath(path)]) == point
        if inside and len(point) >= len(best):
            best, found = point, kind
    return found


def measure(peer: Peer, size: Size) -> Sample:
    folder = Path(os.environ[SPILL_DIR])
    objects, nbytes = int(size["objects"]), int(size["bytes"])
    arrays = [work.numbers(nbytes, first * nbytes) for first in range(objects)]
    steps: dict[str, list[float]] = {}
    for _ in range(int(size["rounds"]) + 1):
        _through_files(arrays, folder)  # untimed, so that the next finds memory for its files at hand
        files = _through_files(arrays, folder)
        _through_files(arrays, folder)
        store = _through_store(peer, arrays, folder)
        left_mb = _wait_until_empty(folder) / 1e6
        for step, value in {**files, **store, "left_mb": left_mb}.items():
            steps.setdefault(step, []).append(value)
    taken = {step: statistics.median(values[1:]) for step, values in steps.items()}
    moved_mb = objects * nbytes / 1e6
    store_mb_s = 2 * moved_mb / (taken["put_s"] + taken["get_s"])
    disk_mb_s = 2 * moved_mb / (taken["write_s"] + taken["read_s"])
    return {
        "store_mb_s": store_mb_s,
        "disk_mb_s": disk_mb_s,
        "store_per_disk": store_mb_s / disk_mb_s,
        **{f"{name}_mb_s": moved_mb / taken[f"{name}_s"] for name in ("put", "get", "write", "read")},
        "left_mb": max(steps["left_mb"]),
        "spilled_share": min(steps["files_mb"]) / (moved_mb - size["store"] / 1e6),
    }


def _through_store(peer: Peer, arrays: list[Any], folder: Path) -> dict[str, float]:
    equal: Any = importlib.import_module("numpy").array_equal
    references: list[Any] = []
    before = _sizes(folder)  # files of the round before, which are being deleted
    put_s = timed(lambda: references.extend(peer.put(array) for array in arrays))
    files_mb = sum(size for path, size in _sizes(folder).items() if path not in before) / 1e6

    def get_all() -> None:
        for reference, array in zip(references, arrays, strict=True):
            expect(equal(peer.fetch(reference), array), True)

    return {"put_s": put_s, "files_mb": files_mb, "get_s": timed(get_all)}


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder; one that vanishes meanwhile is left out."""
    sizes = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            try:
                sizes[path] = os.stat(path).st_size
            except FileNotFoundError:
                continue
    return sizes


def _wait_until_empty(folder: Path) -> int:
    """Wait until the store has deleted its files; the bytes that are still there after a while."""
    deadline = time.monotonic() + _DELETE_DEADLINE_S
    while (left := sum(_sizes(folder).values())) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return left


def _through_files(arrays: list[Any], folder: Path) -> dict[str, float]:
    numpy: Any = importlib.import_module("numpy")
    paths = [folder / f"plain-{number}" for number in range(len(arrays))]
    target = numpy.ones_like(arrays[0])

    def write_all() -> None:
        for path, array in zip(paths, arrays, strict=True):
            with path.open("wb", buffering=0) as file:
                _write(file, memoryview(array).cast("B"))

    def read_all() -> None:
        for path, array in zip(paths, arrays, strict=True):
            with path.open("rb", buffering=0) as file:
                _read(file, memoryview(target).cast("B"))
            expect(numpy.array_equal(target, array), True)

    try:
        return {"write_s": timed(write_all), "read_s": timed(read_all)}
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _write(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _read(file: Any, target: memoryview) -> None:
    while target:
        got = file.readinto(target)
        if not got:
            raise EOFError(f"{len(target)} bytes are missing")
        target = target[got:]


def judge(results: Results) -> list[Verdict]:
    share = results.median("dpool", "spilled_share")
    spilled = share is not None and share >= _SPILLED_ENOUGH
    value = results.median("dpool", "store_per_disk") if spilled else None
    return [at_least("twice the store through the store / through plain files, bytes/s", value, 0.5)]


BENCHMARK = Benchmark(
    name="store_spill",
    question="how fast does a working set of twice the store go in and out, against plain files?",
    metrics=(
        Metric("store_mb_s", "through the store", "MB/s", less_is_better=False, digits=0),
        Metric("disk_mb_s", "through plain files", "MB/s", less_is_better=False, digits=0),
        Metric("store_per_disk", "store / plain files", "", less_is_better=False, digits=2),
        Metric("put_mb_s", "put all", "MB/s", less_is_better=False, digits=0),
        Metric("get_mb_s", "get and compare all", "MB/s", less_is_better=False, digits=0),
        Metric("write_mb_s", "write plain files", "MB/s", less_is_better=False, digits=0),
        Metric("read_mb_s", "read and compare plain files", "MB/s", less_is_better=False, digits=0),
        Metric("left_mb", "files of the store still there when plain files begin", "MB", digits=0),
        Metric("spilled_share", "new in files after the puts / what the store cannot hold", "", False, digits=2),
    ),
    subjects=(Subject("dpool", "dpool"), Subject("ray", "ray")),
    sizes={
        "full": {"store": 512 << 20, "bytes": 32 << 20, "objects": 32, "rounds": 4},
        "quick": {"store": 128 << 20, "bytes": 16 << 20, "objects": 16, "rounds": 1},
        "tiny": {"store": 80 << 20, "bytes": 8 << 20, "objects": 20, "rounds": 1},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    needs=("numpy",),
    puts=True,
    around=around,
)
