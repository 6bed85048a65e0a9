"""The lock of tqdm's bars in an executor's `initargs`, as `tqdm.contrib.concurrent.process_map` puts it there.

```
 here:     mp_lock, made with the start method 'fork' ──► the same object, which from now on takes two semaphores:
                                                         its own, then one that has a name
 workers:  a lock on the one that has a name
```

A fork of this process shares the first as before, so nothing that held or shared the lock loses it, and nobody has to
make another lock: whoever draws a bar, here or in a worker, keeps out everybody else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


class _Both:
    """In place of a lock's `_semlock`: its own semaphore, and one that workers can open by name."""

    def __init__(self, own: Any, named: Any) -> None:
        self.own = own
        self.named = named

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        if not self.own.acquire(block, timeout):
            return False
        taken = False
        try:
            taken = bool(self.named.acquire(block, timeout))
        finally:
            if not taken:
                self.own.release()
        return taken

    def release(self) -> None:
        if self.named._semlock._is_mine():  # not if it was acquired before there was one
            self.named.release()
        self.own.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def is_of_tqdm(lock: Any) -> bool:
    """Whether bars are drawn under this lock of multiprocessing."""
    std = sys.modules.get("tqdm.std")
    return std is not None and any(lock is known for known in _locks(std))


def _locks(std: Any) -> Iterator[Any]:
    yield getattr(std.TqdmDefaultWriteLock, "mp_lock", None)
    kinds = [std.tqdm]
    while kinds:
        kind = kinds.pop()
        yield vars(kind).get("_lock")
        kinds += kind.__subclasses__()


def with_a_name(lock: Any) -> Any:
    """A lock that workers can open, and which whoever acquires `lock` from now on acquires too."""
    if not isinstance(lock._semlock, _Both):
        from multiprocessing import get_context

        both = _Both(lock._semlock, get_context("spawn").RLock())
        lock._semlock, lock.acquire, lock.release = both, both.acquire, both.release
    return lock._semlock.named


def reduce_write_lock(pickler: Any, write_lock: Any) -> Any:
    """tqdm's default lock is one of processes and one of threads; a worker has threads of its own."""
    return _write_lock, (write_lock.mp_lock,)


def _write_lock(mp_lock: Any) -> Any:
    import tqdm.std as std

    kind: Any = vars(std)["TqdmDefaultWriteLock"]
    kind.mp_lock = mp_lock
    return kind()
