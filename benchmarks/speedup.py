"""From what task length on do two workers beat one thread, and by how much?

For each length the same tasks run in a plain loop in this process and through the peer, in turn. COST (McSherry, Isard
and Murray, HotOS 2015) is the shortest task for which the peer is the faster: the length where the speed-up crosses 1,
interpolated between measured lengths on a logarithmic scale.
"""

from __future__ import annotations

import gc
import importlib
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_least, at_most, every_peer
from benchmarks.peers import PEERS, Peer

LENGTHS_US = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)

_MOST_TASKS = 10_000
_FEWEST_TASKS = 40
_PILOT_TASKS = 100
_PEER_BUDGET_S = 1.0  # a peer too slow for the full number of tasks gets as many as it can do in this time


def measure(peer: Peer, size: Size) -> Sample:
    rate = work.loops_per_us()
    sample: dict[str, float] = {}
    for length_us in LENGTHS_US[:: int(size["every"])]:
        loops = work.loops_for(length_us, rate)
        one_s, peer_s = _time_length(peer, loops, length_us, size)
        sample[f"task_us_{length_us}"] = one_s * 1e6
        sample[f"rate_{length_us}"] = 1 / peer_s
        sample[f"speedup_{length_us}"] = one_s / peer_s
    return sample


def _time_length(peer: Peer, loops: int, length_us: float, size: Size) -> tuple[float, float]:
    """Seconds per task in one thread and through the peer: medians of rounds taken in turn."""
    tasks = _how_many(peer, loops, length_us, size["serial_s"])
    arguments = [(loops,)] * tasks
    one_s, peer_s = [], []
    for _ in range(int(size["rounds"])):
        gc.collect()
        begin = time.perf_counter()
        for _task in range(tasks):
            work.spin(loops)
        between = time.perf_counter()
        peer.submit_many(work.spin, arguments)
        one_s.append((between - begin) / tasks)
        peer_s.append((time.perf_counter() - between) / tasks)
    return statistics.median(one_s), statistics.median(peer_s)


def _how_many(peer: Peer, loops: int, length_us: float, serial_s: float) -> int:
    wanted = min(_MOST_TASKS, max(_FEWEST_TASKS, round(serial_s * 1e6 / length_us)))
    begin = time.perf_counter()
    peer.submit_many(work.spin, [(loops,)] * _PILOT_TASKS)
    bearable = _PEER_BUDGET_S * _PILOT_TASKS / (time.perf_counter() - begin)
    return max(_FEWEST_TASKS, min(wanted, round(bearable)))


def cost_us(lengths_us: Sequence[float], speedups: Sequence[float]) -> float | None:
    """The task length from which on the speed-up stays above 1; None when the longest task does not reach it.

    When even the shortest task is faster than one thread, the answer is that task's length (an upper bound).
    """
    below = [index for index, speedup in enumerate(speedups) if speedup <= 1]
    if not below:
        return lengths_us[0]
    last = below[-1]
    if last == len(speedups) - 1:
        return None
    left, right = math.log(lengths_us[last]), math.log(lengths_us[last + 1])
    share = (1 - speedups[last]) / (speedups[last + 1] - speedups[last])
    return math.exp(left + share * (right - left))


def measured_lengths(results: Results, subject: str) -> list[int]:
    return [length for length in LENGTHS_US if results.values(subject, f"speedup_{length}")]


def costs(results: Results) -> dict[str, float | None]:
    """COST of each subject, from the medians over the repetitions."""
    return {subject: cost_us(*_curve(results, subject, "speedup")) for subject in results.subjects()}


def _curve(results: Results, subject: str, quantity: str) -> tuple[list[float], list[float]]:
    """Task lengths as measured in one thread (µs), and the medians of `quantity` there."""
    lengths = measured_lengths(results, subject)
    return _medians(results, subject, "task_us", lengths), _medians(results, subject, quantity, lengths)


def _medians(results: Results, subject: str, quantity: str, lengths: Sequence[int]) -> list[float]:
    return [statistics.median(results.values(subject, f"{quantity}_{length}")) for length in lengths]


def tabulate(results: Results) -> list[str]:
    """Speed-ups, one row per length; the last row is COST."""
    subjects = results.subjects()
    if not subjects:
        return []
    lengths = measured_lengths(results, subjects[0])
    lines = [f"    {'speed-up, task of':>18}" + "".join(f"{subject:>11}" for subject in subjects)]
    for length in lengths:
        values = (statistics.median(results.values(subject, f"speedup_{length}")) for subject in subjects)
        lines.append(f"    {length:>15,} µs" + "".join(f"{value:>11.2f}" for value in values))
    cells = (_show_cost(cost) for cost in costs(results).values())
    return [*lines, f"    {'COST (µs)':>18}" + "".join(f"{cell:>11}" for cell in cells)]


def _show_cost(cost: float | None) -> str:
    return f"> {LENGTHS_US[-1]:,}" if cost is None else f"{cost:.1f}"


def plot(results: Results, path: Path) -> None:
    """Throughput against task length, with one thread, two ideal workers, and each COST point, as PNG."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    ends_us = [LENGTHS_US[0], LENGTHS_US[-1]]
    axes.plot(ends_us, [1e6 / us for us in ends_us], color="black", label="one thread, no pool")
    axes.plot(ends_us, [2e6 / us for us in ends_us], color="black", linestyle=":", label="two workers, ideal")
    for subject, cost in costs(results).items():
        lengths, rates = _curve(results, subject, "rate")
        shown = f"{PEERS[subject].title} (COST {_show_cost(cost)} µs)"
        (line,) = axes.plot(lengths, rates, marker="o", markersize=3, label=shown)
        if cost is not None:
            axes.plot([cost], [1e6 / cost], marker="*", markersize=13, color=line.get_color(), markeredgecolor="black")
    axes.set(xscale="log", yscale="log", xlabel="task length (µs)", ylabel="tasks per second")
    axes.set_title("Two workers against one thread (★: shortest task for which two workers win)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def judge(results: Results) -> list[Verdict]:
    verdicts = [
        at_least("speed-up on 100 µs tasks", results.median("dpool", "speedup_100"), 1.7),
        at_least("speed-up on 1 ms tasks", results.median("dpool", "speedup_1000"), 1.9),
    ]
    verdict = at_most("COST: shortest task for which 2 workers beat one thread", costs(results).get("dpool"), 20, " µs")
    if "dpool" in results.subjects() and verdict.value is None:
        verdict = verdict._replace(passed=False)  # measured, and no task was long enough
    return [*verdicts, verdict]


def derive(results: Results) -> Mapping[str, object]:
    return {"cost_us": costs(results)}


BENCHMARK = Benchmark(
    name="speedup",
    question="from what task length on do two workers beat one thread?",
    metrics=tuple(
        Metric(f"speedup_{length}", f"speed-up, {length:,} µs tasks", "×", less_is_better=False, digits=2)
        for length in (100, 1000)
    ),
    subjects=every_peer(),
    sizes={
        "full": {"serial_s": 0.2, "rounds": 3, "every": 1},
        "quick": {"serial_s": 0.04, "rounds": 1, "every": 1},
        "tiny": {"serial_s": 0.002, "rounds": 1, "every": 3},
    },
    judge=judge,
    repeat=3,
    measure=measure,
    tabulate=tabulate,
    plot=plot,
    derive=derive,
)
