"""Questions about modules of programs, and their answers, as they go over a socket: JSON, and bytes after it."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

SOCKET = "modules.sock"
"""In the session directory of the program's machine; the other side of it is gateway_modules.py."""
DEADLINE_S = 30.0
"""For each piece of a question or an answer."""
MOST_QUESTION = 16 << 20
MOST_ANSWER = 64 << 20
"""Bytes."""


def send(sock: socket.socket, message: Any, packed: bytes = b"") -> None:
    """A message, and bytes that belong to it."""
    data = json.dumps(message).encode()
    sock.sendall(struct.pack(">II", len(data), len(packed)) + data)
    if packed:  # else the other side may have answered, and closed
        sock.sendall(packed)


def receive(sock: socket.socket, most: int) -> Any:
    """A message without bytes."""
    message, packed = receive_packed(sock, most)
    if packed:
        raise ValueError("nothing was to come with it")
    return message


def receive_packed(sock: socket.socket, most: int) -> tuple[Any, bytes]:
    """A message, and what comes with it.

    Raises:
        ConnectionError: the other side has closed.
        ValueError: it is malformed, or larger than `most`.
    """
    lengths = struct.unpack(">II", _exactly(sock, 8))
    if sum(lengths) > most:
        raise ValueError(f"a message of {sum(lengths)} bytes")
    data, packed = (_exactly(sock, length) for length in lengths)
    return json.loads(data), packed


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise ConnectionError("the connection was closed before all had come")
        view = view[count:]
    return bytes(data)
