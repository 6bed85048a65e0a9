"""Somebody says to the node, to a worker or to the driver what none of ours would: that peer is closed, nobody else."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import stat
import struct
import sys
import warnings
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

import dpool
from dpool._core import wire
from dpool._core.config import PROTOCOL, VERSION, Config
from dpool._core.messages import (
    Blocked,
    Bye,
    ClosePool,
    Grant,
    Hello,
    KillWorker,
    OpenPool,
    Refused,
    RequestLeases,
    ReturnLease,
    TasksDispatched,
    Welcome,
    encode,
    versions,
)
from dpool.errors import WorkerCrashed
from tests.faults import tasks
from tests.faults.support import (
    DEADLINE_S,
    Ledger,
    by_role,
    one_of_role,
    resident_bytes,
    servers,
    session_of,
    workers_of,
)
from tests.gcs.support import no_server
from tests.helpers import wait_until

NODE = "dpool-node"
HELLO = Hello(PROTOCOL, *versions(), os.getpid(), b"j" * 16, "a guest", 0, tuple(Config()), sys.path)


class Peer:
    """A program of this user that speaks to the node."""

    def __init__(self, session: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(session / "node.sock"))  # waits, if the node has many to accept
        self.sock.settimeout(DEADLINE_S)
        self.channel = wire.ControlChannel(self.sock)

    def say(self, *packets: bytes) -> None:
        for packet in packets:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # closed after an earlier one
                self.sock.send(packet)

    def hear(self) -> object:
        """The next message; None when the node closed the connection."""
        try:
            return self.channel.receive(0)[0]
        except wire.Closed:
            return None

    def closed(self) -> bool:
        """Read to the end of the connection."""
        while self.hear() is not None:
            pass
        return True


@pytest.fixture
def session() -> Iterator[tuple[dpool.Executor, Path]]:
    """An executor that works before and after the test, and its session."""
    with dpool.Executor(2) as executor:
        assert executor.submit(tasks.double, 1).result(DEADLINE_S) == 2
        node = one_of_role(NODE)
        yield executor, session_of(node)
        assert list(executor.map(tasks.double, range(200))) == [2 * x for x in range(200)]
        assert by_role(NODE) == [node], "the node died of it"


@pytest.fixture
def peer(session: tuple[dpool.Executor, Path]) -> Iterator[Peer]:
    made = Peer(session[1])
    yield made
    made.sock.close()


def truncated(message: object) -> list[bytes]:
    data = encode(message)
    return [data[:n] for n in (1, 2, len(data) // 2, len(data) - 1)]


# --- To the node ---


@pytest.mark.parametrize(
    "packet",
    [
        b"\0",
        b"\xff" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"M",
        struct.pack("<cQ", b"M", 1 << 40),
        pickle.dumps(("a", "pickle"), 5),
        encode(HELLO)[:1] + b"\x80\x05not a pickle",
        encode(HELLO)[:1] + pickle.dumps({"no": "tuple"}, 5),
        encode(HELLO)[:1] + pickle.dumps((1, 2), 5),
        encode(Bye()),
        encode(OpenPool(1, 1, b"")),
        encode(Blocked(True)),
        *truncated(HELLO),
        b"\1" * (wire.INLINE_LIMIT + 8192),
    ],
    ids=lambda packet: f"{packet[:8]!r}x{len(packet)}",
)
def test_garbage_before_hello_closes_that_peer(peer: Peer, packet: bytes) -> None:
    peer.say(packet)
    assert peer.closed()


@pytest.mark.parametrize(
    "packet",
    [
        b"\0garbage",
        encode(HELLO),
        encode(Welcome(b"n" * 16, 1, "", "", "", ())),
        encode(Grant(1, 1, (), (), False, "")),
        encode(OpenPool("a", "b", "c")),  # type: ignore[arg-type]
        encode(OpenPool([], 1, b"")),  # type: ignore[arg-type]
        encode(RequestLeases({}, (), 1)),  # type: ignore[arg-type]
        encode(KillWorker([], 1, 9)),  # type: ignore[arg-type]
        encode(KillWorker(1, [], 9)),  # type: ignore[arg-type]
        encode(ReturnLease([], [], [])),  # type: ignore[arg-type]
        encode(TasksDispatched(5)),  # type: ignore[arg-type]
        *truncated(RequestLeases(1, (), 1)),
        b"\1" * (wire.INLINE_LIMIT + 8192),
    ],
    ids=lambda packet: f"{packet[:1]!r}x{len(packet)}",
)
def test_garbage_after_hello_closes_that_peer(peer: Peer, packet: bytes) -> None:
    peer.say(encode(HELLO))
    assert type(peer.hear()) is Welcome
    peer.say(packet)
    assert peer.closed()


def test_a_stream_of_random_packets(session: tuple[dpool.Executor, Path]) -> None:
    import random

    seed = int(os.environ.get("DPOOL_TEST_SEED", "0")) or random.randrange(1 << 30)
    print("DPOOL_TEST_SEED", seed)
    rng = random.Random(seed)
    known = [encode(one) for one in (HELLO, OpenPool(1, 1, b""), RequestLeases(9, (), 1), ClosePool(4, True), Bye())]
    executor, directory = session
    futures = [executor.submit(tasks.double, x) for x in range(1000)]
    for _ in range(150):
        one = Peer(directory)
        if rng.random() < 0.7:
            one.say(known[0])
        for _ in range(rng.randrange(1, 6)):
            packet = bytearray(rng.choice(known))
            for _ in range(rng.randrange(0, 4)):
                packet[rng.randrange(len(packet))] = rng.randrange(1, 256)
            if rng.random() < 0.3:
                del packet[rng.randrange(1, len(packet)) :]
            one.say(bytes(packet))
        one.sock.close()
    assert [future.result(DEADLINE_S) for future in futures] == [2 * x for x in range(1000)]


def test_packets_with_descriptors_that_nobody_asked_for(session: tuple[dpool.Executor, Path]) -> None:
    """They are closed: the node does not run out of descriptors by them."""
    node = one_of_role(NODE)
    before = len(os.listdir(f"/proc/{node}/fd"))
    null = os.open(os.devnull, os.O_RDONLY)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [null] * 4))]
    for packet in (encode(HELLO), b"\0garbage", struct.pack("<cQ", b"M", 12345)):
        for _ in range(20):
            one = Peer(session[1])
            one.sock.sendmsg([packet], rights)
            one.sock.close()
    os.close(null)
    wait_until(lambda: len(os.listdir(f"/proc/{node}/fd")) <= before + 2, DEADLINE_S, "the node closed them")


def test_a_memory_file_that_lies_about_its_length(peer: Peer) -> None:
    fd = os.memfd_create("lies")
    os.write(fd, b"x" * 100)
    peer.sock.sendmsg([struct.pack("<cQ", b"M", 1 << 30)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])
    os.close(fd)
    assert peer.closed()


def test_replayed_messages_are_those_of_another_client(session: tuple[dpool.Executor, Path], gate: Path) -> None:
    """What the driver said, said again by another peer, concerns that peer's pools, of which it has none."""
    executor, directory = session
    future = executor.submit(tasks.wait_for_file, str(gate), "alive")
    worker = next(iter(executor._pool._slots))  # type: ignore[attr-defined]
    number = executor._pool.number  # type: ignore[attr-defined]
    peer = Peer(directory)
    peer.say(encode(HELLO))
    assert type(peer.hear()) is Welcome
    for n in range(number + 3):
        for _ in range(2):
            peer.say(encode(KillWorker(n, worker, 9)), encode(ReturnLease(n, worker, True)), encode(ClosePool(n, True)))
    gate.touch()
    assert future.result(DEADLINE_S) == "alive"
    peer.sock.close()


