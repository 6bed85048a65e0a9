"""Large globals of `__main__` that functions refer to: stored once, mapped by every worker."""

from __future__ import annotations

import pytest

from tests.helpers import run_script

SCRIPT = """
import dpool
import numpy as np

class Thing:
    pass

data = np.arange(1_000_000)
things = np.array([Thing() for _ in range(30_000)], dtype=object)

def private_kib():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_"))

def last():
    return int(data[-1])

def write(value):
    data[-1] = value
    return int(data[-1])

def look():
    before = private_kib()
    total = int(data.sum())
    return total, private_kib() - before

def kind():
    return type(things[-1]).__name__, len(things)

if __name__ == "__main__":
    with dpool.Executor(2) as executor:
        assert [f.result(60) for f in [executor.submit(last) for _ in range(20)]] == [999_999] * 20
        stats = dpool.store_stats()
        assert stats.objects == 1 and stats.used < 3 * data.nbytes, stats
        total, grown = executor.submit(look).result(60)
        assert total == data.sum() and grown < 4_000, (total, grown)
        assert executor.submit(write, 5).result(60) == 5
        assert data[-1] == 999_999
        data[-1] = 7
        assert {f.result(60) for f in [executor.submit(last) for _ in range(20)]} == {7}
        assert executor.submit(kind).result(60) == ("Thing", 30_000)
        data = np.zeros(3)
        assert {f.result(60) for f in [executor.submit(last) for _ in range(20)]} == {0}
print("good")
"""


@pytest.mark.needs("module:numpy")
def test_a_large_global_is_stored_once() -> None:
    assert run_script(SCRIPT).check().stdout == "good\n"
