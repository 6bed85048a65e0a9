"""Actors that die: what calls raise, restarts, retries, and that nothing is left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import dpool
from dpool._core import driver, storage, wire
from dpool._core.store_client import StoreClient
from dpool._core.worker import _workers
from tests.actors.test_actors import Counter, named, use
from tests.executor.support import LONG_S, Gate
from tests.faults.support import one_of_role
from tests.helpers import is_running, run_script, wait_until


class Fragile:
    """Dies when told to."""

    def __init__(self, log: str, start: int = 0) -> None:
        with open(log, "a") as file:
            file.write("made\n")
        self.value = start

    def add(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def die(self, how: str = "kill") -> None:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(7)

    def die_once(self, flag: str) -> str:
        if not os.path.exists(flag):
            Path(flag).touch()
            self.die()
        return "survived"

    def enter(self, gate: Gate, name: str) -> str:
        gate.enter(name)
        return name

    def pid(self) -> int:
        return os.getpid()


def made(log: str) -> int:
    return Path(log).read_text().count("made")


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


def test_the_call_and_those_behind_it_fail_and_name_the_cause(log: str, gate: Gate) -> None:
    actor = dpool.ActorProxy(Fragile, log)
    pid = actor.pid()
    running = actor.enter.submit(gate, "a")
    behind = [actor.add.submit() for _ in range(10)]
    gate.entered("a")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        dpool.errors.ActorDied, match=rf"Fragile \(pid {pid}\) was killed by SIGKILL while it ran Fragile.enter"
    ):
        running.result(LONG_S)
    for one in behind:
        with pytest.raises(dpool.errors.ActorDied, match=r"SIGKILL|signal 9"):
            one.result(LONG_S)
    with pytest.raises(dpool.errors.ActorDied):
        actor.add()
    with pytest.raises(BrokenProcessPool):
        actor.value  # noqa: B018
    assert made(log) == 1


def test_exit_codes_are_named(log: str) -> None:
    actor = dpool.ActorProxy(Fragile, log)
    with pytest.raises(dpool.errors.ActorDied, match="exited with code 7"):
        actor.die("exit")


def test_restarts_construct_it_anew(log: str) -> None:
    actor = dpool.remote(Fragile).options(max_restarts=2).remote(log, 10)
    assert actor.add() == 11
    for turn in range(2):
        with pytest.raises(dpool.errors.ActorDied, match="restarted"):
            actor.die()
        assert actor.add() == 11  # with the arguments of its construction
        assert made(log) == turn + 2
    with pytest.raises(dpool.errors.ActorDied, match="not come back"):
        actor.die()
    with pytest.raises(dpool.errors.ActorDied):
        actor.add()


class Stillborn(Fragile):
    """Dies in its constructor, as often as it is told."""

    def __init__(self, log: str, times: int) -> None:
        super().__init__(log)
        if made(log) <= times:
            self.die()


def test_one_that_dies_in_its_constructor_is_made_again_after_pauses(log: str) -> None:
    actor = dpool.remote(Stillborn).options(max_restarts=-1).remote(log, 4)
    assert actor.add.remote().result(LONG_S) == 1
    assert made(log) == 5


@pytest.mark.parametrize("how", ["killed", "let go of"])
def test_one_that_pauses_before_it_is_made_again_can_be_ended(how: str, log: str, tmp_path: Path) -> None:
    actor = dpool.remote(Stillborn).options(max_restarts=-1, name="stillborn").remote(log, 10**6)
    call = actor.add.remote()
    wait_until(lambda: os.path.exists(log) and made(log) >= 3, LONG_S)
    if how == "killed":
        dpool.kill(actor)
        with pytest.raises(dpool.errors.ActorDied, match="killed"):
            call.result(LONG_S)
    else:
        call.cancel()
        del actor, call
    wait_until(lambda: not named("stillborn"), LONG_S)
    last = dpool.remote(Stillborn).options(name="stillborn").remote(str(tmp_path / "another"), 0)
    assert last.add() == 1


def test_what_was_not_begun_waits_for_the_restart(log: str, gate: Gate) -> None:
    actor = dpool.remote(Fragile).options(max_restarts=-1).remote(log)
    running = actor.enter.remote(gate, "a")
    gate.entered("a")
    behind = [actor.add.remote() for _ in range(2000)]  # more than what is on its way
    os.kill(gate.pids("a")[0], signal.SIGKILL)
    with pytest.raises(dpool.errors.ActorDied):
        running.result(LONG_S)
    values = [one.result(LONG_S) for one in behind if one.exception(LONG_S) is None]
    assert values == list(range(1, len(values) + 1))  # each once, in order
    assert len(values) >= 1000


def test_calls_are_made_again_if_asked_for(log: str, tmp_path: Path) -> None:
    actor = dpool.remote(Fragile).options(max_restarts=1, max_task_retries=1).remote(log)
    assert actor.die_once(str(tmp_path / "flag")) == "survived"
    assert made(log) == 2


def test_restart_when_its_creator_is_gone(log: str) -> None:
    with dpool.Executor(1) as ex:
        actor = ex.submit(make, log).result(LONG_S)
    with pytest.raises(dpool.errors.ActorDied):
        actor.die()
    assert actor.add() == 101


def make(log: str) -> Any:
    return dpool.remote(Fragile).options(max_restarts=1).remote(log, 100)


class Broken:
    def __init__(self, how: str) -> None:
        if how == "raise":
            raise ValueError("cannot be made")
        os._exit(5)

    def call(self) -> None:
        """Never reached."""


@pytest.mark.parametrize(("how", "text"), [("raise", "constructor raised"), ("exit", "code 5")])
def test_a_constructor_that_fails(how: str, text: str) -> None:
    actor = dpool.remote(Broken).options(max_restarts=1).remote(how)
    with pytest.raises(dpool.errors.ActorDied, match=text) as caught:
        actor.call()
    assert (how == "raise") == isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(dpool.errors.ActorDied, match=text):
        actor.call.submit().result(LONG_S)


def test_kill(log: str, gate: Gate) -> None:
    actor = dpool.remote(Fragile).options(max_restarts=5, name="k").remote(log)
    first = actor.pid()
    dpool.kill(actor, no_restart=False)
    wait_until(lambda: not is_running(first), LONG_S)
    assert actor.add() == 1
    running = actor.enter.remote(gate, "a")
    pid = gate.entered("a")
    dpool.kill(actor)
    with pytest.raises(dpool.errors.ActorDied):
        running.result(LONG_S)
    with pytest.raises(dpool.errors.ActorDied, match="killed"):
        actor.add()
    wait_until(lambda: not is_running(pid) and not named("k"), LONG_S)
    with pytest.raises(TypeError):
        dpool.kill(1)  # type: ignore[arg-type]


def test_a_caller_that_dies_does_not_disturb_the_others(gate: Gate) -> None:
    counter = dpool.ActorProxy(Counter)
    with dpool.Executor(2) as ex:
        victim = ex.submit(call_and_wait, counter, gate)
        pid = gate.entered("a")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(dpool.errors.WorkerCrashed):
            victim.result(LONG_S)
        used = ex.submit(use, counter, 1).result(LONG_S)
        assert 1 <= used <= counter.value  # what the victim had called may still run
    wait_until(lambda: counter.add() == counter.value, LONG_S)


def call_and_wait(actor: Any, gate: Gate) -> None:
    for _ in range(500):
        actor.add.submit()
    gate.enter("a")


def test_all_are_told_when_the_node_dies(log: str) -> None:
    result = run_script(
        """
