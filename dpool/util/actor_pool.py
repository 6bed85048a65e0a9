"""`ActorPool`: work for several actors, each of which gets the next piece when it has done one.

```
 submit ─► waits for an idle actor ─► its Future, numbered ─► get_next (in order), get_next_unordered
```

One thread. Source: Ray's `ray.util.ActorPool`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dpool._core.future import Future
from dpool.errors import ActorDied
from dpool.tasks import wait

Call = Callable[[Any, Any], "Future[Any]"]


class ActorPool:
    """Actors that share work. `fn` is always a function of an actor and a value that makes a call and returns its
    Future: `lambda actor, value: actor.double.remote(value)`.

    Args:
        actors: the first ones; `push` adds others.

    An actor that dies leaves the pool; whoever takes the result of its call gets `ActorDied`.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: list[Any] = list(actors)
        self._running: dict[Future[Any], tuple[int, Any]] = {}
        """Future → its number, and the actor, until that is idle again."""
        self._futures: dict[int, Future[Any]] = {}
        """By their numbers; those whose values have not been taken."""
        self._waiting: deque[tuple[Call, Any]] = deque()
        self._submitted = 0
        self._next = 0

    def submit(self, fn: Call, value: Any) -> None:
        """Have `fn(actor, value)` called, now or when an actor is idle."""
        self._waiting.append((fn, value))
        self._start()

    def map(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """Submit all; yields the results in the order of `values`. What was submitted before is dropped."""
        return self._results(fn, values, self.get_next)

    def map_unordered(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """Submit all; yields the results as they come."""
        return self._results(fn, values, self.get_next_unordered)

    def _results(self, fn: Call, values: Iterable[Any], get: Callable[[], Any]) -> Iterator[Any]:
        self._idle += [actor for _, actor in self._running.values()]
        self._running.clear()
        self._futures.clear()
        self._waiting.clear()
        for value in values:
            self.submit(fn, value)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield get()

        return results()

    def has_next(self) -> bool:
        """Whether there are results to take, now or later."""
        return bool(self._futures or self._waiting)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission, or what its task raised.

        StopIteration if there is none, TimeoutError after `timeout` seconds; `ignore_if_timedout`: then that result is
        passed over.
        """
        self._check()
        while self._next not in self._futures:
            self._next += 1
        return self._take(self._futures[self._next], timeout, ignore_if_timedout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The first result that there is; otherwise as `get_next`."""
        self._check()
        futures = list(self._futures.values())
        ready, rest = wait(futures, num_returns=1, timeout=timeout)
        return self._take((ready or rest)[0], 0, ignore_if_timedout)

    def _check(self) -> None:
        if not self.has_next():
            raise StopIteration("no more results to get")
        if not self._futures:
            raise RuntimeError("there is work, but the pool has no actor (any more): push one")

    def _take(self, future: Future[Any], timeout: float | None, ignore: bool) -> Any:
        if not wait([future], timeout=timeout)[0] and not ignore:
            raise TimeoutError("timed out waiting for result")
        number, actor = self._running.pop(future)
        del self._futures[number]
        done = future.done()
        if not (done and isinstance(future.exception(), ActorDied)):  # it has left the pool
            self._idle.append(actor)
        self._start()
        if not done:
            raise TimeoutError("timed out waiting for result; it is passed over")
        return future.result()

    def _start(self) -> None:
        while self._waiting and self._idle:
            fn, value = self._waiting.popleft()
            actor = self._idle.pop()
            try:
                future = fn(actor, value)
            except BaseException:
                self._idle.append(actor)
                raise
            self._running[future] = self._submitted, actor
            self._futures[self._submitted] = future
            self._submitted += 1

    def has_free(self) -> bool:
        """Whether an actor is idle and nothing waits for one."""
        return bool(self._idle and not self._waiting)

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool; None if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor. ValueError if it is in the pool."""
        if actor in self._idle or any(actor == busy for _, busy in self._running.values()):
            raise ValueError("the actor belongs to the pool already")
        self._idle.append(actor)
        self._start()
