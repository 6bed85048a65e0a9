"""The joblib backend: `Parallel(backend="dpool")`, `parallel_config("dpool")`.

```
 Parallel ─ BatchedCalls ─► DpoolBackend.submit ─► _Arguments: large ones stored once, memory maps by their file
     ▲                            │
     │                            ▼
     │                   _Kept: one Executor for each (n_jobs, environment, …) ─► workers: batches.run_batch
     └─ callback (_Callbacks: a thread for each backend that works) ◄── future
```

Threads: joblib submits from the thread that called `Parallel` and, holding a lock of that call, in the callback of an
earlier batch, where it also runs the user's iterable. That may take long, or wait for another call: so callbacks are
not for the io thread, which serves everybody. `submit` neither waits nor raises: whatever goes wrong is on the future,
whose callback joblib waits for.

Nesting: a worker has its share of the CPUs, what there is divided by the workers of its pool. A `Parallel` inside a
task uses as many processes as that share, and with a share of one runs in the worker itself.

Source of the contract: joblib's ParallelBackendBase, 1.3 to 1.6.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from pickle import PicklingError, dumps
from time import monotonic
from typing import Any, NamedTuple

from joblib import cpu_count, register_parallel_backend
from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    ThreadingBackend,
)

from dpool._core.batches import Share, map_again, run_batch
from dpool._core.config import INLINE_LIMIT
from dpool._core.context import here
from dpool._core.future import Future
from dpool._core.objectref import ByValue, ObjectRef
from dpool._core.runtime import cluster_cpus
from dpool._core.serialize import ATOMIC, size_of, store_value
from dpool.errors import DpoolError
from dpool.executor import Executor

IDLE_S = 300.0
"""Idle workers leave after so long, as with joblib's own pool."""
LOOK_S = 1.0
"""A call that waits for its end is told of it, and looks for itself so often."""
MAX_KEPT = 4
"""Executors of different settings that are kept for later calls; what is in use counts, and is never closed."""
SETTINGS = frozenset(("idle_worker_timeout", "initializer", "initargs", "max_retries"))
IGNORED = frozenset(("context", "mmap_mode", "temp_folder", "verbose"))
"""What `Parallel` hands to every backend and has no meaning here: nothing is written to a folder."""


# -- executors, kept for the next call


class _Spec(NamedTuple):
    """What two calls must agree in to share workers."""

    pid: int
    n_jobs: int
    env: dict[str, str]
    idle_s: float | None
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]


class _Kept:
    """One executor and who uses it."""

    def __init__(self, spec: _Spec) -> None:
        self.spec = spec
        self.used_s = 0.0
        self.running = 0
        """Batches under way; under `_lock`."""
        self._executor: Executor | None = None

    def executor(self) -> Executor:
        """The executor, a new one if the last is broken or closed. Under `_lock`."""
        found = self._executor
        if found is None or found._shutdown or found._broken is not None:
            if found is not None:
                found.shutdown(wait=False)
            spec = self.spec
            self._executor = found = Executor(
                spec.n_jobs,
                None,
                spec.initializer,
                spec.initargs,
                idle_timeout=spec.idle_s,
                env=spec.env,
            )
        self.used_s = monotonic()
        return found

    def close(self, wait: bool) -> None:
        executor, self._executor = self._executor, None
        if executor is not None and self.spec.pid == os.getpid():
            executor.shutdown(wait=wait, cancel_futures=wait)

    def change(self, by: int) -> None:
        with _lock:
            self.running += by


_log = logging.getLogger("concurrent.futures")
_lock = threading.RLock()
_kept: list[_Kept] = []


def _keep(spec: _Spec) -> _Kept:
    """The kept executor with these settings; the longest unused ones beyond MAX_KEPT are closed."""
    with _lock:
        found = next((one for one in _kept if one.spec == spec), None)
        if found is None:
            found = _Kept(spec)
            _kept.append(found)
        found.executor()
        surplus = sorted((one for one in _kept if not one.running and one is not found), key=lambda one: one.used_s)
        surplus = surplus[: max(0, len(_kept) - MAX_KEPT)]
        for one in surplus:
            _kept.remove(one)
    for one in surplus:
        one.close(wait=False)
    return found


def close_executors() -> None:
    """End the workers that are kept for the next call, and what they run; returns when they are gone.

    They end by themselves when they were idle for five minutes, and with the program.
    """
    with _lock:
        closing, _kept[:] = _kept[:], []
    for one in closing:
        one.close(wait=True)


# -- callbacks


