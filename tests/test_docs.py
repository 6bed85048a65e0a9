"""What the pages say is so: their examples run and print what stands beneath them, the files that they name exist.

A block that begins with three backticks and `python runnable` is run as a script; a block `text output` right after it
is what it prints.
"""

from __future__ import annotations

import configparser
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks import readme_table
from dpool._core.config import JOURNAL_BYTES, MIN_STORE, WORKER_POLL_S, Config
from dpool._core.executor_pool import MAX_FAILED_STARTS, PUMP_EVERY
from dpool._core.node_store import CHUNK, MOST_PREFAULT
from dpool._core.store_client import CHUNKED
from dpool._core.wire import INLINE_LIMIT
from dpool._store import memory, objects, pins, room, serde, waiting
from tests.helpers import REPOSITORY, run_script

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


class Example(NamedTuple):
    """A block of a page that is run."""

    where: str
    code: str
    output: str | None
    """What it prints; None: the page does not say."""


def examples_of(name: str, page: str) -> list[Example]:
    pattern = r"^```python runnable\n(.*?)^```\n(?:\n^```text output\n(.*?)^```\n)?"
    return [
        Example(f"{name}:{page.count(chr(10), 0, found.start()) + 1}", found[1], found[2])
        for found in re.finditer(pattern, page, re.DOTALL | re.MULTILINE)
    ]


def all_examples() -> list[Example]:
    return [
        example
        for path in PAGES
        for example in examples_of(str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8"))
    ]


def test_examples_are_found() -> None:
    page = "a\n```python runnable\nx\n```\n\n```text output\n1\n```\n\n```python\ny\n```\n```python runnable\nz\n```\n"
    assert examples_of("p", page) == [Example("p:2", "x\n", "1\n"), Example("p:13", "z\n", None)]
    assert [example.where for example in all_examples() if example.where.startswith("README")]


@pytest.mark.parametrize("example", all_examples(), ids=lambda example: example.where)
def test_example_runs(example: Example) -> None:
    result = run_script(example.code).check()
    assert result.stderr == ""
    if example.output is not None:
        assert result.stdout == example.output


def paths_in(page: str) -> set[str]:
    """The files and directories of the repository that a page names as `such/paths`."""
    spelled = re.findall(
        r"`((?:dpool|docs|tests|benchmarks|compat_tests|examples)/[\w./-]*\w/?)(?::[\w.]+(?:\(\))?)?`", page
    )
    return {path.rstrip("/") for path in spelled}


def test_files_that_the_pages_name_exist() -> None:
    assert paths_in("`tests/faults`, `dpool/a.py:f()`, `docs/`, `x/y.py`, `tests/a/b.py`") == {
        "tests/faults",
        "dpool/a.py",
        "tests/a/b.py",
    }
    missing = {
        str(page.relative_to(REPOSITORY)): gone
        for page in PAGES
        if (gone := sorted(path for path in paths_in(page.read_text()) if not (REPOSITORY / path).exists()))
    }
    assert not missing


def test_tables_have_the_same_number_of_cells_in_every_row() -> None:
    for page in PAGES:
        for block in re.findall(r"(?:^\|.*\|\n)+", page.read_text(), re.MULTILINE):
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(cells) == 1, f"{page.name}: {block}"


def test_decisions_are_numbered_in_order() -> None:
    names = [path.name for path in sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))]
    assert names
    assert [int(name[:4]) for name in names] == [*range(1, len(names) + 1)]
    for path in (REPOSITORY / "docs" / "decisions").glob("*.md"):
        parts = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequences", "What was measured"], path.name


