"""The examples that learn: they reach their reward, and what they are made of is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import evolution_strategies, ppo
from tests.helpers import REPOSITORY, Script, kill, run_script

EXAMPLES = REPOSITORY / "examples"


def last_number(pattern: str, text: str) -> float:
    """The number that the last match of a pattern with one group found."""
    found = re.findall(pattern, text)
    assert found, f"{pattern} is not in:\n{text}"
    return float(found[-1])


# --- Evolution strategies ---


def test_evolution_strategies_balance_the_pole() -> None:
    printed = run_script(EXAMPLES / "evolution_strategies.py", timeout=100).check().stdout
    first = last_number(r"generation   1: population +([\d.]+)", printed)
    learned = last_number(r"mean reward over 100 new episodes: ([\d.]+)", printed)
    assert first < 100  # it does not begin with a policy that can
    assert 475 <= learned <= 500


def test_evolution_strategies_that_do_not_get_there_say_so() -> None:
    result = run_script(EXAMPLES / "evolution_strategies.py", "--generations", "1", "--pairs", "2", timeout=100)
    assert result.rc == 1
    assert last_number(r"new episodes: ([\d.]+)", result.stdout) < 475


def test_policy_has_the_parameters_that_it_is_given() -> None:
    parameters = np.zeros(evolution_strategies.PARAMETERS)
    parameters[-2:] = 0, 1  # the biases of the two actions
    assert evolution_strategies.Policy(parameters)(np.ones(4)) == 1
    parameters[-2:] = 1, 0
    assert evolution_strategies.Policy(parameters)(np.ones(4)) == 0


def test_centred_ranks() -> None:
    ranks = evolution_strategies.centred_ranks(np.array([[30.0, 10.0], [20.0, 500.0], [10.0, 7.0]]))
    np.testing.assert_allclose(ranks, np.array([[4, 1.5], [3, 5], [1.5, 0]]) / 5 - 0.5)
    assert ranks.sum() == pytest.approx(0)


# --- Proximal policy optimisation ---


@pytest.mark.parametrize(("environment", "target"), [("CartPole-v1", 195.0), ("Pendulum-v1", -400.0)])
def test_ppo_reaches_its_reward(environment: str, target: float) -> None:
    arguments = "--environment", environment, "--target", str(target)
    printed = run_script(EXAMPLES / "ppo.py", *arguments, timeout=100).check().stdout
    begun = last_number(r"iteration   2: .* ([-\d.]+)\n", printed)
    learned = last_number(r"mean reward ([-\d.]+), target", printed)
    assert begun < {"CartPole-v1": 60, "Pendulum-v1": -900}[environment]
    assert learned >= target


def name_of(pid: int) -> str:
    """As `ps` shows it; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_ppo_goes_on_when_its_players_die() -> None:
    with Script(EXAMPLES / "ppo.py", "--target", "100") as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline().startswith("iteration   1")
        players = [one for one in running.leftovers() if name_of(one.pid) == "dpool-worker"]
        assert players
        kill(players)
        printed = running.finish(timeout=100).check().stdout
    assert last_number(r"mean reward ([-\d.]+), target", printed) >= 100


@pytest.mark.parametrize("continuous", [False, True])
def test_ppo_gradients_are_those_of_the_loss(continuous: bool) -> None:
    """Against differences of the loss, for some entries of every weight."""
    rng = np.random.default_rng(1)
    weights = ppo.initial_weights(4, 3, continuous, rng)
    weights = {name: array + 0.3 * rng.standard_normal(array.shape) for name, array in weights.items()}
    observations, advantages, returns = rng.standard_normal((50, 4)), rng.standard_normal(50), rng.standard_normal(50)
    _, outputs = ppo.forward(weights, "policy", observations)
    actions = ppo.sample(weights, outputs, rng)
    old: Any = ppo.log_probability(weights, outputs, actions) + 0.3 * rng.standard_normal(50)  # some ratios are clipped
    batch = ppo.Batch(observations, actions, old, advantages, returns)
    _, gradients = ppo.loss_and_gradients(weights, batch)
    assert gradients.keys() == weights.keys()
    for name, array in weights.items():
        for at in range(0, array.size, max(1, array.size // 5)):
            index = np.unravel_index(at, array.shape)
            losses = []
            for change in (1e-6, -2e-6):
                array[index] += change
                losses.append(ppo.loss_and_gradients(weights, batch)[0])
            array[index] += 1e-6
            assert gradients[name][index] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-7), name


def test_ppo_clips() -> None:
    """Where an action has become more likely than the clip allows, and was good, there is nothing more to gain."""
    weights = ppo.initial_weights(4, 2, False, np.random.default_rng(0))
    observations, actions = np.ones((1, 4)), np.array([1])
    now = ppo.log_probability(weights, ppo.forward(weights, "policy", observations)[1], actions)
    for advantage, old, free in ((1.0, now - 1, False), (1.0, now + 1, True), (-1.0, now - 1, True)):
        batch = ppo.Batch(observations, actions, old, np.array([advantage]), np.zeros(1))
        _, gradients = ppo.loss_and_gradients(weights, batch)
        assert gradients["policy.w2"].any() == free


def test_ppo_draws_actions_as_probable_as_it_says() -> None:
    rng = np.random.default_rng(0)
    weights = ppo.initial_weights(4, 3, False, rng)
    outputs = np.tile([0.0, 1.0, -1.0], (20_000, 1))
    actions = ppo.sample(weights, outputs, rng)
    for action in range(3):
        expected = np.exp(ppo.log_probability(weights, outputs[:1], np.array([action])))[0]
        assert (actions == action).mean() == pytest.approx(expected, abs=0.02)


def test_advantages_end_where_episodes_do() -> None:
    """Values are 1 everywhere: a step's error is its reward + 0.5 × 1 − 1, without the 0.5 after the end."""
    weights = ppo.initial_weights(2, 1, True, np.random.default_rng(0))
    weights["value.w2"][:], weights["value.b2"][:] = 0, 1
    settings = ppo.Settings(iterations=1, gamma=0.5, target=0, scale=1, lambda_=0.5)
    steps = np.zeros((4, 1, 2))
    flags = np.array([[False], [True], [False], [False]])
    for terminated, at_the_end in ((flags, 1.0), (np.zeros_like(flags), 1.5)):  # the latter: its time was up
        rewards = np.array([[1.0], [2.0], [3.0], [4.0]])
        rollout = ppo.Rollout(steps, steps, rewards, rewards, steps, terminated, flags, [])
        advantages = ppo.advantages_of(weights, rollout, settings)
        np.testing.assert_allclose(advantages[:, 0], [0.5 + at_the_end / 4, at_the_end, 2.5 + 3.5 / 4, 3.5])
