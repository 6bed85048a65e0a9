"""Programs on a cluster of several hosts: where tasks run, what comes back, and what becomes of them in a disaster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import lacking
from tests.cluster.machines import Machines, Member, Program, clean, machines
from tests.helpers import wait_until

pytestmark = [
    pytest.mark.skipif(bool(lacking()), reason=lacking() or "there can be hosts"),
    pytest.mark.leaks("the hosts have process and file names of their own; each is looked through when it is stopped"),
]
DEADLINE_S = 60.0

TASKS = """
import json, os, signal, socket, sys, time
import dpool

@dpool.remote(max_retries=0)
def where(*_):
    return socket.gethostname()

def at(host, function=where, **words):
    return function.options(resources={host: 1}, **words)

@dpool.remote(max_retries=0)
def say(text, stream):
    print(text, file=getattr(sys, stream), flush=True)

@dpool.remote(max_retries=0)
def fail():
    raise LookupError("not on " + socket.gethostname())

@dpool.remote(max_retries=0)
def crash():
    os.kill(os.getpid(), signal.SIGKILL)

@dpool.remote(max_retries=0)
def hang(path):
    open(path, "w").close()
    while True:
        time.sleep(60)

@dpool.remote(max_retries=0)
def double(data):
    return data + data

def error_of(ref):
    try:
        return repr(dpool.get(ref, timeout=60))
    except dpool.errors.DpoolError as error:
        return f"{type(error).__name__}: {error}"
"""


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture(scope="module")
def standing() -> Iterator[Machines]:
    """Three hosts that no test here harms."""
    with machines(3) as cluster:
        yield cluster


@pytest.fixture
def fresh() -> Iterator[Machines]:
    """Two hosts that a test may do anything to; a silent peer is given up soon."""
    with machines(2, DPOOL_NODE_TIMEOUT_S="1.5") as cluster:
        yield cluster


@pytest.mark.parametrize("driver", [0, 2])
def test_a_program_on_any_host(standing: Machines, driver: int) -> None:
    """Tasks run where they are sent; what they return, print and raise comes back."""
    printed = (
        standing.members[driver]
        .script(
            TASKS
            + """
hosts = ["h1", "h2", "h3"]
print(dpool.get([at(host).remote() for host in hosts for _ in range(20)]) == [h for h in hosts for _ in range(20)])
dpool.get([at(host, say).remote(f"out of {host}", "stdout") for host in hosts])
for host in hosts:
    try:
        dpool.get(at(host, fail).remote())
    except LookupError as error:
        print(error)
    print(error_of(at(host, crash).remote()))
data = os.urandom(3_000_000)
print(all(part == data + data for part in dpool.get([at(host, double).remote(data) for host in hosts])))
"""
        )
        .splitlines()
    )
    assert printed[0] == "True"
    assert printed.count("True") == 2
    for host in ("h1", "h2", "h3"):
        assert f"out of {host}" in printed
        assert f"not on {host}" in printed, printed
    assert sum(line.startswith("WorkerCrashed") and "SIGKILL" in line for line in printed) == 3, printed


def test_a_directory_that_is_on_one_machine_only(standing: Machines) -> None:
    """The script's own: the modules in it are found all the same; where it is missing is named."""
    one, other = standing.members[0].host, standing.members[1].host
    one.python(
        "import os; os.mkdir('/tmp/own'); open('/tmp/own/beside.py', 'w').write('def double(x): return x * 2')\n"
        "open('/tmp/own/script.py', 'w').write('import beside, dpool, sys\\n'"
        " 'for host in sys.argv[1:]:\\n'"
        " '  there = dpool.remote(beside.double).options(resources={host: 1})\\n'"
        " '  future = there.remote(1)\\n'"
        " '  print(future.exception(60) or future.result())')"
    )
    words = ("sh", "-c", 'cd /tmp/own; exec "$@"', "sh", sys.executable, "script.py", one.name, other.name)
    done = one.run(*words, env=standing.members[0].environ())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2", "2"]
    assert f"'/tmp/own' cannot be entered on {other.name}, tasks there run in " in done.stderr
    assert f"on {one.name}" not in done.stderr
    one.run("rm", "-r", "/tmp/own")


