"""What every test may use: waiting for a condition, looking at processes, and running a script on its own.

Nothing here knows dpool. Processes are read from /proc, so what has lost its parent is found too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

REPOSITORY = Path(__file__).resolve().parent.parent
MARK = "DPOOL_TEST_MARK"
"""The environment variable by which everything that a test run or a script starts is known: `:run` or `:run:script`."""
T = TypeVar("T")


# --- Waiting ---


def wait_until(predicate: Callable[[], T], deadline_s: float = 60.0, what: str = "the condition") -> T:
    """The first true value of `predicate()`, which is asked again and again.

    The only place of the tests that may pause.

    Raises:
        AssertionError: `what` did not come true within `deadline_s` seconds; the last value is named.
    """
    end_s = time.monotonic() + deadline_s
    pause_s = 0.001
    while not (value := predicate()):
        if time.monotonic() >= end_s:
            raise AssertionError(f"{what}: not within {deadline_s} s (the last value was {value!r})")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.05)
    return value


# --- Processes ---


class Process(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    parent: int
    session: int
    state: str
    """One letter; Z is a zombie."""
    start: int
    """Clock ticks since boot; with the pid it names one process for ever."""
    command: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.state}, child of {self.parent}) {self.command}"


def process(pid: int) -> Process | None:
    """The process `pid`, or None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition(" (")[2].rpartition(") ")
    fields = rest.split()
    return Process(pid, int(fields[1]), int(fields[3]), fields[0], int(fields[19]), command or f"[{name}]")


def processes() -> Iterator[Process]:
    """Every process of the machine that can be seen from here."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (found := process(int(entry))):
            yield found


def is_running(pid: int) -> bool:
    """Whether `pid` is a process that is not a zombie."""
    found = process(pid)
    return found is not None and found.state not in "ZX"


def mark_of(pid: int) -> str:
    """The mark that `pid` inherited; empty when it has none, has ended, or is not ours to look at."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{MARK}=".encode()
    return next((item[len(prefix) :].decode() for item in environment.split(b"\0") if item.startswith(prefix)), "")


def belongs_to(pid: int, mark: str, directory: str) -> bool:
    """Whether a test run started this process: by the mark that it inherited, or, since some programs write over their
    environment (Redis does), by its working directory, if that lies in the run's own.
    """
    if mark_of(pid).startswith(mark):
        return True
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(f"{directory}/")
    except OSError:
        return False


def descendants(pid: int, among: list[Process] | None = None) -> list[Process]:
    """The children of `pid`, their children and so on, zombies included."""
    children: dict[int, list[Process]] = {}
    for one in among if among is not None else processes():
        children.setdefault(one.parent, []).append(one)
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [one.pid for one in below]
    return found


def kill(victims: list[Process]) -> None:
    """SIGKILL for those of `victims` that are still what they were."""
    for victim in victims:
        now = process(victim.pid)
        if now is not None and now.start == victim.start and now.state not in "ZX":
            os.kill(victim.pid, signal.SIGKILL)


# --- Scripts ---


def heed_ctrl_c() -> None:
    """What a shell without job control starts in the background ignores SIGINT, and so does all that it starts in turn;
    from now on neither does.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ScriptResult(NamedTuple):
    """How a script ended."""

    rc: int
    stdout: str
    stderr: str

    def check(self) -> ScriptResult:
        """Itself; AssertionError, with what was printed, unless the exit code is 0."""
        assert self.rc == 0, f"exit code {self.rc}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
        return self


def script_environment(mark: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean environment in which this repository's dpool is importable."""
    keep = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    return {**environment, "PYTHONPATH": str(REPOSITORY), MARK: mark, **(extra or {})}


class Script:
    """A Python script that runs in a session of its own; a context manager that leaves none of its processes behind.

    `process` is the `subprocess.Popen`, with pipes for its three streams. Leaving the `with` block kills what still
    runs; it does not complain. `leftovers()` says what there is.

    Args:
        script: a script's path, or its text.
        how: for a text, how Python gets it: "file" (a script file), "-c", or "-" (standard input, by `finish`);
            "-m": `script` is a module's name.
        env: added to the clean environment.
    """

    def __init__(
        self,
        script: str | Path,
        *args: str,
        how: str = "file",
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        python_options: tuple[str, ...] = (),
        stdin: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> None:
        self.mark = f"{os.environ.get(MARK, '')}:{uuid.uuid4().hex}"
        self._file: Path | None = None
        self._text = str(script) if how == "-" else None
        if how == "file" and isinstance(script, str):
            handle, name = tempfile.mkstemp(prefix="script_", suffix=".py")
            os.close(handle)
            self._file = Path(name)
            self._file.write_text(script)
        run = {"file": [str(self._file or script)], "-": ["-"]}.get(how) or [how, str(script)]
        self.process = subprocess.Popen(
            [sys.executable, *python_options, *run, *args],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=script_environment(self.mark, env),
            cwd=cwd,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def leftovers(self) -> list[Process]:
        """The processes that the script started, directly or not, and that still run; without the script itself."""
        return [
            one
            for one in processes()
            if one.pid != self.pid
            and one.state not in "ZX"  # a zombie here is an orphan that the machine's init has not reaped yet
            and (one.session == self.pid or mark_of(one.pid).startswith(self.mark))
        ]

    def finish(self, input: str | None = None, timeout: float = 60.0, settle_s: float = 10.0) -> ScriptResult:
        """Its result, once it has ended.

        Raises:
            AssertionError: it took longer than `timeout` seconds, or something that it started outlived it by
                more than `settle_s` seconds.
        """
        trouble = self._await_end(self._text if input is None else input, timeout, settle_s)
        left = self.leftovers()
        if trouble:
            self.kill()
        stdout, stderr = self.process.communicate()
        if trouble:
            listing = "".join(f"{one}\n" for one in left)
            raise AssertionError(f"{trouble}\n{listing}--- stdout\n{stdout}\n--- stderr\n{stderr}")
        return ScriptResult(self.process.returncode, stdout, stderr or "")

    def _await_end(self, input: str | None, timeout: float, settle_s: float) -> str:
        """Wait until nothing of the script runs, and read its streams meanwhile; what is wrong, or an empty string."""
        over_s = time.monotonic() + timeout
        ended = False
        while True:
            try:
                self.process.communicate(input, 0.02)
                break
            except subprocess.TimeoutExpired:
                input = None  # it may be given only once
            if not ended and self.process.poll() is not None:  # but something else holds its streams
                ended = True
                over_s = time.monotonic() + settle_s
            if time.monotonic() >= over_s:
                return "processes outlived the script:" if ended else f"not done after {timeout} s"
        try:
            wait_until(lambda: not self.leftovers(), settle_s)
        except AssertionError:
            return "processes outlived the script:"
        return ""

    def kill(self) -> None:
        """SIGKILL for the script and for everything that it started."""
        if self.process.poll() is None:
            self.process.kill()
        kill(self.leftovers())

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if self._file is not None:
            self._file.unlink()


def run_script(
    script: str | Path,
    *args: str,
    timeout: float = 60.0,
    how: str = "file",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    python_options: tuple[str, ...] = (),
    input: str | None = None,
) -> ScriptResult:
    """Run a Python script to its end, in a session and a clean environment of its own.

    Args:
        script, how, env: as for `Script`.
        input: what it reads from standard input; None is an empty one.

    Raises:
        AssertionError: it took longer than `timeout` seconds, or a process that it started outlived it.
    """
    with Script(script, *args, how=how, env=env, cwd=cwd, python_options=python_options) as running:
        return running.finish(input, timeout)
