"""Starting a node process, and the session directory that it and its driver share.

The directory (`dpool-<uid>-<random>`, mode 0700, under the temporary directory) holds the node's socket, the log
files and the embedded control store. Whoever is left last removes it: the node, else the zygote, else the driver,
else the next session that finds it stale.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import sys
from time import monotonic, sleep

from dpool._core.config import Config

END_WITH_NODE_S = 1.0
"""How long the kernel may take from closing a dead node's sockets to handing its children on."""

NODE_FD = 3
SOCKET_NAME = "node.sock"
GATEWAY_SOCKET = "gateway.sock"
"""Where the gateway listens, on a machine of a cluster."""
NODE_LOG = "node.log"
SECRETS = frozenset(("DPOOL_REDIS_URL",))
"""Variables that stay in the driver: a process's environment can be read in /proc, and is inherited by workers."""
SOCKET_PATH = 107
"""Bytes that a Unix socket's path may have."""
STALE_S = 60.0
"""Age in seconds from which a session without a node is taken for dead."""


def temporary_root(config: Config) -> str:
    """Where sessions live; short enough for a Unix socket's path (107 bytes)."""
    if config.tmpdir:
        return config.tmpdir
    for name in ("TMPDIR", "TEMP", "TMP"):
        path = os.environ.get(name)
        if path and os.path.isdir(path) and len(path) < 60:
            return path
    return "/tmp"


def make_session(config: Config) -> str:
    """A new session directory, ours alone."""
    root = temporary_root(config)
    most = SOCKET_PATH - len(f"/dpool-{os.getuid()}-123456789012/gcs/gcs.sock")
    if len(os.fsencode(root)) > most:
        from dpool.errors import StartupError

        raise StartupError(
            f"the temporary directory {root!r} has too long a name for the sockets in it. "
            f"Set DPOOL_TMPDIR to one of at most {most} bytes."
        )
    for _ in range(100):
        path = os.path.join(root, f"dpool-{os.getuid()}-{os.urandom(6).hex()}")
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        except OSError as error:
            from dpool.errors import StartupError

            raise StartupError(
                f"no session directory can be made in {root!r}: {error.strerror}. "
                "Set DPOOL_TMPDIR to a directory with room."
            ) from error
        return path
    raise FileExistsError(f"no free name in {root}")


def check_session(path: str) -> None:
    """Refuse a session directory that another user could have planted."""
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise PermissionError(f"{path} is not a directory that only its owner ({os.getuid()}) can enter")


def remove_session(path: str) -> None:
    """Remove a session directory and all in it; what is gone already does not matter."""
    import shutil  # not on the way to the first result

    if os.path.islink(os.path.join(path, "spill")):
        from dpool._store.spill import remove_linked

        remove_linked(path)
    shutil.rmtree(path, ignore_errors=True)


def sweep_stale(root: str, now_s: float) -> list[str]:
    """Remove sessions of this user whose node is dead (killed together with its driver and zygote); returns them.

    A session without a node that listens is left alone for `STALE_S`, for it may be about to begin.
    """
    removed = []
    for entry in os.scandir(root):
        if not entry.name.startswith(f"dpool-{os.getuid()}-") or not entry.is_dir(follow_symlinks=False):
            continue
        if entry.name.endswith("-spill"):
            continue  # a session's, which is removed with it
        try:
            info = entry.stat(follow_symlinks=False)
            if info.st_uid != os.getuid() or now_s - info.st_mtime < STALE_S:
                continue
            connect_node(entry.path).close()
        except (ConnectionRefusedError, FileNotFoundError):
            remove_session(entry.path)
            removed.append(entry.path)
        except OSError:  # not ours to judge
            continue
    return removed


