"""The parameter server learns what serial descent learns, loses no update, and waits for nobody."""

from __future__ import annotations

import re

import numpy as np
import pytest

import dpool
from examples import parameter_server
from tests.helpers import REPOSITORY, run_script

SCRIPT = REPOSITORY / "examples" / "parameter_server.py"
LONG_S = 60.0


def some_data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.random((40, 6)), random.integers(0, 10, 40)


def test_gradient_is_that_of_the_cross_entropy() -> None:
    images, labels = some_data()
    weights = np.random.default_rng(2).normal(size=60)

    def loss(at: np.ndarray) -> float:
        return float(-np.log(parameter_server.probabilities(at, images)[np.arange(len(labels)), labels]).mean())

    steps = 1e-6 * np.eye(len(weights))
    measured = [(loss(weights + step) - loss(weights - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(parameter_server.gradient(weights, images, labels), measured, atol=1e-8)


def test_staleness_counts_the_updates_since_the_pull() -> None:
    shard = parameter_server.Shard(np.zeros(3))
    _, one = shard.pull()
    _, other = shard.pull()
    shard.push(np.ones(3), one)
    shard.push(np.ones(3), other)
    shard.push(np.ones(3), other)
    assert (shard.version, shard.staleness) == (3, 0 + 1 + 2)
    np.testing.assert_allclose(shard.weights, -3 * parameter_server.LEARNING_RATE)


def test_one_worker_does_what_serial_descent_does(cluster: None) -> None:
    images, labels = some_data()
    random = np.random.default_rng(3)
    weights = np.zeros(60)
    for _ in range(20):
        batch = random.integers(len(images), size=parameter_server.BATCH)
        gradient = parameter_server.gradient(weights, images[batch], labels[batch])
        weights -= parameter_server.LEARNING_RATE * gradient

    for shards in (1, 4):
        servers = [dpool.ActorProxy(parameter_server.Shard, part) for part in np.array_split(np.zeros(60), shards)]
        assert parameter_server.work.remote(servers, (images, labels), 20, 3, False).result(LONG_S) == 20
        learned, versions = parameter_server.pull(servers)
        np.testing.assert_allclose(learned, weights)
        assert versions == [20] * shards
        assert [server.staleness for server in servers] == [0] * shards


@pytest.mark.needs("module:sklearn")
def test_workers_learn_together(cluster: None) -> None:
    outcome = parameter_server.train(workers=2, shards=3, updates=1000, every_s=LONG_S)
    assert 0.93 <= outcome.accuracy <= 1
    done = [one for one in outcome.done if one is not None]
    assert len(done) == 2
    assert outcome.versions == [sum(done)] * 3  # each update has reached every shard, once
    assert 1000 <= sum(done) < 1010  # each may have begun one more or two


@pytest.mark.needs("module:sklearn")
def test_nobody_waits_for_a_worker_that_hangs() -> None:
    """It never comes back: were anything synchronous, nor would the script."""
    arguments = ("--workers", "3", "--shards", "2", "--updates", "1000", "--hang")
    printed = run_script(SCRIPT, *arguments).check().stdout
    found = re.search(r"by each worker: hung, ([\d,]+), ([\d,]+)\n", printed)
    assert found, printed
    assert 1000 <= sum(int(one.replace(",", "")) for one in found.groups()) < 1010
    closing = re.search(r"updates that were lost: (\d+); accuracy ([\d.]+)\n\Z", printed)
    assert closing, printed
    assert int(closing[1]) == 0
    assert float(closing[2]) >= 0.93


def test_arguments_that_cannot_be() -> None:
    result = run_script(SCRIPT, "--workers", "1", "--hang")
    assert result.rc == 2
    assert "not counting one that hangs" in result.stderr
