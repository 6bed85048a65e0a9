"""Who connects to a node is let in at once, also where the node let somebody in between two looks at its sockets."""

from __future__ import annotations

import os
import select
import socket
import tempfile
from collections.abc import Iterator

import pytest

from dpool._core import launch
from dpool._core.node import Node


@pytest.fixture
def node() -> Iterator[Node]:
    """One that listens, and nothing else; its directory has a short name, as a socket's path must."""
    with tempfile.TemporaryDirectory(prefix="n-") as session:
        node = Node.__new__(Node)
        node.session = session
        node._epoll = select.epoll()
        node._handlers, node._clients, node._timers, node._numbers = {}, {}, [], 0
        node._listen()
        yield node
        for client in node._clients.values():
            client.channel.close()
        node._listener.close()
        node._epoll.close()


def connect(node: Node) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(os.path.join(node.session, launch.SOCKET_NAME))
    return sock


def turn(node: Node, events: list[tuple[int, int]]) -> None:
    """What the loop does with events."""
    for fd, mask in events:
        node._handlers[fd](mask)


def test_an_event_for_who_is_in_already_keeps_nobody_out(node: Node) -> None:
    with connect(node):
        events = node._epoll.poll(0)
        assert [fd for fd, _ in events] == [node._listener.fileno()]
        node.read_newcomers()  # an event before this one wanted to know all that had been said
        turn(node, events)
        assert len(node._clients) == 1
        with connect(node):
            node.read_newcomers()
            assert len(node._clients) == 2
    assert not node._timers


def test_without_descriptors_the_node_does_not_ask_again_and_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A listener whose process has no descriptor left."""

        fileno = node._listener.fileno

        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    with connect(node):
        events = node._epoll.poll(0)
        with monkeypatch.context() as patch:
            patch.setattr(node, "_listener", Full())
            turn(node, events)
        assert not node._epoll.poll(0)
        _, _, again = node._timers.pop()
        again()
        turn(node, node._epoll.poll(0))
        assert len(node._clients) == 1
