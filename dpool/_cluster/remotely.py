"""`dpool` on other machines, over the system's ssh: for `dpool up` and `dpool down`.

ssh never asks (BatchMode): keys, an agent or host-based authentication let us in. What is secret goes through its
standard input, never onto a command line.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dpool._cluster.plan import Machine, Plan

MOST_AT_A_TIME = 32
CONNECT_S = 15
WORDS = ("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", "-o", "ServerAliveInterval=15")


class Done(NamedTuple):
    """What became of a command on one machine."""

    machine: Machine
    output: str
    trouble: str
    """Empty: it did what it should; else what its last words were."""


def dpool(plan: Plan, machine: Machine, words: Sequence[str], stdin: str) -> Done:
    """Run `python -m dpool WORDS` there."""
    variables = [f"{name}={value}" for name, value in machine.env.items()]
    there = shlex.join([*(["env", *variables] if variables else []), machine.python, "-m", "dpool", *words])
    command = ["ssh", *WORDS, *plan.ssh, "--", machine.host, there]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=plan.timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Done(machine, "", f"nothing was heard of it for {plan.timeout_s:g} s")
    except OSError as error:
        return Done(machine, "", f"ssh cannot be started: {error.strerror}")
    if done.returncode == 0:
        return Done(machine, done.stdout, "")
    said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
    return Done(machine, done.stdout, said)


def each(machines: list[Machine], action: Callable[[Machine], Done]) -> list[Done]:
    """The same on all of them, at the same time; in their order."""
    if not machines:
        return []
    with ThreadPoolExecutor(min(MOST_AT_A_TIME, len(machines))) as threads:
        return list(threads.map(action, machines))
