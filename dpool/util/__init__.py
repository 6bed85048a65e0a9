"""What Ray has in `ray.util`, as far as it is tasks and actors: `ActorPool`, `queue`, `multiprocessing`, `joblib`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpool.util import joblib as joblib
    from dpool.util import multiprocessing as multiprocessing
    from dpool.util import queue as queue
    from dpool.util.actor_pool import ActorPool as ActorPool

__all__ = ["ActorPool", "get_node_ip_address", "joblib", "multiprocessing", "queue"]

_MODULES = ("actor_pool", "joblib", "multiprocessing", "queue")


def get_node_ip_address() -> str:
    """The address of this machine; that of its loopback, since nothing of dpool listens on a network."""
    return "127.0.0.1"


def __getattr__(name: str) -> Any:
    if name == "ActorPool":
        return importlib.import_module("dpool.util.actor_pool").ActorPool
    if name in _MODULES:
        return importlib.import_module(f"dpool.util.{name}")
    raise importlib.import_module("dpool._absent").error("dpool.util", name)
