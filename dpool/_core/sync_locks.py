"""`Lock`, `RLock`, `Semaphore`, `BoundedSemaphore`, `Event`, `Condition` and `Barrier` of `dpool.multiprocessing`.

They behave as those of `multiprocessing`, and can be pickled anywhere: into tasks and results, into `initargs`, into
queues, into the arguments of a `Process`. What the process that dies has locked is given to the next.

Each is a face of a `Core` that all faces of one object share in a process.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k
from dpool._core.node_page import WORDS
from dpool._core.serialize_reducers import BY_TYPE
from dpool._core.sync_client import Core, Link, LinkLost, link_to, make
from dpool._core.sync_mutex import Mutex

if TYPE_CHECKING:
    from dpool._core.store_client import Handle

TOO_MANY = "semaphore or lock released too many times"


class Face:
    """What people hold: a thin face of a core."""

    _kind: type[Any] = Core
    _core: Any

    def __reduce__(self) -> Any:
        self._core.keep_for_anybody()
        return self._rebuilt()

    def _rebuilt(self) -> Any:
        core = self._core
        return remake, (type(self), core.link.session, core.obj, self._facts())

    def _facts(self) -> tuple[Any, ...]:
        """What another process needs besides the id."""
        return ()


def remake(cls: type[Face], session: str, obj: bytes, facts: tuple[Any, ...]) -> Any:
    """In the process that unpickles one.

    Raises:
        NodeLost: its node has ended.
    """
    face = cls.__new__(cls)
    link = link_to(session)
    kind = cls._kind.for_link(link)
    face._core = link.core(kind, obj, lambda link, handle: kind(link, handle, *facts), kind.what)
    return face


def _reduce(pickler: Any, face: Face) -> Any:
    face._core.keep_for(pickler)
    return face._rebuilt()


def register(*kinds: type[Any]) -> None:
    """dpool's own pickles may contain these."""
    for kind in kinds:
        BY_TYPE[kind] = _reduce


def _until(timeout: float | None) -> float | None:
    return None if timeout is None else monotonic() + max(0.0, timeout)


# -- locks


class Lock(Face):
    """A `multiprocessing.Lock`: not recursive, and any process may release it."""

    _kind = Mutex

    def __init__(self) -> None:
        self._core: Mutex = Mutex.new()

    def _facts(self) -> tuple[Any, ...]:
        return (self._core.slot,)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take it; False if it cannot be had at once (`block=False`) or within `timeout` seconds.

        A `RuntimeWarning` says that the process that had it died. Raises NodeLost.
        """
        return self._core.acquire(block, timeout)

    def release(self) -> None:
        """Let it go. ValueError if nobody has it."""
        if not self._core.release_ours() and not self._core.release_for_another():
            raise ValueError(TOO_MANY)

    def __enter__(self) -> bool:
        return self._core.acquire(True, None)

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(owner={_owner(self._core)})>"


class RLock(Face):
    """A `multiprocessing.RLock`: its owner, one thread of one process, may take it again."""

    _kind = Mutex

    def __init__(self) -> None:
        self._core: Mutex = Mutex.new()

    def _facts(self) -> tuple[Any, ...]:
        return (self._core.slot,)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """As `Lock.acquire`; at once if this thread has it."""
        core = self._core
        if core.is_mine():
            core.count += 1
            return True
        return core.acquire(block, timeout)

    def release(self) -> None:
        """Let it go once. AssertionError if this thread has not got it."""
        core = self._core
        if not core.is_mine():
            raise AssertionError("attempt to release recursive lock not owned by thread")
        if core.count > 1:
            core.count -= 1
        else:
            core.release_ours()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        owner, core = _owner(self._core), self._core
        count: int | str = core.count if core.is_mine() else 0 if owner == "None" else "nonzero"
        return f"<{type(self).__name__}({owner}, {count})>"


def _owner(core: Mutex) -> str:
    """Who has a lock, in the words of the standard library."""
    if core.is_mine():
        from multiprocessing import current_process

        name = current_process().name
        thread = threading.current_thread().name
        return name if thread == "MainThread" else f"{name}|{thread}"
    if core.is_ours():
        return "SomeOtherThread"
    return "SomeOtherProcess" if core.is_taken() else "None"


# -- semaphores


class _Permits(Core):
    what = "semaphore"
    __slots__ = ("bound",)

    def __init__(self, link: Link, handle: Handle, bound: int) -> None:
        super().__init__(link, handle)
        self.bound = bound


class Semaphore(Face):
    """A `multiprocessing.Semaphore`. A permit that was got by `with` goes back when its process dies."""

    _kind = _Permits
    _core: _Permits

    def __init__(self, value: int = 1) -> None:
        self._make(value, 0)

    def _make(self, value: int, bound: int) -> None:
        if not 0 <= value <= k.SEMAPHORE_MAX:
            raise ValueError("semaphore initial value must be from 0 to 2**31 - 1")
        link, handle, _, _ = make(s.SEMAPHORE, value, bound)
        self._core = link.cores[handle.obj] = _Permits(link, handle, bound)

    def _facts(self) -> tuple[Any, ...]:
        return (self._core.bound,)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a permit; False if there is none at once (`block=False`) or within `timeout` seconds."""
        return self._acquire(k.BLOCK if block else 0, timeout if block else None)

    def _acquire(self, flags: int, timeout: float | None) -> bool:
        reply = self._core.wait(k.ACQUIRE, flags, _until(timeout))
        if reply.n:
            warnings.warn(
                f"the process {reply.n & 0xFFFFFFFF} ended in a `with` block of this semaphore; its permit is given to "
                "the next",
                RuntimeWarning,
                stacklevel=3,
            )
        return reply.status == k.OK  # no call: what has been got must get out

    def release(self) -> None:
        """Give a permit. ValueError if there are as many as there may be."""
        if self._core.ask(k.RELEASE).status == k.TOO_MANY:
            raise ValueError(TOO_MANY)

    def get_value(self) -> int:
        """How many permits there are."""
        return int(self._core.ask(k.VALUE).n)

    def __enter__(self) -> bool:
        return self._acquire(k.BLOCK | k.SCOPED, None)

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={_value(self)})>"


