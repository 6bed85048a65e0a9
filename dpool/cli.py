"""The command `dpool`: finds the subcommand's module, which is imported then and not before.

A module of `COMMANDS` has `add_arguments(parser)` and `main(options) -> exit status`.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import NamedTuple

import dpool


class Command(NamedTuple):
    """One subcommand."""

    module: str
    summary: str


COMMANDS = {
    "run": Command("dpool._run.command", "run a Python program with its process pools served by dpool"),
    "start": Command("dpool._cluster.start", "make this machine the head of a cluster, or one of its nodes"),
    "stop": Command("dpool._cluster.stop", "end what `dpool start` began on this machine"),
    "status": Command("dpool._cluster.status", "show the machines of the cluster, what they have and what they do"),
    "drain": Command("dpool._cluster.drain", "have a machine leave the cluster when what runs there has ended"),
    "submit": Command("dpool._cluster.submit", "run a program on the head's machine, as if it ran here"),
    "up": Command("dpool._cluster.up", "start a cluster on the machines of a file, over ssh"),
    "down": Command("dpool._cluster.down", "end what `dpool up` began"),
    "token": Command("dpool._cluster.token", "show, make or take over the cluster's secret"),
}


def main(arguments: list[str] | None = None) -> int:
    """Carry out a command line (by default this process's); returns the exit status.

    What the program raises under `dpool run`, SystemExit among it, passes through.
    """
    given = sys.argv[1:] if arguments is None else arguments
    command = COMMANDS.get(given[0]) if given else None
    if command is None:
        return _without_command(given)
    module = import_module(command.module)
    parser = argparse.ArgumentParser(
        prog=f"dpool {given[0]}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    status: int = module.main(parser.parse_args(given[1:]))
    return status


def _without_command(given: list[str]) -> int:
    """`dpool`, `dpool --help`, `dpool --version`, and what is none of the commands."""
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="dpool",
        usage="dpool [-h] [--version] COMMAND …",
        description="The pools you know, on a distributed runtime.",
        epilog=f"commands:\n{listing}\n\n`dpool COMMAND --help` says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dpool {dpool.__version__}")
    parser.add_argument("command", metavar="COMMAND", nargs="?", choices=list(COMMANDS), help=argparse.SUPPRESS)
    parser.parse_args(given)
    parser.print_help()
    return 2
