"""Arguments and results: value in = value out, by reference where it can be, and what is registered is respected."""

from __future__ import annotations

import collections
import copyreg
import dis
import enum
import functools
import operator
import pickle
import pkgutil
import sys
import textwrap
import types
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpool._core import serialize, serialize_reducers
from dpool._core.serialize_names import code_facts, is_importable, plain
from tests.core.serialize_peer import Peer
from tests.helpers import REPOSITORY, run_script


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as one:
        yield one


def echo(*args: Any, **kwargs: Any) -> Any:
    return (args, kwargs)


class Colour(enum.Enum):
    RED = 1


class Odd:
    """Compared by what it holds; registered nowhere."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
)
keys = st.none() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
leaves = atoms | st.sampled_from([Colour.RED, len, textwrap.dedent, Odd, Odd(1), range(3), ..., operator.add])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=5)
        | st.frozensets(keys, max_size=5)
        | st.sets(keys, max_size=5)
        | st.builds(Odd, inner)
        | st.builds(collections.deque, st.lists(inner, max_size=3))
        | st.builds(bytearray, st.binary())
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(args=st.lists(values, max_size=4).map(tuple), kwargs=st.dictionaries(st.text(), values, max_size=3))
def test_arguments_come_out_as_they_went_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    exporter, importer, shipped = serialize.Exporter(), serialize.Importer(), serialize.Shipped()
    for function in (echo, functools.partial(echo)):
        export, payload = exporter.prepare(function, args, kwargs)
        importer.install(shipped.missing(export))
        if export.inline:
            got, *call = importer.load_inline(payload)  # type: ignore[arg-type]
        else:
            got = importer.function(export.number)
            call = [payload, {}] if type(payload) is tuple else list(importer.load_call(payload))  # type: ignore[arg-type]
        assert call == [args, kwargs]
        assert list(map(type, call[0])) == list(map(type, args))
        assert got(*args, **kwargs) == (args, kwargs)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=values)
def test_results_come_out_as_they_went_in(value: Any) -> None:
    back = serialize.load_result(serialize.dump_result(value, "task"), "task")
    assert back == value
    assert type(back) is type(value)


def test_small_atomic_arguments_travel_as_they_are() -> None:
    exporter = serialize.Exporter()
    small = (1, 2.5, True, None, 1j, "x" * 1024, b"x" * 1024)
    for function in (len, echo, textwrap.dedent, int):
        for _ in range(2):
            assert exporter.prepare(function, small, {})[1] is small
    large: list[tuple[Any, ...]] = [("x" * 1025,), (b"x" * 1025,), ([],), (Colour.RED,), (bool,)]
    for args in large:
        assert type(exporter.prepare(len, args, {})[1]) is bytes
    assert type(exporter.prepare(len, (), {"x": 1})[1]) is bytes


class IntLike(int):
    pass


def test_subclasses_of_atoms_keep_their_type(peer: Peer) -> None:
    args, _ = peer(echo, IntLike(5), Colour.RED)
    assert type(args[0]) is IntLike
    assert args[1] is Colour.RED


@pytest.mark.parametrize(
    "function", [len, operator.add, textwrap.dedent, int, collections.OrderedDict, Odd, echo, functools.reduce]
)
def test_importable_things_travel_by_name(function: Any) -> None:
    export, _ = serialize.Exporter().prepare(function, (), {})
    assert not export.inline
    assert export.requires == ()
    assert len(export.blob) < 150


def test_methods_partials_and_instances_travel_inline(peer: Peer) -> None:
    exporter = serialize.Exporter()
    for function in (functools.partial(len, "ab"), "ab".upper, Odd(1).__hash__, operator.attrgetter("real"), str.upper):
        export, payload = exporter.prepare(function, (), {})
        assert export.inline
        assert type(payload) is bytes
    first, _ = exporter.prepare(functools.partial(len), ("a",), {})
    second, _ = exporter.prepare("ab".upper, (), {})
    assert first is second
    assert peer("ab".upper) == "AB"
    assert peer(functools.partial(divmod, 7), 2) == (3, 1)
    assert peer(str.upper, "ab") == "AB"


def test_lambdas_and_closures_are_shipped_once_they_come_again(peer: Peer) -> None:
    offset = 5

    def closure(x: int) -> int:
        return x + offset

    exporter = peer.exporter
    first, _ = exporter.prepare(closure, (1,), {})
    second, payload = exporter.prepare(closure, (1,), {})
    third, _ = exporter.prepare(closure, (2,), {})
    assert first.inline
    assert not second.inline
    assert payload == (1,)
    assert third is second
    assert [peer(closure, x) for x in (1, 2, 3)] == [6, 7, 8]
    assert peer.sent[1:] == [[], []]


def test_what_a_closure_could_change_is_its_own_in_each_call(peer: Peer) -> None:
    found: list[int] = []
    count = 0

    def append() -> int:
        found.append(1)
        return len(found)

    def bump() -> int:
        nonlocal count
        count += 1
        return count

    assert [peer(append) for _ in range(4)] == [1] * 4
    assert [peer(bump) for _ in range(4)] == [1] * 4


def test_a_module_that_only_this_process_has_travels_by_value(peer: Peer, tmp_path: Path) -> None:
    made = types.ModuleType("made_up_here")
    exec("def task(): return helper() + N\ndef helper(): return 1\nN = 1\nclass Box:\n    size = N", made.__dict__)
    sys.modules["made_up_here"] = made
    try:
        assert not is_importable("made_up_here")
        assert peer(made.task) == 2
        assert type(peer(lambda: made.Box())) is made.Box
        assert peer(lambda: made.N) == 1
    finally:
        del sys.modules["made_up_here"]
    path = tmp_path / "found_once.py"
    path.write_text("def task(): return 7\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import found_once  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    try:
        assert not is_importable("found_once")
        assert peer(found_once.task) == 7
    finally:
        del sys.modules["found_once"]


@pytest.mark.parametrize(
    "name", ["os", "os.path", "sys", "collections.abc", "xml.etree.ElementTree", "numpy", __name__]
)
def test_ordinary_modules_are_importable(name: str) -> None:
    __import__(name)
    assert is_importable(name)


def test_modules_registered_by_value_are_respected(tmp_path: Path) -> None:
    (tmp_path / "edited.py").write_text("N = 1\ndef helper(): return N\ndef task(): return helper()\nclass Box: pass\n")
    result = run_script(
        """
