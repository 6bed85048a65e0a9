"""Search the settings of a neural network, and give up early on those that do badly.

```
 random settings ──► train 1 epoch ──► the best third: 2 more ──► the best third: 6 more ──► the best third: 18 more
                                  wait(): whichever is ready first decides what is started next
```

Asynchronous successive halving (ASHA): there is never a moment at which all wait for the slowest. Whenever a training
ends, `dpool.wait` says so, and the free worker gets a trial that belongs to the best third of those that came as far
as it did, or else new settings. A trial that is not among them is simply not continued. As soon as one that went all
the way reaches the target, the trainings that still run are cancelled.

Trained networks stay in the object store: a task returns a reference to its network, which the task that continues the
training takes as its argument. So does the data set, which is stored once.

Source: Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht, Talwalkar: A System for Massively Parallel Hyperparameter
Tuning, 2020 (algorithm 2). Run it with `python examples/hyperparameter_search.py`; it needs numpy and scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import dpool

ETA = 3
"""One in so many goes on."""
RUNGS = (1, 3, 9, 27)
"""Epochs after which it is decided, in all."""


@dataclass
class Trial:
    """Settings, and how far they have come."""

    settings: dict[str, Any]
    rung: int = 0
    """The rung that it is being trained for, or the last one that it reached."""
    scores: list[float] = field(default_factory=list)
    """Accuracy on data that it was not trained with, at each rung that it reached."""
    network: Any = None
    """A reference to it."""

    @property
    def epochs(self) -> int:
        return RUNGS[len(self.scores) - 1] if self.scores else 0


@dpool.remote
def train(network: Any, settings: dict[str, Any], epochs: int, data: Any) -> tuple[dpool.ObjectRef, float]:
    """Train a network (None: a new one) for some epochs: a reference to it, and its accuracy."""
    seen, unseen, seen_labels, unseen_labels = data
    if network is None:
        network = MLPClassifier(**settings)
    for _ in range(epochs):
        network.partial_fit(seen, seen_labels, classes=range(10))
    return dpool.put(network), float(network.score(unseen, unseen_labels))


def random_settings(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "hidden_layer_sizes": (int(2 ** rng.uniform(3, 7)),),
        "learning_rate_init": float(10 ** rng.uniform(-4.5, -0.5)),
        "alpha": float(10 ** rng.uniform(-6, 0)),
        "batch_size": int(2 ** rng.integers(4, 8)),
        "random_state": int(rng.integers(1 << 30)),
    }


def promotable(trials: list[Trial]) -> Trial | None:
    """A trial that waits at a rung, as high as possible, and is among the best of those that reached it."""
    for rung in reversed(range(len(RUNGS) - 1)):
        reached = sorted((trial for trial in trials if len(trial.scores) > rung), key=lambda trial: -trial.scores[rung])
        for trial in reached[: len(reached) // ETA]:
            if trial.rung == rung:
                return trial
    return None


class Search:
    """The trials, and which of them are being trained."""

    def __init__(self, count: int, data: dpool.ObjectRef, rng: np.random.Generator) -> None:
        self.data = data
        self.new = [Trial(random_settings(rng)) for _ in range(count)]
        self.trials: list[Trial] = []
        """Those that were begun."""
        self.running: dict[dpool.Future[Any], Trial] = {}
        self.cancelled = 0

    def start(self) -> bool:
        """Continue a promising trial, or begin a new one; False if there is neither."""
        trial = promotable(self.trials)
        if trial is not None:
            trial.rung += 1
        elif self.new:
            trial = self.new.pop()
            self.trials.append(trial)
        else:
            return False
        future = train.remote(trial.network, trial.settings, RUNGS[trial.rung] - trial.epochs, self.data)
        self.running[future] = trial
        return True

    def run(self, workers: int, target: float) -> Trial:
        """The best trial."""
        while True:
            while len(self.running) < workers and self.start():
                pass
            if not self.running:
                return self.best()
            for future in dpool.wait(self.running)[0]:
                trial = self.running.pop(future)
                trial.network, score = future.result()
                trial.scores.append(score)
                print(describe(trial), flush=True)
            if self.best().epochs == RUNGS[-1] and self.best().scores[-1] >= target:
                self.cancelled = len(self.running)
                for future in self.running:  # by force: scikit-learn takes an interruption for the end of one epoch
                    dpool.cancel(future, force=True)
                return self.best()

    def best(self) -> Trial:
        return max(self.trials, key=lambda trial: (trial.epochs, trial.scores[-1:]))


def describe(trial: Trial) -> str:
    (units,), rate = trial.settings["hidden_layer_sizes"], trial.settings["learning_rate_init"]
    scores = " → ".join(f"{score:.3f}" for score in trial.scores)
    return f"{units:4} units, learning rate {rate:.5f}, {trial.epochs:2} epochs: {scores}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Search the settings of a network with early stopping.")
    parser.add_argument("--trials", type=int, default=60, metavar="N", help="random settings to try (60)")
    parser.add_argument("--target", type=float, default=1.0, help="accuracy that ends the search (1)")
    parser.add_argument("--workers", type=int, metavar="N", help="trainings at a time (one for each CPU)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    dpool.init(preload=["sklearn.neural_network"])  # workers have it from the start
    images, labels = load_digits(return_X_y=True)
    rest, test, rest_labels, test_labels = train_test_split(images / 16, labels, test_size=0.2, random_state=0)
    data = dpool.put(train_test_split(rest, rest_labels, test_size=0.25, random_state=0))
    search = Search(options.trials, data, np.random.default_rng(options.seed))
    best = search.run(options.workers or int(dpool.cluster_resources()["CPU"]), options.target)
    spent, all_the_way = sum(trial.epochs for trial in search.trials), options.trials * RUNGS[-1]
    finished = sum(trial.epochs == RUNGS[-1] for trial in search.trials)
    print(f"best: {describe(best)}")
    print(f"accuracy on the test set: {dpool.get(best.network).score(test, test_labels):.3f}")
    print(
        f"{len(search.trials)} trials begun, {finished} trained to the end, {search.cancelled} cancelled; "
        f"{spent} epochs instead of {all_the_way}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
