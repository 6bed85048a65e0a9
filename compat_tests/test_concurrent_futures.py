"""The process-pool tests of the interpreter's own `test.test_concurrent_futures`, on dpool.Executor."""

from __future__ import annotations

import unittest.case
from typing import TYPE_CHECKING

import pytest

from compat_tests import suite

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = suite.import_suite()
globals().update(suite.process_pool_classes(MODULES))


@pytest.fixture(scope="module", autouse=True)
def module_set_up() -> Iterator[None]:
    """What unittest does around a module: at the end no thread is left and multiprocessing's helpers can be stopped."""
    for module in MODULES:
        module.setUpModule()
    yield
    unittest.case.doModuleCleanups()
