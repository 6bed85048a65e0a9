"""The secret that the machines of a cluster share, and the file it lies in.

A cluster has one CURVE key pair. Who has the secret half is one of us: each gateway is both server and client with the
same pair, and lets in clients with that public key only. The file holds one line, `dpool-1 <secret in Z85>`; nobody
but its owner can read it, else it is refused. It travels to other machines by hand (`dpool token`), by ssh, or in a
secret of the platform; never in an argument, which everybody on a machine can read, and never in the environment of a
worker.
"""

from __future__ import annotations

import ctypes
import os
import stat
from hashlib import sha256
from typing import NamedTuple

from dpool.errors import DpoolError

FORMAT = "dpool-1"
SECRET_CHARS = 40
"""Z85 of 32 bytes."""
_SET_DUMPABLE = 4  # PR_SET_DUMPABLE of <sys/prctl.h>


class ClusterKeyError(DpoolError, ValueError):
    """The token file is missing, readable by others, or no token; the message says which and what to do."""


class ClusterKey(NamedTuple):
    """A CURVE key pair in Z85."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"ClusterKey(public={self.public!r}, secret=…)"

    def cluster(self) -> str:
        """A name of the cluster, the same on all its machines, that gives nothing away."""
        return sha256(self.public).hexdigest()[:16]


def default_path() -> str:
    """Where the token lies unless somebody says otherwise: `DPOOL_TOKEN_FILE`, or below the user's configuration."""
    configured = os.environ.get("DPOOL_TOKEN_FILE")
    if configured:
        return configured
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "dpool", "token")


def hide_memory() -> None:
    """From now on the kernel dumps no core of this process, and other processes of the user cannot read its memory."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the memory with the cluster's secret cannot be hidden from core dumps")


def load(path: str) -> ClusterKey:
    """The key in the file.

    Raises:
        ClusterKeyError: there is no such file, others can read it, or it is not a token.
    """
    try:
        # Through a link, too: platforms hand out secrets so. Whose the file is, and who can read it, is seen below.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ClusterKeyError(
            f"there is no cluster token at {path}: start the head with `dpool start --head`, and copy the token that "
            "`dpool token` prints there to this machine with `dpool token --set`"
        ) from None
    except OSError as error:
        raise ClusterKeyError(f"the cluster token at {path} cannot be opened: {error.strerror}") from error
    with open(fd, encoding="ascii", errors="replace") as file:
        status = os.fstat(fd)
        if status.st_uid != os.getuid():
            raise ClusterKeyError(f"the cluster token at {path} belongs to user {status.st_uid}, not to you")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise ClusterKeyError(
                f"others can read the cluster token at {path}: `chmod 600 {path}`, and make a new one"
            )
        return parse(file.read(200), path)


def parse(text: str, source: str = "the text") -> ClusterKey:
    """The key in a line as `dpool token` prints it.

    Raises:
        ClusterKeyError: it is none.
    """
    import zmq

    words = text.split()
    if len(words) != 2 or words[0] != FORMAT or len(words[1]) != SECRET_CHARS:
        raise ClusterKeyError(f"{source} holds no cluster token: one line, `{FORMAT}` and {SECRET_CHARS} characters")
    secret = words[1].encode("ascii", "replace")
    try:
        return ClusterKey(zmq.curve_public(secret), secret)
    except zmq.ZMQError:
        raise ClusterKeyError(f"{source} holds no cluster token: its {SECRET_CHARS} characters are not Z85") from None


def format_line(key: ClusterKey) -> str:
    """The line for the file; it is the secret."""
    return f"{FORMAT} {key.secret.decode('ascii')}\n"


def create(path: str) -> ClusterKey:
    """A new key, written to the file, which must not exist.

    Raises:
        FileExistsError: it does.
    """
    import zmq

    public, secret = zmq.curve_keypair()
    key = ClusterKey(public, secret)
    save(path, key)
    return key


def save(path: str, key: ClusterKey) -> None:
    """Write the file, whole or not at all; the directory is made if it is missing.

    Raises:
        FileExistsError: there is one already.
    """
    directory = os.path.dirname(path) or "."
    os.makedirs(directory, mode=0o700, exist_ok=True)
    part = f"{path}.{os.getpid()}"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(format_line(key))
            file.flush()
            os.fsync(fd)
        os.link(part, path)  # unlike rename, it does not replace one that somebody else has just made
    finally:
        os.unlink(part)
