"""`dpool down`: end what `dpool up` began."""

from __future__ import annotations

import argparse
import sys

from dpool._cluster import plan, remotely
from dpool._cluster.up import token_of
from dpool._core import cluster_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.add_argument("file", metavar="cluster.toml", help="the file that `dpool up` was given")


def main(options: argparse.Namespace) -> int:
    """End the cluster's nodes on all machines, at the same time; those of other clusters stay."""
    try:
        what = plan.load(options.file)
        name = token_of(what).cluster()
    except (plan.PlanError, cluster_key.ClusterKeyError, OSError) as error:
        print(f"dpool down: {error}", file=sys.stderr)
        return 1
    words = ["stop", "--if-any", "--cluster", name]
    failed = 0
    for done in remotely.each([*what.workers, what.head], lambda one: remotely.dpool(what, one, words, "")):
        if done.trouble:
            print(f"{done.machine.host}: {done.trouble}", file=sys.stderr)
            failed = 1
        for line in done.output.splitlines() if not done.trouble else ():
            print(f"{done.machine.host}: {line}")
    return failed
