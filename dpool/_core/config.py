"""Every setting of the runtime in one frozen object; the only file that reads the environment.

Names carry their units. Relations between settings are checked once, in `validate`.

| variable | meaning | default |
|---|---|---|
| `DPOOL_ADDRESS` | the cluster: `auto`: this machine's, or `dpool://HOST:PORT`; `local`: none | `local` |
| `DPOOL_TOKEN_FILE` | the file that holds the cluster's secret | `~/.config/dpool/token` |
| `DPOOL_GCS` | `on`, or `off`: no control store at all | `on` |
| `DPOOL_REDIS_URL` | a Redis to use instead of the embedded one | the embedded one |
| `DPOOL_GCS_TIMEOUT_S` | seconds to wait for that Redis where there is no going on without it | 10 |
| `DPOOL_HEARTBEAT_S` | seconds between the reports of a cluster's machine to the others | 0.1 |
| `DPOOL_NODE_TIMEOUT_S` | seconds of silence after which another machine of the cluster is given up | 10 |
| `DPOOL_LINGER_S` | seconds the node stays warm after the last executor closed | 2 |
| `DPOOL_TMPDIR` | where session directories are made | the system's temporary directory |
| `DPOOL_START_TIMEOUT_S` | seconds to wait for the node process to answer | 30 |
| `DPOOL_STOPPED_WORKER_S` | seconds a stopped (SIGSTOP) worker is waited for before it is replaced | 30 |
| `DPOOL_NUM_CPUS`, `DPOOL_NUM_GPUS` | what this machine offers, instead of what is found | found |
| `DPOOL_OBJECT_STORE_MEMORY` | bytes of shared memory for objects | a third of the memory that the cgroup allows |
| `DPOOL_SPILL_DIR` | where objects go for which the store has no room | the session directory's, or /var/tmp |
| `DPOOL_DIRECT` | 0: in a cluster, everything goes through the gateways; no connections between programs | 1 |
| `DPOOL_LOCALITY` | 0: in a cluster, tasks are placed as if their arguments lay everywhere (for comparisons) | 1 |
| `DPOOL_STRICT_RESOURCES` | 1: what no machine can run fails instead of waiting | 0 |
| `DPOOL_PRELOAD` | modules that workers have from the start, with commas between them | none |
| `DPOOL_NAMESPACE` | namespace of actors' names | none |
| `DPOOL_RESOURCES` | custom resources of this machine, as JSON: `{"licence": 2}` | none |
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Config(NamedTuple):
    """Settings of one runtime; the driver reads them and hands them to its node."""

    address: str = ""
    """Of the cluster: empty for this machine alone."""
    client: bool = False
    """Of a node: it offers nothing, and ends with the programs that use it, which have no other way into a cluster."""
    gcs: str = "on"
    redis_url: str = ""
    gcs_timeout_s: float = 10.0
    heartbeat_s: float = 0.1
    node_timeout_s: float = 10.0
    linger_s: float = 2.0
    tmpdir: str = ""
    start_timeout_s: float = 30.0
    stopped_worker_s: float = 30.0
    num_cpus: float = 0.0
    """0: found by `loky.cpu_count()`; below 0: none."""
    num_gpus: float = -1.0
    """-1: found through NVML."""
    resources: tuple[tuple[str, float], ...] = ()
    """Custom resources of this machine."""

    object_store_memory: int = 0
    """Bytes; 0: a third of the memory."""
    spill_dir: str = ""
    direct: bool = True
    """Submitters and workers of other machines may have a TCP connection."""
    locality: bool = True
    """Where large arguments lie has a say in where a task goes."""
    strict_resources: bool = False
    """Tasks that ask for more than there is in total fail, instead of waiting for a machine that has it."""
    preload: tuple[str, ...] = ()
    """Modules that are imported before workers are forked."""

    poll_s: float = 250e-6
    """How long a thread that waits for a short task polls before it sleeps: long enough for a worker that sleeps to
    wake and answer.
    With 50 µs on both sides one slow answer left both asleep at every hop from then on (130 µs a round trip instead
    of 20)."""
    tick_s: float = 0.002
    """How often the io thread looks whether a user's thread still reads, and for stalled frames."""
    frame_s: float = 0.002
    """Work that one frame of tiny tasks should carry. With half of it, two workers made 1 ms tasks 1.90 times as fast
    as one thread instead of 1.95: each frame costs the submitter some 40 µs, and it needs a core for that."""
    stall_s: float = 0.006
    """A frame of several tasks that has not been answered for so long is taken apart."""
    max_batch: int = 512
    """Tasks in one frame, at most."""
    lineage_flush_s: float = 0.010
    """A task that takes longer than this is written to the control store."""

    def validate(self) -> Config:
        """Itself, or a ValueError that names the setting that cannot be."""
        if self.gcs not in ("on", "off"):
            raise ValueError(f"DPOOL_GCS is 'on' or 'off', not {self.gcs!r}")
        for name in (
            "heartbeat_s",
            "node_timeout_s",
            "gcs_timeout_s",
            "start_timeout_s",
            "stopped_worker_s",
            "tick_s",
            "frame_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0 seconds, not {getattr(self, name)}")
        if self.linger_s < 0:
            raise ValueError(f"DPOOL_LINGER_S must not be negative, it is {self.linger_s}")
        if self.object_store_memory and self.object_store_memory < MIN_STORE:
            raise ValueError(
                f"the object store's memory (DPOOL_OBJECT_STORE_MEMORY) must be at least {MIN_STORE:,} bytes, "
                f"not {self.object_store_memory:,}"
            )
        if not self.node_timeout_s > 3 * self.heartbeat_s:
            raise ValueError(
                f"DPOOL_NODE_TIMEOUT_S ({self.node_timeout_s:g}) must be above 3 × DPOOL_HEARTBEAT_S "
                f"({self.heartbeat_s:g}), else machines that live are declared lost"
            )
        if not self.stall_s > 2 * self.frame_s:
            raise ValueError("stall_s must be above 2 × frame_s, else healthy frames are taken apart")
        return self


