"""The globals of `__main__` that submitted functions need, each in its present version.

```
 function ──uses──► global ──uses──► global …      one node per name; a node keeps its definition while its plan holds
                       └──loads─► global           "loads": needed to load it, so a replaced one makes it load again
```

The owner's lock protects all of it.
"""

from __future__ import annotations

import sys
from itertools import count
from typing import TYPE_CHECKING, Any

from dpool._core import serialize_rebuild as rebuild
from dpool._core.serialize_names import MISSING, MODULE_FACTS, plain, value_index
from dpool._core.serialize_pickler import CapturePickler
from dpool._core.serialize_watch import Plan, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

numbers = count(1)
"""Numbers of definitions and exports: unique in this process, increasing."""


class Definition:
    """One version of one global of the submitter's `__main__`; an empty blob says that it was deleted."""

    __slots__ = ("blob", "keep", "name", "number")

    def __init__(self, number: int, name: str, blob: bytes, keep: tuple[Any, ...] = ()) -> None:
        self.number = number
        self.name = name
        self.blob = blob
        self.keep = keep
        """What it refers to in the object store."""

    def __repr__(self) -> str:
        return f"Definition({self.number}, {self.name!r})"


class Node:
    """A global of `__main__` as it was last pickled."""

    __slots__ = ("definition", "keep", "loaded", "loads", "name", "needs", "origin", "plan", "value")

    def __init__(self, name: str) -> None:
        self.name = name
        self.definition = Definition(0, name, b"")
        self.keep: tuple[Any, ...] = ()
        self.value: Any = None
        """Kept for functions and classes only."""
        self.plan = Plan()
        self.needs: tuple[str, ...] = ()
        """All the globals that it refers to."""
        self.loads: tuple[str, ...] = ()
        """Those of them that it needs to be loaded."""
        self.loaded: dict[str, int] | None = None
        """The versions of those; None while the node is new."""
        self.origin: int | None = None
        """Of a class: the number of its first definition. Its later ones update it where it is."""

    @property
    def version(self) -> int:
        """What must be the same for objects that were loaded with it to be up to date."""
        return self.definition.number if self.origin is None else self.origin

    def unchanged(self) -> bool:
        """Whether pickling it again gives the same bytes."""
        main = rebuild.main_dict()
        if self.name not in main:
            return False
        return CapturePickler(value_index(main)).define(self.name, main[self.name]) == self.definition.blob


class Needs:
    """What one function, with its arguments, needs of `__main__`."""

    __slots__ = ("names", "plan", "requires")

    def __init__(self, requires: tuple[Definition, ...], plan: Plan, names: frozenset[str]) -> None:
        self.requires = requires
        """In the order in which they are loaded best."""
        self.plan = plan
        """What must hold for `requires` to be true."""
        self.names = names
        """The globals, absent ones included, that were looked at."""


