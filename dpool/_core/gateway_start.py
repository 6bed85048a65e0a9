"""Starting a gateway, and finding the one that runs here.

The gateway is a process of its own session, with its log in the session directory. What it needs to know, the cluster's
secret among it, comes through a pipe; what became of it goes back through another. The file `gateway.json` in the
session directory says where it listens; it holds no secret.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import socket
import sys
from fcntl import F_DUPFD_CLOEXEC, fcntl
from time import monotonic
from typing import Any, NamedTuple

from dpool._core import launch
from dpool._core.config import Config
from dpool.errors import StartupError

GATEWAY_LOG = "gateway.log"
GATEWAY_FILE = "gateway.json"
START_S = 60.0
REPORT_FD = 3


class Started(NamedTuple):
    """A gateway that runs on this machine."""

    session: str
    address: str
    pid: int
    host: str
    head: str
    """The address of the head, or its own."""
    cluster: str = ""
    """See `ClusterKey.cluster`."""
    client: bool = False
    """It is one program's way into a cluster, and no machine of it."""


def start(config: Config, ip: str, port: int, head: str, secret: tuple[bytes, bytes]) -> Started:
    """Start a gateway with its node; returns when it listens (and, with `head`, has joined). A client does not listen.

    Raises:
        StartupError: it could not; what it said last is in the message.
    """
    session = os.path.abspath(launch.make_session(config))
    report_fd, low = os.pipe2(os.O_CLOEXEC)
    theirs = fcntl(low, F_DUPFD_CLOEXEC, REPORT_FD + 1)  # a descriptor that is dup'ed onto itself would stay closed
    os.close(low)
    order_fd, ours = os.pipe2(os.O_CLOEXEC)
    try:
        log = launch.open_log(session, GATEWAY_LOG)
        try:
            child = os.posix_spawn(
                sys.executable,
                [sys.executable, *launch.interpreter_flags(), "-c", _PROGRAM.format(root=_root())],
                {name: value for name, value in os.environ.items() if name not in launch.SECRETS},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, order_fd, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                    (os.POSIX_SPAWN_DUP2, theirs, REPORT_FD),
                ],
                setsid=True,
            )
        finally:
            os.close(log)
        os.close(order_fd)
        os.close(theirs)
        order_fd = theirs = -1
        words = (session, head, ip, port, tuple(config), list(sys.path))
        os.write(ours, pickle.dumps((words, secret)))
        os.close(ours)
        ours = -1
        try:
            return _report(session, report_fd)
        finally:
            os.waitpid(child, 0)  # it exits as soon as the gateway stands on its own
    except BaseException:
        launch.remove_session(session)
        raise
    finally:
        for fd in (report_fd, order_fd, ours, theirs):
            if fd >= 0:
                os.close(fd)


_PROGRAM = """
import sys
sys.path[:] = [p for p in sys.path if p]
sys.path.insert(0, {root!r})
from dpool._core.gateway_start import main
main()
"""


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _report(session: str, fd: int) -> Started:
    until = monotonic() + START_S
    data = b""
    while True:
        if not select.select([fd], [], [], max(0.0, until - monotonic()))[0]:
            raise StartupError(f"the gateway did not start within {START_S:g} s; see {session}/{GATEWAY_LOG}")
        piece = os.read(fd, 65536)
        if not piece:
            break
        data += piece
    try:
        outcome = json.loads(data)
    except ValueError:
        raise StartupError(
            f"the gateway died while it started:\n{launch.log_tail(os.path.join(session, GATEWAY_LOG))}"
        ) from None
    if "failed" in outcome:
        raise StartupError(outcome["failed"])
    return Started(session, **outcome)


def main() -> None:
    """The gateway process."""
    if os.fork():  # nobody's child
        os._exit(0)
    os.closerange(REPORT_FD + 1, os.sysconf("SC_OPEN_MAX"))  # whatever our starter had open: a terminal, a lock …
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    from dpool._core.cluster_key import ClusterKey, hide_memory

    hide_memory()
    with open(0, "rb") as orders:
        words, secret = pickle.load(orders)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir(words[0])  # no file system that somebody wants to unmount
    from dpool._core.gateway import Gateway, Settings
    from dpool._core.zygote import set_title

    set_title("dpool-gateway")
    settings, key = Settings(*words), ClusterKey(*secret)
    report = Report(REPORT_FD, {"cluster": key.cluster(), "client": Config(*settings.config).client})
    try:
        gateway = Gateway(settings, key, report.joined)
        gateway.run()
        report.failed(gateway.ending)
    except Exception as error:
        report.failed(str(error))
        raise
    finally:
        launch.remove_session(settings.session)


class Report:
    """Tells whoever started the gateway what became of it, once."""

    def __init__(self, fd: int, about: dict[str, Any]) -> None:
        os.set_inheritable(fd, False)
        self._fd = fd
        self._about = about

    def joined(self, session: str, address: str, head: str) -> None:
        """It works."""
        mine = {"address": address, "pid": os.getpid(), "host": socket.gethostname(), "head": head}
        about = {**mine, **self._about}
        path = os.path.join(session, GATEWAY_FILE)
        with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(about, file)
        os.rename(f"{path}.new", path)
        self._say(about)

    def failed(self, reason: str) -> None:
        """It does not."""
        self._say({"failed": reason})

    def _say(self, outcome: dict[str, Any]) -> None:
        if self._fd >= 0:
            try:
                os.write(self._fd, json.dumps(outcome).encode())
            except BrokenPipeError:
                pass  # whoever started it has gone
            os.close(self._fd)
            self._fd = -1


def running(config: Config) -> list[Started]:
    """The gateways of this user that run on this machine, clients among them, the latest first."""
    found: list[tuple[float, Started]] = []
    for entry in os.scandir(launch.temporary_root(config)):
        if not entry.name.startswith(f"dpool-{os.getuid()}-"):
            continue
        path = os.path.join(entry.path, GATEWAY_FILE)
        try:
            with open(path, encoding="utf-8") as file:
                about = json.load(file)
            when = os.stat(path).st_mtime
            launch.connect_node(entry.path).close()
            found.append((when, Started(entry.path, **about)))
        except (OSError, ValueError, TypeError):  # gone meanwhile, or of another version
            continue
    return [one for _, one in sorted(found, reverse=True)]


def stop(one: Started, wait_s: float) -> bool:
    """End a gateway, and with it its node; False if it has not ended by then."""
    try:
        fd = os.pidfd_open(one.pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        return bool(select.select([fd], [], [], wait_s)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)
