"""Spill files: what comes back is what was written, or a `SpillLost`; nothing foreign is followed or removed."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpool._store import spill
from dpool._store.spill import HEADER_BYTES, JobFailed, SpillDirectory, SpillFile, SpillLost, SpillThread
from tests.helpers import run_script, wait_until

OBJ = bytes(range(20))
OTHER = bytes(20)
LONG = spill.OVERLAP_BYTES + 12345


@pytest.fixture
def session(tmp_path: Path) -> Path:
    path = tmp_path / "dpool-0-abc"
    path.mkdir(0o700)
    return path


@pytest.fixture
def directory(session: Path, tmp_path: Path) -> SpillDirectory:
    disk = tmp_path / "disk"
    disk.mkdir()
    return SpillDirectory(spill.choose_directory(str(disk), str(session), ""), str(session))


def contents(size: int) -> bytes:
    return (b"%d:" % size * (size // 3 + 1))[:size]


def written(path: Path, size: int = 10_000) -> SpillFile:
    return spill.write(str(path / f"file-{size}"), memoryview(contents(size)), OBJ)


# --- Writing and reading ---


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, spill.PIECE_BYTES, spill.OVERLAP_BYTES - 1, LONG])
def test_what_was_written_comes_back(tmp_path: Path, size: int) -> None:
    file = written(tmp_path, size)
    assert os.stat(file.path).st_mode & 0o777 == 0o600
    assert os.stat(file.path).st_size == HEADER_BYTES + size
    target = bytearray(size + 5)
    spill.read_into(file, memoryview(target), OBJ)
    assert target == contents(size) + bytes(5)
    private = spill.read_private(file, OBJ)
    assert private == contents(size)
    assert not private.readonly


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=5000), obj=st.binary(min_size=20, max_size=20))
def test_any_bytes_come_back(tmp_path: Path, data: bytes, obj: bytes) -> None:
    file = spill.write(str(tmp_path / os.urandom(8).hex()), memoryview(data), obj)
    assert spill.read_private(file, obj) == data


def test_data_of_any_format_are_bytes(tmp_path: Path) -> None:
    numbers: Any = memoryview(contents(8000)).cast("d")
    file = spill.write(str(tmp_path / "file"), numbers, OBJ)
    assert file.size == 8000
    target: Any = memoryview(bytearray(8000)).cast("d", [10, 100])
    spill.read_into(file, target, OBJ)
    assert target.tobytes() == numbers.tobytes()


@pytest.mark.parametrize("size", [100, LONG])
def test_no_memory_is_held_afterwards(tmp_path: Path, size: int) -> None:
    region = mmap(-1, size)
    with memoryview(region) as view:
        file = spill.write(str(tmp_path / "file"), view, OBJ)
        spill.read_into(file, view, OBJ)
    region.close()  # a BufferError, were there still a view


def test_private_memory_is_not_shared_with_a_forked_child(tmp_path: Path) -> None:
    memory = spill.read_private(written(tmp_path), OBJ)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            assert line.split()[1] == "rw-p"
            return
    pytest.fail("it is not mapped")


def test_memory_can_be_unmapped_while_an_error_is_handled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    region = mmap(-1, LONG)
    view = memoryview(region)
    file = spill.write(str(tmp_path / "file"), view, OBJ)
    with pytest.raises(SpillLost) as lost:
        spill.read_into(file._replace(crc=file.crc ^ 1), view[:], OBJ)
    with open(file.path, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"x")
    with pytest.raises(SpillLost) as corrupt:
        spill.read_into(file, view[:], OBJ)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(errno.EIO))
        with pytest.raises(SpillLost) as unreadable:
            spill.read_into(file, view[:], OBJ)
        patch.setattr(os, "pwrite", failing(errno.ENOSPC))
        with pytest.raises(OSError, match="space") as full:
            spill.write(str(tmp_path / "other"), view[:], OBJ)
    view.release()
    region.close()  # a BufferError, did one of the tracebacks still refer to it
    assert all((lost, corrupt, unreadable, full))


def test_full_is_told_from_broken() -> None:
    assert [spill.is_full(OSError(code, "")) for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO)] == [True, True, False]


def test_a_target_without_room_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    file = written(tmp_path, 100)
    for target in (memoryview(bytearray(99)), memoryview(bytes(100))):
        with pytest.raises(ValueError, match="no room for 100 bytes"):
            spill.read_into(file, target, OBJ)


def test_an_id_of_another_length_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 bytes, not 3"):
        spill.write(str(tmp_path / "file"), memoryview(b"x"), b"abc")
    assert not os.listdir(tmp_path)


def test_two_writers_do_not_meet(directory: SpillDirectory) -> None:
    directory.ensure()
    together = threading.Barrier(2)

    def write(number: int) -> list[SpillFile]:
        together.wait(10)
        return [
            spill.write(directory.new_path(OBJ), memoryview(contents(size + number)), OBJ)
            for size in (LONG, 100, LONG, 5000)
        ]

    with ThreadPoolExecutor(2) as pool:
        files = [file for found in pool.map(write, (0, 1)) for file in found]
    assert len({file.path for file in files}) == 8
    for file in files:
        assert spill.read_private(file, OBJ) == contents(file.size)


def test_of_two_writers_to_one_path_the_second_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, 100)
    with pytest.raises(FileExistsError):
        spill.write(file.path, memoryview(b"other"), OTHER)
    assert spill.read_private(file, OBJ) == contents(100)


def test_without_a_second_thread_the_checksum_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, LONG)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert spill.read_private(file, OBJ) == contents(LONG)
    assert spill.write(str(tmp_path / "again"), memoryview(contents(LONG)), OBJ).crc == file.crc


def test_a_filesystem_that_cannot_reserve_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_reserves", lambda device: False)
    assert spill.read_private(written(tmp_path, LONG), OBJ) == contents(LONG)


# --- What cannot be believed ---


@pytest.mark.parametrize(
    "at", [0, 7, 8, 12, 31, 32, 39, 40, 43, 44, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 5000, -1]
)
@pytest.mark.parametrize("size", [10_000, LONG])
def test_a_corrupt_byte_anywhere_is_noticed(tmp_path: Path, at: int, size: int) -> None:
    file = written(tmp_path, size)
    with open(file.path, "r+b") as handle:
        handle.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = handle.read(1)[0]
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte ^ 0x10]))
    with pytest.raises(SpillLost, match="header" if 0 <= at < HEADER_BYTES else "corrupt") as lost:
        spill.read_private(file, OBJ)
    assert file.path in str(lost.value)


def test_the_error_names_the_wrong_field(tmp_path: Path) -> None:
    file = written(tmp_path)
    with pytest.raises(SpillLost, match=f"object id {OBJ.hex()} instead of {OTHER.hex()}"):
        spill.read_private(file, OTHER)
    with pytest.raises(SpillLost, match=f"crc32 {file.crc} instead of 7"):
        spill.read_private(file._replace(crc=7), OBJ)


@pytest.mark.parametrize("length", [0, 10, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 9999])
def test_a_truncated_file_is_lost(tmp_path: Path, length: int) -> None:
    file = written(tmp_path)
    os.truncate(file.path, length)
    with pytest.raises(SpillLost, match=rf"truncated: {length} instead of {HEADER_BYTES + 10_000}"):
        spill.read_private(file, OBJ)


def test_a_file_that_shrinks_while_it_is_read_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, LONG)
    read = os.preadv

    def shrink(fd: int, buffers: list[memoryview], at: int) -> int:
        os.truncate(file.path, HEADER_BYTES + LONG // 2)
        return read(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", shrink)
    with pytest.raises(SpillLost, match="while it was read"):
        spill.read_private(file, OBJ)


def test_a_longer_file_is_lost(tmp_path: Path) -> None:
    file = written(tmp_path)
    with open(file.path, "ab") as handle:
        handle.write(b"x")
    with pytest.raises(SpillLost, match="longer"):
        spill.read_private(file, OBJ)


def test_a_missing_file_is_lost(tmp_path: Path) -> None:
    file = written(tmp_path)
    spill.remove(file.path)
    spill.remove(file.path)
    with pytest.raises(SpillLost, match=r"file-10000 is missing"):
        spill.read_private(file, OBJ)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_lost(tmp_path: Path, make: Any) -> None:
    path = str(tmp_path / "thing")
    make(path)
    with pytest.raises(SpillLost, match="no regular file"):
        spill.read_private(SpillFile(path, 5, 5), OBJ)


def test_an_error_of_the_disk_is_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    with pytest.raises(SpillLost, match="Input/output error"):
        spill.read_private(file, OBJ)


def test_an_error_of_this_process_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    monkeypatch.setattr(os, "open", failing(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        spill.read_private(file, OBJ)


# --- A write that fails leaves nothing ---


def failing(code: int) -> Any:
    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture
def file_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LONG // 2, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_limit")
@pytest.mark.parametrize("reserving", [True, False])
def test_a_file_above_the_limit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserving: bool
) -> None:
    monkeypatch.setattr(spill, "_reserves", lambda device: reserving)
    with pytest.raises(OSError, match="too large"):
        written(tmp_path, LONG)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("step", ["posix_fallocate", "pwrite", "close"])
def test_a_failed_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    monkeypatch.setattr(spill, "_reserves", lambda device: True)
    close = os.close

    def close_and_fail(fd: int) -> None:
        close(fd)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, close_and_fail if step == "close" else failing(code))
        with pytest.raises(OSError, match=r".") as raised:
            written(tmp_path, LONG)
    assert raised.value.errno == code
    assert not os.listdir(tmp_path)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:4000], at))
    assert spill.read_private(written(tmp_path), OBJ) == contents(10_000)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, LONG)
    assert not os.listdir(tmp_path)


SMALL_DISK = """
import ctypes, errno, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000):
    raise OSError(ctypes.get_errno(), "unshare")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
