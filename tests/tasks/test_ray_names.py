"""What programs written for Ray ask for by Ray's names, and what they are told that is not there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate
from tests.helpers import is_running, run_script, wait_until


def variable(name: str) -> str | None:
    return os.environ.get(name)


def where() -> str:
    return os.getcwd()


def pid() -> int:
    return os.getpid()


# -- init


def test_options_of_init_that_mean_nothing_are_accepted_and_unknown_ones_named() -> None:
    dpool.init(include_dashboard=False, dashboard_port=8265, logging_level=30, _temp_dir="/tmp/x", local_mode=False)
    assert dpool.is_initialized()
    with pytest.raises(TypeError, match=r"init has no option dashbord, num_cpu;"):
        dpool.init(num_cpu=2, dashbord=True)
    with pytest.raises(ValueError, match="dpool://HOST:PORT"):
        dpool.init("ray://somewhere:10001")
    context = dpool.init("auto", num_cpus=2)
    assert (context.dashboard_url, context["node_ip_address"]) == ("", "127.0.0.1")
    with context:
        assert dpool.is_initialized()
    assert not dpool.is_initialized()


def test_runtime_env_of_all_workers(tmp_path: Path) -> None:
    dpool.shutdown()
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    package = tmp_path / "modules" / "packed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 8\n")
    alone = ModuleType("alone")  # a module that is a file, and no package
    alone.__file__ = str(tmp_path / "elsewhere" / "alone.py")
    Path(alone.__file__).parent.mkdir()
    Path(alone.__file__).write_text("VALUE = 9\n")
    modules = [str(package), alone, dpool.util]
    env = {"env_vars": {"COLOUR": "red"}, "working_dir": str(tmp_path), "py_modules": modules}
    dpool.init(num_cpus=2, runtime_env=env)
    assert dpool.get(dpool.remote(variable).remote("COLOUR"), timeout=LONG_S) == "red"
    assert "COLOUR" not in os.environ
    assert os.path.samefile(dpool.get(dpool.remote(where).remote()), tmp_path)

    def values() -> list[int]:
        from importlib import import_module

        return [import_module(name).VALUE for name in ("beside", "packed", "alone")]

    assert dpool.get(dpool.remote(values).remote(), timeout=LONG_S) == [7, 8, 9]
    nested = dpool.remote(lambda: dpool.get(dpool.remote(variable).options(num_cpus=0.5).remote("COLOUR")))
    assert dpool.get(nested.remote(), timeout=LONG_S) == "red"
    with pytest.raises(RuntimeError, match="runs already"):
        dpool.init(runtime_env={"env_vars": {"COLOUR": "blue"}})
    dpool.init(runtime_env={"env_vars": {"COLOUR": "blue"}}, ignore_reinit_error=True)
    dpool.shutdown()
    assert dpool.get(dpool.remote(variable).remote("COLOUR"), timeout=LONG_S) is None


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"pip": []}, "install there"),
        ({"working_dir": "/nowhere"}, "directory"),
        ({"conda": "x", "a": 1}, "a, conda"),
        ({"py_modules": [sys]}, "lie in files"),
    ],
)
def test_runtime_env_that_cannot_be(env: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dpool.init(runtime_env=env)
    with pytest.raises(TypeError, match="string"):
        dpool.init(runtime_env={"env_vars": {"N": 1}})


def test_what_tasks_print_need_not_be_shown() -> None:
    script = """
