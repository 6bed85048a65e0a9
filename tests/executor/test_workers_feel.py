"""Workers feel like those of `multiprocessing`: what a task finds around it is what a child of the driver would."""

from __future__ import annotations

import json
import logging
import multiprocessing
import multiprocessing.managers
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import dpool
from tests.executor.support import LONG_S, Gate, kill_self, same, square
from tests.helpers import REPOSITORY, run_script, wait_until

HOW = ["file", "-c", "-"]

# --- In every kind of program ---

LOOK = """
import dpool, json, multiprocessing, os, sys, warnings
def look():
    return {
        "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "environ": dict(os.environ), "stdin": sys.stdin.read(),
        "fd 0": os.readlink("/proc/self/fd/0"), "parent": getattr(multiprocessing.parent_process(), "pid", None),
        "main": (sys.modules["__main__"].__name__, look.__module__, getattr(sys.modules["__main__"], "__file__", None)),
        "file": globals().get("__file__"), "flags": list(sys.flags), "warnoptions": sys.warnoptions,
        "prefix": sys.prefix, "executable": sys.executable,
    }
def report(ex):
    found = ex.submit(look).result()
    sys.stdin = open(os.devnull)
    mine = look()
    threads = {name for name in found["environ"] if name.endswith("_THREADS")}
    assert threads >= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    for name in threads: mine["environ"].setdefault(name, found["environ"][name])
    for name in ("argv", "cwd", "environ", "main", "file", "executable", "prefix", "warnoptions", "flags"):
        assert json.dumps(found[name], sort_keys=True) == json.dumps(mine[name], sort_keys=True), (
            name, found[name], mine[name])
    assert [p or os.getcwd() for p in mine["path"]] == found["path"], (mine["path"], found["path"])
    assert found["fd 0"] == os.devnull and found["stdin"] == ""
    assert found["parent"] == os.getpid()
    print("the same")
"""
BARE = LOOK + "\nwith dpool.Executor(1) as ex: report(ex)\n"
GUARDED = LOOK + "\nif __name__ == '__main__':\n    with dpool.Executor(1) as ex: report(ex)\n"


@pytest.mark.parametrize("script", [BARE, GUARDED], ids=["bare", "guarded"])
@pytest.mark.parametrize("how", HOW)
def test_the_surroundings_are_the_drivers(how: str, script: str, tmp_path: Path) -> None:
    arguments = ("one", "two") if how != "-" else ()
    result = run_script(script, *arguments, how=how, cwd=tmp_path, env={"OF_THE_DRIVER": "ä", "PYTHONHASHSEED": "0"})
    assert result.check().stdout == "the same\n"
    assert result.stderr == ""


def test_the_surroundings_with_m(tmp_path: Path) -> None:
    package = tmp_path / "thing"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(GUARDED)
    result = run_script("thing", "one", how="-m", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}).check()
    assert result.stdout == "the same\n"


@pytest.mark.parametrize(
    "options", [("-O",), ("-B", "-W", "error"), ("-X", "dev"), ("-I",), ("-E", "-s"), ("-u", "-X", "utf8")], ids=str
)
def test_the_interpreters_options_are_the_drivers(options: tuple[str, ...]) -> None:
    text = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n" + GUARDED
    result = run_script(text, python_options=options).check()
    assert result.stdout == "the same\n"


def test_a_change_before_the_first_task_is_seen(tmp_path: Path) -> None:
    script = """
        import dpool, os, sys
        def look(): return os.getcwd(), os.environ.get("NEW"), "HOME" in os.environ, sys.argv, sys.path[0]
        os.environ["NEW"] = "1"
        del os.environ["HOME"]
        os.chdir(sys.argv[1])
        sys.argv[:] = ["changed"]
        sys.path.insert(0, "/nowhere")
        with dpool.Executor(1) as ex:
            found = ex.submit(look).result()
            assert found == (os.getcwd(), "1", False, ["changed"], "/nowhere"), found
    """
    run_script(dedent(script), str(tmp_path), env={"HOME": "/nowhere"}).check()


