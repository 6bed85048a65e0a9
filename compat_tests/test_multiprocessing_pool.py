"""The tests of Pool in the interpreter's own `test._test_multiprocessing`, on dpool.Pool."""

from __future__ import annotations

from compat_tests import pool_suite

globals().update(pool_suite.pool_classes())
