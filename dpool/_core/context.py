"""What a process knows about itself when it is a worker of dpool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._core.actor_host import ActorHost
    from dpool._core.frames import Page


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
    place: int = 0
    """The lowest number, from 0, that no other living worker of its executor had when it was started."""


class WorkersEnv(NamedTuple):
    """What workers get beside what the process that submits has."""

    variables: dict[str, str]
    directory: str
    """Where they run; empty: where the process that submits does."""
    path: list[str]
    """Goes before its `sys.path`."""


class ActorExit(SystemExit):
    """`dpool.actor.exit_actor` was called: the call is not answered, the process ends."""


class _Here:
    """The one mutable place: set when a worker, or a program that is served, begins."""

    worker: WorkerContext | None = None
    worker_pid: int = 0
    """The worker itself: a process that a task has forked has another one."""
    holds_cpus: bool = False
    """The lease that runs now holds CPUs, which are given back while the task blocks."""
    home: str = ""
    """In a cluster, the session directory of the node of the program that this process works for: its machine has the
    program's modules.
    """
    gpus: list[str] = []  # noqa: RUF012
    """The devices of the lease that runs now, as CUDA_VISIBLE_DEVICES has them."""
    careful: bool = False
    """The task runs again: it must not run others in this process, as one of them may have been what killed it."""
    actor: Any = None
    """The object, if this process is an actor's."""
    actor_id: bytes = b""
    actor_is: tuple[bytes, Any, str] | None = None
    """Its id, its Meta and its name."""
    workers_env: WorkersEnv | None = None
    """What workers of this process get that is not this process's own: `dpool.init(runtime_env=)`."""
    context: Any = None
    """The context (`contextvars`) that tasks begin with, if this process is a worker."""
    counters: Any = None
    """The counters of the page on which it is said which task runs; None where several run at a time."""
    interrupts: Any = None
    """What makes a KeyboardInterrupt of a signal, in a worker: see `worker.Interrupts`."""
    page: Page | ActorHost | None = None
    """Of this process, if it is a worker: see `frames`."""
    at_start: list[Callable[[], tuple[str, str, Any]]] = []  # noqa: RUF012
    """Asked for each executor of this process: what its workers shall call before their first task, as module, function
    and argument."""


here = _Here()


class CurrentWorker:
    """The worker that runs the task, as `dpool.current_worker()` shows it.

    Attributes:
        id: its number on this machine; no other worker of this run has had it.
        pid: its process id.
        index: its place in its pool, from 0: a replacement takes the place of the worker that has gone. So it can
            choose a GPU or a port.
        state: a dictionary of the worker's own, which lives as long as the worker: for what is expensive to set up.
    """

    __slots__ = ("id", "index", "pid", "state")

    def __init__(self, context: WorkerContext) -> None:
        self.id = context.worker
        self.pid = os.getpid()
        self.index = context.place
        self.state: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<dpool worker {self.id}: pid={self.pid} index={self.index}>"


_known: list[CurrentWorker] = []


def current_worker() -> CurrentWorker | None:
    """The worker that this task runs in; None outside of one, also in a process that a task has forked."""
    if here.worker is None:
        return None
    if not _known:
        _known.append(CurrentWorker(here.worker))
    found = _known[0]
    return found if found.pid == os.getpid() else None
