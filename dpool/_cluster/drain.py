"""`dpool drain`: have a machine leave the cluster when what runs there has ended, and what others need is elsewhere."""

from __future__ import annotations

import argparse
import sys
from time import monotonic, sleep

from dpool._cluster.reach import add_address_argument, reached
from dpool._core.cluster_key import ClusterKeyError
from dpool._core.visit import Visitor
from dpool.errors import StartupError

LOOK_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    parser.add_argument(
        "machine", nargs="?", default="", metavar="MACHINE", help="its address or host name (default: this one)"
    )
    add_address_argument(parser)
    parser.add_argument("--no-wait", action="store_true", help="do not wait until it has left")
    parser.add_argument(
        "--timeout", type=float, default=3600.0, metavar="SECONDS", help="how long to wait for that (default: an hour)"
    )


def main(options: argparse.Namespace) -> int:
    """Ask for it, and wait."""
    machine = options.machine.removeprefix("dpool://")
    try:
        with reached(options) as node, Visitor(node.session) as visitor:
            if node.client and not machine:
                raise StartupError("this machine is in no cluster; name the one that is to leave")
            address = _address(visitor, machine)
            visitor.drain(address)
            print(f"dpool://{address} takes no more work, and leaves when what runs there has ended", flush=True)
            if options.no_wait:
                return 0
            gone, unmoved = watch(visitor, address, monotonic() + options.timeout)
            if not gone:
                print(f"dpool drain: it is still there after {options.timeout:g} s", file=sys.stderr)
                return 1
    except (StartupError, ClusterKeyError, ValueError) as error:
        print(f"dpool drain: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dpool drain: it goes on without being watched", file=sys.stderr)
        return 130
    print(f"dpool://{address} has left")
    if unmoved:
        print(f"dpool drain: lost with it: {unmoved}", file=sys.stderr)
    return 1 if unmoved else 0


def _address(visitor: Visitor, machine: str) -> str:
    """Of the machine that is meant; StartupError if that is not exactly one."""
    told = visitor.status()
    if not machine:
        return str(told[0]["address"])
    members = [one for one in told if not one["client"]]
    named = [one for one in members if machine == one["address"]] or [one for one in members if machine == one["host"]]
    if len(named) == 1:
        return str(named[0]["address"])
    known = ", ".join(f"{one['host']} ({one['address']})" for one in members)
    how = "several machines are" if named else "no machine of the cluster is"
    raise StartupError(f"{how} called {machine!r}; there are {known}")


def watch(visitor: Visitor, address: str, until: float) -> tuple[bool, str]:
    """Wait until nobody lists it any more, as our own node may be the one: whether that is so, what is lost with it."""
    unmoved = ""
    while monotonic() < until:
        try:
            listed = [one for one in visitor.status() if one["address"] == address]
        except StartupError:
            return True, unmoved
        if not listed:
            return True, unmoved
        unmoved = str(listed[0].get("unmoved", ""))
        sleep(LOOK_S)
    return False, unmoved
