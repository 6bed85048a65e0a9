"""What the tests of the flat form share: a value through it, and where memory lies."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpool._store import serde


def flat_of(value: Any) -> bytearray:
    """The flat form; the value is let go."""
    parts = serde.dumps(value)
    flat = parts.to_bytes()
    assert len(flat) == parts.nbytes
    parts.release()
    return flat


def again(value: Any) -> Any:
    """The value after its way through the store."""
    return serde.load(memoryview(flat_of(value)))


class Mapping:
    """A flat form in a mapping that cannot be closed while anything refers to it."""

    def __init__(self, value: Any) -> None:
        parts = serde.dumps(value)
        self.size = parts.nbytes
        self.memory = mmap.mmap(-1, self.size)
        target = memoryview(self.memory)
        parts.write_into(target)
        target.release()  # nothing that was written through is kept
        parts.release()
        self.start = address(self.memory)

    def load(self) -> Any:
        with memoryview(self.memory) as flat:
            return serde.load(flat)  # its end would fail here if more than the buffers referred to `flat` itself

    def holds(self, start: int, size: int) -> bool:
        return self.start <= start and start + size <= self.start + self.size


@contextmanager
def mapped(value: Any) -> Iterator[Mapping]:
    """A mapping with a value, which must not be referred to at the end."""
    mapping = Mapping(value)
    yield mapping
    mapping.memory.close()


def address(memory: Any) -> int:
    """Where writable memory begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
