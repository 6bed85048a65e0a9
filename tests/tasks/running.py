"""Programs run: what their statements, tasks and actors do, in whatever world.

What a frame has seen is its log. The log of a program does not depend on what runs when: tasks are functions, and what
an actor answers depends on what the same frame asked it before.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import numpy as np

import dpool
from tests.tasks.programs import (
    Arg,
    Ask,
    Call,
    Gated,
    Get,
    Life,
    Make,
    Nested,
    Program,
    Put,
    Race,
    Raise,
    Stream,
    Wait,
    WaitLoop,
)

DEADLINE_S = 60.0
"""Nothing takes so long."""
TIMEOUTS = (TimeoutError, FutureTimeout)
MODULUS = 1_000_003
BIG = 30_000
"""Numbers in an array: more than travels inline."""


class Boom(Exception):
    """What programs raise."""


# -- what tasks do


def numbers_in(world: Any, value: Any, deep: bool = True) -> Iterator[int]:
    """All that a value consists of, in order; `deep`: also what references in it stand for."""
    if isinstance(value, (int, float)):
        yield int(value) % MODULUS
    elif isinstance(value, str):
        yield sum(value.encode()) % MODULUS
    elif isinstance(value, (list, tuple)):
        yield len(value)
        for item in value:
            yield from numbers_in(world, item, deep)
    elif isinstance(value, np.ndarray):
        yield int(value.sum()) % MODULUS
    elif world.is_ref(value):
        if deep:
            yield from numbers_in(world, outcome(world, value))
        else:
            yield 7


def digest(world: Any, *args: Any, deep: bool = True) -> int:
    """One number that depends on everything."""
    found = 17
    for number in numbers_in(world, args, deep):
        found = (found * 31 + number) % MODULUS
    return found


def fail_if_odd(world: Any, *args: Any) -> int:
    number = digest(world, *args)
    if number % 2:
        raise Boom(number)
    return number


def array(world: Any, *args: Any) -> Any:
    return np.full(BIG, digest(world, *args) % 100)


def change(world: Any, *args: Any) -> Any:
    """Lists among the arguments are the task's own."""
    for one in args:
        if isinstance(one, list):
            one.append(1)
    return [digest(world, *args), list(args)]


def several(world: Any, *args: Any, count: int = 2) -> Any:
    number = digest(world, *args)
    return [number + at if at % 2 else np.full(BIG, number % 100 + at) for at in range(count)]


def references(world: Any, *args: Any) -> Any:
    """It returns references: to what it puts, and to a task that it submits and does not wait for."""
    number = digest(world, *args)
    return [world.put([number]), number, world.submit("digest", (number,))]


FUNCTIONS = {
    one.__name__: one for one in (digest, fail_if_odd, array, change, several, references)
}  # fmt: skip


def items(count: int, fails: int | None, big: bool) -> Iterator[Any]:
    """What streams yield."""
    for at in range(count):
        if at == fails:
            raise Boom(at)
        yield np.full(BIG, at) if big else at


class Cell:
    """An actor: sums, for each frame that asks and over all. It looks into no reference while it is asked: whoever that
    waits for may wait for the actor.
    """

    def __init__(self, world: Any, start: Any, fails: bool = False, friend: Any = None, me: Any = None) -> None:
        self.world = world
        self.friend = friend
        self.me = me
        self.sum = digest(world, start)
        self.last: dict[Any, tuple[int, int]] = {}
        if fails:
            raise Boom("constructor")

    def add(self, who: Any, x: Any) -> Any:
        """How often `who` has added, and a number that depends on what and in which order."""
        number = digest(self.world, x, deep=False)
        self.sum = (self.sum + number) % MODULUS
        count, before = self.last.get(who, (0, 0))
        now = self.last[who] = count + 1, (before * 31 + number) % MODULUS
        if number % 5 == 0:
            raise Boom(*now)
        return now

    @dpool.method(num_returns=2)
    def two(self, who: Any, x: Any) -> Any:
        return Cell.add(self, who, x), [x]

    def relay(self, who: Any, x: Any) -> Any:
        """What another actor says."""
        return [who] if self.friend is None else self.world.ask(self.friend, "add", ((self.me, who), x), "block")

    def frame(self, who: Any, x: Any, path: Any, body: Any) -> Any:
        """The actor runs statements, and submits tasks. It does not get to know itself."""
        return run_frame(self.world, path, body, [plain(self.world, x)], [], "log", False)

    def fail(self) -> None:
        raise Boom("asked to")

    def crash(self) -> None:
        self.world.die()

    def total(self) -> int:
        return self.sum


class AsyncCell(Cell):
    """The same in coroutines."""

    async def add(self, who: Any, x: Any) -> Any:
        return Cell.add(self, who, x)


