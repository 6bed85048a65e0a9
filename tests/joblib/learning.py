"""What the tests ask of scikit-learn, on data that it brings along; each function returns plain numbers."""

from __future__ import annotations

from typing import Any

from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

JOBS = 2


def grid_search() -> list[Any]:
    data, target = load_digits(return_X_y=True)
    search = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [0.001, 0.01]}, cv=3)
    search.fit(data[:600], target[:600])
    return [search.best_params_, search.best_score_, search.cv_results_["mean_test_score"].tolist()]


def cross_validation() -> list[Any]:
    data, target = load_digits(return_X_y=True)
    scores = cross_val_score(LogisticRegression(tol=0.1, max_iter=500), data[:500], target[:500], cv=4)
    return list(scores.tolist())


def random_forest() -> list[Any]:
    data, target = load_digits(return_X_y=True)
    forest = RandomForestClassifier(n_estimators=20, random_state=0, n_jobs=JOBS).fit(data[:600], target[:600])
    return [forest.predict_proba(data[600:700]).tolist(), forest.feature_importances_.tolist()]


def importance() -> list[Any]:
    data, target = load_diabetes(return_X_y=True)
    found = permutation_importance(Ridge().fit(data, target), data, target, n_repeats=4, random_state=0)
    return list(found.importances.tolist())


def forests_in_a_search() -> list[Any]:
    """Parallel inside Parallel."""
    data, target = load_digits(return_X_y=True)
    forest = RandomForestClassifier(n_estimators=5, random_state=0, n_jobs=JOBS)
    search = GridSearchCV(forest, {"max_depth": [3, 6]}, cv=2).fit(data[:300], target[:300])
    return list(search.cv_results_["mean_test_score"].tolist())


EVERYTHING = (grid_search, cross_validation, random_forest, importance, forests_in_a_search)
