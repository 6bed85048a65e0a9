"""`python -m compat_tests`: run the suites on every interpreter of this machine that has them, and the users' tests.

```
interpreters ──► has it the suite? ──► .venv-compat/<version>: dpool, pytest ──► pytest compat_tests ──┐
                 (else: Debian's copy for that version)                                               ├─► a line each
main interpreter ─────► .venv-compat/users-<version>: dpool[compat] ──► pytest compat_tests/users ────┘
```

Interpreters are looked for on PATH and among pyenv's; of each minor version the first that has a suite is taken.
The environments are made one after the other (each builds dpool in this tree); the suites mostly wait, so they run side
by side, and what one prints is shown when it has ended. Exit status 0: all passed.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MINORS = (10, 11, 12, 13, 14)
REQUIRED = ((3, 10), (3, 11), (3, 13))
PROBE = """
import importlib.util as u, sys, test
print(sys.version_info.major, sys.version_info.minor, u.find_spec("test.test_concurrent_futures") is not None)
"""


class Interpreter(NamedTuple):
    """A Python to test with.

    Attributes:
        path: its executable.
        version: (major, minor).
        suite: the `test` package to use instead of its own, or None.
    """

    path: str
    version: tuple[int, int]
    suite: Path | None


class Job(NamedTuple):
    """One run of pytest, in an environment of its own.

    Attributes:
        name: of the run, and of its environment's directory.
        interpreter: of which the environment is made.
        tests: what pytest is given.
        extra: of dpool, that is installed with it.
        packages: that are installed besides; a job that cannot do without one fails if it cannot be installed.
    """

    name: str
    interpreter: Interpreter
    tests: list[str]
    extra: str
    packages: tuple[str, ...]


class Outcome(NamedTuple):
    """What one run came to: pytest's closing line and exit status, and what could not be installed for it."""

    job: Job
    closing_line: str
    status: int
    not_installed: list[str]


def jobs(interpreters: list[Interpreter], users: Interpreter | None) -> list[Job]:
    """A job for each interpreter's suites and, with the interpreter `users`, one for the programs that use dpool."""
    tests = ["compat_tests", "--ignore=compat_tests/users"]
    found = [Job(_name(one), one, tests, "", ("pytest", "pytest-timeout", "joblib", "numpy")) for one in interpreters]
    if users is not None:
        found.append(
            Job(f"users-{_name(users)}", users, ["compat_tests/users"], "compat", ("pytest", "pytest-timeout"))
        )
    return found


def _name(interpreter: Interpreter) -> str:
    return ".".join(map(str, interpreter.version))


def candidates() -> list[str]:
    """Executables that may be a Python 3.10 or later, best first."""
    found = [sys.executable] + [path for minor in MINORS if (path := shutil.which(f"python3.{minor}"))]
    found += [f"/usr/bin/python3.{minor}" for minor in MINORS if Path(f"/usr/bin/python3.{minor}").exists()]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()
        found += sorted(str(path) for path in Path(root, "versions").glob("3.1[0-9].*/bin/python"))
    return list(dict.fromkeys(found))


def probe(path: str) -> Interpreter | None:
    """The interpreter at `path` with its suite, or None where there is none."""
    answer = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return None
    major, minor, has_suite = answer.stdout.split()
    version = (int(major), int(minor))
    if version < (3, 10):
        return None
    if has_suite == "True":
        return Interpreter(path, version, None)
    return _with_debians_suite(path, version)


def _with_debians_suite(path: str, version: tuple[int, int]) -> Interpreter | None:
    directory = Path(f"/usr/lib/python{version[0]}.{version[1]}/test")
    held = (directory / "test_concurrent_futures.py", directory / "test_concurrent_futures")
    return Interpreter(path, version, directory) if any(path.exists() for path in held) else None


def choose(paths: list[str]) -> list[Interpreter]:
    """One interpreter of each version, one with its own suite preferred."""
    known = [found for path in paths if (found := probe(path)) is not None]
    known.sort(key=lambda found: found.suite is not None)
    return sorted({found.version: found for found in reversed(known)}.values(), key=lambda found: found.version)