class ThreadsCell(Cell):
    """The same in threads, where calls overtake each other: nothing depends on what was before."""

    def add(self, who: Any, x: Any) -> Any:
        return digest(self.world, x, deep=False)

    @dpool.method(num_returns=2)
    def two(self, who: Any, x: Any) -> Any:
        return 2, [x]

    def relay(self, who: Any, x: Any) -> Any:
        return 3


CELLS = {"plain": Cell, "threads": ThreadsCell, "async": AsyncCell}


# -- running


def outcome(world: Any, ref: Any) -> Any:
    """What comes of a reference, as a value."""
    try:
        return world.get(ref)
    except TIMEOUTS:
        raise
    except Exception as error:
        return told(world, error)


def told(world: Any, error: BaseException) -> Any:
    """An exception as a value: only dpool knows the texts of its own."""
    name = world.name_of(error)
    return ("raised", name, error.args if isinstance(error, Boom) else ())


def plain(world: Any, value: Any) -> Any:
    """A value as it stands in a log: what cannot be compared is replaced."""
    if isinstance(value, (list, tuple)):
        return type(value)(plain(world, item) for item in value)
    if isinstance(value, np.ndarray):
        return ("array", value.shape, int(value.sum()))
    if world.is_ref(value):
        return "a reference"
    return "an actor" if world.is_actor(value) else value


def run_program(world: Any, program: Program) -> list[Any]:
    """What the driver has seen, all references and all actors at the end."""
    frame = Frame(world, (), [0], [], catches=True, crashes=program.crashes)
    frame.run(program.body)
    log = [*frame.log, "at the end"]
    log += [plain(world, outcome(world, ref)) for ref in frame.refs]
    for actor in frame.actors:
        log.append(plain(world, outcome(world, world.ask(actor, "total", (), "submit"))))
    return log


def run_frame(world: Any, path: Any, body: Any, values: Any, actors: Any, returns: str, catches: bool) -> Any:
    """What a nested task does; `path` tells it from all others."""
    frame = Frame(world, path, [0, *values], list(actors), catches, crashes=returns == "values")
    frame.run(body)
    if returns == "refs":
        return [tuple(frame.log), *frame.refs, *frame.actors]
    return tuple(frame.log)


