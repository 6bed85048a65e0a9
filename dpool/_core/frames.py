"""Frames between a submitter and its worker, and the page of memory that both see.

Task frame (submitter → worker), one pickle: `(base, flags, ship, numbers, calls)`

- `base`: sequence number of the first task; a worker's tasks are numbered 1, 2, … by the submitter;
- `flags`: POLL (poll before sleeping), EXIT (leave after this frame), INIT (the one call is the initializer), SHOW
  (an error of pickling a result shall show the result), CAREFUL (a task runs again that took its worker along: it must
  not run others in its own process), ACTOR (the one call constructs the object of an actor), LINK (to an actor, from
  its node: the descriptors that come along are a caller's socket and page, and `ship` is its process id), STOP (to an
  actor that runs many calls at a time: the call `base` is cancelled), LOOSE (to such an actor on another machine),
  DIRECT (from a gateway: the descriptor that comes along is a connection to the submitter, `ship` its key), ASK (to a
  gateway: how far is the worker? `base` is a LIMIT);
- `ship`: None, or `(items, forget, env)`: definitions to install, numbers to drop, variables to set;
- `numbers`: the function number of each task, or one int if all are the same;
- `calls`: for each task its positional arguments (a tuple of plain values), the pickled call (bytes), or where in the
  object store that lies (a list, see `storage.Place`).

To a worker on another machine goes a sixth part, which the gateways take off: see `carried.py`.

A call that yields (STREAM) is answered by a frame for each item before its own result, which is their number:
`(-task, False, index, [value])`; before the first one, with index -1, comes a pipe: see `stream.py`.

A pickled call is `(args, kwargs)`; or a chunk, `(items, MAP)` or `(items, STARMAP)`: the function is called with each
item, or with the arguments that each item is, and the list of what it returned is the task's one value.

Result frame (worker → submitter), one pickle: `(first, end, elapsed_ns, values)`: results of tasks `first`,
`first+1`, …; `end`: the frame is done (with fewer results than tasks if the rest was taken back), or None: this is for
the gateway, and says only how long so many tasks took, which answered their submitter directly. A value is a plain
value, or a tuple `(kind, data)` with pickled data, or with what the kind says.

The page (memory file, mapped by both) lets the submitter see what a worker that cannot answer has done:

| slot | written by | meaning |
|---|---|---|
| STARTED | worker | the task that runs now (or ran last) |
| LIMIT | submitter | tasks from here on are taken back: the worker must not start them |
| FIRST | worker | the task of the first record in the journal |
| COUNT | worker | records in the journal: results of finished tasks, not answered yet |
| GENERATION | worker | changes before the journal is written over |
| PID | worker | its process id, before it reads its first frame |
| WRITTEN | worker | how often its tasks wrote to standard output or error, where that is counted |
| INTERRUPT | submitter | a SIGINT was sent for tasks up to this one |
| ASKED | submitter | how many SIGINTs it has had sent; others are for whatever runs |
| HANDLED | worker | how many of these have come |
| CANCELS | submitter | the tasks that the last of these SIGINTs are for |
| LIMIT_SEEN | worker's stand-in | the LIMIT that the page takes into account; AT_ONCE: the worker looks for itself |

Behind the slots lies the journal: one pickle per finished task. A worker stores STARTED before it looks at LIMIT, and
a submitter looks at STARTED a tick after it stored LIMIT, so they cannot both think that a task is theirs.
"""

from __future__ import annotations

import mmap
import os

from dpool._core.config import JOURNAL_BYTES

POLL = 1
EXIT = 2
INIT = 4
SHOW = 8
CAREFUL = 16
ACTOR = 32
LINK = 64
STOP = 128
LOOSE = 256
DIRECT = 512
ASK = 1024

METHOD, ATTRIBUTE = 2, 3
"""In the place of how a function was pickled (see serialize.py): the name of an actor's method, or attribute."""

LEFT = 1
"""Number of the answer by which an actor tells its node that it ends by itself; that of its construction is 0."""

MAP, STARMAP, STREAM = 1, 2, 3
"""What stands in the place of the keyword arguments: of a chunk; of a call that yields, with the limits of its window,
`((args, kwargs, items, bytes), STREAM)`.
"""

RESULT = 1
"""kind: a pickled result"""
RAISED = 2
"""kind: a pickled exception, raised by the task"""
FAILED = 3
"""kind: a pickled exception, raised around the task (its arguments or result could not be carried)"""

STORED = 4
"""kind: a result in the object store, sealed in the submitter's name; the data is its place"""
WITH_REFS = 5
"""kind: (pickled result, places of the objects it refers to, each held in the submitter's name)"""
RAISED_WITH_REFS = 6
"""kind: the same with a pickled exception, raised by the task"""
STORED_ALONE = 7
"""kind: as STORED; it refers to nothing of `__main__`, so any worker can load it: it may be handed on as it lies"""

STARTED, LIMIT, FIRST, COUNT, GENERATION, PID, WRITTEN, INTERRUPT, ASKED, HANDLED, LIMIT_SEEN = range(11)
CANCELS, MOST_CANCELS = 16, 16
SLOTS = CANCELS + MOST_CANCELS
JOURNAL_AT = SLOTS * 8
PAGE_BYTES = 4096 + JOURNAL_BYTES
NO_LIMIT = 2**63
AT_ONCE = 0
FAR = 1
"""In LIMIT_SEEN: the worker is on another machine, and has been asked about no LIMIT yet."""
RECURSIVE = 2**62
"""With a task's number in CANCELS: what it has submitted is to be cancelled too."""


def make_page() -> int:
    """A new page's descriptor; nothing is limited yet. OSError if memory or descriptors are exhausted."""
    fd = os.memfd_create("dpool-page")
    try:
        os.posix_fallocate(fd, 0, PAGE_BYTES)
        os.pwrite(fd, NO_LIMIT.to_bytes(8, "little"), LIMIT * 8)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Page:
    """One mapped page; `slots` are its counters, `map` the bytes (the journal begins at JOURNAL_AT)."""

    __slots__ = ("map", "slots")

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, PAGE_BYTES)
        self.slots = memoryview(self.map)[:JOURNAL_AT].cast("Q")

    def count_written(self) -> None:
        """For the worker: it writes to standard output or error."""
        self.slots[WRITTEN] += 1

    def close(self) -> None:
        self.slots.release()
        self.map.close()
