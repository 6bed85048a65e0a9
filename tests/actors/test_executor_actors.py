"""`Executor.actor`: actors that end with the executor at the latest."""

from __future__ import annotations

import os
import threading
from concurrent.futures import BrokenExecutor
from typing import Any

import pytest

import dpool
from dpool._core import driver
from tests.actors.test_actors import Counter as Plain
from tests.actors.test_actors import named, use
from tests.executor.support import LONG_S, Gate, kill_self
from tests.helpers import is_running, run_script, wait_until


class Counter(Plain):
    """One that can die."""

    def die(self) -> None:
        kill_self()


def test_it_is_an_actor_like_any_other() -> None:
    with dpool.Executor(1, env={"OF_THE_EXECUTOR": "yes"}) as ex:
        counter = ex.actor(Counter, 5, name="x")
        assert isinstance(counter, dpool.ActorProxy)
        assert (counter.add(), counter.name, counter.value) == (6, "x", 6)
        assert ex.submit(use, counter, 4).result(LONG_S) == 10
        decorated = ex.actor(dpool.remote(Counter), 1)
        assert decorated.add.submit().result(LONG_S) == 2
        assert ex.actor(Environment).get("OF_THE_EXECUTOR") == "yes"
        assert len(ex._processes) == 1  # it takes none of the executor's workers
        with pytest.raises(TypeError):
            ex.actor(len)


class Environment:
    def get(self, name: str) -> str | None:
        return os.environ.get(name)


def test_an_actor_that_is_held_does_not_keep_an_executor_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = dpool.ActorProxy(Counter)
    counter.add()
    runtime = driver.runtime()
    waits: list[float | None] = []
    original = runtime.wait_until

    def noted(done: Any, timeout: float | None = None) -> bool:
        waits.append(timeout)
        return original(done, timeout)

    monkeypatch.setattr(runtime, "wait_until", noted)
    with dpool.Executor(1) as ex:
        ex.submit(len, "abc").result(LONG_S)
    assert waits == [None]  # for the workers, and for nothing that does not come
    assert counter.add() == 2


def test_it_ends_with_its_last_proxy() -> None:
    with dpool.Executor(1) as ex:
        counter = ex.actor(Counter)
        pid = counter.pid()
        del counter
        wait_until(lambda: not is_running(pid), LONG_S)


def test_an_executor_that_was_collected_leaves_it_its_proxies() -> None:
    counter = dpool.Executor(1).actor(Counter)
    assert counter.add() == 1


def test_shutdown_waits_for_its_calls_and_ends_it(gate: Gate) -> None:
    ex = dpool.Executor(1)
    counter = ex.actor(Counter)
    pid = counter.pid()
    running = counter.enter.submit(gate, "a")
    behind = [counter.add.submit() for _ in range(1000)]
    task = ex.submit(use, counter, 0)
    gate.entered("a")
    ender = threading.Thread(target=ex.shutdown)
    ender.start()
    wait_until(lambda: ex._shutdown, LONG_S)
    assert is_running(pid)
    gate.open("a")
    ender.join(LONG_S)
    assert not is_running(pid)
    assert running.result(0) == "a"
    assert [one.result(0) for one in behind] == list(range(1, 1001))
    assert task.result(0) in range(1001)
    check_ended(ex, counter)


def check_ended(ex: dpool.Executor, counter: Any, why: str = "the executor that made it was shut down") -> None:
    with pytest.raises(dpool.errors.ActorDied, match=why):
        counter.add()
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.actor(Counter)
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.options(name="x").actor(Counter)
    ex.shutdown()  # once more


def test_shutdown_without_waiting_ends_it_when_all_is_answered(gate: Gate) -> None:
    ex = dpool.Executor(1)
    counter, idle, uncalled = ex.actor(Counter), ex.actor(Counter), ex.actor(Counter)
    pids = [counter.pid(), idle.pid()]
    running = counter.enter.submit(gate, "a")
    task = ex.submit(call_when_let_go, idle, gate)
    behind = counter.add.submit()
    gate.entered("a")
    gate.entered("task")
    ex.shutdown(wait=False)
    assert all(map(is_running, pids))
    assert counter.add.submit().done() is False  # its tasks have not ended: it goes on
    gate.open("task")
    assert task.result(LONG_S) == 1
    wait_until(lambda: not is_running(pids[1]), LONG_S)
    gate.open("a")
    assert (running.result(LONG_S), behind.result(LONG_S)) == ("a", 1)
    wait_until(lambda: not is_running(pids[0]), LONG_S)
    for one in (counter, idle, uncalled):
        check_ended(ex, one)


