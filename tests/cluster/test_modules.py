"""Modules that lie beside a program, on the host where it was started and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.hosts import Host, lacking
from tests.cluster.machines import Machines, machines

pytestmark = [
    pytest.mark.skipif(bool(lacking()), reason=lacking() or "there can be hosts"),
    pytest.mark.leaks("the hosts have process and file names of their own; each is looked through when it is stopped"),
]
OWN = "/tmp/own"
WRITE = """
import json, os, sys
for path, text in json.load(sys.stdin).items():
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if isinstance(text, int):
        open(path, "wb").truncate(text)
    else:
        open(path, "w").write(text)
"""
BESIDE = """
import socket
def where(x=None):
    return x, socket.gethostname()
class Counter:
    def __init__(self, start=0):
        self.count = start
    def add(self):
        self.count += 1
        return self.count, socket.gethostname()
STATE = []
def prepare(x):
    STATE.append(x)
def state(_=None):
    return list(STATE)
"""
FILES: dict[str, str | int] = {
    "beside.py": BESIDE,
    "pkg/__init__.py": "from pkg.inner import read\n",
    "pkg/inner/__init__.py": "from .reading import read\n",
    "pkg/inner/reading.py": "from importlib.resources import files\ndef read():\n"
    "    return (files('pkg.inner') / 'table.txt').read_text()\n",
    "pkg/inner/table.txt": "a table",
    "pkg/.venv/pyvenv.cfg": "",
    "space/deep.py": "X = 5\n",
}
HEAD = """
import dpool, json, os, sys
def at(host):
    return {"resources": {host: 1}}
def error_of(future):
    error = future.exception(60)
    return f"{type(error).__name__}: {error}"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines(3) as made:
        yield made


@pytest.fixture
def own(cluster: Machines) -> Iterator[Host]:
    """The host on which the programs here are started, with files; at the end no host has any."""
    host = cluster.members[0].host
    write(host, FILES)
    yield host
    for member in cluster.members:
        member.host.root("rm", "-rf", OWN, "/tmp/more")


def write(host: Host, files: dict[str, Any]) -> None:
    """A number: an empty file of this length."""
    full = {path if path.startswith("/") else f"{OWN}/{path}": text for path, text in files.items()}
    done = host.run(sys.executable, "-c", WRITE, input=json.dumps(full))
    assert done.returncode == 0, done.stderr


def start(cluster: Machines, host: Host, script: str) -> subprocess.CompletedProcess[str]:
    """Run it as a file beside the others."""
    write(host, {"script.py": HEAD + script})
    member = next(one for one in cluster.members if one.host is host)
    return host.run(sys.executable, f"{OWN}/script.py", env=member.environ())


def values(cluster: Machines, host: Host, script: str) -> list[Any]:
    """What it prints, line by line."""
    done = start(cluster, host, script)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


KINDS = """
import beside
import joblib
dpool.register_joblib()

@dpool.remote
def of_main(x):
    import pkg
    from space import deep
    return beside.where(x), pkg.read(), deep.X

@dpool.remote
def nested():
    return dpool.get(of_main.options(**at("h3")).remote(2), timeout=60)

@dpool.remote(resources={"h2": 1})
class Here(beside.Counter):
    pass

if __name__ == "__main__":
    ask = lambda value: print(json.dumps(value), flush=True)
    ask(dpool.get(of_main.options(**at("h2")).remote(1), timeout=60))
    ask(dpool.get(nested.options(**at("h2")).remote(), timeout=60))
    ask(dpool.get(Here.remote(5).add.remote(), timeout=60))
    ask(dpool.get(dpool.remote(beside.Counter).options(**at("h2")).remote(7).add.remote(), timeout=60))
    with dpool.Executor(1, initializer=beside.prepare, initargs=(3,)) as executor:
        far = executor.options(**at("h2"))
        ask([far.submit(beside.where, 4).result(60), far.submit(beside.state).result(60)])
    with dpool.Pool(6, initializer=beside.prepare, initargs=(4,)) as pool:
        ask(sorted(set(map(str, pool.map(beside.state, range(60), chunksize=1)))))
    with joblib.parallel_config("dpool", n_jobs=6):
        found = joblib.Parallel()(joblib.delayed(beside.where)(x) for x in range(60))
    ask([x for x, _ in found] == list(range(60)))
"""


def test_every_kind_of_work_finds_them(cluster: Machines, own: Host) -> None:
    lines = values(cluster, own, KINDS)
    assert lines[0] == [[1, "h2"], "a table", 5]
    assert lines[1] == [[2, "h3"], "a table", 5]
    assert lines[2] == [6, "h2"]
    assert lines[3] == [8, "h2"]
    assert lines[4] == [[4, "h2"], [3]]
    assert lines[5] == ["[4]"]
    assert lines[6] is True


LOOK = """
import beside
for host in ("h2", "h3"):
    future = dpool.remote(beside.look).options(**at(host)).remote()
    print(json.dumps(future.result(60)))
"""


def look(version: int) -> str:
    return f"import socket\ndef look():\n    return {version}, __file__, socket.gethostname()\n"


def test_the_program_s_own_is_taken(cluster: Machines, own: Host) -> None:
    """In its present version, also where another one lies at the same place; the same one is taken from there."""
    stale, same = (member.host for member in cluster.members[1:])
    write(own, {"beside.py": look(1)})
    write(stale, {"beside.py": look(0)})
    write(same, {"beside.py": look(1)})
    first, second = values(cluster, own, LOOK)
    assert (first[0], first[2]) == (1, "h2")
    assert first[1].startswith("/tmp/dpool-")
    assert second == [1, f"{OWN}/beside.py", "h3"]
    write(own, {"beside.py": look(2)})
    found = values(cluster, own, LOOK)
    assert [one[0] for one in found] == [2, 2]
    assert all(one[1].startswith("/tmp/dpool-") for one in found)


