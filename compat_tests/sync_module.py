"""A second copy of the interpreter's own `test._test_multiprocessing`, in which `multiprocessing` is dpool's.

The first one, which `pool_suite.py` uses, has the standard library's locks and queues. Children and workers import
this module too, so that they find its classes.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from typing import Any

SUITE = "test._test_multiprocessing"
STANDARD_VARIABLE = "DPOOL_COMPAT_STANDARD_SYNC"
"""Set: leave `multiprocessing` as it is, to test the harness itself."""


def _fill() -> None:
    spec = importlib.util.find_spec(SUITE)
    if spec is None or spec.origin is None:
        raise ImportError(f"this interpreter comes without {SUITE}")
    importlib.machinery.SourceFileLoader(__name__, spec.origin).exec_module(sys.modules[__name__])
    if os.environ.get(STANDARD_VARIABLE):
        return
    import dpool.multiprocessing as ours
    from dpool._core.sync_locks import Condition

    space: dict[str, Any] = globals()
    space["multiprocessing"] = ours
    mixin = space["ProcessesMixin"]
    for name in ours._OURS:
        if hasattr(mixin, name):
            setattr(mixin, name, staticmethod(getattr(ours, name)))
    Condition._sleeping_count = property(_Count)  # type: ignore[attr-defined]
    Condition._woken_count = Condition._wait_semaphore = property(_Zero)  # type: ignore[attr-defined]


class _Count:
    """Stands for the private semaphores by which the tests check that nobody is left waiting for a condition."""

    def __init__(self, condition: Any) -> None:
        self._condition = condition

    def get_value(self) -> int:
        return int(repr(self._condition).rpartition(", ")[2].rstrip(">)"))


class _Zero(_Count):
    def get_value(self) -> int:
        return 0


_fill()
