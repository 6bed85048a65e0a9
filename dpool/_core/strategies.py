"""Where tasks and actors run, as programs say it: `scheduling_strategy=`.

| strategy | means |
|---|---|
| None, "DEFAULT" | here if there is room, else where there is |
| "SPREAD" | on as many machines as there are |
| NodeAffinity(node) | on that machine, or not at all; `soft`: elsewhere if it is gone |
| PlacementGroupSchedulingStrategy(group) | out of what the group has set aside |

Each changes the shape of a lease; see logic/places.py. Source: Ray's strategies, and their names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dpool._core.logic.places import NODE, PREFER, SPREAD, in_group, with_names
from dpool._core.logic.resources import UNIT, Shape


class NodeAffinity(NamedTuple):
    """On this machine: `node` is a "NodeID" of `dpool.nodes()`.

    If there is no such machine (any more), the task fails, or waits, as one does that asks for a resource that nobody
    has; with `soft` it runs elsewhere. Source: Ray's `NodeAffinitySchedulingStrategy`.
    """

    node: str
    soft: bool = False


class InGroup(NamedTuple):
    """In a placement group."""

    group: str
    bundles: int
    """How many it has."""
    number: int
    """Of the bundle; -1: any."""


def check(strategy: Any) -> Any:
    """The strategy in dpool's own words: None, "SPREAD", NodeAffinity or InGroup. ValueError for what is none."""
    if strategy is None:
        return None
    if isinstance(strategy, str) and strategy == "DEFAULT":
        return None
    if strategy == "SPREAD":
        return strategy
    if isinstance(strategy, NodeAffinity):
        if len(str(strategy.node)) != 32:
            raise ValueError(f"NodeAffinity takes a NodeID of dpool.nodes(), not {strategy.node!r}")
        return NodeAffinity(strategy.node, bool(strategy.soft))
    meaning = getattr(strategy, "_dpool_strategy", None)
    if meaning is not None:
        return check(meaning())
    if isinstance(strategy, InGroup):
        if not -1 <= strategy.number < strategy.bundles:
            raise ValueError(f"the group has {strategy.bundles} bundles, there is no bundle {strategy.number}")
        return strategy
    raise ValueError(
        f"scheduling_strategy is 'DEFAULT', 'SPREAD', dpool.NodeAffinity(...) or a strategy of "
        f"dpool.util.scheduling_strategies, not {strategy!r}"
    )


def placed(shape: Shape, strategy: Any) -> Shape:
    """A shape with what a strategy (that is checked) says."""
    if strategy is None:
        return shape
    if strategy == "SPREAD":
        return with_names(shape, {SPREAD: UNIT})
    if isinstance(strategy, NodeAffinity):
        return with_names(shape, {f"{PREFER if strategy.soft else NODE}{strategy.node}": UNIT})
    return in_group(shape, strategy.group, strategy.number)
