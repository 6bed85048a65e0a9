"""The peers behind one small interface, so that a question is asked of all of them in the same words.

`mp` is `multiprocessing.Pool` and `ppe` is `ProcessPoolExecutor`, both with the start method "fork" (their fastest,
and the default on Linux up to Python 3.13). A task is always one submission, and never a chunk, except in `map`.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ClassVar

from benchmarks import work

Function = Callable[..., Any]
Arguments = Sequence[tuple[Any, ...]]

STORE_BYTES = "DPOOL_OBJECT_STORE_MEMORY"
SPILL_DIR = "DPOOL_SPILL_DIR"
"""dpool's own settings of its object store; ray is given the same."""

_WARM_UP_TASK_US = 20_000
_WARM_UP_DEADLINE_S = 60.0


class Peer(ABC):
    """One way to run functions in other processes."""

    name: ClassVar[str]
    title: ClassVar[str]
    module: ClassVar[str]
    maps: ClassVar[bool] = True  # whether it offers `map` with a chunk size
    most_queued: ClassVar[int] = 1_000_000  # how many tasks it can be asked to queue in bearable time
    recycles: ClassVar[bool] = False  # large values lie in a store of a fixed size, whose pages are used again

    @abstractmethod
    def start(self, workers: int) -> None:
        """Make the pool; the first task may still have to wait for its processes."""

    @abstractmethod
    def apply(self, fn: Function, *args: Any) -> Any:
        """Run one task and return its value."""

    @abstractmethod
    def submit_all(self, fn: Function, arguments: Arguments) -> list[Any]:
        """Submit one task for each tuple of arguments; return what `gather` needs."""

    @abstractmethod
    def gather(self, handles: list[Any]) -> list[Any]:
        """Wait for the tasks; return their values."""

    def map(self, fn: Function, items: Sequence[Any], chunksize: int) -> list[Any]:
        """The peer's own `map`; only where `maps` is true."""
        raise NotImplementedError(f"{self.title} has no map with a chunk size")

    def pool(self, workers: int) -> Any:
        """An object with the interface of multiprocessing.Pool, warm; the caller terminates it. Only where the peer has
        one.
        """
        raise NotImplementedError(f"{self.title} has no Pool")

    def put(self, value: Any) -> Any:
        """Store a value; return what stands for it as an argument of a task. Only where the peer has a store."""
        raise NotImplementedError(f"{self.title} has no object store")

    def fetch(self, reference: Any) -> Any:
        """The value that `put` stored."""
        raise NotImplementedError(f"{self.title} has no object store")

    @abstractmethod
    def worker_pids(self) -> list[int]:
        """The process ids of the workers, all of them started."""

    @abstractmethod
    def abandon(self) -> None:
        """Begin to close without running what is queued; `close` follows."""

    @abstractmethod
    def close(self) -> None:
        """End the pool and its processes."""

    def submit_many(self, fn: Function, arguments: Arguments) -> list[Any]:
        """Submit them one by one, then wait for all of them."""
        return self.gather(self.submit_all(fn, arguments))

    def warm_up(self, workers: int) -> None:
        """Run tasks until every worker has answered."""
        loops = work.loops_for(_WARM_UP_TASK_US, work.loops_per_us())
        deadline = time.monotonic() + _WARM_UP_DEADLINE_S
        answered: set[int] = set()
        while len(answered) < workers:
            answered.update(self.submit_many(work.spin_and_tell, [(loops,)] * (4 * workers)))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.title}: {len(answered)} of {workers} workers took a task")
        self.submit_many(work.noop, [()] * 500)


class _ExecutorPeer(Peer):
    """What dpool, ProcessPoolExecutor and loky share: the interface of `concurrent.futures.Executor`."""

    _executor: Any

    @abstractmethod
    def make(self, workers: int) -> Any:
        """The executor."""

    def start(self, workers: int) -> None:
        self._executor = self.make(workers)

    def apply(self, fn: Function, *args: Any) -> Any:
        return self._executor.submit(fn, *args).result()

    def submit_all(self, fn: Function, arguments: Arguments) -> list[Any]:
        submit = self._executor.submit
        return [submit(fn, *args) for args in arguments]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [future.result() for future in handles]

    def map(self, fn: Function, items: Sequence[Any], chunksize: int) -> list[Any]:
        return list(self._executor.map(fn, items, chunksize=chunksize))

    def worker_pids(self) -> list[int]:
        return list(self._executor._processes)

    def abandon(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self._executor.shutdown(wait=True)


class Dpool(_ExecutorPeer):
    name = "dpool"
    title = "dpool.Executor"
    module = "dpool"
    recycles = True

    def make(self, workers: int) -> Any:
        self._dpool: Any = importlib.import_module("dpool")
        return self._dpool.Executor(max_workers=workers)

    def pool(self, workers: int) -> Any:
        return _warm(self._dpool.Pool(workers), workers)

    def put(self, value: Any) -> Any:
        return self._dpool.put(value)

    def fetch(self, reference: Any) -> Any:
        return self._dpool.get(reference)


class Ppe(_ExecutorPeer):
    name = "ppe"
    title = "ProcessPoolExecutor"
    module = "concurrent.futures"

    def make(self, workers: int) -> Any:
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))


class Loky(_ExecutorPeer):
    name = "loky"
    title = "loky"
    module = "loky"

    def make(self, workers: int) -> Any:
        # Not get_reusable_executor: its workers leave after 10 idle seconds, which is what `idle` measures.
        return importlib.import_module("loky").ProcessPoolExecutor(max_workers=workers)

    def abandon(self) -> None:
        self._executor.shutdown(wait=False, kill_workers=True)


