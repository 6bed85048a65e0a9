"""Session directories: private, removed by whoever is left, never through somebody else's link."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from dpool._core import launch
from dpool._core.config import Config
from dpool.errors import StartupError


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A directory with a short name, for sockets; it goes with the test run's."""
    return Path(tempfile.mkdtemp(prefix="s-"))


def make_old(path: Path) -> None:
    old = time.time() - 2 * launch.STALE_S
    os.utime(path, (old, old))


def test_a_session_is_private(short: Path) -> None:
    path = launch.make_session(Config(tmpdir=str(short)))
    assert os.stat(path).st_mode & 0o777 == 0o700
    launch.check_session(path)


def test_a_directory_that_cannot_be_made_is_a_clear_error(short: Path) -> None:
    with pytest.raises(StartupError, match="DPOOL_TMPDIR"):
        launch.make_session(Config(tmpdir=str(short / "missing")))


def test_a_name_too_long_for_sockets_is_a_clear_error(short: Path) -> None:
    long = short / ("x" * 100)
    long.mkdir()
    with pytest.raises(StartupError, match=r"too long.*DPOOL_TMPDIR.*at most \d+ bytes"):
        launch.make_session(Config(tmpdir=str(long)))


def test_an_open_directory_or_a_link_is_refused(tmp_path: Path, short: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    link = tmp_path / "link"
    link.symlink_to(launch.make_session(Config(tmpdir=str(short))))
    for path in (open_to_all, link):
        with pytest.raises(PermissionError, match="only its owner"):
            launch.check_session(str(path))


def test_a_planted_log_link_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    (tmp_path / launch.NODE_LOG).symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic|loop|many"):
        launch.open_log(str(tmp_path), launch.NODE_LOG)


def test_dead_sessions_are_swept_and_live_or_young_ones_kept(short: Path) -> None:
    config = Config(tmpdir=str(short))
    dead, young, live = (Path(launch.make_session(config)) for _ in range(3))
    foreign = short / "something-else"
    foreign.mkdir()
    (dead / "worker-1.log").write_text("last words")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as crashed:
        crashed.bind(str(dead / launch.SOCKET_NAME))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(live / launch.SOCKET_NAME))
        listener.listen()
        for path in (dead, live, foreign):
            make_old(path)
        assert launch.sweep_stale(str(short), time.time()) == [str(dead)]
    assert not dead.exists()
    assert young.exists()
    assert live.exists()
    assert foreign.exists()
