"""A connection to an upstream on a real socket: what a reset leaves of an answer."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop

from proxy.clock import SystemClock
from proxy.config.units import TargetAddress
from proxy.config.upstreams import Pool
from proxy.memory_budget import MOST, MemoryBudget
from proxy.wire.client import ClientStream
from proxy.wire.deadlines import Sweeper
from proxy.wire.pool import TargetPool, UpstreamStream
from tests.http1 import PATIENCE

REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"


class Waiter:
    """Stands where the client's connection would: is told that something happened."""

    def __init__(self) -> None:
        self.told = asyncio.Event()

    def notify(self) -> None:
        self.told.set()


async def reset_in_the_middle(answer: bytes, before: bytes = b"") -> UpstreamStream:
    """The connection to an app that answered and closed with bytes unread, after the write that met
    the reset, made before the event loop could read; `before` was read already."""
    clock = SystemClock()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        pool = TargetPool(
            TargetAddress("http", host, port),
            Pool(),
            1.0,
            clock,
            Sweeper(clock),
            MemoryBudget(),
            lambda _: None,
        )
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(lambda: UpstreamStream(pool), host, port)
        waiter = Waiter()
        stream.owner = cast(ClientStream, waiter)
        app, _ = listening.accept()
        if before:
            stream.data_received(before)
        stream.transport.write(b"x" * 100_000)
        app.recv(1_000)
        app.sendall(answer)
        app.close()
        gone = select.poll()  # the loop stands still here, as it does behind other work
        gone.register(stream.transport.get_extra_info("socket").fileno(), select.POLLHUP)
        assert gone.poll(5_000)
        stream.transport.write(b"x" * 10_000)
        async with asyncio.timeout(PATIENCE):
            while not stream.lost:
                waiter.told.clear()
                await waiter.told.wait()
        return stream


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_an_answer_survives_the_reset_behind_it(runner: Callable[..., Any]) -> None:
    """A write that fails ends the reading, but not before what has arrived is taken."""
    stream = runner(reset_in_the_middle(REFUSAL))
    assert isinstance(stream.error, ConnectionError)
    head = stream.read_head()
    assert head is not None
    assert (head.status, stream.take()) == (401, b"no")


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_is_taken_at_the_end_is_bounded(runner: Callable[..., Any]) -> None:
    """A client that reads slowly does not make us keep more than from a connection that lives."""
    full = b"a" * MOST
    stream = runner(reset_in_the_middle(b"b" * 1_000, full))
    assert stream.take() == full
