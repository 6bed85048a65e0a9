"""Modules of other machines' programs, as they were sent to this one: directories by name and digest.

What was sent stays for other workers, and for programs to come, until nobody has used it for an hour. An entry is made
under another name and then renamed, and is in use while somebody has it locked (flock); so any number of processes work
here at a time.
"""

from __future__ import annotations

import fcntl
import os
from time import monotonic, sleep, time

LOCK_S = 30.0
"""How long to wait for another worker that fetches the same; after that, fetch it, too."""
UNUSED_S = 3600.0


class Store:
    """Directories with modules of other machines' programs, by name and digest."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._held: dict[str, int] = {}
        """Directory → a descriptor of it that is locked as long as this process lives."""

    def get(self, name: str, digest: str) -> str | None:
        """The directory with it, which stays; None: it is not there."""
        place = os.path.join(self._directory, f"{name}-{digest}")
        if place in self._held:
            return place
        try:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.stat(place).st_ino != os.fstat(fd).st_ino:
                raise FileNotFoundError(place)
            os.utime(fd)
        except (BlockingIOError, FileNotFoundError):  # it is being removed
            os.close(fd)
            return None
        if self._held.setdefault(place, fd) != fd:  # another thread was faster
            os.close(fd)
        return place

    def add(self, name: str, digest: str, packed: bytes) -> str:
        """Unpack it, and remove what nobody needs any more."""
        import shutil
        import tempfile

        from dpool._core import shipping

        os.makedirs(self._directory, 0o700, exist_ok=True)
        new = tempfile.mkdtemp(prefix=".new-", dir=self._directory)
        place = os.path.join(self._directory, f"{name}-{digest}")
        try:
            shipping.unpack(packed, new)
            os.rename(new, place)
        except OSError:
            if not os.path.isdir(place):  # else somebody else was faster
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
        self._remove_unused(os.path.basename(place))
        found = self.get(name, digest)
        if found is None:
            raise FileNotFoundError(place)
        return found

    def _remove_unused(self, but: str) -> None:
        import shutil

        until = time() - UNUSED_S
        for one in os.scandir(self._directory):
            try:
                if one.name == but or one.stat(follow_symlinks=False).st_mtime > until:
                    continue
                fd = os.open(one.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # somebody else has removed it
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                aside = os.path.join(self._directory, f".old-{os.urandom(6).hex()}")
                os.rename(one.path, aside)  # at once, for whoever makes it again
                shutil.rmtree(aside, ignore_errors=True) if os.path.isdir(aside) else os.unlink(aside)
            except (BlockingIOError, FileNotFoundError):  # in use; or as above
                continue
            finally:
                os.close(fd)

    def alone(self, what: str) -> _Alone:
        """Only one worker of the machine is in here for the same."""
        os.makedirs(self._directory, 0o700, exist_ok=True)
        return _Alone(os.path.join(self._directory, f".{what}.lock"))


class _Alone:
    """A context in which a file is locked; after LOCK_S even if somebody else has it."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        until = monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if monotonic() > until:
                    return
                sleep(0.005)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
