"""`wait`: until some of many futures are done, at a cost that grows with those that end, not with those that wait.

```
 wait(list) ─► looked at once; callbacks are registered once ─► ready, Unready ─┐
                        ┌── what has ended meanwhile ◄── callbacks              │
 wait(Unready) ─► Tracker ──► ready, Unready ◄──────────────────────────────────┘
```

A loop that takes one after the other, `ready, rest = wait(rest)`, gets as `rest` a list that knows its Tracker. So each
further call deals with the futures that have ended since, and with nothing else but a copy of the list. A list that has
been changed, or used before, is looked at as any other.

Threads: callbacks come from whoever ends a future; `Tracker.ended` is all that they touch.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import deque
from concurrent.futures import _base
from functools import partial
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from dpool._core import storage
from dpool._core.context import here
from dpool._core.future import DONE, PENDING, Future, InStore
from dpool._core.objectref import ObjectRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FIRST_LOOK_S = 0.05
LAST_LOOK_S = 0.5
"""How long to wait for one of many before it is looked whether another has failed: at first, and later."""
LOOK_AT = 8
"""Futures at the front of a list that are looked at before anything is registered: often the first one is done."""


class Unready(list[Any]):
    """What `wait` did not return as ready; a list, and what the next `wait` need not find out again."""

    __slots__ = ("length", "taken", "tracker")

    def __init__(self, items: Iterable[Any], tracker: Tracker | None, taken: int) -> None:
        super().__init__(items)
        self.tracker = tracker
        self.taken = taken
        """Futures that had left the tracker when this was made."""
        self.length = len(self)

    def untouched(self) -> bool:
        """Whether this is what the last `wait` returned."""
        return len(self) == self.length and (self.tracker is None or self.tracker.taken == self.taken)

    def __reduce__(self) -> Any:
        return list, (list(self),)


class Tracker:
    """Futures that are waited for in a loop: which of them have ended."""

    __slots__ = (
        "__weakref__",
        "_callback",
        "_index",
        "_left",
        "_pending",
        "_stuck",
        "done",
        "event",
        "needed",
        "runtime",
    )

    def __init__(self, refs: list[Any]) -> None:
        self._index = {id(one): at for at, one in enumerate(refs)}
        self._left: list[int] = []
        """Places, of the list at the beginning, whose futures have been returned; sorted."""
        self.needed = 0
        self.event = threading.Event()
        self._callback = partial(_ended, ref(self))
        self._pending = {id(one): one for one in refs if isinstance(one, Future) and one._state not in DONE}
        """Those that have our callback and have not been returned."""
        self._stuck = self._own_calls() if here.actor_id else []
        # not asked again: what has ended meanwhile calls us back
        self.done: deque[Any] = deque(one for one in refs if id(one) not in self._pending)
        routes = (future._route for future in self._pending.values())
        self.runtime = next((route.pool.runtime for route in routes if route is not None), None)
        for future in list(self._pending.values()):
            future.add_done_callback(self._callback)

    @property
    def taken(self) -> int:
        """How many have been returned."""
        return len(self._left)

    def _own_calls(self) -> list[Any]:
        """Those that cannot end while this actor waits."""
        routes = ((one, one._route) for one in self._pending.values())
        return [one for one, route in routes if route is not None and route.to_itself and route.blocks(one)]

    def check_wait(self, refs: list[Any], needed: int) -> None:
        """RuntimeError if too few of them can end."""
        if len(refs) - len(self._stuck) < needed:
            self._stuck = self._own_calls()  # some may have ended since
            if len(refs) - len(self._stuck) < needed:
                self._stuck[0]._route.check_wait(self._stuck[0])

    def ended(self, future: Any) -> None:
        """In whatever thread ended it."""
        self.done.append(future)
        if len(self.done) >= self.needed:
            self.event.set()
            if self.runtime is not None:
                self.runtime.poke_reader()  # who waits may have gone back to reading: callbacks run in another thread

    def wait(self, needed: int, timeout: float | None) -> None:
        """Until so many have ended and not been taken."""
        self.needed = needed
        self.event.clear()
        if len(self.done) >= needed or (timeout is not None and timeout <= 0):
            return
        if self.runtime is not None:
            self.runtime.wait_until(self.event.is_set, timeout)
        else:
            self.event.wait(timeout)

    def take(self, refs: list[Any], most: int) -> tuple[list[Any], list[Any]]:
        """Up to `most` that have ended, in their order, and the rest of `refs`."""
        taken = [self.done.popleft() for _ in range(min(most, len(self.done)))]
        for one in taken:
            self._pending.pop(id(one), None)
        places = sorted(self._index[id(one)] for one in taken)
        now = [place - bisect_left(self._left, place) for place in places]
        ready = [refs[at] for at in now]
        rest = refs[:]
        for at in reversed(now):
            del rest[at]
        for place in places:
            insort(self._left, place)
        return ready, Unready(rest, self, self.taken)

    def __del__(self) -> None:
        for future in getattr(self, "_pending", {}).values():
            future._drop_callback(self._callback)


def _ended(tracker: Any, future: Any) -> None:
    """A future has ended; whoever waited may have gone."""
    there = tracker()
    if there is not None:
        there.ended(future)


def check(refs: list[Any]) -> None:
    """TypeError, ValueError for what cannot be waited for."""
    for kind in set(map(type, refs)):
        if not issubclass(kind, (ObjectRef, Future)):
            raise TypeError(f"wait takes ObjectRefs and Futures, not {kind.__name__}")
    if len(set(map(id, refs))) != len(refs):
        raise ValueError("wait takes each reference only once")


def wait_for(refs: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
    """See `dpool.wait`."""
    tracker: Tracker | None = None
    if type(refs) is Unready and refs.untouched():
        tracker = refs.tracker
    else:
        check(refs)
    if not refs:
        return [], []
    if not 1 <= num_returns <= len(refs):
        raise ValueError(f"num_returns must be from 1 to {len(refs)}, the number of references, not {num_returns}")
    if tracker is None:
        if num_returns <= LOOK_AT:
            found = _at_front(refs, num_returns)
            if found is not None:
                return found
        tracker = Tracker(refs)
    if len(tracker.done) < num_returns:
        if timeout is None:
            tracker.check_wait(refs, num_returns)
            _help(tracker, refs, num_returns)
        tracker.wait(num_returns, timeout)
    return tracker.take(refs, num_returns)


def _at_front(refs: list[Any], num_returns: int) -> tuple[list[Any], list[Any]] | None:
    """Without any preparation, if enough of the first ones are done."""
    places = []
    for at, one in enumerate(islice(refs, LOOK_AT)):
        if type(one) is ObjectRef or one._state in DONE:
            places.append(at)
            if len(places) == num_returns:
                break
    else:
        return None
    rest = refs[:]
    for at in reversed(places):
        del rest[at]
    return [refs[at] for at in places], Unready(rest, None, 0)


def _help(tracker: Tracker, refs: list[Any], needed: int) -> None:
    """In a task: run some of those itself that no worker has begun; see `inline`."""
    if not here.holds_cpus:
        return
    for one in list(refs):
        if len(tracker.done) >= needed:
            return
        if isinstance(one, Future) and one._state is PENDING and one._route is not None and one._route.inline:
            one._route.run_here(one)


def wait_unless_one_fails(refs: Sequence[Any], at: int, until: float | None) -> None:
    """Wait until `refs[at]`, a future, is done or it is `until`; raises what one of those behind it has raised, if it
    is not done soon. What is behind it is looked at now and then only, so many that are done soon cost nothing.
    """
    future = refs[at]
    route = future._route
    if until is None and route is not None and route.inline:
        route.run_here(future)
    look_s = FIRST_LOOK_S
    while future._state not in DONE:
        left_s = look_s if until is None else min(look_s, until - monotonic())
        if left_s <= 0:
            return
        try:
            future._await_end(left_s)
        except (_base.TimeoutError, _base.CancelledError):
            for other in islice(refs, at + 1, None):
                if isinstance(other, Future) and other._state in DONE and other._failed():
                    other.result()
        look_s = min(2 * look_s, LAST_LOOK_S)


def fetch_soon(found: list[Any]) -> None:
    """Have the values of these begin to come to this machine, as far as they lie on others."""
    client = storage.connected()
    if client is None or not client.foreign or client.closed:
        return
    handles = [handle for one in found if (handle := _handle_of(one)) is not None]
    try:
        client.fetch_soon(handles)
    except storage.StoreGone:  # whoever asks for one hears of it
        return


def _handle_of(one: Any) -> Any:
    """What holds a value that lies in the store."""
    if type(one) is ObjectRef:
        return one._handle
    stored = one._result
    return stored.handle if type(stored) is InStore else None
