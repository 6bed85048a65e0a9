"""A node dies while a worker reads from the store: what the worker would make of that is never answered."""

from __future__ import annotations

from pathlib import Path

from tests.faults.support import DEADLINE_S
from tests.helpers import is_running, run_script, wait_until

# The kernel closes a dead process's sockets before it tells its children. Here the time between is long enough: the
# "node" only has its socket gone at first, and dies when its "worker" has begun to ask.
SCRIPT = """
import os, sys
from pathlib import Path
from dpool._core import storage
from dpool._core.context import WorkerContext, here
from dpool.errors import ObjectLost
from tests.helpers import wait_until

place = Path(sys.argv[1])
if not os.fork():
    node = os.getpid()
    if not os.fork():
        here.worker = WorkerContext(1, 1, str(place / "no-session"), node, bytes(16), 1)
        here.worker_pid = os.getpid()
        (place / "begun").write_text(str(os.getpid()))
        try:
            storage.load([bytes(16), 0, 0, 0, 1])
        except ObjectLost:
            (place / "answered").touch()
        os._exit(0)
    wait_until((place / "begun").exists, 30, "the worker begins")
    os._exit(0)
os.wait()
"""


def test_a_worker_ends_with_its_node_instead_of_failing_its_task(tmp_path: Path) -> None:
    run_script(SCRIPT, str(tmp_path)).check()
    worker = int((tmp_path / "begun").read_text())
    wait_until(lambda: not is_running(worker), DEADLINE_S, "the worker has ended")
    assert not (tmp_path / "answered").exists()