def call_when_let_go(actor: Any, gate: Gate) -> int:
    gate.enter("task")
    return int(actor.add())


def test_shutdown_can_cancel_what_it_was_asked(gate: Gate) -> None:
    ex = dpool.Executor(1)
    counter = ex.actor(Counter)
    running = counter.enter.submit(gate, "a")
    gate.entered("a")
    behind = [counter.add.submit() for _ in range(5000)]  # more than what is on its way
    late = counter.add.submit(dpool.remote(gate.enter).remote("b", 1))
    ex.shutdown(wait=False, cancel_futures=True)
    assert late.cancelled()
    assert behind[-1].cancelled()
    gate.open("a", "b")
    ex.shutdown()
    assert running.result(0) == "a"
    values = [one.result(0) for one in behind if not one.cancelled()]
    assert values == list(range(1, len(values) + 1))
    check_ended(ex, counter)


def test_workers_that_are_killed_take_it_along(gate: Gate) -> None:
    ex = dpool.Executor(1)
    counter = ex.actor(Counter)
    running = counter.enter.submit(gate, "a")
    pid = gate.entered("a")
    ex.kill_workers()
    with pytest.raises(dpool.errors.ActorDied):
        running.result(LONG_S)
    wait_until(lambda: not is_running(pid), LONG_S)
    check_ended(ex, counter, "workers of the executor that made it were killed|executor that made it was shut down")


def test_one_that_has_died_before_holds_up_no_shutdown() -> None:
    with dpool.Executor(1) as ex:
        counter, killed = ex.actor(Counter), ex.actor(Counter)
        with pytest.raises(dpool.errors.ActorDied):
            counter.die()
        killed.kill()
        with pytest.raises(dpool.errors.ActorDied, match=r"signal 9|SIGKILL"):
            counter.add()
    with pytest.raises(dpool.errors.ActorDied, match="killed"):
        killed.add()


def test_a_restart_does_not_outlive_the_executor(gate: Gate) -> None:
    ex = dpool.Executor(1)
    counter = ex.options(max_restarts=-1).actor(Counter, 3)
    with pytest.raises(dpool.errors.ActorDied, match="restarted"):
        counter.die()
    assert counter.add() == 4
    pid = counter.pid()
    ex.shutdown()
    assert not is_running(pid)
    check_ended(ex, counter)


def test_options_of_the_executor_go_before_those_of_the_class() -> None:
    phoenix = dpool.remote(max_restarts=-1, env={"COLOUR": "red"})(Counter)
    with dpool.Executor(1) as ex:
        again, once = ex.options(max_task_retries=0).actor(phoenix), ex.options(max_restarts=0).actor(phoenix)
        for counter, text in ((again, "restarted"), (once, "not come back")):
            assert counter.__ray_call__(lambda _: os.environ.get("COLOUR")) == "red"
            with pytest.raises(dpool.errors.ActorDied, match=text):
                counter.die()


def test_a_broken_executor_makes_none() -> None:
    with dpool.Executor(1, strict=True) as ex:
        with pytest.raises(BrokenExecutor):
            ex.submit(kill_self).result(LONG_S)
        with pytest.raises(BrokenExecutor):
            ex.actor(Counter)


def test_a_runtime_that_was_shut_down_before_holds_up_no_shutdown() -> None:
    ex = dpool.Executor(1)
    called, uncalled = ex.actor(Counter), ex.actor(Counter)
    called.add()
    dpool.shutdown()
    ex.shutdown()
    assert not dpool.is_initialized()  # no node was started for it
    with pytest.raises(dpool.errors.ActorDied):
        called.add()
    del uncalled


