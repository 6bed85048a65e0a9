"""`dpool.Executor`: `concurrent.futures.ProcessPoolExecutor`, faster, and alive after a crash.

The interface is the standard library's; `docs/semantics.md` lists each promise and each difference. Nothing here
knows which runtime serves it.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import _base
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from dpool._core.iterables import check_buffersize, length, slices
from dpool._core.runtime import MAP, STARMAP, cluster_cpus, open_runtime

if TYPE_CHECKING:
    from dpool._core.actor_bound import BoundActors
    from dpool._core.future import Future
    from dpool._core.runtime import Pool, Route
    from dpool.actor import ActorProxy

_T = TypeVar("_T")

SIGTERM, SIGKILL = 15, 9


class Executor(_base.Executor):
    """Runs calls in worker processes; a `concurrent.futures.Executor`.

    Args:
        max_workers: how many worker processes at most; by default as many as this process may use CPUs
            (`loky.cpu_count()`), in a cluster as many as that has CPUs. mp_context: accepted for compatibility.
            Workers are always forked from a clean process of their own, never from this one. initializer: called once
            in every worker, before its first task, with `initargs`. If it raises, the executor is broken. initargs:
            arguments of `initializer`. max_tasks_per_child: replace a worker after so many tasks. max_retries: run a
            task again, up to so many times, if its worker dies. The function must then be idempotent. strict: if a
            worker dies, everything pending breaks with BrokenProcessPool, as in the standard library. idle_timeout:
            seconds after which an idle worker leaves; None: never. env: variables to set in the workers before
            anything is imported there.
            address: the cluster, as for `dpool.init`; one program has one.

    Raises:
        ValueError, TypeError: an argument cannot be.
        dpool.errors.StartupError: the runtime's processes cannot be started (also on the futures).

    Source: the standard library's `concurrent.futures.ProcessPoolExecutor`.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        max_retries: int = 0,
        strict: bool = False,
        idle_timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        address: str | None = None,
    ) -> None:
        _check_arguments(max_workers, initializer, max_tasks_per_child, max_retries, mp_context)
        if mp_context is None and max_tasks_per_child is not None:
            import multiprocessing

            mp_context = multiprocessing.get_context("spawn")
        self._mp_context = mp_context
        self._shutdown = False
        self._close_lock = threading.Lock()
        self._env = env
        self._actors: BoundActors | None = None
        fork = mp_context is not None and mp_context.get_start_method(allow_none=False) == "fork"
        self._pool: Pool = open_runtime(address).open_pool(
            max_workers=max_workers,
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks_per_child=max_tasks_per_child,
            strict=strict,
            all_at_once=fork,
            idle_timeout_s=idle_timeout,
            env=dict(env) if env else None,
            label="Executor",
        )
        self._route: Route = self._pool.make_route((), max_retries, None, "")
        self._submit = self._pool.submit
        self._finalizer = weakref.finalize(self, _collected, self._pool)
        self._finalizer.atexit = False

    # -- the standard interface

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Run `fn(*args, **kwargs)` in a worker; returns its Future at once.

        A Future among the arguments (itself, not inside a container) makes the task wait for it and receive its value.
        RuntimeError after `shutdown`, BrokenProcessPool if the executor is broken. Errors of pickling land on the
        future.
        """
        return self._submit(self._route, fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[_T]:
        """Like `map(fn, *iterables)`, in parallel; results in order.

        Args:
            timeout: seconds from this call after which waiting for a result raises TimeoutError.
            chunksize: items that travel as one task.
            buffersize: chunks submitted and not yet yielded, at most; None: the iterables are consumed at once.
            progress: show a bar (tqdm if it is installed) on standard error, if that is a terminal.

        An error, or dropping the iterator, cancels what has not begun. ValueError if `chunksize` or `buffersize` is
        below 1.
        """
        if buffersize is None:  # else the caller runs in between, and may change what comes again
            iterables = self._pool.share(iterables)
        submit = self._submit
        if "submit" in self.__dict__ or type(self).submit is not Executor.submit:  # by a subclass, or by tqdm
            submit = _replaced(self.submit)
        return _map(submit, self._route, fn, iterables, timeout, chunksize, buffersize, progress)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more tasks. What is pending is finished (or, with `cancel_futures`, cancelled), and then the actors that
        it made end; `wait`: return when all is done and gone.
        """
        with self._close_lock:
            first, self._shutdown = not self._shutdown, True
        self._finalizer.detach()
        if self._actors is not None:
            if cancel_futures:
                self._actors.cancel()
            if first:
                self._pool.when_gone(self._actors.finish)
        self._pool.close(cancel_futures)
        if wait:
            self._wait_closed(False)

    def _wait_closed(self, interrupted: bool) -> None:
        try:
            self._pool.wait_gone()
        except KeyboardInterrupt:
            if interrupted:
                self._pool.signal_workers(SIGKILL)
                self._pool.wait_gone()
            else:
                self._pool.interrupt()
                self._wait_closed(True)
            raise
        if self._actors is not None:
            self._wait_actors(interrupted)

    def _wait_actors(self, interrupted: bool) -> None:
        """The same for its actors. Ctrl-C ends them, whatever they do."""
        assert self._actors is not None
        try:
            (self._actors.kill if interrupted else self._actors.finish)()
            self._actors.wait_gone()
        except KeyboardInterrupt:
            if not interrupted:
                self._wait_actors(True)
            raise

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        interrupted = exc_type is not None and issubclass(exc_type, KeyboardInterrupt)
        if interrupted:
            self._pool.interrupt()
        self.shutdown(wait=False)
        self._wait_closed(interrupted)

    def __reduce__(self) -> Any:
        raise TypeError(
            "an Executor cannot be pickled or passed to a task: its workers belong to this process. "
            "A task that needs workers makes an Executor of its own"
        )

    # -- beyond it

    def actor(self, cls: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ActorProxy:
        """An actor: an object of `cls`, constructed with these arguments in a process of its own.

        Like `dpool.ActorProxy(cls, *args, **kwargs)`, whose docstring says what a proxy can do, but the actor ends with
        this executor at the latest: `shutdown` waits for the tasks, then for the calls that this process has made, and
        ends it (at once after `terminate_workers`, `kill_workers` or Ctrl-C); later calls raise
        `dpool.errors.ActorDied`. Before that it ends when its last proxy goes.

        It takes none of the `max_workers` and runs no `initializer`; its process has the executor's `env`. It holds
        resources only if `options` says so.

        RuntimeError after `shutdown`, BrokenProcessPool if the executor is broken. Raises what pickling the class or
        its arguments raises. Source: DESIGN §8; Ray's actors.
        """
        return self._make_actor({}, cls, args, kwargs)

    def _make_actor(self, options: Mapping[str, Any], cls: Callable[..., Any], args: Any, kwargs: Any) -> ActorProxy:
        from dpool._core.actor_bound import SHUT_DOWN, BoundActors
        from dpool.actor import make

        self._pool.check_open()
        if self._env:
            options = {"env": self._env, **options}
        proxy, held = make(cls, options, args, kwargs)
        if held is None:
            return proxy
        with self._close_lock:
            if self._actors is None:
                self._actors = BoundActors()
            self._actors.add(held)
            late = self._shutdown
        if late:  # meanwhile, in another thread
            self._actors.kill(SHUT_DOWN)
            self._pool.check_open()
        return proxy

    def options(
        self,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        name: str = "",
        num_cpus: float = 0,
        num_gpus: float = 0,
        memory: float = 0,
        resources: Mapping[str, float] | None = None,
        scheduling_strategy: Any = None,
        **of_actors: Any,
    ) -> View:
        """The same executor with other options for the tasks submitted, or the actors made, through it.

        Args:
            timeout: seconds a task may run; then its worker is killed and it raises `dpool.errors.TaskTimeout`.
            max_retries: see `Executor`.
            name: what errors and logs call the task; or by which `dpool.get_actor` finds the actor.
            num_cpus, num_gpus, memory, resources: what a task holds while it runs, or an actor as long as it lives
                (fractions allowed, memory in bytes); it waits until that is free. GPUs are shown to it through
                CUDA_VISIBLE_DEVICES.
            scheduling_strategy: where it runs in a cluster: "SPREAD", `dpool.NodeAffinity`, a placement group; see
                `dpool.remote`.
            of_actors: the other options of an actor: `get_if_exists`, `lifetime`, `max_restarts`, `max_task_retries`,
                `max_pending_calls`, `max_concurrency`, `env`; see `dpool.remote(cls).options`. A detached actor does
                not end with the executor.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be greater than 0 seconds, not {timeout!r}")
        if max_retries is not None:
            _check_retries(max_retries)
        shape: tuple[tuple[str, int], ...] = ()
        if num_cpus or num_gpus or memory or resources:
            from dpool._core.logic.resources import shape as make_shape

            shape = make_shape(num_cpus=num_cpus, num_gpus=num_gpus, memory=memory, **(resources or {}))
        if scheduling_strategy is not None:
            from dpool._core.strategies import check, placed

            shape = placed(shape, check(scheduling_strategy))
            of_actors = {**of_actors, "scheduling_strategy": scheduling_strategy}
        retries = self._route.max_retries if max_retries is None else max_retries
        both = {"name": name, "num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory, "resources": resources}
        for_actors = {**{option: value for option, value in both.items() if value}, **of_actors}
        for_tasks = {"timeout": timeout, "max_retries": max_retries}
        if of_actors:
            from dpool.actor import creation

            creation(for_actors)  # raises for what cannot be
        alone = bool(of_actors.keys() - {"scheduling_strategy"})
        return View(self, self._pool.make_route(shape, retries, timeout, name), for_tasks, for_actors, alone)

    def terminate_workers(self) -> None:
        """Shut down without waiting, cancel what is pending, and send SIGTERM to every worker."""
        self._stop(SIGTERM)

    def kill_workers(self) -> None:
        """Shut down without waiting, cancel what is pending, and send SIGKILL to every worker."""
        self._stop(SIGKILL)

    def _stop(self, number: int) -> None:
        with self._close_lock:
            self._shutdown = True
        self._finalizer.detach()
        self._pool.stop(number)
        if self._actors is not None:
            self._actors.kill()

    # -- what others read

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """For `isinstance(executor, ProcessPoolExecutor)`, by which programs ask whether it is a pool of processes."""
        standard: type = getattr(sys.modules.get("concurrent.futures.process"), "ProcessPoolExecutor", type(self))
        return standard

    @property
    def _max_workers(self) -> int:
        return self._pool.max_workers

    @property
    def _processes(self) -> Mapping[int, Any]:
        return self._pool.live_processes()

    @property
    def _broken(self) -> BaseException | None:
        return self._pool.broken

    def __repr__(self) -> str:
        return f"<dpool.Executor {self._pool.describe()}>"


class View:
    """An Executor with other options for its tasks and actors; see `Executor.options`."""

    def __init__(
        self,
        executor: Executor,
        route: Route,
        for_tasks: Mapping[str, Any],
        for_actors: Mapping[str, Any],
        actors_only: bool,
    ) -> None:
        self._executor = executor
        self._route = route
        self._for_tasks = for_tasks
        self._for_actors = for_actors
        self._actors_only = actors_only

    def actor(self, cls: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ActorProxy:
        """See `Executor.actor`."""
        wrong = [name for name, value in self._for_tasks.items() if value is not None]
        if wrong:
            raise TypeError(f"{', '.join(wrong)}: an option of tasks, not of actors")
        return self._executor._make_actor(self._for_actors, cls, args, kwargs)

    def _check_tasks(self) -> None:
        if self._actors_only:
            raise TypeError("these are options of actors, not of tasks")

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """See `Executor.submit`."""
        if self._actors_only:
            self._check_tasks()
        return self._executor._submit(self._route, fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[_T]:
        """See `Executor.map`."""
        self._check_tasks()
        if buffersize is None:
            iterables = self._executor._pool.share(iterables)
        return _map(self._executor._submit, self._route, fn, iterables, timeout, chunksize, buffersize, progress)


def _check_arguments(
    max_workers: Any, initializer: Any, max_tasks_per_child: Any, max_retries: Any, mp_context: Any
) -> None:
    if max_workers is not None:
        if not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an integer or None, not {max_workers!r}")
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if max_tasks_per_child is not None:
        if not isinstance(max_tasks_per_child, int):
            raise TypeError("max_tasks_per_child must be an integer")
        if max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")
        if mp_context is not None and mp_context.get_start_method(allow_none=False) == "fork":
            raise ValueError(
                "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
                "supply a different mp_context."
            )
    _check_retries(max_retries)


def _check_retries(max_retries: Any) -> None:
    if not isinstance(max_retries, int):
        raise TypeError(f"max_retries must be an integer, not {max_retries!r}")
    if max_retries < 0:
        raise ValueError(f"max_retries must not be negative, it is {max_retries}")


def _collected(pool: Pool) -> None:
    """The executor was garbage-collected without `shutdown`: its tasks are finished all the same."""
    pool.close_later()


# -- map


def _calls(iterables: tuple[Iterable[Any], ...], chunksize: int) -> Iterator[tuple[Any, Any]]:
    """The arguments of each task: of a call, or a chunk's items and how they are given to the function."""
    if chunksize == 1:
        return ((args, {}) for args in zip(*iterables, strict=False))
    if len(iterables) == 1:
        return ((items, MAP) for items in slices(iterables[0], chunksize))
    return ((items, STARMAP) for items in slices(zip(*iterables, strict=False), chunksize))


def _replaced(submit: Callable[..., Any]) -> Callable[..., Any]:
    """An executor's own `submit` in the form in which `_map` calls it."""

    def called(route: Route, fn: Any, args: Any, kwargs: Any) -> _Called:
        if kwargs == MAP:
            return _Called(submit(_run_chunk, fn, 1, *args))
        if kwargs == STARMAP:
            return _Called(submit(_run_chunk, fn, len(args[0]), *itertools.chain.from_iterable(args)))
        return _Called(submit(fn, *args))

    return called


def _run_chunk(fn: Callable[..., Any], width: int, *values: Any) -> list[Any]:
    """The task of a chunk: `fn` with so many of the values at a time; futures among them came as values."""
    return [fn(*values[at : at + width]) for at in range(0, len(values), width)]


class _Called:
    """A future whose result comes after its callbacks, so that a bar which these move is at its end when `map` is."""

    __slots__ = ("called", "future")
    wait_s = 1.0
    """For `map` in a callback, whose thread is the one that would call."""

    def __init__(self, future: Any) -> None:
        self.future = future
        self.called = called = threading.Lock()
        called.acquire()
        future.add_done_callback(lambda _: called.release())

    def _take(self, timeout: float | None = None) -> Any:
        try:
            return getattr(self.future, "_take", self.future.result)(timeout)
        finally:
            if self.future.done():
                self.called.acquire(timeout=self.wait_s)
            del self

    def cancel(self) -> bool:
        cancelled: bool = self.future.cancel()
        return cancelled


def _map(
    submit: Any,
    route: Any,
    fn: Any,
    iterables: Any,
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
    progress: bool,
) -> Iterator[Any]:
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    check_buffersize(buffersize)
    until = None if timeout is None else monotonic() + timeout
    total = length(*iterables) if progress else None
    calls = _calls(iterables, chunksize)
    first = itertools.islice(calls, buffersize) if buffersize is not None else calls
    futures = deque(submit(route, fn, args, kwargs) for args, kwargs in first)
    more = (submit(route, fn, args, kwargs) for args, kwargs in calls)
    results = _results(futures, more if buffersize is not None else iter(()), until)
    next(results)  # into its `try`: dropped from now on, it cancels
    if chunksize > 1:
        results = _unchunked(results)
    if progress:
        from dpool._core.progress import with_progress

        return with_progress(results, total)
    return results


def _results(futures: deque[Any], more: Iterator[Any], until: float | None) -> Iterator[Any]:
    """None, then the results in order, none kept here; whatever ends the iteration cancels the rest."""
    try:
        yield None
        while futures:
            futures.extend(itertools.islice(more, 1))
            yield _take(futures.popleft(), until)
    finally:
        for future in futures:
            future.cancel()


def _unchunked(results: Iterator[Any]) -> Iterator[Any]:
    """The items of chunks, none kept here."""
    for chunk in results:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _take(future: Any, until: float | None) -> Any:
    """The result, with no reference to it left behind; what was not taken in time is cancelled."""
    try:
        return future._take() if until is None else future._take(max(0.0, until - monotonic()))
    finally:
        future.cancel()
        del future


# -- the reusable executor


class ReusableExecutor(Executor):
    """What `get_reusable_executor` returns: an Executor whose `shutdown` may kill the workers, as loky's."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False) -> None:
        """See `Executor.shutdown`; `kill_workers`: do not wait for running tasks, end their workers."""
        if kill_workers:
            self.kill_workers()
        Executor.shutdown(self, wait, cancel_futures=cancel_futures)


class _Reusable:
    """The one executor of `get_reusable_executor`."""

    lock = threading.RLock()
    executor: ReusableExecutor | None = None
    arguments: tuple[Any, ...] = ()


def get_reusable_executor(
    max_workers: int | None = None,
    context: Any = None,
    timeout: float | None = 10,
    kill_workers: bool = False,
    reuse: bool | str = "auto",
    job_reducers: Any = None,
    result_reducers: Any = None,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    env: Mapping[str, str] | None = None,
) -> ReusableExecutor:
    """The executor that this process shares, made or resized as asked for.

    Args:
        max_workers: how many workers; None: as many as before, or as there are CPUs.
        timeout: seconds after which an idle worker leaves.
        kill_workers: if the present executor must be replaced, kill its workers instead of waiting for their tasks.
        reuse: "auto": reuse if the other arguments are the same; True: in any case; False: make a new one.
        context, job_reducers, result_reducers: accepted for compatibility.

    Source: loky's function of this name.
    """
    with _Reusable.lock:
        executor = _Reusable.executor
        if max_workers is None:
            if reuse is True and executor is not None:
                max_workers = executor._max_workers
            else:
                from loky import cpu_count

                max_workers = cluster_cpus() or int(cpu_count())
        elif max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, got {max_workers}.")
        arguments = (timeout, initializer, initargs, dict(env) if env else None)
        if executor is not None:
            usable = not executor._shutdown and executor._broken is None
            same = reuse is True or (reuse == "auto" and arguments == _Reusable.arguments)
            if usable and same:
                if max_workers != executor._max_workers:
                    executor._pool.resize(max_workers)
                return executor
            if kill_workers:
                executor.kill_workers()
            executor.shutdown(wait=True)
        executor = ReusableExecutor(max_workers, None, initializer, initargs, idle_timeout=timeout, env=env)
        _Reusable.executor, _Reusable.arguments = executor, arguments
        return executor


if sys.platform != "linux":
    raise ImportError(f"dpool runs on Linux; this is {sys.platform}")