import dpool, os, signal, sys
from tests.actors.test_faults import Fragile
from tests.helpers import wait_until
actor = dpool.remote(Fragile).options(max_restarts=-1).remote(sys.argv[1])
actor.add()
call = actor.enter.remote(None, "x")
from dpool._core import driver
os.kill(driver.runtime().welcome.pid, signal.SIGKILL)
def dead():
    try:
        actor.add()
    except dpool.errors.ActorDied as error:
        return str(error)
wait_until(dead, 30)  # its process dies a moment after the node
print("dead" in dead() or "killed" in dead())
print(dpool.get(dpool.remote(len).remote("abc")))
""",
        log,
    ).check()
    assert result.stdout.splitlines() == ["True", "3"]


def test_everything_at_once(log: str) -> None:
    """Many callers, an actor that is killed again and again: every call ends, and no restart is lost."""
    actor = dpool.remote(Fragile).options(max_restarts=-1).remote(log)
    actor.add()
    outcomes: list[bool] = []

    def call() -> None:
        for _ in range(150):
            error = actor.add.remote().exception(LONG_S)
            outcomes.append(error is None)
            assert error is None or isinstance(error, dpool.errors.ActorDied)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        before = made(log)
        dpool.kill(actor, no_restart=False)
        wait_until(lambda before=before: made(log) > before, LONG_S)  # type: ignore[misc]
    for thread in threads:
        thread.join(LONG_S)
    assert len(outcomes) == 450
    assert sum(outcomes) >= 400
    assert actor.add() >= 1


def test_a_stopped_actor_delays_and_loses_nothing(log: str) -> None:
    actor = dpool.ActorProxy(Fragile, log)
    pid = actor.pid()
    os.kill(pid, signal.SIGSTOP)
    calls = [actor.add.submit() for _ in range(1000)]
    assert not calls[0].done()
    os.kill(pid, signal.SIGCONT)
    assert dpool.get(calls, timeout=LONG_S) == list(range(1, 1001))


class Reader:
    """Its process ends when it is read for the first time (or the first two, …), which a file counts."""

    def __init__(self, path: str) -> None:
        self.path = path

    def deaths(self, most: int) -> int:
        with open(self.path, "a+") as file:
            file.write(".")
            file.flush()
            count = file.tell()
        if count <= most:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    @dpool.method(read_only=True)
    def read(self, most: int) -> int:
        return self.deaths(most)

    @dpool.method(read_only=True, num_returns="streaming")
    def stream(self, most: int) -> Iterator[int]:
        for i in range(5):
            yield i
            if i == 2:
                self.deaths(most)

    @property
    def first(self) -> int:
        return self.deaths(1)


def test_calls_that_change_nothing_are_made_again(tmp_path: Path) -> None:
    def made(name: str, **options: Any) -> Any:
        return dpool.remote(Reader).options(max_restarts=-1, **options).remote(str(tmp_path / name))

    actor = made("a")
    assert actor.read(2) == 3
    assert made("property").first == 2
    assert list(made("stream").stream(2)) == list(range(5))
    with pytest.raises(dpool.errors.ActorDied, match="while it ran"):
        actor.deaths(4)
    with pytest.raises(dpool.errors.ActorDied):  # it may be what kills it
        made("b").read(100)
    assert made("c", max_task_retries=6).read(6) == 7
    with pytest.raises(dpool.errors.ActorDied):
        dpool.remote(Reader).remote(str(tmp_path / "d")).read(1)  # it does not come back


def test_an_answer_may_come_before_its_caller_has_noted_that_it_asked() -> None:
    """Whoever sends a call notes afterwards that it has been sent; the answer must wait for that."""
    actor = dpool.remote(Counter).options(max_concurrency=2).remote()
    actor.add()
    lane = actor._dpool_held.pool().lane
    (slot,) = lane.dispatcher.slots.values()
    number = slot.next_seq
    known: list[bool] = []
    answered = threading.Thread(target=lambda: known.append(lane._ended_out_of_turn(slot, number, 0, None)))
    with lane.lock:
        answered.start()
        answered.join(0.05)  # for as long as it may run; it is to wait for us
        slot.next_seq = number + 1
    answered.join(LONG_S)
    assert known == [True]
    assert not lane._ended_out_of_turn(slot, number + 1, 0, None)
    slot.next_seq = number
    assert actor.add() == 2


class Mad:
    """Sends one of its callers what is no answer."""

    def break_link(self, caller: int) -> None:
        (link,) = [one for one in _workers if one.submitter == caller and one._interrupts._strict]
        link._sock.send(b"garbage")
        threading.Event().wait()

    def nothing(self) -> None:
        """For a link."""


def what_it_raises(call: Any) -> str:
    with pytest.raises(dpool.errors.ActorDied) as caught:
        call.result(LONG_S)
    return str(caught.value)


def breaks(actor: Any, caller: int) -> list[str]:
    """What a call hears under which the actor dies, and one that is made afterwards."""
    return [what_it_raises(actor.break_link.submit(caller)), what_it_raises(actor.nothing.submit())]


@pytest.mark.parametrize("many", [1, 2])
def test_all_callers_are_told_why_one_of_them_had_it_killed(many: int) -> None:
    actor = dpool.remote(Mad).options(max_concurrency=many).remote()
    actor.nothing()
    with dpool.Executor(1) as ex:
        other = ex.submit(breaks, actor, os.getpid())
        wait_until(lambda: actor._dpool_held.pool().broken is not None, LONG_S)
        for text in [*other.result(LONG_S), what_it_raises(actor.nothing.submit())]:
            assert "at the request of a caller: it sent a malformed frame" in text


def test_the_end_of_a_node_that_is_heard_of_late_does_not_end_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread reads the end of file; before it does anything, another one has started the next node, as well."""
    kept = dpool.put(bytes(1 << 20))  # a node without pools
    runtime = driver.runtime()
    pid = one_of_role("dpool-node")
    node = runtime._node
    assert node is not None
    reads, replaced = threading.Event(), threading.Event()
    receive = wire.ControlChannel.receive

    def late(self: wire.ControlChannel) -> Any:
        if self is node:
            reads.set()
            replaced.wait(LONG_S)
        return receive(self)

    monkeypatch.setattr(wire.ControlChannel, "receive", late)
    os.kill(pid, signal.SIGKILL)
    wait_until(runtime._node_gone, LONG_S)
    reader = threading.Thread(target=runtime._hear_node)
    reader.start()
    assert reads.wait(LONG_S)
    counter = dpool.remote(Counter).options(name="next").remote(5)
    replaced.set()
    reader.join()
    assert dpool.get_actor("next").add() == 6
    assert counter.add() == 7
    assert len(dpool.get(kept)) == 1 << 20


