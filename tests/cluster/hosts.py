"""Several hosts on one machine: network, mount, pid, ipc and host-name namespaces of their own, joined by a switch.

```
 Network ── switch (a namespace with a bridge) ──┬── veth ── Host h1  10.77.0.1
                                                 ├── veth ── Host h2  10.77.0.2
                                                 └── …
```

Each namespace lives as long as one process (which is its first), so whatever ends that process, the end of the test
run too, takes along all that ran there, its links and its files. A host sees the machine's file system, but `/tmp`,
`/var/tmp`, `/dev/shm` and its home directory are its own. Needs root.

Links have a rate (`tc tbf`), and can be cut or lose packets (`nftables`), in one direction or both. This kernel cannot
delay packets; a relay that does stands in `delay.py`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.helpers import REPOSITORY, wait_until

READY_S = 30.0
COMMAND_S = 60.0
NEEDED = ("ip", "tc", "nft", "unshare", "nsenter", "setpriv")


def lacking() -> str:
    """Why there can be no hosts here; empty if there can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _checked(*command: str, prefix: Sequence[str] = ()) -> str:
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


FIRST = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""
"""The first process of a pid namespace inherits orphans; as this one ignores SIGCHLD, the kernel reaps them."""


class Space:
    """Namespaces and the process that holds them; `inside` is what runs a command there."""

    def __init__(self, kinds: Sequence[str], setup: str = "") -> None:
        flags = [f"--{kind}" for kind in kinds]
        script = f"{setup}\nexec {shlex.quote(sys.executable)} -ISc {shlex.quote(FIRST)}"
        command = (
            ["unshare", *flags, "--fork", "--kill-child", "--mount-proc"] if "pid" in kinds else ["unshare", *flags]
        )
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command, "sh", "-ec", script],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"the namespaces could not be set up: exit code {self._holder.wait(READY_S)}")
        self.pid = self._first()
        self.inside = ["nsenter", f"--target={self.pid}", *flags, "--"]

    def _first(self) -> int:
        """The process that is in the namespaces: unshare's child, if it has forked, else unshare's own successor."""
        children = f"/proc/{self._holder.pid}/task/{self._holder.pid}/children"
        with open(children, encoding="ascii") as file:
            found = file.read().split()
        return int(found[0]) if found else self._holder.pid

    def end(self) -> None:
        """Kill all that runs there; may be said twice."""
        if self._holder.returncode is not None:
            return
        self._holder.kill()
        self._holder.wait(READY_S)
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        wait_until(lambda: not os.path.exists(f"/proc/{self.pid}"), READY_S, "the namespaces' first process is gone")


HOST_SETUP = """
mount --make-rprivate /
for place in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$place"; done
mkdir -p /tmp/home
hostname {name}
ip link set lo up
"""

CUT_TABLE = "table inet cut { chain in { type filter hook input priority 0; policy accept; }\n}\n"


