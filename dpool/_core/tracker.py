"""The standard library's resource tracker, one for the driver and all of its workers.

```
 driver: shared_memory is imported ─► its tracker runs ─► Setup.tracker: the pipe to it ─► worker: the same pipe
```

The tracker is a process that removes named shared memory when nobody can tell it more. A forked or spawned child of
`multiprocessing` uses its parent's. A worker of ours is neither: with a tracker of its own, each segment that it opens
or makes would be removed when the worker ends, while the driver still uses it.

Threads: the tracker has a lock.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import NamedTuple

from dpool._core.context import here


class Tracker(NamedTuple):
    """The pipe to a process's tracker."""

    pid: int
    fd: int
    inode: int
    """So that a descriptor which has become something else is not taken for it."""


class _State:
    joined = False
    """Our tracker is, or will be, another process's."""


def of_this_process() -> Tracker | None:
    """The tracker of a process that may have shared memory; a driver's is started, as it is for every spawned child."""
    if "multiprocessing.shared_memory" not in sys.modules:
        return None
    from multiprocessing import resource_tracker

    ours = resource_tracker._resource_tracker
    if here.worker is not None and not _State.joined and ours._fd is None:  # type: ignore[attr-defined]
        return None
    fd: int = ours.getfd()  # type: ignore[assignment]
    return Tracker(os.getpid(), fd, os.fstat(fd).st_ino)


def join(other: Tracker) -> None:
    """From its first use on, our tracker is that of `other`'s process."""
    from multiprocessing import resource_tracker

    ours = resource_tracker._resource_tracker
    standard = ours.ensure_running
    asked = False
    _State.joined = True

    def ensure_running() -> None:
        nonlocal asked
        if not asked and ours._fd is None:  # type: ignore[attr-defined]
            ours._fd = _open(other)  # type: ignore[attr-defined]
        asked = True
        standard()

    # The descriptor is opened late, for an open one keeps the tracker alive.
    ours.ensure_running = resource_tracker.ensure_running = ensure_running  # type: ignore[method-assign]


def _open(other: Tracker) -> int | None:
    """Our end of the pipe; None if it is not there any more: then we need a tracker of our own."""
    try:
        fd = os.open(f"/proc/{other.pid}/fd/{other.fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # the process has ended or may not be looked into, or its tracker has been replaced
        return None
    status = os.fstat(fd)
    if stat.S_ISFIFO(status.st_mode) and status.st_ino == other.inode:
        os.set_blocking(fd, True)
        return fd
    os.close(fd)
    return None
