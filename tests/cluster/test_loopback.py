"""Two machines of a cluster, as two gateways with their nodes on this one."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

import dpool
from dpool._core import driver, gateway_start
from dpool._core.config import from_environment
from tests.helpers import is_running, wait_until

DEADLINE_S = 60.0


class Cluster:
    def __init__(self) -> None:
        self.secret = zmq.curve_keypair()
        self.members: list[gateway_start.Started] = []

    def add(self, **settings: Any) -> gateway_start.Started:
        config = from_environment()._replace(linger_s=1e9, num_cpus=2.0, **settings)
        head = self.members[0].address if self.members else ""
        member = gateway_start.start(config, "127.0.0.1", 0, head, self.secret)
        self.members.append(member)
        return member

    def stop(self, member: gateway_start.Started, number: int = signal.SIGTERM) -> None:
        os.kill(member.pid, number)
        self.members.remove(member)
        wait_until(lambda: not is_running(member.pid), DEADLINE_S, "it has ended")
        wait_until(lambda: not os.path.exists(member.session), DEADLINE_S, "its session is removed")


@contextmanager
def two(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[Cluster]:
    """A head, to which this program belongs, and a machine with a lamp and these settings."""
    made = Cluster()
    made.add()
    made.add(resources=(("lamp", 1.0),), **settings)
    monkeypatch.setenv("DPOOL_ADDRESS", made.members[0].address)
    driver.configure(address=made.members[0].address)
    try:
        yield made
    finally:
        dpool.shutdown()
        driver.configure(address="")
        for member in list(made.members):
            made.stop(member)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with two(monkeypatch) as made:
        yield made


@dpool.remote
def meet(directory: str, number: int, others: int) -> tuple[int, int]:
    """Wait until so many run at the same time."""
    open(f"{directory}/{number}", "w").close()
    wait_until(lambda: len(os.listdir(directory)) >= others, DEADLINE_S)
    return number, os.getppid()


def test_tasks_run_on_both(cluster: Cluster, tmp_path: Any) -> None:
    done = dpool.get([meet.remote(str(tmp_path), i, 4) for i in range(4)], timeout=DEADLINE_S)
    assert [number for number, _ in done] == [0, 1, 2, 3]
    parents = [parent for _, parent in done]
    assert len(set(parents)) == 2, "four at a time on two machines of two CPUs each"


def test_a_machine_that_has_done_its_tasks_is_used_again(cluster: Cluster, tmp_path: Any) -> None:
    for turn in range(3):  # each program wants its own workers
        (tmp_path / str(turn)).mkdir()
        done = dpool.get([meet.remote(str(tmp_path / str(turn)), i, 4) for i in range(4)], timeout=DEADLINE_S)
        assert len({parent for _, parent in done}) == 2
        dpool.shutdown()


@dpool.remote(resources={"lamp": 0.5})
def wait_for(path: str) -> str:
    wait_until(lambda: os.path.exists(path), DEADLINE_S)
    return path


@dpool.remote(resources={"lamp": 0.5})
def touch(path: str) -> str:
    open(path, "w").close()
    return path


def test_a_frame_whose_tasks_wait_for_each_other(cluster: Cluster, tmp_path: Any) -> None:
    """Short tasks travel many at a time; one that then waits must not keep those behind it."""
    dpool.get([touch.remote(str(tmp_path / "warm")) for _ in range(300)], timeout=DEADLINE_S)
    gate = str(tmp_path / "gate")
    waiting = [wait_for.remote(gate)]
    others = [touch.remote(str(tmp_path / "other")) for _ in range(300)]
    assert dpool.get(others, timeout=DEADLINE_S)
    touch.remote(gate)
    assert dpool.get(waiting, timeout=DEADLINE_S) == [gate]


@dpool.remote(resources={"lamp": 1})
def say(text: str) -> None:
    print(text)


def test_what_is_printed_over_there(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()  # what pytest captures is cut while it is read, with what another thread writes just then
    monkeypatch.setattr(sys, "stdout", printed)
    dpool.get([say.remote("hello") for _ in range(3)], timeout=DEADLINE_S)
    wait_until(lambda: printed.getvalue().count("\n") >= 3, DEADLINE_S)
    assert printed.getvalue() == "hello\n" * 3


@dpool.remote(resources={"lamp": 1})
def with_lamp() -> str:
    return "lit"


def test_what_only_the_other_machine_has(cluster: Cluster) -> None:
    assert dpool.get([with_lamp.remote() for _ in range(5)], timeout=DEADLINE_S) == ["lit"] * 5


@dpool.remote(resources={"lamp": 1}, max_retries=0)
def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dpool.remote(resources={"lamp": 1}, max_retries=0)
def fail() -> None:
    raise KeyError("over there")


def test_errors_over_there(cluster: Cluster) -> None:
    with pytest.raises(dpool.errors.WorkerCrashed, match="SIGKILL"):
        dpool.get(crash.remote(), timeout=DEADLINE_S)
    with pytest.raises(KeyError, match="over there"):
        dpool.get(fail.remote(), timeout=DEADLINE_S)
    assert dpool.get(with_lamp.remote(), timeout=DEADLINE_S) == "lit"


@dpool.remote
def family() -> list[str]:
    lit: list[str] = dpool.get([with_lamp.remote() for _ in range(3)])
    return lit


def test_nested_tasks(cluster: Cluster) -> None:
    assert dpool.get([family.remote() for _ in range(4)], timeout=DEADLINE_S) == [["lit"] * 3] * 4


@dpool.remote(resources={"lamp": 1}, max_retries=0)
def hang(path: str) -> None:
    open(path, "w").close()
    wait_until(lambda: False, 1000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_other_machine_goes(cluster: Cluster, tmp_path: Any, number: int) -> None:
    lost = hang.remote(str(tmp_path / "began"))
    wait_until(lambda: (tmp_path / "began").exists(), DEADLINE_S)
    cluster.stop(cluster.members[1], number)
    with pytest.raises(dpool.errors.NodeLost, match="the link to"):
        dpool.get(lost, timeout=DEADLINE_S)
    assert len(dpool.get([meet.remote(str(tmp_path), 1, 2)], timeout=DEADLINE_S)) == 1, "this machine goes on"


def test_cancelled_over_there(cluster: Cluster, tmp_path: Any) -> None:
    running = hang.remote(str(tmp_path / "began"))
    wait_until(lambda: (tmp_path / "began").exists(), DEADLINE_S)
    dpool.cancel(running)
    with pytest.raises(CancelledError):
        dpool.get(running, timeout=DEADLINE_S)
    assert dpool.get(with_lamp.remote(), timeout=DEADLINE_S) == "lit"


def test_a_driver_that_turns_to_a_node_of_its_own(cluster: Cluster) -> None:
    assert dpool.get(with_lamp.remote(), timeout=DEADLINE_S) == "lit"
    dpool.shutdown()
    driver.configure(address="")
    assert os.path.isdir(cluster.members[0].session), "the machine's, which goes on"
    driver.configure(address=cluster.members[0].address)
    assert dpool.get(with_lamp.remote(), timeout=DEADLINE_S) == "lit"
