"""Redis' protocol on a Unix socket: every kind of answer, whatever pieces it comes in, and every way to get none."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpool._gcs.resp import LinkFailed, ServerRefused, SocketLink, read_answer, request
from tests.gcs.support import no_server
from tests.helpers import wait_until

WAIT_S = 30.0


class Server:
    """Says what it is told to: an answer to the login and one to each call, a byte at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.heard: list[bytes] = []
        self.answers: list[bytes] = []
        self.connections = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while not self.over.is_set():
            link, _ = self.listener.accept()
            self.connections += 1
            with link:
                while data := link.recv(1 << 20):
                    self.heard.append(data)
                    logs_in = data.startswith(b"*3\r\n$4\r\nAUTH")
                    answer = b"+OK\r\n" if logs_in else self.answers.pop(0)
                    if answer == b"hang up":
                        break
                    for byte in answer:
                        link.sendall(bytes((byte,)))

    def close(self) -> None:
        self.over.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
        self.thread.join(WAIT_S)
        self.listener.close()
        assert not self.thread.is_alive()


@pytest.fixture
def server(short_path: Path) -> Iterator[Server]:
    one = Server(f"{short_path}/s")
    yield one
    one.close()


@pytest.fixture
def link(server: Server) -> Iterator[SocketLink]:
    one = SocketLink(server.path, "me", "secret", WAIT_S)
    yield one
    one.close()


def test_a_request_is_counted_in_bytes() -> None:
    assert request("SET", "kü", b"\0\r\n", 12) == b"*4\r\n$3\r\nSET\r\n$3\r\nk\xc3\xbc\r\n$3\r\n\0\r\n\r\n$2\r\n12\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"+OK\r\n", b"OK"),
        (b":-12\r\n", -12),
        (b"$5\r\na\r\nb\0\r\n", b"a\r\nb\0"),
        (b"$0\r\n\r\n", b""),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"*0\r\n", []),
        (b"*3\r\n:1\r\n*1\r\n$1\r\nx\r\n$-1\r\n", [1, [b"x"], None]),
    ],
)
def test_every_kind_of_answer(server: Server, link: SocketLink, sent: bytes, expected: object) -> None:
    server.answers = [sent + b"+next\r\n"]
    assert link.execute([("A",), ("B", 1)]) == [expected, b"next"]
    assert server.heard == [request("AUTH", "me", "secret"), request("A") + request("B", 1)]


def test_an_error_is_that_command_s(server: Server, link: SocketLink) -> None:
    server.answers = [b"-OOM command not allowed\r\n:1\r\n"]
    refused, one = link.execute([("A",), ("B",)])
    assert isinstance(refused, ServerRefused)
    assert (str(refused), one) == ("OOM command not allowed", 1)


@pytest.mark.parametrize("sent", [b"hang up", b"?\r\n", b"$x\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"$5\r\nab"])
def test_after_no_answer_the_next_call_connects_again(server: Server, sent: bytes) -> None:
    link = SocketLink(server.path, "me", "secret", WAIT_S)
    server.answers = [b":0\r\n", sent]
    assert link.execute([("first",)]) == [0]
    if sent.endswith(b"ab"):  # the rest never comes; what must come has had its time
        assert link._sock is not None
        link._sock.settimeout(0.2)
    with pytest.raises(LinkFailed, match=r"closed the connection|not an answer of Redis|no answer within"):
        link.execute([("A",)])
    server.answers = [b":1\r\n", b":2\r\n"]
    assert [link.execute([("B",)]), link.execute([("C",)])] == [[1], [2]]
    link.close()
    assert server.connections == 2


def test_nobody_listens(short_path: Path) -> None:
    link = SocketLink(f"{short_path}/none", "me", "secret", WAIT_S)
    with pytest.raises(LinkFailed, match="cannot connect: No such file or directory"):
        link.execute([("A",)])
    link.close()


def test_another_thread_ends_a_call(server: Server, link: SocketLink) -> None:
    server.answers = [b"$5\r\n"]
    failed: list[str] = []

    def call() -> None:
        with pytest.raises(LinkFailed) as caught:
            link.execute([("A",)])
        failed.append(str(caught.value))

    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: len(server.heard) == 2, WAIT_S, "the command has been sent")
    link.close()
    caller.join(WAIT_S)
    assert failed


def test_cut_off_anywhere() -> None:
    whole = b"*3\r\n:1\r\n$4\r\nab\r\n\r\n+x\r\n"
    assert read_answer(io.BufferedReader(io.BytesIO(whole))) == [1, b"ab\r\n", b"x"]
    for count in range(len(whole)):
        with pytest.raises(ConnectionError):
            read_answer(io.BytesIO(whole[:count]))


@pytest.mark.skipif(bool(no_server()), reason=no_server() or "there is a server")
def test_both_kinds_of_link_give_the_same(shared_server: Any) -> None:
    from dpool._gcs.redis_link import link_to

    login = shared_server.socket_path, shared_server.user, shared_server.password
    url = f"unix://{login[1]}:{login[2]}@{login[0]}"
    links: list[tuple[str, Callable[[], Any]]] = [
        ("resp", lambda: SocketLink(*login, WAIT_S)),
        ("redis-py", lambda: link_to(url, "there", WAIT_S)),
    ]
    commands: list[tuple[Any, ...]] = [
        ("HSET", "dpool:t:h", "field", b"\0\xff", "n", 1),
        ("HGETALL", "dpool:t:h"),
        ("HMGET", "dpool:t:h", "field", "none"),
        ("ZADD", "dpool:t:z", 1.5, "m"),
        ("ZSCORE", "dpool:t:z", "m"),
        ("SADD", "dpool:t:s", "one"),
        ("SMEMBERS", "dpool:t:s"),
        ("XADD", "dpool:t:x", "1-1", "k", "v"),
        ("XRANGE", "dpool:t:x", "-", "+"),
        ("SCAN", 0, "MATCH", "dpool:t:none*", "COUNT", 1000),
        ("GET", "dpool:t:none"),
        ("SET", "dpool:t:big", os.urandom(3) * 1_000_000),
        ("STRLEN", "dpool:t:big"),
        ("EVAL", "return {1, false, {'x'}}", 0),
        ("NOSUCH", "command"),
        ("UNLINK", "dpool:t:h", "dpool:t:z", "dpool:t:s", "dpool:t:x", "dpool:t:big"),
    ]
    found = []
    for _, make in links:
        link = make()
        answers = link.execute(commands)
        found.append([type(one) if isinstance(one, ServerRefused) else one for one in answers])
        link.close()
    assert found[0] == found[1]
    assert (found[0][1], found[0][-2], found[0][-1]) == ([b"field", b"\0\xff", b"n", b"1"], ServerRefused, 5)
