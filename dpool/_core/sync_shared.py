"""`Value`, `Array`, `RawValue`, `RawArray` and `Pipe` of `dpool.multiprocessing`: memory and pipes that can be pickled
into tasks.

The memory belongs to the node and is mapped by every process that has the object; ctypes objects lie in it, and the
standard library's synchronised wrappers around them, with locks of ours.

A `Pipe` is the standard library's: two connected sockets. When one end is pickled, the node gets a descriptor of it and
hands that over once, to whoever unpickles it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from multiprocessing import connection as standard_connection
from multiprocessing import context, reduction, sharedctypes
from typing import TYPE_CHECKING, Any

from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k
from dpool._core.node_page import PLACE
from dpool._core.serialize_reducers import BY_TYPE
from dpool._core.sync_client import Core, Link, LinkLost, link_to, make, object_gone
from dpool._core.sync_locks import Face, RLock, register

if TYPE_CHECKING:
    from dpool._core.store_client import Handle

typecode_to_type: dict[str, Any] = sharedctypes.typecode_to_type  # type: ignore[attr-defined]
_wrappers: dict[type[Any], type[Any]] = {}
"""Class of a standard wrapper → ours."""


# -- memory


class _Piece(Core):
    what = "shared value"
    __slots__ = ("view",)

    def __init__(self, link: Link, handle: Handle, view: memoryview | None = None) -> None:
        super().__init__(link, handle)
        self.view = view if view is not None else self._fetched(link)
        """The memory, mapped."""

    @classmethod
    def for_link(cls, link: Link) -> type[Core]:
        if not link.far:
            return cls
        from dpool._core.sync_far_shared import FarPiece

        return FarPiece

    def _fetched(self, link: Link) -> memoryview:
        connection = link.take()
        try:
            reply = connection.ask(self.obj, k.FETCH)
            fds, connection.fds = connection.fds, []
        except BaseException:
            connection.abandon()
            raise
        connection.given = False
        link.idle += (connection,)
        if reply.status != k.OK:
            raise object_gone(self.what)
        return mapped(link, reply.data, fds)


def mapped(link: Link, place: bytes, fds: list[int]) -> memoryview:
    """The memory at a place that the node has told, with the descriptor of its segment."""
    number, size, offset, length = PLACE.unpack(place)
    try:
        segment = link.segments.get(number)
        if segment is None:
            if not fds:
                raise OSError(24, "this process has no file descriptors left (see `ulimit -n`)")
            segment = mmap.mmap(fds[0], size)
            if size == k.SEGMENT:
                segment = link.segments.setdefault(number, segment)
    finally:
        for fd in fds:
            os.close(fd)
    return memoryview(segment)[offset : offset + length]


class Shared(Face):
    """A piece of shared memory; stands where the standard library has a `BufferWrapper`."""

    _kind = _Piece

    def __init__(self, size: int) -> None:
        link, handle, reply, fds = make(s.MEMORY, size)
        view = mapped(link, reply.data, fds)
        self._core = link.cores[handle.obj] = _Piece(link, handle, view)

    def create_memoryview(self) -> memoryview:
        """The memory."""
        view: memoryview = self._core.view
        return view


def _type_of(typecode_or_type: Any) -> Any:
    return typecode_to_type.get(typecode_or_type, typecode_or_type)


def _new(kind: Any) -> Any:
    return rebuild_ctype(kind, Shared(ctypes.sizeof(kind)), None)


def rebuild_ctype(kind: Any, wrapper: Shared, length: int | None) -> Any:
    """A ctypes object in shared memory."""
    if length is not None:
        kind = kind * length
    if wrapper._core.link.far:
        from dpool._core.sync_far_shared import far_object

        return far_object(kind, wrapper)
    BY_TYPE[kind] = _reduce_ctype
    reduction.ForkingPickler.register(kind, _forking_reduce)
    made = kind.from_buffer(wrapper.create_memoryview())
    made._wrapper = wrapper
    return made


def _forking_reduce(obj: Any) -> Any:
    wrapper = getattr(obj, "_wrapper", None)
    if wrapper is None:  # not in shared memory: as if it had never been registered
        return obj.__reduce_ex__(2)
    if not isinstance(wrapper, Shared):
        return sharedctypes.reduce_ctype(obj)  # type: ignore[attr-defined]
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, wrapper, obj._length_)
    return rebuild_ctype, (type(obj), wrapper, None)


def _reduce_ctype(pickler: Any, obj: Any) -> Any:
    return _forking_reduce(obj) if hasattr(obj, "_wrapper") else NotImplemented


def RawValue(typecode_or_type: Any, *args: Any) -> Any:
    """A ctypes object in shared memory, without a lock. Source: `multiprocessing.RawValue`."""
    made = _new(_type_of(typecode_or_type))
    made.__init__(*args)
    return made


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:
    """A ctypes array in shared memory, without a lock. Source: `multiprocessing.RawArray`."""
    kind = _type_of(typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new(kind * size_or_initializer)
    made = _new(kind * len(size_or_initializer))
    made.__init__(*size_or_initializer)
    return made


def Value(typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
    """The same with a lock: its own recursive one, or `lock`; `lock=False`: none. Source: `multiprocessing.Value`."""
    return _locked(RawValue(typecode_or_type, *args), lock)


def Array(typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:
    """The same with a lock: its own recursive one, or `lock`; `lock=False`: none. Source: `multiprocessing.Array`."""
    return _locked(RawArray(typecode_or_type, size_or_initializer), lock)


def _locked(obj: Any, lock: Any) -> Any:
    if lock is False:
        return obj
    if lock is True or lock is None:
        lock = RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return synchronized(obj, lock)


def copy(obj: Any) -> Any:
    """A copy in shared memory of its own. Source: `multiprocessing.sharedctypes.copy`."""
    if hasattr(obj, "far_copy"):
        obj = obj.far_copy()
    made = _new(type(obj))
    ctypes.pointer(made)[0] = obj
    return made


def synchronized(obj: Any, lock: Any = None) -> Any:
    """The standard library's wrapper around `obj`, that can be pickled anywhere."""
    lock = lock if lock is not None else RLock()
    if hasattr(obj, "far_copy"):
        from dpool._core.sync_far_shared import far_wrapper

        standard: Any = far_wrapper(obj, lock)
    else:
        wrap: Any = sharedctypes.synchronized
        standard = wrap(obj, lock)
    base = type(standard)
    ours = _wrappers.get(base)
    if ours is None:
        ours = _wrappers[base] = type(base.__name__, (base,), {"__reduce__": _reduce_wrapper, "__module__": __name__})
        BY_TYPE[ours] = lambda pickler, wrapper: _reduce_wrapper(wrapper)
    standard.__class__ = ours
    return standard


