"""Value, Array, their raw forms, Pipe and Manager: wherever they may be used."""

from __future__ import annotations

import ctypes
import multiprocessing.sharedctypes
import os
import pickle
import signal
from typing import Any

import numpy as np
import pytest

import dpool.multiprocessing as mp
from dpool._core import sync_shared
from dpool._core.logic.sync_kinds import SEGMENT
from dpool._core.node_sync import Memory
from dpool._core.serialize_pickler import Pickler, dumps
from dpool.errors import ObjectLost
from tests.helpers import wait_until
from tests.multiprocessing.conftest import WAIT_S, Elsewhere

CODES = {"b": -7, "B": 7, "h": -700, "H": 700, "i": -70_000, "I": 70_000, "l": -7, "L": 7, "q": -(2**40), "Q": 2**40}
CODES_OF_OTHERS = {"f": 0.5, "d": 0.25, "c": b"x", "u": "x"}


class Pair(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_double))


def _set(value: Any, new: Any) -> Any:
    old, value.value = value.value, new
    return old


@pytest.mark.parametrize(("code", "number"), [*CODES.items(), *CODES_OF_OTHERS.items()])
def test_every_typecode(code: str, number: Any) -> None:
    value = mp.Value(code, number)
    assert value.value == number
    assert mp.RawValue(code).value in (0, 0.0, b"\0", "\0")
    assert isinstance(value, multiprocessing.sharedctypes.SynchronizedBase)


@pytest.mark.parametrize("make", [mp.Value, mp.RawValue])
def test_a_value_is_seen_everywhere(make: Any, elsewhere: Elsewhere) -> None:
    value = make("i", 5)
    assert elsewhere(_set, value, 6) == 5
    assert value.value == 6


def _fill(array: Any) -> list[Any]:
    before = array[:]
    for at in range(len(array)):
        array[at] = at
    return list(before)


@pytest.mark.parametrize("make", [mp.Array, mp.RawArray])
@pytest.mark.parametrize("size", [4, 100_000])
def test_an_array_is_seen_everywhere(make: Any, size: int, elsewhere: Elsewhere) -> None:
    array = make("i", size)
    array[1] = 9
    assert elsewhere(_fill, array)[:3] == [0, 9, 0]
    assert array[:4] == [0, 1, 2, 3]
    assert array[size - 1] == size - 1


def test_numpy_looks_at_it_in_place(pool: Any) -> None:
    array = mp.Array("d", 1000)
    view = np.frombuffer(array.get_obj())
    pool.apply(_add_one, (array,))
    assert view.sum() == 1000
    del array
    view[0] = 5
    assert view[0] == 5


def _add_one(array: Any) -> None:
    with array.get_lock():
        view = np.frombuffer(array.get_obj())
        view += 1


def test_locks_of_values() -> None:
    lock = mp.Lock()
    value = mp.Value("i", 1, lock=lock)
    assert value.get_lock() is lock
    assert type(mp.Value("i", lock=False)) is ctypes.c_int
    assert type(mp.Array("i", [1, 2])[0]) is int
    with pytest.raises(AttributeError, match="no method 'acquire'"):
        mp.Value("i", 1, lock="lock")
    with value:
        assert not lock.acquire(False)
        assert value.get_obj().value == 1
    assert "wrapper for c_int(1)" in repr(value)


def test_strings_and_structures(elsewhere: Elsewhere) -> None:
    text = mp.Array("c", 10)
    text.value = b"hello"
    assert text.raw == b"hello" + bytes(5)
    pair = mp.Value(Pair, 3, 0.5)
    assert (pair.x, pair.y) == (3, 0.5)
    assert elsewhere(_swap, pair, text) == (3, b"hello")
    assert (pair.x, pair.y, text.value) == (4, 2.5, b"bye")
    assert sync_shared.copy(pair.get_obj()).x == 4


def _swap(pair: Any, text: Any) -> tuple[int, bytes]:
    before = pair.x, text.value
    pair.x, pair.y, text.value = 4, 2.5, b"bye"
    return before


