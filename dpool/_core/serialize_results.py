"""How results and exceptions come home.

A result that does not pickle fails with the error that pickling raised; one that does not unpickle fails with
`DeserializationError`. An exception is tried out in the worker: if its pickle cannot be loaded there, a surrogate
travels, an exception of a class of the same name that carries the text. The traceback travels as text, and becomes the
`__cause__` that `concurrent.futures` gives it.
"""

from __future__ import annotations

import builtins
import errno
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

from dpool._core import mainspace
from dpool._core.mainspace import deserialization_error, explain
from dpool._core.serialize_names import ATOMIC, plain
from dpool._core.serialize_pickler import PROTOCOL, Pickler, dump, dumps
from dpool._core.storage import pack, unpack
from dpool._store.serde import Parts

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_LONG = 64 * 1024

SHOWN = "_dpool_shown"
"""Attribute of an error of pickling a result, if asked for: its own `repr` as it was raised, and that of the result."""

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def home_pickler(parts: Parts | None = None) -> Pickler:
    """A pickler for what is sent to the process that submits, or by it."""
    if mainspace.installed:
        return Pickler(known=mainspace.members, home=True, parts=parts)
    return Pickler(parts=parts)


def dump_result(value: Any, label: str) -> Any:
    """A task's result as it travels, bytes or a `Stored`; this process holds it if it lies in the object store.

    Raises like `pickle_result`, and ObjectStoreFull.
    """
    pickled, keep = pickle_result(value, label)
    return pickled if isinstance(pickled, bytes) else pack(pickled, keep)


def pickle_result(value: Any, label: str, show: bool = False) -> tuple[Parts | bytes, list[Any]]:
    """A task's result: its pickle, or the parts of it, and Handles of what it refers to in the object store.

    `show`: an error of it has the attribute SHOWN.

    Raises:
        PicklingError, TypeError, …: what pickling raised; its text names the task and the type.
    """
    try:
        if plain(value) and (type(value) not in (str, bytes) or len(value) <= _LONG):
            return pickle.dumps(value, PROTOCOL), []
        parts = Parts()
        pickler = home_pickler(parts)
        dump(value, pickler)
        parts.alone = not (pickler.loads or pickler.uses)
        return parts, pickler.keep
    except Exception as error:
        if show:
            _show(error, value)
        what = f"the result of {label!r}" if label else "the task's result"
        _say(error, f"while pickling {what}, of type {type(value).__qualname__}")
        raise


def _show(error: Exception, result: Any) -> None:
    try:
        text = repr(result)
    except Exception as failure:
        text = f"<{type(result).__qualname__}, whose repr raised {explain(failure)}>"
    setattr(error, SHOWN, (repr(error), text))


def _say(error: Exception, text: str) -> None:
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]} ({text})",)
    elif sys.version_info >= (3, 11):
        error.add_note(text)


def load_result(data: bytes, label: str) -> Any:
    """What `dump_result` pickled.

    Raises:
        DeserializationError: anything was raised while unpickling (SystemExit too; only KeyboardInterrupt passes).
    """
    return load_value(lambda: unpack(data), label)


def load_value(load: Callable[[], Any], label: str) -> Any:
    """A result, by `load`; raises like `load_result`. What is lost is said as it is, and that descriptors are short."""
    try:
        return load()
    except KeyboardInterrupt:
        raise
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise deserialization_error(f"the result of {label!r} does not unpickle: {explain(error)}") from error
        raise
    except BaseException as error:
        if type(error).__module__ == "dpool.errors":
            failure: BaseException = error.with_traceback(None)
            raise failure from None
        failure = deserialization_error(f"the result of {label!r} does not unpickle: {explain(error)}")
        failure.__cause__ = _remote(_format(error))
    raise failure  # without a context: its frames, of whatever thread reads, would live as long as the future


# ---------------------------------------------------------------------------------------- exceptions


def dump_exception(exc: BaseException, label: str, keep: list[Any] | None = None) -> bytes:
    """A task's exception with its traceback as text; frames and tracebacks are let go.

    `keep` gets the Handles of what it refers to in the object store.
    """
    text = _format(exc)
    _drop_tracebacks(exc)
    facts = _facts(exc)
    blob = None
    for make in (_pickle_whole, _pickle_without_init):
        try:
            pickler = home_pickler()
            blob = make(exc, pickler)
            if keep is not None:
                keep += pickler.keep
            break
        except KeyboardInterrupt:
            raise
        except BaseException:  # whatever its reducers raise: the next, simpler way is tried
            continue
    return pickle.dumps((text, blob, facts), PROTOCOL)


