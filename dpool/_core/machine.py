"""What this machine offers: CPUs as its cgroup allows, GPUs through NVML, memory."""

from __future__ import annotations

from dpool._core.config import Config


def find_resources(config: Config) -> dict[str, float]:
    """Totals by the names that tasks ask for: `num_cpus`, `num_gpus`, `memory` (bytes)."""
    return {
        "num_cpus": config.num_cpus or count_cpus(),
        "num_gpus": count_gpus() if config.num_gpus < 0 else config.num_gpus,
        "memory": available_memory(),
        **dict(config.resources),
    }


def count_cpus() -> int:
    """CPUs that this process may use, as loky counts them (affinity and cgroup quota)."""
    from loky import cpu_count

    return int(cpu_count())


def count_gpus() -> int:
    """GPUs that NVML shows; 0 without a driver. `CUDA_VISIBLE_DEVICES` limits them."""
    import os

    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        found = int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return min(found, len([one for one in visible.split(",") if one.strip() and one.strip() != "-1"]))


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
