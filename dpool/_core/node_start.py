"""The first lines of a node process, with as few imports as can be: stand on our own, fork the zygote, become the node.

The process that the driver started forks the node and exits, so the driver has no child process of ours to surprise
its own `os.wait()` or SIGCHLD handler. The zygote is forked before anything else is imported, and imports what
workers need while the node imports what it needs.
"""

from __future__ import annotations

import os
import socket

from dpool._core.launch import NODE_FD


def main(session: str) -> None:
    """Never returns to the program that the driver started."""
    if os.fork():
        os._exit(0)
    try:
        _node(session)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _node(session: str) -> None:
    from dpool._core.zygote import PR_SET_CHILD_SUBREAPER, prctl, serve, set_title

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    node_end, zygote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        node_end.close()
        os.close(NODE_FD)
        serve(zygote_end, session)
        os._exit(0)
    zygote_end.close()
    set_title("dpool-node")
    driver = socket.socket(fileno=NODE_FD)
    driver.set_inheritable(False)

    from dpool._core.node import Node

    try:
        node = Node(session, driver, node_end)
    except OSError as error:
        _say_why(driver, error)
        raise
    node.run()


def _say_why(driver: socket.socket, error: OSError) -> None:
    """The log file says so too, but the zygote may have removed that before the driver reads it."""
    from dpool._core import wire
    from dpool._core.messages import Refused, encode

    try:
        wire.send(driver, encode(Refused(f"it could not start: {error}")))
    except OSError:  # the driver is gone: nobody wants to know
        return


def zygote(session: str) -> None:
    """A zygote started anew, in the place of one that died."""
    from dpool._core.zygote import serve

    sock = socket.socket(fileno=NODE_FD)
    sock.set_inheritable(False)
    serve(sock, session)
    os._exit(0)
