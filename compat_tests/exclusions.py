"""Which of the interpreter's tests are left out, and which need `strict=True`; each with its reason.

Two reasons are good: the test touches a private part of ProcessPoolExecutor (named), or it tests CPython's own start
methods or pickling rather than the executor. "It fails" is not a reason. `test_harness.py` fails on a row that matches
no test.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

Version = tuple[int, int]


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        pattern: `Class::test` with shell wildcards.
        reason: why.
        since: the first interpreter that has the test.
        before: the first interpreter that no longer has it, or None.
    """

    pattern: str
    reason: str
    since: Version = (3, 10)
    before: Version | None = None

    def holds(self, version: Version) -> bool:
        """Whether this row speaks of `version`."""
        return self.since <= version and (self.before is None or version < self.before)


EXCLUDED = (
    Row(
        "*ProcessPoolExecutorTest::test_python_finalization_error",
        "touches internals: makes threading._start_joinable_thread fail for the second thread, to break the start of "
        "ProcessPoolExecutor's call-queue feeder thread; dpool has no such thread",
        since=(3, 13),
    ),
    Row(
        "ProcessPoolForkFailingInitializerTest::test_initializer",
        "tests CPython's fork start method: passes a queue of the fork context, whose semaphores have no name and can "
        "only be inherited by fork from the process that made them; dpool never forks the user's process",
    ),
    Row(
        "WithProcessesTestPoolWorkerErrors::test_unpickleable_result",
        "tests CPython's pickling: expects that a lambda cannot be a result; dpool carries it by value. What pickles "
        "nowhere is a MaybeEncodingError here too: tests/pool/test_errors.py",
    ),
    Row(
        "WithProcessesTestQueue::test_queue_feeder_*",
        "tests the feeder thread of multiprocessing.Queue, which prints what does not pickle and goes on; dpool has no "
        "such thread, and raises it where `put` is called: tests/multiprocessing/test_queues.py",
    ),
    Row(
        "TestSimpleQueue::test_closed",
        "touches internals: SimpleQueue's `_reader` and `_writer`, the pipe that dpool's does not have",
    ),
)

STRICT = (
    Row(
        "*ProcessPoolExecutorTest::test_killed_child",
        "expects that one killed worker breaks the whole executor and every later submit",
    ),
)


def find(rows: tuple[Row, ...], test: str, version: Version) -> Row | None:
    """The first row that matches `test` ("Class::test") on `version`."""
    return next((row for row in rows if row.holds(version) and fnmatchcase(test, row.pattern)), None)
