"""`dpool run`: its options, and what they set going."""

from __future__ import annotations

import argparse
import os
import sys

from dpool._run import program, serving

EPILOG = """\
what is served:
  pool       multiprocessing.Pool, multiprocessing.pool.Pool, get_context(…).Pool
  executor   concurrent.futures.ProcessPoolExecutor
  loky       loky's get_reusable_executor and ProcessPoolExecutor
  joblib     joblib's default backend (and "loky" by name)
  sync       multiprocessing's Lock, Queue, Event, Value, Pipe …

The program itself, its arguments, output and exit status are as with plain Python. What cannot be served stays
standard, and is named once on standard error.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.usage = "dpool run [options] (SCRIPT | -m MODULE | -c CODE | -) [argument …]"
    parser.epilog = EPILOG
    how = parser.add_argument_group("the program")
    how.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="SCRIPT",
        help="a script, a directory or zip file with a __main__.py, or -",
    )
    how.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="a module or package, as with python -m"
    )
    how.add_argument(
        "-c", dest="code", nargs=argparse.REMAINDER, metavar="CODE", help="a program as text, as with python -c"
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="workers of a pool for which the program names no number"
    )
    parser.add_argument(
        "--address", type=_address, metavar="dpool://HOST:PORT", help="the cluster, or auto (default: DPOOL_ADDRESS)"
    )
    parser.add_argument("--report", action="store_true", help="at the end, say on standard error what was run")
    parser.add_argument("--report-json", metavar="FILE", help="write the same to a file, as JSON")
    parser.add_argument("--quiet", action="store_true", help="do not say what stays standard")
    for part in serving.CHOICES:
        parser.add_argument(
            f"--no-{part}", action="append_const", dest="without", const=part, help=f"leave {part} standard"
        )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers: 1 or more")
    return int(text)


def _address(text: str) -> str:
    from dpool._core.runtime import check_address  # not needed otherwise, before the program asks for a pool

    try:
        check_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main(options: argparse.Namespace) -> int:
    """Run the program; what it raises passes through."""
    source = _source(options)
    if source is None:
        print("dpool run: no program is named; see dpool run --help", file=sys.stderr)
        return 2
    tally = ""
    if options.report or options.report_json:
        from dpool._run import report

        try:
            tally = report.start(source.name, options.report, options.report_json)
        except OSError as error:
            print(f"dpool run: the report cannot be written: {error}", file=sys.stderr)
            return 2
    if options.address:
        os.environ["DPOOL_ADDRESS"] = options.address
    serving.serve(serving.Options(frozenset(options.without or ()), options.workers, options.quiet, tally))
    program.run(source)
    return os.EX_OK


def _source(options: argparse.Namespace) -> program.Source | None:
    """What to run."""
    for kind, words in (("module", options.module), ("code", options.code), ("path", options.program)):
        if words:
            return program.Source(kind, words[0], words[1:])
    return None
