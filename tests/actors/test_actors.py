"""Actors: calls, order, attributes, concurrency, names, lifetime, what nests."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

import dpool
from dpool._core import wire
from dpool._core.lane import Lane
from tests.executor.support import LONG_S, Gate
from tests.helpers import is_running, run_script, wait_until


class Counter:
    """Counts, and remembers the order of its calls."""

    def __init__(self, start: int = 0, name: str = "counter") -> None:
        self.value = start
        self.name = name
        self.seen: list[Any] = []

    def add(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def note(self, what: Any) -> None:
        self.seen.append(what)

    def pid(self) -> int:
        return os.getpid()

    def fail(self, text: str) -> None:
        raise ValueError(text)

    def size(self, array: Any) -> int:
        return int(array.nbytes)

    def make(self, n: int) -> Any:
        return np.full(n, self.value)

    @dpool.method(num_returns=2)
    def both(self) -> tuple[int, str]:
        return self.value, self.name

    @staticmethod
    def double(x: int) -> int:
        return 2 * x

    @classmethod
    def kind(cls) -> str:
        return cls.__name__

    @property
    def twice(self) -> int:
        return 2 * self.value

    def __call__(self, x: int) -> int:
        return x + self.value

    def enter(self, gate: Gate, name: str) -> str:
        gate.enter(name)
        return name


def use(actor: Any, by: int) -> int:
    return int(actor.add(by))


def test_calls_attributes_and_errors() -> None:
    counter = dpool.ActorProxy(Counter, 5)
    assert counter.add() == 6
    assert counter.add(by=4) == 10
    assert (counter.value, counter.name, counter.twice) == (10, "counter", 20)
    assert counter.double(4) == 8
    assert counter.kind() == "Counter"
    assert counter(1) == 11
    assert counter.pid() == counter.pid() != os.getpid()
    with pytest.raises(ValueError, match="bad"):
        counter.fail("bad")
    with pytest.raises(AttributeError, match="nothing"):
        counter.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="read, not set"):
        counter.value = 3
    with pytest.raises(TypeError):
        counter.add("x")
    assert counter.add() == 11
    assert "Counter" in repr(counter)
    assert {"add", "fail", "kill"} <= set(dir(counter))
    with pytest.raises(TypeError, match="not callable"):
        dpool.ActorProxy(dict)(1)


def test_calls_that_do_not_wait() -> None:
    counter = dpool.ActorProxy(Counter)
    assert dpool.get([counter.add.submit() for _ in range(300)]) == list(range(1, 301))
    assert dpool.get(counter.add.remote(1)) == 301
    value, name = counter.both.submit()
    assert dpool.get([value, name]) == [301, "counter"]
    assert counter.both() == (301, "counter")
    one, two = counter.add.options(num_returns=2).remote(0), counter.both.options(num_returns=1).remote()
    for part in one:
        with pytest.raises(TypeError, match="not 2 values"):
            dpool.get(part)
    assert dpool.get(two) == (301, "counter")


def test_large_values_and_references() -> None:
    counter = dpool.ActorProxy(Counter, 7)
    array = np.zeros(100_000)
    assert counter.size(array) == array.nbytes
    assert counter.size(dpool.put(array)) == array.nbytes
    made = counter.make.submit(100_000)
    assert counter.size(made) == 800_000
    assert dpool.get(made).sum() == 700_000


def test_order_of_one_caller_also_when_arguments_are_late(gate: Gate) -> None:
    counter = dpool.ActorProxy(Counter)
    late = dpool.remote(gate.enter).remote("a", "late")
    broken = dpool.remote(lambda: 1 / 0).remote()
    calls = [
        counter.note.submit(1),
        counter.note.submit(late),
        counter.note.submit(2),
        counter.note.submit(broken),
        counter.note.submit(3),
    ]
    calls[0].result(LONG_S)
    assert not calls[2].done()
    gate.open("a")
    with pytest.raises(ZeroDivisionError):
        calls[3].result(LONG_S)
    calls[4].result(LONG_S)
    assert counter.seen == [1, "late", 2, 3]


def note_many(actor: Any, who: int) -> None:
    proxy = pickle.loads(pickle.dumps(actor)) if who % 2 else actor
    for n in range(50):
        actor.note.submit((who, 2 * n))
        proxy.note.submit((who, 2 * n + 1))


def test_order_of_each_of_many_callers() -> None:
    counter = dpool.ActorProxy(Counter)
    with dpool.Executor(3) as ex:
        for future in [ex.submit(note_many, counter, who) for who in range(4)]:
            future.result(LONG_S)
        wait_until(lambda: len(counter.seen) == 400, LONG_S)
    seen = counter.seen
    for who in range(4):
        assert [n for by, n in seen if by == who] == list(range(100))


def test_in_tasks_pools_and_threads() -> None:
    counter = dpool.ActorProxy(Counter)
    with dpool.Executor(2) as ex, dpool.Pool(2) as pool:
        assert sorted(ex.map(use, [counter] * 5, [1] * 5)) == [1, 2, 3, 4, 5]
        assert sorted(pool.starmap(use, [(counter, 1)] * 5)) == [6, 7, 8, 9, 10]
    assert dpool.get(dpool.remote(use).remote(counter, 1)) == 11
    threads = [threading.Thread(target=lambda: [counter.add() for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert counter.add(0) == 91


def ask(actor: Any) -> int:
    return int(actor.add(5))


def ask_behind_a_call_that_waits(actor: Any) -> list[int]:
    """The call waits for the task, which calls the same actor: that must not happen in this process."""
    child = dpool.remote(ask).remote(actor)
    call = actor.add.submit(child)
    return [*dpool.get([child, call])]


def test_a_call_that_waits_for_a_task_that_calls_the_same_actor() -> None:
    counter = dpool.ActorProxy(Counter)
    assert dpool.get(dpool.remote(ask_behind_a_call_that_waits).remote(counter), timeout=LONG_S) == [5, 10]


class Parent:
    def __init__(self, children: int) -> None:
        self.children = [dpool.ActorProxy(Counter, n) for n in range(children)]

    def total(self) -> int:
        return sum(dpool.get([child.add.submit(0) for child in self.children]))

    def child(self, n: int) -> Any:
        return self.children[n]

    def by_task(self, x: int) -> int:
        return int(dpool.get(dpool.remote(Counter.double).remote(x)))


def make_in_task() -> Any:
    return dpool.ActorProxy(Counter, 40)


def test_actors_make_actors_and_outlive_the_task_that_made_them() -> None:
    parent = dpool.ActorProxy(Parent, 3)
    assert parent.total() == 3
    child = parent.child(2)
    assert child.add(10) == 12
    assert parent.total() == 13
    assert parent.by_task(4) == 8
    made = dpool.get(dpool.remote(make_in_task).remote())
    assert made.add(2) == 42


# -- many at a time


class Meeting:
    def __init__(self) -> None:
        self.here = 0
        self.condition = threading.Condition()

    def meet(self, parties: int) -> int:
        with self.condition:
            self.here += 1
            self.condition.notify_all()
            assert self.condition.wait_for(lambda: self.here >= parties, LONG_S)
        return threading.get_ident()


def test_threads() -> None:
    meeting = dpool.remote(Meeting).options(max_concurrency=3).remote()
    assert len(set(dpool.get([meeting.meet.remote(3) for _ in range(3)], timeout=LONG_S))) == 3
    assert len(dpool.get([meeting.meet.remote(1) for _ in range(100)], timeout=LONG_S)) == 100


class Async:
    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.most = self.now = 0

    async def wait(self, x: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.event.wait()
        self.now -= 1
        return x

    async def set(self) -> None:
        self.event.set()

    def plain(self) -> int:
        return self.most

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise KeyError("async")


def test_coroutines() -> None:
    actor = dpool.ActorProxy(Async)
    waiting = [actor.wait.submit(n) for n in range(50)]
    wait_until(lambda: actor.plain() == 50, LONG_S)
    actor.set()
    assert dpool.get(waiting) == list(range(50))
    with pytest.raises(KeyError, match="async"):
        actor.fail()
    few = dpool.remote(Async).options(max_concurrency=2).remote()
    limited = [few.wait.remote(n) for n in range(4)]
    opener = few.set.remote()
    assert not opener.done()
    few.kill()
    for one in (*limited, opener):
        with pytest.raises(dpool.errors.ActorDied):
            one.result(LONG_S)


def test_awaiting_a_call() -> None:
    async def main() -> int:
        counter = dpool.ActorProxy(Counter)
        values: list[int] = await asyncio.gather(*(counter.add.remote() for _ in range(10)))
        return sum(values)

    assert asyncio.run(main()) == 55


def test_an_answer_that_is_read_before_the_sender_has_gone_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is in the actor's socket, and the thread that put it there has not noted that yet."""
    actor = dpool.ActorProxy(Async)
    waiting = actor.wait.submit(1)
    wait_until(lambda: actor.plain() == 1, LONG_S)  # it is there
    reader = threading.Thread(target=waiting.result, daemon=True)  # whoever waits, reads
    reader.start()
    sent, looked_at, dealt_with = threading.Event(), threading.Event(), threading.Event()
    sender, send, end = threading.current_thread(), wire.send, Lane._ended_out_of_turn

    def slow_send(*args: Any) -> None:
        send(*args)
        if threading.current_thread() is sender and len(args) == 4 and not sent.is_set():  # a lane's frame
            sent.set()
            assert looked_at.wait(LONG_S)
            dealt_with.wait(0.2)  # it must not be; in vain, therefore

    def observed_end(*args: Any) -> bool:
        looked_at.set()
        known = end(*args)
        dealt_with.set()
        return known

    monkeypatch.setattr(wire, "send", slow_send)
    monkeypatch.setattr(Lane, "_ended_out_of_turn", observed_end)
    call = actor.set.submit()
    assert sent.is_set()
    assert call.result(LONG_S) is None
    reader.join(LONG_S)
    assert waiting.result(LONG_S) == 1


