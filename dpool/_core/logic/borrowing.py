"""References that have come from other machines: when their homes must know, and when not any more.

```
 a message with references ─ Arrived ─► Hold (here) and AskBorrow (at the home of each that is not known yet)
                                           │ the homes answer: Borrowed
                                           ▼
                                        Clear: the sender may let go, an answer may leave
 the message is done with ─ Done ─► Release (here)
 nobody here holds it ── Freed ───► Return (to its home)
```

Each object has a home, the machine whose store counts all who hold it; another machine with holders of its own counts
there as one holder (it *borrows*), however many they are. Whoever passes a reference on keeps its own until the
receiver says Clear, which it says when the homes know it; so at home the count never touches zero while a reference is
under way, also if home, sender and receiver are three machines.

What is said to one home arrives in order, so a Return and a later AskBorrow of the same object cannot be confused.
When another machine becomes home (Moved), all is asked anew there, and what the old one still answers is to be ignored.

Pure; one thread. Invariants (`check`): what a waiting message waits for is asked for; what is borrowed and not held by
a message has not been said to be free since.

Source: Ray's "borrowers" (its ownership design, NSDI 2021) is the same idea with processes instead of machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dpool._core.logic import IllegalMove

if TYPE_CHECKING:
    from collections.abc import Callable


class Arrived(NamedTuple):
    """A message came, with references to these objects: (object, home) each. `token`: our name for it, new."""

    token: int
    refs: tuple[tuple[bytes, bytes], ...]


class Borrowed(NamedTuple):
    """Its home knows that we hold it."""

    obj: bytes


class Refused(NamedTuple):
    """Its home does not have it (any more): nothing is owed there. Whoever loads it is told that it is lost."""

    obj: bytes


class Done(NamedTuple):
    """The message is done with: whoever keeps its references here holds them by itself."""

    token: int


class Freed(NamedTuple):
    """Our store says that nobody here holds it."""

    obj: bytes


class HomeLost(NamedTuple):
    """The machine is gone, and what it counted with it."""

    home: bytes


class Moved(NamedTuple):
    """Another machine is home now of what this one was (see heirs.py), and does not know who borrows."""

    home: bytes


class Inherited(NamedTuple):
    """This machine is."""

    home: bytes


Event = Arrived | Borrowed | Refused | Done | Freed | HomeLost | Moved | Inherited


class Hold(NamedTuple):
    """Hold it here, in the gateway's name, once more."""

    obj: bytes


class Release(NamedTuple):
    """Hold it once less."""

    obj: bytes


class AskBorrow(NamedTuple):
    """Tell its home that this machine holds it; the answer is Borrowed, Refused or HomeLost."""

    home: bytes
    obj: bytes


class Return(NamedTuple):
    """Tell its home that this machine holds it no more."""

    home: bytes
    obj: bytes


class Clear(NamedTuple):
    """All homes know: the message's sender may let go."""

    token: int


Instruction = Hold | Release | AskBorrow | Return | Clear

ABSENT = "absent"
ASKED = "asked"
UNWANTED = "unwanted"
BORROWED = "borrowed"
LOST = "lost"

MOVES: dict[tuple[str, type[tuple[object, ...]]], str] = {
    (ABSENT, Arrived): ASKED,
    (ASKED, Arrived): ASKED,
    (UNWANTED, Arrived): ASKED,
    (BORROWED, Arrived): BORROWED,
    (LOST, Arrived): LOST,
    (ASKED, Borrowed): BORROWED,
    (UNWANTED, Borrowed): ABSENT,
    (ASKED, Refused): LOST,
    (UNWANTED, Refused): ABSENT,
    (ASKED, Freed): UNWANTED,
    (BORROWED, Freed): ABSENT,
    (LOST, Freed): ABSENT,
    (ASKED, HomeLost): LOST,
    (BORROWED, HomeLost): LOST,
    (LOST, HomeLost): LOST,
    (UNWANTED, HomeLost): ABSENT,
    # What the old home has, or would have, answered is void.
    (ASKED, Moved): ASKED,
    (BORROWED, Moved): ASKED,
    (LOST, Moved): ASKED,
    (UNWANTED, Moved): ABSENT,
    (ASKED, Inherited): ABSENT,
    (BORROWED, Inherited): ABSENT,
    (LOST, Inherited): ABSENT,
    (UNWANTED, Inherited): ABSENT,
}


class _Object:
    """One foreign object. `tokens`: the messages that hold it; `waiting`: of those, the ones that are not Clear."""

    __slots__ = ("home", "state", "tokens", "waiting")

    def __init__(self, home: bytes) -> None:
        self.home = home
        self.state = ABSENT
        self.tokens: dict[int, None] = {}
        self.waiting: dict[int, None] = {}


class _Message:
    """`waits`: objects whose homes have not answered."""

    __slots__ = ("refs", "waits")

    def __init__(self, refs: tuple[bytes, ...]) -> None:
        self.refs = refs
        self.waits: set[bytes] = set()


