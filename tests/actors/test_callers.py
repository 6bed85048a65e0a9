"""Callers that go away: the actor serves the others, whatever it was doing for them."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import dpool
from dpool._core import wire
from dpool._core.driver import runtime
from dpool._core.lane import Lane
from tests.executor.support import LONG_S, Gate
from tests.helpers import is_running, wait_until


class Plain:
    """Runs one call at a time, or several in threads."""

    def enter(self, gate: Gate, name: str) -> str:
        gate.enter(name)
        return name

    def links(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def size(self, text: str) -> int:
        return len(text)


class Coroutines:
    """Runs calls as coroutines."""

    async def enter(self, gate: Gate, name: str) -> str:
        import asyncio

        await asyncio.to_thread(gate.enter, name)
        return name

    async def links(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    async def size(self, text: str) -> int:
        return len(text)


def call_and_wait(actor: Any, gate: Gate) -> None:
    for _ in range(20):
        actor.enter.submit(gate, "call")
    gate.enter("caller")


KINDS = pytest.mark.parametrize(
    ("cls", "options"),
    [(Plain, {}), (Plain, {"max_concurrency": 4}), (Coroutines, {})],
    ids=["one by one", "threads", "coroutines"],
)


@KINDS
def test_an_actor_outlives_a_caller_that_dies_while_it_runs_its_calls(
    cls: type, options: dict[str, Any], gate: Gate
) -> None:
    actor = dpool.remote(cls).options(**options).remote()
    with dpool.Executor(1) as ex:
        victim = ex.submit(call_and_wait, actor, gate)
        gate.entered("caller")
        gate.entered("call")
        assert victim.cancel(force=True)
        gate.open("call")
        assert actor.links.submit().result(LONG_S) > 0


def test_whoever_closes_an_executor_does_not_wait_for_links_that_are_in_use() -> None:
    actor = dpool.ActorProxy(Plain)
    actor.links()
    link = actor._dpool_held.pool()
    assert not link.ending()
    link.terminate()
    assert link.ending()


def test_an_answer_may_come_before_the_call_is_recorded_as_sent(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    actor = dpool.ActorProxy(Coroutines)
    actor.links()
    first = actor.enter.submit(gate, "a")
    first.add_done_callback(lambda _: None)  # so that the io thread reads
    gate.entered("a")
    slot = actor._dpool_held.pool()._slot
    assert slot is not None
    sock = slot.link.sock
    answered = threading.Event()
    ended, send = Lane._ended_out_of_turn, wire.send

    def look(self: Lane, *args: Any) -> bool:
        answered.set()
        return ended(self, *args)

    def send_slowly(to: Any, *args: Any) -> None:
        send(to, *args)
        if to is sock:
            assert answered.wait(LONG_S)

    monkeypatch.setattr(Lane, "_ended_out_of_turn", look)
    monkeypatch.setattr(wire, "send", send_slowly)
    call = actor.links.submit()
    monkeypatch.undo()
    gate.open("a")
    assert call.result(LONG_S) > 0
    assert first.result(LONG_S) == "a"


@KINDS
def test_more_calls_than_the_socket_takes(cls: type, options: dict[str, Any]) -> None:
    actor = dpool.remote(cls).options(**options).remote()
    text = "x" * 60_000
    assert dpool.get([actor.size.remote(text) for _ in range(500)], timeout=LONG_S) == [60_000] * 500


@KINDS
def test_an_actor_of_whatever_kind_ends_when_its_last_proxy_goes(
    cls: type, options: dict[str, Any], gate: Gate
) -> None:
    actor = dpool.remote(cls).options(**options).remote()
    running = actor.enter.remote(gate, "a")
    pid = gate.entered("a")
    behind = [actor.links.remote() for _ in range(20)]
    del actor
    gate.open("a")
    assert running.result(LONG_S) == "a"
    assert min(dpool.get(behind, timeout=LONG_S)) > 0
    wait_until(lambda: not is_running(pid), LONG_S)
    wait_until(lambda: not runtime().pools, LONG_S)


def test_links_to_dead_actors_go_with_their_proxies() -> None:
    for _ in range(3):
        actor = dpool.ActorProxy(Plain)
        with pytest.raises(dpool.errors.ActorDied):
            actor.__ray_call__(lambda _: os._exit(1))
        with pytest.raises(dpool.errors.ActorDied):
            actor.links()
        del actor
    wait_until(lambda: not runtime().pools, LONG_S)


def test_threads_that_call_an_actor_for_the_first_time_share_one_link() -> None:
    for _ in range(5):
        actor = dpool.ActorProxy(Plain)
        start = threading.Barrier(4)
        links: list[Any] = []

        def first(actor: Any = actor, start: threading.Barrier = start, links: list[Any] = links) -> None:
            start.wait(LONG_S)
            links.append(actor._dpool_held.pool())

        threads = [threading.Thread(target=first) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        assert len(links) == 4
        assert len(set(map(id, links))) == 1
