"""The contract of `tables.Store`, on memory and on a real server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpool._gcs import keys
from dpool._gcs.lineage import dropped_bits, pack
from dpool._gcs.memory import MemoryServer, MemoryStore
from dpool._gcs.redis_store import connect_socket, connect_url
from dpool._gcs.tables import (
    ActorRow,
    AddEvent,
    Beat,
    EndJob,
    EventRow,
    FunctionRow,
    GoneRow,
    JobRow,
    MarkDropped,
    NodeRow,
    ObjectRow,
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
    Store,
)
from tests.gcs.support import JOB, JOB_ROW, NODE, admin, ident, no_server

Connect = Callable[[], Store]
N = NODE.node_id
FUNCTION = ident("function")
sessions = (f"contract-{number}" for number in itertools.count())


@pytest.fixture(params=["memory", "redis", "redis-py", "several"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes connections to one and the same, empty, session."""
    session = next(sessions)
    made: list[Store] = []
    if request.param == "memory":
        memory = MemoryServer()

        def make() -> Store:
            return MemoryStore(session, memory, max_events=100)
    else:
        if no_server():
            pytest.skip(no_server())
        server = request.getfixturevalue("shared_server")

        def make() -> Store:
            login = server.socket_path, server.user, server.password
            if request.param == "redis":
                store = connect_socket(session, *login, 5.0)
            else:
                url = f"unix://{login[1]}:{login[2]}@{login[0]}"
                store = connect_url(session, ",".join([url] * (3 if request.param == "several" else 1)), 5.0)
            store._max_events = 100
            return store

    def connect() -> Store:
        made.append(make())
        return made[-1]

    yield connect
    if made:
        made[0].close_session()
    for store in made:
        store.close()


@pytest.fixture
def store(connect: Connect) -> Store:
    return connect()


def batch(number: int, records: dict[bytes, bytes], job: bytes = JOB) -> PutBatch:
    return PutBatch(job, N, number, b"".join(records), pack(list(records.values())))


# --- nodes ---


def test_each_registration_gets_a_greater_epoch(store):
    epochs = [store.register_node(NODE._replace(node_id=ident(i)), f"token{i}") for i in range(3)]
    assert epochs == [1, 2, 3]
    assert {row.epoch for row in store.nodes().values()} == {1, 2, 3}


def test_a_repeated_registration_gets_the_same_epoch(connect):
    store = connect()
    assert [store.register_node(NODE, "token") for _ in range(3)] == [1, 1, 1]
    assert connect().register_node(NODE, "token") == 1
    assert store.register_node(NODE, "a new start") == 2
    assert store.nodes() == {N: NODE._replace(epoch=2)}


def test_epochs_go_on_where_a_node_was_before_the_data_were_lost(store):
    assert store.register_node(NODE, "token", at_least=7) == 7
    assert store.register_node(NODE._replace(node_id=ident(2)), "other", at_least=3) == 8


def test_a_removed_node_is_gone_and_epochs_go_on(store):
    store.register_node(NODE, "token")
    store.apply([Beat(N, b"load"), AddEvent(N, (1, 0), "a", "b")])
    store.remove_node(N)
    store.remove_node(N)
    assert (store.nodes(), store.loads(), store.events(N)) == ({}, {}, [])
    assert store.register_node(NODE, "token") == 2


def test_a_lost_node_is_buried_once(store):
    """By whoever says so first; what was its own ends, what is of others stays."""
    mine = ACTOR._replace(detached=True, name="mine")
    ends = ACTOR._replace(actor_id=ident("ends") + b"\0\0\0\0", name="ends")
    other = ACTOR._replace(actor_id=ident("other") + b"\0\0\0\0", node_id=OTHER, job_id=ident("j"), name="other")
    store.register_node(NODE, "t")
    store.register_node(NODE._replace(node_id=OTHER, host="there"), "t")
    jobs = [PutJob(JOB_ROW), PutJob(JOB_ROW._replace(job_id=ident("j"), node_id=OTHER))]
    store.apply([*jobs, Beat(N, b"x"), *map(PutActor, (mine, ends, other))])
    store.apply([PutName(row.name, row.actor_id, row.node_id) for row in (mine, ends, other)])
    assert store.bury_node(N, "it burnt", 5.0, OTHER)
    assert store.bury_node(N, "it burnt", 6.0, OTHER), "asked again, as the answer was lost"
    assert not store.bury_node(N, "it drowned", 6.0, ident("third"))
    assert store.gone_nodes() == {N: GoneRow(N, "here", "it burnt", 5.0, OTHER)}
    assert (set(store.nodes()), store.loads(), set(store.jobs())) == ({OTHER}, {}, {ident("j")})
    assert store.actor(mine.actor_id) == mine._replace(state="dead", cause="it burnt")
    assert [store.actor(ends.actor_id), store.actor(other.actor_id)] == [None, other]
    assert [store.named_actor(name) for name in ("mine", "ends", "other")] == [None, None, (other.actor_id, OTHER)]


