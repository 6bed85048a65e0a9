"""One seed: a machine, some programs, some misfortunes, and what must hold when everything has come to rest."""

from __future__ import annotations

from tests.sim.node import SimNode
from tests.sim.program import draw_program
from tests.sim.runtime import SimRuntime
from tests.sim.users import SimUser, draw_users
from tests.sim.world import World


class SimulationFailed(AssertionError):
    """Something that must hold did not; the message says what, how to replay it, and what happened before."""


class Simulation:
    """The run that `seed` stands for; the same seed always makes the same run.

    Attributes:
        nodes: the node, and the one started in its place if it was killed.
        drivers: the users' programs.
        users: processes that use actors; in every third run.
    """

    def __init__(self, seed: int, verbose: bool = False) -> None:
        self.seed = seed
        self.world = World(seed, verbose)
        rng = self.world.rng
        calm = rng.random() < 0.3
        self._start_fails = 0.0 if calm else rng.choice((0.0, 0.05, 0.3))
        self._dies_young = 0.0 if calm else rng.choice((0.0, 0.05, 0.3))
        self.nodes = [SimNode(self.world, 1, self._start_fails, self._dies_young)]
        self.drivers = [
            SimRuntime(self.world, f"driver {n}", draw_program(rng, self.world.numbers), self._nothing)
            for n in range(rng.choice((1, 1, 2, 3)))
        ]
        for driver in self.drivers:
            self.world.after(rng.choice((0.0, 0.01, 0.2)), self._join, driver)
        self.users: list[SimUser] = draw_users(self.world) if seed % 3 == 2 else []
        for n, user in enumerate(self.users):
            self.world.after(n and rng.choice((0.0, 0.01, 0.2)), self._join, user)
        if not calm:
            self._draw_chaos()

    def run(self) -> None:
        """Run to the end and check everything. Raises SimulationFailed."""
        try:
            self.world.run()
            self.nodes[-1].actors.end_detached()
            self.world.run()
            self._check_at_rest()
        except Exception as error:
            raise SimulationFailed(
                f"seed {self.seed}: {type(error).__name__}: {error}\n"
                f"replay with: python -m tests.sim --seed {self.seed}\n{self.world.story()}"
            ) from error

    def _nothing(self) -> None:
        """A driver's end interests nobody."""

    def _join(self, driver: SimRuntime | SimUser) -> None:
        if driver.alive:
            driver.join(self.nodes[-1])

    # -- chaos

    def _draw_chaos(self) -> None:
        rng = self.world.rng
        for _ in range(rng.choice((0, 1, 5))):
            self.world.after(rng.uniform(0.0, 0.5), self._kill_a_worker)
        for _ in range(rng.choice((0, 0, 2))):
            self.world.after(rng.uniform(0.0, 0.5), self._resize_a_pool)
        for _ in range(rng.choice((0, 0, 1))):
            self.world.after(rng.uniform(0.0, 0.5), self._lose_the_store)
        if rng.random() < 0.15:
            self.world.after(rng.uniform(0.0, 0.5), rng.choice(self.drivers).crash)
        for user in self.users:
            if rng.random() < 0.15:
                self.world.after(rng.uniform(0.0, 0.5), user.crash)
        for _ in range(rng.choice((0, 1, 5)) if self.users else 0):
            self.world.after(rng.uniform(0.0, 0.3), self._kill_a_worker)
        if rng.random() < 0.15:
            self.world.after(rng.uniform(0.0, 0.5), self._restart_the_node)

    def _kill_a_worker(self) -> None:
        workers = [worker for worker in self.nodes[-1].workers.values() if worker.alive]
        if workers:
            self.world.rng.choice(workers).die()

    def _resize_a_pool(self) -> None:
        self.world.rng.choice(self.drivers).resize()

    def _lose_the_store(self) -> None:
        self.nodes[-1].store.away_until_s = self.world.now_s + self.world.rng.uniform(0.0, 0.5)

    def _restart_the_node(self) -> None:
        old = self.nodes[-1]
        self.nodes.append(SimNode(self.world, old.epoch + 1, self._start_fails, self._dies_young))
        old.successor = self.nodes[-1]
        old.crash()

    # -- rest

    def _check_at_rest(self) -> None:
        for driver in self.drivers:
            driver.check_at_rest()
        for user in self.users:
            user.check_at_rest()
        self.nodes[-1].check_at_rest()
        for node in self.nodes:
            assert not any(worker.alive for worker in node.processes.values()), "a process outlives its node"
