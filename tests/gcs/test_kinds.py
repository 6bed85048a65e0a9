"""Redis as it is found elsewhere: several servers, a cluster, sentinels, TLS."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpool._gcs.redis_store import RedisStore, connect_url, redact
from dpool._gcs.server import find_binary
from dpool._gcs.spread import EMPTY, FILL, key_of, steps
from dpool._gcs.tables import EndJob, PutActor, PutFunction, PutJob, PutName
from dpool.errors import ControlStoreError
from tests.gcs.support import JOB, JOB_ROW, NODE, ident, no_server
from tests.gcs.test_store import ACTOR
from tests.helpers import wait_until

needs_server = pytest.mark.skipif(bool(no_server()), reason=no_server() or "there is one")
DEADLINE_S = 60.0
N = NODE.node_id


def free_ports(count: int) -> list[int]:
    """Each with the port 10,000 above it free, too, which servers of a cluster use."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            if port not in found:
                found.append(port)
    return found


class Server:
    """One on a port of loopback; `lines` is its configuration."""

    def __init__(self, directory: Path, port: int, *lines: str, arguments: tuple[str, ...] = ("-",)) -> None:
        directory.mkdir()
        self.port = port
        config = "\n".join(["bind 127.0.0.1", f"dir {directory}", 'save ""', "appendonly no", *lines, ""])
        (directory / "config").write_text(config)
        argv = [find_binary(), *(str(directory / "config") if one == "-" else one for one in arguments)]
        with open(directory / "log", "wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=directory)

    def ask(self, *words: str) -> bytes:
        """The first bytes of the answer to a command."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.sendall(b"".join([b"*%d\r\n" % len(words), *(f"${len(w)}\r\n{w}\r\n".encode() for w in words)]))
            return sock.recv(65536)

    def answers(self) -> bool:
        try:
            return self.ask("PING") == b"+PONG\r\n"
        except OSError:
            return False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    try:
        for server in servers:
            wait_until(server.answers, DEADLINE_S, "it answers")
        yield
    finally:
        for server in servers:
            server.stop()


def use(store: RedisStore) -> None:
    """A little of everything."""
    assert store.register_node(NODE, "token") >= 1
    actors = [ACTOR._replace(actor_id=ident(i) + b"\0\0\0\0", name=f"n{i}") for i in range(20)]
    store.apply([PutJob(JOB_ROW), *(PutFunction(ident(i), JOB, b"code") for i in range(20)), *map(PutActor, actors)])
    store.apply([PutName(row.name, row.actor_id, N) for row in actors])
    assert all(store.named_actor(row.name) == (row.actor_id, N) for row in actors)
    assert len(store.actors_of(N)) == 20
    store.apply([EndJob(JOB)])
    assert (store.actors_of(N), store.function(ident(3)), store.named_actor("n7")) == ([], None, None)


@needs_server
def test_several_servers_share_the_keys(tmp_path: Path) -> None:
    ports = free_ports(3)
    servers = [Server(tmp_path / str(port), port, f"port {port}") for port in ports]
    with running(*servers):
        url = ",".join(f"redis://127.0.0.1:{port}" for port in ports)
        store = connect_url("several", url, 5.0)
        store.apply([PutFunction(ident(i), JOB, b"code") for i in range(30)])
        sizes = [server.ask("DBSIZE") for server in servers]
        assert all(size != b":0\r\n" for size in sizes), f"each has some: {sizes}"
        use(store)
        servers[1].stop()
        with pytest.raises(ControlStoreError, match=r"127\.0\.0\.1"):
            use(store)
        store.close()
        again = Server(tmp_path / "again", ports[1], f"port {ports[1]}")
        with running(again):
            use(store)
            store.close_session()
            assert [one.ask("DBSIZE") for one in (servers[0], again, servers[2])] == [b":0\r\n"] * 3
            store.close()


@needs_server
def test_a_redis_cluster(tmp_path: Path) -> None:
    ports = free_ports(3)
    lines = ("cluster-enabled yes", "cluster-require-full-coverage no")
    servers = [Server(tmp_path / str(port), port, f"port {port}", *lines) for port in ports]
    with running(*servers):
        shares = ((0, 5460), (5461, 10922), (10923, 16383))
        for server, (first, last) in zip(servers, shares, strict=True):
            assert server.ask("CLUSTER", "ADDSLOTSRANGE", str(first), str(last)) == b"+OK\r\n"
        for port in ports[1:]:
            servers[0].ask("CLUSTER", "MEET", "127.0.0.1", str(port))
        wait_until(lambda: all(map(is_whole, servers)), DEADLINE_S)
        store = connect_url("cluster", f"redis+cluster://127.0.0.1:{ports[2]},127.0.0.1:{ports[0]}", 5.0)
        use(store)
        store._link._ranges = [(0, 16383, store._link._ranges[0][2])]  # type: ignore[attr-defined]  # as if it had been so
        use(store)
        assert len(store._link._ranges) == 3, "it has learned that it is not"  # type: ignore[attr-defined]
        store.close_session()
        assert [one.ask("DBSIZE") for one in servers] == [b":0\r\n"] * 3
        store.close()


def is_whole(server: Server) -> bool:
    info = server.ask("CLUSTER", "INFO")
    return all(word in info for word in (b"cluster_state:ok", b"cluster_slots_ok:16384", b"cluster_known_nodes:3"))


@needs_server
def test_sentinels_name_the_master(tmp_path: Path) -> None:
    first, second, port = free_ports(3)
    master = Server(tmp_path / "master", first, f"port {first}")
    other = Server(tmp_path / "other", second, f"port {second}")
    sentinel = Server(
        tmp_path / "sentinel", port, f"port {port}", f"sentinel monitor ours 127.0.0.1 {first} 1",
        arguments=("-", "--sentinel"),
    )  # fmt: skip
    with running(master, other, sentinel):
        store = connect_url("watched", f"redis+sentinel://127.0.0.1:{port}/ours", 5.0)
        use(store)
        assert master.ask("DBSIZE") != b":0\r\n"
        connections = store.connections
        sentinel.ask("SENTINEL", "REMOVE", "ours")
        sentinel.ask("SENTINEL", "MONITOR", "ours", "127.0.0.1", str(second), "1")
        master.stop()
        wait_until(lambda: works(store), DEADLINE_S, "the other one is used")
        assert store.connections > connections, "whoever uses it writes everything again"
        assert other.ask("DBSIZE") != b":0\r\n"
        store.close()


def works(store: RedisStore) -> bool:
    try:
        use(store)
    except ControlStoreError:
        return False
    return True


@needs_server
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    (port,) = free_ports(1)
    lines = ("port 0", f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}", "tls-auth-clients no")
    server = Server(tmp_path / "tls", port, *lines, "requirepass s3cret")
    try:
        wait_until(lambda: server.process.poll() is not None or listens(port), DEADLINE_S)
        if server.process.poll() is not None and b"tls" in (tmp_path / "tls" / "log").read_bytes():
            pytest.skip("this server has no TLS")
        url = f"rediss://:s3cret@127.0.0.1:{port}"
        store = connect_url("tls", f"{url}?ssl_ca_certs={certificate}", 5.0)
        use(store)
        store.close()
        with pytest.raises(ControlStoreError, match=r"(?i)certificate") as refused:
            use(connect_url("tls", url, 5.0))
        assert "s3cret" not in str(refused.value)
    finally:
        server.stop()


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+sentinel://u:s3cret@a:1,b:2/ours/0?sentinel_password=s3cret", "redis+sentinel://a:1,b:2/ours/0"),
        ("rediss+cluster://u:s3@cret@a:1,b:2", "rediss+cluster://a:1,b:2"),
        ("redis://:s3cret@a:1,redis://:s3cret@b:2/3?x=s3cret", "redis://a:1,redis://b:2/3"),
        ("redis://u:s3cret", "(a malformed URL)"),
        ("redis://u:s3/cret@a", "redis://a"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    "url", ["redis+sentinel://a:1", "redis+cluster://a", "redis+cluster://a:x", "redis+other://a:1"]
)
def test_malformed_urls_are_refused(url: str) -> None:
    with pytest.raises(ControlStoreError, match="malformed"):
        connect_url("s", url, 5.0)


commands = st.lists(
    st.tuples(st.sampled_from(["SADD", "HSET", "SREM", "HDEL", "UNLINK"]), st.sampled_from("abcdef")), max_size=12
)


@given(commands)
def test_every_command_is_sent_once_and_no_key_sees_another_order(given_commands: list[Any]) -> None:
    sent = [number for step in steps(given_commands, place) for numbers in step.values() for number in numbers]
    assert sorted(sent) == list(range(len(given_commands)))
    for key in {key_of(one) for one in given_commands}:
        mine = [number for number in sent if key_of(given_commands[number]) == key]
        assert mine == sorted(mine)
    if len({key_of(one) for one in given_commands}) == len(given_commands):
        kinds = [0 if given_commands[n][0] in FILL else 2 if given_commands[n][0] in EMPTY else 1 for n in sent]
        assert kinds == sorted(kinds) or len({place(one) for one in given_commands}) == 1


def place(command: Any) -> int:
    return ord(command[1]) % 3


def test_a_batch_takes_few_round_trips() -> None:
    one_actor = [("SADD", "a", "x"), ("SADD", "b", "x"), ("EVAL", "…", 1, "c{x}")]
    assert len(list(steps(one_actor * 100, lambda command: os.fsencode(key_of(command))))) == 2
