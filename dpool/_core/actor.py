"""Actors as a process holds them: made, found by name, pickled, let go.

```
 ActorProxy ─► Held (one in each process and actor) ─┬─ Handle: while one lives anywhere, the actor does
                                                     └─ ActorPool: the link to it, made at the first call
```

What waits for an answer keeps the Held, so an actor whose last proxy goes first does what it was asked to.
"""

from __future__ import annotations

import inspect
import pickle
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._core import storage
from dpool._core.actor_host import ASYNC, SYNC, THREADS
from dpool._core.arguments import FutureInside, with_results
from dpool._core.messages import ActorCreate, ActorFind, ActorKill
from dpool._core.objectref import handles_of
from dpool._core.runtime import open_runtime
from dpool._core.serialize import Shipped
from dpool._core.serialize_reducers import BY_TYPE
from dpool._core.storage import Stored
from dpool._core.stream import WINDOW, WINDOW_BYTES
from dpool.errors import ControlStoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._core.actor_pool import ActorPool
    from dpool._core.messages import Shape
    from dpool._core.serialize_pickler import Pickler
    from dpool._core.store_client import Handle

MOST_COROUTINES = 1000
"""Calls of an actor with `async def` methods that run at a time, unless `max_concurrency` says otherwise."""


class Method(NamedTuple):
    """What is known of a method without asking the actor."""

    num_returns: int | str = 1
    read_only: bool = False
    stream_window: int = WINDOW
    stream_window_bytes: int = WINDOW_BYTES


class Meta(NamedTuple):
    """What makes a proxy, beside the id; travels with it."""

    label: str
    methods: dict[str, Method]
    many: bool
    max_task_retries: int
    max_pending_calls: int


class Creation(NamedTuple):
    """How an actor is to be made; see `dpool.ActorProxy`."""

    shape: Shape = ()
    name: str = ""
    get_if_exists: bool = False
    detached: bool = False
    max_restarts: int = 0
    max_task_retries: int = 0
    max_pending_calls: int = 0
    max_concurrency: int = 0
    env: tuple[tuple[str, str], ...] = ()


class Held:
    """This process holds an actor."""

    __slots__ = ("__weakref__", "_pool", "actor", "handle", "meta")

    def __init__(self, actor: bytes, handle: Handle, meta: Meta) -> None:
        self.actor = actor
        self.handle = handle
        self.meta = meta
        self._pool: ActorPool | None = None

    def pool(self) -> ActorPool:
        """The link to the actor."""
        pool = self._pool
        if pool is None or pool.state != "open":
            storage.check_process(self.handle)
            runtime: Any = open_runtime(None)
            pool = runtime.connect_actor(self)
        return pool

    def linked(self, pool: ActorPool) -> None:
        """This is the link now."""
        self._pool = pool
        weakref.finalize(self, _let_go, pool).atexit = False


def _let_go(pool: ActorPool) -> None:
    """The last proxy of this process is gone, and nothing is left to be answered."""
    pool.leaving = True
    pool.later(pool.terminate)


class _Known:
    """Those that this process holds, by their ids."""

    held: weakref.WeakValueDictionary[bytes, Held] = weakref.WeakValueDictionary()  # noqa: RUF012


def _hold(actor: bytes, handle: Handle, meta: Meta) -> Held:
    known = _Known.held.get(actor)
    if known is not None and known.handle.pid == handle.pid:
        return known
    held = _Known.held[actor] = Held(actor, handle, meta)
    return held


def methods_of(cls: type) -> dict[str, Method]:
    """Its public methods, and `__call__`."""
    found = {}
    for name in dir(cls):
        if name.startswith("__") and name != "__call__":
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if name != "__call__" and not callable(value):
            continue
        if name == "__call__" and value is type.__call__:
            continue
        found[name] = getattr(value, "__dpool_method__", Method())
    return found


