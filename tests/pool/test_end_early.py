"""Pools that end, or whose node or zygote does, while their first workers are being started or initialized."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import dpool
from dpool._core import driver, executor_pool, pool_initializer
from tests.executor.support import LONG_S, Gate, kill_self, noop, square
from tests.faults.support import by_role, one_of_role, sigkill
from tests.helpers import is_running, run_script, wait_until

NODE, ZYGOTE = "dpool-node", "dpool-zygote"
JOIN_S = 30.0


def joined(pool: dpool.Pool) -> None:
    """`join`, with a deadline."""
    waiter = threading.Thread(target=pool.join, daemon=True)
    waiter.start()
    waiter.join(JOIN_S)
    ended = not waiter.is_alive()
    if not ended:
        pool.terminate()
    assert ended, f"not joined within {JOIN_S} s"


def runtime() -> driver.NativeRuntime:
    return driver.runtime()


def node_pid() -> int:
    """The node's, once it has answered."""
    welcome = wait_until(lambda: runtime().welcome, LONG_S)
    assert welcome is not None
    return int(welcome.pid)


@pytest.fixture
def stopped_node() -> Iterator[int]:
    """A node that reads nothing, which another executor keeps."""
    with dpool.Executor(1) as other:
        other.submit(noop).result(LONG_S)
        node = node_pid()
        os.kill(node, signal.SIGSTOP)
        yield node
        if is_running(node):
            os.kill(node, signal.SIGCONT)
        assert other.submit(square, 3).result(LONG_S) == 9


# --- the node dies ---


@pytest.mark.parametrize("workers", [1, 2])
def test_the_node_dies_before_it_has_heard_of_the_closed_pool(stopped_node: int, gate: Gate, workers: int) -> None:
    """As it does when it has lingered long enough just then. Who closes at once finds that the initializer has run."""
    pool = dpool.Pool(workers, gate.note, ("init",))
    pool.close()
    sigkill(stopped_node)
    joined(pool)
    assert len(gate.pids("init")) == workers


def test_the_node_dies_before_it_has_heard_of_the_open_pool(stopped_node: int, gate: Gate) -> None:
    with dpool.Pool(2, gate.note, ("init",)) as pool:
        sigkill(stopped_node)
        wait_until(lambda: len(gate.pids("init")) == 2, LONG_S, "the workers are started without a task")
        assert pool.map(square, range(10)) == [x * x for x in range(10)]
        pool.close()
        joined(pool)
    assert len(gate.pids("init")) == 2


def test_the_node_dies_before_it_has_heard_of_a_pool_without_initializer(stopped_node: int) -> None:
    closed, opened = dpool.Pool(2), dpool.Pool(2)
    closed.close()
    sigkill(stopped_node)
    joined(closed)
    assert len(opened._pool) == 2
    opened.terminate()
    joined(opened)


def test_the_node_dies_while_the_closed_pools_workers_are_initialized(gate: Gate) -> None:
    pool = dpool.Pool(2, gate.enter, ("init",))
    wait_until(lambda: len(gate.pids("init")) == 2, LONG_S)
    pool.close()
    sigkill(node_pid())
    wait_until(lambda: len(gate.pids("init")) == 4, LONG_S, "both are started again")
    gate.open("init")
    joined(pool)


def test_nodes_that_die_over_a_closed_pool_again_and_again(gate: Gate) -> None:
    """It is no fault of the initializer's, so it is not given up."""
    pool = dpool.Pool(1, gate.enter, ("init",))
    pool.close()
    for turn in range(executor_pool.MAX_FAILED_STARTS + 1):
        wait_until(lambda n=turn: len(gate.pids("init")) > n, LONG_S, f"start {turn}")  # type: ignore[misc]
        wait_until(lambda: pool._inner.processes, LONG_S, "the driver knows that a worker was up")
        sigkill(node_pid())
    gate.open("init")
    joined(pool)


def test_a_pool_whose_node_died_can_be_terminated(stopped_node: int, gate: Gate) -> None:
    pool = dpool.Pool(1, gate.note, ("init",))
    pool.close()
    sigkill(stopped_node)
    pool.terminate()
    joined(pool)


def test_many_workers_that_a_node_takes_along_before_they_did_anything(gate: Gate) -> None:
    """More than may die in a row: it is no fault of theirs."""
    with dpool.Executor(8, initializer=gate.enter, initargs=("init",)) as executor:
        futures = [executor.submit(square, x) for x in range(16)]
        wait_until(lambda: len(gate.pids("init")) == 8, LONG_S)
        sigkill(node_pid())
        gate.open("init")
        assert [future.result(LONG_S) for future in futures] == [x * x for x in range(16)]


