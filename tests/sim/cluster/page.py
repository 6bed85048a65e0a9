"""The tables of docs/scaling.md, from the rows of the scenarios: what stands below `<!-- name -->` is replaced."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.sim.cluster.costs import COSTS

Rows = dict[str, list[dict[str, float]]]


class Column(NamedTuple):
    """A key of a row, what stands above it, by how much it is multiplied, and how it is written."""

    key: str
    title: str
    factor: float = 1.0
    form: str = ",.3g"


MACHINES = Column("machines", "machines", 1.0, ",.0f")
TABLES = {
    "throughput": (
        MACHINES,
        Column("tasks_per_s", "million tasks/s", 1e-6),
        Column("messages_per_task", "messages per task"),
    ),
    "steady": (
        MACHINES,
        Column("heartbeats_per_s", "heartbeats", 1, ".0f"),
        Column("messages_per_s", "messages", 1, ".0f"),
        Column("bytes_per_s", "KB", 1e-3, ".0f"),
        Column("gateway_core", "gateway, % of a core", 100, ".1f"),
        Column("node_core", "node, %", 100, ".1f"),
        Column("gcs_commands_per_s", "commands to the store", 1, ".1f"),
        Column("gcs_core", "store, % of a core", 100, ".2g"),
        Column("wait_mean_ms", "mean wait, ms", 1, ".1f"),
        Column("wait_p99_ms", "99 %, ms", 1, ".0f"),
        Column("imbalance", "imbalance", 1, ".2f"),
        Column("refused_per_choice", "refused", 100, ".0f"),
    ),
    "steady, told to all": (
        MACHINES,
        Column("heartbeats_per_s", "heartbeats", 1, ",.0f"),
        Column("bytes_per_s", "KB", 1e-3, ",.0f"),
        Column("gateway_core", "gateway, % of a core", 100, ".1f"),
        Column("node_core", "node, %", 100, ".1f"),
    ),
    "burst": (
        MACHINES,
        Column("tasks", "tasks", 1, ",.0f"),
        Column("busy_after_s", "90 % of CPUs busy after, ms", 1e3, ".0f"),
        Column("took_s", "all done after, s", 1, ".2f"),
        Column("efficiency", "of the ideal, %", 100, ".0f"),
        Column("submitters_gateway_core", "the program's gateway, % of a core", 100, ".0f"),
    ),
    "loss": (
        MACHINES,
        Column("lost", "die", 1, ".0f"),
        Column("programs_lost", "programs on them", 1, ".0f"),
        Column("tasks_again", "tasks run again", 1, ",.0f"),
        Column("tasks_again_share", "of all, %", 100, ".2g"),
        Column("took_s", "the rest is done after, s", 1, ".2f"),
        Column("took_without_s", "without the loss, s", 1, ".2f"),
    ),
    "broadcast": (
        MACHINES,
        Column("took_s", "all have it after, s", 1, ".2f"),
        Column("one_copy_s", "one copy, s", 1, ".2f"),
        Column("one_by_one_s", "one after the other, s", 1, ".2f"),
        Column("most_copies_sent", "most copies sent by one", 1, ".1f"),
    ),
    "placement": (
        MACHINES,
        Column("tasks", "tasks", 1, ",.0f"),
        Column("refused_share", "refused, % of tasks", 100, ".2g"),
        Column("rounds", "rounds until all are placed", 1, ".0f"),
        Column("imbalance", "imbalance", 1, ".2f"),
    ),
}


def fill(page: str, rows: Rows) -> str:
    """The page with the tables of these rows."""
    for name, columns in TABLES.items():
        if rows.get(name):
            page = _put(page, name, _table(columns, rows[name]))
    return _put(page, "costs", _costs())


def _put(page: str, name: str, table: str) -> str:
    pattern = rf"(<!-- {name} -->\n)(?:\|.*\n)*"
    return re.sub(pattern, lambda found: found[1] + table, page, count=1)


def _table(columns: tuple[Column, ...], rows: list[dict[str, float]]) -> str:
    lines = [[column.title for column in columns], ["---:"] * len(columns)]
    lines += [[format(row[one.key] * one.factor, one.form) for one in columns] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _costs() -> str:
    said = {
        "submit_s": "a program's part of one empty task, measured",
        "run_s": "a worker's part, measured",
        "frame_s": "sending or receiving a frame on a socket of the machine, measured, with waking the reader",
        "lease_s": "a node's part of one event of a lease, measured",
        "link_s": "a gateway's part of one message between machines (CURVE, ZeroMQ), measured",
        "relay_s": "a gateway's part of passing a frame on, without that, measured",
        "beat_s": "hearing one heartbeat, without that: gateway, node and its view, measured",
        "choose_s": "one decision where a lease goes, measured",
        "piece_s": "encrypting or decrypting one piece of 1 MiB, measured",
        "gcs_s": "Redis' part of one command, measured",
        "start_s": "forking a worker, assumed",
        "hop_s": "between two processes of a machine, assumed",
        "latency_s": "between two machines, assumed",
        "detect_s": "from a machine's death to the end of its links, assumed",
    }
    lines = [f"| `{name}` | {getattr(COSTS, name) * 1e6:,.1f} µs | {text} |\n" for name, text in said.items()]
    speed = (
        f"| `bytes_per_s` | {COSTS.bytes_per_s * 8e-9:.0f} Gbit/s | each machine's link, in each direction, assumed |\n"
    )
    return "| | cost | of |\n|---|---:|---|\n" + "".join(lines) + speed
