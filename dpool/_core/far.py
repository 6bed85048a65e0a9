"""Connections to other machines of the cluster, through the gateway of this one."""

from __future__ import annotations

import os
import select
import socket

from dpool._core import launch, wire
from dpool._core import messages as m
from dpool._core.config import PROTOCOL

ANSWER_S = 30.0
"""How long a gateway may take for what it answers at once, on a busy machine."""


class Unanswered(Exception):
    """The gateway did not answer."""


def opened(through: str, session: str, path: str) -> tuple[socket.socket, list[int], m.FarOpened]:
    """The gateway's answer on a new connection to it: see FarOpen.

    Raises:
        OSError, Unanswered: there is no gateway (any more), or it does not answer.
    """
    launch.check_session(through)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds: list[int] = []
    try:
        sock.connect(os.path.join(through, launch.GATEWAY_SOCKET))
        wire.send(sock, m.encode(m.FarOpen(PROTOCOL, *m.versions(), session, path)))
        waiter = select.poll()
        waiter.register(sock.fileno(), select.POLLIN)
        if not waiter.poll(ANSWER_S * 1000):
            raise Unanswered(f"the gateway did not answer within {ANSWER_S} s")
        data, fds, _, _ = socket.recv_fds(sock, wire.INLINE_LIMIT, 1, socket.MSG_CMSG_CLOEXEC)
        answer = m.decode(data or b"\0")
        if type(answer) is not m.FarOpened:
            raise Unanswered(f"the gateway answered {answer!r:.100}")
    except BaseException as error:
        sock.close()
        for fd in fds:
            os.close(fd)
        if isinstance(error, m.ProtocolError):
            raise Unanswered("the gateway has closed the connection") from error
        raise
    return sock, fds, answer


def stream(through: str, session: str, path: str) -> int | None:
    """A connection to who listens at a Unix socket of another machine: its descriptor; None if that is no machine of
    this cluster.

    Raises:
        ConnectionRefusedError: the machine has left the cluster; says why.
        OSError: there is no gateway any more, or it does not answer.
    """
    try:
        sock, fds, answer = opened(through, session, path)
    except Unanswered as error:
        raise ConnectionRefusedError(str(error)) from error
    sock.close()
    if answer.status == m.FAR_UNKNOWN:
        return None
    if answer.status == m.FAR_LOST:
        raise ConnectionRefusedError(answer.why)
    if not fds:
        raise OSError(24, "this process has no file descriptors left (see `ulimit -n`)")
    return fds[0]