def test_numbers_in_the_pages_are_those_of_the_code() -> None:
    """Each number that the pages repeat, and where it comes from; one that changes must be changed there too."""
    config = Config()
    segment_bytes = inspect.signature(objects.Store).parameters["segment_bytes"].default
    facts = {
        "README.md": {
            f"for {config.stopped_worker_s:.0f} s": "a stopped worker",
            "two seconds after": f"{config.linger_s}",
            "five workers in a row": f"{MAX_FAILED_STARTS}",
            f"more than {INLINE_LIMIT // 1024} KiB": "messages",
            f"at most {config.max_batch} tasks": "frames",
        },
        "docs/task_flow.md": {
            f"{PUMP_EVERY} submits": "looking at the sockets while submitting",
            f"{config.stall_s * 1e3:.0f} ms": "stalled frames",
            f"{JOURNAL_BYTES // 1024} KiB": "the journal",
            f"{config.tick_s * 1e3:.0f} ms": "a tick",
        },
        "docs/store.md": {
            f"more than {INLINE_LIMIT // 1024} KiB": "messages",
            f"at least {serde.BUFFER_LIMIT // 1024} KiB": "buffers out of band",
            f"memory files of {segment_bytes >> 20} MiB": "segments",
            f"a header of {memory.HEADER} bytes": "objects",
            f"not used for {room.UNUSED_S:.0f} s": "warm memory",
            f"({MOST_PREFAULT >> 20} MiB at most)": "memory made ahead",
            f"aligned to {serde.ALIGNMENT} bytes": "the flat form",
            f"up to {CHUNKED >> 20} MiB a process leases {CHUNK >> 20} MiB": "chunks",
            f"at most {pins.PINS - pins.SPARE:,} ranges": "pins",
            f"{pins.LOOK_AFTER_S * 1e3:.0f} ms later": "looking for pins",
            f"a {waiting.AHEAD}th of the store": "room made ahead",
            f"at least {MIN_STORE >> 20} MiB": "the smallest store",
        },
        "docs/decisions/0009-readers-pin-and-say-nothing.md": {
            f"{pins.PINS:,} slots, of which {pins.SPARE}": "pins",
            f"waits {pins.LOOK_AFTER_S * 1e3:.0f} ms": "looking for pins",
        },
        "docs/decisions/0004-polling-windows.md": {
            f"{config.poll_s * 1e6:.0f} µs": "the submitter's window",
            f"{WORKER_POLL_S * 1e6:.0f} µs": "the worker's",
        },
        "docs/decisions/0007-lineage-by-looking.md": {f"{config.lineage_flush_s * 1e3:.0f} ms": "lineage"},
    }
    assert (config.linger_s, MAX_FAILED_STARTS) == (2.0, 5)
    assert (objects.PRESSURE_ON, objects.PRESSURE_OFF, objects.RETRY_S) == (0.5, 0.4, 1.0)
    assert (waiting.AHEAD_S, waiting.MOST_AHEAD) == (1.0, 4)
    for page, texts in facts.items():
        text = (REPOSITORY / page).read_text()
        assert not [f"{page}: {number} ({what})" for number, what in texts.items() if number not in text]


def test_every_module_and_every_wall_stands_in_the_architecture() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    modules = [path for path in (REPOSITORY / "dpool").rglob("*.py") if path.name != "__init__.py"]
    assert not [name for path in modules if f"`{(name := str(path.relative_to(REPOSITORY)))}`" not in page]
    walls = configparser.ConfigParser()
    walls.read(REPOSITORY / "setup.cfg")
    names = [walls[section]["name"] for section in walls.sections() if section.startswith("importlinter:contract:")]
    assert names
    assert not [name for name in names if f"**{name}.**" not in page]


# --- The comparison table ---


def a_run() -> dict[str, Any]:
    """A run as `python -m benchmarks --json` writes it, of two questions."""
    medians = {"dpool": {"p50_us": 20.0, "paused_us": 80.0}, "ppe": {"p50_us": 160.0}, "gcs on": {"noop": 1.0}}
    costs = {"dpool": 12.0, "ppe": None}
    speedups = {"dpool": {"speedup_100": 1.75}, "ppe": {"speedup_100": 0.5}}
    rest = {"derived": {}, "failed": {"ppe": "why"}}
    throughput = {"dpool": {"submit": 200_000.0}, "ppe": {"submit": 400_000.0}}
    return {
        "machine": {
            "cpu": "A Processor",
            "cores": 4,
            "cores_usable": 2,
            "memory_gb": 8.0,
            "kernel": "Linux 6",
            "python": "3.11.7",
            "date": "2026-01-02T03:04:05Z",
            "revision": "abc",
            "versions": {"dpool": "0.1.0", "loky": "3"},
            "load_average": [0.1, 0.2, 0.3],
            "busy_percent_before": 1.0,
        },
        "arguments": {"peers": ["dpool", "ppe"], "size": "full", "repeat": None},
        "benchmarks": {
            "round_trip": {"medians": medians, **rest},
            "throughput": {"medians": throughput, "derived": {}, "failed": {}},
            "speedup": {"medians": speedups, "derived": {"cost_us": costs}, "failed": {}},
        },
    }


