"""What does importing it cost?

Two figures. *Program*: the life of `python -c "import X"` less that of `python -c pass`, each the median of runs taken
in turn; what the import leaves to be torn down at exit counts. *Clock*: what a clock in the program sees around it.
`dpool` loads its names when they are first used; `dpool.Executor` is what a user pays in the end.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks.launcher import Launcher
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most

STATEMENTS: Mapping[str, str] = {
    "dpool": "import dpool",
    "dpool.Executor": "import dpool; dpool.Executor",
    "concurrent.futures.process": "import concurrent.futures.process",
    "multiprocessing.pool": "import multiprocessing.pool",
    "loky": "import loky",
    "ray": "import ray",
    "distributed": "import distributed",
}

_PEERS: Mapping[str, str] = {
    "dpool.Executor": "dpool",
    "concurrent.futures.process": "ppe",
    "multiprocessing.pool": "mp",
    "distributed": "dask",
}

_FRAME = """
import sys
from time import perf_counter
begin = perf_counter()
{statement}
taken = perf_counter() - begin
with open(sys.argv[1], "w") as file:
    file.write(repr(taken * 1e3))
"""


def sample(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    bare = ["-c", _FRAME.format(statement="pass")]
    loading = ["-c", _FRAME.format(statement=STATEMENTS[subject.name])]
    launcher.run(loading)  # writes the byte code, and brings the files into the page cache
    without = []
    with_it = []
    for _ in range(int(size["runs"])):
        without.append(launcher.run(bare))
        with_it.append(launcher.run(loading))
    walls = [statistics.median(run.wall_s for run in runs) * 1e3 for runs in (with_it, without)]
    return {
        "program_ms": walls[0] - walls[1],
        "clock_ms": statistics.median(float(run.result) for run in with_it),
        "bare_ms": walls[1],
    }


def judge(results: Results) -> list[Verdict]:
    process = "concurrent.futures.process"
    return [
        at_most("import dpool / import concurrent.futures.process", results.ratio("dpool", process, "program_ms"), 1.2)
    ]


BENCHMARK = Benchmark(
    name="import_time",
    question="what does importing it cost?",
    metrics=(
        Metric("program_ms", "program, less the bare interpreter", "ms"),
        Metric("clock_ms", "clock around the import", "ms"),
        Metric("bare_ms", "the bare interpreter beside it", "ms"),
    ),
    subjects=tuple(Subject(name, _PEERS.get(name, name)) for name in STATEMENTS),
    sizes={"full": {"runs": 7}, "quick": {"runs": 5}, "tiny": {"runs": 1}},
    judge=judge,
    repeat=5,
    sample=sample,
)
