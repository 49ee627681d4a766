"""What Redis pushes on a connection of one's own, with the redis-py that is installed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from redis.asyncio import Redis

from proxy.core.redis.pushes import handle_pushes
from proxy.demo.redis_server import RedisServer
from tests.http1 import PATIENCE


async def test_pushed_messages_reach_their_handlers(redis_server: RedisServer) -> None:
    """Of a changed key, and of a channel, each as the server wrote it."""
    got: asyncio.Queue[tuple[str, list[Any]]] = asyncio.Queue()

    async def invalidated(message: list[Any]) -> None:
        got.put_nowait(("key", message))

    async def published(message: list[Any]) -> None:
        got.put_nowait(("message", message))

    async with Redis.from_url(redis_server.url, protocol=3) as client:
        connection = cast(Any, client.connection_pool).make_connection()
        await connection.connect()
        handle_pushes(connection, invalidated, published)
        await connection.send_command("CLIENT", "TRACKING", "ON", "BCAST")
        assert await connection.read_response() == b"OK"
        await connection.send_command("SUBSCRIBE", "news")
        await client.set("job", "1")
        await client.publish("news", "now")
        kinds: dict[str, list[Any]] = {}
        async with asyncio.timeout(PATIENCE):
            while len(kinds) < 2 or kinds["message"][0] != b"message":
                await connection.read_response(disable_decoding=True, push_request=True)
                while not got.empty():
                    kind, message = got.get_nowait()
                    kinds[kind] = message
        assert kinds == {
            "key": [b"invalidate", [b"job"]],
            "message": [b"message", b"news", b"now"],
        }
        await connection.disconnect()
