"""Large values, many tasks, a machine that has run out of something: right values or a clear error, never a hang."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

import dpool
from tests.faults import tasks
from tests.faults.support import DEADLINE_S, Ledger, resident_bytes
from tests.helpers import Script, run_script, wait_until

GIB = 1 << 30


def available_bytes() -> int:
    """What can be had without swapping, as this process's memory cgroup and the machine say."""
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


# --- Large values ---


@pytest.mark.skipif(available_bytes() < 6 * GIB, reason="needs 6 GiB of free memory")
def test_an_argument_and_a_result_of_one_gigabyte() -> None:
    data = bytes(GIB)
    with dpool.Executor(2) as executor:
        future = executor.submit(tasks.length, data)
        small = [executor.submit(tasks.double, x) for x in range(100)]
        assert [one.result(DEADLINE_S) for one in small] == [2 * x for x in range(100)]
        assert future.result(DEADLINE_S) == GIB
        del future
        result = executor.submit(tasks.filled, GIB, 0).result(DEADLINE_S)
        assert result == data
        del result
        assert executor.submit(tasks.double, 4).result(DEADLINE_S) == 8


@pytest.mark.parametrize("size", [128 * 1024 - 200, 128 * 1024, 128 * 1024 + 1, 1 << 20, 50 << 20])
def test_values_around_the_limit_of_a_packet(tmp_path: Path, size: int) -> None:
    ledger = Ledger(tmp_path)
    data = os.urandom(1024) * (size // 1024 + 1)
    with dpool.Executor(2) as executor:
        for x in range(3):
            ledger.submit(executor, f"argument {x}", tasks.length, data[: size + x])
            ledger.submit(executor, f"result {x}", tasks.filled, size + x, x)
            ledger.submit(executor, x, tasks.double, x)
        outcome = ledger.settle()
        for x in range(3):
            assert outcome[f"argument {x}"] == size + x
            assert outcome[f"result {x}"] == bytes((x,)) * (size + x)
            assert outcome[x] == 2 * x


# --- Many tasks ---

MILLION = """
import gc, sys
import dpool
from tests.faults import tasks
from tests.faults.support import resident_bytes, workers_of

N = int(sys.argv[1])
MIB = 1 << 20

def once(executor):
    futures = [executor.submit(tasks.double, x) for x in range(N)]
    peak = resident_bytes()
    for x, future in enumerate(futures):
        if future.result() != 2 * x:
            raise AssertionError(x, future.result())
    return max(peak, resident_bytes())

with dpool.Executor(2) as executor:
    list(executor.map(tasks.double, range(1000)))
    small = {pid: resident_bytes(pid) for pid in workers_of(executor)}
    empty = resident_bytes()
    first = once(executor)
    gc.collect()
    between = resident_bytes()
    second = once(executor)
    grown = {pid: (resident_bytes(pid) - small[pid]) / MIB for pid in workers_of(executor)}
    print(f"driver {empty / MIB:.0f}, at most {first / MIB:.0f}, then {between / MIB:.0f},",
          f"again at most {second / MIB:.0f} MiB; workers grew by {grown} MiB")
    assert set(grown) == set(small), "a worker was replaced"
    assert max(grown.values()) < 16, grown
    assert (first - empty) / N < 700, "bytes per task"
    assert second - first < 32 * MIB, "the second million needs room of its own"
    # nothing of it stays where the consumer keeps pace
    flat = resident_bytes()
    total = sum(executor.map(tasks.double, range(N // 2), buffersize=1000))
    assert total == (N // 2) * (N // 2 - 1)
    assert resident_bytes() - flat < 16 * MIB
print("good")
"""


@pytest.mark.slow
def test_a_million_tiny_tasks_in_bounded_memory() -> None:
    result = run_script(MILLION, "1000000", timeout=100).check()
    assert result.stdout.endswith("good\n")


def test_a_hundred_thousand_tiny_tasks_in_bounded_memory() -> None:
    assert run_script(MILLION, "100000", timeout=100).check().stdout.endswith("good\n")


# --- Slow readers ---


def test_a_driver_that_is_stopped_while_its_workers_answer_and_print(tmp_path: Path) -> None:
    """Back-pressure, not memory: the workers and the node wait for it."""
    text = """
import os, sys
import dpool
from tests.faults import tasks
from tests.faults.support import one_of_role, tell
from tests.helpers import wait_until

with dpool.Executor(2) as executor:
    futures = [executor.submit(tasks.noted, sys.argv[1], x, tasks.print_and_fill, 200_000, 50_000) for x in range(400)]
    wait_until(lambda: futures[0].done(), 30, "the first")
    tell(f"ready {one_of_role('dpool-node')}")
    for x, future in enumerate(futures):
        assert len(future.result()) == 200_000
sys.stderr.write("good\\n")
"""
    runs = tmp_path / "runs"
    with open(tmp_path / "out", "wb") as out, Script(text, str(runs), stderr=out.fileno()) as script:
        assert script.process.stdout is not None
        line = ""
        while not line.startswith("ready"):
            line = script.process.stdout.readline()
        node = int(line.split()[1])
        os.kill(script.pid, signal.SIGSTOP)
        # the workers go on until what they say no longer fits; then they wait
        counts: list[int] = []

        def still() -> bool:
            counts.append(len(runs.read_text().splitlines()))
            return len(counts) > 20 and counts[-1] == counts[-20]

        wait_until(still, DEADLINE_S, "the workers wait")
        assert resident_bytes(node) < 200 << 20
        os.kill(script.pid, signal.SIGCONT)
        result = script.finish()
    assert result.rc == 0, (tmp_path / "out").read_text()[-2000:]
    assert (tmp_path / "out").read_text().endswith("good\n")
    assert len(runs.read_text().splitlines()) == 400


# --- Descriptors ---

DESCRIPTORS = """
import os, resource, sys
import dpool
from dpool.errors import DpoolError
from tests.faults import tasks

limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    with dpool.Executor(16) as executor:
        futures = [executor.submit(tasks.wait_for_file, "/", x) for x in range(64)]
        for x, future in enumerate(futures):
            try:
                assert future.result(40) == x
            except (DpoolError, OSError) as error:
                print("error", type(error).__name__, error)
                break
        else:
            print("right")
        assert all(future.done() for future in futures) or not isinstance(futures[0].exception(), Exception)
except (DpoolError, OSError) as error:
    print("refused", type(error).__name__, error)
"""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("limit", [8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 96])
def test_few_file_descriptors(limit: int) -> None:
    """Fewer workers, or an error that says what is missing; never a hang."""
    result = run_script(DESCRIPTORS, str(limit), timeout=50, env={"PYTHONWARNINGS": "ignore"})
    assert result.rc == 0, result
    word = result.stdout.split(maxsplit=1)[0]
    assert word in ("right", "error", "refused"), result
    if word != "right":
        assert "descriptor" in result.stdout or "Too many open files" in result.stdout, result
    if limit >= 96:
        assert word == "right", result


NONE_LEFT = """
import os, resource
import dpool

def large_error():
    raise ValueError("x" * 1_000_000)

class Source:
    def fail(self):
        large_error()
    @dpool.method(num_returns="streaming")
    def count(self):
        yield from range(3000)

def outcome(future):
    try:
        return future.result(60)
    except (OSError, ValueError) as error:
        return type(error).__name__, str(error)[-90:]

def everything():
    yield outcome(executor.submit(large_error))
    yield outcome(actor.fail.submit())
    yield [outcome(one) for one in actor.count.submit()][-1]

most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
with dpool.Executor(1) as executor:
    actor = dpool.ActorProxy(Source)
    assert [kind for kind, _ in list(everything())[:2]] == ["ValueError"] * 2
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    taken = []
    try:
        while True:
            taken.append(os.open("/", 0))
    except OSError:
        pass
    for found in everything():
        assert found[0] == "OSError" and "descriptors left" in found[1], found
    for fd in taken:
        os.close(fd)
    *errors, last = everything()
    assert [kind for kind, _ in errors] == ["ValueError"] * 2, errors
    assert last == 2999
"""


def test_what_comes_when_no_file_descriptor_is_left() -> None:
    """A large answer, and the pipe of a stream: an error each, and nothing else suffers."""
    result = run_script(NONE_LEFT, timeout=120)
    assert (result.rc, result.stderr) == (0, "")


# --- Disk ---

FULL_DISK = """
import ctypes, os, subprocess, sys, warnings
from pathlib import Path

CLONE_NEWNS = 0x00020000
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(CLONE_NEWNS):
    raise OSError(ctypes.get_errno(), "unshare")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
disk, when = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sys.argv[3]},nr_inodes={sys.argv[4]}", "none", disk], check=True)
os.environ["DPOOL_TMPDIR"] = str(disk)

def fill():
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

import dpool
from dpool.errors import DpoolError, NodeLost
from tests.faults import tasks
from tests.faults.support import Ledger, servers
from tests.helpers import wait_until

warnings.simplefilter("ignore", RuntimeWarning)
if when == "before":
    fill()
runs = Path(sys.argv[5])
ledger = Ledger(runs)
try:
    with dpool.Executor(2) as executor:
        for x in range(100):
            ledger.submit(executor, x, tasks.double, x)
        if when == "meanwhile":
            ledger.settle()
            wait_until(servers, 30, "the store has been started")
            fill()
        for x in range(100, 200):
            ledger.submit(executor, x, tasks.print_and_fill, 300_000, 1000)  # an argument's way, and a log's
        ledger.submit(executor, "victim", tasks.kill_me)
        outcome = ledger.settle()
        assert isinstance(outcome["victim"], DpoolError)
        assert not isinstance(outcome["victim"], NodeLost), "the node did not live through it"
        if isinstance(outcome[0], DpoolError):
            assert {type(one) for one in outcome.values()} == {type(outcome[0])}
            raise outcome[0]
        del outcome["victim"]
        assert all(len(outcome.pop(x)) == 300_000 for x in range(100, 200))
        assert outcome == {x: 2 * x for x in range(100)}
        assert set(ledger.runs().values()) == {1}
        if when != "never":
            (disk / "filler").unlink()
        assert executor.submit(tasks.double, 4).result(30) == 8
    print("\\nright")
except DpoolError as error:
    print("\\nerror", str(error).replace("\\n", " "))
wait_until(lambda: not list(disk.glob("dpool-*")), 10, "the session directory is gone")
"""


@pytest.mark.root
@pytest.mark.needs("mount")
@pytest.mark.parametrize(
    ("when", "size", "inodes"),
    [
        ("before", "64k", 1000),
        ("meanwhile", "2m", 1000),
        ("never", "64k", 1000),
        ("never", "1m", 3),
        ("never", "1m", 1),
    ],
)
def test_a_full_temporary_disk(tmp_path: Path, when: str, size: str, inodes: int) -> None:
    """The work needs no disk; if not even a session directory can be made, the error says so."""
    disk, runs = Path(tempfile.mkdtemp(prefix="d-")), tmp_path / "runs"  # short: a Unix socket's path has 107 bytes
    runs.mkdir()
    result = run_script(FULL_DISK, str(disk), when, size, str(inodes), str(runs)).check()
    last = result.stdout.splitlines()[-1]
    if last != "right":
        assert last.startswith("error"), result
        assert "space" in last, last
        assert inodes < 10, last


SMALL_SHM = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000):
    raise OSError(ctypes.get_errno(), "unshare")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", "/dev/shm"], check=True)
