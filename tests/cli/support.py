"""What the tests of the command share: the same program run by Python, and by `dpool run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from tests.helpers import Script, ScriptResult, run_script

QUICK = {"DPOOL_LINGER_S": "0"}


def write(directory: Path, text: str, name: str = "program.py") -> Path:
    """A file with a program."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def plain(*words: str | Path, cwd: str | Path | None = None, options: tuple[str, ...] = ()) -> ScriptResult:
    """`python WORDS…`"""
    if words[0] in ("-m", "-c"):
        how, words = str(words[0]), words[1:]
    else:
        how = "file"
    return run_script(Path(words[0]), *map(str, words[1:]), how=how, cwd=cwd, python_options=options)


def served(
    *words: str | Path,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
    input: str | None = None,
) -> ScriptResult:
    """`dpool run WORDS…`"""
    return run_script(
        "dpool", "run", *map(str, words), how="-m", cwd=cwd, env={**QUICK, **(env or {})},
        python_options=options, input=input,
    )  # fmt: skip


def start(*words: str | Path, env: Mapping[str, str] | None = None) -> Script:
    """`dpool run WORDS…`, running."""
    return Script("dpool", "run", *map(str, words), how="-m", env={**QUICK, **(env or {})})
