"""Streams: a generator is no further ahead than its window, and ends with its stream; of tasks and of actors."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpool
from dpool._core.lane import Lane
from dpool._core.logic.dispatch import Dispatcher
from dpool._core.stream import CREDIT, Flow
from dpool._core.yielding import Window
from tests.executor.support import LONG_S, Gate
from tests.helpers import wait_until


def counting(gate: Gate, n: int = -1, size: int = 0) -> Iterator[Any]:
    """Counts without end, and says how far it has come, and when it is closed."""
    try:
        for i in itertools.count() if n < 0 else range(n):
            gate.note("made")
            yield np.full(size, i, np.uint8) if size else i
    except GeneratorExit:
        gate.note("exit")
        raise
    finally:
        gate.note("closed")


endless = dpool.remote(num_returns="streaming")(counting)


class Source:
    """An actor whose methods yield."""

    def __init__(self) -> None:
        self.closed = 0

    @dpool.method(num_returns="streaming", stream_window=3)
    def numbers(self, n: int = -1) -> Iterator[int]:
        try:
            yield from itertools.count() if n < 0 else range(n)
        finally:
            self.closed += 1

    @dpool.method(num_returns="streaming")
    def breaks(self) -> Iterator[int]:
        yield 1
        raise ValueError("in the middle")

    def counted(self, gate: Gate) -> Iterator[Any]:
        return counting(gate)

    def ended(self) -> int:
        return self.closed


class AsyncSource:
    """The same with coroutines."""

    def __init__(self) -> None:
        self.closed = 0

    @dpool.method(num_returns="streaming", stream_window=3)
    async def numbers(self, n: int = -1) -> AsyncIterator[int]:
        try:
            for i in itertools.count() if n < 0 else range(n):
                yield i
        finally:
            self.closed += 1

    @dpool.method(num_returns="streaming", stream_window=3)
    def plain(self, n: int = -1) -> Iterator[int]:
        try:
            yield from itertools.count() if n < 0 else range(n)
        finally:
            self.closed += 1

    @dpool.method(num_returns="streaming")
    async def breaks(self) -> AsyncIterator[int]:
        yield 1
        raise ValueError("in the middle")

    async def ended(self) -> int:
        return self.closed


def made(gate: Gate) -> int:
    return len(gate.pids("made"))


@pytest.mark.parametrize("option", ["stream_window", "_generator_backpressure_num_objects"])
def test_an_endless_generator_waits_for_a_slow_consumer(gate: Gate, option: str) -> None:
    stream = endless.options(**{option: 4}).remote(gate)
    for taken in range(20):
        wait_until(lambda taken=taken: made(gate) == taken + 4, LONG_S)  # type: ignore[misc]
        assert dpool.get(next(stream)) == taken
        assert made(gate) <= taken + 5
    stream.close()
    gate.entered("closed")
    assert gate.pids("exit")
    with pytest.raises(StopIteration):
        next(stream)


def test_a_window_of_bytes(gate: Gate) -> None:
    size = 1 << 20
    stream = endless.options(stream_window_bytes=3 * size).remote(gate, size=size)
    for taken in range(20):
        wait_until(lambda taken=taken: made(gate) == taken + 3, LONG_S)  # type: ignore[misc]
        assert dpool.get(next(stream))[0] == taken
        assert dpool.store_stats().objects <= 6


def test_one_that_is_larger_than_the_window(gate: Gate) -> None:
    stream = endless.options(stream_window_bytes=10).remote(gate, 5, size=1000)
    assert [len(dpool.get(item)) for item in stream] == [1000] * 5


def test_a_stream_that_nobody_holds_ends_its_generator(gate: Gate) -> None:
    stream = endless.remote(gate)
    assert dpool.get(next(stream)) == 0
    del stream
    gate.entered("closed")
    assert gate.pids("exit")
    wait_until(lambda: dpool.available_resources() == dpool.cluster_resources(), LONG_S)


def test_a_with_block_closes_it(gate: Gate) -> None:
    with endless.options(stream_window=1).remote(gate) as stream:
        assert dpool.get(next(stream)) == 0
    gate.entered("closed")


def test_a_task_that_has_not_begun_never_will(gate: Gate) -> None:
    busy = [dpool.remote(gate.enter).remote(name) for name in "ab"]
    for name in "ab":
        gate.entered(name)
    stream = endless.remote(gate)
    end = stream.completed()
    stream.close()
    with pytest.raises(CancelledError):
        end.result(LONG_S)
    gate.open("a", "b")
    dpool.get(busy, timeout=LONG_S)
    assert not made(gate)


def test_who_waits_for_the_end_lifts_the_window(gate: Gate) -> None:
    stream = endless.options(stream_window=2).remote(gate, 50)
    assert stream.completed().result(LONG_S) == 50
    assert [dpool.get(item) for item in stream] == list(range(50))


def test_a_stream_without_a_limit(gate: Gate) -> None:
    stream = endless.options(stream_window=-1).remote(gate, 3000)
    wait_until(lambda: bool(gate.pids("closed")), LONG_S)
    assert sum(dpool.get(item) for item in stream) == sum(range(3000))


def test_cancel_a_stream(gate: Gate) -> None:
    stream = endless.options(stream_window=2).remote(gate)
    dpool.get(next(stream))
    dpool.cancel(stream)
    with pytest.raises(CancelledError):
        dpool.get(list(stream), timeout=LONG_S)
    gate.entered("closed")


def ends_once(flag: str) -> Iterator[int]:
    for i in range(20):
        if i == 10 and not os.path.exists(flag):
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield i


def test_after_a_crash_it_goes_on_where_it_was(tmp_path: Path) -> None:
    stream = dpool.remote(num_returns="streaming", stream_window=3)(ends_once).remote(str(tmp_path / "flag"))
    assert [dpool.get(item, timeout=LONG_S) for item in stream] == list(range(20))


def test_a_generator_that_waits_lends_its_cpus(gate: Gate) -> None:
    """Who is to take the items needs both CPUs for each of them."""
    stream = endless.options(stream_window=1).remote(gate)
    double = dpool.remote(num_cpus=2)(lambda x: 2 * x)
    assert [dpool.get(double.remote(next(stream)), timeout=LONG_S) for _ in range(5)] == [0, 2, 4, 6, 8]


def consume(gate: Gate, n: int) -> list[int]:
    with endless.options(stream_window=2).remote(gate) as stream:
        return [dpool.get(next(stream)) for _ in range(n)]


def test_a_task_takes_what_a_task_yields(gate: Gate) -> None:
    assert dpool.get(dpool.remote(consume).remote(gate, 5), timeout=LONG_S) == list(range(5))
    gate.entered("closed")


def test_with_async_for(gate: Gate) -> None:
    async def take() -> list[int]:
        found = []
        async for item in endless.options(stream_window=2).remote(gate, 20):
            found.append(await item)
        return found

    assert asyncio.run(take()) == list(range(20))


def closes(stream: Any, conn: Any) -> None:
    with stream:
        items = [dpool.get(next(stream)) for _ in range(2)]
        try:
            next(stream)
        except dpool.errors.ForkedRuntimeError:
            conn.send(items)


def test_a_forked_child_does_not_close_its_parents_stream(gate: Gate) -> None:
    stream = endless.options(stream_window=2).remote(gate, 20)
    wait_until(lambda: len(stream._flow.items) == 2, LONG_S)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=closes, args=(stream, theirs))
    child.start()
    assert ours.poll(LONG_S)
    assert ours.recv() == [0, 1]  # what had come before
    child.join(LONG_S)
    for end in (ours, theirs):
        end.close()
    assert [dpool.get(item) for item in stream] == list(range(20))


class Timers:
    """A runtime that only has timers."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def at(self, when_s: float, action: Any) -> None:
        self.waiting.append(action)


