"""The process of an actor: one object, called by many.

```
 node ── construct, link, leave ──► home socket ─┐
 caller 1 ══ frames of calls ══► its own socket ─┼─► one loop ─► object.method(…) ─► results, on the caller's socket
 caller 2 ══ frames of calls ══► its own socket ─┘        └─► threads (max_concurrency), or an event loop (async def)
```

Each caller has a `Worker` of its own here (socket, page, what it shipped), so that everything about calls is as for
tasks. Calls of one caller begin in their order. With threads or coroutines each call travels alone and is answered when
it ends: `(-number, True, elapsed_ns, [value])`.
"""

from __future__ import annotations

import atexit
import inspect
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from select import EPOLLIN, epoll
from time import perf_counter_ns
from typing import Any

from dpool._core import wire
from dpool._core.config import WORKER_POLL_S
from dpool._core.context import ActorExit, here
from dpool._core.frames import CAREFUL, EXIT, LEFT, LINK, POLL, STOP, Page
from dpool._core.polling import Poller
from dpool._core.serialize import Importer
from dpool._core.worker import SubmitterGone, Worker, as_value, flush_streams, raised_value

SYNC, THREADS, ASYNC = range(3)
"""How calls run: one after the other, in threads, as coroutines of one event loop."""


class ActorHost:
    """See the module."""

    def __init__(self, home: Worker) -> None:
        self._home = home
        self._ready = epoll()
        self._ready.register(home.fileno(), EPOLLIN)
        self._links: dict[int, Worker] = {}
        self._leaving = False
        self._current: Worker | None = None
        """Whose calls run one after the other, or ran last."""
        self._running: dict[tuple[Worker, int], Any] = {}
        """Calls that run at a time, or wait for that: what can cancel each."""
        self._exited = False
        """One of them has ended the actor: the others are not answered, so that their callers hear of that."""
        self._label = "an actor"
        self._mode, self._most = SYNC, 1
        self._make: Callable[[], Any]
        here.page = self

    def count_written(self) -> None:
        """It writes to standard output or error, in whomever's call: all callers shall know."""
        for link in list(self._links.values()):
            link.count_written()

    def run(self, number: int, call: Any) -> None:
        """Construct the object, tell the node, and serve until told to leave."""
        try:
            self._load(number, call)
        except BaseException as error:
            self._home.answer(0, True, 0, [raised_value(error, self._label, 0)])
            return
        try:
            if self._mode == ASYNC:
                self._serve_coroutines()
            elif self._construct():
                self._serve_threads() if self._mode == THREADS else self._serve()
        except ActorExit:
            self._home.answer(LEFT, True, 0, [None])
            raise

    def _load(self, number: int, call: Any) -> None:
        cls, args, kwargs = self._home.load(number, call)
        (self._mode, self._most, meta, name), args = args[0], args[1:]
        self._label = cls.__qualname__
        here.actor_is = here.actor_id, meta, name
        self._make = partial(cls, *args, **kwargs)

    def _construct(self) -> bool:
        """Make the object, and tell the node."""
        failure = None
        try:
            here.actor = self._make()
        except BaseException as error:
            failure = raised_value(error, self._label, 0)
        del self._make
        self._home.answer(0, True, 0, [failure])
        return failure is None

    # -- one after the other

    def _serve(self) -> None:
        poller = Poller(self._ready.poll, WORKER_POLL_S)
        signal.signal(signal.SIGINT, self._interrupted)
        flags = 0
        while True:
            events = poller.poll() if flags & POLL else []
            flags = 0
            for fd, _ in events or self._ready.poll(0 if self._leaving else -1):
                if fd == self._home.fileno():
                    self._told()
                elif fd in self._links:
                    flags |= self._one_frame(fd)
            if self._leaving and not self._ready.poll(0):
                return

    def _one_frame(self, fd: int) -> int:
        link = self._links[fd]
        try:
            frame = link.next_frame()
        except (wire.Closed, OSError):
            self._drop(fd)
            return 0
        here.counters = link.page
        self._current = link
        try:
            link.run_actor_frame(frame)
        except SubmitterGone:
            self._drop(fd)
        return int(frame[1])

    def _interrupted(self, signum: int, frame: Any) -> None:
        """SIGINT: it is for the caller whose call runs. Set once, since setting it costs as much as a system call."""
        if self._current is not None:
            self._current.interrupted(signum, frame)

    def _told(self) -> None:
        """The node says something."""
        try:
            _, flags, pid, _, _ = self._home.next_frame()
        except (wire.Closed, OSError):  # it has ended, and so will we
            os._exit(1)
        fds = self._home.take_fds()
        if flags & LINK and len(fds) == 2:
            sock, page = socket.socket(fileno=fds[0]), Page(fds[1])
            os.close(fds[1])
            self._links[sock.fileno()] = Worker(sock, page, Importer(), WORKER_POLL_S, submitter=pid)
            self._ready.register(sock.fileno(), EPOLLIN)
        else:
            for fd in fds:
                os.close(fd)
        if flags & EXIT:
            self._leaving = True
            self._ready.unregister(self._home.fileno())

    def _drop(self, fd: int) -> None:
        """A caller has gone."""
        self._ready.unregister(fd)
        link = self._links.pop(fd)
        if here.counters is link.page:
            here.counters = None
        if link is self._current:
            self._current = None
        link.close()

    # -- many at a time

    def _serve_threads(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        here.counters = None
        with ThreadPoolExecutor(self._most, thread_name_prefix="actor") as threads:
            while not (self._leaving and not self._ready.poll(0)):
                for fd, _ in self._ready.poll(0 if self._leaving else -1):
                    if fd == self._home.fileno():
                        self._told()
                    else:
                        for link, number, seq, call in self._calls_of(fd):
                            one = threads.submit(self._run_call, link, number, seq, call)
                            self._note(one, link, seq)

    def _calls_of(self, fd: int) -> list[tuple[Worker, int, int, Any]]:
        """The calls of the next frame of a caller."""
        link = self._links[fd]
        try:
            base, flags, ship, numbers, calls = link.next_frame()
        except (wire.Closed, OSError):
            self._drop(fd)
            return []
        if ship is not None:
            link.install(ship)
        here.careful = here.careful or bool(flags & CAREFUL)  # which of them runs is not known
        if flags & STOP:
            one = self._running.get((link, base))
            if one is not None:
                one.cancel()
            return []
        return [
            (link, numbers if type(numbers) is int else numbers[at], base + at, call) for at, call in enumerate(calls)
        ]

    def _note(self, one: Any, link: Worker, seq: int) -> None:
        """A call (a future of a thread, or a coroutine's task) can be cancelled; who waits for it is to hear of it."""
        self._running[link, seq] = one
        one.add_done_callback(partial(self._over, link, seq))

    def _over(self, link: Worker, seq: int, one: Any) -> None:
        del self._running[link, seq]
        if one.cancelled() and not self._exited:  # else it has answered
            _answer(link, seq, 0, raised_value(KeyboardInterrupt(), self._label, link.submitter))

    def _run_call(self, link: Worker, number: int, seq: int, call: Any) -> None:
        begun = perf_counter_ns()
        try:
            value = link.call(number, call, seq)
        except ActorExit:  # in a thread, while others run calls that nobody waits for any more
            self._home.answer(LEFT, True, 0, [None])
            atexit._run_exitfuncs()
            flush_streams()
            os._exit(0)
        _answer(link, seq, perf_counter_ns() - begun, value)

    def _serve_coroutines(self) -> None:
        import asyncio

        here.counters = None
        asyncio.run(self._coroutines())

    async def _coroutines(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        if not self._construct():
            return
        slots = asyncio.Semaphore(self._most)
        over = asyncio.Event()
        exits: list[ActorExit] = []

        async def run(link: Worker, number: int, seq: int, call: Any) -> None:
            try:
                await self._run_coroutine(slots, link, number, seq, call)
            except ActorExit as leave:
                self._exited = True
                exits.append(leave)
                over.set()

        def readable() -> None:
            for fd, _ in self._ready.poll(0):
                if fd == self._home.fileno():
                    self._told()
                    continue
                for link, number, seq, call in self._calls_of(fd):
                    task = loop.create_task(run(link, number, seq, call))
                    self._note(task, link, seq)
            if self._leaving and not self._ready.poll(0):
                over.set()

        loop.add_reader(self._ready.fileno(), readable)
        await over.wait()
        loop.remove_reader(self._ready.fileno())
        if exits:
            raise exits[0]
        if self._running:
            await asyncio.wait(list(self._running.values()))

    async def _run_coroutine(self, slots: Any, link: Worker, number: int, seq: int, call: Any) -> None:
        async with slots:
            begun = perf_counter_ns()
            function: Any = None
            label = "a call"
            value: Any
            try:
                function, args, kwargs = link.load(number, call)
                label = getattr(function, "__qualname__", label)
                if type(kwargs) is int:
                    value = await _run_stream(link, seq, label, function, *args)
                else:
                    result = function(*args, **kwargs)
                    if inspect.isawaitable(result):
                        result = await result
                    value = as_value(result, label, link.submitter)
            except ActorExit:
                raise
            except BaseException as error:
                value = raised_value(error, label, link.submitter)
        if not self._exited:
            _answer(link, seq, perf_counter_ns() - begun, value)


async def _run_stream(
    link: Worker, seq: int, label: str, function: Any, args: Any, kwargs: dict[str, Any], most: int, most_bytes: int
) -> int:
    """A method that yields: send on what it yields; returns how many there were."""
    from dpool._core.yielding import send_items_async

    items = function(*args, **kwargs)
    if inspect.isawaitable(items):
        items = await items

    def send(index: int, item: Any, fd: int = -1) -> Any:
        value = as_value(item, label, link.submitter)
        link.send_item(seq, index, value, fd)
        return value

    return await send_items_async(items, (most, most_bytes), send)


def _answer(link: Worker, seq: int, elapsed_ns: int, value: Any) -> None:
    try:
        link.answer(-seq, True, elapsed_ns, [value])
    except SubmitterGone:
        return
    flush_streams()
