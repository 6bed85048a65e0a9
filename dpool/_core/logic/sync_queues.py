"""The kinds of `sync_kinds.py` that more than one thing is waited for: a queue, and a barrier.

```
 barrier:  FILLING ──last party comes──► (LEADING ──its action is done──►) everybody goes on, FILLING
              └──── abort, a party's death ────► BROKEN ──reset──► FILLING
 queue:    put ─► [items] ─► get           full: putters wait     empty: getters wait     unfinished: joiners wait
```
"""

from __future__ import annotations

from collections import deque
from typing import Any

from dpool._core.logic.sync_kinds import (
    ABORT,
    ACTION,
    BLOCK,
    BROKEN,
    BROKEN_NOW,
    ELSEWHERE,
    GET,
    GONE,
    JOIN,
    LEAD,
    LED,
    NO,
    OK,
    PUT,
    RESET,
    SIZE,
    TASK_DONE,
    TOO_MANY,
    WAIT,
    WAITERS,
    Answer,
    Asked,
    Delivered,
    Drop,
    Hold,
    Item,
    Kind,
    Who,
)

FILLING, LEADING, BROKEN_STATE = "filling", "leading", "broken"


class Arrived(tuple[object, ...]):
    """Not the last party."""


class Completed(tuple[object, ...]):
    """The last party; nobody has an action."""


class CompletedToLead(tuple[object, ...]):
    """The last party, which has an action."""


class ActionDone(tuple[object, ...]):
    """The leader has run it."""


class Broke(tuple[object, ...]):
    """A party died or gave up, the action raised, or `abort`."""


class WasReset(tuple[object, ...]):
    """`reset`."""


BARRIER_MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (FILLING, Arrived): FILLING,
    (FILLING, Completed): FILLING,
    (FILLING, CompletedToLead): LEADING,
    (FILLING, Broke): BROKEN_STATE,
    (FILLING, WasReset): FILLING,
    (LEADING, Arrived): LEADING,
    (LEADING, ActionDone): FILLING,
    (LEADING, Broke): BROKEN_STATE,
    (LEADING, WasReset): FILLING,
    (BROKEN_STATE, Broke): BROKEN_STATE,
    (BROKEN_STATE, WasReset): FILLING,
}


class Barrier(Kind):
    """`waiting` are the parties that have come; while the last of them runs the action, `early` are those of the next
    turn.
    """

    __slots__ = ("early", "leader", "parties", "state")

    def __init__(self, obj: bytes, out: Any, given: Any, parties: int) -> None:
        super().__init__(obj, out, given)
        self.parties = parties
        self.state = FILLING
        self.early: deque[Asked] = deque()
        self.leader: Who = 0

    def _move(self, cause: type[tuple[object, ...]]) -> None:
        self.state = BARRIER_MOVES[self.state, cause]

    def ask(self, asked: Asked, op: int) -> bool:
        if op == WAIT:
            self._arrive(asked)
        elif op == LED:
            self._led(asked)
        elif op == ABORT:
            self._break()
            self.answer(asked, OK)
        elif op == RESET:
            self._dismiss()
            self._move(WasReset)
            self.answer(asked, OK)
        elif op == WAITERS:
            self.answer(asked, OK, len(self.waiting) + len(self.early))
        elif op == BROKEN_NOW:
            self.answer(asked, OK, int(self.state == BROKEN_STATE))
        else:
            return False
        return True

    def _arrive(self, asked: Asked) -> None:
        if self.state == BROKEN_STATE:
            self.answer(asked, BROKEN)
        elif self.state == LEADING:
            self._move(Arrived)
            self.early.append(asked)
        elif len(self.waiting) + 1 < self.parties:
            self._move(Arrived)
            self.waiting.append(asked)
        elif asked.n & ACTION:
            self._move(CompletedToLead)
            self.leader = asked.who
            self.answer(asked, LEAD)
        else:
            self._move(Completed)
            self._go_on()
            self.answer(asked, OK, self.parties - 1)

    def _go_on(self) -> None:
        for index, one in enumerate(self.waiting):
            self.answer(one, OK, index)
        self.waiting.clear()

    def _led(self, asked: Asked) -> None:
        if self.leader != asked.who:  # it was broken or reset meanwhile
            self.answer(asked, BROKEN)
            return
        self._move(ActionDone)
        self.leader = 0
        self._go_on()
        self.answer(asked, OK, self.parties - 1)
        early, self.early = self.early, deque()
        for one in early:
            self._arrive(one)

    def _dismiss(self) -> None:
        for one in (*self.waiting, *self.early):
            self.answer(one, BROKEN)
        self.waiting.clear()
        self.early.clear()
        self.leader = 0

    def _break(self) -> None:
        self._dismiss()
        self._move(Broke)

    def withdraw(self, who: Who) -> Asked | None:
        found = super().withdraw(who)
        if found is None:
            found = next((one for one in self.early if one.who == who), None)
            if found is not None:
                self.early.remove(found)
        return found

    def left(self, who: Who) -> None:
        if self.withdraw(who) is not None or self.leader == who:
            self._break()

    def close(self) -> None:
        super().close()
        for asked in self.early:
            self.answer(asked, GONE)
        self.early.clear()

    def check(self) -> None:
        super().check()
        assert len(self.waiting) < self.parties
        assert (self.state == LEADING) == bool(self.leader)
        assert not self.early or self.state == LEADING
        assert not self.waiting or self.state != BROKEN_STATE


