"""`Queue`, `JoinableQueue` and `SimpleQueue` of `dpool.multiprocessing`: their items lie in the node.

```
 put(value) ─ pickle ─┬ small ─► PUT with the bytes ─► node ─► GET ─► bytes ─► value
                      └ large ─► object store, PUT with its place ────► GET ─► place ─► value, read in place
```

A `put` into a queue without a limit only sends: a process that exits, or is killed, has delivered what it has put. The
node keeps an item until the kernel says that its receiver has read it; what is handed to a process that dies before is
the first in the queue again.

An item is pickled in `put`, so what cannot be pickled raises there; functions and classes of `__main__` take their
definitions along for a worker that has not got them.
"""

from __future__ import annotations

import os
import pickle
import queue
import types
from typing import Any

from dpool._core import mainspace, storage
from dpool._core import serialize_rebuild as rebuild
from dpool._core.config import INLINE_LIMIT
from dpool._core.logic import sync as s
from dpool._core.logic import sync_kinds as k
from dpool._core.serialize import Exporter
from dpool._core.serialize_names import plain
from dpool._core.serialize_pickler import dump
from dpool._core.serialize_results import home_pickler
from dpool._core.sync_client import Connection, Core, Link, LinkLost, make, object_gone
from dpool._core.sync_locks import Face, _until, register
from dpool._store.serde import Parts

_LONG = 64 * 1024
_RICH = b"\1"
"""Begins an item that is more than a pickle: (definitions, bytes or place)."""
_exporters: dict[int, Exporter] = {}
"""Process id → where the definitions of `__main__` for items come from."""


class Items(Core):
    """One queue in this process."""

    what = "queue"
    __slots__ = ("maxsize",)

    def __init__(self, link: Link, handle: Any, maxsize: int) -> None:
        super().__init__(link, handle)
        self.maxsize = maxsize

    @classmethod
    def new(cls, maxsize: int) -> Items:
        """A new queue; no limit if `maxsize` is 0."""
        link, handle, _, _ = make(s.QUEUE, maxsize)
        made = link.cores[handle.obj] = cls(link, handle, maxsize)
        return made

    # -- putting

    def put(self, value: Any, block: bool, timeout: float | None) -> bool:
        """False if it is full."""
        data, keep = self._dump(value)
        refs = [handle.obj for handle in keep]
        if not self.maxsize and not self.link.far:  # from far away it could come after what was said elsewhere
            self.tell(k.PUT, 0, data, refs)
            return True
        until, mode = _until(timeout), k.BLOCK if block else 0
        reply = self._question(lambda one: one.finish(one.begin(self.obj, k.PUT, mode, data, refs), until))
        del keep  # by now the queue holds it
        return reply.status == k.OK

    def _dump(self, value: Any) -> tuple[bytes, list[Any]]:
        """An item's bytes, and Handles of what it refers to."""
        if plain(value) and (type(value) not in (str, bytes) or len(value) <= _LONG):
            data = pickle.dumps(value, 5)
            if len(data) <= INLINE_LIMIT:
                return data, []
        parts = Parts()
        pickler = home_pickler(parts)
        dump(value, pickler)
        names = {**pickler.loads, **pickler.uses}
        definitions, also = _definitions(tuple(names)) if names else ([], [])
        wire, keep = self._pack(parts, pickler.keep)
        keep += also
        if not definitions and type(wire) is bytes and wire[:1] == b"\x80":
            return wire, keep
        return _RICH + pickle.dumps((definitions, wire), 5), keep

    def _pack(self, parts: Parts, keep: list[Any]) -> tuple[bytes | storage.Place, list[Any]]:
        if self.link.home or self.link.far or parts.nbytes <= INLINE_LIMIT:
            packed = storage.pack(parts, keep)
            if type(packed) is bytes:
                return packed, []
            assert isinstance(packed, storage.Stored)
            return packed.wire, list(packed.keep)
        try:
            handle: Any = self.link.store().write(parts, [], os.getpid())
            return handle.place, [handle]
        finally:
            parts.release()

    # -- getting

    def get(self, block: bool, timeout: float | None) -> tuple[bool, Any]:
        """Whether there was one, and the item."""
        connection = self._take()
        try:
            request = connection.begin(self.obj, k.GET, k.BLOCK if block else 0)
            reply = connection.finish(request, _until(timeout))
            value = self._load(connection, reply.data, reply.refs) if reply.status == k.OK else None
        except LinkLost as error:
            raise self._lost(connection, error) from error
        except _DoesNotLoad as error:
            connection.given = False
            self.link.idle += (connection,)
            raise error.error from None
        except BaseException:
            connection.abandon()  # the item goes back, to the front
            raise
        connection.given = False
        self.link.idle += (connection,)
        if reply.status == k.GONE:
            raise object_gone(self.what)
        return reply.status == k.OK, value

    def _load(self, connection: Connection, data: bytes, refs: list[bytes]) -> Any:
        try:
            value = self._loaded(data)
        except Exception as error:
            try:
                self._loaded(data)
            except Exception:
                raise _DoesNotLoad(error) from error
            raise  # it does load: a signal handler had raised, and the item is not lost
        if refs or self.link.far:
            connection.tell(self.obj, k.TAKEN)  # what it refers to is held by now; and no item is given twice
        return value

    def _loaded(self, data: bytes) -> Any:
        if data[:1] != _RICH:
            return pickle.loads(data)
        definitions, wire = pickle.loads(memoryview(data)[1:])
        _install(definitions)
        if type(wire) is bytes:
            return pickle.loads(wire) if wire[:1] == b"\x80" else storage.unpack(wire)
        if self.link.home:
            return storage.load(wire)
        return self.link.store().load(wire)

    def size(self) -> int:
        """How many items are there."""
        return int(self.ask(k.SIZE).n)