@pytest.mark.parametrize(
    ("changes", "ours", "theirs"),
    [
        ({"version": "9.9.9"}, VERSION, "9.9.9"),
        ({"protocol": 99}, f"protocol {PROTOCOL}", "protocol 99"),
        ({"python": "2.7.18"}, versions()[1], "2.7.18"),
    ],
)
def test_another_version_is_refused_and_both_are_named(
    peer: Peer, changes: dict[str, object], ours: str, theirs: str
) -> None:
    peer.say(encode(HELLO._replace(**changes)))  # type: ignore[arg-type]
    answer = peer.hear()
    assert type(answer) is Refused
    assert ours in answer.reason
    assert theirs in answer.reason
    assert peer.closed()


def test_a_flood_of_peers_and_packets_leaves_the_node_its_size(session: tuple[dpool.Executor, Path]) -> None:
    node = one_of_role(NODE)
    if not no_server():
        wait_until(servers, DEADLINE_S, "the store has been started: its client takes memory, too")
    before = resident_bytes(node)
    packet = b"\xee" * 60_000
    for _ in range(300):
        one = Peer(session[1])
        one.say(packet, packet)
        one.sock.close()
    executor = session[0]
    assert executor.submit(tasks.double, 8).result(DEADLINE_S) == 16
    assert resident_bytes(node) - before < 8 << 20


