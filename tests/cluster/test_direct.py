"""Tasks whose submitter has a connection of its own to the worker on another machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

import dpool
from dpool._core import driver, frames
from dpool._core.direct import Direct
from dpool._core.sealed import LIMIT
from dpool.errors import WorkerCrashed
from tests.cluster.hosts import lacking
from tests.cluster.machines import Machines, machines
from tests.cluster.test_loopback import DEADLINE_S, Cluster, two
from tests.helpers import wait_until


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with two(monkeypatch, **getattr(request, "param", {})) as made:
        yield made


def connections() -> list[Direct]:
    """Those of this process to workers elsewhere."""
    pools = list(driver.runtime().pools.values())
    slots = [slot for pool in pools for lane in pool._lanes.values() for slot in lane.dispatcher.slots.values()]
    return [slot.link.direct for slot in slots if slot.link.direct is not None]


@dpool.remote(resources={"lamp": 1})
def same(value: Any) -> Any:
    return value


def get(ref: Any) -> Any:
    return dpool.get(ref, timeout=DEADLINE_S)


def test_there_is_one(cluster: Cluster) -> None:
    assert get(same.remote(1)) == 1
    assert len(connections()) == 1
    assert get([same.remote(i) for i in range(1000)]) == list(range(1000))
    assert not any(one.broken for one in connections())


@pytest.mark.parametrize("cluster", [{"direct": False}], indirect=True)
def test_a_machine_that_does_not_want_any(cluster: Cluster) -> None:
    assert get([same.remote(i) for i in range(10)]) == list(range(10))
    assert connections() == []


def test_whatever_the_values_are(cluster: Cluster) -> None:
    """Small and large, inline and in the store, with references and without, one way and the other."""
    array = np.arange(200_000)
    ref = dpool.put(array)
    values: list[Any] = [1, "x" * 1000, bytes(LIMIT // 2), array, [ref], bytes(2 * LIMIT), None, {"a": array}, 2]
    for turn in range(3):
        found = get([same.remote(value) for value in values])
        for value, one in zip(values, found, strict=True):
            if isinstance(value, list):
                assert np.array_equal(get(one[0]), array)
            elif isinstance(value, dict):
                assert np.array_equal(one["a"], array)
            else:
                assert np.array_equal(value, one), turn
    assert not any(one.broken for one in connections())


@dpool.remote(resources={"lamp": 1})
def mixed(number: int) -> Any:
    """Some results of a frame are objects, the others are not."""
    return np.full(50_000, number) if number % 7 == 3 else number


def test_frames_of_which_some_results_are_objects(cluster: Cluster) -> None:
    get([same.remote(0) for _ in range(300)])  # short tasks, of which many travel together
    for number, one in enumerate(get([mixed.remote(i) for i in range(300)])):
        assert np.all(one == number)
    assert not any(one.broken for one in connections())


@dpool.remote(resources={"lamp": 1})
def larger(number: int) -> bytes:
    return bytes([number % 256]) * 20_000


def test_answers_in_parts(cluster: Cluster) -> None:
    """More than the journal has room for."""
    get([same.remote(0) for _ in range(300)])
    assert get([larger.remote(i) for i in range(100)]) == [bytes([i]) * 20_000 for i in range(100)]


@dpool.remote(resources={"lamp": 1}, num_returns="dynamic")
def count(number: int) -> Iterator[int]:
    yield from range(number)


def test_streams_between_tasks(cluster: Cluster) -> None:
    for number in (3, 0, 5):
        assert get(same.remote(number)) == number
        assert [get(one) for one in count.remote(number)] == list(range(number))


@dpool.remote(resources={"lamp": 1}, max_retries=0)
def die(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_crash_costs_its_task_only(cluster: Cluster) -> None:
    get([same.remote(0) for _ in range(300)])
    refs = [same.remote(i) for i in range(50)]
    crash = die.remote(signal.SIGKILL)
    refs += [same.remote(i) for i in range(50, 100)]
    assert get(refs) == list(range(100))
    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        get(crash)


@dpool.remote(resources={"lamp": 1}, max_retries=2)
def once(path: str) -> str:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "again"
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def test_a_task_is_run_again(cluster: Cluster, tmp_path: Any) -> None:
    assert get(once.remote(str(tmp_path / "begun"))) == "again"


@dpool.remote(resources={"lamp": 1}, max_retries=0)
def touch_and_wait(path: str, gate: str) -> str:
    open(path, "w").close()
    wait_until(lambda: os.path.exists(gate), DEADLINE_S)
    return path


def test_cancel_what_waits_and_what_runs(cluster: Cluster, tmp_path: Any) -> None:
    path, gate = str(tmp_path / "begun"), str(tmp_path / "gate")
    running = touch_and_wait.remote(path, gate)
    waiting = [same.remote(i) for i in range(20)]
    wait_until(lambda: os.path.exists(path), DEADLINE_S)
    for one in waiting[::2]:
        dpool.cancel(one)
    dpool.cancel(running)
    with pytest.raises(CancelledError):
        get(running)
    assert get(waiting[1::2]) == list(range(1, 20, 2))
    assert get(same.remote("after")) == "after"


def test_a_connection_that_breaks_and_nobody_dies(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The worker is ended; its task may or may not have been run to its end, and says so. What waited is run."""
    from dpool._core import lane

    monkeypatch.setattr(lane, "BROKEN_S", 0.1)
    path, gate = str(tmp_path / "begun"), str(tmp_path / "gate")
    running = touch_and_wait.remote(path, gate)
    wait_until(lambda: os.path.exists(path), DEADLINE_S)
    waiting = [same.remote(i) for i in range(10)]
    (one,) = connections()
    one._records.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(WorkerCrashed, match="connection"):
        get(running)
    assert get(waiting) == list(range(10))