def test_env_is_set_before_anything_is_imported() -> None:
    script = """
        import dpool, os
        def look(): return os.environ["MINE"], os.environ["OMP_NUM_THREADS"]
        with dpool.Executor(1, env={"MINE": "yes", "OMP_NUM_THREADS": "3"}) as ex:
            assert ex.submit(look).result() == ("yes", "3")
        assert "MINE" not in os.environ
    """
    run_script(dedent(script)).check()


# --- Processes ---


def who() -> tuple[str, tuple[int, ...], int, bool]:
    me: Any = multiprocessing.current_process()
    return me.name, me._identity, os.getpid(), me.daemon


def held_who(gate: Gate, name: str) -> tuple[str, tuple[int, ...], int, bool]:
    gate.enter(name)
    return who()


def test_names_and_identities_number_the_workers(gate: Gate) -> None:
    with dpool.Executor(3) as ex:
        futures = [ex.submit(held_who, gate, str(i)) for i in range(3)]
        for i in range(3):
            gate.entered(str(i))
        gate.open("0", "1", "2")
        found = sorted(future.result(LONG_S) for future in futures)
    names, identities, pids, daemons = zip(*found, strict=True)
    assert sorted(identities) == [(1,), (2,), (3,)]
    assert len(set(names)) == len(set(pids)) == 3
    assert all(name.endswith(f"-{number}") for name, (number,) in zip(names, identities, strict=True))
    assert not any(daemons)


def test_a_replacement_has_a_number_of_its_own(one: dpool.Executor) -> None:
    first = one.submit(who).result(LONG_S)
    one.submit(kill_self).exception(LONG_S)
    second = one.submit(who).result(LONG_S)
    assert first[1] == (1,)
    assert second[1] == (2,)
    assert second[0] != first[0]


def look_at_parent() -> tuple[Any, ...]:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join(0)
    return parent.pid, parent.name, parent.is_alive()


def test_the_parent_process_is_the_driver(one: dpool.Executor) -> None:
    assert one.submit(look_at_parent).result(LONG_S) == (os.getpid(), "MainProcess", True)


def start_processes() -> list[Any]:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=queue.put, args=(same("of a child"),))
    child.start()
    found: list[Any] = [queue.get()]
    child.join()
    found.append(child.exitcode)
    with context.Pool(2) as pool:
        found.append(pool.map(square, range(5)))
    found.append(subprocess.run([sys.executable, "-c", "print(6)"], stdout=subprocess.PIPE, check=True).stdout)
    found.append(os.waitstatus_to_exitcode(os.system("exit 7")))
    return found


def test_tasks_may_start_processes(one: dpool.Executor) -> None:
    for _ in range(2):
        assert one.submit(start_processes).result(LONG_S) == ["of a child", 0, [0, 1, 4, 9, 16], b"6\n", 7]


def spawn_child() -> int | None:
    child = multiprocessing.get_context("spawn").Process(target=square, args=(3,))
    child.start()
    child.join()
    return child.exitcode


def test_tasks_may_spawn_processes(one: dpool.Executor) -> None:
    assert one.submit(spawn_child).result(LONG_S) == 0


def test_a_daemonic_child_ends_with_its_worker(gate: Gate) -> None:
    with dpool.Executor(1) as ex:
        ex.submit(start_daemon, gate).result(LONG_S)
        pid = gate.entered("daemon")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), LONG_S)


def start_daemon(gate: Gate) -> None:
    child = multiprocessing.get_context("fork").Process(target=gate.enter, args=("daemon",), daemon=True)
    child.start()


def put(proxy: Any, value: int) -> list[int]:
    proxy.append(value)
    return list(proxy)