# -- names, limits


def test_names() -> None:
    counters = dpool.remote(Counter)
    first = counters.options(name="shared").remote(5)
    assert dpool.get_actor("shared") == first
    assert dpool.get_actor("shared").add() == 6
    with pytest.raises(ValueError, match="shared"):
        counters.options(name="shared").remote()
    again = counters.options(name="shared", get_if_exists=True).remote(100)
    assert again.add() == 7
    with dpool.Executor(1) as ex:
        assert ex.submit(lambda: dpool.get_actor("shared").add()).result(LONG_S) == 8
    with pytest.raises(ValueError, match="no actor"):
        dpool.get_actor("other")
    del first, again
    wait_until(lambda: not named("shared"), LONG_S)
    assert counters.options(name="shared").remote(1).add() == 2


def named(name: str) -> bool:
    try:
        dpool.get_actor(name)
    except ValueError:
        return False
    return True


def test_a_limit_of_pending_calls(gate: Gate) -> None:
    counter = dpool.remote(Counter).options(max_pending_calls=3).remote()
    counter.add()
    calls = [counter.enter.remote(gate, "a")] + [counter.add.remote() for _ in range(2)]
    with pytest.raises(dpool.errors.PendingCallsLimit, match="3 calls"):
        counter.add.remote()
    gate.open("a")
    assert dpool.get(calls) == ["a", 2, 3]
    assert counter.add() == 4


