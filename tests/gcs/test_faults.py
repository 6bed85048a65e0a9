"""Everything that may go wrong with the server, and what the node sees of it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import threading
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dpool._gcs import server as server_module
from dpool._gcs.child import Child
from dpool._gcs.config import Committed, Connected, Lost, Unavailable
from dpool._gcs.operations import CommitLineage, DropTasks, Event
from dpool._gcs.redis_store import RedisStore, connect_socket
from dpool._gcs.tables import EndJob, PutFunction, PutJob
from dpool.errors import ControlStoreError
from tests.gcs.support import JOB, JOB_ROW, NODE, Bench, LossyProxy, Spawner, bench, ident, no_server
from tests.helpers import is_running, wait_until

pytestmark = pytest.mark.skipif(bool(no_server()), reason=no_server() or "there is one")
N = NODE.node_id


def records(start: int, count: int) -> list[tuple[bytes, bytes]]:
    return [(ident(number), b"record %d" % number) for number in range(start, start + count)]


def kill_server(one) -> int:
    pid: int = one.writer.server_pid
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_killed_server_comes_back_with_all_that_lives(short_path):
    """SIGKILL in mid-stream, five times: nothing that lives is lost, nothing that was dropped comes back."""
    with bench(short_path) as one:
        one.writer.post(PutJob(JOB_ROW))
        one.writer.post(PutFunction(ident("f"), JOB, b"code"))
        live: dict[bytes, bytes] = {}
        for number in range(50):
            made = records(100 * number, 100)
            one.writer.post(CommitLineage(number, JOB, made))
            live.update(made)
            gone = [task for task, _ in made[::3]]
            one.writer.post(DropTasks(gone))
            for task in gone:
                del live[task]
            if number % 10 == 5:
                one.recorder.wait(Connected, number // 10 + 1)
                kill_server(one)
        one.recorder.wait(Committed, 50)
        one.recorder.wait(Connected, 6)
        with closing(one.store()) as store:
            every = [ident(number) for number in range(5000)]
            wait_until(lambda: store.lineage_of(JOB, every) == live, what="exactly what lives")
            assert store.jobs() == {JOB: JOB_ROW}
            assert store.function(ident("f")) is not None
            assert store.nodes()[N].epoch == 1
    assert sorted(event.batch_no for event in one.recorder.all(Committed)) == list(range(50))
    (told,) = one.recorder.all(Unavailable)  # one outage, since it never worked for `steady_s` in between
    assert "was killed by signal 9" in told.reason
    assert told.log_file == one.config.log_file
    assert one.recorder.all(Lost) == []


def test_a_server_that_lost_its_data_gets_them_again(short_path):
    with bench(short_path) as one:
        one.writer.post(PutJob(JOB_ROW))
        one.writer.post(CommitLineage(1, JOB, records(0, 100)))
        one.recorder.wait_batch(1)
        pid = one.writer.server_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it cannot write its file while that is taken away
        for path in Path(one.config.directory, server_module.APPEND_DIR).iterdir():
            path.unlink()
        os.kill(pid, signal.SIGKILL)
        one.recorder.wait(Connected, 2)
        with closing(one.store()) as store:
            assert len(store.lineage_of(JOB, [ident(number) for number in range(100)])) == 100
            assert store.jobs() == {JOB: JOB_ROW}
    assert [event.epoch for event in one.recorder.all(Connected)] == [1, 1]
    assert len(one.recorder.all(Committed)) == 1


def test_a_file_that_the_server_cannot_load_is_set_aside(short_path):
    with bench(short_path) as one:
        one.writer.post(CommitLineage(1, JOB, records(0, 100)))
        one.recorder.wait_batch(1)
        pid = one.writer.server_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        data = Path(one.config.directory, server_module.APPEND_DIR)
        next(data.glob("*.manifest")).write_bytes(b"this is not what it should be\n")
        os.kill(pid, signal.SIGKILL)
        one.recorder.wait(Connected, 2)
        with closing(one.store()) as store:
            assert len(store.lineage_of(JOB, [ident(number) for number in range(100)])) == 100
        assert Path(f"{data}.rejected").is_dir()
    assert len(one.recorder.all(Unavailable)) == 1


def test_the_exit_that_the_node_reports_is_named(short_path, monkeypatch):
    """On a kernel without pidfd the node's word counts."""

    def pidfd_open(pid: int) -> int:
        raise OSError(errno.ENOSYS, "no pidfd")

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    with bench(short_path, backoff_s=(0.01, 0.05)) as one:
        one.recorder.wait(Connected)
        child = one.writer._child
        assert child is not None
        one.writer.server_exited(child.pid + 1, 7)  # somebody else
        kill_server(one)
        one.spawner.reap()
        one.writer.server_exited(child.pid, -9)
        (told,) = one.recorder.wait(Unavailable)
        assert "was killed by signal 9" in told.reason
        one.recorder.wait(Connected, 2)


