"""The node's side of locks and shared memory for processes of other machines, which cannot map the page.

```
 FAR_LOCK ─► the byte, locked by an open file of the node's ─┬ got it ─► OK
                                                             └ taken ─► LOCK, in the process's name ─► its turn ─► …
 FAR_UNLOCK ─► is it still theirs? ─► unlock, and the next one has its turn
 FAR_READ, FAR_WRITE ─► the memory's file
```

To processes of this machine a lock that another machine has looks like one of any process: the byte is locked, OWNER is
a number above 2**32. All that other machines have locked belongs to one open file, so which of them has what stands
here: `_held`.

Each time that a lock is got has a number of its own, the claim; what is unlocked is a claim. So an answer that nobody
read, or an unlock that is said twice, does no harm.

Part of `NodeSync`; made when the first process of another machine asks for one of these.
"""

from __future__ import annotations

import fcntl
import os
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._core import messages as m
from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k
from dpool._core.node_page import FAR_RANGE, FLOCK, PLACE, WORDS, byte_of

if TYPE_CHECKING:
    from dpool._core.node import Node
    from dpool._core.node_sync import NodeSync, Side

LOOK_S = 0.5
"""How often it is looked for somebody who waits, should a process of this machine have died without a word."""
MOST_READ = 1 << 20
"""Bytes of shared memory that travel at a time."""
NOBODY = 0
"""As a connection: the node itself."""


class _Claim(NamedTuple):
    """A lock that a process of another machine has."""

    number: int
    pid: int
    slot: int
    generation: int


