"""The page that the node and all processes with locks or events map: a slot of words for each of them.

| word | written by | meaning |
|---|---|---|
| GENERATION | node | which byte of the page's file the lock is |
| WAITING | node | somebody waits for the lock; 2: since long, so that nobody may overtake |
| OWNER | owner | its process id |
| FLAG | node | the event is set |
"""

from __future__ import annotations

import struct

SLOTS = 1 << 18
"""Locks and events that may live at a time."""
WORDS = 4
SLOT_BYTES = WORDS * 8
PAGE_BYTES = SLOTS * SLOT_BYTES
FLOCK = struct.Struct("hhqqi4x")
"""struct flock, as 64-bit Linux has it: type, whence, start, length, pid."""
FAR_RANGE = struct.Struct("<QQ")
"""What a process of another machine names: offset and length in shared memory; or the claim of a lock, and 0."""
PLACE = struct.Struct("<QQQQ")
"""Where shared memory lies: segment, its size, offset, length."""


def byte_of(slot: int, generation: int) -> int:
    """The byte of the page's file that a lock is; mostly far behind what the file has."""
    return generation * SLOTS + slot