def _reduce_wrapper(wrapper: Any) -> Any:
    return synchronized, (wrapper._obj, wrapper._lock)


# -- pipes


class _Open(Core):
    what = "connection"
    __slots__ = ()


def _reduce_connection(pickler: Any, one: Any) -> Any:
    """Into a pickle of dpool's: the node hands the descriptor over."""
    if context.get_spawning_popen() is not None:  # an initializer's arguments bring their descriptors along
        return _standard_reduce(one)
    if one.closed:
        raise OSError("handle is closed")
    link, handle, _, _ = make(s.DESCRIPTOR, fds=(one.fileno(),))
    pickler.keep.append(handle)
    return remake_connection, (link.session, handle.obj, type(one), one.readable, one.writable)


def _standard_reduce(one: Any) -> Any:
    return standard_connection.reduce_connection(one)  # type: ignore[attr-defined]


def remake_connection(session: str, obj: bytes, kind: Callable[..., Any], readable: bool, writable: bool) -> Any:
    """In the process that unpickles it first.

    Raises:
        ObjectLost: it has been handed over already.
        NodeLost: its node has ended.
    """
    link = link_to(session)
    try:
        connection = link.take()
        try:
            reply = connection.ask(obj, k.FETCH)
            fds, connection.fds = connection.fds, []
        except BaseException:
            connection.abandon()
            raise
    except LinkLost as error:
        raise link.lost_error(_Open.what, error) from error
    connection.given = False
    link.idle += (connection,)
    if reply.status != k.OK or len(fds) != 1:
        raise object_gone("connection (an end of a Pipe is handed over once)")
    return kind(fds[0], readable, writable)


register(Shared)
BY_TYPE[standard_connection.Connection] = _reduce_connection