class FarSides:
    """See the module."""

    def __init__(self, node: Node, sync: NodeSync) -> None:
        self._node = node
        self._sync = sync
        page = sync._page
        self._words = page.words
        self._fd = os.open(f"/proc/self/fd/{page.fd}", os.O_RDWR | os.O_CLOEXEC)
        self._held: dict[bytes, _Claim] = {}
        self._waits: dict[int, tuple[int, bytes]] = {}
        """Connection → its question, and the lock."""
        self._given: dict[int, tuple[bytes, int]] = {}
        """Connection → the claim that its last answer gave."""
        self._claims = 0
        self._looking = False

    # -- what they ask

    def asked(self, side: Side, message: m.SyncAsk) -> bool:
        """Deal with a question; False if it is one that others can ask, too."""
        self._given.pop(side.number, None)
        if message.op < k.FAR:
            return False
        handler = self._QUESTIONS.get(message.op)
        if handler is None or not message.request:
            raise m.ProtocolError(f"there is no question {message.op}")
        self._sync._do(s.Ask(side.number, side.pid, 0, message.obj, k.TAKEN))
        kind = self._sync._kinds.get(message.obj)
        if kind is None:
            self._reply(side, message.request, k.GONE)
        elif kind != (s.MEMORY if handler is FarSides._memory else s.MUTEX):
            raise m.ProtocolError(f"an object of kind {kind} has no question {message.op}")
        else:
            handler(self, side, message)
        return True

    def _reply(self, side: Side, request: int, status: int, n: int = 0, data: bytes = b"") -> None:
        self._sync._send(side, m.SyncReply(request, status, n, data, []))

    def _lock(self, side: Side, message: m.SyncAsk) -> None:
        block = bool(message.n & k.BLOCK)
        if self._try(side, message.request, message.obj, turn=not block):
            return
        if not block:
            self._reply(side, message.request, k.NO)
            return
        self._waits[side.number] = message.request, message.obj
        self._wait(side, k.BLOCK)

    def _wait(self, side: Side, flags: int) -> None:
        request, obj = self._waits[side.number]
        if not self._looking:
            self._looking = True
            self._node._at(monotonic() + LOOK_S, self._look)
        self._sync._do(s.Ask(side.number, side.pid, request, obj, k.LOCK, flags))

    def _look(self) -> None:
        self._looking = bool(self._waits)
        if self._looking:
            self._node._at(monotonic() + LOOK_S, self._look)
        for obj in {obj for _, obj in self._waits.values()}:
            self._probe(obj)

    def _probe(self, obj: bytes) -> None:
        slot = self._sync.sync.slot(obj)
        free = self._sync._page.is_free(slot, self._words[slot * WORDS + k.GENERATION])
        self._sync._do(s.Probed(obj, free))

    def answered(self, side: Side, one: k.Answer) -> bool:
        """The answer to a LOCK of ours: its turn, perhaps. False if it is another one."""
        waits = self._waits.get(one.who)
        if waits is None or waits[0] != one.request:
            return False
        if one.status == k.OK and not self._try(side, *waits, turn=True):
            self._wait(side, k.BLOCK | k.FRONT)
            return True
        del self._waits[one.who]
        if one.status != k.OK:
            return False
        self._sync._do(s.Ask(one.who, side.pid, 0, waits[1], k.TAKEN))  # the turn is taken
        return True

    def _try(self, side: Side, request: int, obj: bytes, turn: bool) -> bool:
        """Lock it for the process, and say so; False if it is taken, or somebody has waited too long already."""
        slot = self._sync.sync.slot(obj)
        at = slot * WORDS
        if not turn and self._words[at + k.WAITING] > 1:
            return False
        generation = self._words[at + k.GENERATION]
        held = self._held.get(obj)
        if held is not None:
            if held.generation == generation:
                return False
            self._drop(obj)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, self._flock(fcntl.F_WRLCK, slot, generation))
        except (BlockingIOError, PermissionError):
            return False
        self._claims += 1
        dead, self._words[at + k.OWNER] = self._words[at + k.OWNER], side.pid
        self._held[obj] = _Claim(self._claims, side.pid, slot, generation)
        self._given[side.number] = obj, self._claims
        self._reply(side, request, k.OK, dead, FAR_RANGE.pack(self._claims, 0))
        return True

    @staticmethod
    def _flock(kind: int, slot: int, generation: int) -> bytes:
        return FLOCK.pack(kind, os.SEEK_SET, byte_of(slot, generation), 1, 0)

    def _drop(self, obj: bytes) -> None:
        """Unlock the byte, whatever it means."""
        held = self._held.pop(obj)
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, self._flock(fcntl.F_UNLCK, held.slot, held.generation))

    def _unlock(self, side: Side, message: m.SyncAsk) -> None:
        done = self._release(message.obj, message.n)
        self._reply(side, message.request, k.OK if done else k.NOT_HELD)

    def _release(self, obj: bytes, claim: int) -> bool:
        """False if it has been released already."""
        held = self._held.get(obj)
        if held is None or held.number != claim:
            return False
        at = held.slot * WORDS
        valid = bool(held.generation == self._words[at + k.GENERATION])
        if valid:
            self._words[at + k.OWNER] = 0
        self._drop(obj)
        if self._words[at + k.WAITING]:
            self._sync._do(s.Ask(NOBODY, 0, 0, obj, k.UNLOCKED))
        return valid

    def _owned(self, side: Side, message: m.SyncAsk) -> None:
        """Whether anybody has it."""
        owner = self._words[self._sync.sync.slot(message.obj) * WORDS + k.OWNER]
        self._reply(side, message.request, k.OK, int(bool(owner)))

    # -- shared memory

    def _memory(self, side: Side, message: m.SyncAsk) -> None:
        place, fd = self._sync._memory.place(message.obj)
        _, _, begin, length = PLACE.unpack(place)
        if message.op == k.FAR_WRITE:
            offset, data = message.n, message.data
            size = len(data)
        else:
            offset, size = FAR_RANGE.unpack(message.data)
            data = b""
        if offset < 0 or size > MOST_READ or offset + size > length:
            raise m.ProtocolError(f"{size} bytes at {offset} of {length}")
        if message.op == k.FAR_WRITE:
            os.pwrite(fd, data, begin + offset)
        else:
            data = os.pread(fd, size, begin + offset)
        self._reply(side, message.request, k.OK, 0, b"" if message.op == k.FAR_WRITE else data)

    _QUESTIONS: dict[int, Any] = {  # noqa: RUF012
        k.FAR_LOCK: _lock,
        k.FAR_UNLOCK: _unlock,
        k.FAR_OWNED: _owned,
        k.FAR_READ: _memory,
        k.FAR_WRITE: _memory,
    }

    # -- who is gone

    def returned(self, side: Side) -> None:
        """Its last answer did not reach anybody."""
        given = self._given.pop(side.number, None)
        if given is not None:
            self._release(*given)

    def closed(self, side: Side, unread: bool) -> None:
        """A connection is gone."""
        self._waits.pop(side.number, None)
        if unread:
            self.returned(side)
        else:
            self._given.pop(side.number, None)

    def ended(self, pid: int) -> None:
        """A process is gone. As when one of this machine dies, OWNER stays: the next owner is told."""
        for obj in [obj for obj, held in self._held.items() if held.pid == pid]:
            self._drop(obj)

    def freed(self, obj: bytes) -> None:
        """Nobody has the object any more."""
        if obj in self._held:
            self._drop(obj)
