"""What do a lock, an event, a shared counter and a queue cost, where nobody else wants them, and between two processes?

Each figure is the mean of a loop in one process; the queue's is that of items which one process puts and another gets.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.model import Benchmark, Metric, Results, Sample, Size, Verdict, at_most, every_peer
from benchmarks.peers import Peer

_DEADLINE_S = 60.0


def measure(peer: Peer, size: Size) -> Sample:
    module: Any = importlib.import_module("dpool.multiprocessing" if peer.name == "dpool" else "multiprocessing")
    calls, items = int(size["calls"]), int(size["items"])
    lock, event, value = module.Lock(), module.Event(), module.Value("q", 0)

    def pair() -> None:
        lock.acquire()
        lock.release()

    def add() -> None:
        with value.get_lock():
            value.value += 1

    sample = {
        "lock_us": _mean_us(pair, calls),
        "event_us": _mean_us(event.is_set, calls),
        "value_us": _mean_us(add, calls),
        "item_us": _item_us(module, items),
    }
    if value.value < calls:
        raise AssertionError(f"{value.value} additions of {calls}")
    return sample


def _mean_us(call: Callable[[], Any], calls: int) -> float:
    call()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls * 1e6


def _item_us(module: Any, items: int) -> float:
    """Through a queue, from one process to another."""
    context = module.get_context("fork")
    queue, answers = module.Queue(), module.SimpleQueue()
    getter = context.Process(target=_get_all, args=(queue, answers, items))
    getter.start()
    putter = context.Process(target=_put_all, args=(queue, items))
    if not answers.get():
        raise AssertionError("the getter does not begin")
    begin = time.perf_counter()
    putter.start()
    total = answers.get()
    taken_s = time.perf_counter() - begin
    for process in (putter, getter):
        process.join(_DEADLINE_S)
        process.close()
    if total != items * (items - 1) // 2:
        raise AssertionError(f"the items sum up to {total}")
    return taken_s / items * 1e6


def _put_all(queue: Any, items: int) -> None:
    for item in range(items):
        queue.put(item)


def _get_all(queue: Any, answers: Any, items: int) -> None:
    answers.put(True)
    answers.put(sum(queue.get(timeout=_DEADLINE_S) for _ in range(items)))


def judge(results: Results) -> list[Verdict]:
    return [at_most("an item through a Queue / multiprocessing", results.ratio("dpool", "mp", "item_us"), 5)]


BENCHMARK = Benchmark(
    name="sync",
    question="what do a lock, an event, a shared value and a queue cost?",
    metrics=(
        Metric("lock_us", "Lock: acquire and release", "µs"),
        Metric("event_us", "Event.is_set", "µs", digits=2),
        Metric("value_us", "Value += 1 under its lock", "µs"),
        Metric("item_us", "Queue: put and get, between two processes", "µs"),
    ),
    subjects=every_peer("dpool", "mp"),
    sizes={
        "full": {"calls": 100_000, "items": 50_000},
        "quick": {"calls": 20_000, "items": 10_000},
        "tiny": {"calls": 100, "items": 50},
    },
    judge=judge,
    repeat=5,
    measure=measure,
)
