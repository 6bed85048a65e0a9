"""Links between gateways: up, messages, down; who is not of the cluster gets nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from dpool._core import net
from dpool._core.cluster_key import ClusterKey, ClusterKeyError, create, default_path, format_line, load, parse, save
from dpool._core.net import Down, Greeting, Message, Net, NoLink, Up
from tests.helpers import REPOSITORY, wait_until

DEADLINE_S = 30.0


def new_key() -> ClusterKey:
    return ClusterKey(*zmq.curve_keypair())


def greeting(name: bytes = b"", **words: Any) -> Greeting:
    known = {"address": "", "host": "a-host", "version": "1", "python": "3.11", "about": None, **words}
    return Greeting(name or os.urandom(8), **known)


class Place:
    """Some gateways in one thread, and what each has heard."""

    def __init__(self) -> None:
        self.key = new_key()
        self.nets: list[Net] = []
        self.heard: dict[Net, list[Any]] = {}

    def gateway(self, listens: bool = True, key: ClusterKey | None = None, **words: Any) -> Net:
        made = Net(key or self.key, greeting(**words))
        if listens:
            made.listen("127.0.0.1")
        self.nets.append(made)
        self.heard[made] = []
        return made

    def pump(self) -> None:
        for made in self.nets:
            made.flush()
            while (event := made.receive()) is not None:
                self.heard[made].append(event)

    def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        def look() -> Any:
            self.pump()
            return condition()

        return wait_until(look, DEADLINE_S, what)

    def of(self, made: Net, kind: type) -> list[Any]:
        return [event for event in self.heard[made] if isinstance(event, kind)]

    def pair(self, **words: Any) -> tuple[Net, Net]:
        one, other = self.gateway(), self.gateway(**words)
        other.connect(one.greeting.address)
        self.until(lambda: self.of(one, Up) and self.of(other, Up), "a link")
        return one, other


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    try:
        yield made
    finally:
        for one in made.nets:
            one.close()


def payloads(events: list[Any]) -> list[bytes]:
    return [event.payload for event in events if isinstance(event, Message)]


@pytest.mark.parametrize("listens", [True, False])
def test_messages_both_ways_in_order(place: Place, listens: bool) -> None:
    one, other = place.pair(listens=listens, about={"role": "test"})
    assert place.of(one, Up)[0].greeting == other.greeting
    assert place.of(other, Up)[0].greeting == one.greeting
    for i in range(3000):
        one.send(other.greeting.name, b"%d" % i)
        other.send(one.greeting.name, b"%d" % i, [b"buffer", bytearray(i)])
    place.until(lambda: len(place.heard[one]) > 3000 and len(place.heard[other]) > 3000)
    expected = [b"%d" % i for i in range(3000)]
    assert payloads(place.heard[one]) == payloads(place.heard[other]) == expected
    assert all(bytes(m.buffers[0]) == b"buffer" and len(m.buffers[1]) == int(m.payload) for m in place.of(one, Message))


def test_both_connect_at_once(place: Place) -> None:
    one, other = place.gateway(), place.gateway()
    one.connect(other.greeting.address)
    other.connect(one.greeting.address)
    place.until(lambda: place.of(one, Up) and place.of(other, Up))
    one.connect(other.greeting.address)
    one.send(other.greeting.name, b"x")
    other.send(one.greeting.name, b"y")
    place.until(lambda: place.of(one, Message) and place.of(other, Message))
    assert len(place.of(one, Up)) == len(place.of(other, Up)) == 1
    assert not place.of(one, Down)
    assert not place.of(other, Down)


def test_one_connects_before_the_other_listens(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    late = Net(place.key, greeting())
    place.nets.append(late)
    place.heard[late] = []
    early = place.gateway()
    early.connect(f"127.0.0.1:{port}")
    place.until(lambda: early._calling[f"127.0.0.1:{port}"].last_event)
    late.listen("127.0.0.1", port)
    place.until(lambda: place.of(early, Up) and place.of(late, Up))


def test_nobody_is_there(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    lonely = place.gateway()
    lonely.connect(address)
    place.until(lambda: lonely._calling[address].last_event)
    lonely.give_up(address)
    place.pump()
    assert place.heard[lonely] == [Down(b"", address, "nobody listens there, or the way is blocked")]


def test_the_end_is_heard(place: Place) -> None:
    one, other = place.pair()
    client = place.gateway(listens=False)
    client.connect(one.greeting.address)
    place.until(lambda: len(place.of(one, Up)) == 2)
    one.drop(other.greeting.name, "declared dead")
    place.until(lambda: place.of(one, Down))
    assert place.of(one, Down)[0].reason == "declared dead"
    with pytest.raises(NoLink):
        one.send(other.greeting.name, b"")
    other.ping()
    place.until(lambda: place.of(other, Down), "the other side is told")
    client.close("its work is done")
    place.nets.remove(client)
    place.until(lambda: len(place.of(one, Down)) == 2)
    assert place.of(one, Down)[1].reason == "it has left: its work is done"


PEER = """
import sys, zmq
from dpool._core.net import Net, Greeting
from dpool._core.cluster_key import parse
made = Net(parse(sys.stdin.readline()), Greeting(b"a-peer", "", "a-host", "1", "3.11"))
if sys.argv[2] == "listens":
    made.listen("127.0.0.1")
