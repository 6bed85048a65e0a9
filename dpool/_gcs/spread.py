"""One control store on several servers: each key has its place.

```
 commands ─► indices that are filled ─► all else ─► indices that are emptied     (each step: all servers at a time)
```

A key's place is decided by its hash tag (the part in braces, or all of it), as in Redis Cluster. Commands for one
server keep their order. Between servers an index is written before the rows that it names, and emptied after them, so
whatever happens in between nothing is forgotten; if a batch both fills and empties the same index its order is kept in
full, one server after the other.

Pure but for the links that it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Command = tuple[Any, ...]
FILL = frozenset(("SADD",))
EMPTY = frozenset(("SREM", "HDEL"))


class Link(Protocol):
    """A connection to a server; see `resp.SocketLink`."""

    @property
    def connections(self) -> int:
        """How often it has connected."""

    def execute(self, commands: Sequence[Command]) -> list[Any]:
        """The commands' answers, in one go."""

    def servers(self) -> list[Link]:
        """A link to each server that has keys."""

    def close(self) -> None:
        """Close it."""


def key_of(command: Command) -> bytes:
    """The one key that a command touches."""
    key = command[3] if command[0] == "EVAL" else command[1]
    return key if isinstance(key, bytes) else str(key).encode()


def tag_of(key: bytes) -> bytes:
    """What decides about the place of a key."""
    begin = key.find(b"{") + 1
    end = key.find(b"}", begin)
    return key[begin:end] if 0 < begin < end else key


class SpreadLink:
    """The servers as one; `links` must be the same, in the same order, for everybody who uses them."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = list(links)

    @property
    def connections(self) -> int:
        """How often it has connected, to whichever."""
        return sum(link.connections for link in self._links)

    def execute(self, commands: Sequence[Command]) -> list[Any]:
        """See `resp.SocketLink.execute`."""
        answers: list[Any] = [None] * len(commands)
        for step in steps(commands, self._place):
            for place, numbers in step.items():
                found = self._links[place].execute([commands[number] for number in numbers])
                for number, answer in zip(numbers, found, strict=True):
                    answers[number] = answer
        return answers

    def _place(self, command: Command) -> int:
        return crc32(tag_of(key_of(command))) % len(self._links)

    def servers(self) -> list[Link]:
        """A link to each server that has keys."""
        return [server for link in self._links for server in link.servers()]

    def close(self) -> None:
        """Close all connections."""
        for link in self._links:
            link.close()


def steps(commands: Sequence[Command], place_of: Callable[[Command], Any]) -> Iterator[dict[Any, list[int]]]:
    """What can be sent to all servers at a time: place → numbers of commands, in order."""
    places = [place_of(command) for command in commands]
    if len(set(places)) <= 1:
        numbers = [list(range(len(commands)))]
    elif _conflict(commands):
        numbers = _runs(places)
    else:
        kinds = [0 if command[0] in FILL else 2 if command[0] in EMPTY else 1 for command in commands]
        numbers = [[number for number, kind in enumerate(kinds) if kind == wanted] for wanted in range(3)]
    for group in numbers:
        step: dict[Any, list[int]] = {}
        for number in group:
            step.setdefault(places[number], []).append(number)
        if step:
            yield step


def _conflict(commands: Sequence[Command]) -> bool:
    """Whether a key would be touched in another order."""
    seen: dict[bytes, int] = {}
    for command in commands:
        kind = 0 if command[0] in FILL else 2 if command[0] in EMPTY else 1
        if seen.setdefault(key_of(command), kind) > kind:
            return True
        seen[key_of(command)] = kind
    return False


def _runs(places: Sequence[Any]) -> list[list[int]]:
    """Commands that follow each other to the same server."""
    runs: list[list[int]] = []
    for number, place in enumerate(places):
        if runs and places[runs[-1][0]] == place:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
