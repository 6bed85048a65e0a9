"""`dpool start`, `stop`, `status`, `drain`, `token`."""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from dpool._cluster import start
from dpool._core.joining import parse_address, resolve
from dpool._core.machine import find_resources
from tests.cluster.commands import Commands, commands, free_port
from tests.helpers import Script, descendants, is_running, process, processes, wait_until

cli = pytest.fixture(commands)


def secret_of(cli: Commands) -> str:
    return (cli.home / "config" / "dpool" / "token").read_text().split()[1]


# -- start, status, stop


def test_two_machines_and_what_they_say_of_themselves(cli: Commands, tmp_path: Path) -> None:
    port = free_port()
    spill = tmp_path / "spill"
    spill.mkdir()
    head = cli.head(
        "--port", str(port), "--num-gpus", "0", "--resources", '{"licence": 2}',
        "--object-store-memory", "50000000", "--spill-dir", str(spill),
    )  # fmt: skip
    assert head["address"] == f"127.0.0.1:{port}" == head["head"]
    other = cli.joined(head, "--num-cpus", "2", "--resources", '{"lamp": 0.5}')
    wait_until(lambda: len(cli.addresses()) == 2, what="both are in it")
    found = cli.status()
    first, second = found["machines"]
    assert (first["address"], second["address"]) == (head["address"], other["address"])
    assert (first["head"], second["head"], first["client"], first["draining"]) == (True, False, False, False)
    assert first["resources"]["licence"] == [2, 2]
    assert second["resources"]["lamp"] == [0.5, 0.5]
    assert found["head"] == head["address"]
    assert found["totals"]["machines"] == 2
    assert found["totals"]["resources"]["num_cpus"] == [3, 3]
    table = cli("status").check().stdout
    assert "cluster of 2 machines" in table
    assert "licence 0 of 2" in table
    assert cli("stop").check().stdout.count("stopped") == 2
    assert not is_running(head["pid"])
    assert not is_running(other["pid"])
    assert "nothing runs here" in cli.fails("stop")
    assert "no node of a cluster runs on this machine" in cli.fails("status")


def test_what_works_is_counted(cli: Commands, tmp_path: Path) -> None:
    cli.head("--num-cpus", "2")
    program = """
        import dpool, sys
        import numpy
        kept = dpool.put(numpy.zeros(1_000_000))
        class Counter:
            def count(self):
                return 1
        actor = dpool.ActorProxy(Counter)
        actor.count()
        @dpool.remote(num_cpus=2)
        def busy():
            return sys.stdin.read()
        print("ready", flush=True)
        sys.stdin.read()
    """
    with Script(dedent(program), env={**cli.env, "DPOOL_ADDRESS": "auto"}) as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "ready\n"
        (one,) = cli.status()["machines"]
        assert one["actors"] == 1
        assert one["store"]["objects"] == 1
        assert one["store"]["used"] > 8_000_000
        running.finish("").check()
    (one,) = cli.status()["machines"]
    assert one["actors"] == one["store"]["objects"] == 0


def test_watched(cli: Commands) -> None:
    cli.head()
    with cli.script("status", "--json", "--watch", "0.01") as watching:
        assert watching.process.stdout is not None
        for _ in range(3):
            assert json.loads(watching.process.stdout.readline())["totals"]["machines"] == 1
        os.kill(watching.pid, signal.SIGINT)
        watching.process.stdout.read()
        assert watching.process.wait(60) == 0


