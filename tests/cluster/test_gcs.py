"""One control store for all machines: the head's own, through the gateways, or a given one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import dpool
from dpool._core import driver, gateway_start
from dpool._core import messages as m
from dpool._core.runtime import open_runtime
from dpool._gcs.redis_store import RedisStore, connect_url
from dpool._gcs.server import EmbeddedServer
from dpool.errors import StartupError
from tests.cluster.test_loopback import DEADLINE_S, Cluster
from tests.gcs.support import no_server
from tests.helpers import wait_until

pytestmark = pytest.mark.skipif(bool(no_server()), reason=no_server() or "there is one")


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """None yet; `add` starts one. Programs join the first."""
    made = Cluster()
    monkeypatch.setattr(Cluster, "use", use, raising=False)
    try:
        yield made
    finally:
        dpool.shutdown()
        driver.configure(address="")
        for member in list(made.members):
            made.stop(member)


def use(self: Cluster, member: gateway_start.Started) -> None:
    """Programs that begin now run on this machine."""
    dpool.shutdown()
    driver.configure(address=member.address)


class Look:
    """The tables of a cluster, through a machine's own way to them."""

    def __init__(self, head: gateway_start.Started, through: gateway_start.Started) -> None:
        path = os.path.join(through.session, "store.sock")
        self.store = connect_url(os.path.basename(head.session), f"unix://{path}", 5.0)

    def __enter__(self) -> RedisStore:
        return self.store

    def __exit__(self, *error: object) -> None:
        self.store.close()


def hosts(store: RedisStore) -> set[str]:
    return {row.address for row in store.nodes().values()}


@dpool.remote(resources={"lamp": 1})
def lit() -> int:
    return os.getppid()


def test_every_machine_uses_the_heads(machines: Any) -> None:
    head, other = machines.add(), machines.add(resources=(("lamp", 1.0),))
    with Look(head, other) as store:
        wait_until(lambda: hosts(store) == {head.address, other.address}, DEADLINE_S, "both are registered")
        rows = {row.address: row for row in store.nodes().values()}
        assert dict(rows[other.address].resources)["lamp"] == 1
        assert len({row.epoch for row in rows.values()}) == 2
        wait_until(lambda: set(store.loads()) == set(store.nodes()), DEADLINE_S, "both have sent a heartbeat")
        machines.use(head)
        assert dpool.get(lit.remote(), timeout=DEADLINE_S)
        jobs = store.jobs()
        assert [row.node_id for row in jobs.values()] == [rows[head.address].node_id]
        dpool.shutdown()
        wait_until(lambda: not store.jobs(), DEADLINE_S, "the program's rows go with it")
    machines.stop(other)
    third = machines.add()
    with Look(head, third) as store:
        wait_until(lambda: hosts(store) == {head.address, third.address}, DEADLINE_S, "one left, and one came")
        assert store.gone_nodes() == {}, "who leaves is not lost"