def test_resources_of_an_actor(gate: Gate) -> None:
    holder = dpool.remote(num_cpus=2, num_gpus=1)(Counter).remote()
    assert holder.add() == 1
    assert dpool.available_resources()["CPU"] == 0
    waiting = dpool.remote(len).remote("abc")
    env = dpool.remote(num_gpus=0)(Counter).remote()
    assert env.add() == 1
    assert not waiting.done()
    del holder
    assert waiting.result(LONG_S) == 3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_restart": 1}, TypeError),
        ({"max_restarts": -2}, ValueError),
        ({"lifetime": "long"}, ValueError),
        ({"name": 5}, TypeError),
        ({"max_concurrency": 0}, ValueError),
        ({"num_cpus": -1}, ValueError),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        dpool.remote(**options)(Counter)


def test_what_is_no_class() -> None:
    for wrong in (1, len, "Counter"):
        with pytest.raises(TypeError):
            dpool.ActorProxy(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="remote"):
        dpool.remote(Counter)()


# -- lifetime


def test_an_actor_ends_when_its_last_proxy_goes_after_what_it_was_asked_to(gate: Gate) -> None:
    counter = dpool.ActorProxy(Counter)
    pid = counter.pid()
    with dpool.Executor(1) as ex:
        assert ex.submit(use, counter, 1).result(LONG_S) == 1
        held = ex.submit(lambda actor: actor, counter).result(LONG_S)
        assert held == counter
        del counter
        assert held.add() == 2
        last = held.enter.submit(gate, "a")
        after = held.add.submit()
        del held
        gate.entered("a")
        assert is_running(pid)
        gate.open("a")
        assert (last.result(LONG_S), after.result(LONG_S)) == ("a", 3)
        wait_until(lambda: not is_running(pid), LONG_S)


