"""Several machines on this one, for the questions that need them: namespaced hosts with dpool, ray or OpenMPI on each.

A question's module runs itself twice: `sample` starts `python -m benchmarks.QUESTION SUBJECT SIZE FILE` through the
launcher; that makes the hosts, starts the subject on them, and runs `python -m benchmarks.QUESTION drive …` on the
first of them, which prints one line of JSON. All hosts share this machine's cores: what is measured is what the
links, the messages and the copies cost, never how much faster several machines compute.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.launcher import Launcher
from benchmarks.model import Sample, Size, Subject
from tests.cluster.hosts import Host, Network, lacking

START_S = 120.0
DRIVE_S = 280.0
STORE_BYTES = 1 << 30


def sample(question: str, subject: Subject, size: Size, launcher: Launcher) -> Sample:
    """One sample, from a process of its own."""
    words = ["-m", f"benchmarks.{question}", subject.name, json.dumps(dict(size))]
    found: Sample = json.loads(launcher.run(words, timeout_s=START_S + DRIVE_S).result)
    return found


@contextmanager
def dpool_machines(count: int, cpus: float, mbit: float = 0.0, **options: str) -> Iterator[list[Host]]:
    """Hosts that are one cluster of dpool's; each has a resource of its own name."""
    if reason := lacking():
        raise SystemExit(f"there can be no hosts here: {reason}")
    with Network(count) as network, tempfile.TemporaryDirectory(prefix="benchmark-token-", dir=Path.cwd()) as folder:
        head = ""
        for host in network.hosts:
            host.environ.update(options, DPOOL_TOKEN_FILE=f"{folder}/token")  # its home is a host's own
            role = ["--address", head] if head else ["--head"]
            resources = json.dumps({host.name: 1000})
            words = ["start", *role, "--bind", host.ip, "--num-cpus", f"{cpus:g}", "--resources", resources]
            done = host.run(
                sys.executable, "-m", "dpool", *words, "--object-store-memory", str(STORE_BYTES), timeout=START_S
            )
            if done.returncode:
                raise SystemExit(f"dpool on {host.name}: {done.stdout}{done.stderr}")
            head = head or next(word for word in done.stdout.split() if word.startswith("dpool://"))
        for host in network.hosts:
            host.environ["DPOOL_ADDRESS"] = "auto"
            if mbit:
                host.shape(mbit)
        yield network.hosts


@contextmanager
def ray_machines(count: int, cpus: int, mbit: float = 0.0) -> Iterator[list[Host]]:
    """The same, of ray's."""
    if reason := lacking():
        raise SystemExit(f"there can be no hosts here: {reason}")
    ray = str(Path(sys.executable).with_name("ray"))
    with Network(count) as network:
        for host in network.hosts:
            host.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1")
            role = ["--head", "--port=6379", "--include-dashboard=false"]
            if host.number > 1:
                role = [f"--address={network.hosts[0].ip}:6379"]
            resources = json.dumps({host.name: 1000})
            words = ["start", *role, f"--node-ip-address={host.ip}", f"--num-cpus={cpus}", f"--resources={resources}"]
            done = host.run(
                ray, *words, f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", timeout=START_S
            )
            if done.returncode:
                raise SystemExit(f"ray on {host.name}: {done.stdout}{done.stderr}")
        for host in network.hosts:
            if mbit:
                host.shape(mbit)
        yield network.hosts


@contextmanager
def plain_machines(count: int, mbit: float = 0.0) -> Iterator[list[Host]]:
    """Hosts with nothing on them."""
    if reason := lacking():
        raise SystemExit(f"there can be no hosts here: {reason}")
    with Network(count) as network:
        for host in network.hosts:
            if mbit:
                host.shape(mbit)
        yield network.hosts


def drive(host: Host, question: str, *words: str) -> Any:
    """Run the question's program on a host; what its last line says."""
    done = host.run(sys.executable, "-m", f"benchmarks.{question}", "drive", *words, timeout=DRIVE_S)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def mpirun(hosts: Sequence[Host], question: str, *words: str) -> Any:
    """Run the question's program as one rank on each host, with OpenMPI over TCP; what the last line says.

    mpirun runs in the first host's network, and reaches the others by entering their namespaces instead of by ssh.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-mpi-", dir=Path.cwd()) as folder:
        agent = Path(folder, "agent")
        cases = "\n".join(f'{one.ip}) exec {" ".join(one.space.inside)} sh -c "$*" ;;' for one in hosts)
        agent.write_text(f'#!/bin/sh\nto=$1\nshift\ncase "$to" in\n{cases}\nesac\nexit 9\n')
        agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
        first = hosts[0].space.pid
        command = [
            *("nsenter", f"--target={first}", "--net", "--"),
            *("mpirun", "--allow-run-as-root", "--mca", "plm_rsh_agent", str(agent), "--mca", "btl", "tcp,self"),
            *("--mca", "btl_tcp_if_include", "eth0", "--mca", "oob_tcp_if_include", "eth0"),
            *("--mca", "mpi_yield_when_idle", "1", "-x", "PYTHONPATH", "--wdir", os.getcwd()),
            *("-host", ",".join(one.ip for one in hosts), "-n", str(len(hosts))),
            *(sys.executable, "-m", f"benchmarks.{question}", "rank", *words),
        ]
        environ = {**os.environ, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=DRIVE_S, check=False)
    if done.returncode:
        raise SystemExit(f"mpirun: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(question: str, arguments: Sequence[str], subjects: Any, driver: Any, rank: Any = None) -> None:
    """A question's `__main__`: `SUBJECT SIZE FILE`, `drive …` or `rank …`."""
    role, *words = arguments
    if role == "drive":
        print(json.dumps(driver(*words)))
    elif role == "rank":
        rank(*words)
    else:
        size, file = words
        Path(file).write_text(json.dumps(subjects[role](json.loads(size))))
