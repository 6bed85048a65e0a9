"""Importing modules of a program that runs on another machine: a finder asks that machine.

```
 import helpers ─► Finder ── names of the program's directories? (once) ──────────────► gateway_modules.py there
                     │    ── digest of helpers? ──────────────────────────────────────►
                     │    ── its files, if no worker of this machine has had these ───►
                     └─► <session>/modules/helpers-<digest>/helpers.py ─► imported as from any directory
```

In workers of another machine than their program's, and in programs of `dpool submit`. The order of `sys.path` holds:
for a directory of the program it is the other machine that is asked, whatever lies at that place here, and all other
entries are looked through here. If this machine has the very same files at the same place (a shared file system, an
image), these are taken. A second finder, the last of all, asks again for what nobody has, since the program may have
written it just now, and says in the error where was looked.

A connection for each question: forks need no care. What was sent is kept by module_store.py.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from importlib.machinery import ModuleSpec, PathFinder
from time import monotonic
from typing import TYPE_CHECKING, Any

from dpool._core.module_store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

DIRECTORY = "modules"
"""In the session directory of the machine that imports."""
AGAIN_S = 5.0
"""A machine that did not answer is not asked again for so long."""
TRIES = 3
"""Files may change between the question for their digest and that for their content."""


class Unreachable(Exception):
    """The program's machine did not answer."""


def install(home: str, session: str, path: Sequence[str], cwd: str) -> None:
    """From now on modules of the program whose node is `home`, on another machine, can be imported here. `path`, `cwd`:
    its `sys.path` and working directory.
    """
    finder = Finder(home, session, path, cwd)
    at = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
    sys.meta_path.insert(at, finder)
    sys.meta_path.append(Last(finder))


