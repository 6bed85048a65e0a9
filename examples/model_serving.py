"""Serve a fitted scikit-learn model from actors that answer many requests with one prediction.

```
 client task ─┐  predict(row)   ┌─ server actor: requests gather ─► model.predict(rows) ─► one answer each
 client task ─┼────────────────►┤
 client task ─┘                 └─ server actor …
```

A prediction of a random forest costs about the same for one row as for fifty. So a server holds a request back until
`--batch` of them are there, or the first one has waited for `--wait-ms`. `predict` is an `async def` method: any number
of its calls wait at the same time, in one process.

The clients are tasks, to which the servers' proxies travel as arguments. Each keeps some requests under way, and
measures how long every one of them takes. The program runs twice, without and with batches, checks that every answer is
the model's own, and prints percentiles of the latency.

Source: Crankshaw et al.: Clipper, a Low-Latency Online Prediction Serving System, 2017 (section 4.3, on batching). Run
it with `python examples/model_serving.py`; it needs numpy and scikit-learn.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

import dpool


class Server:
    """Holds the model; an actor."""

    def __init__(self, model: Any, batch: int, wait_s: float) -> None:
        self.model, self.batch, self.wait_s = model, batch, wait_s
        self.waiting: list[tuple[np.ndarray, asyncio.Future[int]]] = []
        self.timer: asyncio.TimerHandle | None = None
        self.batches: list[int] = []
        """Sizes of the batches, so far."""

    async def predict(self, row: np.ndarray) -> int:
        """The label of one row."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        self.waiting.append((row, answer))
        if len(self.waiting) >= self.batch:
            self.answer()
        elif self.timer is None:
            self.timer = loop.call_later(self.wait_s, self.answer)
        return await answer

    def answer(self) -> None:
        """Answer all that wait."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        waiting = [(row, answer) for row, answer in self.waiting if not answer.done()]  # done: its call was cancelled
        self.waiting = []
        if not waiting:
            return
        rows, answers = zip(*waiting, strict=True)
        self.batches.append(len(rows))
        try:
            labels = self.model.predict(np.stack(rows))
        except Exception as error:  # every caller hears of it, or they would wait for ever
            for answer in answers:
                answer.set_exception(error)
            return
        for answer, label in zip(answers, labels, strict=True):
            answer.set_result(int(label))


@dpool.remote(num_cpus=0.1)  # a client mostly waits
def client(server: Any, rows: np.ndarray, outstanding: int) -> tuple[list[int], list[float]]:
    """The answers for all rows, and how many seconds each took; `outstanding` requests are under way at a time."""
    labels, seconds = [0] * len(rows), [0.0] * len(rows)
    numbers = iter(range(len(rows)))
    pending: dict[Any, tuple[int, float]] = {}
    while True:
        while len(pending) < outstanding and (number := next(numbers, None)) is not None:
            pending[server.predict.submit(rows[number])] = number, time.perf_counter()
        if not pending:
            return labels, seconds
        for future in dpool.wait(pending)[0]:
            number, start_s = pending.pop(future)
            labels[number], seconds[number] = future.result(), time.perf_counter() - start_s


class Report(NamedTuple):
    """One run of all clients."""

    labels: list[int]
    latencies: np.ndarray
    """Seconds, of each request."""
    seconds: float
    """Of the whole run."""
    batches: list[int]


def run(model: Any, rows: np.ndarray, batch: int, options: argparse.Namespace) -> Report:
    servers = [dpool.ActorProxy(Server, model, batch, options.wait_ms / 1000) for _ in range(options.servers)]
    theirs = [servers[number % len(servers)] for number in range(options.clients)]  # the server of each client
    dpool.get([client.remote(server, rows[:1], 1) for server in theirs])  # the processes are there now, and warm
    before = [len(server.batches) for server in servers]
    start_s = time.perf_counter()
    parts = zip(theirs, np.array_split(rows, options.clients), strict=True)
    answers = dpool.get([client.remote(server, part, options.outstanding) for server, part in parts])
    seconds = time.perf_counter() - start_s
    labels = [label for part, _ in answers for label in part]
    latencies = np.array([latency for _, part in answers for latency in part])
    batches = [size for server, count in zip(servers, before, strict=True) for size in server.batches[count:]]
    return Report(labels, latencies, seconds, batches)


def show(title: str, report: Report) -> None:
    p50, p95, p99 = 1000 * np.percentile(report.latencies, [50, 95, 99])
    print(
        f"{title:16} {len(report.labels) / report.seconds:8.0f} {np.mean(report.batches):9.1f} "
        f"{p50:8.1f} {p95:8.1f} {p99:8.1f}",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a random forest with and without batches.")
    parser.add_argument("--requests", type=int, default=2000, metavar="N", help="in each run (2000)")
    parser.add_argument("--servers", type=int, default=1, metavar="N", help="actors that have the model (1)")
    parser.add_argument("--clients", type=int, default=4, metavar="N", help="tasks that ask (4)")
    parser.add_argument("--outstanding", type=int, default=16, metavar="N", help="requests of a client at a time (16)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="requests that are answered together (32)")
    parser.add_argument("--wait-ms", type=float, default=5.0, metavar="T", help="a request waits at most so long (5)")
    parser.add_argument("--trees", type=int, default=50, metavar="N", help="of the forest (50)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    dpool.init(preload=["sklearn.ensemble"])  # imported once, for all servers
    data, target = load_digits(return_X_y=True)
    model = RandomForestClassifier(options.trees, random_state=options.seed).fit(data[:1000], target[:1000])
    rows = data[np.random.default_rng(options.seed).integers(1000, len(data), options.requests)]
    stored = dpool.put(model)
    print(f"{'':16} {'answers/s':>8} {'batch':>9} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}")
    single = run(stored, rows, 1, options)
    show("one at a time", single)
    batched = run(stored, rows, options.batch, options)
    show("in batches", batched)
    own = model.predict(rows).tolist()
    equal = single.labels == own and batched.labels == own
    print(f"{single.seconds / batched.seconds:.1f} × the throughput; ", end="")
    print("every answer is the model's own" if equal else "ANSWERS DIFFER from the model's own")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
