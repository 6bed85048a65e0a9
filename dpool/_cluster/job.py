"""A submitted program: what runs in a worker of the head's machine for `dpool submit`.

```
 `dpool submit` ── a task that only the head can run ──► run ─► Python ─ program, a driver of the head's node
       ▲                                                            │
       └── the worker's output, line by line ◄── its stdout, stderr ┘
```

The program is a child of the worker, in a session of its own: it hears of Ctrl-C through the task that is cancelled,
and dies with the worker. It has the environment in which the head was started, not that of whoever submits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import NamedTuple

import dpool
from dpool._core.context import here
from dpool._core.gateway_start import GATEWAY_FILE
from dpool._core.zygote import PR_SET_PDEATHSIG, prctl


class Program(NamedTuple):
    """What is submitted."""

    path: str
    """Of the script, where it was submitted."""
    text: bytes
    arguments: list[str]
    cwd: str
    environ: dict[str, str]
    """Added to the environment."""
    directory: str
    """Of the script, where it was submitted: modules beside it are there."""


def run(program: Program) -> int:
    """Run it to its end; its exit status, negative if a signal ended it, as subprocess has it.

    KeyboardInterrupt (the task is cancelled) is passed on to it as SIGINT.
    """
    worker = here.worker
    assert worker is not None
    prefix = "job-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=worker.session) as directory:
        child = subprocess.Popen(
            _command(program, worker.session, _place(program, directory)),
            stdin=subprocess.DEVNULL,
            cwd=program.cwd if os.path.isdir(program.cwd) else None,
            env={**_environment(worker.session, worker.node_pid), **program.environ},
            start_new_session=True,
            preexec_fn=_die_with_worker,
        )
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)


def _command(program: Program, session: str, script: str) -> list[str]:
    """With the modules of the submitter's machine, if that is another one."""
    if not here.home or os.path.basename(here.home) == os.path.basename(session):
        return [sys.executable, script, *program.arguments]
    from dpool._cluster import submitted

    return submitted.command(here.home, session, program.directory, script, program.arguments)


def _place(program: Program, directory: str) -> str:
    """Where the script is: in its own place, if this machine has the same file there, so that what lies beside it is
    found; else a copy.
    """
    try:
        with open(program.path, "rb") as file:
            if file.read() == program.text:
                return program.path
    except OSError:  # it is not here
        pass
    copy = os.path.join(directory, os.path.basename(program.path))
    with open(copy, "wb") as file:
        file.write(program.text)
    return copy


def _environment(session: str, node_pid: int) -> dict[str, str]:
    """The node's own, and what leads a program to that node."""
    with open(f"/proc/{node_pid}/environ", "rb") as file:
        pairs = [os.fsdecode(pair).partition("=") for pair in file.read().split(b"\0") if b"=" in pair]
    with open(os.path.join(session, GATEWAY_FILE), encoding="utf-8") as file:
        address = json.load(file)["address"]
    environ = {name: value for name, _, value in pairs}
    ours = os.path.dirname(os.path.dirname(os.path.abspath(dpool.__file__)))
    paths = [*filter(None, environ.get("PYTHONPATH", "").split(os.pathsep)), ours]
    return {
        **environ,
        "DPOOL_ADDRESS": f"dpool://{address}",
        "DPOOL_TMPDIR": os.path.dirname(session),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }


def _die_with_worker() -> None:
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
