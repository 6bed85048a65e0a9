"""`dpool.cancel`: several at once, what a task runs itself, calls of actors."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import pytest

import dpool
from dpool._core import frames
from dpool._core.logic.dispatch import Dispatcher
from dpool._core.worker import Interrupts
from tests.executor.support import LONG_S, Gate
from tests.helpers import wait_until


def cancelled(future: Any) -> bool:
    with pytest.raises(CancelledError):
        future.result(LONG_S)
    return bool(future.cancelled())


# -- one of several results


def two(gate: Gate, name: str) -> tuple[int, int]:
    gate.enter(name)
    return 1, 2


@pytest.mark.parametrize("state", ["waits", "runs", "ended"])
def test_one_of_several_results(state: str, gate: Gate) -> None:
    task = dpool.remote(num_returns=2, max_retries=0)(two).options(num_cpus=2)
    running = task.remote(gate, "first")
    gate.entered("first")
    waiting = task.remote(gate, "second")
    assert [part.running() for part in (*running, *waiting)] == [True, True, False, False]
    if state == "waits":
        assert waiting[1].cancel()
        assert waiting[1].cancelled()
        assert cancelled(waiting[0])
        assert not running[0].cancel()
    if state == "runs":
        assert not running[0].cancel()
        assert running[0].cancel(force=True)
        assert cancelled(running[1])
    gate.open("first")
    gate.open("second")
    for parts in (running, waiting):
        if not any(part.cancelled() for part in parts):
            assert dpool.get(parts, timeout=LONG_S) == [1, 2]
            assert not parts[0].cancel()


# -- the worker's side


def interrupted(interrupts: Interrupts) -> bool:
    interrupts.armed = True
    count = interrupts.count
    with suppress(KeyboardInterrupt):
        interrupts.handle(2, None)
    return interrupts.count > count


def test_a_signal_is_for_the_tasks_that_were_named() -> None:
    page = memoryview(bytearray(frames.JOURNAL_AT)).cast("Q")
    interrupts = Interrupts(page, strict=False)
    page[frames.STARTED] = 5
    assert interrupted(interrupts)  # from a stranger: for whatever runs
    for at, number in enumerate((5, 9, 7 | frames.RECURSIVE)):
        page[frames.CANCELS + at] = number
        page[frames.ASKED] += 1
    assert (interrupted(interrupts), interrupts.recursive) == (True, False)
    page[frames.STARTED] = 6
    assert not interrupted(interrupts)  # it came late, and must not hit the next one
    page[frames.STARTED] = 7
    assert (interrupted(interrupts), interrupts.recursive) == (True, True)
    assert interrupted(Interrupts(page, strict=True))
    page[frames.STARTED] = 8
    assert interrupted(interrupts)  # all that were announced have come: a stranger's
    assert not interrupted(Interrupts(page, strict=True))


def test_one_that_comes_before_its_task() -> None:
    page = memoryview(bytearray(frames.JOURNAL_AT)).cast("Q")
    interrupts = Interrupts(page, strict=False)
    page[frames.STARTED] = 3
    page[frames.CANCELS] = 5
    page[frames.ASKED] = 1
    assert not interrupted(interrupts)
    for task in (3, 4):
        interrupts.arm_again(task)
    with pytest.raises(KeyboardInterrupt):
        interrupts.arm_again(5)
    interrupts.arm_again(6)
    assert not interrupts.ahead


def test_one_that_comes_while_an_item_is_sent_is_heard_of_afterwards() -> None:
    page = memoryview(bytearray(frames.JOURNAL_AT)).cast("Q")
    interrupts = Interrupts(page, strict=False)
    page[frames.STARTED] = 3
    page[frames.CANCELS] = 3 | frames.RECURSIVE
    page[frames.ASKED] = 1
    interrupts.handle(2, None)
    with pytest.raises(KeyboardInterrupt):
        interrupts.arm_again(3)
    assert interrupts.recursive
    interrupts.arm_again(3)


# -- tasks


def test_many_at_once_on_few_workers(gate: Gate) -> None:
    for _ in range(5):
        tasks = [dpool.remote(gate.enter).remote("forever") for _ in range(10)]
        gate.entered("forever")
        for task in tasks[::2]:
            dpool.cancel(task)
        for task in tasks[1::2]:
            dpool.cancel(task)
        assert all(map(cancelled, tasks))
    assert dpool.get(dpool.remote(len).remote("abc"), timeout=LONG_S) == 3


def test_a_task_that_waits_behind_another_in_its_frame_and_is_taken_back(gate: Gate) -> None:
    """It was interrupted by its number, which is another one where it is sent next."""
    with dpool.Executor(1) as ex:
        running = ex.submit(gate.enter, "a")
        gate.entered("a")
        behind = ex.submit(gate.enter, "b")
        assert running._route is not None
        lane = running._route.lane
        wait_until(lambda: lane._slot_of(behind) is not None, LONG_S)
        assert lane.interrupt(behind)
        with lane.lock:
            (slot,) = lane.dispatcher.slots.values()
            assert lane._take_unread(slot)
        assert cancelled(behind)
        gate.open("a")
        assert running.result(LONG_S) is None
        assert not gate.pids("b")


def waits_for_two(gate: Gate, children: int) -> Any:
    """Runs its last child itself, as all CPUs are taken."""
    others = [dpool.remote(gate.enter).remote("other") for _ in range(children)]
    return dpool.get([dpool.remote(num_cpus=1)(gate.enter).remote("child"), *others])


def test_recursively_with_a_child_that_the_parent_runs_itself(gate: Gate) -> None:
    dpool.shutdown()
    dpool.init(num_cpus=1)
    parent = dpool.remote(waits_for_two).remote(gate, 3)
    gate.entered("child")
    dpool.cancel(parent)
    assert cancelled(parent)
    wait_until(lambda: dpool.available_resources()["CPU"] == 1, LONG_S)
    assert dpool.get(dpool.remote(len).remote("abc"), timeout=LONG_S) == 3
    assert not gate.pids("other")


def stubborn(gate: Gate) -> str:
    try:
        gate.enter("child")
    except KeyboardInterrupt:
        gate.note("caught")
    return "went on"


def asks_the_stubborn(gate: Gate) -> str:
    dpool.get(dpool.remote(stubborn).remote(gate))
    gate.note("parent went on")
    return "done"


def test_the_parent_is_interrupted_though_the_child_that_it_runs_has_caught_it(gate: Gate) -> None:
    dpool.shutdown()
    dpool.init(num_cpus=1)
    parent = dpool.remote(asks_the_stubborn).remote(gate)
    gate.entered("child")
    dpool.cancel(parent)
    assert cancelled(parent)
    assert gate.pids("caught")
    assert not gate.pids("parent went on")


def cancels_its_child(gate: Gate, deep: bool) -> str:
    """A thread cancels the child that this one runs."""
    child = dpool.remote(asks_the_stubborn if deep else gate.enter).remote(gate if deep else "child")

    def cancel() -> None:
        gate.entered("child")
        dpool.cancel(child)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(CancelledError):
        dpool.get(child)
    thread.join()
    gate.enter("parent")
    return "parent went on"


@pytest.mark.parametrize("deep", [False, True])
def test_a_task_cancels_a_child_that_it_runs_itself(gate: Gate, deep: bool) -> None:
    dpool.shutdown()
    dpool.init(num_cpus=1)
    for again in range(2):
        parent = dpool.remote(cancels_its_child).remote(gate, deep)
        assert gate.entered("parent")
        gate.open("parent")
        assert dpool.get(parent, timeout=LONG_S) == "parent went on"
        for name in ("child", "parent"):
            (gate.directory / f"{name}.in").unlink()
        assert again < 2
    assert not gate.pids("parent went on")


# -- calls of actors


class Sync:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def enter(self, gate: Gate, name: str) -> None:
        gate.enter(name)

    def note(self, x: int) -> int:
        self.seen.append(x)
        return x


class Async:
    def __init__(self) -> None:
        self.ends: list[str] = []

    async def sleep(self, gate: Gate, name: str) -> None:
        gate.note(name)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append(name)
            raise

    async def note(self, x: int) -> int:
        return x


def test_calls_that_wait_and_one_that_runs(gate: Gate) -> None:
    actor = dpool.ActorProxy(Sync)
    running = actor.enter.submit(gate, "a")
    gate.entered("a")
    waiting = [actor.note.submit(i) for i in range(50)]
    for call in waiting[::3]:
        dpool.cancel(call)
    assert all(map(cancelled, waiting[::3]))
    with pytest.raises(ValueError, match="end the actor"):
        dpool.cancel(running, force=True)
    dpool.cancel(running)  # KeyboardInterrupt in the method
    assert cancelled(running)
    kept = [i for i in range(50) if i % 3]
    assert [waiting[i].result(LONG_S) for i in kept] == kept
    assert actor.seen == kept


def test_calls_of_a_frame_that_is_run_keep_their_order(gate: Gate) -> None:
    """Many short calls travel together; some are cancelled while the first of them blocks."""
    actor = dpool.ActorProxy(Sync)
    dpool.get([actor.note.submit(-1) for _ in range(2000)], timeout=LONG_S)
    expected = []
    for turn in range(5):
        first = actor.enter.submit(gate, f"{turn}")
        calls = [actor.note.submit(1000 * turn + i) for i in range(300)]
        gate.entered(f"{turn}")
        for call in calls[::7]:
            dpool.cancel(call)
        gone = [call for call in calls[::7] if call.cancelled()]
        more = [actor.note.submit(1000 * turn + 500 + i) for i in range(10)]
        gate.open(f"{turn}")
        first.result(LONG_S)
        expected += [call.result(LONG_S) for call in [*calls, *more] if call not in gone]
        assert gone == calls[::7]
    assert [x for x in actor.seen if x >= 0] == expected
    assert expected == sorted(expected)


def blocks(actor: Any, gate: Gate) -> None:
    actor.enter(gate, "other")


def test_calls_keep_their_order_when_one_of_several_frames_that_wait_is_taken_back(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor reads none of them, as it is busy with another caller's."""
    actor = dpool.ActorProxy(Sync)
    assert actor.note(-1) == -1  # the method is there, and makes no frame of its own
    other = dpool.remote(blocks).remote(actor, gate)
    gate.entered("other")
    lane = actor._dpool_held.pool().lane
    monkeypatch.setattr(Dispatcher, "choose", lambda *_: 3)
    with lane.lock:
        (slot,) = lane.dispatcher.slots.values()
        slot.held = True
        calls = [actor.note.submit(i) for i in range(9)]
        slot.held = False
        lane.push()
        assert [len(frame.tasks) for frame in slot.frames] == [3, 3]
    with lane.lock:
        lane._take_all_unread(slot)
        assert list(lane.queue) == calls, "each once"
        lane.push()
    for call in (calls[1], calls[4], calls[8]):
        dpool.cancel(call)
        assert call.cancelled()
    gate.open("other")
    kept = [0, 2, 3, 5, 6, 7]
    assert [calls[i].result(LONG_S) for i in kept] == kept
    assert actor.seen == [-1, *kept]
    dpool.get(other, timeout=LONG_S)


