"""What a Redis server pushes on a connection beside the replies (RESP3).

redis-py hands pushed messages to its client-side cache and its `PubSub`. Whoever reads a connection
of its own has to reach the parser, which is private; this is the only place that does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection

PushHandler = Callable[[list[Any]], Awaitable[object]]


class _Parser(Protocol):
    def set_invalidation_push_handler(self, handler: PushHandler) -> None: ...
    def set_pubsub_push_handler(self, handler: PushHandler) -> None: ...


def handle_pushes(
    connection: AbstractConnection, on_invalidation: PushHandler, on_message: PushHandler
) -> None:
    """Call `on_invalidation` for keys that changed (`CLIENT TRACKING`) and `on_message` for those
    of subscribed channels, from within `connection.read_response`, which returns what they return.
    The connection must be open and use RESP3."""
    parser: _Parser = connection._parser  # type: ignore[assignment]
    parser.set_invalidation_push_handler(on_invalidation)
    parser.set_pubsub_push_handler(on_message)
