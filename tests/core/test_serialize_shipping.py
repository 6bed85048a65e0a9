"""What is shipped when, what is forgotten, and the numbers."""

from __future__ import annotations

import gc
import pickle
import textwrap
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from dpool._core import serialize
from dpool._core.serialize import Definition, Export, Exporter, Importer, Shipped
from dpool.errors import DeserializationError
from tests.core.serialize_peer import Peer
from tests.helpers import run_script


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as one:
        yield one


def make_closure(value: Any) -> Any:
    return lambda: value


def test_a_function_is_shipped_once_per_worker() -> None:
    exporter, one, two = Exporter(), Shipped(), Shipped()
    export, _ = exporter.prepare(len, (), {})
    again, _ = exporter.prepare(len, (), {})
    assert again is export
    assert export.number not in one.ready
    assert [(number, name) for number, name, _ in one.missing(export)] == [(export.number, "")]
    assert export.number in one.ready
    assert one.missing(export) == []
    assert two.missing(export) != []


def test_numbers_are_unique_and_increase() -> None:
    numbers = [Exporter().prepare(function, (), {})[0].number for function in (len, int, max)]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 0


def test_another_version_of_a_name_makes_exports_unready() -> None:
    old, new, other = Definition(1, "x", b"1"), Definition(2, "x", b"2"), Definition(3, "y", b"3")
    first, second, third = (Export(b"f", (one,), "f") for one in (old, new, other))
    shipped = Shipped()
    assert [item[:2] for item in shipped.missing(first)] == [(1, "x"), (first.number, "")]
    assert [item[:2] for item in shipped.missing(third)] == [(3, "y"), (third.number, "")]
    assert first.number in shipped.ready
    assert [item[:2] for item in shipped.missing(second)] == [(2, "x"), (second.number, "")]
    assert first.number not in shipped.ready
    assert [item[:2] for item in shipped.missing(first)] == [(1, "x")]
    assert second.number not in shipped.ready
    assert first.number in shipped.ready


def test_a_deletion_is_shipped_only_to_those_who_have_the_name() -> None:
    gone = Export(b"", (Definition(2, "x", b""),), "f", inline=True)
    fresh, holder = Shipped(), Shipped()
    holder.missing(Export(b"", (Definition(1, "x", b"1"),), "f", inline=True))
    assert fresh.missing(gone) == []
    assert holder.missing(gone) == [(2, "x", b"")]


def test_inline_exports_are_shared_and_ready_at_once() -> None:
    exporter, shipped = Exporter(), Shipped()
    one, _ = exporter.prepare("a".upper, (), {})
    two, _ = exporter.prepare("b".lower, (), {})
    assert one is two
    assert one.inline
    assert one.requires == ()
    assert shipped.missing(one) == []
    assert one.number in shipped.ready


def test_a_function_that_dies_is_noted_once_no_task_holds_it() -> None:
    exporter = Exporter()
    closure = make_closure(1)
    exporter.prepare(closure, (), {})
    export, _ = exporter.prepare(closure, (), {})
    number = export.number
    alive = weakref.ref(closure)
    del closure
    gc.collect()
    assert alive() is None
    assert exporter.dead == []  # a task may still have to be sent
    exporter.dead = []
    del export
    assert exporter.dead == [number]
    assert not exporter._entries


def test_forgotten_functions_are_shipped_again(peer: Peer) -> None:
    assert peer(textwrap.dedent, " x") == "x"
    export, payload = peer.exporter.prepare(textwrap.dedent, (" y",), {})
    peer.forget([export.number, 10**9])
    assert export.number not in peer.shipped.ready
    assert peer.run(export, payload) == "y"
    assert peer.sent[-1] != []


def test_a_function_never_sent_is_an_error_that_says_so() -> None:
    with pytest.raises(DeserializationError, match="number 7"):
        Importer().function(7)
    importer = Importer()
    export, _ = Exporter().prepare(len, (), {})
    importer.install(Shipped().missing(export))
    assert importer.function(export.number) is len
    importer.forget([export.number])
    with pytest.raises(DeserializationError):
        importer.function(export.number)


def test_a_function_that_cannot_be_imported_there() -> None:
    importer = Importer()
    importer.install([(1, "", pickle.dumps(((), True, ("no_such_module", "f"))))])
    importer.install([(2, "", pickle.dumps(((), True, ("os", "no_such_function"))))])
    with pytest.raises(DeserializationError, match=r"ModuleNotFoundError.*no_such_module"):
        importer.function(1)
    with pytest.raises(DeserializationError, match="no_such_function"):
        importer.function(2)


