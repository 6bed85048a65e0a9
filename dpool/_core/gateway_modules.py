"""The gateway's answers to workers on other machines that import modules of programs of this one.

```
 worker ─ Finder ─► gateway there ═ a tunnel ═► gateway here ─► modules.sock ─► Modules ─► a thread: reads files
        ◄─────────────────── names, digests, packed files ◄──────────────────────────────────┘
```

One question per connection, in JSON; the answer is JSON, too, and the packed files may follow. Whoever asks says in
which directories his program looks: he runs programs as our user anyway, wherever he is. Directories where packages are
installed are not listed, and nothing is sent from them.

Threads: the gateway's loop accepts; up to four others, made when they are needed, answer. They only read files.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from dpool._core import shipping
from dpool._core.module_wire import DEADLINE_S, MOST_QUESTION, SOCKET, receive, send

MOST_THREADS = 4
IDLE_S = 10.0
"""A thread that has had nothing to do for so long ends."""


class Modules:
    """See the module."""

    def __init__(self, host: str, session: str, on: Callable[..., None], log: Callable[..., None]) -> None:
        self._log = log
        self._host = host
        self._contents = shipping.Contents()
        self._waiting: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._busy = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        path = os.path.join(session, SOCKET)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(128)
        on(self._listener.fileno(), self._accept)

    def _accept(self, mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            sock.close()
            return
        with self._lock:
            self._busy += 1
            wanted = self._busy > self._threads < MOST_THREADS
            self._threads += wanted
        if wanted:
            self._start_thread()
        self._waiting.put(sock)

    def close(self) -> None:
        """Nobody is heard any more."""
        self._listener.close()

    def _start_thread(self) -> None:
        """Signals are the loop's."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._serve, name="dpool-modules", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _serve(self) -> None:
        while True:
            try:
                sock = self._waiting.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._busy < self._threads:
                        self._threads -= 1
                        return
                continue
            with sock:
                try:
                    sock.settimeout(DEADLINE_S)
                    question = _question(receive(sock, MOST_QUESTION))
                    answer, packed = answered(question, self._host, self._contents)
                    send(sock, answer, packed)
                except (OSError, ValueError) as error:
                    self._log("modules.not_answered", error=error)
            with self._lock:
                self._busy -= 1


def _question(found: Any) -> dict[str, Any]:
    """Checked."""
    kinds = {"ask": str, "path": list, "entry": str, "name": str, "send": bool}
    if type(found) is not dict or any(type(found.get(name)) is not kind for name, kind in kinds.items()):
        raise ValueError("the question is malformed")
    name = found["name"]
    if not all(type(entry) is str for entry in found["path"]) or name[:1] == "." or "/" in name or "\0" in name:
        raise ValueError("the question is malformed")
    return found


def answered(question: dict[str, Any], host: str, contents: shipping.Contents) -> tuple[dict[str, Any], bytes]:
    """The answer to `names` (what can be imported from the directories of `path`, and where `name` is installed) or to
    `module` (`name` of the directory `entry`): its digest and, with `send`, its files, packed.
    """
    if question["ask"] == "names":
        return _names(question, host), b""
    roots = [entry for entry in question["path"] if not shipping.is_installed(entry)]
    if question["entry"] not in roots and question["entry"] not in _editable(question["path"]).values():
        return {"missing": True}, b""
    try:
        found = shipping.parts(question["entry"], question["name"], [*roots, question["entry"]])
        if found is None:
            return {"missing": True}, b""
        packed, stamp = b"", shipping.stamp(question["entry"], found.files)
        if question["send"]:
            digest, packed = shipping.pack(question["entry"], found.files)
        else:
            digest = contents.digest(question["entry"], found.files)
    except shipping.Unsendable as error:
        return {"refused": str(error)}, b""
    except OSError as error:
        return {"refused": f"{error.filename or question['name']} cannot be read: {error.strerror}"}, b""
    return {"digest": digest, "stamp": stamp, "left_out": found.left_out}, packed


def _names(question: dict[str, Any], host: str) -> dict[str, Any]:
    found, installed = {}, ""
    for entry in question["path"]:
        if shipping.is_installed(entry):
            inside = shipping.named(entry, question["name"]) if question["name"] else ""
            installed = installed or (os.path.join(entry, inside) if inside else "")
        elif (names := shipping.listing(entry)) is not None:
            found[entry] = names
    editable = {name: entry for name, entry in _editable(question["path"]).items() if entry not in found}
    return {"host": host, "program": found, "editable": editable, "installed": installed}


def _editable(path: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in path:
        if shipping.is_installed(entry):
            found = {**shipping.editable(entry), **found}
    return found
