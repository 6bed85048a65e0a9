"""The control store (Redis) dies, hangs, or cannot even start: work goes on, one warning says why."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from pathlib import Path

import pytest

import dpool
from tests.faults import tasks
from tests.faults.support import DEADLINE_S, GONE_S, Ledger, servers, sigkill
from tests.gcs.support import no_server
from tests.helpers import Script, is_running, run_script, wait_until

pytestmark = pytest.mark.skipif(bool(no_server()), reason=no_server() or "there is a server")


def test_the_store_is_killed(tmp_path: Path) -> None:
    """One warning, naming cause and log file; it is started again; the work does not notice."""
    ledger = Ledger(tmp_path)
    gate = tmp_path / "gate"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with dpool.Executor(2) as executor:
            ledger.submit(executor, "running", tasks.wait_for_file, str(gate), "done")
            first = wait_until(servers, DEADLINE_S, "the store has been started")
            for x in range(100):
                ledger.submit(executor, x, tasks.double, x)
            for pid in first:
                sigkill(pid)
            for x in range(100, 200):
                ledger.submit(executor, x, tasks.double, x)
            wait_until(lambda: all(ledger.futures[x].done() for x in range(200)), DEADLINE_S)
            second = wait_until(lambda: [pid for pid in servers() if pid not in first], DEADLINE_S, "it is back")
            wait_until(lambda: caught, DEADLINE_S, "the warning")
            gate.touch()
            outcome = ledger.settle()
            assert outcome.pop("running") == "done"
            assert outcome == {x: 2 * x for x in range(200)}
            assert set(ledger.runs().values()) == {1}
    wait_until(lambda: not any(map(is_running, second)), GONE_S)
    ours = [one for one in caught if "control store" in str(one.message)]
    assert len(ours) == len(caught) == 1
    text = str(ours[0].message)
    assert ours[0].category is RuntimeWarning
    assert "was killed by signal 9" in text, text
    assert re.search(r"/\S+\.log", text), text


def test_a_store_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether it is missed before it is gone is another question
        with dpool.Executor(2) as executor:
            executor.submit(tasks.pid).result(DEADLINE_S)
            stopped = wait_until(servers, DEADLINE_S, "the store has been started")
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            for x in range(200):
                ledger.submit(executor, x, tasks.spin, 0.001)
            ledger.settle()
    wait_until(lambda: not any(map(is_running, stopped)), GONE_S, "the stopped store is gone")


WORK = """
import sys, warnings
import dpool
from tests.faults import tasks
from tests.helpers import wait_until

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with dpool.Executor(2) as executor:
        assert list(executor.map(tasks.double, range(500))) == [2 * x for x in range(500)]
        wait_until(lambda: caught, 30, "the warning")
        assert list(executor.map(tasks.double, range(500))) == [2 * x for x in range(500)]
for one in caught:
    assert one.category is RuntimeWarning, one
    print(one.message)
"""


def test_a_store_that_cannot_start_is_one_warning(tmp_path: Path) -> None:
    for name in ("redis-server", "valkey-server"):
        fake = tmp_path / name
        fake.write_text("#!/bin/sh\necho 'this server is broken on purpose'\nexit 3\n")
        fake.chmod(0o755)
    result = run_script(WORK, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}).check()
    assert result.stdout.count("\n") == 1, result.stdout
    assert "control store" in result.stdout
    assert "broken on purpose" in result.stdout or "exit" in result.stdout
    assert re.search(r"/\S+\.log", result.stdout), result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("url", ["unix:///nowhere/redis.sock", "redis://127.0.0.1:1/0"])
def test_a_redis_that_is_not_there_is_one_warning(url: str) -> None:
    result = run_script(WORK, env={"DPOOL_REDIS_URL": url}).check()
    assert result.stdout.count("\n") == 1, result.stdout
    assert "control store" in result.stdout
    assert result.stderr == ""


WARNINGS_ARE_ERRORS = """
import dpool
from tests.faults import tasks
from tests.helpers import wait_until
import sys, io

sys.stderr = copy = io.StringIO()
with dpool.Executor(2) as executor:
    assert list(executor.map(tasks.double, range(500))) == [2 * x for x in range(500)]
    wait_until(lambda: "control store" in copy.getvalue(), 30, "the warning")
    assert list(executor.map(tasks.double, range(500))) == [2 * x for x in range(500)]
    f = executor.submit(tasks.double, 4)
    wait_until(f.done, 30, "somebody reads while nobody waits")
sys.stderr = sys.__stderr__
assert "Traceback" not in copy.getvalue(), copy.getvalue()
"""


def test_the_warning_kills_no_thread_where_warnings_are_errors() -> None:
    nowhere = {"DPOOL_REDIS_URL": "redis://127.0.0.1:1/0"}
    run_script(WARNINGS_ARE_ERRORS, env=nowhere, python_options=("-Werror",)).check()


def test_the_store_does_not_outlive_a_node_that_is_killed(tmp_path: Path) -> None:
    text = """
import sys
import dpool
from tests.faults import tasks
from tests.faults.support import servers, by_role, sigkill, one_of_role
from tests.helpers import MARK, is_running, wait_until
with dpool.Executor(1, max_retries=3) as executor:
    executor.submit(tasks.pid).result()
    first = wait_until(servers, 30, "the store has been started")
    sigkill(one_of_role("dpool-node"))
    wait_until(lambda: not any(map(is_running, first)), 10, "the dead node's store is gone")
    assert executor.submit(tasks.double, 1).result(30) == 2
"""
    with Script(text) as script:
        script.finish().check()


if sys.platform != "linux":
    raise ImportError("these tests read /proc")
