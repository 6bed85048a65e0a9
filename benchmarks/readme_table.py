"""Fills a comparison table of README.md from a run: `python -m benchmarks.readme_table RUN.json [README.md]`.

RUN.json is what `python -m benchmarks --json RUN.json` wrote. The text between the two marks of the table is replaced,
the rest stays. `--table tasks` is the one of tasks and actors. Cells are medians; in parentheses how many times better
dpool's figure is (below 1: worse).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import QUESTIONS

BEGIN, END = "<!-- {table}:begin -->", "<!-- {table}:end -->"
BUSY_PERCENT = 10.0
"""From then on the caption says that the machine was busy with something else."""
COLUMNS = {
    "dpool": "dpool",
    "mp": "mp.Pool",
    "ppe": "ProcessPoolExecutor",
    "loky": "loky",
    "ray": "ray",
    "dask": "dask.distributed",
    "manager": "multiprocessing.Manager",
    "mpi": "mpi4py",
    "http json": "HTTP, JSON",
    "dpool unaware": "dpool, data ignored",
    "tcp": "TCP",
    "zmq": "ZeroMQ with CURVE",
}
IMPORTED = {
    "dpool": "dpool.Executor",
    "mp": "multiprocessing.pool",
    "ppe": "concurrent.futures.process",
    "dask": "distributed",
}
"""What the question `import_time` calls each peer, where that is not the peer's own name."""


class Figure(NamedTuple):
    """One row: where it stands in the run, and how it is shown."""

    text: str
    question: str
    key: str
    unit: str
    digits: int = 0
    more_is_better: bool = False
    compare: bool = True
    """Show the ratio to dpool's figure; not for what is a ratio already."""


FIGURES = (
    Figure("`submit(noop).result()`, back to back", "round_trip", "p50_us", "µs"),
    Figure("the same after a pause of 2 ms", "round_trip", "paused_us", "µs"),
    Figure("no-op tasks, one `submit` each", "throughput", "submit", "/s", more_is_better=True),
    Figure("2 workers against one thread, tasks of 100 µs", "speedup", "speedup_100", "×", 2, True, False),
    Figure("… of 1 ms", "speedup", "speedup_1000", "×", 2, True, False),
    Figure("shortest task for which 2 workers win (COST)", "speedup", "cost_us", "µs", compare=False),
    Figure("first result in a fresh interpreter, import included", "cold_start", "with_import_ms", "ms"),
    Figure("import", "import_time", "program_ms", "ms"),
    Figure("driver memory for one queued task", "queue_memory", "driver_bytes", "bytes"),
    Figure("private memory of an idle worker", "idle", "worker_mb", "MB", 1),
    Figure("processor time of an idle pool", "idle", "cpu_percent", "%", 2, compare=False),
    Figure("`Pool.apply(noop)`", "pool_apply", "apply_us", "µs"),
    Figure("`Pool.map` of a no-op over a range", "pool_map", "range", "/s", more_is_better=True),
    Figure("`Pool.imap_unordered`, chunks of one", "pool_imap", "unordered", "/s", more_is_better=True),
    Figure("`Pool.map` over 200 arrays of 10 MB", "pool_arrays", "arrays_ms", "ms"),
    Figure("`joblib.Parallel`, 10,000 tasks of 100 µs, first call", "joblib_tasks", "tasks_first_ms", "ms"),
    Figure("scikit-learn's GridSearchCV, first call", "joblib_tasks", "search_first_ms", "ms"),
    Figure("a task with an array of 100 MB as argument", "store_argument", "touch_ms", "ms", 1),
    Figure("… that it reads", "store_argument", "read_ms", "ms", 1),
    Figure("a task that returns an array of 100 MB", "store_result", "result_ms", "ms", 1),
    Figure("one array of 100 MB read by 100 tasks", "store_shared", "shared_ms", "ms", 1),
    Figure("`put` of an array of 100 MB", "store_put", "put_ms", "ms", 2),
    Figure("the same / a plain copy", "store_put", "put_per_copy", "", 2, compare=False),
    Figure("`get` of an array of 1 MB", "store_get", "small_us", "µs", 1),
    Figure("`get` of an array of 1 GB", "store_get", "large_us", "µs", 1),
    Figure("`put` and `get` of 1 KB", "store_small", "pair_us", "µs", 1),
    Figure("1 GB of Arrow tables summed by tasks", "store_arrow", "arrow_ms", "ms"),
    Figure("twice the store in and out", "store_spill", "store_mb_s", "MB/s", more_is_better=True),
    Figure("the same / plain files", "store_spill", "store_per_disk", "", 2, True, False),
)

