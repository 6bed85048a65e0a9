"""A forked child uses, or ends, the executor of its parent: it is refused, and the parent's goes on."""

from __future__ import annotations

import pytest

from tests.helpers import run_script

SCRIPT = """
import os
import dpool
from dpool.errors import ForkedRuntimeError

def square(x):
    return x * x

ex = dpool.Executor(1)
assert ex.submit(square, 3).result() == 9
pending = ex.submit(square, 10)
child = os.fork()
if not child:
    {child}
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert pending.result() == 100
assert [ex.submit(square, n).result() for n in range(20)] == [n * n for n in range(20)]
assert list(ex.map(square, range(200))) == [n * n for n in range(200)]
ex.shutdown()
"""
CHILDREN = {
    "submits": """
    try:
        ex.submit(square, 1000)
    except ForkedRuntimeError:
        pass
    else:
        os._exit(1)""",
    "shuts down": "ex.shutdown(cancel_futures=True)",
    "kills": "ex.kill_workers()",
    "collects": "ex = pending = None",
    "looks": "repr(pending), repr(ex), ex._processes",
    "has its own": """
    with dpool.Executor(1) as mine:
        assert mine.submit(square, 4).result() == 16""",
    "forks in its turn": """
    ex.shutdown()
    if not os.fork():
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))""",
}


@pytest.mark.parametrize("what", CHILDREN)
def test_the_parents_executor_goes_on(what: str) -> None:
    result = run_script(SCRIPT.format(child=CHILDREN[what]), python_options=("-W", "error")).check()
    assert result.stderr == ""