def leave() -> Any:
    raise SystemExit(4)


class Leaves:
    def __reduce__(self) -> Any:
        return leave, ()


def test_arguments_that_do_not_unpickle() -> None:
    importer = Importer()
    for argument, text in ((Leaves(), "SystemExit: 4"),):
        with pytest.raises(DeserializationError, match=text):
            importer.load_call(pickle.dumps(((argument,), {})))
        with pytest.raises(DeserializationError, match=text):
            importer.load_inline(pickle.dumps(((), None, pickle.dumps((len, (argument,), {})))))
    with pytest.raises(DeserializationError, match="UnpicklingError"):
        importer.load_call(b"garbage")


def test_known_closures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialize, "NAMELESS_LIMIT", 10)
    monkeypatch.setattr(serialize, "VARIANTS_LIMIT", 10)
    exporter = Exporter()
    closures = [make_closure(n) for n in range(50)]
    for _ in range(2):
        for closure in closures:
            exporter.prepare(closure, (), {})
    assert len(exporter._entries) <= 10
    assert len(exporter._nameless) <= 10


def test_unused_code_is_not_remembered() -> None:
    from dpool._core.serialize_names import _code_facts

    exporter = Exporter()
    space: dict[str, Any] = {}
    exec("def f(): return 1", space)
    code_id = id(space["f"].__code__)
    exporter.prepare(space["f"], (), {})
    assert code_id in _code_facts
    space.clear()
    gc.collect()
    assert code_id not in _code_facts


def test_prepare_from_many_threads() -> None:
    exporter = Exporter()
    closures = [make_closure(n) for n in range(20)]
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def work() -> None:
        try:
            start.wait(10)
            for _ in range(20):
                for n, closure in enumerate(closures):
                    export, payload = exporter.prepare(closure, (), {})
                    importer = Importer()
                    importer.install(Shipped().missing(export))
                    function = importer.load_inline(payload)[0] if export.inline else importer.function(export.number)  # type: ignore[arg-type]
                    assert function() == n
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_arguments_bring_their_own_definitions_and_variants_are_kept() -> None:
    result = run_script(
        """
from tests.core.serialize_peer import Peer
class Box:
    def __init__(self, x): self.x = x
class Other: pass
def task(x): return type(x).__name__
with Peer() as peer:
    prepare = peer.exporter.prepare
    assert peer(task, 1) == "int"
    assert [one.name for one in prepare(task, (1,), {})[0].requires] == ["task"]
    assert peer(task, Box(1)) == "Box"
    assert peer.last_names == ["Box"]
    first, second = prepare(task, (Box(1),), {})[0], prepare(task, (), {"x": Box(2)})[0]
    assert first is second and {one.name for one in first.requires} == {"task", "Box"}
    assert peer(task, Other()) == "Other" and peer(task, [Box(1), Other()]) == "list"
    assert peer(len, [Box(1)]) == 1
    assert peer(max, Box, Box, key=lambda cls: cls.__name__) is Box
    for number in range(3):
        assert peer(task, Box(number)) == "Box" and peer.sent[-1] == []
    Box.colour = "red"
    assert peer(task, Box(1)) == "Box" and peer.last_names == ["Box"]
print("done")
"""
    )
    assert result.stdout == "done\n", result.stderr


def test_old_versions_are_let_go() -> None:
    result = run_script(
        """
import gc, weakref
from tests.core.serialize_peer import Peer
with Peer() as peer:
    exporter = peer.exporter
    gone = []
    for number in range(5):
        exec(f"def task(): return {number}", globals())
        assert peer(task) == number
        gone.append(weakref.ref(task))
    del task
    def task(): return 5
    assert peer(task) == 5
    gc.collect()
    assert [one() for one in gone] == [None] * 5, gone
    assert len(exporter.dead) == 5
    assert len(exporter._entries) == 1
print("done")
"""
    )
    assert result.stdout == "done\n", result.stderr


def test_another_main_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    exporter = Exporter()
    for value in (1, 2):
        main = types.ModuleType("__main__")
        exec(f"N = {value}\ndef task(): return N", main.__dict__)
        monkeypatch.setitem(sys.modules, "__main__", main)
        export, _ = exporter.prepare(main.task, (), {})
        assert {one.name: pickle.loads(one.blob) for one in export.requires if one.name == "N"} == {"N": value}
