"""The machine of locks and queues, case by case: who is served, in which order, and what is told to whom."""

from __future__ import annotations

import pytest

from dpool._core.logic import IllegalMove
from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k
from dpool._core.logic.sync_kinds import Answer, Drop, Hold, Mark, Probe

OBJ = b"object"


def _sync(kind: int, value: int = 0, bound: int = 0, slot: int = 0) -> s.Sync:
    sync = s.Sync()
    sync.handle(s.Make(OBJ, kind, slot, value, bound))
    return sync


def _ask(sync: s.Sync, who: int, op: int, n: int = 0, data: bytes = b"", refs: tuple[bytes, ...] = ()) -> list[object]:
    out = sync.handle(s.Ask(who, 100 + who, who, OBJ, op, n, data, refs))
    sync.check()
    return list(out)


def test_a_permit_that_nobody_read_goes_to_the_next() -> None:
    sync = _sync(s.SEMAPHORE, 1)
    assert _ask(sync, 1, k.ACQUIRE, k.BLOCK) == [Answer(1, 1, k.OK)]
    assert _ask(sync, 2, k.ACQUIRE, k.BLOCK) == []
    assert sync.handle(s.Closed(1, True)) == [Answer(2, 2, k.OK)]
    assert sync.handle(s.Closed(2, False)) == []
    assert _ask(sync, 3, k.ACQUIRE) == [Answer(3, 3, k.NO)]


def test_the_next_owner_hears_of_the_death() -> None:
    sync = _sync(s.SEMAPHORE, 1)
    _ask(sync, 1, k.ACQUIRE, k.BLOCK | k.SCOPED)
    _ask(sync, 2, k.ACQUIRE, k.BLOCK)
    sync.handle(s.Closed(1, False))
    assert sync.handle(s.Died(101)) == [Answer(2, 2, k.OK, 101)]


def test_a_withdrawn_question_is_answered_once() -> None:
    sync = _sync(s.QUEUE)
    _ask(sync, 1, k.GET, k.BLOCK)
    assert sync.handle(s.Withdraw(1, 1)) == [Answer(1, 1, k.WITHDRAWN)]
    assert sync.handle(s.Withdraw(1, 1)) == []
    _ask(sync, 1, k.GET, k.BLOCK)
    assert _ask(sync, 2, k.PUT, 0, b"item") == [Answer(2, 2, k.OK), Answer(1, 1, k.OK, 0, b"item")]
    assert sync.handle(s.Withdraw(1, 1)) == []
    with pytest.raises(IllegalMove):
        _ask(sync, 3, k.ACQUIRE)


def test_an_item_is_held_until_its_receiver_holds_what_is_in_it() -> None:
    sync = _sync(s.QUEUE)
    assert _ask(sync, 1, k.PUT, 0, b"item", (b"ref",)) == [Hold((b"ref",)), Answer(1, 1, k.OK)]
    assert _ask(sync, 2, k.GET) == [Answer(2, 2, k.OK, 0, b"item", (b"ref",))]
    assert sync.handle(s.Return(2)) == []
    assert _ask(sync, 3, k.GET) == [Answer(3, 3, k.OK, 0, b"item", (b"ref",))]
    assert _ask(sync, 3, k.TAKEN) == [Drop((b"ref",))]
    _ask(sync, 1, k.PUT, 0, b"item", (b"ref",))
    assert sync.handle(s.Free(OBJ)) == [Drop((b"ref",))]
    assert _ask(sync, 1, k.GET) == [Answer(1, 1, k.GONE)]


def test_whether_an_event_is_set() -> None:
    sync = _sync(s.EVENT, slot=3)
    assert _ask(sync, 1, k.VALUE) == [Answer(1, 1, k.OK, 0)]
    assert _ask(sync, 2, k.SET) == [Mark(3, k.FLAG, 1), Answer(2, 2, k.OK)]
    assert _ask(sync, 1, k.VALUE) == [Answer(1, 1, k.OK, 1)]


def test_putters_wait_for_room() -> None:
    sync = _sync(s.QUEUE, 1)
    _ask(sync, 1, k.PUT, k.BLOCK, b"a")
    assert _ask(sync, 2, k.PUT, 0, b"x") == [Answer(2, 2, k.NO)]
    assert _ask(sync, 2, k.PUT, k.BLOCK, b"b") == []
    assert _ask(sync, 3, k.GET) == [Answer(3, 3, k.OK, 0, b"a"), Answer(2, 2, k.OK)]
    assert _ask(sync, 3, k.GET) == [Answer(3, 3, k.OK, 0, b"b")]


def test_a_lock_that_is_taken() -> None:
    sync = _sync(s.MUTEX, slot=7)
    assert _ask(sync, 1, k.LOCK) == [Mark(7, k.WAITING, 1), Probe(OBJ, 7, 1)]
    assert sync.handle(s.Probed(OBJ, False)) == []
    assert _ask(sync, 2, k.UNLOCKED) == [Answer(1, 1, k.OK), Mark(7, k.WAITING, 0), Answer(2, 2, k.OK)]
    assert _ask(sync, 1, k.LOCK, k.FRONT)[0] == Mark(7, k.WAITING, 2), "nobody may overtake it again"
    assert sync.handle(s.Died(3))[-1] == Probe(OBJ, 7, 1)
    assert sync.handle(s.Probed(OBJ, True)) == [Answer(1, 1, k.OK), Mark(7, k.WAITING, 2)]
    assert Mark(7, k.WAITING, 0) in sync.handle(s.Closed(1, False))


def test_a_lock_that_another_process_releases() -> None:
    sync = _sync(s.MUTEX, slot=7)
    assert _ask(sync, 1, k.FORCE) == [Probe(OBJ, 7, 1, 1, 1)]
    assert sync.handle(s.Probed(OBJ, True, 1, 1)) == [Answer(1, 1, k.NOT_HELD)]
    _ask(sync, 1, k.FORCE)
    out = sync.handle(s.Probed(OBJ, False, 1, 1))
    assert Mark(7, k.GENERATION, 2) in out
    assert Answer(1, 1, k.OK) in out
    sync.handle(s.Free(OBJ))
    assert sync.handle(s.Make(OBJ, s.MUTEX, 7))[0] == Mark(7, k.GENERATION, 3), "never the byte of an earlier lock"


def test_a_barrier_with_an_action() -> None:
    sync = _sync(s.BARRIER, 2)
    assert _ask(sync, 1, k.WAIT, k.ACTION) == []
    assert _ask(sync, 2, k.WAIT, k.ACTION) == [Answer(2, 2, k.LEAD)]
    assert _ask(sync, 3, k.WAIT, k.ACTION) == [], "of the next turn"
    assert _ask(sync, 2, k.LED) == [Answer(1, 1, k.OK, 0), Answer(2, 2, k.OK, 1)]
    assert _ask(sync, 1, k.WAITERS) == [Answer(1, 1, k.OK, 1)]
    assert _ask(sync, 1, k.WAIT, k.ACTION) == [Answer(1, 1, k.LEAD)]
    assert sync.handle(s.Closed(1, False)) == [Answer(3, 3, k.BROKEN)]
    assert _ask(sync, 2, k.WAIT) == [Answer(2, 2, k.BROKEN)]


def test_what_cannot_be_made() -> None:
    sync = _sync(s.QUEUE)
    for event in (s.Make(OBJ, s.QUEUE), s.Make(b"b", s.BARRIER), s.Make(b"c", s.SEMAPHORE, 0, -1)):
        with pytest.raises(ValueError):
            sync.handle(event)
    assert len(sync) == 1
