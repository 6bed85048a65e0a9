"""What the gateway says to its store and to other gateways about references, message by message."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dpool._core import ids
from dpool._core import messages as m
from dpool._core import peer_messages as pm
from dpool._core.gateway_objects import Objects, Steps
from dpool._core.net import Greeting

SESSION, OTHER = "/tmp/dpool-0-0123456789ab", "/tmp/dpool-0-ba9876543210"
PEER = b"the other gateway"
THEIRS = ids.tag_of(OTHER) + b"o" * 14
OURS = ids.tag_of(SESSION) + b"o" * 14
SUBMITTER = 4711


class Gateway:
    """As much of one as Objects touches; everything that is said lies in `said`, in order."""

    host = "here"

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.peers = {PEER: object()}

    def _on(self, fd: int, handler: Callable[[int], None]) -> None:
        """Nothing becomes readable here."""

    def _off(self, fd: int) -> None:
        """As above."""

    def _say_if_up(self, peer: bytes, message: Any, frame: Any = None) -> None:
        assert peer == PEER
        self.said.append(message)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    gateway: Any = Gateway()
    made = Objects(gateway, SESSION, lambda *event, **fields: None)
    monkeypatch.setattr(made, "_say", gateway.said.append)
    made.peer_up(PEER, Greeting(PEER, "", "there", "1", "3", {"tag": ids.tag_of(OTHER)}))
    yield made
    made.borrowing.check()
    made.close()


def taken(objects: Objects) -> list[Any]:
    """What has been said since the last time."""
    said = objects._gateway.said  # type: ignore[attr-defined]
    found = list(said)
    said.clear()
    return found


def lease() -> Any:
    return SimpleNamespace(steps=Steps(), pid=SUBMITTER, peer=PEER)


def test_the_submitter_is_counted_before_it_is_told(objects: Objects) -> None:
    told: list[str] = []
    abroad = lease()
    objects.results_came(abroad, [THEIRS], lambda: told.append("result"))
    objects.results_came(abroad, [], lambda: told.append("the next one"))
    assert taken(objects) == [m.StoreHold([THEIRS], os.getpid()), pm.BorrowAsked([THEIRS])]
    assert not told, "the home does not know yet"
    objects.borrow_told(PEER, pm.BorrowTold([THEIRS], []))
    assert told == ["result", "the next one"]
    assert taken(objects) == [m.StoreHold([THEIRS], SUBMITTER), m.StoreRelease([THEIRS]), pm.RefsTaken([THEIRS])]


def test_what_comes_home_is_asked_of_nobody(objects: Objects) -> None:
    told: list[str] = []
    objects.results_came(lease(), [OURS], lambda: told.append("result"))
    assert told == ["result"]
    assert not [message for message in taken(objects) if isinstance(message, pm.BorrowAsked)]


def test_news_of_the_end_that_crossed_with_a_new_hold(objects: Objects) -> None:
    """The node said that nobody holds it before it had read that we do."""
    abroad = lease()
    objects.results_came(abroad, [THEIRS], lambda: None)
    objects.borrow_told(PEER, pm.BorrowTold([THEIRS], []))
    objects.results_came(abroad, [THEIRS], lambda: None)  # borrowed already; by now four holds have been said
    taken(objects)
    objects.freed(m.ObjectsFreed([THEIRS], 2), [])
    assert not taken(objects), "it had read two of them: the submitter has it again since"
    objects.freed(m.ObjectsFreed([THEIRS], 4), [])
    assert taken(objects) == [pm.BorrowEnded([THEIRS])]
    assert THEIRS not in objects.borrowing.objects


def test_a_home_that_is_gone_before_it_answered(objects: Objects) -> None:
    told: list[str] = []
    objects.results_came(lease(), [THEIRS], lambda: told.append("result"))
    objects.peer_down(PEER, "there", "the connection broke")
    assert told == ["result"], "whoever opens it is told"
    assert "there" in objects.why_away(THEIRS)
    assert "the connection broke" in objects.why_away(THEIRS)
    why: list[str] = []
    objects._gateway.peers.clear()
    objects.transfers.fetch(THEIRS, why.append)
    assert why == [objects.why_away(THEIRS)]


def test_what_another_machine_had_is_let_go_with_it(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_channel", SimpleNamespace(fileno=lambda: -1, close=lambda: None))
    guest: Any = SimpleNamespace(peer=PEER, told=0)
    objects._keep(guest.peer, [OURS, OURS])
    objects.borrow_asked(PEER, pm.BorrowAsked([OURS]))
    taken(objects)
    objects.peer_down(PEER, "there", "gone")
    assert taken(objects) == [m.StoreRelease([OURS, OURS]), m.StorePeerGone(1)]
    assert not objects.is_lent(OURS, PEER)


def test_steps_are_done_in_order() -> None:
    done: list[int] = []
    steps = Steps()
    first = steps.add(lambda: done.append(1), ready=False)
    steps.add(lambda: done.append(2))
    third = steps.add(lambda: done.append(3), ready=False)
    assert not done
    steps.now(third)
    steps.now(first)
    assert done == [1, 2, 3]
