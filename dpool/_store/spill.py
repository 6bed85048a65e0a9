"""Objects in files: where spill files lie, how one is written and read, and the thread that does it for the node.

```
 <tmp>/dpool-<uid>-<random>/           the session directory
     spill ──► <disk>/dpool-<uid>-<random>-spill/        a directory on a disk, ours alone (0700)
                   <object id>-<random>                  4096 bytes of header, then the data
```

Whoever removes the session directory finds the spill directory through the link, which is there before it is.

Threads: `write` and `read_*` may run in any thread; of long data a second one (`dpool-crc`) writes or reads, and sums,
every other piece or so; it is over when they return. `SpillThread` runs the node's jobs one after the other.

Invariants: a file whose writing failed does not stay; its header is written last. A reader takes the size, the id and
the checksum from the `SpillFile` and believes nothing that the file says of itself. Nothing is flushed to the disk
(fsync), for spill files die with the session.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from queue import SimpleQueue
from struct import Struct
from typing import Any, NamedTuple

HEADER_BYTES = 4096
"""A page, so that the data lie page-aligned in the file."""
PIECE_BYTES = 2 << 20
"""One system call: small enough to stay in the cache between reading or writing it and its checksum."""
OVERLAP_BYTES = 2 * PIECE_BYTES
"""From this size a second thread helps: one alone makes some 7 GB/s of checksums, less than the page cache gives."""
MEMORY_FILESYSTEMS = frozenset(("tmpfs", "ramfs", "rootfs"))
"""What lies there takes the memory that spilling is to free."""
RESERVING_FILESYSTEMS = frozenset(("ext4", "xfs", "btrfs", "f2fs", "overlay", "tmpfs"))
"""Here posix_fallocate is one step, tells at once that there is no room, and makes the writing faster (5 → 8 GB/s);
elsewhere the C library may write a byte to every block instead."""
SUFFIX = "-spill"
LINK_NAME = "spill"
ID_BYTES = 20

_HEADER = Struct("<8sI20sQI")
_MAGIC = b"dpspill\n"
_VERSION = 1
_LOST = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE))
"""Errors that say of the file, not of this process, that it cannot be read."""


class SpillFile(NamedTuple):
    """A written object: what a reader needs to find and to verify it."""

    path: str
    size: int
    """Bytes of the object; the file is `HEADER_BYTES` longer."""
    crc: int
    """crc32 of the crc32 of the object's pieces of `PIECE_BYTES`."""


class SpillLost(Exception):
    """A spill file is missing, truncated or corrupt; the text names the file and says what is wrong with it."""


# --- Where ----------------------------------------------------------------------------------------------------------


def choose_directory(configured: str, session: str, root: str) -> str:
    """The path of the session's spill directory, which is still to be made.

    Args:
        configured: the directory that the user named (`DPOOL_SPILL_DIR`), or "": it is taken as it is.
        session: the session directory.
        root: the temporary directory. Is it in memory, /var/tmp is taken instead if that is on a disk.
    """
    parent = configured or root
    if not configured and _in_memory(root) and os.access("/var/tmp", os.W_OK | os.X_OK) and not _in_memory("/var/tmp"):
        parent = "/var/tmp"
    return os.path.join(os.path.abspath(parent), _name(session))


def filesystem(device: int) -> str:
    """The type of the mounted filesystem with this device number (`st_dev`); "" where it cannot be told."""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                before, _, after = line.partition(b" - ")
                if before.split(b" ")[2] == wanted:
                    return after.split(b" ")[0].decode()
    except OSError:  # no /proc
        pass
    return ""


def _in_memory(directory: str) -> bool:
    try:
        device = os.stat(directory).st_dev
    except OSError:  # said by the one that makes something there
        return False
    return filesystem(device) in MEMORY_FILESYSTEMS


@lru_cache(maxsize=16)
def _reserves(device: int) -> bool:
    return filesystem(device) in RESERVING_FILESYSTEMS


