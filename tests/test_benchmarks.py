"""The benchmarks answer: every question yields positive figures, judges its targets and reports what it could not do.

No figure is compared with a time limit here: that is what `python -m benchmarks --check` is for, on a quiet machine.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    QUESTIONS,
    machine,
    model,
    peers,
    pendulum,
    procs,
    report,
    serving,
    speedup,
    steady,
    store_get,
    store_spill,
    work,
)
from benchmarks.__main__ import main
from benchmarks.harness import Outcome, why_skipped
from benchmarks.launcher import CellFailed, Launcher
from benchmarks.model import Benchmark, Metric, Results
from benchmarks.peers import PEERS

ROOT = Path(__file__).resolve().parent.parent
RUN_S = 280.0
pytestmark = pytest.mark.timeout(300)  # for the first of the tests that need `tiny_run`
MEASURED = ("dpool", "mp", "ppe", "mpi", "http")
MAY_BE_ZERO = {
    "left_mb",
    "helpers_mb",
    "cpu_percent",
    "store",
    "program_ms",
    "all_bytes",
    "extra_mb",
    "packets",
    "stored",
}  # at sizes this small


def benchmark_of(question: str) -> Benchmark:
    found: Benchmark = importlib.import_module(f"benchmarks.{question}").BENCHMARK
    return found


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """Every question at the smallest size, in two runs side by side: their JSON, what they printed, their folder."""
    folder = tmp_path_factory.mktemp("benchmarks")
    runs = []
    for number, questions in enumerate((QUESTIONS[::2], QUESTIONS[1::2])):
        command = [sys.executable, "-m", "benchmarks", *questions, "--size", "tiny", "--peers", ",".join(MEASURED)]
        command += ["--json", str(folder / f"run{number}.json")]
        if "speedup" in questions and importlib.util.find_spec("matplotlib") is not None:
            command += ["--plot", str(folder / "run.png")]
        with (folder / f"run{number}.txt").open("w") as output:
            runs.append(subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output))
    deadline = time.monotonic() + RUN_S
    try:
        codes = [run.wait(max(0, deadline - time.monotonic())) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    printed = "".join((folder / f"run{number}.txt").read_text() for number in range(len(runs)))
    assert codes == [0, 0], printed
    first, second = (json.loads((folder / f"run{number}.json").read_text()) for number in range(len(runs)))
    return {**first, "benchmarks": {**first["benchmarks"], **second["benchmarks"]}}, printed, folder


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_is_answered(tiny_run: tuple[dict[str, Any], str, Path], question: str) -> None:
    answer = tiny_run[0]["benchmarks"][question]
    benchmark = benchmark_of(question)
    assert answer["failed"] == {}
    assert answer["left_behind"] == {}
    wanted = {subject.name for subject in benchmark.subjects if subject.peer in MEASURED}
    missing = {
        subject.name: why
        for subject in benchmark.subjects
        if subject.peer in MEASURED and (why := why_skipped(benchmark, subject))
    }
    assert set(answer["samples"]) == wanted - set(missing)
    assert answer["skipped"] == missing
    for subject, medians in answer["medians"].items():
        assert {metric.key for metric in benchmark.metrics} <= set(medians) or question == "speedup", subject
        for key, value in medians.items():
            assert value > 0 or key in MAY_BE_ZERO or key.endswith("_level"), f"{subject} {key} = {value}"
    assert len(answer["targets"]) == len(benchmark.judge(Results({})))


def test_report_names_machine_questions_and_targets(tiny_run: tuple[dict[str, Any], str, Path]) -> None:
    found, printed, _ = tiny_run
    assert found["machine"]["cpu"] in printed
    assert found["machine"]["cores_usable"] == len(os.sched_getaffinity(0))
    assert "only indicative" in printed
    for question in QUESTIONS:
        assert f"\n{question}: " in printed
    for answer in found["benchmarks"].values():
        assert all(target["figure"] in printed for target in answer["targets"])


def test_plot_is_a_png(tiny_run: tuple[dict[str, Any], str, Path]) -> None:
    pytest.importorskip("matplotlib")
    assert (tiny_run[2] / "run.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("speedups", "cost"),
    [
        ([0.1, 0.5, 0.9], None),
        ([1.1, 1.5, 1.9], 1.0),
        ([0.5, 1.5, 1.9], 10**0.5),
        ([0.5, 1.0, 2.0], 10.0),
        ([0.5, 1.2, 0.5, 1.5], 10**2.5),
    ],
)
def test_cost_is_the_last_crossing(speedups: list[float], cost: float | None) -> None:
    lengths = [1.0, 10.0, 100.0, 1000.0][: len(speedups)]
    found = speedup.cost_us(lengths, speedups)
    assert found == (None if cost is None else pytest.approx(cost))


def speedup_samples(**at: float) -> Mapping[str, float]:
    """A sample in which each length has the speed-up given, 0.5 where none is."""
    sample: dict[str, float] = {}
    for length in speedup.LENGTHS_US:
        sample[f"task_us_{length}"] = length
        sample[f"speedup_{length}"] = at.get(f"us_{length}", 0.5)
        sample[f"rate_{length}"] = sample[f"speedup_{length}"] * 1e6 / length
    return sample


def test_cost_that_no_task_reaches_is_a_failure_and_not_an_omission() -> None:
    never = speedup.judge(Results({"dpool": [speedup_samples()]}))
    assert [verdict.passed for verdict in never] == [False, False, False]
    always = {f"us_{length}": 1.95 for length in speedup.LENGTHS_US}
    assert all(verdict.passed for verdict in speedup.judge(Results({"dpool": [speedup_samples(**always)]})))
    assert [verdict.passed for verdict in speedup.judge(Results({"mp": [speedup_samples()]}))] == [None] * 3


JOBLIB = dict.fromkeys(
    ("tasks_first_ms", "tasks_ms", "search_program_ms", "search_first_ms", "search_ms", "small_ms"), 10.0
)
TREE = dict.fromkeys(("first_ms", "tree_ms", "left_mb"), 10.0)
RAY_TREE = dict.fromkeys(TREE, 100.0)
JUDGED: dict[str, tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]] = {
    # question: (samples that meet every target, samples that miss every target)
    "round_trip": (
        {"dpool": {"p50_us": 20}, "mp": {"p50_us": 80}, "ppe": {"p50_us": 160}},
        {"dpool": {"p50_us": 41}, "mp": {"p50_us": 80}, "ppe": {"p50_us": 160}},
    ),
    "throughput": (
        {"dpool": {"submit": 400}, "mp": {"submit": 100}, "ppe": {"submit": 40}},
        {"dpool": {"submit": 399}, "mp": {"submit": 100}, "ppe": {"submit": 40}},
    ),
    "cold_start": (
        {name: {"with_import_ms": 10, "without_import_ms": 5} for name in ("dpool", "loky")},
        {
            "dpool": {"with_import_ms": 11, "without_import_ms": 6},
            "loky": {"with_import_ms": 10, "without_import_ms": 5},
        },
    ),
    "import_time": (
        {"dpool": {"program_ms": 12}, "concurrent.futures.process": {"program_ms": 10}},
        {"dpool": {"program_ms": 13}, "concurrent.futures.process": {"program_ms": 10}},
    ),
    "gcs_overhead": (
        {
            "gcs on": {"noop": 95, "100us": 95, "20ms": 95, "store": 1},
            "gcs off": {"noop": 100, "100us": 100, "20ms": 100},
        },
        {
            "gcs on": {"noop": 94, "100us": 94, "20ms": 94, "store": 1},
            "gcs off": {"noop": 100, "100us": 100, "20ms": 100},
        },
    ),
    "queue_memory": (
        {"dpool": {"driver_bytes": 700}, "ppe": {"driver_bytes": 700}},
        {"dpool": {"driver_bytes": 701}, "ppe": {"driver_bytes": 700}},
    ),
    "idle": (
        {"dpool": {"worker_mb": 15, "cpu_percent": 0.5, "all_mb": 40}, "ray": {"all_mb": 400}},
        {"dpool": {"worker_mb": 15.1, "cpu_percent": 0.51, "all_mb": 41}, "ray": {"all_mb": 400}},
    ),
    "store_argument": (
        {"dpool": {"touch_ms": 12}, "mp": {"touch_ms": 200}, "dask": {"touch_ms": 60}},
        {"dpool": {"touch_ms": 12.1}, "mp": {"touch_ms": 200}, "dask": {"touch_ms": 60}},
    ),
    "store_result": (
        {"dpool": {"result_ms": 6}, "ray": {"result_ms": 10}},
        {"dpool": {"result_ms": 6.1}, "ray": {"result_ms": 10}},
    ),
    "store_shared": (
        {"dpool": {"shared_ms": 3}, "ray": {"shared_ms": 10}},
        {"dpool": {"shared_ms": 3.1}, "ray": {"shared_ms": 10}},
    ),
    "store_put": ({"dpool": {"put_per_copy": 1.3}}, {"dpool": {"put_per_copy": 1.31}}),
    "store_get": ({"dpool": {"large_per_small": 2}}, {"dpool": {"large_per_small": 2.01}}),
    "store_small": (
        {"dpool": {"pair_us": 80}, "ray": {"pair_us": 400}},
        {"dpool": {"pair_us": 81}, "ray": {"pair_us": 400}},
    ),
    "store_arrow": (
        {"dpool": {"arrow_ms": 50}, "ray": {"arrow_ms": 100}},
        {"dpool": {"arrow_ms": 51}, "ray": {"arrow_ms": 100}},
    ),
    "joblib_tasks": (
        {"dpool": {**JOBLIB, "tasks_first_ms": 6, "small_ms": 5}, "loky": JOBLIB},
        {"dpool": {key: value * 1.01 for key, value in JOBLIB.items()}, "loky": JOBLIB},
    ),
    "store_spill": (
        {"dpool": {"store_per_disk": 0.5, "spilled_share": 1}},
        {"dpool": {"store_per_disk": 0.49, "spilled_share": 1}},
    ),
    "pool_apply": (
        {"dpool": {"apply_us": 40}, "mp": {"apply_us": 80}},
        {"dpool": {"apply_us": 41}, "mp": {"apply_us": 80}},
    ),
    "pool_map": (
        {"dpool": {"range": 100}, "mp": {"range": 100}, "ray": {"range": 5}},
        {"dpool": {"range": 99}, "mp": {"range": 100}, "ray": {"range": 5}},
    ),
    "pool_imap": (
        {"dpool": {"unordered": 300}, "mp": {"unordered": 100}},
        {"dpool": {"unordered": 299}, "mp": {"unordered": 100}},
    ),
    "pool_arrays": (
        {"dpool": {"arrays_ms": 100}, "mp": {"arrays_ms": 1000}},
        {"dpool": {"arrays_ms": 101}, "mp": {"arrays_ms": 1000}},
    ),
    "actor_call": (
        {"dpool": {"call_us": 15}, "manager": {"call_us": 15}, "ray": {"call_us": 100}},
        {"dpool": {"call_us": 15.1}, "manager": {"call_us": 15}, "ray": {"call_us": 100}},
    ),
    "actor_pipeline": (
        {"dpool": {"calls_per_s": 2000}, "ray": {"calls_per_s": 100}},
        {"dpool": {"calls_per_s": 1999}, "ray": {"calls_per_s": 100}},
    ),
    "actor_create": (
        {"dpool": {"create_ms": 10}, "ray": {"create_ms": 100}},
        {"dpool": {"create_ms": 10.1}, "ray": {"create_ms": 100}},
    ),
    "task_wait": (
        {"dpool": {"ready_ms": 3, "running_ms": 30}, "ray": {"ready_ms": 10, "running_ms": 100}},
        {"dpool": {"ready_ms": 3.1, "running_ms": 31}, "ray": {"ready_ms": 10, "running_ms": 100}},
    ),
    "task_chain": (
        {"dpool": {"chain_ms": 10}, "ray": {"chain_ms": 100}},
        {"dpool": {"chain_ms": 10.1}, "ray": {"chain_ms": 100}},
    ),
    "task_tree": (
        {"dpool": {**TREE, "processes": 34, "extra_mb": 200}, "ray": RAY_TREE},
        {"dpool": {**TREE, "processes": 35, "extra_mb": 201}, "ray": dict.fromkeys(TREE, 99.0)},
    ),
    "pendulum": (
        {"dpool": {"steps_per_s": 1200}, "mpi": {"steps_per_s": 1000}, "ppe": {"steps_per_s": 1000}},
        {"dpool": {"steps_per_s": 1199}, "mpi": {"steps_per_s": 1000}, "ppe": {"steps_per_s": 1000}},
    ),
    "serving": (
        {"dpool": {"large": 300}, "http json": {"large": 100}},
        {"dpool": {"large": 299}, "http json": {"large": 100}},
    ),
}


@pytest.mark.parametrize("question", JUDGED)
def test_targets_are_judged(question: str) -> None:
    judge = benchmark_of(question).judge
    met, missed = (Results({name: [sample] for name, sample in samples.items()}) for samples in JUDGED[question])
    assert [verdict.passed for verdict in judge(met)] == [True] * len(judge(met))
    assert [verdict.passed for verdict in judge(missed)] == [False] * len(judge(missed))
    assert [verdict.passed for verdict in judge(Results({}))] == [None] * len(judge(met))


def test_a_store_that_never_came_is_not_compared() -> None:
    sample = {"noop": 100.0, "100us": 100.0, "20ms": 100.0, "store": 0.0}
    verdicts = benchmark_of("gcs_overhead").judge(Results({"gcs on": [sample], "gcs off": [sample]}))
    assert {verdict.passed for verdict in verdicts} == {None}


def test_a_store_that_did_not_spill_is_not_compared() -> None:
    judge = benchmark_of("store_spill").judge
    verdicts = judge(Results({"dpool": [{"store_per_disk": 2.0, "spilled_share": 0.5}]}))
    assert {verdict.passed for verdict in verdicts} == {None}


@pytest.mark.parametrize(
    ("times_s", "level"),
    [
        ([], False),
        ([1, 1, 1], False),
        ([1, 1, 1, 1], True),
        ([9, 9, 1.0, 1.0, 1.1, 1.1], True),
        ([1, 1, 2, 2], False),
        ([2, 2, 1, 1], False),
    ],
)
def test_times_are_level_when_two_windows_agree(times_s: list[float], level: bool) -> None:
    assert steady.is_level(times_s, 2) == level


LONG = {"least": 4, "window": 2, "fill": 1, "warm_s": 60, "rounds": 3, "rounds_s": 60}


def test_a_series_begins_when_times_are_level() -> None:
    times_s = [9.0, 8.0, 7.0, 4.0, 2.0, 2.0, 2.0, 2.0, 1.0, 3.0, 5.0, 7.0]
    found = steady.series(PEERS["mp"](), LONG, lambda number: times_s[number], nbytes=1)
    assert found == steady.Series([1.0, 3.0, 5.0], True)
    assert found.sample("x", 1e3, "ms") == {"x_ms": 3000.0, "x_mean_ms": 3000.0, "x_level": 1.0}


def test_a_store_of_a_fixed_size_is_filled_before_the_series_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(peers.STORE_BYTES, "1000")
    numbers: list[int] = []

    def call(number: int) -> float:
        numbers.append(number)
        return 1.0

    for name, nbytes, warm_ups in (("dpool", 99, 11), ("ray", 99, 11), ("mp", 99, 4), ("dpool", 0, 4)):
        numbers.clear()
        # The time for warming up is over at once, and still the store is filled.
        found = steady.series(PEERS[name](), {**LONG, "warm_s": 0}, call, nbytes)
        assert numbers == list(range(warm_ups + 3)), name
        assert found == steady.Series([1.0] * 3, True)


def test_times_that_never_become_level_are_named() -> None:
    found = steady.series(PEERS["mp"](), {**LONG, "warm_s": 0, "rounds_s": 0}, lambda number: 2.0**number)
    assert found == steady.Series([16.0], False)
    lines = steady.tabulate(Results({"mp": [found.sample("x"), {"x_level": 1.0}], "ray": [{"x_level": 1.0}]}))
    assert lines == ["    mp: x was not level after the warm-up in 1 of 2"]


def test_wrong_data_measures_nothing() -> None:
    with pytest.raises(AssertionError, match="saw 3, not 4"):
        steady.expect(3, 4)


def test_large_objects_are_what_their_questions_say() -> None:
    array = work.numbers(1 << 22, first=5)
    assert array.nbytes == 1 << 22
    assert work.touch(array) == sum(5 + mib * (1 << 17) for mib in range(4))
    assert work.read(array) == sum(range(5, 5 + (1 << 19)))
    array[0] += 7
    assert work.touch(array) == 7 + sum(5 + mib * (1 << 17) for mib in range(4))
    assert work.kept(800, 3)[0] == 3
    assert work.kept(800, 4) is work.kept(800, 4)
    pytest.importorskip("pyarrow")
    table = work.table(64_000, first=2)
    assert table.nbytes == 64_000
    assert work.table_sum(table) == 4 * sum(range(1000)) * 1.5 + 2 * 1000 * sum(range(4))


@pytest.mark.parametrize(
    ("available", "found"), [(10**11, 10**9), (4 * 10**9, 8 * 10**8), (5 * 10**8 - 1, 10**8), (0, 10**8)]
)
def test_the_largest_object_has_room_in_memory(available: int, found: int) -> None:
    assert store_get.largest(10**9, available) == found
    assert store_get.available_bytes() > 0


def test_spill_files_lie_on_a_disk_and_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store_spill.filesystem_of("/proc/self") == "proc"
    assert store_spill.filesystem_of("/no/such/path") == store_spill.filesystem_of("/")
    monkeypatch.setenv(peers.SPILL_DIR, str(tmp_path))
    with store_spill.around({"store": 5.0}) as env:
        assert env[peers.STORE_BYTES] == "5"
        folder = Path(env[peers.SPILL_DIR])
        assert folder.parent == tmp_path
        (folder / "file").touch()
    assert not folder.exists()
    monkeypatch.delenv(peers.SPILL_DIR)
    for kind, directory in (("ext4", str(tmp_path)), ("tmpfs", "/var/tmp")):
        monkeypatch.setattr(store_spill, "filesystem_of", lambda path, kind=kind: kind)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        assert store_spill.disk_directory() == directory


@pytest.mark.parametrize(("answer", "why"), [("as they are", None), ("changed", "saw False, not True")])
def test_what_comes_out_of_the_store_is_compared(tmp_path: Path, answer: str, why: str | None) -> None:
    class Files(peers.MpPool):
        """A store that is all files: `put` writes one, `fetch` reads it, changed or not."""

        def put(self, value: Any) -> Any:
            self.number = getattr(self, "number", 0) + 1
            path = tmp_path / f"stored-{self.number}"
            path.write_bytes(value)
            return path

        def fetch(self, reference: Any) -> Any:
            found = bytearray(reference.read_bytes())
            found[-1] ^= answer == "changed"
            return importlib.import_module("numpy").frombuffer(found, "int64")

    size = {"store": 32_000, "bytes": 16_000, "objects": 4, "rounds": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_spill, "_DELETE_DEADLINE_S", 0.0)
        patch.setenv(peers.SPILL_DIR, str(tmp_path))
        if why is not None:
            with pytest.raises(AssertionError, match=why):
                store_spill.measure(Files(), size)
            return
        sample = store_spill.measure(Files(), size)
    assert sample["spilled_share"] == 2.0
    assert sample["left_mb"] == 8 * 16_000 / 1e6
    assert {metric.key for metric in store_spill.BENCHMARK.metrics} <= set(sample)
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["stored"] * 8


def test_mpi_needs_its_launcher_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.OTHERS, "mpi", "json")
    monkeypatch.setenv("PATH", "")
    assert peers.why_missing("mpi") == "there is no mpirun on PATH"
    monkeypatch.setitem(peers.OTHERS, "mpi", "no_such_module")
    assert peers.why_missing("mpi") == "not installed"


def test_what_taking_rollouts_as_they_end_can_gain() -> None:
    assert pendulum.ideal([(0, 1), (1, 3), (2, 3), (3, 1)]) == 6 / 4
    assert pendulum.ideal([(0, 5), (1, 5)]) == 1
    size = pendulum.BENCHMARK.sizes["full"]
    assert pendulum.workload(size) == pendulum.workload(size)
    assert 1.2 < pendulum.ideal(pendulum.workload(size)) < 1.5


@pytest.mark.parametrize("form", serving.FORMS)
def test_what_travels_over_http_arrives(form: str) -> None:
    numpy = pytest.importorskip("numpy")
    states = serving.batch(80)
    write, read = serving.FORMS[form]
    assert numpy.array_equal(read(bytes(write(states))), states)
    states[:, 0] = 7.0
    with serving.over_http(form) as evaluate:
        assert evaluate(states) == states.sum(axis=1).tolist()


def test_who_cannot_be_asked_is_skipped_with_the_reason() -> None:
    put = benchmark_of("store_put")
    assert why_skipped(put, model.Subject("mp", "mp")) == "has no object store"
    assert why_skipped(put._replace(puts=False), model.Subject("mp", "mp")) is None
    missing = put._replace(needs=("no_such_module",))
    assert why_skipped(missing, model.Subject("mp", "mp")) == "no_such_module is not installed"


def test_results_are_medians_and_ratios_of_medians() -> None:
    results = Results({"a": [{"t": 1.0}, {"t": 9.0}, {"t": 2.0}], "b": [{"t": 4.0}], "none": []})
    assert results.subjects() == ["a", "b"]
    assert results.median("a", "t") == 2.0
    assert results.ratio("a", "b", "t") == 0.5
    assert results.median("none", "t") is None
    assert results.ratio("a", "none", "t") is None
    assert results.values("a", "unknown") == []


def test_the_table_shows_failures_skips_and_leftovers() -> None:
    asked = Benchmark("q", "why?", (Metric("t", "time", "µs"),), (), {}, lambda results: [], repeat=3)
    results = Results({"dpool": [{"t": 2.0}], "mp": [{"t": 5.0}, {"t": 7.0}]})
    outcome = Outcome(
        asked, results, {"ray": "not installed"}, {"ppe": "exit code 3\nboom"}, {"loky": ["python"]}, 3, 1.0
    )
    lines = report.table(outcome)
    row = next(line.split() for line in lines if line.split()[:1] == ["mp"])
    assert row == ["mp", "6.0", "5.0", "7.0", "3.00"]
    text = "\n".join(lines)
    assert "ray: skipped, not installed" in text
    assert "ppe: FAILED" in text
    assert "| boom" in text
    assert "loky: left processes behind, which were killed: python" in text


def test_a_failing_process_is_reported_with_what_it_wrote() -> None:
    with pytest.raises(CellFailed, match=r"exit code 3\n(.|\n)*out of luck"):
        Launcher().run(["-c", "import sys; print('out of luck'); sys.exit(3)"])


def test_a_hanging_process_is_ended() -> None:
    launcher = Launcher()
    with pytest.raises(CellFailed, match=r"not done after 0\.3 s"):
        launcher.run(["-c", "import signal; signal.pause()"], timeout_s=0.3)


def test_a_daemon_that_stays_is_found_named_and_ended() -> None:
    hang = "import signal, sys; print('here', flush=True); signal.pause()"
    leave = (
        "import subprocess, sys\n"
        f"daemon = subprocess.Popen([sys.executable, '-c', {hang!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
        "daemon.stdout.readline()\n"
        "open(sys.argv[1], 'w').write(str(daemon.pid))\n"
        "daemon.returncode = 0\n"  # so that its destructor does not warn
    )
    launcher = Launcher(grace_s=0.1)
    finished = launcher.run(["-c", leave])
    assert len(launcher.left_behind) == 1
    assert launcher.left_behind[0].startswith("python")
    assert int(finished.result) not in procs.marked("no such mark", session=int(finished.result))


def test_a_program_with_a_clean_environment_is_found_by_its_parent() -> None:
    ask = (
        "import subprocess, sys\n"
        "from benchmarks import procs\n"
        "hang = 'import signal; print(1, flush=True); signal.pause()'\n"
        "program = subprocess.Popen([sys.executable, '-c', hang], stdout=-1, start_new_session=True, env={})\n"
        "program.stdout.readline()\n"
        "open(sys.argv[1], 'w').write(str(program.pid in procs.mine()))\n"
        "program.kill()\n"
        "program.wait()\n"
    )
    launcher = Launcher()
    assert launcher.run(["-c", ask]).result == "True"
    assert launcher.left_behind == []


def test_processes_are_measured() -> None:
    pid = os.getpid()
    before = procs.cpu_s([pid])[pid]
    work.spin(work.loops_for(20_000, work.loops_per_us()))
    assert procs.cpu_s([pid])[pid] > before > 0
    assert 0 < procs.private_bytes(pid) <= 2 * procs.rss_bytes(pid)
    assert pid in procs.marked("no such mark", os.getsid(0))
    assert procs.name_of(pid) == Path("/proc/self/comm").read_text().strip()


def test_check_turns_targets_into_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    unmeasurable = ["import_time", "--peers", "mp", "--size", "tiny"]
    assert main(unmeasurable) == 0
    assert main([*unmeasurable, "--check"]) == 1
    assert "NOT MEASURED import dpool" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["no_such_question"], ["idle", "--peers", "abacus"], ["--repeat", "0"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code != 0


def test_every_question_has_its_file_sizes_and_peers() -> None:
    for question in QUESTIONS:
        benchmark = benchmark_of(question)
        assert benchmark.name == question
        assert tuple(benchmark.sizes) == model.SIZES
        assert {subject.peer for subject in benchmark.subjects} <= {*PEERS, *peers.OTHERS}
        assert (benchmark.measure is None) != (benchmark.sample is None)
        assert question in (ROOT / "docs" / "benchmarks.md").read_text()


def test_machine_describes_itself_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPOOL_REDIS_URL", "redis://:secret@host")
    description = machine.describe()
    assert "DPOOL_REDIS_URL" in str(description["settings"])
    assert "secret" not in json.dumps(description)
    assert description["cpu"]
    assert machine.versions(["pytest", "no-such-distribution"]) == {"pytest": pytest.__version__}
