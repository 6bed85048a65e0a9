"""What the node does about an actor whose process comes too late."""

from __future__ import annotations

from unittest.mock import MagicMock

from dpool._core.logic import actors as a
from dpool._core.logic import scheduler as s
from dpool._core.node_actors import NodeActors

ACTOR, POOL, WORKER = b"a", 7, 5


def given_up(forgotten: bool) -> NodeActors:
    """An actor was killed, and perhaps let go of, when a process had been asked for and was not granted yet."""
    actors = NodeActors(MagicMock(), MagicMock())
    actors.machine.handle(a.Create(ACTOR, "", 1, 0))
    actors._by_pool[POOL] = ACTOR
    actors.machine.handle(a.Kill(ACTOR, False, b"killed"))
    if forgotten:
        actors.machine.handle(a.Freed(ACTOR))
    else:
        actors._actors[ACTOR] = MagicMock()
    return actors


def test_a_process_for_an_actor_that_was_given_up_is_left_to_the_end_of_its_pool() -> None:
    for forgotten in (False, True):
        actors = given_up(forgotten)
        before = dict(actors.machine.actors)
        process = MagicMock(failed="")
        actors.granted(s.Grant(0, POOL, WORKER, (), ()), process)
        actors.died(POOL, process)
        process.take_lessee_socket.assert_not_called()
        assert actors.machine.actors == before
        actors.machine.check()
