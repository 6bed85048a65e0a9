"""Sealed records: what is sent comes, in order and once; whatever else comes ends the connection."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from dpool._core import sealed
from dpool._core.sealed import LIMIT, SUBMITTER, WORKER, Broken, Records
from tests.helpers import wait_until

DEADLINE_S = 60.0
KEY = bytes(range(32))


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    for sock in (ours, theirs):
        sealed.prepare(sock)
    return ours, theirs


@pytest.fixture
def ends() -> Iterator[tuple[Records, Records]]:
    ours, theirs = connection()
    made = Records(ours, KEY, SUBMITTER), Records(theirs, KEY, WORKER)
    yield made
    for end in made:
        end.close()


def next_of(end: Records) -> tuple[bytes, bool]:
    found: list[tuple[bytes, bool]] = []

    def came() -> bool:
        one = end.receive()
        found.extend([] if one is None else [one])
        return bool(found)

    wait_until(came, DEADLINE_S)
    return found[0]


def test_both_ways_and_marks(ends: tuple[Records, Records]) -> None:
    submitter, worker = ends
    assert worker.receive() is None
    submitter.send(b"a task", False)
    submitter.send(b"another", True)
    assert [next_of(worker), next_of(worker)] == [(b"a task", False), (b"another", True)]
    worker.send_all(b"", False)
    worker.send_all(b"a result", True)
    assert [next_of(submitter), next_of(submitter)] == [(b"", False), (b"a result", True)]


def test_large_frames_wait_for_the_reader(ends: tuple[Records, Records]) -> None:
    submitter, worker = ends
    large = os.urandom(LIMIT)
    for _ in range(8):
        submitter.send(large, False)
    assert not submitter.flush(), "eight million bytes are more than the kernel takes"
    got: list[bytes] = []

    def pumped() -> bool:
        submitter.flush()
        one = worker.receive()
        got.extend([] if one is None else [one[0]])
        return len(got) == 8

    wait_until(pumped, DEADLINE_S)
    assert got == [large] * 8
    sender = threading.Thread(target=worker.send_all, args=(large, True))
    sender.start()
    assert next_of(submitter) == (large, True)
    sender.join()


def test_nothing_is_readable_on_the_line(ends: tuple[Records, Records]) -> None:
    submitter, worker = ends
    submitter.send(b"a secret that would stand out", False)
    submitter.send(b"a secret that would stand out", False)
    seen = worker.sock.recv(1 << 16)
    assert b"secret" not in seen
    assert seen[: len(seen) // 2] != seen[len(seen) // 2 :], "the same frame looks different each time"


def raw(frame: bytes, number: int, mark: bool = False, side: bytes = SUBMITTER, key: bytes = KEY) -> bytes:
    """The bytes of a record, as an end with this key makes them."""
    ours, theirs = connection()
    with theirs:
        end = Records(ours, key, side)
        for _ in range(number):
            end.send(b"before", False)
        end.send(frame, mark)
        theirs.settimeout(DEADLINE_S)
        size = number * (4 + 6 + 16) + 4 + len(frame) + 16
        data = b""
        while len(data) < size:
            data += theirs.recv(size)
        end.close()
    return data[number * (4 + 6 + 16) :]


FIRST = b"first", 0
BAD = {
    "changed": lambda: raw(*FIRST)[:-1] + bytes([raw(*FIRST)[-1] ^ 1]),
    "another length": lambda: (22).to_bytes(4, "little") + raw(*FIRST)[4:] + b"x",
    "a mark that was added": lambda: raw(*FIRST)[:3] + b"\x80" + raw(*FIRST)[4:],
    "another key": lambda: raw(*FIRST, key=bytes(32)),
    "the second one first": lambda: raw(b"second", 1),
    "our own, sent back": lambda: raw(*FIRST, side=WORKER),
    "nonsense": lambda: os.urandom(64),
    "too long": lambda: (LIMIT + 17).to_bytes(4, "little"),
    "too short": lambda: (15).to_bytes(4, "little") + bytes(15),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_was_not_sent_so_breaks_it(kind: str) -> None:
    ours, theirs = connection()
    end = Records(theirs, KEY, WORKER)
    with ours:
        ours.sendall(BAD[kind]())
        with pytest.raises(Broken, match="record"):
            next_of(end)
    end.close()


def test_a_record_that_is_sent_twice(ends: tuple[Records, Records]) -> None:
    submitter, worker = ends
    record = raw(*FIRST)
    submitter.sock.sendall(record + record)
    assert next_of(worker) == (b"first", False)
    with pytest.raises(Broken, match="not the next one"):
        next_of(worker)


def test_the_end(ends: tuple[Records, Records]) -> None:
    submitter, worker = ends
    submitter.send(b"the last", False)
    submitter.close()
    assert next_of(worker) == (b"the last", False)
    with pytest.raises(Broken, match="closed"):
        next_of(worker)

    def refused() -> bool:
        try:
            worker.send_all(bytes(1000), False)
        except Broken:
            return True
        return False

    wait_until(refused, DEADLINE_S)
