"""How long until the first result, from nothing?

A fresh interpreter imports the peer, makes a pool of two workers, runs one no-op, takes its result, closes, and ends.
*Import included* counts from before the import, *after the import* from its end; *whole program* is the life of the
process, with the interpreter's own start and the peer's shut-down. dpool runs with its default settings, so its Redis
starts too: what that costs the first result, or the end, is in the figures. The files are in the page cache (one run
is thrown away).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.launcher import Launcher
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most


class Program(NamedTuple):
    """The lines that differ: import the peer; make `pool`, run a no-op, bind `value`; close it."""

    load: str
    first: str
    close: str


# The benchmark package's own modules are not imported in here: they would load parts of what is measured.
_FRAME = """
import sys
from time import perf_counter
from benchmarks.work import noop
begin = perf_counter()
{load}
loaded = perf_counter()
{first}
done = perf_counter()
{close}
assert value is None
with open(sys.argv[1], "w") as file:
    file.write('{{"with_import_ms": %r, "without_import_ms": %r}}' % ((done - begin) * 1e3, (done - loaded) * 1e3))
"""

_EXECUTOR = "value = pool.submit(noop).result()"


def _ppe(method: str) -> Program:
    # The context is made after the import is timed: choosing it is part of making the pool.
    return Program(
        "from concurrent.futures import ProcessPoolExecutor\nimport multiprocessing",
        f"pool = ProcessPoolExecutor({WORKERS}, multiprocessing.get_context({method!r}))\n{_EXECUTOR}",
        "pool.shutdown()",
    )


def _mp(method: str) -> Program:
    return Program(
        "import multiprocessing",
        f"pool = multiprocessing.get_context({method!r}).Pool({WORKERS})\nvalue = pool.apply(noop)",
        "pool.close()\npool.join()",
    )


PROGRAMS: Mapping[str, Program] = {
    "dpool": Program("import dpool", f"pool = dpool.Executor({WORKERS})\n{_EXECUTOR}", "pool.shutdown()"),
    "mp": _mp("fork"),
    "ppe": _ppe("fork"),
    "loky": Program("import loky", f"pool = loky.ProcessPoolExecutor({WORKERS})\n{_EXECUTOR}", "pool.shutdown()"),
    "mp spawn": _mp("spawn"),
    "ppe spawn": _ppe("spawn"),
    "ray": Program(
        "import ray",
        f"ray.init(num_cpus={WORKERS}, include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
        "value = ray.get(ray.remote(noop).remote())",
        "ray.shutdown()",
    ),
    "dask": Program(
        "import distributed",
        f"cluster = distributed.LocalCluster(n_workers={WORKERS}, threads_per_worker=1, dashboard_address=None)\n"
        "client = distributed.Client(cluster)\n"
        "value = client.submit(noop, pure=False).result()",
        "client.close()\ncluster.close()",
    ),
}


def sample(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    program = ["-c", _FRAME.format(**PROGRAMS[subject.name]._asdict())]
    for _ in range(int(size["thrown_away"])):
        launcher.run(program)
    finished = launcher.run(program)
    figures: dict[str, float] = json.loads(finished.result)
    return {**figures, "program_ms": finished.wall_s * 1e3}


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("first result, import included / loky", results.ratio("dpool", "loky", "with_import_ms"), 1),
        at_most("first result, after the import / loky", results.ratio("dpool", "loky", "without_import_ms"), 1),
    ]


BENCHMARK = Benchmark(
    name="cold_start",
    question="how long from nothing to the first result?",
    metrics=(
        Metric("with_import_ms", "first result, import included", "ms"),
        Metric("without_import_ms", "first result, after the import", "ms"),
        Metric("program_ms", "whole program, from start to exit", "ms"),
    ),
    subjects=tuple(
        Subject(name, name.split()[0], {"RAY_USAGE_STATS_ENABLED": "0"} if name == "ray" else {}) for name in PROGRAMS
    ),
    sizes={"full": {"thrown_away": 1}, "quick": {"thrown_away": 1}, "tiny": {"thrown_away": 0}},
    judge=judge,
    repeat=9,
    sample=sample,
)
