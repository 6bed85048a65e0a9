"""The harness itself: dpool really stands in the tests, and the tables name tests that exist."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
import unittest

import pytest
from test.support import script_helper  # type: ignore[import-not-found,unused-ignore]

from compat_tests import exclusions, pool_suite, substitute, suite, sync_suite

VERSION = sys.version_info[:2]
CLASSES = suite.process_pool_classes(suite.import_suite())
POOLS = pool_suite.pool_classes()
SYNC = sync_suite.sync_classes()


def test_every_process_pool_class_uses_the_substitute() -> None:
    used = {case.executor_type for case in CLASSES.values() if hasattr(case, "executor_type")}
    assert len(used) == 1
    assert all(issubclass(executor, substitute.base()) for executor in used)
    assert concurrent.futures.ProcessPoolExecutor is substitute.process_pool_executor()


def test_no_class_of_the_suite_is_missed() -> None:
    kinds = ["ProcessPoolExecutor", "ProcessPoolShutdown", "ExecutorDeadlock"]
    kinds += ["Wait", "AsCompleted", "Initializer", "FailingInitializer"]
    expected = {f"ProcessPool{method}{kind}Test" for method in ("Fork", "Spawn", "Forkserver") for kind in kinds}
    assert {name.replace("Tests", "Test") for name in CLASSES} >= expected
    assert not [name for name in CLASSES if name.startswith("ThreadPool")]
    assert len(suite.test_ids(CLASSES)) > 150


@pytest.mark.parametrize("row", [*exclusions.EXCLUDED, *exclusions.STRICT], ids=lambda row: row.pattern)
def test_every_row_names_a_test(row: exclusions.Row) -> None:
    everywhere = row._replace(since=VERSION, before=None)
    matched = [
        test
        for test in suite.test_ids(CLASSES) | suite.test_ids(POOLS) | suite.test_ids(SYNC)
        if exclusions.find((everywhere,), test, VERSION)
    ]
    assert bool(matched) == row.holds(VERSION), matched


def test_scripts_import_the_substitute() -> None:
    run = suite._with_substitute(script_helper.assert_python_ok)
    script = "if 1:\n    " + suite.IMPORT_LINE + "\n    print(ProcessPoolExecutor.__mro__)"
    _rc, out, _err = run("-c", script)
    assert substitute.base().__qualname__ in out.decode()
    assert "compat_tests.substitute" in out.decode()


def test_a_script_of_another_form_is_refused() -> None:
    run = suite._with_substitute(script_helper.assert_python_ok)
    with pytest.raises(AssertionError, match="unknown form"):
        run("-c", "import concurrent.futures as f; f.ProcessPoolExecutor")


def test_the_tests_future_is_the_substitute() -> None:
    chosen = substitute.future()
    future_tests = CLASSES["FutureTests"]
    assert sys.modules[future_tests.__module__].Future is chosen


def test_a_failing_test_of_the_suite_fails() -> None:
    class Broken(substitute.base()):  # type: ignore[misc]
        def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            return super().submit(pow, 1, 1)

    case = CLASSES["ProcessPoolSpawnProcessPoolExecutorTest"]
    broken = type(case.__name__, (case,), {"executor_type": Broken})
    result = unittest.TestResult()
    broken("test_submit").run(result)
    assert len(result.failures) == 1


# --- Pool ---


def test_the_tests_of_pool_use_the_substitute() -> None:
    module = pool_suite.import_suite()
    assert module.multiprocessing.Pool is substitute.pool()
    assert module.multiprocessing.TimeoutError is multiprocessing.TimeoutError
    assert POOLS["WithProcessesTestPool"].Pool is substitute.pool()  # type: ignore[attr-defined]


def test_no_test_of_pool_is_missed() -> None:
    found = suite.test_ids(POOLS)
    module = pool_suite.import_suite()
    for name in pool_suite.KINDS:
        tests = [test for test in dir(getattr(module, name)) if test.startswith("test_")]
        assert {f"WithProcesses{name[1:]}::{test}" for test in tests} <= found
    assert {f"{name}::{test}" for name, test in pool_suite.ALONE.items()} <= found
    assert len(found) > 30


def test_the_script_of_a_test_of_pool_imports_the_substitute() -> None:
    run = pool_suite._with_substitute(script_helper.assert_python_ok)
    _rc, out, _err = run("-c", pool_suite.IMPORT_LINE + "\nprint(Pool.__module__)")
    assert out.decode().strip() == substitute.pool().__module__
    with pytest.raises(AssertionError, match="unknown form"):
        run("-c", "import multiprocessing.pool")


def test_a_failing_test_of_pool_fails() -> None:
    class Broken(substitute.pool()):  # type: ignore[misc]
        def apply(self, func, args=(), kwds={}):  # type: ignore[no-untyped-def]  # noqa: B006
            return None

    case = POOLS["WithProcessesTestPool"]
    broken = type(case.__name__, (case,), {"Pool": staticmethod(Broken)})
    broken.setUpClass()
    try:
        result = unittest.TestResult()
        broken("test_apply").run(result)
    finally:
        broken.tearDownClass()
    assert len(result.failures) == 1


# --- Locks, queues, … ---


def test_the_tests_of_locks_and_queues_use_dpool() -> None:
    module = sync_suite.import_suite()
    assert module.multiprocessing.__name__ == "dpool.multiprocessing"
    for name in ("Lock", "Queue", "Condition", "Value", "SimpleQueue"):
        owner = getattr(module.ProcessesMixin, name, None) or getattr(module.multiprocessing, name)
        assert type(owner("i", 1) if name == "Value" else owner()).__module__.startswith("dpool."), name
    assert module is not pool_suite.import_suite()
    assert pool_suite.import_suite().ProcessesMixin.Lock.__module__ != "dpool.multiprocessing"


def test_no_test_of_locks_and_queues_is_missed() -> None:
    found = suite.test_ids(SYNC)
    module = sync_suite.import_suite()
    for name in sync_suite.KINDS:
        tests = [test for test in dir(getattr(module, name)) if test.startswith("test_")]
        assert {f"WithProcesses{name[1:]}::{test}" for test in tests} <= found
    assert len(found) > 80


def test_a_failing_test_of_locks_fails() -> None:
    class Broken:
        def acquire(self, block=True, timeout=None):  # type: ignore[no-untyped-def]
            return None

    case = SYNC["WithProcessesTestLock"]
    broken = type(case.__name__, (case,), {"Lock": staticmethod(Broken)})
    result = unittest.TestResult()
    broken("test_lock").run(result)
    assert len(result.failures) == 1
