"""`@dpool.remote` on functions: tasks of the process's own task pool, which hold resources while they run.

```
 f.remote(x) ─► task pool (one in each process that submits) ─► lane of its shape ─► workers, leased while there is work
      └─► Future, several (num_returns=2), or Stream (num_returns="streaming")
```
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._core.context import here
from dpool._core.frames import STARTED, STREAM
from dpool._core.future import CANCELLED_AND_NOTIFIED, FINISHED, RUNNING, Future
from dpool._core.logic.resources import shape as make_shape
from dpool._core.runtime import open_runtime
from dpool._core.serialize import label_of
from dpool._core.stream import WINDOW, WINDOW_BYTES, Flow, Stream

if TYPE_CHECKING:
    from dpool._core.executor_pool import ExecutorPool
    from dpool._core.lane import Route
    from dpool._core.messages import Shape

STREAMING = ("streaming", "dynamic")
RAYS_WINDOW = "_generator_backpressure_num_objects"


class TaskOptions(NamedTuple):
    """How tasks want to be run; see `dpool.remote`."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory: float = 0
    resources: tuple[tuple[str, float], ...] = ()
    num_returns: int | str = 1
    max_retries: int = 3
    retry_exceptions: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    name: str = ""
    env: tuple[tuple[str, str], ...] = ()
    max_calls: int = 0
    scheduling_strategy: Any = None
    stream_window: int = WINDOW
    stream_window_bytes: int = WINDOW_BYTES

    @property
    def shape(self) -> Shape:
        """What a task holds while it runs."""
        shape = make_shape(num_cpus=self.num_cpus, num_gpus=self.num_gpus, memory=self.memory, **dict(self.resources))
        if self.scheduling_strategy is None:
            return shape
        from dpool._core.strategies import placed

        return placed(shape, self.scheduling_strategy)

    def changed(self, options: Mapping[str, Any]) -> TaskOptions:
        """With other options; TypeError, ValueError for what cannot be."""
        return self._replace(**_checked(options))


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    options = with_window(options)
    unknown = options.keys() - TaskOptions._fields
    if unknown or "env" in options:
        from dpool._core import runtime_env

        options = runtime_env.translated(options)
        unknown = options.keys() - TaskOptions._fields
    if unknown:
        raise TypeError(
            f"unknown option{'s' if len(unknown) > 1 else ''} {', '.join(sorted(unknown))}; "
            f"there are {', '.join(TaskOptions._fields)}"
        )
    found = dict(options)
    if "resources" in found:
        found["resources"] = tuple(sorted((found["resources"] or {}).items()))
    if "retry_exceptions" in found:
        found["retry_exceptions"] = _exceptions(found["retry_exceptions"])
    for name in ("num_cpus", "num_gpus", "memory"):
        if found.get(name, 0) is None:
            found[name] = TaskOptions._field_defaults[name]
    returns = found.get("num_returns", 1)
    if returns not in STREAMING and (isinstance(returns, bool) or not isinstance(returns, int) or returns < 0):
        raise ValueError(f'num_returns must be a number, not negative, or "streaming", not {returns!r}')
    retries = found.get("max_retries", 0)
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < -1:
        raise ValueError(f"max_retries must be a number, -1 for as often as it takes, not {retries!r}")
    if retries == -1:
        found["max_retries"] = 1 << 60
    calls = found.get("max_calls", 0)
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 0:
        raise ValueError(f"max_calls must be a number, 0 for as many as there are, not {calls!r}")
    timeout = found.get("timeout")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be greater than 0 seconds, not {timeout!r}")
    if found.get("scheduling_strategy") is not None:
        from dpool._core.strategies import check

        found["scheduling_strategy"] = check(found["scheduling_strategy"])
    TaskOptions(**found).shape  # noqa: B018  raises for amounts that cannot be
    return found


