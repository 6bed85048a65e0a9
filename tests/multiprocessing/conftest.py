"""A pool of two workers, and each way in which a process can come by an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dpool.multiprocessing as mp
from dpool._core import sync_client
from tests.conftest import ours
from tests.gcs.support import no_server
from tests.helpers import wait_until

WAIT_S = 60.0
_standing: list[Any] = []


@pytest.fixture(scope="package", autouse=True)
def the_node() -> Iterator[None]:
    """One node, with two workers and its control store, for all these tests, and as many connections to it as will be
    kept: what starts beside the first tests is not theirs.
    """
    kept = mp.Lock(), mp.Queue(), mp.Value("i", 0)
    link = sync_client.home()
    taken = [link.take() for _ in range(sync_client.MOST_IDLE + 1)]
    link.idle += taken
    with mp.Pool(2) as pool:
        pool.map(_look_at, [kept] * 8, 1)
        kept[1].put(bytearray(200_000))  # the memory for values of that size
        kept[1].get()
        if not no_server():
            wait_until(lambda: any("gcs.sock" in one.command for one in ours()), what="the node's control store")
        _standing.append(pool)
        yield
        _standing.clear()
    del kept


def _look_at(kept: Any) -> int:
    return int(kept[2].value)


@pytest.fixture
def pool() -> Any:
    """Two workers."""
    return _standing[0]


Elsewhere = Callable[..., Any]


def _in_task(function: Callable[..., Any], *args: Any) -> Any:
    return _standing[0].apply_async(function, args).get(WAIT_S)


def _in_nested_task(function: Callable[..., Any], *args: Any) -> Any:
    return _in_task(_in_new_pool, function, args)


def _in_new_pool(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with mp.Pool(1) as pool:
        return pool.apply_async(function, args).get(WAIT_S)


def _from_initargs(function: Callable[..., Any], *args: Any) -> Any:
    with mp.Pool(1, _keep, (args,)) as pool:
        return pool.apply_async(_with_kept, (function,)).get(WAIT_S)


_kept: tuple[Any, ...] = ()


def _keep(args: tuple[Any, ...]) -> None:
    global _kept
    _kept = args


def _with_kept(function: Callable[..., Any]) -> Any:
    return function(*_kept)


def _call_and_send(sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sender.send(function(*args))
    sender.close()


def _in_process(method: str, function: Callable[..., Any], *args: Any) -> Any:
    context = mp.get_context(method)
    receiver, sender = context.Pipe(False)
    process = context.Process(target=_call_and_send, args=(sender, function, args))
    process.start()
    sender.close()
    with receiver:
        value = receiver.recv()
    process.join(WAIT_S)
    assert process.exitcode == 0
    process.close()
    return value


def _forked(function: Callable[..., Any], *args: Any) -> Any:
    return _in_process("fork", function, *args)


def _spawned(function: Callable[..., Any], *args: Any) -> Any:
    return _in_process("spawn", function, *args)


@pytest.fixture(params=[_in_task, _in_nested_task, _from_initargs, _forked, _spawned], ids=lambda f: f.__name__[1:])
def elsewhere(request: pytest.FixtureRequest) -> Elsewhere:
    """Calls a function with arguments in another process, and gives what it returns."""
    found: Elsewhere = request.param
    return found
