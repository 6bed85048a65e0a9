"""Results and exceptions on their way home."""

from __future__ import annotations

import builtins
import concurrent.futures.process
import gc
import os
import pickle
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from dpool._core.serialize import dump_exception, dump_result, load_exception, load_result
from dpool.errors import DeserializationError, DpoolError
from tests.core.serialize_peer import Peer
from tests.helpers import run_script


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as one:
        yield one


def raised(error: BaseException) -> BaseException:
    """What becomes of an exception that a task raises."""
    try:
        raise error
    except BaseException as caught:
        return load_exception(dump_exception(caught, "task"), "task")


def make_generator() -> Any:
    yield


def explode(text: str) -> Any:
    raise ValueError(text)


def leave() -> Any:
    raise SystemExit(3)


class BreaksThere:
    def __reduce__(self) -> Any:
        return explode, ("there",)


class LeavesThere:
    def __reduce__(self) -> Any:
        return leave, ()


class BreaksHere:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("Error in pickle")


class LeavesHere:
    def __reduce__(self) -> Any:
        raise SystemExit(5)


def test_a_result_that_does_not_pickle_keeps_the_error() -> None:
    with pytest.raises(pickle.PicklingError, match=r"Error in pickle.*result of 'work', of type BreaksHere"):
        dump_result(BreaksHere(), "work")
    with pytest.raises(TypeError, match=r"generator.*result of 'work', of type list"):
        dump_result([make_generator()], "work")
    with pytest.raises(SystemExit):
        dump_result(LeavesHere(), "work")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(pickle.PicklingError, match="nested too deeply"):
        dump_result(deep, "work")


@pytest.mark.parametrize(("value", "text"), [(BreaksThere(), "ValueError: there"), (LeavesThere(), "SystemExit: 3")])
def test_a_result_that_does_not_unpickle_says_whose_it_is(value: Any, text: str) -> None:
    data = dump_result(value, "work")
    with pytest.raises(DeserializationError, match=f"'work'.*{text}") as caught:
        load_result(data, "work")
    cause = caught.value.__cause__
    assert cause is not None
    assert text in str(cause)
    assert (cause.__traceback__, caught.value.__context__) == (None, None), "it keeps frames alive"
    with pytest.raises(DeserializationError):
        load_result(data[:-5], "work")


def interrupt() -> Any:
    raise KeyboardInterrupt


class Interrupts:
    def __reduce__(self) -> Any:
        return interrupt, ()


def test_an_interrupt_while_unpickling_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        load_result(dump_result(Interrupts(), "work"), "work")


class Custom(Exception):
    pass


