"""Proximal policy optimisation: learn CartPole-v1 or Pendulum-v1 with actors that play and a driver that learns.

```
            weights, by one put
 driver ──────────────────────────► rollout actors, each with environments of its own
   ▲   Adam on the clipped objective      │ play a few hundred steps
   └────────── observations, actions, rewards (arrays, through shared memory)
```

The policy is a network with one hidden layer, and so is the estimate of a state's value; their gradients are written
out by hand, in numpy. Discrete actions (CartPole: push left or right) are drawn from a categorical distribution,
continuous ones (Pendulum: a torque) from a normal one. Advantages are generalised ones (GAE): an episode that ended by
running out of time counts as if it went on.

The actors keep their environments between calls, so that episodes go on where the last rollout ended; all that the
driver sends is the weights, which every actor reads from the same place. An actor whose process dies is made anew and
plays that rollout again (`max_restarts`, `max_task_retries`). Otherwise a run with the same seed and the same number of
actors gives the same numbers.

Source: Schulman, Wolski, Dhariwal, Radford, Klimov: Proximal Policy Optimization Algorithms, 2017; and Schulman et al.:
High-Dimensional Continuous Control Using Generalized Advantage Estimation, 2016. Run it with
`python examples/ppo.py --environment Pendulum-v1`; it needs numpy and gymnasium.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

import gymnasium
import numpy as np

import dpool

HIDDEN = 64
CLIP = 0.2
Array = Any
"""Of numpy."""
Weights = dict[str, Array]
"""`policy.w1`, `.b1`, `.w2`, `.b2`, the same of `value`, and `log_std` if actions are continuous."""


class Settings(NamedTuple):
    """What suits an environment."""

    iterations: int
    gamma: float
    target: float
    """Mean reward of an episode at which it is learned."""
    scale: float
    """By which rewards are multiplied, so that values are of the size that a network learns easily."""
    learning_rate: float = 3e-3
    lambda_: float = 0.95
    epochs: int = 10
    minibatch: int = 256


SETTINGS = {
    "CartPole-v1": Settings(iterations=60, gamma=0.99, target=475.0, scale=0.1),
    "Pendulum-v1": Settings(iterations=120, gamma=0.9, target=-200.0, scale=0.1),
}


# --- The networks ---


def initial_weights(inputs: int, actions: int, continuous: bool, rng: np.random.Generator) -> Weights:
    weights: Weights = {"log_std": np.zeros(actions)} if continuous else {}
    for name, outputs, gain in (("policy", actions, 0.01), ("value", 1, 1.0)):  # at first all actions are as good
        weights[f"{name}.w1"] = rng.standard_normal((inputs, HIDDEN)) / np.sqrt(inputs)
        weights[f"{name}.b1"] = np.zeros(HIDDEN)
        weights[f"{name}.w2"] = gain * rng.standard_normal((HIDDEN, outputs)) / np.sqrt(HIDDEN)
        weights[f"{name}.b2"] = np.zeros(outputs)
    return weights


def forward(weights: Weights, name: str, inputs: Array) -> tuple[Array, Array]:
    """The hidden layer and the outputs of a network: logits or means of the actions; the value of a state."""
    hidden = np.tanh(inputs @ weights[f"{name}.w1"] + weights[f"{name}.b1"])
    return hidden, hidden @ weights[f"{name}.w2"] + weights[f"{name}.b2"]


def backward(weights: Weights, name: str, inputs: Array, hidden: Array, by_output: Array) -> Weights:
    """The gradients of a network's weights, from those of its outputs."""
    by_hidden = (by_output @ weights[f"{name}.w2"].T) * (1 - hidden**2)
    return {
        f"{name}.w1": inputs.T @ by_hidden,
        f"{name}.b1": by_hidden.sum(axis=0),
        f"{name}.w2": hidden.T @ by_output,
        f"{name}.b2": by_output.sum(axis=0),
    }


def probabilities(logits: Array) -> Array:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def sample(weights: Weights, outputs: Array, rng: np.random.Generator) -> Array:
    """An action for each row of the policy's outputs."""
    if "log_std" in weights:
        return outputs + np.exp(weights["log_std"]) * rng.standard_normal(outputs.shape)
    bounds = probabilities(outputs).cumsum(axis=1)[:, :-1]
    return (bounds < rng.random((len(outputs), 1))).sum(axis=1)


