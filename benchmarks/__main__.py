"""The command line: `python -m benchmarks [question …] [--peers dpool,mp,…] [--json FILE] [--plot FILE] [--quick]`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import QUESTIONS, harness, machine, report
from benchmarks.model import SIZES, Benchmark
from benchmarks.peers import OTHERS, PEERS

_ASKED = [*PEERS, *OTHERS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the questions asked for; return 0, or with --check 1 unless every target was measured and met."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed")
    benchmarks = [_load(name) for name in options.questions or QUESTIONS]
    if options.plot is not None and not any(benchmark.plot for benchmark in benchmarks):
        parser.error("--plot: none of these questions has a plot (speedup has)")
    outcomes = _answer(benchmarks, options)
    verdicts = [verdict for outcome in outcomes for verdict in outcome.benchmark.judge(outcome.results)]
    met = sum(verdict.passed is True for verdict in verdicts)
    print(f"\n{met} of {len(verdicts)} targets met")
    return int(options.check and met < len(verdicts))


def _answer(benchmarks: Sequence[Benchmark], options: argparse.Namespace) -> list[harness.Outcome]:
    description = machine.describe()
    print("\n".join(report.heading(description, options.size)), flush=True)
    outcomes: list[harness.Outcome] = []
    for benchmark in benchmarks:
        outcome = harness.run(benchmark, options.peers, options.size, options.repeat, _progress)
        _progress("")
        print("\n".join(report.table(outcome)), flush=True)
        outcomes.append(outcome)
        if options.plot is not None and benchmark.plot is not None:
            benchmark.plot(outcome.results, options.plot)
        if options.json is not None:
            arguments = {"peers": options.peers, "size": options.size, "repeat": options.repeat}
            options.json.write_text(json.dumps(report.as_json(description, arguments, outcomes), indent=1))
    return outcomes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="dpool and its peers, side by side")
    parser.add_argument(
        "questions", nargs="*", metavar="question", help=f"any of {', '.join(QUESTIONS)} (default: all)"
    )
    parser.add_argument("--peers", type=_peer_names, default=_ASKED, help=f"default: {','.join(_ASKED)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, samples included")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="throughput against task length (speedup)")
    parser.add_argument("--size", choices=SIZES, default="full", help="how long to measure")
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", help="the same as --size quick")
    parser.add_argument(
        "--repeat", type=_positive, metavar="N", help="repetitions, instead of each question's own number"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every target was measured and met")
    return parser


def _load(name: str) -> Benchmark:
    if name not in QUESTIONS:
        raise SystemExit(f"no question is called {name!r}; there are {', '.join(QUESTIONS)}")
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    return benchmark


def _peer_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in _ASKED]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"peers are {', '.join(_ASKED)}, not {', '.join(unknown) or 'nothing'}")
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")  # what was finished has been printed and written
