"""Tasks that wait for futures given as arguments; they wait in the runtime that submits them, never in a worker.

```
 Add(task, needs) ─► WAITING ──── Resolved(dep) … the last one ────► Ready(task)
                        ├──────── Failed(dep) ────────────────────► Fail(task, dep), then all that wait for `task`
                        └──────── Cancelled(task) ────────────────► Fail(other, task) for all that wait for `task`
```

A dependency is named by the number of the task whose future it is (any number will do for a foreign future), so a
failure runs down a chain of waiting tasks in one step, breadth first and without recursion.

One thread (or one lock). Invariants: a task that waits has at least one dependency left; `_needs` and `_waiting` say
the same, seen from both ends; what is ready, failed or cancelled is forgotten.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic import IllegalMove

if TYPE_CHECKING:
    from collections.abc import Iterable


class Add(NamedTuple):
    """A new task. `needs`: those of its dependencies that have no result yet; duplicates count once."""

    task: int
    needs: Iterable[int]


class Resolved(NamedTuple):
    """A future has its value; of no interest if nobody waits for it."""

    dep: int


class Failed(NamedTuple):
    """A future has an exception; of no interest if nobody waits for it."""

    dep: int


class Cancelled(NamedTuple):
    """A waiting task was cancelled."""

    task: int


Event = Add | Resolved | Failed | Cancelled


class Ready(NamedTuple):
    """Everything that the task needs has a value: dispatch it."""

    task: int


class Fail(NamedTuple):
    """The task can never run: give its future the exception of `dep`'s future, which has it already."""

    task: int
    dep: int


Instruction = Ready | Fail

ABSENT = "absent"
WAITING = "waiting"

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, Add): WAITING,
    (WAITING, Resolved): WAITING,
    (WAITING, Ready): ABSENT,
    (WAITING, Fail): ABSENT,
    (WAITING, Cancelled): ABSENT,
}


class Dependencies:
    """Which tasks wait for what; see the module."""

    def __init__(self) -> None:
        self._needs: dict[int, set[int]] = {}
        self._waiting: dict[int, dict[int, None]] = {}  # dependency -> tasks, in the order in which they came

    def waits(self, task: int) -> bool:
        """Whether `task` waits for a dependency."""
        return task in self._needs

    def __len__(self) -> int:
        """How many tasks wait."""
        return len(self._needs)

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event.

        Raises:
            IllegalMove: a task that waits is added, or one that does not wait is cancelled; nothing has changed.
            ValueError: a task would wait for itself; nothing has changed.
        """
        if isinstance(event, Add):
            return self._add(event)
        if isinstance(event, Resolved):
            return self._resolve(event.dep)
        if isinstance(event, Failed):
            return self._fail_all(event.dep)
        self._state_after(event.task, Cancelled)
        self._forget(event.task)
        return self._fail_all(event.task)

    def _add(self, event: Add) -> list[Instruction]:
        task = event.task
        self._state_after(task, Add)
        needs = set(event.needs)
        if task in needs:
            raise ValueError(f"task {task} would wait for itself")
        if not needs:
            return [Ready(task)]
        self._needs[task] = needs
        for dep in needs:
            self._waiting.setdefault(dep, {})[task] = None
        return []

    def _resolve(self, dep: int) -> list[Instruction]:
        out: list[Instruction] = []
        for task in self._waiting.pop(dep, ()):
            needs = self._needs[task]
            needs.remove(dep)
            if not needs:
                del self._needs[task]
                out.append(Ready(task))
        return out

    def _fail_all(self, dep: int) -> list[Instruction]:
        out: list[Instruction] = []
        failed = deque((dep,))
        while failed:
            cause = failed.popleft()
            for task in tuple(self._waiting.get(cause, ())):
                self._forget(task)
                out.append(Fail(task, cause))
                failed.append(task)
        return out

    def _forget(self, task: int) -> None:
        for dep in self._needs.pop(task):
            tasks = self._waiting[dep]
            del tasks[task]
            if not tasks:
                del self._waiting[dep]

    def _state_after(self, task: int, cause: type[tuple[object, ...]]) -> str:
        state = WAITING if task in self._needs else ABSENT
        if (state, cause) not in MOVES:
            raise IllegalMove(state, cause.__name__, f"task {task}")
        return MOVES[state, cause]

    def check(self) -> None:
        """Validate the invariants of the module."""
        assert all(self._needs.values()), "a task waits for nothing"
        assert all(self._waiting.values())
        forward = {(task, dep) for task, needs in self._needs.items() for dep in needs}
        backward = {(task, dep) for dep, tasks in self._waiting.items() for task in tasks}
        assert forward == backward, f"{forward ^ backward} stand on one side only"
