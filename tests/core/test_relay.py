"""The two ends of a remote lease, between a submitter and a worker that this test plays."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from dpool._core import frames, wire
from dpool._core.relay import Incoming, Outgoing, Snapshot


def pipe() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Lease:
    """Submitter – Outgoing – (two lists, for the network) – Incoming – worker."""

    def __init__(self) -> None:
        self.submitter, there = pipe()
        here, self.worker = pipe()
        fds = [frames.make_page(), frames.make_page()]
        self.near, self.far = (frames.Page(fd) for fd in fds)
        outgoing_page, incoming_page = (frames.Page(fd) for fd in fds)
        for fd in fds:
            os.close(fd)
        self.to_worker: list[bytes] = []
        self.limits: list[int] = []
        self.outgoing = Outgoing(
            there, outgoing_page, 77, lambda frame, carried: self.to_worker.append(frame), self.limits.append
        )
        self.incoming = Incoming(
            here, incoming_page, lambda data, fds: self.outgoing.results(data, wire.loads(data)[1], tuple(fds))
        )

    def submit(self, base: int, calls: int, ship: Any = None, flags: int = 0) -> None:
        wire.send(self.submitter, pickle.dumps((base, flags, ship, 1, [(i,) for i in range(calls)]), 5))

    def carry(self) -> None:
        self.outgoing.readable()
        while self.to_worker:
            self.incoming.frame(self.to_worker.pop(0))

    def read(self, sock: socket.socket) -> Any:
        try:
            return pickle.loads(sock.recv(1 << 20, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return None

    def answer(self, first: int, values: list[Any], end: bool = True) -> None:
        wire.send(self.worker, pickle.dumps((first, end, 5, values), 5))
        self.incoming.readable()

    def ask_limit(self) -> Snapshot:
        self.outgoing.look()
        limit = self.limits.pop()
        self.incoming.limit(limit)
        found = self.incoming.snapshot()
        self.outgoing.limited(limit, found)
        return found

    def close(self) -> None:
        self.outgoing.close()
        self.incoming.close()
        self.near.close()
        self.far.close()
        self.submitter.close()
        self.worker.close()


@pytest.fixture
def lease() -> Iterator[Lease]:
    made = Lease()
    yield made
    made.close()


def journal(lease: Lease, first: int, values: list[Any]) -> None:
    """What a worker notes while it runs a frame."""
    slots = lease.far.slots
    slots[frames.GENERATION] += 1
    slots[frames.FIRST] = first
    data = b"".join(pickle.dumps(value, 5) for value in values)
    lease.far.map[frames.JOURNAL_AT : frames.JOURNAL_AT + len(data)] = data
    slots[frames.COUNT] = len(values)


def noted(page: frames.Page) -> list[Any]:
    import io

    reader = pickle.Unpickler(io.BytesIO(page.map[frames.JOURNAL_AT :]))
    return [reader.load() for _ in range(page.slots[frames.COUNT])]


def test_a_frame_and_its_answer(lease: Lease) -> None:
    assert lease.near.slots[frames.PID] == 77
    lease.submit(1, 3, ship=([], [], None))
    lease.carry()
    assert lease.near.slots[frames.STARTED] == 3
    assert lease.read(lease.worker) == (1, 0, ([], [], None), 1, [(0,), (1,), (2,)])
    lease.answer(-1, ["an item of a stream"], end=False)
    lease.answer(1, ["a", "b", "c"])
    assert lease.read(lease.submitter) == (-1, False, 5, ["an item of a stream"])
    assert lease.read(lease.submitter) == (1, True, 5, ["a", "b", "c"])


def test_one_frame_at_a_time(lease: Lease) -> None:
    lease.submit(1, 1)
    lease.submit(2, 1)
    lease.carry()
    lease.carry()
    assert lease.read(lease.worker)[0] == 1
    assert lease.read(lease.worker) is None
    assert lease.near.slots[frames.STARTED] == 1
    assert pickle.loads(lease.outgoing.sock.recv(1000, socket.MSG_PEEK))[0] == 2, "the submitter can take it back"
    lease.answer(1, ["x"])
    lease.carry()
    assert lease.read(lease.worker)[0] == 2


def test_a_large_frame(lease: Lease) -> None:
    data = pickle.dumps((1, 0, None, 1, [bytes(1 << 20)]), 5)
    wire.send(lease.submitter, data)
    lease.carry()
    receiver = wire.Receiver(lease.worker)
    assert bytes(receiver.receive()) == data
    receiver.consumed()
    lease.answer(1, [bytes(1 << 20)])
    assert wire.loads(wire.Receiver(lease.submitter).receive())[3] == [bytes(1 << 20)]


@pytest.mark.parametrize(("limit", "kept"), [(1, 0), (3, 2), (4, 3)])
def test_taken_back_before_it_was_forwarded(lease: Lease, limit: int, kept: int) -> None:
    lease.near.slots[frames.LIMIT] = limit
    lease.submit(1, 3, ship=([(1, "", b"")], [7], {}))
    lease.carry()
    assert lease.near.slots[frames.STARTED] == kept
    if kept:
        assert len(lease.read(lease.worker)[4]) == kept
        return
    assert lease.read(lease.submitter) == (1, True, 0, [])
    assert lease.read(lease.worker) is None
    lease.near.slots[frames.LIMIT] = frames.NO_LIMIT
    lease.submit(1, 1, ship=([(2, "", b"")], [1], {"A": "1"}))
    lease.carry()
    shipped = ([(2, "", b"")], [7, 1], {"A": "1"})
    assert lease.read(lease.worker) == (1, 0, shipped, 1, [(0,)]), "definitions come, whatever became of their calls"


def test_taken_back_while_it_runs_there(lease: Lease) -> None:
    lease.submit(1, 5)
    lease.carry()
    lease.outgoing.look()
    assert not lease.limits
    lease.far.slots[frames.STARTED] = 3
    journal(lease, 1, ["a", "b"])
    lease.near.slots[frames.LIMIT] = 5
    found = lease.ask_limit()
    assert lease.far.slots[frames.LIMIT] == 5
    assert found[:3] == (3, 1, 2)
    assert lease.near.slots[frames.STARTED] == 4, "what is below the limit may begin at any moment"
    assert lease.near.slots[frames.LIMIT_SEEN] == 5
    assert noted(lease.near) == ["a", "b"]
    lease.outgoing.look()
    assert not lease.limits, "it asks once"
    lease.answer(1, ["a", "b", "c", "d"])
    assert lease.read(lease.submitter)[3] == ["a", "b", "c", "d"]


def test_a_limit_that_comes_too_late(lease: Lease) -> None:
    """The frame ends while it is asked about: the next one must not be cut by that, here or there."""
    lease.submit(1, 5)
    lease.carry()
    lease.near.slots[frames.LIMIT] = 3
    lease.outgoing.look()
    lease.answer(1, ["a", "b", "c", "d", "e"])
    lease.near.slots[frames.LIMIT] = frames.NO_LIMIT
    lease.incoming.limit(lease.limits.pop())
    lease.submit(6, 2)
    lease.carry()
    assert lease.far.slots[frames.LIMIT] == frames.NO_LIMIT
    lease.far.slots[frames.STARTED] = 5
    lease.outgoing.limited(3, lease.incoming.snapshot())
    assert lease.near.slots[frames.STARTED] == 7
    assert lease.near.slots[frames.LIMIT_SEEN] == frames.FAR


def test_a_worker_that_was_faster_than_the_limit(lease: Lease) -> None:
    lease.submit(1, 5)
    lease.carry()
    lease.near.slots[frames.LIMIT] = 2
    lease.far.slots[frames.STARTED] = 3
    lease.ask_limit()
    assert lease.near.slots[frames.STARTED] == 5, "nothing of it is taken back"


def test_it_dies_there(lease: Lease) -> None:
    lease.submit(1, 4)
    lease.carry()
    lease.far.slots[frames.STARTED] = 2
    journal(lease, 1, ["a"])
    lease.outgoing.died(lease.incoming.snapshot())
    assert lease.near.slots[frames.STARTED] == 2
    assert noted(lease.near) == ["a"]


def test_the_submitter_is_gone(lease: Lease) -> None:
    lease.submitter.close()
    with pytest.raises(wire.Closed):
        lease.outgoing.readable()


def test_a_submitter_that_does_not_read(lease: Lease) -> None:
    for number in range(3000):
        lease.submit(number + 1, 1)
        lease.carry()
        lease.read(lease.worker)
        lease.answer(number + 1, ["x" * 1000])
    assert lease.outgoing.wants_to_write()
    got = 0
    while (answer := lease.read(lease.submitter)) is not None:
        got += 1
        assert answer[0] == got
        lease.outgoing.flush()
    assert got == 3000
    assert not lease.outgoing.wants_to_write()


def test_a_pipe_goes_along(lease: Lease) -> None:
    lease.submit(1, 1)
    lease.carry()
    lease.read(lease.worker)
    read_fd, write_fd = os.pipe()
    wire.send(lease.worker, pickle.dumps((-1, False, -1, [None]), 5), (write_fd,))
    os.close(write_fd)
    lease.incoming.readable()
    receiver = wire.Receiver(lease.submitter)
    assert wire.loads(receiver.receive(wire.DONTWAIT)) == (-1, False, -1, [None])
    (came,) = receiver.take_fds()
    os.write(came, b"x")
    os.close(came)
    assert (os.read(read_fd, 2), os.read(read_fd, 2)) == (b"x", b""), "nobody else has an end of it"
    os.close(read_fd)


def test_an_actor_that_runs_many_at_a_time_gets_all(lease: Lease) -> None:
    for base in (1, 2, 3):
        lease.submit(base, 1, flags=frames.LOOSE)
    lease.carry()
    assert [lease.read(lease.worker)[0] for _ in range(3)] == [1, 2, 3]
    lease.answer(-2, ["b"])
    assert lease.read(lease.submitter) == (-2, True, 5, ["b"])


def test_a_link_is_taken_out(lease: Lease) -> None:
    links: list[Any] = []
    lease.outgoing.on_link = lambda pid, number, fds: links.append((pid, number, fds))
    with open(os.devnull) as file:
        wire.send(lease.submitter, pickle.dumps((0, frames.LINK, 55, 7, []), 5), (file.fileno(), file.fileno()))
    lease.carry()
    assert lease.read(lease.worker) is None
    ((pid, number, fds),) = links
    assert (pid, number, len(fds)) == (55, 7, 2)
    for fd in fds:
        os.close(fd)


def test_a_limit_for_a_frame_that_waits_still(lease: Lease) -> None:
    """It waits with its gateway for arguments while the submitter takes most of it back: that holds when it goes on."""
    lease.submit(1, 3)
    lease.outgoing.readable()
    (frame,) = lease.to_worker
    lease.near.slots[frames.LIMIT] = 2
    lease.ask_limit()
    assert (lease.near.slots[frames.STARTED], lease.near.slots[frames.LIMIT_SEEN]) == (1, 2)
    lease.incoming.frame(frame)
    assert lease.read(lease.worker)[0] == 1
    assert lease.far.slots[frames.LIMIT] == 2
    lease.answer(1, ["a"])
    assert lease.read(lease.submitter)[0] == 1
    lease.near.slots[frames.LIMIT] = frames.NO_LIMIT
    lease.to_worker.clear()
    lease.submit(4, 2)
    lease.carry()
    assert lease.far.slots[frames.LIMIT] == frames.NO_LIMIT, "it was about the frame before"
