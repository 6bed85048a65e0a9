"""A lane: the tasks of one executor with one resource shape, on their way to workers and back. This is the hot path.

```
 submit ─► queue ─push()─► frame ─► worker's socket ─► worker ─► socket ─► on_readable() ─► futures
              ▲                │                                    │
              └── take back ───┘ (unread frame: recv on the worker's own end; frame being run: the page's LIMIT)
```

Threads: any thread may submit and push; one thread at a time reads (the runtime's reading role). `lock`, the pool's,
guards the dispatcher, the slots and the order of the queue; `queue.append` alone needs none. Futures are settled
outside the lock, since their callbacks are the user's code.

Invariant: `hungry` is true whenever a slot could take a task or a worker could be asked for; so a submitter that sees
it false may leave its task in the queue, and the reader will take it.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import signal
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from pickle import dumps
from threading import current_thread, main_thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from dpool._core import frames, storage, wire
from dpool._core.context import here
from dpool._core.future import (
    CANCELLED_AND_NOTIFIED,
    DONE,
    IN_PLACE,
    PENDING,
    RUNNING,
    Future,
    InStore,
    finish,
    settle_plain,
    to_pending,
)
from dpool._core.future import _mutex as futures_mutex
from dpool._core.logic.dispatch import Answer, Dispatcher, Frame, Slot
from dpool._core.messages import KillWorker, ProtocolError, Shape
from dpool._core.serialize import Shipped, dump_exception, load_exception, load_result
from dpool._core.storage import Place, Stored

if TYPE_CHECKING:
    from dpool._core.actor_pool import ActorPool
    from dpool._core.direct import Direct
    from dpool._core.executor_pool import ExecutorPool


BROKEN_S = 5.0
"""A worker on another machine whose connection has ended is ended after so long, if it is not said to be dead."""
STOP_AGAIN_S = 0.01
"""After so long an actor that does not read is told once more that a call is cancelled."""
LIMIT_S = 0.001
"""Between storing a LIMIT and trusting it: longer by far than a store takes to be seen by another core."""


def _parse(data: Any) -> tuple[int, bool, int, list[Any]]:
    """A frame of results; any exception if it is none."""
    first, end, elapsed_ns, values = wire.loads(data)
    if not (type(first) is type(elapsed_ns) is int and type(values) is list and (first > 0 or values)):
        raise ProtocolError(f"a frame of results with {type(first).__name__}, {type(values).__name__}")
    return first, end, elapsed_ns, values


def _lost_answer(lost: wire.DescriptorsLost) -> bytes:
    """In the place of results that came in a memory file, which this process may not open: each task gets an error."""
    first, end, elapsed_ns, count = pickle.loads(lost.summary)
    failure = (frames.FAILED, dump_exception(_too_many_files("the result of the task has come, and is lost"), ""))
    return dumps((first, end, elapsed_ns, [failure] * count), 5)


def _too_many_files(what: str) -> OSError:
    text = "this process has no file descriptors left for it (see `ulimit -n`); close files, or raise the limit"
    return OSError(errno.EMFILE, f"{what}: {text}")


def store_lost(error: BaseException, label: str) -> BaseException:
    """What a task raises whose result was in a store that is gone."""
    from dpool.errors import ObjectLost

    return ObjectLost(f"the result of {label} is lost: it was in the object store of a node that has ended ({error})")


def _is_cancelling(error: BaseException) -> bool:
    """Whether this is how a cancelled call ends: a coroutine's error is asyncio's, which need not be imported here."""
    return isinstance(error, KeyboardInterrupt) or type(error).__name__ == "CancelledError"


_STORED = (frames.STORED, frames.STORED_ALONE)


def _let_go(value: Any) -> None:
    """Nobody will ever ask for this result: what it has in the object store is not held in our name any more."""
    if value.__class__ is not tuple or value[0] not in (*_STORED, frames.WITH_REFS, frames.RAISED_WITH_REFS):
        return
    places = [value[1]] if value[0] in _STORED else value[1][1]
    try:
        client = storage.client()
        for place in places:
            client.received(place)
    except storage.StoreGone:  # and all that was in it
        return


class Route:
    """How a submitted task wants to be run: one for each `Executor.options(...)`, shared by its tasks."""

    __slots__ = ("inline", "lane", "max_retries", "name", "pool", "retry_on", "timeout_s")
    to_itself = False
    """Who submits is an actor, and these are calls of its own."""

    def __init__(
        self,
        pool: ExecutorPool | ActorPool,
        lane: Lane,
        max_retries: int,
        timeout_s: float | None,
        name: str,
        inline: bool = False,
        retry_on: tuple[type[BaseException], ...] = (),
    ) -> None:
        self.pool = pool
        self.lane = lane
        self.max_retries = max_retries
        self.timeout_s = timeout_s
        self.name = name
        self.inline = inline
        """A task that waits for one of these may run it itself; see `inline`."""
        self.retry_on = retry_on
        """Exceptions after which a task is run again, as after a crash."""

    def attend(self) -> None:
        """Somebody waits without reading: let the io thread read."""
        self.pool.runtime.attend()

    def blocks(self, future: Future[Any]) -> bool:
        """Whether it cannot begin before the call ends that this thread runs."""
        return False

    def check_wait(self, future: Future[Any]) -> None:
        """RuntimeError if this thread is about to wait for a call that `blocks`."""

    def waiters(self, future: Future[Any], waiters: list[Any]) -> Any:
        """The list to which `concurrent.futures.wait` adds who waits."""
        return waiters

    def wait(self, future: Future[Any], timeout: float | None) -> None:
        if self.pool.lock._is_owned():  # type: ignore[attr-defined]
            raise RuntimeError(
                "a signal handler or finalizer interrupted dpool in the middle of its work; it may submit, but not wait"
            )
        if self.inline and timeout is None and self.run_here(future) and future._state in DONE:
            return
        self.pool.runtime.wait_for(future, timeout, self.pool)

    def run_here(self, future: Future[Any]) -> bool:
        """Run a task that no worker has begun in this very thread, if that can be."""
        if not here.holds_cpus or here.careful or self.retry_on or here.gpus:
            return False
        from dpool._core.inline import run_here

        extra = future._extra
        return run_here(self.lane, future if extra is None or extra.whole is None else extra.whole)

    def later(self, action: Callable[[], Any]) -> None:
        self.pool.later(action)

    def lend(self, wait: object, begins: bool) -> None:
        """A thread of this worker's task begins to sleep until a future is done, or the future is done."""
        self.pool.runtime.lend(wait, begins)

    def ended(self, future: Future[Any], elsewhere: bool) -> None:
        """A task has ended: its callbacks are due, and a thread that reads may be waiting for it."""
        self.pool.runtime.ended(future, elsewhere)

    def started(self, future: Future[Any]) -> bool:
        return self.lane.started(future)

    def ours(self) -> bool:
        """Whether this is the process that submitted, not a child that it forked."""
        return self.pool.runtime.pid == os.getpid()

    def cancel(self, future: Future[Any], force: bool) -> bool:
        return self.lane.cancel_sent(future, force)

    def cancelled(self, future: Future[Any]) -> None:
        """A queued task was cancelled."""
        self.pool.task_cancelled(future)


