"""Tasks and values: `init`, `remote`, `put`, `get`, `wait`, `cancel`.

`@dpool.remote` makes tasks of a function's calls. `dpool.put(value)` stores a value once and returns an `ObjectRef`,
which any number of tasks can take as an argument. What tasks take and return goes to the store by itself when it is
large; `put` is for what is used more than once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, overload

from dpool._core import storage
from dpool._core.config import MIN_STORE
from dpool._core.context import here
from dpool._core.future import Future
from dpool._core.logic.resources import UNIT
from dpool._core.logic.resources import shape as make_shape
from dpool._core.objectref import ObjectRef
from dpool._core.remote_function import RemoteFunction, TaskOptions
from dpool._core.runtime import check_address
from dpool._core.serialize import store_value
from dpool._core.stream import Stream


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_memory: int | None = None,
    spill_dir: str | None = None,
    preload: Iterable[str] | None = None,
    strict_resources: bool | None = None,
    ignore_reinit_error: bool = False,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    log_to_driver: bool | None = None,
    **others: Any,
) -> InitContext:
    """Settings of this machine's runtime, before it is first used; without this call it starts with its defaults.

    Args:
        address: the cluster: "auto" for the one that this machine is in, or "dpool://HOST:PORT" (its head, or any of
            its machines); "local": this machine alone; None: as the variable DPOOL_ADDRESS says, else this machine.
        num_cpus, num_gpus: what tasks can ask for, instead of what is found; GPUs are found through NVML, as far as
            CUDA_VISIBLE_DEVICES shows them.
        resources: custom resources that tasks can ask for: name → amount.
        strict_resources: tasks that ask for more than there is fail (`dpool.errors.InfeasibleResources`), instead of
            waiting, with a warning, for a machine that has it.
        ignore_reinit_error: say nothing if the runtime is in use with other settings.
        preload: names of modules that workers have from the start: imported once, at the time of this call and in a
            process of their own while the program goes on, and shared by all workers, which are forked from it. A
            module that does not import, or starts threads, is left out, with a warning. No effect inside a task.
            Source: `multiprocessing.set_forkserver_preload`.
        object_store_memory: bytes of shared memory for objects; default: a third of the memory that the cgroup allows.
        spill_dir: directory on a disk, for objects that memory has no room for; default: the temporary directory, or
            /var/tmp if that one lies in memory.
        namespace: in which names of actors are unique; see `ActorClass.options`.
        runtime_env: what workers have beside what the program has: `env_vars` (variables), `working_dir`, `py_modules`
            (directories, or modules).
        log_to_driver: False: what tasks print is not shown.
        others: options of Ray's `init` that mean nothing here, such as `include_dashboard`; TypeError for all others.

    Returns something that, as a context manager, calls `shutdown`.

    RuntimeError if the runtime is in use with other settings; ValueError for what cannot be.
    """
    from dpool._core import driver
    from dpool._core import runtime_env as envs

    unknown = others.keys() - envs.INIT_NO_MEANING
    if unknown:
        raise TypeError(f"init has no option {', '.join(sorted(unknown))}; see docs/ray.md for those of Ray")
    check_address(address)
    if not isinstance(namespace or "", str):
        raise TypeError(f"namespace must be a string, not {namespace!r}")
    env = None if runtime_env is None and namespace is None else envs.parse(runtime_env, namespace or "")
    changes: dict[str, Any] = {}
    if address is not None:
        changes["address"] = "" if address == "local" else address
    for name, amount in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if amount is not None:
            make_shape(**{name: amount})  # raises for what cannot be
            if name == "num_gpus" and amount != int(amount):
                raise ValueError(f"a machine has whole GPUs, not {amount!r}; tasks can ask for a part of one")
            changes[name] = float(amount)
    if resources is not None:
        make_shape(**resources)  # raises for what cannot be
        changes["resources"] = tuple(sorted((name, float(amount)) for name, amount in resources.items()))
    if strict_resources is not None:
        changes["strict_resources"] = bool(strict_resources)
    if object_store_memory is not None:
        if isinstance(object_store_memory, bool) or not isinstance(object_store_memory, int):
            raise TypeError(f"object_store_memory is a number of bytes, not {object_store_memory!r}")
        if object_store_memory < MIN_STORE:
            raise ValueError(f"object_store_memory must be at least {MIN_STORE:,} bytes, not {object_store_memory:,}")
        changes["object_store_memory"] = object_store_memory
    if spill_dir is not None:
        if not os.path.isdir(spill_dir):
            raise ValueError(f"spill_dir must be a directory: {spill_dir!r}")
        changes["spill_dir"] = os.path.abspath(spill_dir)
    if preload is not None:
        if isinstance(preload, str):
            raise TypeError(f"preload is a list of module names, not the string {preload!r}")
        changes["preload"] = tuple(preload)
    try:
        driver.configure(env, None if log_to_driver is None else not log_to_driver, **changes)
    except RuntimeError:
        if not ignore_reinit_error:
            raise
    if preload:
        driver.runtime().start_now()
    return InitContext()


class InitContext:
    """What `init` returns: `with dpool.init(): …` ends everything afterwards. Source: Ray's."""

    dashboard_url = ""
    address_info: Mapping[str, str] = {"address": "local", "node_ip_address": "127.0.0.1"}

    def __getitem__(self, name: str) -> str:
        return self.address_info[name]

    def disconnect(self) -> None:
        """`shutdown`."""
        shutdown()

    def __enter__(self) -> InitContext:
        return self

    def __exit__(self, *_: object) -> None:
        shutdown()

    def __repr__(self) -> str:
        return "<dpool.InitContext of this machine>"


