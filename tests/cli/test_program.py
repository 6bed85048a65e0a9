"""A program under `dpool run` is what it is under `python`: its namespace, arguments, path, errors and exit status."""

from __future__ import annotations

import py_compile
import re
import signal
import sys
import zipfile
from pathlib import Path

import pytest

import dpool
from tests.cli.support import plain, served, start, write
from tests.helpers import ScriptResult, run_script, wait_until

SHOW = """
    '''What it is.'''
    import sys
    __x__ = 1
    main = sys.modules["__main__"]
    print(__name__, __doc__, __file__, __package__, type(__loader__).__name__, __cached__, __builtins__.__name__)
    print(__spec__ and (__spec__.name, __spec__.origin, __spec__.parent))
    print(main.__dict__ is globals(), sorted(name for name in globals() if name.startswith("__")))
    print(sys.argv, sys.path[0], sys.path.count(sys.path[0]))
"""


def same(*words: str | Path, cwd: Path | None = None, options: tuple[str, ...] = ()) -> ScriptResult:
    """The result under `dpool run`; it is that of `python`, to the letter."""
    expected, found = plain(*words, cwd=cwd, options=options), served(*words, cwd=cwd, options=options)
    assert found.rc == expected.rc
    assert found.stdout == expected.stdout
    assert _without_name(found.stderr) == _without_name(expected.stderr)
    return found


def _without_name(text: str) -> str:
    """The interpreter names itself as it was called."""
    return re.sub(r"^\S*python\S*: ", "python: ", text, flags=re.MULTILINE)


# -- the namespace


def test_script(tmp_path: Path) -> None:
    path = write(tmp_path, SHOW)
    same(path, "one", "--report", "-m", "--", "two").check()
    same(path.name, cwd=tmp_path).check()


def test_script_behind_a_link(tmp_path: Path) -> None:
    target = write(tmp_path / "there", SHOW)
    link = tmp_path / "link.py"
    link.symlink_to(target)
    same(link).check()


def test_module(tmp_path: Path) -> None:
    write(tmp_path, SHOW, "pack/inner.py")
    write(tmp_path, "", "pack/__init__.py")
    write(tmp_path, SHOW, "pack/__main__.py")
    write(tmp_path, SHOW, "alone.py")
    same("-m", "alone", "an", "--option", cwd=tmp_path).check()
    same("-m", "pack.inner", cwd=tmp_path).check()
    same("-m", "pack", cwd=tmp_path).check()


def test_directory_and_zip_file(tmp_path: Path) -> None:
    write(tmp_path, SHOW + "    import beside\n", "folder/__main__.py")
    write(tmp_path, "print('beside')", "folder/beside.py")
    same(tmp_path / "folder", "x").check()
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        for name in ("__main__.py", "beside.py"):
            archive.write(tmp_path / "folder" / name, name)
    same(tmp_path / "app.zip", "x").check()


def test_code_and_standard_input() -> None:
    show = "import sys; print(__name__, sys.argv, repr(sys.path[0]), '__file__' in globals())"
    same("-c", show, "a", "-b").check()
    assert served("-", "a", input=show).check().stdout == "__main__ ['-', 'a'] '' False\n"


def test_compiled_script(tmp_path: Path) -> None:
    write(tmp_path, "import sys; print(__name__, __file__, sys.argv)", "source.py")
    compiled = tmp_path / "compiled.pyc"
    py_compile.compile(str(tmp_path / "source.py"), cfile=str(compiled), doraise=True)
    same(compiled).check()


def test_future_statements_are_the_programs_own(tmp_path: Path) -> None:
    same(write(tmp_path, "def f(x: int): ...\nprint(f.__annotations__)")).check()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P came with Python 3.11")
def test_safe_path(tmp_path: Path) -> None:
    path = write(tmp_path, "import sys; print(sys.path)")
    found = served(path, options=("-P",)).check()
    assert found.stdout == plain(path, options=("-P",)).stdout


# -- how it ends


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit()",
        "sys.exit(3)",
        "sys.exit('a message')",
        "raise SystemExit(True)",
        "os._exit(7)",
        "os.kill(os.getpid(), 15)",
        "raise KeyboardInterrupt",
        "1 / 0",
        "open('/nowhere/at/all')",
        "exec('1 +')",
        "import no_such_module",
        "atexit.register(print, 'at exit'); fail(ValueError('deep'))",
        "fail(KeyError('first'), again=True)",
        "fail(ExceptionGroup('several', [ValueError(1)]))" if sys.version_info >= (3, 11) else "pass",
        "sys.excepthook = lambda *what: print('hook', what[0], what[2].tb_lineno); 1 / 0",
        "threading.Thread(target=fail, args=(ValueError('in a thread'),), name='T').start()",
    ],
)
def test_end(tmp_path: Path, end: str) -> None:
    text = f"""
    import atexit, os, sys, threading

    def fail(error, again=False):
        try:
            raise error
        except KeyError:
            raise ValueError("second")

    print("before", flush=True)
    {end}
    """
    same(write(tmp_path, text))


def test_last_traceback_is_the_programs(tmp_path: Path) -> None:
    text = """
    import atexit, sys, traceback
    atexit.register(lambda: print(len(traceback.extract_tb(sys.last_traceback)), sys.last_type))
    1 / 0
    """
    same(write(tmp_path, text))


def test_syntax_error(tmp_path: Path) -> None:
    path = write(tmp_path, "print('never')\ndef f(:\n")
    assert same(path).rc == 1


