"""A worker's `__main__`, and the functions it has been sent.

```
 frame ──install()──► definitions ──► sys.modules["__main__"]   (at once, one inside the other where they need it)
                      functions   ──► kept as bytes, loaded when first called
```

One thread: the worker's. Items arrive in the order in which the submitter wrote them, between the tasks that need the
old and the new version of a name. A definition or function that fails to load is remembered with its error; only the
tasks that require it fail. What the worker itself wrote into a global stays until the submitter's own value changes.
"""

from __future__ import annotations

import builtins
import io
import os
import pickle
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dpool._core import serialize_rebuild as rebuild
from dpool._core import storage
from dpool._core.context import here
from dpool._core.frames import ATTRIBUTE, METHOD
from dpool._core.serialize_names import MAIN_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpool._core.storage import Place
    from dpool.errors import DeserializationError

    Call = tuple[tuple[Any, ...], dict[str, Any]]

members: dict[str, Any] = {}
"""In a worker: the globals of `__main__` that the submitter sent, as they were installed."""

installed = False
"""This process' `__main__` was built by `install_main`."""


def install_main(file: str | None = None, package: str | None = None) -> ModuleType:
    """Replace `__main__` by an empty one that looks like the driver's: same `__file__` and `__package__`."""
    global installed
    module = ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins, __package__=package, __spec__=None, __loader__=None)
    if file is not None:
        module.__file__ = file
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    members.clear()
    installed = True
    return module


def explain(error: BaseException) -> str:
    """The type and text of an error in one line; where, if a module is missing: it may be there on other machines."""
    text, host = str(error), os.uname().nodename
    if isinstance(error, ModuleNotFoundError) and f" on {host}" not in text:
        text = f"{text} on {host}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Circular(Exception):
    """While `name` is loaded `others`, one inside the other, are, and the last of them needs `name`."""

    def __init__(self, name: str, others: list[str]) -> None:
        super().__init__(name)
        self.name = name
        self.others = others


def deserialization_error(text: str) -> DeserializationError:
    """The error; its module, and the standard library's executors with it, is imported when it is first needed."""
    from dpool.errors import DeserializationError

    return DeserializationError(text)


def _is_ours(error: BaseException) -> bool:
    errors = sys.modules.get("dpool.errors")
    return errors is not None and isinstance(error, errors.DeserializationError)


def _is_lost(error: BaseException) -> bool:
    """The object store said what is wrong."""
    errors = sys.modules.get("dpool.errors")
    return errors is not None and isinstance(error, (errors.ObjectLost, errors.ObjectStoreFull))


def load_payload(payload: bytes | Place) -> Any:
    """The value of a task's payload: a pickle, a flat value, or an object in the store."""
    if type(payload) is bytes:
        return pickle.loads(payload) if payload[:1] == b"\x80" else storage.unpack(payload)
    return storage.load(payload)  # type: ignore[arg-type]


class _HereLoader(pickle.Unpickler):
    """Loads what was pickled in this very process."""

    def persistent_load(self, name: Any) -> Any:
        return rebuild.main_dict()[name]


def load_function(blob: bytes) -> Callable[..., Any]:
    """A function that this process itself has pickled, as whoever it was meant for would have got it."""
    return _HereLoader(io.BytesIO(blob)).load()  # type: ignore[no-any-return]


class _Loader(pickle.Unpickler):
    """Loads what refers to globals of `__main__` that may not have been loaded yet."""

    def __init__(self, importer: Importer, blob: bytes) -> None:
        super().__init__(io.BytesIO(blob))
        self._ensure = importer.ensure

    def find_class(self, module: str, name: str) -> Any:
        if module in MAIN_NAMES:
            self._ensure(name.partition(".")[0])
        return super().find_class(module, name)

    def persistent_load(self, name: Any) -> Any:
        self._ensure(name)
        return rebuild.main_dict()[name]


def _of_actor(kind: int, name: str) -> Callable[..., Any]:
    if kind == ATTRIBUTE:
        return partial(getattr, here.actor, name)
    from dpool._core.actor_methods import method

    return method(name)


