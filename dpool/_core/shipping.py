"""Modules of a program on their way to other machines: which files they are, packed and unpacked.

```
 a directory of sys.path ── listing ──► names ── parts ──► files of one of them ── pack ──► bytes ── unpack ──► files
```

What is sent is one top-level name of one directory: a module's file, or a package with all that is in it, data too if
it is small. Left out are hidden files and directories, virtual environments, `__pycache__`, `node_modules`, and what a
link has outside of the program's directories. Nothing else than regular files is made when it is unpacked, below the
directory that is given. No thread, no socket: used on both sides.
"""

from __future__ import annotations

import ast
import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from time import time
from typing import NamedTuple

MOST_BYTES = 32 << 20
MOST_FILES = 10_000
"""Of one module or package; data counts, too, but is left out where it would be more."""
DATA_BYTES = 1 << 20
"""A data file in a package that is larger is left out."""
MOST_SEEN = 100_000
"""Directory entries that are looked at for one package."""
SETTLED_S = 2.0
"""A file that was changed longer ago than this does not change without its time being another one."""
SUFFIXES = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)
"""In the order in which Python looks for them."""
_NOT_OURS = frozenset(("__pycache__", "node_modules"))
_INSTALLED = frozenset(("site-packages", "dist-packages", "lib-dynload"))
_FINDER = re.compile(r"__editable___.*_finder\.py")
_MAPPING = re.compile(r"^MAPPING\b[^=\n]*= (\{.*\})$", re.MULTILINE)
_OWN = "dpool"
"""Each machine has its own."""


class Unsendable(Exception):
    """It is there, but is not sent; says why."""


class Names(NamedTuple):
    """What can be imported from a directory."""

    modules: list[str]
    """Modules and packages."""
    spaces: list[str]
    """Directories without `__init__.py`: they count where no other directory has a module of that name."""


class Parts(NamedTuple):
    """The files of a module or package, in order, by their paths from its directory; and what is left out, and why."""

    files: list[str]
    left_out: list[str]


def is_installed(entry: str) -> bool:
    """Whether an entry of `sys.path` belongs to the interpreter, or is where packages are installed."""
    if not _INSTALLED.isdisjoint(os.path.normpath(entry).split(os.sep)):
        return True
    base = os.path.basename(entry)
    if base.startswith("python3") and base.endswith(".zip"):
        return True
    return all(os.path.isfile(os.path.join(entry, name)) for name in ("os.py", "site.py", "importlib/__init__.py"))


def listing(entry: str) -> Names | None:
    """The top-level names in a directory; None if it is none."""
    files: set[str] = set()
    packages: set[str] = set()
    spaces: set[str] = set()
    try:
        with os.scandir(entry) as found:
            for one in found:
                if one.is_dir():
                    if "." not in one.name and not _is_left(one.path):
                        (packages if _is_package(one.path) else spaces).add(one.name)
                elif suffix := _suffix(one.name):
                    files.add(one.name[: -len(suffix)])
    except OSError:
        return None
    modules = {name for name in files | packages if name and "." not in name} - {_OWN}
    return Names(sorted(modules), sorted(spaces - modules - {_OWN}))


def editable(entry: str) -> dict[str, str]:
    """Packages that were installed into a directory as links to where they are developed, as setuptools does it (others
    add a line to `sys.path`): name → the directory over there.
    """
    try:
        files = [os.path.join(entry, name) for name in os.listdir(entry) if _FINDER.fullmatch(name)]
    except OSError:
        return {}
    found: dict[str, str] = {}
    for file in files:
        for name, at in _mapping(file).items():
            if os.path.basename(at) == name:
                found[name] = os.path.dirname(at)
    return found


