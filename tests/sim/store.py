"""The control store as the lineage stash sees it: slow, sometimes away, and forgetful about answering."""

from __future__ import annotations

from collections.abc import Callable

from dpool._core.logic.lineage import Committed, DropTasks, Lost, WriteBatch
from tests.sim.world import Link, World


class SimStore:
    """Applies batches in the order in which they were sent, and answers, perhaps twice, perhaps wrongly with `Lost`.

    Attributes:
        batches: what is stored: batch -> tasks.
        away_until_s: writes before then are not answered before then, and then with `Lost`.
    """

    def __init__(self, world: World, answer: Callable[[Committed | Lost], None]) -> None:
        self._world = world
        self._answer = answer
        self._link = Link(world, self._apply)
        self.batches: dict[int, set[int]] = {}
        self.away_until_s = 0.0

    def send(self, instruction: WriteBatch | DropTasks) -> None:
        self._link.send(instruction)

    def cut(self) -> None:
        """The node is gone."""
        self._link.cut()

    def _apply(self, instruction: WriteBatch | DropTasks) -> None:
        if isinstance(instruction, DropTasks):
            for tasks in self.batches.values():
                tasks.difference_update(instruction.tasks)
            return
        batch = instruction.batch
        away = self._world.now_s < self.away_until_s
        if not away or self._world.chance(0.5):
            self.batches[batch] = {task for task, _ in instruction.records}
        if away or self._world.chance(0.05):
            self._world.at(max(self.away_until_s, self._world.now_s) + self._world.short_s(), self._answer, Lost(batch))
            return
        self._world.soon(self._answer, Committed(batch))
        if self._world.chance(0.1):
            self._world.soon(self._answer, Committed(batch))