def _mode(cls: type, most: int) -> tuple[int, int]:
    """How its calls run, and how many at a time."""
    if any(
        inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)
        for name in dir(cls)
        if inspect.isfunction(value := inspect.getattr_static(cls, name))
    ):
        return ASYNC, most or MOST_COROUTINES
    return (THREADS, most) if most > 1 else (SYNC, 1)


def create(cls: type, how: Creation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Held, bool]:
    """Make an actor; returns before it is constructed. False: there was one of this name.

    Raises:
        ValueError: the name is taken.
        ControlStoreError: the store, shared with other nodes, did not answer, and the name may be another node's.
        PicklingError, TypeError, …: whatever pickling the class or the arguments raised.
    """
    runtime: Any = open_runtime(None)
    mode = _mode(cls, how.max_concurrency)
    meta = Meta(cls.__qualname__, methods_of(cls), mode[0] != SYNC, how.max_task_retries, how.max_pending_calls)
    name = how.name.partition("\0")[0]  # behind that stands its namespace
    what = (*mode, meta, name)
    try:
        export, call = runtime.exporter.prepare(cls, (what, *args), kwargs)
    except FutureInside:
        args, kwargs = with_results(args, kwargs)  # waits for them
        export, call = runtime.exporter.prepare(cls, (what, *args), kwargs)
    needs = [*export.keep, *(one for each in export.requires for one in each.keep)]  # what the class refers to
    needs += call.keep if isinstance(call, Stored) else ()
    keep = [handle.obj for one in needs for handle in handles_of(one)]
    wire = call.wire if isinstance(call, Stored) else call
    frame = pickle.dumps((Shipped().missing(export), 0 if export.inline else export.number, wire), 5)

    def ask(client: Any) -> tuple[Any, Handle]:
        setup = runtime.setup(1, dict(how.env))
        actor = client.new_id()
        made = (actor, how.name, how.shape, how.max_restarts, how.detached, how.get_if_exists)
        handle, found = client.ask_for_actor(
            lambda request: ActorCreate(request, *made, frame, keep, pickle.dumps(meta), setup)
        )
        return found, handle

    found, handle = storage.again(ask)
    if found.why:
        raise ControlStoreError(found.why)
    if not found.actor:
        raise ValueError(f"there is an actor of the name {name!r} already; get_if_exists= would return that one")
    runtime.stays |= how.detached
    return _hold(found.actor, handle, pickle.loads(found.meta) if found.meta else meta), not found.meta


def find(name: str) -> Held | None:
    """The actor of that name."""
    open_runtime(None)
    handle, found = storage.again(lambda client: client.ask_for_actor(lambda request: ActorFind(request, name)))
    if found.why:
        raise ControlStoreError(found.why)
    return _hold(found.actor, handle, pickle.loads(found.meta)) if found.actor else None


def kill(held: Held, restart: bool) -> None:
    """End its process now. What this process calls afterwards fails, also if the actor could still answer it."""
    why = "it was killed (kill)"
    storage.client().say(ActorKill(held.actor, restart, why))
    if not restart:
        held.pool().gone(pickle.dumps((why, None)))


def received(actor: bytes, meta: Meta) -> Held:
    """In the process that unpickles a proxy."""
    known = _Known.held.get(actor)
    if known is not None:
        return known
    return _hold(actor, storage.client().hold([actor, 0, 0, 0, 0]), meta)


def escapes(held: Held) -> tuple[bytes, Meta]:
    """What a proxy travels as when somebody else than us pickles it, who may unpickle it at any time: the actor is held
    for good.
    """
    storage.client().escaped[held.handle.obj] = held.handle
    return held.actor, held.meta


def travels(pickler: Pickler, held: Held) -> tuple[bytes, Meta]:
    """The same in a pickle of ours."""
    pickler.keep.append(held.handle)
    return held.actor, held.meta


def register(kind: type, reduce: Callable[[Pickler, Any], Any]) -> None:
    """How dpool's own pickles contain proxies."""
    BY_TYPE[kind] = reduce