def test_a_forked_child_leaves_the_actors_to_its_parent() -> None:
    with dpool.Executor(1) as ex:
        counter = ex.actor(Counter)
        counter.add()
        child = os.fork()
        if not child:
            try:
                ex.shutdown()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert counter.add() == 2


# -- options


def test_options_of_actors() -> None:
    with dpool.Executor(1) as ex:
        named_one = ex.options(name="of the executor", num_cpus=1, max_pending_calls=3).actor(Counter, 1)
        assert dpool.get_actor("of the executor").add() == 2
        assert dpool.available_resources()["CPU"] == 1
        again = ex.options(name="of the executor", get_if_exists=True).actor(Counter)
        assert again == named_one
        env = ex.options(env={"HERE": "1"}).actor(Environment)
        assert env.get("HERE") == "1"
    assert not named("of the executor")


def test_what_is_another_s_or_detached_is_not_ended() -> None:
    mine = dpool.remote(Counter).options(name="mine").remote(1)
    with dpool.Executor(1) as ex:
        assert ex.options(name="mine", get_if_exists=True).actor(Counter) == mine
        detached = ex.options(name="d", lifetime="detached").actor(Counter, 5)
        detached.add()
    assert (mine.add(), detached.add()) == (2, 7)
    detached.kill()


@pytest.mark.parametrize("options", [{"max_restart": 1}, {"max_restarts": -2}, {"lifetime": "long"}])
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with dpool.Executor(1) as ex, pytest.raises((TypeError, ValueError)):
        ex.options(**options)


def test_options_of_tasks_and_of_actors_do_not_mix() -> None:
    with dpool.Executor(1) as ex:
        for options in ({"timeout": 5.0}, {"max_retries": 1}):
            with pytest.raises(TypeError, match="of tasks"):
                ex.options(**options).actor(Counter)
        view = ex.options(max_restarts=1)
        with pytest.raises(TypeError, match="of actors"):
            view.submit(len, "abc")
        with pytest.raises(TypeError, match="of actors"):
            view.map(len, ["abc"])


# -- in tasks, and at the end


def inside() -> tuple[int, int, Any]:
    ex = dpool.Executor(1)
    counter = ex.actor(Counter, 40)
    value = ex.submit(use, counter, 2).result(LONG_S)
    pid = counter.pid()
    ex.shutdown()
    assert not is_running(pid)
    with dpool.Executor(1) as other:
        left_to_others = other.actor(Counter)
        left_to_others.pid()
    return value, pid, left_to_others


def test_an_executor_in_a_task() -> None:
    with dpool.Executor(1) as ex:
        value, pid, dead = ex.submit(inside).result(LONG_S)
        assert value == 42
        assert not is_running(pid)
        with pytest.raises(dpool.errors.ActorDied):
            dead.add()


def abandon(gate: Gate) -> None:
    ex = dpool.Executor(1)
    counter = ex.actor(Counter)
    gate.note(f"actor {counter.pid()}")
    (gate.directory / "pid").write_text(str(counter.pid()))
    gate.enter("a")


def test_a_task_that_dies_with_its_executor_takes_the_actor_along(gate: Gate) -> None:
    with dpool.Executor(1) as ex:
        future = ex.submit(abandon, gate)
        worker = gate.entered("a")
        pid = int((gate.directory / "pid").read_text())
        os.kill(worker, 9)
        with pytest.raises(dpool.errors.WorkerCrashed):
            future.result(LONG_S)
        wait_until(lambda: not is_running(pid), LONG_S)


AT_EXIT = """
import dpool
from tests.actors.test_actors import Counter, use
ex = dpool.Executor(1)
counter = ex.actor(Counter, 1)
print(counter.pid())
future = ex.submit(use, counter, 1)
future.add_done_callback(lambda future: print(future.result()))
{end}
"""


@pytest.mark.parametrize("end", ["", "ex.shutdown(wait=False)", "del counter", "raise KeyboardInterrupt"])
def test_the_end_of_the_program(end: str) -> None:
    result = run_script(AT_EXIT.format(end=end))
    pid, *value = result.stdout.splitlines()
    wait_until(lambda: not is_running(int(pid)), LONG_S)
    if end != "raise KeyboardInterrupt":
        assert (result.rc, result.stderr) == (0, "")
        assert value == ["2"]
