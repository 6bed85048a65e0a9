"""What a machine of a cluster says of itself, for people: who has how much, what waits, whether it is about to leave.

```
 beat ─► about() ─► AboutReport ─► the gateways ─► PeerAbout ─► heard
 `dpool status` ─ AskStatus ─► told ─► StatusTold: this machine, then the others by host and address
 `dpool drain`  ─ AskDrain ─► NodeAbroad.drain
 AskOutput, a pool's end ─► ask_output ─► AskOutputAbroad ─► the machines that have had its workers ─► output_told
```

A part of `NodeAbroad`, in the node's loop. Fields of `about()`: `host`, `pid` (the node's), `client`, `draining`,
`members` (machines that it knows, itself among them; no clients), `resources` (name → [there is, free], in users'
units), `waiting` (tasks), `workers` (processes), `actors`, `store`: `used`, `capacity`, `objects`; in an answer also
`address`, empty for a client; and `unmoved`: what is lost when it leaves, in a moment.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import messages as m
from dpool._core.logic.resources import UNIT

if TYPE_CHECKING:
    from dpool._core.node import Client, Node
    from dpool._core.node_abroad import NodeAbroad

ABOUT_S = 0.5
"""How often, at most, the others hear of a change that only people want to know."""


class NodeAbout:
    """See the module."""

    def __init__(self, node: Node, abroad: NodeAbroad) -> None:
        self._node = node
        self._abroad = abroad
        self._others: dict[bytes, dict[str, Any]] = {}
        self._told: dict[str, Any] = {}
        self._told_at = 0.0
        self._asked: dict[int, Callable[[], None]] = {}
        """Number of a question for output → what waits for the answer."""
        self._numbers = 0
        self.unmoved = ""
        """What is lost when this machine leaves, as it is about to."""

    # -- what it says

    def about(self) -> dict[str, Any]:
        """How it is here, now."""
        node = self._node
        named = sorted(node.resources().items())
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "client": node.config.client,
            "draining": node.scheduler.draining,
            "members": (not node.config.client) + sum(not one["client"] for one in self._others.values()),
            "resources": {name: [there / UNIT, free / UNIT] for name, (there, free) in named if _is_plain(name)},
            "waiting": node.scheduler.waiting(),
            "workers": len(node._procs),
            "actors": node._actors.machine.living() if node._actors is not None else 0,
            "store": self._store(),
            **({"unmoved": self.unmoved} if self.unmoved else {}),
        }

    def _store(self) -> dict[str, int]:
        store = self._node._store
        if store is None:
            return {"used": 0, "capacity": 0, "objects": 0}
        used, capacity, objects = store.store.fill()
        return {"used": used, "capacity": capacity, "objects": objects}

    def beat(self) -> None:
        """Tell the others if something has changed; to be called every so often."""
        now = monotonic()
        if now - self._told_at < ABOUT_S:
            return
        self._told_at = now
        about = self.about()
        if about != self._told:
            self._told = about
            self._abroad._tell(m.AboutReport(about))

    # -- what is heard of others

    def heard(self, message: m.PeerAbout) -> None:
        """Another machine tells how it is there. One that says something else is listed without it."""
        if _is_about(message.about):
            self._others[message.node] = message.about

    def gone(self, node: bytes) -> None:
        """There is no link to it any more."""
        self._others.pop(node, None)

    def room(self, node: bytes) -> float:
        """The free bytes of another machine's store; one that has not been used yet counts as the largest."""
        store = self._others[node]["store"] if node in self._others else {"capacity": 1, "used": 1}
        return store["capacity"] - store["used"] if store["capacity"] else float("inf")

    def told(self, client: Client) -> None:
        """Answer AskStatus."""
        others = sorted(self._others.values(), key=lambda one: (one["client"], one["host"], one["address"]))
        self._node._send(client, m.StatusTold([{**self.about(), "address": self._address()}, *others]))

    # -- leaving

    def ask_drain(self, client: Client, address: str) -> None:
        """Answer AskDrain."""
        names = {about["address"]: node for node, about in self._others.items()}
        name = {**names, self._address(): self._abroad.name}.get(address)
        if name is not None:
            self._abroad.drain(name)
        why = "" if name is not None else f"there is no machine at {address!r} in the cluster"
        self._node._send(client, m.DrainTold(name is not None, why))

    def _address(self) -> str:
        return self._abroad.store_at.address if self._abroad.store_at is not None else ""

    # -- output

    def ask_output(self, pools: Iterable[int], then: Callable[[], None]) -> bool:
        """If these pools have had workers on other machines, ask those for what has been printed, and do `then` when it
        is here; False if they have had none.
        """
        machines = {node for pool in pools for node in self._abroad.went.get(pool, ())}
        if not machines:
            return False
        self._numbers += 1
        self._asked[self._numbers] = then
        self._abroad._tell(m.AskOutputAbroad(self._numbers, list(machines)))
        return True

    def output_told(self, number: int) -> None:
        """It is all here."""
        then = self._asked.pop(number, None)
        if then is not None:
            then()


_FIELDS = {
    "host": str,
    "address": str,
    "client": bool,
    "draining": bool,
    "members": int,
    "resources": dict,
    "waiting": int,
    "workers": int,
    "actors": int,
    "store": dict,
}


def _is_about(found: dict[str, Any]) -> bool:
    """Whether it has what the others of the cluster are listed with."""
    return all(isinstance(found.get(name), kind) for name, kind in _FIELDS.items()) and all(
        isinstance(found["store"].get(name), int) for name in ("used", "capacity", "objects")
    )


def _is_plain(name: str) -> bool:
    """Whether a resource is one that people know, not a mark of the scheduler's own."""
    return "|" not in name and not name.startswith("@")