def is_initialized() -> bool:
    """Whether this process has a runtime in use, or has settings for one (`init`)."""
    driver = sys.modules.get("dpool._core.driver")
    return driver is not None and driver.in_use()


def shutdown() -> None:
    """End everything of this process's runtime: tasks that have not ended fail, executors and pools are closed, what
    the object store holds is let go. The next use starts anew, with the settings of the environment.
    """
    driver = sys.modules.get("dpool._core.driver")
    if driver is not None:
        driver.shut_down()


@overload
def remote(function: Callable[..., Any], /) -> RemoteFunction: ...
@overload
def remote(**options: Any) -> Callable[[Callable[..., Any]], RemoteFunction]: ...
def remote(function: Any = None, /, **options: Any) -> Any:
    """Make tasks of a function's calls: `@dpool.remote`, `@dpool.remote(num_cpus=2)`, `dpool.remote(f)`.

    `f.remote(...)` then submits a call and returns its Future, `f.options(...)` gives the same with other options.

    Args:
        num_cpus, num_gpus, memory, resources: what a task holds while it runs (fractions allowed, memory in bytes,
            resources by name); it waits until that is free. By default one CPU, which it lends while it waits for
            other tasks. GPUs are shown to it through CUDA_VISIBLE_DEVICES.
        num_returns: how many values the function returns: `remote` then returns as many futures; "streaming": it
            yields them, and `remote` returns an iterator of futures (`Stream`).
        stream_window, stream_window_bytes: how far a generator may be ahead of who takes its items: by default 1,000
            items and 64 MiB of them; -1: without limit. It waits then, and lends its CPUs.
        max_retries: how often to run it again if its worker dies (by default 3, so it must be idempotent); -1: always.
        retry_exceptions: True, or exception classes, after which it is run again, too.
        timeout: seconds a task may run; then its worker is killed and it raises `dpool.errors.TaskTimeout`.
        name: what errors and logs call the task.
        env: variables to set in its process; it then runs in workers of its own kind.
        max_calls: how many such tasks a worker runs before it is replaced; 0: any number.
        scheduling_strategy: where it runs in a cluster: "DEFAULT": on this machine if there is room, else where there
            is; "SPREAD": on as many as there are; `dpool.NodeAffinity(node)`: on that one; a
            `dpool.util.scheduling_strategies.PlacementGroupSchedulingStrategy`: out of what that group has set aside.
        runtime_env and some others as far as they mean something here; see docs/ray.md.

    Of a class it makes an `ActorClass`, whose options are those of `ActorClass.options`.

    Source: Ray's `remote`.
    """
    if function is None:
        return partial(_remote, options)
    if options:
        raise TypeError("remote(function, **options): write remote(**options)(function)")
    return _remote(options, function)