def test_the_table_is_filled_from_a_run(tmp_path: Path) -> None:
    page, run = tmp_path / "page.md", tmp_path / "run.json"
    page.write_text("before\n<!-- benchmarks:begin -->\nolden\n<!-- benchmarks:end -->\nafter\n")
    run.write_text(json.dumps(a_run()))
    assert readme_table.main([str(run), str(page)]) == 0
    once = page.read_text()
    lines = once.splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "olden" not in once
    assert "| | dpool | ProcessPoolExecutor |" in lines
    assert "| `submit(noop).result()`, back to back | 20 µs | 160 µs (8.0×) |" in lines
    assert "| the same after a pause of 2 ms | 80 µs | – |" in lines
    assert "| no-op tasks, one `submit` each | 200,000/s | 400,000/s (0.50×) |" in lines
    assert "| 2 workers against one thread, tasks of 100 µs | 1.75 × | 0.50 × |" in lines
    assert "| shortest task for which 2 workers win (COST) | 12 µs | – |" in lines
    assert "A Processor, 2 of 4 cores" in once
    assert "`python -m benchmarks round_trip throughput speedup --peers dpool,ppe --json run.json" in once
    assert "ProcessPoolExecutor failed in `round_trip`" in once
    assert "suffer" not in once
    assert readme_table.main([str(run), str(page)]) == 0
    assert page.read_text() == once


def test_the_table_says_what_to_hold_against_it() -> None:
    run = a_run()
    run["machine"]["busy_percent_before"] = 50.0
    run["arguments"]["size"] = "quick"
    text = "\n".join(readme_table.caption(run))
    assert "suffer" in text
    assert "only indicative" in text
    assert "--size quick" in text


@pytest.mark.parametrize("page", ["", "<!-- benchmarks:end --> <!-- benchmarks:begin -->", "<!-- benchmarks:begin -->"])
def test_a_page_without_its_marks_is_left_alone(tmp_path: Path, page: str) -> None:
    path, run = tmp_path / "page.md", tmp_path / "run.json"
    path.write_text(page)
    run.write_text(json.dumps(a_run()))
    with pytest.raises(SystemExit):
        readme_table.main([str(run), str(path)])
    assert path.read_text() == page


def test_a_run_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        readme_table.rows({**a_run(), "benchmarks": {}})


@pytest.mark.parametrize("table", readme_table.TABLES)
def test_every_figure_of_a_table_is_one_that_a_question_measures(table: str) -> None:
    for figure in readme_table.TABLES[table]:
        benchmark = importlib.import_module(f"benchmarks.{figure.question}").BENCHMARK
        metrics = {metric.key: metric for metric in benchmark.metrics}
        if figure.key == "cost_us":
            continue
        metric = metrics[figure.key]
        unit = metric.unit if metric.unit == "/s" else metric.unit.removeprefix("tasks").removeprefix("items")
        assert (unit, metric.less_is_better) == (figure.unit, not figure.more_is_better)
        subjects = {subject.name for subject in benchmark.subjects}
        names = [
            readme_table.IMPORTED.get(peer, peer) if figure.question == "import_time" else peer
            for peer in readme_table.COLUMNS
        ]
        assert "dpool" in subjects
        assert subjects == {"dpool"} or len(subjects & set(names)) > 1


def test_the_readme_has_the_marks() -> None:
    assert readme_table.fill((REPOSITORY / "README.md").read_text(), a_run())
    run = a_run()
    run["benchmarks"]["actor_call"] = {"medians": {"dpool": {"call_us": 20.0}}, "derived": {}, "failed": {}}
    assert "20.0 µs" in readme_table.fill((REPOSITORY / "README.md").read_text(), run, "tasks")
