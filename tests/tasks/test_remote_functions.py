"""`@dpool.remote` on functions: calls, results, errors, retries, cancelling, what nests."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpool
from tests.executor.support import LONG_S, Gate
from tests.helpers import is_running, run_script, wait_until


@dpool.remote
def add(a: int, b: int = 1) -> int:
    return a + b


@dpool.remote
def pid() -> int:
    return os.getpid()


@dpool.remote
def fail(text: str = "no") -> None:
    raise ValueError(text)


def test_calls() -> None:
    assert dpool.get(add.remote(1)) == 2
    assert dpool.get(add.remote(1, b=5)) == 6
    assert dpool.get([add.remote(i) for i in range(500)]) == list(range(1, 501))
    assert dpool.get(pid.remote()) != os.getpid()
    with pytest.raises(TypeError, match=r"add\.remote"):
        add(1)
    assert add.__wrapped__(1) == 2
    assert add.__name__ == "add"  # type: ignore[attr-defined]


def test_lambdas_builtins_and_options() -> None:
    assert dpool.get(dpool.remote(lambda x: x * 2).remote(4)) == 8
    assert dpool.get(dpool.remote(sum).remote([1, 2])) == 3
    named = dpool.remote(num_cpus=0.5, max_retries=0, name="half")(divmod)
    assert dpool.get(named.remote(7, 2)) == (3, 1)
    assert dpool.get(named.options(num_cpus=1).remote(8, 3)) == (2, 2)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_cpu": 1}, TypeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": "2"}, TypeError),
        ({"num_gpus": 1.5}, ValueError),
        ({"num_returns": -1}, ValueError),
        ({"num_returns": "many"}, ValueError),
        ({"max_retries": -2}, ValueError),
        ({"retry_exceptions": [1]}, TypeError),
        ({"timeout": 0}, ValueError),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        dpool.remote(**options)(len)
    with pytest.raises(error):
        add.options(**options)


def test_what_is_not_a_function() -> None:
    wrong: Any
    for wrong in (1, "f", add):
        with pytest.raises(TypeError):
            dpool.remote(wrong)


def test_futures_and_references_among_the_arguments() -> None:
    total = add.remote(dpool.put(1), add.remote(2))
    assert dpool.get(total) == 4
    chain = add.remote(0)
    for _ in range(50):
        chain = add.remote(chain)
    assert dpool.get(chain) == 51
    broken = fail.remote("first")
    with pytest.raises(ValueError, match="first"):
        dpool.get(add.remote(add.remote(broken)))


def test_several_returns() -> None:
    @dpool.remote(num_returns=3)
    def three(n: int) -> tuple[int, list[int], Any]:
        return n, [n] * 3, np.full(100_000, n)

    one, many, large = three.remote(7)
    assert dpool.get([one, many]) == [7, [7, 7, 7]]
    assert dpool.get(large).sum() == 700_000
    assert dpool.get(add.remote(one)) == 8
    for count, error in ((2, ValueError), (4, ValueError)):
        for part in three.options(num_returns=count).remote(1):
            with pytest.raises(error, match="3 values"):
                dpool.get(part)
    assert dpool.remote(num_returns=0)(len).remote("") == []
    for part in dpool.remote(num_returns=2)(len).remote(""):
        with pytest.raises(TypeError, match="not 2 values"):
            dpool.get(part)
    for part in fail.options(num_returns=2).remote():
        with pytest.raises(ValueError, match="no"):
            dpool.get(part)


def counting(n: int, gate: Gate | None = None) -> Iterator[Any]:
    for i in range(n):
        if gate is not None and i == 2:
            gate.enter()
        yield i if i % 2 else np.full(50_000, i)


def test_a_stream_gives_items_as_they_are_made(gate: Gate) -> None:
    stream = dpool.remote(num_returns="streaming")(counting).remote(5, gate)
    assert dpool.get(next(stream)).sum() == 0
    assert dpool.get(next(stream)) == 1
    with pytest.raises(TimeoutError):
        stream.next(timeout=0.01)
    gate.open()
    assert [np.sum(dpool.get(item)) for item in stream] == [100_000, 3, 200_000]
    with pytest.raises(StopIteration):
        next(stream)
    assert dpool.get(stream.completed()) == 5


def test_a_stream_that_fails_and_one_that_nobody_reads() -> None:
    @dpool.remote(num_returns="streaming")
    def breaks() -> Iterator[int]:
        yield 1
        raise ValueError("in the middle")

    stream = breaks.remote()
    assert dpool.get(next(stream)) == 1
    with pytest.raises(ValueError, match="in the middle"):
        dpool.get(next(stream))
    with pytest.raises(StopIteration):
        next(stream)
    dropped = dpool.remote(num_returns="streaming")(counting).remote(20)
    whole = dropped.completed()
    del dropped
    assert whole.result(LONG_S) == 20


def once_killed(flag: str) -> int:
    if not os.path.exists(flag):
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_a_crash_is_retried_by_default(tmp_path: Path) -> None:
    flag = str(tmp_path / "flag")
    assert dpool.get(dpool.remote(once_killed).remote(flag)) > 0
    os.remove(flag)
    with pytest.raises(dpool.errors.WorkerCrashed):
        dpool.get(dpool.remote(max_retries=0)(once_killed).remote(flag))


def odd_attempts(counter: str, kind: type[Exception]) -> int:
    with open(counter, "a") as file:
        file.write("x")
    attempts = os.path.getsize(counter)
    if attempts < 3:
        raise kind(f"attempt {attempts}")
    return attempts


def test_exceptions_are_retried_if_asked_for(tmp_path: Path) -> None:
    counter = str(tmp_path / "counter")
    flaky = dpool.remote(odd_attempts)
    with pytest.raises(KeyError):
        dpool.get(flaky.remote(counter, KeyError))
    assert dpool.get(flaky.options(retry_exceptions=True).remote(counter, KeyError)) == 3
    os.remove(counter)
    with pytest.raises(KeyError, match="attempt 1"):
        dpool.get(flaky.options(retry_exceptions=[OSError]).remote(counter, KeyError))
    os.remove(counter)
    with pytest.raises(OSError, match="attempt 2"):
        dpool.get(flaky.options(retry_exceptions=OSError, max_retries=1).remote(counter, OSError))


def test_a_time_out() -> None:
    with pytest.raises(dpool.errors.TaskTimeout, match="nap"):
        dpool.get(dpool.remote(timeout=0.2, name="nap")(time.sleep).remote(LONG_S))


# -- nested


@dpool.remote
def tree(depth: int) -> list[int]:
    if depth == 0:
        return [os.getpid()]
    return [pid for pids in dpool.get([tree.remote(depth - 1), tree.remote(depth - 1)]) for pid in pids]


def test_a_tree_of_nested_tasks_needs_few_processes() -> None:
    pids = dpool.get(tree.remote(8))
    assert len(pids) == 256
    assert len(set(pids)) <= 16


@dpool.remote
def outer(kind: str) -> Any:
    if kind == "fail":
        try:
            dpool.get(fail.remote("inner"))
        except ValueError as error:
            return f"caught {error}"
    if kind == "mutate":
        mine = [1, 2]
        theirs = dpool.get(dpool.remote(change).remote(mine))
        return mine, theirs
    if kind == "array":
        return float(dpool.get(dpool.remote(np.ones).remote(200_000)).sum())
    if kind == "wait":
        ready, rest = dpool.wait([add.remote(i) for i in range(10)], num_returns=7)
        return len(ready), len(rest), sorted(dpool.get(ready + rest))
    return None


def change(items: list[int]) -> list[int]:
    items.append(3)
    return items


def test_nested_tasks() -> None:
    assert dpool.get(outer.remote("fail")) == "caught inner"
    assert dpool.get(outer.remote("mutate")) == ([1, 2], [1, 2, 3])
    assert dpool.get(outer.remote("array")) == 200_000
    assert dpool.get(outer.remote("wait")) == (7, 3, list(range(1, 11)))


def children_die(flag: str) -> str:
    try:
        return str(dpool.get(dpool.remote(max_retries=0)(os._exit).remote(3)))
    except dpool.errors.WorkerCrashed:
        return "survived"


def test_a_parent_that_ran_a_killing_child_itself_runs_again_and_then_lets_others(tmp_path: Path) -> None:
    assert dpool.get(dpool.remote(children_die).remote("")) == "survived"


def deep(n: int) -> int:
    return n if n == 0 else 1 + dpool.get(dpool.remote(deep).remote(n - 1))


def test_a_deep_line_of_nested_tasks() -> None:
    assert dpool.get(dpool.remote(deep).remote(80)) == 80


# -- cancelling


def test_cancel_what_waits_and_what_runs(gate: Gate) -> None:
    running = [dpool.remote(gate.enter).remote(name) for name in "ab"]
    victims = [gate.entered(name) for name in "ab"]
    waiting = add.remote(1)
    dpool.cancel(waiting)
    with pytest.raises(CancelledError):
        dpool.get(waiting)
    dpool.cancel(running[0])
    with pytest.raises(CancelledError):
        dpool.get(running[0])
    assert is_running(victims[0])  # interrupted, not killed
    dpool.cancel(running[1], force=True)
    with pytest.raises(CancelledError):
        dpool.get(running[1])
    wait_until(lambda: not is_running(victims[1]), LONG_S)
    assert dpool.get(add.remote(2)) == 3
    dpool.cancel(running[0])
    with pytest.raises(TypeError):
        dpool.cancel(1)  # type: ignore[arg-type]


def parent_of(gate: Gate) -> Any:
    for name in "ab":
        dpool.remote(num_cpus=0)(gate.enter).remote(name)
    with pytest.raises(KeyboardInterrupt):
        gate.enter("c")
    raise KeyboardInterrupt


def test_cancel_reaches_what_the_task_has_submitted(gate: Gate) -> None:
    task = dpool.remote(parent_of).remote(gate)
    children = [gate.entered(name) for name in "ab"]
    gate.entered("c")
    dpool.cancel(task)
    with pytest.raises(CancelledError):
        dpool.get(task)
    assert all(map(is_running, children))
    busy = dpool.remote(num_cpus=2)(os.getpid).remote()  # all CPUs are free again
    assert dpool.get(busy, timeout=LONG_S) > 0


def test_the_wrong_task_is_not_interrupted() -> None:
    """A SIGINT may arrive when its task has ended and the next one runs."""
    futures = [dpool.remote(sum).remote(range(2000)) for _ in range(300)]
    for future in futures[::3]:
        dpool.cancel(future)
    for at, future in enumerate(futures):
        if at % 3:
            assert dpool.get(future) == sum(range(2000))
        else:
            assert future.cancelled() or dpool.get(future) == sum(range(2000))


# -- the rest


def test_a_remote_function_travels() -> None:
    assert dpool.get(dpool.remote(lambda f, x: dpool.get(f.remote(x))).remote(add, 5)) == 6
    assert pickle.loads(pickle.dumps(add)) is add
    half = add.options(num_cpus=0.5)
    assert dpool.get(dpool.remote(lambda f: dpool.get(f.remote(1))).remote(half)) == 2


def test_shutdown_and_init() -> None:
    future = dpool.remote(time.sleep).remote(LONG_S)
    assert dpool.is_initialized()
    with pytest.raises(RuntimeError, match="num_cpus"):
        dpool.init(num_cpus=5)
    dpool.init(num_cpus=5, ignore_reinit_error=True)
    dpool.shutdown()
    with pytest.raises(dpool.errors.ExecutorBroken):
        dpool.get(future)
    assert not dpool.is_initialized()
    dpool.shutdown()
    dpool.init(num_cpus=5)
    assert dpool.get(add.remote(1)) == 2
    assert dpool.cluster_resources()["CPU"] == 5


SCRIPT = """
import dpool as ray

