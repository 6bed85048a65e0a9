"""Futures that travel: one inside an argument or a result arrives as a Future that ends when its owner's does.

```
 owner: Future ─(pickled)─► StorePromise ─ … its task ends … ─► StoreFulfil ─► node ─► StoreResolved ─► borrower: Future
```

The owner is the process that submitted the task. What became of it lies at the node as long as anybody holds the
promise; a large result stays where it is, in the store. A borrower has a thread that reads while it waits for
something (`_watch`); any other thread that reads from the store settles futures as well.
"""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from dpool._core import storage
from dpool._core.frames import FAILED, RAISED, RESULT, STORED
from dpool._core.future import FINISHED, RUNNING, Future, InStore, _mutex
from dpool._core.serialize_reducers import BY_TYPE
from dpool._core.serialize_results import dump_exception, load_exception, load_value, pickle_result

if TYPE_CHECKING:
    from dpool._core.messages import StoreResolved
    from dpool._core.serialize_pickler import Pickler
    from dpool._core.store_client import Handle, StoreClient

LABEL = "a future of another process"


class _Known:
    """Futures that this process has promised or borrowed, by the id of the promise."""

    futures: WeakValueDictionary[bytes, Future[Any]] = WeakValueDictionary()  # noqa: RUF012
    waiting: set[bytes] = set()  # noqa: RUF012
    """Borrowed, and not settled yet."""
    lock = threading.RLock()
    thread: threading.Thread | None = None


# -- the owner


def _reduce(pickler: Pickler, future: Future[Any]) -> Any:
    pickler.stands_in()
    handle = _promise(future)
    pickler.keep.append(handle)
    return make_future, (handle.obj,)


def _promise(future: Future[Any]) -> Handle:
    with _mutex:
        known: Handle | None = future._more().promise
    if known is not None:
        return known
    client = storage.client()
    with _Known.lock:
        extra = future._more()
        if extra.promise is None:
            extra.promise = client.promise([client.new_id()])[0]
            _Known.futures[extra.promise.obj] = future
            made = True
        else:
            made = False
        handle: Handle = extra.promise
    if made:
        future.add_done_callback(_publish)
    return handle


def _publish(future: Future[Any]) -> None:
    """It has ended: tell whoever borrowed it."""
    extra = future._extra
    assert extra is not None
    kind, data, contains, keep = _outcome(future)
    try:
        storage.client().fulfil(extra.promise.obj, kind, data, contains)
    except storage.StoreGone:  # and with it all who could ask
        pass
    del keep  # by now the promise holds it


def _outcome(future: Future[Any]) -> tuple[int, bytes, list[bytes], Any]:
    """kind, data, ids of the objects that these refer to, and what holds those meanwhile."""
    if future.cancelled():
        from concurrent.futures import CancelledError

        return FAILED, dump_exception(CancelledError("the task was cancelled"), LABEL), [], None
    stored: Any = future._result
    if type(stored) is InStore:
        return STORED, pickle.dumps(stored.place, 5), [stored.place[0]], stored
    error = future.exception()
    if error is not None:
        keep: list[Any] = []
        data = dump_exception(error, LABEL, keep)
        return RAISED, data, [handle.obj for handle in keep], keep
    try:
        parts, keep = pickle_result(future.result(), LABEL)
        packed: Any = parts if type(parts) is bytes else storage.pack(parts, keep)  # type: ignore[arg-type]
    except Exception as failure:  # whatever its reducers raise: that is what the borrower gets
        return FAILED, dump_exception(failure, LABEL), [], None
    if type(packed) is bytes:
        return RESULT, packed, [], None
    if type(packed.wire) is list:
        return STORED, pickle.dumps(packed.wire, 5), [packed.wire[0]], packed
    return RESULT, packed.wire, [handle.obj for handle in keep], packed


# -- the borrower


def make_future(obj: bytes) -> Future[Any]:
    """In the process that unpickles a future: the one it has, or one that ends when the owner's does."""
    with _Known.lock:
        known = _Known.futures.get(obj)
        if known is not None:
            return known
        client = storage.client()
        future: Future[Any] = Future()
        future._state = RUNNING  # it is not ours to cancel
        future._more().promise = client.hold([obj, 0, 0, 0, 0])
        _Known.futures[obj] = future
        _Known.waiting.add(obj)
        client.on_resolved = _resolved
        client.watch(obj)
        thread = _Known.thread
        if thread is None or not thread.is_alive():
            _Known.thread = thread = threading.Thread(target=_watch, args=(client,), name="dpool-futures", daemon=True)
            thread.start()
    return future


def _watch(client: StoreClient) -> None:
    """The thread that reads while something is waited for."""
    while True:
        with _Known.lock:
            for obj in [obj for obj in _Known.waiting if obj not in _Known.futures]:
                _Known.waiting.discard(obj)  # nobody has it any more
            if not _Known.waiting:
                _Known.thread = None
                return
        try:
            client.wait_message()
        except (storage.StoreGone, OSError, ValueError) as error:
            _all_lost(str(error))


def _all_lost(why: str) -> None:
    with _Known.lock:
        waiting, _Known.waiting = _Known.waiting, set()
    for obj in waiting:
        future = _Known.futures.get(obj)
        if future is not None:
            future._settle(FINISHED, None, _lost(f"the node has ended ({why})"))


def _resolved(message: StoreResolved) -> None:
    with _Known.lock:
        _Known.waiting.discard(message.obj)
        future = _Known.futures.get(message.obj)
    if future is None or future._state != RUNNING:
        return
    result: Any = None
    error: BaseException | None = None
    try:
        if message.kind == STORED:
            place = pickle.loads(message.data)
            result = InStore(place, LABEL, storage.client().hold(place))
        elif message.kind == RESULT:
            result = load_value(lambda: storage.unpack(message.data), LABEL)
        elif message.kind in (RAISED, FAILED):
            error = load_exception(message.data, LABEL)
        else:
            error = _lost(message.data.decode())
    except BaseException as failure:  # also what unpickling raises: it belongs to the future, not to this thread
        error = failure.with_traceback(None)
    future._settle(FINISHED, result, error)


def _lost(why: str) -> BaseException:
    from dpool.errors import ObjectLost

    return ObjectLost(f"what became of {LABEL} will never be known: {why}")


def register() -> None:
    """From now on dpool's own pickles may contain futures."""
    BY_TYPE[Future] = _reduce


register()
