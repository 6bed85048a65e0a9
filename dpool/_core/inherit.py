"""Objects of `multiprocessing` in an executor's `initargs`: what a spawned process would inherit, our workers inherit
too.

A `Queue`, `Connection`, `Lock`, `Value` … of `multiprocessing` may only be pickled "while spawning": its descriptors
are then handed over, its semaphores opened by name. While an executor's initializer is pickled, a stand-in takes the
place of the spawning `Popen`: it duplicates the descriptors, which travel with the initializer's frame to every
worker.

Semaphores made with the fork start method have no name, so only a fork of the user's process could inherit them; they
are refused with an error that says what to use instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def refuse_unnamed(semaphore: Any) -> None:
    """Raise the error that tells what to do, if a semaphore cannot be opened by name in a worker."""
    if getattr(semaphore._semlock, "name", None) is None:
        kind = type(semaphore).__name__
        raise RuntimeError(
            f"this {kind} was made with the 'fork' start method: it has no name, so only a fork of this process "
            "could use it. "
            f"Make it with multiprocessing.get_context('spawn').{kind}(), or with a multiprocessing.Manager()"
        )
