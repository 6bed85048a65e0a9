"""Never a stale capture: each case changes something that a function captured, between two calls in one worker."""

from __future__ import annotations

import re
from textwrap import dedent, indent

import pytest

from tests.helpers import run_script

CASES = {
    "a global integer": """
        def task(): return N
        N = 1
        assert call(task) == 1
        N = 2
        assert call(task) == 2 and names() == ["N"]
        N = 1
        assert call(task) == 1
    """,
    "a list changed in place": """
        numbers = [1]
        def task(): return numbers
        assert call(task) == [1]
        numbers.append(2)
        assert call(task) == [1, 2] and names() == ["numbers"]
        numbers[0] = 1.0
        assert type(call(task)[0]) is float
    """,
    "a nested container": """
        tree = {"a": [{"b": 1}]}
        def task(): return tree
        assert call(task) == {"a": [{"b": 1}]}
        tree["a"][0]["b"] = 2
        assert call(task) == {"a": [{"b": 2}]}
    """,
    "an object's attribute": """
        import argparse
        options = argparse.Namespace(deep=[1])
        def task(): return options.deep
        assert call(task) == [1]
        options.deep.append(2)
        assert call(task) == [1, 2]
    """,
    "an instance of a class of main": """
        class Box: pass
        box = Box()
        box.x = 1
        def task(): return box.x
        assert call(task) == 1
        box.x = 2
        assert call(task) == 2 and names() == ["box"]
    """,
    "a global function redefined": """
        def helper(): return "old"
        def task(): return helper()
        assert call(task) == "old"
        def helper(): return "new"
        assert call(task) == "new" and names() == ["helper"]
    """,
    "a helper's helper's global": """
        N = 1
        def inner(): return N
        def outer(): return inner()
        def task(): return outer()
        assert call(task) == 1
        N = 2
        assert call(task) == 2 and names() == ["N"]
    """,
    "the submitted function itself": """
        def task(): return "old"
        assert call(task) == "old"
        old = task
        def task(): return "new"
        assert call(task) == "new"
        assert call(old) == "old"
        assert call(task) == "new"
        assert call(old) == "old"
    """,
    "a closure cell": """
        def make():
            n = 1
            def bump():
                nonlocal n
                n += 1
            return bump, lambda: n
        bump, task = make()
        for expected in (1, 2, 3, 4):
            assert call(task) == expected
            bump()
    """,
    "a closure's list": """
        def make():
            found = []
            return found, lambda: list(found)
        found, task = make()
        for expected in ([], [0], [0, 0], [0, 0, 0]):
            assert call(task) == expected
            found.append(0)
    """,
    "a function in a closure": """
        def make():
            def inner(): return 1
            def outer(): return inner()
            def change():
                nonlocal inner
                inner = lambda: 2
            return change, outer
        change, task = make()
        assert call(task) == call(task) == call(task) == 1
        change()
        assert call(task) == 2
    """,
    "an empty cell that is filled": """
        def make():
            def task():
                try: return late
                except NameError: return "empty"
            def fill():
                nonlocal late
                late = 1
            if False: late = 0
            return fill, task
        fill, task = make()
        assert call(task) == call(task) == call(task) == "empty"
        fill()
        assert call(task) == 1
    """,
    "a mutable default": """
        def task(x=[1]): return x
        assert call(task) == [1]
        task.__defaults__[0].append(2)
        assert call(task) == [1, 2]
    """,
    "defaults and keyword defaults replaced": """
        def task(x=1, *, y=1): return x, y
        assert call(task) == (1, 1)
        task.__defaults__ = (2,)
        assert call(task) == (2, 1)
        task.__kwdefaults__["y"] = 2
        assert call(task) == (2, 2)
        task.__kwdefaults__ = {"y": 3}
        assert call(task) == (2, 3)
    """,
    "the code": """
        def task(): return 1
        def other(): return 2
        assert call(task) == 1
        task.__code__ = other.__code__
        assert call(task) == 2
    """,
    "a helper's code and default": """
        def helper(x=1): return x
        def task(): return helper()
        assert call(task) == 1
        helper.__defaults__ = (2,)
        assert call(task) == 2
        helper.__code__ = (lambda x: -x).__code__
        assert call(task) == -2
    """,
    "an attribute of a function": """
        def task(): return getattr(task, "mark", None)
        assert call(task) is None
        task.mark = [1]
        assert call(task) == [1]
        task.mark.append(2)
        assert call(task) == [1, 2]
        del task.mark
        assert call(task) is None
    """,
    "a lambda's attributes": """
        task = [lambda: 1][0]
        other = lambda: 2
        def make(): return lambda: 1
        task = make()
        assert [call(task) for _ in range(3)] == [1, 1, 1]
        task.__code__ = (lambda: 2).__code__
        assert call(task) == 2
    """,
    "a class attribute": """
        class Box: size = 1
        def task(): return Box.size
        assert call(task) == 1
        Box.size = 2
        assert call(task) == 2
        Box.colour = "red"
        assert call(lambda: Box.colour) == "red"
        del Box.colour
        assert call(lambda: hasattr(Box, "colour")) is False
    """,
    "a mutable class attribute": """
        class Box: registry = {}
        def task(): return Box.registry
        assert call(task) == {}
        Box.registry["x"] = [1]
        assert call(task) == {"x": [1]}
    """,
    "an inherited class attribute": """
        class Base: size = 1
        class Box(Base): pass
        def task(): return Box.size
        assert call(task) == 1
        Base.size = 2
        assert call(task) == 2
    """,
    "a method of a class of main": """
        class Box:
            def get(self): return 1
        def task(): return Box().get()
        box = Box()
        assert call(task) == 1 and call(box.get) == 1
        Box.get = lambda self: 2
        assert call(task) == 2 and call(box.get) == 2
    """,
    "a method's default": """
        class Box:
            def get(self, x=[1]): return x
        def task(): return Box().get()
        assert call(task) == [1]
        Box.get.__defaults__[0].append(2)
        assert call(task) == [1, 2]
    """,
    "a static method and a property": """
        class Box:
            @staticmethod
            def s(): return N
            @property
            def p(self): return N
        N = 1
        def task(): return Box.s(), Box().p
        assert call(task) == (1, 1)
        N = 2
        assert call(task) == (2, 2)
        Box.s = staticmethod(lambda: 3)
        assert call(task) == (3, 2)
    """,
    "a class redefined": """
        class Box: size = 1
        Old = Box
        def task(): return Box.size
        assert call(task) == 1
        class Box: size = 2
        assert call(task) == 2
        assert type(call(lambda: Box())) is Box
        assert call(lambda: Old.size) == 1
    """,
    "a base class redefined": """
        class Base: size = 1
        class Box(Base): pass
        def task(): return Box.size, Box.__mro__[1] is Base
        assert call(task) == (1, True)
        class Base: size = 2
        assert call(task) == (1, False)
    """,
    "a builtin shadowed later, and again not": """
        def task(): return len("ab")
        assert call(task) == 2
        def len(x): return -1
        assert call(task) == -1
        del len
        assert call(task) == 2
    """,
    "a name that appears later": """
        def task():
            try: return late
            except NameError: return "absent"
        assert call(task) == "absent"
        late = 1
        assert call(task) == 1
        del late
        assert call(task) == "absent"
    """,
    "a function of a module monkeypatched": """
        import textwrap
        from textwrap import dedent as task
        original = task
        assert call(task, " x") == "x"
        textwrap.dedent = lambda text: "patched"
        assert call(task, " x") == "x"
        assert call(textwrap.dedent, " x") == "patched"
        textwrap.dedent = original
        assert call(task, " x") == "x"
    """,
    "a captured function of a module monkeypatched": """
        import textwrap
        helper = textwrap.dedent
        def task(): return helper(" x")
        assert call(task) == "x"
        helper = lambda text: "patched"
        assert call(task) == "patched"
    """,
    "a function in a container": """
        def one(): return 1
        def two(): return 2
        handlers = [one]
        def task(): return [handler() for handler in handlers]
        assert call(task) == [1]
        handlers.append(two)
        assert call(task) == [1, 2]
        handlers[:] = [lambda: 3]
        assert call(task) == [3]
        handlers[0].__code__ = (lambda: 4).__code__
        assert call(task) == [4]
    """,
    "what a container holds by reference": """
        def one(x=[1]): return x
        handlers = {"one": one}
        def task(): return handlers["one"](), handlers["one"] is one
        assert call(task) == ([1], True)
        one.__defaults__[0].append(2)
        assert call(task) == ([1, 2], True)
        assert names() == ["handlers", "one"]
    """,
    "a decorated function": """
        import functools
        def plus(amount):
            def decorate(function):
                @functools.wraps(function)
                def wrapper(*args): return function(*args) + amount + N
                return wrapper
            return decorate
        @plus(10)
        def task(x): return x
        N = 0
        assert call(task, 1) == 11
        N = 5
        assert call(task, 1) == 16
        @plus(20)
        def task(x): return x
        assert call(task, 1) == 26
    """,
    "a global of another module": """
        import sys, types
        module = types.ModuleType("made_up")
        exec("N = 1\\ndef task(): return N", module.__dict__)
        task = module.task
        del module
        assert [call(task) for _ in range(3)] == [1, 1, 1]
        task.__globals__["N"] = 2
        assert call(task) == 2
    """,
    "a submodule imported later": """
        import xml
        def task():
            try: return xml.sax.handler.version
            except AttributeError: return "absent"
        assert call(task) == "absent"
        import xml.sax.handler
        assert call(task) == xml.sax.handler.version
    """,
    "an argument's class": """
        class Box:
            def get(self): return N
        N = 1
        def task(box): return box.get()
        assert call(task, Box()) == 1
        N = 2
        assert call(task, Box()) == 2
        Box.get = lambda self: 3
        assert call(task, Box()) == 3
    """,
    "an inner function's and a class body's globals": """
        N = 1
        def task():
            def inner():
                class Box: size = N
                return [Box.size + N for _ in range(1)]
            return inner()
        assert call(task) == [2]
        N = 2
        assert call(task) == [4]
    """,
    "a single-dispatch function": """
        import functools
        @functools.singledispatch
        def task(x): return "default"
        assert call(task, 1) == "default"
        task.register(int, lambda x: "int")
        assert call(task, 1) == "int"
    """,
    "a function behind a cache": """
        import functools
        N = 1
        @functools.lru_cache
        def cached(x): return x + N
        def task(): return cached(1)
        assert call(task) == 2 and call(cached, 5) == 6
        N = 2
        def cached(x): return "replaced"
        assert call(task) == "replaced"
    """,
    "an enumeration": """
        import enum
        class Colour(enum.Enum):
            RED = 1
            def text(self): return PREFIX + self.name
        PREFIX = "a"
        mine = Colour.RED
        def task(): return mine.text()
        assert call(task) == "aRED"
        PREFIX = "b"
        assert call(task) == "bRED"
        class Colour(enum.Enum):
            BLUE = 1
            def text(self): return self.name
        mine = Colour.BLUE
        assert call(task) == "BLUE"
    """,
    "an array": """
        import numpy
        data = numpy.zeros(3)
        def task(): return float(data.sum())
        assert call(task) == 0.0
        data += 1
        assert call(task) == 3.0
        data[1] = 5
        assert call(task) == 7.0
        data = data.astype("float32")
        assert call(lambda: str(data.dtype)) == "float32"
    """,
}

PROLOGUE = """
from tests.core.serialize_peer import Peer
peer = Peer().__enter__()
def call(*args): return peer(*args)
def names(): return peer.last_names
"""


ONLY_GLOBALS = {"a builtin shadowed later, and again not", "a name that appears later"}


def run_case(body: str) -> None:
    result = run_script(f"{PROLOGUE}{body}\npeer.__exit__()\nprint('done')\n")
    assert result.stdout == "done\n", result.stderr


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_seen(case: str) -> None:
    run_case(dedent(CASES[case]))


@pytest.mark.parametrize("case", sorted(CASES.keys() - ONLY_GLOBALS))
def test_a_change_is_seen_where_everything_is_local(case: str) -> None:
    """Closures in the place of globals; what was shipped is not compared then."""
    body = re.sub(r"(assert| and) names\(\) == .*", "", dedent(CASES[case]))
    run_case("def scope():\n" + indent(body, "    ") + "\nscope()")