made.connect(sys.argv[1])
while True:
    made.receive()
    zmq.select([made.fileno()], [], [], 1)
"""


@pytest.mark.parametrize("listens", ["listens", "client"])
def test_a_killed_peer(place: Place, listens: str) -> None:
    one = place.gateway()
    command = [sys.executable, "-c", PEER, one.greeting.address, listens]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=REPOSITORY) as peer:
        assert peer.stdin is not None
        peer.stdin.write(format_line(place.key))
        peer.stdin.flush()
        place.until(lambda: place.of(one, Up))
        peer.send_signal(signal.SIGKILL)
        peer.wait(DEADLINE_S)

        def noticed() -> list[Any]:
            one.ping()
            return place.of(one, Down)

        place.until(noticed)
    assert place.of(one, Down)[0].name == b"a-peer"
    assert len(place.of(one, Up)) == 1


def test_another_version_is_named(place: Place) -> None:
    one, other = place.gateway(), place.gateway(version="2", host="other-host")
    other.connect(one.greeting.address)
    place.until(lambda: place.of(other, Down))
    assert "a-host runs dpool 1" in place.of(other, Down)[0].reason
    assert "other-host runs dpool 2" in place.of(other, Down)[0].reason
    assert not place.heard[one]


def test_a_wrong_key_gets_nothing(place: Place) -> None:
    """It knows the server's public key, even, but not the secret."""
    one = place.gateway()
    stranger = Net(new_key(), greeting(b"stranger"))
    place.nets.append(stranger)
    place.heard[stranger] = []
    stranger._key = ClusterKey(place.key.public, stranger._key.secret)
    stranger.connect(one.greeting.address)
    address = one.greeting.address
    place.until(lambda: stranger._calling[address].last_event)
    stranger.give_up(address)
    place.pump()
    assert "token" in place.of(stranger, Down)[0].reason
    assert not place.heard[one]
    one, _ = place.pair()
    assert place.of(one, Up), "others are served"


def test_no_key_gets_nothing(place: Place) -> None:
    one = place.gateway()
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.connect(f"tcp://{one.greeting.address}")
        monitor = plain.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        plain.send_multipart([net.GREETING, net._packed(greeting(b"plain"))])
        place.until(lambda: monitor.poll(0), "it is turned away")
        plain.disable_monitor()
        monitor.close(0)
    place.pump()
    assert not place.heard[one]


def test_garbage_and_silence(place: Place) -> None:
    """Connections that say nothing, or nonsense, cost a descriptor until they are closed; the others are served."""
    one = place.gateway()
    host, port = one.greeting.address.split(":")
    crowd = [socket.create_connection((host, int(port))) for _ in range(100)]
    try:
        for number, one_of in enumerate(crowd):
            if number % 2:
                one_of.sendall(os.urandom(4096))
        other = place.gateway()
        other.connect(one.greeting.address)
        place.until(lambda: place.of(one, Up) and place.of(other, Up), "a link, in the crowd")

        def turned_away() -> bool:
            try:
                while crowd[1].recv(4096):
                    pass
            except BlockingIOError:
                return False
            except ConnectionError:
                pass
            return True

        crowd[1].setblocking(False)
        place.until(turned_away)
    finally:
        for one_of in crowd:
            one_of.close()


