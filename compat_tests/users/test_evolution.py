"""Optimisers by evolution: nevergrad, Platypus and pymoo."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import dpool
from compat_tests.users.support import WORKERS, assert_ran_in, misfit

np = pytest.importorskip("numpy")
pytest.importorskip("sklearn")


def search(function: Any, executor: Any) -> list[float]:
    nevergrad = pytest.importorskip("nevergrad")
    space = nevergrad.p.Array(shape=(2,)).set_bounds(-5, 5)
    space.random_state.seed(7)
    optimizer = nevergrad.optimizers.DE(space, budget=60, num_workers=WORKERS)
    return list(optimizer.minimize(function, executor=executor, batch_mode=True).value)


def test_nevergrad(executor: dpool.Executor, note: Any) -> None:
    noted = note(misfit)
    found = search(noted, executor)
    assert_ran_in(executor, noted)
    with ThreadPoolExecutor(1) as threads:
        assert found == search(misfit, threads)


def trade(variables: Any) -> list[float]:
    """Two aims that cannot both be had: a good line, and a flat one."""
    return [misfit(variables), abs(variables[1])]


def front(function: Any, evaluator: Any) -> list[tuple[list[float], list[float]]]:
    import platypus

    problem = platypus.Problem(2, 2, function=function)
    problem.types[:] = platypus.Real(-5, 5)
    random.seed(9)
    algorithm = platypus.NSGAII(problem, population_size=20, evaluator=evaluator)
    algorithm.run(80)
    return [(list(one.variables), list(one.objectives)) for one in algorithm.result]


def test_platypus_submits(executor: dpool.Executor, note: Any) -> None:
    platypus = pytest.importorskip("platypus")
    noted = note(trade)
    assert front(noted, platypus.SubmitEvaluator(executor.submit)) == front(trade, platypus.MapEvaluator())
    assert_ran_in(executor, noted)


def test_platypus_maps(either: Any, note: Any) -> None:
    platypus = pytest.importorskip("platypus")
    noted = note(trade)
    assert front(noted, platypus.MapEvaluator(either.map)) == front(trade, platypus.MapEvaluator())
    assert_ran_in(either, noted)


def test_platypus_takes_a_pool(note: Any) -> None:
    """Its PoolEvaluator closes the pool at the end, and waits for it."""
    platypus = pytest.importorskip("platypus")
    noted = note(trade)
    pool = dpool.Pool(WORKERS)
    with platypus.PoolEvaluator(pool) as evaluator:
        found = front(noted, evaluator)
        assert_ran_in(pool, noted)
    assert found == front(trade, platypus.MapEvaluator())
    with pytest.raises(ValueError, match="not running"):
        pool.map(trade, [])


def minimise(function: Any, runner: Any) -> tuple[Any, Any]:
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize

    class Trade(ElementwiseProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            more = {} if runner is None else {"elementwise_runner": runner}
            super().__init__(n_var=2, n_obj=2, xl=-5, xu=5, **more)

        def _evaluate(self, x: Any, out: Any, *args: Any, **kwargs: Any) -> None:
            out["F"] = function(x)

    result = minimize(Trade(), NSGA2(pop_size=16), ("n_gen", 5), seed=1)
    return result.X, result.F


def test_pymoo(pool: dpool.Pool, note: Any) -> None:
    pytest.importorskip("pymoo")
    try:
        from pymoo.parallelization.starmap import StarmapParallelization
    except ImportError:  # older versions have it elsewhere
        from pymoo.core.problem import StarmapParallelization
    noted = note(trade)
    found = minimise(noted, StarmapParallelization(pool.starmap))
    assert_ran_in(pool, noted)
    for ours, theirs in zip(found, minimise(trade, None), strict=True):
        assert np.array_equal(ours, theirs)
