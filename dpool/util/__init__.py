"""What Ray has in `ray.util`, as far as it is tasks and actors: actor pools, queues, placement groups, …"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpool.util import joblib as joblib
    from dpool.util import multiprocessing as multiprocessing
    from dpool.util import queue as queue
    from dpool.util import scheduling_strategies as scheduling_strategies
    from dpool.util.actor_pool import ActorPool as ActorPool
    from dpool.util.placement_group import PlacementGroup as PlacementGroup
    from dpool.util.placement_group import placement_group as placement_group
    from dpool.util.placement_group import remove_placement_group as remove_placement_group

__all__ = [
    "ActorPool",
    "PlacementGroup",
    "get_node_ip_address",
    "joblib",
    "multiprocessing",
    "placement_group",
    "queue",
    "remove_placement_group",
    "scheduling_strategies",
]

_MODULES = ("actor_pool", "joblib", "multiprocessing", "queue", "scheduling_strategies")
_GROUPS = ("PlacementGroup", "placement_group", "remove_placement_group")


def get_node_ip_address() -> str:
    """The address of this machine; that of its loopback, since nothing of dpool listens on a network."""
    return "127.0.0.1"


def __getattr__(name: str) -> Any:
    if name == "ActorPool":
        return importlib.import_module("dpool.util.actor_pool").ActorPool
    if name in _GROUPS:  # one of them is called like its module, which an import puts here
        found = importlib.import_module("dpool.util.placement_group")
        globals().update({each: getattr(found, each) for each in _GROUPS})
        return globals()[name]
    if name in _MODULES:
        return importlib.import_module(f"dpool.util.{name}")
    raise importlib.import_module("dpool._absent").error("dpool.util", name)
