"""Evolution strategies: learn to balance a pole (CartPole-v1) by trying out random changes of a policy, in parallel.

```
 noise table ── put once ──► the object store ── read in place ─┐
 parameters, offsets ──► evaluate(…) × tasks ──► two rewards for each offset ──► ranks ──► next parameters
```

A pair of perturbations, θ + σε and θ − σε (mirrored sampling), plays one episode each from the same start. Their
rewards become ranks, which weigh the noise ε into a gradient. The noise is never sent: every worker reads it, where it
lies, from one table in shared memory, and a task names it by an offset; what travels is the parameters on the way
there, and two numbers for each pair on the way back.

Source: Salimans, Ho, Chen, Sidor, Sutskever: Evolution Strategies as a Scalable Alternative to Reinforcement Learning,
2017. Run it with `python examples/evolution_strategies.py`; it needs numpy and gymnasium.
"""

from __future__ import annotations

import argparse
import sys
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np

import dpool

ENVIRONMENT = "CartPole-v1"
INPUTS, HIDDEN, ACTIONS = 4, 16, 2
PARAMETERS = INPUTS * HIDDEN + HIDDEN + HIDDEN * ACTIONS + ACTIONS
NOISE_TABLE = 1 << 20
"""Numbers of the shared table (4 MiB)."""
Array = Any
"""Of numpy."""
SOLVED = 475.0
"""The mean reward that gymnasium counts as solved; 500 is the most."""


class Policy:
    """A network with one hidden layer, in one flat vector of parameters; it takes the action that it likes best."""

    def __init__(self, parameters: Array) -> None:
        sizes = (INPUTS * HIDDEN, HIDDEN, HIDDEN * ACTIONS)
        first, self.bias, second, self.last_bias = np.split(parameters, np.cumsum(sizes))
        self.first, self.second = first.reshape(INPUTS, HIDDEN), second.reshape(HIDDEN, ACTIONS)

    def __call__(self, observation: Array) -> int:
        hidden = np.tanh(observation @ self.first + self.bias)
        return int(np.argmax(hidden @ self.second + self.last_bias))


@lru_cache(maxsize=1)
def environment() -> Any:
    """One for each worker process: made when its first task asks for it."""
    return gymnasium.make(ENVIRONMENT)


def episode(parameters: Array, seed: int) -> float:
    """The reward of one episode, whose start the seed decides."""
    policy, env = Policy(parameters), environment()
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total += reward
        over = terminated or truncated
    return total


@dpool.remote
def evaluate(parameters: Array, noise: Array, offsets: Array, sigma: float, seed: int) -> Array:
    """Rewards of θ + σε and θ − σε for the noise ε at each offset: an array (offsets, 2). `noise` arrives as a view."""
    rewards = []
    for number, offset in enumerate(offsets):
        step = sigma * noise[offset : offset + PARAMETERS]
        rewards.append([episode(parameters + step, seed + number), episode(parameters - step, seed + number)])
    return np.array(rewards).reshape(-1, 2)


@dpool.remote
def play(parameters: Array, seeds: range) -> list[float]:
    """Rewards of the policy as it is, one episode for each seed."""
    return [episode(parameters, seed) for seed in seeds]


def centred_ranks(rewards: Array) -> Array:
    """Each reward's rank, scaled to −0.5 … 0.5; equal rewards get the mean of their ranks."""
    _, group, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    mean_rank = (last - (counts - 1) / 2)[group.reshape(rewards.shape)]
    return mean_rank / (rewards.size - 1) - 0.5


def mean_reward(parameters: Array, episodes: int, tasks: int, seed: int) -> float:
    """Mean over `episodes` episodes, that no training has seen if `seed` is far from that of training."""
    parts = [range(seed + part, seed + episodes, tasks) for part in range(tasks)]
    return float(np.mean(np.concatenate(dpool.get([play.remote(parameters, part) for part in parts]))))


def train(options: argparse.Namespace) -> Array:
    """The parameters that reach the target, or those of the last generation."""
    rng = np.random.default_rng(options.seed)
    table = rng.standard_normal(NOISE_TABLE, dtype=np.float32)
    noise = dpool.put(table)  # once; every task takes the reference
    parameters: Array = np.zeros(PARAMETERS, dtype=np.float32)
    momentum: Array = np.zeros(PARAMETERS, dtype=np.float32)
    for generation in range(1, options.generations + 1):
        offsets = rng.integers(0, NOISE_TABLE - PARAMETERS, options.pairs)
        seed = int(rng.integers(1 << 30))
        futures = [
            evaluate.remote(parameters, noise, part, options.sigma, seed + number * options.pairs)
            for number, part in enumerate(np.array_split(offsets, options.tasks))
        ]
        rewards = np.concatenate(dpool.get(futures))
        ranks = centred_ranks(rewards)
        weights = ranks[:, 0] - ranks[:, 1]
        steps = np.stack([table[offset : offset + PARAMETERS] for offset in offsets])
        momentum = 0.9 * momentum + weights @ steps / (options.pairs * options.sigma)
        parameters = parameters + options.learning_rate * momentum
        reached = mean_reward(parameters, 50, options.tasks, 1 << 31)
        print(f"generation {generation:3}: population {rewards.mean():6.1f}, policy {reached:6.1f}", flush=True)
        if reached >= options.target:
            break
    return parameters


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evolution strategies on CartPole-v1.")
    parser.add_argument("--generations", type=int, default=60, metavar="N", help="at most so many (60)")
    parser.add_argument("--pairs", type=int, default=32, metavar="N", help="mirrored pairs of a generation (32)")
    parser.add_argument("--tasks", type=int, default=8, metavar="N", help="tasks of a generation (8)")
    parser.add_argument("--sigma", type=float, default=0.3, help="how far a perturbation goes (0.3)")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="(0.1)")
    parser.add_argument("--target", type=float, default=490.0, help="reward at which training ends (490)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    parameters = train(options)
    reward = mean_reward(parameters, 100, options.tasks, 1 << 32)
    print(f"mean reward over 100 new episodes: {reward:.1f} ({SOLVED:.0f} counts as solved)")
    return 0 if reward >= SOLVED else 1


if __name__ == "__main__":
    sys.exit(main())