def test_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "", "pack/__init__.py")
    write(tmp_path, "import lacking", "lacks/__init__.py")
    write(tmp_path, "", "lacks/inner.py")
    same(tmp_path / "nowhere.py")
    same("-m", "no_such_module")
    same("-m", "pack", cwd=tmp_path)
    same("-m", ".relative", cwd=tmp_path)
    same(tmp_path / "pack")
    found = served("-m", "lacks.inner", cwd=tmp_path)
    assert found.rc == 1
    assert "No module named 'lacking'" in found.stderr


def test_error_of_a_module(tmp_path: Path) -> None:
    """The interpreter shows two frames of its own here; we show none of ours."""
    write(tmp_path, "1 / 0", "broken.py")
    found = served("-m", "broken", cwd=tmp_path)
    assert found.rc == 1
    assert found.stderr.splitlines()[1] == f'  File "{tmp_path / "broken.py"}", line 1, in <module>'


@pytest.mark.parametrize("where", ["in its own code", "in a task"])
def test_ctrl_c(tmp_path: Path, where: str) -> None:
    wait = "time.sleep(60)" if where == "in its own code" else "Pool(2).map(time.sleep, [60, 60])"
    text = f"""
    import pathlib, time
    from multiprocessing import Pool
    pathlib.Path({str(tmp_path / "ready")!r}).touch()
    {wait}
    """
    with start(write(tmp_path, text)) as running:
        wait_until((tmp_path / "ready").exists, 30, "the program runs")
        if where == "in a task":
            wait_until(lambda: any("dpool-worker" in _title(one.pid) for one in running.leftovers()), 30, "workers")
        running.process.send_signal(signal.SIGINT)
        found = running.finish()
    assert found.rc == -signal.SIGINT
    assert found.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert found.stderr.splitlines()[1].startswith(f'  File "{tmp_path / "program.py"}"')


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


# -- the command


def test_help_and_version() -> None:
    found = run_script("dpool", "--version", how="-m").check()
    assert found.stdout == f"dpool {dpool.__version__}\n"
    assert "run a Python program" in run_script("dpool", "--help", how="-m").check().stdout
    text = run_script("dpool", "run", "--help", how="-m").check().stdout
    for option in ("--report", "--report-json", "--workers", "--no-pool", "--no-joblib", "-m MODULE"):
        assert option in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["run"], "no program is named"),
        (["run", "--workers", "0", "x.py"], "'0' is not a number of workers"),
        (["run", "--workers", "two", "x.py"], "'two' is not a number of workers"),
        (["run", "--wor", "2", "x.py"], "unrecognized arguments"),
        (["run", "--report-json", "/nowhere/at/all", "x.py"], "the report cannot be written"),
    ],
)
def test_wrong_use(words: list[str], says: str) -> None:
    found = run_script("dpool", *words, how="-m")
    assert found.rc == 2
    assert says in found.stdout + found.stderr


def test_console_script_is_declared() -> None:
    import configparser

    from tests.helpers import REPOSITORY

    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    assert parser["options.entry_points"]["console_scripts"].split("\n")[1] == "dpool = dpool.cli:main"


def test_console_script(tmp_path: Path) -> None:
    """As pip makes it: a script whose directory is `sys.path[0]`."""
    script = write(tmp_path, "import sys\nfrom dpool.cli import main\nsys.exit(main())", "bin/dpool")
    program = write(tmp_path, "import sys; print(sys.path[0], sys.argv); 1 / 0", "there/program.py")
    found = run_script(script, "run", str(program), "x")
    assert (found.rc, found.stdout) == (1, f"{tmp_path / 'there'} {[str(program), 'x']}\n")
    assert found.stderr.splitlines()[1].startswith(f'  File "{program}"')


def test_a_program_without_pools_pays_nothing(tmp_path: Path) -> None:
    text = """
    import os, sys
    import concurrent.futures, multiprocessing, threading
    names = ("dpool._core.driver", "dpool.executor", "dpool.pool", "dpool.errors", "multiprocessing.pool", "loky",
             "concurrent.futures.process", "multiprocessing.queues", "json", "numpy")
    print([name for name in names if name in sys.modules], len(os.listdir("/proc/self/task")))
    """
    assert served(write(tmp_path, text)).check().stdout == "[] 1\n"


def test_subprocesses_of_the_program_are_left_alone(tmp_path: Path) -> None:
    text = """
    import multiprocessing, subprocess, sys
    show = "from multiprocessing.pool import Pool; print(Pool.__mro__)"
    def child():
        from multiprocessing.pool import Pool
        print(Pool.__mro__, flush=True)
    if __name__ == "__main__":
        subprocess.run([sys.executable, "-c", show], check=True)
        process = multiprocessing.get_context("spawn").Process(target=child)
        process.start()
        process.join()
    """
    same(write(tmp_path, text)).check()


def test_locks_that_outlive_a_failed_program_say_nothing(tmp_path: Path) -> None:
    text = """
    import multiprocessing
    def keep(*some):
        global kept
        kept = some
    if __name__ == "__main__":
        kept = multiprocessing.Lock(), multiprocessing.Value("i", 0)
        with multiprocessing.Pool(1, keep, kept) as pool:
            pool.map(abs, range(4))
        raise ValueError(3)
    """
    done = served(write(tmp_path, text))
    assert done.rc == 1
    assert done.stderr.endswith("ValueError: 3\n")
