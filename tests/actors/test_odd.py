"""What actors are asked in odd ways, or at odd moments."""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION
from concurrent.futures import wait as standard_wait
from pathlib import Path
from typing import Any

import pytest

import dpool
from tests.actors.test_actors import named
from tests.executor.support import LONG_S, Gate
from tests.helpers import is_running, run_script, wait_until


class Odd:
    """Its methods have the names of a proxy's own."""

    def kill(self) -> str:
        return "not killed"

    def submit(self) -> str:
        return "submitted"

    def pid(self) -> int:
        return os.getpid()

    def enter(self, gate: Gate, name: str) -> str:
        gate.enter(name)
        return name


def test_methods_of_the_class_go_before_those_of_proxies() -> None:
    odd = dpool.ActorProxy(Odd)
    assert odd.kill() == "not killed"  # type: ignore[func-returns-value]
    assert odd.kill.remote().result(LONG_S) == "not killed"  # type: ignore[attr-defined]
    assert odd.submit() == "submitted"
    pid = odd.pid()
    dpool.kill(odd)
    wait_until(lambda: not is_running(pid), LONG_S)


class Selfish:
    """Calls itself."""

    ones = 0

    def keep(self, proxy: Any) -> None:
        self.proxy = proxy

    def one(self) -> int:
        self.ones += 1
        return 1

    def blocking(self) -> int:
        return int(self.proxy.one()) + 1

    def waiting(self) -> int:
        return int(dpool.get(self.proxy.one.remote(), timeout=LONG_S)) + 1

    @dpool.method(num_returns="streaming")
    def some(self) -> Any:
        yield 1

    def streaming(self) -> int:
        return int(dpool.get(next(self.proxy.some.remote()))) + 1

    def all_of_several(self) -> int:
        both = [dpool.remote(len).remote("a"), self.proxy.one.remote()]
        return len(dpool.wait(both, num_returns=2)[0])

    def standard(self) -> int:
        return len(standard_wait([dpool.remote(len).remote("a"), self.proxy.one.remote()]).done)

    def standard_exception(self) -> int:
        return 1 + len(standard_wait([self.proxy.one.remote()], return_when=FIRST_EXCEPTION).done)

    def first(self) -> int:
        """Of two; there is no need to wait for the other."""
        calls = [dpool.remote(len).remote("a"), self.proxy.one.remote()]
        return len(standard_wait(calls, return_when=FIRST_COMPLETED).done)

    def one_of_several(self) -> Any:
        """A loop that has its own call left over for the next call."""
        self.rest = [self.proxy.one.remote(), *(dpool.remote(len).remote("a" * n) for n in range(20))]
        for _ in range(20):
            _, self.rest = dpool.wait(self.rest)
        return len(self.rest)

    def the_rest(self) -> int:
        ready, _ = dpool.wait(self.rest)
        return int(dpool.get(ready[0]))

    def later(self) -> Any:
        return self.proxy.one.remote()

    def in_thread(self) -> None:
        """It waits until this call, too, is over."""
        self.found: list[int] = []
        threading.Thread(target=lambda: self.found.append(self.proxy.one()), daemon=True).start()


@pytest.mark.parametrize(
    "how", ["blocking", "waiting", "streaming", "all_of_several", "standard", "standard_exception"]
)
def test_an_actor_that_waits_for_itself_is_told_so(how: str) -> None:
    selfish = dpool.ActorProxy(Selfish)
    selfish.keep(selfish)
    with pytest.raises(RuntimeError, match="waits for a call of its own"):
        getattr(selfish, how)()
    assert dpool.get(selfish.later(), timeout=LONG_S) == 1
    assert selfish.first() == 1
    selfish.in_thread()
    wait_until(lambda: selfish.found == [1], LONG_S)
    many = dpool.remote(Selfish).options(max_concurrency=2).remote()
    many.keep(many)
    assert getattr(many, how)() == 2


def test_an_actor_that_waits_for_others_may_have_a_call_of_its_own_among_them() -> None:
    selfish = dpool.ActorProxy(Selfish)
    selfish.keep(selfish)
    assert selfish.one_of_several() == 1
    wait_until(lambda: selfish.ones, LONG_S)
    assert selfish.the_rest() == 1  # it has been answered, even if nobody has looked at that


