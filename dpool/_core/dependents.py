"""Tasks whose arguments are futures: they wait here, and are submitted with the values.

```
 submit ─► FutureInside ─► add ─► … futures end … ─► Dependencies ─┬ Ready ─► prepared, queued
                                                                  └ Fail ──► fails as its future did
```

Threads: any; the pool's lock guards everything here. Futures end under no lock, wherever their results are read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dpool._core.arguments import futures_in, where_stored, with_results
from dpool._core.future import finish
from dpool._core.logic.dependency import Add, Cancelled, Dependencies, Fail, Failed, Ready, Resolved

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._core.actor_pool import ActorPool
    from dpool._core.executor_pool import ExecutorPool
    from dpool._core.future import Future


class Dependents:
    """Those of one pool; false while there are none."""

    def __init__(self, pool: ExecutorPool | ActorPool, prepare: Callable[..., tuple[Any, Any]]) -> None:
        self._pool = pool
        self._prepare = prepare
        self._waiting: dict[int, tuple[Future[Any], Any, Any, Any]] = {}
        self._dependencies = Dependencies()
        self._numbers = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def futures(self) -> list[Future[Any]]:
        """Of the tasks that wait."""
        return [entry[0] for entry in self._waiting.values()]

    def clear(self) -> None:
        """They are somebody else's to end."""
        self._waiting.clear()
        self._dependencies = Dependencies()  # what they waited for may end yet, and is of no interest

    def add(self, future: Future[Any], fn: Any, args: Any, kwargs: Any) -> None:
        """A task, or a chunk (see `runtime.Pool.submit`), with futures among its arguments."""
        needs = {id(need): need for need in futures_in(args, kwargs)}
        with self._pool.lock:
            self._numbers += 1
            number = self._numbers
            self._waiting[number] = (future, fn, args, kwargs)
            future._more().group = number
            self._follow(self._dependencies.handle(Add(number, tuple(needs))))
        for need in needs.values():
            need.add_done_callback(self._need_done)

    def cancelled(self, number: int) -> None:
        """One that waits was cancelled."""
        with self._pool.lock:
            if self._waiting.pop(number, None) is not None and self._dependencies.waits(number):
                self._dependencies.handle(Cancelled(number))

    def _need_done(self, need: Any) -> None:
        """A future that tasks wait for has ended."""
        failed = where_stored(need) is None and (need.cancelled() or need.exception() is not None)
        event = Failed(id(need)) if failed else Resolved(id(need))
        with self._pool.lock:
            self._follow(self._dependencies.handle(event), need)
        self._pool.run_deferred()
        self._pool.task_ended()

    def _follow(self, instructions: list[Any], need: Any = None) -> None:
        for instruction in instructions:
            if isinstance(instruction, Ready):
                self._pool.later(partial(self._now_ready, instruction.task))
            elif isinstance(instruction, Fail):
                future = self._waiting.pop(instruction.task)[0]
                self._pool.later(partial(finish, future, None, _failure(need)))

    def _now_ready(self, number: int) -> None:
        """All that the task waited for is there: it is submitted with the values."""
        with self._pool.lock:
            if number not in self._waiting:
                return  # cancelled meanwhile
            future, fn, args, kwargs = self._waiting[number]
        try:
            future._export, future._call = self._prepare(fn, *with_results(args, kwargs))
        except BaseException as error:
            finish(future, None, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._pool.dependent_ready(future)
        finally:
            with self._pool.lock:
                self._waiting.pop(number, None)
        self._pool.task_ended()


def _failure(need: Any) -> Any:
    """What a task fails with that waited for this future."""
    from concurrent.futures import CancelledError

    if need.cancelled():
        return CancelledError("a future among the task's arguments was cancelled")
    return need.exception()
