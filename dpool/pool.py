"""`dpool.Pool`: `multiprocessing.Pool`, faster, and without its ways to hang.

```
 apply, map, starmap, … ─► slices of the iterable ─► the runtime: one task for each ─► AsyncResult, MapResult
 imap, imap_unordered   ─► Feed: a window of tasks ─► IMapIterator, IMapUnorderedIterator
```

The interface is the standard library's, and its tests of Pool run against this one (`compat_tests`);
`docs/semantics.md` lists the differences. Nothing here knows which runtime serves it.
"""

from __future__ import annotations

import operator
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dpool._core.iterables import IN_MEMORY, check_buffersize, is_array, length, slices
from dpool._core.pool_feed import BULK, Feed, IMapIterator, IMapUnorderedIterator, bulk_of, submitting
from dpool._core.pool_results import TERMINATE, AsyncResult, MapResult, as_multiprocessing
from dpool._core.runtime import MAP, STARMAP, cluster_cpus, open_runtime

if TYPE_CHECKING:
    from dpool._core.runtime import Pool as Inner

__all__ = ["ApplyResult", "AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool"]

INIT, RUN, CLOSE = "INIT", "RUN", "CLOSE"
ApplyResult = AsyncResult
UNDER_WAY = 3
"""Tasks with large arguments for each worker: one that runs, one behind it, one being written."""