def test_it_survives_its_terminal(cli: Commands) -> None:
    """Started from a shell whose terminal goes away, with something else of it open."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cli.home)
        words = [sys.executable, "-m", "dpool", "start", "--head", "--bind", "127.0.0.1", "--num-cpus", "1"]
        line = " ".join(words) + " 9</dev/tty; read again"
        os.execvpe("sh", ["sh", "-c", line], cli.environment())
    try:
        said = b""
        while b"log files" not in said:
            said += os.read(terminal, 10_000)
        (one,) = cli.status()["machines"]
    finally:
        os.close(terminal)  # the shell gets SIGHUP
        os.waitpid(pid, 0)
    (again,) = cli.status()["machines"]
    assert one["pid"] == again["pid"]
    for found in [one["pid"], gateway_pid(cli)]:
        there = process(found)
        assert there is not None
        assert there.session != pid
        links = [os.readlink(f"/proc/{found}/fd/{fd}") for fd in os.listdir(f"/proc/{found}/fd")]
        assert not [link for link in links if link.startswith(("/dev/pts", "/dev/tty"))]
    assert os.readlink(f"/proc/{gateway_pid(cli)}/cwd") != str(cli.home)


def gateway_pid(cli: Commands) -> int:
    """Of the one that runs."""
    (path,) = Path(os.environ["TMPDIR"]).glob("dpool-*/gateway.json")
    return int(json.loads(path.read_text())["pid"])


def test_two_heads_on_one_machine_are_two_clusters(cli: Commands) -> None:
    one, other = cli.head(), cli.head()
    assert one["cluster"] == other["cluster"], "they have the same token"
    assert cli.status("--address", f"dpool://{one['address']}")["totals"]["machines"] == 1
    assert cli("stop", "--address", f"dpool://{one['address']}").check().stdout.count("stopped") == 1
    assert cli.addresses() == [other["address"]]
    assert "nothing runs" in cli.fails("stop", "--cluster", "another")
    again = cli.head("--once")
    assert again["pid"] == other["pid"], "it runs already"
    assert cli("stop", "--cluster", other["cluster"]).check().stdout.count("stopped") == 1


def test_names_of_hosts(cli: Commands) -> None:
    head = cli.head()
    port = head["address"].rpartition(":")[2]
    cli.start("--address", f"dpool://localhost:{port}", "--num-cpus", "1")
    wait_until(lambda: len(cli.addresses()) == 2)
    assert "nowhere.invalid" in cli.fails("start", "--address", "dpool://nowhere.invalid:7")


def test_staying_in_the_foreground(cli: Commands) -> None:
    with cli.script("start", "--head", "--bind", "127.0.0.1", "--num-cpus", "1", "--block", "--json") as staying:
        assert staying.process.stdout is not None
        started = json.loads(staying.process.stdout.readline())
        os.kill(staying.pid, signal.SIGTERM)
        staying.finish().check()
        assert not is_running(started["pid"])
    with cli.script("start", "--head", "--bind", "127.0.0.1", "--num-cpus", "1", "--block", "--json") as staying:
        assert staying.process.stdout is not None
        started = json.loads(staying.process.stdout.readline())
        os.kill(started["pid"], signal.SIGKILL)
        result = staying.finish()
        assert result.rc == 1
        assert "has ended" in result.stderr


# -- what cannot be


def test_what_start_refuses(cli: Commands, tmp_path: Path) -> None:
    for words, why in (
        (["--head", "--bind", "0.0.0.0"], "only that one is opened"),
        (["--head", "--bind", "somewhere"], "an IP address"),
        (["--head", "--bind", "192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["--head", "--resources", "lamp"], "--resources is JSON"),
        (["--head", "--resources", '{"lamp": -1}'], "lamp must not be negative"),
        (["--head", "--num-cpus", "-1"], "num_cpus must not be negative"),
        (["--head", "--spill-dir", str(tmp_path / "none")], "--spill-dir must be a directory"),
        (["--head", "--redis-url", "redis://:hush@localhost"], "DPOOL_REDIS_URL"),
        (["--address", "node1"], "an address is dpool://HOST:PORT"),
        (["--address", "dpool://127.0.0.1:9", "--token-file", str(tmp_path / "none")], "no cluster token"),
    ):
        assert why in cli.fails("start", *words)
    assert "standard input holds no cluster token" in cli.fails("start", "--head", "--token-stdin", input="nonsense")
    assert not list(Path(os.environ["TMPDIR"]).glob("dpool-*"))


def test_a_port_that_is_taken(cli: Commands) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = cli.fails("start", "--head", "--bind", "127.0.0.1", "--port", str(port))
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in said


def test_a_head_that_is_not_there(cli: Commands) -> None:
    cli("token", "--new").check()
    said = cli.fails("start", "--address", f"dpool://127.0.0.1:{free_port()}", DPOOL_START_TIMEOUT_S="0.5")
    assert "nobody listens there, or the way is blocked" in said


def test_a_token_of_another_cluster(cli: Commands, tmp_path: Path) -> None:
    head = cli.head()
    path = str(tmp_path / "other")
    cli("token", "--new", "--token-file", path).check()
    words = ("start", "--address", f"dpool://{head['address']}", "--token-file", path)
    assert "does not accept this cluster's token" in cli.fails(*words, DPOOL_START_TIMEOUT_S="0.5")
    os.chmod(path, 0o644)
    assert "others can read" in cli.fails(*words)
    assert cli.addresses() == [head["address"]]


def test_another_version_is_named(cli: Commands, tmp_path: Path) -> None:
    head = cli.head()
    (tmp_path / "sitecustomize.py").write_text("import dpool._core.config as c\nc.VERSION = '9.9'\n")
    path = f"{tmp_path}:{cli.environment()['PYTHONPATH']}"
    said = cli.fails("start", "--address", f"dpool://{head['address']}", PYTHONPATH=path)
    assert "runs dpool 9.9" in said
    assert "install the same on both" in said
    said = cli.fails("status", PYTHONPATH=path)
    assert "you run dpool 9.9" in said


def test_no_secret_is_where_others_can_read_it(cli: Commands, tmp_path: Path) -> None:
    head = cli.head()
    token = cli.home / "config" / "dpool" / "token"
    secret = secret_of(cli)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    other = cli.start(
        "--address", f"dpool://{head['address']}", "--num-cpus", "1", "--token-stdin",
        input=token.read_text(), XDG_CONFIG_HOME=str(tmp_path),
    )  # fmt: skip
    assert not (tmp_path / "dpool").exists(), "it is kept nowhere"
    everything = list(processes())
    ours = [one for each in (head, other) for one in (process(each["pid"]), *descendants(each["pid"], everything))]
    assert len(ours) >= 2
    for one in ours:
        assert one is not None
        for name in ("cmdline", "environ"):
            assert secret.encode() not in Path(f"/proc/{one.pid}/{name}").read_bytes()
    for each in (head, other):
        files = [path for path in Path(each["session"]).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert secret.encode() not in path.read_bytes(), path


# -- leaving


@pytest.fixture
def two(cli: Commands) -> dict[str, Any]:
    """A head, and a machine with a lamp; the head."""
    head = cli.head()
    cli.joined(head, "--resources", '{"lamp": 1}')
    wait_until(lambda: len(cli.addresses()) == 2)
    return head


def test_drained(cli: Commands, two: dict[str, Any]) -> None:
    (other,) = [address for address in cli.addresses() if address != two["address"]]
    assert "no machine of the cluster is called 'nobody'" in cli.fails("drain", "nobody")
    assert "has left" in cli("drain", f"dpool://{other}").check().stdout
    assert cli.addresses() == [two["address"]]
    assert "has left" in cli("drain").check().stdout
    assert "no node of a cluster" in cli.fails("status")


def test_it_waits_for_what_runs(cli: Commands, two: dict[str, Any]) -> None:
    (other,) = [address for address in cli.addresses() if address != two["address"]]
    program = """
        import dpool, sys, os, time
        @dpool.remote(resources={"lamp": 1})
        def wait(path):
            print("begun", flush=True)
            while not os.path.exists(path):
                time.sleep(0.01)
            return "done"
        print(dpool.get(wait.remote(sys.argv[1]), timeout=60))
    """
    gate = cli.home / "gate"
    with Script(dedent(program), str(gate), env={**cli.env, "DPOOL_ADDRESS": f"dpool://{two['address']}"}) as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "begun\n"
        cli("drain", other, "--no-wait").check()
        wait_until(lambda: any(one["draining"] for one in cli.status()["machines"]))
        assert "still there after" in cli.fails("drain", other, "--timeout", "0")
        gate.touch()
        assert running.finish().check().stdout == "done\n"
    wait_until(lambda: cli.addresses() == [two["address"]], what="it has left")


# -- token


def test_token(cli: Commands, tmp_path: Path) -> None:
    assert "there is no cluster token" in cli.fails("token")
    cli("token", "--new").check()
    assert "there is a token" in cli.fails("token", "--new")
    line = cli("token").check().stdout
    path = str(tmp_path / "copy")
    cli("token", "--set", "--token-file", path, input=line).check()
    assert Path(path).read_text() == line
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert cli("token", DPOOL_TOKEN_FILE=path).check().stdout == line


def test_a_command_that_there_is_not() -> None:
    done = subprocess.run([sys.executable, "-m", "dpool", "launch"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "status" in done.stderr


def test_options_become_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the other tests do not see the effect of."""
    monkeypatch.setenv("DPOOL_RESOURCES", '{"licence": 1}')
    parser = argparse.ArgumentParser()
    start.add_arguments(parser)
    config = start._config(parser.parse_args(["--head", "--num-cpus", "0", "--redis-url", "redis://node9:6379/2"]))
    assert config.redis_url == "redis://node9:6379/2"
    assert find_resources(config, 0)["num_cpus"] == 0
    assert config.resources == (("licence", 1.0), (start.HEAD_RESOURCE, 1.0))
    joining = start._config(parser.parse_args(["--address", "dpool://h:1", "--resources", '{"lamp": 2}']))
    assert joining.resources == (("lamp", 2.0),)
    assert find_resources(joining._replace(client=True), 0) == {"num_cpus": 0, "num_gpus": 0, "memory": 0}


@pytest.mark.parametrize(
    ("text", "address"),
    [("dpool://h:1", "h:1"), ("h:65535", "h:65535"), ("dpool://[::1]:7", "[::1]:7")]
    + [(text, None) for text in ("h", "dpool://h", "h:0", "h:65536", "h:x", ":1", "::1:7", "dpool://[]:7", "")],
)
def test_addresses(text: str, address: str | None) -> None:
    if address is None:
        with pytest.raises(ValueError, match="an address is dpool://HOST:PORT"):
            parse_address(text)
    else:
        assert parse_address(text) == address
    assert resolve("127.0.0.1:7") == "127.0.0.1:7"
    assert resolve("[::1]:7") == "[::1]:7"
