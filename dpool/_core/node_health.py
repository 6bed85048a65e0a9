"""Which machines of the cluster live: this node's heartbeats in the control store, and who is declared lost.

```
 every heartbeat_s: how it is here ─► the store (and, through the gateways, the other machines)
 a link is down ─► its last heartbeat in the store? ─ node_timeout_s ─► the same, and no link: lost, in the store, once
                                                                       └ another one: it lives, look again
```

A machine that stops removes its own row, and is not lost. All that had a link to a lost one look after it; the store
keeps who was the first to say so, and only that one tells it (`node.lost`). What was the lost machine's alone goes with
that: its jobs, and the names of its actors.

Runs in the node's loop; the store is asked in the writer's thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpool._core.messages import LoadReport
    from dpool._core.node import Node

BEATS_PER_TIMEOUT = 4
"""So often the store hears at least of a machine where nothing changes."""


class Health:
    """See the module. `up`: the machines that there is a link to."""

    def __init__(self, node: Node, up: dict[bytes, str], log: Callable[..., None]) -> None:
        self._node = node
        self._up = up
        self._log = log
        self._beats = 0
        self._told: tuple[LoadReport, float] | None = None

    def beat(self, report: LoadReport) -> None:
        """How it is here; to be called every so often."""
        records, now = self._node._records, monotonic()
        if records is None:
            return
        config = self._node.config
        quiet_s = max(config.heartbeat_s, config.node_timeout_s / BEATS_PER_TIMEOUT)
        if self._told is not None and self._told[0] == report and now - self._told[1] < quiet_s:
            return
        self._told = report, now
        self._beats += 1
        records.heartbeat(json.dumps({"beat": self._beats, "at_s": time(), **report._asdict()}).encode())

    def suspect(self, node: bytes, host: str, reason: str) -> None:
        """The link is down."""
        records = self._node._records
        if records is not None:
            records.ask(partial(_last_beat, node), partial(self._heard, node, host, reason))

    def _heard(self, node: bytes, host: str, reason: str, beat: bytes | None) -> None:
        """What the store had of it."""
        if beat is not None:
            after = monotonic() + self._node.config.node_timeout_s
            self._node._at(after, partial(self._look_again, node, host, reason, beat))

    def _look_again(self, node: bytes, host: str, reason: str, beat: bytes) -> None:
        if node not in self._up:
            why = f"its machine {host} is lost: {reason}, and no heartbeat for {self._node.config.node_timeout_s:g} s"
            question = partial(_bury_if_silent, node, beat, why, self._node.node_id)
            self._node.records().ask(question, partial(self._judged, node, host, reason, why))

    def _judged(self, node: bytes, host: str, reason: str, why: str, answer: tuple[bool, bytes | None]) -> None:
        first, beat = answer
        if first:
            self._log("node.lost", node=node.hex(), host=host, why=why)
            self._node.records().node_lost(host, why)
        self._heard(node, host, reason, beat)


def _last_beat(node: bytes, store: Any) -> bytes | None:
    """In the writer's thread: what the store has of it; None if it has left."""
    return bytes(store.loads().get(node, b"")) if node in store.nodes() else None


def _bury_if_silent(node: bytes, beat: bytes, why: str, by: bytes, store: Any) -> tuple[bool, bytes | None]:
    """In the writer's thread: (whether we are the first to say that it is lost, its heartbeat if it lives)."""
    now = _last_beat(node, store)
    if now is not None and now != beat:
        return False, now
    return store.bury_node(node, why, time(), by), None