class BoundedSemaphore(Semaphore):
    """A `multiprocessing.BoundedSemaphore`: it never has more permits than at the beginning."""

    def __init__(self, value: int = 1) -> None:
        if value == 0:
            raise ValueError("a bounded semaphore needs a value above 0")
        self._make(value, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={_value(self)}, maxvalue={self._core.bound})>"


def _value(semaphore: Semaphore) -> int | str:
    from dpool.errors import DpoolError

    try:
        return semaphore.get_value()
    except DpoolError:  # a repr says what it can
        return "unknown"


# -- events


class _Flag(Core):
    what = "event"
    __slots__ = ("slot", "word", "words")

    def __init__(self, link: Link, handle: Handle, slot: int) -> None:
        super().__init__(link, handle)
        self.slot = slot
        self.word = slot * WORDS + k.FLAG
        self.words = link.words

    @classmethod
    def for_link(cls, link: Link) -> type[Core]:
        if not link.far:
            return cls
        from dpool._core.sync_far import FarFlag

        return FarFlag


class Event(Face):
    """A `multiprocessing.Event`."""

    _kind = _Flag

    def __init__(self) -> None:
        link, handle, reply, _ = make(s.EVENT)
        self._core = link.cores[handle.obj] = _Flag(link, handle, reply.n)

    def _facts(self) -> tuple[Any, ...]:
        return (self._core.slot,)

    def is_set(self) -> bool:
        """Whether it is set. Raises NodeLost."""
        core = self._core
        if core.words[core.word]:
            return True
        if not core.link.alive():
            raise core.link.lost_error(core.what)
        return False

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._core.ask(k.SET)

    def clear(self) -> None:
        """Clear it."""
        self._core.ask(k.CLEAR)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; False if `timeout` seconds pass before."""
        core = self._core
        if core.words[core.word]:
            return True
        return bool(core.wait(k.WAIT, k.BLOCK, _until(timeout)).status == k.OK)

    def __repr__(self) -> str:
        word = self._core.words[self._core.word]
        return f"<{type(self).__qualname__} at {id(self):#x} {'set' if word else 'unset'}>"


# -- conditions


class _Waiters(Core):
    what = "condition"
    __slots__ = ()


class Condition(Face):
    """A `multiprocessing.Condition`; `lock` is a `Lock` or `RLock` of dpool's, by default a new RLock."""

    _kind = _Waiters
    _core: _Waiters

    def __init__(self, lock: Lock | RLock | None = None) -> None:
        if lock is not None and not isinstance(lock, (Lock, RLock)):
            raise TypeError(f"a Condition takes a Lock or RLock of dpool.multiprocessing, not a {type(lock).__name__}")
        self._lock: Lock | RLock = lock if lock is not None else RLock()
        link, handle, _, _ = make(s.CONDITION)
        self._core = link.cores[handle.obj] = _Waiters(link, handle)
        self._make_methods()

    def _make_methods(self) -> None:
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def _rebuilt(self) -> Any:
        return _remake_condition, (type(self), self._core.link.session, self._core.obj, self._lock)

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *args: object) -> None:
        self._lock.__exit__(*args)

    def wait(self, timeout: float | None = None) -> bool:
        """Let the lock go, wait to be notified, and take the lock again; False if `timeout` seconds pass before."""
        mutex = self._lock._core
        assert mutex.is_mine(), "must acquire() condition before using wait()"
        core, until = self._core, _until(timeout)
        connection = core._take()
        count = 0
        try:
            request = connection.begin(core.obj, k.WAIT, k.BLOCK)
            connection.registered(request)
            count = mutex.count
            mutex.release_ours()
            status = connection.finish(request, until).status
        except BaseException as error:
            connection.abandon()
            self._take_again(mutex, count)
            raise _proper(error, core) from None
        connection.given = False
        core.link.idle += (connection,)
        self._take_again(mutex, count)
        return status == k.OK

    @staticmethod
    def _take_again(mutex: Mutex, count: int) -> None:
        if not count or mutex.is_mine():
            return
        from dpool.errors import NodeLost

        interrupted: BaseException | None = None
        while True:  # a caller that leaves its `with` block must have the lock, whatever a signal handler raises
            try:
                mutex.acquire(True, None)
                mutex.count = count
                break
            except (NodeLost, OSError):
                raise
            except BaseException as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def notify(self, n: int = 1) -> None:
        """Wake `n` of those who wait."""
        assert self._lock._core.is_mine(), "lock is not owned"
        self._core.ask(k.NOTIFY, n)

    def notify_all(self) -> None:
        """Wake all who wait."""
        self.notify(sys.maxsize)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until `predicate()` is true; what it gave last."""
        until = _until(timeout)
        result = predicate()
        while not result:
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def __repr__(self) -> str:
        from dpool.errors import DpoolError

        try:
            waiters: int | str = int(self._core.ask(k.WAITERS).n)
        except DpoolError:  # a repr says what it can
            waiters = "unknown"
        return f"<{type(self).__name__}({self._lock}, {waiters})>"


def _proper(error: BaseException, core: Core) -> BaseException:
    if isinstance(error, LinkLost):
        core.link.lost = True
        return core.link.lost_error(core.what, error)
    return error


def _remake_condition(cls: type[Condition], session: str, obj: bytes, lock: Any) -> Condition:
    face: Condition = remake(cls, session, obj, ())
    face._lock = lock
    face._make_methods()
    return face


# -- barriers


class _Parties(Core):
    what = "barrier"
    __slots__ = ("parties",)

    def __init__(self, link: Link, handle: Handle, parties: int) -> None:
        super().__init__(link, handle)
        self.parties = parties


class Barrier(Face):
    """A `multiprocessing.Barrier`. It breaks when a process that waits at it dies."""

    _kind = _Parties
    _core: _Parties

    def __init__(self, parties: int, action: Callable[[], Any] | None = None, timeout: float | None = None) -> None:
        if parties < 1:
            raise ValueError("parties must be > 0")
        link, handle, _, _ = make(s.BARRIER, parties)
        self._core = link.cores[handle.obj] = _Parties(link, handle, parties)
        self._action = action
        self._timeout = timeout

    def _facts(self) -> tuple[Any, ...]:
        return (self._core.parties,)

    def _rebuilt(self) -> Any:
        return _remake_barrier, (*super()._rebuilt()[1], self._action, self._timeout)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties have come: the number of this one, from 0.

        Raises:
            threading.BrokenBarrierError: it is broken, or `timeout` seconds have passed, which breaks it.
        """
        core = self._core
        until = _until(self._timeout if timeout is None else timeout)
        connection = core._take()
        leads = False
        try:
            request = connection.begin(core.obj, k.WAIT, k.BLOCK | (k.ACTION if self._action is not None else 0))
            reply = connection.finish(request, until)
            leads = reply.status == k.LEAD
            if leads:
                assert self._action is not None
                self._action()
                reply = connection.ask(core.obj, k.LED)
        except BaseException as error:
            if leads:
                connection.close()  # and by that it breaks
            else:
                connection.abandon()
            raise _proper(error, core) from None
        connection.given = False
        core.link.idle += (connection,)
        if reply.status == k.WITHDRAWN:
            core.ask(k.ABORT)
        if reply.status != k.OK:
            raise threading.BrokenBarrierError
        return reply.n

    def reset(self) -> None:
        """As new; those who wait get BrokenBarrierError."""
        self._core.ask(k.RESET)

    def abort(self) -> None:
        """Break it: who waits, or comes, gets BrokenBarrierError."""
        self._core.ask(k.ABORT)

    @property
    def parties(self) -> int:
        """How many must come."""
        return int(self._core.parties)

    @property
    def n_waiting(self) -> int:
        """How many have come."""
        return int(self._core.ask(k.WAITERS).n)

    @property
    def broken(self) -> bool:
        """Whether it is broken."""
        return bool(self._core.ask(k.BROKEN_NOW).n)

    def __repr__(self) -> str:
        from dpool.errors import DpoolError

        try:
            state = "broken" if self.broken else f"waiters={self.n_waiting}/{self.parties}"
        except DpoolError:  # a repr says what it can
            state = "unknown"
        return f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: {state}>"


def _remake_barrier(
    cls: type[Barrier], session: str, obj: bytes, facts: tuple[Any, ...], action: Any, timeout: float | None
) -> Barrier:
    face: Barrier = remake(cls, session, obj, facts)
    face._action, face._timeout = action, timeout
    return face


register(Lock, RLock, Semaphore, BoundedSemaphore, Event, Condition, Barrier)
__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]
