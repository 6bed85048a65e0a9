"""References: where they may stand, what they arrive as, and that nothing stays when the last one is gone."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import signal
from typing import Any

import numpy as np
import pytest

import dpool
from dpool import errors
from tests.executor.storing import (
    LARGE,
    becomes_empty,
    counted,
    forget_plain_pickles,
    get_inside,
    holds,
    objects,
    pid,
    stored_bytes,
    total,
)
from tests.executor.support import LONG_S, Gate, fail, same
from tests.helpers import wait_until

pytestmark = pytest.mark.usefixtures("nothing_stays")
COUNTS = pytest.mark.parametrize("count", [5, LARGE], ids=["inline", "stored"])


@dataclasses.dataclass
class Box:
    """Something that has a reference."""

    ref: Any
    note: str = ""


def kind(*args: Any, **kwargs: Any) -> list[str]:
    return [type(one).__name__ for one in (*args, *kwargs.values())]


def box(value: Any) -> Box:
    return Box(value, "boxed")


def put(value: Any) -> dpool.ObjectRef:
    return dpool.put(value)


def put_counted(count: int) -> Any:
    """What a task that makes references may return."""
    return {"refs": [dpool.put(counted(count)), dpool.put(counted(count, 1))], "box": Box(dpool.put(counted(count, 2)))}


@COUNTS
def test_an_argument_of_its_own_arrives_as_the_value_and_one_inside_as_a_reference(
    ex: dpool.Executor, count: int
) -> None:
    array = counted(count)
    ref = dpool.put(array)
    assert ex.submit(kind, ref, 1, a=ref).result(LONG_S) == ["ndarray", "int", "ndarray"]
    assert ex.submit(kind, [ref], {"a": ref}, a=Box(ref)).result(LONG_S) == ["list", "dict", "Box"]
    for container in ([ref], (ref,), {"deep": ref}, Box(ref)):
        assert (ex.submit(get_inside, container).result(LONG_S) == array).all()
    assert (ex.submit(get_inside, container={"keyword": ref}).result(LONG_S) == array).all()
    del container, ref
    becomes_empty()


@COUNTS
def test_a_lambda_and_its_arguments(ex: dpool.Executor, count: int) -> None:
    ref = dpool.put(counted(count))
    for _ in range(3):
        assert ex.submit(lambda a, b: (a.sum(), dpool.get(b[0]).sum()), ref, [ref]).result(LONG_S) == (
            counted(count).sum(),
            counted(count).sum(),
        )
    del ref
    becomes_empty()


@COUNTS
def test_references_come_back(ex: dpool.Executor, count: int) -> None:
    array = counted(count)
    ref = dpool.put(array)
    back: Any = ex.submit(get_inside, [dpool.put([ref])]).result(LONG_S)[0]
    assert back == ref
    box_back: Any = ex.submit(same, Box([ref, {"again": ref}])).result(LONG_S)
    assert box_back.ref[0] == ref
    assert box_back.ref[1]["again"] is box_back.ref[0]
    del ref
    assert (dpool.get(back) == array).all()
    assert (dpool.get(box_back.ref[0]) == array).all()
    del back
    assert (dpool.get(box_back.ref[0]) == array).all()
    del box_back
    becomes_empty()


@COUNTS
def test_references_that_a_task_made(ex: dpool.Executor, count: int) -> None:
    array = counted(count)
    made: Any = ex.submit(put, array).result(LONG_S)
    assert type(made) is dpool.ObjectRef
    assert (dpool.get(made) == array).all()
    assert ex.submit(total, made).result(LONG_S) == array.sum()
    many: Any = ex.submit(put_counted, count).result(LONG_S)
    assert [one[0] for one in dpool.get(many["refs"])] == [0, 1]
    assert dpool.get(many["box"].ref)[0] == 2
    del made
    holds(3 if count == LARGE else 0)
    many["refs"].clear()
    holds(1 if count == LARGE else 0)
    assert dpool.get(many["box"].ref)[-1] == 1 + count
    del many
    becomes_empty()


def test_a_result_that_nobody_read_holds_what_it_refers_to(ex: dpool.Executor) -> None:
    future = ex.submit(put_counted, LARGE)
    assert dpool.wait([future], timeout=LONG_S)[0] == [future]
    holds(3)
    gc.collect()
    assert objects() == 3
    refs = future.result(LONG_S)["refs"]
    assert dpool.get(refs[1])[0] == 1
    del future
    gc.collect()
    assert dpool.get(refs[0])[-1] == LARGE - 1
    del refs
    becomes_empty()
    future = ex.submit(put_counted, LARGE)
    dpool.wait([future], timeout=LONG_S)
    del future
    becomes_empty()


@COUNTS
def test_a_reference_in_a_stored_value(ex: dpool.Executor, count: int) -> None:
    array = counted(count)
    inner = dpool.put(array)
    outer = dpool.put([inner, counted(LARGE)])
    outermost = dpool.put({"outer": outer})
    del inner, outer
    gc.collect()
    assert objects() == (2 if count == LARGE else 1)
    assert (dpool.get(dpool.get(dpool.get(outermost)["outer"])[0]) == array).all()
    assert ex.submit(lambda outside: dpool.get(dpool.get(outside["outer"])[0]).sum(), outermost).result() == array.sum()
    again: Any = ex.submit(same, [outermost]).result(LONG_S)
    del outermost
    inside = dpool.get(again).pop()["outer"]
    del again
    assert (dpool.get(dpool.get(inside)[0]) == array).all()
    del inside
    becomes_empty()


def test_inline_references_in_inline_references(ex: dpool.Executor) -> None:
    ref = dpool.put(counted())
    for depth in range(5):
        ref = dpool.put([ref, depth])

    def depth_of(ref: Any) -> tuple[int, float]:
        value: Any = ref
        depth = 0
        while isinstance(value, dpool.ObjectRef):
            value = dpool.get(value)
            if isinstance(value, list):
                value, depth = value[0], depth + 1
        return depth, float(value.sum())

    assert objects() == 1
    assert depth_of(ref) == (5, counted().sum())
    assert ex.submit(lambda box: depth_of(box[0]), [ref]).result(LONG_S) == (5, counted().sum())
    back: Any
    (back,) = ex.submit(list, [ref]).result(LONG_S)
    del ref
    assert depth_of(back) == (5, counted().sum())
    del back
    becomes_empty()


@COUNTS
def test_equality_hash_and_text(ex: dpool.Executor, count: int) -> None:
    ref, other = dpool.put(counted(count)), dpool.put(counted(count))
    twin = pickle.loads(pickle.dumps(ref))
    back: Any
    (back,) = ex.submit(list, [ref]).result(LONG_S)
    assert ref == twin == back
    assert len({ref, twin, back}) == 1
    assert ref != other
    assert ref != "text"
    assert {ref: 1, other: 2}[back] == 1
    assert ex.submit(lambda pair: pair[0] == pair[1], [ref, twin]).result(LONG_S) is True
    assert ex.submit(lambda pair: pair[0] == pair[1], [ref, other]).result(LONG_S) is False
    assert len(ex.submit(same, {ref, other, twin}).result(LONG_S)) == 2  # type: ignore[arg-type]
    assert "ObjectRef" in repr(ref)
    assert f"{ref.size:,} bytes" in repr(ref)
    assert ref.size > 8 * count
    assert not hasattr(ref, "__dict__")
    forget_plain_pickles()


def test_a_plain_pickle_is_held_until_this_process_ends() -> None:
    with dpool.Executor(1):
        kept = pickle.dumps(dpool.put(counted()))
        gc.collect()
        assert objects() == 1
        assert (dpool.get(pickle.loads(kept)) == counted()).all()
        assert (dpool.get(pickle.loads(kept)) == counted()).all()
        forget_plain_pickles()
        becomes_empty()
        with pytest.raises(errors.ObjectLost):
            dpool.get(pickle.loads(kept))
        gc.collect()


def summing(ref: Any, small: Any) -> Any:
    def closed() -> tuple[float, int]:
        return float(dpool.get(ref).sum()), sum(dpool.get(small))

    return closed


def test_a_closure(one: dpool.Executor) -> None:
    for _ in range(2):
        closed = summing(dpool.put(counted()), dpool.put([1, 2]))
        for _ in range(3):
            assert one.submit(closed).result(LONG_S) == (counted().sum(), 3)
        assert objects() == 1
        del closed
        wait_until(lambda: one.submit(pid).result(LONG_S) and not objects(), LONG_S, "the worker knows that it is gone")
        becomes_empty()


def hold_on(value: Any) -> int:
    """Keep it for as long as the worker lives."""
    globals().setdefault("_kept", []).append(value)
    return os.getpid()


def let_go() -> None:
    globals().pop("_kept", None)
    gc.collect()


def kept_sum() -> float:
    return float(sum(dpool.get(one).sum() for one in globals()["_kept"]))


@pytest.mark.parametrize("end", ["let go", "killed", "executor"])
def test_a_worker_holds_what_it_keeps_until_it_ends(end: str) -> None:
    with dpool.Executor(1):
        with dpool.Executor(1) as one:
            ref = dpool.put(counted())
            victim = one.submit(hold_on, Box(ref)).result(LONG_S)
            one.submit(let_go).result(LONG_S)
            boxes = [ref, dpool.put(counted(LARGE, 1))]
            for one_ref in boxes:
                one.submit(_hold_ref, [one_ref]).result(LONG_S)
            del ref, boxes, one_ref
            gc.collect()
            assert one.submit(kept_sum).result(LONG_S) == 2 * counted().sum() + LARGE
            assert objects() == 2
            if end == "let go":
                one.submit(let_go).result(LONG_S)
            elif end == "killed":
                os.kill(victim, signal.SIGKILL)
            if end != "executor":
                becomes_empty()
        becomes_empty()


def _hold_ref(container: list[Any]) -> None:
    hold_on(container[0])


def make_and_die(count: int) -> None:
    refs = [dpool.put(counted(count)) for _ in range(3)]
    views = dpool.get(refs)
    assert len(views) == 3
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_made_objects_dies(one: dpool.Executor) -> None:
    with pytest.raises(errors.WorkerCrashed):
        one.submit(make_and_die, LARGE).result(LONG_S)
    becomes_empty()


def raise_with(container: Any) -> None:
    raise ValueError("see the box", container, dpool.put(counted(LARGE, 7)))


def test_a_reference_in_an_exception(one: dpool.Executor) -> None:
    ref = dpool.put(counted())
    future = one.submit(raise_with, [ref])
    error = future.exception(LONG_S)
    assert type(error) is ValueError
    assert error.args[1] == [ref]
    one.submit(gc.collect).result(LONG_S)
    assert dpool.get(error.args[2])[0] == 7
    del error, future, ref
    becomes_empty()


def test_an_exception_with_a_reference_goes_in(one: dpool.Executor) -> None:
    ref = dpool.put(counted())
    error = one.submit(fail, ValueError("text", ref)).exception(LONG_S)
    del ref
    gc.collect()
    assert isinstance(error, ValueError)
    assert (dpool.get(error.args[1]) == counted()).all()
    del error
    becomes_empty()


# --- Executors in workers ---


def inner_task(container: Any, array: Any) -> Any:
    return container, array * 2


def nest(container: Any, array: Any, count: int) -> Any:
    """Send what came, and a reference of its own, to a task of its own executor."""
    ref = dpool.put(counted(count, 3))
    with dpool.Executor(1) as inner:
        back, doubled = inner.submit(inner_task, [container, ref], ref).result(LONG_S)
        assert back[1] == ref
        assert (doubled == 2 * counted(count, 3)).all()
        again = inner.submit(total, array, ref).result(LONG_S)
        made = inner.submit(put, array).result(LONG_S)
    return back, again, made, doubled


@COUNTS
def test_references_and_large_values_through_nested_executors(one: dpool.Executor, count: int) -> None:
    array = counted(count)
    ref = dpool.put(array)
    result: Any = one.submit(nest, {"outer": ref}, array, count).result(LONG_S)
    (outer, inner_ref), again, made, doubled = result
    assert outer == {"outer": ref}
    assert again == array.sum() + counted(count, 3).sum()
    assert (dpool.get(outer["outer"]) == array).all()
    assert (dpool.get(inner_ref) == counted(count, 3)).all()
    assert (dpool.get(made) == array).all()
    assert (doubled == 2 * counted(count, 3)).all()
    del result, outer, inner_ref, made, doubled, ref
    becomes_empty()


def nest_deeper(depth: int, array: Any) -> Any:
    if not depth:
        return array + 1
    with dpool.Executor(1) as inner:
        return inner.submit(nest_deeper, depth - 1, array).result(LONG_S) + 1


def test_large_values_go_down_and_come_up(one: dpool.Executor) -> None:
    result: Any = one.submit(nest_deeper, 3, counted()).result(LONG_S)
    assert (result == counted() + 4).all()
    del result
    one.submit(gc.collect).result(LONG_S)
    becomes_empty()


# --- Many ---


def test_many_references_of_one_object(ex: dpool.Executor) -> None:
    ref = dpool.put(np.ones(LARGE))
    size = stored_bytes()
    copies: Any = [ex.submit(same, [ref, [ref]]).result(LONG_S) for _ in range(50)]
    assert (objects(), stored_bytes()) == (1, size)
    del ref
    gc.collect()
    assert all(dpool.get(one[1][0]).sum() == LARGE for one in copies)
    del copies
    becomes_empty()


def test_a_closed_gate_of_tasks_holds_its_references(one: dpool.Executor, gate: Gate) -> None:
    first = one.submit(gate.enter, "task", None)
    futures = [one.submit(get_inside, [dpool.put(counted(LARGE, n))]) for n in range(5)]
    by_value = [one.submit(total, dpool.put(counted(LARGE, n))) for n in range(5)]
    gc.collect()
    assert objects() == 10
    gate.open()
    assert first.result(LONG_S) is None
    assert [future.result(LONG_S)[0] for future in futures] == [0, 1, 2, 3, 4]
    assert [future.result(LONG_S) for future in by_value] == [counted(LARGE, n).sum() for n in range(5)]
    del futures
    one.submit(gc.collect).result(LONG_S)
    becomes_empty()
