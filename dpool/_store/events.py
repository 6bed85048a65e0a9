"""What the store's machine is told, what it answers, and the states of an object. See objects.py.

`client` numbers a process's connection (1 and up; 0 is the node itself), `request` is the client's own number for a
question, `obj` an object's id, `size` the bytes of a value without its header, `now_s` seconds of a monotonic clock.
"""

from __future__ import annotations

from typing import NamedTuple

from dpool._store.arena import Range as Range

HEADER_BYTES = 64
"""In front of each value in memory."""


class IllegalMove(ValueError):
    """An event that the state does not allow; the machine is unchanged."""

    def __init__(self, state: str, event: str, subject: str) -> None:
        super().__init__(state, event, subject)
        self.state = state
        self.event = event
        self.subject = subject

    def __str__(self) -> str:
        return f"{self.event} is not allowed while {self.subject} is {self.state}"


# -- events: processes and their leases


class Joined(NamedTuple):
    """A process may now ask for memory."""

    client: int
    pid: int


class Left(NamedTuple):
    """It has ended: what it leased and did not seal is free, its questions need no answer. May be said twice."""

    client: int


class Want(NamedTuple):
    """`client` wants `length` bytes to write to; answered by Leased or OnDisk."""

    client: int
    request: int
    length: int
    now_s: float


class MemoryRefused(NamedTuple):
    """The memory of a Leased or StartRestore (of which only `range` counts) could not be had; see Allocate."""

    client: int
    request: int
    range: Range


class Return(NamedTuple):
    """A part of a lease that will not be used. Nothing, of a client that has left."""

    client: int
    range: Range


class Keep(NamedTuple):
    """Of its leases the client knows only these: the others are free. A signal handler may have made it lose one."""

    client: int
    ranges: list[Range]


class Seal(NamedTuple):
    """`range`, in a lease of `client`, now holds this object: made by process `pid`."""

    client: int
    obj: bytes
    range: Range
    size: int
    pid: int
    now_s: float


class SealFile(NamedTuple):
    """The object has been written to a file by its maker, because there was no room."""

    client: int
    obj: bytes
    size: int
    path: str
    crc: int
    pid: int
    now_s: float


class Adopt(NamedTuple):
    """A segment that an earlier node made, with the objects (id, offset, length, size) in it.

    `segment`: the number that it keeps, 0: a new one. May exceed the capacity: then nothing is granted until used
    bytes are below it again.
    """

    segment_size: int
    objects: list[tuple[bytes, int, int, int]]
    client: int
    pid: int
    now_s: float
    segment: int = 0


# -- events: objects


class Locate(NamedTuple):
    """Where is it? Answered by Located, InFile or Unknown."""

    client: int
    request: int
    obj: bytes
    now_s: float


class Free(NamedTuple):
    """Nobody holds the object. Of one that is not known yet it is remembered until its Seal."""

    obj: bytes


class Used(NamedTuple):
    """Readers used what lies at these (segment, offset) at these times."""

    uses: list[tuple[int, int, float]]


class Retire(NamedTuple):
    """A process was forked while it mapped what begins here: the range must never be written again."""

    segment: int
    offset: int


class SpillDone(NamedTuple):
    """StartSpill: the file is written."""

    obj: bytes
    path: str
    crc: int
    now_s: float


class SpillFailed(NamedTuple):
    """StartSpill: no file was left behind."""

    obj: bytes
    reason: str
    disk_full: bool
    now_s: float


class Looked(NamedTuple):
    """MarkLeaving is long enough ago that every reader who did not see it has its pin in place."""

    obj: bytes
    now_s: float


class RestoreDone(NamedTuple):
    """StartRestore: the value is in its range, the header before it."""

    obj: bytes
    now_s: float


class RestoreFailed(NamedTuple):
    """StartRestore: the file is missing, unreadable or corrupt."""

    obj: bytes
    reason: str
    now_s: float


class Rescan(NamedTuple):
    """Pins may have gone."""

    now_s: float


class Tick(NamedTuple):
    """A WakeAt is due."""

    now_s: float