def paths(theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """`sys.path` for a program from elsewhere: its own, and after that what this machine has installed, which may be at
    other places.
    """
    return [*theirs, *(entry for entry in ours if entry not in theirs)]


class Home:
    """The program's machine."""

    def __init__(self, home: str, session: str, path: list[str]) -> None:
        self._home = home
        self._session = session
        self._path = path
        self._silent_until = 0.0
        self._why = ""
        self.host = "the machine of the program"

    def ask(self, kind: str, entry: str = "", name: str = "", send: bool = False) -> tuple[dict[str, Any], bytes]:
        """See `gateway_modules.answered`.

        Raises:
            Unreachable: says why.
        """
        if monotonic() < self._silent_until:
            raise Unreachable(self._why)
        question = {"ask": kind, "path": self._path, "entry": entry, "name": name, "send": send}
        try:
            return self._ask(question)
        except (OSError, ValueError) as error:
            self._why = f"{type(error).__name__}: {error}"
            self._silent_until = monotonic() + AGAIN_S
            raise Unreachable(self._why) from error

    def _ask(self, question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        from dpool._core import far, module_wire

        fd = far.stream(self._session, self._home, os.path.join(self._home, module_wire.SOCKET))
        if fd is None:
            raise ConnectionRefusedError("it is not in this cluster")
        with socket.socket(fileno=fd) as sock:
            sock.settimeout(module_wire.DEADLINE_S)
            module_wire.send(sock, question)
            answer, packed = module_wire.receive_packed(sock, module_wire.MOST_ANSWER)
        if type(answer) is not dict:
            raise ValueError("its answer is malformed")
        return answer, packed


class Finder:
    """For top-level modules; what is in a package is found where the package is."""

    def __init__(self, home: str, session: str, path: Sequence[Any], cwd: str) -> None:
        self._cwd = cwd
        self.home = Home(home, session, [os.path.join(cwd, entry) for entry in path if isinstance(entry, str)])
        self._store = Store(os.path.join(session, DIRECTORY))
        self._names: dict[str, tuple[set[str], set[str]]] | None = None
        """Directory of the program → its modules, and directories in it that are no packages."""
        self._editable: dict[str, str] = {}
        """Installed there, but only as a link to where it is developed: name → directory."""
        self._all: set[str] = set()
        self._given: dict[str, ModuleSpec] = {}
        """What was found: whoever asks again whether a module can be imported need not wait for another machine."""
        self._busy: set[int] = set()
        """Threads that are asking: what they import for that is not the program's."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the import system asks."""
        me = threading.get_ident()
        if path is not None or me in self._busy:
            return None
        if target is None and fullname in sys.modules and fullname in self._given:
            return self._given[fullname]
        self._busy.add(me)
        try:
            if self._names is None:
                self.look()
        except Unreachable:  # said by `Last`, if nobody else has the module
            self._busy.discard(me)
            return None
        try:
            return self._found(fullname)
        except Unreachable as error:  # it is the program's: others that may be here are not meant
            raise _missing(fullname, f"{self.home.host}, which has it, cannot be asked for modules: {error}") from error
        finally:
            self._busy.discard(me)

    def find_anew(self, name: str) -> tuple[ModuleSpec | None, str]:
        """For `Last`: the program may have it by now; and if not, why it cannot be had."""
        me = threading.get_ident()
        if me in self._busy:
            return None, ""
        self._busy.add(me)
        try:
            installed = self.look(name if name.isidentifier() else "")
            spec = self._found(name)
            return spec, "" if spec is not None else _nowhere(self.home.host, installed)
        except Unreachable as error:
            return None, f"it is not installed here, and {self.home.host} cannot be asked for modules: {error}"
        finally:
            self._busy.discard(me)

    def invalidate_caches(self) -> None:
        """For `importlib.invalidate_caches`."""
        self._names = None

    def look(self, name: str = "") -> str:
        """Ask which names the program's directories have; where `name` is installed there is returned."""
        answer, _ = self.home.ask("names", name=name)
        self.home.host = answer["host"]
        names = {entry: (set(modules), set(spaces)) for entry, (modules, spaces) in answer["program"].items()}
        self._editable = answer["editable"]
        self._all = set(self._editable).union(*(some for both in names.values() for some in both))
        self._names = names
        return str(answer["installed"])

    def _found(self, name: str) -> ModuleSpec | None:
        spec = self._find(name) if name in self._all else None
        if spec is not None:
            self._given[name] = spec
        return spec

    def _find(self, name: str) -> ModuleSpec | None:
        """In the order of `sys.path`, as PathFinder."""
        known = self._names or {}
        spaces: list[str] = []
        ours = False
        given: Any
        for given in list(sys.path):
            if not isinstance(given, str):
                continue
            entry = os.path.join(self._cwd, given)
            modules, directories = known.get(entry, ((), ()))
            if name in modules or name in directories:
                place = self._place(entry, name)
                if place is None:
                    continue
                if name in modules:
                    return PathFinder.find_spec(name, [place])
                spaces.append(os.path.join(place, name))
                ours = True
            elif entry not in known:
                spec = PathFinder.find_spec(name, [given])
                if spec is not None and spec.loader is not None:
                    return spec
                spaces += (spec.submodule_search_locations or ()) if spec is not None else ()
        if name in self._editable:
            place = self._place(self._editable[name], name)
            return None if place is None else PathFinder.find_spec(name, [place])
        if not ours:
            return None
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = spaces
        return spec

    def _place(self, entry: str, name: str) -> str | None:
        """The directory here that has what the program's directory `entry` has under this name; None: that has it no
        more.

        Raises:
            ModuleNotFoundError: it cannot be sent.
        """
        for _ in range(TRIES):
            answer, _ = self.home.ask("module", entry, name)
            if "missing" in answer:
                return None
            if "refused" in answer:
                if _is_there(entry, name):
                    return entry
                raise _missing(name, f"it is not sent from {self.home.host}: {answer['refused']}")
            if self._is_here(entry, name, answer):
                return entry
            place = self._store.get(name, answer["digest"]) or self._fetch(entry, name, answer["digest"])
            if place is not None:
                return place
        raise _missing(name, f"its files on {self.home.host} change all the time")

    def _is_here(self, entry: str, name: str, theirs: dict[str, Any]) -> bool:
        """Whether the same files lie at the same place of this machine."""
        if not os.path.isdir(entry):
            return False
        from dpool._core import shipping

        try:
            found = shipping.parts(entry, name, [*(self._names or ()), entry])
            if found is None:
                return False
            same = shipping.stamp(entry, found.files) == theirs["stamp"]
            return same or bool(shipping.Contents().digest(entry, found.files) == theirs["digest"])
        except (OSError, shipping.Unsendable):
            return False

    def _fetch(self, entry: str, name: str, digest: str) -> str | None:
        """Have it sent, unless another worker does that just now; None: it is another one meanwhile."""
        with self._store.alone(f"{name}-{digest}"):
            place = self._store.get(name, digest)
            if place is not None:
                return place
            answer, packed = self.home.ask("module", entry, name, send=True)
            if "digest" not in answer:
                return None
            place = self._store.add(name, answer["digest"], packed)
        if answer["left_out"]:
            self._warn(name, answer["left_out"])
        return place if answer["digest"] == digest else None

    def _warn(self, name: str, left_out: list[str]) -> None:
        some = ", ".join(left_out[:5]) + f" and {len(left_out) - 5} more" * (len(left_out) > 5)
        sys.stderr.write(
            f"dpool: of the package {name!r} not all was sent from {self.home.host} to {_here()}: {some}\n"
        )


def _is_there(entry: str, name: str) -> bool:
    from dpool._core import shipping

    return bool(shipping.named(entry, name))


class Last:
    """The finder after all others."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the import system asks."""
        if path is not None:
            return None
        spec, why = self._finder.find_anew(fullname)
        if spec is None and why and sys.meta_path[-1] is self and _by_statement():
            raise _missing(fullname, why)
        return spec


def _by_statement() -> bool:
    """Whether a module is imported; others (`importlib.util.find_spec`) only ask whether there is one."""
    frame: Any = sys._getframe(2)
    for _ in range(3):  # one more than it is: somebody else's finder may have asked us
        if frame is not None and frame.f_code.co_name == "_find_and_load_unlocked":
            return True
        frame = frame and frame.f_back
    return False


def _nowhere(host: str, installed: str) -> str:
    if installed:
        return (
            f"on {host} it is installed ({installed}), but what is installed is not sent: install it on {_here()}, too"
        )
    advice = f"install it on {_here()}, or put it beside the script"
    return f"it is not installed here, and the program has none on {host}: {advice}"


def _missing(name: str, why: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r} on {_here()}: {why}", name=name)


def _here() -> str:
    return os.uname().nodename