def test_a_lost_machine_is_declared_so_once(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPOOL_NODE_TIMEOUT_S", "0.5")
    head, other, third = machines.add(), machines.add(), machines.add()
    with Look(head, third) as store:
        wait_until(lambda: len(hosts(store)) == 3, DEADLINE_S)
        name = next(row.node_id for row in store.nodes().values() if row.address == other.address)
        machines.stop(other, signal.SIGKILL)
        wait_until(lambda: name in store.gone_nodes(), DEADLINE_S, "it is declared lost")
        gone = store.gone_nodes()[name]
        assert "no heartbeat" in gone.why
        assert hosts(store) == {head.address, third.address}
        tellers = [node for node in store.nodes() for one in store.events(node) if one.name == "node.lost"]
        wait_until(lambda: lost_events(store) == [gone.by], DEADLINE_S, "one says so")
        assert set(tellers) <= {gone.by}


def lost_events(store: RedisStore) -> list[bytes]:
    return [node for node in store.nodes() for one in store.events(node) if one.name == "node.lost"]


def servers(session: str) -> list[int]:
    """The Redis of a machine."""
    return [one.pid for one in psutil.process_iter() if in_directory(one, f"{session}/gcs")]


def in_directory(process: psutil.Process, path: str) -> bool:
    try:
        return process.cwd() == path
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def test_tasks_go_on_without_it_and_it_comes_back(machines: Any) -> None:
    head, other = machines.add(), machines.add(resources=(("lamp", 1.0),))
    with Look(head, other) as store:
        wait_until(lambda: len(hosts(store)) == 2, DEADLINE_S)
    machines.use(head)
    assert dpool.get(lit.remote(), timeout=DEADLINE_S)
    (pid,) = servers(head.session)
    os.kill(pid, signal.SIGKILL)
    assert dpool.get([lit.remote() for _ in range(20)], timeout=DEADLINE_S)
    with Look(head, other) as store:
        wait_until(lambda: works(lambda: len(hosts(store)) == 2), DEADLINE_S, "it is started again and filled")


def works(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except dpool.errors.ControlStoreError:
        return False


def test_a_given_server(machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedServer(str(tmp_path / "given"))
    server.start(str(tmp_path / "log"))
    try:
        url = f"unix://{server.user}:{server.password}@{server.socket_path}"
        monkeypatch.setenv("DPOOL_REDIS_URL", url)
        head = machines.add()
        monkeypatch.delenv("DPOOL_REDIS_URL")
        other = machines.add(resources=(("lamp", 1.0),))
        store = connect_url(os.path.basename(head.session), url, 5.0)
        wait_until(lambda: hosts(store) == {head.address, other.address}, DEADLINE_S, "both use it")
        assert not servers(head.session), "the head starts none of its own"
        machines.use(other)
        assert dpool.get(lit.remote(), timeout=DEADLINE_S)
        dpool.shutdown()
        for member in (other, head):
            machines.stop(member)
        assert store.nodes() == {}, "the last one removes everything"
        store.close()
        for member in (head, other):
            assert server.password not in member.address
    finally:
        server.stop()


def test_a_cluster_without_one(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPOOL_GCS", "off")
    head = machines.add()
    monkeypatch.delenv("DPOOL_GCS")
    other = machines.add(resources=(("lamp", 1.0),))
    machines.use(head)
    assert dpool.get(lit.remote(), timeout=DEADLINE_S)
    assert [servers(member.session) for member in (head, other)] == [[], []]


def test_a_machine_joins_when_the_head_has_gone(machines: Any) -> None:
    """The others can say where the control store is, or that there is none."""
    machines.add(gcs="off")
    other = machines.add()
    machines.stop(machines.members[0])
    machines.use(other)
    waits = lit.remote()
    machines.add(resources=(("lamp", 1.0),))
    assert dpool.get(waits, timeout=DEADLINE_S)


def test_no_machine_joins_when_the_store_has_gone_with_the_head(machines: Any) -> None:
    machines.add()
    machines.add()
    machines.stop(machines.members[0])
    with pytest.raises(StartupError, match=r"answers, but the head of its cluster does not.*start a new head"):
        machines.add(start_timeout_s=6.0)


@dpool.remote(resources={"lamp": 1})
def total(array: Any) -> float:
    return float(array.sum())


def test_where_objects_are(machines: Any) -> None:
    head, other = machines.add(), machines.add(resources=(("lamp", 1.0),))
    machines.use(head)
    with Look(head, other) as store:
        wait_until(lambda: len(hosts(store)) == 2, DEADLINE_S)
        home, there = (next(r.node_id for r in store.nodes().values() if r.address == m.address) for m in (head, other))
        ref = dpool.put(np.ones(100_000))
        assert ref._handle is not None
        obj = ref._handle.obj
        wait_until(lambda: store.object(obj) is not None, DEADLINE_S, "its home says where it is")
        assert dpool.get(total.remote(ref), timeout=DEADLINE_S) == 100_000
        second = dpool.put([ref])  # so that the copy over there is held
        kept = keep.options(resources={"lamp": 0.01}).remote(second)
        assert dpool.get(kept.total.remote(), timeout=DEADLINE_S) == 100_000
        wait_until(lambda: copies(store, obj) == {home, there}, DEADLINE_S, "so does the other machine")
        assert store.object(obj).size_bytes >= 800_000  # type: ignore[union-attr]
        del kept, ref, second
        wait_until(lambda: store.object(obj) is None, DEADLINE_S, "it is gone")


@dpool.remote(resources={"lamp": 1})
def large() -> Any:
    return np.ones(100_000)


def test_where_objects_of_a_machine_are_that_has_left(machines: Any) -> None:
    head, other, third = machines.add(), machines.add(resources=(("lamp", 1.0),)), machines.add()
    machines.use(head)
    with Look(head, third) as store:
        wait_until(lambda: len(hosts(store)) == 3, DEADLINE_S)
        there = next(row.node_id for row in store.nodes().values() if row.address == other.address)
        ref = large.remote()
        assert dpool.wait([ref], timeout=DEADLINE_S, fetch_local=False)[0]
        obj = ref._result.place[0]
        wait_until(lambda: copies(store, obj) == {there}, DEADLINE_S, "its home says where it is")
        runtime: Any = open_runtime(None)
        runtime.tell(m.Drain(there))
        machines.members.remove(other)
        wait_until(lambda: not os.path.exists(other.session), DEADLINE_S, "it has left")
        wait_until(lambda: len(hosts(store)) == 2, DEADLINE_S, "what it had said is gone")
        wait_until(lambda: copies(store, obj) - {there}, DEADLINE_S, "its heir says so, too")
        assert dpool.get(ref, timeout=DEADLINE_S).sum() == 100_000
        del ref
        wait_until(lambda: store.object(obj) is None, DEADLINE_S, "it is gone")


def copies(store: RedisStore, obj: bytes) -> set[bytes]:
    row = store.object(obj)
    return set(row.copies) if row is not None else set()


class Keep:
    def __init__(self, refs: Any) -> None:
        self.refs = refs

    def total(self) -> float:
        self.value = dpool.get(self.refs[0])
        return float(self.value.sum())


keep: Any = dpool.remote(Keep)
