"""Many seeds come to rest as they should; and the simulator notices when a machine is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dpool._core.logic import actors, dependency, dispatch, lineage, references, resources, scheduler
from tests.sim.simulation import Simulation, SimulationFailed
from tests.sim.world import Link, World

SEEDS = 1200
pytestmark = pytest.mark.timeout(600)  # it only computes, ten seconds at most: on a machine that is busy, long
ROOT = Path(__file__).parents[2]

SELDOM = {
    # The simulated node hears what a worker said before it reaps it, so nothing comes from one that is gone.
    ("unknown", "StartWorker"),
    ("gone", "Blocked"),
    ("gone", "Unblocked"),
    ("gone", "StartFailed"),
    ("gone", "KillWorker"),
    # A client that was granted a worker waits for it, and a process that never was cannot be killed.
    ("idle", "StartFailed"),
    ("retiring", "StartFailed"),
    ("killed", "StartFailed"),
}
"""Moves that the chaos need not reach; test_scheduler_properties.py does."""


def run_all():
    for seed in range(SEEDS):
        Simulation(seed).run()


def test_many_seeds_come_to_rest_with_every_task_ended_once_and_nothing_left(monkeypatch):
    taken = set()
    look_up = scheduler._next

    def remember(moves, state, cause, subject):
        taken.add((state, cause))
        return look_up(moves, state, cause, subject)

    moves_of_actors = set()

    class Remembered(dict):
        """The table of actors, and which of its moves were taken."""

        def __getitem__(self, move):
            moves_of_actors.add(move)
            return super().__getitem__(move)

        def get(self, move, default=None):
            moves_of_actors.add(move)
            return super().get(move, default)

    monkeypatch.setattr(scheduler, "_next", remember)
    monkeypatch.setattr(actors, "MOVES", Remembered(actors.MOVES))
    run_all()
    assert not actors.MOVES.keys() - moves_of_actors, "the chaos does not reach these moves of actors any more"
    never = {(state, cause.__name__) for state, cause in scheduler.MOVES.keys() - taken}
    assert never <= SELDOM, "the chaos does not reach these moves any more"


def test_the_same_seed_makes_the_same_run():
    stories = []
    for _ in range(2):
        simulation = Simulation(5, verbose=True)
        simulation.run()
        stories.append(simulation.world.story())
    assert stories[0] == stories[1]
    assert len(stories[0].splitlines()) > 20


def drop_instructions(machine, kind):
    """The machine forgets to give instructions of this kind."""
    handle = machine.handle
    return machine, "handle", lambda self, event: [i for i in handle(self, event) if not isinstance(i, kind)]


def fail_only_the_first_level(self, dep):
    out = []
    for task in tuple(self._waiting.get(dep, ())):
        self._forget(task)
        out.append(dependency.Fail(task, dep))
    return out


def free_without_looking_inside(self, event):
    return []


def forget_to_tell(self, worker, cause, out):
    told: list[scheduler.Instruction] = []
    scheduler_gone(self, worker, cause, told)
    out += [i for i in told if not isinstance(i, scheduler.TellDied)]


def begin_again_what_was_limited(self, slot, started):
    limits = [frame.limit for frame in slot.frames if frame.limit]
    return dispatcher_died(self, slot, min([started, *(limit - 1 for limit in limits)]))


def forget_what_was_given_back(self, slot, first, count, end, elapsed_s):
    return dispatcher_replied(self, slot, first, count, end, elapsed_s)[0], []


def restart_without_counting(self, event, out):
    actors_worker_died(self, event, out)
    if event.actor in self.actors:
        self.actors[event.actor].restarts_done = 0


def restart_what_nobody_holds(self, event, out):
    self.actors[event.actor].freed = False
    if self.actors[event.actor].state == actors.LEAVING:
        self.actors[event.actor].state = actors.ALIVE
    actors_worker_died(self, event, out)


def link_late_callers_only(self, event, out):
    actor = self._moved(event.actor, actors.Constructed)
    actor.linked.update(actor.callers)


actors_worker_died = actors.Actors._worker_died
scheduler_gone = scheduler.LocalScheduler._gone
dispatcher_died = dispatch.Dispatcher.died
dispatcher_replied = dispatch.Dispatcher.replied

MUTANTS = {
    "leases are not given back": (scheduler.LocalScheduler, "_give_back", lambda self, worker: None),
    "blocked CPUs are not taken again": (resources.Account, "reclaim_cpus", lambda self, asked: None),
    "everything fits": (resources.Account, "fits", lambda self, asked: True),
    "nothing fits": (resources.Account, "fits", lambda self, asked: False),
    "the death of a worker is not told": (scheduler.LocalScheduler, "_gone", forget_to_tell),
    "nobody is woken from a back-off": drop_instructions(scheduler.LocalScheduler, scheduler.WakeAt),
    "workers are not retired": drop_instructions(scheduler.LocalScheduler, scheduler.RetireWorker),
    "workers are not killed": drop_instructions(scheduler.LocalScheduler, scheduler.KillWorker),
    "the infeasible is not warned about": drop_instructions(scheduler.LocalScheduler, scheduler.WarnInfeasible),
    "nobody is told that others wait": drop_instructions(scheduler.LocalScheduler, scheduler.Scarce),
    "requests survive their pool": (scheduler.LocalScheduler, "_drop_requests", lambda self, pool, shape: None),
    "failures stop after one level": (dependency.Dependencies, "_fail_all", fail_only_the_first_level),
    "results resolve nothing": (dependency.Dependencies, "_resolve", lambda self, dep: []),
    "containment is ignored": (references.References, "_contains", free_without_looking_inside),
    "freed memory is not said to be": drop_instructions(references.References, references.Freed),
    "a death releases nothing": (references.References, "_process_died", lambda self, event: []),
    "acknowledgements are ignored": (lineage.LineageStash, "_batch_committed", lambda self, batch: None),
    "lost batches are not written again": (lineage.LineageStash, "_batch_lost", lambda self, batch, out: None),
    "what was written is not dropped": drop_instructions(lineage.LineageStash, lineage.DropTasks),
    "a task is begun twice when its worker dies": (dispatch.Dispatcher, "died", begin_again_what_was_limited),
    "what a worker gives back is forgotten": (dispatch.Dispatcher, "replied", forget_what_was_given_back),
    "what is taken back is forgotten": (dispatch.Dispatcher, "taken_back", lambda self, slot, base: []),
    "callers do not hear that their actor's process is gone": drop_instructions(actors.Actors, actors.TellLost),
    "callers do not hear that their actor is dead": drop_instructions(actors.Actors, actors.TellDead),
    "callers who came before the actor are not linked": (actors.Actors, "_constructed", link_late_callers_only),
    "actors are not told to leave": drop_instructions(actors.Actors, actors.Leave),
    "actors are not killed": drop_instructions(actors.Actors, actors.KillWorker),
    "actors are not given up": drop_instructions(actors.Actors, actors.GiveUp),
    "dead actors are not forgotten": drop_instructions(actors.Actors, actors.Forget),
    "restarts are not counted": (actors.Actors, "_worker_died", restart_without_counting),
    "actors come back that nobody holds": (actors.Actors, "_worker_died", restart_what_nobody_holds),
    "actors come back that have ended themselves": (actors.Actors, "_left", lambda self, event, out: None),
    "names of actors are not free again": (actors.Actors, "_release_name", lambda self, actor: None),
    "callers that have gone are kept": (actors.Actors, "_disconnect", lambda self, event, out: None),
    "actors outlive their programs": (actors.Actors, "_owner_left", lambda self, event, out: None),
    "the stash is never woken": drop_instructions(lineage.LineageStash, lineage.WakeAt),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_simulator_notices_a_broken_machine(monkeypatch, name):
    monkeypatch.setattr(*MUTANTS[name])
    with pytest.raises(SimulationFailed, match=r"replay with: python -m tests\.sim --seed \d+"):
        run_all()


def test_the_simulator_notices_without_the_machines_own_checks(monkeypatch):
    """What is observed from outside is enough to find a lost lease."""
    monkeypatch.setattr(scheduler.LocalScheduler, "check", lambda self: None)
    monkeypatch.setattr(scheduler.LocalScheduler, "_give_back", lambda self, worker: None)
    with pytest.raises(SimulationFailed, match=r"still waits for|free num_cpus|free memory"):
        run_all()


def test_the_command_replays_a_seed():
    replay = [sys.executable, "-m", "tests.sim", "--seed", "5"]
    done = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    simulation = Simulation(5, verbose=True)
    simulation.run()
    assert done.stdout == simulation.world.story() + "\n"


def test_a_link_keeps_order_and_ends_after_what_was_sent():
    world = World(1)
    heard: list[object] = []
    link = Link(world, heard.append, lambda: heard.append("end"))
    for n in range(50):
        link.send(n)
    link.end()
    link.send("too late")
    world.run()
    assert heard == [*range(50), "end"]


def test_links_overtake_each_other():
    world = World(1)
    heard: list[object] = []
    links = [Link(world, heard.append), Link(world, heard.append)]
    for n in range(50):
        links[n % 2].send(n)
    world.run()
    assert heard != list(range(50))
    assert set(heard) == set(range(50))


def test_a_drained_link_has_delivered_everything_and_a_cut_one_delivers_nothing():
    world = World(1)
    heard: list[object] = []
    drained, cut = Link(world, heard.append), Link(world, heard.append)
    drained.send(1)
    cut.send(2)
    drained.drain()
    cut.cut()
    assert heard == [1]
    world.run()
    assert heard == [1]