def with_window(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of a stream checked, by the names that they have here: Ray's for the number of items is taken
    as well. ValueError for what cannot be; None is the default, -1 stands for no limit.
    """
    found = dict(options)
    if RAYS_WINDOW in found:
        found.setdefault("stream_window", found.pop(RAYS_WINDOW))
    for name, default in (("stream_window", WINDOW), ("stream_window_bytes", WINDOW_BYTES)):
        if found.get(name, 1) is None:
            found[name] = default
        limit = found.get(name, 1)
        if isinstance(limit, bool) or not isinstance(limit, int) or (limit < 1 and limit != -1):
            raise ValueError(f"{name} must be at least 1, or -1 for no limit, not {limit!r}")
    return found


def _exceptions(given: Any) -> tuple[type[BaseException], ...]:
    if isinstance(given, bool):
        return (Exception,) if given else ()
    kinds = tuple(given) if isinstance(given, Iterable) else (given,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"retry_exceptions takes exception classes, not {kind!r}")
    return kinds


class RemoteFunction:
    """A function whose calls are tasks: `f.remote(...)`. Source: Ray's remote functions."""

    __wrapped__: Callable[..., Any]
    """The function itself."""

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        self._function = function
        self._options = options
        self._bound: tuple[int, ExecutorPool, Route] | None = None
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"{self._function.__name__} is a remote function: call {self._function.__name__}.remote(...), "
            f"or {self._function.__name__}.__wrapped__(...) to run it here"
        )

    def options(self, **options: Any) -> RemoteFunction:
        """The same function with other options, as for `dpool.remote`."""
        return RemoteFunction(self._function, self._options.changed(options))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a call. Returns its Future; a list of `num_returns` Futures; or a Stream of them.

        Futures and ObjectRefs among the arguments arrive as their values: the task begins when they are there.
        """
        bound = self._bound
        if bound is None or bound[0] != os.getpid() or bound[1].state != "open":
            bound = self._bind()
        options = self._options
        returns = options.num_returns
        flow = None
        if returns in STREAMING:
            flow = Flow()
            call = args, kwargs, options.stream_window, options.stream_window_bytes
            future = bound[1].submit(bound[2], self._function, call, STREAM, flow)
        else:
            future = bound[1].submit(bound[2], self._function, args, kwargs)
        if here.counters is not None:
            future._more().parent = here.counters[STARTED]
        if flow is not None:
            return Stream(future, flow)
        if returns == 1:
            return future
        return parts_of(future, int(returns))

    def _bind(self) -> tuple[int, ExecutorPool, Route]:
        runtime: Any = open_runtime(None)
        options = self._options
        pool = runtime.task_pool(options.env, options.max_calls)
        shape = options.shape
        route = pool.make_route(
            shape,
            options.max_retries,
            options.timeout,
            options.name or label_of(self._function),
            inline=shape == _ONE_CPU
            and options.num_returns not in STREAMING
            and not options.env
            and not options.max_calls,
            retry_on=options.retry_exceptions,
        )
        self._bound = os.getpid(), pool, route
        return self._bound

    def __reduce__(self) -> Any:
        name = getattr(self, "__qualname__", "")
        if self.__module__ not in ("__main__", "__mp_main__"):
            found: Any = sys.modules.get(self.__module__)
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is self:
                return name  # a global that the other side can import
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<dpool.remote function {self._function.__qualname__}>"


_ONE_CPU = make_shape(num_cpus=1)


def parts_of(whole: Future[Any], count: int) -> list[Future[Any]]:
    """Futures for what a task returns: as many values."""
    parts: list[Future[Any]] = [Future(whole._route) for _ in range(count)]
    for part in parts:
        part._state = RUNNING
        part._more().whole = whole
    whole.add_done_callback(partial(_split, parts))
    return parts


def _split(parts: list[Future[Any]], whole: Future[Any]) -> None:
    if whole.cancelled():
        for part in parts:
            part._settle(CANCELLED_AND_NOTIFIED)
        return
    error = whole.exception()
    values: Any = ()
    if error is None:
        values = whole._take()
        try:
            values = tuple(values)
        except TypeError:
            error = TypeError(f"the task returned {type(values).__name__}, not {len(parts)} values (num_returns)")
        else:
            if len(values) != len(parts):
                error = ValueError(f"the task returned {len(values)} values, not {len(parts)} (num_returns)")
    for at, part in enumerate(parts):
        part._settle(FINISHED, None if error is not None else values[at], error)
