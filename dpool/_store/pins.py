"""Pin pages: which ranges of the store a process maps, told without a message.

```
 word 0      1       2     3        4       5            16 … 143            256 … 4351
 ┌────────┬───────┬──────┬────────┬───────┬────────────┬───────────────────┬──────────────┐
 │ flags  │ reads │ top  │ recent │ chunk │ file reads │ ring of (key, ns) │ pins (keys)  │   8 bytes each
 └────────┴───────┴──────┴────────┴───────┴────────────┴───────────────────┴──────────────┘
   node     process ───────────────  node   process ───────────────────────────────────────►
```

Each process that uses the store has a page of its own, mapped by it and by the node; every word has one writer. A
reader stores the pin of a range *before* it looks whether the object is still there; the node takes an object away
in the order: mark its header, wait `LOOK_AFTER_S`, look for pins (these are hazard pointers: M. Michael, 2004). So one
of the two always notices the other. The page of a dead process is void, as are its mappings.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from time import monotonic_ns

FLAGS, READS, TOP, RECENT, CHUNK, FILE_READS = range(6)
RING_AT, RING = 16, 64
PINS_AT, PINS = 256, 4096
PAGE_BYTES = (PINS_AT + PINS) * 8
SPARE = 16
"""Slots that are kept for readers that copy, and need a pin only while they do: the last ones."""
SPARE_AT = PINS_AT + PINS - SPARE
BLOCK = 64
"""Slots that come into use at a time."""
PRESSURE = 1
"""Flag: readers hold much of the store; copy instead of mapping."""
LOOK_AFTER_S = 0.001
"""Longer by far than a store takes to be seen by another core."""
_SEGMENT_BITS = 36


def key_of(segment: int, offset: int) -> int:
    """The pin of the range that begins at `offset`."""
    return segment << _SEGMENT_BITS | offset >> 12


def place_of(key: int) -> tuple[int, int]:
    """The inverse of `key_of`."""
    return key >> _SEGMENT_BITS, (key & ((1 << _SEGMENT_BITS) - 1)) << 12


def make_page() -> int:
    """A new page's descriptor. OSError if memory or descriptors are exhausted."""
    fd = os.memfd_create("dpool-pins")
    try:
        os.posix_fallocate(fd, 0, PAGE_BYTES)
    except BaseException:
        os.close(fd)
        raise
    return fd


class PinPage:
    """One page, mapped from the descriptor that `make_page` gave; that remains the caller's."""

    __slots__ = ("_free", "_lock", "_map", "_next", "_spare", "_words")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self._words = memoryview(self._map).cast("Q")
        self._free: deque[int] = deque()
        """Slots that anybody may take."""
        self._spare: deque[int] = deque(range(SPARE_AT, PINS_AT + PINS))
        self._next = PINS_AT
        """The slots from here on have not been used yet."""
        self._lock = threading.RLock()

    # -- the process that reads

    def pin(self, segment: int, offset: int, spare: bool = False) -> int:
        """Store a pin; returns its slot, or 0 when all are taken (`spare`: the last few, for a moment)."""
        try:
            slot = self._free.pop()
        except IndexError:
            if self._next < SPARE_AT:
                self._more()
                return self.pin(segment, offset, spare)
            if not (spare and self._spare):
                return 0
            try:
                slot = self._spare.pop()
            except IndexError:
                return 0
        self._words[slot] = key_of(segment, offset)
        return slot

    def _more(self) -> None:
        """Slots that nobody has used yet; the node sees them before anybody can have one."""
        with self._lock:
            if self._free or self._next >= SPARE_AT:  # another thread was faster
                return
            start = self._next
            self._next = end = min(start + BLOCK, SPARE_AT)
            self._words[TOP] = end if end < SPARE_AT else PINS_AT + PINS
            self._free.extend(range(end - 1, start - 1, -1))

    def unpin(self, slot: int) -> None:
        """Clear a pin. Takes no lock: it may be called by the garbage collector."""
        try:
            self._words[slot] = 0
        except ValueError:  # the page is closed: its node is gone
            return
        (self._free if slot < SPARE_AT else self._spare).append(slot)

    def live(self) -> list[tuple[int, int]]:
        """The ranges (segment, offset) that are pinned."""
        return [place_of(key) for key in self._words[PINS_AT : max(PINS_AT, self._words[TOP])].tolist() if key]

    def note_read(self, segment: int, offset: int) -> None:
        """For least-recently-used: this range was read now."""
        words = self._words
        at = words[RECENT]
        entry = RING_AT + 2 * (at % RING)
        words[entry] = key_of(segment, offset)
        words[entry + 1] = monotonic_ns()
        words[RECENT] = at + 1
        words[READS] += 1

    def note_file_read(self) -> None:
        """An object was read from its file, as the store had no room for it."""
        self._words[READS] += 1
        self._words[FILE_READS] += 1

    def pressed(self) -> bool:
        """Whether the node asks readers to copy."""
        return bool(self._words[FLAGS] & PRESSURE)

    def chunk(self) -> int:
        """How many bytes to lease at a time for small values; 0 until the node has said it."""
        return self._words[CHUNK]

    # -- the node

    def offer(self, chunk: int) -> None:
        """Say how many bytes to lease at a time."""
        self._words[CHUNK] = chunk

    def pins(self, segment: int, offset: int) -> bool:
        """Whether this process pins the range."""
        wanted = key_of(segment, offset).to_bytes(8, "little")
        end = max(PINS_AT, min(self._words[TOP], PINS_AT + PINS)) * 8
        at = self._map.find(wanted, PINS_AT * 8, end)
        while at >= 0 and at % 8:
            at = self._map.find(wanted, at + 1, end)
        return at >= 0

    def recent(self) -> list[tuple[int, int, float]]:
        """What was read lately: (segment, offset, monotonic seconds)."""
        words = self._words[RING_AT : RING_AT + 2 * RING].tolist()
        return [(*place_of(words[at]), words[at + 1] * 1e-9) for at in range(0, 2 * RING, 2) if words[at]]

    def reads(self) -> int:
        """How often this process read an object."""
        return self._words[READS]

    def file_reads(self) -> int:
        """How often it did so from a file."""
        return self._words[FILE_READS]

    def press(self, on: bool) -> None:
        """Ask the process to copy, or no longer."""
        self._words[FLAGS] = PRESSURE if on else 0

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        try:
            self._map.close()
        except BufferError:  # garbage that has not been collected looks at it: it is unmapped with that
            return
