"""`python -m compat_tests`: run the suites on every interpreter of this machine that has them.

```
interpreters ──► has it the suite? ──► .venv-compat/<version>: dpool, pytest ──► pytest compat_tests ──► a line each
                 (else: Debian's copy for that version)
```

Interpreters are looked for on PATH and among pyenv's; of each minor version the first that has a suite is taken.
Exit status 0: all passed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
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


class Outcome(NamedTuple):
    """What one interpreter's run came to: pytest's closing line and exit status."""

    interpreter: Interpreter
    closing_line: str
    status: int
    seconds: float


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


def prepare(interpreter: Interpreter, directory: Path) -> str:
    """The Python of an environment with dpool and pytest; made once, refreshed when dpool's metadata change.

    Raises:
        subprocess.CalledProcessError: the environment cannot be made or filled.
    """
    home = directory / f"{interpreter.version[0]}.{interpreter.version[1]}"
    python, stamp = home / "bin" / "python", home / "stamp"
    metadata = (ROOT / "setup.cfg").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    wanted = f"{interpreter.path} {hashlib.sha256(metadata).hexdigest()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    subprocess.run([interpreter.path, "-m", "venv", "--clear", str(home)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--editable", str(ROOT), "pytest", "pytest-timeout", "joblib", "numpy"], check=True)
    stamp.write_text(wanted)
    return str(python)


def run(interpreter: Interpreter, python: str, arguments: list[str]) -> Outcome:
    """Run the suite and pass its output through."""
    suite = ["--suite", str(interpreter.suite)] if interpreter.suite else []
    command = [python, "-m", "pytest", str(ROOT / "compat_tests"), "-q", *suite, *arguments]
    started = time.monotonic()
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=_clean_environment()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return Outcome(interpreter, last, process.returncode, time.monotonic() - started)


def _clean_environment() -> dict[str, str]:
    """PYTHON* variables would make CPython's own helpers start scripts in another way."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def main() -> int:
    """Run and print one line per interpreter; 0 when every suite passed and none of `--require` is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m compat_tests", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", action="append", metavar="PATH", help="only this interpreter (repeatable)")
    parser.add_argument("--directory", type=Path, default=ROOT / ".venv-compat", help="where the environments are kept")
    parser.add_argument("--require", action="store_true", help="fail when 3.10, 3.11 or 3.13 has no suite here")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    chosen = choose(options.python or candidates())
    outcomes = []
    for interpreter in chosen:
        print(f"== Python {'.'.join(map(str, interpreter.version))}: {interpreter.path}", flush=True)
        outcomes.append(run(interpreter, prepare(interpreter, options.directory), options.pytest))
    missing = [version for version in REQUIRED if version not in {found.version for found in chosen}]
    for version in missing:
        print(f"== Python {'.'.join(map(str, version))}: not run, no interpreter with test.test_concurrent_futures")
    for outcome in outcomes:
        print(f"compat {'.'.join(map(str, outcome.interpreter.version))}: {outcome.closing_line}")
    failed = any(outcome.status != 0 for outcome in outcomes) or not outcomes
    return 1 if failed or (options.require and missing) else 0


if __name__ == "__main__":
    sys.exit(main())
