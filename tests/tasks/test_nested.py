"""Tasks that run in the process of the task that waits for them: what each sees of the other."""

from __future__ import annotations

import contextvars
import decimal
import os

import pytest

import dpool
from tests.executor.support import LONG_S

language = contextvars.ContextVar("language", default="none")


def child() -> tuple[int, str, int]:
    found = language.get(), decimal.getcontext().prec
    language.set("child's")
    decimal.getcontext().prec = 7
    return os.getpid(), *found


def parent() -> tuple[bool, str, int, str, int]:
    language.set("parent's")
    decimal.getcontext().prec = 11
    pid, *found = dpool.get(dpool.remote(child).remote())
    return pid == os.getpid(), *found, language.get(), decimal.getcontext().prec


def test_context_variables_are_those_of_a_fresh_task() -> None:
    dpool.shutdown()
    dpool.init(num_cpus=1)  # so that no worker has begun the child
    assert dpool.get(dpool.remote(parent).remote(), timeout=LONG_S) == (True, "none", 28, "parent's", 11)


def test_a_crash_names_the_task() -> None:
    @dpool.remote(max_retries=0)
    def falls() -> None:
        os._exit(9)

    with pytest.raises(dpool.errors.WorkerCrashed, match=r"code 9 while it ran .*falls; "):
        dpool.get(falls.remote(), timeout=LONG_S)
    with pytest.raises(dpool.errors.WorkerCrashed, match=r"while it ran a fall; "):
        dpool.get(falls.options(name="a fall").remote(), timeout=LONG_S)
    with dpool.Executor(1) as ex, pytest.raises(dpool.errors.WorkerCrashed, match=r"while it ran \S.*; "):
        ex.submit(lambda: os._exit(9)).result(LONG_S)
