"""Modules that are imported once, before workers are forked: they share them, and start with them.

```
 zygote ──fork──► preloaded zygote: imports, then serves in its place ──fork──► workers
    │                     │
    │◄── pipe: which ─────┘     a module that starts threads, or kills the process, is left out: once more without it
    └─ waits for its end, and ends with it
```

Only what a program asks for (`dpool.init(preload=…)`). A fork has no thread but the one that forked, so the zygote may
have none: the libraries that start some when they are loaded (BLAS, OpenMP) are told to use one, and in a worker they
are told again how many they may use.

Source: `multiprocessing.set_forkserver_preload`.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from dpool._core.messages import Preload, PreloadFailed

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_WITHOUT_THREADS = {**dict.fromkeys(THREAD_VARIABLES, "1"), "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""While modules are imported. The last is pyarrow's, whose allocator would start a thread of its own."""
_LIBRARIES = (
    ("openmp", "OMP_NUM_THREADS"),
    ("openblas", "OPENBLAS_NUM_THREADS"),
    ("mkl", "MKL_NUM_THREADS"),
    ("blis", "BLIS_NUM_THREADS"),
)
"""threadpoolctl's names, and the variables that say how many threads they have."""
_TURN = b"i"
_THREADS = b"t"
_DONE = b"."
"""What the child says: it imports the next module; that has started threads; it serves."""


class Preloaded:
    """What this process was forked from."""

    anything: bool = False


def fork_preloaded(message: Preload, node: int, tell: Callable[[Any], None], become_child: Callable[[], None]) -> bool:
    """Fork a zygote that has the modules: True in it, once it has; False in this one if that cannot be.

    If it can, this one waits until the other ends, and then ends itself. Called with no thread but this one. `node`:
    the descriptor of the node's socket; when that closes, nobody needs the modules any more.
    """
    modules = list(message.modules)
    while modules:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            become_child()
            _import_all(modules, message.path, writer, tell)
            os.close(writer)
            return True
        os.close(writer)
        said = _listen(reader, node)
        if said is None:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if said is None:
            return False
        if said.endswith(_DONE):
            os._exit(0)
        why = "it starts threads when it is imported" if said.endswith(_THREADS) else _end(status)
        tell(PreloadFailed(modules.pop(said.count(_TURN) - 1), why))
    return False


def _listen(fd: int, node: int) -> bytes | None:
    """What a child says until it has no more to say; None if the node is gone."""
    waiter = select.poll()
    waiter.register(fd, select.POLLIN)
    waiter.register(node, 0)
    said = b""
    try:
        while True:
            ready = dict(waiter.poll())
            if node in ready:
                return None
            piece = os.read(fd, 4096)
            if not piece:
                return said
            said += piece
    finally:
        os.close(fd)


def _end(status: int) -> str:
    number = os.waitstatus_to_exitcode(status)
    return f"importing it ended the process ({f'signal {-number}' if number < 0 else f'exit code {number}'})"


def _import_all(modules: list[str], path: list[str], writer: int, tell: Callable[[Any], None]) -> None:
    """Import them, and say before each that it is its turn; ends the process if one starts a thread."""
    import atexit
    import gc

    atexit._clear()
    os.environ.update(_WITHOUT_THREADS)
    sys.path[:] = path
    sys.path_importer_cache.clear()
    gc.disable()
    for name in modules:
        os.write(writer, _TURN)
        try:
            importlib.import_module(name)
        except BaseException as error:  # SystemExit too
            tell(PreloadFailed(name, f"{type(error).__name__}: {error}"))
        if len(os.listdir("/proc/self/task")) > 1:
            os.write(writer, _THREADS)
            os._exit(0)
    gc.enable()
    gc.freeze()
    Preloaded.anything = True
    os.write(writer, _DONE)


def limit_loaded() -> None:
    """In a worker: give the libraries that were loaded with one thread those that the environment grants them."""
    wanted = {name: _number(os.environ.get(variable, "")) for name, variable in _LIBRARIES}
    if all(number == 1 for number in wanted.values()):
        return
    try:
        controller = importlib.import_module("threadpoolctl").ThreadpoolController()
    except ImportError:  # then they go on with one
        return
    for library in controller.lib_controllers:
        if library.internal_api in wanted:
            library.set_num_threads(wanted[library.internal_api])


def _number(text: str) -> int:
    """The first number of OMP_NUM_THREADS and its like."""
    first = text.partition(",")[0].strip()
    return max(1, int(first)) if first.isdigit() else 1
