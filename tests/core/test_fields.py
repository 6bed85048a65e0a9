"""Fields of messages are checked by their annotations: what fits, what does not, and all messages that there are."""

from __future__ import annotations

import pickle
import signal
from typing import Any, NamedTuple

import pytest

from dpool._core import peer_messages as pm
from dpool._core.fields import MOST, checker
from dpool._core.messages import ProtocolError


class Inner(NamedTuple):
    number: int


class Outer(NamedTuple):
    number: int
    amount: float
    pairs: tuple[tuple[str, int], ...]
    table: dict[bytes, list[int]]
    inner: Inner | None
    pair: tuple[int, str]
    names: set[str]
    flag: bool
    anything: Any = None


GOOD = (1, 0.5, (("a", 1),), {b"x": [1]}, (3,), (1, "x"), {"n"}, True, object())


@pytest.mark.parametrize(
    "change",
    [
        {0: signal.SIGINT}, {0: -(2**63)}, {0: MOST}, {1: 7}, {2: ()}, {2: [["a", 1]]}, {3: {}}, {4: None},
        {4: Inner(3)}, {8: "x"},
    ],
)  # fmt: skip
def test_what_fits(change: dict[int, Any]) -> None:
    fields = tuple(change.get(at, value) for at, value in enumerate(GOOD))
    checker(Outer)(fields)
    checker(Outer)(fields[:-1])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({0: True}, "number"), ({0: "1"}, "number"), ({0: 2**64}, "number"), ({0: -(2**63) - 1}, "number"),
        ({1: "0.5"}, "amount"), ({2: (("a", "b"),)}, "pairs"), ({2: (("a",),)}, "pairs"), ({2: None}, "pairs"),
        ({3: {"x": [1]}}, "table"), ({3: {b"x": [None]}}, "table"), ({3: []}, "table"), ({4: ("3",)}, "inner"),
        ({4: 3}, "inner"), ({5: (1,)}, "pair"), ({6: {1}}, "names"), ({7: 1}, "flag"),
    ],
)  # fmt: skip
def test_what_does_not_fit(change: dict[int, Any], name: str) -> None:
    with pytest.raises(ProtocolError, match=name):
        checker(Outer)(tuple(change.get(at, value) for at, value in enumerate(GOOD)))


@pytest.mark.parametrize("fields", [(), GOOD[:7], (*GOOD, 1), list(GOOD), None])
def test_other_fields(fields: Any) -> None:
    with pytest.raises(ProtocolError, match="Outer"):
        checker(Outer)(fields)


def test_what_cannot_be_checked_is_said_at_once() -> None:
    class Strange(NamedTuple):
        file: type

    with pytest.raises(TypeError, match="type"):
        checker(Strange)


@pytest.mark.parametrize("kind", pm.MESSAGES)
def test_no_message_is_made_of_nonsense(kind: Any) -> None:
    """Whatever has other fields than a message should is malformed: nothing else is raised, and nothing comes of it."""
    nonsense: list[Any] = [None, [], "text", (None,) * (len(kind._fields) + 1)]
    if len(kind._fields) > len(kind._field_defaults):
        nonsense += [(), (print,) * len(kind._fields)]
    for fields in nonsense:
        with pytest.raises(ProtocolError):
            pm.decode(pm._CODES[kind] + pickle.dumps(fields))


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\xff", b"\x01", b"\x01garbage", b"\x01\x80\x05"])
def test_no_message_at_all(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        pm.decode(payload)
