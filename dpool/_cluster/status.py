"""`dpool status`: the machines of the cluster, what they have and what they do."""

from __future__ import annotations

import argparse
import json
import sys
from time import monotonic, sleep
from typing import Any

from dpool._cluster.reach import add_address_argument, reached
from dpool._core import gateway_start
from dpool._core.cluster_key import ClusterKeyError
from dpool._core.visit import Visitor
from dpool.errors import StartupError

COMPLETE_S = 5.0
"""How long a client that has just joined waits to hear of all machines."""
HEADINGS: tuple[str, ...] = (
    "MACHINE",
    "ADDRESS",
    "CPUS",
    "GPUS",
    "MEMORY",
    "WAITING",
    "WORKERS",
    "ACTORS",
    "STORE",
    "OTHER",
)
UNITS = ("B", "kB", "MB", "GB", "TB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For `cli`."""
    add_address_argument(parser)
    parser.add_argument("--json", action="store_true", help="as JSON; with --watch, a line each time")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=2.0, metavar="SECONDS", help="again and again (default: every 2 s)"
    )


def main(options: argparse.Namespace) -> int:
    """Ask, and show the answer."""
    if options.watch is not None and not options.watch > 0:
        print("dpool status: --watch is a number of seconds above 0", file=sys.stderr)
        return 2
    try:
        with reached(options) as node, Visitor(node.session) as visitor:
            _show(node, visitor, options)
    except (StartupError, ClusterKeyError, ValueError) as error:
        print(f"dpool status: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if options.watch is not None else 130
    except BrokenPipeError:  # whoever read it has seen enough
        sys.stderr.close()
        return 0
    return 0


def _show(node: gateway_start.Started, visitor: Visitor, options: argparse.Namespace) -> None:
    while True:
        found = status(node, visitor)
        if options.json:
            print(json.dumps(found, indent=None if options.watch else 2), flush=True)
        else:
            clear = "\x1b[H\x1b[2J" if options.watch and sys.stdout.isatty() else ""
            print(clear + describe(found), flush=True)
        if options.watch is None:
            return
        sleep(options.watch)


def status(node: gateway_start.Started, visitor: Visitor) -> dict[str, Any]:
    """The cluster: `head` (its address), `machines` (see node_about.py; `head` and `here` are added) and `totals`."""
    until = monotonic() + COMPLETE_S
    told = visitor.status()
    while node.client and not _complete(told) and monotonic() < until:
        sleep(0.02)
        told = visitor.status()
    machines = [
        {**one, "head": one["address"] == node.head, "here": number == 0 and not node.client}
        for number, one in enumerate(told)
        if not (node.client and number == 0)
    ]
    machines.sort(key=lambda one: (not one["head"], one["client"]))
    return {"head": node.head, "machines": machines, "totals": _totals(machines)}


def _complete(told: list[dict[str, Any]]) -> bool:
    """Whether all are among them that any of them knows."""
    known: int = max(one["members"] for one in told)
    return 0 < known <= sum(not one["client"] for one in told)


def _totals(machines: list[dict[str, Any]]) -> dict[str, Any]:
    resources: dict[str, list[float]] = {}
    for one in machines:
        for name, (there, free) in one["resources"].items():
            amounts = resources.setdefault(name, [0.0, 0.0])
            amounts[0] += there
            amounts[1] += free
    return {
        "machines": sum(not one["client"] for one in machines),
        "clients": sum(one["client"] for one in machines),
        "resources": resources,
        **{name: sum(one[name] for one in machines) for name in ("waiting", "workers", "actors")},
        "store": {name: sum(one["store"][name] for one in machines) for name in ("used", "capacity", "objects")},
    }


# -- as a table


def describe(found: dict[str, Any]) -> str:
    """For people."""
    totals = found["totals"]
    count = f"{totals['machines']} machine{'s' * (totals['machines'] != 1)}"
    lines = [f"cluster of {count}, its head at dpool://{found['head']}", ""]
    rows = [HEADINGS, *(_row(_name(one), one["address"] or "a client", one) for one in found["machines"])]
    if len(found["machines"]) > 1:
        rows.append(_row("in all", "", totals))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _name(one: dict[str, Any]) -> str:
    marks = [mark for mark in ("head", "here", "draining") if one[mark]]
    return f"{one['host']} ({', '.join(marks)})" if marks else str(one["host"])


def _row(name: str, address: str, one: dict[str, Any]) -> tuple[str, ...]:
    resources = dict(one["resources"])
    cpus, gpus, memory = (resources.pop(each, [0, 0]) for each in ("num_cpus", "num_gpus", "memory"))
    other = ", ".join(f"{each} {_of(there, free)}" for each, (there, free) in sorted(resources.items()))
    store = one["store"]
    return (
        name,
        address,
        _of(*cpus),
        _of(*gpus),
        f"{_size(memory[0] - memory[1])} of {_size(memory[0])}",
        str(one["waiting"]),
        str(one["workers"]),
        str(one["actors"]),
        f"{_size(store['used'])} of {_size(store['capacity'])}" if store["capacity"] else "–",
        other,
    )


def _of(there: float, free: float) -> str:
    return f"{there - free:g} of {there:g}"


def _size(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count /= 1000
        unit += 1
    return f"{count:.3g} {UNITS[unit]}"
