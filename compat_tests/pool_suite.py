"""Imports the interpreter's own `test._test_multiprocessing` and puts dpool.Pool into its tests of Pool.

```
test._test_multiprocessing ──import──► _TestPool… + ProcessesMixin, as `install_tests_in_module_dict` makes them
                                           │  their `multiprocessing` ──► a view of the module whose Pool is dpool's
                                           ▼
                                   pool_classes() ──► collected by pytest from test_multiprocessing_pool.py
```

Nothing is copied. The mixins for managers and threads are left out: they make pools of other kinds.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import multiprocessing.pool
import sys
import types
import unittest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compat_tests import substitute

if TYPE_CHECKING:
    from collections.abc import Callable

SUITE = "test._test_multiprocessing"
HOME = "compat_tests.test_multiprocessing_pool"
"""Where workers, too, find the classes."""
KINDS = ("_TestPool", "_TestPoolWorkerErrors", "_TestPoolWorkerLifetime")
ALONE = {"TestInitializers": "test_pool_initializer", "TestStdinBadfiledescriptor": "test_pool_in_process"}
"""Classes of which one test uses a Pool."""
ROOT = Path(__file__).resolve().parent.parent
IMPORT_LINE = "from multiprocessing import Pool"
SUBSTITUTE_LINE = "from dpool import Pool"


class _View(types.ModuleType):
    """The module multiprocessing with another Pool."""

    def __init__(self) -> None:
        super().__init__("multiprocessing")

    def __getattr__(self, name: str) -> Any:
        return pool_class() if name == "Pool" else getattr(multiprocessing, name)


def pool_class() -> Any:
    """The class under test: dpool's, or the standard library's own with `--pool multiprocessing:Pool`."""
    return substitute.pool()


@functools.cache
def import_suite() -> types.ModuleType:
    """The installed module, with dpool's Pool in it.

    Raises:
        ImportError: this interpreter comes without its test suite.
    """
    module: Any = importlib.import_module(SUITE)
    if not is_standard():
        module.multiprocessing = _View()
        module.ProcessesMixin.Pool = staticmethod(pool_class())
    return module  # type: ignore[no-any-return]


def is_standard() -> bool:
    """Whether the harness tests itself with the standard library's own Pool."""
    return getattr(pool_class(), "__module__", "") != "dpool.pool"


@functools.cache
def pool_classes() -> dict[str, type[unittest.TestCase]]:
    """The test classes that use a Pool of processes, by name."""
    module: Any = import_suite()
    classes: dict[str, type[unittest.TestCase]] = {}
    for name in KINDS:
        bases = (getattr(module, name), module.ProcessesMixin, unittest.TestCase)
        classes[f"WithProcesses{name[1:]}"] = type(f"WithProcesses{name[1:]}", bases, {"__module__": HOME})
    for name, only in ALONE.items():
        base = getattr(module, name)
        others = [test for test in unittest.TestLoader().getTestCaseNames(base) if test != only]
        classes[name] = type(name, (base,), {"__module__": HOME, **dict.fromkeys(others)})
    if not is_standard():
        _run_scripts_with_substitute(classes["WithProcessesTestPoolWorkerLifetime"])
    return classes


def _run_scripts_with_substitute(case: Any) -> None:
    """Let the script that a test runs as `python -I -c SCRIPT` import dpool's Pool."""
    script_helper: Any = importlib.import_module("test.support.script_helper")
    case.setUp = _around(case.setUp, script_helper, _with_substitute(script_helper.assert_python_ok))


def _around(set_up: Callable[[Any], None], script_helper: Any, run: Any) -> Callable[[Any], None]:
    def replaced(self: Any) -> None:
        original = script_helper.assert_python_ok
        script_helper.assert_python_ok = run
        self.addCleanup(setattr, script_helper, "assert_python_ok", original)
        set_up(self)

    return replaced


def _with_substitute(assert_python_ok: Callable[..., Any]) -> Callable[..., Any]:
    paths = [str(ROOT), str(Path(sys.modules["test"].__path__[0]).parent)]
    prelude = f"import sys; sys.path[:0] = {paths!r}\n"

    @functools.wraps(assert_python_ok)
    def run(*args: str, **env: str) -> Any:
        *options, script = args
        if options != ["-c"] or IMPORT_LINE not in script:
            raise AssertionError(f"a script of an unknown form, Pool cannot be replaced in it: {args!r}")
        return assert_python_ok("-c", prelude + script.replace(IMPORT_LINE, SUBSTITUTE_LINE), **env)

    return run
