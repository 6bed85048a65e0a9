"""Threats to a cluster's machine: who is not of the cluster gets nothing and costs little; secrets stay secret."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import lacking
from tests.cluster.machines import DEADLINE_S, Machines, machines
from tests.helpers import wait_until

pytestmark = [
    pytest.mark.skipif(bool(lacking()), reason=lacking() or "there can be hosts"),
    pytest.mark.leaks("the hosts have process and file names of their own; each is looked through when it is stopped"),
]
TASK = """
import dpool, socket

@dpool.remote
def where():
    return socket.gethostname()

print(dpool.get([where.options(resources={host: 1}).remote() for host in ("h1", "h2")]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines(2) as made:
        made.network.add()  # a stranger's machine
        yield made


def listening(cluster: Machines, member: int) -> list[str]:
    """The TCP and UDP sockets that are open for others on a host."""
    return cluster.members[member].host.run("ss", "-lntuH").stdout.splitlines()


def test_two_ports_and_only_at_its_address(cluster: Machines) -> None:
    for number, member in enumerate(cluster.members):
        addresses = {line.split()[4] for line in listening(cluster, number)}
        assert member.address in addresses
        assert [one.rpartition(":")[0] for one in addresses] == [member.host.ip] * 2


def test_a_machine_alone_has_no_port(cluster: Machines) -> None:
    code = """
import subprocess, sys, dpool
with dpool.Executor(2) as pool:
    assert pool.submit(pow, 2, 3).result() == 8
    print(subprocess.run(["ss", "-lntupH"], capture_output=True, text=True, check=True).stdout, end="")
"""
    assert cluster.network.hosts[2].python(code) == ""


def test_a_wildcard_address_is_refused(cluster: Machines) -> None:
    done = cluster.dpool(cluster.network.hosts[2], "start", "--head", "--bind", "0.0.0.0")
    assert done.returncode == 1
    assert "--bind" in done.stderr


def test_without_a_token_nobody_joins(cluster: Machines) -> None:
    stranger = cluster.network.hosts[2]
    stranger.run("rm", "-rf", "/tmp/home/.config/dpool")
    done = cluster.dpool(stranger, "start", "--address", f"dpool://{cluster.members[0].address}")
    assert done.returncode == 1
    assert "no cluster token" in done.stderr


def test_an_old_token_is_worth_nothing(cluster: Machines) -> None:
    """What `dpool token --new` made is another cluster's."""
    stranger = cluster.network.hosts[2]
    stranger.run("rm", "-rf", "/tmp/home/.config/dpool")
    assert cluster.dpool(stranger, "token", "--new").returncode == 0
    done = cluster.dpool(stranger, "start", "--address", f"dpool://{cluster.members[0].address}")
    assert done.returncode == 1
    assert "does not accept this cluster's token" in done.stderr
    assert cluster.members[0].script(TASK) == "['h1', 'h2']\n"


def test_the_secret_is_in_one_file_only(cluster: Machines) -> None:
    """Not in a command line, an environment, a log or another file."""
    secret = cluster.token.split()[1]
    code = """
import os, pathlib, sys
secrets = [sys.stdin.readline().strip().encode()]
from zmq.utils import z85
secrets.append(z85.decode(secrets[0]))
found, looked = [], 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) == os.getpid():
        continue
    for name in ("cmdline", "environ"):
        looked += 1
        if any(secret in pathlib.Path("/proc", pid, name).read_bytes() for secret in secrets):
            found.append(f"{pid} {name}")
for root in ("/tmp", "/var/tmp", "/dev/shm"):
    for path in pathlib.Path(root).rglob("*"):
        if path.is_file():
            looked += 1
            if any(secret in path.read_bytes() for secret in secrets):
                found.append(str(path))
print(found, looked > 12)
"""
    for member in cluster.members:
        done = member.host.run(sys.executable, "-c", code, input=secret + "\n")
        assert done.stdout == "['/tmp/home/.config/dpool/token'] True\n", done.stderr


OTHER_USER = """
import os, pathlib, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
session = next(pathlib.Path("/tmp").glob("dpool-0-*"))
pid = sys.argv[1]
tries = {
    "the session's directory": lambda: os.listdir(session),
    "the node's socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(f"{session}/node.sock"),
    "a log": lambda: open(f"{session}/node.log").read(),
    "the token": lambda: open("/tmp/home/.config/dpool/token").read(),
    "descriptors, so segments": lambda: os.listdir(f"/proc/{pid}/fd"),
    "memory": lambda: open(f"/proc/{pid}/mem", "rb").read(1),
    "the environment": lambda: open(f"/proc/{pid}/environ", "rb").read(),
    "its end": lambda: os.kill(int(pid), 15),
}
for what, attempt in tries.items():
    try:
        attempt()
    except PermissionError:
        continue
    print("got", what)
print("tried", len(tries))
"""


def test_other_users_get_nothing(cluster: Machines) -> None:
    for pid in (cluster.members[0].pid, *cluster.members[0].named("dpool-node")):
        assert cluster.members[0].host.python(OTHER_USER, str(pid)) == "tried 8\n"


FLOOD = """
import os, socket, sys
host, port = sys.argv[1].rsplit(":", 1)
greeting = b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00CURVE" + bytes(15) + b"\\0" + bytes(31)
large = b"\\x06" + (1_000_000).to_bytes(8, "big") + bytes(900_000)  # a command of a million bytes, not quite sent
too_large = b"\\x06" + (1 << 40).to_bytes(8, "big")
kinds = [b"", b"\\xff", os.urandom(5000), greeting, greeting + large, greeting + too_large, b"GET / HTTP/1.0\\r\\n"]
crowd = []
for number in range(int(sys.argv[2])):
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex((host, int(port)))
    crowd.append([one, kinds[number % len(kinds)]])
import select
waiter = select.poll()
for one, _ in crowd:
    waiter.register(one, select.POLLOUT)
by_fd = {one.fileno(): entry for entry in crowd for one in entry[:1]}
sent = 0
print("begun", flush=True)
while True:
    for fd, _ in waiter.poll(1000):
        entry = by_fd[fd]
        try:
            count = entry[0].send(entry[1]) if entry[1] else 0
        except BlockingIOError:
            continue
        except OSError:
            count = len(entry[1])
        sent += count
        entry[1] = entry[1][count:]
        if not entry[1]:
            waiter.unregister(fd)
"""


def memory_kb(cluster: Machines) -> int:
    member = cluster.members[0]
    found = re.search(r"VmRSS:\s+(\d+) kB", member.host.run("cat", f"/proc/{member.pid}/status").stdout)
    assert found
    return int(found[1])


def descriptors(cluster: Machines) -> int:
    member = cluster.members[0]
    return len(member.host.run("ls", f"/proc/{member.pid}/fd").stdout.split())


def test_a_flood_costs_little(cluster: Machines) -> None:
    """A thousand connections that say nothing, nonsense, half of something or too much: the door takes some at a time,
    the work goes on, and when they are gone so is what they cost.
    """
    stranger = cluster.network.hosts[2]
    memory, fds = memory_kb(cluster), descriptors(cluster)
    command = (sys.executable, "-c", FLOOD, cluster.members[0].address, "1000")
    most_fds = most_memory = 0
    with stranger.start(*command, stdout=subprocess.PIPE) as flood:
        try:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "begun\n"
            for _ in range(3):
                assert cluster.members[0].script(TASK) == "['h1', 'h2']\n"
                most_fds, most_memory = max(most_fds, descriptors(cluster)), max(most_memory, memory_kb(cluster))
        finally:
            for pid in stranger.processes():
                stranger.kill(pid, signal.SIGKILL)
    assert most_fds - fds < 400, "of a thousand"
    assert most_memory - memory < 200_000, "kB: a stranger may cost a million bytes while it is looked at"
    wait_until(lambda: descriptors(cluster) < fds + 20, DEADLINE_S, "the strangers' descriptors are closed")


PEER = """
import os, pickle, sys, time
from dpool._core import cluster_key, messages, net, peer_messages as pm
version, python = messages.versions()
key = cluster_key.load(cluster_key.default_path())
greeting = net.Greeting(os.urandom(16), "", "a-liar", version, python, {"nodes": [], "tag": b"123456"})
peer = net.Net(key, greeting)
peer.connect(sys.argv[1])
kinds = [b"", b"\\x00", b"\\xff", b"\\x01nonsense", b"\\x06" + pickle.dumps(("x",) * 9), pm.encode(pm.Members([7]))]
words = kinds[int(sys.argv[2])]
until = time.monotonic() + 50
while time.monotonic() < until:
    event = peer.receive()
    if isinstance(event, net.Up):
        peer.send(event.name, words)
    elif isinstance(event, net.Down):
        print("down", flush=True)
        break
    peer.ping()
    time.sleep(0.01)
peer.close()
"""


@pytest.mark.parametrize("kind", range(6))
def test_a_peer_that_talks_nonsense_loses_its_link_only(cluster: Machines, kind: int) -> None:
    """It has the right key, so it could do worse: but what is malformed never harms by accident."""
    other = cluster.members[1].host
    assert other.python(PEER, cluster.members[0].address, str(kind)) == "down\n"
    assert "malformed" in cluster.members[0].log()
    assert cluster.members[0].script(TASK) == "['h1', 'h2']\n"


def test_another_version_is_named(cluster: Machines) -> None:
    code = PEER.replace("version, python = messages.versions()", 'version, python = "9.9", "2.7"').replace(
        'print("down", flush=True)', "print(event.reason, flush=True)"
    )
    told = cluster.members[1].host.python(code, cluster.members[0].address, "0")
    assert "h1 runs dpool" in told
    assert "a-liar runs dpool 9.9" in told
    assert "Python 2.7" in told


HIDDEN = """
import ctypes
from dpool._core.cluster_key import hide_memory
before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
hide_memory()
print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


def test_the_kernel_dumps_no_core_of_the_gateway(cluster: Machines) -> None:
    """And shows its memory to nobody but root, as the secret is in it."""
    assert cluster.network.hosts[2].python(HIDDEN) == "1 0\n"