class MpPool(Peer):
    name = "mp"
    title = "multiprocessing.Pool"
    module = "multiprocessing"

    def start(self, workers: int) -> None:
        self._pool = multiprocessing.get_context("fork").Pool(workers)

    def pool(self, workers: int) -> Any:
        return _warm(multiprocessing.get_context("fork").Pool(workers), workers)

    def apply(self, fn: Function, *args: Any) -> Any:
        return self._pool.apply(fn, args)

    def submit_all(self, fn: Function, arguments: Arguments) -> list[Any]:
        submit = self._pool.apply_async
        return [submit(fn, args) for args in arguments]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [result.get() for result in handles]

    def map(self, fn: Function, items: Sequence[Any], chunksize: int) -> list[Any]:
        return self._pool.map(fn, items, chunksize=chunksize)

    def worker_pids(self) -> list[int]:
        workers: list[Any] = vars(self._pool)["_pool"]
        return [worker.pid for worker in workers]

    def abandon(self) -> None:
        self._pool.terminate()

    def close(self) -> None:
        self._pool.close()
        self._pool.join()


class Ray(Peer):
    name = "ray"
    title = "ray"
    module = "ray"
    maps = False
    most_queued = 20_000
    recycles = True

    def start(self, workers: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray: Any = importlib.import_module("ray")
        settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        # The questions about the store give every store the same size and, where it matters, the same directory.
        if STORE_BYTES in os.environ:
            settings["object_store_memory"] = int(os.environ[STORE_BYTES])
        if SPILL_DIR in os.environ:
            settings["object_spilling_directory"] = os.environ[SPILL_DIR]
        self._ray.init(num_cpus=workers, **settings)
        self._workers = workers
        self._remote: dict[Function, Any] = {}

    def _remote_of(self, fn: Function) -> Any:
        if fn not in self._remote:
            self._remote[fn] = self._ray.remote(fn)
        return self._remote[fn]

    def apply(self, fn: Function, *args: Any) -> Any:
        return self._ray.get(self._remote_of(fn).remote(*args))

    def submit_all(self, fn: Function, arguments: Arguments) -> list[Any]:
        submit = self._remote_of(fn).remote
        return [submit(*args) for args in arguments]

    def gather(self, handles: list[Any]) -> list[Any]:
        values: list[Any] = self._ray.get(handles)
        return values

    def pool(self, workers: int) -> Any:
        return _warm(importlib.import_module("ray.util.multiprocessing").Pool(workers), workers)

    def put(self, value: Any) -> Any:
        return self._ray.put(value)

    def fetch(self, reference: Any) -> Any:
        return self._ray.get(reference)

    def worker_pids(self) -> list[int]:
        # A long spin, so that each worker has some of them.
        loops = work.loops_for(_WARM_UP_TASK_US, work.loops_per_us())
        return sorted(set(self.submit_many(work.spin_and_tell, [(loops,)] * (8 * self._workers))))

    def abandon(self) -> None:
        self._ray.shutdown()

    def close(self) -> None:
        self._ray.shutdown()


class Dask(Peer):
    name = "dask"
    title = "dask.distributed"
    module = "distributed"
    maps = False
    most_queued = 10_000

    def start(self, workers: int) -> None:
        distributed: Any = importlib.import_module("distributed")
        self._cluster = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self._client = distributed.Client(self._cluster)

    def apply(self, fn: Function, *args: Any) -> Any:
        return self._client.submit(fn, *args, pure=False).result()

    def submit_all(self, fn: Function, arguments: Arguments) -> list[Any]:
        submit = self._client.submit
        return [submit(fn, *args, pure=False) for args in arguments]

    def gather(self, handles: list[Any]) -> list[Any]:
        values: list[Any] = self._client.gather(handles)
        return values

    def put(self, value: Any) -> Any:
        # Neither by way of the scheduler nor under a name made of a hash of the contents: both cost more.
        return self._client.scatter(value, hash=False, direct=True)

    def fetch(self, reference: Any) -> Any:
        return self._client.gather(reference, direct=True)

    def worker_pids(self) -> list[int]:
        return list(self._client.run(os.getpid).values())

    def abandon(self) -> None:
        self._client.close()

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


def _warm(pool: Any, workers: int) -> Any:
    """The pool, when every worker of it has run tasks."""
    for _ in range(3):
        pool.map(work.identity, range(100 * workers), 10)
    return pool


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Dpool, MpPool, Ppe, Loky, Ray, Dask)}


OTHERS = {"mpi": "mpi4py", "http": "http.server", "zmq": "zmq", "tcp": "socket"}
"""Whom single questions ask besides, in their own words: their names, and the modules that they need."""


def why_missing(name: str, needs: Sequence[str] = (), puts: bool = False) -> str | None:
    """None when the peer can be measured here, with the modules that the question needs, else the reason."""
    module = OTHERS[name] if name in OTHERS else PEERS[name].module
    if importlib.util.find_spec(module) is None:
        return "not installed"
    for needed in needs:
        if importlib.util.find_spec(needed) is None:
            return f"{needed} is not installed"
    if name == "mpi" and shutil.which("mpirun") is None:
        return "there is no mpirun on PATH"
    if puts and PEERS[name].put is Peer.put:
        return "has no object store"
    if name != "dpool":
        return None
    try:
        # Unlike the others it may be half built: it is developed here.
        found = importlib.import_module(module)
        lacking = [name for name in ("Executor", *(("put", "get") if puts else ())) if not hasattr(found, name)]
    except ImportError as error:
        return str(error)
    return f"has no {' and no '.join(lacking)}" if lacking else None
