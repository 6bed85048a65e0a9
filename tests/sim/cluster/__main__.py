"""`python -m tests.sim.cluster`: every question at full size; `--quick`: small, in seconds.

`… chaos [--seed N | --runs N]` replays one run of random misfortunes, or tries many; `… measure` measures the costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.sim.cluster import measure, page, plot, scenarios
from tests.sim.cluster.machine import HEARTBEAT_S

SEED = 1


class Size(NamedTuple):
    """How large the questions are."""

    counts: tuple[int, ...]
    tasks: int
    span_s: float
    deciders: int
    placed: tuple[int, ...]
    pieces: int
    each: int


FULL = Size((1, 10, 100, 1000), 100_000, 1.0, 50, (100, 1000, 10_000), 64, 64)
QUICK = Size((1, 4, 36), 5_000, 0.3, 8, (50, 300), 4, 48)

Rows = dict[str, list[dict[str, float]]]


def answers(size: Size, say: Callable[[str], None], only: str | None = None) -> Rows:
    """Every question, or only that one; `say` is told each row when it is known."""
    many = [count for count in size.counts if count > 1]
    questions: dict[str, list[Callable[[], dict[str, float]]]] = {
        "throughput": [partial(scenarios.throughput, n, SEED, size.tasks) for n in size.counts],
        "steady": [partial(scenarios.steady, n, SEED, size.span_s) for n in many],
        "steady, told to all": [
            partial(scenarios.steady, n, SEED, min(size.span_s, max(2 * HEARTBEAT_S, 100 / n)), tell_all=True)
            for n in many
        ],
        "burst": [partial(scenarios.burst, n, SEED, 1.0, 2) for n in size.counts],
        "loss": [partial(scenarios.loss, n, SEED, 0.1, size.each) for n in many if n >= 10],
        "broadcast": [partial(scenarios.broadcast, n, SEED, size.pieces) for n in many],
        "placement": [
            partial(scenarios.placement, n, SEED, size.deciders, share) for n in size.placed for share in (0.5, 0.9)
        ],
    }
    rows: Rows = {}
    for question, asked in questions.items():
        if only not in (None, question):
            continue
        say(question)
        rows[question] = []
        for ask in asked:
            begin = time.perf_counter()
            row = ask()
            rows[question].append(row)
            say("    " + _line(row) + f"   [{time.perf_counter() - begin:.1f} s]")
    return rows


def _line(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in row.items())


def run_chaos(seeds: range) -> int:
    """How many of these seeds do not come to rest as they should; prints which, and how to replay them."""
    failures = 0
    for seed in seeds:
        try:
            row = scenarios.chaos(seed)
        except Exception as error:  # whatever a broken machine raises is what is looked for
            failures += 1
            print(f"seed {seed}: {type(error).__name__}: {error}")
            print(f"replay with: python -m tests.sim.cluster chaos --seed {seed}")
            if len(seeds) == 1:
                raise
        else:
            if len(seeds) == 1:
                print(_line(row))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.cluster", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "chaos", "measure"), default="all")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="tasks per second, and what heartbeats cost")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="fill its tables (docs/scaling.md)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    parser.add_argument("--only", metavar="QUESTION", help="throughput, steady, burst, …")
    parser.add_argument("--seed", type=int, help="chaos: replay this seed")
    parser.add_argument("--runs", type=int, default=1000, help="chaos: how many seeds to try (default 1000)")
    options = parser.parse_args()
    if options.what == "measure":
        for name, value in measure.measured().items():
            print(f"{name:12} {value * 1e6:8.2f} µs")
        return 0
    if options.what == "chaos":
        seeds = range(options.runs) if options.seed is None else range(options.seed, options.seed + 1)
        failures = run_chaos(seeds)
        print(f"{len(seeds) - failures} of {len(seeds)} seeds came to rest as they should")
        return 1 if failures else 0
    rows = answers(QUICK if options.quick else FULL, lambda line: print(line, flush=True), options.only)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.page is not None:
        options.page.write_text(page.fill(options.page.read_text(), rows))
    if options.plot is not None:
        options.plot.write_text(plot.draw(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