def log_probability(weights: Weights, outputs: Array, actions: Array) -> Array:
    if "log_std" in weights:
        distance = (actions - outputs) / np.exp(weights["log_std"])
        return -(distance**2 / 2 + weights["log_std"] + np.log(2 * np.pi) / 2).sum(axis=1)
    return np.log(probabilities(outputs)[np.arange(len(actions)), actions])


class Batch(NamedTuple):
    """What is learned from at a time: arrays with a row for each step."""

    observations: Array
    actions: Array
    old: Array
    """Logarithms of the actions' probabilities when they were chosen."""
    advantages: Array
    returns: Array


def loss_and_gradients(weights: Weights, batch: Batch) -> tuple[float, Weights]:
    """The clipped loss plus half the squared error of the values, and its gradient for each weight."""
    hidden, outputs = forward(weights, "policy", batch.observations)
    ratio = np.exp(log_probability(weights, outputs, batch.actions) - batch.old)
    free, clipped = ratio * batch.advantages, np.clip(ratio, 1 - CLIP, 1 + CLIP) * batch.advantages
    value_hidden, values = forward(weights, "value", batch.observations)
    errors = values[:, 0] - batch.returns
    loss = -np.minimum(free, clipped).mean() + (errors**2).mean() / 2

    # Where the clipped term is the smaller one it is constant: no gradient. Otherwise d ratio = ratio × d log p.
    by_log = np.where(free <= clipped, -free, 0.0)[:, None] / len(free)
    gradients: Weights = {}
    if "log_std" in weights:
        deviation = np.exp(weights["log_std"])
        distance = (batch.actions - outputs) / deviation
        by_output = by_log * distance / deviation
        gradients["log_std"] = (by_log * (distance**2 - 1)).sum(axis=0)
    else:
        by_output = by_log * (np.eye(outputs.shape[1])[batch.actions] - probabilities(outputs))
    gradients |= backward(weights, "policy", batch.observations, hidden, by_output)
    gradients |= backward(weights, "value", batch.observations, value_hidden, errors[:, None] / len(errors))
    return float(loss), gradients


class Adam:
    """Kingma, Ba: Adam, a Method for Stochastic Optimization, 2015."""

    def __init__(self, weights: Weights, rate: float) -> None:
        self.rate, self.steps = rate, 0
        self.mean = {name: np.zeros_like(array) for name, array in weights.items()}
        self.square = {name: np.zeros_like(array) for name, array in weights.items()}

    def step(self, weights: Weights, gradients: Weights) -> None:
        self.steps += 1
        rate = self.rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for name, gradient in gradients.items():
            self.mean[name] += 0.1 * (gradient - self.mean[name])
            self.square[name] += 0.001 * (gradient**2 - self.square[name])
            weights[name] -= rate * self.mean[name] / (np.sqrt(self.square[name]) + 1e-8)


# --- Playing ---


class Rollout(NamedTuple):
    """What an actor saw: arrays of (steps, environments, …)."""

    observations: Array
    actions: Array
    log_probabilities: Array
    rewards: Array
    following: Array
    """The observation after each step, also of an episode that ended with it."""
    terminated: Array
    """The episode came to its end: nothing more is to be had."""
    over: Array
    """It was terminated, or its time was up."""
    episodes: list[float]
    """Rewards of the episodes that ended."""


class Player:
    """Plays in environments of its own; an actor."""

    def __init__(self, environment: str, count: int, seed: int) -> None:
        self.environments: list[Any] = [gymnasium.make(environment) for _ in range(count)]
        self.rng = np.random.default_rng(seed)
        self.observations = np.array([env.reset(seed=seed + i)[0] for i, env in enumerate(self.environments)])
        self.rewards = np.zeros(count)

    def play(self, weights: Weights, steps: int) -> Rollout:
        episodes: list[float] = []
        rows = [self.step(weights, episodes) for _ in range(steps)]
        return Rollout._make([*map(np.array, zip(*rows, strict=True)), episodes])

    def step(self, weights: Weights, episodes: list[float]) -> tuple[Any, ...]:
        """One step of each environment: a row of the rollout."""
        before = self.observations
        _, outputs = forward(weights, "policy", before)
        actions = sample(weights, outputs, self.rng)
        results = [env.step(action)[:4] for env, action in zip(self.environments, actions, strict=True)]
        following, rewards, terminated, truncated = map(np.array, zip(*results, strict=True))
        over = terminated | truncated
        self.rewards += rewards
        self.observations = following.copy()
        for i in np.flatnonzero(over):
            episodes.append(float(self.rewards[i]))
            self.rewards[i] = 0.0
            self.observations[i], _ = self.environments[i].reset()
        return before, actions, log_probability(weights, outputs, actions), rewards, following, terminated, over


