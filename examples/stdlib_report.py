"""Which functions of Python's own standard library are the most complex, the longest, and what is imported most?

```
*.py of the standard library ──► analyse(path) × ~1,500 ──► FileReport … ──► summarise ──► the tables
                                 serially | ProcessPoolExecutor | dpool.Executor
```

The same job runs three times, each time over the same files in the same chunks; the three results must be equal.
During the run on dpool one worker is killed with SIGKILL, in the middle of its work: the executor replaces it, and
`max_retries=1` lets what it was doing run once more.

Run it with `make demo`, or `python examples/stdlib_report.py --help`. `analyse` and `FileReport` are defined in the
script itself, that is in `__main__`: dpool ships them to its workers by value.

**Complexity** is McCabe's cyclomatic number (A Complexity Measure, 1976), counted on the syntax tree: 1 for the
function, and 1 more for each

- `if`, `elif`, conditional expression (`a if b else c`), `assert`;
- `for`, `async for`, `while`, and each `for` and each `if` of a comprehension;
- `except` clause;
- operand of `and` and `or` after the first (each may be skipped, so each is a branch);
- `case` of a `match` that can fail to match (not `case _:` or a bare name, unless it has a guard).

`else`, `finally`, `try` and `with` add no branch. A lambda counts towards the function that it stands in; a nested
function or a method is a function of its own.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import signal
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

TOP = 10
CHUNK_FILES = 8
"""Files per task: some 40 ms of work. A task's own cost vanishes, and the last one keeps nobody waiting for long."""
KILL_AFTER = 1 / 3
"""The share of the results after which a worker of dpool's is killed."""
MODES = ("serial", "ppe", "dpool")
LABELS = {"serial": "serially", "ppe": "ProcessPoolExecutor", "dpool": "dpool.Executor"}


class Function(NamedTuple):
    """One function or method."""

    name: str
    """`path:line qualified.name`"""
    complexity: int
    lines: int


class FileReport(NamedTuple):
    """What one file adds to the result. It holds the file's top functions only: the overall top is among them."""

    path: str
    lines: int
    functions: int
    complexity: int
    most_complex: tuple[Function, ...]
    longest: tuple[Function, ...]
    imports: tuple[str, ...]
    """The top-level modules that the file imports, each once."""
    unparsable: bool


# --- One file ---

BRANCHING = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert)


def branches(node: ast.AST) -> int:
    """How many paths `node` itself, without its children, adds to the function that it stands in."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.match_case):
        irrefutable = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None and node.guard is None
        return 0 if irrefutable else 1
    return int(isinstance(node, BRANCHING))


def functions_of(tree: ast.Module, path: str) -> Iterator[Function]:
    """Every function of the tree, in no particular order."""
    waiting: list[tuple[ast.AST, str]] = [(node, "") for node in ast.iter_child_nodes(tree)]
    while waiting:
        node, scope = waiting.pop()
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = f"{scope}{node.name}." if isinstance(node, ast.ClassDef) else scope
            waiting += [(child, inner) for child in ast.iter_child_nodes(node)]
            continue
        complexity, nested = 1, f"{scope}{node.name}."
        own: list[ast.AST] = list(node.body)
        while own:
            child = own.pop()
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                # Its body is not ours, but we evaluate its decorators, defaults and base classes.
                waiting.append((child, nested))
                own += evaluated_outside(child)
                continue
            complexity += branches(child)
            own += ast.iter_child_nodes(child)
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        yield Function(f"{path}:{node.lineno} {scope}{node.name}", complexity, length)


def evaluated_outside(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[ast.AST]:
    """The expressions of a definition that the code around it evaluates."""
    parts: list[ast.AST] = list(node.decorator_list)
    if isinstance(node, ast.ClassDef):
        return parts + list(node.bases) + list(node.keywords)
    return [*parts, *node.args.defaults, *(default for default in node.args.kw_defaults if default is not None)]


def imports_of(tree: ast.Module) -> set[str]:
    """The top-level names of the modules that the tree imports; relative imports are not counted."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def by_complexity(function: Function) -> tuple[int, int, str]:
    return (-function.complexity, -function.lines, function.name)


def by_length(function: Function) -> tuple[int, int, str]:
    return (-function.lines, -function.complexity, function.name)


