"""What the fault tests of the object store share: its figures, and scenarios that run in a program of their own."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpool._core import storage
from tests.helpers import ScriptResult, run_script, wait_until

MIB = 1 << 20
EMPTY_S = 20.0
"""Until then what nobody holds any more has gone."""


def figures() -> dict[str, Any]:
    """What the store knows of itself now; more of it than `dpool.store_stats()` tells."""
    stats: dict[str, Any] = storage.again(lambda client: client.report(False)).stats
    return stats


def drained(chunks: int = 0) -> None:
    """Wait until nothing is in the store but `chunks` bytes of leases that processes keep for small values."""

    def empty() -> bool:
        now = figures()
        kept = {name: now[name] for name in ("objects", "spilled_objects", "zombie_bytes", "files_bytes") if now[name]}
        return not kept and now["used"] == now["leased_bytes"] <= chunks

    try:
        wait_until(empty, EMPTY_S, "the store is empty")
    except AssertionError as error:
        raise AssertionError(f"{error}: {figures()}") from None


def alone(
    scenario: Callable[..., None],
    *args: Any,
    store: int = 0,
    spill_dir: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 40.0,
) -> ScriptResult:
    """Run a function of a test module in a program of its own, whose store has `store` bytes.

    Raises:
        AssertionError: it failed, something outlived it, or a spill file stayed in `spill_dir`.
    """
    text = f"from {scenario.__module__} import {scenario.__name__} as scenario\nscenario(*{args!r})\n"
    settings = {"DPOOL_LINGER_S": "0", **(env or {})}
    if store:
        settings["DPOOL_OBJECT_STORE_MEMORY"] = str(store)
    if spill_dir is not None:
        settings["DPOOL_SPILL_DIR"] = str(spill_dir)
    result = run_script(text, how="-c", env=settings, timeout=timeout).check()
    if spill_dir is not None:
        assert not os.listdir(spill_dir), "spill files outlived their program"
    return result


def own_mounts() -> None:
    """From now on what this process mounts is seen by it and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def mount_tmpfs(path: str | Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