def test_an_error_stream_comes_back(standing: Machines) -> None:
    code = TASKS + 'dpool.get(at("h2", say).remote("in trouble", "stderr"))'
    with standing.members[0].program(code, stderr=subprocess.STDOUT) as program:
        while program.line() != "in trouble":
            pass


def test_more_than_one_machine_can_do(standing: Machines) -> None:
    """Tasks that ask for nothing but a CPU go where one is free: six that wait for each other need three hosts."""
    printed = standing.members[0].script(
        """
import socket, sys, threading
import dpool

@dpool.remote(max_retries=0)
def meet(port):
    with socket.create_connection(("10.77.0.1", port), timeout=60) as link:
        link.recv(1)
    return socket.gethostname()

server = socket.create_server(("10.77.0.1", 0))
refs = [meet.remote(server.getsockname()[1]) for _ in range(6)]
guests = [server.accept()[0] for _ in refs]
for guest in guests:
    guest.sendall(b"x")
print(sorted(dpool.get(refs)))
"""
    )
    assert printed == "['h1', 'h1', 'h2', 'h2', 'h3', 'h3']\n"


CUT = (
    TASKS
    + """
print(dpool.get(at("h2").remote()), flush=True)
sys.stdin.readline()
print(dpool.get([at("h2").remote() for _ in range(50)]) == ["h2"] * 50, flush=True)
"""
)


def test_a_short_cut_is_a_stall(standing: Machines) -> None:
    """Shorter than the time-out: what was sent arrives, late."""
    one, other = (member.host for member in standing.members[:2])
    with standing.members[0].program(CUT) as program:
        assert program.line() == "h2"
        standing.network.cut(one, other)
        try:
            program.go_on()
            wait_until(lambda: other.dropped() > 0, DEADLINE_S, "something was sent into the void")
        finally:
            one.heal()
            other.heal()
        assert program.line() == "True"


def test_a_lossy_and_slow_link(standing: Machines) -> None:
    """One packet in five is lost, 10 Mbit/s: it takes longer, and nobody is taken for dead."""
    one, other = (member.host for member in standing.members[:2])
    one.deafen(other, loss=0.2)
    other.deafen(one, loss=0.2)
    other.shape(10)
    try:
        printed = standing.members[0].script(
            TASKS
            + """
data = os.urandom(200_000)
refs = [at("h2", double).remote(data) for _ in range(3)] + [at("h2").remote(i) for i in range(200)]
found = dpool.get(refs)
print(found[:3] == [data + data] * 3, found[3:] == ["h2"] * 200)
"""
        )
    finally:
        one.heal()
        other.heal()
        other.unshape()
    assert printed == "True True\n"
    assert "peer.down" not in standing.members[1].log()


LOST = (
    TASKS
    + """
class Hangs:
    def hang(self, path):
        open(path, "w").close()
        while True:
            time.sleep(60)

actor = at("h2", dpool.remote(Hangs)).remote()
lost, called = at("h2", hang).remote("/tmp/began"), actor.hang.remote("/tmp/called")
print(error_of(lost), flush=True)
print(error_of(called), flush=True)
print(dpool.get(at("h1").remote()), flush=True)
if sys.stdin.readline():
    while True:
        found = error_of(at("h2").remote())
        if "h2" == found.strip("'"):
            break
    print("back", flush=True)
"""
)


def began(member: Member) -> None:
    both = ("sh", "-c", "test -e /tmp/began -a -e /tmp/called")
    wait_until(lambda: member.host.run(*both).returncode == 0, DEADLINE_S, "the task and the call run")


def told_of(program: Program) -> str:
    """What it says of the task; what it says of the call must name the machine and the cause, too."""
    task, call = program.line(), program.line()
    assert call.startswith("ActorDied"), call
    assert "h2" in call, call
    if task.startswith("NodeLost"):
        assert "the link to h2" in call, call
        assert "exited" not in call, call
    else:
        assert "SIGKILL" in call, call
    return task