ray.init(num_cpus=2)
FACTOR = 10

@ray.remote
def scaled(x):
    return FACTOR * helper(x)

def helper(x):
    return x + 1

@ray.remote
def fib(n):
    if n < 2:
        return n
    return sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))

print(ray.get([scaled.remote(i) for i in range(4)]))
print(ray.get(fib.remote(12)))
ref = ray.put(list(range(1000)))
print(ray.get(ray.remote(len).remote(ref)))
ready, rest = ray.wait([scaled.remote(i) for i in range(3)], num_returns=2)
print(len(ready), len(rest))
ray.shutdown()
"""


def test_a_ray_script_in_main(tmp_path: Path) -> None:
    result = run_script(SCRIPT)
    assert result.stdout.splitlines() == ["[10, 20, 30, 40]", "144", "1000", "2 1"]
    assert result.rc == 0, result.stderr


def test_shutdown_while_tasks_wait_for_others_is_silent() -> None:
    script = """
import dpool, logging, time
logging.basicConfig()
first = dpool.remote(time.sleep).remote(1000)
chain = [dpool.remote(repr).remote(first)]
for _ in range(3):
    chain.append(dpool.remote(repr).remote(chain[-1]))
dpool.shutdown()
print({type(one.exception()).__name__ for one in (first, *chain)})
"""
    result = run_script(script)
    assert (result.stdout, result.stderr, result.rc) == ("{'ExecutorBroken'}\n", "", 0)


def test_a_program_that_ends_does_not_wait_for_its_tasks() -> None:
    result = run_script("import dpool, time\ndpool.remote(time.sleep).remote(1000)\nprint('end')")
    assert result.stdout == "end\n"
    assert result.rc == 0, result.stderr
