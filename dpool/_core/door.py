"""The door of a gateway: the socket at which it listens, and how many strangers may stand in it.

```
 a connection ──► accepted ──► proved (it knows the cluster's secret) ──► a peer, not our business any more
                     └──────► gone (it does not, or said nothing in time): a failure
```

ZeroMQ accepts whoever connects and has no limit of its own. A stranger costs a descriptor and up to one message's bytes
until its handshake ends; a failure costs processor time. So the door is closed while `MOST_STRANGERS` are in it, and
for the rest of the second after `MOST_FAILURES`: the kernel then drops what is sent to the listening socket, by a
filter of one instruction. Peers that are inside notice nothing; whoever knocks is served when the door opens, since its
kernel tries again.

One thread, the gateway's. What happens to connections is told by ZeroMQ's monitor, so a little late: a few more
strangers than the limit can be in the door.
"""

from __future__ import annotations

import ctypes
import socket
import struct

MOST_STRANGERS = 128
MOST_FAILURES = 200
"""In one second."""
BACKLOG = 64
WILDCARDS = ("0.0.0.0", "::", "")
_ATTACH_FILTER, _DETACH_FILTER = 26, 27  # of <asm/socket.h>; the module socket has no names for them
_RETURN_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""A program of one instruction for the kernel's packet filter: take 0 bytes of the packet, which is to drop it."""


class Door:
    """See the module; made where `ip` and `port` say (0: any port that is free).

    Raises:
        OSError: the address cannot be used; it is named.
    """

    def __init__(self, ip: str, port: int = 0) -> None:
        if ip in WILDCARDS:
            raise OSError(
                f"cannot listen at {ip!r}: other machines are told the address, so it must be one that they can "
                "connect to; name one of this machine's (`--bind IP`)"
            )
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind((ip, port))
            self.sock.listen(BACKLOG)
        except OSError as error:
            self.sock.close()
            raise OSError(error.errno, f"cannot listen at {ip}:{port}: {error.strerror}") from None
        self.sock.setblocking(False)
        self.port = int(self.sock.getsockname()[1])
        self.strangers: set[int] = set()
        """Their descriptors in this process."""
        self.failures = 0
        """In this second."""
        self.closed = 0
        """How often it has been closed."""
        self.open = True

    def accepted(self, fd: int) -> None:
        """A stranger stands in it."""
        self.strangers.add(fd)
        self._look()

    def proved(self, fd: int) -> None:
        """It is none."""
        self.strangers.discard(fd)
        self._look()

    def gone(self, fd: int) -> None:
        """A connection has ended, a stranger's or a peer's."""
        if fd in self.strangers:
            self.strangers.discard(fd)
            self.failures += 1
        self._look()

    def new_second(self) -> None:
        """To be called once in a second."""
        self.failures = 0
        self._look()

    def _look(self) -> None:
        shall = len(self.strangers) < MOST_STRANGERS and self.failures < MOST_FAILURES
        if self.open and not shall:
            program = ctypes.create_string_buffer(_RETURN_NOTHING)
            filter_of_one = struct.pack("@HP", 1, ctypes.addressof(program))
            self.sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, filter_of_one)
            self.closed += 1
        elif shall and not self.open:
            self.sock.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
        self.open = shall

    def close(self) -> None:
        """Listen no more."""
        self.sock.close()