class Frame:
    """Attributes:
    log: what its statements have seen.
    began: calls of actors and frames, which may call some; they are awaited before it ends.
    """

    def __init__(
        self, world: Any, path: Any, values: list[Any], actors: list[Any], catches: bool, crashes: bool
    ) -> None:
        self.world = world
        self.path = path
        self.values: list[Any] = []
        self.refs: list[Any] = []
        self.actors = actors
        self.names: dict[int, str] = {}
        self.catches = catches
        self.crashes = crashes
        self.log: list[Any] = []
        self.began: list[Any] = []
        self._steps = 0
        for value in values:
            self.learn(value)

    def run(self, body: Any) -> None:
        try:
            for statement in body:
                self._steps += 1
                try:
                    STATEMENTS[type(statement)](self, statement)
                except Exception as error:
                    if not self.catches or isinstance(error, (AssertionError, *TIMEOUTS)):
                        raise
                    self.log.append(told(self.world, error))
        finally:
            for one in self.began:
                outcome(self.world, one)

    def step(self) -> Any:
        """A name for what the present statement makes."""
        return (*self.path, self._steps)

    def learn(self, value: Any) -> None:
        """A new value; references and actors in it can be used as well."""
        self.values.append(value)
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, (list, tuple)):
                waiting += reversed(one)
            elif self.world.is_ref(one):
                self.refs.append(one)
            elif self.world.is_actor(one):
                self.actors.append(one)

    def arg(self, arg: Arg) -> Any:
        if arg.how == "value" or not self.refs:
            return self.values[arg.number % len(self.values)]
        ref = self.refs[arg.number % len(self.refs)]
        return ref if arg.how == "ref" else [ref]

    def some(self, numbers: tuple[int, ...]) -> list[Any]:
        """References, each once."""
        found: dict[Any, None] = {}
        for number in numbers:
            if self.refs:
                ref = self.refs[number % len(self.refs)]
                found.setdefault(ref)
        return list(found)

    # -- statements

    def put(self, one: Put) -> None:
        value = [one.value] if one.value % 2 else np.full(BIG, one.value)
        self.refs.append(self.world.put(value))

    def call(self, one: Call) -> None:
        deep = not one.licences
        crashes = min(one.crashes, 2) if self.crashes else 0
        made = self.world.submit(
            "digest" if self.crashes and one.function == "references" else one.function,
            tuple(self.arg(arg) for arg in one.args if deep or arg.how == "ref"),
            cpus=0.5 if crashes else one.cpus,  # so that no parent runs it itself, and dies with it
            licences=one.licences,
            returns=one.returns if one.function == "several" else 1,
            crashes=crashes,
            raises=one.raises,
            retries=one.retries,
            deep=deep,
            path=self.step(),
        )
        self.refs += made if isinstance(made, list) else [made]

    def nested(self, one: Nested) -> None:
        actors = [self.actors[at % len(self.actors)] for at in one.actors if self.actors]
        returns = "values" if self.crashes else one.returns
        args = [self.arg(arg) for arg in one.args]
        made = self.world.nest(self.step(), one.body, args, actors, returns, one.catches, one.cpus)
        self.refs.append(made)
        self.began.append(made)

    def get(self, one: Get) -> None:
        if self.refs:
            value = self.world.get(self.refs[one.ref % len(self.refs)])
            self.log.append(plain(self.world, value))
            self.learn(value)

    def wait(self, one: Wait) -> None:
        refs = self.some(one.refs)
        if refs:
            most = one.most % len(refs) + 1
            ready, rest = self.world.wait(refs, most, one.timeout)
            check_waited(self.world, refs, ready, rest)
            assert len(ready) <= most
            assert one.timeout == 0 or len(ready) == most, f"{len(ready)} of {most} are ready"

    def wait_loop(self, one: WaitLoop) -> None:
        rest = refs = self.some(one.refs)
        place = {id(ref): at for at, ref in enumerate(refs)}
        seen: dict[int, Any] = {}
        while rest:
            ready, left = self.world.wait(rest, min(one.step, len(rest)), None)
            check_waited(self.world, rest, ready, left)
            rest = left
            seen.update((place[id(ref)], plain(self.world, outcome(self.world, ref))) for ref in ready)
        self.log += [seen[at] for at in range(len(refs))]

    def stream(self, one: Stream) -> None:
        found, count = self.world.stream(one.items, one.fails, one.big, one.take)
        self.refs += found
        self.log.append(len(found))
        self.refs.append(count)

    def make(self, one: Make) -> None:
        name = "/".join(map(str, self.step())) if one.named else ""
        friend = self.actors[one.friend % len(self.actors)] if self.actors and one.friend >= 0 else None
        actor = self.world.make(one.kind, (self.arg(one.start), one.fails, friend, self.step()), name)
        if name:
            self.names[len(self.actors)] = name
        self.actors.append(actor)

    def ask(self, one: Ask) -> None:
        if not self.actors:
            return
        at = one.actor % len(self.actors)
        actor = self.actors[at]
        if one.how == "name" and at in self.names:
            actor = self.world.find(self.names[at])
        args: tuple[Any, ...] = (self.path, self.arg(one.arg))
        if one.method == "frame":
            args = (*args, self.step(), one.body)
        how = "block" if one.how == "block" else "submit"
        found = self.world.ask(actor, one.method, args, how)
        if how == "block":
            self.log.append(plain(self.world, found))
            return
        made = found if isinstance(found, list) else [found]
        self.began += made
        self.refs += made

    def life(self, one: Life) -> None:
        self.log.append(self.world.live(one))

    def gated(self, one: Gated) -> None:
        cancels = {number: (force and self.crashes, recursive) for number, force, recursive in one.cancels}
        self.log.append(self.world.gated(one, cancels, self.step(), lambda: self.inside(one.inside)))

    def inside(self, body: tuple[Any, ...]) -> None:
        """Statements in a statement."""
        for statement in body:
            self._steps += 1
            STATEMENTS[type(statement)](self, statement)

    def race(self, one: Race) -> None:
        self.log.append(self.world.race(one, one.force and self.crashes))

    def throw(self, one: Raise) -> None:
        raise Boom(one.value)


def live(world: Any, one: Life) -> list[Any]:
    """What an actor answers that may die."""
    actor = world.make_mortal(one.restarts, one.retries)
    refs: list[Any] = []
    for at, what in enumerate(one.asks):
        if what == "kill":
            if not one.hasty:
                seen = [outcome(world, ref) for ref in refs]
                assert len(seen) == len(refs)
            world.kill(actor)
        else:
            refs.append(world.ask(actor, what, ("me", at) if what == "add" else (), "submit"))
    return [plain(world, outcome(world, ref)) for ref in refs]


def check_waited(world: Any, refs: list[Any], ready: list[Any], rest: list[Any]) -> None:
    """`wait` has split the list, and both parts keep its order."""
    place = {id(ref): at for at, ref in enumerate(refs)}
    for part in (ready, rest):
        places = [place[id(ref)] for ref in part]
        assert places == sorted(places), f"not in order: {places}"
    assert len(ready) + len(rest) == len(refs)
    assert all(map(world.is_done, ready)), "ready, but not done"


STATEMENTS: dict[Any, Any] = {
    Put: Frame.put,
    Call: Frame.call,
    Nested: Frame.nested,
    Get: Frame.get,
    Wait: Frame.wait,
    WaitLoop: Frame.wait_loop,
    Stream: Frame.stream,
    Make: Frame.make,
    Ask: Frame.ask,
    Life: Frame.life,
    Gated: Frame.gated,
    Race: Frame.race,
    Raise: Frame.throw,
}