TASK_FIGURES = (
    Figure("a call of an actor, one at a time", "actor_call", "call_us", "µs", 1),
    Figure("pipelined calls of an actor", "actor_pipeline", "calls_per_s", "/s", more_is_better=True),
    Figure("an actor made, and its first call", "actor_create", "create_ms", "ms", 1),
    Figure("1,000 tasks taken one by one with `wait`, all ready", "task_wait", "ready_ms", "ms", 1),
    Figure("… from their submission", "task_wait", "running_ms", "ms", 1),
    Figure("a chain of 1,000 dependent tasks", "task_chain", "chain_ms", "ms", 1),
    Figure("a tree of 127 nested tasks, the first", "task_tree", "first_ms", "ms", 1),
    Figure("… again", "task_tree", "tree_ms", "ms", 1),
    Figure("private memory of all processes, 2 s later", "task_tree", "left_mb", "MB"),
    Figure("private memory of all processes, idle", "idle", "all_mb", "MB"),
    Figure("steps of Pendulum, rollouts of unequal length", "pendulum", "steps_per_s", "/s", more_is_better=True),
    Figure("states of 100 KB that a model of 5 ms answers", "serving", "large", "/s", more_is_better=True),
)
MACHINE_FIGURES = (
    Figure("a task on another machine, there and back", "machines_round_trip", "p50_us", "µs"),
    Figure("bytes to another machine, fast link", "machines_transfer", "free_there_mb_s", "MB/s", more_is_better=True),
    Figure("… from it", "machines_transfer", "free_here_mb_s", "MB/s", more_is_better=True),
    Figure("bytes to another machine, 1 Gbit/s", "machines_transfer", "gbit_there_mb_s", "MB/s", more_is_better=True),
    Figure("… from it", "machines_transfer", "gbit_here_mb_s", "MB/s", more_is_better=True),
    Figure("a task with 100 KB that lie on either of two machines", "machines_locality", "task_ms_100kb", "ms", 2),
    Figure("… with 1 MB", "machines_locality", "task_ms_1mb", "ms", 2),
    Figure("… with 10 MB", "machines_locality", "task_ms_10mb", "ms", 2),
    Figure("… with 100 MB", "machines_locality", "task_ms_100mb", "ms", 2),
    Figure("ring allreduce of 10 MB, four machines, 1 Gbit/s", "machines_allreduce", "ms_medium", "ms"),
    Figure("… of 100 MB", "machines_allreduce", "ms_large", "ms"),
    Figure("1,000 actors made on four machines, and called", "machines_actors", "all_s", "s", 1),
)
TABLES = {"benchmarks": FIGURES, "tasks": TASK_FIGURES, "machines": MACHINE_FIGURES}
"""The marks around each table in the page have its name."""


def value_of(run: Mapping[str, Any], figure: Figure, peer: str) -> float | None:
    """The median of a peer's figure; None if this run did not measure it."""
    question = run["benchmarks"].get(figure.question)
    if question is None:
        return None
    subject = IMPORTED.get(peer, peer) if figure.question == "import_time" else peer
    if figure.key == "cost_us":
        found = question["derived"].get("cost_us", {}).get(subject)
    else:
        found = question["medians"].get(subject, {}).get(figure.key)
    return None if found is None else float(found)


def cell(figure: Figure, value: float | None, ours: float | None) -> str:
    """A median with its unit, and how many times better ours is."""
    if value is None:
        return "–"
    shown = f"{value:,.{figure.digits}f} {figure.unit}".replace(" /s", "/s").rstrip()
    if ours is None or not figure.compare or not ours or not value:
        return shown
    ratio = ours / value if figure.more_is_better else value / ours
    return f"{shown} ({ratio:.{1 if ratio >= 1 else 2}f}×)"


