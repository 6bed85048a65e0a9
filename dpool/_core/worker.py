"""The worker: runs the tasks of one submitter, one after the other, in the order of its socket.

```
 submitter ══task frames══► socket ──► run() ──► user's function ──► result frames ══► submitter
                                        │
                                        └─► page: STARTED, journal (read by the submitter if we cannot answer)
```

One thread. It exits when told (EXIT), when its node dies (the kernel's parent-death signal), never by reading an end
of file: the submitter holds the other end of the socket for as long as it lives, and the node kills the workers of a
submitter that died.

Invariants: STARTED is stored before LIMIT is looked at and before the task begins; a journal record is complete
before COUNT says so; a frame is answered exactly once with `end`.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from itertools import starmap
from pickle import dumps
from select import EPOLLIN, epoll
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from dpool._core import storage, wire
from dpool._core.context import ActorExit, here
from dpool._core.frames import (
    ACTOR,
    ASKED,
    CANCELS,
    CAREFUL,
    COUNT,
    DIRECT,
    EXIT,
    FAILED,
    FIRST,
    GENERATION,
    HANDLED,
    INIT,
    INTERRUPT,
    JOURNAL_AT,
    LIMIT,
    MAP,
    MOST_CANCELS,
    NO_LIMIT,
    PAGE_BYTES,
    PID,
    POLL,
    RAISED,
    RAISED_WITH_REFS,
    RECURSIVE,
    RESULT,
    SHOW,
    STARTED,
    STORED,
    STORED_ALONE,
    STREAM,
    WITH_REFS,
    Page,
)
from dpool._core.polling import Poller
from dpool._core.serialize import ATOMIC, RAW_LIMIT, Importer, dump_exception, pickle_result

if TYPE_CHECKING:
    from dpool._core.sealed import Records

_SIZED = (str, bytes)


class Interrupts:
    """SIGINT becomes KeyboardInterrupt in the task that runs, and nothing between tasks, or in a task that it is not
    for: the submitter has said which ones are (CANCELS), or up to which one (INTERRUPT).

    It has counted its signals, too (ASKED): one of them may come when its task has ended, and is not for the next one.
    """

    __slots__ = ("_page", "_strict", "ahead", "armed", "count", "inline", "inner", "recursive")

    def __init__(self, page: Any, strict: bool) -> None:
        self.armed = False
        self.recursive = False
        """What the interrupted task has submitted is to be cancelled."""
        self.count = 0
        """How often a KeyboardInterrupt was raised."""
        self.inline: list[Any] = []
        """Futures of the tasks that the task runs itself, one inside the other."""
        self.inner: Any = None
        """That one of them is to be interrupted, not the task."""
        self._page = page
        self.ahead = False
        """A signal has come too early for its task: that had not begun, or could not be interrupted at that moment."""
        self._strict = strict
        """Signals that no submitter has counted are not for our tasks: others, with other submitters, run here too."""

    def handle(self, signum: int, frame: Any) -> None:
        if self.inner is not None:
            inner = self.inner
            if not self.armed or inner not in self.inline:  # it has ended
                self.inner = None
                return
            self._raise()
        page = self._page
        now = page[STARTED]
        counted = page[HANDLED] < page[ASKED]
        page[HANDLED] += counted
        named = page[CANCELS : CANCELS + MOST_CANCELS].tolist()
        self.ahead |= any(one & ~RECURSIVE > now for one in named)
        found = [one for one in named if one & ~RECURSIVE == now]
        if not (found or now <= page[INTERRUPT] or not (counted or self._strict)):
            return
        if self.armed:
            self.recursive = any(one & RECURSIVE for one in found)
            self._raise()
        if found:
            self.ahead = True

    def _raise(self) -> None:
        self.armed = False
        self.count += 1
        raise KeyboardInterrupt

    def begin(self) -> None:
        """Calls of one of several submitters are run now: until now its signals went elsewhere."""
        if self._page[HANDLED] != self._page[ASKED]:
            self._page[HANDLED] = self._page[ASKED]
            self.ahead = True

    def arm_again(self, task: int) -> None:
        """The task begins, or goes on with its own code; it hears now of what came before."""
        self.armed = True
        if self.ahead:
            named = self._page[CANCELS : CANCELS + MOST_CANCELS].tolist()
            self.ahead = any(one & ~RECURSIVE > task for one in named)
            if task in named or task | RECURSIVE in named:
                self.recursive = task not in named
                self._raise()


class SubmitterGone(Exception):
    """Whoever waits for this answer has ended."""


_KEPT = (STORED, STORED_ALONE, WITH_REFS, RAISED_WITH_REFS)
"""Results that are objects, or refer to some: the gateways have to know."""
PACE_NS = 100_000_000

_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EBADF)
"""EBADF: the link was closed while the call ran, in another thread."""


class Worker:
    """The loop of one worker process."""

    def __init__(
        self, sock: socket.socket, page: Page, importer: Importer, poll_s: float, submitter: int | None = None
    ) -> None:
        self._sock = sock
        self.submitter = here.worker.submitter_pid if submitter is None and here.worker is not None else submitter or 0
        """The process whose tasks these are."""
        self._receiver = wire.Receiver(sock)
        self._page = page
        self._importer = importer
        ready = self._poller_fd = epoll(1)
        ready.register(sock.fileno(), EPOLLIN)
        self._poller = Poller(ready.poll, poll_s)
        self._interrupts = Interrupts(page.slots, strict=submitter is not None)
        here.counters = page.slots
        self._show = False
        """An error of pickling a result shall show the result."""
        self._streamed = False
        """The call has sent items: its result must not be noted where it would be read before they are."""
        self._direct: Records | None = None
        """A connection to a submitter on another machine; see direct.py."""
        self._via: Records | None = None
        """That is how the frame came, and its answer goes as long as it can go so."""
        self._pace_due_ns = 0
        self._child = False
        """This process was forked by a task: it is not the worker, and ends where the task ends."""
        _workers.add(self)

    def run(self) -> None:
        """Serve until told to leave."""
        page = self._page.slots
        page[PID] = os.getpid()
        signal.signal(signal.SIGINT, self._interrupts.handle)
        here.interrupts = self._interrupts
        flags = 0
        while True:
            base, flags, ship, numbers, calls = self._next_frame(flags & POLL)
            if flags & DIRECT:
                self._connect(ship)
                continue
            if ship is not None:
                self._install(ship)
            if flags & EXIT and not calls:
                return
            if flags & ACTOR:
                from dpool._core.actor_host import ActorHost

                ActorHost(self).run(numbers, calls[0])
                return
            if flags & INIT:
                if not self._initialize(numbers, calls[0]):
                    return
            else:
                self._show = bool(flags & SHOW)
                here.careful = bool(flags & CAREFUL)
                self._run_frame(base, numbers, calls)
            flush_streams()
            if flags & EXIT:
                return

    def _next_frame(self, poll: int) -> Any:
        if self._direct is not None and (frame := self._next_of_two(poll)) is not None:
            return frame
        if poll:
            self._poller.poll()
        while True:
            try:
                frame = wire.loads(self._receiver.receive())
                self._receiver.consumed()
                return frame
            except InterruptedError:
                continue

    # -- for submitters on other machines

    def _connect(self, key: bytes) -> None:
        """Here is a connection to the submitter. If it could not be opened that has closed it, as is seen there."""
        from dpool._core import sealed

        self._disconnect()
        for fd in self.take_fds():
            sock = socket.socket(fileno=fd)
            sealed.prepare(sock)
            self._direct = sealed.Records(sock, key, sealed.WORKER)
            self._poller_fd.register(fd, EPOLLIN)

    def _disconnect(self) -> None:
        direct, self._direct, self._via = self._direct, None, None
        if direct is not None:
            self._poller_fd.unregister(direct.fileno())
            direct.close()

    def _next_of_two(self, poll: int) -> Any:
        """The next frame, whichever way it comes; None: there is only one way any more."""
        events = self._poller.poll() if poll else []
        while self._direct is not None:
            for fd, _ in events or self._poller_fd.poll(-1):
                if fd == self._sock.fileno():
                    self._via = None
                    frame = wire.loads(self._receiver.receive())
                    self._receiver.consumed()
                    return frame
                if (frame := self._receive_directly(self._direct)) is not None:
                    return frame
            events = []
        return None

    def _receive_directly(self, direct: Records) -> Any:
        try:
            found = direct.receive()
        except OSError:  # the submitter is done with us; or it has noticed, too, and has us ended
            self._disconnect()
            return None
        if found is None:
            return None
        frame = wire.loads(found[0])
        if self._page.slots[LIMIT] < frame[0]:  # it came too late for the one before
            self._page.slots[LIMIT] = NO_LIMIT
        self._via = direct
        return frame

    def _answer_directly(self, direct: Records, data: bytes, end: bool, elapsed_ns: int, values: list[Any]) -> bool:
        """False: it goes through the gateways, as all that follows of this frame's answer."""
        from dpool._core import sealed

        try:
            kept = any(value.__class__ is tuple and value[0] in _KEPT for value in values)
            if not kept and len(data) <= sealed.LIMIT:
                direct.send_all(data, end)
                self._tell_pace(elapsed_ns, len(values))
                return True
            self._go_aside()
        except OSError:
            self._disconnect()
        return False

    def _go_aside(self) -> None:
        """The submitter hears that what follows comes another way."""
        direct, self._via = self._via, None
        if direct is not None:
            direct.send_all(b"", False)

    def _tell_pace(self, elapsed_ns: int, count: int) -> None:
        """Our gateway, which sees nothing of these tasks, hears now and then how long they take."""
        now = perf_counter_ns()
        if count and now > self._pace_due_ns:
            self._pace_due_ns = now + PACE_NS
            try:
                wire.send(self._sock, dumps((1, None, elapsed_ns // count, [None]), 5))
            except BlockingIOError:
                return

    # -- for actors

    @property
    def page(self) -> Any:
        """The counters of its page."""
        return self._page.slots

    def count_written(self) -> None:
        """The process writes to standard output or error."""
        try:
            self._page.count_written()
        except ValueError:  # the caller has just gone, and its page with it
            return

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._poller_fd.close()
        self._sock.close()
        self._page.close()

    def next_frame(self) -> Any:
        """The next frame, which is there; Closed when the other side is gone."""
        return self._next_frame(0)

    def take_fds(self) -> list[int]:
        """The descriptors that came with the last frame; the caller's from now on."""
        fds, self._receiver.fds = self._receiver.fds, []
        return fds

    def install(self, ship: Any) -> None:
        """What a frame ships."""
        self._install(ship)

    def run_actor_frame(self, frame: Any) -> None:
        """Run the calls of one frame and answer it."""
        base, flags, ship, numbers, calls = frame
        if ship is not None:
            self._install(ship)
        if not self._page.slots[PID]:
            self._page.slots[PID] = os.getpid()
        if calls:
            here.careful = bool(flags & CAREFUL)
            here.interrupts = self._interrupts
            self._interrupts.begin()
            self._run_frame(base, numbers, calls)
            flush_streams()

    def interrupted(self, signum: int, frame: Any) -> None:
        """SIGINT has come while a frame of ours was run."""
        self._interrupts.handle(signum, frame)

    def load(self, number: int, args: Any) -> tuple[Any, Any, Any]:
        """(function, args, kwargs) of a call."""
        if not number:
            return self._importer.load_inline(args)
        function = self._importer.function(number)
        if type(args) is tuple:
            return function, args, {}
        return (function, *self._importer.load_call(args, function))

    def call(self, number: int, args: Any, seq: int) -> Any:
        """One call, of several that run at a time: its value, plain or as (kind, data)."""
        return self._call(number, args, seq)

    def answer(self, first: int, end: bool, elapsed_ns: int, values: list[Any]) -> None:
        """Send results."""
        self._answer(first, end, elapsed_ns, values)

    def send_item(self, seq: int, index: int, value: Any, fd: int) -> None:
        """Send what a call has yielded; or, with index -1, the pipe to its generator, if `fd` is one."""
        if fd < 0:
            self._answer(-seq, False, index, [value])
            return
        if self._via is not None:
            self._go_aside()
        data = dumps((-seq, False, index, [value]), 5)
        while True:
            try:
                wire.send(self._sock, data, (fd,))
                return
            except BlockingIOError:
                _wait_writable(self._sock)

    def _install(self, ship: tuple[list[tuple[int, str, bytes]], list[int], dict[str, str] | None]) -> None:
        items, forget, env = ship
        if forget:
            self._importer.forget(forget)
        if items:
            self._importer.install(items)
        if env is not None:
            here.holds_cpus = env.pop("\0cpus", "") == "1"
            here.actor_id = bytes.fromhex(env.pop("\0actor", ""))
            gpus = env.get("CUDA_VISIBLE_DEVICES", "")
            here.gpus = gpus.split(",") if gpus else []
            os.environ.update(env)

    def _run_frame(self, base: int, numbers: int | list[int], calls: list[Any]) -> None:
        """Run the tasks of one frame and answer it."""
        page = self._page.slots
        interrupts = self._interrupts
        call = self._call
        same = type(numbers) is int
        many = len(calls) > 1
        if many:
            self._open_journal(base)
        values: list[Any] = []
        first = seq = base
        begun = perf_counter_ns()
        for at, args in enumerate(calls):
            seq = base + at
            page[STARTED] = seq
            if page[LIMIT] <= seq:
                page[STARTED] = seq - 1  # not begun after all: whoever reads it after our death must know
                break
            number: int = numbers if same else numbers[at]  # type: ignore[index,assignment]
            interrupts.armed = True
            try:
                if interrupts.ahead:
                    interrupts.arm_again(seq)
                value = call(number, args)
            except KeyboardInterrupt as error:  # it may hit between the task's end and here
                value = (RAISED, dump_exception(error, ""))
                self._children_too(seq)
            interrupts.armed = False
            values.append(value)
            if many:
                if not self._streamed and self._journal(value):
                    continue
                self._streamed = False
                now = perf_counter_ns()
                self._answer(first, False, now - begun, values)
                values, first, begun = [], seq + 1, now
                self._open_journal(first)
        else:
            seq += 1
        self._answer(first, True, perf_counter_ns() - begun, values)

    def _call(self, number: int, args: Any, seq: int = 0) -> Any:
        """One task: its value, plain or as (kind, data). `seq`: which one, if several run at a time."""
        function: Any = None
        try:
            if number:
                function = self._importer.function(number)
                if type(args) is tuple:
                    result = function(*args)
                else:
                    args, kwargs = self._importer.load_call(args, function)
                    result = self._apply(function, args, kwargs, seq)
            else:
                function, args, kwargs = self._importer.load_inline(args)
                result = self._apply(function, args, kwargs, seq)
        except BaseException as error:
            self._interrupts.armed = False
            if error.__class__ is ActorExit:
                raise
            self._children_too(self._page.slots[STARTED])
            return raised_value(error, _label(function), self.submitter)
        kind = type(result)
        if kind in ATOMIC and (kind not in _SIZED or len(result) <= RAW_LIMIT):
            return result
        self._interrupts.armed = False
        try:
            return _result(result, _label(function), self._show, self.submitter)
        except BaseException as error:
            return (FAILED, dump_exception(error, _label(function)))

    def _children_too(self, task: int) -> None:
        """The task was interrupted: what it has submitted is cancelled, if that was asked for."""
        if self._interrupts.recursive:
            self._interrupts.recursive = False
            _cancel_children(task)

    def _apply(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any] | int, seq: int) -> Any:
        if type(kwargs) is int:
            if kwargs == STREAM:
                return self._stream(seq, function, *args)
            return list(map(function, args) if kwargs == MAP else starmap(function, args))
        return function(*args, **kwargs)  # type: ignore[arg-type]

    def _stream(
        self, seq: int, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], most: int, most_bytes: int
    ) -> int:
        """Send on what the function yields; returns how many there were."""
        from dpool._core.yielding import send_items

        label = _label(function)
        self._streamed = not seq
        number = seq or self._page.slots[STARTED]
        interrupts = self._interrupts

        def send(index: int, item: Any, fd: int = -1) -> Any:
            interrupts.armed = False
            value = as_value(item, label, self.submitter)
            self.send_item(number, index, value, fd)
            if not seq:
                interrupts.arm_again(number)
            return value

        return send_items(function(*args, **kwargs), (most, most_bytes), send)

    def _answer(self, first: int, end: bool, elapsed_ns: int, values: list[Any]) -> None:
        if self._child:
            _leave_child()
        data = dumps((first, end, elapsed_ns, values), 5)
        if self._via is not None and self._answer_directly(self._via, data, end, elapsed_ns, values):
            return
        summary = dumps((first, end, elapsed_ns, len(values)), 5) if len(data) > wire.INLINE_LIMIT else b""
        while True:
            try:
                wire.send(self._sock, data, summary=summary)
                return
            except BlockingIOError:
                _wait_writable(self._sock)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno in _GONE or self._sock.fileno() < 0:
                    raise SubmitterGone(str(error)) from error
                if not values or (len(values) == 1 and values[0].__class__ is tuple and values[0][0] == FAILED):
                    raise
                # no memory or no descriptor for a large frame: each task gets that as its error
                failure = (FAILED, dump_exception(_result_lost(error, len(data)), ""))
                data = dumps((first, end, elapsed_ns, [failure] * len(values)), 5)

    def _open_journal(self, first: int) -> None:
        page = self._page.slots
        page[COUNT] = 0
        page[GENERATION] += 1
        page[FIRST] = first
        self._page.map.seek(JOURNAL_AT)

    def _journal(self, value: Any) -> bool:
        """Note a finished task's value where the submitter can read it; False when it is time to answer instead."""
        if self._child:
            _leave_child()
        data = dumps(value, 5)
        journal = self._page.map
        if journal.tell() + len(data) > PAGE_BYTES:
            return False
        journal.write(data)
        self._page.slots[COUNT] += 1
        return True

    def _initialize(self, number: int, call: bytes) -> bool:
        """Run the initializer; False if it failed and the worker must end."""
        from dpool._core import inherit

        inherit.received(self._receiver.fds)
        self._interrupts.armed = True
        value = self._call(number, call)
        self._interrupts.armed = False
        self._receiver.close_fds()
        if type(value) is tuple and value[0] == RAISED_WITH_REFS:
            value = (RAISED, value[1][0])
        failed = type(value) is tuple and value[0] in (RAISED, FAILED)
        if failed:
            _log_failed_initializer(value[1])
        self._answer(0, True, 0, [value if failed else None])
        return not failed


_workers: WeakSet[Worker] = WeakSet()
"""Of this process: one or, in an actor, one for each caller."""


def _forked() -> None:
    for worker in _workers:
        worker._child = True
    here.holds_cpus = False


os.register_at_fork(after_in_child=_forked)


def as_value(result: Any, label: str, submitter: int) -> Any:
    """What a call returned, as it travels; whatever pickling raises."""
    if type(result) in ATOMIC and (type(result) not in _SIZED or len(result) <= RAW_LIMIT):
        return result
    return _result(result, label, False, submitter)


def _result(result: Any, label: str, show: bool, submitter: int) -> tuple[int, Any]:
    """A task's result as it travels: pickled, or where in the object store it lies."""
    parts, keep = pickle_result(result, label, show)
    if type(parts) is bytes:
        return (RESULT, parts)
    kind = STORED_ALONE if parts.alone else STORED  # type: ignore[union-attr]
    packed = storage.pack(parts, keep, submitter)  # type: ignore[arg-type]
    if type(packed) is bytes:
        return (RESULT, packed)
    if type(packed.wire) is list:  # type: ignore[union-attr]
        return (kind, packed.wire)  # type: ignore[union-attr]
    storage.client().hold_for([handle.obj for handle in keep], submitter)
    return (WITH_REFS, (packed.wire, [handle.place for handle in keep]))  # type: ignore[union-attr]


def raised_value(error: BaseException, label: str, submitter: int) -> tuple[int, Any]:
    """A task's exception as it travels."""
    keep: list[Any] = []
    data = dump_exception(error, label, keep)
    if not keep or not submitter:
        return (RAISED, data)
    try:
        storage.client().hold_for([handle.obj for handle in keep], submitter)
    except storage.StoreGone:  # then what it refers to is lost, and it says so when somebody asks
        return (RAISED, data)
    return (RAISED_WITH_REFS, (data, [handle.place for handle in keep]))


def _log_failed_initializer(data: bytes) -> None:
    """As the standard library's workers do, before anybody hears of it: to the log, and whatever queue hangs there
    flushed.
    """
    import logging
    from multiprocessing import util

    from dpool._core.serialize import load_exception

    error = load_exception(data, "the initializer")
    logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=error)
    util._exit_function()  # type: ignore[attr-defined]


def _cancel_children(task: int) -> None:
    """Cancel what this task has submitted."""
    driver = sys.modules.get("dpool._core.driver")
    if driver is not None:
        driver.runtime().cancel_children(task)


def _label(function: Any) -> str:
    """What messages call the task; costs nothing until something goes wrong."""
    return getattr(function, "__qualname__", None) or type(function).__name__


def _result_lost(error: OSError, size: int) -> Exception:
    from dpool.errors import SerializationError

    return SerializationError(f"the results ({size:,} bytes) could not be sent: {error}")


def _wait_writable(sock: socket.socket) -> None:
    from select import POLLOUT, poll

    waiter = poll()
    waiter.register(sock.fileno(), POLLOUT)
    waiter.poll()


def _leave_child() -> None:
    """End a process that a task forked and that came out of the task as its parent did."""
    flush_streams()
    os._exit(0)


def flush_streams() -> None:
    """What a task printed leaves the process no later than its result... or as soon after as makes no difference."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # the user closed or replaced it
            continue
