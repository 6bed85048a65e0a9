"""`dpool.ActorProxy`: an object that lives in a process of its own, and whose methods are called from anywhere.

```
 ActorProxy(Counter, 5) ─► a process: Counter(5)
 proxy.add(2)            blocks and returns the value, like a proxy of `multiprocessing.Manager`
 proxy.add.submit(2)     returns a Future at once; also spelled `.remote(2)`
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from dpool._core import actor as core
from dpool._core.actor import Creation, Method
from dpool._core.actor_methods import EVERY
from dpool._core.context import ActorExit, here
from dpool._core.frames import ATTRIBUTE, METHOD, STREAM
from dpool._core.future import Future
from dpool._core.logic.resources import shape as make_shape
from dpool._core.remote_function import STREAMING, parts_of, with_window
from dpool._core.stream import Flow, Stream

_OPTIONS = (
    "num_cpus", "num_gpus", "memory", "resources", "scheduling_strategy", "name", "get_if_exists", "lifetime",
    "max_restarts", "max_task_retries", "max_pending_calls", "max_concurrency", "env", "namespace",
)  # fmt: skip


def creation(options: Mapping[str, Any]) -> Creation:
    """Options of an actor, checked; see `ActorClass.options`."""
    unknown = options.keys() - set(_OPTIONS)
    if unknown or "env" in options:
        from dpool._core import runtime_env

        options = runtime_env.translated(options)
        unknown = options.keys() - set(_OPTIONS)
    if unknown:
        raise TypeError(f"unknown options {', '.join(sorted(unknown))}; an actor has {', '.join(_OPTIONS)}")
    given = {name: value for name, value in options.items() if value is not None}
    resources = dict(given.get("resources", {}))
    amounts = {name: given.get(name, 0) for name in ("num_cpus", "num_gpus", "memory")}
    lifetime = given.get("lifetime", "non_detached")
    if lifetime not in ("detached", "non_detached"):
        raise ValueError(f'lifetime is "detached" or None, not {lifetime!r}')
    for name, least in (("max_restarts", -1), ("max_task_retries", -1), ("max_pending_calls", -1)):
        _check_number(name, given.get(name, 0), least)
    _check_number("max_concurrency", given.get("max_concurrency", 1), 1)
    retries = given.get("max_task_retries", 0)
    shape = make_shape(**amounts, **resources)
    if "scheduling_strategy" in given:
        from dpool._core.strategies import check, placed

        shape = placed(shape, check(given["scheduling_strategy"]))
    return Creation(
        shape=shape,
        name=_spelled(given.get("name", ""), given.get("namespace")),
        get_if_exists=bool(given.get("get_if_exists", False)),
        detached=lifetime == "detached",
        max_restarts=given.get("max_restarts", 0),
        max_task_retries=1 << 60 if retries == -1 else retries,
        max_pending_calls=max(0, given.get("max_pending_calls", 0)),
        max_concurrency=given.get("max_concurrency", 0),
        env=given.get("env", ()),
    )


def _spelled(name: str, namespace: str | None) -> str:
    """An actor's name with its namespace, as the node knows it: names of different namespaces are different."""
    for what, given in (("name", name), ("namespace", namespace or "")):
        if not isinstance(given, str):
            raise TypeError(f"{what} must be a string, not {given!r}")
        if "\0" in given:
            raise ValueError(f"{what} must not contain a zero character: {given!r}")
    if not name:
        return ""
    if namespace is None:
        from dpool._core import runtime_env

        namespace = runtime_env.namespace()
    return f"{name}\0{namespace}" if namespace else name


def _check_number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")


