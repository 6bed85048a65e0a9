"""Unmodified programs: each prints under `dpool run` what it prints under plain Python, and its pools are dpool's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent / "scripts"
ROOT = SCRIPTS.parent.parent
NEEDS = {"joblib_default": "joblib", "large_array": "numpy", "loky_reusable": "loky"}
ONLY_SERVED = {"killed_worker"}
"""Under plain Python these never end."""
NO_TASKS = {"thread_pool"}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DPOOL_LINGER_S": "0"}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, env=environment, cwd=SCRIPTS, check=False)
    assert done.returncode == 0, f"{done.stdout}\n--- standard error\n{done.stderr}"
    return done


def served(script: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    """The program under `dpool run`, and its report."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        done = run("-m", "dpool", "run", "--report-json", file.name, script)
        return done, json.load(file)


def scripts() -> list[str]:
    return sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.mark.parametrize("name", [name for name in scripts() if name not in ONLY_SERVED])
def test_same_output(name: str) -> None:
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    script = SCRIPTS / f"{name}.py"
    expected = run(script)
    found, report = served(script)
    assert found.stdout == expected.stdout
    assert found.stderr == expected.stderr
    assert bool(report["tasks"]) == (name not in NO_TASKS)
    assert report["standard"] == []
    if name == "large_array":
        assert (report["not_copied_reads"], report["not_copied_bytes"]) == (1, pytest.approx(500_000_000, rel=0.001))


def test_killed_worker() -> None:
    """Its result says so, and all others are there."""
    found, report = served(SCRIPTS / "killed_worker.py")
    assert (found.stdout, found.stderr) == ("13 failed: True\n78\n", "")
    assert report["crashes_survived"] == 1


def test_scripts_know_nothing_of_dpool() -> None:
    assert not [name for name in scripts() if "dpool" in (SCRIPTS / f"{name}.py").read_text()]
