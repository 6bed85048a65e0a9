"""scikit-learn with dpool's workers: the same numbers as in one process, and as with joblib's own pool."""

from __future__ import annotations

import json
from typing import Any

import joblib
import pytest

from tests.helpers import run_script

pytest.importorskip("sklearn")

from tests.joblib import learning


@pytest.mark.parametrize("work", learning.EVERYTHING)
def test_the_same_numbers(work: Any) -> None:
    with joblib.parallel_config("threading", n_jobs=1):
        expected = work()
    with joblib.parallel_config("dpool", n_jobs=learning.JOBS):
        assert work() == expected


def test_the_same_numbers_as_with_loky() -> None:
    script = """
import json, joblib, dpool
from tests.joblib import learning
if __name__ == "__main__":
    for backend in ("dpool", "loky"):
        with joblib.parallel_config(backend, n_jobs=learning.JOBS):
            print(json.dumps([work() for work in learning.EVERYTHING]))
"""
    dpools, lokys = run_script(script, timeout=110).check().stdout.splitlines()
    assert json.loads(dpools) == json.loads(lokys)
