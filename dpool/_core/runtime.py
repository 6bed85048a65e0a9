"""The `Runtime` protocol: all that the faces know of what runs their tasks.

The native runtime (`driver.py`) is the first; adapters to clusters that people already have would be others, chosen
by `address`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dpool._core.config import from_environment
from dpool._core.context import here
from dpool._core.frames import MAP as MAP
from dpool._core.frames import STARMAP as STARMAP
from dpool._core.launch import start_early
from dpool._core.messages import Shape

if TYPE_CHECKING:
    from dpool._core.future import Future


class Route(Protocol):
    """How tasks want to be run; opaque but for what it says of itself."""

    max_retries: int
    timeout_s: float | None
    name: str


class Pool(Protocol):
    """The workers of one executor."""

    broken: BaseException | None

    @property
    def max_workers(self) -> int: ...

    def make_route(
        self,
        shape: Shape,
        max_retries: int,
        timeout_s: float | None,
        name: str,
        inline: bool = False,
        retry_on: tuple[type[BaseException], ...] = (),
    ) -> Any:
        """Options for tasks. `inline`: one that waits for such a task may run it itself. `retry_on`: exceptions after
        which it is run again.
        """

    def submit(self, route: Any, fn: Callable[..., Any], args: Any, kwargs: Any) -> Future[Any]:
        """One task: `fn(*args, **kwargs)`.

        Or a chunk, if `kwargs` is MAP or STARMAP: `[fn(item) for item in args]`, `[fn(*item) for item in args]`. `args`
        is then whatever collection of items pickles best.
        """

    def share(self, iterables: tuple[Iterable[Any], ...]) -> tuple[Iterable[Any], ...]:
        """Arguments for many tasks: the same, or with large ones that occur again stored once."""

    def resize(self, max_workers: int) -> None:
        """Change `max_workers`."""

    def close(self, cancel_futures: bool = False) -> None:
        """No more tasks; does not wait."""

    def close_later(self) -> None:
        """`close`, from a finalizer, which may run anywhere."""

    def check_open(self) -> None:
        """Raise what `submit` raises after `close`, or when it is broken."""

    def when_gone(self, action: Callable[[], Any]) -> None:
        """Run `action` when a closed pool's workers are gone, in whatever thread; it may run twice."""

    def wait_gone(self) -> None:
        """Wait until a closed pool's tasks are done and its workers gone."""

    def interrupt(self) -> None:
        """Ctrl-C: cancel what waits, interrupt what runs."""

    def stop(self, number: int) -> None:
        """Close, cancel what is pending, and send a signal to every worker."""

    def signal_workers(self, number: int) -> None:
        """Send a signal to every worker."""

    def live_processes(self) -> Mapping[int, Any]:
        """Process id → process, of the workers that live."""

    # for multiprocessing's Pool

    @property
    def processes(self) -> Mapping[int, Any]:
        """Those that are known to live at this moment."""

    def populate(self) -> None:
        """Start all workers that there may be; does not wait."""

    def terminate(self) -> None:
        """End at once: what is pending fails, workers are killed; does not wait."""

    def may_wait(self) -> bool:
        """Whether this thread can wait; not in a signal handler that has interrupted dpool's own work."""

    def wait_any(self, done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until `done()`, which is asked whenever tasks have ended, or the time is over."""

    def in_callback_thread(self, action: Callable[[], Any]) -> None:
        """Run `action` where callbacks run, soon."""

    def task_s(self) -> float:
        """What a task takes, on average, in seconds; 0: not known."""

    def describe(self) -> str:
        """For people."""


class Runtime(Protocol):
    """What runs tasks."""

    def open_pool(
        self,
        *,
        max_workers: int | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks_per_child: int | None,
        strict: bool,
        all_at_once: bool,
        idle_timeout_s: float | None,
        env: dict[str, str] | None,
        label: str,
        standing: bool = False,
    ) -> Pool:
        """A new executor's workers.

        `standing`: as `multiprocessing.Pool` has it. `populate` may start all workers before there is a task, those
        that die are replaced at once, an initializer that fails is tried again in others before what waits fails, and
        at the end of the program what is pending is abandoned.
        """


def check_address(address: str | None) -> None:
    """ValueError for an address that no runtime serves."""
    if address in (None, "local", "auto"):
        return
    if not str(address).startswith("dpool://"):
        raise ValueError(
            f"address {address!r}: it is None (as DPOOL_ADDRESS says, or this machine alone), 'local', 'auto' (the "
            "cluster that this machine is in), or 'dpool://HOST:PORT'"
        )
    from dpool._core.joining import parse_address

    parse_address(address)


def _at(address: str) -> None:
    """This program's runtime is at that address; RuntimeError if it is in use at another one."""
    wanted = "" if address == "local" else address
    if "dpool._core.driver" not in sys.modules and from_environment().address == wanted:
        return
    from dpool._core import driver

    if driver.runtime().config.address != wanted:
        driver.configure(address=wanted)


def cluster_cpus() -> int:
    """The CPUs of the cluster that this program uses; 0 if it uses this machine alone. Waits for the node to say so."""
    driver: Any = sys.modules.get("dpool._core.driver")
    address = driver.runtime().config.address if driver is not None else from_environment().address
    if not address:
        return 0
    runtime: Any = open_runtime(None)
    return int(runtime.cpus())


def open_runtime(address: str | None) -> Runtime:
    """The runtime that serves `address`; ValueError for one that no runtime serves."""
    check_address(address)
    if address is not None and here.worker is None:
        _at(address)
    if "dpool._core.driver" not in sys.modules and here.worker is None:
        config = from_environment()
        if not config.address:
            start_early(config)
    from dpool._core.driver import runtime

    return runtime()