import dpool
from tests.faults import tasks
with dpool.Executor(2) as executor:
    assert executor.submit(tasks.length, bytes(20 << 20)).result(30) == 20 << 20
    assert executor.submit(tasks.filled, 20 << 20).result(30) == tasks.filled(20 << 20)
print("good")
"""


@pytest.mark.root
@pytest.mark.needs("mount")
def test_a_small_dev_shm_is_not_in_the_way() -> None:
    assert run_script(SMALL_SHM).check().stdout == "good\n"


# --- Memory and processes, limited by a control group ---


def new_cgroup(kind: str) -> Path:
    """A group of cgroups v1 under ours; skips where there is none to be had."""
    base = Path("/sys/fs/cgroup") / kind
    if not (base / "tasks").exists():
        pytest.skip(f"needs the {kind} controller of cgroups v1 at {base}")
    path = base / f"dpool-test-{os.getpid()}-{os.urandom(3).hex()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"needs a cgroup: {error}")
    return path


def remove_cgroup(path: Path) -> None:
    def gone() -> bool:
        try:
            path.rmdir()
        except OSError:
            return False
        return True

    wait_until(gone, DEADLINE_S, f"{path} can be removed")


MEMORY = """
import os, sys
from pathlib import Path
(Path(sys.argv[1]) / "tasks").write_text(str(os.getpid()))
import dpool
from dpool.errors import OutOfMemory
from tests.faults import tasks
from tests.faults.support import Ledger
ledger = Ledger(Path(sys.argv[2]))
with dpool.Executor(2) as executor:
    for x in range(100):
        ledger.submit(executor, x, tasks.double, x)
    ledger.submit(executor, "greedy", tasks.swallow, 1 << 30)
    ledger.submit(executor.options(max_retries=1), "again", tasks.swallow, 1 << 30)
    for x in range(100, 200):
        ledger.submit(executor, x, tasks.double, x)
    outcome = ledger.settle()
    for name in ("greedy", "again"):
        error = outcome.pop(name)
        assert type(error) is OutOfMemory, error
        assert "memory" in str(error)
    assert outcome == {x: 2 * x for x in range(200)}
    assert ledger.runs()["again"] == 2, "retried as often as allowed, not for ever"
