"""joblib's own tests of `Parallel`, from where it is installed, with dpool's backend as its process pool."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("joblib")
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(900)
def test_joblibs_own_tests(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # joblib's tests run under their own settings, not ours
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--timeout=120", "-p", "no:cacheprovider"]
    command += ["-p", "no:valkey", "-p", "compat_tests.joblib_suite", "--pyargs", "joblib.test.test_parallel"]
    run = subprocess.run(
        ["env", f"PYTHONPATH={ROOT}", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    found = re.search(r"(\d+) passed", run.stdout)
    assert found is not None
    assert int(found[1]) > 300
    unmatched = re.findall(r"^left out: 0 × (.*?): ", run.stdout, re.MULTILINE)
    assert not unmatched, "these rows match no test"
