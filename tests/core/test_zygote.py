"""What the zygote tells the node when a fork goes wrong, and whom its children bind themselves to."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dpool._core import wire, zygote
from dpool._core.messages import Spawned, SpawnFailed
from tests.helpers import is_running, process, wait_until

DEADLINE_S = 30.0


@pytest.fixture
def channels() -> Iterator[tuple[wire.ControlChannel, wire.ControlChannel]]:
    """The node's end and the zygote's."""
    ours, theirs = (wire.ControlChannel(one) for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield ours, theirs
    ours.close()
    theirs.close()


def heard(channel: wire.ControlChannel) -> Any:
    """The next message, which must come in time."""
    waiter = select.poll()
    waiter.register(channel.fileno(), select.POLLIN)
    assert waiter.poll(DEADLINE_S * 1000), "the node hears nothing"
    return channel.receive()[0]


def test_a_node_that_does_not_read_misses_nothing(
    channels: tuple[wire.ControlChannel, wire.ControlChannel],
) -> None:
    """What a child cannot say at once it must not leave in its outbox: it never comes back to it."""
    node, end = channels
    said = []

    def say() -> None:
        for number in range(1, 2001):
            zygote._say(end, Spawned(number, number))
            said.append(number)

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    wait_until(lambda: end.pending or len(said) == 2000, DEADLINE_S, "the socket is full")
    assert len(said) < 2000
    assert [heard(node).worker for _ in range(2000)] == list(range(1, 2001))
    teller.join(DEADLINE_S)
    assert not teller.is_alive()


@pytest.mark.parametrize("how", ["killed", "no memory"])
def test_the_process_between_dies(
    channels: tuple[wire.ControlChannel, wire.ControlChannel],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    how: str,
) -> None:
    """The worker is never there: the node, and who waits for it, must hear so."""
    node, end = channels
    really, me = os.fork, os.getpid()

    def fork() -> int:
        if os.getpid() == me:
            return really()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError

    monkeypatch.setattr(os, "fork", fork)
    zygote._fork_twice(end, 7, me, os.abort)
    message = heard(node)
    assert isinstance(message, SpawnFailed)
    assert message.worker == 7
    assert ("-9" if how == "killed" else "70") in message.reason


def test_a_worker_whose_node_is_dead_ends_even_if_nobody_has_reaped_the_node() -> None:
    """As in a container whose first process reaps nobody."""
    node = os.fork()
    if not node:
        os._exit(0)
    wait_until(lambda: (found := process(node)) is not None and found.state == "Z", DEADLINE_S)
    reader, writer = os.pipe()
    middle = os.fork()
    if not middle:
        between = os.getpid()
        if not os.fork():
            os.write(writer, f"{os.getpid()}\n".encode())
            zygote._bind_to_node(node, between)
            os.write(writer, b"bound\n")
        os._exit(0)
    os.close(writer)
    os.waitpid(middle, 0)
    with os.fdopen(reader) as pipe:
        worker = int(pipe.readline())
        try:
            wait_until(lambda: not is_running(worker), DEADLINE_S, "the worker ends")
        finally:
            if is_running(worker):
                os.kill(worker, signal.SIGKILL)
            os.waitpid(node, 0)
        assert pipe.read() == ""
