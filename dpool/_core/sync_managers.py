"""`Manager` of `dpool.multiprocessing`: the standard library's, whose proxies find it from other machines, too.

A proxy takes along the name of its *serializer*, by which the standard library finds what makes connections
(`listener_client`). Ours, a `Way`, names the session of the machine where the manager listens: so a process of another
machine of the cluster connects through the gateways, and all others as ever.
"""

from __future__ import annotations

import os
from functools import partial
from multiprocessing import connection as standard
from multiprocessing import managers
from typing import Any

from dpool._core import launch
from dpool._core.sync_client import own_session

_listener_client: dict[str, Any] = managers.listener_client  # type: ignore[attr-defined]
_sessions: dict[str, str] = {}
"""Address of a manager elsewhere → its session: proxies that it answers with do not name that."""


class Way(str):
    """How managers and their proxies connect. `session`: where the manager is; empty: on this machine."""

    __slots__ = ("session",)
    session: str

    def __reduce__(self) -> Any:
        return way, (self.session or own_session(),)


def way(session: str) -> Way:
    """The way to managers of that session, known to `multiprocessing.managers` from now on."""
    made = Way(f"dpool {session}".rstrip())
    made.session = session
    _listener_client.setdefault(made, (standard.Listener, partial(_connect, session)))
    return made


def started(context: Any) -> Any:
    """A `SyncManager`, started. Source: `multiprocessing.Manager`."""
    manager: Any = managers.SyncManager(serializer=way(""), ctx=context.get_context())
    manager.start()
    return manager


def _connect(session: str, address: Any, authkey: bytes | None = None) -> Any:
    """As `multiprocessing.connection.Client`."""
    fd = _far_stream(session, address) if isinstance(address, str) else None
    if fd is None:
        return standard.Client(address, authkey=authkey)
    made = standard.Connection(fd)
    try:
        if authkey is not None:
            standard.answer_challenge(made, authkey)
            standard.deliver_challenge(made, authkey)
    except BaseException:
        made.close()
        raise
    return made


def _far_stream(session: str, address: str) -> int | None:
    """A connection through the gateways; None if it is not for them."""
    session = session or _sessions.get(address, "")
    through = own_session()
    if session in ("", through) or not through or not os.path.exists(os.path.join(through, launch.GATEWAY_SOCKET)):
        return None
    from dpool._core import far

    _sessions[address] = session
    return far.stream(through, session, address)