class TwoArguments(ValueError):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Rewrites(KeyError):
    """Unpickles, but as something else: its argument is put into its text again."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class KeywordOnly(OSError):
    def __init__(self, *, path: str) -> None:
        super().__init__(2, "gone", path)


class HoldsLock(LookupError):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.stream = make_generator()


class Weird(BaseException):
    def __reduce__(self) -> Any:
        return explode, ("weird",)


class NoText(RuntimeError):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1),
        KeyError("k"),
        OSError(2, "gone", "path"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        Custom("x", [1]),
        StopIteration(5),
        pickle.PicklingError("p"),
        DeserializationError("d"),
    ],
    ids=repr,
)
def test_type_and_arguments_are_kept(error: Any) -> None:
    error.extra = {"a": 1}
    back: Any = raised(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert back.extra == {"a": 1}
    assert type(back.__cause__) is concurrent.futures.process._RemoteTraceback
    assert type(error).__name__ in back.__cause__.tb
    assert back.__traceback__ is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes and groups came with Python 3.11")
def test_notes_and_groups_are_kept() -> None:
    error: Any = ValueError("x")
    error.add_note("a note")
    back: Any = raised(error)
    assert back.__notes__ == ["a note"]
    assert "a note" in back.__cause__.tb
    group = getattr(builtins, "ExceptionGroup")("several", [ValueError("a"), Custom("b")])  # noqa: B009
    back = raised(group)
    assert [type(one) for one in back.exceptions] == [ValueError, Custom]


@pytest.mark.parametrize("error", [TwoArguments(1, "a"), Rewrites(5)], ids=repr)
def test_an_init_with_arguments_of_its_own(error: Any) -> None:
    back: Any = raised(error)
    assert type(back) is type(error)
    assert (back.args, back.code, str(back)) == (error.args, error.code, str(error))


@pytest.mark.parametrize(
    ("error", "base"),
    [(HoldsLock("text"), LookupError), (Weird("w"), BaseException), (KeywordOnly(path="p"), OSError)],
    ids=repr,
)
def test_a_surrogate_for_what_cannot_travel(error: BaseException, base: type) -> None:
    text = str(error)
    back: Any = raised(error)
    assert type(back) is not type(error)
    assert type(back).__name__ == type(error).__name__
    assert issubclass(type(back), DpoolError)
    assert issubclass(type(back), base)
    assert str(back) == text
    assert back.remote_type == f"{__name__}.{type(error).__name__}"
    assert text in back.__cause__.tb
    again: Any = raised(back)  # and it travels on
    assert (type(again).__name__, str(again), again.remote_type) == (type(back).__name__, text, back.remote_type)
    assert isinstance(again, base)


def test_an_exception_without_text() -> None:
    back = raised(NoText())
    assert type(back) is NoText
    assert "NoText" in back.__cause__.tb  # type: ignore[union-attr]


def chained() -> None:
    try:
        explode("first")
    except ValueError as error:
        raise Custom("second") from error


def nested(depth: int) -> None:
    if depth:
        nested(depth - 1)
    chained()


def test_the_remote_traceback_is_the_tasks(peer: Peer) -> None:
    with pytest.raises(Custom, match="second") as caught:
        peer(nested, 2)
    text = caught.value.__cause__.tb  # type: ignore[union-attr]
    assert text.startswith('\n"""\n')
    assert text.endswith('"""')
    assert "ValueError: first" in text
    assert "direct cause" in text
    assert "in nested" in text
    assert os.path.join("dpool", "_core") not in text


class Big:
    pass


def test_the_tasks_frames_are_let_go() -> None:
    big = Big()
    alive = weakref.ref(big)

    def fail(held: Big) -> None:
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise Custom("outer") from error

    try:
        fail(big)
    except Custom as error:
        kept = error
    del big
    dump_exception(kept, "task")
    gc.collect()
    assert alive() is None
    assert kept.__traceback__ is None
    assert kept.__cause__ is not None
    assert kept.__cause__.__traceback__ is None


def test_exceptions_of_main_and_local_classes() -> None:
    result = run_script(
        """
from tests.core.serialize_peer import Peer
from dpool.errors import DpoolError
class Error(ValueError):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code
def fail(): raise Error(5, "text")
def make():
    class Local(KeyError): pass
    def fail(): raise Local("k")
    return Local, fail
def remote():
    class Remote(KeyError): pass
    raise Remote("r")
with Peer() as peer:
    try: peer(fail)
    except Error as error: assert error.code == 5 and error.args == ("text",)
    Local, local = make()
    for _ in range(3):
        try: peer(local)
        except Local as error: assert error.args == ("k",)
    try: peer(remote)
    except KeyError as error: assert type(error).__name__ == "Remote" and error.args == ("r",)
    else: raise AssertionError
print("done")
"""
    )
    assert result.stdout == "done\n", result.stderr


def test_a_class_that_is_not_there_at_home() -> None:
    text, _, facts = pickle.loads(dump_exception(Custom("x"), "task"))
    elsewhere = b"cno_such_module\nGone\n(S'x'\ntR."
    back: Any = load_exception(pickle.dumps((text, elsewhere, facts)), "task")
    assert type(back).__name__ == "Custom"
    assert isinstance(back, DpoolError)
    assert str(back) == "x"