class _Callbacks:
    """Calls in order, in a thread that ends when there are none for a while."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: deque[Callable[[], object]] = deque()
        self._pid = 0
        """Of the process in which the thread runs; 0: it does not."""

    def add(self, call: Callable[[], object]) -> None:
        """Let `call()` run soon. Any thread; does not wait."""
        pid = os.getpid()
        with self._changed:
            if self._pid not in (0, pid):  # we were forked: these calls are the parent's
                self._due.clear()
            self._due.append(call)
            self._changed.notify()
            if self._pid == pid:
                return
            self._pid = pid
        try:
            threading.Thread(target=self._run, name="dpool-joblib", daemon=True).start()
        except RuntimeError:  # no more threads: the program ends, or has too many
            self._run(0.0)

    def _run(self, idle_s: float = LOOK_S) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._due, idle_s):
                    self._pid = 0
                    return
                call = self._due.popleft()
            try:
                call()
            except Exception:
                _log.exception("exception in a callback of joblib's")
            del call


# -- arguments


class _Arguments:
    """Large arguments of one call: those that come again are stored once, while the caller has them.

    As with joblib's own pool, an array that is changed during the call may be seen as it was before.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        """Bytes from which an argument is shared; None: never."""
        self._stored: dict[int, tuple[Any, ByValue]] = {}
        """By `id`: a weak reference to the argument, and what stands for it."""

    def clear(self) -> None:
        """The call is over; its weak references refer to this, so it would not go by itself."""
        self._stored.clear()

    def of(self, items: list[Any]) -> list[Any]:
        """The same calls with such arguments replaced."""
        return [self._call(*item) for item in items]

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = [self._one(arg) for arg in args]
        return func, changed, {name: self._one(arg) for name, arg in kwargs.items()} if kwargs else kwargs

    def _one(self, arg: Any) -> Any:
        kind = type(arg)
        if kind in ATOMIC:
            return arg
        if kind is ObjectRef:
            return ByValue(arg)
        size = size_of(arg)
        if not size or kind is bytearray:
            return arg
        mapped = _mapped(arg)
        if mapped is not None:
            return mapped
        return arg if self._limit is None or size < self._limit else self._shared(arg)

    def _shared(self, arg: Any) -> Any:
        key = id(arg)
        found = self._stored.get(key)
        if found is not None and found[0]() is arg:
            return found[1]
        try:
            gone = weakref.ref(arg, lambda _: self._stored.pop(key, None))
            stands = ByValue(store_value(arg))
        except Exception:  # the batch's own future will say what is wrong with it
            return arg
        self._stored[key] = (gone, stands)
        return stands


class _Mapped:
    """Stands for an array in a memory-mapped file: the worker maps it too, so what it writes is in the file."""

    def __init__(self, *how: Any) -> None:
        self._how = how

    def __reduce__(self) -> Any:
        return map_again, self._how


def _mapped(array: Any) -> _Mapped | None:
    """What stands for `array` if all of it lies in a file's mapping that is not private."""
    base = array
    while base is not None and not hasattr(base, "filename"):
        base = getattr(base, "base", None)
    if base is None or not isinstance(base.filename, (str, os.PathLike)) or not hasattr(base, "offset"):
        return None
    mode = base.mode
    if mode not in ("r", "r+", "w+") or array.dtype.hasobject or not array.size:
        return None
    while hasattr(getattr(base, "base", None), "filename"):
        base = base.base  # a slice of a map says where the whole map begins
    low, high = _bounds(array)
    first = base.__array_interface__["data"][0]
    if low < first or high > first + base.nbytes:
        return None
    offset = base.offset + low - first
    start = array.__array_interface__["data"][0] - low
    order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else ""
    writable = "r+" if mode != "r" and array.flags.writeable else "r"
    return _Mapped(os.fspath(base.filename), writable, offset, high - low, start, array.dtype, array.shape,
                   array.strides, order)  # fmt: skip


def _bounds(array: Any) -> tuple[int, int]:
    """Addresses of the first byte and of the one after the last."""
    low = high = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


# -- the backend


class DpoolBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """joblib's batches in dpool's workers; a `Parallel` that comes while another is served gets an instance of its own.

    Args:
        nesting_level: how many `Parallel` are around this one; joblib gives it.
        inner_max_num_threads: threads that numerical libraries may use in a worker; by default the CPUs divided by
            `n_jobs`. backend_kwargs: `idle_worker_timeout` (seconds, default 300), `initializer` and `initargs`
            (called once in each worker), `max_retries` (run a batch again, so often, if its worker dies; the functions
            must be idempotent).

    A worker that dies, or does not come back, raises an error of `dpool.errors` in the `Parallel` that waits for it;
    the other workers, and later calls, are not affected.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False
    MIN_IDEAL_BATCH_DURATION = 0.02
    """Seconds of work in a batch; less than with other pools, since sending one costs less."""
    MAX_IDEAL_BATCH_DURATION = 0.2

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **backend_kwargs: Any
    ) -> None:
        _check_settings(backend_kwargs)
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.backend_kwargs = backend_kwargs
        self.parallel: Any = None
        self._n_jobs = 1
        self._kept: _Kept | None = None
        self._max_retries = 0
        self._limit: int | None = None
        self._arguments = _Arguments(None)
        self._cpus = 1
        self._nested = b""
        """Pickled: what `get_nested_backend` returns. The workers need it only if a task uses joblib."""
        self._running: dict[Future[Any], Any] = {}
        """Batches under way, with the callback of each."""
        self._took_s: float | None = None
        self._owner: Callable[[], Any] = _nobody
        """Whose calls this serves: a weak reference."""
        self._callbacks = _Callbacks()
        self._over = threading.Event()
        """The call may be over."""

    def __reduce__(self) -> Any:
        return _backend_again, (self.nesting_level, self.inner_max_num_threads, self.backend_kwargs)

    # -- settings

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many batches run at a time: negative numbers count from the CPUs (-1: all of them), None is 1.

        ValueError for 0. Inside a task: not more than the worker's share of the CPUs.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        share = Share.cpus
        if n_jobs < 0:
            n_jobs = max((share or cluster_cpus() or int(cpu_count())) + 1 + n_jobs, 1)
        return n_jobs if share is None else min(n_jobs, share)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **backend_kwargs: Any,
    ) -> int:
        """Get ready for a call of `parallel`; returns the number of workers.

        Raises joblib's FallbackToBackend if one process will do, or threads are required; TypeError for a setting that
        nobody knows.
        """
        n_jobs = self.effective_n_jobs(n_jobs)
        if require == "sharedmem":
            raise FallbackToBackend(ThreadingBackend(nesting_level=self.nesting_level))
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        settings = {**self.backend_kwargs, **backend_kwargs}
        max_nbytes = settings.pop("max_nbytes", 1 << 20)
        _check_settings(settings)
        idle_s = settings.get("idle_worker_timeout")
        self._claim(parallel)
        self.parallel = parallel
        self._n_jobs = n_jobs
        self._share_out(n_jobs)
        self._max_retries = settings.get("max_retries", 0)
        self._limit = None if max_nbytes is None else max(int(max_nbytes), INLINE_LIMIT)
        self._arguments = _Arguments(self._limit)
        self._kept = _keep(
            _Spec(
                os.getpid(),
                n_jobs,
                self._prepare_worker_env(n_jobs),
                IDLE_S if idle_s is None else idle_s,
                settings.get("initializer"),
                tuple(settings.get("initargs", ())),
            )
        )
        return n_jobs

    def _claim(self, parallel: Any) -> None:
        """From now until it is done we serve this `Parallel`; if we serve another, it gets a backend of its own."""
        with _lock:
            if self._owner() not in (None, parallel):
                raise FallbackToBackend(
                    DpoolBackend(self.nesting_level, self.inner_max_num_threads, **self.backend_kwargs)
                )
            self._owner = weakref.ref(parallel)

    def _prepare_worker_env(self, n_jobs: int) -> dict[str, str]:
        """Limits for the threads of numerical libraries, in the workers from their start."""
        env: dict[str, str] = super()._prepare_worker_env(n_jobs)
        if self.inner_max_num_threads is None and Share.cpus is not None:
            env.update(dict.fromkeys(self.MAX_NUM_THREADS_VARS, str(max(1, Share.cpus // n_jobs))))
        return env

    def _share_out(self, tasks: int) -> None:
        """Divide the CPUs among so many tasks at a time."""
        self._cpus = max(1, (Share.cpus or int(cpu_count())) // tasks)
        self._nested = dumps(self.get_nested_backend(), 5)

    def start_call(self) -> None:
        """A call begins: how many tasks it has may be known now."""
        tasks = getattr(self.parallel, "n_tasks", None) or self._n_jobs
        self._share_out(min(self._n_jobs, tasks))

    def stop_call(self) -> None:
        """A call has ended: what it had stored may go."""
        self._arguments.clear()

    def terminate(self) -> None:
        """A `Parallel` is done; the workers stay for the next one."""
        self._arguments.clear()
        self.reset_batch_stats()
        self._owner = _nobody

    # -- nesting

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """What a `Parallel` inside a task uses, and its `n_jobs` where it gives none."""
        level = (self.nesting_level or 0) + 1
        if self._cpus == 1:
            return SequentialBackend(nesting_level=level), None
        return DpoolBackend(nesting_level=level), None

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """joblib waits for results: in a task that holds CPUs, others may have them meanwhile."""
        kept = self._kept
        if not here.holds_cpus or kept is None:
            self._await_results()
            yield
            return
        with _lock:
            pool: Any = kept.executor()._pool
        with pool.runtime.blocking():
            self._await_results()
            yield

    def _await_results(self) -> None:
        """Sleep until the call that returns a list is over, for joblib would look every 10 ms whether it is."""
        parallel = self.parallel
        if parallel.return_generator or parallel.timeout is not None:
            return
        while not _is_over(parallel):
            self._over.clear()
            if not _is_over(parallel):
                self._over.wait(LOOK_S)

    # -- batches

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> Future[Any]:
        """Run a batch in a worker and call `callback` with its future when it has ended, however it ends.

        Any thread; does not wait and does not raise.
        """
        future: Future[Any]
        kept = self._kept
        assert kept is not None, "configure comes first"
        kept.change(+1)
        try:
            with _lock:
                executor = kept.executor()
            view = executor.options(name=_name(func), max_retries=self._max_retries)
            items = self._arguments.of(func.items)
            future = _if_pickled(view.submit(run_batch, items, self._nested, self._cpus))
        except Exception as error:
            future = _failed(error)
        self._running[future] = callback
        future.add_done_callback(partial(self._ended, kept, callback))
        return future

    apply_async = submit
    """The name before joblib 1.5."""

    def _ended(self, kept: _Kept, callback: Callable[[Any], object] | None, future: Future[Any]) -> None:
        self._running.pop(future, None)
        kept.change(-1)
        if callback is not None:
            self._callbacks.add(partial(self._tell, callback, future))

    def _tell(self, callback: Callable[[Any], object], future: Future[Any]) -> None:
        try:
            callback(future)
        finally:
            if _is_over(self.parallel):
                self._over.set()

    def retrieve_result_callback(self, out: Future[Any]) -> list[Any]:
        """The results of a batch that has ended, or what it raised."""
        try:
            results, self._took_s = out.result()
        except CancelledError:
            raise RuntimeError(
                "the workers of this Parallel were shut down before all of its tasks had run "
                "(dpool.joblib.close_executors, or the end of the program)"
            ) from None
        return results  # type: ignore[no-any-return]

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """How long a batch took: in the worker, for joblib's `duration` includes the time that it waited."""
        took_s, self._took_s = self._took_s, None
        super().batch_completed(batch_size, duration if took_s is None else max(took_s, 1e-6))

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop the batches of every `Parallel` of this backend that gives up: what waits is cancelled, the workers
        that run the others are killed and replaced. The backend stays usable.
        """
        aborted = [
            future
            for future, callback in list(self._running.items())
            if getattr(getattr(callback, "parallel", None), "_aborting", True)
        ]
        for future in reversed(aborted):  # the latest are those that have not begun
            future.cancel()
        for future in aborted:
            future.cancel(force=True)


def _is_over(parallel: Any) -> bool:
    """Whether a call has all its results, or gives up."""
    return parallel._aborting or not parallel._wait_retrieval()


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _if_pickled(future: Future[Any]) -> Future[Any]:
    """The future of a batch; if the batch did not pickle, one with the error that joblib's users expect."""
    error = future.exception() if future.done() and not future.cancelled() else None
    if error is None or error.__cause__ is not None or isinstance(error, DpoolError):
        return future  # what a task raises has its remote traceback as the cause
    pickling = PicklingError(f"could not pickle the task to send it to the workers: {type(error).__name__}: {error}")
    pickling.__cause__ = error
    return _failed(pickling)


def _nobody() -> None:
    """A weak reference to nothing."""


def _backend_again(nesting_level: int | None, threads: int | None, settings: dict[str, Any]) -> DpoolBackend:
    return DpoolBackend(nesting_level, threads, **settings)


def _check_settings(settings: dict[str, Any]) -> None:
    unknown = sorted(settings.keys() - SETTINGS - IGNORED - {"max_nbytes"})
    if unknown:
        raise TypeError(f"the dpool backend has no setting {', '.join(unknown)}; it has {', '.join(sorted(SETTINGS))}")


def _name(batch: Any) -> str:
    """What errors call a batch."""
    func = batch.items[0][0]
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    return name if len(batch.items) == 1 else f"a batch of {len(batch.items)} calls of {name}"


def register_joblib(make_default: bool = False) -> None:
    """Let joblib know the backend "dpool"; `make_default`: and use it where a program names none.

    It is known without this call if joblib was imported before dpool, or after `import dpool.joblib`.
    """
    register_parallel_backend("dpool", DpoolBackend, make_default=make_default)


register_joblib()
