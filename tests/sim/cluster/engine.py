"""The clock, the processors and the network of a simulated cluster: virtual time, measured costs.

A `Core` is one process with one thread: what it is given is done in order, each for as long as it costs. A message
between machines costs the sender's gateway, takes its turn on both networks, travels, and costs the receiver's gateway;
so the messages of each pair of machines arrive in order, unless the receiver is dead.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from tests.sim.cluster.costs import COSTS, Costs


class Engine:
    """Virtual time.

    Attributes:
        now_s: the virtual time.
        rng: the only source of chance.
        counts: what happened how often, over all machines.
        gcs: the control store's server.
        careful: check every machine after each of its events.
    """

    def __init__(self, seed: int, costs: Costs = COSTS, careful: bool = False) -> None:
        self.now_s = 0.0
        self.rng = Random(seed)
        self.costs = costs
        self.careful = careful
        self.counts: Counter[str] = Counter()
        self.gcs = Core(self)
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when_s: float, do: Callable[..., None], *args: Any) -> None:
        """Call `do(*args)` at `when_s`, or now if that has passed."""
        self._count += 1
        heapq.heappush(self._due, (max(when_s, self.now_s), self._count, do, args))

    def after(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        self.at(self.now_s + delay_s, do, *args)

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        """Fire what is due until `until()`. Raises AssertionError if it is not so by the virtual time `limit_s`."""
        while not until():
            assert self._due, "nothing more happens"
            self.now_s, _, do, args = heapq.heappop(self._due)
            assert self.now_s <= limit_s, f"not done after {limit_s} virtual seconds"
            do(*args)

    def run_for(self, span_s: float) -> None:
        """Fire what is due in the next `span_s`."""
        end_s = self.now_s + span_s
        while self._due and self._due[0][0] <= end_s:
            self.now_s, _, do, args = heapq.heappop(self._due)
            do(*args)
        self.now_s = end_s

    def gcs_commands(self, commands: int, size: int) -> None:
        """Somebody writes to the control store, or asks it."""
        self.counts["gcs commands"] += commands
        self.counts["gcs bytes"] += size
        self.gcs.charge(commands * self.costs.gcs_s)


class Core:
    """One process. `busy_s`: how long it has worked, what is queued included."""

    __slots__ = ("_engine", "busy_s", "free_at_s")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.free_at_s = 0.0
        self.busy_s = 0.0

    def charge(self, cost_s: float, from_s: float = 0.0) -> float:
        """It has `cost_s` to do, not before `from_s`; returns when that will be done."""
        self.free_at_s = max(self.free_at_s, self._engine.now_s, from_s) + cost_s
        self.busy_s += cost_s
        return self.free_at_s
