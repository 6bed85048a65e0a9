"""Turns outcomes into tables for people and JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.harness import Outcome
from benchmarks.model import Metric, Results, Verdict

_FORMAT = 1
_BUSY_PERCENT = 10.0
_WORDS = {True: "PASS", False: "FAIL", None: "NOT MEASURED"}


def heading(machine: Mapping[str, object], size: str) -> list[str]:
    """Where the figures come from, and what to hold against them."""
    lines = [
        f"{machine['cpu']}, {machine['cores_usable']} of {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['kernel']}, Python {machine['python']}, {machine['date']}",
        f"load average {machine['load_average']}, cores {machine['busy_percent_before']} % busy before the run",
    ]
    busy = machine["busy_percent_before"]
    if isinstance(busy, float) and busy > _BUSY_PERCENT:
        lines.append("WARNING: this machine is busy with something else; every figure below suffers from it")
    if size != "full":
        lines.append(f'size "{size}": short measurements, the figures are only indicative')
    return lines


def table(outcome: Outcome) -> list[str]:
    """One question: its metrics with one row per subject, its own table if it has one, and its targets."""
    benchmark, results = outcome.benchmark, outcome.results
    lines = ["", f"{benchmark.name}: {benchmark.question}  (repeated {outcome.repeat} ×, {outcome.took_s:.0f} s)"]
    for metric in benchmark.metrics:
        lines += _metric_block(metric, results, benchmark.reference)
    if benchmark.tabulate is not None:
        lines += benchmark.tabulate(results)
    lines += [f"    {name}: skipped, {why}" for name, why in outcome.skipped.items()]
    for name, why in outcome.failed.items():
        lines += [f"    {name}: FAILED", *(f"      | {line}" for line in why.splitlines())]
    for name, left in outcome.left_behind.items():
        lines.append(f"    {name}: left processes behind, which were killed: {', '.join(left)}")
    return lines + [_verdict_line(verdict) for verdict in benchmark.judge(results)]


def as_json(
    machine: Mapping[str, object], arguments: Mapping[str, object], outcomes: Sequence[Outcome]
) -> dict[str, object]:
    """Everything, samples included."""
    questions = {outcome.benchmark.name: _outcome_json(outcome) for outcome in outcomes}
    return {"format": _FORMAT, "machine": machine, "arguments": arguments, "benchmarks": questions}


def _outcome_json(outcome: Outcome) -> dict[str, object]:
    benchmark, results = outcome.benchmark, outcome.results
    return {
        "question": benchmark.question,
        "metrics": {metric.key: metric._asdict() for metric in benchmark.metrics},
        "medians": {name: _medians(results, name) for name in results.subjects()},
        "samples": results.samples,
        "derived": dict(benchmark.derive(results)) if benchmark.derive is not None else {},
        "targets": [verdict._asdict() for verdict in benchmark.judge(results)],
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "left_behind": outcome.left_behind,
        "repeat": outcome.repeat,
        "took_s": outcome.took_s,
    }


def _medians(results: Results, subject: str) -> dict[str, float | None]:
    keys = dict.fromkeys(key for sample in results.samples[subject] for key in sample)
    return {key: results.median(subject, key) for key in keys}


def _metric_block(metric: Metric, results: Results, reference: str) -> list[str]:
    better = "less is better" if metric.less_is_better else "more is better"
    title = f"{metric.title} ({metric.unit}, {better})" if metric.unit else metric.title
    lines = []
    for subject in results.subjects():
        values = results.values(subject, metric.key)
        if not values:
            continue
        shown = [
            f"{value:,.{metric.digits}f}" for value in (results.median(subject, metric.key), min(values), max(values))
        ]
        ratio = results.ratio(subject, reference, metric.key)
        cells = [*shown, "–" if ratio is None else f"{ratio:.2f}"]
        lines.append(f"    {subject:<56}" + "".join(f"{cell:>13}" for cell in cells[:3]) + f"{cells[3]:>11}")
    header = f"  {title:<58}{'median':>13}{'min':>13}{'max':>13}{'/ ' + reference:>11}"
    return [header, *lines] if lines else []


def _verdict_line(verdict: Verdict) -> str:
    value = "–" if verdict.value is None else f"{verdict.value:.3g}"
    return f"  {_WORDS[verdict.passed]:<13}{verdict.figure} {verdict.claim}: {value}"
