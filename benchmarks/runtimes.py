"""The peers that have more than pools: objects in processes of their own, and some of them tasks that wait for tasks.

`dpool` and `ray` are asked in the same words, `remote`, `get`, `wait`; `dask` has actors, and tasks under other names;
`mp` is `multiprocessing.Manager`: an object in a server process, called through a proxy, without tasks.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Callable
from multiprocessing.managers import BaseManager
from typing import Any, ClassVar, NamedTuple

from benchmarks import work
from benchmarks.peers import Arguments, Dask, Function, Peer, Ray


class Actor(NamedTuple):
    """An object in another process: one method of it in two ways, and how it is ended."""

    call: Callable[..., Any]
    """Waits for the value."""
    submit: Callable[..., Any]
    """Returns what `gather` needs."""
    end: Callable[[], object]


class Runtime(Peer):
    """A peer with actors."""

    has_tasks: ClassVar[bool] = True  # tasks may submit tasks, and take others' results as arguments
    most_pipelined: ClassVar[int] = 1_000_000  # calls of an actor that it can be asked for at once in bearable time

    @abstractmethod
    def actor(self, cls: type, method: str) -> Actor:
        """Make an object of `cls`, without arguments."""

    def remote(self, fn: Function) -> Callable[..., Any]:
        """What submits a call of a function; a result of another task may be an argument. Only where `has_tasks`."""
        raise NotImplementedError(f"{self.title} has no tasks")

    def wait_one(self, refs: list[Any]) -> tuple[Any, list[Any]]:
        """One that is ready, and the others. Only where `has_tasks`."""
        raise NotImplementedError(f"{self.title} has no wait")

    def warm_up(self, workers: int) -> None:
        if self.has_tasks:
            super().warm_up(workers)


class DpoolTasks(Runtime):
    name = "dpool"
    title = "dpool"
    module = "dpool"

    def start(self, workers: int) -> None:
        self._dpool: Any = importlib.import_module("dpool")
        self._dpool.init(num_cpus=workers)
        self._remote: dict[Function, Any] = {}

    def remote(self, fn: Function) -> Callable[..., Any]:
        if fn not in self._remote:
            self._remote[fn] = self._dpool.remote(fn)
        submit: Callable[..., Any] = self._remote[fn].remote
        return submit

    def apply(self, fn: Function, *args: Any) -> Any:
        return self.remote(fn)(*args).result()

    def submit_all(self, fn: Function, arguments: Arguments) -> list[Any]:
        submit = self.remote(fn)
        return [submit(*args) for args in arguments]

    def gather(self, handles: list[Any]) -> list[Any]:
        values: list[Any] = self._dpool.get(handles)
        return values

    def wait_one(self, refs: list[Any]) -> tuple[Any, list[Any]]:
        ready, rest = self._dpool.wait(refs)
        return ready[0], rest

    def actor(self, cls: type, method: str) -> Actor:
        proxy = self._dpool.ActorProxy(cls)
        bound = getattr(proxy, method)
        return Actor(bound, bound.submit, proxy.kill)

    def worker_pids(self) -> list[int]:
        raise NotImplementedError("nobody asks for them")

    def abandon(self) -> None:
        self._dpool.shutdown()

    def close(self) -> None:
        self._dpool.shutdown()


class RayTasks(Ray, Runtime):
    def remote(self, fn: Function) -> Callable[..., Any]:
        submit: Callable[..., Any] = self._remote_of(fn).remote
        return submit

    def wait_one(self, refs: list[Any]) -> tuple[Any, list[Any]]:
        ready, rest = self._ray.wait(refs)
        return ready[0], rest

    def actor(self, cls: type, method: str) -> Actor:
        get, handle = self._ray.get, self._ray.remote(cls).remote()
        submit = getattr(handle, method).remote
        return Actor(lambda *args: get(submit(*args)), submit, lambda: self._ray.kill(handle))


class DaskTasks(Dask, Runtime):
    most_pipelined = 500

    def remote(self, fn: Function) -> Callable[..., Any]:
        submit = self._client.submit
        return lambda *args: submit(fn, *args, pure=False)

    def actor(self, cls: type, method: str) -> Actor:
        """In one of its workers, beside tasks: it has no process of its own."""
        future = self._client.submit(cls, actor=True, pure=False)
        submit = getattr(future.result(), method)
        return Actor(lambda *args: submit(*args).result(), submit, future.release)

    def gather(self, handles: list[Any]) -> list[Any]:
        if handles and not hasattr(handles[0], "key"):  # those of an actor's calls are of another kind
            return [handle.result() for handle in handles]
        return super().gather(handles)


class _Server(BaseManager):
    """Knows `work.Counter`."""


_Server.register("Counter", work.Counter)


class Manager(Runtime):
    name = "mp"
    title = "multiprocessing.Manager"
    module = "multiprocessing"
    has_tasks: ClassVar[bool] = False

    def start(self, workers: int) -> None:
        """Each actor starts a server of its own."""

    def actor(self, cls: type, method: str) -> Actor:
        server = _Server(ctx=importlib.import_module("multiprocessing").get_context("fork"))
        server.start()
        bound = getattr(getattr(server, cls.__name__)(), method)
        return Actor(bound, self._no_submit, server.shutdown)

    def _no_submit(self, *args: Any) -> Any:
        raise NotImplementedError(f"{self.title} has blocking calls only")

    def apply(self, fn: Function, *args: Any) -> Any:
        raise NotImplementedError(f"{self.title} has no tasks")

    def submit_all(self, fn: Function, arguments: Arguments) -> list[Any]:
        raise NotImplementedError(f"{self.title} has no tasks")

    def gather(self, handles: list[Any]) -> list[Any]:
        raise NotImplementedError(f"{self.title} has no tasks")

    def worker_pids(self) -> list[int]:
        raise NotImplementedError(f"{self.title} has no workers")

    def abandon(self) -> None:
        """Nothing is queued."""

    def close(self) -> None:
        """Each actor has been ended."""


RUNTIMES: dict[str, type[Runtime]] = {kind.name: kind for kind in (DpoolTasks, RayTasks, DaskTasks, Manager)}
