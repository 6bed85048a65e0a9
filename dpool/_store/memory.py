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
SEALED, LEAVING = 1, 2
_HEADER = struct.Struct("<8s20sIQ")
_MAGIC = b"dpoolobj"
_STATE_AT = 28
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_MAP_NORESERVE = 0x4000
_POPULATE_WRITE = 23
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


def map_private(fd: int, offset: int, length: int, gone: Callable[[], None], writable: bool = True) -> memoryview:
    """Map a range copy-on-write; `gone` is called when the last view of it has been collected and it is unmapped.

    `gone` may be called anywhere, by the garbage collector: it must not take locks. OSError when the kernel refuses.
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(None, length, protection, mmap.MAP_PRIVATE | _MAP_NORESERVE, fd, offset)
    if address == _MAP_FAILED:
        raise _failure("mmap")
    block = (ctypes.c_char * length).from_address(address)
    unmap, known = _libc.munmap, _mappings

    def collected(reference: Any) -> None:
        known.pop(id(reference), None)
        unmap(address, length)
        gone()

    reference = weakref.ref(block, collected)
    known[id(reference)] = reference
    view = memoryview(block).cast("B")
    return view if writable else view.toreadonly()


class Window:
    """A lasting read-only mapping of a whole segment; unmapped when the last slice of it has been collected too."""

    __slots__ = ("__weakref__", "_address", "_size")

    def __init__(self, fd: int, size: int) -> None:
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address == _MAP_FAILED:
            raise _failure("mmap")
        self._address: int = address
        self._size = size

    def peek(self, offset: int, length: int) -> memoryview:
        """A range, for the moment: keep the window."""
        return memoryview((ctypes.c_char * length).from_address(self._address + offset)).cast("B").toreadonly()

    def slice(self, offset: int, length: int, gone: Callable[[], None]) -> memoryview:
        """A range; `gone` is called like that of `map_private`."""
        block = (ctypes.c_char * length).from_address(self._address + offset)
        window, known = self, _mappings

        def collected(reference: Any) -> None:
            nonlocal window
            known.pop(id(reference), None)
            gone()
            del window

        reference = weakref.ref(block, collected)
        known[id(reference)] = reference
        return memoryview(block).cast("B").toreadonly()

    def __del__(self) -> None:
        if hasattr(self, "_size"):
            _libc.munmap(self._address, self._size)


def private_copy(view: memoryview) -> memoryview:
    """The same bytes in memory of this process, writable."""
    return memoryview(bytearray(view))


def populate(mapped: mmap.mmap, offset: int, length: int) -> None:
    """Fill the page tables for a range that is about to be written: in one go it takes half as long."""
    view = (ctypes.c_char * length).from_buffer(mapped, offset)
    _libc.madvise(ctypes.addressof(view), length, _POPULATE_WRITE)  # older kernels refuse: then pages come one by one


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
