"""The lineage stash: records of dispatched tasks that are not durable yet, and of durable ones that are still needed.

```
 Remember ─► YOUNG ── WriteBatch ──► IN_FLIGHT ── Committed ──► COMMITTED
               │                      │    ▲ Lost: written again   │
           Delivered              Delivered                     Delivered
               ▼                      ▼                            ▼
           forgotten               DOOMED ───── Committed ──────► DEAD ── DropTasks ──► forgotten
       (never written:
        it died young)
```

Records are flushed when one is `flush_s` old (whatever is at least half as old goes with it) or when `batch_records`
are young, but only once everything in flight has been acknowledged; whatever is in flight, at most `max_records` stay
young. So a slow or absent store finds that records stay young longer and more of them die young: its load falls by
itself, and what is remembered stays bounded.

The store's side of the bargain: writing a batch again under its number replaces it, dropping a task it does not have
does nothing. The role says `Lost(batch)` when it can write again, since the batch is written again at once.

One thread. Invariants: a record is in exactly one of young, in flight (in one batch), committed, dead; a task is
dropped only after its batch was acknowledged; at most `max_records` are young; what is doomed keeps no bytes.

Source: Lineage Stash (SOSP 2019) §3-4; DESIGN §5.
"""

from __future__ import annotations

from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic import IllegalMove

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FLUSH_S = 0.010
BATCH_RECORDS = 256
MAX_RECORDS = 4096


class Remember(NamedTuple):
    """Tasks have been dispatched: (task, record) each. A task that is remembered already keeps its first record."""

    now_s: float
    records: Sequence[tuple[int, bytes]]


class Delivered(NamedTuple):
    """Nobody needs their records: their outputs have been delivered, or their client has left. Unknown ones pass."""

    now_s: float
    tasks: Sequence[int]


class Tick(NamedTuple):
    """It is `now_s`."""

    now_s: float


class Committed(NamedTuple):
    """The store has the batch. May be said twice."""

    batch: int


class Lost(NamedTuple):
    """The store may or may not have the batch; it can be written again now."""

    batch: int


Event = Remember | Delivered | Tick | Committed | Lost


class WriteBatch(NamedTuple):
    """Store `records` as batch number `batch`, in the place of what it held; answer with `Committed` or `Lost`."""

    batch: int
    records: tuple[tuple[int, bytes], ...]


class DropTasks(NamedTuple):
    """Delete the records of these tasks; no answer."""

    tasks: tuple[int, ...]


class WakeAt(NamedTuple):
    """Give a `Tick` at or after this time."""

    at_s: float


Instruction = WriteBatch | DropTasks | WakeAt

ABSENT = "absent"
YOUNG = "young"
IN_FLIGHT = "in flight"
DOOMED = "doomed"
COMMITTED = "committed"
DEAD = "dead"

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, Remember): YOUNG,
    (YOUNG, WriteBatch): IN_FLIGHT,
    (IN_FLIGHT, Committed): COMMITTED,
    (IN_FLIGHT, Lost): IN_FLIGHT,
    (YOUNG, Delivered): ABSENT,
    (IN_FLIGHT, Delivered): DOOMED,
    (COMMITTED, Delivered): DEAD,
    (DOOMED, Committed): DEAD,
    (DOOMED, Lost): DOOMED,
    (DEAD, DropTasks): ABSENT,
    # Said again: a retried task, a repeated answer.
    (YOUNG, Remember): YOUNG,
    (IN_FLIGHT, Remember): IN_FLIGHT,
    (DOOMED, Remember): DOOMED,
    (COMMITTED, Remember): COMMITTED,
    (DEAD, Remember): DEAD,
    (ABSENT, Delivered): ABSENT,
    (DOOMED, Delivered): DOOMED,
    (DEAD, Delivered): DEAD,
}