def test_a_detached_actor_stays() -> None:
    counter = dpool.remote(Counter).options(name="d", lifetime="detached").remote(1)
    pid = counter.pid()
    del counter
    assert dpool.get_actor("d").add() == 2
    assert is_running(pid)
    dpool.kill(dpool.get_actor("d"))
    wait_until(lambda: not is_running(pid), LONG_S)
    wait_until(lambda: not named("d"), LONG_S)


def test_many_actors_leave_nothing() -> None:
    actors = [dpool.ActorProxy(Counter, n) for n in range(12)]
    pids = [actor.pid() for actor in actors]
    assert len(set(pids)) == 12
    del actors
    wait_until(lambda: not any(map(is_running, pids)), LONG_S)


SCRIPT = """
import dpool as ray

@ray.remote
class Counter:
    def __init__(self, n):
        self.n = n
    def add(self, k=1):
        self.n += k
        return self.n
    def make(self):
        return Helper(self.n)

class Helper:
    def __init__(self, n):
        self.n = n

@ray.remote
def use(counter, k):
    return ray.get(counter.add.remote(k))

counter = Counter.options(name="c").remote(10)
print(ray.get([counter.add.remote() for _ in range(3)]))
print(ray.get(use.remote(counter, 7)))
helper = ray.get(counter.make.remote())
print(type(helper) is Helper, helper.n)
print(ray.get(ray.get_actor("c").add.remote(0)))
ray.kill(counter)
try:
    ray.get(counter.add.remote())
except ray.errors.ActorDied as error:
    print("killed" in str(error))
"""


def test_a_ray_script_in_main() -> None:
    result = run_script(SCRIPT).check()
    assert result.stdout.splitlines() == ["[11, 12, 13]", "20", "True 20", "20", "True"]


def test_a_program_that_ends_takes_its_actors_along() -> None:
    script = """
import dpool, os, time
class A:
    def pid(self): return os.getpid()
    def sleep(self): time.sleep(1000)
a = dpool.remote(A).options(lifetime="detached", name="a").remote()
b = dpool.ActorProxy(A)
print(a.pid(), b.pid())
b.sleep.remote()
"""
    result = run_script(script).check()
    wait_until(lambda: not any(is_running(int(pid)) for pid in result.stdout.split()), LONG_S)


class Slow:
    def __init__(self) -> None:
        self.at = time.monotonic()

    def begun(self) -> float:
        return self.at


def test_cancel_interrupts_the_call_that_runs_whoever_has_called_before(gate: Gate) -> None:
    actor = dpool.ActorProxy(Counter)
    pid = actor.pid()
    with dpool.Executor(1) as ex:
        ex.submit(actor.pid).result(LONG_S)
        running, behind = actor.enter.submit(gate, "cancelled"), actor.enter.submit(gate, "open")
        gate.open("open")
        gate.entered("cancelled")
        dpool.cancel(running)
        with pytest.raises(CancelledError):
            running.result(LONG_S)
        assert behind.result(LONG_S) == "open"
        assert ex.submit(actor.pid).result(LONG_S) == pid
    theirs = actor.enter.submit(gate, "after")  # the other caller has gone
    gate.entered("after")
    dpool.cancel(theirs)
    with pytest.raises(CancelledError):
        theirs.result(LONG_S)
    assert actor.pid() == pid
