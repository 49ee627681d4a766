"""A client connection on a real socket, closed by us: how long a client can keep it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from proxy.clock import ManualClock
from proxy.wire.client import ClientStream
from proxy.wire.deadlines import Sweeper

ANSWER = b"x" * 16_000_000  # more than the kernel takes


class Closing:
    """A connection whose answer was written and that was closed, though the client has read
    nothing."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.sweeper = Sweeper(self.clock)
        self.gone = asyncio.Event()
        self.begun = asyncio.Event()

    async def serve(self, client: ClientStream) -> None:
        """All that is ever said."""
        client.transport.write(ANSWER)
        client.close()
        self.begun.set()

    def left(self, client: ClientStream) -> None:
        """The connection has ended."""
        self.gone.set()

    def after(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.sweeper.sweep()


async def closing(story: Callable[[Closing, socket.socket], Any]) -> None:
    """Tell `story` with a closed connection and the client's end of it."""
    there = Closing()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: ClientStream(there.clock, there.sweeper, there.serve, there.left), "127.0.0.1", 0
    )
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.setblocking(False)
        async with asyncio.timeout(60):
            await there.begun.wait()
            await story(there, client)
    server.close()


async def takes_nothing(there: Closing, client: socket.socket) -> None:
    """Is waited for, and no longer."""
    for _ in range(29):
        there.after(1)
        await asyncio.sleep(0)
        assert not there.gone.is_set()
    there.after(2)
    there.after(1)
    await there.gone.wait()


async def takes_a_little(there: Closing, client: socket.socket) -> None:
    """May take an hour, if it only takes something now and then."""
    loop = asyncio.get_running_loop()
    got = 0
    while got < len(ANSWER):
        for _ in range(32):
            if got < len(ANSWER):
                got += len(await loop.sock_recv(client, 65_536))
        there.after(5)
    assert await loop.sock_recv(client, 1) == b""
    await there.gone.wait()


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("story", [takes_nothing, takes_a_little])
def test_how_long_a_closed_connection_is_kept(
    runner: Callable[..., Any], story: Callable[[Closing, socket.socket], Any]
) -> None:
    """As long as the client takes what is still to be sent, and half a minute beyond."""
    runner(closing(story))
