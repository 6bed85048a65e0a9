"""A process that runs what it is sent, for the tests of `dpool._core.serialize`: an importer behind a pipe.

`Peer()` starts one; `peer(fn, *args, **kwargs)` runs a call there and returns its result or raises its exception.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from typing import IO, Any

from dpool._core import serialize


def write(stream: IO[bytes], content: Any) -> None:
    data = pickle.dumps(content, 5)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def read(stream: IO[bytes]) -> Any:
    (size,) = struct.unpack("<Q", stream.read(8))
    return pickle.loads(stream.read(size))


class Peer:
    """One worker process, and what has been shipped to it."""

    exporter = serialize.Exporter()

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.core.serialize_peer import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )
        self.shipped = serialize.Shipped()
        self.sent: list[list[tuple[int, str, bytes]]] = []
        main = sys.modules["__main__"]
        self._send(("main", getattr(main, "__file__", None), getattr(main, "__package__", None)))

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        write(self._process.stdin, message)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(30) == 0

    def __call__(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.run(*self.exporter.prepare(fn, args, kwargs))

    def run(self, export: serialize.Export, payload: Any) -> Any:
        """Run a prepared call."""
        items = [] if export.number in self.shipped.ready else self.shipped.missing(export)
        self.sent.append(items)
        self._send(("call", items, export.number, export.inline, payload))
        assert self._process.stdout is not None
        kind, data = read(self._process.stdout)
        if kind == "result":
            return serialize.load_result(data, export.label)
        raise serialize.load_exception(data, export.label)

    def forget(self, numbers: list[int]) -> None:
        self.shipped.forget(numbers)
        self._send(("forget", numbers))

    @property
    def last_names(self) -> list[str]:
        """Names of the definitions that the last call shipped."""
        return sorted(name for _, name, _ in self.sent[-1] if name)


def serve() -> None:
    """The other process."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    importer = serialize.Importer()
    while True:
        try:
            kind, *content = read(source)
        except struct.error:
            return
        if kind == "main":
            importer.install_main(*content)
        elif kind == "forget":
            importer.forget(*content)
        else:
            write(target, _answer(importer, *content))


def _answer(importer: serialize.Importer, items: Any, number: int, inline: bool, payload: Any) -> tuple[str, bytes]:
    try:
        importer.install(items)
        if inline:
            function, args, kwargs = importer.load_inline(payload)
        else:
            function = importer.function(number)
            args, kwargs = (payload, {}) if type(payload) is tuple else importer.load_call(payload)
        result = function(*args, **kwargs)
        return "result", serialize.dump_result(result, "task")
    except BaseException as error:
        return "error", serialize.dump_exception(error, "task")