def test_the_authkey_is_the_drivers_and_proxies_work(one: dpool.Executor) -> None:
    key = bytes(multiprocessing.current_process().authkey)
    assert one.submit(lambda: bytes(multiprocessing.current_process().authkey)).result(LONG_S) == key
    with multiprocessing.get_context("spawn").Manager() as manager:
        items, event = manager.list(), manager.Event()
        assert one.submit(put, items, 1).result(LONG_S) == [1]
        assert one.submit(put, proxy=items, value=2).result(LONG_S) == [1, 2]
        one.submit(event.set).result(LONG_S)
        assert event.is_set()
        assert list(items) == [1, 2]


def test_the_mp_context_is_accepted() -> None:
    for method in ("fork", "spawn", "forkserver"):
        with dpool.Executor(2, multiprocessing.get_context(method)) as ex:
            assert ex.submit(square, 3).result(LONG_S) == 9
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        dpool.Executor(1, multiprocessing.get_context("fork"), max_tasks_per_child=1)


# --- Chance ---


def draw(gate: Gate, name: str) -> tuple[float, float | None]:
    gate.enter(name)
    try:
        import numpy
    except ImportError:
        return random.random(), None
    return random.random(), float(numpy.random.random())


def test_random_numbers_differ_between_workers(gate: Gate) -> None:
    random.seed(1)
    with dpool.Executor(3) as ex:
        futures = [ex.submit(draw, gate, str(i)) for i in range(3)]
        for i in range(3):
            gate.entered(str(i))
        gate.open("0", "1", "2")
        found = [future.result(LONG_S) for future in futures]
    with dpool.Executor(1) as again:
        found.append(again.submit(draw, gate, "0").result(LONG_S))
    assert len({number for number, _ in found}) == 4
    assert len({number for _, number in found if number is not None}) in (0, 4)


def nested_draw() -> list[float]:
    with dpool.Executor(2) as inner:
        return [inner.submit(draw_one).result(LONG_S), random.random()]


def draw_one() -> float:
    return random.random()


def test_random_numbers_differ_between_nested_workers(ex: dpool.Executor) -> None:
    numbers = [number for future in [ex.submit(nested_draw) for _ in range(2)] for number in future.result(LONG_S)]
    assert len(set(numbers)) == 4


# --- Warnings, logging ---


class OwnWarning(UserWarning):
    pass


def warn(text: str, category: type[Warning]) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn(text, category, stacklevel=1)
    return [str(one.message) for one in seen]


def test_warnings_filters_are_the_drivers() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filterwarnings("ignore", "quiet")
        warnings.filterwarnings("error", category=OwnWarning)
        warnings.filterwarnings("always", category=DeprecationWarning)
        with dpool.Executor(1) as ex:
            assert ex.submit(warn, "quiet please", UserWarning).result(LONG_S) == []
            assert ex.submit(warn, "old", DeprecationWarning).result(LONG_S) == ["old"]
            assert type(ex.submit(warn, "own", OwnWarning).exception(LONG_S)) is OwnWarning


