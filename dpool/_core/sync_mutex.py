"""The lock itself: a byte of the shared page's file that the kernel locks, and gives back when the process dies.

```
 acquire ─► guard ─► fcntl(F_OFD_SETLK) ─┬ got it ─► OWNER = pid
            (threads of this process)    └ taken  ─► LOCK: the node says when to try again ─► …
 release ─► OWNER = 0 ─► fcntl unlock ─► does somebody wait? ─► UNLOCKED: the node gives the next one its turn
```

The locks of an open file description are shared by all who have it: so each process has its own, which a forked child
opens anew, and threads of one process exclude each other by `held`.

A lock may be released by a process that has not acquired it. Then the node makes the lock another byte (GENERATION),
and what the owner has locked means nothing any more; it finds that out by comparing the two.

A signal handler comes only after calls. Whatever it hits, either the byte is locked and its owner written down, or it
is not and nobody is: so a handler that raises leaves no lock behind, and one that takes the lock it interrupts gets it,
as its owner does again (`RLock`) or anew.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import warnings
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k
from dpool._core.node_page import FLOCK, WORDS, byte_of
from dpool._core.sync_client import Core, Link, make

if TYPE_CHECKING:
    from dpool._core.store_client import Handle

_fcntl = fcntl.fcntl
_SETLK = int(fcntl.F_OFD_SETLK)
SPINS = 20
"""How often a lock that is taken is tried again before the node is asked: who has it mostly has it for a moment."""


class Mutex(Core):
    """One lock in this process; `Lock` and `RLock` are its faces."""

    what = "lock"
    __slots__ = ("_at", "_claim", "_guard", "_known", "_lock", "_unlock", "_words", "count", "held", "slot", "thread")

    def __init__(self, link: Link, handle: Handle, slot: int) -> None:
        super().__init__(link, handle)
        self.slot = slot
        self._at = slot * WORDS
        self._words = link.words
        self.in_child()

    @classmethod
    def new(cls) -> Mutex:
        """A new lock."""
        link, handle, reply, _ = make(s.MUTEX)
        made = link.cores[handle.obj] = cls(link, handle, reply.n)
        return made

    @classmethod
    def for_link(cls, link: Link) -> type[Core]:
        if not link.far:
            return cls
        from dpool._core.sync_far import FarMutex

        return FarMutex

    def in_child(self) -> None:
        self._guard = threading.RLock()
        self.held = 0
        """The generation that this process has locked, or 0."""
        self.thread = 0
        """The thread that has it, …"""
        self.count = 0
        """… and how often, if it is recursive."""
        self._known = 0
        """The generation that these two are of: how to lock its byte, …"""
        self._lock = b""
        self._unlock = b""
        """… and to unlock it."""
        self._claim: Any = None
        """The call of `_try` that got it."""

    def is_mine(self) -> bool:
        """Whether this thread has it."""
        return self.thread == threading.get_ident() and self.is_ours()

    def is_ours(self) -> bool:
        """Whether a thread of this process has it."""
        return bool(self.held) and self.held == self._words[self._at + k.GENERATION]

    def is_taken(self) -> bool:
        """Whether anybody has it."""
        return self.is_ours() or bool(self._words[self._at + k.OWNER])

    def acquire(self, block: bool, timeout: float | None) -> bool:
        """As `multiprocessing.Lock.acquire`."""
        claim = object()
        try:
            if self._try(claim, not block):  # who does not wait must not be told that it is taken when it is free
                return True
            return block and self._acquire_slowly(claim, timeout)
        except BaseException:
            if self._claim is claim:
                self.release_ours()
            raise

    def _try(self, claim: object, turn: bool) -> bool:
        words, at = self._words, self._at
        if not turn and words[at + k.WAITING] > 1:  # somebody has waited too long already
            return False
        with self._guard:
            if self.held:
                if self.held == words[at + k.GENERATION]:
                    return False
                self._let_go()
            if not self._lock_byte(claim):
                return False
            dead = words[at + k.OWNER]
            words[at + k.OWNER] = self.link.pid
        if dead:
            self._warn(dead)
        return True

    def _lock_byte(self, claim: object) -> bool:
        words, at, me = self._words, self._at, threading.get_ident()
        while True:
            generation = words[at + k.GENERATION]
            if generation != self._known:
                byte = byte_of(self.slot, generation)
                self._lock = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
                self._unlock = FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0)
                self._known = generation
            try:
                self._claim, self.thread, self.count, self.held = claim, me, 1, generation
                _fcntl(self.link.lock_fd, _SETLK, self._lock)
                if words[at + k.GENERATION] == generation:
                    return True
                self._let_go()
            except (BlockingIOError, PermissionError):
                self._claim = None
                self.thread = self.count = self.held = 0
                return False
            except BaseException:
                self._let_go()
                raise

    def _let_go(self) -> None:
        self._claim = None
        self.thread = self.count = self.held = 0  # no call in between: who comes after the call finds it free
        _fcntl(self.link.lock_fd, _SETLK, self._unlock)

    def _warn(self, dead: int) -> None:
        where = " of another machine" if dead >> 32 else ""
        warnings.warn(
            f"the process {dead & 0xFFFFFFFF}{where} ended while it had this lock; what the lock guards may be "
            "half-written",
            RuntimeWarning,
            stacklevel=4,
        )

    def _acquire_slowly(self, claim: object, timeout: float | None) -> bool:
        until = None if timeout is None else monotonic() + max(0.0, timeout)
        if timeout is None or timeout > 0:
            for _ in range(SPINS):
                os.sched_yield()
                if self._try(claim, False):
                    return True
        flags = k.BLOCK
        while True:
            reply = self.wait(k.LOCK, flags, until, lambda: self._try(claim, True))
            if self._claim is claim or self._try(claim, True):
                return True
            if until is not None and monotonic() >= until:
                if reply.status == k.OK:
                    self.tell(k.UNLOCKED)  # somebody else may want the turn
                return False
            flags = k.BLOCK | k.FRONT

    def release_ours(self) -> bool:
        """Release it; False if this process has not got it."""
        words, at = self._words, self._at
        try:
            with self._guard:
                if not self.held:
                    return False
                valid = self.held == words[at + k.GENERATION]
                if valid:
                    words[at + k.OWNER] = 0
                self._let_go()
        finally:
            if words[at + k.WAITING]:
                self._tell_unlocked()
        return valid

    def _tell_unlocked(self) -> None:
        from dpool.errors import NodeLost

        try:
            self.tell(k.UNLOCKED)
        except NodeLost:  # who waits hears of it there
            return

    def release_for_another(self) -> bool:
        """Release it though another process has it; False if nobody has."""
        return self.ask(k.FORCE).status == k.OK

    def release_all(self) -> int:
        """Release it however often this thread has it: how often that is."""
        count = self.count
        self.release_ours()
        return count

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "held", 0) and not _ending() and self.link.pid == os.getpid() and self.link.lock_fd >= 0:
            self._let_go()
        super().__del__()