def analyse(path: str) -> tuple[int, FileReport]:
    """The pid of the process that did it, and the report on the file at `path`."""
    name = os.path.relpath(path, corpus_root())
    source = Path(path).read_bytes()
    lines = source.count(b"\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the corpus has files that are wrong on purpose
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return os.getpid(), FileReport(name, lines, 0, 0, (), (), (), unparsable=True)
    functions = list(functions_of(tree, name))
    return os.getpid(), FileReport(
        path=name,
        lines=lines,
        functions=len(functions),
        complexity=sum(function.complexity for function in functions),
        most_complex=tuple(sorted(functions, key=by_complexity)[:TOP]),
        longest=tuple(sorted(functions, key=by_length)[:TOP]),
        imports=tuple(sorted(imports_of(tree))),
        unparsable=False,
    )


# --- The whole corpus ---


def corpus_root() -> str:
    return sysconfig.get_path("stdlib")


def corpus(limit: int) -> list[str]:
    """Up to `limit` files of the standard library, without the packages installed beside it, in a fixed order."""
    root = Path(corpus_root())
    files = (file for file in root.rglob("*.py") if not {"site-packages", "dist-packages"} & set(file.parts))
    return sorted(map(str, files))[:limit]


class Summary(NamedTuple):
    """The result of the job."""

    files: int
    unparsable: int
    lines: int
    functions: int
    complexity: int
    most_complex: tuple[Function, ...]
    longest: tuple[Function, ...]
    imports: tuple[tuple[str, int], ...]


def summarise(reports: list[FileReport]) -> Summary:
    imports = Counter(module for report in reports for module in report.imports)
    return Summary(
        files=len(reports),
        unparsable=sum(report.unparsable for report in reports),
        lines=sum(report.lines for report in reports),
        functions=sum(report.functions for report in reports),
        complexity=sum(report.complexity for report in reports),
        most_complex=tuple(sorted((f for report in reports for f in report.most_complex), key=by_complexity)[:TOP]),
        longest=tuple(sorted((f for report in reports for f in report.longest), key=by_length)[:TOP]),
        imports=tuple(sorted(imports.items(), key=lambda item: (-item[1], item[0]))[:TOP]),
    )


# --- The three runs ---


class Collected(NamedTuple):
    """The results of one run, and who made them."""

    reports: list[FileReport]
    pids: set[int]
    killed: int | None
    """The pid of the worker that was killed."""


def collect(results: Iterable[tuple[int, FileReport]], kill_at: int | None = None) -> Collected:
    """Take the results as they come; when there are `kill_at` of them, kill the worker that made the latest one."""
    reports: list[FileReport] = []
    pids: set[int] = set()
    killed = None
    for pid, report in results:
        reports.append(report)
        pids.add(pid)
        if len(reports) == kill_at:
            os.kill(pid, signal.SIGKILL)
            killed = pid
    return Collected(reports, pids, killed)


def run_serial(paths: list[str], workers: int) -> Collected:
    return collect(map(analyse, paths))


def run_ppe(paths: list[str], workers: int) -> Collected:
    with ProcessPoolExecutor(workers) as executor:
        return collect(executor.map(analyse, paths, chunksize=CHUNK_FILES))


def run_dpool(paths: list[str], workers: int) -> Collected:
    import dpool  # here, so that the other two run without it

    with dpool.Executor(workers, max_retries=1) as executor:
        results = executor.map(analyse, paths, chunksize=CHUNK_FILES, progress=sys.stderr.isatty())
        return collect(results, kill_at=max(1, int(len(paths) * KILL_AFTER)))


RUNNERS: dict[str, Callable[[list[str], int], Collected]] = {"serial": run_serial, "ppe": run_ppe, "dpool": run_dpool}


class Run(NamedTuple):
    """One run of the job and its time, which spans everything from making the executor to having shut it down."""

    seconds: float
    result: Collected


def timed(mode: str, paths: list[str], workers: int) -> Run:
    start_s = time.perf_counter()
    result = RUNNERS[mode](paths, workers)
    return Run(time.perf_counter() - start_s, result)


# --- What is printed ---


def print_summary(summary: Summary) -> None:
    print(
        f"\n{summary.files:,} files ({summary.unparsable} of them not valid Python), {summary.lines:,} lines, "
        f"{summary.functions:,} functions, mean complexity {summary.complexity / max(1, summary.functions):.2f}"
    )
    print(f"\n{'complexity':>10}  {'lines':>6}  most complex functions")
    for function in summary.most_complex:
        print(f"{function.complexity:>10}  {function.lines:>6}  {function.name}")
    print(f"\n{'complexity':>10}  {'lines':>6}  longest functions")
    for function in summary.longest:
        print(f"{function.complexity:>10}  {function.lines:>6}  {function.name}")
    print(f"\n{'files':>10}  {'':>6}  most imported modules")
    for module, count in summary.imports:
        print(f"{count:>10}  {'':>6}  {module}")


def print_run(mode: str, run: Run, first: Run | None) -> None:
    ratio = f"  {first.seconds / run.seconds:5.2f} × serial" if first and first is not run else ""
    killed = run.result.killed
    note = f"  (worker {killed} was killed on the way; what it was doing ran once more)" if killed else ""
    print(f"{LABELS[mode]:>20}  {run.seconds:7.2f} s{ratio}{note}", flush=True)


def as_json(runs: dict[str, Run], summary: Summary, equal: bool, workers: int) -> str:
    return json.dumps(
        {
            "workers": workers,
            "seconds": {mode: run.seconds for mode, run in runs.items()},
            "processes": {mode: len(run.result.pids) for mode, run in runs.items()},
            "killed": {mode: run.result.killed for mode, run in runs.items() if run.result.killed},
            "equal": equal,
            "summary": {
                **summary._asdict(),
                "most_complex": [function._asdict() for function in summary.most_complex],
                "longest": [function._asdict() for function in summary.longest],
                "imports": dict(summary.imports),
            },
        },
        indent=2,
    )


def modes_of(text: str) -> list[str]:
    modes = text.split(",")
    if unknown := set(modes) - set(MODES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(MODES)}")
    return [mode for mode in MODES if mode in modes]


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Analyse Python's standard library, with and without dpool.")
    parser.add_argument("--files", type=positive, default=1500, metavar="N", help="at most so many files (1500)")
    cpus = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive, default=cpus, metavar="N", help=f"worker processes ({cpus})")
    parser.add_argument("--only", type=modes_of, default=list(MODES), help=f"some of {','.join(MODES)}")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the tables")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    paths = corpus(options.files)
    if not options.json:
        print(f"{len(paths):,} files of {corpus_root()}, {options.workers} workers", flush=True)
    runs: dict[str, Run] = {}
    for mode in options.only:
        runs[mode] = timed(mode, paths, options.workers)
        if not options.json:
            print_run(mode, runs[mode], runs.get("serial"))
    results = [run.result.reports for run in runs.values()]
    equal = all(result == results[0] for result in results)
    summary = summarise(results[0])
    if options.json:
        print(as_json(runs, summary, equal, options.workers))
    else:
        print_summary(summary)
        print(f"\nthe results are {'equal' if equal else 'NOT EQUAL'}: {', '.join(LABELS[mode] for mode in runs)}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