NAMESPACE = "DPOOL_NAMESPACE"
VERSION = "0.1.0"

MIN_STORE = 1 << 20
"""Bytes: the smallest object store."""

WORKER_POLL_S = 120e-6
"""How long a worker that was told to polls for its next frame: longer than it takes a sleeping submitter to wake
and submit again.
"""

INLINE_LIMIT = 128 * 1024
"""Bytes of one message on a socket; a larger one travels in a memory file whose descriptor is sent."""
JOURNAL_BYTES = 64 * 1024
"""Room for the results of tasks that finished in a frame that is not answered yet."""
PROTOCOL = 1
"""Version of the messages; different versions refuse each other at the handshake."""


def _number(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None or not text.strip():
        return default
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the environment variable {name} must be a number, not {text!r}") from None


def _resources(text: str) -> tuple[tuple[str, float], ...]:
    if not text.strip():
        return ()
    import json

    try:
        return tuple((str(name), float(amount)) for name, amount in json.loads(text).items())
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f'DPOOL_RESOURCES must be JSON like {{"licence": 2}}, not {text!r}') from None


def namespace() -> str:
    """In which names of actors are, unless the program says another one."""
    return os.environ.get(NAMESPACE, "")


def from_environment() -> Config:
    """The settings of this process, read from its environment now."""
    env = os.environ
    default = Config()
    address = env.get("DPOOL_ADDRESS", "")
    return Config(
        address="" if address == "local" else address,
        gcs=env.get("DPOOL_GCS", default.gcs).lower() or default.gcs,
        redis_url=env.get("DPOOL_REDIS_URL", ""),
        gcs_timeout_s=_number("DPOOL_GCS_TIMEOUT_S", default.gcs_timeout_s),
        heartbeat_s=_number("DPOOL_HEARTBEAT_S", default.heartbeat_s),
        node_timeout_s=_number("DPOOL_NODE_TIMEOUT_S", default.node_timeout_s),
        linger_s=_number("DPOOL_LINGER_S", default.linger_s),
        tmpdir=env.get("DPOOL_TMPDIR", ""),
        start_timeout_s=_number("DPOOL_START_TIMEOUT_S", default.start_timeout_s),
        stopped_worker_s=_number("DPOOL_STOPPED_WORKER_S", default.stopped_worker_s),
        num_cpus=_number("DPOOL_NUM_CPUS", default.num_cpus),
        num_gpus=_number("DPOOL_NUM_GPUS", default.num_gpus),
        resources=_resources(env.get("DPOOL_RESOURCES", "")),
        object_store_memory=int(_number("DPOOL_OBJECT_STORE_MEMORY", default.object_store_memory)),
        spill_dir=env.get("DPOOL_SPILL_DIR", ""),
        direct=env.get("DPOOL_DIRECT", "1") not in ("", "0"),
        locality=env.get("DPOOL_LOCALITY", "1") not in ("", "0"),
        strict_resources=env.get("DPOOL_STRICT_RESOURCES", "0") not in ("", "0"),
        preload=tuple(filter(None, map(str.strip, env.get("DPOOL_PRELOAD", "").split(",")))),
    ).validate()
