"""Where items of queues lie when nobody fetches them: a file without a name, on disk, instead of the node's memory.

An item that is written here is represented by a *token*: ELSEWHERE, offset, length. The file's space is given back when
the item is, and all of it when the file is empty.
"""

from __future__ import annotations

import os
import struct
import tempfile

from dpool._core.logic.sync_kinds import ELSEWHERE
from dpool._store.memory import punch

KEPT = 32 << 20
"""Bytes of items that lie in memory."""
LEAST = 256
"""Bytes below which an item is not worth the trouble."""
_TOKEN = struct.Struct("<cQQ")


class Spool:
    """See the module."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1
        self._end = 0
        self._items = 0

    def write(self, data: bytes) -> bytes:
        """The token of an item; OSError if there is no room."""
        if self._fd < 0:
            self._fd, path = tempfile.mkstemp(prefix="dpool-queued-", dir=self._directory)
            os.unlink(path)
        view, offset = memoryview(data), self._end
        while view:
            done = os.pwrite(self._fd, view, offset)
            view, offset = view[done:], offset + done
        token = _TOKEN.pack(ELSEWHERE, self._end, len(data))
        self._end = offset
        self._items += 1
        return token

    def read(self, token: bytes) -> bytes:
        """The item."""
        _, offset, length = _TOKEN.unpack(token)
        found = bytearray()
        while len(found) < length:
            part = os.pread(self._fd, length - len(found), offset + len(found))
            if not part:
                raise OSError(f"the file for queued items ends at {offset + len(found)}")
            found += part
        return bytes(found)

    def forget(self, token: bytes) -> None:
        """The item has been delivered."""
        _, offset, length = _TOKEN.unpack(token)
        self._items -= 1
        if not self._items:
            os.close(self._fd)
            self._fd, self._end = -1, 0
        else:
            punch(self._fd, offset, length)