def test_peers_that_connect_and_say_nothing(session: tuple[dpool.Executor, Path]) -> None:
    peers = [Peer(session[1]) for _ in range(100)]
    assert list(session[0].map(tasks.double, range(100))) == [2 * x for x in range(100)]
    for one in peers:
        one.sock.close()


# --- Another user ---


def as_nobody(text: str, *args: str) -> str:
    """What a child of another user prints."""
    read_fd, write_fd = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of forks in a process with threads
        pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(read_fd)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            told: list[str] = []
            exec(text, {"args": args, "print": lambda *words: told.append(" ".join(map(str, words)))})
            os.write(write_fd, "\n".join(told).encode())
            code = 0
        except BaseException as error:
            os.write(write_fd, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code)
    os.close(write_fd)
    with open(read_fd) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


CONNECT = """
import socket
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    sock.connect(args[0])
except OSError as error:
    print(type(error).__name__)
else:
    sock.settimeout(10)
    try:
        sock.send(bytes.fromhex(args[1]))
    except BrokenPipeError:
        pass
    try:
        print("heard", sock.recv(100))
    except ConnectionResetError:
        print("heard", b"")
"""


@pytest.mark.root
def test_another_user_cannot_even_enter(session: tuple[dpool.Executor, Path]) -> None:
    directory = session[1]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for one in directory.rglob("*"):
        assert one.lstat().st_uid == os.getuid()
    assert as_nobody(CONNECT, str(directory / "node.sock"), encode(HELLO).hex()) == "PermissionError"
    assert as_nobody("import os\nprint(os.listdir(args[0]))", str(directory)).startswith("PermissionError")


@pytest.mark.root
def test_another_user_is_refused_even_where_the_directory_is_open(session: tuple[dpool.Executor, Path]) -> None:
    """Its credentials are looked at before a single byte."""
    directory = session[1]
    parents = [directory, *(one for one in directory.parents if one.stat().st_mode & 0o001 == 0)]
    modes = {one: stat.S_IMODE(one.stat().st_mode) for one in parents}
    try:
        for one, mode in modes.items():
            one.chmod(mode | 0o011)
        (directory / "node.sock").chmod(0o666)
        assert as_nobody(CONNECT, str(directory / "node.sock"), encode(HELLO).hex()) == "heard b''"
    finally:
        for one, mode in modes.items():
            one.chmod(mode)
    assert "client.refused uid=65534" in (directory / "node.log").read_text()