def test_an_actor_that_is_made_while_the_node_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in use here, so the node is left (DPOOL_LINGER_S=0); in this moment another thread needs it."""
    kept = dpool.put(bytes(1 << 20))  # so that the node does not end by itself
    runtime = driver.runtime()
    asked = threading.Event()
    made: list[Any] = []
    in_use, ask = storage.in_use, StoreClient.ask_for_actor

    def asks(self: StoreClient, make: Any) -> Any:
        try:
            return ask(self, make)
        finally:
            asked.set()

    def late() -> bool:
        maker.start()
        assert asked.wait(LONG_S)
        return False

    maker = threading.Thread(target=lambda: made.append(dpool.remote(Counter).options(name="made").remote(5)))
    monkeypatch.setattr(StoreClient, "ask_for_actor", asks)
    monkeypatch.setattr(storage, "in_use", late)
    assert runtime.leave_if_idle()
    monkeypatch.setattr(storage, "in_use", in_use)
    maker.join()
    assert made[0].add() == 6
    assert dpool.get_actor("made").add() == 7
    del kept


def test_the_node_is_not_left_while_an_actor_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dpool.put(bytes(1 << 20))
    runtime = driver.runtime()
    left = []
    ask = StoreClient._ask_patiently

    def asks(self: StoreClient, make: Any) -> Any:
        found = ask(self, make)
        left.append(runtime.leave_if_idle())
        return found

    monkeypatch.setattr(StoreClient, "_ask_patiently", asks)
    del kept
    counter = dpool.ActorProxy(Counter, 5)
    assert left == [False]
    assert counter.add() == 6