@pytest.mark.parametrize("what", ["worker", "gateway", "node", "host"])
def test_a_death_over_there(fresh: Machines, what: str) -> None:
    """The task that ran there fails and says why; the program goes on."""
    head, other = fresh.members
    with head.program(LOST) as program:
        began(other)
        if what == "host":
            fresh.lose(other)
        else:
            victims = other.named(f"dpool-{what}")
            assert victims
            for victim in victims:
                other.host.kill(victim, signal.SIGKILL)
        told, alive = told_of(program), program.line()
        assert told.startswith(("WorkerCrashed", "NodeLost")), told
        assert "h2" in told, told
        assert alive == "h1"
        if what == "worker":
            assert "SIGKILL" in told
            program.go_on()
            assert program.line() == "back"
    if what in ("gateway", "node"):
        clean(other.host)
        fresh.members.remove(other)
        back = fresh.start(other.host)
        assert "h2" in back.script(TASKS + 'print(dpool.get(at("h2").remote()))')


def test_a_long_cut_and_its_end(fresh: Machines) -> None:
    """Longer than the time-out: each side gives the other up, and takes it back when the way is free again."""
    head, other = fresh.members
    with head.program(LOST) as program:
        began(other)
        fresh.network.cut(head.host, other.host)
        told, alive = told_of(program), program.line()
        assert "h2" in told
        assert alive == "h1"
        wait_until(lambda: "peer.down" in other.log(), DEADLINE_S, "the other side gives up, too")
        wait_until(lambda: not other.named("dpool-worker"), DEADLINE_S, "and ends what the lost program ran")
        head.host.heal()
        other.host.heal()
        program.go_on()
        assert program.line() == "back"


def test_deaf_on_one_side(fresh: Machines) -> None:
    """It hears nothing and is heard: to the others it is as dead as behind a cut."""
    head, other = fresh.members
    with head.program(LOST) as program:
        began(other)
        other.host.deafen(head.host)
        told, _ = told_of(program), program.line()
        assert "h2" in told
        wait_until(lambda: "peer.down" in other.log(), DEADLINE_S, "the other side gives up, too")
        other.host.heal()
        program.go_on()
        assert program.line() == "back"


def test_machines_come_and_go_during_work(fresh: Machines) -> None:
    """A third joins a program that waits for it; the second leaves; the program loses nothing but what ran there."""
    head, other = fresh.members
    code = (
        TASKS
        + """
waits = at("h3").remote()
print("waits", flush=True)
print(dpool.get(waits), flush=True)
sys.stdin.readline()
print(json.dumps([dpool.get(at(host).remote()) for host in ("h1", "h3")]))
"""
    )
    with head.program(code) as program:
        assert program.line() == "waits"
        third = fresh.start(fresh.network.add())
        assert program.line() == "h3"
        assert third.script(TASKS + 'print(dpool.get(at("h2").remote()))') == "h2\n", "it has met the second, too"
        fresh.stop(other)
        program.go_on()
        assert json.loads(program.line()) == ["h1", "h3"]


FULL = (
    TASKS
    + """
@dpool.remote(max_retries=0)
def make(size):
    return os.urandom(size)

@dpool.remote(max_retries=0)
def size(data):
    return len(data)

data = os.urandom(6_000_000)
kept = [at("h2", make).remote(6_000_000) for _ in range(2)]
dpool.wait(kept, num_returns=2, timeout=60)
print(error_of(at("h2", make).remote(6_000_000)))
print(error_of(at("h2", size).remote(data)))
print(dpool.get(at("h1", size).remote(kept[0]), timeout=60))
del kept
while error_of(at("h2", size).remote(data)) != "6000000":  # it is told there a little later
    pass
print("room again")
"""
)


def test_no_room_over_there() -> None:
    """Neither in memory nor on disk: the error says on which machine, and that nothing is lost."""
    with machines(2, DPOOL_OBJECT_STORE_MEMORY="16777216") as cluster:
        head, other = cluster.members
        for place in ("/tmp", "/var/tmp"):
            other.host.root("mount", "-o", "remount,size=2m", place)
        made, sent, *rest = head.script(FULL).splitlines()
        assert made.startswith("ObjectStoreFull: no room for an object"), made
        assert "the object store of h2 holds" in made, made
        assert sent.startswith("ObjectStoreFull: "), sent
        assert "it is needed on h2, which has no room for a copy" in sent, sent
        assert rest == ["6000000", "room again"]