def test_who_has_left_is_not_buried(store):
    store.register_node(NODE, "t")
    store.remove_node(N)
    assert not store.bury_node(N, "silent", 5.0, OTHER)
    assert store.gone_nodes() == {}


def test_the_latest_load_counts(store):
    store.apply([Beat(N, b"one"), Beat(N, b"\x00\xff")])
    assert store.loads() == {N: b"\x00\xff"}


def test_rows_keep_any_text(store):
    row = NodeRow(N, 'h"ö\n', 1, "tcp://[::1]:5", (("CPU", 0.5), ("ünit", 3.0)), 12.25)
    store.register_node(row, "token")
    store.apply([PutJob(JobRow(JOB, N, 3, "näme\x00", 1.5))])
    assert store.nodes()[N] == row._replace(epoch=1)
    assert store.jobs() == {JOB: JobRow(JOB, N, 3, "näme\x00", 1.5)}


# --- jobs and functions ---


def test_a_function_goes_with_the_last_job_that_uses_it(store):
    other = ident("other job")
    put = [PutFunction(FUNCTION, job, b"code") for job in (JOB, other)]
    store.apply(put + put)
    assert store.function(FUNCTION) == FunctionRow(FUNCTION, b"code", frozenset({JOB, other}))
    store.apply([EndJob(JOB), EndJob(JOB)])
    assert store.function(FUNCTION) == FunctionRow(FUNCTION, b"code", frozenset({other}))
    store.apply([EndJob(other)])
    assert store.function(FUNCTION) is None


def test_everything_of_a_job_goes_with_it_and_nothing_else(store):
    task, kept = ident("task"), ident("kept job")
    for job in (JOB, kept):
        store.apply(
            [
                PutJob(JOB_ROW._replace(job_id=job)),
                PutFunction(FUNCTION, job, b"code"),
                *(batch(number, {ident((job, number)): b"r"}, job) for number in range(40)),
                PutObject(ident(job) + b"\0\0\0\0", job, 5, "sealed", N),
            ]
        )
    store.apply([batch(99, {task: b"r"}), EndJob(JOB)])
    assert store.jobs() == {kept: JOB_ROW._replace(job_id=kept)}
    assert store.lineage_of(JOB, [task, *(ident((JOB, number)) for number in range(40))]) == {}
    assert len(store.lineage_of(kept, [ident((kept, number)) for number in range(40)])) == 40
    assert store.object(ident(JOB) + b"\0\0\0\0") is None
    assert store.object(ident(kept) + b"\0\0\0\0") is not None


def test_what_is_not_there_is_none(store):
    assert store.function(FUNCTION) is None
    assert store.object(ident(1) + b"\0\0\0\0") is None
    assert store.lineage_of(JOB, [ident(1)]) == {}
    assert (store.nodes(), store.jobs(), store.loads(), store.events(N)) == ({}, {}, {}, [])


# --- lineage ---


def test_lineage_is_found_by_task(store):
    tasks = {ident(number): f"record {number}".encode() * number for number in range(100)}
    names = list(tasks)
    store.apply([batch(number, {name: tasks[name] for name in names[number::7]}) for number in range(7)])
    assert store.lineage_of(JOB, names[10:60]) == {name: tasks[name] for name in names[10:60]}
    assert store.lineage_of(ident("other job"), names) == {}


