"""Locks and queues where several things happen at once: forks of forks, threads, signal handlers, the program's end."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import dpool.multiprocessing as mp
from dpool._core import sync_client, sync_mutex
from tests.faults.support import DEADLINE_S
from tests.helpers import run_script


@contextmanager
def _stopped_node(connection: Any) -> Iterator[None]:
    """What is said meanwhile it reads all at once."""
    peer = connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid = struct.unpack("3i", peer)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("first", [0, 1])
def test_items_of_one_thread_keep_their_order_whatever_connections_are_free(first: int) -> None:
    one = mp.Queue()
    link = sync_client.home()
    one.put(0)
    assert one.get(timeout=DEADLINE_S) == 0
    rest, link.idle[:] = [*link.idle], []
    two = link.take(), link.take()
    with _stopped_node(two[0]):
        for item in range(6):
            link.idle[:] = [two[(item + first) % 2]]
            one.put(item)
    link.idle[:] = [*rest, *two]
    assert [one.get(timeout=DEADLINE_S) for _ in range(6)] == list(range(6))


@pytest.mark.parametrize("recursive", [True, False])
def test_a_signal_handler_takes_the_lock_that_it_interrupts(monkeypatch: pytest.MonkeyPatch, recursive: bool) -> None:
    """At the two moments when it can come: after the byte was locked, and after it was unlocked."""
    lock: Any = mp.RLock() if recursive else mp.Lock()
    got: list[bool] = []
    system_call = sync_mutex._fcntl

    def interrupted(fd: int, op: int, arg: bytes) -> object:
        result = system_call(fd, op, arg)
        if len(got) < 2:
            got.append(False)
            if recursive or lock._core._unlock == arg:  # else it waits for itself, as it should
                got[-1] = lock.acquire(timeout=DEADLINE_S)
                if got[-1]:
                    lock.release()
        return result

    monkeypatch.setattr(sync_mutex, "_fcntl", interrupted)
    with lock:
        assert lock._core.is_mine()
        assert not _of_a_thread(lock.acquire, False)
    assert got == [recursive, True]
    assert _of_a_thread(lock.acquire, False)


def _of_a_thread(function: Any, *args: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function(*args)))
    thread.start()
    thread.join(DEADLINE_S)
    return found[0]


@pytest.mark.parametrize("timeout", [3e6, 1e12, float("inf")])
def test_a_timeout_beyond_what_the_kernel_takes(timeout: float) -> None:
    one = mp.Queue()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(one.get(timeout=timeout)))
    thread.start()
    one.put("item")
    thread.join(DEADLINE_S)
    assert found == ["item"]
    assert mp.Semaphore(1).acquire(timeout=timeout)


def test_a_child_that_forks_keeps_what_it_has() -> None:
    script = """
import os, select
import dpool.multiprocessing as mp
from dpool.errors import ObjectLost
kept, one = mp.Queue(), mp.Queue()
ready, go = os.pipe(), os.pipe()
child = os.fork()
if not child:
    grandchild = os.fork()
    if not grandchild:
        os._exit(0)
    os.waitpid(grandchild, 0)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    one.put("still there")
    kept.put(one.get(timeout=30))
    os._exit(0)
os.read(ready[0], 1)
other = mp.Lock()
make, args = other._rebuilt()
del one, other
while True:  # until the node has heard of it
    try:
        make(*args).release()
    except ObjectLost:
        break
    except ValueError:
        select.select([], [], [], 0.001)
os.write(go[1], b"x")
print(kept.get(timeout=30), os.waitpid(child, 0)[1])
"""
    assert run_script(script).check().stdout == "still there 0\n"


def test_a_dead_process_whose_connections_its_child_has_too() -> None:
    """What it waited for it no longer gets, and its barrier breaks."""
    script = """
import os, select, signal, threading
import dpool.multiprocessing as mp
queue, barrier, end = mp.Queue(), mp.Barrier(2), os.pipe()
ready = os.pipe()
child = os.fork()
if not child:
    os.close(end[1])
    threading.Thread(target=queue.get).start()
    threading.Thread(target=barrier.wait).start()
    while not barrier.n_waiting:
        select.select([], [], [], 0.001)
    if not os.fork():
        os.read(end[0], 1)
        os._exit(0)
    os.write(ready[1], b"x")
    signal.pause()
os.read(ready[0], 1)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
while not barrier.broken:
    select.select([], [], [], 0.001)
queue.put("item")
print(queue.get(timeout=30))
os.write(end[1], b"x")
"""
    assert run_script(script).check().stdout == "item\n"


def test_more_threads_wait_than_a_program_may_open_files() -> None:
    """The node may open more."""
    script = """
import os, resource, select, threading
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (128, most))
import dpool.multiprocessing as mp
event, found = mp.Event(), []
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
threads = [threading.Thread(target=lambda: found.append(event.wait(30))) for _ in range(200)]
for thread in threads:
    thread.start()
while len(os.listdir("/proc/self/fd")) < 200:
    select.select([], [], [], 0.001)
event.set()
for thread in threads:
    thread.join()
print(len(found), all(found))
"""
    assert run_script(script).check().stdout == "200 True\n"


def test_exit_functions_may_use_them() -> None:
    """Those that were registered before, and after; and one that raises takes nobody along."""
    script = """
import atexit, logging.handlers, sys
atexit.register(lambda: print("before", queue.qsize()))
import dpool.multiprocessing as mp
queue = mp.Queue()
listener = logging.handlers.QueueListener(queue, logging.StreamHandler(sys.stdout))
listener.start()
atexit.register(listener.stop)
logging.getLogger().addHandler(logging.handlers.QueueHandler(queue))
atexit.register(lambda: logging.warning("the last words"))
atexit.register(lambda: 1 / 0)
"""
    done = run_script(script)
    assert done.stdout == "the last words\nbefore 0\n"
    assert done.stderr.count("Error") == 1
    assert "ZeroDivisionError" in done.stderr
