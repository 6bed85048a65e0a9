"""Where programs run: on dpool, and in one process, one statement after the other, as if nothing were parallel.

Both have the same methods; what they say is compared. `Serial` is the meaning of a program: a task is a call with
copies of its arguments, its future is done when `submit` returns, an actor is an object.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import cache
from pathlib import Path
from typing import Any

import dpool
from tests.helpers import wait_until
from tests.tasks import programs as p
from tests.tasks import running as r

DIED = ("raised", "ActorDied", ())
CANCELLED = ("raised", "CancelledError", ())


class Ambiguous(BaseException):
    """Several outcomes would be right: two arguments have failed, in different ways."""


# -- dpool


def run_task(plan: Any, *args: Any) -> Any:
    """Every task of a program: `plan` is (world, function, path, options)."""
    world, function, path, crashes, raises, options = plan
    if crashes or raises:
        attempt = world.count(path)
        if attempt <= crashes:
            world.die()
        if attempt <= crashes + raises:
            raise r.Boom("attempt")
    return r.FUNCTIONS[function](world, *args, **options)


def nested(world: Any, path: Any, body: Any, actors: Any, returns: str, catches: bool, *values: Any) -> Any:
    return r.run_frame(world, path, body, values, actors, returns, catches)


def wait_at(gate: str) -> None:
    wait_until(Path(gate).exists, r.DEADLINE_S, "the gate is opened")


def wait_in_child(gate: str) -> None:
    remote(wait_at, num_cpus=0, max_retries=0).remote(gate).result(r.DEADLINE_S)


def at_gate(gate: str, child: bool, value: int) -> int:
    (wait_in_child if child else wait_at)(gate)
    return value


@cache
def remote(function: Callable[..., Any], **options: Any) -> Any:
    return dpool.remote(**options)(function)


class Dpool:
    """Attributes:
    scratch: a directory of the program's own, for what must outlive a process.
    """

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch

    @staticmethod
    def is_ref(value: Any) -> bool:
        return isinstance(value, (dpool.Future, dpool.ObjectRef))

    @staticmethod
    def is_actor(value: Any) -> bool:
        return type(value) is dpool.ActorProxy

    @staticmethod
    def is_done(ref: Any) -> bool:
        return isinstance(ref, dpool.ObjectRef) or bool(ref.done())

    @staticmethod
    def name_of(error: BaseException) -> str:
        return type(error).__name__

    def count(self, path: Any) -> int:
        """How often this has been asked for the path, this time included."""
        name = os.path.join(self.scratch, "-".join(map(str, path)))
        with open(name, "a") as file:
            file.write("x")
        return os.path.getsize(name)

    def die(self) -> None:
        os._exit(5)

    def put(self, value: Any) -> Any:
        return dpool.put(value)

    def get(self, ref: Any) -> Any:
        return dpool.get(ref, timeout=r.DEADLINE_S)

    def wait(self, refs: list[Any], most: int, timeout: float | None) -> Any:
        found = dpool.wait(refs, num_returns=most, timeout=r.DEADLINE_S if timeout is None else timeout)
        assert timeout == 0 or len(found[0]) == most, "wait: not within the deadline"
        return found

    def submit(
        self,
        function: str,
        args: Any,
        cpus: float = 1,
        licences: int = 0,
        returns: int = 1,
        crashes: int = 0,
        raises: int = 0,
        retries: int = 0,
        deep: bool = True,
        path: Any = (),
    ) -> Any:
        options: dict[str, Any] = {} if deep else {"deep": False}
        if returns != 1:
            options = {"count": returns}
        if not deep:
            function = "digest"
        task = _task(cpus, licences, returns, retries, raises > 0)
        return task.remote((self, function, path, crashes, raises, options), *args)

    def nest(self, path: Any, body: Any, args: Any, actors: Any, returns: str, catches: bool, cpus: float) -> Any:
        task = remote(nested, num_cpus=cpus, max_retries=0)
        return task.remote(self, path, body, actors, returns, catches, *args)

    def stream(self, count: int, fails: int | None, big: bool, take: int) -> tuple[list[Any], Any]:
        stream = remote(r.items, num_returns="streaming", max_retries=0).remote(count, fails, big)
        found: list[Any] = []
        while len(found) < take:
            try:
                found.append(stream.next(r.DEADLINE_S))
            except StopIteration:
                break
        return found, stream.completed()

    def make(self, kind: str, args: Any, name: str) -> Any:
        options: dict[str, Any] = {"name": self.scratch + name} if name else {}
        if kind == "threads":
            options["max_concurrency"] = 3
        return dpool.remote(r.CELLS[kind]).options(**options).remote(self, *args)

    def make_mortal(self, restarts: int, retries: int) -> Any:
        return dpool.remote(r.Cell).options(max_restarts=restarts, max_task_retries=retries).remote(self, 1)

    def find(self, name: str) -> Any:
        return dpool.get_actor(self.scratch + name)

    def kill(self, actor: Any) -> None:
        dpool.kill(actor)

    def ask(self, actor: Any, method: str, args: Any, how: str) -> Any:
        call = getattr(actor, method)
        return call(*args) if how == "block" else call.submit(*args)

    def gated(self, one: p.Gated, cancels: dict[int, Any], path: Any, inside: Callable[[], None]) -> Any:
        gate = os.path.join(self.scratch, "-".join(map(str, path)) + ".gate")
        try:
            waits = remote(at_gate, num_cpus=0, max_retries=0)
            refs = [waits.remote(gate, child, at) for at, child in enumerate(one.gated)]
            for needs in one.needs:
                refs.append(self.submit("digest", tuple(refs[need % len(refs)] for need in needs)))
            if one.calls:
                cell = self.make("plain", (0,), "")
                late = [refs[0], *range(1, one.calls)]
                refs += [cell.add.submit("gate", x) for x in late]
            inside()
            now, _ = dpool.wait(refs, num_returns=len(refs), timeout=0)
            assert not now, f"{now} ended although the gate is shut"
            victims = [number for number in sorted(cancels, reverse=True) if number < len(refs)]
            for number in victims:
                force, recursive = cancels[number]
                task = number < len(refs) - one.calls
                dpool.cancel(refs[number], force=force and task, recursive=recursive)
            for number in victims:
                assert r.outcome(self, refs[number]) == CANCELLED
        finally:
            Path(gate).touch()
        return [r.outcome(self, ref) for ref in refs]

    def race(self, one: p.Race, force: bool) -> str:
        refs = [self.submit("digest", (at,), retries=3) for at in range(one.tasks)]
        victims = {number for number in one.cancels if number < one.tasks}
        for number in victims:
            dpool.cancel(refs[number], force=force)
        for at, ref in enumerate(refs):
            found = r.outcome(self, ref)
            allowed = (r.digest(self, at), *([CANCELLED] if at in victims else []))
            assert found in allowed, f"task {at} of a race: {found}, not one of {allowed}"
        return "a race"

    def live(self, one: p.Life) -> Any:
        found = r.live(self, one)
        if not one.hasty or "kill" not in one.asks:
            return found
        before = one.asks.index("kill")
        calm = r.live(Serial(""), one._replace(asks=one.asks[:before]))
        for at, value in enumerate(found):
            allowed = (calm[at], DIED) if at < before else (DIED,)
            assert value in allowed, f"call {at} of {one}: {value}, not one of {allowed}"
        return "killed in haste"


@cache
def _task(cpus: float, licences: int, returns: int, retries: int, retry: bool) -> Any:
    resources = {"licence": licences} if licences else {}
    return dpool.remote(
        num_cpus=cpus, resources=resources, num_returns=returns, max_retries=retries, retry_exceptions=retry
    )(run_task)


# -- one after the other


class Known(Exception):
    """Stands for an exception of dpool's own, by name."""


