"""Lineage on its way to a real server: what lives long is written and dropped again, what dies young never is."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpool._gcs.server import EmbeddedServer
from tests.gcs.support import no_server
from tests.helpers import Script, wait_until

SCRIPT = """
import os, sys, time
import dpool

def hold(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return path

def noop():
    return None

if __name__ == "__main__":
    with dpool.Executor(2) as ex:
        tiny = [ex.submit(noop) for _ in range(5000)]
        [future.result() for future in tiny]
        held = [ex.options(name="held").submit(hold, sys.argv[1]) for _ in range(2)]
        print("submitted", flush=True)
        print([future.result() for future in held], flush=True)
        hold(sys.argv[2])
"""


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    if no_server():
        pytest.skip(no_server())
    with tempfile.TemporaryDirectory(prefix="l-") as directory:
        server = EmbeddedServer(f"{directory}/s", extra_config=["user all on nopass ~* &* +@all"])
        server.start(f"{directory}/log")
        yield server
        server.stop()


def client_of(server: EmbeddedServer) -> Any:
    import redis

    return redis.Redis(unix_socket_path=server.socket_path, username="all", password="x")


def rows(client: Any) -> dict[bytes, Any]:
    """Every key with what it holds."""
    found: dict[bytes, Any] = {}
    for key in client.scan_iter(b"*"):
        kind = client.type(key)
        found[key] = client.hgetall(key) if kind == b"hash" else client.get(key) if kind == b"string" else kind
    return found


def test_only_tasks_that_live_long_are_written_and_all_is_gone_at_the_end(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    go, end = tmp_path / "go", tmp_path / "end"
    path = tmp_path / "program.py"
    path.write_text(SCRIPT)
    client = client_of(server)
    with Script(path, str(go), str(end), env={"DPOOL_REDIS_URL": f"unix://all:x@{server.socket_path}"}) as script:

        def written() -> bool:
            return b"held" in lineage_rows(client)

        wait_until(written, 30, "the lineage of the tasks that run")
        # of the tiny ones a few may have waited for a slow worker; what was written of them is dropped again
        wait_until(lambda: b"noop" not in lineage_rows(client), 30, "nothing is kept of tasks that have ended")
        go.touch()
        wait_until(lambda: not written(), 30, "the lineage of finished tasks goes")
        end.touch()
        result = script.finish(timeout=60).check()
    assert str(go) in result.stdout
    wait_until(lambda: not client.keys(b"*:job*") or not rows(client), 10, "the job's rows go with it")
    client.close()


def lineage_rows(client: Any) -> bytes:
    """All that the lineage table holds."""
    return b"".join(repr_of(value) for key, value in rows(client).items() if b":lineage:" in key)


def repr_of(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"".join(key + b" " + item for key, item in value.items())
    return b""


def test_a_record_tells_what_ran(tmp_path: Path) -> None:
    """The record that the node is sent holds the name, the function's id and the arguments."""
    from dpool._core.future import Future
    from dpool._core.lineage import Lineage
    from dpool._core.logic.dispatch import Frame
    from dpool._core.serialize import Exporter

    told: list[Any] = []

    class Runtime:
        job = b"j" * 16
        tell = staticmethod(told.append)

    export, call = Exporter().prepare(pickle.dumps, (1, 2), {})
    future: Future[Any] = Future(None, export, call)
    lineage = Lineage(Runtime())  # type: ignore[arg-type]
    ((task, record),) = lineage._record(Frame(1, [future], 0.0, None, 1), lambda _: "name")
    label, function, inline, arguments = pickle.loads(record)
    assert (label, inline, pickle.loads(arguments)) == ("name", False, ((1, 2), {}))
    assert told[0].function == function
    assert told[0].blob == export.blob
    assert len(task) == 16
