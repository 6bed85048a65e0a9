"""Programs on a cluster that `dpool start` began: joined as clients, `dpool run --address`, `dpool submit`."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.commands import Commands, commands, free_port
from tests.helpers import Script, processes, wait_until

PROGRAM = """
import dpool, os, sys
@dpool.remote(resources={"lamp": 1})
def lit(x):
    return x * x
print(sys.argv[1:], dpool.get([lit.remote(i) for i in range(3)], timeout=60))
print("heard", file=sys.stderr)
sys.exit(7)
"""


class Two:
    """The addresses of two machines, a head and one with a lamp."""

    def __init__(self, cli: Commands) -> None:
        self.cli = cli
        head = cli.head()
        other = cli.joined(head, "--resources", '{"lamp": 1}')
        self.head: str = head["address"]
        self.other: str = other["address"]
        wait_until(lambda: len(cli.addresses()) == 2)


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    """One cluster for all tests here; each finds it as it was."""
    with contextmanager(commands)() as cli:
        yield Two(cli)


@pytest.fixture
def cli(two: Two) -> Iterator[Commands]:
    yield two.cli
    wait_until(lambda: two.cli.status()["totals"]["clients"] == 0, what="all clients have gone")
    assert two.cli.status()["totals"]["machines"] == 2


def elsewhere(cli: Commands) -> str:
    """A temporary directory in which no node is found."""
    return tempfile.mkdtemp(dir=cli.home)


PRINTING = """
import dpool, sys
@dpool.remote(resources={"lamp": 0.01})
def say(number):
    sys.stdout.write("".join(f"{number}\\n" for _ in range(300)))
    sys.stdout.flush()
    print(-number, file=sys.stderr)
dpool.get([say.remote(number) for number in range(1, 51)], timeout=60)
"""


def test_nothing_that_is_printed_elsewhere_is_lost_at_the_end(cli: Commands) -> None:
    with Script(PRINTING, env={**cli.env, "DPOOL_ADDRESS": "auto"}) as running:
        done = running.finish().check()
    assert Counter(map(int, done.stdout.split())) == Counter({number: 300 for number in range(1, 51)})
    assert sorted(map(int, done.stderr.split())) == [*range(-50, 0)]


BY_ADDRESS = """
import dpool, sys
address = sys.argv[1]
with dpool.Executor(address=address) as executor:
    print(executor.options(resources={"lamp": 1}).submit(pow, 2, 5).result(60))
    try:
        dpool.Executor(address="local")
    except RuntimeError as error:
        print("one program has one" if "dpool runs already" in str(error) else error)
dpool.shutdown()
with dpool.init(address), dpool.Pool(1) as pool:
    print(pool.map(abs, [-1]), sorted(dpool.cluster_resources()))
dpool.shutdown()
with dpool.Executor(1, address="local") as executor:
    print(executor.submit(abs, -3).result(60), "lamp" in dpool.cluster_resources())
"""


@pytest.mark.parametrize("client", [False, True])
def test_addresses_in_the_program(cli: Commands, two: Two, client: bool) -> None:
    env = {**cli.env, **({"DPOOL_TMPDIR": elsewhere(cli)} if client else {})}
    with Script(BY_ADDRESS, f"dpool://{two.head}" if client else "auto", env=env) as running:
        lines = running.finish().check().stdout.splitlines()
    assert lines[:2] == ["32", "one program has one"]
    assert lines[2].startswith("[1] ")
    assert "lamp" in lines[2]
    assert lines[3] == "3 False"


def test_a_program_joins_as_a_client(cli: Commands, two: Two) -> None:
    place = elsewhere(cli)
    (cli.home / "program.py").write_text(PROGRAM)
    for address in (two.head, f"localhost:{two.head.rpartition(':')[2]}"):
        env = {**cli.env, "DPOOL_ADDRESS": f"dpool://{address}", "DPOOL_TMPDIR": place}
        with Script(cli.home / "program.py", "a", env=env) as running:
            assert running.finish() == (7, "['a'] [0, 1, 4]\n", "heard\n")
        assert os.listdir(place) == [], "the client has ended, and left nothing"


def test_a_client_is_seen_and_offers_nothing(cli: Commands, two: Two) -> None:
    place = elsewhere(cli)
    program = "import dpool, sys\ndpool.put(b'x' * 1_000_000)\nprint('up', flush=True)\nsys.stdin.read()\n"
    env = {**cli.env, "DPOOL_ADDRESS": f"dpool://{two.head}", "DPOOL_TMPDIR": place}
    with Script(program, env=env) as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "up\n"
        wait_until(lambda: cli.status()["totals"]["clients"] == 1)
        (client,) = [one for one in cli.status()["machines"] if one["client"]]
        assert (client["address"], client["resources"]) == ("", {})
        assert "a client" in cli("status").check().stdout
        assert "no node of a cluster" in cli.fails("status", DPOOL_TMPDIR=place), "it is its program's alone"
        assert "nothing runs here" in cli.fails("stop", DPOOL_TMPDIR=place)
        running.process.kill()  # whatever becomes of the program, its client goes
        running.process.wait()
        wait_until(lambda: not os.listdir(place))


def test_a_program_that_cannot_join(cli: Commands, two: Two) -> None:
    program = "import dpool\ntry:\n    dpool.get(dpool.remote(int).remote())\nexcept Exception as e:\n    print(e)\n"
    place = elsewhere(cli)
    for address, config, why in (
        ("auto", "config", "no node of a cluster runs on this machine"),
        (f"dpool://{two.head}", "none", "there is no cluster token"),
        (f"dpool://127.0.0.1:{free_port()}", "config", "nobody listens there"),
    ):
        env = {
            **cli.env, "DPOOL_ADDRESS": address, "DPOOL_TMPDIR": place, "DPOOL_START_TIMEOUT_S": "0.5",
            "XDG_CONFIG_HOME": str(cli.home / config),
        }  # fmt: skip
        with Script(program, env=env) as running:
            assert why in running.finish().check().stdout
    assert os.listdir(place) == []


def test_status_from_a_machine_outside(cli: Commands, two: Two) -> None:
    place = elsewhere(cli)
    found = cli.status("--address", f"dpool://{two.head}", DPOOL_TMPDIR=place)
    assert [one["address"] for one in found["machines"]] == [two.head, two.other]
    assert os.listdir(place) == []


def test_run_with_an_address(cli: Commands, two: Two) -> None:
    (cli.home / "program.py").write_text(PROGRAM)
    with cli.script("run", "--address", "auto", "program.py", "a") as running:
        assert running.finish() == (7, "['a'] [0, 1, 4]\n", "heard\n")
    done = cli("run", "--address", "node1", "program.py")
    assert done.rc == 2
    assert "dpool://HOST:PORT" in done.stderr


OVERDUE = """
import dpool, time
with dpool.Executor(1) as executor:
    print(executor.options(timeout=0.1, name="nap", resources={"lamp": 1}).submit(time.sleep, 60).exception(60))