def _name(session: str) -> str:
    return os.path.basename(os.path.normpath(session)) + SUFFIX


def _is_ours(path: str) -> bool:
    """Whether it is a directory, not a link to one, that only we can enter; FileNotFoundError where there is none."""
    info = os.lstat(path)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and stat.S_IMODE(info.st_mode) == 0o700


class SpillDirectory:
    """The directory of one session's spill files; made when the first is written.

    Args:
        path: as `choose_directory` says; ValueError if its name is not the session's, for then nobody would remove it.
        session: the session directory.
    """

    def __init__(self, path: str, session: str) -> None:
        if os.path.basename(path) != _name(session) or not os.path.isabs(path):
            raise ValueError(f"the spill directory of {session} is called …/{_name(session)}, not {path!r}")
        self.path = path
        self._link = os.path.join(session, LINK_NAME)

    def ensure(self) -> None:
        """Make it, and the link to it in the session directory, unless they are there.

        Raises:
            PermissionError: something that is not ours has its place, or the link's.
            OSError: it cannot be made.
        """
        try:
            os.symlink(self.path, self._link)
        except FileExistsError:
            if not self._is_linked():
                raise PermissionError(f"{self._link} is not the link to {self.path} that it should be") from None
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            pass  # ours, as a rule
        if not _is_ours(self.path):
            raise PermissionError(f"{self.path} is not a directory that only its owner ({os.getuid()}) can enter")

    def new_path(self, obj: bytes) -> str:
        """A path for a file of this object, never given before: several processes write, and one object may be
        written again while its old file is being removed.
        """
        return os.path.join(self.path, f"{obj.hex()}-{os.urandom(6).hex()}")

    def remove_all(self) -> None:
        """Remove the directory with all files, then the link; what is missing does not matter, what is not ours
        stays.
        """
        _remove_tree(self.path)
        if not os.path.lexists(self.path) and self._is_linked():
            remove(self._link)

    def _is_linked(self) -> bool:
        try:
            return os.readlink(self._link) == self.path
        except OSError:  # missing, or no link
            return False


def remove_linked(session: str) -> None:
    """Remove the spill directory that a session directory links to, and never anything else: the session and the
    directory must be ours alone, and the directory must have the session's name.
    """
    try:
        path = os.readlink(os.path.join(session, LINK_NAME))
        ours = _is_ours(session)
    except OSError:  # no session, no link
        return
    if ours and os.path.isabs(path) and os.path.normpath(path) == path and os.path.basename(path) == _name(session):
        _remove_tree(path)


def _remove_tree(path: str) -> None:
    import shutil  # not on the way to the first result

    try:
        ours = _is_ours(path)
    except OSError:  # missing, or somewhere that cannot be entered, and never could
        return
    if ours:
        shutil.rmtree(path, ignore_errors=True)  # a writer may be at work there; whoever tidies next takes the rest


# --- Writing --------------------------------------------------------------------------------------------------------


def write(path: str, data: memoryview, obj: bytes) -> SpillFile:
    """Write an object to a new file (0600). The data must not change meanwhile.

    Raises:
        FileExistsError: something has that path; it is not touched.
        OSError: the file cannot be written (ENOSPC, EDQUOT, EIO, EFBIG …); nothing of it stays. The error holds no
            reference to the data, so that their memory can be unmapped while it is handled.
    """
    _header(obj, data.nbytes, 0)  # a wrong id is refused before there is a file
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            return SpillFile(path, data.nbytes, _write(fd, data, obj))
        finally:
            os.close(fd)  # some filesystems say only here that there was no room
    except BaseException as error:
        del data
        remove(path)
        error.with_traceback(None)
        raise error


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _write(fd: int, data: memoryview, obj: bytes) -> int:
    """Fill the file; returns the checksum."""
    size = data.nbytes
    if _reserves(os.fstat(fd).st_dev):
        os.posix_fallocate(fd, 0, HEADER_BYTES + size)

    def put(piece: memoryview, at: int) -> int:
        _write_all(fd, piece, HEADER_BYTES + at)
        return zlib.crc32(piece)

    crc = _by_two(data, put)
    _write_all(fd, memoryview(_header(obj, size, crc)), 0)
    return crc


