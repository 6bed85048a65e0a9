"""Asking a node something without working with it: the visitor of `dpool status` and `dpool drain`.

A connection to the node's Unix socket, whose Hello says VISITOR: the node does not live for it. One question at a time,
each with a deadline.
"""

from __future__ import annotations

import os
import select
import sys
from time import monotonic
from typing import Any

from dpool._core import launch, wire
from dpool._core import messages as m
from dpool._core.config import PROTOCOL
from dpool.errors import StartupError

ANSWER_S = 20.0


class Visitor:
    """See the module; a context manager.

    Raises:
        StartupError: the node does not answer, or refuses; as do the questions.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        try:
            sock = launch.connect_node(session)
        except OSError as error:
            raise StartupError(f"the node in {session} does not answer: {error.strerror}") from error
        self._channel = wire.ControlChannel(sock)
        name = os.path.basename(sys.argv[0]) if sys.argv else "dpool"
        self._ask(
            m.Hello(PROTOCOL, *m.versions(), os.getpid(), os.urandom(8), name, m.VISITOR, (), []),
            m.Welcome,
        )

    def status(self) -> list[dict[str, Any]]:
        """What each machine says of itself, this one first; see node_about.py."""
        told: m.StatusTold = self._ask(m.AskStatus(), m.StatusTold)
        return told.machines

    def drain(self, address: str) -> None:
        """Have the machine at that address leave; it does when it has ended its work."""
        told: m.DrainTold = self._ask(m.AskDrain(address), m.DrainTold)
        if not told.begun:
            raise StartupError(told.why)

    def _ask(self, question: Any, answer: type[Any]) -> Any:
        until = monotonic() + ANSWER_S
        try:
            self._channel.send(question)
            while select.select([self._channel], [], [], max(0.0, until - monotonic()))[0]:
                message, fds = self._channel.receive()
                for fd in fds:
                    os.close(fd)
                if isinstance(message, m.Refused):
                    raise StartupError(f"the node refuses: {message.reason}")
                if isinstance(message, answer):
                    return message
        except wire.Closed:
            raise StartupError(f"the node in {self._session} has ended") from None
        raise StartupError(f"the node in {self._session} has not answered within {ANSWER_S:g} s")

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._channel.close()