def test_the_key_is_in_no_message_to_others(cluster: Cluster) -> None:
    """It is in the memory of those who use it; the lease's other end does not know the keys of other leases."""
    get(same.remote(1))
    (first,) = connections()
    dpool.shutdown()
    get(same.remote(1))
    (second,) = connections()
    nonce = bytes(12)
    assert first._records._aead.encrypt(nonce, b"x", b"") != second._records._aead.encrypt(nonce, b"x", b"")


# -- on hosts of their own

on_hosts = [
    pytest.mark.skipif(bool(lacking()), reason=lacking() or "there can be hosts"),
    pytest.mark.leaks("the hosts have process and file names of their own; each is looked through when it is stopped"),
]
USED = """
import dpool, sys
from dpool._core import driver

@dpool.remote(resources={"h2": 1}, max_retries=0)
def where(value):
    import socket
    return socket.gethostname(), value

def directly():
    pools = list(driver.runtime().pools.values())
    slots = [slot for pool in pools for lane in pool._lanes.values() for slot in lane.dispatcher.slots.values()]
    return {slot.link.direct is not None for slot in slots}

print(dpool.get([where.remote(i) for i in range(3)], timeout=60), directly(), flush=True)
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Machines]:
    with machines(2) as made:
        made.network.add()  # a stranger's machine
        yield made


def doors(cluster: Machines, number: int) -> list[str]:
    """Addresses that are listened to on a host, without its gateway's."""
    member = cluster.members[number]
    lines = member.host.run("ss", "-lntH").stdout.splitlines()
    return [line.split()[3] for line in lines if member.address not in line]


class TestOnHosts:
    pytestmark = on_hosts

    def test_between_hosts(self, hosts: Machines) -> None:
        assert hosts.members[0].script(USED) == "[('h2', 0), ('h2', 1), ('h2', 2)] {True}\n"
        (door,) = doors(hosts, 1)
        assert door.rpartition(":")[0] == hosts.members[1].address.rpartition(":")[0]

    @pytest.mark.parametrize("verdict", ["drop", "reject"])
    def test_a_firewall_that_lets_one_port_in(self, hosts: Machines, verdict: str) -> None:
        """Then everything goes through the gateways."""
        (door,) = doors(hosts, 1)
        port = door.rpartition(":")[2]
        host = hosts.members[1].host
        rules = f"table inet wall {{ chain in {{ type filter hook input priority 0; tcp dport {port} {verdict}; }}; }}"
        host.root("nft", "-f", "-", stdin=rules)
        try:
            assert hosts.members[0].script(USED) == "[('h2', 0), ('h2', 1), ('h2', 2)] {False}\n"
        finally:
            host.root("nft", "delete", "table", "inet", "wall")
            hosts.stop(hosts.members[1])  # the first one tries again when the machine comes back
            hosts.start(host, "--address", f"dpool://{hosts.members[0].address}", "--resources", '{"h2": 1}')

    def test_strangers_at_the_door(self, hosts: Machines) -> None:
        """Silence, nonsense and floods get nothing, and the work goes on beside them."""
        (door,) = doors(hosts, 1)
        stranger = hosts.network.hosts[2]
        with stranger.start("python3", "-c", KNOCK, door, stdout=subprocess.PIPE) as knocking:
            try:
                assert knocking.stdout is not None
                assert knocking.stdout.readline() == "begun\n"
                for _ in range(2):
                    assert "('h2', 2)" in hosts.members[0].script(USED)
                fds = hosts.members[1].host.run("ls", f"/proc/{hosts.members[1].pid}/fd").stdout.split()
                assert len(fds) < 250
            finally:
                for pid in stranger.processes():
                    stranger.kill(pid)
        said = stranger.run("python3", "-c", SAY, door).stdout
        assert said == "b''\n", "whoever does not know a token is turned away without a word"


KNOCK = """
import os, socket, sys
host, _, port = sys.argv[1].rpartition(":")
socks = []
print("begun", flush=True)
while True:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((host, int(port)))
    socks.append(sock)
    if len(socks) > 400:
        for old in socks[:200]:
            try:
                old.send(os.urandom(16))
            except OSError:
                pass
            old.close()
        del socks[:200]
"""
SAY = """
import os, socket, sys
host, _, port = sys.argv[1].rpartition(":")
with socket.create_connection((host, int(port)), timeout=60) as sock:
    sock.sendall(os.urandom(16))
    print(sock.recv(100))
"""


def test_frames_flags_are_different() -> None:
    flags = [frames.POLL, frames.EXIT, frames.INIT, frames.SHOW, frames.CAREFUL, frames.ACTOR, frames.LINK]
    flags += [frames.STOP, frames.LOOSE, frames.DIRECT, frames.ASK]
    assert sorted(flags) == [1 << bit for bit in range(len(flags))]
