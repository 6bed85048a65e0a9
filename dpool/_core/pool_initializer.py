"""The initializer of a pool's workers: pickled once, sent to each fresh worker before its first task."""

from __future__ import annotations

import os
from pickle import dumps
from typing import TYPE_CHECKING, Any

from dpool._core import frames, wire
from dpool._core.storage import Stored

if TYPE_CHECKING:
    from collections.abc import Callable


class Initializer:
    """One pool's; false if it has none."""

    def __init__(
        self,
        fn: Callable[..., object] | None,
        args: tuple[Any, ...],
        prepare: Callable[..., tuple[Any, Any]],
    ) -> None:
        self._fn = fn
        self._args = args
        self._prepare = prepare
        self._call: tuple[Any, Any] | None = None
        self._fds: tuple[int, ...] = ()
        """Descriptors among the arguments; see `inherit`."""
        self.failures = 0
        """In a row, of a standing pool."""

    def __bool__(self) -> bool:
        return self._fn is not None

    def prepared(self) -> tuple[Any, Any]:
        """Its export and call; whatever pickling them raises."""
        if self._call is None:
            from dpool._core.inherit import pickling_for_workers

            with pickling_for_workers() as inherited:
                export, call = self._prepare(self._fn, self._args, {})
                if call.__class__ is tuple:
                    call = dumps((call, {}), 5)
            self._call = export, call
            self._fds = inherited.take()
        return self._call

    def send(self, link: Any) -> None:
        """Write it to a fresh worker. OSError if that is gone."""
        export, call = self.prepared()
        items = link.shipped.missing(export)
        env, link.gpus = link.gpus, None
        if call.__class__ is Stored:
            call = call.wire
        data = dumps((0, frames.INIT, (items, [], env), 0 if export.inline else export.number, [call]), 5)
        wire.send(link.sock, data, self._fds)

    def close(self) -> None:
        """No worker will need it any more."""
        fds, self._fds = self._fds, ()
        for fd in fds:
            os.close(fd)
        self._args = ()
        self._call = None