@pytest.mark.root
def test_a_planted_session_directory_is_refused(tmp_path: Path) -> None:
    from dpool._core import launch

    planted = tmp_path / "planted"
    planted.mkdir(mode=0o700)
    os.chown(planted, 65534, 65534)
    with pytest.raises(PermissionError, match="only its owner"):
        launch.connect_node(str(planted))
    link = tmp_path / "link"
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    link.symlink_to(mine)
    with pytest.raises(PermissionError, match="only its owner"):
        launch.connect_node(str(link))


def test_no_port_is_opened(session: tuple[dpool.Executor, Path]) -> None:
    """No process of ours has a socket that is not of the Unix family."""
    unix = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    node = one_of_role(NODE)
    for pid in (node, one_of_role("dpool-zygote"), *workers_of(session[0])):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("socket:["):
                    assert target[8:-1] in unix, f"{pid} has {target}, no Unix socket"


# --- Between driver and worker ---


@pytest.mark.parametrize(
    "packets",
    [
        [b"garbage"],
        [b""],
        [pickle.dumps((1, True, 5), 5)],
        [pickle.dumps((1, True, 5, [None] * 3), 5)],
        [pickle.dumps((999, True, 5, [None]), 5)],
        [pickle.dumps((-1, True, 5, [None]), 5)],
        [pickle.dumps(("a", "b", "c", "d"), 5)],
        [pickle.dumps("a text", 5)[:-3]],
        [b"\x80" * (wire.INLINE_LIMIT + 8192)],
        [struct.pack("<cQ", b"M", 1 << 40)],
    ],
    ids=lambda packets: f"{packets[0][:16]!r}x{len(packets[0])}",
)
def test_a_worker_that_sends_a_malformed_frame_is_killed_alone(tmp_path: Path, packets: list[bytes]) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(2) as executor:
        for x in range(50):
            ledger.submit(executor, x, tasks.double, x)
        ledger.submit(executor, "mad", tasks.send_to_submitter, packets)
        for x in range(50, 100):
            ledger.submit(executor, x, tasks.double, x)
        outcome = ledger.settle()
        assert isinstance(outcome.pop("mad"), WorkerCrashed)
        assert outcome == {x: 2 * x for x in range(100)}
        runs = ledger.runs()
        assert all(runs[str(x)] == 1 for x in range(100))


def test_an_answer_that_is_replayed_is_not_delivered_twice(tmp_path: Path) -> None:
    """A copy of an earlier answer comes again: its tasks keep their values, the others theirs."""
    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        for x in range(20):
            ledger.submit(executor, x, tasks.double, x)
        ledger.settle()
        replay = pickle.dumps((1, True, 5, ["replayed"]), 5)
        ledger.submit(executor, "mad", tasks.send_to_submitter, [replay, replay])
        for x in range(20, 60):
            ledger.submit(executor, x, tasks.double, x)
        outcome = ledger.settle()
        assert isinstance(outcome.pop("mad"), WorkerCrashed)
        assert outcome == {x: 2 * x for x in range(60)}


@pytest.mark.parametrize("packet", [b"garbage", pickle.dumps((1, 2), 5), b"\x80" * (wire.INLINE_LIMIT + 8192)])
def test_a_worker_that_is_sent_garbage_ends_and_is_replaced(tmp_path: Path, packet: bytes) -> None:
    ledger = Ledger(tmp_path)
    with dpool.Executor(1) as executor:
        first = executor.submit(tasks.pid).result(DEADLINE_S)
        slot = next(iter(executor._pool._slots.values()))[0]  # type: ignore[attr-defined]
        slot.link.sock.send(packet)
        for x in range(50):
            ledger.submit(executor, x, tasks.double, x)
        assert ledger.settle() == {x: 2 * x for x in range(50)}
        runs = ledger.runs()
        assert all(runs[str(x)] == 1 for x in range(50))
        assert first not in {pid for _, pid in ledger.lines()}
