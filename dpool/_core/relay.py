"""A worker of another machine, here; and a submitter of another machine, there: the two ends of a remote lease.

```
 machine A                                              machine B
 submitter ══ socket, page ══► Outgoing ── Net ──► Incoming ══ socket, page ══► worker
           ◄═══════════════════         ◄── … ──           ◄══════════════════
```

The submitter takes Outgoing for a worker, the worker takes Incoming for a submitter: neither knows of the other
machine. What Outgoing has forwarded counts as started, so the submitter takes nothing of that back by itself. If it
wants to (LIMIT), Incoming is asked; the answer is a snapshot of the worker's page, which then stands in the
submitter's, marked by LIMIT_SEEN: what has run, what is done and not answered, what was never begun. After a death it
is the same.

One frame is under way at a time, as a worker reads one at a time; the rest stays where the submitter can take it back.
But an actor that runs many calls at a time gets them all.

One thread each, in the gateway's loop; nothing blocks.
"""

from __future__ import annotations

import operator
import os
import pickle
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._core import frames, wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

LIMITED, DIED = "limited", "died"
"""To a submitter with a connection to the worker, in the place of an answer: (None, which, …)."""

_MIRRORED = (frames.STARTED, frames.FIRST, frames.COUNT)


class Snapshot(NamedTuple):
    """What a worker's page said: tasks begun, and the results that it noted and did not send."""

    started: int
    first: int
    noted: int
    journal: bytes


