"""Runs a submitted program at the head when it was submitted from another machine, which has its modules.

They are imported as if the program's own directory there were here: second in `sys.path`, after the place of the
script. Workers of the program, wherever they are, import them from that machine, too.
"""

from __future__ import annotations

import os
import sys

import dpool
from dpool._core import far_modules
from dpool._core.context import here
from dpool._run import program

_BOOT = """
import sys
if not getattr(sys.flags, "safe_path", False):
    sys.path[0] = {root!r}
from dpool._cluster.submitted import main
main()
"""


def command(home: str, session: str, directory: str, script: str, arguments: list[str]) -> list[str]:
    """The command line, for `subprocess`. `home`: the session directory of the submitter's node; `session`: of ours;
    `directory`: where the program lies over there.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(dpool.__file__)))
    return [sys.executable, "-c", _BOOT.format(root=root), home, session, directory, script, *arguments]


def main() -> None:
    """Be the program."""
    here.home, session, directory, script, *arguments = sys.argv[1:]
    far_modules.install(here.home, session, [directory], os.getcwd())
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(1, directory)
    program.run(program.Source("path", script, arguments, inherited=False))
