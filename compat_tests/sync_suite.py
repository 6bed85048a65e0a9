"""The interpreter's own tests of locks, queues, shared values and pipes, on `dpool.multiprocessing`.

```
test._test_multiprocessing ──copy──► sync_module: its `multiprocessing` is dpool's ──► sync_classes() ──► pytest
```

Nothing is copied into the repository. What is tested there and passes through to the standard library unchanged
(managers, shared_memory, listeners, resource tracker, start methods of Process) is left out.
"""

from __future__ import annotations

import functools
import importlib
import types
import unittest
from typing import Any

HOME = "compat_tests.test_multiprocessing_sync"
KINDS = (
    "_TestArray",
    "_TestBarrier",
    "_TestCondition",
    "_TestConnection",
    "_TestEvent",
    "_TestLock",
    "_TestPicklingConnections",
    "_TestPoll",
    "_TestQueue",
    "_TestSemaphore",
    "_TestSharedCTypes",
    "_TestSubclassingProcess",
    "_TestValue",
)
ALONE = ("TestSimpleQueue", "TestWait", "TestSyncManagerTypes")


@functools.cache
def import_suite() -> types.ModuleType:
    """The copy of the module. ImportError: this interpreter comes without its test suite."""
    return importlib.import_module("compat_tests.sync_module")


@functools.cache
def sync_classes() -> dict[str, type[unittest.TestCase]]:
    """The test classes, by name."""
    module: Any = import_suite()
    classes: dict[str, type[unittest.TestCase]] = {}
    for name in KINDS:
        bases = (getattr(module, name), module.ProcessesMixin, unittest.TestCase)
        classes[f"WithProcesses{name[1:]}"] = type(f"WithProcesses{name[1:]}", bases, {"__module__": HOME})
    for name in ALONE:
        classes[name] = type(name, (getattr(module, name),), {"__module__": HOME})
    return classes