"""


def test_a_task_elsewhere_that_takes_too_long(cli: Commands, two: Two) -> None:
    with Script(OVERDUE, env={**cli.env, "DPOOL_ADDRESS": "auto"}) as running:
        said = running.finish().check().stdout
    assert re.fullmatch(r"nap ran longer than its timeout of 0.1 s; its worker( \(pid [1-9]\d*\))? was killed\n", said)


REPORTED = """
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2) as executor:
    print(list(executor.map(abs, range(3))))
"""


def test_the_report_of_a_program_on_a_cluster(cli: Commands, two: Two, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(REPORTED)
    file = tmp_path / "report.json"
    words = ("run", "--address", "auto", "--report-json", str(file), str(tmp_path / "program.py"))
    with cli.script(*words) as running:
        assert running.finish() == (0, "[0, 1, 2]\n", "")
    found = json.loads(file.read_text())
    assert found["tasks"] == 3
    assert 0 < found["tasks_wall_s"] <= found["wall_s"]


@pytest.mark.parametrize("outside", [False, True])
def test_submitted(cli: Commands, two: Two, outside: bool) -> None:
    (cli.home / "program.py").write_text(PROGRAM)
    place = elsewhere(cli)
    words = ("--address", f"dpool://{two.head}") if outside else ()
    with cli.script("submit", *words, "program.py", "a", **({"DPOOL_TMPDIR": place} if outside else {})) as running:
        assert running.finish() == (7, "['a'] [0, 1, 4]\n", "heard\n")
    assert os.listdir(place) == []


def test_what_is_submitted_need_not_be_at_the_head(cli: Commands, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text("import os\nprint(os.path.basename(__file__), __file__)\n")
    with cli.script("submit", str(path)) as running:
        assert running.finish().check().stdout == f"program.py {path}\n", "the same file is there"
    with cli.script("submit", "/dev/stdin") as running:
        assert running.finish("print('from a pipe')").check().stdout == "from a pipe\n"
    with cli.script("submit", "none.py") as running:
        done = running.finish()
    assert done.rc == 2
    assert "No such file or directory: 'none.py'" in done.stderr


def test_a_submitted_program_has_the_heads_environment(cli: Commands, two: Two) -> None:
    text = "import os, sys\nprint(os.environ.get('MINE'), os.environ['GIVEN'], os.getcwd(), sys.path[0])\n"
    (cli.home / "program.py").write_text(text)
    with cli.script("submit", "--env", "GIVEN=this", "program.py", MINE="x") as running:
        assert running.finish() == (0, f"None this {cli.home} {cli.home}\n", "")


def test_a_submitted_program_that_a_signal_ends(cli: Commands, two: Two) -> None:
    (cli.home / "program.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    with cli.script("submit", "program.py") as running:
        assert running.finish() == (137, "", "")


INTERRUPTED = """
import signal, sys, time
def told(*_):
    print("told", flush=True)
    if len(sys.argv) == 1:
        sys.exit(5)
signal.signal(signal.SIGINT, told)
print("begun", flush=True)
while True:
    time.sleep(100)
"""


def test_ctrl_c_reaches_a_submitted_program(cli: Commands, two: Two) -> None:
    (cli.home / "program.py").write_text(INTERRUPTED)
    with cli.script("submit", "program.py") as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "begun\n"
        os.kill(running.pid, signal.SIGINT)
        assert running.process.stdout.readline() == "told\n"
        assert running.finish().rc == 5


def test_a_second_ctrl_c_kills_it(cli: Commands, two: Two) -> None:
    (cli.home / "program.py").write_text(INTERRUPTED)
    with cli.script("submit", "program.py", "stay") as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "begun\n"
        os.kill(running.pid, signal.SIGINT)
        assert running.process.stdout.readline() == "told\n"
        os.kill(running.pid, signal.SIGINT)
        assert running.finish().rc in (1, 130)
    wait_until(lambda: not [one for one in processes() if f"{cli.home}/program.py" in one.command])


def test_a_submitter_that_dies_takes_its_program_along(cli: Commands, two: Two) -> None:
    (cli.home / "program.py").write_text(INTERRUPTED)
    with cli.script("submit", "program.py") as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "begun\n"
        running.process.kill()
        wait_until(lambda: not [one for one in processes() if f"{cli.home}/program.py" in one.command])
