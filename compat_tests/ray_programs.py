"""Programs written for Ray (`ray_scripts`), and what they print with it: `python -m compat_tests.ray_programs`.

Each `NAME.py` is a program for Ray, `NAME.out` what it printed when Ray ran it. `tests/tasks/test_ray_programs.py` runs
them with dpool in Ray's place. This module, run where Ray is installed, writes the outputs; `--check` compares.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

_ONLY_ITS_OWN = """
import builtins, functools, runpy, sys
builtins.print = functools.partial(print, file=sys.stdout)  # Ray prints messages of its own, and names the file
sys.stdout = sys.stderr
runpy.run_path(sys.argv[1], run_name="__main__")
"""
SCRIPTS = Path(__file__).resolve().parent / "ray_scripts"


def programs() -> list[Path]:
    """All of them."""
    return sorted(SCRIPTS.glob("*.py"))


def with_dpool(text: str) -> str:
    """The program with dpool in Ray's place: other words in its import statements, and nothing else."""
    text = re.sub(r"^import ray$", "import dpool as ray", text, flags=re.MULTILINE)
    return re.sub(r"^from ray\b", "from dpool", text, flags=re.MULTILINE)


def with_ray(program: Path) -> str:
    """What it prints with Ray; CalledProcessError if it fails."""
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    command = [sys.executable, "-c", _ONLY_ITS_OWN, str(program)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, env=environment, check=True)
    return done.stdout


def main() -> int:
    """Write the outputs, or compare."""
    parser = argparse.ArgumentParser(prog="python -m compat_tests.ray_programs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("names", nargs="*", help="only these")
    options = parser.parse_args()
    different = 0
    for program in programs():
        if options.names and program.stem not in options.names:
            continue
        output = with_ray(program)
        known = program.with_suffix(".out")
        if options.check:
            same = known.exists() and known.read_text() == output
            print(f"{program.stem}: {'the same' if same else 'DIFFERENT'}", flush=True)
            different += not same
        else:
            known.write_text(output)
            print(f"{program.stem}: {len(output.splitlines())} lines", flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
