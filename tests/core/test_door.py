"""The door of a gateway closes before a crowd, without harm to those who are inside, and opens again."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from dpool._core import door
from dpool._core.door import Door
from tests.helpers import wait_until


@pytest.fixture
def one() -> Iterator[Door]:
    made = Door("127.0.0.1")
    yield made
    made.close()


def knock(one: Door) -> socket.socket:
    """Begin to connect; it is connected once it can be written to."""
    guest = socket.socket()
    guest.setblocking(False)
    guest.connect_ex(("127.0.0.1", one.port))
    return guest


def answered(guest: socket.socket) -> bool:
    try:
        guest.getpeername()
    except OSError:
        return False
    return True


def test_it_is_closed_while_too_many_stand_in_it(one: Door) -> None:
    inside = knock(one)
    wait_until(lambda: answered(inside))
    ours, _ = one.sock.accept()
    for fd in range(door.MOST_STRANGERS):
        one.accepted(1000 + fd)
    assert [one.open] == [False]
    with knock(one) as outside, inside, ours:
        inside.send(b"x")
        assert ours.recv(1) == b"x", "who is inside notices nothing"
        assert not answered(outside)
        one.proved(1000)
        assert one.open
        wait_until(lambda: answered(outside), what="it knocks again by itself")
    assert one.closed == 1


def test_it_is_closed_for_a_second_after_too_many_failures(one: Door) -> None:
    for fd in range(door.MOST_FAILURES):
        assert one.open
        one.accepted(1000 + fd)
        one.gone(1000 + fd)
    assert not one.open
    one.new_second()
    assert one.open


def test_peers_that_leave_are_no_failures(one: Door) -> None:
    for _ in range(2 * door.MOST_FAILURES):
        one.accepted(7)
        one.proved(7)
        one.gone(7)
    assert one.open
    assert not one.strangers


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", ""])
def test_an_address_that_nobody_can_connect_to(ip: str) -> None:
    with pytest.raises(OSError, match="--bind IP"):
        Door(ip)


def test_a_port_in_use_is_named(one: Door) -> None:
    with pytest.raises(OSError, match=f"127.0.0.1:{one.port}"):
        Door("127.0.0.1", one.port)