def test_dropped_tasks_are_not_found(store):
    tasks = {ident(number): b"r%d" % number for number in range(20)}
    put, names = batch(3, tasks), list(tasks)
    live = {name: tasks[name] for name in names[::3]}
    dropped = MarkDropped(JOB, N, 3, dropped_bits(names, live))
    store.apply([put, dropped, dropped])
    assert store.lineage_of(JOB, names) == live
    store.apply([batch(3, live)])  # packed anew
    assert store.lineage_of(JOB, names) == live
    store.apply([RemoveBatch(JOB, N, 3), RemoveBatch(JOB, N, 3)])
    assert store.lineage_of(JOB, names) == {}


def test_batches_of_two_nodes_with_one_number_do_not_mix(store):
    one, two = ident(1), ident(2)
    store.apply([batch(1, {one: b"one"}), batch(1, {two: b"two"})._replace(node_id=ident("node 2"))])
    assert store.lineage_of(JOB, [one, two]) == {one: b"one", two: b"two"}


# --- objects ---


def test_an_object_is_where_its_copies_are(store):
    name = ident("object") + b"\0\0\0\1"
    put, other = PutObject(name, JOB, 100, "sealed", N), ident("node 2")
    store.apply([put, put, put._replace(node_id=other, state="spilled")])
    assert store.object(name) == ObjectRow(name, JOB, 100, "spilled", frozenset({N, other}))
    store.apply([put._replace(held=False), put._replace(node_id=other, held=False, state="lost")])
    assert store.object(name) == ObjectRow(name, JOB, 100, "lost", frozenset())
    store.apply([RemoveObject(name, JOB), RemoveObject(name, JOB)])
    assert store.object(name) is None


# --- events ---


