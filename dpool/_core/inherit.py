"""Objects of `multiprocessing` in an executor's `initargs`: what a spawned process would inherit, our workers inherit
too.

A `Queue`, `Connection`, `Lock`, `Value` … of `multiprocessing` may only be pickled "while spawning": its descriptors
are then handed over, its semaphores opened by name. While an executor's initializer is pickled, a stand-in takes the
place of the spawning `Popen`: it duplicates the descriptors, which travel with the initializer's frame to every
worker.

Semaphores made with the fork start method have no name, so only a fork of the user's process could inherit them; they,
and what has them inside, are refused with an error that says what to use instead (`dpool.multiprocessing`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpool._core.serialize_reducers import BY_TYPE
from dpool._core.wire import MAX_DESCRIPTORS

_received: list[int] = []
"""In a worker: the descriptors that came with the initializer's frame."""


class InheritedFd:
    """A descriptor that travels beside the pickle; `detach` gives the worker its own."""

    def __init__(self, position: int) -> None:
        self._position = position

    def detach(self) -> int:
        """A descriptor of this process, to be closed by the caller."""
        return os.dup(_received[self._position])


class _Inheriting:
    """What `multiprocessing.context.get_spawning_popen()` returns meanwhile."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        if len(self._fds) + 1 >= MAX_DESCRIPTORS:  # a long frame has one of its own
            raise RuntimeError(
                f"initargs hold more than {MAX_DESCRIPTORS - 1} descriptors (a Queue has two); "
                "use a multiprocessing.Manager()"
            )
        self._fds.append(os.dup(fd))
        return len(self._fds) - 1

    @staticmethod
    def DupFd(position: int) -> InheritedFd:
        return InheritedFd(position)

    def take(self) -> tuple[int, ...]:
        """The descriptors, the caller's from now on."""
        fds, self._fds = tuple(self._fds), []
        return fds


@contextmanager
def pickling_for_workers() -> Iterator[_Inheriting]:
    """Objects of `multiprocessing` may be pickled in this block; their descriptors are collected."""
    inheriting = _Inheriting()
    if "multiprocessing.context" not in sys.modules:  # then there are none
        yield inheriting
        return
    from multiprocessing import context

    _check_semaphores()
    before = context.get_spawning_popen()
    context.set_spawning_popen(inheriting)  # type: ignore[arg-type]
    try:
        yield inheriting
    except BaseException:
        for fd in inheriting.take():
            os.close(fd)
        raise
    finally:
        context.set_spawning_popen(before)


def received(fds: list[int]) -> None:
    """In a worker: the descriptors that came with the initializer."""
    _received[:] = fds


_WITH_SEMAPHORES = {
    "synchronize": ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier"),
    "queues": ("Queue", "JoinableQueue", "SimpleQueue"),
    "sharedctypes": ("Synchronized", "SynchronizedArray", "SynchronizedString"),
}
"""Submodule of multiprocessing → its classes that have semaphores inside."""
_OURS = {"Synchronized": "Value", "SynchronizedArray": "Array", "SynchronizedString": "Array"}
"""Class → what makes its like in `dpool.multiprocessing`, where that has another name."""


def _check_semaphores() -> None:
    """Have semaphores, also those inside of queues, values, …, looked at before they are pickled."""
    for name, kinds in _WITH_SEMAPHORES.items():
        module = sys.modules.get(f"multiprocessing.{name}")
        if module is not None:
            for kind in kinds:
                BY_TYPE[getattr(module, kind)] = _reduce_semaphore
    if "tqdm.std" in sys.modules:
        from dpool._core.inherit_tqdm import reduce_write_lock

        BY_TYPE[sys.modules["tqdm.std"].TqdmDefaultWriteLock] = reduce_write_lock


def _reduce_semaphore(pickler: Any, one: Any) -> Any:
    from multiprocessing import context

    if context.get_spawning_popen() is not None:
        if "tqdm.std" in sys.modules and _unnamed(one):
            from dpool._core.inherit_tqdm import is_of_tqdm, with_a_name

            if is_of_tqdm(one):
                return with_a_name(one).__reduce_ex__(2)
        refuse_unnamed(one)
    return NotImplemented


def _semaphore_in(one: Any) -> Any:
    """The semaphore that a lock is, or that something else has inside; None if it has none."""
    while not hasattr(one, "_semlock"):
        inner = (vars(one).get(name) for name in ("_rlock", "_lock", "_cond"))
        one = next((found for found in inner if found is not None), None)
        if one is None:
            return None
    return one._semlock


def refuse_unnamed(one: Any) -> None:
    """Raise the error that tells what to do, if a semaphore cannot be opened by name in a worker."""
    if _unnamed(one):
        kind = type(one).__name__
        name = _OURS.get(kind, kind)
        raise RuntimeError(
            f"a multiprocessing.{name} that was made with the 'fork' start method has semaphores without a name, so "
            "only a fork of this process could use it, and dpool's workers are none. Use dpool.multiprocessing."
            f"{name} instead, which works everywhere, or make it with multiprocessing.get_context('spawn') or a "
            "multiprocessing.Manager()"
        )


def _unnamed(one: Any) -> bool:
    semaphore = _semaphore_in(one)
    return semaphore is not None and getattr(semaphore, "name", None) is None