def load_exception(data: bytes, label: str) -> BaseException:
    """The exception that `dump_exception` pickled, or its surrogate, with the remote traceback as `__cause__`."""
    text, blob, facts = pickle.loads(data)
    exc: BaseException | None = None
    if blob is not None:
        try:
            exc = pickle.loads(blob)
        except KeyboardInterrupt:
            raise
        except BaseException:  # its class is not here: the surrogate says what it was
            exc = None
    if not isinstance(exc, BaseException):
        exc = make_surrogate(*facts)
    exc.__cause__ = _remote(text)
    return exc


def _remote(text: str) -> BaseException:
    """A traceback as text, as the standard library shows those of its workers."""
    from concurrent.futures import process

    remote: Any = process._RemoteTraceback
    made: BaseException = remote(f'\n"""\n{text}"""')
    return made


def _format(exc: BaseException) -> str:
    import traceback

    first: TracebackType | None = exc.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_HERE):
        first = first.tb_next  # dpool's own frames above the task
    try:
        return "".join(traceback.format_exception(type(exc), exc, first or exc.__traceback__))
    except Exception as error:  # a __str__ that raises
        return f"{type(exc).__qualname__} (its traceback cannot be formatted: {explain(error)})\n"


def _drop_tracebacks(exc: BaseException) -> None:
    """Let go of the frames, and with them of the task's locals."""
    waiting: list[Any] = [exc]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        waiting += (one.__cause__, one.__context__)
        if type(one).__basicsize__ > BaseException.__basicsize__:  # perhaps a group
            members = getattr(one, "exceptions", None)
            waiting += members if isinstance(members, tuple) else ()


def _pickle_whole(exc: BaseException, pickler: Pickler) -> bytes:
    """The exception's own pickle, if loading it gives the same type and arguments."""
    blob = dumps(exc, pickler)
    again = pickle.loads(blob)
    if type(again) is not type(exc) or not _same_args(again.args, exc.args):
        raise pickle.PicklingError("it comes back as something else")
    return blob


def _same_args(one: Any, other: Any) -> bool:
    """Whether two exceptions' arguments agree, as far as they are atomic."""
    return len(one) == len(other) and all(
        type(a) is type(b) and (type(a) not in ATOMIC or a == b or a != a) for a, b in zip(one, other, strict=True)
    )


def _pickle_without_init(exc: BaseException, pickler: Pickler) -> bytes:
    """For classes whose `__init__` does not take what is in `args`: type, args and attributes, without calling it."""
    cls = type(exc)
    if cls.__reduce__ is not BaseException.__reduce__ or cls.__reduce_ex__ is not BaseException.__reduce_ex__:
        raise pickle.PicklingError("it has its own way of pickling")
    if _native_base(cls).__basicsize__ != BaseException.__basicsize__ or any(
        vars(one).get("__slots__") for one in cls.__mro__
    ):
        raise pickle.PicklingError("it has fields that only its own constructor fills")
    blob = dumps(_Bare(exc), pickler)
    pickle.loads(blob)
    return blob


class _Bare:
    """Pickles as `make_bare(type, args, attributes)`."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce__(self) -> Any:
        exc = self._exc
        return make_bare, (type(exc), exc.args, dict(exc.__dict__))


def make_bare(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    """An exception made without its `__init__`."""
    exc = BaseException.__new__(cls, *args)
    exc.__dict__.update(attributes)
    return exc


def _native_base(cls: type) -> type:
    """The nearest builtin exception class, or BaseException."""
    return next((base for base in cls.__mro__ if base.__module__ == "builtins"), BaseException)


def _facts(exc: BaseException) -> tuple[str, str, str, str]:
    """What a surrogate is made from: name, full name, builtin base, text."""
    cls = type(exc)
    try:
        text = str(exc)
    except Exception as error:  # a __str__ that raises
        text = f"(its text cannot be made: {explain(error)})"
    full_name = getattr(exc, "remote_type", None) if cls.__module__ == __name__ else None  # a surrogate travels on
    return cls.__name__, full_name or f"{cls.__module__}.{cls.__qualname__}", _native_base(cls).__name__, text


def make_surrogate(name: str, full_name: str, base_name: str, text: str) -> BaseException:
    """An exception for one that cannot travel: its class has the same name and builtin base, and is a `DpoolError`.

    Its attribute `remote_type` has the original's full name.
    """
    base: Any = getattr(builtins, base_name, Exception)
    facts = (name, full_name, base_name, text)
    from dpool.errors import DpoolError

    for bases in ((DpoolError, base), (DpoolError,)):
        try:
            cls: Any = type(name, bases, {"__reduce__": lambda self: (make_surrogate, facts), "__module__": __name__})
            made: BaseException = cls(text)
        except TypeError:  # a builtin that takes other arguments, as UnicodeDecodeError does
            continue
        break
    made.remote_type = full_name  # type: ignore[attr-defined]
    return made
