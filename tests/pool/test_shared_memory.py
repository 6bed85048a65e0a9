"""`multiprocessing.shared_memory` in tasks: workers use the program's resource tracker, as forked children would."""

from __future__ import annotations

import os

import pytest

from dpool._core import tracker
from tests.helpers import run_script

PROGRAM = """
import time
from multiprocessing import Process, shared_memory
from multiprocessing.managers import SharedMemoryManager
import dpool

def fill(name, i):
    segment = shared_memory.SharedMemory(name=name)
    segment.buf[i] = i
    segment.close()

def make(text):
    segment = shared_memory.SharedMemory(create=True, size=len(text))
    segment.buf[:] = text
    segment.close()
    return segment.name

def fill_in_pools_of_its_own(name):
    with dpool.Pool(1) as pool:
        pool.apply(fill, (name, 6))
    child = Process(target=fill, args=(name, 7))
    child.start()
    child.join()
    return child.exitcode

def joined(pool):
    pool.close()
    pool.join()

first = dpool.Pool(2)  # before there is a segment
ours = shared_memory.SharedMemory(create=True, size=8)
first.starmap(fill, [(ours.name, i) for i in range(5)])
names = first.map(make, [b"abc", b"de"])
joined(first)
second = dpool.Pool(1)
second.apply(fill, (ours.name, 5))
print(second.apply(fill_in_pools_of_its_own, (ours.name,)))
joined(second)

for name in names:
    segment = shared_memory.SharedMemory(name=name)
    print(bytes(segment.buf)[:2])
    segment.close()
    segment.unlink()
print(list(ours.buf))
ours.close()
ours.unlink()
with SharedMemoryManager() as manager:
    some = manager.ShareableList(range(3))
    with dpool.Pool(2) as pool:
        print(pool.map(some.__getitem__, range(3)))
"""


def test_segments_outlive_the_workers_that_opened_or_made_them() -> None:
    result = run_script(PROGRAM)
    assert result.stdout.splitlines() == [
        "0",
        "b'ab'",
        "b'de'",
        "[0, 1, 2, 3, 4, 5, 6, 7]",
        "[0, 1, 2]",
    ]
    assert result.stderr == ""
    assert result.rc == 0


LEFT = """
from multiprocessing import shared_memory
import dpool

def make():
    return shared_memory.SharedMemory(create=True, size=8).name

with dpool.Pool(1) as pool:
    print(pool.apply(make))
"""


def test_a_segment_that_a_task_leaves_is_removed_at_the_end_of_the_program() -> None:
    result = run_script(LEFT)
    assert result.rc == 0
    assert not os.path.exists(os.path.join("/dev/shm", result.stdout.strip()))
    assert "1 leaked shared_memory objects" in result.stderr


@pytest.mark.parametrize("what", ["another inode", "a file", "closed"])
def test_a_descriptor_that_has_become_something_else_is_not_used(what: str) -> None:
    reader, writer = os.pipe()
    inode = os.fstat(writer).st_ino
    fd = tracker._open(tracker.Tracker(os.getpid(), writer, inode))
    assert fd is not None
    os.write(fd, b"x")
    assert os.read(reader, 9) == b"x"
    os.close(fd)
    if what == "another inode":
        inode += 1
    elif what == "a file":
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, writer)
        os.close(null)
    else:
        os.close(writer)
    assert tracker._open(tracker.Tracker(os.getpid(), writer, inode)) is None
    for each in (reader, writer) if what != "closed" else (reader,):
        os.close(each)