class ActorProxy:
    """An actor: an object of `cls`, constructed with these arguments in a process of its own.

    Returns before it is constructed; the first call waits for that. `proxy.method(x)` blocks and returns the value,
    `proxy.method.submit(x)` or `.remote(x)` returns a Future; other attributes are read from the object. Calls of one
    process, through whichever proxy, begin in their order; `async def` methods run concurrently on one event loop. A
    proxy can be passed to tasks, stored, and sent to other actors; when the last one is gone, the actor ends, after it
    has done what it was asked to.

    If the actor's process dies, the call that it ran raises `dpool.errors.ActorDied`, and so do all later ones, unless
    it is restarted (`max_restarts`). For options see `ActorClass.options`, `dpool.remote(cls)`.

    Raises whatever pickling the class or its arguments raises; ValueError if a name is taken.
    Source: Ray's actors, and proxies of the standard library's `multiprocessing.Manager`.
    """

    __slots__ = ("__weakref__", "_dpool_held")
    _dpool_held: core.Held

    def __init__(self, cls: type, /, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_dpool_held", core.create(_checked_class(cls), Creation(), args, kwargs)[0])

    def __getattr__(self, name: str) -> Any:
        held = self._dpool_held
        method = held.meta.methods.get(name)
        if method is None and name in EVERY:
            return ActorMethod(held, name, Method())
        if method is not None:
            return ActorMethod(held, name, method)
        if name == "kill":  # unless its class has a method of this name
            return partial(_kill, held)
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"{held.meta.label} has no attribute {name!r} that a proxy offers")
        return _submit(held, name, ATTRIBUTE, (), {}).result()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"attributes of an actor can be read, not set: give it a method that sets {name!r}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """If the class has `__call__`."""
        if "__call__" not in self._dpool_held.meta.methods:
            raise TypeError(f"{self._dpool_held.meta.label} objects are not callable")
        return _submit(self._dpool_held, "__call__", METHOD, args, kwargs).result()

    if TYPE_CHECKING:

        def kill(self, *, restart: bool = False) -> None:
            """End its process now, whatever it does. `restart`: it may come back, as after a crash."""

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), "kill", *self._dpool_held.meta.methods})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorProxy) and other._dpool_held.actor == self._dpool_held.actor

    def __hash__(self) -> int:
        return hash(self._dpool_held.actor)

    def __repr__(self) -> str:
        return f"<dpool.ActorProxy of {self._dpool_held.meta.label} {self._dpool_held.actor.hex()[:12]}>"

    def __reduce__(self) -> Any:
        return _received, core.escapes(self._dpool_held)


def _reduce(pickler: Any, proxy: ActorProxy) -> Any:
    return _received, core.travels(pickler, proxy._dpool_held)


core.register(ActorProxy, _reduce)


def _received(actor: bytes, meta: core.Meta) -> ActorProxy:
    return _proxy(core.received(actor, meta))


def proxy_of(actor: bytes, meta: core.Meta) -> ActorProxy:
    """A proxy of an actor that somebody holds."""
    return _received(actor, meta)


def _proxy(held: core.Held) -> ActorProxy:
    proxy = ActorProxy.__new__(ActorProxy)
    object.__setattr__(proxy, "_dpool_held", held)
    return proxy


def _submit(held: core.Held, name: str, how: int, args: Any, kwargs: Any, flow: Flow | None = None) -> Future[Any]:
    pool = held.pool()
    method = held.meta.methods.get(name)
    read_only = method.read_only if how == METHOD and method is not None else how == ATTRIBUTE
    future = pool.submit(name, how, args, kwargs, held.meta.max_pending_calls, read_only, flow)
    pool.keeping(held)
    return future


def _kill(held: core.Held, *, restart: bool = False) -> None:
    """End its process now, whatever it does. `restart`: it may come back, as after a crash."""
    core.kill(held, restart)


class ActorMethod:
    """A method of an actor."""

    __slots__ = ("_held", "_how", "_name")

    def __init__(self, held: core.Held, name: str, how: Method) -> None:
        self._held = held
        self._name = name
        self._how = how

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it and wait: the value, or what it raised. Of a method that yields (`num_returns="streaming"`): an
        iterator of the values, as they come.
        """
        if self._how.num_returns in STREAMING:
            return _values(self.submit(*args, **kwargs))
        return _submit(self._held, self._name, METHOD, args, kwargs).result()

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Call it; returns a Future, a list of `num_returns`, or a Stream. Futures and ObjectRefs among the arguments
        arrive as their values; later calls of this process wait meanwhile, since calls keep their order.
        """
        how = self._how
        if how.num_returns in STREAMING:
            flow = Flow()
            call = args, kwargs, how.stream_window, how.stream_window_bytes
            return Stream(_submit(self._held, self._name, METHOD, call, STREAM, flow), flow)
        future = _submit(self._held, self._name, METHOD, args, kwargs)
        return future if how.num_returns == 1 else parts_of(future, int(how.num_returns))

    remote = submit

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options, as for `dpool.method`."""
        return ActorMethod(self._held, self._name, self._how._replace(**_method_options(options)))

    def __reduce__(self) -> Any:
        return _method, (_proxy(self._held), self._name, self._how)

    def __repr__(self) -> str:
        return f"<method {self._name} of {_proxy(self._held)!r}>"


def _method(proxy: ActorProxy, name: str, how: Method) -> ActorMethod:
    return ActorMethod(proxy._dpool_held, name, how)


def _values(stream: Stream) -> Iterator[Any]:
    with stream:
        for item in stream:
            yield item.result()


