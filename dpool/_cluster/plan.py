"""The file that `dpool up` and `dpool down` read: which machines, and what each is started with.

```toml
python = "/opt/venv/bin/python"   # on every machine, with dpool installed; default: python3
ssh = ["-i", "~/.ssh/cluster"]    # more options of ssh
token_file = "~/cluster-token"    # of this machine; default: as `dpool token` has it
timeout_s = 120                   # for each machine

[head]
host = "alice@node1"
port = 7077

[[workers]]
hosts = ["node2", "node3"]
num_gpus = 1
resources = { licence = 1 }
```

`[head]` and each of `[[workers]]` take the options of `dpool start` (`bind`, `port`, `num_cpus`, `num_gpus`,
`resources`, `object_store_memory`, `spill_dir`), `python`, and `env`: variables that are set there.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same, before Python had it

STARTING = {
    "bind": str,
    "port": int,
    "num_cpus": (int, float),
    "num_gpus": (int, float),
    "resources": dict,
    "object_store_memory": int,
    "spill_dir": str,
}
"""Options of `dpool start`, and their types."""
COMMON = {**STARTING, "python": str, "env": dict}
TOP = {"python": str, "ssh": list, "token_file": str, "timeout_s": (int, float), "head": dict, "workers": list}
PYTHON = "python3"
TIMEOUT_S = 120.0


class PlanError(ValueError):
    """The file cannot be read, or says something that cannot be; the message says where."""


class Machine(NamedTuple):
    """One of them."""

    host: str
    """As ssh has it."""
    python: str
    env: dict[str, str]
    options: list[str]
    """Of `dpool start`."""


class Plan(NamedTuple):
    """See the module."""

    head: Machine
    workers: list[Machine]
    ssh: list[str]
    token_file: str
    timeout_s: float


def load(path: str) -> Plan:
    """Read it.

    Raises:
        PlanError: it cannot be.
    """
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path}: {error}") from error
    _check(path, "the file", found, TOP)
    python = found.get("python", PYTHON)
    head = _head(path, python, found)
    workers = [
        one for number, table in enumerate(found.get("workers", []), 1) for one in _group(path, python, table, number)
    ]
    ssh = [os.path.expanduser(word) if isinstance(word, str) else word for word in found.get("ssh", [])]
    if not all(isinstance(word, str) for word in ssh):
        raise PlanError(f"{path}: ssh is a list of strings")
    token_file = os.path.expanduser(found.get("token_file", ""))
    timeout_s = found.get("timeout_s", TIMEOUT_S)
    if not timeout_s > 0:
        raise PlanError(f"{path}: timeout_s is a number of seconds above 0")
    return Plan(head, workers, ssh, token_file, float(timeout_s))


def _head(path: str, python: str, found: dict[str, Any]) -> Machine:
    table = found.get("head")
    if table is None:
        raise PlanError(f'{path}: there is no [head]; it takes at least host = "…"')
    _check(path, "[head]", table, {**COMMON, "host": str})
    if "host" not in table:
        raise PlanError(f"{path}: [head] has no host")
    return _machine(path, "[head]", table["host"], python, table)


def _group(path: str, python: str, table: Any, number: int) -> list[Machine]:
    where = f"[[workers]] number {number}"
    if not isinstance(table, dict):
        raise PlanError(f"{path}: workers are written as [[workers]], with hosts = […]")
    _check(path, where, table, {**COMMON, "hosts": list})
    hosts = table.get("hosts")
    if not hosts:
        raise PlanError(f"{path}: {where} has no hosts")
    return [_machine(path, where, host, python, table) for host in hosts]


def _machine(path: str, where: str, host: Any, python: str, table: dict[str, Any]) -> Machine:
    if not isinstance(host, str) or not host or host.startswith("-") or any(letter.isspace() for letter in host):
        raise PlanError(f"{path}: {where}: a host is a name, or user@name, not {host!r}")
    env = table.get("env", {})
    if not all(isinstance(value, str) for value in env.values()):
        raise PlanError(f"{path}: {where}: the values of env are strings")
    return Machine(host, table.get("python", python), env, _options(table))


def _options(table: dict[str, Any]) -> list[str]:
    """As `dpool start` takes them."""
    words: list[str] = []
    for name in STARTING:
        if name in table:
            value = table[name]
            text = json.dumps(value) if isinstance(value, dict) else f"{value}"
            words += [f"--{name.replace('_', '-')}", text]
    return words


def _check(path: str, where: str, table: dict[str, Any], known: dict[str, Any]) -> None:
    for name, value in table.items():
        if name not in known:
            raise PlanError(f"{path}: {where} has {name!r}, which means nothing here; it takes {', '.join(known)}")
        if not isinstance(value, known[name]) or isinstance(value, bool):
            raise PlanError(f"{path}: {where}: {name} cannot be {value!r}")
