"""The writer on a real server: what is posted arrives, is acknowledged, and nothing is left at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from typing import Any

import pytest

from dpool._gcs import keys
from dpool._gcs.config import Committed, Confirmed, Connected, GcsConfig, Lost, Unavailable
from dpool._gcs.operations import OPS, CommitLineage, DropTasks, Event, Heartbeat, Op, RecordActor
from dpool._gcs.redis_store import connect_url
from dpool._gcs.server import EmbeddedServer
from dpool._gcs.tables import ActorRow, EndJob, NodeRow, PutFunction, PutJob, PutName, PutObject, RemoveObject
from dpool._gcs.writer import GcsWriter
from tests.gcs.support import ADMIN, JOB, JOB_ROW, NODE, Bench, Recorder, Spawner, admin, bench, ident, no_server
from tests.helpers import REPOSITORY, process, wait_until

pytestmark = pytest.mark.skipif(bool(no_server()), reason=no_server() or "there is one")
N = NODE.node_id
OBJECT = ident("object") + b"\0\0\0\0"


def records(start: int, count: int, size: int = 20) -> list[tuple[bytes, bytes]]:
    return [(ident(number), (b"%d." % number).ljust(size, b"x")) for number in range(start, start + count)]


def test_what_is_posted_before_and_after_the_start_arrives(short_path):
    one = Bench(short_path)
    one.writer.post(PutJob(JOB_ROW))
    one.writer.post(CommitLineage(1, JOB, records(0, 300)))
    assert one.spawner.processes == []
    one.writer.start()
    one.writer.start()
    one.recorder.wait_batch(1)
    one.writer.post(PutFunction(ident("f"), JOB, b"code"))
    one.writer.post(PutObject(OBJECT, JOB, 9, "sealed", N))
    one.writer.post(Heartbeat(b"load"))
    one.writer.post(Event(1.0, "task.failed", "task=1"))
    one.writer.post(DropTasks([ident(number) for number in range(250)]))
    one.writer.post(CommitLineage(2, JOB, records(300, 1)))
    one.recorder.wait_batch(2)
    with closing(one.store()) as store:
        wait_until(lambda: store.events(N), what="the event")
        assert store.lineage_of(JOB, [ident(number) for number in range(301)]) == dict(records(250, 51))
        assert store.jobs() == {JOB: JOB_ROW}
        assert store.loads() == {N: b"load"}
        row, function = store.object(OBJECT), store.function(ident("f"))
        assert row is not None
        assert function is not None
        assert (row.copies, function.blob) == (frozenset({N}), b"code")
        assert store.nodes()[N].epoch == one.recorder.all(Connected)[0].epoch == 1
        one.writer.post(EndJob(JOB))
        wait_until(lambda: not store.jobs(), what="the job's end")
        assert (store.function(ident("f")), store.object(OBJECT)) == (None, None)
        assert store.lineage_of(JOB, [ident(260)]) == {}
    one.close()
    assert (one.recorder.all(Unavailable), one.recorder.all(Lost)) == ([], [])
    assert sorted(event.batch_no for event in one.recorder.all(Committed)) == [1, 2]


def test_posts_from_many_threads_all_arrive(short_path):
    with bench(short_path) as one:

        def post(first: int) -> None:
            for number in range(first, first + 100):
                one.writer.post(CommitLineage(number, JOB, records(number, 1)))

        threads = [threading.Thread(target=post, args=(1000 * start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.recorder.wait(Committed, 400)
        with closing(one.store()) as store:
            wanted = [ident(1000 * start + number) for start in range(4) for number in range(100)]
            assert len(store.lineage_of(JOB, wanted)) == 400
    assert len(one.recorder.all(Committed)) == 400


def test_close_leaves_nothing(short_path):
    with bench(short_path) as one:
        one.recorder.wait(Connected)
        pid = one.writer.server_pid
        assert pid is not None
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        one.writer.close(5.0)
        assert [event.batch_no for event in one.recorder.all(Committed)] == [1]
        one.spawner.reap()
        assert process(pid) is None
        assert one.writer.server_pid is None
        assert os.listdir(short_path) == ["gcs.log"]
        one.writer.close()
        one.writer.start()
        one.writer.post(CommitLineage(2, JOB, []))
        assert one.writer._queue == one.writer._queue.__class__()


def test_close_in_the_middle_of_the_start_leaves_nothing(short_path):
    with bench(short_path) as one:
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        wait_until(lambda: one.spawner.processes, what="the spawn")
        one.writer.close(5.0)
    lost, committed = one.recorder.all(Lost), one.recorder.all(Committed)
    assert [event.batch_no for event in lost] + [event.batch_no for event in committed] == [1]
    assert one.recorder.all(Unavailable) == []


def test_close_before_the_start_does_nothing(short_path):
    one = Bench(short_path)
    one.writer.close()
    one.writer.start()
    assert (one.spawner.processes, os.listdir(short_path)) == ([], [])


def test_off_is_off(short_path):
    with bench(short_path, mode="off") as one:
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        one.writer.server_exited(1, 1)
        assert one.writer.server_pid is None
    assert (one.spawner.processes, one.recorder.events, os.listdir(short_path)) == ([], [], [])


def test_only_operations_are_taken(short_path):
    one = Bench(short_path)
    with pytest.raises(TypeError, match="NodeRow is no operation"):
        one.writer.post(NODE)  # type: ignore[arg-type]
    assert set(Op.__args__) == OPS


def test_a_wrong_configuration_is_refused():
    wrongs: list[dict[str, Any]] = [{"session": "a b"}, {"session": ""}, {"session": "a*"}, {"mode": "maybe"}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"session's name|mode is"):
            GcsConfig(**{"session": "s", "node": NODE, "directory": "/x", **wrong})


def test_the_import_is_light():
    code = "import dpool._gcs.writer, sys; print(*{'redis', 'asyncio', 'json', 'dataclasses'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


def test_many_operations_are_few_round_trips(short_path):
    """4,000 operations, posted at once, go in pipelines of 256."""
    with bench(short_path) as one:
        one.recorder.wait(Connected)
        store = one.writer._store
        assert store is not None
        sizes: list[int] = []
        apply = store.apply

        def counting(writes):
            sizes.append(len(writes))
            apply(writes)

        store.apply = counting  # type: ignore[method-assign]
        for number in range(4000):
            one.writer.post(CommitLineage(number, JOB, records(number, 1)))
        one.recorder.wait(Committed, 4000)
        assert sum(sizes) == 4000
        assert len(sizes) <= 200
        assert max(sizes) <= 256


def test_memory_stays_bounded_over_200_000_tasks(short_path):
    """Lineage that was written and then dropped leaves the server and the writer."""
    batches, per_batch, window_batches = 800, 250, 20
    with bench(short_path, flush_s=0.0005) as one:
        one.recorder.wait(Connected)
        window: list[list[bytes]] = []
        peaks: list[int] = []
        with closing(one.store()) as store:
            for number in range(batches):
                made = [(number * 256 + k).to_bytes(16, "big") for k in range(per_batch)]
                one.writer.post(CommitLineage(number, JOB, [(task, task * 8) for task in made]))
                window.append(made)
                if number % 10 == 9:
                    one.recorder.wait_batch(number)  # so everything is written before it is dropped
                if len(window) > window_batches:
                    old = window.pop(0)
                    one.writer.post(DropTasks(old[::2]))
                    one.writer.post(DropTasks(old[1::2]))
                if number % 100 == 99:
                    stats = store._one("MEMORY", "STATS")
                    peaks.append(dict(zip(stats[::2], stats[1::2], strict=True))[b"total.allocated"])
            every = [task for made in window for task in made]
            assert len(store.lineage_of(JOB, every)) == len(every) == window_batches * per_batch
            assert store.lineage_of(JOB, [(5).to_bytes(16, "big")]) == {}
            for made in window:
                one.writer.post(DropTasks(made))
            shards = [keys.lineage("bench", JOB, shard) for shard in range(keys.LINEAGE_SHARDS)]
            wait_until(lambda: store._one("EXISTS", *shards) == 0, what="the last drop")
        ledger = one.writer._ledger
        kept = (ledger._task_batch, ledger._sent, ledger._dirty, ledger._gone)
        wait_until(lambda: not any(map(len, kept)), what="the writer to hear that it is done")
        assert max(peaks) - peaks[0] < 4 << 20, peaks  # 200,000 records of 128 bytes would be 29 MB


# --- a server that others use too ---


@pytest.fixture
def given(short_path):
    """A server that somebody else runs, and its URL with a password."""
    server = EmbeddedServer(str(short_path / "given"), extra_config=[ADMIN])
    server.start(str(short_path / "given.log"))
    yield server, f"unix://{server.user}@{server.socket_path}?password={server.password}"
    server.stop()


def test_a_given_server_is_used_and_left_as_it_was(short_path, given):
    server, url = given
    with bench(short_path, url=url, session="mine") as one:
        one.writer.post(PutJob(JOB_ROW))
        one.writer.post(PutFunction(ident("f"), JOB, b"code"))
        one.writer.post(PutObject(OBJECT, JOB, 1, "sealed", N))
        one.writer.post(Event(1.0, "e"))
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        one.recorder.wait_batch(1)
        with admin(server) as client:
            assert len(client.keys("dpool:mine:*")) == 8
    assert one.spawner.processes == []
    assert one.recorder.all(Unavailable) == []
    with admin(server) as client:
        assert client.keys("*") == []


def test_the_session_lives_as_long_as_one_of_its_nodes(short_path, given):
    _, url = given
    other = NodeRow(ident("other"), "there", 2)
    with closing(connect_url("mine", url, 5.0)) as store:
        with bench(short_path, url=url, session="mine") as one:
            one.writer.post(PutJob(JOB_ROW))
            one.recorder.wait(Connected)
            assert store.register_node(other, "token") == 2
            store.apply([PutJob(JOB_ROW._replace(job_id=ident("job 2"), node_id=other.node_id))])
        assert list(store.nodes()) == [other.node_id]
        assert list(store.jobs()) == [ident("job 2")]
        store.close_session()


def test_a_session_that_the_server_forgot_is_written_again(short_path, given, monkeypatch):
    server, url = given
    monkeypatch.setattr("dpool._gcs.writer.KEEP_SESSION_EVERY_S", 0.02)
    with bench(short_path, url=url, session="mine") as one, closing(connect_url("mine", url, 5.0)) as store:
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        one.recorder.wait_batch(1)
        with admin(server) as client:
            client.flushall()
        wait_until(lambda: len(store.lineage_of(JOB, [ident(5)])) == 1, what="the lineage, again")
        assert list(store.nodes()) == [N]


def test_the_url_is_in_no_text(short_path):
    url = f"unix://me@{short_path}/none.sock?password=s3cret"
    with bench(short_path, url=url, reply_timeout_s=0.2) as one:
        (event,) = one.recorder.wait(Unavailable)
        assert f"unix://{short_path}/none.sock" in event.reason
        assert event.log_file == ""
    assert "s3cret" not in f"{one.config!r} {one.recorder.events!r} {one.writer!r}"


def test_the_writer_takes_any_spawner(short_path):
    """A server that is a child of somebody else, and no group leader, is ended all the same."""
    shell = ("/bin/sh", "-c", 'exec "$@"', "sh")
    with bench(short_path, Spawner(prefix=shell)) as one:
        one.recorder.wait(Connected)
    assert [one.returncode for one in one.spawner.processes] == [-9]


def test_remove_object_and_recorder_types(short_path):
    with bench(short_path) as one, closing_store(one) as store:
        one.writer.post(PutObject(OBJECT, JOB, 9, "sealed", N))
        wait_until(lambda: store.object(OBJECT), what="the object")
        one.writer.post(RemoveObject(OBJECT, JOB))
        wait_until(lambda: store.object(OBJECT) is None, what="its removal")


def closing_store(one: Bench):
    one.recorder.wait(Connected)
    return closing(one.store())


def test_a_notify_that_raises_leaves_no_server(short_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(str(args.exc_value)))
    one = Bench(short_path)

    def notify(event: object) -> None:
        raise ZeroDivisionError("notify is broken")

    one.writer = GcsWriter(one.config, one.spawner, notify)
    one.writer.start()
    wait_until(lambda: told, what="the thread's end")
    one.close()
    assert told == ["notify is broken"]
    assert not os.path.exists(one.config.directory)
    assert isinstance(one.recorder, Recorder)


ACTOR = ActorRow(OBJECT, JOB, N, "name", creation=b"frame")


def test_a_confirmation_follows_what_was_posted_before(short_path):
    with bench(short_path, flush_s=60.0) as one:  # nothing that somebody waits for is gathered
        one.recorder.wait(Connected)
        one.writer.post(RecordActor(ACTOR))
        one.writer.confirm(1, "name")
        one.writer.confirm(2)
        assert one.recorder.wait(Confirmed, 2) == [Confirmed(1, N), Confirmed(2, b"")]
        with closing(one.store()) as store:
            assert store.actor(OBJECT) == ACTOR._replace(epoch=1)
            assert store.named_actor("name") == (OBJECT, N)
            store.apply([PutName("theirs", OBJECT, ident("other node"))])
        one.writer.post(RecordActor(ACTOR._replace(actor_id=ident(1) + b"\0\0\0\0", name="theirs")))
        one.writer.confirm(3, "theirs")
        assert one.recorder.wait(Confirmed, 3)[-1] == Confirmed(3, ident("other node"))


def test_a_confirmation_waits_for_the_store_and_hurries_it(short_path, shared_server):
    """A server that is not there yet: what was asked meanwhile is answered soon after it has come."""
    path = short_path / "redis.sock"
    url = f"unix://{shared_server.user}:{shared_server.password}@{path}"
    with bench(short_path, url=url, session="later", backoff_s=(60.0, 60.0)) as one:
        one.recorder.wait(Unavailable)
        one.writer.post(RecordActor(ACTOR))
        one.writer.confirm(1, "name")
        path.symlink_to(shared_server.socket_path)
        assert one.recorder.wait(Confirmed) == [Confirmed(1, N)]


def test_a_node_that_leaves_a_shared_server_takes_its_actors_along(short_path, shared_server):
    url = f"unix://{shared_server.user}:{shared_server.password}@{shared_server.socket_path}"
    store = connect_url("left", url, 5.0)
    store.register_node(NODE._replace(node_id=ident("stays")), "token")  # so that the session does
    with bench(short_path, url=url, session="left") as one:
        one.writer.post(RecordActor(ACTOR))
        detached = ACTOR._replace(actor_id=ident(1) + b"\0\0\0\0", detached=True, name="d")
        one.writer.post(RecordActor(detached))
        one.writer.confirm(1)
        one.recorder.wait(Confirmed)
        assert store.actor(detached.actor_id) is not None
    assert (store.actor(OBJECT), store.actor(detached.actor_id), store.actors_of(N)) == (None, None, [])
    assert (store.named_actor("name"), store.named_actor("d")) == (None, None)
    store.close_session()
    store.close()
