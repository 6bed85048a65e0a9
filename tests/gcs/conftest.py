"""One embedded server for the tests that only need one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpool._gcs.server import EmbeddedServer
from tests.gcs.support import ADMIN, no_server


@pytest.fixture(scope="session", autouse=True)
def server_of_the_run() -> Iterator[EmbeddedServer | None]:
    """A server for the whole run, there before the leak check of the first test looks; None if there is no binary."""
    if no_server():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="gcs-") as directory:
        server = EmbeddedServer(f"{directory}/server", extra_config=[ADMIN])
        server.start(f"{directory}/server.log")
        yield server
        server.stop()


@pytest.fixture
def shared_server(server_of_the_run: EmbeddedServer | None) -> EmbeddedServer:
    """The run's server; tests use sessions of their own on it."""
    if server_of_the_run is None:
        pytest.skip(no_server())
    return server_of_the_run


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="g-") as directory:
        yield Path(directory)