# --- Learning ---


def advantages_of(weights: Weights, rollout: Rollout, settings: Settings) -> Array:
    """How much better each action turned out than the value of its state (GAE): (steps, environments)."""
    values, following = (
        forward(weights, "value", part)[1][:, :, 0] for part in (rollout.observations, rollout.following)
    )
    errors = settings.scale * rollout.rewards + settings.gamma * following * ~rollout.terminated - values
    advantages, last = np.empty_like(errors), np.zeros_like(errors[0])
    for at in reversed(range(len(errors))):
        last = advantages[at] = errors[at] + settings.gamma * settings.lambda_ * last * ~rollout.over[at]
    return advantages


def learn(weights: Weights, adam: Adam, rollouts: list[Rollout], settings: Settings, rng: np.random.Generator) -> None:
    """Some epochs of Adam on what the actors saw; changes `weights`."""
    advantages = np.concatenate([advantages_of(weights, rollout, settings).ravel() for rollout in rollouts])
    columns = list(zip(*rollouts, strict=True))[:3]
    observations, actions, old = (
        np.concatenate([part.reshape(-1, *part.shape[2:]) for part in column]) for column in columns
    )
    returns = advantages + forward(weights, "value", observations)[1][:, 0]
    for _ in range(settings.epochs):
        order = rng.permutation(len(actions))
        for rows in np.array_split(order, max(1, len(order) // settings.minibatch)):
            part = advantages[rows]
            part = (part - part.mean()) / (part.std() + 1e-8)
            batch = Batch(observations[rows], actions[rows], old[rows], part, returns[rows])
            adam.step(weights, loss_and_gradients(weights, batch)[1])


def train(options: argparse.Namespace, settings: Settings) -> float:
    """The mean reward of the last 50 episodes, which is the target, or what came of all iterations."""
    env: Any = gymnasium.make(options.environment)
    continuous = isinstance(env.action_space, gymnasium.spaces.Box)
    actions = env.action_space.shape[0] if continuous else int(env.action_space.n)
    rng = np.random.default_rng(options.seed)
    weights = initial_weights(env.observation_space.shape[0], actions, continuous, rng)
    adam = Adam(weights, settings.learning_rate)
    player = dpool.remote(Player).options(max_restarts=-1, max_task_retries=-1)  # it comes back, and plays on
    players = [
        player.remote(options.environment, options.environments, 1000 * (options.seed * options.actors + number))
        for number in range(options.actors)
    ]
    recent: list[float] = []
    mean = -np.inf
    for iteration in range(1, options.iterations + 1):
        shared = dpool.put(weights)
        rollouts = dpool.get([one.play.remote(shared, options.steps) for one in players])
        recent = (recent + [reward for rollout in rollouts for reward in rollout.episodes])[-50:]
        learn(weights, adam, rollouts, settings, rng)
        mean = float(np.mean(recent)) if recent else mean
        print(f"iteration {iteration:3}: mean reward of {len(recent)} episodes {mean:8.1f}", flush=True)
        if len(recent) == 50 and mean >= options.target:
            break
    return mean


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="PPO on CartPole-v1 or Pendulum-v1.")
    parser.add_argument("--environment", choices=SETTINGS, default="CartPole-v1")
    parser.add_argument("--actors", type=int, default=2, metavar="N", help="rollout actors (2)")
    parser.add_argument("--environments", type=int, default=8, metavar="N", help="of each actor (8)")
    parser.add_argument("--steps", type=int, default=128, metavar="N", help="in each of them, for one iteration (128)")
    parser.add_argument("--iterations", type=int, metavar="N", help="at most so many (60, 120)")
    parser.add_argument("--target", type=float, help="mean reward at which it is learned (475, -200)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    settings = SETTINGS[options.environment]
    options.iterations = settings.iterations if options.iterations is None else options.iterations
    options.target = settings.target if options.target is None else options.target
    reward = train(options, settings)
    print(f"{options.environment}: mean reward {reward:.1f}, target {options.target:.1f}")
    return 0 if reward >= options.target else 1


if __name__ == "__main__":
    sys.exit(main())