class _DoesNotLoad(Exception):
    """The item is bad: it is gone, and this is why."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _definitions(names: tuple[str, ...]) -> tuple[list[tuple[int, str, bytes]], list[Any]]:
    """What a worker needs that has not got these names of `__main__`, and what must live meanwhile."""
    exporter = _exporters.get(os.getpid())
    if exporter is None:
        exporter = _exporters.setdefault(os.getpid(), Exporter())
    with exporter._lock:
        exporter._globals.meet_main()
        requires = exporter._globals.needs(names, "an item of a queue").requires
    keep = [handle for one in requires for handle in one.keep]
    return [(one.number, one.name, one.blob) for one in requires], keep


def _install(definitions: list[tuple[int, str, bytes]]) -> None:
    if definitions and mainspace.installed:
        main = rebuild.main_dict()
        missing = [one for one in definitions if one[1] not in main]
        if missing:
            mainspace.Importer().install(missing)


class _Base(Face):
    _kind = Items
    _core: Items
    __class_getitem__: Any = classmethod(types.GenericAlias)

    def _facts(self) -> tuple[Any, ...]:
        return (self._core.maxsize,)


class SimpleQueue(_Base):
    """A `multiprocessing.SimpleQueue`."""

    _closed = False

    def __init__(self) -> None:
        self._core = Items.new(0)

    def put(self, obj: Any) -> None:
        """Put an item; does not wait. Raises what pickling it raises, NodeLost, OSError after `close`."""
        self._check_open()
        self._core.put(obj, True, None)

    def get(self) -> Any:
        """Take the first item; waits for one. OSError after `close`."""
        self._check_open()
        return self._core.get(True, None)[1]

    def empty(self) -> bool:
        """Whether there is no item. OSError after `close`."""
        self._check_open()
        return not self._core.size()

    def close(self) -> None:
        """This process uses it no more."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(f"{self!r} is closed")


class Queue(_Base):
    """A `multiprocessing.Queue`: `maxsize` items at most, or any number if it is 0 or below."""

    _closed = False
    _used = False

    def __init__(self, maxsize: int = 0) -> None:
        self._core = Items.new(max(0, maxsize))

    @property
    def _maxsize(self) -> int:
        return self._core.maxsize or 2**31 - 1

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item.

        Raises:
            queue.Full: there is no room at once (`block=False`) or within `timeout` seconds.
            ValueError: `close` has been called here.
            PicklingError, TypeError, …: what pickling it raises.
        """
        self._check_open()
        self._used = True
        if not self._core.put(obj, block, timeout):
            raise queue.Full

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the first item.

        Raises:
            queue.Empty: there is none at once (`block=False`) or within `timeout` seconds.
            ValueError: `close` has been called here.
        """
        self._check_open()
        found, value = self._core.get(block, timeout)
        if not found:
            raise queue.Empty
        return value

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    def put_nowait(self, obj: Any) -> None:
        """`put(obj, False)`."""
        self.put(obj, False)

    def get_nowait(self) -> Any:
        """`get(False)`."""
        return self.get(False)

    def qsize(self) -> int:
        """How many items are there."""
        return self._core.size()

    def empty(self) -> bool:
        """Whether there is no item."""
        if self._closed and self._used:
            raise OSError(f"Queue {self!r} is closed")
        return not self._core.size()

    def full(self) -> bool:
        """Whether there is no room."""
        return bool(self._core.maxsize) and self._core.size() >= self._core.maxsize

    def close(self) -> None:
        """This process puts and gets no more."""
        self._closed = True

    def join_thread(self) -> None:
        """For compatibility: what has been put has been delivered. AssertionError before `close`."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """For compatibility: there is no thread."""


class JoinableQueue(Queue):
    """A `multiprocessing.JoinableQueue`."""

    def task_done(self) -> None:
        """An item that was got has been dealt with. ValueError if there is none."""
        if self._core.ask(k.TASK_DONE).status == k.TOO_MANY:
            raise ValueError("task_done() called too many times")

    def join(self) -> None:
        """Wait until all items have been dealt with."""
        self._core.wait(k.JOIN, k.BLOCK, None)


register(SimpleQueue, Queue, JoinableQueue)
