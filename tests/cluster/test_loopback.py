"""Two machines of a cluster, as two gateways with their nodes on this one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
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


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster()
    made.add()
    made.add(resources=(("lamp", 1.0),))
    monkeypatch.setenv("DPOOL_ADDRESS", made.members[0].address)
    driver.configure(address=made.members[0].address)
    try:
        yield made
    finally:
        dpool.shutdown()
        driver.configure(address="")
        for member in list(made.members):
            made.stop(member)


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