WRITTEN = """
@dpool.remote(resources={"h2": 1})
def there(name):
    return __import__(name).X
for number in range(3):
    open(os.path.join(os.path.dirname(__file__), f"made{number}.py"), "w").write(f"X = {number}")
    print(dpool.get(there.remote(f"made{number}"), timeout=60))
"""


def test_a_module_that_the_program_writes(cluster: Machines, own: Host) -> None:
    assert values(cluster, own, WRITTEN) == [0, 1, 2]


MISSING = """
import importlib.util
sys.path.append("/tmp/more/site-packages")
@dpool.remote(resources={"h2": 1})
def there(name):
    assert importlib.util.find_spec(name) is None
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        return str(error), error.name
print(json.dumps([dpool.get(there.remote(name), timeout=60) for name in ("nowhere", "installed")]))
import installed
print(json.dumps(error_of(dpool.remote(installed.f).options(**at("h2")).remote())))
"""


def test_what_nobody_has(cluster: Machines, own: Host) -> None:
    write(own, {"/tmp/more/site-packages/installed.py": "def f(): pass"})
    (nowhere, installed), error = values(cluster, own, MISSING)
    assert nowhere[0] == (
        "No module named 'nowhere' on h2: it is not installed here, and the program has none on h1: install it on h2, "
        "or put it beside the script"
    )
    assert installed[0] == (
        "No module named 'installed' on h2: on h1 it is installed (/tmp/more/site-packages/installed.py), but what is "
        "installed is not sent: install it on h2, too"
    )
    assert [nowhere[1], installed[1]] == ["nowhere", "installed"]
    assert error.startswith("DeserializationError: the function does not load in the worker: ModuleNotFoundError: No ")
    assert error.endswith("install it on h2, too")


LARGE = """
@dpool.remote(resources={"h2": 1})
def there():
    import data
    return sorted(os.listdir(os.path.dirname(data.__file__)))
@dpool.remote(resources={"h2": 1})
def too_large():
    import huge
print(json.dumps([name for name in dpool.get(there.remote(), timeout=60) if name != "__pycache__"]))
print(json.dumps(error_of(too_large.remote())))
"""


def test_what_is_too_large(cluster: Machines, own: Host) -> None:
    write(own, {"huge.py": 33 << 20, "data/__init__.py": "", "data/much.bin": 2 << 20, "data/little.bin": 1 << 20})
    done = start(cluster, own, LARGE)
    there, error = map(json.loads, done.stdout.splitlines())
    assert there == ["__init__.py", "little.bin"]
    assert "dpool: of the package 'data' not all was sent from h1 to h2: data/much.bin (2.0 MB)" in done.stderr
    assert error == (
        "ModuleNotFoundError: No module named 'huge' on h2: it is not sent from h1: /tmp/own/huge.py has 1 modules of "
        "33.0 MB, and at most 10,000 of 32.0 MB are sent; the largest are huge.py (33.0 MB)"
    )


SUBMITTED = """
import beside, socket
from space import deep
@dpool.remote
def there(x):
    import pkg
    return beside.where(x), pkg.read()
print(json.dumps([socket.gethostname(), __name__, sys.argv[1:], os.path.basename(sys.argv[0])]))
print(json.dumps(dpool.get([there.options(**at(host)).remote(host) for host in ("h1", "h2", "h3")], timeout=60)))
sys.exit(deep.X)
"""


@pytest.mark.parametrize("stale", [False, True])
def test_submitted(cluster: Machines, stale: bool) -> None:
    """From the second host to the head on the first."""
    host = cluster.members[1].host
    try:
        write(host, {**FILES, "script.py": HEAD + SUBMITTED})
        if stale:
            write(cluster.members[0].host, {"script.py": HEAD + SUBMITTED, "beside.py": "", "pkg/__init__.py": ""})
        words = ("submit", f"{OWN}/script.py", "a", "b")
        done = host.run(sys.executable, "-m", "dpool", *words, env=cluster.members[1].environ())
        assert done.returncode == 5, done.stderr
        first, second = map(json.loads, done.stdout.splitlines())
        assert first == ["h1", "__main__", ["a", "b"], "script.py"]
        assert second == [[[name, name], "a table"] for name in ("h1", "h2", "h3")]
    finally:
        for member in cluster.members:
            member.host.root("rm", "-rf", OWN)


def test_a_client_s_modules(cluster: Machines) -> None:
    """Of a program on a host that is no machine of the cluster."""
    host = cluster.network.add()
    cluster.set_token(host)
    write(host, {**FILES, "script.py": HEAD + CLIENT})
    environ = {"DPOOL_LINGER_S": "0", "DPOOL_ADDRESS": f"dpool://{cluster.members[0].address}"}
    done = host.run(sys.executable, f"{OWN}/script.py", env=environ)
    assert done.returncode == 0, done.stderr
    actor, tasks = map(json.loads, done.stdout.splitlines())
    assert actor == [2, "h2"]
    assert tasks == [[["h1"], "h1"], [["h2"], "h2"]]
    host.end()


CLIENT = """
import beside
print(json.dumps(dpool.get(dpool.remote(beside.Counter).options(**at("h2")).remote(1).add.remote(), timeout=60)))
there = dpool.remote(beside.where)
print(json.dumps(dpool.get([there.options(**at(host)).remote([host]) for host in ("h1", "h2")], timeout=60)))
"""