class Queue(Kind):
    """`waiting` are getters."""

    __slots__ = ("items", "joiners", "maxsize", "putters", "unfinished")

    def __init__(self, obj: bytes, out: Any, given: Any, maxsize: int) -> None:
        super().__init__(obj, out, given)
        self.maxsize = maxsize
        self.items: deque[Item] = deque()
        self.putters: deque[Asked] = deque()
        self.joiners: deque[Asked] = deque()
        self.unfinished = 0

    def ask(self, asked: Asked, op: int) -> bool:
        if op == PUT:
            self._put(asked)
        elif op == GET:
            self._get(asked)
        elif op == SIZE:
            self.answer(asked, OK, len(self.items))
        elif op == TASK_DONE:
            self._task_done(asked)
        elif op == JOIN:
            if self.unfinished:
                self.joiners.append(asked)
            else:
                self.answer(asked, OK)
        else:
            return False
        return True

    def _put(self, asked: Asked) -> None:
        if not self.maxsize or len(self.items) < self.maxsize:
            self._accept(asked)
        elif asked.n & BLOCK:
            self.putters.append(asked)
        else:
            self.answer(asked, NO)

    def _accept(self, asked: Asked) -> None:
        self.unfinished += 1
        if asked.item.refs:
            self.out.append(Hold(asked.item.refs))
        self.answer(asked, OK)
        if self.waiting:
            self._hand(self.waiting.popleft(), asked.item)
        else:
            self.items.append(asked.item)

    def _get(self, asked: Asked) -> None:
        if self.items:
            self._hand(asked, self.items.popleft())
            self._admit()
        elif asked.n & BLOCK:
            self.waiting.append(asked)
        else:
            self.answer(asked, NO)

    def _admit(self) -> None:
        while self.putters and len(self.items) < self.maxsize:
            self._accept(self.putters.popleft())

    def _hand(self, asked: Asked, item: Item) -> None:
        self.given[asked.who] = (self, item)
        self.out.append(Answer(asked.who, asked.request, OK, 0, item.data, item.refs))

    def _task_done(self, asked: Asked) -> None:
        if not self.unfinished:
            self.answer(asked, TOO_MANY)
            return
        self.unfinished -= 1
        self.answer(asked, OK)
        if not self.unfinished:
            for one in self.joiners:
                self.answer(one, OK)
            self.joiners.clear()

    def withdraw(self, who: Who) -> Asked | None:
        for queue in (self.waiting, self.putters, self.joiners):
            found = next((one for one in queue if one.who == who), None)
            if found is not None:
                queue.remove(found)
                return found
        return None

    def undo(self, who: Who, gave: Any) -> None:
        """The item is the first again."""
        if self.waiting:
            self._hand(self.waiting.popleft(), gave)
        else:
            self.items.appendleft(gave)

    def settled(self, gave: Any) -> None:
        if gave.refs:
            self.out.append(Drop(gave.refs))
        if gave.data[:1] == ELSEWHERE:
            self.out.append(Delivered(gave.data))

    def close(self) -> None:
        super().close()
        for asked in (*self.putters, *self.joiners):
            self.answer(asked, GONE)
        self.putters.clear()
        self.joiners.clear()
        for item in self.items:
            self.settled(item)
        self.items.clear()

    def check(self) -> None:
        super().check()
        assert not (self.items and self.waiting)
        assert not self.putters or len(self.items) >= self.maxsize
        assert not self.joiners or self.unfinished