def open_log(session: str, name: str) -> int:
    """A log file's descriptor; never through somebody else's link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(os.path.join(session, name), flags, 0o600)


def interpreter_flags() -> list[str]:
    """The flags that make another interpreter behave like this one."""
    flags = sys.flags
    if flags.isolated:
        result = ["-I"]
    elif getattr(flags, "safe_path", False):
        result = ["-P"]
    else:
        result = []
    result += ["-" + letter * count for letter, count in (
        ("O", flags.optimize), ("B", flags.dont_write_bytecode), ("E", flags.ignore_environment),
        ("s", flags.no_user_site), ("S", flags.no_site), ("b", flags.bytes_warning),
    ) if count]  # fmt: skip
    result += [f"-W{option}" for option in sys.warnoptions if "\n" not in option]
    if flags.dev_mode:
        result += ["-X", "dev"]
    if flags.utf8_mode:
        result += ["-X", "utf8"]
    for name in ("tracemalloc", "frozen_modules", "no_debug_ranges", "int_max_str_digits"):
        value = sys._xoptions.get(name)
        if value is not None:
            result += ["-X", name if value is True else f"{name}={value}"]
    return result


def _program(entry: str, session: str) -> list[str]:
    """The command line of a process of ours; what it works on comes over its socket, never here."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    lines = (
        "import sys",
        "sys.path[:] = [p for p in sys.path if p]",
        f"sys.path.insert(0, {root!r})",
        f"from dpool._core.node_start import {entry}",
        f"{entry}({session!r})",
    )
    return [sys.executable, *interpreter_flags(), "-c", "\n".join(lines)]


def _spawn(entry: str, session: str) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opened = []
    try:
        opened.append(log := open_log(session, NODE_LOG))
        opened.append(null := os.open(os.devnull, os.O_RDONLY))
        pid = os.posix_spawn(
            sys.executable,
            _program(entry, session),
            {name: value for name, value in os.environ.items() if name not in SECRETS},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), NODE_FD),
            ],
            setpgroup=0,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
        for fd in opened:
            os.close(fd)
    return pid, ours


def spawn_node(session: str) -> tuple[int, socket.socket]:
    """Start a node; returns the process to be reaped (it exits once the node stands on its own) and our end of its
    socket.
    """
    return _spawn("main", session)


class _Early:
    """A node that was started before the driver's own modules were imported."""

    node: tuple[str, int, socket.socket] | None = None
    pid = 0


def start_early(config: Config) -> None:
    """Start a node now; whoever needs one next takes it. While it starts, this process can import the rest."""
    session = make_session(config)
    try:
        child, sock = spawn_node(session)
    except OSError:  # said by the one that needs it, and tries again
        remove_session(session)
        return
    _Early.node, _Early.pid = (session, child, sock), os.getpid()


def take_early() -> tuple[str, int, socket.socket] | None:
    """(session, process to be reaped, our end of its socket) of the node that was started early, once."""
    node, _Early.node = _Early.node, None
    return node if _Early.pid == os.getpid() else None


def spawn_zygote(session: str) -> socket.socket:
    """Start a zygote in the place of one that died; for the node, which reaps it with its other children."""
    return _spawn("zygote", session)[1]


def await_deaths(pids: list[int], timeout_s: float) -> None:
    """Wait until these processes have ended, reaped or not, or the time is over."""
    waiter = select.poll()
    fds = []
    for pid in pids:
        try:
            fds.append(os.pidfd_open(pid))
        except OSError:  # it has been reaped
            continue
        waiter.register(fds[-1], select.POLLIN)
    until = monotonic() + timeout_s
    left = len(fds)
    while left and (remaining := until - monotonic()) > 0:
        for fd, _ in waiter.poll(remaining * 1000):
            waiter.unregister(fd)
            left -= 1
    for fd in fds:
        os.close(fd)


def connect_node(session: str) -> socket.socket:
    """A connection to the node that listens in `session`."""
    check_session(session)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(os.path.join(session, SOCKET_NAME))
    except BaseException:  # a signal handler may raise, too
        sock.close()
        raise
    return sock


def log_tail(path: str, lines: int = 12) -> str:
    """The end of a log file, for an error message."""
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-lines:]).strip()
    except OSError as error:
        return f"({path}: {error.strerror})"


def end_with_node(node_pid: int) -> None:
    """In a worker whose node has closed its socket: if the node is dead, so are we in a moment, and what the task makes
    of a lost node must not be answered. Returns if the node lives: then it only closed this connection.
    """
    until = monotonic() + END_WITH_NODE_S
    while os.getppid() == node_pid:
        if monotonic() > until:
            return
        sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)