def test_a_full_pipe_is_written_to_again() -> None:
    """A generator that cannot hear for long, whose last item is so large that it waits until that one is taken."""
    window, flow, runtime = Window(-1, 1000), Flow(), Timers()
    flow.opened(os.dup(window.writer))
    window.handed_over()
    room = fcntl.fcntl(window.reader, fcntl.F_SETPIPE_SZ, 4096) // CREDIT.size
    sizes = [0] * room + [1, 2000]
    for at, size in enumerate(sizes):
        window.sent(b"x" * size)
        flow.put(at, dpool.Future())
    while flow.take() is not None:
        pass
    flow.tell_all(runtime)
    window.hear()
    assert window.full()  # what it has heard is not all
    [action] = runtime.waiting
    action()
    window.hear()
    assert not window.full()
    assert runtime.waiting == [action]
    window.close()


def test_the_window_is_lifted_although_the_pipe_is_full() -> None:
    window, flow, runtime = Window(1, -1), Flow(), Timers()
    flow.opened(os.dup(window.writer))
    window.handed_over()
    room = fcntl.fcntl(window.reader, fcntl.F_SETPIPE_SZ, 4096) // CREDIT.size
    for at in range(room):
        flow.put(at, dpool.Future())
        flow.take()
    flow.unlimit()
    flow.tell_all(runtime)
    window.hear()
    for _ in range(room + 1):
        window.sent(b"")
    assert window.full()
    runtime.waiting[0]()
    window.hear()
    assert not window.full()
    window.close()


def test_a_stream_does_not_travel(gate: Gate) -> None:
    stream = endless.remote(gate, 3)
    with pytest.raises(TypeError, match="stays in the process"):
        dpool.get(dpool.remote(list).remote(stream))
    items = list(stream)
    assert dpool.get(dpool.remote(lambda *values: values).remote(*items)) == (0, 1, 2)


def test_what_is_not_a_generator_and_options_that_cannot_be() -> None:
    stream = dpool.remote(num_returns="streaming")(len).remote("ab")
    with pytest.raises(TypeError, match="iterable"):
        dpool.get(next(stream))
    for name in ("stream_window", "stream_window_bytes"):
        for limit in (0, -2, True, 1.5):
            with pytest.raises(ValueError, match="at least 1"):
                dpool.remote(**{name: limit})(len)


