"""Redis' own protocol (RESP2) on a Unix socket: what is needed to send commands and to read their answers.

redis-py takes 75 ms of processor time and 14 MB to import, in every program's node, for an embedded server to which one
thread sends a few kinds of commands; this takes neither. Servers elsewhere, with TLS, hosts and URLs, are redis-py's
(see `redis_link`), and decision 0019 says more.

A `SocketLink` connects at its first call. What fails within a call, a time-out included, closes the connection, since
answers to one call must not be read as another's; the next call connects again. One thread calls, any may close.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpool._gcs.spread import Link


class ServerRefused(Exception):
    """The server's answer to a command is an error: its text."""


class LinkFailed(Exception):
    """No answer: the network's, the server's, or its protocol's fault, in words."""


class SocketLink:
    """A connection to a server on a Unix socket. Each wait for it may take `timeout_s` seconds. `user`: empty where no
    login is needed.
    """

    def __init__(self, path: str, user: str, password: str, timeout_s: float) -> None:
        self._path = path
        self._login = ("AUTH", user, password) if user else ()
        self._timeout_s = timeout_s
        self.connections = 0
        """How often it has connected."""
        self._sock: socket.socket | None = None
        self._answers: BinaryIO | None = None

    def execute(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send the commands in one go. Their answers: bytes, int, None, lists of these, or a ServerRefused each.

        Raises:
            LinkFailed: not all answers came; which of the commands were carried out is not known.
        """
        try:
            answers = self._answers or self._connect()
            sock = self._sock
            if sock is None:
                raise ConnectionError("the connection was closed")
            sock.sendall(b"".join([request(*command) for command in commands]))
            return [read_answer(answers) for _ in commands]
        except TimeoutError:
            self.close()
            raise LinkFailed(f"no answer within {self._timeout_s:g} s") from None
        except (OSError, ValueError) as error:  # ValueError: another thread closed the file
            self.close()
            raise LinkFailed(str(error) or type(error).__name__) from None
        except BaseException:  # Ctrl-C: what is still to be read would be taken for the next call's
            self.close()
            raise

    def _connect(self) -> BinaryIO:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock = sock
        sock.settimeout(self._timeout_s)
        try:
            sock.connect(self._path)
        except OSError as error:
            raise ConnectionError(f"cannot connect: {error.strerror or error}") from None
        answers = self._answers = sock.makefile("rb")
        if self._login:
            sock.sendall(request(*self._login))
            if isinstance(said := read_answer(answers), ServerRefused):
                raise ConnectionError(str(said))
        self.connections += 1
        return answers

    def servers(self) -> list[Link]:
        """A link to each server that has keys."""
        return [self]

    def close(self) -> None:
        """Close the connection. Another thread may call it to end a call in progress."""
        sock, answers, self._sock, self._answers = self._sock, self._answers, None, None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)  # who reads in it wakes, and lets go of it
            except OSError:
                pass  # it was not connected, or the other side has gone
            sock.close()
        if answers is not None:
            answers.close()


def request(*words: Any) -> bytes:
    """One command: strings as UTF-8, bytes as they are, numbers in decimal."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts += (b"$%d\r\n" % len(data), data, b"\r\n")
    return b"".join(parts)


def read_answer(answers: BinaryIO) -> Any:
    """The next answer. Raises ConnectionError if there is none, or if it is not one."""
    line = answers.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return rest
    if kind == b"-":
        return ServerRefused(rest.decode(errors="replace"))
    try:
        number = int(rest)
    except ValueError:
        raise ConnectionError(f"not an answer of Redis: {line[:60]!r}") from None
    if kind == b":":
        return number
    if kind == b"$":
        return None if number < 0 else _read_bytes(answers, number)
    if kind == b"*":
        return None if number < 0 else [read_answer(answers) for _ in range(number)]
    raise ConnectionError(f"not an answer of Redis: {line[:60]!r}")


def _read_bytes(answers: BinaryIO, count: int) -> bytes:
    data = answers.read(count + 2)
    if len(data) != count + 2:
        raise ConnectionError("the server closed the connection")
    return data[:-2]