disk = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
from dpool._store import spill
if sys.argv[2] == "late":
    spill._reserves = lambda device: False
obj = bytes(20)
kept = spill.write(os.path.join(disk, "kept"), memoryview(bytes(500_000)), obj)
for size in (600_000, 8 << 20):
    try:
        spill.write(os.path.join(disk, "second"), memoryview(bytes(size)), obj)
        raise SystemExit("there was room")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
assert os.listdir(disk) == ["kept"], os.listdir(disk)
assert os.statvfs(disk).f_bfree * 4096 > 500_000, "the room was not given back"
assert spill.read_private(kept, obj) == bytes(500_000)
spill.write(os.path.join(disk, "third"), memoryview(bytes(400_000)), obj)
assert spill.filesystem(os.stat(disk).st_dev) == "tmpfs"
print(spill.choose_directory("", "/s/dpool-1", disk), spill.choose_directory(disk, "/s/dpool-1", "/s"))
"""


@pytest.mark.root
@pytest.mark.needs("mount")
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, when: str) -> None:
    """On a filesystem of 1 MB, with the room reserved first and without; it is in memory, so it is not chosen."""
    result = run_script(SMALL_DISK, str(tmp_path), when).check()
    chosen, configured = result.stdout.split()
    on_disk = spill.filesystem(os.stat("/var/tmp").st_dev) not in spill.MEMORY_FILESYSTEMS
    assert chosen == ("/var/tmp" if on_disk else str(tmp_path)) + "/dpool-1-spill"
    assert configured == f"{tmp_path}/dpool-1-spill"


# --- The directory ---


def test_the_directory_is_private_and_linked(directory: SpillDirectory, session: Path, tmp_path: Path) -> None:
    assert directory.path == str(tmp_path / "disk" / "dpool-0-abc-spill")
    assert not os.path.lexists(directory.path)
    directory.ensure()
    directory.ensure()
    assert os.stat(directory.path).st_mode & 0o777 == 0o700
    assert os.readlink(session / "spill") == directory.path
    written(Path(directory.path))
    directory.remove_all()
    assert not os.path.lexists(directory.path)
    assert not os.path.lexists(session / "spill")
    directory.remove_all()
    directory.ensure()
    assert os.path.isdir(directory.path)


def test_a_directory_that_was_removed_is_made_again(directory: SpillDirectory) -> None:
    directory.ensure()
    os.rmdir(directory.path)
    directory.ensure()
    assert os.path.isdir(directory.path)


def test_the_temporary_directory_is_chosen_when_it_is_on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_in_memory", lambda path: False)
    assert spill.choose_directory("", "/x/dpool-1-2/", "/x") == "/x/dpool-1-2-spill"
    assert spill.choose_directory("here", "/x/dpool-1-2", "/x") == os.path.abspath("here/dpool-1-2-spill")


def test_a_configured_directory_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_in_memory", lambda path: path != "/var/tmp")
    assert spill.choose_directory("/y", "/x/dpool-1-2", "/x") == "/y/dpool-1-2-spill"


def test_without_any_disk_it_is_the_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_in_memory", lambda path: True)
    assert spill.choose_directory("", "/x/dpool-1-2", "/x") == "/x/dpool-1-2-spill"


def test_a_directory_of_another_name_is_refused(session: Path, tmp_path: Path) -> None:
    for path in (str(tmp_path / "mine"), "dpool-0-abc-spill"):
        with pytest.raises(ValueError, match="dpool-0-abc-spill"):
            SpillDirectory(path, str(session))


def test_a_planted_directory_link_is_refused(directory: SpillDirectory, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(0o700)
    (victim / "file").touch()
    os.symlink(victim, directory.path)
    with pytest.raises(PermissionError, match="only its owner"):
        directory.ensure()
    directory.remove_all()
    assert (victim / "file").exists()


def test_a_file_in_its_place_is_refused(directory: SpillDirectory) -> None:
    Path(directory.path).touch(0o700)
    with pytest.raises(PermissionError, match="only its owner"):
        directory.ensure()
    directory.remove_all()
    assert os.path.isfile(directory.path)


def test_a_directory_open_to_others_is_refused(directory: SpillDirectory) -> None:
    os.mkdir(directory.path)
    os.chmod(directory.path, 0o755)
    with pytest.raises(PermissionError, match="only its owner"):
        directory.ensure()


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused_and_left(directory: SpillDirectory, session: Path) -> None:
    directory.ensure()
    os.chown(directory.path, 12345, 12345)
    with pytest.raises(PermissionError, match="only its owner"):
        directory.ensure()
    directory.remove_all()
    spill.remove_linked(str(session))
    assert os.path.isdir(directory.path)


def test_a_link_that_leads_elsewhere_is_refused(directory: SpillDirectory, session: Path, tmp_path: Path) -> None:
    os.symlink(tmp_path, session / "spill")
    with pytest.raises(PermissionError, match="spill is not the link"):
        directory.ensure()
    directory.remove_all()
    assert os.readlink(session / "spill") == str(tmp_path)


@pytest.mark.parametrize("dangling", [True, False])
def test_a_planted_file_link_is_refused(tmp_path: Path, dangling: bool) -> None:
    victim = tmp_path / "victim"
    if not dangling:
        file = spill.write(str(victim), memoryview(b"mine"), OBJ)
    link = str(tmp_path / "link")
    os.symlink(victim, link)
    with pytest.raises(FileExistsError):
        spill.write(link, memoryview(b"x"), OBJ)
    assert os.path.islink(link)
    assert victim.exists() is not dangling
    if not dangling:
        with pytest.raises(SpillLost, match="symbolic link"):
            spill.read_private(file._replace(path=link), OBJ)


# --- Whoever tidies the session up ---


def test_the_linked_directory_goes_with_its_session(directory: SpillDirectory, session: Path) -> None:
    directory.ensure()
    written(Path(directory.path))
    spill.remove_linked(str(session))
    assert not os.path.lexists(directory.path)
    spill.remove_linked(str(session))


def test_a_session_without_a_link_has_nothing_to_remove(session: Path) -> None:
    spill.remove_linked(str(session))
    (session / "spill").mkdir()
    spill.remove_linked(str(session))
    spill.remove_linked(str(session / "missing"))
    assert (session / "spill").is_dir()


@pytest.mark.parametrize("name", ["other", "dpool-0-def-spill", "sub/../dpool-0-abc-spill"])
def test_a_foreign_link_is_never_followed(session: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / name).mkdir(0o700)
    (tmp_path / name / "file").touch()
    os.symlink(f"{tmp_path}/{name}", session / "spill")
    spill.remove_linked(str(session))
    assert (tmp_path / name / "file").exists()


def test_a_relative_link_is_never_followed(session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, session):
        (place / "dpool-0-abc-spill").mkdir(0o700)
    os.symlink("dpool-0-abc-spill", session / "spill")
    spill.remove_linked(str(session))
    assert (tmp_path / "dpool-0-abc-spill").exists()
    assert (session / "dpool-0-abc-spill").exists()


@pytest.mark.parametrize("how", ["a link", "open to others", "a file"])
def test_what_is_not_as_we_make_it_is_not_removed(session: Path, tmp_path: Path, how: str) -> None:
    named = tmp_path / "dpool-0-abc-spill"
    target = tmp_path / "target"
    target.mkdir(0o700)
    if how == "a link":
        named.symlink_to(target)
    elif how == "open to others":
        named.mkdir()
        named.chmod(0o750)
    else:
        named.touch(0o700)
    os.symlink(named, session / "spill")
    spill.remove_linked(str(session))
    assert named.exists()
    assert target.exists()


def test_a_session_that_is_not_ours_alone_is_not_believed(directory: SpillDirectory, session: Path) -> None:
    directory.ensure()
    session.chmod(0o777)
    spill.remove_linked(str(session))
    assert os.path.isdir(directory.path)


# --- The thread ---


def test_jobs_run_one_after_the_other_in_order() -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    thread = SpillThread(told.put)
    running: list[int] = []

    def job(number: int) -> tuple[int, str]:
        running.append(number)
        assert running == [number]
        running.remove(number)
        return number, threading.current_thread().name

    for number in range(100):
        thread.submit(lambda number=number: job(number))  # type: ignore[misc]
    assert [told.get(timeout=10) for _ in range(100)] == [(number, "dpool-spill") for number in range(100)]
    assert thread.close()


def test_no_job_no_thread() -> None:
    before = threading.active_count()
    thread = SpillThread(lambda event: None)
    assert threading.active_count() == before
    assert thread.close()
    with pytest.raises(RuntimeError, match="closed"):
        thread.submit(lambda: None)


def test_jobs_are_done_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    thread = SpillThread(told.put)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    here = threading.current_thread().name
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        thread.submit(lambda: threading.current_thread().name)
        thread.submit(lambda: 1 // 0)
        assert told.get(timeout=10) == here
        assert isinstance(told.get(timeout=10).error, ZeroDivisionError)
    thread.submit(lambda: threading.current_thread().name)
    assert told.get(timeout=10) == "dpool-spill"
    assert thread.close()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_a_job_that_raises_is_told_and_the_next_runs(error: BaseException) -> None:
    told: SimpleQueue[Any] = SimpleQueue()
    thread = SpillThread(told.put)

    def fail() -> None:
        raise error

    thread.submit(fail)
    thread.submit(lambda: "next")
    assert told.get(timeout=10) == JobFailed(error)
    assert told.get(timeout=10) == "next"
    assert thread.close()


def test_close_waits_for_the_present_job_and_drops_the_rest() -> None:
    told: list[str] = []
    thread = SpillThread(told.append)
    begun, go = threading.Event(), threading.Event()

    def first() -> str:
        begun.set()
        assert go.wait(10)
        return "first"

    thread.submit(first)
    thread.submit(lambda: "second")
    assert begun.wait(10)
    closed: list[bool] = []
    closer = threading.Thread(target=lambda: closed.append(thread.close(30)))
    closer.start()
    wait_until(lambda: thread._closed)
    assert not told
    go.set()
    closer.join(10)
    assert closed == [True]
    assert told == ["first"]


def test_close_gives_up_on_a_job_that_hangs_and_then_nothing_is_told() -> None:
    told: list[str] = []
    thread = SpillThread(told.append)
    begun, go, over = threading.Event(), threading.Event(), threading.Event()

    def hang() -> str:
        begun.set()
        assert go.wait(10)
        over.set()
        return "late"

    thread.submit(hang)
    assert begun.wait(10)
    assert not thread.close(0.01)
    go.set()
    assert over.wait(10)
    assert thread.close(10)
    assert not told


def test_a_waiting_thread_keeps_nothing_of_a_job() -> None:
    class Event:
        pass

    told: SimpleQueue[Any] = SimpleQueue()
    thread = SpillThread(lambda event: told.put(weakref.ref(event)))
    event = Event()
    thread.submit(lambda event=event: event)  # type: ignore[misc]
    seen = told.get(timeout=10)
    del event
    wait_until(lambda: seen() is None)
    assert thread.close()