class Importer:
    """What a worker has received from its submitter."""

    def __init__(self) -> None:
        self._functions: dict[int, Callable[..., Any]] = {}
        self._blobs: dict[int, bytes] = {}
        self._pending: dict[str, tuple[int, bytes]] = {}
        self._failed: dict[int, BaseException] = {}
        self._broken: dict[str, BaseException] = {}
        self._loading: list[str] = []
        self._postponed: set[str] = set()
        self.install_main = install_main

    def install(self, items: list[tuple[int, str, bytes]]) -> None:
        """Take `(number, name, blob)` items: definitions of the global `name`, or a function where `name` is empty."""
        for number, name, blob in items:
            if name:
                self._pending[name] = (number, blob)
            else:
                self._blobs[number] = blob
                self._functions.pop(number, None)
        while self._pending:
            self._define(next(iter(self._pending)))

    def ensure(self, name: str) -> None:
        """Load the definition of `name` if it waits; raise its error if it could not be loaded."""
        if name in self._pending:
            self._define(name)
        elif name in self._loading and name not in rebuild.begun:
            raise _Circular(name, self._loading[self._loading.index(name) + 1 :])
        error = self._broken.get(name)
        if error is not None:
            raise error

    def _define(self, name: str) -> None:
        number, blob = item = self._pending.pop(name)
        self._failed.pop(number, None)
        self._broken.pop(name, None)
        rebuild.begun.discard(name)
        self._loading.append(name)
        try:
            self._assign(name, blob)
            return
        except KeyboardInterrupt:
            self._pending[name] = item
            raise
        except _Circular as circle:
            self._pending[name] = item
            if circle.name != name:
                raise
            others = circle.others
        except BaseException as error:
            self._fail(name, number, error)
            return
        finally:
            self._loading.pop()
        self._define_after(name, others)

    def _define_after(self, name: str, others: list[str]) -> None:
        """Load `name`, which others need before it exists, after the first of these, which it may need but in part."""
        if not others or name in self._postponed:
            number, _ = self._pending.pop(name)
            self._fail(name, number, ImportError(f"it and {', '.join(others) or 'itself'} need each other"))
            return
        self._postponed.add(name)
        try:
            self.ensure(others[0])
        finally:
            self._postponed.discard(name)
        if name in self._pending:
            self._define(name)

    def _assign(self, name: str, blob: bytes) -> None:
        space = rebuild.main_dict()
        if blob:
            space[name] = members[name] = _Loader(self, blob).load()
        else:  # the submitter has deleted it
            space.pop(name, None)
            members.pop(name, None)

    def _fail(self, name: str, number: int, error: BaseException) -> None:
        rebuild.main_dict().pop(name, None)
        members.pop(name, None)
        what = f"the global {name!r} of __main__ does not load in the worker: {explain(error)}"
        failure = error if _is_ours(error) else deserialization_error(what)
        if failure is not error:
            failure.__cause__ = error.with_traceback(None)
        self._failed[number] = self._broken[name] = failure

    def function(self, number: int) -> Callable[..., Any]:
        """The function that was shipped as `number`.

        Raises:
            DeserializationError: it, or a global that it refers to, does not load here.
        """
        try:
            return self._functions[number]
        except KeyError:
            return self._load_function(number)

    def _load_function(self, number: int) -> Callable[..., Any]:
        blob = self._blobs.get(number)
        if blob is None:
            raise deserialization_error(f"the worker was never sent the function number {number}")
        requires, kind, content = pickle.loads(blob)
        self._check(requires)
        try:
            function: Callable[..., Any]
            if kind in (METHOD, ATTRIBUTE) and type(kind) is int:
                function = _of_actor(kind, content)
            else:
                function = rebuild.resolve(*content) if kind else _Loader(self, content).load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if _is_ours(error):
                raise
            raise deserialization_error(f"the function does not load in the worker: {explain(error)}") from error
        self._functions[number] = function
        return function

    def _check(self, requires: tuple[int, ...]) -> None:
        if self._failed:
            for number in requires:
                if number in self._failed:
                    raise self._failed[number]

    def forget(self, numbers: list[int]) -> None:
        """Drop functions that the submitter will not use again."""
        for number in numbers:
            self._blobs.pop(number, None)
            self._functions.pop(number, None)

    def load_call(self, payload: bytes | Place, function: Callable[..., Any] | None = None) -> Call:
        """`(args, kwargs)` of a task; `function` is what its errors name.

        Raises:
            DeserializationError: unpickling raised; the message names what.
        """
        try:
            return load_payload(payload)  # type: ignore[no-any-return]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if _is_lost(error):
                raise
            raise self._argument_error(error, function) from error

    def load_inline(self, payload: bytes) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """`(function, args, kwargs)` of a task whose function travels with it.

        Raises:
            DeserializationError: as for `load_call`.
        """
        requires, function, content = pickle.loads(payload)
        self._check(requires)
        called = None
        try:
            if function is None:
                return load_payload(content)  # type: ignore[no-any-return]
            called = _Loader(self, function).load()
            return (called, *load_payload(content))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if _is_ours(error) or _is_lost(error):
                raise
            raise self._argument_error(error, called) from error

    def _argument_error(self, error: BaseException, function: Any) -> DeserializationError:
        failed = next(iter(self._broken.values()), None)
        also = f" ({failed})" if failed is not None else ""
        task = "the task" if function is None else repr(getattr(function, "__qualname__", type(function).__name__))
        return deserialization_error(f"the arguments of {task} do not unpickle in the worker: {explain(error)}{also}")


__all__ = ["Importer", "install_main", "installed", "members"]