class Careful:
    def run(self, flag: str) -> tuple[int, int]:
        return os.getpid(), dpool.get(dpool.remote(max_retries=0)(die_once).remote(flag))


def die_once(flag: str) -> int:
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return os.getpid()
    os._exit(1)


def test_a_call_that_is_made_again_runs_no_tasks_in_its_own_process(tmp_path: Path, gate: Gate) -> None:
    """One of them may have been what killed it."""
    cpus = dpool.cluster_resources()["CPU"]
    busy = dpool.remote(num_cpus=cpus - 1)(gate.enter).remote()
    gate.entered()
    actor = dpool.remote(Careful).options(num_cpus=1, max_restarts=1, max_task_retries=1).remote()
    ours, childs = actor.run.submit(str(tmp_path / "flag")).result(LONG_S)
    assert ours != childs
    gate.open()
    dpool.get(busy, timeout=LONG_S)


def test_a_name_is_free_as_soon_as_its_actor_is_killed(gate: Gate) -> None:
    odd = dpool.remote(Odd).options(name="odd")
    for turn in range(5):
        actor = odd.remote()
        pid = actor.pid()
        actor.enter.remote(gate, f"in{turn}")
        gate.entered(f"in{turn}")
        dpool.kill(actor)
        with pytest.raises(ValueError, match="no actor"):
            dpool.get_actor("odd")
        assert odd.remote().pid() != pid
        wait_until(lambda: not named("odd"), LONG_S)


def test_names_that_cannot_be_are_refused_and_disturb_nobody() -> None:
    ref = dpool.put(1)
    makers: list[Any] = [lambda **how: dpool.remote(Odd).options(**how).remote(), dpool.get_actor]
    for make in makers:
        for bad in (5, b"odd"):
            with pytest.raises(TypeError, match="name must be a string"):
                make(name=bad)
            with pytest.raises(TypeError, match="namespace must be a string"):
                make(name="odd", namespace=bad)
        with pytest.raises(ValueError, match="zero"):
            make(name="odd\0there")
        with pytest.raises(ValueError, match="zero"):
            make(name="odd", namespace="\0")
    with pytest.raises(TypeError, match="namespace must be a string"):
        dpool.init(namespace=5)  # type: ignore[arg-type]
    assert dpool.get(ref) == 1


def test_whoever_calls_an_actor_at_the_very_end_does_not_wait_for_threads_that_are_no_more() -> None:
    result = run_script("""
import atexit, threading
import dpool
from dpool._core.driver import runtime

class Counter:
    def add(self):
        return 1

def hold():
    go.wait()
    with runtime()._start_lock:  # as the io thread may have it when the interpreter stops it
        held.set()
        threading.Event().wait()

def late():
    go.set()
    held.wait()
    for use in (counter.add, counter.add.remote, lambda: dpool.remote(len).remote("a"), lambda: dpool.Executor(1)):
        try:
            use()
        except RuntimeError as error:
            print(error)

go, held = threading.Event(), threading.Event()
threading.Thread(target=hold, daemon=True).start()
atexit.register(late)
counter = dpool.ActorProxy(Counter)
print(counter.add())
""").check()
    what = ("call an actor", "call an actor", "submit a task", "create an executor")
    assert result.stdout.splitlines() == ["1", *(f"cannot {one} at interpreter shutdown" for one in what)]


def test_a_cancelled_call_is_pending_no_longer(gate: Gate) -> None:
    actor = dpool.remote(Odd).options(max_pending_calls=3).remote()
    first = actor.enter.submit(gate, "a")
    gate.entered("a")
    for _ in range(5):
        calls = [actor.pid.submit() for _ in range(2)]
        with pytest.raises(dpool.errors.PendingCallsLimit):
            actor.pid.submit()
        assert all(call.cancel() for call in calls)
    gate.open("a")
    assert first.result(LONG_S) == "a"
    assert actor.pid.submit().result(LONG_S) > 0


@pytest.mark.filterwarnings("ignore:an actor asks for")
def test_an_actor_that_was_never_made_is_let_go_with_its_last_call() -> None:
    from dpool._core.driver import runtime

    actor = dpool.remote(Odd).options(num_cpus=99).remote()
    calls = [actor.pid.submit() for _ in range(3)]
    del actor
    assert all(call.cancel() for call in calls)
    wait_until(lambda: not any(hasattr(pool, "actor") for pool in runtime().pools.values()), LONG_S)
