"""A sharded parameter server: workers train one model together, and none waits for another.

```
            pull: weights, version                       shard 0   weights[:k]      version 1234
 worker i ◄───────────────────────── every shard ───────  shard 1   weights[k:2k]    version 1236
   │ gradient of a batch                                 …
   └──── push: its part of it ─────► every shard         applies it at once, whatever the others do
```

Each shard is an actor that owns a part of the weights; each worker is a task that pulls the weights, computes the
gradient of a random batch and pushes it, again and again. Meanwhile others push as well, so a gradient is applied to
weights that are some versions further than those it was computed for: its staleness. Stochastic gradient descent copes
with that. The model is softmax regression, and learns scikit-learn's handwritten digits.

Sources: J. Dean et al., Large scale distributed deep networks (2012: Downpour SGD); M. Li et al., Scaling distributed
machine learning with the parameter server (2014).

What to look at: proxies of actors are passed to tasks; calls of one process keep their order, so that a worker need not
wait for its push before its next pull; the program looks at the weights while they are learned. With `--hang` the
first worker stops in its first step for good. The others do not notice, and it is cancelled at the end.

Run it with `python examples/parameter_server.py --workers 4 --shards 3`.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import Any, NamedTuple

import numpy as np

import dpool

DIGITS = 10
BATCH = 32
LEARNING_RATE = 0.3


def probabilities(weights: Any, images: Any) -> Any:
    """Of each digit, for each image."""
    scores = images @ weights.reshape(-1, DIGITS)
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def gradient(weights: Any, images: Any, labels: Any) -> Any:
    """Of the mean cross-entropy, by the weights."""
    error = probabilities(weights, images)
    error[np.arange(len(labels)), labels] -= 1
    return (images.T @ error).ravel() / len(labels)


class Shard:
    """A part of the weights."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        self.version = 0
        self.staleness = 0

    def pull(self) -> tuple[Any, int]:
        return self.weights, self.version

    def push(self, part: Any, version: int) -> None:
        """Apply a gradient that was computed for the weights of `version`."""
        self.weights -= LEARNING_RATE * part
        self.staleness += self.version - version
        self.version += 1


def pull(shards: list[Any]) -> tuple[Any, list[int]]:
    """All the weights, and the version of each part."""
    parts, versions = zip(*dpool.get([shard.pull.submit() for shard in shards]), strict=True)
    return np.concatenate(parts), list(versions)


@dpool.remote
def work(shards: list[Any], data: tuple[Any, Any], updates: int, seed: int, hang: bool) -> int:
    """Push gradients until every shard has had `updates`, from whomever; returns how many of them were ours."""
    random = np.random.default_rng(seed)
    images, labels = data
    pushes: list[Any] = []
    done = 0
    while True:
        weights, versions = pull(shards)
        if min(versions) >= updates:
            dpool.get(pushes)
            return done
        if hang:
            threading.Event().wait()
        batch = random.integers(len(images), size=BATCH)
        parts = np.array_split(gradient(weights, images[batch], labels[batch]), len(shards))
        pushes = [shard.push.submit(*push) for shard, *push in zip(shards, parts, versions, strict=True)]
        done += 1


class Outcome(NamedTuple):
    """What a training came to."""

    accuracy: float
    """On images that were not trained on."""
    done: list[int | None]
    """Updates by each worker; None: it did not come back."""
    versions: list[int]
    """Updates that each shard has had."""
    staleness: float
    """Mean number of updates by others between a pull and the push that followed."""


def digits() -> tuple[Any, Any]:
    """Images, each with a constant in front, and what they show."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return np.insert(images[order] / 16, 0, 1, axis=1), labels[order]


def train(workers: int, shards: int, updates: int, hang: bool = False, every_s: float = 0.5) -> Outcome:
    """Learn, and print every now and then how well."""
    images, labels = digits()
    servers = [dpool.ActorProxy(Shard, part) for part in np.array_split(np.zeros(images.shape[1] * DIGITS), shards)]
    data = dpool.put((images[450:], labels[450:]))  # once, for all workers; the first 450 are for the test
    start_s = time.perf_counter()
    futures = [work.remote(servers, data, updates, seed, hang and seed == 0) for seed in range(workers)]
    working = futures
    print(f"{'time':>7}  {'updates':>7}  accuracy")
    while True:
        weights, versions = pull(servers)
        accuracy = float((probabilities(weights, images[:450]).argmax(axis=1) == labels[:450]).mean())
        print(f"{time.perf_counter() - start_s:>5.1f} s  {min(versions):>7,}  {accuracy:.3f}", flush=True)
        if len(working) == int(hang):
            break
        _, working = dpool.wait(working, num_returns=len(working) - hang, timeout=every_s)
    for late in working:
        dpool.cancel(late, force=True)
    staleness = np.mean([server.staleness / server.version for server in servers])
    return Outcome(accuracy, [None if one.cancelled() else one.result() for one in futures], versions, float(staleness))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a model with a sharded parameter server.")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="workers (4)")
    parser.add_argument("--shards", type=int, default=3, metavar="N", help="parts of the weights (3)")
    parser.add_argument("--updates", type=int, default=2000, metavar="N", help="of each part, by all workers (2,000)")
    parser.add_argument("--hang", action="store_true", help="let the first worker hang")
    options = parser.parse_args(argv)
    if min(options.workers - options.hang, options.shards, options.updates) < 1:
        parser.error("it takes one shard, one update and one worker at least, not counting one that hangs")

    dpool.init(num_cpus=options.workers)  # a worker holds a CPU for good; let all of them begin, however few there are
    outcome = train(options.workers, options.shards, options.updates, options.hang)
    dpool.shutdown()
    print("\nupdates by each worker: " + ", ".join("hung" if one is None else f"{one:,}" for one in outcome.done))
    print(f"between a pull and its push others had made {outcome.staleness:.2f} updates on average")
    lost = [sum(one or 0 for one in outcome.done) - version for version in outcome.versions]
    correct = not any(lost) and (outcome.accuracy >= 0.93 or options.updates < 2000)
    print(f"updates that were lost: {sum(lost)}; accuracy {outcome.accuracy:.3f}")
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