def test_a_pool_that_is_made_while_the_node_is_replaced_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told twice, its leases were of one pool at the node, and returned to another, which ended the connection."""
    dying, made = threading.Event(), threading.Event()
    really = executor_pool.ExecutorPool.node_died

    def slowly(self: Any, log_file: str) -> None:
        dying.set()
        assert made.wait(LONG_S)
        really(self, log_file)

    monkeypatch.setattr(executor_pool.ExecutorPool, "node_died", slowly)
    with dpool.Executor(1) as other:
        other.submit(noop).result(LONG_S)
        sigkill(node_pid())
        assert dying.wait(LONG_S)
        pool = dpool.Pool(1)
        made.set()
        assert other.submit(square, 3).result(LONG_S) == 9
        node = node_pid()
        assert pool.map(square, range(10), 1) == [x * x for x in range(10)]
        pool.close()
        joined(pool)
        assert other.submit(square, 4).result(LONG_S) == 16
        assert node_pid() == node, "the node did not refuse us"


# --- a node or zygote that is slow, a zygote that dies ---


@pytest.mark.parametrize("role", [NODE, ZYGOTE])
def test_a_pool_is_closed_while_its_workers_cannot_be_started_yet(gate: Gate, role: str) -> None:
    with dpool.Executor(1) as other:
        other.submit(noop).result(LONG_S)
        stopped = one_of_role(role)
        os.kill(stopped, signal.SIGSTOP)
        pool = dpool.Pool(2, gate.note, ("init",))
        pool.close()
        os.kill(stopped, signal.SIGCONT)
        joined(pool)
        assert len(gate.pids("init")) == 2


def test_the_zygote_dies_before_it_has_forked_the_closed_pools_workers(gate: Gate) -> None:
    with dpool.Executor(1) as other:
        other.submit(noop).result(LONG_S)
        zygote = one_of_role(ZYGOTE)
        os.kill(zygote, signal.SIGSTOP)
        pool = dpool.Pool(2, gate.note, ("init",))
        pool.close()
        sigkill(zygote)
        joined(pool)
        assert len(gate.pids("init")) == 2
        assert by_role(ZYGOTE) != [zygote]


# --- initializers that fail ---


@pytest.mark.parametrize("how", ["raises", "dies", "exits", "does not unpickle", "does not pickle"])
def test_a_pool_is_closed_whose_initializer_fails(how: str) -> None:
    initializer: Any = {"raises": divmod, "dies": kill_self, "exits": os._exit}.get(how, noop)
    arguments: dict[str, tuple[Any, ...]] = {
        "raises": (1, 0),
        "exits": (3,),
        "does not unpickle": (Unloadable(),),
        "does not pickle": (threading.Lock(),),
    }
    pool = dpool.Pool(2, initializer, arguments.get(how, ()))
    pool.close()
    joined(pool)


class Unloadable:
    """Raises where it is unpickled."""

    def __reduce__(self) -> Any:
        return divmod, (1, 0)


@pytest.mark.parametrize("closed", [True, False])
def test_an_initializer_that_cannot_be_sent(gate: Gate, monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    """There is no memory for it, say. The worker would wait for it for ever, and the pool for the worker."""
    really = pool_initializer.Initializer.send
    sent: list[Any] = []

    def once_not(self: pool_initializer.Initializer, link: Any) -> None:
        sent.append(link)
        if len(sent) == 1:
            raise OSError(12, "Cannot allocate memory")
        really(self, link)

    monkeypatch.setattr(pool_initializer.Initializer, "send", once_not)
    pool = dpool.Pool(1, gate.note, ("init",))
    if not closed:
        assert pool.apply_async(square, (3,)).get(LONG_S) == 9
        assert len(gate.pids("init")) == 1
    pool.close()
    joined(pool)


DESCRIPTORS = """
import os, resource, sys, threading, warnings
import dpool
warnings.simplefilter("ignore")
other = dpool.Executor(1)
warm = dpool.Pool(1, abs, (-1,))  # nothing is left to be imported
warm.close()
warm.join()
left = int(sys.argv[1])
most = resource.getrlimit(resource.RLIMIT_NOFILE)
taken = []
resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, most[1]))
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
for fd in taken[:left]:
    os.close(fd)
pool = dpool.Pool(1, abs, (-1,))
pool.close()
waiter = threading.Thread(target=pool.join, daemon=True)
waiter.start()
waiter.join(30)
hangs = waiter.is_alive()
resource.setrlimit(resource.RLIMIT_NOFILE, most)
for fd in taken[left:]:
    os.close(fd)
assert not hangs
assert other.submit(abs, -2).result(60) == 2
other.shutdown()
print("joined")
"""


@pytest.mark.parametrize("left", range(6))
def test_a_closed_pool_ends_though_few_descriptors_are_left_for_its_worker(left: int) -> None:
    """Its socket, the worker's, the page; and one more while that is mapped."""
    assert "joined" in run_script(DESCRIPTORS, str(left)).check().stdout
