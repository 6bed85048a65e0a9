"""joblib's batches, in the worker: which does not import joblib for them, since that takes longer than many a batch.

```
 run_batch ─► _Nested.__enter__ ─► joblib is here: configured ────────────────────────► func(*args, **kwargs) …
                       │                                                                        │
                       └─► not yet: _Watch on sys.meta_path ─► configured at the end of `import joblib`, if ever
```

One thread: the worker's, which runs one batch at a time. A task that another thread of it brings joblib to is not
configured; the next one is. Invariant: while a batch runs and joblib can be used, a `Parallel` of its thread has the
backend that the caller chose for it, and no longer than that.
"""

from __future__ import annotations

import pickle
import sys
from threading import get_ident
from time import perf_counter
from types import ModuleType
from typing import Any


class Share:
    """What a worker of joblib's knows of its pool."""

    cpus: int | None = None
    """Its share of the CPUs; None in a process that is no such worker."""


def run_batch(items: list[Any], nested: bytes, cpus: int) -> tuple[list[Any], float]:
    """The results of `[func(*args, **kwargs)]`, and the seconds that they took.

    Args:
        nested: the pickled `(backend, n_jobs)` of a `Parallel` inside a task.
        cpus: the worker's share of the CPUs.
    """
    Share.cpus = cpus
    begun = perf_counter()
    with _Nested(nested):
        results = [func(*args, **kwargs) for func, args, kwargs in items]
    return results, perf_counter() - begun


class _Nested:
    """The configuration of joblib for the time of a batch."""

    running: _Nested | None = None
    """That of the batch which runs and has not met joblib yet."""

    def __init__(self, settings: bytes) -> None:
        self._settings = settings
        self._thread = get_ident()
        self._config: Any = None

    def __enter__(self) -> None:
        if not self.apply():
            _Nested.running = self
            if _watch not in sys.meta_path:
                sys.meta_path.insert(0, _watch)

    def apply(self) -> bool:
        """Configure joblib, if it has been imported; True if so."""
        configure = getattr(sys.modules.get("joblib"), "parallel_config", None)
        if configure is None:
            return False
        if get_ident() == self._thread:
            backend, n_jobs = pickle.loads(self._settings)
            self._config = configure(backend=backend, n_jobs=n_jobs)
        return True

    def __exit__(self, *_: object) -> None:
        _Nested.running = None
        if self._config is not None:
            self._config.unregister()


class _Watch:
    """On `sys.meta_path`: finds joblib as the others do, and is there when it has been loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "joblib":
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)  # else it would find itself
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """joblib's own loader, that says when it is done."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if _watch in sys.meta_path:
            sys.meta_path.remove(_watch)
        running, _Nested.running = _Nested.running, None
        if running is not None:
            running.apply()


_watch = _Watch()


def map_again(
    name: str, mode: Any, offset: int, size: int, start: int, dtype: Any, shape: Any, strides: Any, order: Any
) -> Any:
    """The array in a memory-mapped file that the caller had as an argument, mapped here too."""
    import numpy

    if order:
        return numpy.memmap(name, dtype, mode, offset, shape, order)
    buffer = numpy.memmap(name, numpy.uint8, mode, offset, (size,))
    return numpy.ndarray(shape, dtype, buffer, start, strides)
