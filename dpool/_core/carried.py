"""Which objects of the store the frames refer to that go to, and come from, other machines.

A frame for a worker on another machine has a sixth part, `Carried`; the gateways take it off. In frames of results, and
in the records of a journal, places stand where no user's data need be unpickled.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

from dpool._core import frames
from dpool._core.storage import Stored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dpool._core.future import Future

_STORED = (frames.STORED, frames.STORED_ALONE)
_WITH_PLACES = (*_STORED, frames.WITH_REFS, frames.RAISED_WITH_REFS)


class Carried(NamedTuple):
    """Ids of objects."""

    passing: list[bytes]
    """Whoever runs the tasks holds them as long as that takes."""
    lasting: list[bytes]
    """Functions refer to them: held as long as the worker has those."""
    wanted: list[bytes]
    """Of all these, the ones whose values the tasks need at once."""


def in_tasks(tasks: list[Future[Any]]) -> tuple[list[bytes], ...] | None:
    """The fields of Carried, for a frame of these tasks; None if there is nothing."""
    passing: dict[bytes, None] = {}
    lasting: dict[bytes, None] = {}
    wanted: dict[bytes, None] = {}
    exports: set[Any] = set()
    for future in tasks:
        call: Any = future._call
        if call.__class__ is Stored:
            passing.update(dict.fromkeys(_ids(call.keep)))
            wanted.update(dict.fromkeys(_ids(call.wanted)))
            if type(call.wire) is list:
                wanted[call.wire[0]] = None
        export: Any = future._export
        exports.update((export, *export.requires))
    for export in exports:
        for kept in export.keep:
            ids = _ids((kept,))
            lasting.update(dict.fromkeys(ids))
            if not hasattr(kept, "obj"):  # a reference that stands for a large global
                wanted.update(dict.fromkeys(ids))
    if not passing and not lasting:
        return None
    return list(passing), list(lasting), list(wanted)


def _ids(kept: Iterable[Any]) -> list[bytes]:
    """Of Handles, and of what ObjectRefs hold."""
    found: list[bytes] = []
    for one in kept:
        if hasattr(one, "obj"):
            found.append(one.obj)
        else:
            inner = (one._handle, *one._inner)
            found += [handle.obj for handle in inner if handle is not None]
    return found


def in_value(value: Any) -> list[bytes]:
    """The objects that a result is, or refers to; each is held once in the submitter's name."""
    if value.__class__ is not tuple or value[0] not in _WITH_PLACES:
        return []
    places = [value[1]] if value[0] in _STORED else value[1][1]
    return [place[0] for place in places]


def in_journal(journal: bytes, noted: int) -> list[list[bytes]]:
    """The same for each of the results that a worker has noted."""
    reader = pickle.Unpickler(io.BytesIO(journal))
    return [in_value(reader.load()) for _ in range(noted)]