def rows(run: Mapping[str, Any], figures: Sequence[Figure] = FIGURES) -> list[str]:
    """The table: a row for each figure that was measured, a column for each peer that has one."""
    peers = [peer for peer in COLUMNS if any(value_of(run, figure, peer) is not None for figure in figures)]
    lines = ["| | " + " | ".join(COLUMNS[peer] for peer in peers) + " |", "|---" * (len(peers) + 1) + "|"]
    for figure in figures:
        values = {peer: value_of(run, figure, peer) for peer in peers}
        if any(value is not None for value in values.values()):
            ours = values.get("dpool")
            cells = [cell(figure, values[peer], None if peer == "dpool" else ours) for peer in peers]
            lines.append(f"| {figure.text} | " + " | ".join(cells) + " |")
    if len(lines) == 2:
        raise ValueError("this run measured nothing that the table shows")
    return lines


def caption(run: Mapping[str, Any], table: str = "benchmarks") -> list[str]:
    """On what machine, with what, and how to repeat it."""
    option = "" if table == "benchmarks" else f" --table {table}"
    machine, arguments = run["machine"], run["arguments"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != "dpool")
    repeat = "" if arguments["repeat"] is None else f" --repeat {arguments['repeat']}"
    size = "" if arguments["size"] == "full" else f" --size {arguments['size']}"
    asked = list(run["benchmarks"])
    questions = "" if asked == list(QUESTIONS) else " ".join(["", *asked])
    lines = [
        "Medians of one run; in parentheses: how many times better dpool's figure is (below 1: worse). "
        '– : not measured, or never reached. mp.Pool and ProcessPoolExecutor use "fork", their fastest start method. '
        "What each figure is, and what to hold against it: [docs/benchmarks.md](docs/benchmarks.md).",
        "",
        f"- Machine: {machine['cpu']}, {machine['cores_usable']} of {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, {machine['kernel']}, Python {machine['python']}, {str(machine['date'])[:10]}, "
        f"revision {machine['revision'] or 'unknown'}.",
        f"- Versions: {versions or 'none recorded'}.",
        f"- Load average before the run {machine['load_average'][0]}, cores {machine['busy_percent_before']} % busy.",
        f"- Repeat it: `python -m benchmarks{questions} --peers {','.join(arguments['peers'])}{size}{repeat} "
        f"--json run.json && python -m benchmarks.readme_table{option} run.json`.",
    ]
    if float(machine["busy_percent_before"]) > BUSY_PERCENT:
        lines.append("- The machine was busy with something else before the run: these figures suffer from it.")
    if arguments["size"] != "full":
        lines.append(f"- Size `{arguments['size']}`: short measurements, only indicative.")
    lines += [
        f"- {COLUMNS.get(name, name)} failed in `{question}`."
        for question, answer in run["benchmarks"].items()
        for name in answer["failed"]
    ]
    return lines


def fill(page: str, run: Mapping[str, Any], table: str = "benchmarks") -> str:
    """The page with the table between its marks replaced. ValueError unless each mark stands there once, in order."""
    begin, end = BEGIN.format(table=table), END.format(table=table)
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs one line {begin} and, below it, one line {end}")
    block = "\n".join([begin, "", *rows(run, TABLES[table]), "", *caption(run, table), "", end])
    pattern = re.compile(re.escape(begin) + ".*" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: block, page)


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the page's block; 0, or an error of argparse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_table", description="fill README's table")
    parser.add_argument("run", type=Path, help="the file written by `python -m benchmarks --json FILE`")
    readme = Path(__file__).resolve().parent.parent / "README.md"
    parser.add_argument("page", type=Path, nargs="?", default=readme, help="the page to fill (default: README.md)")
    parser.add_argument("--table", choices=TABLES, default="benchmarks", help="which one (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        page = fill(options.page.read_text(), json.loads(options.run.read_text()), options.table)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{options.run}, {options.page}: {error!r}")
    options.page.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