def test_an_interrupt_does_not_hit_the_call_of_another_caller(gate: Gate) -> None:
    actor = dpool.ActorProxy(Sync)

    def calls(other: Any) -> list[int]:
        return [other.note(i) for i in range(300)]

    task = dpool.remote(calls).remote(actor)
    while not task.done():
        dpool.cancel(actor.note.submit(-1))
    assert dpool.get(task, timeout=LONG_S) == list(range(300))


def test_coroutines_that_run_and_wait(gate: Gate) -> None:
    actor = dpool.remote(Async).options(max_concurrency=2).remote()
    calls = [actor.sleep.submit(gate, name) for name in "abc"]
    gate.entered("a")
    gate.entered("b")
    dpool.cancel(calls[2])  # it waits for the others
    assert cancelled(calls[2])
    dpool.cancel(calls[0])
    assert cancelled(calls[0])
    assert actor.note(5) == 5
    dpool.cancel(calls[1])
    assert cancelled(calls[1])
    assert actor.ends == ["a", "b"]
    assert not gate.pids("c")


def test_threads(gate: Gate) -> None:
    """One that has begun cannot be interrupted: it ends as it ends."""
    actor = dpool.remote(Sync).options(max_concurrency=2).remote()
    calls = [actor.enter.submit(gate, name) for name in "abc"]
    for name in "ab":
        gate.entered(name)
    dpool.cancel(calls[2])
    assert cancelled(calls[2])
    dpool.cancel(calls[0])
    gate.open("a", "b")
    assert [call.result(LONG_S) for call in calls[:2]] == [None, None]
    assert not gate.pids("c")
