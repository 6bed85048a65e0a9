"""The tests of locks, queues, … in the interpreter's own `test._test_multiprocessing`, on dpool.multiprocessing."""

from __future__ import annotations

from compat_tests import sync_suite

globals().update(sync_suite.sync_classes())