def remove(path: str) -> None:
    """Remove a file; a missing one is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # as wanted


def _header(obj: bytes, size: int, crc: int) -> bytes:
    if len(obj) != ID_BYTES:
        raise ValueError(f"an object id has {ID_BYTES} bytes, not {len(obj)}")
    return _HEADER.pack(_MAGIC, _VERSION, obj, size, crc).ljust(HEADER_BYTES, b"\0")


def _pieces(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Where each piece begins, and the piece."""
    data = data.cast("B") if data.format != "B" or data.ndim != 1 else data
    for at in range(0, data.nbytes, PIECE_BYTES):
        yield at, data[at : at + PIECE_BYTES]


def _write_all(fd: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(fd, data, at)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        data, at = data[written:], at + written


def _by_two(data: memoryview, do: Callable[[memoryview, int], int]) -> int:
    """Have each piece dealt with, long data by two threads; returns the checksum of what it gives for each: the crc32
    of the pieces' crc32.
    """
    pieces = list(_pieces(data))
    found = [0] * len(pieces)
    failed: list[BaseException] = []
    turns = iter(range(len(pieces)))  # a range's iterator is advanced in one step: no piece is taken twice

    def work() -> None:
        try:
            for turn in turns:
                if failed:
                    return
                at, piece = pieces[turn]
                found[turn] = do(piece, at)
        except BaseException as error:
            failed.append(error)

    other = None
    if data.nbytes >= OVERLAP_BYTES:
        other = threading.Thread(target=work, name="dpool-crc", daemon=True)
        try:
            other.start()
        except RuntimeError:  # no more threads are allowed, or the interpreter ends: then here
            other = None
    work()
    if other is not None:
        other.join()
    pieces.clear()
    if failed:
        raise failed[0]
    return zlib.crc32(b"".join(one.to_bytes(4, "little") for one in found))


# --- Reading --------------------------------------------------------------------------------------------------------


def read_into(file: SpillFile, target: memoryview, obj: bytes) -> None:
    """Read an object into the first `file.size` bytes of `target`, and verify it.

    Raises:
        SpillLost: the file is missing, unreadable, truncated, longer, corrupt or another object's; what is in
            `target` then is worth nothing.
        OSError: this process cannot read now (too many open files, no memory); the file may be well.
        Neither holds a reference to the target, so that it can be unmapped while the error is handled.
    """
    target = target.cast("B") if target.format != "B" or target.ndim != 1 else target
    if target.readonly or target.nbytes < file.size:
        raise ValueError(f"no room for {file.size} bytes in a target of {target.nbytes} (read-only: {target.readonly})")
    try:
        _read(file, target[: file.size], obj)
    except (OSError, SpillLost) as error:
        del target
        error.with_traceback(None)
        if not isinstance(error, OSError) or error.errno not in _LOST:
            raise error
        what = "is missing" if error.errno == errno.ENOENT else f"cannot be read: {os.strerror(error.errno or 0)}"
        raise SpillLost(f"the spill file {file.path} {what}") from error


def read_private(file: SpillFile, obj: bytes) -> memoryview:
    """The object in memory of this process alone, writable, page-aligned; errors as `read_into`."""
    if not file.size:
        memory = memoryview(bytearray())
    else:
        region = mmap(-1, file.size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        try:
            region.madvise(MADV_HUGEPAGE)  # 100 MB of fresh memory in 8 instead of 46 ms
        except OSError:  # a kernel without huge pages
            pass
        memory = memoryview(region)
    read_into(file, memory, obj)
    return memory


def _read(file: SpillFile, target: memoryview, obj: bytes) -> None:
    # O_NONBLOCK: a pipe in the file's place must not hold the reader.
    fd = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_size(file, os.fstat(fd))
        _check_header(file, os.pread(fd, HEADER_BYTES, 0), obj)

        def get(piece: memoryview, at: int) -> int:
            _read_all(fd, piece, HEADER_BYTES + at, file)
            return zlib.crc32(piece)

        crc = _by_two(target, get)
    finally:
        os.close(fd)
    if crc != file.crc:
        raise SpillLost(
            f"the data in the spill file {file.path} are corrupt: their checksum is {crc:08x}, "
            f"{file.crc:08x} was written"
        )


def _check_size(file: SpillFile, info: os.stat_result) -> None:
    expected = HEADER_BYTES + file.size
    if not stat.S_ISREG(info.st_mode):
        raise SpillLost(f"the spill file {file.path} is no regular file")
    if info.st_size != expected:
        word = "truncated" if info.st_size < expected else "longer than it was"
        raise SpillLost(f"the spill file {file.path} is {word}: {info.st_size} instead of {expected} bytes")


def _check_header(file: SpillFile, found: bytes, obj: bytes) -> None:
    expected = _header(obj, file.size, file.crc)
    if found == expected:
        return
    if len(found) < HEADER_BYTES:
        raise SpillLost(f"the spill file {file.path} is truncated: it ends in its header")
    names = ("magic", "version", "object id", "size", "crc32")
    pairs = zip(names, _HEADER.unpack_from(found), _HEADER.unpack_from(expected), strict=True)
    wrong = [f"{name} {_show(is_)} instead of {_show(should)}" for name, is_, should in pairs if is_ != should]
    raise SpillLost(f"the header of the spill file {file.path} is wrong: {', '.join(wrong) or 'its padding is not 0'}")


def _show(field: bytes | int) -> str:
    return field.hex() if isinstance(field, bytes) else str(field)


def _read_all(fd: int, piece: memoryview, at: int, file: SpillFile) -> None:
    while piece:
        read = os.preadv(fd, [piece], at)
        if not read:
            raise SpillLost(f"the spill file {file.path} was truncated while it was read")
        piece, at = piece[read:], at + read


# --- The node's thread ----------------------------------------------------------------------------------------------


class JobFailed(NamedTuple):
    """A job raised what it should have turned into an event."""

    error: BaseException


class SpillThread:
    """Jobs one after the other in a thread of its own, started at the first. Where no thread can be started, the job is
    done by who submits it, and the next one tries again.

    Args:
        tell: called in the thread that did the job, with what it returned or a `JobFailed`; it must hand over and not
            raise.
    """

    def __init__(self, tell: Callable[[Any], Any]) -> None:
        self._tell = tell
        self._jobs: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()
        """Held while a result is told, so that none is told after `close` has given up waiting."""
        self._deaf = False

    def submit(self, job: Callable[[], Any]) -> None:
        """Have a job done after those before it. RuntimeError when closed."""
        if self._closed:
            raise RuntimeError("the spill thread is closed")
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="dpool-spill", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads are allowed
                self._do(job)
                return
            self._thread = thread
        self._jobs.put(job)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Wait for the present job and tell its result; drop those that have not begun.

        Returns whether the thread has ended. One that has not, because a disk does not answer, tells nothing more.
        """
        self._closed = True
        if self._thread is None:
            return True
        self._jobs.put(None)
        self._thread.join(timeout_s)
        with self._lock:
            self._deaf = True
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed:
            self._do(job)
            del job  # a waiting thread keeps no object's memory

    def _do(self, job: Callable[[], Any]) -> None:
        result: Any
        try:
            result = job()
        except BaseException as error:
            result = JobFailed(error)
        with self._lock:
            if not self._deaf:
                self._tell(result)
