"""The gateway's part in streams: the pipe from whoever takes the items to the generator, between machines.

```
 caller ── pipe: how many were taken ──► gateway ── StreamTold ──► gateway ── the generator's pipe ──► generator
```

A frame of results with which a generator's pipe comes goes on with another pipe, made here; see stream.py. The ends are
passed on, too: a caller that closes its pipe, or dies, ends the generator.

Part of the gateway; its loop. Numbers of pipes are the generator's side's.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from dpool._core import peer_messages as pm
from dpool._core.stream import AGAIN_S, CLOSE, CREDIT, NO_LIMIT

if TYPE_CHECKING:
    from dpool._core.gateway import Gateway, _Guest

MOST = 1 << 16
"""Bytes that are read from a pipe at a time: all that there can be in it."""


class _Pipe:
    """To a generator here. `owed`: items taken that it has not been told of, as its pipe is full."""

    __slots__ = ("fd", "guest", "owed", "waits")

    def __init__(self, fd: int, guest: _Guest) -> None:
        self.fd = fd
        self.guest = guest
        self.owed: list[int] = []
        self.waits = False


class Streams:
    """See the module."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pipes: dict[tuple[bytes, int], _Pipe] = {}
        """Caller's machine, number → to the generator here."""

    # -- the generator's side

    def began(self, guest: _Guest, fd: int) -> int:
        """A generator here has begun; the number of its pipe."""
        self._gateway._numbers += 1
        os.set_blocking(fd, False)
        self._pipes[guest.peer, self._gateway._numbers] = _Pipe(fd, guest)
        return self._gateway._numbers

    def told(self, peer: bytes, message: pm.StreamTold) -> None:
        """The caller has taken items, or has closed its pipe."""
        pipe = self._pipes.get((peer, message.pipe))
        if pipe is None:
            return
        if not message.data:
            del self._pipes[peer, message.pipe]
            os.close(pipe.fd)
            return
        for (number,) in CREDIT.iter_unpack(message.data):
            plain = number not in (CLOSE, NO_LIMIT)
            if plain and pipe.owed and pipe.owed[-1] not in (CLOSE, NO_LIMIT):
                pipe.owed[-1] += number
            else:
                pipe.owed.append(number)
        if not pipe.waits:
            self._pass_on((peer, message.pipe), pipe)

    def _pass_on(self, key: tuple[bytes, int], pipe: _Pipe) -> None:
        pipe.waits = False
        if self._pipes.get(key) is not pipe:
            return
        try:
            while pipe.owed:
                os.write(pipe.fd, CREDIT.pack(pipe.owed[0]))
                del pipe.owed[0]
        except BlockingIOError:
            pipe.waits = True
            self._gateway._at(AGAIN_S, partial(self._pass_on, key, pipe))
        except BrokenPipeError:  # the generator has ended
            pipe.owed.clear()

    def guest_ended(self, guest: _Guest) -> None:
        """Its generators are gone, or must end."""
        for key in [key for key, pipe in self._pipes.items() if pipe.guest is guest]:
            os.close(self._pipes.pop(key).fd)

    # -- the caller's side

    def pipe(self, peer: bytes, number: int) -> int:
        """Our end of a new pipe is watched; returns the other one, for the caller."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_fd, False)
        self._gateway._on(read_fd, partial(self._taken, peer, number, read_fd))
        return write_fd

    def _taken(self, peer: bytes, number: int, fd: int, mask: int) -> None:
        try:
            data = os.read(fd, MOST)
        except BlockingIOError:
            return
        self._gateway._say_if_up(peer, pm.StreamTold(number, data))
        if not data:
            self._gateway._off(fd)
            os.close(fd)