class LineageStash:
    """Records on their way to the store, or not; see the module.

    Args:
        flush_s: how long a record may stay young, in seconds.
        batch_records: records per batch, at most.
        max_records: young records, at most.
    """

    def __init__(
        self, flush_s: float = FLUSH_S, batch_records: int = BATCH_RECORDS, max_records: int = MAX_RECORDS
    ) -> None:
        if not (flush_s > 0 and 1 <= batch_records <= max_records):
            limits = f"{flush_s=}, {batch_records=}, {max_records=}"
            raise ValueError(f"need flush_s > 0 and 1 <= batch_records <= max_records, not {limits}")
        self.flush_s = flush_s
        self.batch_records = batch_records
        self.max_records = max_records
        self._young: dict[int, tuple[float, bytes]] = {}  # task -> (when remembered, record), oldest first
        self._batches: dict[int, dict[int, bytes | None]] = {}  # in flight: batch -> task -> record, None: doomed
        self._in_flight: dict[int, int] = {}  # task -> batch
        self._committed: set[int] = set()
        self._dead: dict[int, None] = {}
        self._next_batch = 1
        self._now_s = 0.0
        self._wake_at_s: float | None = None

    def state(self, task: int) -> str:
        """The state of one task's record."""
        if task in self._young:
            return YOUNG
        if task in self._in_flight:
            return IN_FLIGHT if self._batches[self._in_flight[task]][task] is not None else DOOMED
        return COMMITTED if task in self._committed else DEAD if task in self._dead else ABSENT

    def __len__(self) -> int:
        """How many records it knows of."""
        return len(self._young) + len(self._in_flight) + len(self._committed) + len(self._dead)

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; IllegalMove (nothing changed) for an answer to a batch that was never written."""
        out: list[Instruction] = []
        if isinstance(event, Remember):
            self._now_s = event.now_s
            self._remember(event.now_s, event.records)
        elif isinstance(event, Delivered):
            self._now_s = event.now_s
            self._delivered(event.tasks)
        elif isinstance(event, Tick):
            self._now_s = event.now_s
            self._tick(out)
        elif isinstance(event, Committed):
            self._batch_committed(event.batch)
        else:
            self._batch_lost(event.batch, out)
        self._flush_if_full(out)
        self._ask_for_tick(out)
        return out

    def _remember(self, now_s: float, records: Iterable[tuple[int, bytes]]) -> None:
        young = self._young
        for task, record in records:
            if task not in young and not self._is_written(task):
                young[task] = (now_s, record)

    def _is_written(self, task: int) -> bool:
        return task in self._in_flight or task in self._committed or task in self._dead

    def _delivered(self, tasks: Iterable[int]) -> None:
        for task in tasks:
            if self._young.pop(task, None) is not None:
                continue
            batch = self._in_flight.get(task)
            if batch is not None:
                self._batches[batch][task] = None
            elif task in self._committed:
                self._committed.remove(task)
                self._dead[task] = None

    def _tick(self, out: list[Instruction]) -> None:
        if self._wake_at_s is None or self._now_s < self._wake_at_s:
            return
        self._wake_at_s = None
        if not self._batches and self._young and self._oldest_s() + self.flush_s <= self._now_s:
            cut_s = self._now_s - self.flush_s / 2
            self._write(sum(1 for _ in takewhile(lambda young: young[0] <= cut_s, self._young.values())), out)
        self._drop(out)

    def _batch_committed(self, batch: int) -> None:
        self._check_written(batch, Committed)
        for task, record in self._batches.pop(batch, {}).items():
            del self._in_flight[task]
            if record is None:
                self._dead[task] = None
            else:
                self._committed.add(task)

    def _batch_lost(self, batch: int, out: list[Instruction]) -> None:
        self._check_written(batch, Lost)
        if batch in self._batches:
            alive = tuple((task, record) for task, record in self._batches[batch].items() if record is not None)
            out.append(WriteBatch(batch, alive))

    def _check_written(self, batch: int, cause: type[tuple[object, ...]]) -> None:
        if not 0 < batch < self._next_batch:
            raise IllegalMove("unwritten", cause.__name__, f"batch {batch}")

    # -------------------------------------------------------------------------------------------- what goes out when

    def _flush_if_full(self, out: list[Instruction]) -> None:
        if len(self._young) > self.max_records:
            self._write(max(len(self._young) - self.max_records, self.batch_records), out)
        if len(self._young) >= self.batch_records and not self._batches:
            self._write(self.batch_records, out)
        if len(self._dead) >= self.batch_records:
            self._drop(out)

    def _write(self, count: int, out: list[Instruction]) -> None:
        """Write the `count` oldest young records."""
        while count:
            tasks = list(islice(self._young, min(count, self.batch_records)))
            records = {task: self._young.pop(task)[1] for task in tasks}
            batch, self._next_batch = self._next_batch, self._next_batch + 1
            self._batches[batch] = dict(records)
            self._in_flight.update(dict.fromkeys(tasks, batch))
            out.append(WriteBatch(batch, tuple(records.items())))
            count -= len(tasks)

    def _drop(self, out: list[Instruction]) -> None:
        if self._dead:
            out.append(DropTasks(tuple(self._dead)))
            self._dead.clear()

    def _ask_for_tick(self, out: list[Instruction]) -> None:
        """One tick is under way whenever there is something to drop, or to write with nothing in flight."""
        if self._wake_at_s is not None:
            return
        if self._young and not self._batches:
            self._wake_at_s = self._oldest_s() + self.flush_s
        elif self._dead:
            self._wake_at_s = self._now_s + self.flush_s
        else:
            return
        out.append(WakeAt(self._wake_at_s))

    def _oldest_s(self) -> float:
        return next(iter(self._young.values()))[0]

    def check(self) -> None:
        """Validate the invariants of the module."""
        places = [set(self._young), set(self._in_flight), self._committed, set(self._dead)]
        assert len(set().union(*places)) == sum(map(len, places)), "a record is in two places"
        in_batches = {task: batch for batch, records in self._batches.items() for task in records}
        assert in_batches == self._in_flight
        assert sum(map(len, self._batches.values())) == len(in_batches), "a record is in two batches"
        assert all(0 < len(records) <= self.batch_records for records in self._batches.values())
        assert all(0 < batch < self._next_batch for batch in self._batches)
        assert len(self._young) <= self.max_records
        assert len(self._young) < self.batch_records or self._batches, "a full batch is not written"
        assert len(self._dead) < self.batch_records
        waits = self._dead or (self._young and not self._batches)
        assert self._wake_at_s is not None or not waits, "nobody will flush"
        ages = [since_s for since_s, _ in self._young.values()]
        assert ages == sorted(ages), "young records are not in order"
