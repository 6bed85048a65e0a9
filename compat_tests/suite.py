"""Imports the interpreter's own `test.test_concurrent_futures` and puts dpool into it.

```
installed test modules ──import──► patched: futures.ProcessPoolExecutor, executor_type, Future, assert_python_ok
                                        │
                                        ▼
                          process_pool_classes() ──► collected by pytest from test_concurrent_futures.py
```

Nothing is copied: the modules are those of the running interpreter, or of the directory in DPOOL_COMPAT_SUITE (a `test`
package of the same version, as Debian's libpython3.11-testsuite installs it). Older interpreters have the suite as one
module, newer ones as a package.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures._base
import concurrent.futures.process
import concurrent.futures.thread
import functools
import importlib
import os
import pkgutil
import sys
import unittest
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compat_tests import substitute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

SUITE = "test.test_concurrent_futures"
SUITE_VARIABLE = "DPOOL_COMPAT_SUITE"
THREADS_ONLY = "test_thread_pool"
STAND_ALONE = ("FutureTests", "FailingInitializerResourcesTest")
MIXINS = ("ProcessPoolForkMixin", "ProcessPoolSpawnMixin", "ProcessPoolForkserverMixin")
IMPORT_LINE = "from concurrent.futures import ProcessPoolExecutor"
SUBSTITUTE_LINE = "from compat_tests.substitute import ProcessPoolExecutor"
DEADLOCK_AFTER_S = 60.0
ROOT = Path(__file__).resolve().parent.parent


def use_suite(directory: Path, scratch: Path) -> None:
    """Make `import test` find the package in `directory`, by a link in `scratch` that stands first on sys.path."""
    (scratch / "test").symlink_to(directory, target_is_directory=True)
    sys.path.insert(0, str(scratch))
    for name in [name for name in sys.modules if name == "test" or name.startswith("test.")]:
        del sys.modules[name]
    importlib.invalidate_caches()


@contextmanager
def _future_replaced(future: type) -> Iterator[None]:
    """The test modules take `Future` from concurrent.futures._base when they are imported."""
    original = concurrent.futures._base.Future
    concurrent.futures._base.Future = future  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        concurrent.futures._base.Future = original  # type: ignore[misc]


@functools.cache
def import_suite() -> list[ModuleType]:
    """The installed modules that hold process-pool tests, with dpool put in the place of ProcessPoolExecutor.

    Raises:
        ImportError: this interpreter comes without its test suite.
    """
    with _future_replaced(substitute.future()):
        top = importlib.import_module(SUITE)
        names = [m.name for m in pkgutil.iter_modules(getattr(top, "__path__", ())) if m.name.startswith("test_")]
        modules = [importlib.import_module(f"{SUITE}.{n}") for n in names if n != THREADS_ONLY] or [top]
    for module in modules:
        _patch(module)
    # The tests name it `futures.ProcessPoolExecutor`; a plain attribute takes precedence over the lazy one.
    concurrent.futures.ProcessPoolExecutor = substitute.process_pool_executor()  # type: ignore[misc]
    return modules


def _patch(module: ModuleType) -> None:
    for name in MIXINS:
        mixin = getattr(module, name, None)
        if mixin is not None:
            mixin.executor_type = _executor_type()
    if hasattr(module, "ExecutorDeadlockTest"):
        module.ExecutorDeadlockTest.TIMEOUT = DEADLOCK_AFTER_S
    if hasattr(module, "assert_python_ok"):
        module.assert_python_ok = _with_substitute(module.assert_python_ok)  # type: ignore[attr-defined]


@functools.cache
def _executor_type() -> Any:
    """What the mixins make executors with.

    CPython skips test_hang_gh83386, in which ProcessPoolExecutor hangs, by comparing executor_type with
    futures.ProcessPoolExecutor. A subclass is not equal, so the test runs for dpool.
    """
    if substitute.is_standard(substitute.base()):
        return substitute.process_pool_executor()
    return type("ProcessPoolExecutor", (substitute.process_pool_executor(),), {"__module__": substitute.__name__})


def _with_substitute(assert_python_ok: Callable[..., Any]) -> Callable[..., Any]:
    """Let the scripts that tests run as `python -I -c SCRIPT` import the substitute instead of ProcessPoolExecutor.

    The script of test_hang_gh83386 uses the name `multiprocessing` without importing it, so it is given that too.
    """
    prelude = f"import sys; sys.path[:0] = {[str(ROOT), *_own_paths()]!r}\n"

    @functools.wraps(assert_python_ok)
    def run(*args: str, **env: str) -> Any:
        *options, script = args
        if options != ["-c"] or IMPORT_LINE not in script:
            raise AssertionError(f"a script of an unknown form, ProcessPoolExecutor cannot be replaced in it: {args!r}")
        names = "import multiprocessing\n" if " multiprocessing." in script else ""
        return assert_python_ok("-c", prelude + names + script.replace(IMPORT_LINE, SUBSTITUTE_LINE), **env)

    return run


def _own_paths() -> list[str]:
    """Where the `test` package was found, if not in the interpreter's own library."""
    return [str(Path(sys.modules["test"].__path__[0]).parent)] if os.environ.get(SUITE_VARIABLE) else []


def process_pool_classes(modules: list[ModuleType]) -> dict[str, type[unittest.TestCase]]:
    """The test classes that use a process pool, and those of Future, by name."""
    classes: dict[str, type[unittest.TestCase]] = {}
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, unittest.TestCase) and _wanted(value):
                classes[name] = value
    return classes


def _wanted(case: type) -> bool:
    return case.__name__ in STAND_ALONE or any(base.__name__ in MIXINS for base in case.__mro__)


def test_ids(classes: dict[str, type[unittest.TestCase]]) -> set[str]:
    """Every `Class::test`."""
    loader = unittest.TestLoader()
    return {f"{name}::{test}" for name, case in classes.items() for test in loader.getTestCaseNames(case)}
