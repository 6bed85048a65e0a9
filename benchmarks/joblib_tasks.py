"""How long do a program's joblib calls take, with dpool's workers and with joblib's own pool (loky)?

`Parallel(n_jobs=2)` of 10,000 tasks that spin for 100 µs each, with joblib's defaults: it batches them as it sees fit.
And scikit-learn's GridSearchCV, a support vector machine on the digits, 9 settings × 3 folds. The workers are warm, and
stay from one call to the next with both. No call can take less than the work of one core's share: `floor_ms`.
"""

from __future__ import annotations

import importlib
import statistics
from typing import Any

from benchmarks import work
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.peers import Peer
from benchmarks.steady import expect, timed

_TASK_US = 100


def measure(peer: Peer, size: Size) -> Sample:
    joblib = importlib.import_module("joblib")
    if peer.name == "dpool":
        importlib.import_module("dpool").register_joblib()
    tasks = int(size["tasks"])
    loops = work.loops_for(_TASK_US, work.loops_per_us())
    search = _search(int(size["settings"]), int(size["samples"]))

    def spin_all() -> None:
        calls = (joblib.delayed(work.spin)(loops) for _ in range(tasks))
        expect(len(joblib.Parallel(n_jobs=WORKERS)(calls)), tasks)

    with joblib.parallel_config(peer.name, n_jobs=WORKERS):
        return {
            "tasks_ms": _median_ms(spin_all, size),
            "search_ms": _median_ms(search, size),
            "floor_ms": tasks * _TASK_US / 1e3 / WORKERS,
        }


def _median_ms(call: Any, size: Size) -> float:
    call()  # imports in the workers
    return 1e3 * statistics.median(timed(call) for _ in range(int(size["rounds"])))


def _search(settings: int, samples: int) -> Any:
    """A call of GridSearchCV that checks what it finds."""
    data, target = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)
    svm = importlib.import_module("sklearn.svm").SVC()
    grid = {"C": [10.0**i for i in range(settings)], "gamma": [10.0**-i for i in range(3, 3 + settings)]}
    search = importlib.import_module("sklearn.model_selection").GridSearchCV(svm, grid, cv=3)

    def call() -> None:
        search.fit(data[:samples], target[:samples])
        expect(search.best_score_ > 0.8, True)

    return call


def judge(results: Results) -> list[Verdict]:
    return [
        at_most("10,000 tasks of 100 µs / joblib+loky", results.ratio("dpool", "loky", "tasks_ms"), 0.6),
        at_most("GridSearchCV on digits / joblib+loky", results.ratio("dpool", "loky", "search_ms"), 1.0),
    ]


BENCHMARK = Benchmark(
    name="joblib_tasks",
    question="how long do joblib's Parallel with short tasks, and a grid search, take with 2 workers?",
    metrics=(
        Metric("tasks_ms", "10,000 tasks of 100 µs, median", "ms"),
        Metric("search_ms", "GridSearchCV, median", "ms"),
        Metric("floor_ms", "the tasks' work on 2 cores", "ms"),
    ),
    subjects=every_peer("dpool", "loky"),
    sizes={
        "full": {"tasks": 10_000, "settings": 3, "samples": 1797, "rounds": 5},
        "quick": {"tasks": 10_000, "settings": 3, "samples": 1797, "rounds": 3},
        "tiny": {"tasks": 100, "settings": 1, "samples": 300, "rounds": 1},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    needs=("joblib", "sklearn"),
)