class Host:
    """One of them. `ip`: its address on the switch."""

    def __init__(self, network: Network, number: int) -> None:
        self.name = f"h{number}"
        self.number = number
        self.ip = f"10.77.0.{number}"
        self.network = network
        self.space = Space(("net", "mount", "pid", "ipc", "uts"), HOST_SETUP.format(name=self.name))
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DPOOL_")},
            "HOME": "/tmp/home",
            "TMPDIR": "/tmp",
            "PYTHONPATH": str(REPOSITORY),
        }
        try:
            self._join()
        except BaseException:
            self.end()
            raise

    def _join(self) -> None:
        self.network.plug(self)
        self.root("nft", "-f", "-", stdin=CUT_TABLE)

    def root(self, *command: str, stdin: str = "") -> str:
        """Run an administrator's command there; its output."""
        done = subprocess.run(
            [*self.space.inside, *command], input=stdin, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {shlex.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def start(self, *command: str, **words: Any) -> subprocess.Popen[str]:
        """Start a program there, as Popen does; end it with `kill`, or by ending the host."""
        environ = {**self.environ, **words.pop("env", {})}
        return subprocess.Popen([*self.space.inside, *command], env=environ, text=True, cwd=REPOSITORY, **words)

    def run(self, *command: str, **words: Any) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end."""
        environ = {**self.environ, **words.pop("env", {})}
        known = {"capture_output": True, "timeout": COMMAND_S, "check": False, **words}
        return subprocess.run([*self.space.inside, *command], env=environ, text=True, cwd=REPOSITORY, **known)

    def python(self, code: str, *arguments: str, **words: Any) -> str:
        """Run Python code there; what it printed.

        Raises:
            AssertionError: it failed; with all that it said.
        """
        done = self.run(sys.executable, "-c", code, *arguments, **words)
        assert done.returncode == 0, f"{self.name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def processes(self) -> dict[int, str]:
        """pid (there) → command line of all that runs there, but for what looks."""
        listed = self.run("ps", "-A", "-ww", "-o", "pid=,args=").stdout
        found = {}
        for line in listed.splitlines():
            pid, _, command = line.strip().partition(" ")
            if pid != "1" and not command.strip().startswith("ps -A"):
                found[int(pid)] = command.strip()
        return found

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process there, by its number there."""
        self.root("kill", f"-{number}", str(pid))

    def shape(self, mbit: float) -> None:
        """Limit what it sends and what it receives, to so many Mbit/s each."""
        kbit = max(8, round(mbit * 1000))
        burst = f"{max(16_000, round(kbit * 125 * 0.002))}"
        words = ("root", "tbf", "rate", f"{kbit}kbit", "burst", burst, "latency", "50ms")
        self.root("tc", "qdisc", "replace", "dev", "eth0", *words)
        self.network.switch_command("tc", "qdisc", "replace", "dev", f"to{self.number}", *words)

    def unshape(self) -> None:
        """No limit any more."""
        self.root("tc", "qdisc", "delete", "dev", "eth0", "root")
        self.network.switch_command("tc", "qdisc", "delete", "dev", f"to{self.number}", "root")

    def deafen(self, *others: Host, loss: float = 1.0) -> None:
        """Drop this share of what comes from the others (of everything, without any): a cut, in one direction."""
        share = round(loss * 1000)
        some = "" if share >= 1000 else f"numgen random mod 1000 < {share} "
        for source in [f"ip saddr {other.ip} " for other in others] or ['iifname "eth0" ']:
            self.root("nft", "-f", "-", stdin=f"add rule inet cut in {source}{some}counter drop")

    def dropped(self) -> int:
        """Packets that the rules of `deafen` have dropped."""
        listed = self.root("nft", "list", "chain", "inet", "cut", "in")
        return sum(int(count) for count in re.findall(r"counter packets (\d+)", listed))

    def heal(self) -> None:
        """Hear everybody again."""
        self.root("nft", "flush", "chain", "inet", "cut", "in")

    def end(self) -> None:
        """As if its plug was pulled: everything there is killed, its address is silent."""
        self.space.end()


class Network:
    """A switch with hosts; a context manager."""

    def __init__(self, hosts: int) -> None:
        self.switch = Space(("net",), "ip link add bridge type bridge\nip link set bridge up")
        self.hosts: list[Host] = []
        try:
            for _ in range(hosts):
                self.add()
        except BaseException:
            self.close()
            raise

    def add(self) -> Host:
        """One more host."""
        host = Host(self, len(self.hosts) + 1)
        self.hosts.append(host)
        return host

    def switch_command(self, *command: str) -> None:
        """Run an administrator's command at the switch."""
        _checked(*command, prefix=self.switch.inside)

    def plug(self, host: Host) -> None:
        """Join a new host to the switch."""
        port = f"to{host.number}"
        self.switch_command(
            "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.space.pid)
        )
        self.switch_command("ip", "link", "set", port, "master", "bridge", "up")
        inside = host.space.inside
        _checked("ip", "address", "add", f"{host.ip}/24", "dev", "eth0", prefix=inside)
        _checked("ip", "link", "set", "eth0", "up", prefix=inside)

    def cut(self, one: Host, other: Host) -> None:
        """Neither hears the other."""
        one.deafen(other)
        other.deafen(one)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        for host in self.hosts:
            host.end()
        self.hosts.clear()
        self.switch.end()
