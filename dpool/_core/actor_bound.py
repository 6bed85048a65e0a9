"""The actors that an executor made: they end at the latest when it is shut down.

```
 shutdown ─► the pool's last worker is gone ─► finish ─► each actor: what this process has asked it is answered ─► end
```

The executor's tasks come first, since they may call its actors. Held weakly: an actor whose last proxy goes before ends
by itself. Any thread.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from dpool._core.runtime import open_runtime

if TYPE_CHECKING:
    from dpool._core.actor import Held
    from dpool._core.actor_pool import ActorPool

SHUT_DOWN = "the executor that made it was shut down"
KILLED = "the workers of the executor that made it were killed"


class BoundActors:
    """See the module."""

    def __init__(self) -> None:
        self._held: weakref.WeakSet[Held] = weakref.WeakSet()
        self._links: list[ActorPool] = []
        """To those that have been told to end."""
        self._pid = os.getpid()

    def add(self, held: Held) -> None:
        """One more."""
        self._held.add(held)

    def cancel(self) -> None:
        """Cancel what this process has asked them and they have not begun."""
        for link in self._open_links():
            link.interrupt()

    def finish(self, why: str = SHUT_DOWN) -> None:
        """Have them end when they have answered; does not wait."""
        self._end(why, now=False)

    def kill(self, why: str = KILLED) -> None:
        """End their processes now; does not wait."""
        self._end(why, now=True)

    def _end(self, why: str, now: bool) -> None:
        for link in self._open_links():
            link.finish(why, now)
            self._links.append(link)

    def _open_links(self) -> list[ActorPool]:
        """None if they are not ours (in a forked child), end with the program now, or have ended with their node."""
        runtime: Any = open_runtime(None)
        if os.getpid() != self._pid or runtime.exiting or not runtime.connected():
            return []
        return [held.pool() for held in list(self._held)]

    def wait_gone(self) -> None:
        """Wait until those that were told to end are gone."""
        runtime: Any = open_runtime(None)
        runtime.wait_until(lambda: all(link.broken is not None for link in self._links))
        self._links.clear()
