"""How pytest runs the suite: which executor, what is left out, and that no test leaves a thread or a zombie behind."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compat_tests import exclusions, pool_suite, substitute, suite

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = sys.version_info[:2]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("compat")
    executor = os.environ.get(substitute.EXECUTOR_VARIABLE, substitute.DEFAULT_EXECUTOR)
    future = os.environ.get(substitute.FUTURE_VARIABLE, substitute.DEFAULT_FUTURE)
    group.addoption("--executor", default=executor, metavar="MODULE:CLASS", help="what to test (default %(default)s)")
    group.addoption("--future", default=future, metavar="MODULE:CLASS", help="its Future (default %(default)s)")
    pool = os.environ.get(substitute.POOL_VARIABLE, substitute.DEFAULT_POOL)
    group.addoption("--pool", default=pool, metavar="MODULE:CLASS", help="what to test (default %(default)s)")
    group.addoption("--suite", default=os.environ.get(suite.SUITE_VARIABLE), metavar="DIR", help="a `test` package")
    group.addoption("--strict-executor", action="store_true", help="give strict=True in every test")


def pytest_configure(config: pytest.Config) -> None:
    os.environ[substitute.EXECUTOR_VARIABLE] = config.getoption("executor")
    os.environ[substitute.FUTURE_VARIABLE] = config.getoption("future")
    os.environ[substitute.POOL_VARIABLE] = config.getoption("pool")
    if config.getoption("suite"):
        os.environ[suite.SUITE_VARIABLE] = config.getoption("suite")
        scratch = tempfile.mkdtemp(prefix="compat-suite-")
        config.add_cleanup(lambda: shutil.rmtree(scratch))
        suite.use_suite(Path(config.getoption("suite")), Path(scratch))


def _short_id(item: pytest.Item) -> str:
    return "::".join(item.nodeid.split("::")[-2:])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if substitute.is_standard(substitute.base()) or pool_suite.is_standard():
        return
    left_out = [item for item in items if exclusions.find(exclusions.EXCLUDED, _short_id(item), VERSION)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    config.stash[LEFT_OUT] = [_short_id(item) for item in left_out]


LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for test in config.stash.get(LEFT_OUT, []):
        row = exclusions.find(exclusions.EXCLUDED, test, VERSION)
        assert row is not None
        terminalreporter.write_line(f"left out: {test}: {row.reason}")


@pytest.fixture(autouse=True)
def strict_where_asked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give `strict=True` to the executors of the tests in `exclusions.STRICT`."""
    everywhere = request.config.getoption("strict_executor")
    asked = exclusions.find(exclusions.STRICT, _short_id(request.node), VERSION) is not None
    if not substitute.is_standard(substitute.base()) and (asked or everywhere):
        substitute.process_pool_executor().always = {"strict": True}
    yield
    substitute.process_pool_executor().always = {}


@pytest.fixture(autouse=True)
def environment_kept() -> Iterator[None]:
    """Fail a test that CPython's own checks (dangling threads, zombies) would report as "environment altered"."""
    from test import support  # type: ignore[import-not-found,unused-ignore] # after --suite has chosen which `test` package

    support.environment_altered = False
    yield
    assert not support.environment_altered, "a thread or a zombie was left behind (see the captured stderr)"
