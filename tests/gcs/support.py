"""What the control store's tests share: a spawner, a recorder of events, ids, and a proxy that loses replies."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dpool._gcs.config import Committed, Confirmed, Connected, GcsConfig, GcsEvent, Lost, Unavailable
from dpool._gcs.redis_store import RedisStore, connect_socket
from dpool._gcs.server import EmbeddedServer, find_binary
from dpool._gcs.tables import JobRow, NodeRow
from dpool._gcs.writer import GcsWriter
from dpool.errors import ControlStoreError
from tests.helpers import wait_until

E = TypeVar("E", Committed, Confirmed, Connected, Lost, Unavailable)

ADMIN = "user admin on nopass allkeys allchannels +@all"
"""A line of configuration for a user of the tests' own, who may look at the server."""


def ident(name: object) -> bytes:
    """An id of 16 bytes, the same for the same name."""
    return hashlib.blake2b(repr(name).encode(), digest_size=16).digest()


NODE = NodeRow(ident("node"), "here", os.getpid(), "", (("CPU", 2.0),), 1000.0)
JOB = ident("job")
JOB_ROW = JobRow(JOB, NODE.node_id, os.getpid(), "a job", 1000.0)


def no_server() -> str:
    """Why there is no server to test with; empty if there is one."""
    try:
        find_binary()
    except ControlStoreError as error:
        return str(error)
    return ""


class Spawner:
    """Starts servers as the node would, in process groups of their own, and reaps them."""

    def __init__(self, prefix: tuple[str, ...] = (), preexec: Callable[[], None] | None = None) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.inputs: list[bytes] = []
        self.prefix = prefix
        self.preexec = preexec

    def __call__(self, argv: list[str], config: bytes, log_path: str) -> int:
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                [*self.prefix, *argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                restore_signals=False,
                preexec_fn=self.preexec,
            )
        self.processes.append(process)
        self.inputs.append(config)
        assert process.stdin is not None
        try:
            with process.stdin as stdin:
                stdin.write(config)
        except BrokenPipeError:
            pass  # it has ended already; the writer sees that
        return process.pid

    def reap(self) -> list[int]:
        """How each of them ended; they must have."""
        return [process.wait(5) for process in self.processes]


class Recorder:
    """Takes the writer's events."""

    def __init__(self) -> None:
        self.events: list[GcsEvent] = []

    def __call__(self, event: GcsEvent) -> None:
        self.events.append(event)

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def wait(self, kind: type[E], count: int = 1, deadline_s: float = 20.0) -> list[E]:
        """The events of this kind, once there are `count`."""
        wait_until(lambda: len(self.all(kind)) >= count, deadline_s, f"{count} × {kind.__name__} in {self.events}")
        return self.all(kind)

    def wait_batch(self, batch_no: int) -> None:
        """Until the batch is committed."""
        wait_until(
            lambda: batch_no in [event.batch_no for event in self.all(Committed)],
            20.0,
            f"batch {batch_no} committed in {self.events[-5:]}",
        )


class Bench:
    """A writer with its spawner and recorder, on an embedded server unless `url` is given."""

    def __init__(self, directory: Path, spawner: Spawner | None = None, **config: Any) -> None:
        self.spawner = spawner or Spawner()
        self.recorder = Recorder()
        settings = {
            "session": "bench",
            "node": NODE,
            "directory": str(directory / "gcs"),
            "log_file": str(directory / "gcs.log"),
            "backoff_s": (0.02, 0.2),
            **config,
        }
        self.config = GcsConfig(**settings)
        self.writer = GcsWriter(self.config, self.spawner, self.recorder)

    def store(self) -> RedisStore:
        """A connection of its own to the writer's server."""
        server = self.writer._server
        assert server is not None
        return connect_socket(self.config.session, server.socket_path, server.user, server.password, 5.0)

    def close(self) -> None:
        self.writer.close(5.0)
        self.spawner.reap()


@contextmanager
def bench(directory: Path, spawner: Spawner | None = None, **config: Any) -> Iterator[Bench]:
    """A started writer, closed at the end; nothing of it may be left then."""
    one = Bench(directory, spawner, **config)
    try:
        one.writer.start()
        yield one
    finally:
        one.close()
    assert not os.path.exists(one.config.directory)


class LossyProxy:
    """A Unix socket in front of a server's: passes requests on; while `lose` is set, drops the reply and the link."""

    def __init__(self, path: str, server_path: str) -> None:
        self.path = path
        self.lose = False
        self.lost = 0
        self._server_path = server_path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen()
        self._links: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="lossy-proxy")]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            back = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            back.connect(self._server_path)
            self._links += [link, back]
            for source, target, reply in ((link, back, False), (back, link, True)):
                thread = threading.Thread(target=self._pass, args=(source, target, reply), name="lossy-proxy")
                self._threads.append(thread)
                thread.start()

    def _pass(self, source: socket.socket, target: socket.socket, reply: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if reply and self.lose:
                    self.lost += 1
                    break
                target.sendall(data)
        except OSError:
            pass  # the other direction has closed the link
        for link in (source, target):
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads[:1]:
            thread.join()
        for link in self._links:
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
        for thread in self._threads[1:]:
            thread.join()
        for link in self._links:
            link.close()
        os.unlink(self.path)


def admin(server: EmbeddedServer) -> Any:
    """A redis client of the user `admin` (see ADMIN), on the server's socket."""
    import redis

    return redis.Redis(unix_socket_path=server.socket_path, username="admin", password="x", protocol=2)