def test_a_warnings_filter_imports_nothing_and_works_once_its_category_is_there(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("class OddWarning(UserWarning):\n    class Inner(UserWarning): pass\n")
    script = f"""
        import dpool, sys, warnings
        sys.path.insert(0, {str(tmp_path)!r})
        import odd
        class MainWarning(UserWarning): pass
        warnings.simplefilter("error", odd.OddWarning)
        warnings.simplefilter("error", odd.OddWarning.Inner)
        warnings.simplefilter("error", MainWarning)
        def before():
            warnings.warn("plain", UserWarning)
            return "odd" in sys.modules
        def raised(find):
            try:
                warnings.warn("hello", find())
            except Warning as error:
                return type(error).__name__
        def nested():
            with dpool.Executor(1) as ex:
                return ex.submit(before).result(), ex.submit(raised, lambda: __import__("odd").OddWarning).result()
        warnings.filterwarnings("ignore", "plain")
        with dpool.Executor(1) as ex:
            assert ex.submit(before).result() is False
            assert ex.submit(nested).result() == (False, "OddWarning")
            assert ex.submit(raised, lambda: __import__("odd").OddWarning).result() == "OddWarning"
            assert ex.submit(raised, lambda: __import__("odd").OddWarning.Inner).result() == "Inner"
            assert ex.submit(raised, lambda: MainWarning).result() == "MainWarning"
    """
    run_script(dedent(script)).check()


def levels() -> dict[str, int]:
    return {name: logging.getLogger(name).getEffectiveLevel() for name in ("", "a", "a.b", "c")}


def test_logger_levels_are_the_drivers() -> None:
    script = """
        import dpool, logging
        from tests.executor.test_workers_feel import levels
        logging.getLogger().setLevel(35)
        logging.getLogger("a").setLevel(10)
        logging.getLogger("a.b").setLevel(20)
        with dpool.Executor(1) as ex:
            assert ex.submit(levels).result() == {"": 35, "a": 10, "a.b": 20, "c": 35} == levels()
    """
    run_script(dedent(script)).check()


LOGS = """
import dpool, logging, sys
def work(i):
    logging.getLogger("some").info("from %s", i)
    logging.getLogger("some").debug("no")
    logging.getLogger("some").warning("again %s", i)
{config}
with dpool.Executor(1) as ex:
    ex.submit(work, "the task").result()
    logging.getLogger("driver").info("after")
"""
LINES = ["INFO from the task", "WARNING again the task", "INFO after"]


@pytest.mark.parametrize(
    "settings",
    [
        "level=20, style='{', format='{levelname} {message}', stream=sys.stdout",
        "level=20, style='$', format='$levelname ${message}', stream=sys.stdout",
        "level=20, format='%(levelname)s %(message)s', stream=sys.stdout",
    ],
)
def test_logs_go_to_the_drivers_stream_in_its_format(settings: str) -> None:
    result = run_script(LOGS.format(config=f"logging.basicConfig({settings})")).check()
    assert sorted(result.stdout.splitlines()) == sorted(LINES)
    assert result.stderr == ""


@pytest.mark.parametrize("mode", ["a", "w"])
def test_logs_go_to_the_drivers_file(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    config = f"""
logging.basicConfig(level=20, format='%(levelname)s %(message)s', filename={str(file)!r}, filemode={mode!r})
errors = logging.StreamHandler()
errors.setLevel(logging.WARNING)
logging.getLogger().addHandler(errors)
logging.getLogger().addHandler(logging.NullHandler())
logging.info("before")
"""
    result = run_script(LOGS.format(config=config)).check()
    assert file.read_text().splitlines() == ["INFO before", *LINES]
    assert (result.stdout, result.stderr) == ("", "again the task\n")


def test_logs_for_handlers_that_a_worker_cannot_have_go_to_standard_error() -> None:
    config = "import io; logging.basicConfig(level=20, format='%(levelname)s %(message)s', stream=io.StringIO())"
    result = run_script(LOGS.format(config=config)).check()
    assert result.stderr.splitlines() == LINES[:2]


@pytest.mark.parametrize("alone", [False, True])
def test_handlers_of_other_loggers(alone: bool) -> None:
    config = f"""
some = logging.getLogger("some")
some.setLevel(20)
some.propagate = not {alone}
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
some.addHandler(handler)
logging.basicConfig(format="root %(message)s")
"""
    result = run_script(LOGS.format(config=config)).check()
    assert result.stdout.splitlines() == LINES[:2]
    assert result.stderr.splitlines() == ([] if alone else ["root from the task", "root again the task"])


def test_a_logger_that_its_module_configures_writes_once(tmp_path: Path) -> None:
    (tmp_path / "configured.py").write_text(
        "import logging, sys\n"
        "log = logging.getLogger(__name__)\n"
        "log.addHandler(logging.StreamHandler(sys.stdout))\n"
        "def work(): log.warning('once')\n"
    )
    script = tmp_path / "program.py"
    script.write_text("import configured, dpool\nwith dpool.Executor(1) as ex: ex.submit(configured.work).result()\n")
    result = run_script(script).check()
    assert (result.stdout, result.stderr) == ("once\n", "")


def test_the_context_of_decimal_numbers_is_the_drivers() -> None:
    script = """
        import decimal, dpool
        def third(): return str(decimal.Decimal(1) / 3)
        decimal.getcontext().prec = 5
        decimal.getcontext().traps[decimal.Inexact] = False
        with dpool.Executor(1) as ex:
            assert ex.submit(third).result() == third() == "0.33333"
        decimal.getcontext().traps[decimal.Inexact] = True
        with dpool.Executor(1) as ex:
            assert type(ex.submit(third).exception()) is decimal.Inexact
    """
    run_script(dedent(script)).check()


def test_the_recursion_limit_is_the_drivers() -> None:
    script = """
        import dpool, sys
        sys.setrecursionlimit(7777)
        with dpool.Executor(1) as ex:
            assert ex.submit(sys.getrecursionlimit).result() == 7777
    """
    run_script(dedent(script)).check()


# --- Threads of BLAS and OpenMP ---


def test_thread_limits_follow_the_cpus() -> None:
    script = """
        import dpool, os, sys
        names = ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "NUMEXPR_NUM", "BLIS_NUM", "VECLIB_MAXIMUM")
        def look(): return [os.environ.get(name + "_THREADS") for name in names]
        cpus = len(os.sched_getaffinity(0))
        for workers in (1, cpus, 4 * cpus):
            with dpool.Executor(workers) as ex:
                found = ex.submit(look).result()
                assert found == [str(max(1, cpus // workers))] * 6, found
        os.environ["OMP_NUM_THREADS"] = "5"
        with dpool.Executor(1) as ex:
            assert ex.submit(look).result()[0] == "5"
    """
    run_script(dedent(script)).check()


# --- Signals and the end ---


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1)]


