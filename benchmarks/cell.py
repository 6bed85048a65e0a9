"""One repetition on one subject, in an interpreter of its own: start the peer, warm it, measure, close.

Run by the harness as `python -m benchmarks.cell QUESTION SUBJECT SIZE FILE`; the sample goes to FILE as JSON (not to
standard output: a process that the peer leaves behind would hold that open).
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.model import Benchmark, Sample
from benchmarks.peers import PEERS, Peer


def take_sample(benchmark: Benchmark, subject_name: str, size_name: str) -> Sample:
    """Measure one subject once, on a pool that serves nothing else."""
    if benchmark.measure is None:
        raise ValueError(f"{benchmark.name} starts its own processes and runs in the harness")
    subject = next(subject for subject in benchmark.subjects if subject.name == subject_name)
    peer = _kinds(benchmark)[subject.peer]()
    peer.start(benchmark.workers)
    try:
        peer.warm_up(benchmark.workers)
        gc.collect()
        return benchmark.measure(peer, benchmark.sizes[size_name])
    finally:
        peer.close()


def _kinds(benchmark: Benchmark) -> Mapping[str, type[Peer]]:
    if not benchmark.runtimes:
        return PEERS
    kinds: Mapping[str, type[Peer]] = importlib.import_module("benchmarks.runtimes").RUNTIMES
    return kinds


def main(arguments: list[str]) -> None:
    question, subject, size, file = arguments
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{question}").BENCHMARK
    Path(file).write_text(json.dumps(take_sample(benchmark, subject, size)))


if __name__ == "__main__":
    main(sys.argv[1:])