class Borrowing:
    """What one machine has borrowed; see the module.

    Args:
        here: the machine; of its own objects no home needs to be told.
    """

    def __init__(self, here: bytes) -> None:
        self.here = {here}
        self.objects: dict[bytes, _Object] = {}
        self.messages: dict[int, _Message] = {}
        self._handlers: dict[type[tuple[object, ...]], Callable[..., None]] = {
            Arrived: self._arrived,
            Borrowed: self._borrowed,
            Refused: self._refused,
            Done: self._done,
            Freed: self._freed,
            HomeLost: self._home_lost,
            Moved: self._moved,
            Inherited: self._inherited,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; returns what the role must do, in this order.

        Raises:
            IllegalMove: the event is not allowed now; nothing has changed.
        """
        out: list[Instruction] = []
        self._handlers[type(event)](event, out)
        return out

    def _arrived(self, event: Arrived, out: list[Instruction]) -> None:
        if event.token in self.messages:
            raise IllegalMove("known", "Arrived", f"message {event.token}")
        refs = dict(event.refs)
        message = self.messages[event.token] = _Message(tuple(refs))
        for obj, home in refs.items():
            out.append(Hold(obj))
            if home in self.here:
                continue
            known = self.objects.get(obj)
            if known is None:
                known = self.objects[obj] = _Object(home)
            known.tokens[event.token] = None
            if known.state == ABSENT:
                out.append(AskBorrow(home, obj))
            known.state = MOVES[known.state, Arrived]
            if known.state == ASKED:
                known.waiting[event.token] = None
                message.waits.add(obj)
        if not message.waits:
            out.append(Clear(event.token))

    def _borrowed(self, event: Borrowed, out: list[Instruction]) -> None:
        known = self._move(event.obj, Borrowed)
        if known.state == ABSENT:  # given back before it was got
            del self.objects[event.obj]
            out.append(Return(known.home, event.obj))
        else:
            self._settled(event.obj, known, out)

    def _refused(self, event: Refused, out: list[Instruction]) -> None:
        known = self._move(event.obj, Refused)
        if known.state == ABSENT:
            del self.objects[event.obj]
        else:
            self._settled(event.obj, known, out)

    def _settled(self, obj: bytes, known: _Object, out: list[Instruction]) -> None:
        for token in known.waiting:
            message = self.messages[token]
            message.waits.discard(obj)
            if not message.waits:
                out.append(Clear(token))
        known.waiting.clear()

    def _done(self, event: Done, out: list[Instruction]) -> None:
        message = self.messages.pop(event.token, None)
        if message is None:
            raise IllegalMove(ABSENT, "Done", f"message {event.token}")
        for obj in message.refs:
            known = self.objects.get(obj)
            if known is not None:
                known.tokens.pop(event.token, None)
                known.waiting.pop(event.token, None)
            out.append(Release(obj))

    def _freed(self, event: Freed, out: list[Instruction]) -> None:
        known = self.objects.get(event.obj)
        if known is None or known.tokens or known.state == UNWANTED:
            return  # one of ours; or it was said before the store heard of the latest message
        borrowed = known.state == BORROWED
        known.state = MOVES[known.state, Freed]
        if known.state == ABSENT:
            del self.objects[event.obj]
            if borrowed:
                out.append(Return(known.home, event.obj))

    def _home_lost(self, event: HomeLost, out: list[Instruction]) -> None:
        for obj, known in list(self.objects.items()):
            if known.home == event.home:
                known.state = MOVES[known.state, HomeLost]
                if known.state == ABSENT:
                    del self.objects[obj]
                else:
                    self._settled(obj, known, out)

    def _moved(self, event: Moved, out: list[Instruction]) -> None:
        for obj, known in list(self.objects.items()):
            if known.home == event.home:
                known.state = MOVES[known.state, Moved]
                if known.state == ABSENT:
                    del self.objects[obj]
                else:
                    out.append(AskBorrow(known.home, obj))

    def _inherited(self, event: Inherited, out: list[Instruction]) -> None:
        self.here.add(event.home)
        for obj, known in list(self.objects.items()):
            if known.home == event.home:
                known.state = MOVES[known.state, Inherited]
                self._settled(obj, known, out)
                del self.objects[obj]

    def _move(self, obj: bytes, cause: type[tuple[object, ...]]) -> _Object:
        known = self.objects.get(obj)
        state = MOVES.get((ABSENT if known is None else known.state, cause))
        if known is None or state is None:
            raise IllegalMove(ABSENT if known is None else known.state, cause.__name__, f"object {obj.hex()}")
        known.state = state
        return known

    def check(self) -> None:
        """Validate every invariant of the module; for tests and the simulator."""
        for obj, known in self.objects.items():
            assert known.state != ABSENT
            assert known.waiting.keys() <= known.tokens.keys()
            assert not known.waiting or known.state == ASKED, f"{obj.hex()} is waited for while {known.state}"
            assert known.state != UNWANTED or not known.tokens
            assert all(obj in self.messages[token].waits for token in known.waiting)
        for token, message in self.messages.items():
            for obj in message.waits:
                assert token in self.objects[obj].waiting
