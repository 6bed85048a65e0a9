"""A submitter's end of a direct connection; this test plays the worker, and the gateway aside."""

from __future__ import annotations

import os
import pickle
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from dpool._core import frames, sealed, wire
from dpool._core.direct import LAST_WORDS_S, Direct
from dpool._core.relay import DIED, LIMITED, Snapshot
from tests.core.test_sealed import DEADLINE_S, KEY, connection, next_of
from tests.helpers import wait_until


class Played:
    """The submitter's end, and what is at the other ends of its two ways."""

    def __init__(self) -> None:
        ours, self.gateway = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tcp, far = connection()
        self.worker = sealed.Records(far, KEY, sealed.WORKER)
        fd = frames.make_page()
        self.page = frames.Page(fd)
        os.close(fd)
        self.direct = Direct(ours, tcp, KEY, self.page)
        self.broken: list[bool] = []
        self.direct.on_broken = lambda: self.broken.append(True)

    def submit(self, base: int, calls: int, plain: bool = True, carried: Any = None, ship: Any = None) -> None:
        frame: tuple[Any, ...] = (base, 0, ship, 1, [(i,) for i in range(calls)])
        data = pickle.dumps(frame if carried is None else (*frame, carried), 5)
        self.direct.announce(base, calls, plain and carried is None)
        wire.send(self.direct, data)  # type: ignore[arg-type]

    def run(self) -> Any:
        """The frame that has come directly."""
        return pickle.loads(next_of(self.worker)[0])

    def aside(self) -> Any:
        """What has come to the gateway; None: nothing."""
        try:
            return pickle.loads(self.gateway.recv(1 << 18, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return None

    def answer(self, first: int, values: list[Any], end: bool = True) -> None:
        self.worker.send_all(pickle.dumps((first, end, 5, values), 5), end)

    def answer_aside(self, first: int, values: list[Any], end: bool = True) -> None:
        wire.send(self.gateway, pickle.dumps((first, end, 5, values), 5))

    def say(self, *said: Any) -> None:
        wire.send(self.gateway, pickle.dumps((None, *said), 5))

    def read(self) -> Any:
        """The next answer, as a lane reads it: when the descriptor says so."""
        waiter = select.poll()
        waiter.register(self.direct.fileno(), select.POLLIN)
        answers: list[Any] = []

        def came() -> bool:
            if waiter.poll(0):
                try:
                    answers.append(wire.loads(self.direct.receive(wire.DONTWAIT)))
                except BlockingIOError:
                    return False
                self.direct.consumed()
            return bool(answers)

        wait_until(came, DEADLINE_S, "an answer")
        return answers[0]

    def nothing(self) -> bool:
        """Nothing is to be read now."""
        try:
            self.direct.receive(wire.DONTWAIT)
        except BlockingIOError:
            return True
        return False

    def started(self) -> int:
        return int(self.page.slots[frames.STARTED])

    def close(self) -> None:
        self.direct.close()
        self.worker.close()
        self.gateway.close()
        self.page.close()


@pytest.fixture
def played() -> Iterator[Played]:
    made = Played()
    yield made
    made.close()


def test_one_frame_at_a_time_and_in_order(played: Played) -> None:
    for base in range(1, 4):
        played.submit(base, 1)
    for base in range(1, 4):
        assert played.run()[0] == base
        assert played.worker.receive() is None, "the next one waits for the answer"
        assert played.started() == base
        played.answer(base, ["done"])
        assert played.read() == (base, True, 5, ["done"])
    assert played.aside() is None


def test_parts_of_an_answer(played: Played) -> None:
    played.submit(1, 3)
    played.submit(4, 1)
    played.answer(1, ["a"], end=False)
    played.answer(2, ["b", "c"])
    assert played.read() == (1, False, 5, ["a"])
    assert played.read() == (2, True, 5, ["b", "c"])
    assert [played.run()[0], played.run()[0]] == [1, 4]


def test_what_carries_references_goes_aside(played: Played) -> None:
    carried: Any = ([b"obj"], [], [])
    played.submit(1, 1, carried=carried)
    played.submit(2, 1)
    assert played.aside() == (1, 0, None, 1, [(0,)], carried)
    assert played.worker.receive() is None, "it must not overtake"
    played.answer_aside(1, ["x"])
    assert played.read() == (1, True, 5, ["x"])
    assert played.run()[0] == 2


def test_large_frames_go_aside(played: Played) -> None:
    data = pickle.dumps((1, 0, None, 1, [(bytes(sealed.LIMIT),)]), 5)
    played.direct.announce(1, 1, True)
    wire.send(played.direct, data)  # type: ignore[arg-type]
    receiver = wire.Receiver(played.gateway)
    frame = receiver.receive(wire.DONTWAIT)
    assert bytes(frame) == data
    receiver.consumed()


def test_an_answer_aside_waits_for_what_came_directly(played: Played) -> None:
    played.submit(1, 3)
    played.answer_aside(2, ["kept"])
    assert played.nothing(), "the worker has not said yet that it goes on aside"
    played.answer(1, ["plain"], end=False)
    assert played.read() == (1, False, 5, ["plain"])
    played.worker.send_all(b"", False)
    assert played.read() == (2, True, 5, ["kept"])
    played.submit(4, 1)
    assert [played.run()[0], played.run()[0]] == [1, 4]


def test_what_waits_is_taken_back(played: Played) -> None:
    for base in (1, 2, 3):
        played.submit(base, 1)
    unread: Any = played.direct.unread
    assert wire.loads(unread.receive())[0] == 2
    assert unread.inbox
    played.answer(1, ["done"])
    assert played.read()[0] == 1
    assert played.run()[0] == 1
    assert played.worker.receive() is None, "one is being taken back"
    unread.consumed()
    assert not unread.inbox
    assert played.run()[0] == 3
    with pytest.raises(BlockingIOError):
        unread.receive()


def test_taking_back_what_is_under_way(played: Played) -> None:
    """The worker's gateway is asked; its answer comes before the next frame goes."""
    played.submit(1, 10)
    played.run()
    slots = played.page.slots
    slots[frames.LIMIT] = 4
    played.direct.look()
    limit, flags, *_ = played.aside()
    assert (limit, flags) == (4, frames.ASK)
    played.direct.look()
    assert played.aside() is None, "once is enough"
    played.submit(11, 1)
    snapshot = Snapshot(3, 1, 2, pickle.dumps("a") + pickle.dumps("b"))
    played.say(LIMITED, 4, snapshot)
    assert played.nothing()
    assert (slots[frames.LIMIT_SEEN], slots[frames.STARTED]) == (4, 3)
    assert (slots[frames.FIRST], slots[frames.COUNT]) == (1, 2)
    slots[frames.LIMIT] = frames.NO_LIMIT  # as a lane does when the frame is answered
    played.answer(3, ["c"])
    assert played.read()[0] == 3
    assert played.run()[0] == 11


def test_an_answer_that_crosses_with_the_question(played: Played) -> None:
    played.submit(1, 10)
    played.run()
    played.page.slots[frames.LIMIT] = 4
    played.direct.look()
    played.answer(1, list(range(10)))
    assert played.read()[3] == list(range(10))
    played.page.slots[frames.LIMIT] = frames.NO_LIMIT
    played.submit(11, 1)
    assert played.worker.receive() is None, "the worker's LIMIT may be set at any moment"
    played.say(LIMITED, 4, Snapshot(10, 0, 0, b""))
    assert played.nothing()
    assert played.started() == 11, "what was about another frame is not believed"
    assert played.run()[0] == 11


def test_a_limit_that_came_before_the_frame_went(played: Played) -> None:
    played.page.slots[frames.LIMIT] = 1
    played.submit(1, 2, ship=([(7, "f", b"")], [], None))
    assert played.read() == (1, True, 0, []), "nothing of it was begun"
    played.page.slots[frames.LIMIT] = frames.NO_LIMIT
    played.submit(3, 1)
    assert played.run() == (3, 0, ([(7, "f", b"")], [], None), 1, [(0,)]), "with what the other one would have brought"


def test_the_worker_dies(played: Played) -> None:
    """Its last answer is on its way still when our machine hears of it."""
    played.submit(1, 3)
    played.run()
    assert played.direct.patience_ms() == 0
    played.say(DIED, Snapshot(3, 2, 1, pickle.dumps("noted")))
    assert played.nothing()
    assert 0 < played.direct.patience_ms() <= LAST_WORDS_S * 1000
    played.answer(1, ["sent"], end=False)
    played.worker.close()
    assert played.read() == (1, False, 5, ["sent"])
    wait_until(lambda: played.nothing() and bool(played.direct.broken), DEADLINE_S)
    assert played.direct.patience_ms() == 0
    assert (played.started(), played.page.slots[frames.COUNT]) == (3, 1)


def test_the_connection_breaks(played: Played) -> None:
    played.submit(1, 1)
    played.submit(2, 1)
    played.run()
    played.worker.sock.sendall(os.urandom(100))
    wait_until(lambda: played.nothing() and bool(played.direct.broken), DEADLINE_S)
    assert "record" in played.direct.broken
    assert played.broken == [True]
    assert wire.loads(played.direct.unread.receive())[0] == 2, "what had not gone can be taken back"
    played.direct.unread.consumed()
    played.answer_aside(1, ["it was answered another way"])
    assert played.read()[0] == 1


def test_the_initializer_goes_aside_with_its_descriptors(played: Played) -> None:
    with open(os.devnull, "rb") as file:
        data = pickle.dumps((0, frames.INIT, None, 0, [b""]), 5)
        wire.send(played.direct, data, (file.fileno(),))  # type: ignore[arg-type]
    receiver = wire.Receiver(played.gateway)
    assert wire.loads(receiver.receive(wire.DONTWAIT))[1] == frames.INIT
    assert len(receiver.fds) == 1
    receiver.close_fds()


def test_goodbye_goes_aside(played: Played) -> None:
    wire.send(played.direct, pickle.dumps((1, frames.EXIT, None, 0, []), 5))  # type: ignore[arg-type]
    assert played.aside()[1] == frames.EXIT


def test_a_reader_that_is_slow(played: Played) -> None:
    """More than the connection takes at once: the rest follows when there is room."""
    size = sealed.LIMIT // 2
    data = pickle.dumps((1, 0, None, 1, [(bytes(size),)]), 5)
    played.worker.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    played.direct.announce(1, 1, True)
    wire.send(played.direct, data)  # type: ignore[arg-type]
    got: list[bytes] = []

    def came() -> bool:
        one = played.worker.receive()
        got.extend([] if one is None else [one[0]])
        played.nothing()
        return bool(got)

    wait_until(came, DEADLINE_S)
    assert got == [data]
