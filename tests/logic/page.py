"""Draws the transition tables of docs/state_machines.md: `python -m tests.logic.page` writes them into the page."""

from __future__ import annotations

import re
from pathlib import Path

from dpool._core.logic import actors, dependency, lineage, references, scheduler, sync_queues
from dpool._store import events

PAGE = Path(__file__).parents[2] / "docs" / "state_machines.md"
TABLES = {
    "worker": scheduler.MOVES,
    "pool": scheduler.POOL_MOVES,
    "client": scheduler.CLIENT_MOVES,
    "waiting task": dependency.MOVES,
    "object": references.MOVES,
    "lineage record": lineage.MOVES,
    "stored object": events.MOVES,
    "actor": actors.MOVES,
    "barrier": sync_queues.BARRIER_MOVES,
}
BLOCK = re.compile(r"(<!-- moves: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(moves: dict[tuple[str, type[tuple[object, ...]]], str]) -> str:
    """A grid of `moves`: a row for each cause, a column for each state, in the cell where it leads; `·`: it stays."""
    states = list(dict.fromkeys([state for state, _ in moves] + list(moves.values())))
    causes = list(dict.fromkeys(cause for _, cause in moves))
    rows = [["", *states], ["---"] * (len(states) + 1)]
    for cause in causes:
        cells = [moves.get((state, cause), "") for state in states]
        same = ["·" if cell == state else cell for cell, state in zip(cells, states, strict=True)]
        rows.append([f"`{cause.__name__}`", *same])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def drawn(page: str) -> str:
    """`page` with every table drawn anew."""
    return BLOCK.sub(lambda block: block[1] + table(TABLES[block[2]]) + block[3], page)


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
