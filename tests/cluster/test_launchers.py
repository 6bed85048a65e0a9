"""`dpool up` and `down` over ssh, the Slurm script with stand-ins for Slurm's commands, the Kubernetes manifests."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpool._cluster import plan
from tests.cluster.commands import DEADLINE_S, Commands, commands, free_port
from tests.helpers import REPOSITORY, is_running, wait_until

cli = pytest.fixture(commands)
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


# -- the file


def read(tmp_path: Path, text: str) -> plan.Plan:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    return plan.load(str(path))


def test_a_plan(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        python = "/opt/python"
        ssh = ["-p", "2222"]
        timeout_s = 5
        [head]
        host = "alice@one"
        port = 7077
        bind = "10.0.0.1"
        [[workers]]
        hosts = ["two", "three"]
        num_cpus = 2.5
        resources = { licence = 1 }
        [[workers]]
        hosts = ["four"]
        python = "python3.12"
        env = { TMPDIR = "/scratch" }
        """,
    )
    assert found.head == plan.Machine("alice@one", "/opt/python", {}, ["--bind", "10.0.0.1", "--port", "7077"])
    assert [one.host for one in found.workers] == ["two", "three", "four"]
    assert found.workers[0].options == ["--num-cpus", "2.5", "--resources", '{"licence": 1}']
    assert found.workers[2][1:] == ("python3.12", {"TMPDIR": "/scratch"}, [])
    assert (found.ssh, found.timeout_s) == (["-p", "2222"], 5.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[head", "cluster.toml: "),
        ("", "there is no [head]"),
        ("[head]", "[head] has no host"),
        ("[head]\nhost = '-oProxyCommand=x'", "a host is a name"),
        ("[head]\nhost = 'a'\ncpus = 3", "[head] has 'cpus', which means nothing here; it takes bind, port, num_cpus"),
        ("[head]\nhost = 'a'\nport = 'b'", "port cannot be 'b'"),
        ("workers = [1]\n[head]\nhost = 'a'", "workers are written as [[workers]]"),
        ("[head]\nhost = 'a'\n[[workers]]\n", "[[workers]] number 1 has no hosts"),
        ("ssh = [1]\n[head]\nhost = 'a'", "ssh is a list of strings"),
        ("timeout_s = 0\n[head]\nhost = 'a'", "timeout_s is a number of seconds above 0"),
        ("[head]\nhost = 'a'\nenv = {A = 1}", "the values of env are strings"),
    ],
)
def test_plans_that_cannot_be(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(plan.PlanError) as caught:
        read(tmp_path, text)
    assert why in str(caught.value)


# -- over ssh


class Sshd:
    """An ssh server of this user on loopback, with keys of its own; `options` lead ssh to it."""

    def __init__(self, directory: Path) -> None:
        assert SSHD is not None
        directory.mkdir(mode=0o700)
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)],
                check=True, timeout=DEADLINE_S,
            )  # fmt: skip
        shutil.copy(directory / "user.pub", directory / "authorized")
        port = free_port()
        host_key = (directory / "host.pub").read_text()
        (directory / "known").write_text(f"[127.0.0.1]:{port} {host_key}[localhost]:{port} {host_key}")
        settings = {
            "ListenAddress": f"127.0.0.1:{port}",
            "HostKey": directory / "host",
            "AuthorizedKeysFile": directory / "authorized",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitUserEnvironment": "no",
            "AcceptEnv": "none",
            "PermitRootLogin": "prohibit-password",
        }
        (directory / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self.options = [
            "-F", "none", "-p", str(port), "-i", str(directory / "user"), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={directory / 'known'}",
        ]  # fmt: skip
        log = directory / "log"
        self._process = subprocess.Popen([SSHD, "-D", "-E", str(log), "-f", str(directory / "config")])
        wait_until(
            lambda: self._process.poll() is not None or (log.exists() and "listening on" in log.read_text()),
            what="the ssh server listens",
        )
        if self._process.poll() is not None:
            pytest.skip(f"no ssh server can be started here: {log.read_text()}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE_S)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs ssh and sshd (Debian: openssh-client, openssh-server)")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # where the server, as root, wants to lock its children in
    server = Sshd(tmp_path / "sshd")
    try:
        yield server
    finally:
        server.stop()


def cluster_file(cli: Commands, sshd: Sshd, hosts: list[str], **more: str) -> str:
    """This machine as several: each has a temporary directory of its own."""
    lines = [
        f"python = {json.dumps(sys.executable)}",
        f"ssh = {json.dumps(sshd.options)}",
        f"token_file = {json.dumps(str(cli.home / 'shared-token'))}",
    ]
    for number, host in enumerate(hosts):
        place = cli.home / f"machine{number}"
        place.mkdir(exist_ok=True)
        kept = ("PYTHONPATH", "TMPDIR", "DPOOL_TEST_MARK")
        env = {name: cli.environment()[name] for name in kept} | cli.env | {"DPOOL_TMPDIR": str(place)} | more
        table = [f"env = {{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in env.items())} }}"]
        table += ["num_cpus = 1", 'bind = "127.0.0.1"']
        lines += (
            ["[head]", f'host = "{host}"', *table] if not number else ["[[workers]]", f'hosts = ["{host}"]', *table]
        )
    path = cli.home / "cluster.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def started(cli: Commands) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(cli.home.glob("machine*/dpool-*/gateway.json"))]


def test_up_and_down(cli: Commands, sshd: Sshd) -> None:
    hosts = ["127.0.0.1", f"{getpass.getuser()}@localhost", "127.0.0.1"]
    path = cluster_file(cli, sshd, hosts)
    try:
        said = cli("up", path).check()
        head = said.stdout.splitlines()[0].rpartition("dpool://")[2]
        assert said.stdout.count("dpool://") == 4
        assert len(started(cli)) == 3
        found = cli.status("--address", f"dpool://{head}", DPOOL_TOKEN_FILE=str(cli.home / "shared-token"))
        assert found["totals"]["machines"] == 3
        again = cli("up", path).check()
        assert again.stdout == said.stdout, "what runs stays"
    finally:
        pids = [one["pid"] for one in started(cli)]
        done = cli("down", path).check()
    assert done.stdout.count("stopped") == 3
    assert not any(map(is_running, pids))
    assert cli("down", path).check().stdout == ""


def test_machines_that_fail_are_named(cli: Commands, sshd: Sshd) -> None:
    path = cluster_file(cli, sshd, ["127.0.0.1", "127.0.0.1"])
    with open(path, "a") as file:
        file.write('[[workers]]\nhosts = ["nowhere.invalid"]\n')
        file.write('[[workers]]\nhosts = ["localhost"]\npython = "/no/such/python"\n')
    try:
        said = cli.fails("up", path)
        assert "nowhere.invalid: ssh: " in said
        assert "localhost: " in said
        assert "/no/such/python" in said
        assert "2 of 4 machines failed; the others run" in said
        assert len(started(cli)) == 2
    finally:
        assert "nowhere.invalid" in cli.fails("down", path)
    assert not started(cli)


def test_nothing_is_started_without_a_head(cli: Commands, sshd: Sshd) -> None:
    path = cluster_file(cli, sshd, ["127.0.0.1", "127.0.0.1"], DPOOL_GCS="perhaps")
    said = cli.fails("up", path)
    assert "127.0.0.1: dpool start: DPOOL_GCS is 'on' or 'off', not 'perhaps'" in said
    assert "nothing else was started" in said
    assert not started(cli)


# -- Slurm


SRUN = """#!/bin/bash
# Runs the command of a step here, as if on the node.
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && node=${1#--nodelist=}
    shift
done
mkdir -p "$HOME/$node"
DPOOL_TMPDIR=$HOME/$node exec "$@"
"""
SCONTROL = """#!/bin/bash
[ "$1 $2" = "show hostnames" ] && tr , '\\n' <<<"$3"
"""
SBATCH = REPOSITORY / "deploy" / "slurm" / "dpool.sbatch"


@pytest.fixture
def slurm(cli: Commands) -> dict[str, str]:
    """What a batch script has, on three nodes that are this machine."""
    programs = cli.home / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return cli.environment(
        PATH=f"{programs}:{os.environ['PATH']}",
        DPOOL_PYTHON=sys.executable,
        DPOOL_OPTIONS="--bind 127.0.0.1 --num-cpus 1",
        DPOOL_TMPDIR=str(cli.home / "n1"),
        SLURM_JOB_ID="17",
        SLURM_JOB_NODELIST="n1,n2,n3",
        SLURM_CPUS_ON_NODE="2",
    )


def batch(cli: Commands, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SBATCH), *words], env=env, capture_output=True, text=True, timeout=110, check=False, cwd=cli.home
    )