print("good")
"""


@pytest.mark.root
def test_a_task_that_the_kernel_kills_for_memory(tmp_path: Path) -> None:
    group = new_cgroup("memory")
    try:
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
        result = run_script(MEMORY, str(group), str(tmp_path))
        assert result.check().stdout == "good\n"
    finally:
        remove_cgroup(group)


PIDS = """
import os, sys
from pathlib import Path
(Path(sys.argv[1]) / "tasks").write_text(str(os.getpid()))
import dpool
from dpool.errors import DpoolError
from tests.faults import tasks
try:
    with dpool.Executor(16) as executor:
        futures = [executor.submit(tasks.wait_for_file, "/", x) for x in range(64)]
        for x, future in enumerate(futures):
            assert future.result(40) == x
    print("right")
except (DpoolError, OSError, RuntimeError) as error:
    print("error", type(error).__name__, error)
"""


@pytest.mark.root
@pytest.mark.parametrize("limit", [2, 3, 4, 6, 9, 14, 40])
def test_few_processes(limit: int) -> None:
    """Threads count too. Fewer workers, or an error that says so."""
    group = new_cgroup("pids")
    try:
        (group / "pids.max").write_text(str(limit))
        env = {"PYTHONWARNINGS": "ignore", "DPOOL_START_TIMEOUT_S": "5"}
        result = run_script(PIDS, str(group), timeout=50, env=env)
        assert result.rc == 0, result
        word = result.stdout.split(maxsplit=1)[0]
        assert word in ("right", "error"), result
        if limit >= 9:  # driver, its io thread, node, its writer, zygote, a fork on its way, store
            assert word == "right", result
    finally:
        remove_cgroup(group)
