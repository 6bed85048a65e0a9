"""Functions of `__main__` share one namespace per worker, in every kind of program; no capture is ever stale."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.helpers import REPOSITORY, run_script

HOW = ["file", "-c", "-"]


def run(body: str, how: str = "file", **more: object) -> None:
    result = run_script("import dpool\n" + dedent(body) + "\nprint('done')\n", how=how, **more)  # type: ignore[arg-type]
    assert result.check().stdout == "done\n"
    assert result.stderr == ""


IDIOM = """
import dpool
state = None
counter = 0
class Thing:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(self) is type(other) and self.x == other.x
class Trouble(Exception): pass
def init(x):
    global state
    state = x
def task(): return state
def count():
    global counter
    counter += 1
    return counter
def make(x): return Thing(x)
def check(thing): return isinstance(thing, Thing) and type(thing).__module__ == "__main__"
def trouble(): raise Trouble("t", 1)
def main():
    with dpool.Executor(1, initializer=init, initargs=({"a": 1},)) as ex:
        assert ex.submit(task).result() == {"a": 1}
        assert [ex.submit(count).result() for _ in range(3)] == [1, 2, 3]
        assert state is None and counter == 0
        thing = ex.submit(make, 5).result()
        assert type(thing) is Thing and thing == Thing(5)
        assert ex.submit(check, thing).result() is True
        assert all(type(one) is Thing for one in ex.map(make, range(5)))
        assert ex.submit(lambda: (state, make(1).x, check(Thing(2)))).result() == ({"a": 1}, 1, True)
        try: ex.submit(trouble).result()
        except Trouble as error: assert type(error) is Trouble and error.args == ("t", 1)
        else: raise AssertionError
        assert ex.submit(Thing(7).__eq__, Thing(7)).result() is True
    print("done")
"""


@pytest.mark.parametrize("end", ["main()", "if __name__ == '__main__': main()"], ids=["bare", "guarded"])
@pytest.mark.parametrize("how", HOW)
def test_the_idiom(how: str, end: str) -> None:
    result = run_script(f"{IDIOM}\n{end}\n", how=how).check()
    assert (result.stdout, result.stderr) == ("done\n", "")


@pytest.mark.parametrize("name", ["__main__", "program"])
def test_the_idiom_with_m(tmp_path: Path, name: str) -> None:
    package = tmp_path / "thing"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("def helped(x): return x + 1\n")
    relative = """
def late(x):
    from .helper import helped
    return helped(x)
if __name__ == "__main__":
    from .helper import helped
    main()
    with dpool.Executor(1) as ex:
        assert ex.submit(late, 1).result() == 2 == ex.submit(helped, 1).result()
"""
    (package / f"{name}.py").write_text(IDIOM + relative)
    module = "thing" if name == "__main__" else f"thing.{name}"
    result = run_script(module, how="-m", env={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}, cwd=tmp_path).check()
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_nothing_of_the_script_runs_again_in_a_worker() -> None:
    """Not even where the guard is missing: the functions are sent, the script is not imported."""
    run(
        """
        print("once", flush=True)
        def f(): return 1
        with dpool.Executor(2) as ex:
            assert list(ex.map(lambda x: f() + x, range(3))) == [1, 2, 3]
        import sys; sys.stdout.write("")
    """.replace('print("once", flush=True)', 'open("/dev/stdout", "w").write("")')
    )
    result = run_script(
        "print('once')\nimport dpool\nwith dpool.Executor(2) as ex: print(sum(ex.map(lambda x: x, range(3))))\n"
    )
    assert result.check().stdout == "once\n3\n"


def test_a_capture_is_never_stale() -> None:
    run("""
        factor, table, settings = 2, [1], {"deep": {"er": 1}}
        class Settings: level = 1
        holder = Settings()
        def scaled(x):
            return x * factor, list(table), settings["deep"]["er"], Settings.level, getattr(holder, "mine", None)
        def counter():
            n = 0
            def read(): return n
            def bump():
                nonlocal n
                n += 1
            return read, bump
        read, bump = counter()
        with dpool.Executor(2) as ex:
            ask = lambda: ex.submit(scaled, 10).result()
            assert ask() == (20, [1], 1, 1, None)
            factor = 3
            assert ask() == (30, [1], 1, 1, None)
            table.append(2)
            assert ask() == (30, [1, 2], 1, 1, None)
            settings["deep"]["er"] = 5
            assert ask() == (30, [1, 2], 5, 1, None)
            Settings.level = 9
            assert ask() == (30, [1, 2], 5, 9, None)
            holder.mine = "m"
            assert ask() == (30, [1, 2], 5, 9, "m")
            for expected in range(5):
                assert ex.submit(read).result() == expected
                bump()
            futures = []
            for factor in range(50):
                futures.append(ex.submit(scaled, 1))
            assert [future.result()[0] for future in futures] == list(range(50))
            assert [ex.submit(lambda: factor).result() for factor in range(20)] == list(range(20))
    """)


def test_a_redefinition_is_seen() -> None:
    """As in a notebook: cells are run in one `__main__`, and names get new meanings."""
    run("""
        import __main__
        def cell(text): exec(compile(text, "<cell>", "exec"), __main__.__dict__)
        with dpool.Executor(1) as ex:
            for version in range(4):
                cell(f"def helper(): return {version}")
                cell(f"class Result:\\n    version = {version}\\n    def ask(self): return helper(), self.version")
                cell("def task(): return helper(), Result().ask(), Result")
                helped, asked, cls = ex.submit(task).result()
                assert (helped, asked) == (version, (version, version)), (helped, asked)
                assert cls is Result
                assert type(ex.submit(Result).result()) is Result
            cell("def helper(): return 'new'")     # task itself stays
            assert ex.submit(task).result()[0] == "new"
            cell("del helper")
            try: ex.submit(task).result()
            except NameError as error: assert "helper" in str(error)
            else: raise AssertionError
    """)


def test_an_interactive_session() -> None:
    """Python reading statements from standard input, one after the other, as a person types them."""
    lines = """
