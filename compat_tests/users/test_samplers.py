"""Samplers of posterior densities: emcee, dynesty, nautilus and lmfit."""

from __future__ import annotations

from typing import Any

import pytest

import dpool
from compat_tests.users.support import WORKERS, Serial, assert_ran_in, diabetes, log_likelihood, workers_of

np = pytest.importorskip("numpy")
pytest.importorskip("sklearn")

WIDTH = 10.0


def log_posterior(parameters: Any) -> float:
    return -np.inf if np.any(np.abs(parameters) > WIDTH) else log_likelihood(parameters)


def from_the_unit_cube(unit: Any) -> Any:
    return (unit - 0.5) * WIDTH


def walk(function: Any, pool: Any) -> Any:
    emcee = pytest.importorskip("emcee")
    random = np.random.RandomState(5)
    sampler = emcee.EnsembleSampler(12, 3, function, pool=pool)
    sampler.random_state = random.get_state()
    sampler.run_mcmc(random.normal(size=(12, 3)) * 0.1, 25)
    return sampler.get_chain()


def test_emcee(either: Any, note: Any) -> None:
    noted = note(log_posterior)
    assert np.array_equal(walk(noted, either), walk(log_posterior, None))
    assert_ran_in(either, noted)


def nested(function: Any, pool: Any, **settings: Any) -> tuple[float, float]:
    dynesty = pytest.importorskip("dynesty")
    sampler = dynesty.NestedSampler(
        function, from_the_unit_cube, 3, nlive=30, rstate=np.random.default_rng(8), pool=pool, **settings
    )
    sampler.run_nested(maxiter=150, print_progress=False)
    return float(sampler.results.logl[-1]), float(sampler.results.logz[-1])


def test_dynesty_asks_the_pool_for_its_size(pool: dpool.Pool, note: Any) -> None:
    noted = note(log_likelihood)
    assert nested(noted, pool) == nested(log_likelihood, Serial())
    assert_ran_in(pool, noted)


def test_dynesty_with_an_executor(executor: dpool.Executor, note: Any) -> None:
    noted = note(log_likelihood)
    assert nested(noted, executor, queue_size=WORKERS) == nested(log_likelihood, Serial())
    assert_ran_in(executor, noted)


def explore(function: Any, pool: Any) -> tuple[float, int]:
    nautilus = pytest.importorskip("nautilus")
    sampler = nautilus.Sampler(
        from_the_unit_cube, function, n_dim=3, n_live=150, n_networks=1, n_batch=20, seed=2, pool=pool
    )
    sampler.run(n_like_max=400, n_eff=200)
    return float(sampler.log_z), int(sampler.n_like)


def test_nautilus(pool: dpool.Pool, note: Any) -> None:
    noted = note(log_likelihood)
    assert explore(noted, pool) == explore(log_likelihood, Serial())
    assert_ran_in(pool, noted)


def residuals(parameters: Any) -> Any:
    data, target = diabetes()
    return parameters["level"] + parameters["slope"] * data[:, 2] - target


def line() -> Any:
    parameters = pytest.importorskip("lmfit").Parameters()
    parameters.add("level", 1.5, min=-5, max=5)
    parameters.add("slope", 0.5, min=-5, max=5)
    return parameters


def test_lmfit_samples(pool: dpool.Pool, note: Any) -> None:
    parameters = line()
    from lmfit import Minimizer

    settings = {"nwalkers": 10, "steps": 20, "burn": 5, "thin": 1, "seed": 4, "progress": False}
    expected = Minimizer(residuals, parameters).emcee(**settings)
    noted = note(residuals)
    found = Minimizer(noted, parameters).emcee(workers=pool, **settings)
    assert np.array_equal(found.chain, expected.chain)
    assert noted.pids() >= workers_of(pool), "and here, once"