def test_an_exit_that_is_reported_late_is_waited_for(short_path, monkeypatch):
    """The node has reaped it, so nobody else can see how it ended, and has not told yet."""
    asked = threading.Event()

    def reaped(child: Child) -> None:
        asked.set()

    with bench(short_path) as one:
        one.recorder.wait(Connected)
        monkeypatch.setattr(Child, "_peek", reaped)
        pid = kill_server(one)
        assert asked.wait(20)
        one.writer.server_exited(pid, -9)
        (told,) = one.recorder.wait(Unavailable)
        assert "was killed by signal 9" in told.reason
        one.recorder.wait(Connected, 2)


def test_an_exit_that_is_reported_before_the_pid_is_known(short_path):
    class Quick(Spawner):
        def __call__(self, argv: list[str], config: bytes, log_path: str) -> int:
            if self.processes:
                return super().__call__(argv, config, log_path)
            process = subprocess.Popen(["/bin/sh", "-c", "exit 3"])
            one.writer.server_exited(process.pid, process.wait(20))
            self.processes.append(process)
            return process.pid

    one = Bench(short_path, Quick())
    try:
        one.writer.start()
        (told,) = one.recorder.wait(Unavailable)
        assert "exited with status 3" in told.reason
        one.recorder.wait(Connected)
    finally:
        one.close()


def test_an_end_explains_the_broken_connection(short_path, monkeypatch):
    """Whichever of the two is seen first."""
    apply = RedisStore.apply

    def broken(store: RedisStore, writes: Any) -> None:
        monkeypatch.setattr(RedisStore, "apply", apply)
        kill_server(one)
        raise ControlStoreError("the connection is broken")

    with bench(short_path) as one:
        one.recorder.wait(Connected)
        monkeypatch.setattr(RedisStore, "apply", broken)
        one.writer.post(PutJob(JOB_ROW))
        (told,) = one.recorder.wait(Unavailable)
        assert "was killed by signal 9" in told.reason
        one.recorder.wait(Connected, 2)


def test_a_stopped_server_is_replaced(short_path):
    with bench(short_path, reply_timeout_s=0.5, start_timeout_s=2.0) as one:
        one.recorder.wait(Connected)
        stopped = one.writer.server_pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        one.recorder.wait_batch(1)
        assert one.writer.server_pid != stopped
        assert not is_running(stopped)
    assert len(one.recorder.all(Unavailable)) == 1


def test_close_does_not_wait_for_a_stopped_server(short_path):
    with bench(short_path, reply_timeout_s=60.0) as one:
        one.recorder.wait(Connected)
        pid = one.writer.server_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        one.writer.close(0.05)
        assert not any(thread.name == "dpool-gcs" for thread in threading.enumerate())
    assert [event.batch_no for event in one.recorder.all(Lost)] == [1]


# --- it cannot start ---


def cannot_start(one, reason: str) -> None:
    """One Unavailable, although it is tried again and again; local work (posting) goes on; batches are told Lost."""
    one.writer.post(CommitLineage(1, JOB, records(0, 10)))
    one.writer.post(CommitLineage(2, JOB, records(10, 10)))
    one.writer.post(DropTasks([ident(number) for number in range(10)]))
    one.recorder.wait_batch(1)  # not needed any more, so safe
    (told,) = one.recorder.wait(Unavailable)
    assert reason in told.reason
    assert told.log_file == one.config.log_file
    one.writer.close(5.0)
    assert len(one.recorder.all(Unavailable)) == 1
    assert [event.batch_no for event in one.recorder.all(Lost)] == [2]
    assert one.recorder.all(Connected) == []