import dpool
ex = dpool.Executor(1)
def f(x): return x + 1

ex.submit(f, 1).result()
def f(x): return x + 100

ex.submit(f, 1).result()
y = 5
ex.submit(lambda: f(y)).result()
list(ex.map(lambda x: f(x), range(3)))
"""
    result = run_script("/dev/null", how="file", python_options=("-i",), input=lines).check()
    assert result.stdout == "2\n101\n105\n[100, 101, 102]\n"


def test_registered_reducers_are_respected() -> None:
    run("""
        import copyreg, threading
        from multiprocessing.reduction import ForkingPickler
        class A:
            def __init__(self): self.lock, self.made_by = threading.Lock(), "init"
        class B(A): pass
        def make_a(): a = A(); a.made_by = "copyreg"; return a
        def make_b(): b = B(); b.made_by = "ForkingPickler"; return b
        copyreg.pickle(A, lambda a: (make_a, ()))
        ForkingPickler.register(B, lambda b: (make_b, ()))
        def made_by(x): return x.made_by
        with dpool.Executor(1) as ex:
            assert ex.submit(made_by, A()).result() == "copyreg"
            assert ex.submit(made_by, B()).result() == "ForkingPickler"
            assert ex.submit(lambda xs: [x.made_by for x in xs], [A(), B()]).result() == ["copyreg", "ForkingPickler"]
    """)


def test_results_use_the_reducers_of_the_worker() -> None:
    run("""
        import copyreg
        class A:
            def __init__(self): self.generator = (i for i in ())
        def rebuild(): return "rebuilt"
        def init(): copyreg.pickle(A, lambda a: (rebuild, ()))
        with dpool.Executor(1, initializer=init) as ex:
            assert ex.submit(A).result() == "rebuilt"
    """)


def test_register_pickle_by_value(tmp_path: Path) -> None:
    (tmp_path / "helpers_of_mine.py").write_text("factor = 2\ndef scaled(x): return x * factor\nclass C: level = 1\n")
    run(
        """
        import sys, cloudpickle
        sys.path.insert(0, sys.argv[1])
        import helpers_of_mine as h
        with dpool.Executor(1) as ex:
            h.factor = 5
            assert ex.submit(h.scaled, 4).result() == 8     # by name: the worker's own module
            cloudpickle.register_pickle_by_value(h)
            assert ex.submit(h.scaled, 4).result() == 20
            h.factor = 3
            assert ex.submit(h.scaled, 4).result() == 12
            assert ex.submit(lambda: h.C.level).result() == 1
            cloudpickle.unregister_pickle_by_value(h)
    """.replace("sys.argv[1]", repr(str(tmp_path)))
    )


def test_a_module_that_a_worker_cannot_import_travels_by_value(tmp_path: Path) -> None:
    (tmp_path / "away.py").write_text("factor = 2\ndef scaled(x): return x * factor\n")
    run(
        """
        import sys
        sys.path.insert(0, PATH)
        import away
        sys.path.remove(PATH)
        with dpool.Executor(1) as ex:
            assert ex.submit(away.scaled, 4).result() == 8
    """.replace("PATH", repr(str(tmp_path)))
    )


def test_functions_of_modules_are_imported_and_sent_by_name(tmp_path: Path) -> None:
    (tmp_path / "by_name.py").write_text(
        "import os\npid = os.getpid()\ndef imported_in(): return pid\ndef mine(): return os.getpid()\n"
    )
    run(
        """
        import sys, os
        sys.path.insert(0, PATH)
        import by_name
        with dpool.Executor(1) as ex:
            worker = ex.submit(by_name.mine).result()
            assert ex.submit(by_name.imported_in).result() == worker != os.getpid()
            by_name.pid = "changed here"      # a module's global is not captured: it is the worker's own
            assert ex.submit(by_name.imported_in).result() == worker
    """.replace("PATH", repr(str(tmp_path)))
    )


def test_recursion_closures_and_classes_that_need_each_other() -> None:
    run("""
        import functools
        from typing import NamedTuple
        import dataclasses, enum
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        class Base:
            def who(self): return "base"
        class Child(Base):
            def who(self): return super().who() + " child"
        class Point(NamedTuple):
            x: int
            y: int = 2
        @dataclasses.dataclass(frozen=True)
        class Data:
            x: int
            p: Point
        class Color(enum.Enum):
            RED = 1
        @functools.lru_cache
        def cached(x): return x + 1
        def decorate(f):
            @functools.wraps(f)
            def wrapper(*a): return "wrapped", f(*a)
            return wrapper
        @decorate
        def decorated(x): return x
        def generator_sum(n): return sum(i for i in range(n))
        with dpool.Executor(1) as ex:
            call = lambda f, *a: ex.submit(f, *a).result()
            assert call(fib, 15) == 610 and call(even, 10) is True and call(odd, 10) is False
            assert call(Child().who) == "base child"
            assert call(Point, 1) == Point(1) and type(call(Point, 1)) is Point
            data = call(lambda d: Data(d.x + 1, d.p), Data(1, Point(3)))
            assert data == Data(2, Point(3)) and type(data.p) is Point
            assert call(lambda c: (c is Color.RED, c), Color.RED) == (True, Color.RED)
            assert call(cached, 1) == 2 and call(decorated, 1) == ("wrapped", 1) and call(generator_sum, 5) == 10
            assert call(functools.partial(fib, 10)) == 55
    """)
