"""What tasks raise that no worker has ended: how it died, where, and what can be done."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from dpool._core.future import Future, finish

if TYPE_CHECKING:
    from dpool._core.messages import WorkerDied

NODE_DIED = "node"
"""`WorkerDied.reason` of the workers that a dead node took along."""

LINK_DOWN = "the link to "
"""With these words it begins if the worker's machine cannot be reached any more."""

AGAIN = "again "
"""With these words it begins if the actor's process comes back; what follows is as if it did not."""

FOR_CALLER = "at the request of a caller: "
"""With these words it begins if one who calls an actor had it killed; what follows is why."""


def crash(message: WorkerDied, task: str, attempts: int, strict: bool) -> BaseException:
    """What the task of a dead worker raises; `task` is what it is called."""
    from os import uname

    from dpool.errors import NodeLost, OutOfMemory, WorkerCrashed

    host = message.host or uname().nodename
    if message.reason == NODE_DIED:
        return NodeLost(
            f"the node process on {host} died while a worker (pid {message.pid}) ran {task}; "
            "it has been started again. Submit the task again, or use max_retries=."
        )
    if message.reason.startswith(LINK_DOWN):
        return NodeLost(
            f"{message.reason}, while a worker there ran {task}; whether it has run to its end is not known. "
            "Submit the task again, or use max_retries=."
        )
    kind: type[WorkerCrashed] = OutOfMemory if message.reason == "oom" else WorkerCrashed
    reason = {
        "oom": ": the kernel killed it because memory ran out",
        "stopped": ": it had been stopped (SIGSTOP) for too long",
    }
    advice = "Other tasks are not affected; max_retries= would run it again."
    if strict:
        advice = "The executor is broken, as strict=True asks for."
    times = f" (attempt {attempts})" if attempts > 1 else ""
    return kind(
        f"the worker (pid {message.pid} on {host}) {how(message)}{reason.get(message.reason, '')} "
        f"while it ran {task}{times}; "
        f"its output is in {message.log_file}. {advice}",
        task=task,
        pid=message.pid,
        host=host,
        signal=message.signal or None,
        exit_code=None if message.signal else message.exit_code,
        attempts=attempts,
        log_file=message.log_file,
    )


def how(message: WorkerDied) -> str:
    """How a worker ended."""
    if not message.signal:
        return f"exited with code {message.exit_code}" if not message.reason.startswith("start") else message.reason
    try:
        return f"was killed by {signal.Signals(message.signal).name}"
    except ValueError:
        return f"was killed by signal {message.signal}"


def fail_all(pending: list[Future[Any]], error: BaseException) -> None:
    """Each gets an exception of its own."""
    for future in pending:
        copy = type(error)(*error.args)
        copy.__cause__ = error.__cause__
        finish(future, None, copy)
