"""Values in the object store: `put`, `get`, `wait`, and what is in it.

`dpool.put(value)` stores a value once and returns an `ObjectRef`, which any number of tasks can take as an argument.
What tasks take and return goes to the store by itself when it is large; `put` is for what is used more than once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, NamedTuple

from dpool._core import storage
from dpool._core.config import MIN_STORE
from dpool._core.future import Future
from dpool._core.objectref import ObjectRef
from dpool._core.serialize import store_value


def init(
    *, object_store_memory: int | None = None, spill_dir: str | None = None, preload: Iterable[str] | None = None
) -> None:
    """Settings of this machine's runtime, before it is first used; without this call it starts with its defaults.

    Args:
        object_store_memory: bytes of shared memory for objects; default: a third of the memory that the cgroup allows.
        spill_dir: directory on a disk, for objects that memory has no room for; default: the temporary directory, or
            /var/tmp if that one lies in memory.
        preload: names of modules that workers have from the start: imported once, at the time of this call and in a
            process of their own while the program goes on, and shared by all workers, which are forked from it. A
            module that does not import, or starts threads, is left out, with a warning. No effect inside a task.
            Source: `multiprocessing.set_forkserver_preload`.

    RuntimeError if the runtime is in use with other settings; ValueError for what cannot be.
    """
    from dpool._core import driver

    changes: dict[str, Any] = {}
    if object_store_memory is not None:
        if isinstance(object_store_memory, bool) or not isinstance(object_store_memory, int):
            raise TypeError(f"object_store_memory is a number of bytes, not {object_store_memory!r}")
        if object_store_memory < MIN_STORE:
            raise ValueError(f"object_store_memory must be at least {MIN_STORE:,} bytes, not {object_store_memory:,}")
        changes["object_store_memory"] = object_store_memory
    if spill_dir is not None:
        if not os.path.isdir(spill_dir):
            raise ValueError(f"spill_dir must be a directory: {spill_dir!r}")
        changes["spill_dir"] = os.path.abspath(spill_dir)
    if preload is not None:
        if isinstance(preload, str):
            raise TypeError(f"preload is a list of module names, not the string {preload!r}")
        changes["preload"] = tuple(preload)
    driver.configure(**changes)
    if preload:
        driver.runtime().start_now()


def put(value: Any) -> ObjectRef:
    """Store a value; it lives as long as somebody has the reference.

    The value is copied: changing it afterwards does not change what is stored. Raises what pickling raised, and
    `dpool.errors.ObjectStoreFull` if neither memory nor disk has room. Source: Ray's `put`.
    """
    if isinstance(value, ObjectRef):
        raise TypeError("the value is an ObjectRef already; put it into a list if you want to store the reference")
    return store_value(value)


def get(
    refs: ObjectRef | Future[Any] | Sequence[Any],
    timeout: float | None = None,
    *,
    copy: bool = False,
    readonly: bool = False,
) -> Any:
    """The value of a reference or future, or the list of values of several.

    Args:
        timeout: seconds to wait for futures, all of them together; then TimeoutError.
        copy: give arrays memory of their own; else they are views of the store: writable, and private to the caller
            (a page is copied when it is first written to), and the store's memory stays in use while they live.
        readonly: give arrays that raise an error when they are written to.

    Every call gives a value of its own, but that of a future, which has one value for all: `copy` and `readonly` do not
    change it. Raises what a future's task raised, `dpool.errors.ObjectLost` if the value is gone. Source: Ray's `get`.
    """
    until = None if timeout is None else monotonic() + timeout
    if isinstance(refs, (list, tuple)):
        return [_get(ref, until, copy, readonly) for ref in refs]
    return _get(refs, until, copy, readonly)


def _get(ref: Any, until: float | None, copy: bool, readonly: bool) -> Any:
    if isinstance(ref, ObjectRef):
        return ref._load(readonly, copy)
    if isinstance(ref, Future):
        return ref.result(None if until is None else max(0.0, until - monotonic()))
    raise TypeError(f"get takes ObjectRefs and Futures, not {type(ref).__name__}")


def wait(
    refs: Iterable[ObjectRef | Future[Any]], num_returns: int = 1, timeout: float | None = None
) -> tuple[list[Any], list[Any]]:
    """Wait until `num_returns` of the references or futures are ready, or `timeout` seconds have passed.

    Returns:
        (ready, not ready): the first has at most `num_returns` items; both keep the order of `refs`.

    Raises ValueError if `num_returns` is below 1 or above the number of references, or one occurs twice. A future that
    failed or was cancelled is ready. Source: Ray's `wait`.
    """
    from dpool._core.waiting import wait_for

    known = list(refs)
    for ref in known:
        if not isinstance(ref, (ObjectRef, Future)):
            raise TypeError(f"wait takes ObjectRefs and Futures, not {type(ref).__name__}")
    if len(set(map(id, known))) != len(known):
        raise ValueError("wait takes each reference only once")
    if not 1 <= num_returns <= len(known):
        raise ValueError(f"num_returns must be from 1 to {len(known)}, the number of references, not {num_returns}")
    return wait_for(known, num_returns, timeout)


class StoredObject(NamedTuple):
    """One object of the store."""

    id: str
    size: int
    """Bytes."""
    owner: int
    """Process that made it."""
    state: str
    """`sealed` (in memory), `spilled` (on disk), …"""
    pinned: bool
    """A process has arrays in its memory."""


class StoreStats(NamedTuple):
    """What the object store of this machine holds, and has done. Sizes are bytes."""

    capacity: int
    used: int
    """In memory: objects, and room that processes have taken for the next ones."""
    resident: int
    """Memory that the store has from the system: `used`, and what is kept warm."""
    objects: int
    pinned: int
    """In memory that somebody's arrays lie in."""
    spilled: int
    """On disk, and not in memory."""
    spilled_objects: int
    spills: int
    """Objects that were written to disk, so far."""
    restores: int
    """Objects that were read back, so far."""
    reads: int
    """How often living processes took an object out."""
    hit_rate: float
    """Share of reads that found the object in memory; 1.0 before the first."""
    listing: list[StoredObject]
    """The objects, if asked for."""


def store_stats(listing: bool = False) -> StoreStats:
    """Figures of this machine's object store; `listing`: with each object, its owner and size."""
    report = storage.again(lambda client: client.report(listing))
    stats = report.stats
    reads, restored = stats["reads"], stats["restores"] + stats["file_reads"]
    return StoreStats(
        capacity=stats["capacity"],
        used=stats["used"],
        resident=stats["resident"],
        objects=stats["objects"],
        pinned=stats["pinned_bytes"],
        spilled=stats["spilled_bytes"],
        spilled_objects=stats["spilled_objects"],
        spills=stats["spills"],
        restores=stats["restores"],
        reads=reads,
        hit_rate=1.0 - min(1.0, restored / reads) if reads else 1.0,
        listing=[StoredObject(obj.hex(), *known) for obj, *known, _ in report.listing],
    )
