"""Somebody says to the object store what none of ours would: that peer is closed, and nobody else is harmed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import dpool
from dpool._core import messages as m
from dpool._core import wire
from dpool._core.config import PROTOCOL
from dpool._store.pins import make_page
from tests.faults import store_tasks as work
from tests.faults import tasks
from tests.faults.store_support import MIB, alone, drained, figures
from tests.faults.support import DEADLINE_S, by_role, one_of_role, session_of
from tests.helpers import wait_until

SIZE = 5 * MIB
OBJ = b"o" * 20
HELLO = m.StoreHello(PROTOCOL, *m.versions(), os.getpid())


class Guest:
    """A program that speaks to the store."""

    def __init__(self, hello: bool = True, session: str = "") -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(f"{session or session_of(one_of_role('dpool-node'))}/node.sock")
        self.sock.settimeout(DEADLINE_S)
        if hello:
            page = make_page()
            self.say(HELLO, page)
            os.close(page)

    def say(self, message: Any, *fds: int) -> None:
        data = message if isinstance(message, bytes) else m.encode(message)
        wire.send(self.sock, data, fds)

    def hear(self) -> Any:
        """The next message; None when the store has closed the connection."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, 8)
        except ConnectionResetError:
            return None
        for fd in fds:
            os.close(fd)
        return m.decode(data) if data else None

    def is_closed(self) -> bool:
        while (message := self.hear()) is not None:
            assert isinstance(message, m.Refused), message
        return True


@pytest.fixture
def executor() -> Iterator[dpool.Executor]:
    """Something lies in the store, and is there afterwards."""
    with dpool.Executor(2) as made:
        ref = dpool.put(work.pattern(1, SIZE))
        view = dpool.get(ref)
        assert made.submit(work.check, ref, 1, SIZE).result(DEADLINE_S)
        node = one_of_role("dpool-node")
        yield made
        assert work.is_pattern(view, 1, SIZE)
        assert work.is_pattern(dpool.get(ref), 1, SIZE)
        assert made.submit(work.check, ref, 1, SIZE).result(DEADLINE_S)
        assert made.submit(work.check, work.pattern(2, SIZE), 2, SIZE).result(DEADLINE_S)
        assert made.submit(tasks.double, 2).result(DEADLINE_S) == 4
        assert by_role("dpool-node") == [node], "the node died of it"
        del ref, view
        drained(64 * MIB)


@pytest.fixture
def guest(executor: dpool.Executor) -> Iterator[Guest]:
    made = Guest()
    yield made
    made.sock.close()


ILLEGAL = {
    "a seal outside of its lease": m.StoreSeal(OBJ, 1, 0, 8192, 4096, os.getpid(), []),
    "a seal in no page": m.StoreSeal(OBJ, 1, 77, 5, 1, os.getpid(), []),
    "a negative range": m.StoreSeal(OBJ, 1, -4096, -4096, -5000, os.getpid(), []),
    "a return of what it has not": m.StoreReturn(1, 0, 4096),
    "a want of nothing": m.StoreWant(1, 0),
    "a want of less than nothing": m.StoreWant(1, -5),
    "a file of a negative size": m.StoreSealFile(OBJ, -1, "/nowhere", 0, os.getpid(), []),
    "an adoption without a descriptor": m.StoreAdopt(9, 4096, []),
    "another hello": HELLO,
    "a message of the store's": m.StoreDropped(1),
    "a message for a node": m.Bye(),
    "half a message": m.encode(m.StoreWant(1, 4096))[:-3],
    "no message": b"\xff\xff",
    "a field of another type": m.encode(m.StoreWant(1, "much")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", ILLEGAL)
def test_what_cannot_be_closes_that_peer(guest: Guest, what: str) -> None:
    guest.say(ILLEGAL[what])
    assert guest.is_closed()


@pytest.mark.parametrize("count", [0, 2])
def test_a_hello_with_another_number_of_descriptors(executor: dpool.Executor, count: int) -> None:
    guest = Guest(hello=False)
    pages = [make_page() for _ in range(count)]
    guest.say(HELLO, *pages)
    for page in pages:
        os.close(page)
    assert guest.is_closed()
    guest.sock.close()


def test_a_hello_with_what_is_no_page(executor: dpool.Executor) -> None:
    """Too short a file would be a SIGBUS in the node."""
    for length in (0, 100):
        guest = Guest(hello=False)
        fd = os.memfd_create("short")
        os.ftruncate(fd, length)
        guest.say(HELLO, fd)
        os.close(fd)
        assert guest.is_closed()
        guest.sock.close()


def test_a_hello_of_another_version(executor: dpool.Executor) -> None:
    guest = Guest(hello=False)
    page = make_page()
    guest.say(HELLO._replace(version="0.0.0"), page)
    os.close(page)
    message = guest.hear()
    assert isinstance(message, m.Refused)
    assert guest.is_closed()
    guest.sock.close()


HARMLESS = {
    "a release of what nobody holds": m.StoreRelease([OBJ, OBJ]),
    "a claim of what is not its own": m.StoreClaim(1, [OBJ]),
    "a hold of what there is not": m.StoreHold([OBJ], os.getpid()),
    "a retirement of nothing": m.StoreRetire([1 << 40, 0]),
    "a fulfilment of no promise": m.StoreFulfil(OBJ, 1, b"", []),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_has_no_effect(guest: Guest, what: str) -> None:
    """Whether the peer is closed or not, the books are in order afterwards."""
    guest.say(HARMLESS[what])
    guest.say(m.StoreRelease([OBJ]))
    answer = None
    try:
        guest.say(m.StoreAsk(5, False))
        answer = guest.hear()
    except BrokenPipeError:
        pass
    assert answer is None or isinstance(answer, (m.StoreReport, m.Refused))


def lease_and_leave(session: str) -> None:
    guest = Guest(session=session)
    guest.say(m.StoreWant(1, 30 * MIB))
    assert isinstance(guest.hear(), m.StoreLeased)
    guest.say(m.StoreReturn(1, 0, 4096))
    assert guest.is_closed()


def test_what_a_peer_leased_is_free_when_it_has_ended(executor: dpool.Executor) -> None:
    alone(lease_and_leave, str(session_of(one_of_role("dpool-node"))))
    wait_until(lambda: figures()["leased_bytes"] < 30 * MIB, DEADLINE_S, "its lease is free")
