"""`dpool submit`: run a program on the head's machine, as if it ran here."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from dpool._cluster.reach import add_address_argument, address_of
from dpool._cluster.start import HEAD_RESOURCE
from dpool._core.config import from_environment
from dpool.errors import DpoolError

if TYPE_CHECKING:
    from dpool._core.future import Future

EPILOG = """\
The script is sent along, and so are the modules beside it when it imports them. It runs in this directory if the head's
machine has it, with the environment in which the head was started, and its output, exit status and Ctrl-C are as if it
ran here. Press Ctrl-C twice to kill it.
"""
OUTPUT_S = 10.0
INTERRUPTED = 128 + signal.SIGINT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.usage = "dpool submit [--address dpool://HOST:PORT] [--env NAME=VALUE]… SCRIPT [argument …]"
    parser.epilog = EPILOG
    add_address_argument(parser)
    parser.add_argument(
        "--env", action="append", default=[], type=_variable, metavar="NAME=VALUE", help="a variable that it has"
    )
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="argument")


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def main(options: argparse.Namespace) -> int:
    """Submit it, and be it."""
    try:
        with open(options.script, "rb") as file:
            text = file.read()
        address = address_of(options, from_environment())
    except (OSError, ValueError) as error:
        print(f"dpool submit: {error}", file=sys.stderr)
        return 2
    import dpool
    from dpool._cluster.job import Program, run
    from dpool._core import driver

    path = os.path.abspath(options.script)
    directory = os.path.dirname(os.path.realpath(path))
    program = Program(path, text, options.arguments, os.getcwd(), dict(options.env), directory)
    driver.configure(address=address)
    try:
        future = dpool.remote(num_cpus=0, resources={HEAD_RESOURCE: 0.001}, max_retries=0)(run).remote(program)
        status = _outcome(future)
        driver.runtime().catch_up_output(OUTPUT_S)
    except DpoolError as error:
        print(f"dpool submit: {error}", file=sys.stderr)
        return 1
    finally:
        dpool.shutdown()
    return status if status >= 0 else 128 - status


def _outcome(future: Future[Any]) -> int:
    """Its exit status. The first Ctrl-C is passed on, the second kills it."""
    from concurrent.futures import CancelledError

    import dpool

    interrupts = 0
    while True:
        try:
            return int(future.result())
        except CancelledError:
            return INTERRUPTED
        except KeyboardInterrupt:
            interrupts += 1
            dpool.cancel(future, force=interrupts > 1)
