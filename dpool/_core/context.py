"""What a process knows about itself when it is a worker of dpool."""

from __future__ import annotations

from typing import NamedTuple


class WorkerContext(NamedTuple):
    """The worker that this process is."""

    worker: int
    """Its id at the node."""
    ordinal: int
    """Its number among the workers of its executor: 1, 2, …"""
    session: str
    """Directory of the session; the node listens there."""
    node_pid: int
    job: bytes
    depth: int
    submitter_pid: int = 0
    """The process whose tasks it runs."""


class _Here:
    """The one mutable place: set once, when a worker begins."""

    worker: WorkerContext | None = None
    holds_cpus: bool = False
    """The lease that runs now holds CPUs, which are given back while the task blocks."""


here = _Here()
