"""A pytest plugin: joblib's own tests, with dpool's backend where they ask for joblib's process pool.

    python -m pytest -p compat_tests.joblib_suite --pyargs joblib.test.test_parallel

`test_joblib.py` runs that. The backend takes the name "loky", which is also joblib's default.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import joblib
import joblib.testing
import pytest

from dpool.joblib import DpoolBackend

_CLASS = "asserts that the class of the backend is LokyBackend"
_MAPPED = "expects joblib's temporary folder and numpy.memmap in the worker; dpool passes arrays in shared memory"
EXCLUDED = {
    "test_nested_parallel_warnings[[]*loky-*-*]": "expects joblib's warnings that its process pools cannot be nested "
    "below threads or daemons; dpool's can",
    "test_nested_parallel_warnings[[]*-loky-*]": "the same",
    "test_error_capture[[]multiprocessing]": "joblib's own pool on multiprocessing, where dpool has no part: when it "
    "is terminated it may wait for ever for the lock of a queue that a worker it has killed had",
    "test_error_capture[[]loky]": "reads `_workers`, a private attribute of LokyBackend",
    "test_backend_context_manager[[]parallel_*-loky]": _CLASS,
    "test_nested_backend_context_manager[[]parallel_*-loky]": _CLASS,
    "test_backend_hinting_and_constraints[[]*]": _CLASS,
    "test_nested_parallelism_limit[[]parallel_*-loky]": _CLASS + ", and that of nested calls ThreadingBackend",
    "test_auto_memmap_on_arrays_from_generator[[]loky]": _MAPPED,
    "test_memmapping_leaks[[]loky]": _MAPPED,
    "test_multiple_generator_call_separated_gc[[]*-loky-True]": "expects that dropping one generator ends the tasks "
    "of another one, which shares the workers; with dpool only its own end",
}
"""Pattern of names → reason."""
_left_out = pytest.StashKey[list[str]]()


PATIENCE = 10
"""So many times as long as joblib's tests wait for a script (ten seconds), since other runs go on beside this one."""


def _patient(check: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(check)
    def run(command: list[str], timeout: float | None = 5, **more: Any) -> None:
        check(command, timeout=None if timeout is None else PATIENCE * timeout, **more)

    return run


def pytest_configure(config: pytest.Config) -> None:
    joblib.testing.check_subprocess_call = _patient(joblib.testing.check_subprocess_call)
    joblib.register_parallel_backend("loky", DpoolBackend)
    joblib.parallel.BACKENDS.pop("dpool")  # one name is enough: every test runs once


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if any(fnmatchcase(item.name, pattern) for pattern in EXCLUDED)]
    config.stash[_left_out] = [item.name for item in left_out]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    names = config.stash.get(_left_out, [])
    for pattern, reason in EXCLUDED.items():
        count = sum(fnmatchcase(name, pattern) for name in names)
        terminalreporter.write_line(f"left out: {count} × {pattern}: {reason}")