def test_an_event_written_twice_is_there_once(store):
    events = [AddEvent(N, (1000 + number // 2, number % 2), f"event.{number}", "täsk=1") for number in range(6)]
    store.apply(events)
    store.apply(events[3:])
    assert store.events(N) == [EventRow(event.event_id, event.name, event.detail) for event in events]


def test_only_the_newest_events_are_kept(store):
    for start in range(0, 1000, 100):
        store.apply([AddEvent(N, (1 + start + number, 0), "e", "") for number in range(100)])
    kept = store.events(N)
    assert 100 <= len(kept) <= 300  # a server trims by whole nodes of its tree
    assert kept[-1].event_id == (1000, 0)


# --- the session ---


def test_sessions_do_not_see_each_other_and_close_alone(connect, request):
    store = connect()
    store.register_node(NODE, "token")
    other: Any
    if isinstance(store, MemoryStore):
        other = MemoryStore("another", store._server)
    else:
        server = request.getfixturevalue("shared_server")
        other = connect_socket("another", server.socket_path, server.user, server.password, 5.0)
    other.register_node(NODE, "token")
    assert other.nodes()[N].epoch == 1
    other.close_session()
    assert (other.nodes(), len(store.nodes())) == ({}, 1)
    other.close()


def test_a_session_that_was_forgotten_says_so(store):
    assert not store.keep_session(1000.0)
    store.register_node(NODE, "token")
    assert store.keep_session(1001.0)
    store.close_session()
    assert not store.keep_session(1002.0)


def test_a_session_unseen_for_long_is_swept_by_the_next_one(shared_server):
    old, new = (
        connect_socket(name, shared_server.socket_path, shared_server.user, shared_server.password, 5.0)
        for name in ("old.session", "new.session")
    )
    old.keep_session(1000.0)
    old.register_node(NODE, "token")
    old.apply([PutJob(JOB_ROW), batch(1, {ident(1): b"r"})])
    new.keep_session(1001.0)
    assert old.nodes()
    new.keep_session(1_000_000.0)
    assert (old.nodes(), old.jobs()) == ({}, {})
    assert not old.keep_session(1_000_001.0)
    for store in (old, new):
        store.close_session()
        store.close()
    with admin(shared_server) as client:
        assert client.keys("dpool:*.session:*") == []


def test_a_session_name_is_no_pattern(shared_server):
    """What the shared list of sessions says is data: a name like `*` removes itself, not everybody."""
    mine, odd = (
        connect_socket(name, shared_server.socket_path, shared_server.user, shared_server.password, 5.0)
        for name in ("mine", "*")
    )
    mine.register_node(NODE, "token")
    odd.register_node(NODE, "token")
    odd.close_session()
    assert (len(mine.nodes()), odd.nodes()) == (1, {})
    mine.close_session()
    for store in (mine, odd):
        store.close()


def test_every_key_is_one_of_those_spelled_in_keys(shared_server):
    """The page at the top of keys.py names every key that a session makes."""
    store = connect_socket("spelled", shared_server.socket_path, shared_server.user, shared_server.password, 5.0)
    store.register_node(NODE, "token")
    store.apply(
        [
            Beat(N, b""),
            PutJob(JOB_ROW),
            PutFunction(FUNCTION, JOB, b""),
            batch(1, {ident(1): b"r"}),
            PutObject(ident(2) + b"\0\0\0\0", JOB, 1, "sealed", N),
            PutActor(ACTOR),
            PutName("n", ACTOR.actor_id, N),
            AddEvent(N, (1, 1), "", ""),
        ]
    )
    assert keys.__doc__ is not None
    with admin(shared_server) as client:
        made = [key.decode() for key in client.keys("dpool:spelled:*")]
        kinds = {key.split(":")[2] for key in made}
        for key in made:
            kind = key.split(":")[2]
            line = next(line for line in keys.__doc__.splitlines() if f"`…:{kind}" in line)
            assert f"| {client.type(key).decode()} |" in line
            assert ("{" in key) == ("{" in line)
    assert kinds == {
        "nodes",
        "loads",
        "jobs",
        "job_functions",
        "job_objects",
        "function",
        "object",
        "job_actors",
        "node_actors",
        "actor",
        "actor_name",
        "lineage",
        "events",
    }
    store.close_session()
    store.close()


# --- actors ---

ACTOR = ActorRow(
    ident("actor") + b"\0\0\0\0",
    JOB,
    N,
    "näme {x}\x00\ud800",
    False,
    (("num_cpus", 10_000), ("ünit", 1)),
    -1,
    "alive",
    2,
    'cause "ö\ud800',
    (ident(1) + b"\0\0\0\1",),
    bytes(range(256)),
    7,
)
OTHER = ident("other node")


def test_an_actor_is_read_as_it_was_written(store):
    store.apply([PutActor(ACTOR), PutActor(ACTOR)])
    assert store.actor(ACTOR.actor_id) == ACTOR
    assert store.actors_of(N) == [ACTOR.actor_id]
    changed = ACTOR._replace(state="restarting", restarts=3, cause="")
    store.apply([PutActor(changed._replace(max_restarts=5), whole=False)])  # what never changes is not looked at
    assert store.actor(ACTOR.actor_id) == changed
    dead = changed._replace(state="dead", cause="killed", creation=b"")
    store.apply([PutActor(dead, whole=False)])
    assert store.actor(ACTOR.actor_id) == dead  # and what it was made from is gone
    store.apply([RemoveActor(ACTOR.actor_id, JOB, N), RemoveActor(ACTOR.actor_id, JOB, N)])
    assert (store.actor(ACTOR.actor_id), store.actors_of(N)) == (None, [])
    store.apply([PutActor(dead, whole=False)])  # it comes late, and makes no half of a row
    assert store.actor(ACTOR.actor_id) is None


def test_an_actor_is_changed_by_its_node_alone(store):
    store.apply([PutActor(ACTOR)])
    stranger = ACTOR._replace(node_id=OTHER, state="dead")
    store.apply([PutActor(stranger), PutActor(stranger, whole=False), RemoveActor(ACTOR.actor_id, JOB, OTHER)])
    assert store.actor(ACTOR.actor_id) == ACTOR
    assert (store.actors_of(N), store.actors_of(OTHER)) == ([ACTOR.actor_id], [])


def test_a_name_belongs_to_the_node_that_took_it_first(store):
    one, two = ident("a1") + b"\0\0\0\0", ident("a2") + b"\0\0\0\0"
    store.apply([PutName("n", one, N), PutName("n", two, OTHER), ReleaseName("n", OTHER)])
    assert store.named_actor("n") == (one, N)
    store.apply([PutName("n", two, N)])  # which may give it to another actor of its own
    assert store.named_actor("n") == (two, N)
    store.apply([ReleaseName("n", N), PutName("n", one, OTHER), ReleaseName("n", N)])
    assert store.named_actor("n") == (one, OTHER)
    assert store.named_actor("m") is None


def test_the_actors_of_a_job_end_with_it_but_for_detached_ones(store):
    other = ident("other job")
    stays = ACTOR._replace(actor_id=ident("d") + b"\0\0\0\0", detached=True, name="d")
    elsewhere = ACTOR._replace(actor_id=ident("e") + b"\0\0\0\0", job_id=other, name="e")
    passed_on = ACTOR._replace(actor_id=ident("p") + b"\0\0\0\0", name="passed on")
    every = [ACTOR, stays, elsewhere, passed_on]
    store.apply([PutJob(JOB_ROW), *map(PutActor, every), *(PutName(row.name, row.actor_id, N) for row in every)])
    store.apply([PutName("passed on", elsewhere.actor_id, N)])
    store.apply([EndJob(JOB), EndJob(JOB)])
    assert [store.actor(row.actor_id) for row in every] == [None, stays, elsewhere, None]
    assert sorted(store.actors_of(N)) == sorted([stays.actor_id, elsewhere.actor_id])
    assert [store.named_actor(row.name) for row in every] == [
        None,
        (stays.actor_id, N),
        (elsewhere.actor_id, N),
        (elsewhere.actor_id, N),
    ]


# --- any sequence of writes ---

small = st.integers(0, 2).map(ident)
writes = st.one_of(
    st.builds(Beat, small, st.binary(max_size=3)),
    st.builds(PutJob, st.builds(JobRow, small, small, st.integers(0, 9))),
    st.builds(EndJob, small),
    st.builds(PutFunction, small, small, st.just(b"code")),
    st.builds(
        lambda job, node, number, tasks: PutBatch(job, node, number, b"".join(tasks), pack([t[:4] for t in tasks])),
        small,
        small,
        st.integers(0, 2),
        st.lists(st.integers(10, 15).map(ident), max_size=5, unique=True),
    ),
    st.builds(RemoveBatch, small, small, st.integers(0, 2)),
    st.builds(
        PutObject,
        small.map(lambda i: i + b"\0\0\0\0"),
        st.just(ident(0)),
        st.integers(0, 9),
        st.just("sealed"),
        small,
        st.booleans(),
    ),
    st.builds(PutCopy, small.map(lambda i: i + b"\0\0\0\0"), small),
    st.builds(RemoveCopy, small.map(lambda i: i + b"\0\0\0\0"), small),
    st.builds(RemoveObject, small.map(lambda i: i + b"\0\0\0\0"), st.just(ident(0))),
    st.builds(
        lambda number, state, blob, whole: PutActor(
            ActorRow(
                ident(number) + b"\0\0\0\0", ident(number), N, "ab"[number % 2], number == 2, state=state
            )._replace(creation=blob),
            whole,
        ),
        st.integers(0, 2),
        st.sampled_from(["alive", "dead"]),
        st.sampled_from([b"", b"frame"]),
        st.booleans(),
    ),
    st.builds(lambda number: RemoveActor(ident(number) + b"\0\0\0\0", ident(number), N), st.integers(0, 2)),
    st.builds(PutName, st.sampled_from("ab"), small.map(lambda i: i + b"\0\0\0\0"), st.sampled_from([N, ident(0)])),
    st.builds(ReleaseName, st.sampled_from("ab"), st.sampled_from([N, ident(0)])),
)


def snapshot(store: Store) -> Any:
    names = [ident(number) for number in range(3)]
    return (
        store.loads(),
        store.jobs(),
        [store.function(name) for name in names],
        [store.object(name + b"\0\0\0\0") for name in names],
        [store.actor(name + b"\0\0\0\0") for name in names],
        sorted(store.actors_of(N)),
        [store.named_actor(name) for name in "ab"],
        [store.lineage_of(name, [ident(number) for number in range(10, 16)]).keys() for name in names],
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(writes, max_size=12))
def test_memory_and_redis_agree_and_writing_twice_changes_nothing(shared_server, sequence):
    memory = MemoryStore("agree")
    real = connect_socket("agree", shared_server.socket_path, shared_server.user, shared_server.password, 5.0)
    try:
        for write in sequence:
            for store in (memory, real):
                store.apply([write])
        once = snapshot(memory)
        assert snapshot(real) == once
        if sequence:
            for store in (memory, real):
                store.apply([sequence[-1]])
        assert snapshot(real) == snapshot(memory) == once
    finally:
        real.close_session()
        real.close()
