"""Ends what a test run leaves behind when it is itself killed, and cannot tidy up.

Its standard input is the run's, which closes when that ends, however it does. Then everything that belongs to the run
is killed, and the run's temporary directory removed. `python -m tests.reaper MARK DIRECTORY`.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress

from tests.helpers import belongs_to, processes, wait_until


def main(mark: str, directory: str) -> None:
    sys.stdin.buffer.read()
    wait_until(lambda: not kill_all(mark, directory), what="an end of everything that the test run had started")
    shutil.rmtree(directory, ignore_errors=True)  # after a run that ended by itself there is none


def kill_all(mark: str, directory: str) -> list[int]:
    """The processes of the run, killed just now."""
    found = [one.pid for one in processes() if one.state not in "ZX" and belongs_to(one.pid, mark, directory)]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