Event = (
    Joined
    | Left
    | Want
    | MemoryRefused
    | Return
    | Keep
    | Seal
    | SealFile
    | Adopt
    | Locate
    | Free
    | Used
    | Retire
    | SpillDone
    | SpillFailed
    | Looked
    | RestoreDone
    | RestoreFailed
    | Rescan
    | Tick
)


# -- instructions: answers


class Leased(NamedTuple):
    """The range is the client's to write to."""

    client: int
    request: int
    range: Range


class OnDisk(NamedTuple):
    """There is no room, and none that certainly comes: write it to a file."""

    client: int
    request: int


class Adopted(NamedTuple):
    """The segment's number from now on."""

    segment: int


class Located(NamedTuple):
    """It is in memory."""

    client: int
    request: int
    obj: bytes
    range: Range
    size: int


class InFile(NamedTuple):
    """It is in this file, and there is no room for it in memory."""

    client: int
    request: int
    obj: bytes
    path: str
    size: int
    crc: int


class Unknown(NamedTuple):
    """It is nowhere."""

    client: int
    request: int
    obj: bytes
    why: str


# -- instructions: things to do


class Punch(NamedTuple):
    """Give the pages of the range back. To be done even if something before it failed."""

    range: Range


class MakeSegment(NamedTuple):
    """Make a segment of `size` bytes without pages."""

    segment: int
    size: int


class Allocate(NamedTuple):
    """Give the range pages (posix_fallocate).

    Punch, MakeSegment, Allocate, DropSegment, and Leased and StartRestore behind them, may take their time but keep
    their order, from list to list too; if one fails, MemoryRefused is said in place of the next Leased or StartRestore.
    All else is carried out at once: after a MarkSealed that overtakes a MarkLeaving, a reader would not be seen.
    """

    range: Range


class DropSegment(NamedTuple):
    """Nothing is in the segment any more, and its number is not used again. It may never have been made."""

    segment: int


class StartSpill(NamedTuple):
    """Write the value to a file; then say SpillDone or SpillFailed."""

    obj: bytes
    range: Range
    size: int


class MarkLeaving(NamedTuple):
    """Write LEAVING into the object's header; 1 ms later say Looked."""

    obj: bytes
    range: Range


class MarkSealed(NamedTuple):
    """Write SEALED into the object's header."""

    obj: bytes
    range: Range


class StartRestore(NamedTuple):
    """Read the file into the range, and write the header; then say RestoreDone or RestoreFailed."""

    obj: bytes
    range: Range
    path: str
    size: int
    crc: int


class DeleteFile(NamedTuple):
    """Nobody needs it."""

    path: str


class Pressure(NamedTuple):
    """Readers hold much of the store: they should copy instead of mapping (or need not any more)."""

    on: bool


class WakeAt(NamedTuple):
    """Say Tick then."""

    at_s: float


Instruction = (
    Leased
    | OnDisk
    | Adopted
    | Located
    | InFile
    | Unknown
    | Punch
    | MakeSegment
    | Allocate
    | DropSegment
    | StartSpill
    | MarkLeaving
    | MarkSealed
    | StartRestore
    | DeleteFile
    | Pressure
    | WakeAt
)

# -- states

ABSENT = "absent"
SEALED = "sealed"
SPILLING = "spilling"
LEAVING = "leaving"
SPILLED = "spilled"
RESTORING = "restoring"
LOST = "lost"

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, Seal): SEALED,
    (ABSENT, SealFile): SPILLED,
    (LOST, Seal): SEALED,
    (LOST, SealFile): SPILLED,
    (SEALED, StartSpill): SPILLING,
    (SPILLING, SpillFailed): SEALED,
    (SPILLING, SpillDone): LEAVING,
    (SEALED, MarkLeaving): LEAVING,
    (LEAVING, MarkSealed): SEALED,
    (LEAVING, Looked): SPILLED,
    (SPILLED, StartRestore): RESTORING,
    (RESTORING, RestoreDone): SEALED,
    (RESTORING, MemoryRefused): SPILLED,
    (RESTORING, RestoreFailed): LOST,
    (SEALED, Free): ABSENT,
    (SPILLED, Free): ABSENT,
    (LOST, Free): ABSENT,
}
"""A Free in the other states takes effect when they end."""