def _mapping(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            mapping = _MAPPING.search(file.read())
        found = ast.literal_eval(mapping[1]) if mapping is not None else {}
    except (OSError, ValueError, SyntaxError):  # of a kind that is not known here
        return {}
    return {name: at for name, at in found.items() if type(name) is str is type(at)} if type(found) is dict else {}


def _suffix(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def _is_package(directory: str) -> bool:
    return any(os.path.isfile(os.path.join(directory, f"__init__{suffix}")) for suffix in SUFFIXES)


def _is_left(directory: str) -> bool:
    name = os.path.basename(directory)
    return name.startswith(".") or name in _NOT_OURS or os.path.isfile(os.path.join(directory, "pyvenv.cfg"))


def named(entry: str, name: str) -> str:
    """The file or directory that `import name` would take from `entry`; empty: there is none."""
    base = os.path.join(entry, name)
    is_dir = os.path.isdir(base)
    if is_dir and _is_package(base):
        return name
    for suffix in SUFFIXES:
        if os.path.isfile(base + suffix):
            return name + suffix
    return name if is_dir else ""


def parts(entry: str, name: str, roots: Iterable[str]) -> Parts | None:
    """What `name` in the directory `entry` consists of; `roots`: the program's directories. None: it is not there.

    Raises:
        Unsendable: it is too large, or not in the program's directories.
    """
    found = named(entry, name)
    if not found:
        return None
    walk = _Walk(entry, [os.path.join(os.path.realpath(root), "") for root in roots])
    top = os.path.join(entry, found)
    if not walk.is_inside(top):
        raise Unsendable(f"{top} is a link to {os.path.realpath(top)}, which is in no directory of the program")
    if os.path.isdir(top):
        walk.directory(found)
    else:
        walk.code.append((os.path.getsize(top), found))
    return walk.parts(top)


class _Walk:
    """What was found in a package."""

    def __init__(self, entry: str, roots: list[str]) -> None:
        self._entry = entry
        self._roots = roots
        self._seen = 0
        self._real: set[str] = set()
        self.code: list[tuple[int, str]] = []
        self._data: list[tuple[int, str]] = []
        self._left: list[str] = []

    def is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return any(os.path.join(real, "").startswith(root) for root in self._roots)

    def directory(self, top: str) -> None:
        """Look at all that is in it."""
        waiting = [top]
        while waiting:
            at = waiting.pop()
            full = os.path.join(self._entry, at)
            real = os.path.realpath(full)
            if real in self._real:  # links in a circle
                continue
            self._real.add(real)
            with os.scandir(full) as entries:
                for one in entries:
                    self._seen += 1
                    if self._seen > MOST_SEEN:
                        raise Unsendable(f"{os.path.join(self._entry, top)} has more than {MOST_SEEN:,} files")
                    self._entry_of(os.path.join(at, one.name), one, waiting)

    def _entry_of(self, at: str, one: os.DirEntry[str], waiting: list[str]) -> None:
        if one.name.startswith("."):
            return
        if one.is_symlink() and not self.is_inside(one.path):
            self._left.append(f"{at} (a link out of the program's directories)")
        elif one.is_dir():
            if not _is_left(one.path):
                waiting.append(at)
        elif one.is_file():
            size = one.stat().st_size
            if _suffix(one.name):
                self.code.append((size, at))
            elif size > DATA_BYTES:
                self._left.append(f"{at} ({_size(size)})")
            else:
                self._data.append((size, at))

    def parts(self, top: str) -> Parts:
        """What of it is sent."""
        count, total = len(self.code), sum(size for size, _ in self.code)
        if count > MOST_FILES or total > MOST_BYTES:
            largest = ", ".join(f"{at} ({_size(size)})" for size, at in sorted(self.code, reverse=True)[:3])
            raise Unsendable(
                f"{top} has {count:,} modules of {_size(total)}, and at most {MOST_FILES:,} of {_size(MOST_BYTES)} are "
                f"sent; the largest are {largest}"
            )
        files = [at for _, at in self.code]
        for size, at in sorted(self._data):
            count, total = count + 1, total + size
            if count > MOST_FILES or total > MOST_BYTES:
                self._left.append(f"{at} ({_size(size)})")
            else:
                files.append(at)
        return Parts(sorted(files), sorted(self._left))


def _size(length: int) -> str:
    return f"{length / (1 << 20):.1f} MB" if length >= 1 << 20 else f"{length / 1024:.1f} kB"


# -- contents


class Contents:
    """Hashes of files, as long as these do not change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], bytes]] = {}

    def digest(self, entry: str, files: Sequence[str]) -> str:
        """Of all of them, with their names."""
        return _digest((at, self._of(os.path.join(entry, at))) for at in files)

    def _of(self, path: str) -> bytes:
        info = os.stat(path)
        now = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_mode)
        known = self._known.get(path)
        if known is not None and known[0] == now:
            return known[1]
        found = _hash(_read(path), bool(info.st_mode & 0o100))
        if time() - info.st_mtime > SETTLED_S:
            if len(self._known) > 2 * MOST_FILES:
                self._known.clear()
            self._known[path] = now, found
        return found


def stamp(entry: str, files: Sequence[str]) -> str:
    """Of the lengths and times of files: if these are the same, so are the files, and none need be read."""
    found = blake2b(digest_size=16)
    for at in files:
        info = os.stat(os.path.join(entry, at))
        found.update(os.fsencode(at) + b"\0%d,%d;" % (info.st_size, info.st_mtime_ns))
    return found.hexdigest()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MOST_BYTES + 1)


def _hash(content: bytes, runs: bool) -> bytes:
    return blake2b(content, digest_size=16, person=b"runs" * runs).digest()


def _digest(hashes: Iterable[tuple[str, bytes]]) -> str:
    found = blake2b(digest_size=16)
    for at, one in hashes:
        found.update(os.fsencode(at) + b"\0" + one)
    return found.hexdigest()


def pack(entry: str, files: Sequence[str]) -> tuple[str, bytes]:
    """The digest of the files, and all of them in one piece."""
    hashes, heads, contents = [], [], []
    for at in files:
        path = os.path.join(entry, at)
        runs, content = bool(os.stat(path).st_mode & 0o100), _read(path)
        hashes.append((at, _hash(content, runs)))
        heads.append((at, len(content), runs))
        contents.append(content)
    if sum(map(len, contents)) > MOST_BYTES:
        raise Unsendable(f"{entry} changes, and its files grow, while they are read")
    head = json.dumps(heads).encode()
    return _digest(hashes), zlib.compress(b"".join((len(head).to_bytes(4, "big"), head, *contents)), 1)


def unpack(data: bytes, directory: str) -> None:
    """Make the files of a `pack` in a directory of ours.

    Raises:
        ValueError: it is malformed, or a path in it would lead out of the directory.
    """
    inflate = zlib.decompressobj()
    most = MOST_BYTES + MOST_FILES * 1024
    try:
        raw = memoryview(inflate.decompress(data, most))
    except zlib.error as error:
        raise ValueError(f"packed modules are malformed: {error}") from error
    if not inflate.eof or len(raw) < 4:
        raise ValueError("packed modules are too large, or not complete")
    at = 4 + int.from_bytes(raw[:4], "big")
    heads = json.loads(bytes(raw[4:at]))
    for path, length, runs in heads:
        if not _is_plain(path) or type(length) is not int or not 0 <= length <= len(raw) - at:
            raise ValueError(f"packed modules have a file {path!r} of {length!r} bytes")
        full = os.path.join(directory, path)
        os.makedirs(os.path.dirname(full), 0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(full, flags, 0o700 if runs else 0o600), "wb") as file:
            file.write(raw[at : at + length])
        at += length


def _is_plain(path: object) -> bool:
    """A relative path that leads nowhere but down."""
    return type(path) is str and "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))