def prepare(job: Job, directory: Path) -> tuple[str, list[str]]:
    """The Python of the job's environment, and what of the extra could not be installed there, with pip's reason.

    The environment is made once, and again when dpool's metadata change.

    Raises:
        subprocess.CalledProcessError: the environment cannot be made or filled.
    """
    home = directory / job.name
    python, stamp, missing = str(home / "bin" / "python"), home / "stamp", home / "not-installed"
    metadata = (ROOT / "setup.cfg").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    wanted = f"{job.interpreter.path} {hashlib.sha256(metadata).hexdigest()} {job.packages}"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making the environment {home}", flush=True)
        subprocess.run([job.interpreter.path, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([*_pip(python), "--editable", str(ROOT), *job.packages], check=True)
        missing.write_text("".join(f"{line}\n" for line in _install_extra(python, job.extra)))
        stamp.write_text(wanted)
    return python, missing.read_text().splitlines()


def _pip(python: str) -> list[str]:
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def _install_extra(python: str, extra: str) -> list[str]:
    """Install what the extra asks for: all at once or, if that fails, one by one; "name: reason" for what cannot be."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    wanted = metadata.get("options.extras_require", extra, fallback="").split("\n")
    wanted = [line for line in wanted if line and not line.startswith("#")]
    if not wanted or subprocess.run([*_pip(python), *wanted], check=False).returncode == 0:
        return []
    refused = []
    for requirement in wanted:
        run = subprocess.run([*_pip(python), requirement], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
            refused.append(f"{requirement}: {(errors or ['pip failed'])[-1]}")
    return refused


_printing = threading.Lock()


def run(job: Job, python: str, not_installed: list[str], arguments: list[str]) -> Outcome:
    """Run the tests, and show what they printed when they have ended."""
    suite = ["--suite", str(job.interpreter.suite)] if job.interpreter.suite and not job.extra else []
    command = [python, "-m", "pytest", *job.tests, "-q", *suite, *arguments]
    started = time.monotonic()
    ended = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_clean_environment(),
        check=False,
    )
    with _printing:
        print(f"== {job.name}: {job.interpreter.path}, {time.monotonic() - started:.0f} s")
        print(ended.stdout, end="", flush=True)
        for line in not_installed:
            print(f"not installed, its tests skip: {line}", flush=True)
    lines = [line.strip("= ") for line in ended.stdout.splitlines() if _CLOSING.search(line)]
    return Outcome(job, lines[-1] if lines else "it did not end as pytest does", ended.returncode, not_installed)


_CLOSING = re.compile(r"\b(passed|failed|errors?|skipped|deselected|no tests ran)\b.* in [\d.]+s")


def _clean_environment() -> dict[str, str]:
    """PYTHON* variables would make CPython's own helpers start scripts in another way."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run_all(wanted: list[Job], directory: Path, at_once: int, arguments: list[str]) -> list[Outcome]:
    """Each as soon as its environment is there and fewer than `at_once` run."""
    with ThreadPoolExecutor(at_once) as threads:
        running: list[Future[Outcome]] = []
        for job in wanted:
            python, not_installed = prepare(job, directory)
            running.append(threads.submit(run, job, python, not_installed, arguments))
        return [one.result() for one in running]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compat_tests", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", action="append", metavar="PATH", help="only this interpreter (repeatable)")
    parser.add_argument("--directory", type=Path, default=ROOT / ".venv-compat", help="where the environments are kept")
    parser.add_argument("--require", action="store_true", help="fail when 3.10, 3.11 or 3.13 has no suite here")
    parser.add_argument("--only", choices=("suites", "users"), help="only the interpreters' suites, or only the users")
    parser.add_argument("--prepare", action="store_true", help="make the environments and run nothing")
    at_once = 1 + (os.cpu_count() or 1)
    parser.add_argument("--at-once", type=int, default=at_once, metavar="N", help="runs side by side (%(default)s)")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    return parser


def main() -> int:
    """Run and print one line per run; 0 when every one passed and none of `--require` is missing."""
    options = _parser().parse_args()
    chosen = choose(options.python or candidates()) if options.only != "users" else []
    own = Interpreter(os.path.realpath(sys.executable), sys.version_info[:2], None)
    wanted = jobs(chosen, own if options.only != "suites" else None)
    if options.prepare:
        for job in wanted:
            prepare(job, options.directory)
        return 0
    outcomes = run_all(wanted, options.directory, options.at_once, options.pytest)
    missing = [version for version in REQUIRED if version not in {found.version for found in chosen}]
    for version in missing if options.only != "users" else ():
        print(f"== Python {'.'.join(map(str, version))}: not run, no interpreter with test.test_concurrent_futures")
    for outcome in outcomes:
        lacks = "".join(f"; not installed: {line}" for line in outcome.not_installed)
        print(f"compat {outcome.job.name}: {outcome.closing_line}{lacks}")
    failed = any(outcome.status != 0 for outcome in outcomes) or not outcomes
    return 1 if failed or (options.require and missing) else 0


if __name__ == "__main__":
    sys.exit(main())