class Link:
    """The submitter's side of one worker: its sockets, its page, and what it has been sent."""

    __slots__ = (
        "answer",
        "dead",
        "direct",
        "gpus",
        "idle_clock",
        "idle_since",
        "log_file",
        "meaning",
        "page",
        "peer",
        "pending_ship",
        "pid",
        "receiver",
        "remote",
        "shipped",
        "sock",
        "unread",
        "up",
        "why",
        "written",
    )

    def __init__(self, sock: socket.socket | Direct, peer: socket.socket, page: frames.Page, log_file: str) -> None:
        self.sock: Any = sock
        self.peer = peer
        """The worker's own end: reading from it takes unread frames back."""
        self.direct: Direct | None = None
        """The worker is on another machine, and this is a connection to it, in the place of the sockets."""
        self.unread: Any = wire.Receiver(peer)
        self.receiver: Any
        if isinstance(sock, socket.socket):
            self.receiver = wire.Receiver(sock)
        else:
            self.receiver = self.direct = sock
            self.unread = sock.unread
        self.page = page
        self.remote = page.slots[frames.LIMIT_SEEN] != frames.AT_ONCE
        """The worker is on another machine."""
        self.shipped = Shipped()
        self.pending_ship: list[Any] = []
        """Definitions that travelled in a frame that was taken back."""
        self.answer: Any = None
        """The answer that is being dealt with, and what it means; kept until all of it is done."""
        self.meaning: Answer | None = None
        self.dead: list[int] = []
        """Numbers of functions that the worker may forget."""
        self.idle_since = 0.0
        self.idle_clock = float("inf")
        """When a timer looks after its idleness."""
        self.log_file = log_file
        self.pid = 0
        self.up = False
        self.gpus: dict[str, str] | None = None
        """Variables that the next frame must set."""
        self.written = 0
        """Its WRITTEN when its output was last asked for."""
        self.why: Callable[[Future[Any]], BaseException | None] | None = None
        """We had it killed: what its task shall raise (None: it is cancelled already)."""

    def fileno(self) -> int:
        return int(self.sock.fileno())

    def handled(self) -> None:
        """The answer has been dealt with."""
        self.receiver.consumed()
        self.answer = self.meaning = None

    def close(self) -> None:
        self.sock.close()
        self.peer.close()
        self.page.close()


