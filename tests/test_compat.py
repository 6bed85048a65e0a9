"""The runner of compat_tests: what it installs, what it says of what it cannot, and that a failure fails the run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compat_tests import __main__ as runner
from tests.helpers import REPOSITORY

HERE = runner.Interpreter(sys.executable, (3, 11), None)
PACKAGE_OF = {"nautilus": "nautilus-sampler", "platypus": "platypus-opt", "sklearn": "scikit-learn"}


def job(*tests: Path) -> runner.Job:
    return runner.Job("job", HERE, ["-p", "no:cacheprovider", "-p", "no:valkey", *map(str, tests)], "", ())


def test_one_job_for_each_interpreter_and_one_for_the_users() -> None:
    other = runner.Interpreter("python3.13", (3, 13), None)
    assert [one.name for one in runner.jobs([HERE, other], HERE)] == ["3.11", "3.13", "users-3.11"]
    suites = runner.jobs([HERE], None)
    assert [one.extra for one in suites] == [""]
    assert "--ignore=compat_tests/users" in suites[0].tests


def test_a_run_says_how_it_closed_and_is_shown_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "test_good.py", tmp_path / "test_bad.py"
    good.write_text('def test_one(): print("in 3s")\n')
    bad.write_text("def test_one(): assert 1 == 2\n")
    passed = runner.run(job(good), sys.executable, [], [])
    assert (passed.status, passed.not_installed) == (0, [])
    assert re.fullmatch(r"1 passed in [\d.]+s", passed.closing_line)
    failed = runner.run(job(good, bad), sys.executable, ["rare >= 1: no such thing"], [])
    assert failed.status == 1
    assert re.fullmatch(r"1 failed, 1 passed in [\d.]+s", failed.closing_line)
    shown = capfd.readouterr().out
    assert shown.index("== job") < shown.index("1 passed") < shown.rindex("== job") < shown.index("assert 1 == 2")
    assert "not installed, its tests skip: rare >= 1: no such thing" in shown


def test_a_run_that_pytest_does_not_close_is_said_to_be_one(tmp_path: Path) -> None:
    fatal = tmp_path / "test_fatal.py"
    fatal.write_text("import os\ndef test_one(): os._exit(7)\n")
    ended = runner.run(job(fatal), sys.executable, [], [])
    assert (ended.status, ended.closing_line) == (7, "it did not end as pytest does")


def test_what_cannot_be_installed_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that has everything but emcee."""
    pip = tmp_path / "pip"
    pip.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "if any('emcee' in one for one in sys.argv): sys.exit('WARNING: so\\nERROR: no emcee for this Python')\n"
    )
    pip.chmod(0o700)
    monkeypatch.setattr(runner, "_pip", lambda python: [str(pip)])
    assert runner._install_extra(sys.executable, "") == []
    (line,) = runner._install_extra(sys.executable, "compat")
    assert re.fullmatch(r"emcee >= [\d.]+: ERROR: no emcee for this Python", line)


def test_an_environment_is_made_once_for_each_state_of_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (tmp_path / "job").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    python, missing = runner.prepare(job(), tmp_path)
    assert (python, missing) == (str(tmp_path / "job/bin/python"), [])
    assert [command[2] for command in commands] == ["venv", "pip"]
    assert runner.prepare(job(), tmp_path) == (python, missing)
    assert len(commands) == 2
    runner.prepare(job()._replace(packages=("another",)), tmp_path)
    assert len(commands) == 4


def modules_asked_for(path: Path) -> set[str]:
    """The modules without which the tests of a file skip."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    asked = [call.args[0] for call in calls if ast.unparse(call.func) == "pytest.importorskip"]
    return {str(ast.literal_eval(name)).partition(".")[0] for name in asked}


def test_what_the_users_tests_ask_for_is_what_is_installed_for_them() -> None:
    files = (REPOSITORY / "compat_tests" / "users").glob("test_*.py")
    asked = {PACKAGE_OF.get(name, name) for path in files for name in modules_asked_for(path)}
    section = re.search(r"^compat =\n((?:    .*\n)+)", (REPOSITORY / "setup.cfg").read_text(), re.MULTILINE)
    assert section is not None
    installed = set(re.findall(r"^    ([\w-]+)", section[1], re.MULTILINE))
    assert asked == installed
