"""The hosts that the cluster's tests stand on are apart from each other, joined by links that can be shaped and cut."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.hosts import Host, Network, lacking
from tests.helpers import wait_until

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking() or "there can be hosts")

LISTEN = """
import socket, sys
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("listening", flush=True)
    while True:
        peer, _ = server.accept()
        with peer:
            while data := peer.recv(1 << 16):
                pass
"""
CONNECT = """
import socket, sys
socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2])).close()
"""


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(2) as made:
        yield made


def reaches(one: Host, other: Host) -> bool:
    return one.run(sys.executable, "-c", CONNECT, other.ip, "1").returncode == 0


@contextmanager
def listening(host: Host) -> Iterator[None]:
    with host.start(sys.executable, "-c", LISTEN, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        try:
            yield
        finally:
            host.end()


def test_nothing_is_shared(network: Network) -> None:
    one, other = network.hosts
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        one.python(f"open('{place}/only here', 'w').close()")
        assert not other.python(f"import os; print('only here' in os.listdir('{place}'))").startswith("True")
        assert not os.path.exists(f"{place}/only here")
    assert one.python("import socket; print(socket.gethostname())").strip() == "h1"
    assert list(one.processes()) == [], "it sees its own processes alone"


def test_cut_heal_and_end(network: Network) -> None:
    one, other = network.hosts
    with listening(other):
        assert reaches(one, other)
        network.cut(one, other)
        assert not reaches(one, other)
        one.heal()
        assert not reaches(one, other), "the other still hears nothing"
        other.heal()
        assert reaches(one, other)
        one.deafen(loss=0.2)
        wait_until(lambda: reaches(one, other), 60, "one packet in five is lost: some way through")
        one.heal()
        assert [command for command in other.processes().values() if "7000" in command]
    assert not os.path.exists(f"/proc/{other.space.pid}")
    assert not reaches(one, other)


def test_a_rate_is_kept(network: Network) -> None:
    """What the shaper lets through is counted by the kernel, so no clock is needed: it queues and drops."""
    one, _ = network.hosts
    one.shape(5)
    assert "rate 5Mbit" in one.root("tc", "qdisc", "show", "dev", "eth0")


KILLED = """
import os, signal
from tests.cluster.hosts import Network
network = Network(1)
print(network.switch.pid, network.hosts[0].space.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_hosts_end_with_the_program_that_made_them() -> None:
    """Even if that is killed."""
    done = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    pids = done.stdout.split()
    assert len(pids) == 2
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 60, "the namespaces are gone")
