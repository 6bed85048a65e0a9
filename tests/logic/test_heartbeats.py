"""Whom a machine tells how it is: everybody in the end, few at a time, nobody if nothing changes."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dpool._core.logic.heartbeats import AUDIENCE, Heartbeats


def beats(peers: int, here: bytes = b"here") -> Heartbeats:
    made = Heartbeats(here)
    for number in range(peers):
        made.peer_up(b"%d" % number)
    made.check()
    return made


def test_all_at_once_in_a_small_cluster_and_nobody_before_there_is_news() -> None:
    made = beats(AUDIENCE)
    assert made.due() == []
    made.news()
    assert sorted(made.due()) == sorted(b"%d" % number for number in range(AUDIENCE))
    assert made.due() == []


def test_in_turn_in_a_large_one() -> None:
    made = beats(5 * AUDIENCE)
    made.news()
    heard = [made.due() for _ in range(5)]
    assert [len(told) for told in heard] == [AUDIENCE] * 5
    assert len({peer for told in heard for peer in told}) == 5 * AUDIENCE
    assert made.due() == []
    made.news()
    first = made.due()
    made.news()
    assert not set(first) & set(made.due()), "news does not begin again with the first"


def test_machines_do_not_all_tell_the_same_one_at_a_time() -> None:
    heard: dict[bytes, int] = {}
    for number in range(200):
        made = beats(200, b"machine %d" % number)
        made.news()
        for peer in made.due():
            heard[peer] = heard.get(peer, 0) + 1
    assert max(heard.values()) < 2.5 * AUDIENCE


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_peers_come_and_go_and_all_who_stay_hear_the_latest(seed: int) -> None:
    draw = random.Random(seed)
    made = beats(draw.randrange(100))
    up = {b"%d" % number for number in range(len(made._order))}
    owed: set[bytes] = set()
    for number in range(200, 300):
        what = draw.random()
        if what < 0.3:
            made.peer_up(b"%d" % number)
            up.add(b"%d" % number)
        elif what < 0.5 and up:
            gone = draw.choice(sorted(up))
            made.peer_down(gone)
            up.discard(gone)
            owed.discard(gone)
        elif what < 0.7:
            made.news()
            owed = set(up)
        else:
            owed -= set(made.due())
        made.check()
        assert made.owed >= len(owed)
    while told := made.due():
        owed -= set(told)
    assert not owed
