"""Programs as data: what a random program of tasks, references and actors can consist of.

```
 Program ─► the driver's statements, a frame ─┬ Call   ─► a task: digest, array, several, …
                                              ├ Nested ─► a task that is a frame of its own
                                              └ … actors, wait, streams, gates, cancels, crashes
```

A frame has values, references and actors; a statement names them by number (modulo how many there are, so that each
program is valid, and smaller ones as well), and adds what comes of it. `running.py` does what statements say, in a
*world* of `worlds.py`. `repr` of a program is Python that makes it again.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Arg(NamedTuple):
    """`how`: a "value"; a "ref", for which its value arrives; one "inside" a list, which arrives as it is."""

    how: str
    number: int


class Put(NamedTuple):
    """Store a value."""

    value: int


class Call(NamedTuple):
    """A task that calls `FUNCTIONS[function]`. `crashes`: so many attempts kill their worker, `raises`: raise (and may
    be made again as well). `returns`: num_returns, for "several".
    """

    function: str
    args: tuple[Arg, ...]
    cpus: float = 1
    licences: int = 0
    returns: int = 1
    crashes: int = 0
    raises: int = 0
    retries: int = 0


class Nested(NamedTuple):
    """A task that is a frame: it gets arguments and actors, and returns its log, or its references and actors.
    `catches`: a statement that raises does not end it.
    """

    body: tuple[Any, ...]
    args: tuple[Arg, ...] = ()
    actors: tuple[int, ...] = ()
    cpus: float = 1
    returns: str = "log"
    catches: bool = False


class Get(NamedTuple):
    """Wait for one reference; its value is a new one of the frame. What it contains is the frame's as well."""

    ref: int


class Wait(NamedTuple):
    """`wait` for some of the references; `timeout` None or 0."""

    refs: tuple[int, ...]
    most: int
    timeout: float | None = None


class WaitLoop(NamedTuple):
    """Take them as they come, some at a time, until none is left."""

    refs: tuple[int, ...]
    step: int = 1


class Stream(NamedTuple):
    """A generator task with so many items, of which `take` are taken; it raises after `fails` ones."""

    items: int
    take: int
    fails: int | None = None
    big: bool = False


class Make(NamedTuple):
    """An actor. `kind`: "plain", "threads", "async". `friend`: an older actor, which it can call; -1: none."""

    kind: str
    start: Arg
    fails: bool = False
    named: bool = False
    friend: int = -1


class Ask(NamedTuple):
    """A call of an actor. `method`: one of "add", "two", "relay" (which adds to its friend), "frame". `how`: "submit";
    "block"; "name": found by its name, if it has one.
    """

    actor: int
    method: str
    arg: Arg
    how: str = "submit"
    body: tuple[Any, ...] = ()


class Life(NamedTuple):
    """An actor of its own that is asked things in a row: "add", "fail", "crash", "kill"; then everything is awaited.
    `hasty`: it is killed while calls are under way.
    """

    asks: tuple[str, ...]
    restarts: int = 0
    retries: int = 0
    hasty: bool = False


class Gated(NamedTuple):
    """Tasks that wait for a gate, tasks that need them (numbers of earlier ones), and calls of an actor, the first of
    which needs the first task. While the gate is shut `inside` is run, and some are cancelled; then it is opened.
    """

    gated: tuple[bool, ...]
    """Whether it waits in a child of its own."""
    needs: tuple[tuple[int, ...], ...] = ()
    calls: int = 0
    inside: tuple[Any, ...] = ()
    cancels: tuple[tuple[int, bool, bool], ...] = ()
    """(number, force, recursive)"""


class Race(NamedTuple):
    """Tasks of which some are cancelled at once: those have their value or are cancelled, the others have theirs."""

    tasks: int
    cancels: tuple[int, ...]
    force: bool = False


class Raise(NamedTuple):
    """Raise."""

    value: int


class Program(NamedTuple):
    """What the driver runs. `crashes`: processes may die; references then do not outlive the frame that made them,
    since they end with their owner.
    """

    body: tuple[Any, ...]
    crashes: bool = False
