"""A server of scripts on asyncio's streams that leaves nothing open when its test ends."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def conversing(
    conversation: Conversation, *, path: Path | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Each connection has this `conversation`, and is closed after it. Yields the port of
    127.0.0.1; 0 where it listens on the unix socket `path`."""
    under_way: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way[task] = writer
        try:
            await conversation(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client had enough, as it should
        finally:
            writer.close()

    if path is not None:
        server = await asyncio.start_unix_server(serve, str(path))
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield 0 if path is not None else server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        for writer in under_way.values():
            # Until the transport is gone: the loop may be closed right after.
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()