class ActorClass:
    """What `dpool.remote(cls)` returns: `.remote(...)` makes an actor."""

    def __init__(self, cls: type, options: Mapping[str, Any]) -> None:
        self._cls = _checked_class(cls)
        self._options = dict(options)
        self._creation = creation(self._options)
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__

    def remote(self, *args: Any, **kwargs: Any) -> ActorProxy:
        """Make an actor: `cls(*args, **kwargs)` in a process of its own; see `ActorProxy`.

        Raises `dpool.errors.ControlStoreError` if it has a name, or is detached, and the control store that other nodes
        share (DPOOL_REDIS_URL) does not answer in time.
        """
        return _proxy(core.create(self._cls, self._creation, args, kwargs)[0])

    def options(self, **options: Any) -> ActorClass:
        """The same class with other options.

        Args:
            num_cpus, num_gpus, memory, resources: what the actor holds as long as it lives; by default nothing.
            name: by which `dpool.get_actor` finds it. get_if_exists: if the name is taken, that one instead of
                ValueError.
            lifetime: "detached": it outlives its proxies and the task that made it, until it is killed or its node
                ends, which a program's own node does with the program (a warning then names those that are left).
            max_restarts: how often it comes back, constructed anew with the same arguments, when its process dies; -1:
                always.
            max_task_retries: how often a call is made again whose actor died under it and came back; -1: always.
            max_pending_calls: calls of one process that may be pending; one more raises
                `dpool.errors.PendingCallsLimit`.
            max_concurrency: threads that run calls; with `async def` methods, coroutines (then by default 1,000).
            env: variables to set in its process; `runtime_env={"env_vars": env}` is the same.
            namespace: names of actors are unique in it; default: that of `dpool.init(namespace=)`.
        """
        return ActorClass(self._cls, {**self._options, **options})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self.__name__} is an actor class: {self.__name__}.remote(...) makes an actor")

    def __reduce__(self) -> Any:
        return ActorClass, (self._cls, self._options)

    def __repr__(self) -> str:
        return f"<dpool actor class {self._cls.__qualname__}>"


ActorHandle = ActorProxy
"""Ray's name of it."""


def _checked_class(cls: Any) -> type:
    if isinstance(cls, ActorClass):
        return cls._cls
    if not isinstance(cls, type):
        raise TypeError(f"an actor is made of a class, not of {cls!r}")
    return cls


def make(cls: Any, options: Mapping[str, Any], args: Any, kwargs: Any) -> tuple[ActorProxy, core.Held | None]:
    """An actor for an executor, and what binds it to that; None if it is detached, or another's (`get_if_exists`)."""
    if isinstance(cls, ActorClass):
        options = {**cls._options, **options}
    how = creation(options)
    held, made = core.create(_checked_class(cls), how, args, kwargs)
    return _proxy(held), held if made and not how.detached else None


def get_actor(name: str, namespace: str | None = None) -> ActorProxy:
    """The actor that was made with this name; ValueError if there is none (any more). Source: Ray's `get_actor`."""
    if not name:
        raise ValueError(f"the name of an actor is a string, not empty: {name!r}")
    held = core.find(_spelled(name, namespace))
    if held is None:
        raise ValueError(f"there is no actor of the name {name!r}")
    return _proxy(held)


def kill(actor: ActorProxy, *, no_restart: bool = True) -> None:
    """End an actor's process now. `no_restart=False`: it may come back, as after a crash. Source: Ray's `kill`."""
    if not isinstance(actor, ActorProxy):
        raise TypeError(f"kill takes an ActorProxy, not {type(actor).__name__}")
    core.kill(actor._dpool_held, not no_restart)


def exit_actor() -> NoReturn:
    """In a method of an actor: end it after this call, which raises `dpool.errors.ActorDied` at its caller, as all
    later ones do; it does not come back. Exit functions (`atexit`) run. RuntimeError elsewhere.

    Source: Ray's `ray.actor.exit_actor`.
    """
    if here.actor_is is None:
        raise RuntimeError("exit_actor is called in a method of an actor; dpool.kill(proxy) ends another one")
    raise ActorExit(0)


def method(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Says something about a method of a class of actors.

    Args:
        num_returns: how many values it returns: `submit` then returns as many futures; "streaming": it yields them
            (also as an asynchronous generator), and `submit` returns an iterator of futures.
        stream_window, stream_window_bytes: how far it may be ahead of who takes them, as for `dpool.remote`.
        read_only: it changes nothing. So a call of it whose actor died under it is made again when the actor is back
            (three times at most, or `max_task_retries` if that is more), and what an actor goes through again when it
            is recovered does not contain it.

    Source: Ray's `method`.
    """
    how = Method()._replace(**_method_options(options))

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__dpool_method__ = how  # type: ignore[attr-defined]
        return function

    return mark


def _method_options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = with_window(given)
    unknown = options.keys() - Method._fields
    if unknown:
        raise TypeError(f"unknown options {', '.join(sorted(unknown))}; a method has {', '.join(Method._fields)}")
    if options.get("num_returns", 1) not in STREAMING:
        _check_number("num_returns", options.get("num_returns", 1), 0)
    if not isinstance(options.get("read_only", False), bool):
        raise TypeError(f"read_only is True or False, not {options['read_only']!r}")
    return options
