"""The module has the standard library's names, and those that it does not serve itself are the standard library's."""

from __future__ import annotations

import multiprocessing
import pickle
import sys

import pytest

import dpool
import dpool.multiprocessing as mp
from tests.helpers import run_script

METHODS = ("fork", "spawn", "forkserver")


def test_all_is_that_of_the_standard_library() -> None:
    assert sorted(mp.__all__) == sorted(multiprocessing.__all__)
    assert all(hasattr(mp, name) for name in mp.__all__)
    assert set(mp.__all__) <= set(dir(mp))


def test_exceptions_are_the_same() -> None:
    for name in ("ProcessError", "BufferTooShort", "TimeoutError", "AuthenticationError"):
        assert getattr(mp, name) is getattr(multiprocessing, name)


@pytest.mark.parametrize("name", ["shared_memory", "connection", "managers", "pool", "util", "process"])
def test_submodules_pass_through(name: str) -> None:
    assert getattr(mp, name) is sys.modules[f"multiprocessing.{name}"]


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(AttributeError, match=r"'dpool\.multiprocessing' has no attribute 'nothing'"):
        mp.nothing  # noqa: B018


def test_functions_pass_through() -> None:
    assert mp.current_process is multiprocessing.current_process
    assert mp.cpu_count() == multiprocessing.cpu_count()
    assert mp.get_logger is multiprocessing.get_logger
    assert mp.Process is multiprocessing.Process


@pytest.mark.parametrize("method", METHODS)
def test_contexts(method: str) -> None:
    context = mp.get_context(method)
    assert context.get_start_method() == method
    assert context is mp.get_context(method) is context.get_context()
    assert context.Process is getattr(multiprocessing.get_context(method), "Process")  # noqa: B009
    assert isinstance(context, multiprocessing.context.BaseContext)
    assert pickle.loads(pickle.dumps(context)) is context
    assert all(hasattr(context, name) for name in ("Lock", "Queue", "Pool", "Manager", "TimeoutError", "cpu_count"))
    with pytest.raises(ValueError, match="cannot set start method"):
        context.set_start_method("fork")


def test_a_start_method_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="cannot find context for 'nothing'"):
        mp.get_context("nothing")
    assert mp.get_all_start_methods() == multiprocessing.get_all_start_methods()
    assert mp.get_start_method() == multiprocessing.get_start_method()


def test_the_pool_is_ours() -> None:
    for context in (mp, mp.get_context("spawn")):
        with context.Pool(1) as pool:
            assert type(pool) is dpool.Pool
            assert pool.apply(divmod, (7, 2)) == (3, 1)


def test_the_start_method_is_set_once() -> None:
    script = """
import multiprocessing, dpool.multiprocessing as mp
mp.set_start_method("spawn")
print(mp.get_start_method(), multiprocessing.get_start_method(), mp.get_context().Process.__name__)
try:
    mp.set_start_method("fork")
except RuntimeError as error:
    print(error)
mp.set_start_method("fork", force=True)
print(mp.get_start_method())
"""
    out = run_script(script).check().stdout
    assert out == "spawn spawn SpawnProcess\ncontext has already been set\nfork\n"


def test_importing_it_starts_nothing() -> None:
    script = """
import sys, dpool.multiprocessing as mp
heavy = ("numpy", "pyarrow", "cloudpickle", "redis", "zmq", "dpool._core.driver", "dpool._core.store_client", "ctypes")
print([name for name in heavy if name in sys.modules])
"""
    assert run_script(script).check().stdout == "[]\n"


def test_a_program_ends_when_its_children_have_ended() -> None:
    """As in the standard library; and what they use lives as long."""
    script = """
import dpool.multiprocessing as mp
def child(q, e):
    e.wait(30)
    q.put("late")
    print(q.get(timeout=30))
if __name__ == "__main__":
    q, e = mp.Queue(), mp.Event()
    mp.Process(target=child, args=(q, e)).start()
    e.set()
"""
    assert run_script(script).check().stdout == "late\n"
