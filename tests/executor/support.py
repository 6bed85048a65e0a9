"""What the tests of `dpool.Executor` share: tasks that wait until a test lets them go, and small functions to run.

A `Gate` is a directory: a task that enters it leaves a file with its pid, and waits for another file. So a test knows
what runs, and decides when it ends, in whatever process or thread it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import wait_until

LONG_S = 60.0
"""Longer than anything takes; a test that waits so long has failed."""


class Gate:
    """Tasks call `enter`; the test waits with `entered` and lets them go on with `open`. It can be pickled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def enter(self, name: str = "task", value: object = None) -> object:
        """For a task: say that it runs, wait until the test opens the gate for `name`, return `value`."""
        self.note(name)
        wait_until((self.directory / f"{name}.open").exists, LONG_S, f"{name} is let go")
        return value

    def note(self, name: str) -> None:
        """For a task: say that it runs."""
        with open(self.directory / f"{name}.in", "a") as file:
            file.write(f"{os.getpid()}\n")

    def open(self, *names: str) -> None:
        """Let the tasks of these names go on, now or when they come."""
        for name in names or ("task",):
            (self.directory / f"{name}.open").touch()

    def entered(self, name: str = "task") -> int:
        """Wait until a task of this name runs; its pid (of the last one)."""
        wait_until(lambda: self.pids(name), LONG_S, f"{name} runs")
        return self.pids(name)[-1]

    def pids(self, name: str = "task") -> list[int]:
        """The pids of the tasks that have entered under this name so far."""
        try:
            text = (self.directory / f"{name}.in").read_text()
        except FileNotFoundError:
            return []
        return [int(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def generator() -> Iterator[int]:
    """What no pickle takes."""
    yield 1


def noop() -> None:
    """Nothing."""


def same(value: object = None) -> object:
    """What it was given."""
    return value


def square(x: int) -> int:
    return x * x


def fail(error: BaseException) -> None:
    """Raise it."""
    raise error


def kill_self(signum: int = 9) -> None:
    os.kill(os.getpid(), signum)


def wait_for(path: Path) -> None:
    """Return when the file is there."""
    wait_until(path.exists, LONG_S, str(path))