def test_an_ordinary_ctypes_object_still_pickles(pool: Any) -> None:
    mp.RawValue("i", 1)
    assert pool.apply(_set, (ctypes.c_int(3), 4)) == 3


def test_memory_is_used_again_and_zeroed() -> None:
    keep = mp.Lock()
    for size in (8, 5000, 300_000):
        for _ in range(50):
            array = mp.RawArray("b", size)
            assert not any(array[:8])
            array[0] = array[size - 1] = 1
            del array
    assert keep.acquire()
    keep.release()


# --- Pipe ---


def _echo(connection: Any) -> None:
    with connection:
        while (value := connection.recv()) is not None:
            connection.send(value)


def test_a_pipe_end_goes_into_a_task(pool: Any) -> None:
    ours, theirs = mp.Pipe()
    result = pool.apply_async(_echo, (theirs,))
    theirs.close()
    with ours:
        for value in (1, "text", bytes(200_000)):
            ours.send(value)
            assert ours.recv() == value
        assert mp.connection.wait([ours], 0) == []
        ours.send(None)
        with pytest.raises(EOFError):
            ours.recv()
    result.get(WAIT_S)


def test_one_way_pipes(pool: Any) -> None:
    receiver, sender = mp.Pipe(duplex=False)
    result = pool.apply_async(_send, (sender, 5))
    with receiver, sender:
        assert receiver.recv() == 5
        assert not sender.readable
    result.get(WAIT_S)


def _send(connection: Any, value: Any) -> None:
    connection.send(value)


def test_a_connection_is_handed_over_once(pool: Any) -> None:
    ours, theirs = mp.Pipe()
    with ours, theirs:
        queue = mp.Queue()
        queue.put(theirs)
        queue.put(ours)
        again = queue.get()
        again.send(1)
        assert ours.recv() == 1
        again.close()
        del queue  # and with it what was in it
    with pytest.raises(OSError, match="closed"):
        pool.apply(_send, (ours, 1))


def test_a_pickle_of_a_connection_serves_once() -> None:
    ours, theirs = mp.Pipe()
    with ours, theirs:
        pickler = Pickler()
        data = dumps(theirs, pickler)
        with pickle.loads(data) as again:
            again.send(1)
            assert ours.recv() == 1
        with pytest.raises(ObjectLost, match="handed over once"):
            pickle.loads(data)


def _die_with(connection: Any) -> None:
    connection.send("here")
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_other_end_sees_that_its_process_died() -> None:
    ours, theirs = mp.Pipe()
    with ours, mp.Pool(1) as pool:
        result = pool.apply_async(_die_with, (theirs,))
        theirs.close()
        assert ours.recv() == "here"
        with pytest.raises(EOFError):
            ours.recv()
        wait_until(result.ready, WAIT_S, "the crash is known")
        assert not result.successful()


@pytest.mark.parametrize("length", [1 << 10, 1 << 18, (1 << 18) + 1, 1 << 20, 1 << 21])
def test_memory_is_given_back(length: int) -> None:
    memory = Memory()
    for number in range(3):
        memory.take(b"%d" % number, length)
        memory.give(b"%d" % number)
    for fd, _ in memory._segments.values():
        os.close(fd)
    kept = [size for _, size in memory._segments.values()]
    assert kept == ([SEGMENT] if length <= SEGMENT // 4 else []), "only what small pieces are cut from"


# --- Manager ---


def _use_proxies(lock: Any, found: Any, queue: Any) -> int:
    with lock:
        found["sum"] = found.get("sum", 0) + 1
    queue.put("hello")
    return len(found)


def test_proxies_of_a_manager(elsewhere: Elsewhere) -> None:
    with mp.Manager() as manager:
        lock, found, queue = manager.Lock(), manager.dict(), manager.Queue()
        assert elsewhere(_use_proxies, lock, found, queue) == 1
        assert dict(found) == {"sum": 1}
        assert queue.get(timeout=WAIT_S) == "hello"
