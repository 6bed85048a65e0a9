"""What simulated processes say to each other, beyond the events and instructions of the machines."""

from __future__ import annotations

from typing import NamedTuple

from tests.sim.program import SimTask


class Frame(NamedTuple):
    """Client to worker: run these, in order; `first` is the number of the first among all that this worker is sent."""

    first: int
    tasks: tuple[SimTask, ...]


class Reply(NamedTuple):
    """Worker to client: the tasks from number `first` on are done, `raised` says which with an exception.

    `end`: it leaves the frame; what it has not answered of it, it will not run.
    """

    first: int
    raised: tuple[bool, ...]
    end: bool


class Dispatched(NamedTuple):
    """Client to node: remember the lineage of these."""

    tasks: tuple[int, ...]


class Ended(NamedTuple):
    """Client to node: the lineage of these is not needed any more."""

    tasks: tuple[int, ...]


class Seal(NamedTuple):
    """Worker to node: the task's output lies in the store, for the worker's client; other outputs are in it."""

    task: SimTask
    contains: tuple[int, ...]


class DropOutput(NamedTuple):
    """Client to node: nobody needs the task's output any more, if there ever was one."""

    task: int