def test_no_thread(short_path, monkeypatch):
    """It can be started later, and has lost nothing."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    one = Bench(short_path)
    try:
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="new thread"):
                one.writer.start()
        one.writer.post(CommitLineage(2, JOB, records(10, 10)))
        one.writer.start()
        one.recorder.wait_batch(1)
        one.recorder.wait_batch(2)
    finally:
        one.close()


def test_no_binary(short_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(server_module, "find_spec", lambda name: None)
    with bench(short_path) as one:
        cannot_start(one, "no redis-server or valkey-server on PATH")


def test_a_binary_that_cannot_be_run(short_path, monkeypatch):
    bad = short_path / "redis-server"
    bad.write_bytes(b"\x7fELF and nothing more")
    bad.chmod(0o755)
    monkeypatch.setenv("PATH", str(short_path))
    with bench(short_path) as one:
        cannot_start(one, f"cannot start {bad}")


def test_a_binary_that_exits_at_once_is_tried_again_with_pauses(short_path, monkeypatch):
    bad = short_path / "redis-server"
    bad.write_text("#!/bin/sh\necho cannot find my hat\nexit 3\n")
    bad.chmod(0o755)
    monkeypatch.setenv("PATH", f"{short_path}:/bin:/usr/bin")
    with bench(short_path) as one:
        wait_until(lambda: len(one.spawner.processes) >= 4, what="four attempts")
        cannot_start(one, "exited with status 3; its last words: cannot find my hat")


def test_a_binary_that_never_answers(short_path, monkeypatch):
    bad = short_path / "redis-server"
    bad.write_text("#!/bin/sh\nexec /bin/sleep 1000\n")
    bad.chmod(0o755)
    monkeypatch.setenv("PATH", f"{short_path}:/bin:/usr/bin")
    with bench(short_path, start_timeout_s=0.1) as one:
        cannot_start(one, "did not answer within 0.1 s")


def test_a_directory_that_cannot_be_made(short_path):
    (short_path / "file").write_text("in the way")
    with bench(short_path / "file") as one:
        cannot_start(one, f"cannot make the directory {short_path}/file/gcs")


@pytest.mark.root
def test_a_directory_that_the_server_cannot_write(short_path):
    """Root may write everywhere, so the server runs as somebody else."""

    def become_nobody() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    with bench(short_path, Spawner(preexec=become_nobody)) as one:
        cannot_start(one, "ermission denied")


def test_a_log_that_cannot_be_written(short_path):
    with bench(short_path, log_file=str(short_path / "none" / "gcs.log")) as one:
        cannot_start(one, "No such file or directory")


def test_a_full_disk(short_path):
    """The append-only file may not grow beyond 20 kB: told once, and the node works on."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    with bench(short_path, Spawner(preexec=small_files)) as one:
        one.recorder.wait(Connected)
        for number in range(100):
            one.writer.post(CommitLineage(number, JOB, [(ident((number, k)), bytes(100)) for k in range(10)]))
        (told,) = one.recorder.wait(Unavailable)
        assert told.log_file == one.config.log_file
        assert told.reason
        for number in range(100):
            one.writer.post(DropTasks([ident((number, k)) for k in range(10)]))
        one.recorder.wait(Committed, 100)
        wait_until(lambda: len(one.writer._ledger._task_batch) == 0, what="the drop")
    assert len(one.recorder.all(Unavailable)) == 1


def test_a_full_store(short_path):
    """What is refused is kept, what removes something is not held up by it, and all goes on once there is room."""
    big = ident("big job")
    with bench(short_path, maxmemory_bytes=4 << 20) as one:
        one.writer.post(CommitLineage(1, JOB, records(0, 10)))
        one.recorder.wait_batch(1)
        pid = one.writer.server_pid
        for number in range(8):
            one.writer.post(PutFunction(ident(number), big, bytes(1 << 20)))
        (told,) = one.recorder.wait(Unavailable)
        assert "maxmemory" in told.reason
        one.writer.post(CommitLineage(2, JOB, records(10, 10)))
        kill_server(one)  # even its return does not help
        wait_until(lambda: one.writer.server_pid not in (pid, None), what="another server")
        one.writer.post(DropTasks([ident(number) for number in range(10)]))
        with closing(connect_to(one)) as store:
            wait_until(lambda: not store.lineage_of(JOB, [ident(0)]), what="the removal")
        assert one.recorder.all(Committed)[1:] == []
        one.writer.post(EndJob(big))
        one.recorder.wait_batch(2)
        with closing(one.store()) as store:
            assert store.lineage_of(JOB, [ident(number) for number in range(20)]) == dict(records(10, 10))
            assert [store.function(ident(number)) for number in range(8)] == [None] * 8
    assert len(one.recorder.all(Unavailable)) == 1