class Died(BaseException):
    """The process ends."""


class Ref:
    """A future, or a reference: what came of it."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value = value
        self.error = error

    def __deepcopy__(self, memo: Any) -> Ref:
        return self


class Actor:
    """An object, and how often it may come back."""

    def __init__(self, kind: Any, args: Any, restarts: int = 0, retries: int = 0) -> None:
        self.kind = kind
        self.args = args
        self.restarts = restarts
        self.retries = retries
        self.object: Any = None
        self.begin()

    def __deepcopy__(self, memo: Any) -> Actor:
        return self

    def begin(self) -> None:
        try:
            self.object = self.kind(*copy.deepcopy(self.args))
        except Exception:
            self.object = None

    def call(self, method: str, args: Any) -> Ref:
        for _ in range(1 + self.retries):
            if self.object is None:
                break
            try:
                return made(lambda: asked(getattr(self.object, method), copy.deepcopy(args)))
            except Died:
                self.object = None
                if self.restarts:
                    self.restarts -= 1
                    self.begin()
        return Ref(error=Known("ActorDied"))


def asked(method: Callable[..., Any], args: Any) -> Any:
    """What a method returns, also if it is a coroutine (which waits for nothing)."""
    found = method(*args)
    if not hasattr(found, "send"):
        return found
    try:
        found.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a coroutine waits")


def made(function: Callable[[], Any]) -> Ref:
    """What a task makes of a call."""
    try:
        return Ref(copy.deepcopy(function()))
    except AssertionError:
        raise
    except Exception as error:
        return Ref(error=error)


class Serial:
    """The meaning of a program."""

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch
        self.names: dict[str, Actor] = {}

    def __deepcopy__(self, memo: Any) -> Serial:
        return self

    def is_ref(self, value: Any) -> bool:
        return isinstance(value, Ref)

    def is_actor(self, value: Any) -> bool:
        return isinstance(value, Actor)

    def is_done(self, ref: Any) -> bool:
        return True

    def name_of(self, error: BaseException) -> str:
        return str(error) if isinstance(error, Known) else type(error).__name__

    def die(self) -> None:
        raise Died

    def put(self, value: Any) -> Ref:
        return Ref(copy.deepcopy(value))

    def get(self, ref: Ref) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def wait(self, refs: list[Any], most: int, timeout: float | None) -> Any:
        return refs[:most], refs[most:]

    def values(self, args: Any) -> Any:
        """Arguments with the values of the references among them, or what these raise."""
        errors = [one.error for one in args if isinstance(one, Ref) and one.error is not None]
        if len({(self.name_of(error), error.args) for error in errors}) > 1:
            raise Ambiguous
        return [self.get(one) if isinstance(one, Ref) else one for one in args]

    def run(self, function: Callable[..., Any], args: Any) -> Ref:
        return made(lambda: function(*copy.deepcopy(self.values(args))))

    def submit(
        self,
        function: str,
        args: Any,
        returns: int = 1,
        crashes: int = 0,
        raises: int = 0,
        retries: int = 0,
        deep: bool = True,
        **how: Any,
    ) -> Any:
        options: dict[str, Any] = {} if deep else {"deep": False}
        if returns != 1:
            options = {"count": returns}
        run = r.FUNCTIONS[function if deep else "digest"]
        found = self.run(lambda *values: run(self, *values, **options), args)
        failed = any(isinstance(one, Ref) and one.error is not None for one in args)
        if crashes > retries and not failed:
            found = Ref(error=Known("WorkerCrashed"))
        elif crashes + raises > retries and not failed:
            found = Ref(error=r.Boom("attempt"))
        return found if returns == 1 else parts(found, returns)

    def nest(self, path: Any, body: Any, args: Any, actors: Any, returns: str, catches: bool, cpus: float) -> Ref:
        return self.run(lambda *values: r.run_frame(self, path, body, values, actors, returns, catches), args)

    def stream(self, count: int, fails: int | None, big: bool, take: int) -> tuple[list[Ref], Ref]:
        whole = Ref(count) if fails is None or fails >= count else Ref(error=r.Boom(fails))
        stops = count if fails is None else min(fails, count)
        found = [Ref(item) for item in r.items(stops, None, big)]
        return [*found, *([whole] if whole.error is not None else [])][:take], whole

    def make(self, kind: str, args: Any, name: str) -> Actor:
        actor = Actor(r.CELLS[kind], (self, *self.values(args)))
        if name:
            self.names[name] = actor
        return actor

    def make_mortal(self, restarts: int, retries: int) -> Actor:
        return Actor(r.Cell, (self, 1), restarts, retries)

    def find(self, name: str) -> Actor:
        actor = self.names[name]
        if actor.object is None:
            raise Ambiguous  # it may not have died yet
        return actor

    def kill(self, actor: Actor) -> None:
        actor.object = None
        actor.restarts = 0

    def ask(self, actor: Actor, method: str, args: Any, how: str) -> Any:
        try:
            found = actor.call(method, self.values(args))
        except Exception as error:
            if actor.object is None:
                raise Ambiguous from None
            found = Ref(error=error)
        if how == "block":
            return self.get(found)
        return parts(found, 2) if method == "two" else found

    def gated(self, one: p.Gated, cancels: dict[int, Any], path: Any, inside: Callable[[], None]) -> Any:
        refs: list[Ref] = []
        cancelled = Ref(error=CancelledError())

        def add(ref: Callable[[], Ref]) -> None:
            refs.append(cancelled if len(refs) in cancels else ref())

        inside()
        for at in range(len(one.gated)):
            add(lambda value=at: Ref(value))  # type: ignore[misc]
        for needs in one.needs:
            values = tuple(refs[need % len(refs)] for need in needs)
            add(lambda values=values: self.submit("digest", values))  # type: ignore[misc]
        cell = self.make("plain", (0,), "")
        for at in range(one.calls):
            x = at or refs[0]
            add(lambda x=x: self.ask(cell, "add", ("gate", x), "submit"))  # type: ignore[misc]
        return [r.outcome(self, ref) for ref in refs]

    def race(self, one: p.Race, force: bool) -> str:
        return "a race"

    def live(self, one: p.Life) -> Any:
        return "killed in haste" if one.hasty and "kill" in one.asks else r.live(self, one)


def parts(whole: Ref, count: int) -> list[Ref]:
    """What `num_returns` makes of a future."""
    if whole.error is not None:
        return [Ref(error=whole.error) for _ in range(count)]
    return [Ref(value) for value in whole.value]