@pytest.mark.leaks("pyzmq's collector of messages that were not copied lives as long as the process")
def test_a_part_that_is_too_large_closes_that_peer_only(place: Place) -> None:
    one, other = place.pair()
    third = place.gateway()
    third.connect(one.greeting.address)
    place.until(lambda: len(place.of(one, Up)) == 2 and place.of(third, Up))
    other.send(one.greeting.name, b"", [bytes(net.MAX_MESSAGE_BYTES + net.HEADROOM + net.SEAL_BYTES)])
    place.until(lambda: place.of(other, Down))
    third.send(one.greeting.name, b"still here")
    place.until(lambda: place.of(one, Message))
    assert payloads(place.heard[one]) == [b"still here"]


@pytest.mark.leaks("pyzmq's collector of messages that were not copied lives as long as the process")
def test_large_messages(place: Place) -> None:
    """A payload is sent in parts that the receiver takes, and put together again."""
    one, other = place.pair()
    largest = os.urandom(net.MAX_MESSAGE_BYTES + net.HEADROOM)
    sent = [largest, largest + b"x", largest * 3]
    for payload in sent:
        other.send(one.greeting.name, payload, [b"buffer", largest])
    place.until(lambda: len(place.of(one, Message)) == len(sent))
    assert payloads(place.heard[one]) == sent
    assert all([bytes(part) for part in m.buffers] == [b"buffer", largest] for m in place.of(one, Message))


@pytest.mark.leaks("pyzmq's collector of messages that were not copied lives as long as the process")
@pytest.mark.parametrize("listens", [True, False])
def test_beside_the_others(place: Place, listens: bool) -> None:
    """What is large goes over connections of its own, both ways; it is the link's all the same."""
    one, other = place.pair(listens=listens)
    for sender, receiver in ((one, other), (other, one)):
        for number in range(10):
            sender.send_beside(receiver.greeting.name, b"%d" % number, [bytes(1 << 20)])
        place.until(lambda receiver=receiver: len(place.of(receiver, Message)) == 10)  # type: ignore[misc]
        heard = place.of(receiver, Message)
        assert {event.name for event in heard} == {sender.greeting.name}
        assert sorted(event.payload for event in heard) == [b"%d" % number for number in range(10)]
    one.drop(other.greeting.name, "enough")
    with pytest.raises(NoLink):
        one.send_beside(other.greeting.name, b"x")


def test_a_port_in_use(place: Place) -> None:
    one = place.gateway()
    port = int(one.greeting.address.split(":")[1])
    with pytest.raises(OSError, match=str(port)):
        place.gateway(listens=False).listen("127.0.0.1", port)


def test_the_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "token"
    made = create(str(path))
    assert load(str(path)) == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert made.secret.decode() not in repr(made)
    with pytest.raises(FileExistsError):
        save(str(path), new_key())
    assert os.listdir(path.parent) == ["token"]
    path.chmod(0o644)
    with pytest.raises(ClusterKeyError, match="others can read"):
        load(str(path))
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(ClusterKeyError, match="no cluster token"):
        load(str(path))
    with pytest.raises(ClusterKeyError, match="dpool start --head"):
        load(str(tmp_path / "none"))
    with pytest.raises(ClusterKeyError, match="Z85"):
        parse("dpool-1 " + "~" * 40)
    monkeypatch.setenv("DPOOL_TOKEN_FILE", "/somewhere")
    assert default_path() == "/somewhere"


def test_a_link_that_is_made_anew(place: Place) -> None:
    """One side has given the link up and connects again; the other one had not noticed. Nothing of the old is heard."""
    one, other = place.pair()
    name = other.greeting.name
    one.send(name, b"on the old link")
    place.until(lambda: place.of(other, Message))
    other.drop(one.greeting.name, "too long silent")
    other.connect(one.greeting.address)
    place.until(lambda: len(place.of(one, Up)) == 2 and len(place.of(other, Up)) == 2, "a new link")
    assert [type(event) for event in place.heard[one]] == [Up, Down, Up], "one after the other"
    one.send(name, b"on the new link")
    other.send(one.greeting.name, b"and back")
    place.until(lambda: len(place.of(other, Message)) == 2 and place.of(one, Message))
    assert payloads(place.heard[one]) == [b"and back"]
    assert payloads(place.heard[other]) == [b"on the old link", b"on the new link"]


def test_a_new_gateway_where_an_old_one_was(place: Place) -> None:
    """It came back at the same address before anybody missed it: the old one is down."""
    one, other = place.pair()
    again = place.gateway(listens=False, address=other.greeting.address)
    again.connect(one.greeting.address)
    place.until(lambda: place.of(one, Down), "the old one is down")
    assert place.of(one, Down)[0].name == other.greeting.name
    assert place.of(one, Up)[1].name == again.greeting.name
