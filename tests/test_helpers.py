"""The leak check and the script runner must notice what they are there for, and stay silent otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import Script, is_running, process, run_script, wait_until
from tests.reaper import kill_all

ORPHAN = "import os\nif os.fork() == 0:\n    os.setsid()\n    os.execvp('sleep', ['sleep', '600'])\n"

LEAKS = {
    "process": "import subprocess\ndef test(): globals()['kept'] = subprocess.Popen(['sleep', '600'])",
    "zombie": "import os\ndef test():\n    if os.fork() == 0: os._exit(0)",
    "orphan": f"import subprocess, sys\ndef test(): subprocess.run([sys.executable, '-c', {ORPHAN!r}], check=True)",
    "directory": "import tempfile\ndef test(): tempfile.mkdtemp(prefix='dpool-')",
    "file descriptor": "import os\ndef test(): os.pipe()",
    "thread": "import threading as t\ndef test(): t.Thread(target=t.Event().wait, name='dpool', daemon=True).start()",
}
CLEAN = """
import os, subprocess, tempfile, threading
def test(tmp_path):
    subprocess.run(["true"], check=True)
    with tempfile.TemporaryDirectory(prefix="dpool-"), open(os.devnull) as file:
        closing = threading.Thread(target=threading.Event().wait, args=(0.2,), name="dpool-io")
        closing.start()
"""


def run_pytest(directory: Path, text: str, settle_s: float = 60.0) -> tuple[int, str]:
    """The exit code and the output of a pytest run of its own, with this directory's conftest as a plugin."""
    (directory / "test_it.py").write_text(text)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-p", "no:valkey", "-q", str(directory)]
    settings = {"DPOOL_TEST_SETTLE_S": str(settle_s)}
    with Script("pytest", *options, how="-m", cwd=directory, env=settings) as running:
        result = running.finish()
    return result.rc, result.stdout + result.stderr


@pytest.mark.parametrize("what", LEAKS)
def test_leak_check_names_what_is_left(what: str, tmp_path: Path) -> None:
    rc, output = run_pytest(tmp_path, LEAKS[what], settle_s=0.3)
    assert rc == 1, output
    assert "the test left behind" in output
    assert ("process" if what in ("zombie", "orphan") else what) in output.partition("left behind:")[2]


def test_leak_check_lets_a_clean_test_pass(tmp_path: Path) -> None:
    rc, output = run_pytest(tmp_path, CLEAN)
    assert rc == 0, output


@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_script_runs_alone(how: str) -> None:
    text = "import os, sys; print(os.getsid(0) == os.getpid(), __name__, sys.argv[1:]); sys.exit(3)"
    result = run_script(text, how=how)
    assert result.rc == 3
    assert result.stdout == "True __main__ []\n"
    with pytest.raises(AssertionError, match="exit code 3"):
        result.check()


def test_script_reads_input_and_environment() -> None:
    result = run_script("import os; print(input(), os.environ['X'])", input="line\n", env={"X": "y"})
    assert result.check().stdout == "line y\n"


@pytest.mark.parametrize("streams", ["", "import os\nfor fd in range(3): os.close(fd)\n"], ids=["held", "closed"])
def test_script_that_leaves_an_orphan_fails_and_the_orphan_ends(streams: str) -> None:
    with Script(streams + ORPHAN) as running:
        with pytest.raises(AssertionError, match=r"outlived the script[\s\S]*sleep 600") as caught:
            running.finish(settle_s=0.2)
        pid = int(str(caught.value).splitlines()[1].split()[0])
    wait_until(lambda: not is_running(pid), what="the orphan is killed")


def test_script_that_takes_too_long_is_killed() -> None:
    with Script("import time; print('here', flush=True); time.sleep(600)") as running:
        with pytest.raises(AssertionError, match=r"not done after 0.5 s[\s\S]*here"):
            running.finish(timeout=0.5)
        pid = running.pid
    assert not is_running(pid)


def test_ctrl_c_is_heeded_by_what_runs_in_the_background() -> None:
    """As a shell without job control starts it: `command &`."""
    text = (
        "import signal, subprocess, sys\n"
        "from tests.helpers import heed_ctrl_c\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "ask = [sys.executable, '-c', 'import signal; print(signal.getsignal(signal.SIGINT))']\n"
        "ignored = subprocess.check_output(ask)\n"
        "heed_ctrl_c()\n"
        "print(ignored != subprocess.check_output(ask))\n"
    )
    assert run_script(text).check().stdout == "True\n"


def test_wait_until_names_what_did_not_happen() -> None:
    assert wait_until(lambda: 7) == 7
    with pytest.raises(AssertionError, match=r"the moon: not within 0\.01 s"):
        wait_until(lambda: False, 0.01, "the moon")


def test_process_reads_itself() -> None:
    me = process(os.getpid())
    assert me is not None
    assert (me.pid, me.parent) == (os.getpid(), os.getppid())
    assert me.state == "R"
    assert sys.executable.rpartition("/")[2].rstrip("0123456789.") in me.command


HANGS = """
import os, time
from pathlib import Path
from tests.helpers import Script

def test_hangs():
    with Script("import dpool, time\\nwith dpool.Executor(1) as ex: ex.submit(abs, 1).result(); print('up', flush=True)"
                "; time.sleep(600)") as running:
        running.process.stdout.readline()
        Path("up").write_text(str(running.pid))
        running.process.wait()
"""


def test_a_test_run_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANGS)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-p", "no:valkey", "-q", str(tmp_path)]
    with Script("pytest", *options, how="-m", cwd=tmp_path) as running:
        wait_until((tmp_path / "up").exists, 60, "the script is up")
        hung = int((tmp_path / "up").read_text() or wait_until((tmp_path / "up").read_text))
        assert is_running(hung)
        assert len(running.leftovers()) >= 3, "the script, its node and its zygote"
        running.process.kill()
        wait_until(lambda: not running.leftovers(), 30, "everything that it had started is gone")


def test_what_has_written_over_its_environment_belongs_to_the_run_by_its_directory(tmp_path: Path) -> None:
    inside, beside = tmp_path / "run" / "deep", tmp_path / "run2"
    inside.mkdir(parents=True)
    beside.mkdir()
    sleep = partial(subprocess.Popen, ["sleep", "600"], env={})
    with sleep(cwd=inside) as ours, sleep(cwd=beside) as another:
        try:
            assert kill_all(":no such mark", str(tmp_path / "run")) == [ours.pid]
            assert ours.wait(60) == -9
            assert another.poll() is None
        finally:
            another.kill()
