"""`dpool up`: start a cluster on the machines of a file, over ssh."""

from __future__ import annotations

import argparse
import json
import os
import sys

from dpool._cluster import plan, remotely
from dpool._core import cluster_key

EPILOG = """\
The file is TOML:

  [head]
  host = "node1"

  [[workers]]
  hosts = ["node2", "node3"]

ssh must get there without asking for a password, and `python3 -m dpool` must work there; docs/cluster.md has all that
the file can say. What runs already is left as it is, so that the command can be given again after a failure.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="cluster.toml")


def main(options: argparse.Namespace) -> int:
    """The head first, then all others at the same time."""
    try:
        what = plan.load(options.file)
        key = token_of(what, create=True)
    except (plan.PlanError, cluster_key.ClusterKeyError, OSError) as error:
        print(f"dpool up: {error}", file=sys.stderr)
        return 1
    head = _start(what, what.head, ["--head"], key)
    if not _tell(head):
        print("dpool up: without its head there is no cluster, and nothing else was started", file=sys.stderr)
        return 1
    address = f"dpool://{json.loads(head.output)['address']}"
    print(f"{what.head.host}: the head, at {address}", flush=True)
    others = remotely.each(what.workers, lambda one: _start(what, one, ["--address", address], key))
    failed = 0
    for done in others:
        if _tell(done):
            print(f"{done.machine.host}: dpool://{json.loads(done.output)['address']}", flush=True)
        else:
            failed += 1
    if failed:
        print(
            f"dpool up: {failed} of {len(what.workers) + 1} machines failed; the others run. Give the command again, "
            f"or end them with `dpool down {options.file}`",
            file=sys.stderr,
        )
        return 1
    print(f"programs here:  DPOOL_ADDRESS={address} python script.py")
    return 0


def token_of(what: plan.Plan, create: bool = False) -> cluster_key.ClusterKey:
    """The cluster's secret, of this machine's file; made, if there is none and that is wanted."""
    path = what.token_file or cluster_key.default_path()
    if create and not os.path.lexists(path):
        return cluster_key.create(path)
    return cluster_key.load(path)


def _start(what: plan.Plan, machine: plan.Machine, role: list[str], key: cluster_key.ClusterKey) -> remotely.Done:
    words = ["start", *role, *machine.options, "--once", "--json", "--token-stdin"]
    done = remotely.dpool(what, machine, words, cluster_key.format_line(key))
    if done.trouble:
        return done
    try:
        json.loads(done.output)["address"]
    except (ValueError, KeyError, TypeError):
        return done._replace(trouble=f"it said something else than dpool would: {done.output.strip()!r:.200}")
    return done


def _tell(done: remotely.Done) -> bool:
    """Whether it did what it should; says what was wrong, if not."""
    if done.trouble:
        print(f"{done.machine.host}: {done.trouble}", file=sys.stderr)
    return not done.trouble
