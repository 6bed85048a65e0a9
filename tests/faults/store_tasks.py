"""What the fault tests of the object store run in workers, and the values that they check byte by byte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import dpool
from dpool._core.frames import STORED, STORED_ALONE
from dpool._core.worker import Worker
from dpool._store import serde
from tests.faults.tasks import kill_me, note, wait_for_file
from tests.helpers import wait_until

MIB = 1 << 20
PIECE = MIB // 8
KEPT: list[Any] = []
"""What a worker keeps from one task to the next."""


def pattern(seed: int, size: int) -> np.ndarray[Any, Any]:
    """`size` bytes (a multiple of 8) of which no eight are alike, nor are those of another seed."""
    numbers: np.ndarray[Any, Any] = np.arange(size // 8, dtype=np.uint64) + np.uint64(seed << 40)
    return numbers


def is_pattern(array: Any, seed: int, size: int) -> bool:
    """Whether it is the pattern, with no more memory than a piece of it."""
    if array.dtype != np.uint64 or array.shape != (size // 8,):
        return False
    return all(
        np.array_equal(array[at : at + PIECE], pattern(seed, 8 * min(PIECE, len(array) - at)) + np.uint64(at))
        for at in range(0, len(array), PIECE)
    )


def check(array: Any, seed: int, size: int) -> bool:
    """In a worker: is this argument right?"""
    return is_pattern(array, seed, size)


def get_and_check(ref: list[dpool.ObjectRef], seed: int, size: int) -> bool:
    return is_pattern(dpool.get(ref[0]), seed, size)


def keep(value: Any, path: str = "", gate: str = "") -> int:
    """Keep the mapping of an argument; block if there is a gate."""
    KEPT.append(value)
    if path:
        note(path, "kept")
    if gate:
        wait_for_file(gate)
    return os.getpid()


def kept_refs_are(seed: int, size: int) -> bool:
    return all(is_pattern(dpool.get(ref), seed, size) for one in KEPT for ref in one)


def keep_nothing() -> None:
    KEPT.clear()


def wait_and_check(array: Any, seed: int, size: int, path: str, gate: str) -> bool:
    """Hold an argument mapped, and look at it again once the gate is open."""
    before = is_pattern(array, seed, size)
    note(path, "mapped")
    wait_for_file(gate)
    return before and is_pattern(array, seed, size)


def write_own_copy(array: Any, seed: int, size: int) -> bool:
    """Write to every page of a view: that is private to this process."""
    right = is_pattern(array, seed, size)
    array[::512] = 0
    return right and not array[::512].any()


# --- Deaths at a certain moment ---


def _die_in_the_middle_of_writing() -> None:
    """The next value that is written to the store stops half-way, with its writer."""

    def write_half(parts: Any, target: memoryview) -> None:
        target[: len(target) // 2] = b"\xee" * (len(target) // 2)
        kill_me()

    serde.Parts.write_into = write_half  # type: ignore[assignment,method-assign]


def die_while_returning(seed: int, size: int) -> Any:
    _die_in_the_middle_of_writing()
    return pattern(seed, size)


def die_while_putting(seed: int, size: int) -> Any:
    _die_in_the_middle_of_writing()
    return dpool.put(pattern(seed, size))


def die_after_puts(n: int, size: int) -> None:
    """Hold objects of its own, and room for more, and die."""
    KEPT.extend(dpool.put(pattern(x, size)) for x in range(n))
    kill_me()


def die_instead_of_answering(path: str) -> None:
    """An initializer: the first worker that has sealed a result dies before it sends the answer."""
    answer = Worker._answer

    def answer_or_die(self: Worker, first: int, end: bool, elapsed_ns: int, values: list[Any]) -> None:
        if any(type(value) is tuple and value[0] in (STORED, STORED_ALONE) for value in values):
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                pass
            else:
                kill_me()
        answer(self, first, end, elapsed_ns, values)

    Worker._answer = answer_or_die  # type: ignore[method-assign]


def put_when_all_are_there(path: str, n: int, seed: int, size: int, arg: Any) -> Any:
    """Answer at the same moment as `n - 1` others, while an argument is pinned."""
    right = is_pattern(arg, 0, 8 * MIB)
    note(path, seed)
    wait_until(lambda: len(Path(path).read_text().splitlines()) >= n, 60, "the others")
    return pattern(seed, size) if right else None


def map_when_all_are_there(refs: list[dpool.ObjectRef], directory: str, n: int, seed: int, size: int) -> bool:
    """Read one object at the same moment as `n - 1` others, again and again."""
    note(f"{directory}/here", seed)
    wait_until(lambda: len(Path(f"{directory}/here").read_text().splitlines()) >= n, 60, "the others")
    return all(is_pattern(dpool.get(refs[0]), seed=1, size=size) for _ in range(3))


def put_list(seed: int, size: int) -> list[dpool.ObjectRef]:
    return [dpool.put(pattern(seed, size))]


def fork_and_look_later(array: Any, seed: int, size: int, path: str, gate: str) -> None:
    if not os.fork():
        wait_for_file(gate)
        note(path, "right" if is_pattern(array, seed, size) else "wrong")
        os._exit(0)