class Globals:
    """The nodes of one submitter.

    Args:
        stored: puts a large value into the object store; the pickle that stands for it, and what must live as long as
            that. None for what travels as it is.
    """

    def __init__(self, stored: Callable[[Any], tuple[bytes, tuple[Any, ...]] | None]) -> None:
        self._stored = stored
        self.main: dict[str, Any] = {}
        self.outdated: list[Any] = []
        """Functions and classes that a name of `__main__` no longer means; the owner drains it."""
        self._nodes: dict[str, Node] = {}
        self._written: set[str] = set()

    def meet_main(self) -> bool:
        """Look at this process' present `__main__`; True if it is another one than before."""
        main = rebuild.main_dict()
        if main is self.main:
            return False
        self.main = main
        self._nodes.clear()
        self._written.clear()
        return True

    def note_writes(self, names: Iterable[str]) -> None:
        """Functions assign these names: each process may make its own value."""
        self._written.update(names)

    def needs(self, roots: Iterable[str], label: str) -> Needs:
        """What the globals `roots` need, themselves included.

        Raises:
            PicklingError, TypeError, …: a global does not pickle; the text names it and `label`.
        """
        plan, index = Plan(), _Index()
        nodes: dict[str, Node] = {}
        seen = set(MODULE_FACTS)
        path: list[tuple[Node | None, Iterator[str]]] = [(None, iter(roots))]
        while path:  # depth first: what a global needs comes before it, so that code which runs while loading finds it
            node, waiting = path[-1]
            name = next((name for name in waiting if name not in seen), None)
            if name is None:
                path.pop()
                if node is not None:
                    nodes[node.name] = node
                continue
            seen.add(name)
            node = self._node(name, label, index)
            if node is None:
                plan.lookups.append((self.main, name, self.main.get(name, MISSING)))
            else:
                path.append((node, iter(node.needs)))
        _renew_dependents(nodes)
        for node in nodes.values():
            plan.extend(node.plan)
        return Needs(tuple(node.definition for node in nodes.values()), plan, frozenset(seen))

    def _node(self, name: str, label: str, index: _Index) -> Node | None:
        """The up-to-date node of a global; None if there is nothing to send for it."""
        old = self._nodes.get(name)
        if old is not None and old.plan.holds():
            return old
        value = self.main.get(name, MISSING)
        if value is MISSING and old is None:
            return None
        node, blob = Node(name), b""
        if value is MISSING:
            node.plan.lookups.append((self.main, name, MISSING))
        else:
            try:
                blob = self._pickle(node, value, index.value)
            except Exception as error:
                if name in self._written:
                    return None
                raise named(error, f"the global {name!r} of __main__, which {label!r} uses") from error.__cause__
        if old is not None and old.definition.blob == blob:
            node.definition, node.loaded = old.definition, old.loaded
        else:
            node.definition = Definition(next(numbers), name, blob, node.keep)
        if issubclass(type(value), type):
            known = old is not None and old.value is value
            node.origin = old.origin if known and old is not None else node.definition.number
        if old is not None and old.value is not node.value:
            self.outdated.append(old.value)
        self._nodes[name] = node
        return node

    def _pickle(self, node: Node, value: Any, index: dict[int, str]) -> bytes:
        name = node.name
        pickler = CapturePickler(index)
        stored = self._stored(value)
        if stored is not None:
            blob, node.keep = stored
        else:
            blob = pickler.define(name, value)
            node.keep = tuple(pickler.keep)
        self.note_writes(pickler.writes)
        node.loads = tuple(pickler.loads)
        node.needs = (*pickler.loads, *pickler.uses)
        if issubclass(type(value), type) or hasattr(type(value), "__get__"):
            node.value = value
        watcher = Watcher(index, name)
        if not pickler.loads and plain(value, depth=0) and type(value) in (list, dict, set):
            watcher.watch_pickle(self.main, name)
        else:
            watcher.watch_global(self.main, name)
        node.plan = watcher.plan
        node.plan.lookups += [(self.main, needed, there) for needed, there in pickler.loads.items()]
        if not watcher.steady:
            node.plan.volatile.append(node)
        return blob


class _Index:
    """`value_index`, made when it is first needed."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[int, str] | None = None

    @property
    def value(self) -> dict[int, str]:
        if self._made is None:
            self._made = value_index(rebuild.main_dict())
        return self._made


def _renew_dependents(nodes: dict[str, Node]) -> None:
    """Give a new number to what was loaded with a value in it that has since been replaced."""
    changed = {name for name, node in nodes.items() if node.loaded is None}
    stale: set[str] = set()
    grown = True
    while grown:
        grown = False
        for name, node in nodes.items():
            if node.loaded is not None and name not in stale and _has_outdated(node, node.loaded, nodes, changed):
                stale.add(name)
                changed.add(name)
                grown = True
    for name in stale:
        before = nodes[name].definition
        nodes[name].definition = Definition(next(numbers), name, before.blob, before.keep)
    for node in nodes.values():
        node.loaded = {name: nodes[name].version for name in node.loads if name in nodes}


def _has_outdated(node: Node, loaded: dict[str, int], nodes: dict[str, Node], changed: set[str]) -> bool:
    for name in node.loads:
        other = nodes.get(name)
        if other is not None and (loaded.get(name) != other.version or (name in changed and other.origin is None)):
            return True
    return False


def named(error: Exception, what: str) -> Exception:
    """The same error, whose text says what could not be pickled."""
    builtin = type(error).__module__ in ("builtins", "_pickle", "pickle")
    if builtin and len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]} (while pickling {what})",)
    elif sys.version_info >= (3, 11):
        error.add_note(f"while pickling {what}")
    return error
