"""Options that programs written for Ray pass: what they mean here, what means nothing, what cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dpool._core import config
from dpool._core.config import NAMESPACE
from dpool._core.context import WorkersEnv, here

NO_MEANING = frozenset((
    "_labels", "_metadata", "allow_out_of_order_execution", "enable_task_events", "object_store_memory",
))  # fmt: skip
"""Options of tasks and actors that change nothing."""

INIT_NO_MEANING = frozenset((
    "_metrics_export_port", "_node_ip_address", "_node_name", "_system_config", "_temp_dir", "configure_logging",
    "dashboard_host", "dashboard_port", "enable_resource_isolation", "include_dashboard", "local_mode",
    "logging_config", "logging_format", "logging_level", "object_spilling_directory",
))  # fmt: skip
"""Options of `init` that change nothing here: there is no dashboard, and nothing is logged."""


def translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a task or an actor in dpool's own words. ValueError for what cannot be."""
    found = {name: value for name, value in options.items() if name not in NO_MEANING}
    if "runtime_env" in found:
        env = parse(found.pop("runtime_env"))
        if env.directory or env.path:
            raise ValueError(
                "working_dir and py_modules are the same for all workers: dpool.init(runtime_env=) takes them; a task "
                "or an actor can have env_vars of its own"
            )
        found["env"] = {**dict(options.get("env") or {}), **env.variables}
    if "env" in found:
        found["env"] = variables(found["env"])
    return found


def variables(env: Any) -> tuple[tuple[str, str], ...]:
    """Environment variables, as options keep them."""
    found = dict(env or {})
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"an environment variable is a string: {name!r}: {value!r}")
    return tuple(sorted(found.items()))


def namespace() -> str:
    """In which names of actors are, unless they say another one."""
    ours = here.workers_env.variables if here.workers_env is not None else {}
    return ours.get(NAMESPACE) or config.namespace()


def parse(given: Mapping[str, Any] | None, namespace: str = "") -> WorkersEnv:
    """What a `runtime_env` says: `env_vars`, `working_dir`, `py_modules`; ValueError for everything else."""
    found = dict(given or {})
    env_vars = dict(variables(found.pop("env_vars", None)))
    if namespace:
        env_vars[NAMESPACE] = namespace
    directory = found.pop("working_dir", None)
    path = []
    if directory is not None:
        directory = _directory("working_dir", directory)
        path.append(directory)
    for module in found.pop("py_modules", None) or ():
        path.append(_where(module))
    for name in ("config", "excludes"):
        found.pop(name, None)
    if found:
        raise ValueError(
            f"runtime_env: {', '.join(sorted(found))} cannot be had: workers run in the Python of the program, so "
            "install there what they need; env_vars, working_dir and py_modules can be set"
        )
    return WorkersEnv(env_vars, directory or "", path)


def _where(module: Any) -> str:
    """The directory in which `import` finds a module: one that is given, or the directory of a package."""
    if isinstance(module, (str, os.PathLike)):
        place = _directory("py_modules", module)
    else:
        places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
        if not places[0]:
            raise ValueError(f"py_modules takes directories of packages, and modules that lie in files, not {module!r}")
        place = os.path.abspath(places[0])
    return os.path.dirname(place)


def _directory(name: str, given: Any) -> str:
    path: str = os.path.abspath(os.path.expanduser(os.fspath(given)))
    if not os.path.isdir(path):
        raise ValueError(f"{name} must be a directory of this machine: {given!r}")
    return path