class Lane:
    """See the module."""

    def __init__(self, pool: ExecutorPool | ActorPool, shape: Shape, single: bool, lifetime: int | None) -> None:
        config = pool.runtime.config
        self.pool = pool
        self.shape = shape
        self.single = single
        self.queue: deque[Future[Any]] = deque()
        self.dispatcher = Dispatcher(
            frame_s=config.frame_s, max_batch=config.max_batch, single=single, lifetime=lifetime
        )
        self.lock = pool.lock
        self.hungry = True
        self.requested = 0
        """Leases asked for and not granted yet."""
        self.in_order = False
        """The tasks of a frame are not taken back: later ones may be on their way already."""
        self.retries = 0
        """Tasks that were run again, so far."""
        self._pushing = False
        self._again = False

    # -- sending

    def push(self) -> None:
        """Send what can be sent. Any thread."""
        with self.lock:
            self._push()

    def _push(self) -> None:
        """Under the lock. Who submits in the middle of it (a signal handler, a finalizer) leaves the sending to it."""
        if self._pushing:
            self._again = True
            return
        self._pushing = True
        try:
            self._fill_slots()
        except BaseException:  # a signal handler raised: what waits is sent by whoever comes next
            self.hungry = True
            self.pool.later(self.push)
            raise
        finally:
            self._pushing = False
        if self._again:
            self._again = False
            self._push()

    def _fill_slots(self) -> None:
        queue = self.queue
        while True:
            crowded = False  # a task waits behind another one in a worker's socket
            while queue:
                slot = self.dispatcher.next_slot()
                if slot is None or not self._send_frame(slot):
                    break
                if len(slot.frames) > 1:
                    crowded = True
            left = bool(queue)
            if left or crowded:
                self.pool.want_workers(self)
            self.hungry = not queue or self.dispatcher.next_slot() is not None or self.pool.may_grow(self)
            if left or not queue:
                break  # else one was appended while `hungry` was false

    def _send_frame(self, slot: Slot) -> bool:
        """Build a frame for `slot` and send it; False if there was nothing to send or no room."""
        frame: list[Any] = [[], []]  # tasks, and what they need to be shipped: there for whoever is interrupted
        sent: list[int] = []
        try:
            data = self._build_frame(slot, frame)
            if not frame[0]:
                return False
            ships = frame[1] or slot.link.gpus is not None  # what a frame behind it must not be read without
            record = self.dispatcher.prepared(slot, frame[0], monotonic(), ships)
            wire.send(slot.link.sock, data, (), sent)
            self._sent(slot, record)
        except OSError as error:
            if not sent:
                return self._unsent(slot, frame, error)
            self._sent(slot, record)
            raise
        except BaseException:  # a signal handler raised
            if sent:
                self._sent(slot, record)
            else:
                self._restore(slot, frame)
            raise
        return True

    def _build_frame(self, slot: Slot, frame: list[Any]) -> bytes:
        """The bytes of the next frame; `frame` gets its tasks and what is shipped with them, as they are taken."""
        queue, link = self.queue, slot.link
        dispatcher = self.dispatcher
        room = dispatcher.choose(slot, len(queue))
        shipped = link.shipped
        ready = shipped.ready
        tasks: list[Future[Any]] = frame[0]
        numbers: list[int] = []
        calls: list[Any] = []
        items = frame[1] = link.pending_ship
        size = 0
        pending, running = PENDING, RUNNING
        with futures_mutex:
            while room and queue:
                future = queue[0]
                if future._state is not pending:
                    queue.popleft()
                    continue  # cancelled
                export, call = future._export, future._call
                number = export.number  # type: ignore[union-attr]
                if number not in ready:
                    if tasks:  # definitions are installed before the frame's first task, so they belong to that one
                        break
                    items = frame[1] = items + shipped.missing(export)
                if call.__class__ is Stored:
                    call = call.wire
                if call.__class__ is bytes:
                    size += len(call)
                    if size > wire.INLINE_LIMIT and tasks:
                        break
                tasks.append(future)
                future._state = running
                queue.popleft()
                numbers.append(0 if export.inline else number)  # type: ignore[union-attr]
                calls.append(call)
                room -= 1
        if not tasks:
            return b""
        ship = None
        if items or link.gpus is not None or link.dead:
            ship = (items, link.dead, link.gpus)
        flags = self.pool.flags
        if self.retries and any(task._extra is not None and task._extra.attempts for task in tasks):
            flags |= frames.CAREFUL
        if self.pool.runtime.may_poll(len(tasks)):
            flags |= frames.POLL
        if dispatcher.lifetime is not None and dispatcher.last_of_life(slot, len(tasks)):
            flags |= frames.EXIT
        first = numbers[0]
        same = first if numbers.count(first) == len(numbers) else numbers
        if link.remote:
            from dpool._core.carried import in_tasks

            flags |= frames.LOOSE if self.dispatcher.loose else 0
            carried = in_tasks(tasks)
            if link.direct is not None:
                link.direct.announce(slot.next_seq, len(calls), carried is None and not self.dispatcher.loose)
            if carried is not None:
                return dumps((slot.next_seq, flags, ship, same, calls, carried), 5)
        return dumps((slot.next_seq, flags, ship, same, calls), 5)

    def _sent(self, slot: Slot, frame: Frame) -> None:
        """The frame is in the worker's socket. Cut short anywhere, it can be called again."""
        link = slot.link
        self.dispatcher.sent(slot, frame)
        if frame.ship or link.gpus is not None or link.dead:
            link.pending_ship, link.dead, link.gpus = [], [], None
        if self.single:
            self.pool.start_clock(frame.tasks[0], frame.sent_at)
        if self.pool.runtime.sleeping:
            self.pool.runtime.wake()  # it looks after what takes long

    def _restore(self, slot: Slot, frame: list[Any]) -> list[Future[Any]]:
        """The frame has not been sent: its tasks wait again, first; its definitions travel with the next one."""
        tasks, items = frame
        slot.link.pending_ship = items
        return self._wait_again(tasks)

    def _wait_again(self, tasks: list[Future[Any]]) -> list[Future[Any]]:
        """Tasks that were sent wait again, first; returns those that have not ended meanwhile. Under the lock.

        In the queue a task may stand twice, for then it is passed over once; nowhere, it would never end. So they are
        queued before they are pending, and a signal handler that raises in the middle changes nothing.
        """
        try:
            self.queue.extendleft(reversed(tasks))
            back = to_pending(tasks)
        except BaseException:
            self.queue.extendleft(reversed(tasks))
            to_pending(tasks)
            raise
        for future in back:
            if future._extra is not None and future._extra.interrupted:  # the signal was for where it was
                self.pool.later(partial(self.stop, future))
        return back

    def _unsent(self, slot: Slot, frame: list[Any], error: OSError) -> bool:
        """The socket is full (try again after the next answer), or there is no memory for a large frame."""
        back = self._restore(slot, frame)
        if isinstance(error, BlockingIOError) and slot.frames:
            slot.held = True
            return False
        from dpool.errors import SerializationError

        for _ in frame[0]:
            self.queue.popleft()
        for future in back:
            failure = SerializationError(f"the arguments of {self.label(future)} could not be sent: {error}")
            self.pool.later(partial(finish, future, None, failure))
        return True  # the next one may be smaller

    def label(self, future: Future[Any]) -> str:
        """The task's name, for people."""
        route, export = future._route, future._export
        if route is not None and route.name:
            return route.name
        return (export.label if export is not None else "") or "a task"

    # -- receiving

    def on_readable(self, slot: Slot) -> None:
        """A worker answered: one frame. Called by whoever has the reading role."""
        try:
            self._answered(slot)
        except BaseException:  # most likely a signal handler raised: the answer must not be lost with it
            self._answered(slot)
            raise

    def _answered(self, slot: Slot) -> None:
        """Deal with one answer; cut short anywhere, it can be called again."""
        link = slot.link
        if link.answer is None and not self._receive(slot):
            return
        first, end, elapsed_ns, values = link.answer
        with self.lock:
            answer = link.meaning
            if answer is None:
                if slot.worker not in self.dispatcher.slots:
                    link.handled()  # its death has been dealt with
                    return
                try:
                    answer = self.dispatcher.look(slot, first, len(values), end)
                    if values:
                        self.dispatcher.measure(elapsed_ns * 1e-9 / len(values))
                except (ValueError, IndexError, TypeError) as error:
                    link.handled()
                    self._malformed(slot, error)
                    return
                link.meaning = answer
            self.dispatcher.accept(slot, answer)
            if end:
                self._frame_ended(slot, answer.back)
        tasks = answer.new
        self.settle(tasks, values if len(tasks) == len(values) else values[len(values) - len(tasks) :])
        link.handled()
        if self.pool.closing:
            self.pool.check_drained()

    def _receive(self, slot: Slot) -> bool:
        """Read an answer into `link.answer`; False if there is none to deal with here."""
        link = slot.link
        try:
            data = link.receiver.receive(wire.DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.pool.runtime.unwatch(link)
            return False
        except wire.DescriptorsLost as lost:
            data = _lost_answer(lost)
        except (wire.Closed, ProtocolError) as error:  # no end of file, since we hold its end too: an empty packet
            link.handled()
            self._malformed(slot, error)
            return False
        try:
            answer = _parse(data)
        except Exception:
            try:
                link.answer = _parse(data)
            except Exception as error:
                link.handled()
                self._malformed(slot, error)
                return False
            raise  # it was a signal handler that raised; the answer is dealt with by `on_readable`
        if answer[0] == 0:
            link.handled()
            self.pool.initialized(self, slot, answer[3][0])
            return False
        if answer[0] < 0:
            known = self._ended_out_of_turn if answer[1] else self._yielded
            if not known(slot, -answer[0], answer[2], answer[3][0]):
                link.receiver.close_fds()
                self._malformed(slot, ProtocolError(f"something about task {-answer[0]} that it was not asked for"))
            link.handled()
            return False
        link.answer = answer
        return True

    def _ended_out_of_turn(self, slot: Slot, number: int, _: int, value: Any) -> bool:
        """A call has ended of an actor that runs many at a time; False if it is not such a one. Cut short anywhere, it
        can be called again.
        """
        with self.lock:  # which whoever sends has until it is noted that the call was sent
            if not self.dispatcher.loose or number >= slot.next_seq:
                return False
            task = self.dispatcher.alone(slot, number)
        if task is None:
            _let_go(value)
            return True
        self.settle([task], [value])
        with self.lock:
            self.dispatcher.ended(slot, number)
            slot.link.handled()  # what follows may be cut short, and nothing of this is to be done twice
            slot.held = False
            self._push()
            if not self.queue and not slot.frames:
                self.pool.worker_idle(self, slot)
        return True

    def _yielded(self, slot: Slot, number: int, index: int, value: Any) -> bool:
        """A task has yielded an item; False if it is none that may. Cut short anywhere, it can be called again."""
        with self.lock:
            task = next((f.tasks[number - f.base] for f in slot.frames if f.base <= number < f.end), None)
        if task is None or task._extra is None or task._extra.stream is None:
            return False
        flow = task._extra.stream
        if index < 0:
            fds = slot.link.receiver.take_fds()
            for fd in fds:
                flow.opened(fd)
            if not fds:  # its generator ends, as nobody can tell it anything
                finish(task, None, _too_many_files(f"the stream of {self.label(task)} needs a pipe"))
            return True
        if flow.closed or task._state is not RUNNING:
            _let_go(value)
            return True
        item: Future[Any] = Future(task._route)
        item._state = RUNNING
        self.settle([item], [value])
        flow.put(index, item)
        self.pool.runtime.poke_reader()
        return True

    def _frame_ended(self, slot: Slot, back: list[Future[Any]]) -> None:
        if back:
            self._wait_again(back)
        limit = slot.link.page.slots[frames.LIMIT]
        if limit != frames.NO_LIMIT and not (slot.frames and limit > slot.frames[0].base):  # else it is the next one's
            slot.link.page.slots[frames.LIMIT] = frames.NO_LIMIT
        slot.held = False
        if slot.retiring and not slot.frames and not slot.returned:
            slot.returned = True
            self.pool.worker_leaves(self, slot)
        self._push()
        if not self.queue and not slot.frames and not slot.retiring:
            self._steal()
            if not slot.frames:
                self.pool.worker_idle(self, slot)

    def _malformed(self, slot: Slot, error: BaseException) -> None:
        """Not an answer of ours: that worker is not to be trusted any more, the others are."""
        text = f"{type(error).__name__}: {error}"
        said = f"it sent a malformed frame ({text})"
        self.pool.kill_for(self, slot, lambda future: self._bad_frame(future, text), said)

    def _bad_frame(self, future: Future[Any], text: str) -> BaseException:
        from dpool.errors import WorkerCrashed

        return WorkerCrashed(
            f"the worker of {self.label(future)} sent a malformed frame ({text}) and was killed",
            task=self.label(future),
        )

    def settle(self, tasks: list[Future[Any]], values: list[Any]) -> None:
        """Give the tasks their values. Not under the lock: callbacks run here."""
        for future, value in settle_plain(tasks, values):
            if future._state is not RUNNING:  # cancelled by force, or timed out, meanwhile
                _let_go(value)
                continue
            if value.__class__ is not tuple:
                finish(future, value)
                continue
            kind, data = value
            label = self.label(future)
            if kind == frames.RESULT:
                self._settle_pickled(future, data, label)
            elif kind in _STORED:
                finish(future, InStore(data, label, alone=kind == frames.STORED_ALONE))
            elif kind == frames.WITH_REFS or kind == frames.RAISED_WITH_REFS:
                self._settle_with_refs(future, kind, data, label)
            else:
                self._settle_failed(future, kind, load_exception(data, label))
        self.pool.runtime.settled()
        if self.pool.closing:
            self.pool.check_drained()

    def _settle_failed(self, future: Future[Any], kind: int, error: BaseException) -> None:
        """The task has raised, or what it takes or returns could not be carried."""
        route, extra = future._route, future._extra
        if kind == frames.RAISED and extra is not None and extra.interrupted and _is_cancelling(error):
            if future._settle(CANCELLED_AND_NOTIFIED, elsewhere=True):
                self.pool.task_cancelled(future)
            return
        if kind == frames.RAISED and route is not None and isinstance(error, route.retry_on):
            with futures_mutex:
                extra = future._more()
            if extra.attempts < route.max_retries:
                extra.attempts += 1
                self.run_again(future)
                return
        finish(future, None, error)

    def run_again(self, future: Future[Any]) -> None:
        """Queue a task once more that has been run."""
        with self.lock:
            self.retries += 1
            self._wait_again([future])
        self.push()

    def _settle_with_refs(self, future: Future[Any], kind: int, data: tuple[bytes, list[Place]], label: str) -> None:
        """The result or exception refers to objects, which the worker has had held in our name."""
        pickled, places = data
        keep = []
        try:
            client = storage.client()
            keep = [client.received(place) for place in places]
        except storage.StoreGone as error:
            finish(future, None, store_lost(error, label))
            return
        if kind == frames.WITH_REFS:
            self._settle_pickled(future, pickled, label)
        else:
            finish(future, None, load_exception(pickled, label))
        del keep  # by now the references in it hold them

    def _settle_pickled(self, future: Future[Any], data: bytes, label: str) -> None:
        try:
            future._result = pickle.loads(data) if data[:1] == b"\x80" else storage.unpack(data)
        except BaseException:
            if self._settle_again(future, data, label) and current_thread() is main_thread():
                raise  # it does unpickle: a signal handler had raised
            return
        if not finish(future, IN_PLACE):
            future._result = None

    @staticmethod
    def _settle_again(future: Future[Any], data: bytes, label: str) -> bool:
        """False if the result does not unpickle."""
        try:
            result = load_result(data, label)
        except BaseException as error:
            error.__context__ = None  # what was raised the first time: it holds the frames of whatever thread reads
            finish(future, None, error.with_traceback(None))
            return False
        finish(future, result)
        return True

    # -- taking back

    def _steal(self) -> None:
        """A worker has nothing to do: take a waiting frame back from a busy one. Under the lock."""
        while not self.queue:
            victim = self.dispatcher.victim()
            if victim is None:
                break
            if not self._take_unread(victim):
                break
        if self.queue:
            self._push()

    def _take_unread(self, slot: Slot) -> bool:
        """Take the oldest unread frame out of the worker's socket and queue its tasks first; False if there is none."""
        if self.dispatcher.loose:
            return False
        try:
            return self._take_one(slot)
        except BaseException:  # most likely a signal handler raised: the frame must not be lost with it
            if slot.link.unread.inbox:
                self._take_one(slot)
            self.hungry = True
            self.pool.later(self.push)
            raise

    def _take_one(self, slot: Slot) -> bool:
        """`_take_unread`; cut short anywhere, it can be called again."""
        receiver = slot.link.unread
        try:
            base, _, ship, *_ = wire.loads(receiver.receive(wire.DONTWAIT))
        except (OSError, wire.Closed, wire.DescriptorsLost):
            return False
        if ship is not None:
            slot.link.pending_ship = ship[0] + slot.link.pending_ship
            if ship[2] is not None:
                slot.link.gpus = ship[2]
        frame = self.dispatcher.frame(slot, base)
        if frame is not None:
            self._wait_again(frame.tasks)
            self.dispatcher.taken_back(slot, base)
            if self.dispatcher.lifetime is not None:
                slot.retiring = False
        receiver.consumed()
        return True

    def _take_all_unread(self, slot: Slot) -> None:
        """Queue the tasks of all unread frames first, in the order in which they were."""
        taken: list[Future[Any]] = []
        several = -1
        while True:
            before = list(slot.frames)
            if not self._take_unread(slot):
                break
            several += 1
            for frame in before:
                if frame not in slot.frames:
                    taken += frame.tasks
        if several > 0:  # each frame went before the one that was taken earlier; cut short anywhere, no task is missing
            queue = self.queue
            queue.extendleft(reversed(taken))
            queue.rotate(-len(taken))
            for _ in taken:
                queue.popleft()
            queue.rotate(len(taken))

    def rescue(self, now_s: float, stall_s: float) -> bool:
        """Take apart frames whose tasks take longer than expected; True if some frame still wants watching."""
        watching = False
        done: list[tuple[list[Future[Any]], list[Any]]] = []
        with self.lock:
            for slot in list(self.dispatcher.slots.values()):
                if slot.frames and len(slot.frames[0].tasks) > 1:
                    watching = True
            for slot in self.dispatcher.stalled(now_s, stall_s):
                self._rescue_slot(slot, now_s, done)
        for tasks, values in done:
            self.settle(tasks, values)
        if done:
            self.pool.runtime.poke_reader()
        return watching

    def _rescue_slot(self, slot: Slot, now_s: float, done: list[tuple[list[Future[Any]], list[Any]]]) -> None:
        if self.in_order:
            done.append(self._harvest(slot))
        else:
            self._shorten(slot, now_s, done)

    def _shorten(self, slot: Slot, now_s: float, done: list[tuple[list[Future[Any]], list[Any]]]) -> None:
        """In two steps, `LIMIT_S` apart: take back what the worker has not begun of the frame that it runs."""
        frame = slot.frames[0]
        page = slot.link.page.slots
        if frame.limit == 0:
            if page[frames.STARTED] < frame.base:
                return  # not even read; nothing runs
            if len(slot.frames) > 1 and not self._take_unread(slot):
                return  # it has been read, so the worker is done with this one: a limit would cut the next
            if self.in_order:
                slot.held = True  # until this frame is answered: what is taken back goes first
            started = page[frames.STARTED]
            if page[frames.LIMIT_SEEN] != frames.AT_ONCE:
                started = frame.base  # what is on its way to another machine counts as begun until that is asked
            page[frames.LIMIT] = self.dispatcher.limit(slot, started, now_s)
            if slot.link.direct is not None:
                slot.link.direct.look()
        elif now_s - frame.limited_at >= LIMIT_S and page[frames.LIMIT_SEEN] in (frames.AT_ONCE, frame.limit):
            self._wait_again(self.dispatcher.shortened(slot, page[frames.STARTED]))
            tasks, values = self._harvest(slot)
            if tasks:
                done.append((tasks, values))
            self._push()
        elif slot.link.direct is not None:  # should it not have been able to ask
            slot.link.direct.look()

    def _harvest(self, slot: Slot) -> tuple[list[Future[Any]], list[Any]]:
        """Results that the worker has noted and not sent: (tasks, values). Under the lock."""
        page = slot.link.page
        generation = page.slots[frames.GENERATION]
        first, count = page.slots[frames.FIRST], page.slots[frames.COUNT]
        journal = bytes(page.map[frames.JOURNAL_AT :]) if count else b""
        if page.slots[frames.GENERATION] != generation or not count:
            return [], []
        reader = pickle.Unpickler(io.BytesIO(journal))
        values = [reader.load() for _ in range(count)]
        tasks = self.dispatcher.harvested(slot, first, count)
        return tasks, values[len(values) - len(tasks) :] if tasks else []

    # -- questions about one task

    def _slot_of(self, future: Future[Any]) -> tuple[Slot, Frame, int] | None:
        for slot in self.dispatcher.slots.values():
            for frame in slot.frames:
                for at, task in enumerate(frame.tasks):
                    if task is future:
                        return slot, frame, frame.base + at
        return None

    def started(self, future: Future[Any]) -> bool:
        """Whether a worker has begun with it."""
        with self.lock:
            found = self._slot_of(future)
            if found is None:
                return future._state is RUNNING
            slot, _, number = found
            return bool(slot.link.page.slots[frames.STARTED] >= number)

    def cancel_sent(self, future: Future[Any], force: bool) -> bool:
        """Cancel a task that was sent: take it back if it is unread, kill its worker if `force`."""
        while True:
            self._cut(future)
            with self.lock:
                found = self._slot_of(future)
                if found is None:
                    pass
                elif found[1] is not found[0].frames[0] or found[0].link.page.slots[frames.STARTED] < found[1].base:
                    self._take_all_unread(found[0])
                taken = future._state is PENDING
            if taken:
                cancelled = future._settle(CANCELLED_AND_NOTIFIED, only_from=PENDING)
                self.push()
                if cancelled:
                    self.pool.task_cancelled(future)
                return cancelled
            if not force or found is None:
                return future.cancelled()
            if self._cancel_read(future):
                return future.cancelled()

    def _cancel_read(self, future: Future[Any]) -> bool:
        """Cancel a task whose frame a worker has read, and kill that if it has begun with it; False: look again.

        The task may end before the signal is there, and then its worker must not begin with another one. So what is
        behind it is taken back, nothing more is sent, and its frame ends with it.
        """

        def cancelled(one: Future[Any]) -> None:
            if one is future and future._settle(CANCELLED_AND_NOTIFIED):
                self.pool.task_cancelled(future)

        with self.lock:
            found = self._slot_of(future)
            if found is None:
                return False
            slot, frame, number = found
            page = slot.link.page.slots
            if not self.dispatcher.loose:  # else what runs beside it dies with it
                self._take_all_unread(slot)
                if frame not in slot.frames:
                    return False
                if slot.frames[-1] is not frame:
                    return True  # one behind it has been read: it has ended
                slot.held = True  # until this frame is answered
                page[frames.LIMIT] = number + (page[frames.STARTED] >= number)
                if slot.link.direct is not None:
                    slot.link.direct.look()
            limit = page[frames.LIMIT]
        sleep(LIMIT_S)
        with self.lock:
            if self._slot_of(future) != found or page[frames.LIMIT] != limit:
                return False
            started = number if self.dispatcher.loose else page[frames.STARTED]
            if started > number:
                return True  # it has ended
            if started == number == limit:
                return False  # it has just begun
            if started == number:
                self.pool.kill_for(self, slot, cancelled)
        cancelled(future)
        return True

    def stop(self, future: Future[Any], recursive: bool = True) -> None:
        """Cancel a task, or interrupt it if it has begun."""
        if futures_mutex._is_owned():  # type: ignore[attr-defined]  # garbage is collected in the middle of something
            self.pool.later(partial(self.stop, future, recursive))
        elif self.pool.runtime.pid == os.getpid():
            while not future.cancel() and not self.interrupt(future, recursive):
                pass  # it was taken back meanwhile

    def interrupt(self, future: Future[Any], recursive: bool = True) -> bool:
        """Raise KeyboardInterrupt in a task that runs; False if it waits again, having been taken back meanwhile.
        `recursive`: it then cancels those that it has submitted.
        """
        with self.lock:
            found = self._slot_of(future)
            if future._state is not RUNNING:
                return future._state is not PENDING
            if found is None:
                if here.interrupts is not None and future in here.interrupts.inline:
                    from dpool._core.inline import interrupt

                    interrupt(future)
                return True
            slot, _, number = found
            with futures_mutex:
                future._more().interrupted = True
            if self.dispatcher.loose:
                self._stop(slot, number)
                return True
            page = slot.link.page.slots
            page[frames.CANCELS + page[frames.ASKED] % frames.MOST_CANCELS] = number | recursive * frames.RECURSIVE
            page[frames.ASKED] += 1
            self.pool.runtime.tell(KillWorker(self.pool.number, slot.worker, int(signal.SIGINT)))
            return True

    def _stop(self, slot: Slot, number: int) -> None:
        """Tell an actor that runs many calls at a time that one is cancelled. Under the lock."""
        if slot.worker not in self.dispatcher.slots:
            return
        try:
            wire.send(slot.link.sock, dumps((number, frames.STOP, None, 0, []), 5))
        except BlockingIOError:
            self.pool.runtime.at(monotonic() + STOP_AGAIN_S, partial(self._stop_again, slot, number))
        except OSError:  # it is dead, which ends the call
            return

    def _stop_again(self, slot: Slot, number: int) -> None:
        with self.lock:
            self._stop(slot, number)

    def _cut(self, future: Future[Any]) -> None:
        """If the task waits in the frame that a worker runs, take the frame apart, so that no other task suffers."""
        done: list[tuple[list[Future[Any]], list[Any]]] = []
        for _ in range(2):
            with self.lock:
                found = self._slot_of(future)
                if found is None or found[1] is not found[0].frames[0]:
                    break
                slot, _, number = found
                if not slot.link.page.slots[frames.STARTED] < number or number == found[1].base:
                    break
                self._shorten(slot, monotonic(), done)
            sleep(LIMIT_S)
        for tasks, values in done:
            self.settle(tasks, values)

    # -- workers come and go

    def _broken(self, slot: Slot) -> None:
        """The connection to a worker on another machine has ended: as a rule it is dead, and that is told soon."""
        self.pool.runtime.at(monotonic() + BROKEN_S, partial(self._still_broken, slot))

    def _still_broken(self, slot: Slot) -> None:
        if self.dispatcher.slots.get(slot.worker) is slot and slot.link.direct is not None:
            why = f"the connection to it broke ({slot.link.direct.broken})"
            self.pool.kill_for(self, slot, lambda future: self._cut_off(future, why), why)

    def _cut_off(self, future: Future[Any], why: str) -> BaseException:
        from dpool.errors import WorkerCrashed

        return WorkerCrashed(
            f"the worker of {self.label(future)} on another machine was killed: {why}; whether the task has run to its "
            "end is not known. Submit it again, or use max_retries=.",
            task=self.label(future),
        )

    def granted(self, slot: Slot, hold: bool) -> None:
        """A leased worker joins the lane; `hold`: its initializer runs first."""
        if slot.link.direct is not None:
            slot.link.direct.on_broken = partial(self._broken, slot)
        with self.lock:
            slot.held = hold
            slot.retiring = False
            self.requested = max(0, self.requested - 1)
            self.dispatcher.slots[slot.worker] = slot
            if not hold:
                self._use(slot)

    def _use(self, slot: Slot) -> None:
        """A worker may have tasks now: give it some, or let others have it. Under the lock."""
        self._push()
        if not slot.frames:
            self._steal()
        if not slot.frames:
            self.pool.worker_idle(self, slot)

    def initialized(self, slot: Slot) -> None:
        """Its initializer is done: it may have tasks."""
        with self.lock:
            slot.held = False
            self._use(slot)

    def worker_died(self, slot: Slot) -> list[Future[Any]]:
        """Its node says that it is dead: settle what it answered, queue what it had not begun; returns what it lost."""
        link = slot.link
        while self._drain_one(slot):
            pass
        with self.lock:
            if slot.worker not in self.dispatcher.slots:
                return []
            tasks, values = self._harvest(slot)
            death = self.dispatcher.died(slot, link.page.slots[frames.STARTED])
            self._wait_again(death.unstarted)
        self.settle(tasks, values)
        return death.lost

    def _drain_one(self, slot: Slot) -> bool:
        """Read one answer that a dead worker left; False when there is none."""
        from select import POLLIN, poll

        if slot.link.fileno() < 0 or slot.worker not in self.dispatcher.slots:
            return False
        waiter = poll()
        waiter.register(slot.link.fileno(), POLLIN)
        if not waiter.poll(0 if slot.link.direct is None else slot.link.direct.patience_ms()):
            return False
        self.on_readable(slot)
        return True

    def take_all_back(self, everything: bool) -> list[Future[Any]]:
        """What no worker has begun: unread frames and the queue; unless `everything`, each worker keeps what it is
        about to begin, those on their way included, as in the standard library.
        """
        with self.lock:
            keep = 0
            for slot in list(self.dispatcher.slots.values()):
                while len(slot.frames) > (not everything) and self._take_unread(slot):
                    pass
                keep += slot.held and not slot.frames
            if everything or self.shape:  # resources may never be granted
                keep = 0
            else:
                keep += self.requested
            pending = [future for future in self.queue if future._state is PENDING]
            self.queue.clear()
            self.queue.extend(pending[:keep])
            self._push()  # a worker that has lost all its frames answers nothing: it is for the next submit
        return pending[keep:]

    def busy(self) -> bool:
        return bool(self.queue) or any(slot.frames for slot in self.dispatcher.slots.values())
