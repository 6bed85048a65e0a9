"""Runs the questions: repetitions interleaved over the subjects (A B C A B C …), each in processes of its own.

Nothing of one measurement may disturb the next: after each one the launcher waits until every process that it started
is gone, kills what is still there after a while, and the report says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from benchmarks.launcher import CellFailed, Launcher
from benchmarks.model import Benchmark, Results, Sample, Subject
from benchmarks.peers import why_missing


class Outcome(NamedTuple):
    """Everything that a run learned about one question."""

    benchmark: Benchmark
    results: Results
    skipped: dict[str, str]
    failed: dict[str, str]
    left_behind: dict[str, list[str]]
    repeat: int
    took_s: float


def take_sample(benchmark: Benchmark, subject: Subject, size: str, launcher: Launcher) -> Sample:
    """One repetition on one subject. Raises CellFailed."""
    if benchmark.sample is not None:
        return benchmark.sample(subject, benchmark.sizes[size], launcher)
    cell = ["-m", "benchmarks.cell", benchmark.name, subject.name, size]
    around: AbstractContextManager[Mapping[str, str]] = nullcontext({})
    if benchmark.around is not None:
        around = benchmark.around(benchmark.sizes[size])
    with around as env:
        sample: Sample = json.loads(launcher.run(cell, {**subject.env, **env}, benchmark.timeout_s).result)
    return sample


def why_skipped(benchmark: Benchmark, subject: Subject) -> str | None:
    """None when the subject can be asked this question here, else the reason."""
    if benchmark.hosts:
        from tests.cluster.hosts import lacking

        if reason := lacking():
            return reason
    return why_missing(subject.peer, benchmark.needs, benchmark.puts)


def run(
    benchmark: Benchmark,
    peers: Sequence[str],
    size: str = "full",
    repeat: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Answer one question: `repeat` rounds over the subjects of `peers`; a subject that fails is not tried again."""
    begin = time.perf_counter()
    rounds = repeat or (benchmark.repeat if size == "full" else 1)
    subjects = [subject for subject in benchmark.subjects if subject.peer in peers]
    skipped = {s.name: why for s in subjects if (why := why_skipped(benchmark, s)) is not None}
    samples: dict[str, list[Sample]] = {s.name: [] for s in subjects if s.name not in skipped}
    failed: dict[str, str] = {}
    left_behind: dict[str, list[str]] = {}
    for number in range(1, rounds + 1):
        for subject in subjects:
            if subject.name in skipped or subject.name in failed:
                continue
            say(f"{benchmark.name} {number}/{rounds} {subject.name}")
            launcher = Launcher()
            try:
                samples[subject.name].append(take_sample(benchmark, subject, size, launcher))
            except CellFailed as failure:
                failed[subject.name] = str(failure)
            if launcher.left_behind:
                left_behind.setdefault(subject.name, []).extend(launcher.left_behind)
    return Outcome(benchmark, Results(samples), skipped, failed, left_behind, rounds, time.perf_counter() - begin)
