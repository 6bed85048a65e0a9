"""scikit-learn under `parallel_config("dpool")`: dpool's workers do the work.

More of its functions are compared with themselves in tests/joblib/test_sklearn.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("joblib")
pytest.importorskip("sklearn")

import joblib
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import BaggingClassifier, ExtraTreesRegressor, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate, learning_curve
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from compat_tests.users.support import WORKERS, diabetes
from dpool.joblib import close_executors, register_joblib
from tests.helpers import run_script


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    register_joblib()
    yield
    close_executors()


def accuracy(model: Any, data: Any, target: Any) -> float:
    return float(model.score(data, target))


def validate(scorer: Any) -> Any:
    data, target = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    return cross_validate(model, data, target, cv=5, scoring=scorer, return_train_score=True)


def search(scorer: Any) -> Any:
    data, target = load_wine(return_X_y=True)
    found = GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": range(1, 7)}, scoring=scorer)
    return found.fit(data, target).cv_results_


def learn(scorer: Any) -> Any:
    data, target = load_wine(return_X_y=True)
    return dict(enumerate(learning_curve(GaussianNB(), data, target, scoring=scorer, shuffle=True, random_state=1)))


@pytest.mark.parametrize("work", [validate, search, learn])
def test_the_work_is_done_in_workers(work: Any, note: Any) -> None:
    expected = work(accuracy)
    noted = note(accuracy)
    with joblib.parallel_config("dpool", n_jobs=WORKERS):
        found = work(noted)
    pids = noted.pids()
    assert pids
    assert os.getpid() not in pids
    assert len(pids) <= WORKERS
    for name in expected:
        if "time" not in str(name) and name != "params":
            assert list(map(str, found[name])) == list(map(str, expected[name])), name


def bag() -> Any:
    data, target = load_wine(return_X_y=True)
    return BaggingClassifier(n_estimators=8, random_state=3, n_jobs=WORKERS).fit(data, target).predict_proba(data)


def stack() -> Any:
    data, target = load_wine(return_X_y=True)
    trees = [(f"tree{depth}", DecisionTreeClassifier(max_depth=depth, random_state=depth)) for depth in (2, 4)]
    return StackingClassifier(trees, n_jobs=WORKERS).fit(data, target).predict_proba(data)


def extra_trees() -> Any:
    data, target = diabetes()
    return ExtraTreesRegressor(n_estimators=10, random_state=0, n_jobs=WORKERS).fit(data, target).predict(data)


def test_the_same_numbers_as_with_loky() -> None:
    script = """
import json, joblib, dpool
from compat_tests.users.test_sklearn import WORKERS, bag, extra_trees, stack
if __name__ == "__main__":
    dpool.register_joblib()
    for backend in ("dpool", "loky"):
        with joblib.parallel_config(backend, n_jobs=WORKERS):
            print(json.dumps([work().tolist() for work in (bag, stack, extra_trees)]))
"""
    dpools, lokys = run_script(script).check().stdout.splitlines()
    assert json.loads(dpools) == json.loads(lokys)
