"""What this machine offers: CPUs as its cgroup allows, GPUs through NVML, memory."""

from __future__ import annotations

import os
from typing import Any

from dpool._core.config import Config

VISIBLE = "CUDA_VISIBLE_DEVICES"


def find_resources(config: Config, gpus: int) -> dict[str, float]:
    """Totals by the names that tasks ask for: `num_cpus`, `num_gpus`, `memory` (bytes)."""
    if config.client:
        return {"num_cpus": 0, "num_gpus": 0, "memory": 0}
    return {
        "num_cpus": max(0.0, config.num_cpus or count_cpus()),
        "num_gpus": gpus,
        "memory": available_memory(),
        **dict(config.resources),
    }


def count_cpus() -> int:
    """CPUs that this process may use, as loky counts them (affinity and cgroup quota)."""
    from loky import cpu_count

    return int(cpu_count())


def find_gpus(config: Config) -> list[str]:
    """What tasks can have, by the names that CUDA_VISIBLE_DEVICES takes: numbers, or ids (`GPU-…`, `MIG-…`).

    Those that this process may see itself, if that variable is set here. If their number was configured, as many,
    whether or not there are any: those that can be seen first, then others by numbers that are not taken.
    """
    if config.num_gpus < 0:
        return visible_gpus(nvml_gpus(), os.environ.get(VISIBLE))
    count = int(config.num_gpus)
    text = os.environ.get(VISIBLE)
    names = [] if text is None else visible_gpus([str(number) for number in range(1 << 10)], text)[:count]
    numbers = (str(number) for number in range(count) if str(number) not in names)
    return names + [next(numbers) for _ in range(count - len(names))]


def visible_gpus(found: list[str], visible: str | None) -> list[str]:
    """Which of the machine's devices a process with that CUDA_VISIBLE_DEVICES sees: up to the first that there is not,
    as CUDA has it.
    """
    if visible is None or not found:
        return found
    names: list[str] = []
    for entry in visible.split(","):
        name = entry.strip()
        known = int(name) < len(found) if name.isdecimal() else name.startswith(("GPU-", "MIG-"))
        if not known or name in names:
            break
        names.append(name)
    return names


def nvml_gpus() -> list[str]:
    """The devices that NVML shows: the number of each, or the ids of its parts if it is divided (MIG). None without a
    driver, or if that cannot say.
    """
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        try:
            names: list[str] = []
            for number in range(pynvml.nvmlDeviceGetCount()):
                parts = _mig_parts(pynvml, pynvml.nvmlDeviceGetHandleByIndex(number))
                names += [str(number)] if parts is None else parts
            return names
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return []


def _mig_parts(nvml: Any, device: Any) -> list[str] | None:
    """Ids of the parts of a device that is divided; None if it is not."""
    try:
        if nvml.nvmlDeviceGetMigMode(device)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return None
    except nvml.NVMLError:  # of a kind that cannot be
        return None
    parts = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        try:
            uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, number))
        except nvml.NVMLError:  # there are fewer
            continue
        parts.append(uuid if isinstance(uuid, str) else uuid.decode())
    return parts


def available_memory() -> int:
    """Bytes of memory, at most what the cgroup allows."""
    limits = []
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemTotal:"):
                limits.append(int(line.split()[1]) * 1024)
    for path in _limit_files():
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def _limit_files() -> list[str]:
    """Where a memory limit may stand: in this process's cgroup and in those above it, of either version."""
    groups = {("/sys/fs/cgroup", "memory.max", "/"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "/")}
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, controllers, group = line.rstrip("\n").split(":", 2)
                if not controllers:
                    groups.add(("/sys/fs/cgroup", "memory.max", group))
                elif "memory" in controllers.split(","):
                    groups.add(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", group))
    except OSError:  # no /proc
        pass
    files = []
    for root, name, group in groups:
        parts = [part for part in group.split("/") if part]
        files += ["/".join((root, *parts[:n], name)) for n in range(len(parts) + 1)]
    return files
