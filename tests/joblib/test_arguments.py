"""Large arguments: stored once for a call, gone after it; memory-mapped files stay files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed

import dpool
from tests.executor.storing import becomes_empty
from tests.executor.support import Gate
from tests.joblib.test_parallel import parallel

np = pytest.importorskip("numpy")
N = 300_000
"""Eight-byte numbers that are more than joblib's default of one megabyte."""


def total(array: Any, i: int = 0) -> float:
    return float(array.sum()) + i


def stored_while(gate: Gate, calls: Iterator[Any], **options: Any) -> tuple[int, list[Any]]:
    """Objects in the store while two tasks run, and the results."""
    results = parallel(return_as="generator", batch_size=1, **options)(calls)
    gate.entered("a")
    gate.entered("b")
    found = dpool.store_stats().objects
    gate.open("a", "b")
    return found, list(results)


def hold(gate: Gate, name: str, array: Any) -> float:
    gate.enter(name)
    return total(array)


def test_one_copy_for_a_whole_call(gate: Gate) -> None:
    array = np.arange(N, dtype=float)
    found, results = stored_while(gate, (delayed(hold)(gate, name, array) for name in "abab"))
    assert results == [total(array)] * 4
    assert found == 1
    becomes_empty()


def test_keyword_arguments_are_shared_too(gate: Gate) -> None:
    array = np.arange(N, dtype=float)
    found, _ = stored_while(gate, (delayed(hold)(gate, name, array=array) for name in "abab"))
    assert found == 1
    becomes_empty()


def test_not_below_max_nbytes(gate: Gate) -> None:
    array = np.arange(N, dtype=float)
    for limit in (None, 100_000_000):
        for name in "ab":
            (gate.directory / f"{name}.in").unlink(missing_ok=True)
            (gate.directory / f"{name}.open").unlink(missing_ok=True)
        found, results = stored_while(gate, (delayed(hold)(gate, x, array) for x in "abab"), max_nbytes=limit)
        assert results == [total(array)] * 4
        assert found >= 2
    becomes_empty()


def test_arrays_that_come_once_do_not_stay_for_the_call() -> None:
    calls = (delayed(total)(np.full(N, i, float)) for i in range(30))
    results = parallel(batch_size=1, return_as="generator")(calls)
    most = 0
    for i, result in enumerate(results):
        assert result == i * N
        most = max(most, dpool.store_stats().objects)
    assert most < 15
    becomes_empty()


def test_an_array_that_changes_between_calls_is_sent_anew() -> None:
    array = np.zeros(N)
    with parallel() as pool:
        for value in (1.0, 2.0):
            array[:] = value
            assert set(pool(delayed(total)(array) for _ in range(4))) == {value * N}
    becomes_empty()


def test_after_an_error_nothing_stays() -> None:
    array = np.zeros(N)
    with pytest.raises(ZeroDivisionError):
        parallel()(delayed(divide)(array, i) for i in range(10))
    becomes_empty()


def divide(array: Any, i: int) -> float:
    return total(array) / (i - 5) if i != 5 else 1 // 0


def test_references_arrive_as_values() -> None:
    stored = dpool.put(np.ones(N))
    assert parallel()(delayed(total)(stored, i) for i in range(3)) == [N, N + 1, N + 2]
    assert parallel()(delayed(total)(array=stored) for _ in range(2)) == [N, N]
    del stored
    becomes_empty()


def write(array: Any, i: int) -> bool:
    array[i] = i
    return bool(array.flags.writeable)


def test_what_a_task_writes_stays_in_the_task() -> None:
    array = np.zeros(N)
    assert parallel()(delayed(write)(array, i) for i in range(4)) == [True] * 4
    assert not array.any()
    becomes_empty()


def mapping(tmp_path: Path, mode: Any = "w+", **options: Any) -> Any:
    return np.memmap(tmp_path / "numbers", np.float64, mode, shape=(20, 30), **options)


@pytest.mark.parametrize(
    "cut",
    [
        lambda a: a,
        lambda a: a[:, ::2],
        lambda a: a[3:, 4:],
        lambda a: a[::-1],
        lambda a: a.T,
        lambda a: np.asarray(a)[5:],
        lambda a: a[1:8, 2:3],
    ],
)
@pytest.mark.parametrize("options", [{}, {"offset": 17}, {"order": "F"}])
def test_what_a_task_writes_to_a_mapped_file_is_in_the_file(tmp_path: Path, cut: Any, options: Any) -> None:
    whole = mapping(tmp_path, **options)
    part = cut(whole)
    parallel()(delayed(write)(part, i) for i in range(len(part)))
    assert [row[0] for row in part] == list(range(len(part)))
    assert whole.sum() == sum(i * part.shape[1] for i in range(len(part)))


def test_a_mapping_for_reading_is_read_only(tmp_path: Path) -> None:
    mapping(tmp_path)[:] = 1
    for mode in ("r", "r+"):
        part = mapping(tmp_path, mode)[2:]
        assert parallel()(delayed(total)(part, i) for i in range(2)) == [540, 541]
    with pytest.raises(ValueError, match="read-only"):
        parallel()(delayed(write)(mapping(tmp_path, "r"), i) for i in range(2))


def test_a_private_mapping_is_copied(tmp_path: Path) -> None:
    mapping(tmp_path)[:] = 1
    private = mapping(tmp_path, "c")
    private[:] = 2
    assert parallel()(delayed(total)(private) for _ in range(2)) == [1200, 1200]


def test_joblibs_own_maps(tmp_path: Path) -> None:
    import joblib

    joblib.dump(np.ones((50, 10)), tmp_path / "dumped")
    loaded = joblib.load(tmp_path / "dumped", mmap_mode="r")
    assert Parallel(n_jobs=2, backend="dpool")(delayed(total)(loaded[i]) for i in range(3)) == [10, 10, 10]
