"""The node's side of the control store: jobs, functions and lineage, on their way to Redis through the writer's thread.

Runs in the node's loop. The pure `LineageStash` decides what is written: a record whose task is delivered before the
flush never is.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core import ids
from dpool._core import messages as m
from dpool._core.logic import lineage, references
from dpool._core.logic.resources import UNIT
from dpool._gcs import writer as w

if TYPE_CHECKING:
    from dpool._core.node import Node

START_AGAIN_S = 1.0


class Recorder:
    """One per node; made when the first worker starts, started after the first result."""

    def __init__(self, node: Node) -> None:
        self._node = node
        config = node.config
        self._stash = lineage.LineageStash(config.lineage_flush_s)
        self._references = references.References()
        """Who still waits for the output of a task that we were told of: the client that submitted it."""
        self._tasks: dict[int, tuple[bytes, bytes]] = {}
        """Number in the stash → (task id, job)."""
        self._jobs: set[bytes] = set()
        self._confirms: dict[int, Callable[[Any], None]] = {}
        self._confirm_numbers = itertools.count(1)
        self.trouble = ""
        """Why the store cannot be used, if that was so when it was last heard of."""
        self._closed = False
        self._told_no_thread = False
        self._writer = w.GcsWriter(
            self._config(node),
            self._spawn,
            lambda event: node.call_soon(lambda: self._told(event)),
        )

    def _config(self, node: Node) -> w.GcsConfig:
        """Which store, and what it is told of this node: in a cluster, the gateway has said where it is."""
        config, session, url, address = node.config, os.path.basename(node.session), node.config.redis_url, ""
        offers: tuple[tuple[str, float], ...] = ()
        if node._abroad is not None:
            session, url, address = node._abroad.store_at
            offers = tuple((name, total / UNIT) for name, (total, _) in sorted(node.resources().items()))
        row = w.NodeRow(node.node_id, os.uname().nodename, os.getpid(), address, offers, time.time())
        directory = os.path.join(node.session, "gcs")
        return w.GcsConfig(session=session, node=row, directory=directory, mode=config.gcs, url=url)

    def start(self) -> None:
        """Start the writer's thread, and the embedded store with it; later, if no thread is to be had now."""
        if self._closed:
            return
        try:
            self._writer.start()
        except (OSError, RuntimeError) as error:
            if not self._told_no_thread:
                self._told_no_thread = True
                self._told(w.Unavailable(f"the thread that writes to it cannot be started: {error}", ""))
            self._node._at(monotonic() + START_AGAIN_S, self.start)

    def _spawn(self, argv: list[str], stdin: bytes, log_file: str) -> int:
        return self._node.start_program(tuple(argv), stdin, log_file)

    def server_exited(self, pid: int, status: int) -> None:
        self._writer.server_exited(pid, status)

    def job_began(self, hello: m.Hello) -> None:
        """A driver joined."""
        self._jobs.add(hello.job)
        self._writer.post(w.PutJob(w.JobRow(hello.job, self._node.node_id, hello.pid, hello.label, time.time())))

    def job_ended(self, job: bytes) -> None:
        """A driver left: nothing of its job is kept."""
        if job in self._jobs:
            self._jobs.discard(job)
            self._writer.post(w.EndJob(job))

    def job_left(self, job: bytes) -> None:
        """A driver of another node's left, which says so to the store."""
        self._writer.post(w.ForgetJob(job))

    def client_left(self, client: int) -> None:
        """A driver or worker is gone: nobody waits for what it had submitted."""
        self._free(references.ProcessDied(client))

    def take(self, client: int, job: bytes, message: Any) -> None:
        """What a client tells of its tasks and functions."""
        if isinstance(message, m.ExportFunction):
            self._writer.post(w.PutFunction(message.function, job, message.blob))
        elif isinstance(message, m.TasksDispatched):
            records = []
            for task, record in message.records:
                number = int.from_bytes(task, "big")
                self._tasks[number] = (task, job)
                records.append((number, record))
                self._references.handle(references.Acquire(ids.object_id(task), client))
            self._do(lineage.Remember(monotonic(), records))
        elif isinstance(message, m.TasksDelivered):
            for task in message.tasks:
                if ids.object_id(task) in self._references:
                    self._free(references.Release(ids.object_id(task), client))

    def _free(self, event: references.Event) -> None:
        """Outputs that nobody waits for any more: the lineage of their tasks can go."""
        freed = [ids.split_object_id(order.obj)[0] for order in self._references.handle(event)]
        numbers = [int.from_bytes(task, "big") for task in freed]
        self._do(lineage.Delivered(monotonic(), numbers))
        for number in numbers:
            if self._stash.state(number) in (lineage.ABSENT, lineage.DEAD):
                self._tasks.pop(number, None)

    def _do(self, event: Any) -> None:
        for order in self._stash.handle(event):
            if isinstance(order, lineage.WriteBatch):
                self._write(order)
            elif isinstance(order, lineage.DropTasks):
                ids = [number.to_bytes(16, "big") for number in order.tasks]
                self._writer.post(w.DropTasks(ids))
                for number in order.tasks:
                    self._tasks.pop(number, None)
            elif isinstance(order, lineage.WakeAt):
                self._node._at(order.at_s, lambda: self._do(lineage.Tick(monotonic())))

    def _write(self, order: lineage.WriteBatch) -> None:
        records = [(self._tasks[number][0], record) for number, record in order.records if number in self._tasks]
        job = next((self._tasks[number][1] for number, _ in order.records if number in self._tasks), None)
        if job is None:
            self._do(lineage.Committed(order.batch))
            return
        self._writer.post(w.CommitLineage(order.batch, job, records))

    # -- objects

    def object_here(self, obj: bytes, size: int, at_home: bool) -> None:
        """There is a copy in our store; in a cluster, where others ask for it."""
        node = self._node.node_id
        self._writer.post(w.PutObject(obj, node, size, "sealed", node) if at_home else w.PutCopy(obj, node))

    def object_gone(self, obj: bytes, at_home: bool) -> None:
        """Nobody here holds it any more; at home: nobody at all."""
        node = self._node.node_id
        self._writer.post(w.RemoveObject(obj, node) if at_home else w.RemoveCopy(obj, node))

    # -- actors

    def actor(self, row: w.ActorRow) -> None:
        """How an actor is."""
        self._writer.post(w.RecordActor(row))

    def actor_died(self, row: w.ActorRow) -> None:
        """For the history: what is left of it when nobody can ask for it any more."""
        detail = f"actor={row.actor_id.hex()} name={row.name!r} restarts={row.restarts} cause={row.cause}"
        self._writer.post(w.Event(time.time(), "actor.died", detail.encode(errors="backslashreplace").decode()))

    def forget_actor(self, actor: bytes) -> None:
        """Nobody can ask for it."""
        self._writer.post(w.ForgetActor(actor))

    def confirm(self, name: str, then: Callable[[bytes], None]) -> int:
        """Call `then` with the node that has the name when all that was said before is in the store; for `give_up`."""
        number = next(self._confirm_numbers)
        self._confirms[number] = then
        self.start()
        self._writer.confirm(number, name)
        return number

    def ask(self, question: Callable[[Any], Any], then: Callable[[Any], None]) -> int:
        """Call `then` with what the question to the store (in the writer's thread) found; for `give_up`."""
        number = next(self._confirm_numbers)
        self._confirms[number] = then
        self.start()
        self._writer.ask(number, question)
        return number

    def heartbeat(self, load: bytes) -> None:
        """How it is here."""
        self._writer.post(w.Heartbeat(load))

    def node_lost(self, host: str, why: str) -> None:
        """For the history: another node was declared lost by this one."""
        self._writer.post(w.Event(time.time(), "node.lost", f"host={host} why={why}"))

    def give_up(self, number: int) -> None:
        """Do not call any more."""
        self._confirms.pop(number, None)

    def _told(self, event: Any) -> None:
        if isinstance(event, (w.Confirmed, w.Answered)):
            then = self._confirms.pop(event.number, None)
            if then is not None:
                then(event[1])
        elif isinstance(event, w.Connected):
            self.trouble = ""
            if self._node._abroad is not None:
                self._node._abroad.store_connected(*self._writer.embedded())
        elif isinstance(event, w.Committed):
            self._do(lineage.Committed(event.batch_no))
        elif isinstance(event, w.Lost):
            if not self._closed:
                self._do(lineage.Lost(event.batch_no))
        elif isinstance(event, w.Unavailable):
            self.trouble = event.reason
            where = f"; see {event.log_file}" if event.log_file else ""
            self._node.warn_drivers(
                "gcs",
                f"the control store (Redis) is not available: {event.reason}{where}. Tasks on this machine go on; "
                "it is tried again in the background.",
            )

    def close(self) -> None:
        """Flush, and end the embedded store."""
        self._closed = True
        self._writer.close()
