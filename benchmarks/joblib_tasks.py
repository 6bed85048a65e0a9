"""How long do a program's joblib calls take, with dpool's workers and with joblib's own pool (loky)?

Two programs, each with `n_jobs=2` and joblib's defaults: 10,000 tasks that spin for 100 µs each, and scikit-learn's
GridSearchCV, a support vector machine on the digits, 9 settings × 3 folds. Of each, what a user meets:

- *program*: from the start of the interpreter to the results: its imports, the workers' start and imports, the call.
- *first call*: the same without the program's own imports: what a call in a session or notebook takes.
- *warm*: the median of further calls; with both, the workers stay from one call to the next.

And *small*, a warm call of ten tasks that do nothing: what a call costs by itself.

`dpool preload` is the same program with one line before its imports, `dpool.init(preload=…)`: the workers' modules are
imported once, while the program imports its own.

The target for the short tasks is 0.6 × loky. Warm it cannot be met by anybody: the work alone takes `floor_ms`, and
loky is within a tenth of that. It is therefore held against the first call, where loky starts its workers and grows its
batches from one task; as 500 ms of that are work, too, it asks for all that is added to be nearly nothing. The table
shows the floor beside the figures. The grid search is to be no slower in any of the three.
"""

from __future__ import annotations

import json
import time

from benchmarks import work
from benchmarks.launcher import Launcher
from benchmarks.model import WORKERS, Benchmark, Metric, Results, Sample, Size, Subject, Verdict, at_most

_TASK_US = 100

# What the program imports is what a user's would; the benchmark's own modules are not, but for the task.
_FRAME = """
import sys, time
{preload}
import joblib
{load}
{prepare}
loaded = time.time()
figures = {{}}
with joblib.parallel_config({backend!r}, n_jobs={workers}):
    call()
    done = time.time()
    figures["{name}_program_ms"] = (done - {begun!r}) * 1e3
    figures["{name}_first_ms"] = (done - loaded) * 1e3
    figures["{name}_ms"] = median(call, {rounds})
    {small}
import json
with open(sys.argv[1], "w") as file:
    json.dump(figures, file)
"""

_MEDIAN = """
def median(call, rounds):
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2] * 1e3
"""

_TASKS = """
from benchmarks.work import noop, spin
def call():
    results = joblib.Parallel()(joblib.delayed(spin)({loops}) for _ in range({tasks}))
    assert len(results) == {tasks}
def small():
    assert len(joblib.Parallel()(joblib.delayed(noop)() for _ in range(10))) == 10
"""

_SEARCH = """
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
data, target = load_digits(return_X_y=True)
grid = {{"C": [10.0**i for i in range({settings})], "gamma": [10.0**-i for i in range(3, 3 + {settings})]}}
search = GridSearchCV(SVC(), grid, cv=3)
def call():
    search.fit(data[:{samples}], target[:{samples}])
    assert search.best_score_ > 0.8
"""

_PRELOADED = {"tasks": ["benchmarks.work"], "search": ["sklearn.model_selection", "sklearn.svm"]}


def sample(subject: Subject, size: Size, launcher: Launcher) -> Sample:
    counts = {name: int(value) for name, value in size.items()}
    counts["loops"] = work.loops_for(_TASK_US, work.loops_per_us())
    found: dict[str, float] = {"floor_ms": counts["tasks"] * _TASK_US / 1e3 / WORKERS}
    for name, prepare in (("tasks", _TASKS), ("search", _SEARCH)):
        preload = f"import dpool\ndpool.init(preload={_PRELOADED[name]!r})"
        program = _FRAME.format(
            name=name,
            backend=subject.peer,
            workers=WORKERS,
            rounds=counts["rounds"],
            preload=preload if "preload" in subject.name else "",
            load="import dpool\ndpool.register_joblib()" if subject.peer == "dpool" else "",
            prepare=_MEDIAN + prepare.format(**counts),
            small='figures["small_ms"] = median(small, 20)' if name == "tasks" else "",
            begun=time.time(),
        )
        found |= json.loads(launcher.run(["-c", program]).result)
    return found


def judge(results: Results) -> list[Verdict]:
    def to_loky(key: str) -> float | None:
        return results.ratio("dpool", "loky", key)

    return [
        at_most("10,000 tasks of 100 µs, first call / joblib+loky", to_loky("tasks_first_ms"), 0.6),
        at_most("10,000 tasks of 100 µs, warm / joblib+loky", to_loky("tasks_ms"), 1.0),
        at_most("GridSearchCV on digits, program / joblib+loky", to_loky("search_program_ms"), 1.0),
        at_most("GridSearchCV on digits, first call / joblib+loky", to_loky("search_first_ms"), 1.0),
        at_most("GridSearchCV on digits, warm / joblib+loky", to_loky("search_ms"), 1.0),
        at_most("ten tasks that do nothing / joblib+loky", to_loky("small_ms"), 0.5),
    ]


BENCHMARK = Benchmark(
    name="joblib_tasks",
    question="how long do joblib's Parallel with short tasks, and a grid search, take with 2 workers?",
    metrics=(
        Metric("tasks_program_ms", "10,000 tasks of 100 µs, program", "ms"),
        Metric("tasks_first_ms", "10,000 tasks of 100 µs, first call", "ms"),
        Metric("tasks_ms", "10,000 tasks of 100 µs, warm", "ms"),
        Metric("floor_ms", "the tasks' work on 2 cores", "ms"),
        Metric("small_ms", "10 no-ops, warm", "ms", digits=2),
        Metric("search_program_ms", "GridSearchCV, program", "ms"),
        Metric("search_first_ms", "GridSearchCV, first call", "ms"),
        Metric("search_ms", "GridSearchCV, warm", "ms"),
    ),
    subjects=(Subject("dpool", "dpool"), Subject("dpool preload", "dpool"), Subject("loky", "loky")),
    sizes={
        "full": {"tasks": 10_000, "settings": 3, "samples": 1797, "rounds": 5},
        "quick": {"tasks": 10_000, "settings": 3, "samples": 1797, "rounds": 3},
        "tiny": {"tasks": 100, "settings": 1, "samples": 300, "rounds": 1},
    },
    judge=judge,
    repeat=5,
    sample=sample,
    needs=("joblib", "sklearn"),
)
