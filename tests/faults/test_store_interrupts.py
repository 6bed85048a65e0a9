"""A signal handler that raises anywhere in a put or a get: nothing is lost for good, and the next one works.

What is raised inside a finalizer Python itself throws away, so nothing is dropped here while the clock runs.
"""

from __future__ import annotations

import pytest

from tests.helpers import run_script

SCRIPT = """
import gc, random, signal, sys
import dpool
import numpy as np

class Stop(Exception):
    pass

def stop(*_):
    raise Stop

size, rounds, latest_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
array = np.arange(size, dtype="u1")
total = int(array.sum())
dpool.get(dpool.put(array))
signal.signal(signal.SIGALRM, stop)
random.seed(size)
hits = 0
for _ in range(rounds):
    kept = []
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, latest_s))
            for _ in range(20):
                kept.append(dpool.put(array))
                kept.append(dpool.get(kept[-1]))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        hits += 1
    kept.clear()
gc.collect()
for _ in range(3):  # a question for room tells the node which leases there are
    ref = dpool.put(array)
    assert int(dpool.get(ref).sum()) == total
    ref = None
gc.collect()
stats = dpool.store_stats()
assert hits > rounds // 2, hits
assert stats.objects == 0, stats
assert stats.used < 40e6 + 2 * size, stats
print("good")
"""


@pytest.mark.needs("module:numpy")
@pytest.mark.parametrize(("size", "rounds", "latest_s"), [(200_000, 1000, 0.0005), (6_000_000, 300, 0.003)])
def test_puts_and_gets_that_are_interrupted_leave_nothing(size: int, rounds: int, latest_s: float) -> None:
    result = run_script(SCRIPT, str(size), str(rounds), str(latest_s))
    assert result.stdout == "good\n", result
