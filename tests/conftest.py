"""Shared by every test: the leak check, and the marks that skip what this machine cannot do, with the reason.

The leak check runs around each test. The test run has a temporary directory of its own (TMPDIR) and marks the
environment (`helpers.MARK`), so that what it started is told from what else runs on the machine. After each test,
nothing may be there that was not there before: no process, session directory, file descriptor or `dpool…` thread.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.executor.support import Gate
from tests.helpers import MARK, REPOSITORY, Process, belongs_to, descendants, heed_ctrl_c, kill, processes, wait_until

SETTLE_S = float(os.environ.get("DPOOL_TEST_SETTLE_S", "10"))
"""How long what a test closed may take to be gone."""
_original: dict[str, str | None] = {}
_reapers: list[subprocess.Popen[bytes]] = []
"""The process that ends what this run started, should the run be killed."""


# --- The test run ---


def pytest_configure(config: pytest.Config) -> None:
    """A temporary directory and a mark for this run; and nodes do not linger, or the next test would find them."""
    heed_ctrl_c()
    outside = tempfile.gettempdir()
    if hasattr(config, "workerinput"):  # one of several processes of a run, which has made a directory already
        outside = os.environ["PYTEST_DEBUG_TEMPROOT"]
    directory = tempfile.mkdtemp(prefix="dt-", dir=outside)  # short: a Unix socket's path has 107 bytes
    mark = f"{os.environ.get(MARK, '')}:{uuid.uuid4().hex}"
    _reapers.append(
        subprocess.Popen(
            [sys.executable, "-m", "tests.reaper", mark, directory],
            stdin=subprocess.PIPE,
            cwd=REPOSITORY,
            start_new_session=True,
        )
    )
    settings = {
        "TMPDIR": directory,
        "PYTEST_DEBUG_TEMPROOT": os.environ.get("PYTEST_DEBUG_TEMPROOT", outside),
        MARK: mark,
        "DPOOL_LINGER_S": "0",
    }
    for name, value in settings.items():
        _original[name] = os.environ.get(name)
        os.environ[name] = value
    tempfile.tempdir = None


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _original:
        return
    shutil.rmtree(os.environ["TMPDIR"])
    for name, value in _original.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    _original.clear()
    tempfile.tempdir = None
    _reapers.pop().communicate(timeout=20)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Files by which tasks and the test wait for each other."""
    directory = tmp_path / "gate"
    directory.mkdir()
    return Gate(directory)


# --- What this machine cannot do ---


def missing(name: str) -> bool:
    """Whether a program, or a module spelled `module:NAME`, is not there."""
    if name.startswith("module:"):
        return importlib.util.find_spec(name.removeprefix("module:")) is None
    return shutil.which(name) is None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")
    wanted = [name for marker in item.iter_markers("needs") for name in marker.args]
    if absent := sorted(filter(missing, wanted)):
        pytest.skip(f"needs {', '.join(absent)}")


# --- Leaks ---


class Traces(NamedTuple):
    """What this process, and what it started, holds at one moment."""

    processes: frozenset[tuple[int, int]]
    """(pid, start): one process for ever."""
    directories: frozenset[str]
    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[int]

    def since(self, before: Traces) -> list[str]:
        """What is there now and was not before, a line each."""
        new = self.processes - before.processes
        lines = [f"process {one}" for one in processes() if (one.pid, one.start) in new]
        lines += [f"directory {name}" for name in sorted(self.directories - before.directories)]
        lines += [f"file descriptor {fd}: {target}" for fd, target in sorted(self.descriptors - before.descriptors)]
        new_threads = self.threads - before.threads
        lines += [f"thread {one.name}" for one in threading.enumerate() if one.ident in new_threads]
        return lines


def traces() -> Traces:
    helper_pids, helper_fds = standard_library_helpers()
    return Traces(
        frozenset((one.pid, one.start) for one in ours() if one.pid not in helper_pids),
        frozenset(name for name in os.listdir(os.environ["TMPDIR"]) if name.startswith("dpool-")),
        frozenset(one for one in descriptors() if one[0] not in helper_fds),
        frozenset(one.ident for one in threading.enumerate() if one.name.startswith("dpool") and one.ident),
    )


def ours() -> list[Process]:
    """The processes that this test run started: its descendants, and those that lost their parent."""
    everything = list(processes())
    mark, directory, me = os.environ[MARK], os.environ["TMPDIR"], os.getpid()
    found = {one.pid: one for one in descendants(me, everything)}
    found.update((one.pid, one) for one in everything if one.pid != me and belongs_to(one.pid, mark, directory))
    return list(found.values())


def descriptors() -> Iterator[tuple[int, str]]:
    """The open file descriptors of this process and what they lead to."""
    for name in os.listdir("/proc/self/fd"):
        try:
            yield int(name), os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the directory


def standard_library_helpers() -> tuple[set[int], set[int]]:
    """Pids and descriptors of the processes that multiprocessing and loky keep until the interpreter ends."""
    pids: set[int] = set()
    fds: set[int] = set()
    for module, name, pid_name, fd_names in (
        ("multiprocessing.resource_tracker", "_resource_tracker", "_pid", ("_fd",)),
        ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid", ("_forkserver_alive_fd",)),
        ("loky.backend.resource_tracker", "_resource_tracker", "_pid", ("_fd",)),
    ):
        helper = getattr(sys.modules.get(module), name, None)
        pids.add(getattr(helper, pid_name, None) or 0)
        fds.update(fd for fd_name in fd_names if (fd := getattr(helper, fd_name, None)) is not None)
    return pids, fds


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that leaves something behind, names it, and ends its processes: the next test is not to blame."""
    before = traces()
    yield
    if request.node.get_closest_marker("leaks"):
        return
    if not traces().since(before):
        return
    gc.collect()  # what only a cycle holds is closed by its finalizer, and that warns where it should
    try:
        wait_until(lambda: not traces().since(before), SETTLE_S)
    except AssertionError:
        left = traces().since(before)
        spared = standard_library_helpers()[0]
        kill([one for one in ours() if (one.pid, one.start) not in before.processes and one.pid not in spared])
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def session_directories() -> Path:
    """The directory in which session directories are made during this test run."""
    return Path(os.environ["TMPDIR"])
