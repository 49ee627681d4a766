"""A client connection on a real socket: how long it is kept when we close it, and in a drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from proxy.core.clock import ManualClock
from proxy.core.memory.budget import MemoryBudget
from proxy.http1.client import ClientStream, Limits
from proxy.http1.deadlines import NEVER, Sweeper
from proxy.http1.request_head import RequestHead
from tests.http1 import PATIENCE

ANSWER = b"x" * 16_000_000  # more than the kernel takes


class Closing:
    """A connection whose answer was written and that was closed, though the client has read
    nothing."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.sweeper = Sweeper(self.clock)
        self.gone = asyncio.Event()
        self.begun: asyncio.Future[ClientStream] = asyncio.get_running_loop().create_future()

    async def serve(self, client: ClientStream) -> None:
        """All that is ever said."""
        client.transport.write(ANSWER)
        client.close()
        self.begun.set_result(client)

    def left(self, client: ClientStream) -> None:
        """The connection has ended."""
        self.gone.set()

    def after(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.sweeper.sweep()


async def closing(scenario: Callable[[Closing, socket.socket], Any]) -> None:
    """Run `scenario` with a closed connection and the client's end of it."""
    there = Closing()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: ClientStream(there.clock, there.sweeper, MemoryBudget(), there.serve, there.left),
        "127.0.0.1",
        0,
    )
    with (
        contextlib.closing(server),
        socket.create_connection(server.sockets[0].getsockname()) as client,
    ):
        client.setblocking(False)
        async with asyncio.timeout(PATIENCE):
            await there.begun
            await scenario(there, client)


async def takes_nothing(there: Closing, client: socket.socket) -> None:
    """Is waited for from the last byte that its kernel took, and no longer. A busy machine's kernel
    acknowledges late."""
    waited, left = 0, (await there.begun).to_send()
    while not there.gone.is_set():
        there.after(1)
        await asyncio.sleep(0.001)
        if not there.gone.is_set():
            before, left = left, there.begun.result().to_send()
            waited = waited + 1 if left == before else 0
    assert 29 <= waited < 32


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
@pytest.mark.parametrize("scenario", [takes_nothing, takes_a_little])
def test_how_long_a_closed_connection_is_kept(
    runner: Callable[..., Any], scenario: Callable[[Closing, socket.socket], Any]
) -> None:
    """As long as the client takes what is still to be sent, and half a minute beyond."""
    runner(closing(scenario))


REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Draining:
    """A connection whose heads are read, one after the other; `heads` are those that came."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.sweeper = Sweeper(self.clock)
        self.heads: asyncio.Queue[RequestHead | None] = asyncio.Queue()
        self.begun: asyncio.Future[ClientStream] = asyncio.get_running_loop().create_future()

    async def serve(self, client: ClientStream) -> None:
        """Read on to the end."""
        self.begun.set_result(client)
        limits = Limits(8192, 8192, 64)
        while (head := await client.read_head(limits, NEVER, 10.0)) is not None:
            self.heads.put_nowait(head)
        self.heads.put_nowait(None)
        client.close()


async def drained(scenario: Callable[[Draining, ClientStream, socket.socket], Any]) -> None:
    """Run `scenario` with a connection and the client's end of it."""
    there = Draining()
    server = await asyncio.get_running_loop().create_server(
        lambda: ClientStream(
            there.clock, there.sweeper, MemoryBudget(), there.serve, lambda _: None
        ),
        "127.0.0.1",
        0,
    )
    with (
        contextlib.closing(server),
        socket.create_connection(server.sockets[0].getsockname()) as client,
    ):
        async with asyncio.timeout(PATIENCE):
            await scenario(there, await there.begun, client)


async def new(there: Draining, stream: ClientStream, client: socket.socket) -> None:
    """It has just been opened, and its request is on the way: it is served."""
    stream.drain()
    await asyncio.sleep(0)
    client.send(REQUEST)
    assert await there.heads.get() is not None


async def kept(there: Draining, stream: ClientStream, client: socket.socket) -> None:
    """It was idle, and its next request has arrived, though nobody has read it: it is served."""
    client.send(REQUEST)
    assert await there.heads.get() is not None
    client.send(REQUEST)
    stream.drain()
    assert await there.heads.get() is not None


async def silent(there: Draining, stream: ClientStream, client: socket.socket) -> None:
    """It was opened to stay: it is closed after a second."""
    stream.drain()
    while there.heads.empty():
        there.clock.advance(0.5)
        there.sweeper.sweep()
        await asyncio.sleep(0.01)
    assert there.heads.get_nowait() is None


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("scenario", [new, kept, silent])
def test_what_is_under_way_when_a_drain_begins(
    runner: Callable[..., Any],
    scenario: Callable[[Draining, ClientStream, socket.socket], Any],
) -> None:
    """A drain closes no connection on a request that it has not seen yet."""
    runner(drained(scenario))
