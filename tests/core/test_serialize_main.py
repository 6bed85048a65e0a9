"""One namespace per worker for the driver's `__main__`: each test is a script that runs as `__main__` in some way."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.helpers import REPOSITORY, run_script

PROLOGUE = """
from tests.core.serialize_peer import Peer
peer = Peer().__enter__()
def call(*args): return peer(*args)
"""


def run_main(body: str, **how: str) -> None:
    result = run_script(f"{PROLOGUE}{dedent(body)}\npeer.__exit__()\nprint('done')\n", **how)  # type: ignore[arg-type]
    assert result.stdout == "done\n", result.stderr


IDIOM = """
state = None
def init(x):
    global state
    state = x
def task(): return state, __name__, where()
def where(): return globals()["__file__"] if "__file__" in globals() else None
def main():
    call(init, 42)
    assert call(task) == (42, "__main__", globals().get("__file__"))
    assert state is None
    call(init, 43)
    assert call(task)[0] == 43
"""


@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_what_an_initializer_stores_stays(how: str) -> None:
    run_main(IDIOM + "main()", how=how)


def test_what_an_initializer_stores_stays_with_a_guard() -> None:
    run_main(IDIOM + "if __name__ == '__main__': main()")


def test_a_package_run_with_m(tmp_path: Path) -> None:
    package = tmp_path / "thing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("def helped(): return 'helped'\n")
    relative = "\ndef late():\n    from .helper import helped\n    return helped()\n"
    body = PROLOGUE + IDIOM + relative + "main()\nassert call(late) == 'helped'\npeer.__exit__()\nprint('done')\n"
    (package / "program.py").write_text(body)
    path = f"{tmp_path}:{REPOSITORY}"
    result = run_script("thing.program", how="-m", env={"PYTHONPATH": path}, cwd=tmp_path)
    assert result.stdout == "done\n", result.stderr


def test_the_drivers_own_change_wins() -> None:
    run_main("""
        state = 0
        def init(x):
            global state
            state = x
        def task(): return state
        call(init, 1)
        assert call(task) == 1
        state = 2
        assert call(task) == 2
        call(init, 3)
        assert call(task) == 3
    """)


def test_a_value_that_is_only_stored_travels_before() -> None:
    run_main("""
        count = 5
        def store():
            global count
            before = globals().get("count")
            count = 6
            return before
        assert call(store) == 5
        assert call(lambda: count) == 6
    """)


def test_a_stored_value_that_does_not_pickle_is_each_processs_own() -> None:
    run_main("""
        connection = (one for one in ())
        def init(x):
            global connection
            connection = x
        def task(): return connection
        call(init, 7)
        assert call(task) == 7
    """)


def test_state_of_a_class_stays() -> None:
    run_main("""
        class Config:
            value = None
            @classmethod
            def get(cls): return cls.value
        def init(x): Config.value = x
        def task(config): return Config.value, config.get(), type(config) is Config
        call(init, 5)
        assert call(task, Config()) == (5, 5, True)
        assert call(Config.get) == 5
        assert Config.value is None
    """)


def test_classes_with_slots() -> None:
    run_main("""
        import dataclasses, weakref
        class One:
            __slots__ = ("a",)
            def __init__(self, a): self.a = a
        class Two(One):
            __slots__ = ("b", "__weakref__")
            def __init__(self, a, b):
                super().__init__(a)
                self.b = b
        class Text:
            __slots__ = "only"
        class Named:
            __slots__ = {"a": "what it is"}
        class Mixed(One):
            def __init__(self, a): self.a = self.c = a
        class Private:
            __slots__ = ("__x",)
            def __init__(self, x): self.__x = x
            def x(self): return self.__x
        @dataclasses.dataclass(slots=True)
        class Data:
            a: int
            b: list = dataclasses.field(default_factory=list)
            c: int = 3
        def make(cls, *args): return cls(*args)
        def look(x): return x.a, hasattr(x, "__dict__")
        def text():
            made = Text()
            made.only = 1
            return made
        def referenced():
            two = Two(1, 2)
            return weakref.ref(two)() is two
        for value in (One(1), Two(1, 2), Mixed(1), Data(1)):
            assert call(look, value) == look(value), value
        assert call(make, One, 1).a == 1 and call(make, Two, 1, 2).b == 2 and call(make, Mixed, 3).c == 3
        assert call(make, Data, 1) == Data(1)
        assert call(text).only == 1
        assert call(make, Named).__class__ is Named
        assert call(make, Private, 4).x() == 4 and call(Private.x, Private(5)) == 5
        assert call(referenced)
    """)


def test_instances_return_as_instances_of_that_very_class() -> None:
    run_main("""
        import abc, collections, dataclasses, enum, typing
        T = typing.TypeVar("T")
        UserId = typing.NewType("UserId", int)
        class Plain:
            def __init__(self, x): self.x = x
            class Inner: pass
        @dataclasses.dataclass
        class Data:
            x: int
            other: "Data | None" = None
            many: list = dataclasses.field(default_factory=list)
        @dataclasses.dataclass(frozen=True, slots=True)
        class Frozen:
            x: Plain
        class Colour(enum.Enum):
            RED = "r"
        class Flag(enum.IntFlag):
            A = 1
            B = 2
        Named = collections.namedtuple("Named", "a b")
        class Typed(typing.NamedTuple):
            a: int
        class Box(typing.Generic[T]):
            def __init__(self, v: T): self.v = v
        class Table(typing.TypedDict):
            a: int
        class Abstract(abc.ABC):
            @abc.abstractmethod
            def go(self): ...
        class Concrete(Abstract):
            def go(self): return type(self).__name__
        class Meta(type):
            def __call__(cls, *args): return super().__call__(*args)
        class WithMeta(metaclass=Meta): pass
        class Slots:
            __slots__ = ("a", "__dict__")
        class Error(Exception): pass
        class Singleton:
            def __reduce__(self): return "ONLY"
        ONLY = Singleton()
        def echo(x): return x
        for value in (Plain(1), Plain.Inner(), Data(1, Data(2)), Frozen(Plain(1)), Named(1, 2), Typed(1), Box[int](1),
                      Table(a=1), Concrete(), WithMeta(), Slots(), Error("x"), [Plain(1)], {"a": Data(1)}):
            back = call(echo, value)
            assert type(back) is type(value), value
        assert call(echo, Data(1, Data(2))) == Data(1, Data(2))
        assert call(echo, Colour.RED) is Colour.RED and call(echo, Flag.A | Flag.B) is Flag.A | Flag.B
        assert call(echo, ONLY) is ONLY
        assert call(lambda: (T, UserId, Plain.Inner, Data, Colour)) == (T, UserId, Plain.Inner, Data, Colour)
        assert call(lambda: ONLY) is ONLY
        assert call(lambda: T.__module__) == "__main__"
        for cls in (Plain, Data, Frozen, Named, Typed, Box, Concrete, WithMeta, Slots, Error):
            assert call(lambda cls=cls: cls) is cls
            assert call(echo, cls) is cls
        assert call(Concrete().go) == "Concrete"
        assert type(call(Data, 3)) is Data
        assert call(lambda: Named(1, 2).b) == 2
    """)


def test_local_classes_return_as_themselves_and_unchanged() -> None:
    run_main("""
        def make():
            class Local:
                size = 1
                def me(self): return Local
            return Local
        Local = make()
        before = dict(Local.__dict__)
        assert type(call(lambda: Local())) is Local
        assert type(call(lambda x: x, Local())) is Local
        assert call(Local().me) is Local
        assert {k: v for k, v in Local.__dict__.items() if k != "__slotnames__"} == before
        remote = call(make)
        assert remote.size == 1 and remote is not Local
        assert type(call(lambda: remote())) is remote
    """)


def test_what_a_worker_defines_itself_goes_back_by_value() -> None:
    run_main("""
        def define():
            global Made, helper
            class Made:
                size = 3
            def helper(): return Made
            return Made(), helper
        made, function = call(define)
        assert made.size == 3 and type(made).__name__ == "Made"
        assert function() is type(made)
        assert "Made" not in globals()
    """)


def test_functions_return_as_themselves() -> None:
    run_main("""
        import functools
        def helper(): return 1
        @functools.lru_cache
        def cached(x): return x
        def task(): return helper, cached, (lambda: helper() + N)
        N = 1
        one, two, three = call(task)
        assert one is helper and two is cached and three() == 2
    """)


def test_references_in_circles() -> None:
    run_main("""
        import functools
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        assert call(even, 10) is True and call(odd, 10) is False
        class A:
            def b(self): return B
            def me(self): return A
        class B(A):
            def b(self): return super().b(), self.me()
        A.child = B
        assert call(B().b) == (B, A)
        assert call(lambda: A.child) is B
        class App:
            def __init__(self): self.tasks = {}
            def task(self, function):
                self.tasks[function.__name__] = made = Task(self, function)
                return made
        class Task:
            def __init__(self, app, function): self.app, self.function = app, function
            def __call__(self, *args):
                return self.function(*args), self.app.tasks["job"] is self, self.app is app, self is job
        app = App()
        @app.task
        def job(x): return x
        assert call(lambda: job(1)) == (1, True, True, True)
        loop = [1]
        loop.append(loop)
        def default(x=loop): return x is loop and x[1] is x
        loop.append(default)
        table = {"self": None}
        table["self"] = table
        assert call(lambda: (default(), loop[2] is default, table["self"] is table)) == (True, True, True)
        def outer():
            def inner(n): return n and inner(n - 1)
            return inner
        inner = outer()
        assert call(inner, 3) == call(inner, 3) == call(inner, 3) == 0
        def wraps(function):
            @functools.wraps(function)
            def wrapper(*args): return wrapper.__wrapped__(*args), wrapped is wrapper
            return wrapper
        @wraps
        def wrapped(x): return x
        assert call(wrapped, 1) == (1, True)
    """)


def test_globals_that_cannot_exist_without_each_other() -> None:
    run_main("""
        from dpool.errors import DeserializationError
        class Half:
            def __reduce__(self): return make, (self.other,)
        def make(other): return other
        one, two = Half(), Half()
        one.other, two.other = two, one
        def task(): return one
        try: call(task)
        except DeserializationError as error: assert "need each other" in str(error), error
        else: raise AssertionError
        two.other = None
        assert call(task) is None
    """)


def test_one_object_stays_one_object() -> None:
    run_main("""
        import threading
        MISSING = object()
        class Registry(dict): pass
        registry = Registry()
        alias = registry
        numbers = [1]
        same = numbers
        def default(x=MISSING, *, y=registry): return x is MISSING and y is registry and alias is registry
        def in_container(): return pairs[0] is MISSING and pairs[1] is numbers and same is numbers
        pairs = [MISSING, numbers]
        class Holder:
            numbers = numbers
        def in_class(): return Holder.numbers is numbers
        def make():
            local = MISSING
            return lambda x=numbers: (x is numbers, local is MISSING)
        closure = make()
        nameless = make()
        assert call(default) is True and call(in_container) is True and call(in_class) is True
        assert [call(closure) for _ in range(3)] == [(True, True)] * 3
        assert [call(lambda f=nameless: f())] == [(True, True)]
        lock, event, local = threading.Lock(), threading.Event(), threading.local()
        rlock = threading.RLock()
        def locked(mine=lock):
            with lock, rlock:
                event.set()
                local.x = 1
                return mine is lock and event.wait()
        assert [call(locked) for _ in range(3)] == [True] * 3
        def cells():
            n = 0
            def bump():
                nonlocal n
                n += 1
                return get()
            def get(): return n
            return bump, get
        def both():
            bump, get = cells()
            return lambda: (bump(), get())
        assert [call(one) for one in [both()] * 3] == [(1, 1)] * 3
    """)


def test_an_argument_is_a_copy_each_time() -> None:
    run_main("""
        numbers = [1]
        def append(x):
            x.append(2)
            return x
        assert call(append, numbers) == call(append, numbers) == [1, 2]
        import functools
        bound = functools.partial(append, numbers)
        assert call(bound) == call(bound) == [1, 2]
        assert numbers == [1]
    """)


def test_functions_with_unusual_parts() -> None:
    run_main("""
        import contextlib, functools, operator, xml.etree.ElementTree, os.path, collections.abc
        def tree(): return xml.etree.ElementTree.fromstring("<a/>").tag, os.path.join("a", "b")
        assert call(tree) == ("a", "a/b")
        @contextlib.contextmanager
        def managed(x):
            yield x
        def use():
            with managed(1) as x: return x
        assert call(use) == 1
        class Lazy:
            def __init__(self): self.calls = 0
            @functools.cached_property
            def value(self):
                self.calls += 1
                return self.calls
            @functools.lru_cache
            def cached(self): return 5
            @functools.singledispatchmethod
            def kind(self, x): return "default"
            @kind.register
            def _(self, x: int): return "int"
            def __private(self): return "private"
            def bound(self): return self.__private
            part = functools.partialmethod(lambda self, x: x, 9)
        lazy = Lazy()
        assert call(lambda: (lazy.value, lazy.value, lazy.cached(), lazy.kind(1), lazy.kind("x"), lazy.part())) == (
            1, 1, 5, "int", "default", 9)
        assert call(lazy.bound()) == "private"
        @functools.lru_cache(maxsize=7)
        def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
        assert call(fibonacci, 50) == 12586269025
        assert call(lambda: fibonacci.cache_parameters()["maxsize"]) == 7
        def documented(x: "Lazy", *, y: int = 1) -> Lazy:
            '''doc'''
        def facts(f): return f.__doc__, f.__annotations__["x"], f.__kwdefaults__, f.__name__, f.__module__
        assert call(facts, documented) == ("doc", "Lazy", {"y": 1}, "documented", "__main__")
        assert call(operator.itemgetter(1), "ab") == "b"
        assert call("{}-{}".format, 1, 2) == "1-2"
        import __main__ as me
        def itself(): return me.itself is itself, me.__name__
        assert call(itself) == (True, "__main__")
        async def coroutine(): return 1
        def run():
            import asyncio
            return asyncio.run(coroutine())
        assert call(run) == 1
        def generator(): yield from (N, N)
        N = 4
        assert call(lambda: list(generator())) == [4, 4]
    """)


def test_a_global_that_does_not_pickle_is_named() -> None:
    run_main("""
        import pickle
        stream = (one for one in ())
        def task(): return stream
        def through(): return task()
        try: call(through)
        except TypeError as error: assert "'stream'" in str(error) and "'through'" in str(error), error
        else: raise AssertionError
        stream = 1
        assert call(through) == 1
        deep = []
        for _ in range(100_000): deep = [deep]
        def sinks(): return deep
        try: call(sinks)
        except pickle.PicklingError as error: assert "'deep'" in str(error), error
        else: raise AssertionError
        class Refuses:
            def __reduce__(self): raise pickle.PicklingError("never")
        refuses = Refuses()
        try: call(lambda: refuses)
        except pickle.PicklingError as error: assert "never" in str(error) and "'refuses'" in str(error), error
        else: raise AssertionError
    """)


def test_definitions_that_do_not_load_fail_only_the_tasks_that_need_them() -> None:
    run_main("""
        import os
        from dpool.errors import DeserializationError
        class Bomb:
            def __reduce__(self): return explode, (os.getpid(),)
        def explode(pid):
            if os.getpid() != pid: raise ValueError("boom")
        bomb = Bomb()
        class Leaves:
            def __reduce__(self): return leave, (os.getpid(),)
        def leave(pid):
            if os.getpid() != pid: raise SystemExit(3)
        def uses(): return bomb
        def default(x=bomb): return 1
        def calls(): return default()
        def fine(): return 1
        for task in (uses, default, calls, lambda: bomb, uses):
            try: call(task)
            except DeserializationError as error: assert "'bomb'" in str(error) and "boom" in str(error), error
            else: raise AssertionError(task)
        assert call(fine) == 1
        for argument in (Bomb(), Leaves()):
            try: call(fine, argument)
            except DeserializationError as error: assert "boom" in str(error) or "SystemExit: 3" in str(error), error
            else: raise AssertionError
        bomb = 5
        assert call(uses) == 5
    """)


def test_a_worker_submits_in_its_turn() -> None:
    run_main("""
        class Box:
            def __init__(self, x): self.x = x
            def double(self): return Box(self.x * FACTOR)
        FACTOR = 2
        state = None
        def init(x):
            global state
            state = x
        def inner(box): return box.double(), state
        def outer(box):
            from tests.core.serialize_peer import Peer
            with Peer() as below:
                below(init, "below")
                inside, lower = below(inner, box)
                assert type(inside) is Box
                local = lambda: Box(FACTOR)
                assert type(below(local)) is Box
                return inside, lower, state
        call(init, "here")
        back, lower, own = call(outer, Box(4))
        assert type(back) is Box and back.x == 8 and (lower, own) == ("below", "here")
    """)


def test_a_notebook_like_namespace() -> None:
    """Cells are executed in `__main__`; what was typed and shown is kept there too, and must not travel."""
    run_main("""
        def cell(text): exec(compile(text, "<cell>", "exec"), globals())
        stream = (one for one in ())
        Out, In, _, _1, _i1 = {1: stream}, ["x"], stream, stream, "x"
        cell("class Box: size = 1")
        cell("box = Box(); box.x = [1]; _2 = box; ___ = box")
        cell("def task(): return box.x, box is shared")
        cell("shared = box")
        assert call(task) == ([1], True)
        assert set(peer.last_names) == {"Box", "box", "shared", "task"}, peer.last_names
        old = task
        cell("def task(): return 'again'")
        assert call(task) == "again" and call(old) == ([1], True)
        cell("class Box: size = 2")
        assert call(lambda: Box.size) == 2
    """)


def test_cloudpickle_is_imported_only_when_something_needs_it() -> None:
    run_main("""
        import sys, functools, textwrap
        def helper(x=[1]): return N
        N = 1
        def task(): return helper()
        @functools.lru_cache
        def cached(): return 1
        assert call(task) == 1 and call(textwrap.dedent, " x") == "x" and call(lambda: N) == 1 and call(cached) == 1
        assert "cloudpickle" not in sys.modules
        assert call(lambda: "cloudpickle" in __import__("sys").modules) is False
        class Box: pass
        call(Box)
        assert "cloudpickle" in sys.modules
    """)


def test_a_process_spawned_by_multiprocessing_submits() -> None:
    """There `__main__` is also `__mp_main__`, and its functions say the latter."""
    run_script_text = """
        import multiprocessing
        class Box:
            size = 3
        def task(box): return box.size, type(box) is Box
        def child():
            from tests.core.serialize_peer import Peer
            with Peer() as peer:
                assert peer(task, Box()) == (3, True)
                assert type(peer(Box)) is Box
        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
            print("done")
    """
    result = run_script(dedent(run_script_text))
    assert result.stdout == "done\n", result.stderr