class Outgoing:
    """Stands for a worker of another machine. `forward(frame)` sends a frame there, `ask(limit)` a question.

    Args:
        sock: the worker's end of the socket; None: who has this gives it the frames (`take`).
        page: the page that the submitter sees.
        pid: the worker's, on its own machine.
        forward: sends a frame there, and the fields of the `Carried` that came with it, or None.
        ask_limit: says there that tasks from this number on must not begin; the answer goes to `limited`.
    """

    def __init__(
        self,
        sock: socket.socket | None,
        page: frames.Page,
        pid: int,
        forward: Callable[[bytes, Any], None],
        ask_limit: Callable[[int], None],
    ) -> None:
        self.sock: Any = sock
        self._page = page
        self._forward = forward
        self._ask_limit = ask_limit
        self._receiver: Any = None if sock is None else wire.Receiver(sock)
        self._last = 0
        """The last task of the frame that was forwarded last."""
        self._waits = False
        """That frame is not answered."""
        self._loose = False
        """It is an actor that runs many calls at a time: none is ever taken back."""
        self.on_link: Callable[[int, int, list[int]], None] | None = None
        """It is an actor: what is to be done with a new caller's process id, number, and descriptors."""
        self._outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._asked = frames.NO_LIMIT
        self.aside = False
        """The submitter has a connection to the worker, too, and does itself what is done here with its page."""
        self._ship: Any = None
        self._carried: Any = None
        """What came with frames that were kept back."""
        self._aimed = 0
        """As ASKED, when it was last looked at."""
        slots = page.slots
        slots[frames.LIMIT_SEEN] = frames.FAR
        slots[frames.PID] = pid

    def fileno(self) -> int:
        return int(self.sock.fileno())

    def wants_frames(self) -> bool:
        """Whether the socket is to be read; otherwise frames wait in it, where the submitter can take them back."""
        return self._loose or not self._waits

    def wants_to_write(self) -> bool:
        return bool(self._outbox)

    def readable(self) -> None:
        """Forward what the submitter sent, as much as may be under way.

        Raises:
            wire.Closed: the submitter is gone.
        """
        while self.wants_frames():
            try:
                data = self._receiver.receive(wire.DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            self.take(bytes(data))
            self._receiver.consumed()
            self._receiver.close_fds()

    def goes(self, last: int) -> bool:
        """Whether a frame whose last task is this one can be forwarded as it is; then it is under way."""
        if self._ship is not None or self._carried is not None:
            return False
        self._last = last
        self._waits = True
        return True

    def take(self, data: bytes) -> None:
        """Forward a frame, or as much of it as the submitter does not want back."""
        base, flags, ship, numbers, calls, *carried = wire.loads(data)
        self._loose = self._loose or bool(flags & frames.LOOSE)
        if flags & frames.LINK and self.on_link is not None:
            self.on_link(ship, numbers, self._receiver.take_fds())
            return
        if flags & frames.ASK:
            self._ask_limit(base)
            return
        if not calls:
            self._forward(data, None)
            return
        slots = self._page.slots
        last = base + len(calls) - 1
        slots[frames.STARTED] = last  # before LIMIT is looked at, as a worker does
        kept = max(0, min(len(calls), slots[frames.LIMIT] - base))
        if kept < len(calls):
            last = slots[frames.STARTED] = base + kept - 1
            slots[frames.LIMIT_SEEN] = base + kept
        if carried and carried[0] is not None:
            self._carried = carried[0] if self._carried is None else tuple(map(operator.add, self._carried, carried[0]))
        if not kept:
            self._kept_back(ship)
            self._answer(pickle.dumps((base, True, 0, []), 5))
            return
        if kept < len(calls) or self._ship is not None:
            self._kept_back(ship)
            ship, self._ship = self._ship, None
            numbers = numbers if type(numbers) is int else numbers[:kept]
            data = pickle.dumps((base, flags, ship, numbers, calls[:kept]), 5)
        elif carried:
            data = pickle.dumps((base, flags, ship, numbers, calls), 5)
        self._last = last
        self._waits = True
        carrying, self._carried = self._carried, None
        self._forward(data, carrying)

    def _kept_back(self, ship: Any) -> None:
        """Definitions whose calls were taken back: they travel with the next frame, for the submitter thinks that the
        worker has them.
        """
        if ship is None:
            return
        items, forget, environ = self._ship or ([], [], None)
        items = [item for item in items if item[0] not in ship[1]] + ship[0]
        self._ship = (items, forget + ship[1], environ if ship[2] is None else {**(environ or {}), **ship[2]})

    def look(self) -> None:
        """Whether the submitter wants something back; to be called every few milliseconds while `waits`."""
        limit = self._page.slots[frames.LIMIT]
        if self._waits and limit != self._asked and limit <= self._last:
            self._asked = limit
            self._ask_limit(limit)

    def not_asked(self) -> None:
        """`ask_limit` could not ask: the next `look` tries again."""
        self._asked = frames.NO_LIMIT

    def results(self, data: bytes, end: bool, fds: tuple[int, ...] = ()) -> None:
        """A frame of results has come; `end`: of the frame that was forwarded. Its descriptors are ours no longer."""
        if end:
            self.ended()
        self._answer(data, fds)

    def ended(self) -> None:
        """The frame that was forwarded has been answered."""
        self._waits = False
        self._asked = frames.NO_LIMIT

    def own_answer(self) -> bytes | None:
        """Without a socket: the next answer to a frame of which nothing was left."""
        return self._outbox.popleft()[0] if self._outbox else None

    def limited(self, limit: int, snapshot: Snapshot) -> None:
        """The answer to `ask_limit`. What is below the limit stays claimed: it may begin at any moment, and a link that
        goes down tells nothing of that.
        """
        if self.aside:
            self._say(LIMITED, limit, snapshot)
            return
        if not self._waits or limit != self._asked:
            return  # the frame that it is about is answered
        claimed = self._last if snapshot.started >= limit else limit - 1
        self._mirror(snapshot._replace(started=claimed))
        self._page.slots[frames.LIMIT_SEEN] = limit

    def take_aim(self) -> list[tuple[int, int]]:
        """Which tasks the next SIGINT is for, as the submitter has said since the last time: slots and values. CANCELS
        stands for the next of those slots, and counts as ASKED.
        """
        slots = self._page.slots
        asked = slots[frames.ASKED]
        found = [(frames.INTERRUPT, slots[frames.INTERRUPT])]
        for number in range(max(self._aimed, asked - frames.MOST_CANCELS), asked):
            found.append((frames.CANCELS, slots[frames.CANCELS + number % frames.MOST_CANCELS]))
        self._aimed = asked
        return found

    def died(self, snapshot: Snapshot) -> None:
        """The worker is dead; after this its death can be told to the submitter."""
        if self.aside:
            self._say(DIED, snapshot)
        else:
            self._mirror(snapshot)

    def _say(self, *said: Any) -> None:
        """To a submitter that sees to its page itself. If it is gone, that is noticed where it is read from."""
        try:
            self._answer(pickle.dumps((None, *said), 5))
        except OSError:
            return

    def _mirror(self, snapshot: Snapshot) -> None:
        page = self._page
        page.slots[frames.COUNT] = 0
        page.slots[frames.GENERATION] += 1
        page.map[frames.JOURNAL_AT : frames.JOURNAL_AT + len(snapshot.journal)] = snapshot.journal
        page.slots[frames.FIRST] = snapshot.first
        page.slots[frames.COUNT] = snapshot.noted
        page.slots[frames.STARTED] = snapshot.started

    def _answer(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        self._outbox.append((data, fds))
        if self.sock is not None:
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the submitter takes it."""
        while self._outbox:
            data, fds = self._outbox[0]
            try:
                wire.send(self.sock, data, fds)
            except BlockingIOError:
                return
            _drop_first(self._outbox)

    def close(self) -> None:
        while self._outbox:
            _drop_first(self._outbox)
        self.sock.close()
        self._page.close()


class Incoming:
    """Stands for a submitter of another machine.

    Args:
        sock: the submitter's end of the socket.
        page: the worker's.
        back: sends a frame of results back; the descriptors (of a generator's pipe) that came with it are its own.
    """

    def __init__(self, sock: socket.socket, page: frames.Page, back: Callable[[bytes, list[int]], None]) -> None:
        self.sock = sock
        self._page = page
        self.back = back
        self._receiver = wire.Receiver(sock)
        self._outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._limited = False
        """A LIMIT stands in the page."""

    def fileno(self) -> int:
        return self.sock.fileno()

    def wants_to_write(self) -> bool:
        return bool(self._outbox)

    def frame(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """A frame of tasks has come. The one before is done with, and so is a LIMIT that came too late for it; but one
        for this frame, which may have waited here for its arguments, holds. The descriptors that go along are ours no
        longer.
        """
        if self._limited and self._page.slots[frames.LIMIT] < wire.loads(data)[0]:
            self._limited = False
            self._page.slots[frames.LIMIT] = frames.NO_LIMIT
        self._outbox.append((data, fds))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the worker takes it. A worker that is gone is told of by its node."""
        while self._outbox:
            data, fds = self._outbox[0]
            try:
                wire.send(self.sock, data, fds)
            except BlockingIOError:
                return
            except OSError:
                self._drop_outbox()
                return
            _drop_first(self._outbox)

    def _drop_outbox(self) -> None:
        while self._outbox:
            _drop_first(self._outbox)

    def readable(self) -> None:
        """Send back what the worker answered."""
        while True:
            try:
                data = bytes(self._receiver.receive(wire.DONTWAIT))
            except (BlockingIOError, InterruptedError, wire.Closed, ConnectionError):
                return
            self._receiver.consumed()
            self.back(data, self._receiver.take_fds())

    def limit(self, limit: int) -> None:
        """Tasks from this number on must not begin. What came of it is in the `snapshot` a millisecond later."""
        self._limited = True
        self._page.slots[frames.LIMIT] = limit

    def far(self) -> bool:
        """Whether the worker is on another machine, too."""
        return bool(self._page.slots[frames.LIMIT_SEEN] != frames.AT_ONCE)

    def limited(self, limit: int) -> bool:
        """Whether what the page says takes that limit into account."""
        return self._page.slots[frames.LIMIT_SEEN] in (frames.AT_ONCE, limit)

    def new_lease(self) -> None:
        """Another submitter has the worker now: what the page says is not about its tasks."""
        slots = self._page.slots
        slots[frames.LIMIT] = frames.NO_LIMIT
        slots[frames.STARTED] = slots[frames.COUNT] = slots[frames.INTERRUPT] = 0
        for slot in range(frames.CANCELS, frames.SLOTS):
            slots[slot] = 0

    def aim(self, slot: int, value: int) -> None:
        """Say which task the next signal is for: what `Outgoing.take_aim` found."""
        slots = self._page.slots
        if slot == frames.CANCELS:
            slots[slot + slots[frames.ASKED] % frames.MOST_CANCELS] = value
            slots[frames.ASKED] += 1
        else:
            slots[slot] = value

    def snapshot(self) -> Snapshot:
        """What the page says now; consistent, though the worker may be writing."""
        slots = self._page.slots
        while True:
            generation = slots[frames.GENERATION]
            started, first, noted = (slots[slot] for slot in _MIRRORED)
            journal = bytes(self._page.map[frames.JOURNAL_AT :]) if noted else b""
            if slots[frames.GENERATION] == generation:
                return Snapshot(started, first, noted, journal)

    def close(self) -> None:
        self._drop_outbox()
        self.sock.close()
        self._page.close()


def _drop_first(outbox: deque[tuple[bytes, tuple[int, ...]]]) -> None:
    """It has been sent, or will not be."""
    for fd in outbox.popleft()[1]:
        os.close(fd)