class Pool:
    """Runs calls in worker processes; a `multiprocessing.pool.Pool`.

    Args:
        processes: how many workers; by default `os.process_cpu_count()` (before Python 3.13 `os.cpu_count()`), in a
            cluster one for each of its CPUs, and more when machines join.
        initializer: called once in every worker, before its first task, with `initargs`. If it raises five times in a
            row, what waits fails with `dpool.errors.InitializerFailed`, and the next call is another attempt.
        initargs: arguments of `initializer`.
        maxtasksperchild: replace a worker after so many tasks. A chunk of `map` or `imap` is one task.
        context: accepted for compatibility. Workers are always forked from a clean process of their own.
        address: the cluster, as for `dpool.init`; one program has one.
        env: variables to set in the workers before anything is imported there.
        max_retries: run a task again, up to so many times, if its worker dies. The function must then be idempotent.

    Raises:
        ValueError, TypeError: an argument cannot be.

    A worker that dies is replaced, and the call that it ran raises `dpool.errors.WorkerCrashed`. Source: the standard
    library's `multiprocessing.pool.Pool`.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        address: str | None = None,
        env: Mapping[str, str] | None = None,
        max_retries: int = 0,
    ) -> None:
        self._state = INIT
        everywhere = cluster_cpus() if processes is None and address is None else 0
        processes = everywhere or _cpu_count() if processes is None else operator.index(processes)
        _check_arguments(processes, initializer, maxtasksperchild, max_retries)
        self._processes = processes
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._maxtasksperchild = maxtasksperchild
        self._ctx = context
        self._feeds: set[Feed | MapResult] = set()
        """Those of whose iterables something is left to submit."""
        self._inner: Inner = open_runtime(address).open_pool(
            max_workers=None if everywhere else processes,
            initializer=initializer,
            initargs=self._initargs,
            max_tasks_per_child=maxtasksperchild,
            strict=False,
            all_at_once=True,
            idle_timeout_s=None,
            env=dict(env) if env else None,
            label="Pool",
            standing=True,
        )
        self._route = self._inner.make_route((), max_retries, None, "")
        self._submit = self._inner.submit
        self._finalizer = weakref.finalize(self, _collected, self._inner)
        self._finalizer.atexit = False
        self._inner.populate()
        self._state = RUN

    # -- one call

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}) -> Any:
        """`func(*args, **kwds)` in a worker: its value, or what it raised."""
        self._check_running()
        future = self._submit(self._route, func, *_arguments(args, kwds))
        try:
            return future._take()
        except BaseException as error:
            if future._exception is not error:  # Ctrl-C, or it was cancelled by that
                raise
            proper = as_multiprocessing(error)
            if proper is error:
                raise
        finally:
            del future  # else the traceback and the future hold each other
        raise proper

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """The same without waiting.

        `callback(value)` or `error_callback(exception)` is called once, in a thread of the pool's own, before the
        result is `ready`. What a callback raises is logged.
        """
        self._check_running()
        future = self._submit(self._route, func, *_arguments(args, kwds))
        result = AsyncResult(self, self._inner, (future,), callback, error_callback)
        result.call_back()
        return result

    # -- many calls

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[Any]:
        """`[func(item) for item in iterable]`, in parallel.

        Args:
            chunksize: items that travel as one task; by default so many that each worker gets four tasks, and fewer
                where the items are large. progress: show a bar (tqdm if it is installed) on standard error, if that
                is a terminal.

        Raises the exception of the call that failed first, when all have ended. ValueError if `chunksize` is below 1.
        """
        return _shown(self._map_async(func, iterable, MAP, chunksize), iterable, progress)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[Any]:
        """`[func(*item) for item in iterable]`, in parallel; see `map`."""
        return _shown(self._map_async(func, iterable, STARMAP, chunksize), iterable, progress)

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """`map` without waiting; for the callbacks see `apply_async`."""
        return self._map_async(func, iterable, MAP, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """`starmap` without waiting; for the callbacks see `apply_async`."""
        return self._map_async(func, iterable, STARMAP, chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Any,
        iterable: Any,
        how: int,
        chunksize: int | None,
        callback: Any = None,
        error_callback: Any = None,
    ) -> MapResult:
        self._check_running()
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        count = len(iterable)
        (items,) = self._inner.share((iterable,))
        each = bulk_of(items)
        if chunksize is None:
            chunksize = -(-count // (4 * self._processes)) or 1
            if each * chunksize > BULK:
                chunksize = max(1, BULK // each)
        _check_chunksize(chunksize)
        chunked = chunksize > 1 or how == STARMAP
        calls = slices(items, chunksize) if chunked else zip(items)
        futures = submitting(self._submit, self._route, func, calls, how if chunked else {})
        result = MapResult(self, self._inner, callback, error_callback, chunked)
        most = UNDER_WAY * self._processes
        if each * min(chunksize, count) * most > BULK and count > chunksize * most:
            self._feeds.add(result)
            result.fill_slowly(futures, most, self._fed)
        else:
            result.fill(futures)
            result.call_back()
        return result

    # -- one after the other

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> IMapIterator:
        """An iterator of `func(item)` for each item, in order, whose calls begin at once.

        Args:
            chunksize: items that travel as one task.
            buffersize: tasks submitted and not yet yielded, at most; None: as many as keep the workers busy for some
                milliseconds, four for each at least. So neither an endless iterable nor a slow consumer fills memory.
            progress: see `map`.

        A call that raised raises in its turn, and the iterator goes on; an error of the iterable itself comes last.
        ValueError if `chunksize` or `buffersize` is below 1.
        """
        found: IMapIterator = self._imap(IMapIterator, func, iterable, chunksize, buffersize, progress)
        return found

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> IMapUnorderedIterator:
        """Like `imap`, each result as soon as it is there."""
        found: IMapUnorderedIterator = self._imap(
            IMapUnorderedIterator, func, iterable, chunksize, buffersize, progress
        )
        return found

    def _imap(
        self,
        kind: type[IMapIterator],
        func: Any,
        iterable: Any,
        chunksize: int,
        buffersize: int | None,
        progress: bool,
    ) -> Any:
        self._check_running()
        _check_chunksize(chunksize)
        check_buffersize(buffersize)
        in_memory = type(iterable) in IN_MEMORY or is_array(iterable)
        (items,) = self._inner.share((iterable,))
        chunked = chunksize > 1
        futures = submitting(self._submit, self._route, func, _calls(items, chunksize), MAP if chunked else {})
        feed = Feed(self, self._inner, futures, chunked, buffersize)
        self._feeds.add(feed)
        results = kind(feed)
        feed.start(in_memory)
        if progress:
            from dpool._core.progress import with_progress

            return with_progress(results, length(iterable))
        return results

    def _fed(self, feed: Feed | MapResult) -> None:
        """All of an iterable has been submitted."""
        self._feeds.discard(feed)
        self._close_inner()

    # -- the end

    def close(self) -> None:
        """No more calls; what was asked for is finished, then the workers leave. Does not wait: see `join`."""
        if self._state == RUN:
            self._state = CLOSE
            self._close_inner()

    def _close_inner(self) -> None:
        if self._state == CLOSE and not self._feeds:
            self._inner.close()

    def terminate(self) -> None:
        """End at once: what has not ended never will, and whoever waits for it gets `dpool.errors.ExecutorBroken`.
        Returns when the workers are gone.
        """
        self._state = TERMINATE
        for feed in list(self._feeds):
            feed.stop()
        self._finalizer.detach()
        self._inner.terminate()
        if self._inner.may_wait():  # else a signal handler calls, in the middle of something
            self._inner.wait_gone()

    def join(self) -> None:
        """Wait until all calls have ended and the workers are gone; ValueError before `close` or `terminate`."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        for feed in list(self._feeds):
            feed.finish()
        self._close_inner()
        self._inner.wait_gone()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self.terminate()

    def __del__(self, _warn: Any = warnings.warn, _run: str = RUN) -> None:
        if self._state == _run:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # -- what others read

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """For `isinstance(pool, multiprocessing.pool.Pool)`, by which programs tell a pool from an executor."""
        standard: type = getattr(sys.modules.get("multiprocessing.pool"), "Pool", type(self))
        return standard

    @property
    def _pool(self) -> list[Any]:
        """The workers that live; waits for those that are being started."""
        return list(self._inner.live_processes().values())

    def _repopulate_pool(self) -> None:
        """Start what is missing; workers that die are replaced anyway."""
        self._inner.populate()

    def __repr__(self) -> str:
        cls = type(self)
        inner = getattr(self, "_inner", None)
        size = 0 if inner is None else len(inner.processes)
        if self._state == RUN:
            size = self._processes  # those that are being started, or replaced, too
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={size}>"


def _arguments(args: Any, kwds: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args if type(args) is tuple else tuple(args), kwds if type(kwds) is dict else dict(kwds)


def _collected(inner: Inner) -> None:
    """The pool was garbage-collected while it ran: nobody waits for a result of it any more."""
    inner.close_later()


def _cpu_count() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


def _check_arguments(processes: Any, initializer: Any, maxtasksperchild: Any, max_retries: Any) -> None:
    if processes < 1:
        raise ValueError("Number of processes must be at least 1")
    if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
        raise ValueError("maxtasksperchild must be a positive int or None")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if not isinstance(max_retries, int) or max_retries < 0:
        raise ValueError(f"max_retries must be an integer, not negative, and not {max_retries!r}")


def _check_chunksize(chunksize: int) -> None:
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")


def _calls(items: Any, chunksize: int) -> Iterator[Any]:
    """The arguments of each task; an iterable that cannot be iterated raises here, as in the standard library."""
    return slices(items, chunksize) if chunksize > 1 else zip(items)


def _shown(result: MapResult, iterable: Any, progress: bool) -> list[Any]:
    """The value, with a bar meanwhile."""
    if progress:
        from dpool._core.progress import with_progress

        for _ in with_progress(result.items_ended(), length(iterable)):
            continue
    found: list[Any] = result.get()
    return found
