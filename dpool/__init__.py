"""dpool: the executors you know, on a distributed runtime.

```
 Executor ─┐                     ┌─ driver ─ frames ─► workers        (one machine)
 Future    ├─► Runtime protocol ─┤─ node: leases, processes, output
 …         ┘                     └─ GCS: Redis, lineage
```

Names are imported when they are first used, so that `import dpool` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpool import errors as errors
    from dpool._core.future import Future as Future
    from dpool.executor import Executor as Executor
    from dpool.executor import get_reusable_executor as get_reusable_executor

__version__ = "0.1.0"
__all__ = ["Executor", "Future", "__version__", "errors", "get_reusable_executor"]

_HOMES = {
    "Executor": "dpool.executor",
    "Future": "dpool._core.future",
    "get_reusable_executor": "dpool.executor",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("dpool.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dpool' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
