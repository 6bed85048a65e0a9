"""What the writer is told when it is made, and what it tells the node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dpool._gcs.tables import NodeRow


class GcsConfig:
    """What the writer needs to know.

    Args:
        session: the session's name (letters, digits, `._-`); every key carries it.
        node: this node's row; its `epoch` is ignored (the store gives it).
        directory: the embedded server's own directory: made (0700), and removed by `close`.
        log_file: where the embedded server's output goes; by default `gcs.log` in `directory`.
        mode: "on", or "off": then every method does nothing.
        url: a Redis to use instead of the embedded one. It may hold secrets and is shown redacted only.
        maxmemory_bytes: what the embedded server's data may take.
        flush_s: how long operations are gathered; `batch_ops`: how many end the wait, and go in one pipeline.
        start_timeout_s: how long a server may take to answer after its start, and to come back when it hangs.
        reply_timeout_s: how long one round trip may take.
        backoff_s: the first and the longest pause between attempts; it doubles.
        steady_s: how long the store must work before the next failure counts as a new outage.
        max_events: how many events wait for the store at most.
    """

    __slots__ = (
        "backoff_s",
        "batch_ops",
        "directory",
        "flush_s",
        "log_file",
        "max_events",
        "maxmemory_bytes",
        "mode",
        "node",
        "reply_timeout_s",
        "session",
        "start_timeout_s",
        "steady_s",
        "url",
    )

    def __init__(
        self,
        *,
        session: str,
        node: NodeRow,
        directory: str,
        log_file: str = "",
        mode: str = "on",
        url: str = "",
        maxmemory_bytes: int = 256 << 20,
        flush_s: float = 0.010,
        batch_ops: int = 256,
        start_timeout_s: float = 10.0,
        reply_timeout_s: float = 2.0,
        backoff_s: tuple[float, float] = (0.1, 10.0),
        steady_s: float = 5.0,
        max_events: int = 1000,
    ) -> None:
        if not session or not all(char.isascii() and (char.isalnum() or char in "._-") for char in session):
            raise ValueError(f"a session's name is made of letters, digits and ._-, not {session!r}")
        if mode not in ("on", "off"):
            raise ValueError(f"the control store's mode is 'on' or 'off', not {mode!r}")
        self.session = session
        self.node = node
        self.directory = directory
        self.log_file = log_file or os.path.join(directory, "gcs.log")
        self.mode = mode
        self.url = url
        self.maxmemory_bytes = maxmemory_bytes
        self.flush_s = flush_s
        self.batch_ops = batch_ops
        self.start_timeout_s = start_timeout_s
        self.reply_timeout_s = reply_timeout_s
        self.backoff_s = backoff_s
        self.steady_s = steady_s
        self.max_events = max_events

    def __repr__(self) -> str:
        where = "off" if self.mode == "off" else "a given server" if self.url else self.directory
        return f"<GcsConfig {self.session}: {where}>"


class Connected(NamedTuple):
    """The store is there, knows this node under `epoch`, and has everything that is alive."""

    epoch: int


class Committed(NamedTuple):
    """The batch is in the store, or none of its tasks is needed any more."""

    batch_no: int


class Lost(NamedTuple):
    """The writer was closed before the batch was in the store."""

    batch_no: int


class Confirmed(NamedTuple):
    """What was posted before Confirm `number` is in the store. `node_id`: whose the name is; empty if nobody's, or if
    none was asked for.
    """

    number: int
    node_id: bytes


class Answered(NamedTuple):
    """What the question of Ask `number` found."""

    number: int
    answer: Any


class Unavailable(NamedTuple):
    """The store cannot be used: once per outage. The writer goes on trying. `log_file` is "" if there is none."""

    reason: str
    log_file: str


GcsEvent = Connected | Committed | Lost | Confirmed | Answered | Unavailable
