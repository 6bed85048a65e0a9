"""Somebody says about locks and queues what none of ours would: that peer is closed, and nobody else is harmed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import dpool.multiprocessing as mp
from dpool._core import messages as m
from dpool._core.config import PROTOCOL
from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k
from tests.faults.support import DEADLINE_S
from tests.faults.test_store_messages import Guest
from tests.helpers import wait_until

NEW = b"n" * 20
HELLO = m.SyncHello(PROTOCOL, *m.versions(), os.getpid(), [], False)


@contextmanager
def _queue() -> Iterator[Any]:
    """A queue with an item, which must still be there afterwards."""
    one = mp.Queue()
    one.put("item")
    yield one
    assert one.get(timeout=DEADLINE_S) == "item"


def _guest() -> Guest:
    guest = Guest(hello=False)
    guest.say(HELLO)
    assert type(guest.hear()) is m.SyncWelcome
    return guest


def _ask(obj: bytes, op: int, n: int = 0, data: bytes = b"", refs: Any = ()) -> m.SyncAsk:
    return m.SyncAsk(1, obj, op, n, data, list(refs))


WRONG: dict[str, Callable[[bytes], list[Any]]] = {
    "an operation of another kind": lambda obj: [_ask(obj, k.ACQUIRE)],
    "an operation that there is not": lambda obj: [_ask(obj, 99)],
    "a token": lambda obj: [_ask(obj, k.PUT, 0, k.ELSEWHERE + bytes(300))],
    "references that are none": lambda obj: [_ask(obj, k.PUT, 0, b"", [b"short"])],
    "two questions at a time": lambda obj: [_ask(obj, k.JOIN, k.BLOCK), _ask(obj, k.SIZE)],
    "an object that exists": lambda obj: [m.SyncMake(1, obj, s.QUEUE, 0, 0)],
    "a kind that there is not": lambda obj: [m.SyncMake(1, NEW, 99, 0, 0)],
    "a name that is none": lambda obj: [m.SyncMake(1, b"short", s.QUEUE, 0, 0)],
    "a barrier for nobody": lambda obj: [m.SyncMake(1, NEW, s.BARRIER, 0, 0)],
    "a descriptor that is missing": lambda obj: [m.SyncMake(1, NEW, s.DESCRIPTOR, 0, 0)],
    "somebody else's message": lambda obj: [m.Bye()],
    "garbage": lambda obj: [b"\x80garbage"],
}


@pytest.mark.parametrize("what", WRONG)
def test_the_speaker_is_closed(what: str) -> None:
    with _queue() as queue:
        guest = _guest()
        for message in WRONG[what](queue._core.obj):
            guest.say(message)
        while (heard := guest.hear()) is not None:
            assert type(heard) in (m.SyncReply, m.Refused), heard
        guest.sock.close()


def test_another_version_is_closed() -> None:
    with _queue():
        guest = Guest(hello=False)
        guest.say(HELLO._replace(version="0.0"))
        assert guest.is_closed()
        guest.sock.close()


def test_an_answer_that_is_not_read() -> None:
    """The item goes back."""
    with _queue() as queue:
        guest = _guest()
        guest.say(_ask(queue._core.obj, k.GET))
        wait_until(lambda: queue.qsize() == 0, DEADLINE_S, "the item is on its way")
        guest.sock.close()


def test_what_is_not_known() -> None:
    keep = mp.Lock()
    guest = _guest()
    guest.say(_ask(NEW, k.GET, k.BLOCK))
    answer = guest.hear()
    assert (answer.request, answer.status) == (1, k.GONE)
    guest.sock.close()
    del keep