import dpool as ray
ray.init(log_to_driver={})
ray.get(ray.remote(print).remote("from the task"))
print("from the program")
ray.shutdown()
"""
    assert run_script(script.format(False)).check().stdout == "from the program\n"
    assert "from the task\n" in run_script(script.format(True)).check().stdout


# -- tasks


def test_variables_and_lifetime_of_the_workers_of_a_task() -> None:
    read = dpool.remote(variable)
    blue, red = read.options(env={"COLOUR": "blue"}), read.options(runtime_env={"env_vars": {"COLOUR": "red"}})
    assert dpool.get([blue.remote("COLOUR"), red.remote("COLOUR"), read.remote("COLOUR")]) == ["blue", "red", None]
    once = dpool.remote(max_calls=1)(pid)
    assert len(set(dpool.get([once.remote() for _ in range(3)], timeout=LONG_S))) == 3
    many = dpool.remote(num_cpus=2)(pid)
    assert len(set(dpool.get([many.remote() for _ in range(3)], timeout=LONG_S))) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"scheduling_strategy": "somewhere"}, ValueError),
        ({"runtime_env": {"pip": ["x"]}}, ValueError),
        ({"runtime_env": {"working_dir": "/"}}, ValueError),
        ({"env": {"N": 1}}, TypeError),
        ({"accelerator_type": "V100"}, TypeError),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], error: type[Exception]) -> None:
    class Something:
        pass

    for target in (pid, Something):
        with pytest.raises(error):
            dpool.remote(**options)(target)
    with pytest.raises(ValueError, match="max_calls"):
        dpool.remote(max_calls=-1)(pid)


def test_references_and_futures_are_object_refs() -> None:
    ref, future = dpool.put(1), dpool.remote(pid).remote()
    assert [isinstance(one, dpool.ObjectRef) for one in (ref, future, 1)] == [True, True, False]
    assert isinstance(future.future(), concurrent.futures.Future)
    assert ref.future().result() == 1
    assert ref != future
    assert ref.hex() == ref.hex() != dpool.put(1).hex()
    assert dpool.get(dpool.put([future]))[0].result(LONG_S) == future.result(LONG_S)


def test_where_this_runs() -> None:
    context = dpool.get_runtime_context()
    assert (context.get_task_id(), context.get_actor_id(), context.get_actor_name()) == (None, None, None)
    with pytest.raises(RuntimeError, match="no actor"):
        context.current_actor  # noqa: B018

    def ids() -> tuple[Any, ...]:
        there = dpool.get_runtime_context()
        return there.get_node_id(), there.get_job_id(), there.get_worker_id(), there.get_task_id(), dpool.get_gpu_ids()

    node, job, worker, task, gpus = dpool.get(dpool.remote(num_gpus=1)(ids).remote(), timeout=LONG_S)
    assert (node, job) == (context.get_node_id(), context.get_job_id())
    assert worker != context.get_worker_id()
    assert task.startswith(worker)
    assert gpus == [0]
    assert dpool.get_gpu_ids() == []
    [machine] = dpool.nodes()
    assert (machine["NodeID"], machine["Alive"], machine["Resources"]["licence"]) == (node, True, 3)


# -- actors


class Guest:
    def __init__(self, log: str) -> None:
        import atexit

        atexit.register(lambda: Path(log).touch())

    def leave(self) -> None:
        dpool.actor.exit_actor()

    def stay(self) -> str:
        return "here"

    def pid(self) -> int:
        return os.getpid()

    def enter(self, gate: Gate, name: str) -> str:
        gate.enter(name)
        return name


class Polite(Guest):
    async def leave(self) -> None:  # type: ignore[override]
        dpool.actor.exit_actor()

    async def enter(self, gate: Gate, name: str) -> str:  # type: ignore[override]
        gate.note(name)
        await asyncio.sleep(1000)
        return name


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Guest, {}), (Guest, {"max_concurrency": 3}), (Polite, {})],
    ids=["one by one", "threads", "coroutines"],
)
def test_an_actor_that_leaves(cls: type, options: dict[str, Any], tmp_path: Path, gate: Gate) -> None:
    log = tmp_path / "log"
    guest = dpool.remote(cls).options(max_restarts=-1, **options).remote(str(log))
    pid = guest.pid()
    leaves = guest.leave.remote()
    with pytest.raises(dpool.errors.ActorDied, match=r"exited with code 0|exit_actor"):
        leaves.result(LONG_S)
    with pytest.raises(dpool.errors.ActorDied, match="exit_actor"):
        guest.stay()
    wait_until(lambda: not is_running(pid), LONG_S)
    assert log.exists()
    with pytest.raises(RuntimeError, match="in a method of an actor"):
        dpool.actor.exit_actor()


@pytest.mark.parametrize(("cls", "options"), [(Guest, {"max_concurrency": 3}), (Polite, {})])
def test_calls_that_run_when_it_leaves_hear_of_that(
    cls: type, options: dict[str, Any], tmp_path: Path, gate: Gate
) -> None:
    guest = dpool.remote(cls).options(**options).remote(str(tmp_path / "log"))
    running = guest.enter.submit(gate, "a")
    gate.entered("a")
    for call in (guest.leave.submit(), running):
        with pytest.raises(dpool.errors.ActorDied, match=r"exited with code 0|exit_actor"):
            call.result(LONG_S)


def test_what_was_answered_before_it_left_counts(tmp_path: Path) -> None:
    guest = dpool.ActorProxy(Guest, str(tmp_path / "log"))
    before = [guest.stay.submit() for _ in range(50)]
    end = guest.__ray_terminate__.submit()
    after = [guest.stay.submit() for _ in range(50)]
    assert dpool.get(before, timeout=LONG_S) == ["here"] * 50
    for one in (end, *after):
        with pytest.raises(dpool.errors.ActorDied):
            one.result(LONG_S)


class Sets:
    """Its loop runs when it is constructed."""

    def __init__(self) -> None:
        import asyncio

        self.task = asyncio.get_running_loop().create_task(self.later())
        self.done = False

    async def later(self) -> None:
        self.done = True

    async def ask(self) -> bool:
        await self.task
        return self.done


def test_the_loop_of_coroutines_runs_when_the_object_is_constructed() -> None:
    assert dpool.ActorProxy(Sets).ask() is True


# -- util


class Doubler:
    def double(self, x: int) -> int:
        if x < 0:
            os._exit(1)
        return 2 * x

    def enter(self, gate: Gate, name: str) -> str:
        gate.enter(name)
        return name


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


def test_an_actor_that_dies_leaves_its_pool() -> None:
    pool = dpool.util.ActorPool([dpool.ActorProxy(Doubler) for _ in range(2)])
    assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]
    pool.submit(double, -1)
    with pytest.raises(dpool.errors.ActorDied):
        pool.get_next(timeout=LONG_S)
    assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]
    pool.submit(double, -1)
    pool.submit(double, 1)
    with pytest.raises(dpool.errors.ActorDied):
        pool.get_next_unordered(timeout=LONG_S)
    assert pool.has_next()
    with pytest.raises(RuntimeError, match="no actor"):
        pool.get_next()
    pool.push(dpool.ActorProxy(Doubler))
    assert pool.get_next(timeout=LONG_S) == 2


def test_a_pool_with_time_outs(gate: Gate) -> None:
    pool = dpool.util.ActorPool([dpool.ActorProxy(Doubler)])
    pool.submit(lambda actor, name: actor.enter.remote(gate, name), "a")
    pool.submit(lambda actor, name: actor.enter.remote(gate, name), "b")
    for get in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(TimeoutError):
            get(timeout=0)
    with pytest.raises(TimeoutError, match="passed over"):
        pool.get_next(timeout=0, ignore_if_timedout=True)
    gate.open("a", "b")
    assert pool.get_next(timeout=LONG_S) == "b"
    assert not pool.has_next()


def test_names_that_there_are() -> None:
    import dpool.exceptions as names

    for name in names.__all__:
        assert issubclass(getattr(dpool.exceptions, name), Exception)
    assert dpool.exceptions.GetTimeoutError is concurrent.futures.TimeoutError
    assert dpool.util.multiprocessing.Pool is dpool.Pool
    assert dpool.actor.ActorHandle is dpool.ActorProxy
    assert isinstance(dpool.remote(num_returns="streaming")(iter).remote([]), dpool.Stream)
    assert dpool.util.get_node_ip_address() == "127.0.0.1"


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        (dpool, "timeline", "not recorded"),
        (dpool, "serve", "libraries"),
        (dpool, "data", "libraries"),
        (dpool.util, "placement_group_table", "is passed on"),
        (dpool, "no_such_thing", "has no attribute 'no_such_thing'$"),
        (dpool.util, "no_such_thing", "'dpool.util' has no attribute 'no_such_thing'$"),
    ],
)
def test_names_that_there_are_not(module: Any, name: str, text: str) -> None:
    assert not hasattr(module, name)
    with pytest.raises(AttributeError, match=text):
        getattr(module, name)


def test_none_of_this_is_imported_on_the_way_to_a_result() -> None:
    script = """
import dpool, sys

@dpool.remote(num_cpus=1)
def f():
    return 1

print(dpool.get(f.remote()))
print([name for name in sys.modules if name.startswith("dpool")])
dpool.shutdown()
"""
    found = run_script(script).check().stdout
    for name in (
        "actor",
        "exceptions",
        "util",
        "runtime_context",
        "_absent",
        "_core.actor_methods",
        "_core.runtime_env",
    ):
        assert f"'dpool.{name}'" not in found
