"""The demo: its numbers are right, its three runs agree, and it survives the kill that it stages."""

from __future__ import annotations

import ast
import errno
import fcntl
import importlib.util
import json
import os
import pty
import struct
import termios
import textwrap
import threading
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers import REPOSITORY, Script, run_script

SCRIPT = REPOSITORY / "examples" / "stdlib_report.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stdlib_report", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load()


# --- What it counts ---


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("pass", 1),
        ("if a: pass", 2),
        ("if a: pass\nelif b: pass\nelse: pass", 3),
        ("for x in a: pass\nelse: pass", 2),
        ("while a: break", 2),
        ("try: pass\nexcept A: pass\nexcept B: pass\nelse: pass\nfinally: pass", 3),
        ("with a: pass", 1),
        ("assert a", 2),
        ("return a if b else c", 2),
        ("return a and b and c or d", 4),
        ("return [x for x in a]", 2),
        ("return {x: y for x in a if x if y for y in b}", 5),
        ("return lambda: a if b else c", 2),
        ("match a:\n    case 1: pass\n    case 2 | 3: pass\n    case _: pass", 3),
        ("match a:\n    case x if x or y: pass\n    case whole: pass", 3),
        ("def g(x=a or b):\n    if x: pass", 2),
        ("@(a or b)\nclass C(d or e):\n    def m(self):\n        if self: pass", 3),
    ],
)
def test_complexity(body: str, complexity: int) -> None:
    tree = ast.parse("def f():\n" + textwrap.indent(body, "    "))
    found = {function.name: function for function in demo.functions_of(tree, "file.py")}
    assert found["file.py:1 f"].complexity == complexity


def test_functions_have_their_own_counts_names_and_lengths() -> None:
    text = """
    class A:
        async def method(self):
            async for x in self:
                def inner():
                    return x or self
            return inner

    if True:
        def top(): pass
    """
    found = sorted(demo.functions_of(ast.parse(textwrap.dedent(text)), "a.py"))
    assert [tuple(function) for function in found] == [
        ("a.py:10 top", 1, 1),
        ("a.py:3 A.method", 2, 5),
        ("a.py:5 A.method.inner", 2, 2),
    ]


def test_imports_are_top_level_names_without_relative_ones() -> None:
    tree = ast.parse("import a.b, c\nfrom d.e import f\nfrom . import g\nfrom .h import i\ndef f():\n    import a, j")
    assert demo.imports_of(tree) == {"a", "c", "d", "j"}


def test_file_that_is_not_python_is_counted_as_such(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_bytes(b"def (:\n\x00")
    pid, report = demo.analyse(str(tmp_path / "bad.py"))
    assert pid == os.getpid()
    assert report.unparsable
    assert (report.lines, report.functions) == (1, 0)


def test_corpus_is_the_standard_library_alone() -> None:
    files = demo.corpus(100_000)
    assert len(files) > 500
    assert len(set(files)) == len(files)
    assert not [name for name in files if "site-packages" in name or "dist-packages" in name]
    assert demo.corpus(3) == files[:3]


# --- The script ---


def test_three_runs_agree_and_one_worker_is_killed() -> None:
    result = run_script(SCRIPT, "--files", "120", "--workers", "2", "--json").check()
    document = json.loads(result.stdout)
    assert document["equal"] is True
    assert set(document["seconds"]) == {"serial", "ppe", "dpool"}
    assert document["processes"]["serial"] == 1
    assert list(document["killed"]) == ["dpool"]
    assert document["summary"]["files"] == 120
    assert document["summary"]["functions"] > 120
    assert document["summary"]["most_complex"][0]["complexity"] > 10


def test_tables_are_printed_and_nothing_else() -> None:
    result = run_script(SCRIPT, "--files", "60", "--workers", "2").check()
    assert "the results are equal: serially, ProcessPoolExecutor, dpool.Executor" in result.stdout
    assert "was killed on the way" in result.stdout
    for heading in ("most complex functions", "longest functions", "most imported modules"):
        assert heading in result.stdout
    assert result.stderr == ""  # no terminal, no progress bar; and no trace of the killed worker


@pytest.mark.needs("module:tqdm")
def test_progress_bar_on_a_terminal() -> None:
    terminal, its_other_end = pty.openpty()
    # without a width tqdm draws nothing
    fcntl.ioctl(its_other_end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with Script(SCRIPT, "--files", "40", "--workers", "2", "--only", "dpool", stderr=its_other_end) as running:
        os.close(its_other_end)
        shown: list[bytes] = []
        reader = threading.Thread(target=read_terminal, args=(terminal, shown))
        reader.start()
        result = running.finish()
    reader.join()
    os.close(terminal)
    text = b"".join(shown).decode()
    assert result.rc == 0, text
    assert "100%" in text


def read_terminal(terminal: int, shown: list[bytes]) -> None:
    """Read until nobody has the other end open, which Linux reports as EIO."""
    while True:
        try:
            shown.append(os.read(terminal, 65536))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return


def test_parts_that_do_not_exist_are_refused() -> None:
    for options in (("--only", "serial,other"), ("--workers", "0"), ("--files", "few")):
        result = run_script(SCRIPT, *options)
        assert result.rc == 2
        assert options[0] in result.stderr
