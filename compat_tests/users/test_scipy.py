"""scipy: the functions that take `workers`, a map."""

from __future__ import annotations

from typing import Any

import pytest

from compat_tests.users.support import assert_ran_in, misfit

np = pytest.importorskip("numpy")
pytest.importorskip("sklearn")
integrate = pytest.importorskip("scipy.integrate")
optimize = pytest.importorskip("scipy.optimize")

BOUNDS = [(-5.0, 5.0), (-5.0, 5.0)]


def wave(x: float) -> Any:
    return np.sin(np.arange(1, 5) * x) * x


def test_differential_evolution(either: Any, note: Any) -> None:
    settings = {"rng": 3, "maxiter": 15, "popsize": 6, "updating": "deferred", "polish": False}
    expected = optimize.differential_evolution(misfit, BOUNDS, **settings)
    noted = note(misfit)
    found = optimize.differential_evolution(noted, BOUNDS, workers=either.map, **settings)
    assert found.x.tolist() == expected.x.tolist()
    assert found.fun == expected.fun
    assert_ran_in(either, noted)


def test_brute(either: Any, note: Any) -> None:
    expected = optimize.brute(misfit, BOUNDS, Ns=12, full_output=True, finish=None)
    noted = note(misfit)
    found = optimize.brute(noted, BOUNDS, Ns=12, full_output=True, finish=None, workers=either.map)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)
    assert_ran_in(either, noted)


def test_shgo(either: Any, note: Any) -> None:
    expected = optimize.shgo(misfit, BOUNDS, n=32, iters=1)
    noted = note(misfit)
    found = optimize.shgo(noted, BOUNDS, n=32, iters=1, workers=either.map)
    assert found.x.tolist() == expected.x.tolist()
    assert noted.pids()


def test_quad_vec(either: Any, note: Any) -> None:
    expected, _ = integrate.quad_vec(wave, 0, 10)
    noted = note(wave)
    found, _ = integrate.quad_vec(noted, 0, 10, workers=either.map)
    assert found == pytest.approx(expected)
    assert noted.pids()
