"""The ledger: whatever is posted and whatever fails, the store ends up with what is alive, and nothing more."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from dpool._gcs.ledger import Ledger
from dpool._gcs.memory import MemoryServer, MemoryStore
from dpool._gcs.operations import CommitLineage, DropTasks, Event, ForgetActor, ForgetJob, Heartbeat, RecordActor
from dpool._gcs.tables import (
    ActorRow,
    EndJob,
    MarkDropped,
    PutActor,
    PutBatch,
    PutCopy,
    PutFunction,
    PutJob,
    PutName,
    PutObject,
    ReleaseName,
    RemoveActor,
    RemoveBatch,
    RemoveCopy,
    RemoveObject,
)
from tests.gcs.support import JOB, JOB_ROW, NODE, ident

N = NODE.node_id


def records(*numbers: int) -> list[tuple[bytes, bytes]]:
    return [(ident(number), b"record %d" % number) for number in numbers]


def flush(ledger: Ledger, limit: int = 256) -> list[Any]:
    """Everything that is written, as if the store took it."""
    done: list[Any] = []
    while ledger.pending:
        done += ledger.next_writes(limit)
        ledger.written()
        ledger.check()
    return done


def test_a_batch_is_written_once_and_then_acknowledged():
    ledger = Ledger(N)
    ledger.apply(CommitLineage(4, JOB, records(1, 2)))
    assert ledger.take_acks() == []
    (write,) = flush(ledger)
    assert (type(write), write.batch_no) == (PutBatch, 4)
    assert (ledger.take_acks(), ledger.take_acks()) == ([4], [])
    assert ledger.unacknowledged() == []


def test_what_dies_before_it_is_written_is_never_written_but_acknowledged():
    ledger = Ledger(N)
    ledger.apply(CommitLineage(1, JOB, records(*range(100))))
    ledger.apply(DropTasks([ident(number) for number in range(100)]))
    assert not ledger.pending
    assert ledger.take_acks() == [1]


def test_a_drop_after_the_write_marks_then_packs_anew_then_removes():
    ledger = Ledger(N)
    ledger.apply(CommitLineage(1, JOB, records(*range(32))))
    flush(ledger)
    kinds = []
    for number in range(32):
        ledger.apply(DropTasks([ident(number)]))
        kinds += [type(write) for write in flush(ledger)]
    assert kinds[:15] == [MarkDropped] * 15
    assert kinds[15] is PutBatch
    assert kinds.count(PutBatch) == 2  # 16 are left, then 8: from there on the batch is too small to matter
    assert kinds[-1] is RemoveBatch
    assert kinds.count(RemoveBatch) == 1
    assert ledger.take_acks() == [1]


def test_many_changes_are_one_write():
    ledger = Ledger(N)
    for number in range(50):
        ledger.apply(Heartbeat(b"%d" % number))
        ledger.apply(PutJob(JOB_ROW._replace(name=str(number))))
        ledger.apply(PutFunction(ident("f"), JOB, b"code"))
    assert [tuple(write)[-1] for write in flush(ledger)] == [b"49", JOB_ROW._replace(name="49"), b"code"]


def test_a_failed_write_comes_again():
    ledger = Ledger(N)
    ledger.apply(CommitLineage(1, JOB, records(1)))
    ledger.apply(Event(5.0, "a"))
    first = ledger.next_writes(256)
    ledger.failed()
    assert (ledger.take_acks(), ledger.unacknowledged()) == ([], [1])
    assert flush(ledger) == first


def test_a_row_that_may_have_been_written_is_removed():
    ledger = Ledger(N)
    name = ident("o") + b"\0\0\0\0"
    ledger.apply(PutObject(name, JOB, 1, "sealed", N))
    ledger.next_writes(256)
    ledger.failed()
    ledger.apply(RemoveObject(name, JOB))
    assert flush(ledger) == [RemoveObject(name, JOB)]
    ledger.apply(RemoveObject(name, JOB))
    assert not ledger.pending


def test_an_ended_job_takes_everything_along_and_ignores_what_comes_late():
    ledger = Ledger(N)
    ledger.apply(PutJob(JOB_ROW))
    ledger.apply(CommitLineage(1, JOB, records(1)))
    flush(ledger)
    ledger.apply(CommitLineage(2, JOB, records(2)))
    ledger.apply(EndJob(JOB))
    ledger.apply(CommitLineage(3, JOB, records(3)))
    ledger.apply(PutFunction(ident("f"), JOB, b""))
    ledger.apply(EndJob(JOB))
    assert flush(ledger) == [EndJob(JOB)]
    assert ledger.take_acks() == [1, 2, 3]
    assert ledger.jobs() == []


def test_a_task_recorded_again_counts_once():
    ledger = Ledger(N)
    ledger.apply(CommitLineage(1, JOB, records(1, 2)))
    ledger.apply(CommitLineage(2, JOB, [(ident(1), b"second attempt")]))
    flush(ledger)
    store = MemoryStore("s")
    ledger.rewrite_all()
    while ledger.pending:
        store.apply(ledger.next_writes(1))
        ledger.written()
    assert store.lineage_of(JOB, [ident(1), ident(2)]) == {ident(1): b"second attempt", ident(2): b"record 2"}


def test_events_are_bounded_and_the_oldest_go_first_with_a_count():
    ledger = Ledger(N, max_events=3)
    for number in range(10):
        ledger.apply(Event(1.0, str(number)))
    writes = flush(ledger)
    assert [(write.name, write.detail) for write in writes] == [
        ("7", ""),
        ("8", ""),
        ("9", ""),
        ("events.dropped", "total=7"),
    ]
    assert [write.event_id for write in writes] == sorted({write.event_id for write in writes})


def test_event_ids_grow_although_the_wall_clock_goes_back():
    ledger = Ledger(N)
    for at_s in (1000.0, 900.0, 1000.001):
        ledger.apply(Event(at_s, "e"))
    assert [write.event_id for write in flush(ledger)] == [(1000000, 0), (1000000, 1), (1000001, 0)]


def test_writes_are_limited_in_number_and_size():
    ledger = Ledger(N)
    for number in range(10):
        ledger.apply(CommitLineage(number, JOB, [(ident(number), bytes(1000))]))
    assert len(ledger.next_writes(4)) == 4
    ledger.written()
    assert len(ledger.next_writes(256, limit_bytes=2000)) == 2
    ledger.written()
    assert len(flush(ledger)) == 4


def actor(number: int, job: bytes = JOB, **fields: Any) -> ActorRow:
    return ActorRow(ident(("actor", number)) + b"\0\0\0\0", job, N, **fields)


def test_what_an_actor_is_made_from_is_written_once():
    ledger = Ledger(N)
    ledger.epoch = 4
    ledger.apply(RecordActor(actor(1, state="waiting", creation=b"frame")))
    ledger.apply(RecordActor(actor(1, state="starting", creation=b"frame")))
    assert flush(ledger) == [PutActor(actor(1, state="starting", creation=b"frame", epoch=4))]
    ledger.apply(RecordActor(actor(1, state="alive", creation=b"frame")))
    assert flush(ledger) == [PutActor(actor(1, state="alive", creation=b"frame", epoch=4), whole=False)]
    ledger.rewrite_all()
    assert flush(ledger) == [PutActor(actor(1, state="alive", creation=b"frame", epoch=4))]
    ledger.apply(ForgetActor(actor(1).actor_id))
    ledger.apply(ForgetActor(actor(1).actor_id))
    assert flush(ledger) == [RemoveActor(actor(1).actor_id, JOB, N)]


def test_an_actor_that_came_and_went_is_never_written():
    ledger = Ledger(N)
    ledger.apply(RecordActor(actor(1, name="n")))
    ledger.apply(ForgetActor(actor(1).actor_id))
    assert not ledger.pending


def test_a_name_is_free_when_its_actor_is_dead():
    ledger = Ledger(N)
    one, two = actor(1, name="n"), actor(2, name="n")
    ledger.apply(RecordActor(one))
    assert flush(ledger) == [PutActor(one), PutName("n", one.actor_id, N)]
    ledger.apply(RecordActor(one._replace(state="dead")))
    ledger.apply(RecordActor(two))
    assert flush(ledger) == [
        PutActor(one._replace(state="dead"), False),
        PutActor(two),
        PutName("n", two.actor_id, N),
    ]
    ledger.apply(ForgetActor(one.actor_id))  # the name is not its own any more
    assert flush(ledger) == [RemoveActor(one.actor_id, JOB, N)]
    ledger.apply(EndJob(JOB))
    assert set(map(type, flush(ledger))) == {ReleaseName, EndJob}
    assert ledger.jobs() == []


def test_a_detached_actor_outlives_its_job():
    ledger = Ledger(N)
    ledger.apply(RecordActor(actor(1, detached=True, name="n")))
    ledger.apply(RecordActor(actor(2)))
    ledger.apply(EndJob(JOB))
    ledger.apply(RecordActor(actor(2, state="dead")))  # too late
    assert flush(ledger) == [
        EndJob(JOB),
        PutActor(actor(1, detached=True, name="n")),
        PutName("n", actor(1).actor_id, N),
    ]
    assert (ledger.jobs(), ledger.staying()) == ([], [actor(1).actor_id])


class Outages(RuleBasedStateMachine):
    """A ledger and a store that refuses, does and denies it, or forgets everything."""

    tasks = Bundle("tasks")

    @initialize()
    def begin(self) -> None:
        self.server = MemoryServer()
        self.store = MemoryStore("s", self.server)
        self.ledger = Ledger(N, max_events=5)
        self.live: dict[bytes, dict[bytes, bytes]] = {ident(job): {} for job in range(3)}
        self.functions: dict[bytes, set[bytes]] = {job: set() for job in self.live}
        self.objects: dict[bytes, bytes] = {}
        self.actors: dict[bytes, ActorRow] = {}
        self.names: dict[str, bytes] = {}
        self.ended: set[bytes] = set()
        self.posted: list[int] = []
        self.acked: list[int] = []
        self.next_task = 0

    jobs = st.integers(0, 2).map(ident)

    @rule(target=tasks, job=jobs, count=st.integers(0, 40))
    def commit(self, job, count):
        made = [ident(("task", self.next_task + number)) for number in range(count)]
        self.next_task += count
        self.posted.append(len(self.posted))
        self.ledger.apply(CommitLineage(self.posted[-1], job, [(task, task[:5]) for task in made]))
        if job not in self.ended:
            self.live[job].update((task, task[:5]) for task in made)
        return made

    @rule(made=tasks, data=st.data())
    def drop(self, made, data):
        gone = [task for task in made if data.draw(st.booleans())]
        self.ledger.apply(DropTasks(gone))
        for tasks in self.live.values():
            for task in gone:
                tasks.pop(task, None)

    @rule(made=consumes(tasks))
    def drop_all(self, made):
        self.ledger.apply(DropTasks(made))
        for tasks in self.live.values():
            for task in made:
                tasks.pop(task, None)

    @rule(job=jobs, number=st.integers(0, 3))
    def export(self, job, number):
        self.ledger.apply(PutFunction(ident(("f", number)), job, b"code"))
        if job not in self.ended:
            self.functions[job].add(ident(("f", number)))

    @rule(job=jobs, size=st.integers(0, 9), held=st.booleans())
    def put_object(self, job, size, held):
        self.ledger.apply(PutObject(job + b"\0\0\0\0", job, size, "sealed", N, held))
        if job not in self.ended:
            self.objects[job] = bytes([size, held])

    @rule(job=jobs)
    def remove_object(self, job):
        self.ledger.apply(RemoveObject(job + b"\0\0\0\0", job))
        self.objects.pop(job, None)

    @rule(number=st.integers(0, 5), name=st.sampled_from(["", "a", "b"]), state=st.sampled_from(["alive", "dead"]))
    def record_actor(self, number, name, state):
        row = actor(number, ident(number % 3), detached=number > 3, name=name, state=state, creation=b"frame")
        known = self.actors.get(row.actor_id)
        if known is not None:  # a name is for life, and so is death
            row = row._replace(name=known.name, state="dead" if known.state == "dead" else state)
        if row.state == "alive" and self.names.get(row.name, row.actor_id) != row.actor_id:
            return  # taken
        self.ledger.apply(RecordActor(row))
        if row.detached or row.job_id not in self.ended:
            self.actors[row.actor_id] = row
            if row.state == "alive" and row.name:
                self.names[row.name] = row.actor_id
            elif self.names.get(row.name) == row.actor_id:
                del self.names[row.name]

    @rule(number=st.integers(0, 5))
    def forget_actor(self, number):
        self.ledger.apply(ForgetActor(actor(number).actor_id))
        self.lose_actor(actor(number).actor_id)

    def lose_actor(self, actor_id):
        row = self.actors.pop(actor_id, None)
        if row is not None and self.names.get(row.name) == actor_id:
            del self.names[row.name]

    @rule(job=jobs)
    def end(self, job):
        self.ledger.apply(EndJob(job))
        self.ended.add(job)
        self.live[job].clear()
        self.functions[job].clear()
        self.objects.pop(job, None)
        for row in [row for row in self.actors.values() if row.job_id == job and not row.detached]:
            self.lose_actor(row.actor_id)

    @rule()
    def event(self):
        self.ledger.apply(Event(1.0, "e"))

    @rule(limit=st.integers(1, 10), fault=st.sampled_from(["", "", "refuse", "lose the reply"]))
    def write(self, limit, fault):
        writes = self.ledger.next_writes(limit)
        if fault != "refuse":
            self.store.apply(writes)
        if fault:
            self.ledger.failed()
        else:
            self.ledger.written()

    @rule()
    def restart_without_data(self):
        self.server.lose_data()
        self.ledger.rewrite_all()

    @rule()
    def reconnect(self):
        self.ledger.rewrite_all()

    @rule()
    def settle(self):
        while self.ledger.pending:
            self.store.apply(self.ledger.next_writes(7))
            self.ledger.written()
            self.ledger.check()
        every = [ident(("task", number)) for number in range(self.next_task)]
        for job, tasks in self.live.items():
            assert self.store.lineage_of(job, every) == tasks
            row = self.store.object(job + b"\0\0\0\0")
            assert (row and bytes([row.size_bytes, bool(row.copies)])) == self.objects.get(job)
        for number in range(6):
            assert self.store.actor(actor(number).actor_id) == self.actors.get(actor(number).actor_id)
        assert sorted(self.store.actors_of(N)) == sorted(self.actors)
        for name in ("a", "b"):
            assert (self.store.named_actor(name) or [None])[0] == self.names.get(name)
        for number in range(4):
            users = {job for job, used in self.functions.items() if ident(("f", number)) in used}
            found = self.store.function(ident(("f", number)))
            assert (set(found.jobs) if found else set()) == users
        self.acked += self.ledger.take_acks()
        assert sorted(self.acked) == self.posted, "each batch is acknowledged, and once"
        assert self.ledger.unacknowledged() == []

    @invariant()
    def sound(self):
        if hasattr(self, "ledger"):
            self.ledger.check()

    def teardown(self):
        if hasattr(self, "ledger"):
            self.settle()


TestOutages = Outages.TestCase
TestOutages.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_is_kept_for_another_nodes_job_is_forgotten_with_it():
    ledger = Ledger(N)
    ledger.apply(PutFunction(ident("f"), JOB, b"code"))
    ledger.apply(ForgetJob(JOB))
    ledger.apply(PutFunction(ident("g"), JOB, b"late"))
    assert (ledger.pending, ledger.jobs()) == (False, [])
    ledger.check()


def test_a_copy_is_written_and_removed_whatever_fails():
    ledger = Ledger(N)
    name = ident("o") + b"\0\0\0\0"
    ledger.apply(PutCopy(name, N))
    ledger.next_writes(256)
    ledger.failed()
    ledger.apply(RemoveCopy(name, N))
    ledger.next_writes(256)
    ledger.failed()
    assert flush(ledger) == [RemoveCopy(name, N)]
    ledger.apply(PutCopy(name, N))
    ledger.apply(RemoveCopy(name, N))
    assert flush(ledger) == [], "it came and went between two flushes"
