"""A cluster whose machines are the hosts of `hosts.py`: started, used and stopped by its command line alone.

`with machines(3) as cluster:` starts a head on the first host and joins the others to it. Each has a resource of its
own name, so that a test can say where something is to run. At the end all are stopped as a person would stop them, and
every host that still stands is looked through: no process, no session directory, no segment may be left.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.cluster.hosts import Host, Network
from tests.helpers import MARK, wait_until

DEADLINE_S = 60.0
ENVIRONMENT = {"DPOOL_LINGER_S": "0"}
LISTENS = re.compile(r"dpool://([0-9.]+:[0-9]+)")


class Program:
    """A driver script that is told when to go on, line by line."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self._read = b""

    def line(self) -> str:
        """The next line that it prints, within a minute."""
        assert self.popen.stdout is not None
        while b"\n" not in self._read:
            assert select.select([self.popen.stdout], [], [], DEADLINE_S)[0], "it does not say a word"
            piece = os.read(self.popen.stdout.fileno(), 65536)
            assert piece, f"it has ended, and said last: {self._read!r}"
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def go_on(self) -> None:
        """What it reads from its standard input."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()


class Member:
    """One machine: its host, and where its gateway listens."""

    def __init__(self, host: Host, address: str, pid: int) -> None:
        self.host = host
        self.address = address
        self.pid = pid
        """Of the gateway, as the host sees it."""

    def environ(self) -> dict[str, str]:
        return {**ENVIRONMENT, "DPOOL_ADDRESS": "auto"}

    def script(self, code: str, *arguments: str) -> str:
        """Run a driver script there, which must succeed; what it printed."""
        return self.host.python(code, *arguments, env=self.environ())

    @contextmanager
    def program(self, code: str, **words: Any) -> Iterator[Program]:
        """A driver script that runs there meanwhile; it must end well by itself, once the block has ended."""
        command = (sys.executable, "-c", code)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **words}
        popen = self.host.start(*command, env=self.environ(), **pipes)
        try:
            yield Program(popen)
            popen.communicate(timeout=DEADLINE_S)
            assert popen.returncode == 0
        finally:
            popen.kill()
            popen.wait()
            for pipe in (popen.stdin, popen.stdout, popen.stderr):
                if pipe is not None:
                    pipe.close()

    def log(self) -> str:
        """What its gateway and its node wrote."""
        return self.host.run("sh", "-c", "cat /tmp/dpool-*/*.log").stdout

    def named(self, name: str) -> list[int]:
        """The processes there that call themselves so."""
        listed = (line.split() for line in self.host.run("ps", "-A", "-o", "pid=,comm=").stdout.splitlines())
        return [int(pid) for pid, comm, *_ in listed if comm == name]


class Machines:
    """See the module."""

    def __init__(self, network: Network, options: Sequence[str], environ: dict[str, str]) -> None:
        self.network = network
        self.members: list[Member] = []
        self.token = ""
        self._options = options
        self._environ = {**ENVIRONMENT, **environ}

    def start(self, host: Host, *options: str) -> Member:
        """Start a machine of the cluster there: the head, if it is the first."""
        host.environ.pop(MARK, None)  # what outlives a test here is looked for by `clean`, host by host
        if self.token:
            self.set_token(host)
        where = ["--address", f"dpool://{self.members[0].address}"] if self.members else ["--head", "--bind", host.ip]
        own = ["--resources", f'{{"{host.name}": 1000}}']
        done = self.dpool(host, "start", *where, "--num-cpus", "2", *own, *self._options, *options)
        assert done.returncode == 0, f"{host.name}: {done.stdout}\n{done.stderr}"
        found, pid = LISTENS.search(done.stdout), re.search(r"\(pid (\d+)\)", done.stdout)
        assert found, done.stdout
        assert pid, done.stdout
        member = Member(host, found[1], int(pid[1]))
        self.members.append(member)
        self.token = self.token or self.dpool(host, "token").stdout
        return member

    def set_token(self, host: Host, token: str = "") -> None:
        """Give a host the cluster's secret, or another one."""
        host.run("rm", "-f", "/tmp/home/.config/dpool/token")
        done = self.dpool(host, "token", "--set", input=token or self.token)
        assert done.returncode == 0, done.stderr

    def dpool(self, host: Host, *command: str, **words: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line there."""
        return host.run(sys.executable, "-m", "dpool", *command, env=self._environ, **words)

    def stop(self, member: Member) -> None:
        """As `dpool stop` does; nothing is left on its host."""
        done = self.dpool(member.host, "stop")
        assert done.returncode == 0, f"{member.host.name}: {done.stdout}\n{done.stderr}"
        self.members.remove(member)
        clean(member.host)

    def lose(self, member: Member) -> None:
        """Its plug is pulled: all that runs there dies at once, and its address is silent."""
        member.host.end()
        self.members.remove(member)

    def close(self) -> None:
        for member in reversed(list(self.members)):
            self.stop(member)


def clean(host: Host) -> None:
    """Nothing of dpool is there any more."""
    try:
        wait_until(lambda: not host.processes(), DEADLINE_S, "")
    except AssertionError:
        raise AssertionError(f"left on {host.name}: {host.processes()}") from None
    left = host.run("find", "/tmp", "/var/tmp", "/dev/shm", "-name", "*dpool*", "-not", "-path", "/tmp/home/*").stdout
    assert not left, f"{host.name} still has {left}"


@contextmanager
def machines(number: int, *options: str, **environ: str) -> Iterator[Machines]:
    """A cluster of so many hosts."""
    with Network(number) as network:
        cluster = Machines(network, options, environ)
        for host in network.hosts:
            cluster.start(host)
        yield cluster
        cluster.close()
