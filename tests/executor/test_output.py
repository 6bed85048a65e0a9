"""What workers print and log: in order, by whole lines, to the driver's streams; and in log files that errors name."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

import dpool
from tests.executor.support import LONG_S, kill_self, square
from tests.helpers import run_script


def run(body: str, **how: object) -> tuple[str, str]:
    script = "import dpool, logging, os, sys, time\n" + dedent(body)
    result = run_script(script, **how).check()  # type: ignore[arg-type]
    return result.stdout, result.stderr


def test_output_goes_where_the_driver_writes() -> None:
    out, err = run("""
        def say(x):
            print("out", x)
            print("err", x, file=sys.stderr)
            os.write(1, b"raw out %d\\n" % x)
            os.system(f"echo child {x}")
        with dpool.Executor(1) as ex:
            for x in range(3): ex.submit(say, x).result()
        print("closed")
    """)
    assert sorted(out.splitlines()) == sorted(
        ["closed", *(line for x in range(3) for line in (f"out {x}", f"raw out {x}", f"child {x}"))]
    )
    assert out.splitlines()[-1] == "closed"
    assert err.splitlines() == [f"err {x}" for x in range(3)]


def test_lines_of_a_worker_are_in_order_and_whole() -> None:
    out, err = run("""
        def say(worker):
            for i in range(300):
                sys.stdout.write(f"{worker} {i} ")
                sys.stdout.write("x" * 500)
                sys.stdout.write(" end\\n")
        with dpool.Executor(3) as ex:
            list(ex.map(say, "abc"))
    """)
    lines = out.splitlines()
    assert len(lines) == 900
    for worker in "abc":
        assert [line for line in lines if line.startswith(worker)] == [
            f"{worker} {i} {'x' * 500} end" for i in range(300)
        ]
    assert err == ""


def test_a_redirected_stream_of_the_driver_is_used() -> None:
    """What a notebook or a test put in the place of sys.stdout."""
    out, _ = run("""
        import contextlib, io
        buffer = io.StringIO()
        with contextlib.redirect_stdout(buffer):
            with dpool.Executor(1) as ex:
                ex.submit(print, "captured").result()
        print("seen:", buffer.getvalue().strip())
    """)
    assert out == "seen: captured\n"


def test_a_line_without_an_end_arrives_too() -> None:
    out, err = run("""
        def say(text): sys.stdout.write(text); sys.stderr.write("e" + text)
        with dpool.Executor(1) as ex: ex.submit(say, "no end").result()
    """)
    assert (out.strip(), err.strip()) == ("no end", "eno end")


def test_last_words_before_a_crash() -> None:
    out, err = run("""
        def die():
            print("last words", flush=True)
            os.kill(os.getpid(), 11)
        with dpool.Executor(1) as ex:
            error = ex.submit(die).exception()
            log = open(error.log_file).read()
        assert "last words" in log and "Segmentation fault" in log, log
        assert error.log_file in str(error)
    """)
    assert out == "last words\n"
    assert "Segmentation fault" in err
    assert "in die" in err


def test_much_output_holds_nothing_up() -> None:
    out, _ = run("""
        def say(n): print("y" * 99 + "\\n" * (n % 2 == 0), end="\\n" * (n % 2))
        with dpool.Executor(2) as ex:
            list(ex.map(say, range(20000), chunksize=100))
    """)
    assert len(out) == 2_000_000


def test_bytes_that_are_no_text() -> None:
    out, _ = run("""
        def say(): os.write(1, b"\\xff\\xfe\\n"); print("\\udcff")
        with dpool.Executor(1) as ex: ex.submit(say).result()
    """)
    assert len(out.splitlines()) == 2


def test_carriage_returns_pass_at_once() -> None:
    """Progress bars of tasks live from them."""
    out, _ = run("""
        def say():
            for i in range(3): sys.stdout.write(f"{i}\\r"); sys.stdout.flush()
        with dpool.Executor(1) as ex: ex.submit(say).result()
        sys.stdout.flush()
    """)
    assert out.replace("\n", "\r").split("\r")[:3] == ["0", "1", "2"]


def test_logging_arrives_once_in_the_drivers_format() -> None:
    out, err = run("""
        logging.basicConfig(level=logging.INFO, format="%(levelname)s <%(message)s>")
        logging.getLogger("chatty").setLevel(logging.ERROR)
        def log(x):
            logging.info("info %d", x)
            logging.debug("debug")
            logging.getLogger("chatty").warning("too chatty")
            logging.getLogger("chatty").error("error %d", x)
        with dpool.Executor(1) as ex:
            for x in range(2): ex.submit(log, x).result()
    """)
    assert err.splitlines() == [f"{level} <{level.lower()} {x}>" for x in range(2) for level in ("INFO", "ERROR")]
    assert out == ""


def test_logging_without_a_configuration_is_what_it_is_in_the_driver() -> None:
    _, err = run("""
        def log(): logging.warning("careful"); logging.getLogger("x").info("nobody hears this")
        with dpool.Executor(1) as ex: ex.submit(log).result()
    """)
    assert err == "WARNING:root:careful\n"


def test_a_warning_of_a_task_is_seen() -> None:
    _, err = run("""
        import warnings
        def warn(): warnings.warn("of a task", stacklevel=1)
        with dpool.Executor(1) as ex: ex.submit(warn).result()
    """)
    assert "UserWarning: of a task" in err


@pytest.mark.parametrize("how", ["close", "replace"])
def test_a_driver_without_streams(how: str) -> None:
    body = """
        with dpool.Executor(1) as ex:
            ex.submit(print, "nobody reads this").result()
            HOW
            assert ex.submit(abs, -3).result() == 3
            ex.submit(print, "nor this").result()
        os._exit(0)
    """
    run(body.replace("HOW", "sys.stdout.close()" if how == "close" else "sys.stdout = sys.stderr = None"))


def test_a_task_may_close_its_streams(one: dpool.Executor) -> None:
    def close() -> None:
        import sys

        sys.stdout.close()
        sys.stderr = None

    one.submit(close).result(LONG_S)
    assert one.submit(square, 3).result(LONG_S) == 9


def test_log_files_are_in_the_session_directory(one: dpool.Executor, session_directories: Path) -> None:
    error = one.submit(kill_self).exception(LONG_S)
    assert isinstance(error, dpool.errors.WorkerCrashed)
    path = Path(error.log_file)
    assert path.parent.parent == session_directories
    assert path.parent.name.startswith("dpool-")
    assert (path.parent.stat().st_mode & 0o777) == 0o700
    assert (path.parent / "node.log").exists()
