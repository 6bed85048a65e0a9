"""Control messages on the wire."""

from __future__ import annotations

import os
import socket

from dpool._core import messages as m
from dpool._core import wire


def test_no_message_begins_as_something_else_does() -> None:
    """One with a descriptor would be taken for a memory file, or for a frame."""
    assert len(m._CODES) == len(m.CONTROL) == len(set(m._CODES.values()))
    assert not {b"M", b"\x80"} & set(m._CODES.values())


def test_every_message_may_come_with_a_descriptor() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    empty = {int: 0, float: 0.0, bool: False, str: "", bytes: b"", list: [], tuple: (), dict: {}}
    with ours, theirs:
        sender, receiver = wire.ControlChannel(ours), wire.ControlChannel(theirs)
        for kind in m.CONTROL:
            message = kind(*(empty[one] for one in m._FIELDS[kind]))
            sender.send(message, (ours.fileno(),))
            received, fds = receiver.receive()
            assert received == message
            for fd in fds:
                os.close(fd)
            assert len(fds) == 1
