"""Connections to a Redis by URL, with redis-py; the only module that imports redis.

| URL | leads to |
|---|---|
| `redis://`, `rediss://` (TLS), `unix://` | that server |
| `redis+sentinel://host:port,host:port/service` | the present master of the service, as these sentinels say |
| `redis+cluster://host:port,host:port` | the Redis Cluster to which these belong |
| several of the first kind, with commas between them | all of them: each has a share of the keys |

`rediss+…` is the same with TLS; users, passwords and redis-py's options (`?ssl_ca_certs=…`) stand where they do in the
URL of a single server, those for the sentinels themselves in `?sentinel_username=…&sentinel_password=…`.

Nothing is retried behind our back: redis-py's own retries are off. Its rewriting of answers is off, too: they are as
`resp.SocketLink` gives them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import redis
import redis.sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from dpool._gcs.resp import LinkFailed, ServerRefused
from dpool._gcs.spread import SpreadLink, key_of, steps
from dpool.errors import ControlStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dpool._gcs.spread import Link

_sentinels: Callable[..., Any] = redis.sentinel.Sentinel  # which has no types
_parse_url: Callable[[str], dict[str, Any]] = redis.connection.parse_url
_SEVERAL = re.compile(r",(?=[a-z+]+://)")
_HOSTS = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://(?P<user>[^?]*@)?(?P<hosts>[^/?@]+)"
    r"(?:/(?P<path>[^?]*))?(?:\?(?P<query>.*))?"
)
_MOVED = ("MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN")


def link_to(url: str, public: str, timeout_s: float) -> Link:
    """A link to the server or servers.

    Args:
        url: where they are, and how to log in.
        public: the URL without its secrets, for the error.
        timeout_s: how long each wait for a server may take.

    Raises:
        ControlStoreError: the URL is malformed.
    """
    try:
        links = [_link(one, timeout_s) for one in _SEVERAL.split(url)]
    except (ValueError, TypeError, redis.RedisError):
        raise ControlStoreError(f"DPOOL_REDIS_URL is malformed: {public}") from None
    return links[0] if len(links) == 1 else SpreadLink(links)


def _link(url: str, timeout_s: float) -> Link:
    parts = _HOSTS.fullmatch(url)
    if parts is None:
        return UrlLink(lambda options: redis.Redis.from_url(url, **options), timeout_s)
    options = dict(parse_qsl(parts["query"] or ""))
    sentinel = {
        name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options
    }
    user, query = parts["user"] or "", f"?{urlencode(options)}" if options else ""
    hosts = [
        (host.strip("[]"), int(port)) for host, _, port in (one.rpartition(":") for one in parts["hosts"].split(","))
    ]
    if parts["kind"] == "cluster":
        return ClusterLink([f"{parts['scheme']}://{user}{host}:{port}/0{query}" for host, port in hosts], timeout_s)
    service, _, database = (parts["path"] or "").partition("/")
    if not service:
        raise ValueError("no service")
    known: dict[str, Any] = {
        **_parse_url(f"{parts['scheme']}://{user}{parts['hosts'].split(',')[0]}/{database}{query}")
    }
    for name in ("host", "port", "connection_class"):
        known.pop(name, None)
    tls = {"ssl": parts["scheme"] == "rediss"}
    known.update(tls)
    sentinel.update({name: value for name, value in known.items() if name.startswith("ssl")})

    def make(more: dict[str, Any]) -> redis.Redis:
        patience = {name: more[name] for name in ("socket_timeout", "socket_connect_timeout", "retry")}
        master: redis.Redis = _sentinels(hosts, sentinel_kwargs={**sentinel, **patience}).master_for(
            service, **{**known, **more}
        )
        return master

    return UrlLink(make, timeout_s)


class UrlLink:
    """As `resp.SocketLink`, for one server; `make` makes redis-py's client with these options."""

    def __init__(self, make: Callable[[dict[str, Any]], redis.Redis], timeout_s: float) -> None:
        self.connections = 0
        self._client = make(
            {
                "socket_timeout": timeout_s,
                "socket_connect_timeout": timeout_s,
                "retry": Retry(NoBackoff(), 0),
                "protocol": 2,
                "redis_connect_func": self._connected,
            }
        )
        self._client.response_callbacks.clear()

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self.connections += 1

    def execute(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """See `resp.SocketLink.execute`."""
        pipe = self._client.pipeline(transaction=False)
        stage: Callable[..., object] = pipe.execute_command
        for command in commands:
            stage(*command)
        try:
            answers = pipe.execute(raise_on_error=False)
        except (redis.RedisError, OSError, ValueError) as error:
            raise LinkFailed(str(error) or type(error).__name__) from None
        return [ServerRefused(_text(one)) if isinstance(one, Exception) else one for one in answers]

    def servers(self) -> list[Link]:
        """A link to each server that has keys."""
        return [self]

    def close(self) -> None:
        """Close the connection. Another thread may call it to end a call in progress."""
        self._client.connection_pool.disconnect()


_TAKEN_OFF = {
    redis.exceptions.MovedError: "MOVED",
    redis.exceptions.AskError: "ASK",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
}
"""Errors whose first word redis-py takes off."""


def _text(error: Exception) -> str:
    """What the server said."""
    word = next((word for kind, word in _TAKEN_OFF.items() if isinstance(error, kind)), "")
    return f"{word} {error}".strip()


class ClusterLink:
    """The servers of a Redis Cluster as one; `urls` are of those that are asked which others there are.

    The cluster says which server has which keys; where that is not so any more, it is asked again, once, before a call
    fails.
    """

    def __init__(self, urls: list[str], timeout_s: float) -> None:
        self._urls = urls
        self._timeout_s = timeout_s
        self._links: dict[str, UrlLink] = {}
        self._ranges: list[tuple[int, int, str]] = []
        """First and last slot → URL of the server."""
        for url in urls:  # malformed ones are refused here
            self._link(url)

    @property
    def connections(self) -> int:
        """How often it has connected, to whichever."""
        return sum(link.connections for link in self._links.values())

    def _link(self, url: str) -> UrlLink:
        link = self._links.get(url)
        if link is None:
            link = UrlLink(lambda options: redis.Redis.from_url(url, **options), self._timeout_s)
            self._links[url] = link
        return link

    def _learn(self) -> None:
        """Which server has which slots."""
        failed = "no server was given"
        for url in dict.fromkeys([*self._urls, *(known for _, _, known in self._ranges)]):
            try:
                (answer,) = self._link(url).execute([("CLUSTER", "SLOTS")])
            except LinkFailed as error:
                failed = str(error)
                continue
            if isinstance(answer, ServerRefused):
                failed = str(answer)
                continue
            self._ranges = [(first, last, _at(url, *master[:2])) for first, last, master, *_ in answer]
            return
        raise LinkFailed(f"no server of the cluster says which there are: {failed}")

    def _place(self, command: tuple[Any, ...]) -> str:
        slot = key_slot(key_of(command))
        for first, last, url in self._ranges:
            if first <= slot <= last:
                return url
        raise LinkFailed(f"no server of the cluster has the slot {slot}")

    def execute(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """See `resp.SocketLink.execute`."""
        if not self._ranges:
            self._learn()
        try:
            answers = self._send(commands)
        except LinkFailed:  # perhaps another server has taken its place: the next call finds it
            self._ranges = []
            raise
        moved = [at for at, one in enumerate(answers) if isinstance(one, ServerRefused) and str(one).startswith(_MOVED)]
        if moved:
            self._learn()
            for at, answer in zip(moved, self._send([commands[at] for at in moved]), strict=True):
                answers[at] = answer
        return answers

    def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers: list[Any] = [None] * len(commands)
        for step in steps(commands, self._place):
            for url, numbers in step.items():
                found = self._link(url).execute([commands[number] for number in numbers])
                for number, answer in zip(numbers, found, strict=True):
                    answers[number] = answer
        return answers

    def servers(self) -> list[Link]:
        """A link to each server that has keys."""
        if not self._ranges:
            self._learn()
        return [self._link(url) for url in dict.fromkeys(url for _, _, url in self._ranges)]

    def close(self) -> None:
        """Close all connections."""
        for link in list(self._links.values()):
            link.close()


def _at(url: str, host: bytes, port: int) -> str:
    """The URL of another server of the cluster; an empty host is that of the one which was asked."""
    scheme, _, rest = url.partition("://")
    user, at, rest = rest.rpartition("@") if "@" in rest.partition("?")[0] else ("", "", rest)
    place, slash, tail = rest.partition("/")
    name = (host or b"").decode() or place.rpartition(":")[0]
    name = f"[{name}]" if ":" in name and not name.startswith("[") else name
    return f"{scheme}://{user}{at}{name}:{port}{slash}{tail}"
