"""Mappings of the store's segments, and the header of an object.

`map_private` gives a buffer that is writable and private to its reader (copy-on-write), whose pages are the store's
until they are written to. The standard `mmap` keeps a descriptor for each mapping, and a process has few of those; so
the system calls are made through ctypes. A mapping lives as long as anything refers to its buffer, whatever becomes of
the Future, the executor or the runtime.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import weakref
from collections.abc import Callable
from typing import Any

PAGE = mmap.PAGESIZE
HEADER = 64
"""Bytes of an object's header, in front of its value."""
HUGE = 2 << 20
"""Bytes of a huge page. Mapped as such, 100 MB are read in 3 instead of 11 ms, as a reader meets 50 page faults instead
of 1,600; making them costs as much again as getting the memory.
"""
SEALED, LEAVING = 1, 2
_HEADER = struct.Struct("<8s20sIQ")
_MAGIC = b"dpoolobj"
_STATE_AT = 28
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_MAP_NORESERVE = 0x4000
_PROT_NONE = 0
_MAP_FIXED = 0x10
_POPULATE_WRITE = 23
_COLLAPSE = 25
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_mappings: dict[int, weakref.ref[Any]] = {}
"""Keeps the references whose callbacks unmap."""


def _failure(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _map(fd: int, offset: int, length: int, protection: int, flags: int) -> tuple[int, int, int]:
    """Map a range; (its address, what to unmap and how long that is). Large ranges lie as huge pages need them."""
    if length < HUGE:
        address = _libc.mmap(None, length, protection, flags, fd, offset)
        if address == _MAP_FAILED:
            raise _failure("mmap")
        return address, address, length
    room = length + HUGE
    start = _libc.mmap(None, room, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
    if start == _MAP_FAILED:
        raise _failure("mmap")
    address = start + (offset - start) % HUGE
    if _libc.mmap(address, length, protection, flags | _MAP_FIXED, fd, offset) == _MAP_FAILED:
        error = _failure("mmap")
        _libc.munmap(start, room)
        raise error
    return address, start, room


def map_private(fd: int, offset: int, length: int, gone: Callable[[], None]) -> memoryview:
    """Map a range copy-on-write; `gone` is called when the last view of it has been collected and it is unmapped.

    `gone` may be called anywhere, by the garbage collector: it must not take locks. OSError when the kernel refuses.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address, start, room = _map(fd, offset, length, protection, mmap.MAP_PRIVATE | _MAP_NORESERVE)
    block = (ctypes.c_char * length).from_address(address)
    unmap, known = _libc.munmap, _mappings

    def collected(reference: Any) -> None:
        known.pop(id(reference), None)
        unmap(start, room)
        gone()

    reference = weakref.ref(block, collected)
    known[id(reference)] = reference
    return memoryview(block).cast("B")


class Window:
    """A lasting shared mapping of a whole segment; unmapped when nothing refers to it, nor to a slice of it."""

    __slots__ = ("__weakref__", "_address", "_room", "_start", "_writable")

    def __init__(self, fd: int, size: int, writable: bool = False) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._writable = writable
        self._address, self._start, self._room = _map(fd, 0, size, protection, mmap.MAP_SHARED)

    def peek(self, offset: int, length: int) -> memoryview:
        """A range, for the moment: keep the window."""
        view = memoryview((ctypes.c_char * length).from_address(self._address + offset)).cast("B")
        return view if self._writable else view.toreadonly()

    def slice(self, offset: int, length: int, gone: Callable[[], None]) -> memoryview:
        """A range, read-only; `gone` is called like that of `map_private`."""
        block = (ctypes.c_char * length).from_address(self._address + offset)
        keep: list[Any] = [self]
        known = _mappings

        def collected(reference: Any) -> None:
            known.pop(id(reference), None)
            keep.clear()
            gone()

        reference = weakref.ref(block, collected)
        known[id(reference)] = reference
        return memoryview(block).cast("B").toreadonly()

    def populate(self, offset: int, length: int) -> None:
        """Fill the page tables for a range that is about to be written: in one go it takes half as long."""
        _libc.madvise(self._address + offset, length, _POPULATE_WRITE)  # older kernels refuse: pages come one by one

    def collapse(self, offset: int, length: int) -> None:
        """Have a range that has its pages lie in huge ones, as far as it covers them; where the kernel does that."""
        first, end = -(-offset // HUGE) * HUGE, (offset + length) // HUGE * HUGE
        if first < end:
            _libc.madvise(self._address + first, end - first, _COLLAPSE)

    def __del__(self, _libc: ctypes.CDLL = _libc) -> None:  # also when modules are being emptied
        if hasattr(self, "_room"):
            _libc.munmap(self._start, self._room)


def private_copy(view: memoryview) -> memoryview:
    """The same bytes in memory of this process, writable."""
    return memoryview(bytearray(view))


def punch(fd: int, offset: int, length: int) -> None:
    """Give the pages of a range back to the system; they read as zeros from now on."""
    if _libc.fallocate(fd, _PUNCH, offset, length):
        raise _failure("fallocate")


def write_header(target: memoryview, obj: bytes, size: int, state: int = SEALED) -> None:
    """Write an object's header: last of all, since a reader believes it."""
    _HEADER.pack_into(target, 0, _MAGIC, obj, state, size)


def write_state(fd: int, offset: int, state: int) -> None:
    """Change the state in the header of the object at `offset`."""
    os.pwrite(fd, struct.pack("<I", state), offset + _STATE_AT)


def is_sealed(view: memoryview, obj: bytes) -> bool:
    """Whether this object is here, and to be read."""
    magic, name, state, _ = _HEADER.unpack_from(view)
    return bool(magic == _MAGIC and name == obj and state == SEALED)
