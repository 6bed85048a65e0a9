"""dpool: the pools you know, on a distributed runtime.

```
 Executor ─┐                     ┌─ driver ─ frames ─► workers        (one machine)
 Pool      ├─► Runtime protocol ─┤─ node: leases, processes, output
 …         ┘                     └─ GCS: Redis, lineage
```

Names are imported when they are first used, so that `import dpool` costs next to nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpool import actor as actor
    from dpool import errors as errors
    from dpool import exceptions as exceptions
    from dpool import util as util
    from dpool._core.context import current_worker as current_worker
    from dpool._core.future import Future as Future
    from dpool._core.objectref import ObjectRef as ObjectRef
    from dpool._core.strategies import NodeAffinity as NodeAffinity
    from dpool._core.stream import Stream as Stream
    from dpool.actor import ActorProxy as ActorProxy
    from dpool.actor import get_actor as get_actor
    from dpool.actor import kill as kill
    from dpool.actor import method as method
    from dpool.executor import Executor as Executor
    from dpool.executor import get_reusable_executor as get_reusable_executor
    from dpool.pool import Pool as Pool
    from dpool.runtime_context import get_runtime_context as get_runtime_context
    from dpool.runtime_context import nodes as nodes
    from dpool.tasks import available_resources as available_resources
    from dpool.tasks import cancel as cancel
    from dpool.tasks import cluster_resources as cluster_resources
    from dpool.tasks import get as get
    from dpool.tasks import get_gpu_ids as get_gpu_ids
    from dpool.tasks import init as init
    from dpool.tasks import is_initialized as is_initialized
    from dpool.tasks import put as put
    from dpool.tasks import remote as remote
    from dpool.tasks import shutdown as shutdown
    from dpool.tasks import store_stats as store_stats
    from dpool.tasks import wait as wait

__version__ = "0.1.0"
__all__ = [
    "ActorProxy",
    "Executor",
    "Future",
    "NodeAffinity",
    "ObjectRef",
    "Pool",
    "Stream",
    "__version__",
    "available_resources",
    "cancel",
    "cluster_resources",
    "current_worker",
    "errors",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_reusable_executor",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "register_joblib",
    "remote",
    "shutdown",
    "store_stats",
    "wait",
]

_HOMES = {
    "ActorProxy": "dpool.actor",
    "Executor": "dpool.executor",
    "Future": "dpool._core.future",
    "NodeAffinity": "dpool._core.strategies",
    "ObjectRef": "dpool._core.objectref",
    "Pool": "dpool.pool",
    "Stream": "dpool._core.stream",
    "available_resources": "dpool.tasks",
    "cancel": "dpool.tasks",
    "cluster_resources": "dpool.tasks",
    "current_worker": "dpool._core.context",
    "get": "dpool.tasks",
    "get_actor": "dpool.actor",
    "get_gpu_ids": "dpool.tasks",
    "get_reusable_executor": "dpool.executor",
    "init": "dpool.tasks",
    "is_initialized": "dpool.tasks",
    "kill": "dpool.actor",
    "get_runtime_context": "dpool.runtime_context",
    "method": "dpool.actor",
    "nodes": "dpool.runtime_context",
    "put": "dpool.tasks",
    "remote": "dpool.tasks",
    "shutdown": "dpool.tasks",
    "store_stats": "dpool.tasks",
    "wait": "dpool.tasks",
}

_MODULES = ("actor", "errors", "exceptions", "runtime_context", "util")


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"dpool.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise importlib.import_module("dpool._absent").error("dpool", name)
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register_joblib(make_default: bool = False) -> None:
    """Let joblib know the backend "dpool"; `make_default`: and use it where a program names none.

    Not needed for the name alone if joblib was imported before dpool. ImportError if there is no joblib.
    """
    from dpool.joblib import register_joblib as register

    register(make_default)


def _known_to_joblib() -> None:
    """A program that has joblib can name our backend at once; what that needs is imported when it does."""

    def backend(**settings: Any) -> Any:
        from dpool.joblib import DpoolBackend

        return DpoolBackend(**settings)

    register = getattr(sys.modules.get("joblib.parallel"), "register_parallel_backend", None)
    if register is not None:
        register("dpool", backend)


_known_to_joblib()
