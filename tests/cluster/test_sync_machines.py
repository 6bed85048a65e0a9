"""Locks, queues, shared values, pipes and managers between hosts that share no file, and the link between them cut."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import lacking
from tests.cluster.machines import Machines, machines

pytestmark = [
    pytest.mark.skipif(bool(lacking()), reason=lacking() or "there can be hosts"),
    pytest.mark.leaks("the hosts have process and file names of their own; each is looked through when it is stopped"),
]

TASKS = """
import threading
import dpool
import dpool.multiprocessing as mp

def over_there(function, *args):
    return dpool.remote(function).options(resources={"h2": 1}, max_retries=0).remote(*args)
"""
ALL = """
def use(lock, items, value, array, end, found, event):
    assert lock._core.link.far
    with lock:
        value.value += 1
        array[1] = 5
    items.put("item")
    end.send(b"x" * 200_000)
    end.close()
    found["key"] = "value"
    event.set()
    return "used"

ours, theirs = mp.Pipe()
with mp.Manager() as manager:
    lock, items, event, found = mp.Lock(), mp.Queue(), mp.Event(), manager.dict()
    value, array = mp.Value("i", 1), mp.Array("d", 3)
    task = over_there(use, lock, items, value, array, theirs, found, event)
    assert event.wait(60)
    assert (items.get(timeout=60), len(ours.recv()), dict(found)) == ("item", 200_000, {"key": "value"})
    assert dpool.get(task, timeout=60) == "used"
    with lock:
        assert (value.value, array[:]) == (2, [0, 5, 0])
print("all is well")
"""
LOSE = """
def hold(lock, event):
    with lock:
        event.set()
        mp.Event().wait()

def make():
    return mp.Queue(), mp.Lock()

items, theirs = dpool.get(over_there(make), timeout=60)
lock, event = mp.Lock(), mp.Event()
task = over_there(hold, lock, event)
assert event.wait(60)
told = []

def get():
    try:
        items.get()
    except dpool.errors.NodeLost as error:
        told.append(str(error))

waiting = threading.Thread(target=get)
waiting.start()
print("waiting", flush=True)
assert lock.acquire(timeout=60), "whoever had it is gone"
waiting.join(60)
assert told and "it lived on h2" in told[0] and "has left the cluster" in told[0], told
print("told")
"""


@pytest.fixture
def two() -> Iterator[Machines]:
    with machines(2) as made:
        yield made


def test_every_kind_and_a_lost_machine(two: Machines) -> None:
    head, other = two.members
    assert head.script(TASKS + ALL) == "all is well\n"
    with head.program(TASKS + LOSE, stderr=subprocess.DEVNULL) as program:
        assert program.line() == "waiting"
        two.lose(other)
        assert program.line() == "told"