def connect_to(one):
    """A connection to the writer's server, once it answers."""
    wait_until(one.writer._server.probe, what="the server's answer")
    return one.store()


def test_events_are_bounded_while_the_server_is_away(short_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(server_module, "find_spec", lambda name: None)
    with bench(short_path, max_events=10) as one:
        one.recorder.wait(Unavailable)
        for number in range(1000):
            one.writer.post(Event(1.0, f"event.{number}"))
        wait_until(lambda: not one.writer._queue, what="the writer to take them in")
        monkeypatch.undo()
        one.recorder.wait(Connected)
        with closing(one.store()) as store:
            wait_until(lambda: store.events(N), what="the events")
            assert [row.name for row in store.events(N)] == [
                *(f"event.{n}" for n in range(990, 1000)),
                "events.dropped",
            ]
            assert store.events(N)[-1].detail == "total=990"


def test_a_later_failure_is_a_new_outage(short_path):
    with bench(short_path, steady_s=0.0) as one:
        for number in range(1, 4):
            one.recorder.wait(Connected, number)
            kill_server(one)
            one.recorder.wait(Unavailable, number)
        one.recorder.wait(Connected, 4)
    assert len(one.recorder.all(Unavailable)) == 3


# --- replies that get lost ---


@pytest.fixture
def lossy(shared_server, short_path):
    proxy = LossyProxy(str(short_path / "proxy.sock"), shared_server.socket_path)
    stores = [
        connect_socket("lossy", path, shared_server.user, shared_server.password, 5.0)
        for path in (proxy.path, shared_server.socket_path)
    ]
    yield proxy, *stores
    stores[1].close_session()
    for store in stores:
        store.close()
    proxy.close()


def test_a_write_whose_reply_was_lost_is_not_repeated_behind_our_back(lossy):
    proxy, store, direct = lossy
    assert store.nodes() == {}
    proxy.lose = True
    with pytest.raises(ControlStoreError):
        store.register_node(NODE, "token")
    assert proxy.lost == 1
    assert direct.nodes()[N].epoch == 1


def test_a_registration_repeated_after_a_lost_reply_has_its_effect_once(lossy):
    proxy, store, direct = lossy
    store.nodes()
    for _ in range(3):
        proxy.lose = True
        with pytest.raises(ControlStoreError):
            store.register_node(NODE, "token")
        proxy.lose = False
    assert store.register_node(NODE, "token") == 1
    assert direct.register_node(NODE._replace(node_id=ident("other")), "other") == 2


def more_lost(proxy: LossyProxy, than: int) -> bool:
    return proxy.lost > than


def test_a_writer_whose_replies_are_lost_writes_everything_once(short_path, shared_server):
    """Each reply is dropped now and then; in the end each batch, event and epoch is there, and once."""
    proxy = LossyProxy(str(short_path / "proxy.sock"), shared_server.socket_path)
    url = f"unix://{shared_server.user}@{proxy.path}?password={shared_server.password}"
    try:
        with bench(short_path, url=url, session="lossy-writer", backoff_s=(0.01, 0.02)) as one:
            one.recorder.wait(Connected)
            for number in range(20):
                proxy.lose = number % 3 == 0
                lost = proxy.lost
                one.writer.post(CommitLineage(number, JOB, records(10 * number, 10)))
                one.writer.post(Event(1.0 + number, f"event.{number}"))
                if proxy.lose:
                    wait_until(partial(more_lost, proxy, lost), what="a lost reply")
                    proxy.lose = False
                one.recorder.wait_batch(number)
            with closing(
                connect_socket("lossy-writer", shared_server.socket_path, "dpool", shared_server.password, 5.0)
            ) as store:
                assert len(store.lineage_of(JOB, [ident(number) for number in range(200)])) == 200
                wait_until(lambda: len(store.events(N)) == 20, what="every event, once")
                assert store.nodes()[N].epoch == 1
        assert sorted(event.batch_no for event in one.recorder.all(Committed)) == list(range(20))
    finally:
        proxy.close()