# -- of actors


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Source, {}), (Source, {"max_concurrency": 3}), (AsyncSource, {})],
    ids=["sync", "threads", "async"],
)
def test_methods_that_yield(cls: Any, options: dict[str, Any]) -> None:
    actor = dpool.remote(cls).options(**options).remote()
    assert [dpool.get(item) for item in actor.numbers.remote(10)] == list(range(10))
    assert list(actor.numbers(10)) == list(range(10))  # blocks for each value
    assert actor.ended() == 2
    with actor.numbers.submit() as stream:
        assert [dpool.get(next(stream)) for _ in range(10)] == list(range(10))
    wait_until(lambda: actor.ended() == 3, LONG_S)
    stream = actor.numbers.submit()
    assert dpool.get(next(stream)) == 0
    del stream
    wait_until(lambda: actor.ended() == 4, LONG_S)
    broken = actor.breaks.submit()
    assert dpool.get(next(broken)) == 1
    with pytest.raises(ValueError, match="in the middle"):
        dpool.get(next(broken))
    with pytest.raises(ValueError, match="in the middle"):
        list(actor.breaks())


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 2}])
def test_an_endless_method_waits(gate: Gate, options: dict[str, Any]) -> None:
    actor = dpool.remote(Source).options(**options).remote()
    with actor.counted.options(num_returns="streaming", stream_window=4).remote(gate) as stream:
        for taken in range(10):
            wait_until(lambda taken=taken: made(gate) == taken + 4, LONG_S)  # type: ignore[misc]
            assert dpool.get(next(stream)) == taken
            assert made(gate) <= taken + 5
    gate.entered("closed")


def test_others_are_served_while_a_generator_of_coroutines_waits() -> None:
    actor = dpool.ActorProxy(AsyncSource)
    streams = [actor.numbers.submit(), actor.plain.submit(), actor.numbers.submit()]
    for taken in range(10):
        assert [dpool.get(next(stream), timeout=LONG_S) for stream in streams] == [taken] * 3
        assert actor.ended() == 0
    for stream in streams:
        stream.close()
    wait_until(lambda: actor.ended() == 3, LONG_S)


def take_from(actor: Any, n: int) -> list[int]:
    stream = actor.numbers.remote()
    return [dpool.get(next(stream)) for _ in range(n)]


def test_a_task_takes_what_an_actor_yields() -> None:
    actor = dpool.ActorProxy(Source)
    assert dpool.get(dpool.remote(take_from).remote(actor, 7), timeout=LONG_S) == list(range(7))
    wait_until(lambda: actor.ended() == 1, LONG_S)


def test_a_caller_that_dies_ends_its_streams(gate: Gate) -> None:
    actor = dpool.ActorProxy(AsyncSource)

    def take() -> None:
        stream = actor.numbers.remote()
        dpool.get(next(stream))
        gate.enter()

    victim = dpool.remote(max_retries=0)(take).remote()
    os.kill(gate.entered(), signal.SIGKILL)
    with pytest.raises(dpool.errors.WorkerCrashed):
        dpool.get(victim, timeout=LONG_S)
    wait_until(lambda: actor.ended() == 1, LONG_S)


def waits_and_counts(gate: Gate, n: int) -> Iterator[int]:
    gate.enter("stream")
    yield from range(n)


def test_items_are_not_lost_when_the_frame_is_taken_apart(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator has ended, and its items have not been read yet; the next task of its frame blocks."""
    dpool.shutdown()
    dpool.init(num_cpus=1)
    counts, blocks = dpool.remote(num_returns="streaming")(waits_and_counts), dpool.remote(gate.enter)
    gate.open("stream", "first")
    assert len(list(counts.remote(gate, 3))) == 3  # the functions are there, and make no frames of their own
    dpool.get(blocks.remote("first"), timeout=LONG_S)
    (gate.directory / "stream.open").unlink()
    (gate.directory / "stream.in").unlink()
    before = blocks.remote("before")
    gate.entered("before")
    lane = before._route.lane
    monkeypatch.setattr(Dispatcher, "choose", lambda self, slot, queued: queued)
    with lane.lock:
        (slot,) = lane.dispatcher.slots.values()
        slot.held = True
        stream, behind = counts.remote(gate, 3), blocks.remote("behind")
    rescue = lane.rescue
    monkeypatch.setattr(Lane, "rescue", lambda *_: True)  # not before we say so
    gate.open("before")
    gate.entered("stream")
    wait_until(lambda: len(slot.frames[0].tasks) == 2, LONG_S)  # the answer to the one before has been read
    monkeypatch.setattr(Lane, "_answered", lambda *_: None)
    gate.open("stream")
    gate.entered("behind")
    for now_s in (1e9, 2e9):
        rescue(now_s, 0.0)
    monkeypatch.undo()
    assert [future.result(LONG_S) for future in stream] == [0, 1, 2]
    assert not behind.done()
    gate.open("behind")
    behind.result(LONG_S)