PROGRAM = """
import sys
import dpool
print(sys.argv[1:], sum(int(one["Resources"]["CPU"]) for one in dpool.nodes()))
sys.exit(4)
"""


def test_the_slurm_script(cli: Commands, slurm: dict[str, str]) -> None:
    (cli.home / "program.py").write_text(PROGRAM)
    done = batch(cli, slurm, "program.py", "a")
    assert (done.returncode, done.stdout) == (4, "['a'] 3\n"), done.stderr
    assert not list(cli.home.glob("n*/*")), "every node has ended"
    assert not list(cli.home.glob(".dpool-job-*")), "its token is gone"


def test_the_slurm_script_when_a_node_fails(cli: Commands, slurm: dict[str, str]) -> None:
    slurm["DPOOL_OPTIONS"] += " --resources nonsense"
    done = batch(cli, slurm, "program.py")
    assert done.returncode == 1
    assert "--resources is JSON" in done.stderr
    assert "the head did not start on n1" in done.stderr
    assert not list(cli.home.glob(".dpool-job-*"))
    assert batch(cli, slurm).returncode == 2


def test_the_slurm_script_as_its_shell_reads_it() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    lines = SBATCH.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options
    assert max(options) < first, "sbatch reads no options behind the first command"


@pytest.mark.needs("shellcheck")
def test_shellcheck_of_the_slurm_script() -> None:
    done = subprocess.run(["shellcheck", str(SBATCH)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# -- Kubernetes


MANIFESTS = REPOSITORY / "deploy" / "kubernetes"


def manifests() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    names = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    assert sorted([*names, "kustomization.yaml"]) == sorted(path.name for path in MANIFESTS.glob("*.yaml"))
    return [one for name in names for one in yaml.safe_load_all((MANIFESTS / name).read_text())]


def test_the_manifests_fit_together() -> None:
    found = {one["kind"]: one for one in manifests()}
    assert set(found) == {"Namespace", "Service", "StatefulSet", "Deployment", "NetworkPolicy"}
    head, worker, service = found["StatefulSet"], found["Deployment"], found["Service"]
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert head["spec"]["serviceName"] == name
    address = f"dpool://{head['metadata']['name']}-0.{name}:{port}"
    for one in (head, worker):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"] == labels
        (container,) = one["spec"]["template"]["spec"]["containers"]
        command = container["command"][2]
        assert f"--port {port} " in command
        assert "--token-stdin --block </etc/dpool/token" in command, "no secret on a command line"
        assert (address in command) == (one is worker)
        assert container["ports"][0]["containerPort"] == port
        (volume,) = one["spec"]["template"]["spec"]["volumes"]
        assert volume["secret"]["secretName"] == "dpool-token"
        assert container["volumeMounts"][0]["mountPath"] == "/etc/dpool"
        assert one["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"]
    assert service["spec"]["selector"] == head["spec"]["template"]["metadata"]["labels"]
    policy = found["NetworkPolicy"]["spec"]
    (rule,) = policy["ingress"]
    assert policy["podSelector"] == rule["from"][0]["podSelector"] == {"matchLabels": {"app": "dpool"}}
    assert rule["ports"] == [{"port": port, "protocol": "TCP"}]


@pytest.mark.needs("module:kubernetes_validate")
def test_the_manifests_are_what_kubernetes_takes() -> None:
    import kubernetes_validate

    for one in manifests():
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.needs("kubectl")
def test_what_kustomize_makes_of_them(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    (tmp_path / "kubernetes" / "token").write_text("dpool-1 secret\n")
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "kubernetes")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("namespace: dpool\n") == 5, "all but the namespace itself, with the secret"
    assert "kind: Secret" in done.stdout
    assert "image: dpool:" in done.stdout


def test_options_in_the_deploy_files_exist(cli: Commands) -> None:
    """Every `dpool start`, `token`, `status`, `drain` in them takes the options that it is given."""
    helped = {name: cli(name, "--help").check().stdout for name in ("start", "token", "status", "drain")}
    for path in (SBATCH, *MANIFESTS.glob("*.yaml")):
        for line in path.read_text().splitlines():
            for name, text in helped.items():
                if f"dpool {name} " in line and not line.startswith("#"):
                    words = line.partition(f"dpool {name} ")[2].split()
                    assert all(word in text for word in words if word.startswith("--")), (path, line)
