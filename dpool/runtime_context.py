"""What a program, task or actor can ask about where it runs: `get_runtime_context`, `nodes`."""

from __future__ import annotations

from typing import Any

from dpool._core.context import here
from dpool._core.frames import STARTED
from dpool._core.runtime import open_runtime
from dpool._core.runtime_env import namespace
from dpool.tasks import get_gpu_ids, machines, resources_of


class RuntimeContext:
    """Where this code runs. Ids are strings of hexadecimal digits. Source: Ray's `RuntimeContext`."""

    def get_node_id(self) -> str:
        """Of the node of this machine; as `nodes` has it, and as good for as long."""
        runtime: Any = open_runtime(None)
        runtime.keep_node()
        return str(runtime.node_name().hex())

    def get_job_id(self) -> str:
        """Of the program to which all of this belongs."""
        runtime: Any = open_runtime(None)
        return str(runtime.job.hex())

    def get_worker_id(self) -> str:
        """Of this process."""
        return f"{here.worker.worker if here.worker is not None else 0:016x}"

    def get_task_id(self) -> str | None:
        """Of the task that runs; None outside of one, and where an actor runs several calls at a time."""
        if here.worker is None or here.counters is None:
            return None
        return f"{self.get_worker_id()}{here.counters[STARTED]:016x}"

    def get_actor_id(self) -> str | None:
        """Of the actor whose process this is."""
        return here.actor_is[0].hex() if here.actor_is is not None else None

    def get_actor_name(self) -> str | None:
        """The name that the actor of this process was made with; "" if it has none, None outside of an actor."""
        return here.actor_is[2] if here.actor_is is not None else None

    @property
    def current_actor(self) -> Any:
        """A proxy of the actor whose process this is; RuntimeError outside of one."""
        if here.actor_is is None:
            raise RuntimeError("this is no actor's process")
        from dpool.actor import proxy_of

        return proxy_of(here.actor_is[0], here.actor_is[1])

    @property
    def namespace(self) -> str:
        """In which names of actors are, unless they say another one."""
        return namespace()

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """GPUs that were given to this task or actor."""
        return {"GPU": [str(number) for number in get_gpu_ids()]}


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """Where this code runs. Source: Ray's function of this name."""
    return _context


def nodes() -> list[dict[str, Any]]:
    """The machines of the cluster, this one first. "Draining": it is about to leave. Source: Ray's `nodes`.

    A machine in no cluster keeps its "NodeID" until `shutdown`, or until the program ends.
    """
    runtime: Any = open_runtime(None)
    return [
        {
            "NodeID": name,
            "Alive": True,
            "alive": True,
            "Draining": draining,
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerHostname": host,
            "NodeName": host,
            "Resources": resources_of(total),
            "Labels": {},
        }
        for name, host, total, _, draining in machines(runtime.keep_node)
    ]
