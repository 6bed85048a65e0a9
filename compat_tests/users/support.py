"""What the tests share: functions that note where they ran, a pool that is none, and data to compute with."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import dpool

WORKERS = 2


class Noted:
    """A function whose calls leave a file with the pid of the process in which they ran."""

    def __init__(self, function: Callable[..., Any], directory: Path) -> None:
        self.function = function
        self.directory = str(directory)
        self.__name__ = function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        open(os.path.join(self.directory, str(os.getpid())), "wb").close()
        return self.function(*args, **kwargs)

    def pids(self) -> set[int]:
        """Where it ran since this was last asked."""
        names = os.listdir(self.directory)
        for name in names:
            os.unlink(os.path.join(self.directory, name))
        return set(map(int, names))


class Serial:
    """Has the interface of a pool of so many processes, and is none; each call works on copies, as in a process."""

    def __init__(self, size: int = WORKERS) -> None:
        self.size = size

    @staticmethod
    def map(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """`map`, here."""
        copies = [pickle.dumps((function, item)) for item in items]
        return [call(item) for call, item in map(pickle.loads, copies)]


def workers_of(face: dpool.Executor | dpool.Pool) -> set[int]:
    """The pids of its workers."""
    return {one.pid for one in face._pool} if isinstance(face, dpool.Pool) else set(face._processes)


def assert_ran_in(face: dpool.Executor | dpool.Pool, noted: Noted) -> None:
    """It ran, in workers of `face` and nowhere else."""
    pids = noted.pids()
    assert pids, "it never ran"
    assert pids <= workers_of(face), f"it ran in {pids}, the workers are {workers_of(face)}, and this is {os.getpid()}"


@cache
def diabetes() -> tuple[Any, Any]:
    """scikit-learn's bundled measurements of 442 patients: ten columns, and how the disease went on."""
    from sklearn.datasets import load_diabetes

    data, target = load_diabetes(return_X_y=True)
    return data * 20, target / 100


def misfit(parameters: Any) -> float:
    """How badly a straight line through body mass (column 2) predicts the disease; Huber's loss."""
    data, target = diabetes()
    off = abs(parameters[0] + parameters[1] * data[:, 2] - target)
    return float((off.clip(max=1) * (off - off.clip(max=1) / 2)).sum())


def log_likelihood(parameters: Any) -> float:
    """Gaussian, of the same line, with the spread as the third parameter."""
    import numpy as np

    data, target = diabetes()
    spread = np.exp(parameters[2])
    off = (parameters[0] + parameters[1] * data[:, 2] - target) / spread
    return float(-0.5 * (off @ off) - len(target) * parameters[2])
