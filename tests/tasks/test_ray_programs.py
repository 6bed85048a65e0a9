"""Programs written for Ray print with dpool in its place what they print with Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat_tests.ray_programs import programs, with_dpool
from tests.helpers import run_script


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.stem)
def test_the_same_output(program: Path) -> None:
    result = run_script(with_dpool(program.read_text()), timeout=100, python_options=("-W", "error")).check()
    assert result.stdout == program.with_suffix(".out").read_text()
    assert result.stderr == ""


def test_only_import_statements_are_changed() -> None:
    text = 'import ray\nfrom ray.util import ActorPool\nprint("import ray", ray.get)\n'
    assert with_dpool(text) == 'import dpool as ray\nfrom dpool.util import ActorPool\nprint("import ray", ray.get)\n'