def _remote(options: Mapping[str, Any], function: Any) -> Any:
    if isinstance(function, type):
        from dpool.actor import ActorClass

        return ActorClass(function, options)
    if isinstance(function, RemoteFunction):
        raise TypeError(f"{function!r} is remote already")
    if not callable(function):
        raise TypeError(f"dpool.remote takes functions and classes, not {function!r}")
    return RemoteFunction(function, TaskOptions().changed(options))


def cancel(future: Future[Any] | Stream, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel a task: one that has not begun never will; in one that runs KeyboardInterrupt is raised.

    In calls of actors, too: a coroutine gets CancelledError; a call that runs in one of several threads
    (`max_concurrency`) cannot be interrupted, and ends as it ends.

    Args:
        force: kill the worker of a task that runs, and with it what it has submitted; ValueError for calls of actors,
            as it would end the actor.
        recursive: cancel the tasks that it has submitted as well.

    Its future is then cancelled, unless the task ended nevertheless. Source: Ray's `cancel`.
    """
    task: Any = future._whole if isinstance(future, Stream) else future
    if not isinstance(task, Future):
        raise TypeError(f"cancel takes the Future of a task, not {type(task).__name__}")
    extra = task._extra
    if extra is not None and extra.whole is not None:
        task = extra.whole
    if force and task._route is not None and hasattr(task._route.pool, "actor"):
        raise ValueError("force=True would end the actor, and with it what others have asked it for: see dpool.kill")
    if not task.cancel(force) and not force and task._route is not None:
        task._route.lane.stop(task, recursive)


def cluster_resources() -> dict[str, float]:
    """What tasks can ask for, in all, on all machines: name → amount."""
    return {name: total for name, (total, _) in _resources().items()}


def available_resources() -> dict[str, float]:
    """What of that nobody holds now."""
    return {name: free for name, (_, free) in _resources().items()}


def get_gpu_ids() -> list[int | str]:
    """The GPUs of the task or actor that runs here: numbers, or ids such as `GPU-…`, as CUDA_VISIBLE_DEVICES has them;
    of tasks that share one, the same. Empty if it asked for none, and outside of tasks. Source: Ray's `get_gpu_ids`.
    """
    return [int(name) if name.isdecimal() else name for name in here.gpus]


_RAYS_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}


def _resources() -> dict[str, tuple[float, float]]:
    found = storage.again(lambda client: client.report(False)).stats["resources"]
    return {_RAYS_NAMES.get(name, name): (total / UNIT, free / UNIT) for name, (total, free) in found.items()}


def machines(first: Callable[[], None]) -> list[tuple[str, str, dict[str, int], dict[str, int], bool]]:
    """Of each machine: name, host, what there is, what is free, whether it is about to leave.

    `first` is called before the node is asked, and again before the next one is, should that have ended meanwhile.
    """

    def ask(client: Any) -> Any:
        first()
        return client.report(False)

    found: Any = storage.again(ask).stats["machines"]
    return list(found)


def resources_of(units: Mapping[str, int]) -> dict[str, float]:
    """A machine's resources, as users have them."""
    return {_RAYS_NAMES.get(name, name): amount / UNIT for name, amount in units.items()}


def put(value: Any) -> ObjectRef:
    """Store a value; it lives as long as somebody has the reference.

    The value is copied: changing it afterwards does not change what is stored. Raises what pickling raised, and
    `dpool.errors.ObjectStoreFull` if neither memory nor disk has room. Source: Ray's `put`.
    """
    if type(value) is ObjectRef:
        raise TypeError("the value is an ObjectRef already; put it into a list if you want to store the reference")
    return store_value(value)


def get(
    refs: ObjectRef | Future[Any] | Sequence[Any],
    timeout: float | None = None,
    *,
    copy: bool = False,
    readonly: bool = False,
) -> Any:
    """The value of a reference or future, or the list of values of several.

    Args:
        timeout: seconds to wait for futures, all of them together; then TimeoutError.
        copy: give arrays memory of their own; else they are views of the store: writable, and private to the caller
            (a page is copied when it is first written to), and the store's memory stays in use while they live.
        readonly: give arrays that raise an error when they are written to.

    Every call gives a value of its own, but that of a future, which has one value for all: `copy` and `readonly` do not
    change it. Raises what a future's task raised, `dpool.errors.ObjectLost` if the value is gone. Of several, it does
    not wait for the others when one has failed: they may be waiting for that one. Source: Ray's `get`.
    """
    until = None if timeout is None else monotonic() + timeout
    if not isinstance(refs, (list, tuple)):
        return _get(refs, until, copy, readonly)
    values = []
    for at, ref in enumerate(refs):
        if isinstance(ref, Future) and not ref.done() and at + 1 < len(refs):
            from dpool._core.waiting import wait_unless_one_fails

            wait_unless_one_fails(refs, at, until)
        values.append(_get(ref, until, copy, readonly))
    return values


def _get(ref: Any, until: float | None, copy: bool, readonly: bool) -> Any:
    if type(ref) is ObjectRef:
        return ref._load(readonly, copy)
    if isinstance(ref, Future):
        return ref.result(None if until is None else max(0.0, until - monotonic()))
    raise TypeError(f"get takes ObjectRefs and Futures, not {type(ref).__name__}")


def wait(
    refs: Iterable[ObjectRef | Future[Any]],
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Wait until `num_returns` of the references or futures are ready, or `timeout` seconds have passed.

    Returns:
        (ready, not ready): the first has at most `num_returns` items; both keep the order of `refs`.

    Raises ValueError if `num_returns` is below 1 or above the number of references (unless there is none), or one
    occurs twice. A future that failed or was cancelled is ready. `fetch_local`: values of ready ones that lie on other
    machines begin to come to this one, for whoever asks for them next; without it they stay where they are until then.
    Source: Ray's `wait`, which waits for them to come.
    """
    from dpool._core.waiting import fetch_soon, wait_for

    known = refs if isinstance(refs, list) else list(refs)
    ready, rest = wait_for(known, num_returns, timeout)
    if fetch_local:
        fetch_soon(ready)
    return ready, rest


class StoredObject(NamedTuple):
    """One object of the store."""

    id: str
    size: int
    """Bytes."""
    owner: int
    """Process that made it."""
    state: str
    """`sealed` (in memory), `spilled` (on disk), …"""
    pinned: bool
    """A process has arrays in its memory."""


class StoreStats(NamedTuple):
    """What the object store of this machine holds, and has done. Sizes are bytes."""

    capacity: int
    used: int
    """In memory: objects, and room that processes have taken for the next ones."""
    resident: int
    """Memory that the store has from the system: `used`, and what is kept warm."""
    objects: int
    pinned: int
    """In memory that somebody's arrays lie in."""
    spilled: int
    """On disk, and not in memory."""
    spilled_objects: int
    spills: int
    """Objects that were written to disk, so far."""
    restores: int
    """Objects that were read back, so far."""
    reads: int
    """How often living processes took an object out."""
    hit_rate: float
    """Share of reads that found the object in memory; 1.0 before the first."""
    listing: list[StoredObject]
    """The objects, if asked for."""


def store_stats(listing: bool = False) -> StoreStats:
    """Figures of this machine's object store; `listing`: with each object, its owner and size."""
    report = storage.again(lambda client: client.report(listing))
    stats = report.stats
    reads, restored = stats["reads"], stats["restores"] + stats["file_reads"]
    return StoreStats(
        capacity=stats["capacity"],
        used=stats["used"],
        resident=stats["resident"],
        objects=stats["objects"],
        pinned=stats["pinned_bytes"],
        spilled=stats["spilled_bytes"],
        spilled_objects=stats["spilled_objects"],
        spills=stats["spills"],
        restores=stats["restores"],
        reads=reads,
        hit_rate=1.0 - min(1.0, restored / reads) if reads else 1.0,
        listing=[StoredObject(obj.hex(), *known) for obj, *known, _ in report.listing],
    )