import sys, cloudpickle, edited
from tests.core.serialize_peer import Peer
with Peer() as peer:
    assert peer(edited.task) == 1
    edited.N = 2
    assert peer(edited.task) == 1  # by reference: the worker has its own module
    cloudpickle.register_pickle_by_value(edited)
    assert [peer(edited.task) for _ in range(3)] == [2, 2, 2]
    edited.N = 3
    assert [peer(edited.task) for _ in range(3)] == [3, 3, 3]
    assert type(peer(lambda: edited.Box())) is edited.Box
    cloudpickle.unregister_pickle_by_value(edited)
    assert peer(edited.task) == 1
print("done")
""",
        env={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
    )
    assert result.stdout == "done\n", result.stderr


class Registered:
    def __reduce__(self) -> Any:
        raise AssertionError("the registered reducer goes first")


class Meta(type):
    pass


def reduce_registered(obj: Registered) -> Any:
    return dict, ([("registered", True)],)


def reduce_meta(cls: Any) -> Any:
    return str, ("a class",)


def make_generator() -> Any:
    yield


def test_copyreg_is_respected() -> None:
    copyreg.pickle(Registered, reduce_registered)
    local = Meta("Local", (), {})
    copyreg.pickle(Meta, reduce_meta)
    try:
        back = serialize.load_result(serialize.dump_result([Registered(), local], "task"), "task")
        assert back == [{"registered": True}, "a class"]
    finally:
        del copyreg.dispatch_table[Registered]
        del copyreg.dispatch_table[Meta]


def test_forking_pickler_is_respected_and_goes_before_copyreg() -> None:
    ForkingPickler.register(Registered, reduce_registered)
    copyreg.pickle(Registered, reduce_meta)
    try:
        exporter = serialize.Exporter()
        _, payload = exporter.prepare(len, (Registered(),), {})
        assert pickle.loads(payload) == (({"registered": True},), {})  # type: ignore[arg-type]
    finally:
        del ForkingPickler._extra_reducers[Registered]  # type: ignore[attr-defined]
        del copyreg.dispatch_table[Registered]


def test_types_that_only_cloudpickle_can_pickle(peer: Peer) -> None:
    args = (memoryview(b"ab"), {1: 2}.keys(), types.MappingProxyType({1: 2}), property(len), echo.__code__)
    view, keys_, proxy, prop, code = peer(echo, *args)[0]
    assert (view, list(keys_), dict(proxy), prop.fget, code) == (b"ab", [1], {1: 2}, len, echo.__code__)


def test_types_of_the_interpreter(peer: Peer) -> None:
    kinds = (types.FunctionType, types.CodeType, type(None), type(...), types.ModuleType, type, object)
    assert peer(echo, *kinds)[0] == kinds
    assert peer(echo, sys, collections)[0] == (sys, collections)


def test_errors_of_pickling_keep_their_type_and_name_the_function() -> None:
    exporter = serialize.Exporter()
    with pytest.raises(TypeError, match=r"generator.*arguments of 'len'"):
        exporter.prepare(len, (make_generator(),), {})
    with pytest.raises(TypeError, match=r"generator.*call of 'partial\(len\)'"):
        exporter.prepare(functools.partial(len, make_generator()), (), {})
    stream = make_generator()
    with pytest.raises(TypeError, match=r"generator.*function '.*<lambda>'"):
        exporter.prepare(lambda: stream, (), {})

    class Refuses:
        def __reduce__(self) -> Any:
            raise LookupError("no", 5)

    with pytest.raises(LookupError) as caught:
        exporter.prepare(len, (Refuses(),), {})
    assert caught.value.args == ("no", 5)
    if sys.version_info >= (3, 11):
        assert "arguments of 'len'" in caught.value.__notes__[0]
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(pickle.PicklingError, match="nested too deeply"):
        exporter.prepare(len, (deep,), {})


def test_changed_internals_of_cloudpickle_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cloudpickle.cloudpickle, "_dynamic_class_reduce")

    class Local:
        pass

    with pytest.raises(ImportError, match=rf"cloudpickle {cloudpickle.__version__}.*_dynamic_class_reduce"):
        serialize.Exporter().prepare(len, (Local(),), {})
    with pytest.raises(ImportError):
        serialize_reducers.cloud()


def test_plain_is_true_only_for_containers_of_atoms() -> None:
    assert all(map(plain, (1, "a", [1, 2], {"a": [1.5, (None, b"")]}, {1, 2}, frozenset({"x"}), [[[1]]])))
    assert not any(map(plain, (Odd(1), [Odd(1)], {Odd(1): 1}, [IntLike(1)], [[[[[[1]]]]]], collections.OrderedDict())))
    assert not plain(list(range(1001)), 1000)


def test_global_names_of_code_are_what_dis_says() -> None:
    checked = 0
    for name in ("argparse", "ast", "asyncio.base_events", "contextlib", "dataclasses", "inspect", "pickle", "typing"):
        module = pkgutil.resolve_name(name)
        for function in vars(module).values():
            if isinstance(function, types.FunctionType):
                assert_names(function.__code__)
                checked += 1
    assert checked > 200


def assert_names(code: types.CodeType) -> None:
    reads, writes, rebinds = set(), set(), False
    waiting = [code]
    while waiting:
        one = waiting.pop()
        waiting += [constant for constant in one.co_consts if isinstance(constant, types.CodeType)]
        for step in dis.get_instructions(one):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                reads.add(step.argval)
            elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                writes.add(step.argval)
            elif step.opname == "STORE_DEREF":
                rebinds |= step.argval in one.co_freevars
    facts = code_facts(code)
    assert (set(facts.reads), set(facts.writes), facts.rebinds) == (reads, writes, rebinds)


def test_a_function_with_many_names_and_constants() -> None:
    """EXTENDED_ARG: more than 256 names."""
    text = "def f():\n" + "".join(f"    global g{n}\n    g{n} = h{n}\n" for n in range(400))
    space: dict[str, Any] = {}
    exec(text, space)
    assert_names(space["f"].__code__)