def test_signal_handlers_are_the_defaults(one: dpool.Executor) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        assert one.submit(handlers).result(LONG_S) == [signal.SIG_DFL] * 4
    finally:
        signal.signal(signal.SIGUSR1, before)


def leave_a_note(gate: Gate) -> None:
    import atexit
    from multiprocessing import util

    atexit.register(gate.note, "atexit")
    util.Finalize(None, gate.note, args=("finalizer",), exitpriority=1)
    threading.Timer(0.05, gate.note, ("thread",)).start()


def test_a_worker_ends_as_those_of_multiprocessing_do(gate: Gate) -> None:
    """Its threads are joined, its exit functions run."""
    with dpool.Executor(1) as ex:
        ex.submit(leave_a_note, gate).result(LONG_S)
    assert gate.pids("thread")
    assert gate.pids("finalizer")
    assert gate.pids("atexit")


def test_sys_exit_is_an_exception_of_the_task(one: dpool.Executor) -> None:
    pid = one.submit(os.getpid).result(LONG_S)
    error = one.submit(sys.exit, 3).exception(LONG_S)
    assert isinstance(error, SystemExit)
    assert error.code == 3
    assert one.submit(os.getpid).result(LONG_S) == pid


def test_a_worker_holds_nothing_of_the_driver(one: dpool.Executor, tmp_path: Path) -> None:
    """No descriptor and no thread: it is no fork of the driver."""
    (tmp_path / "open").touch()
    with open(tmp_path / "open") as file:
        os.set_inheritable(file.fileno(), True)
        links = one.submit(descriptors).result(LONG_S)
    assert not [link for link in links if str(tmp_path) in link]
    assert one.submit(threading.active_count).result(LONG_S) == 1


def descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


def test_what_ps_shows(one: dpool.Executor) -> None:
    pid = one.submit(os.getpid).result(LONG_S)
    assert Path(f"/proc/{pid}/comm").read_text().startswith("dpool")
    assert json.dumps(sorted(one._processes)) == json.dumps([pid])
