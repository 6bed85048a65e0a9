"""What a question is: its metrics, its subjects, its targets. Pure data and arithmetic; nothing is run here.

A *subject* is what stands in one row of a table: a peer, or a peer under certain settings. A *sample* is what one
repetition on one subject yields: a number for each metric (a metric that a peer cannot offer is simply absent).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from benchmarks.launcher import Launcher

Sample = Mapping[str, float]
Size = Mapping[str, float]

WORKERS = 2
SIZES = ("full", "quick", "tiny")


class Metric(NamedTuple):
    """One number of a sample: `key` in the sample, `title` and `unit` in the table."""

    key: str
    title: str
    unit: str
    less_is_better: bool = True
    digits: int = 1


class Subject(NamedTuple):
    """What is measured in one row; `env` is added to its processes' environment, None removes a variable."""

    name: str
    peer: str
    env: Mapping[str, str | None] = {}


class Verdict(NamedTuple):
    """One target line: `passed` is None where the run did not measure what it needs."""

    figure: str
    claim: str
    value: float | None
    passed: bool | None


class Results:
    """The samples of one question, by subject, in the order of the repetitions."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        self.samples = {name: list(taken) for name, taken in samples.items() if taken}

    def subjects(self) -> list[str]:
        return list(self.samples)

    def values(self, subject: str, key: str) -> list[float]:
        return [sample[key] for sample in self.samples.get(subject, ()) if key in sample]

    def median(self, subject: str, key: str) -> float | None:
        values = self.values(subject, key)
        return statistics.median(values) if values else None

    def ratio(self, subject: str, to: str, key: str) -> float | None:
        """The median of `subject` over the median of `to`; None unless both were measured."""
        above, below = self.median(subject, key), self.median(to, key)
        if above is None or below is None or below == 0:
            return None
        return above / below


class Benchmark(NamedTuple):
    """A question and how it is answered.

    `measure(peer, size)` takes one sample on a started, warm peer, in a fresh interpreter. A question that must begin
    before there is a peer (start-up) gives `sample(subject, size, launcher)` instead, which starts its own processes.
    """

    name: str
    question: str
    metrics: tuple[Metric, ...]
    subjects: tuple[Subject, ...]
    sizes: Mapping[str, Size]
    judge: Callable[[Results], list[Verdict]]
    repeat: int
    measure: Callable[[Any, Size], Sample] | None = None  # of a Peer, or of a Runtime
    sample: Callable[[Subject, Size, Launcher], Sample] | None = None
    workers: int = WORKERS
    timeout_s: float = 300.0
    tabulate: Callable[[Results], list[str]] | None = None
    plot: Callable[[Results, Path], None] | None = None
    derive: Callable[[Results], Mapping[str, object]] | None = None
    reference: str = "dpool"  # the subject that the others are divided by
    needs: tuple[str, ...] = ()  # modules without which nobody can be asked
    puts: bool = False  # only for peers with an object store: `Peer.put`, `Peer.fetch`
    hosts: bool = False  # needs namespaces: see `tests.cluster.hosts`
    runtimes: bool = False  # `measure` gets one of `benchmarks.runtimes`, not one of `benchmarks.peers`
    around: Callable[[Size], AbstractContextManager[Mapping[str, str]]] | None = None
    """Entered around each repetition; its value is added to the environment of the processes."""


def every_peer(*names: str) -> tuple[Subject, ...]:
    """One subject per peer, under its default settings."""
    return tuple(Subject(name, name) for name in names or ("dpool", "mp", "ppe", "loky", "ray", "dask"))


def at_most(figure: str, value: float | None, limit: float, unit: str = "") -> Verdict:
    return Verdict(figure, f"≤ {limit:g}{unit}", value, None if value is None else value <= limit)


def at_least(figure: str, value: float | None, limit: float, unit: str = "") -> Verdict:
    return Verdict(figure, f"≥ {limit:g}{unit}", value, None if value is None else value >= limit)
