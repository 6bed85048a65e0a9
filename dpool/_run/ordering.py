"""The order of what is printed: what a task wrote stands before what the program writes when it has the result.

```
 a task's print ─► Stream.write: counted in the worker's page ─► pipe ─► node ─► the program's stream
 the program's print ─► Stream.write ─► has a worker written? ─► ask the node for it, first ─► its own text
```

Workers of `multiprocessing` write to the terminal themselves, so this holds there. With dpool their lines go through
the node, on another way than the results, and would come a moment later.

Threads: any. Lines come in between only where a line begins, as far as this is in our hands.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from dpool._core.context import here

_former: list[Any] = []
"""The streams that ours have replaced: collected, they would close their files."""


class _Stream(io.TextIOWrapper):
    """Standard output or error."""

    _in_line = False
    """What was written last did not end a line: nothing shall come in between, as `print` writes in several pieces."""

    def write(self, text: str) -> int:
        if here.page is not None:
            here.page.count_written()
        if not self._in_line:
            driver = sys.modules.get("dpool._core.driver")
            if driver is not None and driver._Current.runtime is not None:
                driver._Current.runtime.catch_up_output()
        if text:
            self._in_line = text[-1] != "\n"
        return super().write(text)


_Stream.__name__ = _Stream.__qualname__ = "TextIOWrapper"


def install() -> None:
    """Change this process's streams; at its start, before somebody keeps one."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:
            continue  # it has been replaced, or there is none
        stream.flush()
        ours = _Stream(
            stream.buffer,
            stream.encoding,
            stream.errors,
            newline="\n",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        ours.mode = stream.mode  # type: ignore[misc]
        _former.append(stream)
        setattr(sys, name, ours)
        if getattr(sys, f"__{name}__") is stream:
            setattr(sys, f"__{name}__", ours)
