"""A connection to a Redis by URL, with redis-py; the only module that imports redis.

Nothing is retried behind our back: redis-py's own retries are off. Its rewriting of answers is off, too: they are as
`resp.SocketLink` gives them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dpool._gcs.resp import LinkFailed, ServerRefused
from dpool.errors import ControlStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class UrlLink:
    """As `resp.SocketLink`, for redis://, rediss:// and unix:// URLs.

    Args:
        url: where the server is, and how to log in.
        public: the URL without its secrets, for the error.
        timeout_s: how long each wait for the server may take.

    Raises:
        ControlStoreError: the URL is malformed.
    """

    def __init__(self, url: str, public: str, timeout_s: float) -> None:
        self.connections = 0
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                redis_connect_func=self._connected,
            )
        except (ValueError, TypeError, redis.RedisError):
            raise ControlStoreError(f"DPOOL_REDIS_URL is malformed: {public}") from None
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
        return [ServerRefused(str(one)) if isinstance(one, Exception) else one for one in answers]

    def close(self) -> None:
        """Close the connection. Another thread may call it to end a call in progress."""
        self._client.connection_pool.disconnect()
